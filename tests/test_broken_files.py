"""Broken files, and what the user is told of each: one message that names the place, never a traceback."""

import gzip
import io
import lzma
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from data_prep.checking.rows import checked_rows, treatment
from data_prep.common.errors import InputError
from data_prep.readers.conversations import read_conversations
from data_prep.readers.preferences import read_rankings

ROOT = Path(__file__).parents[1]
GOOD = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
ONE, TWO = b"[" + GOOD + b"]", b"[" + GOOD + b",\n" + GOOD + b"]"


def turns(*pairs: tuple[str, str]) -> bytes:
    """A row in the Baichuan format."""
    listed = ", ".join(f'{{"from": "{speaker}", "value": "{text}"}}' for speaker, text in pairs)
    return f'{{"conversations": [{listed}]}}'.encode()


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def bad_text() -> bytes:
    """A Parquet file with a string that is not UTF-8."""
    return parquet(prompt=pyarrow.array([b"caf\xe9"]).view(pyarrow.string()), completion=["b"])


# (name of the file, its bytes, what the message must hold)
BROKEN = [
    # Not JSON
    ("empty.json", b"", "1 × empty file"),
    ("blanks.json", b" \n\n\t", "found no row; expected at least one row"),
    ("list.json", b"[]", "1 × empty file"),
    ("html.json", b"<!DOCTYPE html>", "found '<!DOCTYPE html>' at line 1, column 1; expected a list of rows"),
    ("python.json", b"[{'messages': []}]", "line 1, column 3: Expecting property name enclosed in double quotes"),
    ("cut.json", ONE[:40], "found line 1, column 33: Unterminated string starting at"),
    ("cut_in_string.json", ONE[:-30], "Unterminated string starting at"),
    ("no_end.json", TWO[:-1], "found the end of the file at line 2, column 88; expected ']', the end of the list"),
    ("no_comma.json", TWO.replace(b",\n", b"\n"), "found no comma before the row on line 2"),
    ("two_commas.json", TWO.replace(b",\n", b",,"), "found a comma without a row, line 1, column 90"),
    ("first_comma.json", b"[," + ONE[1:], "found a comma without a row, line 1, column 2"),
    ("last_comma.json", ONE[:-1] + b",]", "1 × trailing comma\n"),
    ("comma_between_turns.json", ONE.replace(b"},", b",},"), "found a comma with nothing after it, line 1, column 47"),
    ("comma_after_turns.json", ONE.replace(b"}]}", b"},]}"), "1 × trailing comma\n"),
    ("two_lists.json", ONE + b"\n" + ONE, "after the list, line 2, column 1; expected the end of the file"),
    ("behind.json", ONE + b" the end", "found 'the end' after the list, line 1, column 91"),
    ("no_bracket.json", TWO.replace(b"}]}", b"}}", 1), "1 row cannot be used: 1 × broken JSON"),
    ("no_brace.json", TWO.replace(b"}]}", b"}]", 1), "1 row cannot be used: 1 × broken JSON"),
    ("no_quote.json", TWO.replace(b'"a"', b'"a', 1), "1 row cannot be used: 1 × broken JSON"),
    ("escape.json", ONE.replace(b'"a"', b'"\\x"'), "Invalid \\escape"),
    ("line_break.json", ONE.replace(b'"a"', b'"a\nb"'), "Invalid control character at"),
    ("nul.json", ONE.replace(b'"a"', b'"a\x00"'), "Invalid control character at"),
    ("comment.json", b"[// first\n" + GOOD + b"]", "line 1, column 2: Expecting value"),
    ("nan.json", ONE.replace(b"{", b'{"score": NaN, ', 1), "1 × NaN or Infinity"),
    ("infinity.json", ONE.replace(b"{", b'{"score": -Infinity, ', 1), "found -Infinity; expected a number or null"),
    ("key_twice.json", ONE.replace(b"{", b'{"id": 1, "id": 2, ', 1), "found 'id' 2 times; expected each key once"),
    ("role_twice.json", ONE.replace(b"{", b'{"messages": [], ', 1), "1 × duplicate key"),
    ("nested.json", b"[" + b"[" * 50_000 + b"]" * 50_000 + b"]", "1 × nested too deeply"),
    ("digits.json", ONE.replace(b"{", b'{"id": ' + b"9" * 5_000 + b", ", 1), "numbers of at most 4,300 digits"),
    ("object.json", b'{"version": 2, "rows": []}', "found keys ['rows', 'version']; expected 'conversations', 'messages'"),
    ("wrapped.json", b'{"data": ' + ONE + b', "n": 1}', "expected '}', the end of the list"),
    ("form_feed.json", b'{\x0c"data": ' + ONE + b"}", "line 1, column 2: Expecting property name enclosed in double quotes"),
    ("number.json", b"[7]", "1 × not an object"),
    ("strings.json", b'["a", "b"]', "found 'a'; expected {'id', 'conversations': [...]}"),
    ("null_comma.json", b"[null,]", "1 × trailing comma, 1 × not an object"),
    ("null_mark.json", b"\xef\xbb\xbf[null]", "found null; expected a row: { ... }"),
    ("nothing.json", b"[null]", "found None; expected {"),
    # Encodings
    ("latin.json", ONE.replace(b'"a"', b'"caf\xe9"'), "1 × not UTF-8"),
    ("gbk.json", ONE.replace(b'"a"', '"数据"'.encode("gbk")), "found the byte 0xca on line 1 (character 44 of the row)"),
    ("utf16.json", ONE.decode().encode("utf-16"), "1 × wrong encoding"),
    ("utf16_without_mark.json", ONE.decode().encode("utf-16-le"), "found UTF-16 or UTF-32; expected UTF-8"),
    ("utf32.json", ONE.decode().encode("utf-32"), "1 × wrong encoding"),
    ("mark.json", b"\xef\xbb\xbf" + ONE, "found bytes EF BB BF at the start of the file; expected UTF-8 without them"),
    ("half_a_pair.json", ONE.replace(b'"a"', b'"\\ud800"'), "1 × not Unicode"),
    ("id.json", ONE.replace(b"{", b'{"id": "\\udfff", ', 1), r"found '\udfff' under 'id'; expected complete characters"),
    # JSON Lines
    ("empty.jsonl", b"\n", "1 × empty file"),
    ("line.jsonl", GOOD + b"\n" + GOOD[:-2] + b"\n", "row 2, line 2: found line 2, column 86: "),
    ("comma.jsonl", GOOD + b",\n" + GOOD, "row 1, line 1: found a comma with nothing after it, line 1, column 88"),
    ("two_in_a_line.jsonl", GOOD + b"\n" + GOOD + b" " + GOOD, "found line 2, column 89: Extra data"),
    ("text.jsonl", b"hello\nworld\n", "2 rows cannot be used: 2 × broken JSON"),
    # CSV
    ("empty.csv", b"", "1 × empty file"),
    ("header.csv", b"prompt,completion\n", "1 × empty file"),
    ("ragged.csv", b"prompt,completion\na,b\nc\n", "found 1 cell in the row on line 3; expected 2, as many as columns"),
    ("wide.csv", b"prompt,completion\na,b,c\n", "found 3 cells in the row on line 2"),
    ("semicolons.csv", b"prompt;completion\na;b\n", "found keys ['prompt;completion']"),
    ("open_quote.csv", b'prompt,completion\n"a,b\n', "found unexpected end of data, in the row on line 2"),
    ("quotes.csv", b'prompt,completion\n"a"b,c\n', "1 × broken CSV"),
    ("same_names.csv", b"prompt,prompt\na,b\n", "found 2 columns named 'prompt'"),
    ("open_header.csv", b'"prompt,completion\na,b\n', "found the names of the columns: unexpected end of data"),
    ("no_answer.csv", b"prompt,completion\na,\n", "1 × empty turn"),
    ("latin.csv", b"prompt,completion\na,caf\xe9\n", "1 × not UTF-8"),
    ("carriage_return.csv", b"prompt,completion\na,b\rc,d\n", "found a carriage return outside of quotes, in the row on line 2"),
    ("old_mac.csv", b"prompt,completion\ra,b\r", "found the names of the columns: a carriage return outside of quotes"),
    ("vertical_tab.csv", b"prompt,completion\na,b\n\x0b\n", "found 1 cell in the row on line 3"),
    ("list.csv", b'messages\n"[{\'role\': \'user\'}]"\n', "found keys ['messages']"),
    # Compressed files
    ("cut.json.gz", gzip.compress(TWO, mtime=0)[:-9], "1 × unreadable file"),
    ("plain.json.gz", ONE, "found not gzip data: it begins with the bytes b'[{\"mes'; expected a complete file"),
    ("hidden.json", gzip.compress(ONE, mtime=0), "found gzip data; the name should end in .gz"),
    ("sum.json.gz", gzip.compress(ONE, mtime=0)[:-8] + b"\0" * 8, "CRC check failed"),
    ("cut.jsonl.xz", lzma.compress(GOOD)[:-9], "found xz breaks off after "),
    ("cut.jsonl.zst", zstandard.compress(GOOD * 99)[:-9] + b"\xff" * 9, "found Zstandard breaks off after "),
    ("gzip.json.zst", gzip.compress(ONE, mtime=0), "found gzip data; the name should end in .gz"),
    ("empty.json.gz", gzip.compress(b"", mtime=0), "1 × empty file"),
    # Parquet
    ("text.parquet", b"prompt,completion", "1 × unreadable file"),
    ("empty.parquet", b"", "1 × unreadable file"),
    ("cut.parquet", parquet(prompt=["a"], completion=["b"])[:-20], "expected a complete Parquet file"),
    ("no_rows.parquet", parquet(prompt=pyarrow.array([], "string"), completion=pyarrow.array([], "string")), "1 × empty file"),
    ("null.parquet", parquet(prompt=["a"], completion=pyarrow.array([None], "string")), "found keys ['completion', 'prompt']"),
    ("latin.parquet", bad_text(), "1 × not UTF-8"),
    # What the rows say
    ("role.json", b"[" + turns(("human", "a"), ("bot", "b")) + b"]", "found 'bot' under 'from' at turn 2"),
    ("alias.json", b"[" + turns(("Human", "a"), ("gpt", "b")) + b"]", "on_bad: repair can repair: role alias."),
    ("order.json", b"[" + turns(("gpt", "a"), ("human", "b")) + b"]", "1 × wrong order"),
    ("twice.json", b"[" + turns(("human", "a"), ("human", "b"), ("gpt", "c")) + b"]", "found human at turn 2 after human"),
    ("blank.json", b"[" + turns(("human", "a"), ("gpt", " ")) + b"]", "found ' ' at turn 2; expected a string with more"),
    ("no_answer.json", b"[" + turns(("human", "a")) + b"]", "found 1 turn, none of them gpt"),
    ("no_turns.json", b'[{"conversations": []}]', "found 0 turns, none of them gpt"),
    ("turns.json", b'[{"conversations": {"from": "human"}}]', "found keys ['conversations']"),
    ("differ.json", b'[{"prompt": "a", "completion": "b", "question": "c", "answer": "d"}]', "1 × two formats that contradict"),
    ("history.json", b'[{"prompt": "a", "completion": "b", "history": "c"}]', "found 'c' under 'history'"),
    ("image.json", b'[{"messages": [{"role": "user", "content": [{"type": "image"}]}]}]', "found 'image' at turn 1"),
    # Names
    ("rows.txt", ONE, "found the ending '.txt'; expected .json, .jsonl, .csv, .parquet"),
    ("rows", ONE, "found the ending ''"),
    ("rows.gz", gzip.compress(ONE, mtime=0), "found the ending '.gz'"),
]  # fmt: skip
REPAIRABLE = {"last_comma.json", "comma_between_turns.json", "comma_after_turns.json", "mark.json", "comma.jsonl",
              "alias.json", "twice.json"}  # fmt: skip


