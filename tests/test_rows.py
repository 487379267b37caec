"""Raw rows: every byte of a file in one row or between two, whatever the file; the counts of bad rows."""

import csv
import gzip
import io
import json
import lzma
import random
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.readers.conversations import conversation_rows
from data_prep.rows import text_window
from data_prep.rows.bad_rows import BadRows
from data_prep.rows.read import data_files, read_rows

FAST = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
ROWS = [{"id": 1, "text": "a"}, {"id": 2, "text": 'b",]}'}, {"id": 3, "text": "数据 \n ü", "list": [[], {}, None]}]
COMPRESS = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
# What files of rows are made of, so that what is broken is broken near what is whole.
PIECES = st.sampled_from(
    [b"[", b"]", b"{", b"}", b",", b":", b'"', b"\n", b"\r", b" ", b"\\", b"1", b"NaN", b"\xff", b"\xc3", b"\x00", b"a",
     b'{"a": 1}', b'{"a": ', b'"messages"', b'{"role": "user", "content": "a"}', b"\xef\xbb\xbf", b"[[", b'""', b"\xff\xfe",
     b'[{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}]']
)  # fmt: skip
ANY_BYTES = st.binary(max_size=60) | st.lists(PIECES, max_size=25).map(b"".join)
ENDINGS = st.sampled_from([".json", ".jsonl", ".csv"])


def values(path) -> list:
    rows = list(read_rows(path))
    assert not [row.problems for row in rows if row.problems]
    return [row.value for row in rows]


def as_csv(rows: list[dict]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, ["id", "text", "list"])
    writer.writeheader()
    writer.writerows({**row, "list": json.dumps(row.get("list"))} for row in rows)
    return text.getvalue().encode()


WAYS = {
    "list.json": json.dumps(ROWS).encode(),
    "laid_out.json": json.dumps(ROWS, indent=4, ensure_ascii=False).encode(),
    "wrapped.json": json.dumps({"data": ROWS}).encode(),
    "lines.jsonl": "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode(),
    "lines.json": b"\n\n".join(json.dumps(row).encode() for row in ROWS) + b"\r\n",
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "laid_out.jsonl": "\n".join(json.dumps(row, indent=2) for row in ROWS).encode(),
    "together.json": "".join(json.dumps(row) for row in ROWS).encode(),
}


@pytest.mark.parametrize("chunk", [3, 1 << 20])
@pytest.mark.parametrize("name", WAYS)
def test_the_same_rows_in_every_way_of_writing_them(tmp_path, monkeypatch, name, chunk):
    monkeypatch.setattr(text_window, "CHUNK", chunk)  # rows lie across the pieces that are read
    for ending, compress in {"": bytes, **COMPRESS}.items():
        path = tmp_path / (name + ending)
        path.write_bytes(compress(WAYS[name]))
        assert values(path) == ROWS


def test_rows_of_csv_and_parquet(tmp_path):
    (tmp_path / "rows.csv").write_bytes(as_csv([{**row, "list": [row["id"]]} for row in ROWS]))
    expected = [{"id": str(row["id"]), "text": row["text"], "list": str([row["id"]])} for row in ROWS]
    assert values(tmp_path / "rows.csv") == expected
    table = pyarrow.Table.from_pylist([{"id": 1, "turns": [{"from": "human"}]}, {"id": None, "turns": []}])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    first, second = read_rows(tmp_path / "rows.parquet")
    assert first[:4] == (f"{tmp_path}/rows.parquet", 1, None, '{"id": 1, "turns": [{"from": "human"}]}')
    assert (first.value, second.value) == ({"id": 1, "turns": [{"from": "human"}]}, {"id": None, "turns": []})


