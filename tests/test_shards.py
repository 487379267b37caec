"""Mixtures and their shards: shares, epochs, order, and the same bytes after an interruption."""

import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from helpers.models import tiny_config
from helpers.recipes import in_hub_cache
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from data_prep import mix_corpus
from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.corpus.mixture import Source, mix, planned_tokens, shuffled
from data_prep.corpus.mixture_plan import Estimate, estimate
from data_prep.tokens.corpus_tokens import enough, load_tokenizer, tokenize_source
from data_prep.tokens.shards import ShardWriter, TokenShards, tokenizer_hash, write_index
from data_prep.train_tokenizer import train_tokenizer
from recipes.trainers.blocks import Blocks


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """262 entries and no merge, so that a byte is a token and counts can be worked out by hand."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(["a"]), 262).save_pretrained(folder)
    return folder


def make(folder: Path, texts: list[str], tokenizer: Path, **options) -> TokenShards:
    write_jsonl(folder.with_suffix(".jsonl"), [{"text": text} for text in texts])
    options = {"shard_tokens": 1000, **options}
    return tokenize_source(folder, [str(folder.with_suffix(".jsonl"))], load_tokenizer(tokenizer), **options)


def shuffled_numbers(seed: int, count: int = 100, buffer_size: int = 10) -> list[int]:
    return list(shuffled(iter(range(count)), buffer_size, random.Random(seed)))


def test_shuffled_keeps_every_item_in_an_order_given_by_the_seed():
    assert sorted(shuffled_numbers(0)) == list(range(100))
    assert shuffled_numbers(0) != list(range(100)), "the order changes"
    assert shuffled_numbers(0) == shuffled_numbers(0) != shuffled_numbers(1)
    assert shuffled_numbers(0, buffer_size=1) == list(range(100)), "a buffer of one cannot change it"
    # A buffer that holds everything is a plain shuffle: each of the 3! orders comes up, within 200 seeds
    assert len({tuple(shuffled_numbers(seed, 3, 5)) for seed in range(200)}) == 6


def test_shuffled_moves_an_item_at_most_the_buffer_forward_and_about_the_buffer_back():
    moves = [number - place for seed in range(100) for place, number in enumerate(shuffled_numbers(seed))]
    # Item 9 can come first (9 places forward); item n enters a buffer of 10 for the output n - 9: never earlier.
    assert max(moves) == 9
    # Backwards there is no bound but the end of the items: item 0 leaves with a chance of 1/10 at each output, so it
    # comes at place 9 on average. Mean of 100 seeds with a deviation of 9.5: 9 ± 4 standard errors of 0.95.
    first = [shuffled_numbers(seed, 1000).index(0) for seed in range(100)]
    assert abs(sum(first) / 100 - 9) < 4 * 0.95 and max(first) > 20


def test_shares_are_in_tokens_and_a_small_source_is_read_again(tmp_path, tokenizer):
    big = make(tmp_path / "big", ["b" * 9] * 200, tokenizer)  # 10 tokens each with the end of text
    small = make(tmp_path / "small", ["s" * 4] * 10, tokenizer)  # 5 tokens each: 50 in a pass
    sources = [Source("big", big, 3, None, 16, 0), Source("small", small, 1, None, 16, 0)]
    documents = [ids for ids, _ in mix(sources, 800)]
    # 3 : 1 of 800 tokens is 600 and 200; 200 tokens of `small` are four passes over it
    assert [source.tokens for source in sources] == [600, 200]
    assert [source.documents for source in sources] == [60, 40]
    assert [source.bytes for source in sources] == [540, 160]
    assert sum(map(len, documents)) == 800
    assert all(ids[-1] == 0 for ids in documents)


def test_a_source_at_its_cap_stops_and_the_others_share_what_is_left(tmp_path, tokenizer):
    shards = [make(tmp_path / name, [name * 9] * 10, tokenizer) for name in "abc"]  # 100 tokens a pass
    asked = [("a", 2, 1), ("b", 1, None), ("c", 1, None)]
    sources = [Source(name, each, w, most, 1, 0) for each, (name, w, most) in zip(shards, asked, strict=True)]
    first_ids = [int(ids[0]) for ids, _ in mix(sources, 400)]
    # Up to 200 tokens a has half; it stops at 100, and b and c halve the 300 that are left.
    assert [source.tokens for source in sources] == [100, 150, 150]
    assert len(first_ids) == 40 and first_ids[20:] == first_ids[20:22] * 10, "b and c take turns"
    planned = planned_tokens({"a": 2, "b": 1, "c": 1}, {"a": 100, "b": float("inf"), "c": float("inf")}, 400)
    assert planned == {"a": 100, "b": 150, "c": 150}


def test_a_mixture_whose_sources_all_stop_ends_short(tmp_path, tokenizer):
    source = Source("a", make(tmp_path / "a", ["a" * 9] * 10, tokenizer), 1, 1.5, 1, 0)
    assert sum(len(ids) for ids, _ in mix([source], 1000)) == 150
    assert planned_tokens({"a": 1.0}, {"a": 150}, 1000) == {"a": 150}


@settings(deadline=None, max_examples=50)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=1, max_size=20),
    shard_tokens=st.integers(1, 40),
)
def test_any_documents_survive_shards(tokenizer, texts, shard_tokens):
    loaded = load_tokenizer(tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        shards = make(Path(folder) / "source", texts, tokenizer, shard_tokens=shard_tokens)
        assert shards.documents == len(texts)
        for number, text in enumerate(texts):
            ids, size = shards.document(number)
            assert ids[-1] == loaded.end_of_text and size == len(text.encode())
            assert loaded.tokenizer.decode(ids[:-1].tolist(), skip_special_tokens=False) == text
        joined = np.concatenate([shards.document(number)[0] for number in range(len(texts))])
        assert len(shards) == len(joined) and (shards[:] == joined).all()
        assert all((shards[start : start + 7] == joined[start : start + 7]).all() for start in range(len(joined)))


def test_special_token_text_in_a_document_stays_text(tmp_path, tokenizer, capsys):
    shards = make(tmp_path / "a", ["a<|endoftext|>b", "c"], tokenizer)
    assert shards.documents == 2 and (shards[:] == 0).sum() == 2, "two ends of text, of two documents"
    assert "a: 1 document with special-token text, encoded as ordinary characters" in capsys.readouterr().out


def test_a_source_is_read_no_further_than_a_mixture_can_ask_for(tmp_path, tokenizer):
    # 10 tokens a document: 30 beyond a buffer of 5 documents are in the first 8
    assert not enough(70, 7, 30, 5) and enough(80, 8, 30, 5)
    assert make(tmp_path / "a", ["a" * 9] * 1000, tokenizer, most=(30, 5)).documents == 8


def test_a_folder_of_shards_names_what_is_wrong_with_it(tmp_path, tokenizer):
    shards = make(tmp_path / "a", ["abc"], tokenizer)
    shards.check_tokenizer(tokenizer, 262)
    with pytest.raises(InputError, match="tokenized with 262 entries, but elsewhere has 300"):
        shards.check_tokenizer("elsewhere", 300)
    changed = json.loads((tokenizer / "tokenizer.json").read_text())
    changed["model"]["vocab"]["\u0121"], changed["model"]["vocab"]["\u0122"] = 261, 260
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="tokenized with a tokenizer other than"):
        shards.check_tokenizer(tmp_path, 262)
    with (tmp_path / "a" / "shard-00000.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(InputError, match="found 9 bytes, expected 8 as the index says"):
        TokenShards(tmp_path / "a")
    with pytest.raises(
        InputError, match=r"index.json: no such file or folder; it is made by: python -m data_prep.mix"
    ):
        TokenShards(tmp_path)


# The command


def write_mixture(folder: Path, tokenizer: Path, **changes) -> Path:
    write_jsonl(folder / "a.jsonl", [{"text": f"return a copy {n}"} for n in range(30)])
    config = {
        "tokenizer": str(tokenizer),
        "sources": {"a": {"files": [str(folder / "a.jsonl")], "weight": 1}},
        "passes": 2,
        "output_dir": str(folder / "tokens"),
        **changes,
    }
    (folder / "mix.yaml").write_text(yaml.safe_dump(config))
    return folder / "mix.yaml"


def run(monkeypatch, config: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["mix_corpus", "--config", str(config), *more])
    mix_corpus.main()


def test_the_command_writes_tokens_that_decode_to_the_documents(tmp_path, tokenizer, monkeypatch, capsys):
    run(monkeypatch, write_mixture(tmp_path, tokenizer, shard_tokens=300))
    shards = TokenShards(tmp_path / "tokens")
    decoded = load_tokenizer(tokenizer).tokenizer.decode(shards[:].tolist(), skip_special_tokens=False)
    texts = decoded.split("<|endoftext|>")[:-1]
    assert sorted(texts) == sorted([f"return a copy {n}" for n in range(30)] * 2)
    # 10 of 15 letters, 20 of 16, each and its end of text, twice over: a shard closes at the document that fills it
    assert shards.index["tokens"] == len(shards) == 2 * (10 * 16 + 20 * 17) == 1000
    assert shards.index["bytes"] == sum(map(len, texts))
    assert len(shards.index["shards"]) == 4 and shards[:].dtype == np.dtype("<u2")
    assert shards.index["sources"]["a"] == {
        "asked_weight": 1, "tokens": 1000, "documents": 60, "bytes": 940, "passes": 2.0,
    }  # fmt: skip
    assert not (tmp_path / ".tokens.unfinished").exists()
    out = capsys.readouterr().out
    assert "100.00%   100.00%" in out and out.endswith(f"they are in {tmp_path / 'tokens'}\n")


def test_the_tokenizer_may_be_that_of_a_model_of_the_hub(tmp_path, tokenizer, monkeypatch, capsys):
    shutil.copytree(tokenizer, tmp_path / "model")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "gpt2"}')
    in_hub_cache(tmp_path / "hub", "somebody/model", {"main": tmp_path / "model"})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    run(monkeypatch, write_mixture(tmp_path, Path("somebody/model")))
    TokenShards(tmp_path / "tokens").check_tokenizer(tokenizer, 262)
    capsys.readouterr()
    with pytest.raises(InputError, match="^somebody/other: no tokenizer that can be loaded"):
        run(monkeypatch, write_mixture(tmp_path, Path("somebody/other"), output_dir=str(tmp_path / "other")))
    with pytest.raises(InputError, match="^runs/absent: no such file or folder; it is made by: python -m"):
        run(monkeypatch, write_mixture(tmp_path, Path("runs/absent"), output_dir=str(tmp_path / "other")))
    assert not (tmp_path / "other").exists()


def test_the_seed_gives_the_order_of_the_documents(tmp_path, tokenizer):
    """Through the command, two passes over 30 documents with a buffer of 10: the shards hold them in another order."""

    def orders(seed: int, buffer: int) -> tuple[list[int], list[int]]:
        folder = tmp_path / f"{seed}-{buffer}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        config = write_mixture(folder, tokenizer, seed=seed, shuffle_buffer=buffer, num_workers=1)
        subprocess.run(command(config), check=True, capture_output=True)
        ids = TokenShards(folder / "tokens")[:].tolist()
        texts = load_tokenizer(tokenizer).tokenizer.decode(ids, skip_special_tokens=False).split("<|endoftext|>")[:-1]
        numbers = [int(text.removeprefix("return a copy ")) for text in texts]
        return numbers[:30], numbers[30:]

    as_in_the_file = list(range(30))
    first, second = orders(seed=0, buffer=10)
    assert sorted(first) == sorted(second) == as_in_the_file, "each pass is whole"
    assert as_in_the_file != first != second != as_in_the_file, "each pass has an order of its own"
    assert max(number - place for place, number in enumerate(first)) <= 9
    assert orders(seed=0, buffer=10) == (first, second)
    assert orders(seed=1, buffer=10)[0] not in (first, as_in_the_file)
    assert orders(seed=0, buffer=1) == (as_in_the_file, as_in_the_file)


def test_the_plan_is_printed_before_and_alone_in_a_dry_run(tmp_path, tokenizer, monkeypatch, capsys):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b" * 99}] * 10)  # 1,000 tokens
    sources = {
        "a": {"files": [str(tmp_path / "a.jsonl")], "weight": 3, "max_epochs": 2},  # 500 tokens in 470 bytes
        "b": {"files": [str(tmp_path / "*b.jsonl")], "weight": 1},
    }
    path = write_mixture(tmp_path, tokenizer, sources=sources, passes=2)
    run(monkeypatch, path, "--dry_run")
    out = capsys.readouterr().out
    # 2 × 1,500 tokens, 3/4 of them from a are 2,250, but two epochs are 1,000; b has the other 2,000, in two passes
    assert out.splitlines()[1].split() == ["a", "1", "~470", "~500", "75.00%", "~1,000", "2.00"]
    assert out.splitlines()[2].split() == ["b", "1", "~990", "~1,000", "25.00%", "~2,000", "2.00"]
    assert out.splitlines()[3] == "stopping at max_epochs: a; the others share the rest by their weights"
    assert out.splitlines()[4].startswith("disk: ~0.0 GB for the mixture")
    assert len(out.splitlines()) == 5 and not list(tmp_path.glob("*tokens*"))
    run(monkeypatch, path)
    assert [source["tokens"] for source in TokenShards(tmp_path / "tokens").index["sources"].values()] == [1000, 2000]


def test_a_document_that_spoils_the_shares_is_named(tmp_path, tokenizer, monkeypatch, capsys):
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b" * 499}])  # 500 tokens
    sources = {name: {"files": [str(tmp_path / f"{name}.jsonl")], "weight": 1} for name in "ab"}
    run(monkeypatch, write_mixture(tmp_path, tokenizer, sources=sources, passes=1))
    # 500 tokens of each, 1,000 in all
    note = "the longest one limits how exact the shares are: it is in b and has 500 tokens, "
    assert note + "50% of all\n" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "tokens")
    small = {"a": sources["a"]}
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"return a copy {n}"} for n in range(100, 300)])
    config = yaml.safe_load((tmp_path / "mix.yaml").read_text()) | {"sources": small}
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(config))
    run(monkeypatch, tmp_path / "mix.yaml")
    assert "documents are never split" not in capsys.readouterr().out, "18 of 3,600 tokens are less than a hundredth"


def test_bad_rows_are_quarantined_beside_the_tokens_or_end_the_run(tmp_path, tokenizer, monkeypatch, capsys):
    path = write_mixture(tmp_path, tokenizer)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{oops\n")
    with pytest.raises(InputError, match="row 31, line 31"):
        run(monkeypatch, path)
    assert not (tmp_path / "tokens").exists()
    path.write_text(path.read_text() + "on_bad: quarantine\n")
    capsys.readouterr()
    run(monkeypatch, path)
    out = capsys.readouterr().out
    assert (
        "a: 31 rows in = 30 out + 1 quarantined" in out
        and f"1 bad rows are in {tmp_path}/tokens/quarantine.jsonl" in out
    )
    assert json.loads((tmp_path / "tokens" / "quarantine.jsonl").read_text())["raw"] == "{oops"


def test_a_source_of_bad_rows_alone_is_refused(tmp_path, tokenizer, monkeypatch):
    path = write_mixture(tmp_path, tokenizer, on_bad="quarantine")
    (tmp_path / "a.jsonl").write_text("{oops\n")
    with pytest.raises(InputError, match=r"a.jsonl: no text in it \(1 row quarantined\)"):
        run(monkeypatch, path)


def test_a_mixture_of_no_token_is_refused(tmp_path, tokenizer, monkeypatch):
    """A hundredth of two tokens, the letter and the end of text."""
    path = write_mixture(tmp_path, tokenizer, passes=0.01)
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"mix.yaml: the sources hold 2 tokens, of which the mixture would take none"):
        run(monkeypatch, path)
    assert not (tmp_path / "tokens").exists()


@pytest.mark.parametrize("passes", [1e13])
def test_a_mixture_that_the_disk_cannot_hold_is_refused(passes, tmp_path, tokenizer, monkeypatch):
    path = write_mixture(tmp_path, tokenizer, passes=passes)
    with pytest.raises(
        InputError, match=r"tokens: a mixture of [\d,]+ tokens takes [\d,.]+ GB, and [\d,.]+ GB are free"
    ):
        run(monkeypatch, path)
    assert not (tmp_path / "tokens").exists()


def test_a_source_that_is_not_read_to_its_end_has_its_bad_rows_too(tmp_path, tokenizer, monkeypatch, capsys):
    path = write_mixture(tmp_path, tokenizer, on_bad="quarantine", shuffle_buffer=1)
    config = yaml.safe_load(path.read_text())
    del config["passes"]
    path.write_text(yaml.safe_dump({**config, "total_tokens": 100}))
    rows = [json.dumps({"text": "a" * 99})] * 3000
    (tmp_path / "a.jsonl").write_text("\n".join(["{oops", *rows]))
    run(monkeypatch, path)
    # 100 tokens a document: beyond a buffer of one document, 200 hold 100
    assert "a: not read to its end: the mixture needs no more than its first 200 tokens" in capsys.readouterr().out
    assert len((tmp_path / "tokens" / "quarantine.jsonl").read_text().splitlines()) == 1
    assert TokenShards(tmp_path / "tokens").index["tokens"] == 100


def test_what_a_source_may_give_and_gave_is_counted_by_its_whole_length(tmp_path, tokenizer, monkeypatch, capsys):
    """a has 300,000 tokens in documents of 100, b 1,000 in documents of 10; the buffer is one document."""
    write_jsonl(tmp_path / "b.jsonl", [{"text": "b" * 9}] * 100)
    given = {"a": {"weight": 4, "max_epochs": 0.05}, "b": {"weight": 1, "max_epochs": 1.5}}
    sources = {name: {**source, "files": [str(tmp_path / f"{name}.jsonl")]} for name, source in given.items()}
    path = write_mixture(tmp_path, tokenizer, sources=sources, shuffle_buffer=1)
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a" * 99}] * 3000)
    config = yaml.safe_load(path.read_text())
    del config["passes"]

    def mixed(total_tokens: int) -> tuple[dict, list[str]]:
        shutil.rmtree(tmp_path / "tokens", ignore_errors=True)
        path.write_text(yaml.safe_dump({**config, "total_tokens": total_tokens}))
        run(monkeypatch, path)
        return TokenShards(tmp_path / "tokens").index["sources"], capsys.readouterr().out.splitlines()

    # 0.05 passes over a are 15,000 tokens, of which 4/5 of 5,000 are none too many. For all 5,000 a has to hold 100,000:
    # 1,000 documents, and the one in the buffer.
    found, out = mixed(5_000)
    assert "a: not read to its end: the mixture needs no more than its first 100,100 tokens" in out
    assert found["a"] == {
        "asked_weight": 4, "tokens": 4000, "documents": 40, "bytes": 3960, "passes_at_most": 4000 / 100_100,
    }  # fmt: skip
    assert (found["b"]["tokens"], found["b"]["passes"]) == (1000, 1.0)
    rows = {
        line.split()[0]: line.split() for line in out if line.startswith(("a  ", "b  "))
    }  # the last: as it was mixed
    assert rows["a"][-1] == "≤0.04" and rows["b"][-1] == "1.00"
    assert "≤: read only as far as the mixture needs, so that its passes are at most these: a" in out
    assert not [line for line in out if "max_epochs" in line]
    # 4/5 of 20,000 would be 16,000: a stops at 15,000, and b at the 1,500 of one and a half passes.
    found, out = mixed(20_000)
    assert [(found[name]["tokens"], found[name]["passes"]) for name in "ab"] == [(15_000, 0.05), (1500, 1.5)]
    assert "every source has reached its max_epochs: 3,500 tokens fewer than requested" in out
    assert not [line for line in out if "≤" in line or "not read to its end" in line]


def test_the_plan_of_compressed_and_broken_files(tmp_path, tokenizer):
    rows = "".join(json.dumps({"text": "a" * 99}) + "\n" for _ in range(1000))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (tmp_path / "b.jsonl").write_text(rows)
    pq.write_table(pa.table({"text": ["a" * 99 + str(n) for n in range(1000)]}), tmp_path / "c.parquet")
    loaded = load_tokenizer(tokenizer)

    def estimated(*names: str) -> Estimate:
        return estimate([str(tmp_path / name) for name in names], "text", loaded)

    assert estimated("b.jsonl") == estimated("a.jsonl.gz") == (99_000, 100_000)
    assert estimated("b.jsonl", "a.jsonl.gz") == (198_000, 200_000)
    assert estimated("c.parquet").tokens == pytest.approx(103_000, rel=0.1)
    (tmp_path / "d.jsonl.gz").write_bytes(b"no gzip")
    assert estimated("d.jsonl.gz") == (None, None)
    for name, content in (("d.jsonl.gz", b"no gzip"), ("e.txt.gz", b""), ("f.parquet", b"none")):
        (tmp_path / name).write_bytes(content)
        assert estimated("b.jsonl", name).tokens >= 100_000, "what is wrong is said when it is read"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sorces": {}}, r"unknown key sorces;"),
        ({"total_tokens": 5}, "either total_tokens or passes"),
        ({"sources": {"a": {"files": ["no.jsonl"]}}}, "no.jsonl: no such file"),
        ({"sources": {"a": {"files": [], "weight": -1}}}, "must be positive"),
        ({"sources": {"a": {"files": [], "max_epochs": 0}}}, "max_epochs must be positive"),
        ({"sources": {"a": {"files": "a.jsonl"}}}, "expected a list under 'files'"),
        ({"sources": {"../a": {"files": []}}}, "source name '../a'"),
        (
            {"sources": {"a": {"files": []}, "b": {"files": [], "weight": 2}, "c": {"files": []}}},
            "mix.yaml: found no weight of a, c, but of the others; expected one of every source, or of none",
        ),
        ({"sources": []}, "expected sources:"),
        ({"shuffle_buffer": "many"}, "shuffle_buffer must be positive, found 'many'"),
        ({"on_bad": "ignore"}, "expected error, repair, quarantine"),
    ],
)
def test_bad_mixtures_are_refused(tmp_path, tokenizer, changes, message):
    with pytest.raises(InputError, match=message):
        mix_corpus.read_config(write_mixture(tmp_path, tokenizer, **changes))


@pytest.fixture(scope="module")
def larger(tmp_path_factory, tokenizer):
    """A mixture of two sources of 3 MB, its bytes, and the environment to run it in."""
    folder = tmp_path_factory.mktemp("larger")
    for name, letters in (("a", "abcdef"), ("b", "uvwxyz")):
        rng = random.Random(name)
        rows = [{"text": "".join(rng.choices(letters, k=rng.randrange(1, 4000)))} for _ in range(1500)]
        write_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def mixture_of(larger: Path, folder: Path, tokenizer: Path, **changes) -> Path:
    sources = {
        name: {"files": [str(larger / f"{name}.jsonl")], "weight": weight} for name, weight in (("a", 2), ("b", 1))
    }
    given = {"sources": sources, "passes": 1.2, "shard_tokens": 250_000, "shuffle_buffer": 100, **changes}
    return write_mixture(folder, tokenizer, **given)


def command(config: Path) -> list[str]:
    return [sys.executable, "-m", "data_prep.mix_corpus", "--config", str(config)]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def undisturbed(larger, tokenizer, tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("one")
    subprocess.run(command(mixture_of(larger, folder, tokenizer, num_workers=1)), check=True, capture_output=True)
    return content(folder / "tokens")


def test_the_bytes_do_not_depend_on_the_number_of_workers(larger, tokenizer, undisturbed, tmp_path):
    subprocess.run(command(mixture_of(larger, tmp_path, tokenizer, num_workers=2)), check=True, capture_output=True)
    assert content(tmp_path / "tokens") == undisturbed
    assert len(undisturbed) > 20, "index.json and many shards"


@pytest.mark.parametrize("shards", [1, *(pytest.param(each, marks=pytest.mark.slow) for each in (9, 20))])
def test_a_killed_run_resumes_to_the_same_bytes(larger, tokenizer, undisturbed, tmp_path, shards):
    """Killed once that many shards are there: in the first source, at its end, in the second."""
    config = mixture_of(larger, tmp_path, tokenizer)
    work = tmp_path / ".tokens.unfinished"
    process = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(work.glob("*/*.idx"))) < shards and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "tokens").exists()
    before = {path: path.stat().st_mtime_ns for path in work.glob("*/*.idx")}
    assert before
    done = subprocess.run(command(config), capture_output=True, text=True, check=True)
    assert "by the interrupted run" in done.stdout
    assert content(tmp_path / "tokens") == undisturbed


def test_a_run_killed_while_it_mixes_resumes_to_the_same_bytes_and_leaves_nothing(
    larger, tokenizer, undisturbed, tmp_path
):
    config, mixture = mixture_of(larger, tmp_path, tokenizer), tmp_path / ".tokens.unfinished" / mix_corpus.MIXTURE
    process = subprocess.Popen(command(config), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while len(list(mixture.glob("*.idx"))) < 3 and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it was done before it could be killed"
    assert not (tmp_path / "tokens").exists()
    done = subprocess.run(command(config), capture_output=True, text=True, check=True)
    assert "a: tokenized by the interrupted run\nb: tokenized by the interrupted run\n" in done.stdout
    assert content(tmp_path / "tokens") == undisturbed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "mix.yaml", "tokens"]


def test_shards_of_other_inputs_are_not_resumed(tmp_path, tokenizer, capsys):
    make(tmp_path / "a", ["abc"], tokenizer)
    shards = make(tmp_path / "a", ["other"], tokenizer)
    assert "files or settings differ from those of the interrupted run" in capsys.readouterr().out
    assert bytes(shards[:-1].astype("u1").tolist()) != b"abc" and len(shards) == 6


# Pretraining on them


def folder_of(folder: Path, ids: list[int], tokenizer: Path) -> TokenShards:
    writer = ShardWriter(folder, "<u2", 10)
    for start in range(0, len(ids), 7):
        writer.add(np.array(ids[start : start + 7]), 7)
    writer.close()
    write_index(folder, writer.shards, "<u2", 262, tokenizer_hash(tokenizer))
    return TokenShards(folder)


def test_blocks_over_shards(tmp_path, tokenizer):
    blocks = Blocks(folder_of(tmp_path / "tokens", list(range(40)), tokenizer), 12)
    assert len(blocks) == 3
    assert [block["input_ids"].tolist() for block in (blocks[n] for n in range(3))] == [
        list(range(12)), list(range(12, 24)), list(range(24, 36)),
    ]  # fmt: skip
    assert set(blocks[0]) == {"input_ids", "labels"}


def test_positions_start_anew_at_each_end_of_text(tmp_path, tokenizer):
    ids = [5, 6, 0, 7, 8, 9, 0, 0, 10, 11]
    block = Blocks(folder_of(tmp_path / "tokens", ids, tokenizer), 10, end_of_text=0)[0]
    assert block["position_ids"].tolist() == [0, 1, 0, 1, 2, 3, 0, 0, 1, 2]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_with_document_attention_nothing_before_a_document_reaches_it(tmp_path, tiny_tokenizer, attention):
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tiny_tokenizer, use_cache=False, attn_implementation=attention)).eval()
    end, document = tiny_tokenizer.eos_token_id, [20, 21, 22, 23, 24, 25]

    def logits(before: list[int], documents_apart: bool) -> torch.Tensor:
        ids = [*before, end, *document, end, 30]
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shards = folder_of(folder, ids, tiny_tokenizer.name_or_path)
        block = Blocks(shards, len(ids), end if documents_apart else None)[0]
        with torch.no_grad():
            outputs = model(**{key: value[None] for key, value in block.items() if key != "labels"})
        return outputs.logits[0, len(before) : len(before) + 7]

    alone = logits([], True)
    for before in ([40, 41, 42], [50], [60, end, 61, 62, 63, 64]):
        torch.testing.assert_close(logits(before, True), alone, atol=1e-5, rtol=0)
        assert (logits(before, False) - alone).abs().max() > 1e-3, "without it, what stands before is seen"
