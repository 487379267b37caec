"""The doctor on text for pretraining, and what its output folder is good for."""

import json
import sys

import pytest

from data_prep import check
from data_prep.common.errors import run_main
from data_prep.common.files import read_json, read_jsonl
from data_prep.readers.conversations import read_conversations
from data_prep.readers.documents import read_documents

LONG = " ".join(f"w{number}" for number in range(250))
CHAT = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


def checked(monkeypatch, capsys, *arguments) -> tuple[int, str]:
    """(exit code, stdout) of the doctor."""
    monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
    capsys.readouterr()
    code = 0
    try:
        run_main(check.main)
    except SystemExit as stopped:
        code = stopped.code
    return code, capsys.readouterr().out


def test_documents_under_another_column(tmp_path, monkeypatch, capsys):
    rows = [{"content": "a b"}, CHAT, {"text": "c"}, {"content": 5}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ["--text_column", "content", "--output", tmp_path / "out"]
    code, _ = checked(monkeypatch, capsys, tmp_path / "rows.jsonl", *options)
    assert code == 0
    about = {"source": str(tmp_path / "rows.jsonl"), "row": 1}
    (document,) = read_jsonl(tmp_path / "out" / "documents.jsonl")
    assert document == {"id": document["id"], "text": "a b", **about}
    (file,) = read_json(tmp_path / "out" / "report" / "check.json")["files"]
    counts = {"rows": 4, "conversations": 1, "preferences": 0, "documents": 1, "quarantined": 2}
    assert file == {"file": about["source"], **counts}


@pytest.mark.parametrize("name", ["dump.txt", "rows.jsonl"])
def test_documents_are_counted_and_told_where_they_go(tmp_path, tiny_chat_tokenizer, monkeypatch, capsys, name):
    path, tokenizer, out = tmp_path / name, tmp_path / "tokenizer", tmp_path / "out"
    tiny_chat_tokenizer.save_pretrained(tokenizer)
    # A letter is a token, and so is the end of text behind each document; "<|end|>" in a text is its seven letters.
    texts = ["<|end|>" + "x" * 1500, LONG, LONG, LONG + " more", "  ", "bell \x07" + "y" * 1500]
    lines = texts if name == "dump.txt" else [json.dumps({"text": text}) for text in texts]
    path.write_text("\n".join(lines) + "\n")
    code, said = checked(monkeypatch, capsys, path, "--tokenizer", tokenizer, "--max_length", 64, "--output", out)
    report = read_json(out / "report" / "check.json")
    characters = sum(map(len, texts))
    assert code == 0 and report["documents"] == {"count": 6, "characters": characters}
    tokens = {"total": characters + 6, "learned": characters + 6, "masked": 0, "truncated": 0}
    assert tokens.items() <= report["tokens"].items(), "no document is cut: they are packed"
    assert {
        each["kind"]: (each["rows"], each["treatment"], each["first"][0]["row"]) for each in report["findings"]
    } == {
        "a document": (5, "kept", 1),
        "a document without text": (1, "kept", 5),
        "duplicate document": (1, "kept", 3),
        "near-duplicate document": (1, "kept", 4),
        "special-token text inside a turn": (1, "kept", 1),
        "control or replacement characters": (1, "kept", 6),
    }
    assert sum(report["languages"]["counts"].values()) == 6
    assert (
        f"6 of {characters:,} characters, for pretraining: data_prep.train_tokenizer, clean_corpus and mix_corpus"
        in said
    )
    found = "plain text" if name == "dump.txt" else "keys ['text']"
    assert (
        f"a document: {path}:1: found {found}; expected conversations or preferences, to make an assistant; " in said
    )
    assert [row["text"] for row in read_jsonl(out / "documents.jsonl")] == texts
    assert list(read_documents(out)) == list(read_documents(path))


def test_the_output_folder_is_data(tmp_path, monkeypatch, capsys):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out"
    rows.write_text(json.dumps(CHAT) + "\n{oops\n")
    checked(monkeypatch, capsys, rows, "--output", out)
    assert sorted(path.name for path in out.iterdir()) == ["conversations.jsonl", "report"]
    assert sorted(path.name for path in (out / "report").iterdir()) == ["check.html", "check.json", "quarantine.jsonl"]
    assert [row["messages"] for row in read_conversations(out)[0]] == [CHAT["messages"]]
    code, said = checked(monkeypatch, capsys, out, "--on_bad", "error")
    assert code == 0 and said.splitlines()[-1].startswith("rows in 1 = rows out 1 + quarantined 0;")


@pytest.mark.parametrize(
    ("name", "content"), [("rows.jsonl", b'{"question": "v"}\n'), ("empty.json", b""), ("binary.txt", b"\xff\x00\x01")]
)
def test_where_nothing_is_left_the_exit_code_is_1(tmp_path, monkeypatch, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    code, said = checked(monkeypatch, capsys, tmp_path / name, "--output", tmp_path / "out")
    assert code == 1 and said.splitlines()[-1] == (
        f"rows in 1 = rows out 0 + quarantined 1; they are in {tmp_path / 'out'}; no row is left: exit code 1"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report"]