@pytest.mark.parametrize("ending", ["csv", "csv.gz"])
def test_cells_parted_as_the_names_of_the_columns_are(tmp_path, ending, capsys):
    """As spreadsheets write CSV where numbers have a decimal comma; a comma stays what it was."""
    files = {
        "semicolons": '\ufeff\r\n"Frage, kurz";Antwort\r\n"Was; ""ist"" das?";Ein Test, ja.\r\n"Wer\nda?";\r\n',
        "tabs": "Frage\tAntwort\na;b\tc, d\n",
        "commas": '"Frage; kurz",Antwort\na;b,c\n',
        "both": "Frage;Antwort,Nummer\na;b,1\n",
        "one": "Frage\na;b\n",
    }
    for name, text in files.items():
        content = text.encode()
        (tmp_path / f"{name}.{ending}").write_bytes(gzip.compress(content) if ending == "csv.gz" else content)
    found = data_files([tmp_path / f"{name}.{ending}" for name in files])
    assert capsys.readouterr().out == (
        f"semicolons.{ending}: read as cells parted by semicolons, as the names of the columns are\n"
        f"tabs.{ending}: read as cells parted by tabs, as the names of the columns are\n"
    )
    assert [[row.value for row in read_rows(file)] for file in found] == [
        [{"Frage, kurz": 'Was; "ist" das?', "Antwort": "Ein Test, ja."}, {"Frage, kurz": "Wer\nda?", "Antwort": ""}],
        [{"Frage": "a;b", "Antwort": "c, d"}],
        [{"Frage; kurz": "a;b", "Antwort": "c"}],
        [{"Frage;Antwort": "a;b", "Nummer": "1"}],
        [{"Frage": "a;b"}],
    ]
    assert [row.line for row in read_rows(found[0])] == [3, 4]


def test_cells_of_csv_are_lists_where_they_hold_turns_or_their_column_holds_lists(tmp_path):
    turns = json.dumps([{"role": "user", "content": "a"}])
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["messages", "dialogue", "text"], ["[1]", turns, "[1, 2]"], ["[", "x", ""]])
    assert values(tmp_path / "rows.csv") == [
        {"messages": [1], "dialogue": json.loads(turns), "text": "[1, 2]"},
        {"messages": "[", "dialogue": "x", "text": ""},
    ]


def test_line_numbers_are_those_of_the_file(tmp_path):
    (tmp_path / "a.json").write_text('[\n{"a": 1},\n\n {"a":\n 2}, {"a": 3},\n{"a" 4}]')
    rows = list(read_rows(tmp_path / "a.json"))
    assert [(row.number, row.line, row.raw) for row in rows] == [
        (1, 2, '{"a": 1}'), (2, 4, '{"a":\n 2}'), (3, 5, '{"a": 3}'), (4, 6, '{"a" 4}'),
    ]  # fmt: skip
    assert rows[3].problems[0].found == "line 6, column 6: Expecting ':' delimiter"
    (tmp_path / "a.csv").write_text('a,b\n\n1,"2\n3"\n4,5\n')
    assert [(row.line, row.raw) for row in read_rows(tmp_path / "a.csv")] == [(3, '1,"2\n3"'), (5, "4,5")]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize(
    ("whole", "broken"),
    [('"b1"', '"b1'), ('"b1"', "b1"), ('"text": "b1"', '"text" "b1"'), ('"b1"', '"b\\x"'), ("}", ""), ("]", ""), ("}", "}}"),
     ("]", "]]"), ("[", ""), ("{", ""), ("{", "{{"), ("[", "[["), (",", ",,"), ("1", "1e"), ('"list"', '"li\nst"')],
)  # fmt: skip
def test_a_broken_row_leaves_its_neighbours_whole(tmp_path, whole, broken, indent):
    rows = [{"id": number, "text": f"b{number}", "list": [{"x": number}]} for number in range(5)]
    texts = [json.dumps(row, indent=indent) for row in rows]
    assert whole in texts[1]
    texts[1] = texts[1].replace(whole, broken, 1)
    (tmp_path / "a.json").write_text("[" + ",\n".join(texts) + "]")
    read = list(read_rows(tmp_path / "a.json"))
    assert [row.value for row in read if not row.problems][-3:] == rows[2:]
    assert read[0].value == rows[0] and any(row.problems for row in read)


