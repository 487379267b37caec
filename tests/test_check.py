"""The validator through its command: every defect counted at its line, nothing lost, the whole output or none."""

import gzip
import json
import math
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.conversations import gpt, human
from helpers.data import DATA, needs_data
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from data_prep import check
from data_prep.checking.report import histogram, share
from data_prep.common.errors import run_main
from data_prep.common.files import read_json, read_jsonl
from data_prep.gate.answers import read_answers
from data_prep.rows.read import POINTER

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
EVIL = "<script>document.title = 'taken'</script><img src='http://example.com/x.png' onerror='document.title = 1'>"
LONG = " ".join(f"w{number}" for number in range(100))
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def row(*messages: dict, **fields) -> str:
    return json.dumps({**fields, "messages": list(messages)}, ensure_ascii=False)


def pair(prompt: str, chosen: str, rejected: str) -> str:
    return json.dumps({"prompt": prompt, "chosen": chosen, "rejected": rejected})


# {kind of problem: (the row, its treatment)}; line n of the file is the nth of these.
DEFECTS = {
    "": (row(user("How many?"), assistant("Seven.")), ""),
    "broken JSON": ('{"messages": [{"role": "user" "content": "x"}]}', "quarantined"),
    "trailing comma": ('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},]}', "repairable"),
    "duplicate key": ('{"id": 1, "id": 2, "messages": [{"role": "user", "content": "c"}]}', "quarantined"),
    "not UTF-8": (row(user("caf\udce9"), assistant("d")), "quarantined"),
    "unknown role": (row(user("e"), {"role": "robot", "content": "f"}), "quarantined"),
    "wrong order": (row(assistant("g"), user("h")), "quarantined"),
    "two turns of the same speaker in a row": (row(user("i"), user("j"), assistant("k")), "repairable"),
    "empty turn": (row(user("l"), assistant(" \n")), "quarantined"),
    "no assistant turn": (row(user("m")), "quarantined"),
    "trailing human turn": (row(user("n"), assistant("o"), user("p")), "repaired"),
    "duplicate conversation": (row(user("How many?"), assistant("Seven."), id="again"), "kept"),
    " ": (row(user(f"Say {LONG}"), assistant("q")), ""),
    "near-duplicate conversation": (row(user(f"Say {LONG}"), assistant("r")), "kept"),
    "answer equal to prompt": (row(user("s"), assistant(" s")), "kept"),
    "control or replacement characters": (row(user("bell \x07"), assistant("t")), "kept"),
    "special-token text inside a turn": (row(user("what is <|endoftext|>?"), assistant("u")), "kept"),
    "not an object": ("[1, 2]", "quarantined"),
    "no known format": ('{"question": "v"}', "quarantined"),
    "a document": ('{"text": "Once upon a time."}', "kept"),
    "identical completions ranked differently": (pair("w", "same", "same"), "quarantined"),
    "empty completion": (pair("x", "", "y"), "quarantined"),
    "prompt mismatch": (json.dumps({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}), "quarantined"),
    "all completions tied": (json.dumps({"prompt": "z", "completions": ["1", "2"], "ranks": [1, 1]}), "kept"),
    "  ": (pair("good", "yes", "no"), ""),
}  # fmt: skip
# Found beside the kind that the row is for.
ALSO = {"no assistant turn": "duplicate key"}


@pytest.fixture
def defective(tmp_path) -> Path:
    path = tmp_path / "defective.jsonl"
    lines = [line for line, _ in DEFECTS.values()]
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogateescape") + b"\n")
    return path


def checked(monkeypatch, capsys, *arguments) -> tuple[str, str]:
    """What `python -m data_prep.check` prints on stdout and on stderr; SystemExit if it ends with an error."""
    monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
    capsys.readouterr()
    run_main(check.main)
    return capsys.readouterr()


