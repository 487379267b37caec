"""An .xz file of several streams: whole, cut anywhere, and with something behind them."""

import lzma

import pytest

from data_prep.rows.read import read_rows

STREAMS = [b'{"text": "a"}\n{"text": "b"}\n', b'{"text": "c"}\n']


def read(folder, data: bytes) -> tuple[list, list[str]]:
    path = folder / "rows.jsonl.xz"
    path.write_bytes(data)
    rows = list(read_rows(path))
    return [row.value["text"] for row in rows if row.value], [each.kind for row in rows for each in row.problems]


@pytest.mark.parametrize("padding", [b"", bytes(4), bytes(8)], ids=["none", "four", "eight"])
def test_streams_one_after_another_are_one_text(padding, tmp_path):
    data = padding.join(map(lzma.compress, STREAMS)) + padding
    assert read(tmp_path, data) == (["a", "b", "c"], [])


@pytest.mark.parametrize("behind", [b"garbage", lzma.compress(STREAMS[0])[:40], bytes(4) + b"x"])
def test_what_is_behind_the_streams_is_not_passed_over(behind, tmp_path):
    texts, problems = read(tmp_path, b"".join(map(lzma.compress, STREAMS)) + behind)
    assert texts == ["a", "b", "c"] and problems[-1:] == ["unreadable file"]


def test_cut_anywhere_it_is_unreadable_but_where_a_stream_ends(tmp_path):
    parts = list(map(lzma.compress, STREAMS))
    for length in range(7, len(parts[0]) + len(parts[1])):
        texts, problems = read(tmp_path, b"".join(parts)[:length])
        assert texts == ["a", "b", "c"][: len(texts)], length
        assert ("unreadable file" in problems) == (length != len(parts[0])), length


def test_a_stream_that_is_damaged_after_a_whole_one_is_not_lost_without_a_word(tmp_path):
    first, second = map(lzma.compress, STREAMS)
    texts, problems = read(tmp_path, first + second[:6] + b"\xff" + second[7:])
    assert texts == ["a", "b"] and "unreadable file" in problems