def test_a_row_without_a_value_is_not_repaired_into_an_empty_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"prompt": "Q", "chosen": "a", "rejected": "b"}\nnull,\n')
    with pytest.raises(InputError, match="row 2, line 2: found null; expected a row"):
        read_rankings(path, "repair")
    (good, _), (bad, _) = [(each.row, each.record) for each in checked_rows([str(path)])]
    assert not good.problems and treatment(bad.problems, "repair") == "quarantined"


def test_a_bad_byte_is_named_once(tmp_path):
    for name in ("latin.json", "latin.csv"):
        (content,) = [each for file, each, _ in BROKEN if file == name]
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=r"1 row cannot be used: 1 × not UTF-8\n") as caught:
            read_conversations(tmp_path / name)
        assert "not Unicode" not in str(caught.value) and "surrogate" not in str(caught.value)


@pytest.mark.parametrize(("name", "content", "message"), BROKEN, ids=[name for name, _, _ in BROKEN])
def test_a_broken_file_is_explained(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_conversations(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and "; expected " in text and message in text
    if name in REPAIRABLE:
        rows, repaired = read_conversations(path, on_bad="repair")
        assert rows and sum(repaired.values()) > 0
    else:
        with pytest.raises(InputError):
            read_conversations(path, on_bad="repair")


@pytest.mark.parametrize("name", ["python.json", "cut.json.gz", "latin.csv", "text.parquet", "nested.json"])
def test_the_command_ends_with_the_message_alone(tmp_path, name):
    (content,) = [each for file, each, _ in BROKEN if file == name]
    (tmp_path / name).write_bytes(content)
    command = [sys.executable, "-m", "data_prep.sample_completions", "--model", "somebody/model",
               "--conversations", tmp_path / name, "--output", tmp_path / "out.jsonl"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path / name}: ") and "Traceback" not in done.stderr