def refused(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        run_main(check.main)
    assert stopped.value.code == 1
    return capsys.readouterr().err


def found(report: dict) -> dict[tuple[str, str], list[tuple[int, int | None]]]:
    """{(kind, treatment of the row): [(row, line), …]}"""
    return {
        (finding["kind"], finding["treatment"]): [(example["row"], example["line"]) for example in finding["first"]]
        for finding in report["findings"]
    }


def expected_findings(repairable: str) -> dict[tuple[str, str], list[tuple[int, int]]]:
    """What DEFECTS hold, each kind at its line; repairable rows are "quarantined" or "repaired"."""
    lines = {kind: (number, number) for number, kind in enumerate(DEFECTS, start=1)}
    expected = {
        (kind, repairable if what == "repairable" else what): [lines[kind]]
        for kind, (_, what) in DEFECTS.items()
        if what
    }
    for kind, where in ALSO.items():
        expected[kind, "quarantined"] = sorted([*expected.get((kind, "quarantined"), []), lines[where]])
    return expected


def test_every_defect_once(defective, tmp_path, monkeypatch, capsys):
    out, _ = checked(monkeypatch, capsys, defective, "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    assert found(report) == expected_findings("quarantined")
    assert all(entry["rows"] == len(entry["first"]) for entry in report["findings"])
    assert report["rows"] == {"in": 25, "out": 11, "quarantined": 14, "repaired": 1, "repairable": 2}
    (file,) = report["files"]
    assert file == {
        "file": str(defective),
        "rows": 25,
        # Those that are kept, so that it adds up; without the quarantined ones, of which eight are conversations and three
        # preferences (the broken row, the list and the unknown are none).
        "conversations": 8,
        "preferences": 2,
        "documents": 1,
        "quarantined": 14,
    }
    assert "defective.jsonl 25 8 2 1 14" in " ".join(out.split())
    assert out.splitlines()[-1] == (
        f"rows in 25 = rows out 11 + quarantined 14 (1 of the rows out repaired); they are in {tmp_path / 'out'}"
    )
    assert "or of preferences: 'chosen' and 'rejected'" in " ".join(out.split())
    assert "special-token text inside a turn 1 kept defective.jsonl:17" in " ".join(out.split())
    place = f"broken JSON: {defective}:2: found line 2, column 31: Expecting ',' delimiter; expected JSON"
    assert place.replace(" ", "") in "".join(out.split())
    assert "--on_bad repair can repair 2 of the quarantined rows" in out


def test_rows_of_a_list_on_one_line_are_told_apart(tmp_path, monkeypatch, capsys):
    rows = [{"id": f"s{number}", "conversations": [human(f"{number}?"), gpt(f"{number}.")]} for number in range(4)]
    rows[1]["conversations"][1]["value"] = " "
    rows[3] = {"conversations": [human("0?"), {"from": "robot", "value": "0."}]}
    rows += [{"id": "again", "conversations": rows[0]["conversations"]}, {"id": 7, "conversations": []}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    out, _ = checked(monkeypatch, capsys, tmp_path / "rows.json", "--output", tmp_path / "out")
    table = " ".join(out.split())
    assert "empty turn 1 quarantined rows.json:1 (row 2, id 's1') " in table
    assert "unknown role 1 quarantined rows.json:1 (row 4) " in table
    assert f"empty turn: {tmp_path}/rows.json:1 (row 2, id 's1'): found ' ' at turn 2" in out
    assert f"found the turns of {tmp_path}/rows.json:1 (row 1, id 's0') again" in out
    # Three of six are conversations that are kept, the one that comes again among them.
    assert "rows.json 6 3 0 3 " in table
    page = (tmp_path / "out" / "report" / "check.html").read_text()
    for place in ("(row 2, id &#39;s1&#39;)", "(row 4)", "(row 6, id &#39;7&#39;)"):
        assert f"rows.json:1 {place}</summary>" in page and f"rows.json:1 {place}</span>: found" in page


def test_rows_that_are_kept_and_rows_that_are_not(defective, tmp_path, monkeypatch, capsys):
    checked(monkeypatch, capsys, defective, "--output", tmp_path / "out")
    conversations = list(read_jsonl(tmp_path / "out" / "conversations.jsonl"))
    assert [each["row"] for each in conversations] == [1, 11, 12, 13, 14, 15, 16, 17]
    first = {"id": "defective.jsonl:1", "source": str(defective), "row": 1}
    assert conversations[0] == {**first, "messages": [user("How many?"), assistant("Seven.")]}
    assert conversations[1]["messages"] == [user("n"), assistant("o")]  # the human turn at the end is trimmed
    assert conversations[2]["id"] == "again"
    preferences = list(read_jsonl(tmp_path / "out" / "preferences.jsonl"))
    assert [each["row"] for each in preferences] == [24, 25]
    about = {"id": "defective.jsonl:25", "source": str(defective), "row": 25}
    assert preferences[1] == {**about, "prompt": [user("good")], "completions": ["yes", "no"], "ranks": [0, 1]}
    aside = list(read_jsonl(tmp_path / "out" / "report" / "quarantine.jsonl"))
    lines = [line for line, what in DEFECTS.values() if what in ("quarantined", "repairable")]
    assert [each["raw"] for each in aside] == lines  # untouched, the byte that is not UTF-8 as well
    assert all(each["file"] == str(defective) and each["row"] == each["line"] for each in aside)
    assert [reason["kind"] for reason in aside[0]["reasons"]] == ["broken JSON"]


def test_repair_repairs_what_is_certain(defective, tmp_path, monkeypatch, capsys):
    checked(monkeypatch, capsys, defective, "--on_bad", "repair", "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    assert found(report) == expected_findings("repaired")
    assert report["rows"] == {"in": 25, "out": 13, "quarantined": 12, "repaired": 3, "repairable": 0}
    rows = {each["row"]: each["messages"] for each in read_jsonl(tmp_path / "out" / "conversations.jsonl")}
    assert rows[3] == [user("a"), assistant("b")] and rows[8] == [user("i\nj"), assistant("k")]


def test_error_reports_and_then_stops(defective, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["check", str(defective), "--on_bad", "error", "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stopped:
        run_main(check.main)
    out, error = capsys.readouterr()
    assert stopped.value.code == 1 and error.count("error:") == 1
    assert f"error: {defective}: 14 rows cannot be used" in error and "on_bad: repair can repair: " in error
    assert "an error" in out and not (tmp_path / "out").exists()


def test_what_was_written_is_sound(defective, tmp_path, monkeypatch, capsys):
    checked(monkeypatch, capsys, defective, "--on_bad", "repair", "--drop_duplicates", "--output", tmp_path / "one")
    first = read_json(tmp_path / "one" / "report" / "check.json")
    assert ("duplicate conversation", "quarantined") in found(first)
    assert ("near-duplicate conversation", "quarantined") in found(first)
    assert first["rows"] == {"in": 25, "out": 11, "quarantined": 14, "repaired": 3, "repairable": 0}
    duplicate = next(
        each for each in read_jsonl(tmp_path / "one" / "report" / "quarantine.jsonl") if each["row"] == 12
    )
    assert duplicate["reasons"] == [
        {"kind": "duplicate conversation", "found": f"the turns of {defective}:1 again", "expected": "each once"}
    ]
    written = [tmp_path / "one" / f"{kind}.jsonl" for kind in check.KINDS]
    checked(monkeypatch, capsys, *written, "--on_bad", "error", "--output", tmp_path / "two")
    second = read_json(tmp_path / "two" / "report" / "check.json")
    assert second["rows"] == {"in": 11, "out": 11, "quarantined": 0, "repaired": 0, "repairable": 0}
    assert {treatment for _, treatment in found(second)} == {"kept"}


def test_byte_order_mark_encoding_folder_and_gzip(tmp_path, monkeypatch, capsys):
    data = tmp_path / "data"
    data.mkdir()
    sound = row(user("a"), assistant("b")) + "\n"
    (data / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + sound.encode())
    (data / "wide.jsonl").write_bytes(sound.encode("utf-16"))
    (data / "empty.csv").write_bytes(b"")
    with gzip.open(data / "zipped.json.gz", "wt") as file:
        json.dump([{"instruction": "c", "output": "d"}, {"instruction": "", "output": "e"}], file)
    checked(monkeypatch, capsys, data, "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    assert found(report) == {
        ("byte order mark", "quarantined"): [(1, 1)],
        ("wrong encoding", "quarantined"): [(1, 1)],
        ("empty file", "quarantined"): [(1, 1)],
        ("empty turn", "quarantined"): [(2, 1)],
    }
    assert [(Path(file["file"]).name, file["rows"]) for file in report["files"]] == [
        ("bom.jsonl", 1),
        ("empty.csv", 1),
        ("wide.jsonl", 1),
        ("zipped.json.gz", 2),
    ]


def test_many_files_are_not_all_listed(tmp_path, monkeypatch, capsys):
    for number in range(23):
        (tmp_path / f"{number:02}.jsonl").write_text(row(user(f"{number}"), assistant("b")))
    out, _ = checked(monkeypatch, capsys, tmp_path)
    assert "19.jsonl" in out and "20.jsonl" not in out and "and 3 more, which check.json lists" in out


def test_columns(tmp_path, monkeypatch, capsys):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"q": "How?", "a": "So.", "chosen": 1, "rejected": 2}) + "\n")
    checked(monkeypatch, capsys, path, "--columns", "prompt=q,completion=a", "--output", tmp_path / "out")
    (read,) = read_jsonl(tmp_path / "out" / "conversations.jsonl")
    assert read["messages"] == [user("How?"), assistant("So.")]
    assert "columns" in refused(monkeypatch, capsys, path, "--columns", "prompt")
    named = "prompt=q,chosen=a,rejected=b"
    path.write_text(
        json.dumps({"id": 5, "q": "How?", "a": "So.", "b": "No."}) + "\n" + json.dumps({"q": "Why?"}) + "\n"
    )
    checked(monkeypatch, capsys, path, "--columns", named, "--output", tmp_path / "pairs")
    (read,) = read_jsonl(tmp_path / "pairs" / "preferences.jsonl")
    assert (read["id"], read["prompt"], read["completions"]) == ("5", [user("How?")], ["So.", "No."])
    report = read_json(tmp_path / "pairs" / "report" / "check.json")
    assert found(report) == {("missing column", "quarantined"): [(2, 2)]}
    assert report["findings"][0]["first"][0]["found"] == "keys ['q']"
    mixed = refused(monkeypatch, capsys, path, "--columns", "messages=q,chosen=a")
    assert "columns: found the field 'messages'; expected one of id, system" in mixed


def test_turns_and_lengths_in_characters(tmp_path, monkeypatch, capsys):
    system = {"role": "system", "content": "Be brief."}
    lines = [row(system, user("ab"), assistant("cde")), row(user("1"), assistant("2"), user("3"), assistant("4"))]
    lines += [pair("abc", "defg", "h")]
    (tmp_path / "some.jsonl").write_text("\n".join(lines))
    out, _ = checked(monkeypatch, capsys, tmp_path / "some.jsonl", "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    turns = {key: report["turns"][key] for key in ("total", "by_role", "least", "median", "most")}
    # The pair has a prompt and two answers.
    by_role = {"assistant": 5, "user": 4, "system": 1}
    assert turns == {"total": 10, "by_role": by_role, "least": 3, "median": 3, "most": 4}
    assert (report["lengths"]["unit"], report["lengths"]["least"], report["lengths"]["most"]) == ("characters", 4, 14)
    assert report["tokens"] is None
    assert "10: 5 assistant, 4 user, 1 system; 3 to 4 (median 3) in a conversation" in out


def test_tokens_kept_cut_and_masked(tmp_path, tiny_chat_tokenizer, monkeypatch, capsys):
    path, folder = tmp_path / "some.jsonl", tmp_path / "tokenizer"
    tiny_chat_tokenizer.save_pretrained(folder)
    # A letter is a token: <|user|> ab <|end|> <|assistant|> cde <|end|> is 4 + 1 masked, 3 + 1 learned.
    path.write_text(row(user("ab"), assistant("cde")) + "\n" + row(user("fghij"), assistant("<|end|>k")))
    arguments = ("--tokenizer", folder, "--max_length", 12, "--output", tmp_path / "out")
    out, _ = checked(monkeypatch, capsys, path, *arguments)
    report = read_json(tmp_path / "out" / "report" / "check.json")
    # The second: 1 + 5 + 1 + 1 masked; "<|end|>" is seven letters to it, so that 7 + 1 + 1 are the answer; 5 are cut.
    tokens = {"total": 9 + 17, "learned": 4 + 4, "masked": 5 + 8, "truncated": 5, "left_out": 0}
    assert report["tokens"] == {"tokenizer": str(folder), "max_length": 12, **tokens}
    assert found(report) == {
        ("over-long for the context", "kept"): [(2, 2)],
        ("special-token text inside a turn", "kept"): [(2, 2)],
    }
    said = f"26 with {folder}: 21 kept, of them 8 (30.8 %) to learn from and 13 (50.0 %) masked; 5 (19.2 %) truncated at 12"
    assert said.replace(" ", "") in "".join(out.split())
    lengths = report["lengths"]
    assert (lengths["unit"], lengths["least"], lengths["median"], lengths["most"]) == ("tokens", 9, 13, 17)


def test_what_is_quarantined_is_not_measured(tmp_path, tiny_chat_tokenizer, monkeypatch, capsys):
    path, folder = tmp_path / "same.jsonl", tmp_path / "tokenizer"
    tiny_chat_tokenizer.save_pretrained(folder)
    path.write_text("\n".join([row(user("ab"), assistant("cde"))] * 3 + [row(user("f"))]))
    checked(monkeypatch, capsys, path, "--tokenizer", folder, "--drop_duplicates", "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    assert report["rows"] == {"in": 4, "out": 1, "quarantined": 3, "repaired": 0, "repairable": 0}
    tokens = {"total": 9, "learned": 4, "masked": 5, "truncated": 0, "left_out": 0}
    assert report["tokens"] == {"tokenizer": str(folder), "max_length": None, **tokens}
    assert report["turns"]["total"] == 2


def test_nothing_is_written_without_output(defective, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    out, _ = checked(monkeypatch, capsys, defective)
    assert sorted(tmp_path.rglob("*")) == before
    assert out.splitlines()[-1].endswith("; nothing was written: --output FOLDER does")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent.jsonl"], "absent.jsonl: no such file or folder"),
        (["REAL", "--max_length", "8"], "give the tokenizer too"),
        (["REAL", "--tokenizer", "absent"], "absent: no such file or folder"),
        (["REAL", "--similarity", "0"], "--similarity 0.0: expected a number above 0 and up to 1"),
        (["REAL", "--drop_duplicates", "--on_bad", "error"], "give --on_bad quarantine or repair"),
        (["REAL", "--output", "REAL"], "is there already; remove it or give another path"),
    ],
)
def test_refusals(arguments, words, defective, monkeypatch, capsys):
    given = [str(defective) if argument == "REAL" else argument for argument in arguments]
    assert words in refused(monkeypatch, capsys, *given)


@FAST
@given(
    st.binary(max_size=400), st.sampled_from([".jsonl", ".json", ".csv"]), st.sampled_from(["repair", "quarantine"])
)
def test_no_row_is_lost_of_any_bytes(tmp_path, monkeypatch, capsys, content, ending, on_bad):
    assume(not content.startswith(POINTER))  # refused before any row is read
    path, output = tmp_path / f"any{ending}", tmp_path / "out"
    path.write_bytes(content)
    shutil.rmtree(output, ignore_errors=True)
    try:
        checked(monkeypatch, capsys, path, "--on_bad", on_bad, "--output", output)
        code = 0
    except SystemExit as stopped:
        code = stopped.code
    rows = read_json(output / "report" / "check.json")["rows"]
    assert code == (0 if rows["out"] else 1)
    files = [output / f"{kind}.jsonl" for kind in check.KINDS]
    written = [list(read_jsonl(file)) if file.exists() else [] for file in files]
    assert [file.exists() for file in files] == [bool(rows) for rows in written]
    aside = output / "report" / "quarantine.jsonl"
    assert aside.exists() == bool(rows["quarantined"])
    written.append(list(read_jsonl(aside)) if rows["quarantined"] else [])
    assert rows["in"] == sum(map(len, written)) >= 1
    assert rows["out"] == sum(map(len, written[:3]))


def test_rows_that_differ_in_the_system_turn_alone_are_no_near_duplicates_for_it(tmp_path, monkeypatch, capsys):
    system = {"role": "system", "content": LONG}
    lines = [row(system, user(f"Question {number}?"), assistant(f"Answer {number}.")) for number in range(3)]
    (tmp_path / "shared.jsonl").write_text("\n".join(lines))
    checked(monkeypatch, capsys, tmp_path / "shared.jsonl", "--output", tmp_path / "out")
    assert read_json(tmp_path / "out" / "report" / "check.json")["findings"] == []


def test_a_ranking_keeps_what_later_commands_read_beside_it(tmp_path, monkeypatch, capsys):
    ranking = {"id": "1", "prompt": [user("Q")], "completions": ["ref", "sampled", "s2"], "ranks": [0, 1, 2]}
    beside = {"counts": [0, 3, 1], "drawn": {"model": "m", "seed": 0}, "ranked_by": "a person", "note": "\ud800"}
    rows = [{**ranking, **beside}, {**ranking, "id": "2", "prompt": [user("R")]}]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    checked(monkeypatch, capsys, tmp_path / "ranked.jsonl", "--output", tmp_path / "out")
    written = list(read_jsonl(tmp_path / "out" / "preferences.jsonl"))
    about = {"source": str(tmp_path / "ranked.jsonl")}
    assert written == [{**each, **about, "row": number} for number, each in enumerate(rows, start=1)]
    one, two = read_answers(tmp_path / "out" / "preferences.jsonl")
    assert (one["completions"], one["counts"]) == (["sampled", "s2"], [3, 1]) and two["counts"] == [1, 1, 1]
    assert one["columns"]["drawn"]["model"] == "m" and one["columns"]["ranked_by"] == "a person"

    when = datetime(2026, 11, 27, 23, 5)
    rows = [{**ranking, "counts": [0, 3, 1], "ranked_at": when, "drawn": {"model": "m", "temperature": math.nan}}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "ranked.parquet")
    out, _ = checked(monkeypatch, capsys, tmp_path / "ranked.parquet", "--output", tmp_path / "again")
    for line in (
        "fields    written as text, which JSON has no other form for: ranked_at (1 row)",
        "fields    written as null, which was NaN or Infinity: drawn (1 row)",
    ):
        assert f"{line}\n" in out
    (written,) = read_jsonl(tmp_path / "again" / "preferences.jsonl")
    assert written["counts"] == [0, 3, 1] and written["ranked_at"] == str(when)
    assert written["drawn"] == {"model": "m", "temperature": None}


def test_what_is_kept_beside_a_ranking_is_not_said_to_be_unread(tmp_path, monkeypatch, capsys):
    """In a pair the margin is read; its note is kept too. Of an answer with a label nothing is."""
    ranking = {"prompt": [user("Q")], "completions": ["good", "bad"], "ranks": [0, 1]}
    rows = [
        {**ranking, "id": "1", "notes": ["right", "wrong"], "reasons": ["a", "b"], "weight": 2},
        {"prompt": "R", "chosen": "good", "rejected": "bad", "id": "2", "note": "n", "weight": 3},
        {"prompt": "S", "completion": "good", "label": True, "id": "3", "note": "n"},
    ]
    (tmp_path / "ranked.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    out, _ = checked(monkeypatch, capsys, tmp_path / "ranked.jsonl", "--output", tmp_path / "out")
    assert "fields    not read: weight (2 rows), note (1 row)\n" in out
    written = list(read_jsonl(tmp_path / "out" / "preferences.jsonl"))
    assert written[0]["notes"] == ["right", "wrong"] and written[1]["note"] == "n" and "note" not in written[2]


@pytest.mark.parametrize(
    ("values", "bins"),
    [
        ([], []),
        ([0], [(0, 0, 1)] + [(1, 1, 0)]),
        ([1, 2, 2], [(0, 0, 0), (1, 1, 1), (2, 2, 2)]),
        ([5, 45, 95], [(a, a + 4, int(a in (5, 45, 95))) for a in range(0, 96, 5)]),
        ([10] * 199 + [1000], [(a, a, 0) for a in range(10)] + [(10, None, 200)]),
    ],
)
def test_histogram(values, bins):
    import numpy as np

    rows = histogram(np.array(values, np.uint32))
    assert [(each["from"], each["to"], each["count"]) for each in rows] == bins


def test_shares():
    assert [share(0, 10), share(1, 3), share(1, 5000), share(3, 3), share(0, 0)] == ["0.0 %", "33.3 %", "< 0.1 %", "100 %", "–"]  # fmt: skip


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_all_or_nothing(tmp_path):
    path = tmp_path / "many.jsonl"
    path.write_text("\n".join(row(user(f"Question {n}? {LONG[: n % 300]}"), assistant(f"{n}")) for n in range(3000)))
    command = [sys.executable, "-m", "data_prep.check", str(path), "--output"]
    names = ["check.html", "check.json", "conversations.jsonl", "quarantine.jsonl", "report"]
    with path.open("a") as file:
        file.write("\nbroken")

    def whole(folder: Path) -> bool:
        return (
            sorted(path.name for path in folder.rglob("*")) == names
            and len(list(read_jsonl(folder / "conversations.jsonl"))) == 3000
        )

    started = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    takes = time.monotonic() - started
    assert whole(tmp_path / "whole")
    for trial in range(4):
        output = tmp_path / f"killed{trial}"
        process = subprocess.Popen([*command, str(output)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(takes * random.Random(trial).uniform(0.3, 1.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists() or whole(output)


class Page(HTMLParser):
    """Tags with their attributes, and the text of the title and of all the rest."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text, self.title, self.open = "", "", ""
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open = tag

    def handle_data(self, data: str) -> None:
        self.text += data
        self.title += data if self.open == "title" else ""


@pytest.mark.skipif(not BROWSER, reason="there is no Chromium or Chrome on the PATH")
def test_the_page_in_a_browser(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    lines = [row(user(f"{EVIL}{number}"), assistant("b" * number)) for number in range(1, 30)]
    lines += [row(user("a"), {"role": EVIL, "content": "b"}), row(user(EVIL), assistant(EVIL))]
    path = tmp_path / "data" / "evil <b>&amp;.jsonl"
    path.write_text("\n".join(lines))
    checked(monkeypatch, capsys, path, "--output", tmp_path / "out")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *flags, (tmp_path / "out" / "report" / "check.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "</html>" in done.stdout, done.stderr[-2000:]
    page = Page(done.stdout)
    assert page.title.startswith(str(path)) and page.title.strip().endswith("what is in it")
    assert "evil <b>&amp;.jsonl" in page.text and "<script>document.title = 'taken'" in page.text
    assert [tag for tag, _ in page.tags if tag in ("script", "b", "link", "iframe", "object", "embed", "base")] == []
    loaded = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(loaded) == 2 and all(source.startswith("data:image/png;base64,") for source in loaded)
    assert not [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)]


@needs_data
def test_real_data(tmp_path, monkeypatch, capsys):
    files = [DATA / name for name in ("alpaca_en_demo.json", "belle_chat_800.json", "dpo_en_demo.json", "dpo_zh_500.jsonl")]  # fmt: skip
    checked(monkeypatch, capsys, *files, "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    kinds = ("rows", "conversations", "preferences", "quarantined")
    assert [tuple(each[kind] for kind in kinds) for each in report["files"]] == [
        (999, 999, 0, 0),
        (800, 795, 0, 5),
        (300, 0, 300, 0),
        (500, 0, 500, 0),
    ]
    # Counted by hand: five of Belle's conversations have two turns of one speaker in a row.
    same = found(report)["two turns of the same speaker in a row", "quarantined"]
    assert [number for number, _ in same] == [74, 456, 489, 655, 791]
    assert report["rows"] == {"in": 2599, "out": 2594, "quarantined": 5, "repaired": 0, "repairable": 5}