@FAST
@given(ANY_BYTES, st.sampled_from([".json", ".jsonl"]), st.sampled_from([1, 5, 1 << 20]))
@example(b'[{"a": 1', ".json", 1)
def test_any_bytes_are_in_a_row_or_between_two(tmp_path, content, ending, chunk):
    assume(not content.startswith(tuple(magic for _, magic in text_window.COMPRESSED.values())))
    path = tmp_path / f"any{ending}"
    path.write_bytes(content)
    text_window.CHUNK = chunk
    try:
        rows = list(read_rows(path))
    finally:
        text_window.CHUNK = 1 << 20
    text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    position = 0
    for number, row in enumerate(rows, start=1):
        found = text.index(row.raw, position)
        assert not text[position:found].strip(" \t\r\n,[]") and row.number == number
        position = found + len(row.raw)
    assert not text[position:].strip(" \t\r\n,[]")


@FAST
@given(ANY_BYTES, ENDINGS, st.sampled_from(["", ".gz", ".cut.gz"]), st.sampled_from(["error", "repair", "quarantine"]))
@example(b"", ".json", "", "quarantine")
@example(b'a,"b', ".csv", "", "quarantine")
def test_rows_in_are_rows_out_and_quarantined_for_any_bytes(tmp_path, content, ending, compressed, on_bad):
    path = tmp_path / f"any{ending}{compressed.removeprefix('.cut')}"
    path.write_bytes(gzip.compress(content)[: -5 if "cut" in compressed else None] if compressed else content)
    bad_rows = BadRows(on_bad, tmp_path / "quarantine.jsonl")
    read, bad = len(list(read_rows(path))) or 1, None
    rows = list(conversation_rows([str(path)], bad_rows))
    try:
        bad_rows.close()
    except InputError as error:
        bad = str(error)
    aside = tmp_path / "quarantine.jsonl"
    assert on_bad != "quarantine" or aside.exists() == bool(bad_rows.quarantined)
    kept = aside.read_text("ascii").splitlines() if bad_rows.quarantined else []
    assert bad_rows.rows_in == read and bad_rows.rows_out == len(rows)
    assert len(rows) + len(kept) == read or (bad and on_bad != "quarantine")


def test_memory_does_not_grow_with_the_file(tmp_path):
    rng = random.Random(0)
    row = json.dumps({"id": 1, "text": "".join(rng.choices("abcdefgh", k=2000))})
    peaks = []
    for count in (2_000, 8_000):  # 4 and 16 MB
        (tmp_path / "big.json").write_text("[" + ",".join([row] * count) + "]")
        tracemalloc.start()
        assert sum(1 for _ in read_rows(tmp_path / "big.json")) == count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] and peaks[1] < 12e6


