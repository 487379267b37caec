"""Files compressed by Zstandard, whole and cut: the decoder is silent about a frame that does not end, we are not."""

import json
import sys

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import check, clean_corpus, mix_corpus, train_tokenizer
from data_prep.common.errors import InputError, run_main
from data_prep.readers.documents import read_documents
from data_prep.rows.read import read_rows

LINES = [b'{"text": "one"}\n{"text": "two"}\n', b'{"text": "three"}\n']
SKIPPABLE = b"\x5e\x2a\x4d\x18\x03\x00\x00\x00abc"  # a frame of 3 bytes that are not data


def frame(content: bytes, **options) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(content)


def in_blocks(*contents: bytes) -> bytes:
    """One frame of unknown size, with a block for each content."""
    made = zstandard.ZstdCompressor(write_checksum=True).compressobj()
    blocks = [made.compress(each) + made.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for each in contents]
    return b"".join([*blocks, made.flush()])


def told(rows) -> str | None:
    """What is said of a file that is not whole: the last row's problem; None if there is none."""
    problems = rows[-1].problems
    assert all(row.problems == [] or row is rows[-1] or row.problems[0].kind == "broken JSON" for row in rows)
    return problems[0].found if problems and problems[0].kind == "unreadable file" else None


@pytest.mark.parametrize("options", [{}, {"write_checksum": True}, {"write_content_size": False}, {"blocks": True}])
def test_at_every_cut_a_file_is_whole_frames_or_unreadable(tmp_path, options):
    first, second = [in_blocks(*content.splitlines(True)) if "blocks" in options else frame(content, **options) for content in LINES]  # fmt: skip
    whole, path = first + second, tmp_path / "rows.jsonl.zst"
    for cut in range(1, len(whole)):
        path.write_bytes(whole[:cut])
        rows = list(read_rows(path))
        if cut == len(first):
            assert [row.value for row in rows] == [{"text": "one"}, {"text": "two"}] and told(rows) is None
        elif cut < 4:
            assert told(rows) == f"not Zstandard data: it begins with the bytes {whole[:cut]!r}"
        else:
            assert told(rows).startswith("Zstandard breaks off after ") and " bytes (" in told(rows)
    path.write_bytes(whole)
    assert [row.value["text"] for row in read_rows(path)] == ["one", "two", "three"]


FRAMES = st.sampled_from(
    [
        *((content, frame(content, write_checksum=True)) for content in LINES),
        (LINES[0], in_blocks(*LINES[0].splitlines(True))),
        (b"\n" * 300_000, frame(b"\n" * 300_000)),  # three blocks that repeat a byte
        (b"", frame(b"")),
        (b"", SKIPPABLE),
    ]
)


@settings(max_examples=150, deadline=None)
@given(st.lists(FRAMES, min_size=1, max_size=4), st.data())
def test_any_frames_one_after_another(tmp_path_factory, frames, data):
    path = tmp_path_factory.mktemp("frames") / "rows.jsonl.zst"
    ends = [sum(len(each) for _, each in frames[:count]) for count in range(1, len(frames) + 1)]
    whole = b"".join(each for _, each in frames)
    cut = data.draw(st.sampled_from(ends) | st.integers(1, len(whole)))
    path.write_bytes(whole[:cut])
    rows = list(read_rows(path))
    if cut not in ends:
        assert told(rows)
        return
    content = b"".join(each for each, _ in frames[: ends.index(cut) + 1])
    assert [row.value for row in rows] == [json.loads(line) for line in content.splitlines() if line]


def test_a_file_cut_at_a_block_is_no_shorter_corpus(tmp_path, monkeypatch, capsys):
    lines = [json.dumps({"text": f"text {number}"}) + "\n" for number in range(20)]
    plain = "".join(f"line {number}\n" for number in range(20))
    (tmp_path / "whole.jsonl").write_text("".join(lines))
    for name, content in (("half.jsonl.zst", "".join(lines)), ("half.txt.zst", plain)):
        half = len("".join(content.splitlines(True)[:10]))  # where a row ends: nothing else is wrong
        made = in_blocks(content[:half].encode(), content[half:].encode())
        short = in_blocks(content[:half].encode())[:-7]  # without the empty last block and the checksum
        assert made.startswith(short)
        (tmp_path / name).write_bytes(short)
        with pytest.raises(InputError, match=f"{name}: .*\n.*: found Zstandard breaks off after {half} bytes"):
            list(read_documents(tmp_path / name))

    def refused(module, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run_main(module.main)
        assert stopped.value.code == 1
        captured = capsys.readouterr()
        return captured.err + captured.out

    train = ["--vocab_size", 262, "--output_dir", tmp_path / "tokenizer"]
    monkeypatch.setattr(sys, "argv", ["train_tokenizer", "--corpus", str(tmp_path / "whole.jsonl"), *map(str, train)])
    train_tokenizer.main()
    output = tmp_path / "out"
    for name in ("half.jsonl.zst", "half.txt.zst"):
        path = tmp_path / name
        source = {"tokenizer": str(tmp_path / "tokenizer"), "passes": 1, "sources": {"a": {"files": [str(path)]}}}
        (tmp_path / "mix.yaml").write_text(json.dumps({**source, "output_dir": str(output)}))
        for said in (
            refused(train_tokenizer, "--corpus", path, "--vocab_size", 262, "--output_dir", output),
            refused(clean_corpus, "--corpus", path, "--num_workers", 1, "--output_dir", output),
            refused(mix_corpus, "--config", tmp_path / "mix.yaml"),
            refused(check, path, "--on_bad", "error"),
        ):
            assert "unreadable file" in said and "Zstandard breaks off after " in said and "Traceback" not in said
            assert not output.exists()


def test_the_plan_of_a_mixture_counts_all_frames(tmp_path, monkeypatch, capsys):
    rows = [json.dumps({"text": "a" * 99}).encode() + b"\n"] * 1000
    train_tokenizer.train_tokenizer(iter(["a"]), 262).save_pretrained(tmp_path / "tokenizer")
    frames = [frame(b"".join(rows[start : start + 10])) for start in range(0, 1000, 10)]
    (tmp_path / "rows.jsonl.zst").write_bytes(b"".join(frames))
    config = {"tokenizer": str(tmp_path / "tokenizer"), "passes": 1, "output_dir": str(tmp_path / "out")}
    (tmp_path / "mix.yaml").write_text(json.dumps({**config, "sources": {"a": {"files": [str(tmp_path / "rows.jsonl.zst")]}}}))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mix_corpus", "--config", str(tmp_path / "mix.yaml"), "--dry_run"])
    mix_corpus.main()
    # A thousand rows of 99 bytes, and as many tokens with the end of text.
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["a", "1", "~99,000", "~100,000"]
