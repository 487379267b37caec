"""Rows held out by prompt: every row is in one part, unchanged, and no prompt is in both."""

import gzip
import json
import math
import shutil
import sys
from datetime import datetime
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import hold_out
from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl
from data_prep.readers.conversations import read_conversations
from data_prep.readers.documents import read_documents
from data_prep.readers.kinds import classify

PAIR = {"chosen": "a", "rejected": "b"}


def chat(*texts: str) -> dict:
    roles = ("user", "assistant") * len(texts)
    return {"messages": [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]}


def held_out(monkeypatch, folder: Path, rows: list, **options) -> tuple[list, list]:
    """What the command writes of these rows: (to train on, held out)."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    shutil.rmtree(folder / "made", ignore_errors=True)
    outputs = [folder / "made" / "train.jsonl", folder / "made" / "heldout.jsonl"]
    options = {"fraction": 0.5, "train": outputs[0], "heldout": outputs[1], **options}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["hold_out", str(path), *words])
    hold_out.main()
    return tuple(list(read_jsonl(output)) for output in outputs)


def test_pairs_are_on_the_side_of_their_prompt_as_they_were(monkeypatch, tmp_path, capsys):
    rows = [
        {"prompt": f"{number // 2}?", "chosen": "猫", "rejected": str(number), "extra": None} for number in range(40)
    ]
    train, held = held_out(monkeypatch, tmp_path, rows, fraction=0.3, seed=4)
    assert sorted(train + held, key=rows.index) == rows
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    folder = tmp_path / "made"
    assert capsys.readouterr().out == (
        f"40 rows: {len(train)} to train on in {folder}/train.jsonl, {len(held)} held out in {folder}/heldout.jsonl, "
        "0 unused\n"
    )


def test_each_part_can_be_written_alone(monkeypatch, tmp_path, capsys):
    rows = [chat(f"{number}?", "yes") for number in range(40)]
    train, held = held_out(monkeypatch, tmp_path, rows, fraction=0.3, seed=4)
    assert train and held
    for part, expected in (("train", train), ("heldout", held)):
        output = tmp_path / f"{part}_alone.jsonl"
        words = ["hold_out", tmp_path / "rows.jsonl", "--fraction", 0.3, "--seed", 4, f"--{part}", output]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        capsys.readouterr()
        hold_out.main()
        assert list(read_jsonl(output)) == expected
        said = {"train": "(not written)", "heldout": "(not written)", part: f"in {output}"}
        assert capsys.readouterr().out == (
            f"40 rows: {len(train)} to train on {said['train']}, {len(held)} held out {said['heldout']}, 0 unused\n"
        )
    monkeypatch.setattr(sys, "argv", ["hold_out", str(tmp_path / "rows.jsonl"), "--fraction", "0.3"])
    with pytest.raises(InputError, match="found neither --train nor --heldout"):
        hold_out.main()
    names = {"rows.jsonl", "made", "train_alone.jsonl", "heldout_alone.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == names


@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.floats(0.05, 0.95), st.integers(0, 3))
def test_no_prompt_is_on_both_sides_and_one_keeps_its_own_when_rows_are_added(
    monkeypatch, tmp_path, numbers, fraction, seed
):
    rows = [{"prompt": f"{number}?", "chosen": "a", "rejected": str(mark)} for mark, number in enumerate(numbers)]
    try:
        train, held = held_out(monkeypatch, tmp_path, rows, fraction=fraction, seed=seed)
    except InputError as error:
        assert f", of {len(rows)};" in str(error)
        return
    assert train and held and sorted(train + held, key=rows.index) == rows
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held}
    more = [*rows, *({"prompt": text, "chosen": "a", "rejected": "b"} for text in ("another", "one more"))]
    grown = held_out(monkeypatch, tmp_path, more, fraction=fraction, seed=seed)[1]
    assert [row for row in grown if row in rows] == held


def test_the_fraction_is_held_out_and_which_prompts_depends_on_the_seed(monkeypatch, tmp_path):
    rows = [chat(f"{number}?", "a") for number in range(2000)]
    found = [held_out(monkeypatch, tmp_path, rows, fraction=0.1, seed=seed)[1] for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    # 200 expected; the standard deviation is sqrt(2000 * 0.1 * 0.9) = 13.4, and 5 of them are allowed.
    assert all(133 <= len(side) <= 267 for side in found)


def test_conversations_that_begin_alike_stay_together(monkeypatch, tmp_path):
    rows = [chat(f"{number}?", "a") for number in range(20)]
    rows += [chat(f"{number}?", "b", "and?", "c", "more?") for number in range(20)]
    train, held = held_out(monkeypatch, tmp_path, rows)
    assert sorted(train + held, key=rows.index) == rows  # the human turn at the end too: who reads it next trims it
    first = [{row["messages"][0]["content"] for row in side} for side in (train, held)]
    assert not first[0] & first[1] and len(train) == 2 * len(first[0])


def test_prompts_of_another_file_are_not_trained_on(monkeypatch, tmp_path, capsys):
    """Also where a later turn asks them; what is held out is the same."""
    rows = [
        *(chat(str(number), "a") for number in range(30)),
        *(chat(str(number), "a", "x", "b") for number in range(30)),
    ]
    first, before = held_out(monkeypatch, tmp_path, rows)
    pairs = [{"prompt": "3", **PAIR}, {"prompt": chat("4", "a", "x")["messages"], **PAIR}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    capsys.readouterr()
    train, held = held_out(monkeypatch, tmp_path, rows, without=tmp_path / "pairs.jsonl")
    gone = [chat("3", "a"), chat("3", "a", "x", "b"), chat("4", "a", "x", "b")]
    assert held == before and train == [row for row in first if row not in gone]
    assert len(first) > len(train)
    assert f"{len(first) - len(train)} row" in capsys.readouterr().out.splitlines()[0]


def test_documents_and_unused_rows(monkeypatch, tmp_path, capsys):
    rows = [{"text": f"document {number}", "url": "u"} for number in range(60)]
    train, held = held_out(monkeypatch, tmp_path, rows, fraction=0.2, train_fraction=0.3)
    rest = [row for row in rows if row not in train + held]
    assert all((train, held, rest)) and len(train) + len(held) + len(rest) == 60
    assert capsys.readouterr().out.endswith(f", {len(rest)} unused\n")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": [], "chosen": "a", "rejected": "b"}, "preferences"),
        ({"prompt": "a", "completion": "b", "label": False}, "preferences"),
        ({"prompt": "a", "completion": "b", "text": "c"}, "conversations"),
        ({"text": "Human: a\n\nAssistant: b"}, "conversations"),
        ({"messages": []}, "conversations"),
        ({"text": "a", "messages": None}, "document"),
        ({"text": None}, "document"),
        ({"content": "a"}, ""),
        (["text"], ""),
        (None, ""),
    ],
)
def test_the_kind_of_a_row(row, kind):
    assert classify(row) == kind


def test_bad_rows_are_refused_or_quarantined(monkeypatch, tmp_path, capsys):
    rows = [
        *(chat(f"{number}?", "a") for number in range(20)),
        {"text": " "},
        {"prompt": "a", "chosen": "b", "rejected": ""},
    ]
    with pytest.raises(
        InputError, match=r"2 rows cannot be used: .*\n  row 21, line 21: found ' ' at text"
    ) as refused:
        held_out(monkeypatch, tmp_path, rows)
    assert "empty completion" in str(refused.value) and not list((tmp_path / "made").iterdir())
    train, held = held_out(monkeypatch, tmp_path, rows, on_bad="quarantine")
    aside = tmp_path / "made" / "train.jsonl.quarantine.jsonl"
    assert sorted(train + held, key=rows.index) == rows[:20]
    assert [json.loads(row["raw"]) for row in read_jsonl(aside)] == rows[20:]
    assert f"rows in 22 = rows out 20 + quarantined 2, which are in {aside}\n" in capsys.readouterr().out


def test_half_a_surrogate_pair_in_a_field_that_nobody_reads_is_kept(monkeypatch, tmp_path):
    rows = [{**chat(f"{number}?", "é"), "note": "\ud800"} for number in range(20)]
    train, held = held_out(monkeypatch, tmp_path, rows)
    assert sorted(train + held, key=rows.index) == rows


def test_what_json_has_no_form_for_is_written_as_text_or_null_and_counted(monkeypatch, tmp_path, capsys):
    when = datetime(2026, 11, 27, 23, 5)
    row = {
        "completion": "a",
        "at": when,
        "cost": Decimal("1.50"),
        "loss": math.nan,
        "more": {"day": [when.date()], "x": [0.5]},
    }
    rows = [{"prompt": f"{number}?", **row} for number in range(20)]
    rows[3] |= {"at": None, "loss": 0.25}
    path = tmp_path / "rows.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    train, held = run(monkeypatch, tmp_path, path, "--fraction", 0.4, "--train_fraction", 0.6)
    written = {"at": str(when), "cost": "1.50", "loss": None, "more": {"day": ["2026-11-27"], "x": [0.5]}}
    expected = [{**each, **written} for each in rows]
    expected[3] |= {"at": None, "loss": 0.25}
    assert train and held and sorted(train + held, key=expected.index) == expected
    assert capsys.readouterr().out.splitlines()[:2] == [
        "written as text, which JSON has no other form for: cost (20 rows), more (20 rows), at (19 rows)",
        "written as null, which was NaN or Infinity: loss (19 rows)",
    ]
    read, _ = read_conversations([tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"])
    assert len(read) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fraction": 0}, "fractions of 0.0 to hold out and 1.0 to train on"),
        ({"fraction": 0.6, "train_fraction": 0.5}, "together at most 1"),
        ({"fraction": 1e-12}, "found 0 rows to hold out and 3 to train on, of 3"),
        ({"heldout": "{folder}/rows.jsonl"}, "rows.jsonl: is --heldout and an input, the same file"),
        ({"train": "{folder}/link"}, "link: is --train and an input, the same file"),
        ({"train": "{folder}/there.jsonl"}, "there.jsonl: is there already"),
        (
            {"train": "{folder}/made/x", "heldout": "{folder}/made/x"},
            "made/x: is --heldout and --train, the same file",
        ),
        ({"train": "{folder}/made/x", "heldout": "{folder}/made/../made/x"}, "x: is --heldout and --train, the same"),
        (
            {"train": "{folder}/made/x", "heldout": "{folder}/made/x.quarantine.jsonl"},
            "is the quarantine of --train and",
        ),
    ],
)
def test_what_cannot_be_split_leaves_nothing(monkeypatch, tmp_path, options, message):
    options = {name: str(value).format(folder=tmp_path) for name, value in options.items()}
    (tmp_path / "link").symlink_to("rows.jsonl")
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(InputError, match=message):
        held_out(monkeypatch, tmp_path, [chat(f"{number}?", "a") for number in range(3)], **options)
    assert not list(tmp_path.glob("made/*"))


def run(monkeypatch, folder: Path, *arguments) -> tuple[list, list]:
    outputs = [folder / "train.jsonl", folder / "heldout.jsonl"]
    words = [*map(str, arguments), "--train", str(outputs[0]), "--heldout", str(outputs[1])]
    monkeypatch.setattr(sys, "argv", ["hold_out", *words])
    hold_out.main()
    return tuple(list(read_jsonl(output)) for output in outputs)


@pytest.mark.parametrize("name", ["dump.txt", "dump.txt.gz"])
def test_plain_text_is_split_at_its_documents(monkeypatch, tmp_path, capsys, name):
    lines = [f"document {number} " + "x" * 1200 for number in range(30)]
    content = "\n\n".join(lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    train, held = run(monkeypatch, tmp_path, tmp_path / name, "--fraction", 0.3)
    assert train and held and sorted((row["text"] for row in train + held), key=lines.index) == lines
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "29 documents without text left out" and out[1].startswith("30 rows: ")
    written = [*read_documents(tmp_path / "train.jsonl"), *read_documents(tmp_path / "heldout.jsonl")]
    assert sorted(written, key=lines.index) == list(read_documents(tmp_path / name))


def test_running_text_too_short_to_split_says_where_text_is_split(monkeypatch, tmp_path):
    (tmp_path / "verse.txt").write_text("to be\nor not to be\n")
    with pytest.raises(InputError, match=r"of 1; .*a \.txt of short lines has a row for every 131,072 characters"):
        run(monkeypatch, tmp_path, tmp_path / "verse.txt", "--fraction", 0.5)


def test_conversations_become_a_corpus_where_asked(monkeypatch, tmp_path, capsys):
    alpaca = [{"instruction": f"Add {n}", "input": "and 1", "output": str(n + 1)} for n in range(20)]
    rows = [*alpaca, {"question": "q", "answer": "a"}, chat("a", "b", "c"), {"text": "as it is", "url": "u"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"python -m data_prep.hold_out --as_text makes documents of conversations"):
        list(read_documents(path))
    train, held = run(monkeypatch, tmp_path, path, "--fraction", 0.4, "--as_text")
    expected = [{"text": f"Add {n}\nand 1\n\n{n + 1}"} for n in range(20)]
    expected += [{"text": "q\n\na"}, {"text": "a\n\nb"}, {"text": "as it is", "url": "u"}]
    assert train and held and sorted(train + held, key=expected.index) == expected
    assert capsys.readouterr().out.startswith("1 trailing human turn trimmed\n23 rows: ")
    texts = [*read_documents(tmp_path / "train.jsonl"), *read_documents(tmp_path / "heldout.jsonl")]
    assert sorted(texts) == sorted(row["text"] for row in expected)


def test_rankings_are_no_corpus(monkeypatch, tmp_path):
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(InputError, match="1 × a preference\n.*rankings hold bad answers"):
        run(monkeypatch, tmp_path, tmp_path / "pairs.jsonl", "--fraction", 0.5, "--as_text")
    assert not list(tmp_path.glob("*.jsonl.*")) and not (tmp_path / "train.jsonl").exists()
