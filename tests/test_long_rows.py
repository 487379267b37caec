"""Rows longer than a row may be: counted once, with their length and place, their neighbours untouched."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.rows import csv_rows, json_rows, text_window
from data_prep.rows.read import read_rows

LIMIT = 200
GOOD = {"messages": [{"role": "user", "content": "a"}]}
LONG = {"messages": [{"role": "user", "content": 'quoted "\\" [and] {more}, ' * 50}]}


@pytest.fixture(autouse=True)
def short_limit(monkeypatch):
    monkeypatch.setattr(json_rows, "LIMIT", LIMIT)
    monkeypatch.setattr(csv_rows, "LIMIT", LIMIT)
    monkeypatch.setattr(json_rows, "KEPT", 20)


def places(path) -> list[tuple]:
    """(row, line, value, length if the row is too long) of each row."""
    said = []
    for row in read_rows(path):
        long = [each.found for each in row.problems if each.kind == json_rows.TOO_LONG]
        said.append((row.number, row.line, row.value, int(long[0].split()[0].replace(",", "")) if long else None))
        assert not long or len(row.raw) == 20
    return said


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_row_that_is_too_long_is_one_row(tmp_path, monkeypatch, chunk, position):
    monkeypatch.setattr(text_window, "CHUNK", chunk)
    rows, long = [GOOD, GOOD], json.dumps(LONG)
    rows.insert(position, LONG)
    texts = [json.dumps(row) for row in rows]
    expected = [(number, number, row if row is GOOD else None, None if row is GOOD else len(long)) for number, row in enumerate(rows, start=1)]  # fmt: skip
    for name, content in (
        ("rows.jsonl", "\n".join(texts)),
        ("rows.json", "[" + ",\n".join(texts) + "]"),
        ("data.json", '{"data": [' + ",\n".join(texts) + "]}"),
        ("together.json", "\n".join(texts)),
    ):
        (tmp_path / name).write_text(content)
        assert places(tmp_path / name) == expected, name


def test_long_lines_of_csv_and_of_what_is_no_json(tmp_path):
    (tmp_path / "rows.csv").write_text(f"a,b\n1,2\n{'c' * 500},3\n4,5\n")
    assert places(tmp_path / "rows.csv") == [
        (1, 2, {"a": "1", "b": "2"}, None),
        (2, 3, None, 502),
        (3, 4, {"a": "4", "b": "5"}, None),
    ]
    (tmp_path / "names.csv").write_text("a" * 500 + "\n1\n")
    assert places(tmp_path / "names.csv") == [(1, 1, None, 503)]
    (tmp_path / "text.json").write_text("words " * 100)
    assert places(tmp_path / "text.json") == [(1, 1, None, 600)]
    (tmp_path / "wide.jsonl").write_bytes(json.dumps(GOOD).encode("utf-16-le") * 10)
    assert [(row, line, length) for row, line, _, length in places(tmp_path / "wide.jsonl")] == [(1, 1, 960)]


def test_a_long_row_whose_brackets_do_not_close_takes_the_rest(tmp_path):
    text = json.dumps(LONG)[:-2]
    (tmp_path / "rows.json").write_text("[" + json.dumps(GOOD) + "," + text)
    assert places(tmp_path / "rows.json")[1:] == [(2, 1, None, len(text))]


ROWS = st.lists(st.text(alphabet='a"\\[]{},\n é', max_size=400), min_size=1, max_size=5)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ROWS, st.sampled_from([1, 3, 1 << 20]), st.sampled_from([".json", ".jsonl"]), st.booleans())
def test_any_rows_in_a_list_or_in_lines(tmp_path, texts, chunk, ending, ascii_only):
    rows = [json.dumps({"t": [text]}, ensure_ascii=ascii_only) for text in texts]
    path = tmp_path / f"rows{ending}"
    path.write_text("\n".join(rows) if ending == ".jsonl" else f"[{','.join(rows)}]", encoding="utf-8")
    text_window.CHUNK = chunk
    try:
        said = places(path)
    finally:
        text_window.CHUNK = 1 << 20
    assert [(value, length) for _, _, value, length in said] == [
        (json.loads(row), None) if len(row) <= LIMIT else (None, len(row)) for row in rows
    ]