def test_what_paths_stand_for(tmp_path):
    for name in ("b.jsonl", "a.json.gz", "deep/c.CSV", "notes.md", ".hidden.json", "d.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [str(tmp_path / name) for name in ("a.json.gz", "b.jsonl", "d.parquet", "deep/c.CSV")]
    assert data_files(tmp_path) == data_files([tmp_path]) == names
    assert data_files(f"{tmp_path}/*.json*") == names[:2]
    assert data_files([f"{tmp_path}/b.jsonl", "hf://a/b:c:d", names[0]]) == [names[1], "hf://a/b:c:d", names[0]]
    (tmp_path / "[1].json").write_text("[]")
    assert data_files(f"{tmp_path}/[1].json") == [f"{tmp_path}/[1].json"]  # a name before it is a pattern
    (tmp_path / "b.txt.gz").write_text("x")
    with_text = [f"{tmp_path}/[1].json", names[0], names[1], f"{tmp_path}/b.txt.gz", *names[2:]]
    assert data_files(tmp_path, plain_text=True) == with_text
    (tmp_path / "empty").mkdir()
    for path, found in (
        (tmp_path / "gone.json", "gone.json: no such file or folder"),
        (tmp_path / "gone", "gone: no such file or folder"),
        (tmp_path / "notes.md", "found the ending '.md'; expected .json, .jsonl, .csv, .parquet"),
        (tmp_path / "empty", "found no file that ends in"),
        (f"{tmp_path}/*.txt", "found no file that ends in"),
        ([], "no data file given"),
    ):
        with pytest.raises(InputError) as caught:
            data_files(path)
        assert found in str(caught.value)


def test_plain_text_tells_of_its_encoding_mark_and_bad_bytes_as_other_files_do(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\ntwo\xff\n")
    (row,) = read_rows(path)
    assert (row.number, row.line, row.raw, row.value) == (1, 1, "one\r\ntwo\udcff\n", "one\ntwo\udcff\n")
    assert [(problem.kind, problem.found) for problem in row.problems] == [
        ("byte order mark", "bytes EF BB BF at the start of the file"),
        ("not UTF-8", "the byte 0xff on line 2 (character 9 of the row)"),
    ]
    path.write_bytes("ab".encode("utf-16"))
    (row,) = read_rows(path)
    assert [problem.kind for problem in row.problems] == ["wrong encoding"] and row.value is None
    assert row.raw.encode("utf-8", "surrogateescape") == "ab".encode("utf-16")  # its bytes, for the quarantine


def test_a_dataset_on_the_hub_is_streamed_with_its_configuration_and_split(monkeypatch):
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        return iter([{"a": 1}, {"a": "é"}])

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    rows = list(read_rows("hf://who/what:some:test"))
    assert asked == [("who/what", "some", "test", True)]
    assert [row[:5] for row in rows] == [
        ("who/what/some/test", 1, None, '{"a": 1}', {"a": 1}),
        ("who/what/some/test", 2, None, '{"a": "é"}', {"a": "é"}),
    ]
    list(read_rows("hf://who/what"))
    assert asked[1] == ("who/what", None, "train", True)


def test_a_dataset_that_cannot_be_read_is_named():
    with pytest.raises(InputError) as caught:  # the tests are offline
        list(read_rows("hf://nobody/nothing:some:train"))
    assert str(caught.value).startswith("hf://nobody/nothing:some:train: cannot be read from the Hub (")


def test_the_counts_of_each_policy(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7}\n{"id": 8},\n{\n[1]\n')
    rows = list(read_rows(tmp_path / "a.jsonl"))
    bad_rows = BadRows("repair")
    assert [bad_rows.accept(row, ["trailing comma"]) for row in rows] == [True, True, False, True]
    assert (bad_rows.rows_in, bad_rows.rows_out, bad_rows.repaired) == (4, 3, {"trailing comma": 1})
    with pytest.raises(InputError) as caught:
        bad_rows.close()
    assert str(caught.value).splitlines()[:2] == [
        f"{tmp_path}/a.jsonl: 1 row cannot be used: 1 × broken JSON",
        "  row 3, line 3: found line 3, column 2: Expecting property name enclosed in double quotes; expected JSON",
    ]
    bad_rows = BadRows("error")
    assert [bad_rows.accept(row, ["trailing comma"]) for row in rows] == [True, False, False, True]
    with pytest.raises(InputError, match="on_bad: repair can repair: trailing comma"):
        bad_rows.close()
    bad_rows = BadRows("quarantine", tmp_path / "q.jsonl")
    assert [bad_rows.accept(row, ["trailing comma"]) for row in rows] == [True, False, False, True]
    assert not (tmp_path / "q.jsonl").exists()  # it appears whole
    bad_rows.close()
    assert [json.loads(line)["raw"] for line in (tmp_path / "q.jsonl").open()] == ['{"id": 8},', "{"]
    assert bad_rows.quarantined == 2
