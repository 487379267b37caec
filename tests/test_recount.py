"""What the doctor and the readers count in public files, against a count that shares no code with them."""

import re
import sys

import pytest
import recount
from helpers.data import DATA, needs_data

from data_prep import check, train_tokenizer
from data_prep.common.errors import run_main
from data_prep.common.files import read_json

pytestmark = needs_data
ROWS = ("belle_chat_800.json", "alpaca_en_demo.json", "dpo_en_demo.json", "dpo_zh_500.jsonl")
# {kind of problem: what tests/recount.py calls it}
KINDS = {
    "two turns of the same speaker in a row": "same speaker twice",
    "trailing human turn": "ending on human",
    "duplicate conversation": "duplicates",
    "duplicate preference": "duplicates",
    "control or replacement characters": "control",
    "special-token text inside a turn": "special",
    "answer equal to prompt": "echo",
    "identical completions ranked differently": "equal answers",
    "empty turn": "empty",
}


def run(module, monkeypatch, *words) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    run_main(module.main)


@pytest.mark.parametrize("name", ROWS)
def test_the_doctor_counts_what_is_there(name, tmp_path, monkeypatch):
    monkeypatch.setattr(check, "page", lambda report: "")  # pictures take long
    run(check, monkeypatch, DATA / name, "--similarity", 1, "--output", tmp_path / "out")
    report, counted = read_json(*tmp_path.rglob("check.json")), recount.recount(str(DATA / name))
    aside = counted["same speaker twice"]
    kept = {"in": counted["rows"], "out": counted["rows"] - aside, "quarantined": aside}
    assert {key: report["rows"][key] for key in kept} == kept
    assert sum(file["preferences"] for file in report["files"]) == counted["pairs"]
    found = {finding["kind"]: finding["rows"] for finding in report["findings"]}
    assert set(found) <= set(KINDS)
    for kind, rows in found.items():
        assert rows == counted[KINDS[kind]], kind
    assert {KINDS[kind] for kind in found} == {key for key in KINDS.values() if counted[key]}
    assert {role: count for role, count in report["turns"]["by_role"].items() if count} == counted["turns"]
    assert report["lengths"]["most"] == counted["longest"] and report["lengths"]["least"] == counted["shortest"]
    assert sum(row["count"] for row in report["lengths"]["histogram"]) == kept["out"]
    if not counted["pairs"]:
        assert (report["turns"]["least"], report["turns"]["most"]) == (counted["fewest turns"], counted["most turns"])


@pytest.mark.parametrize("name", ["c4_demo.jsonl", "wiki_demo.txt", "tinyshakespeare.txt"])
def test_every_document_and_every_byte_is_read(name, tmp_path, monkeypatch, capsys):
    run(train_tokenizer, monkeypatch, "--corpus", DATA / name, "--vocab_size", 262, "--output_dir", tmp_path / "out")
    found = re.search(r"on ([\d,]+) documents \(([\d,]+) bytes\)", capsys.readouterr().out)
    counted = recount.recount_documents(str(DATA / name))
    assert [int(number.replace(",", "")) for number in found.groups()] == [counted["documents"], counted["bytes"]]


def test_the_notes_on_the_files_are_right():
    """What the README beside the files says of them, but that 18 turns are the most: 16 are."""
    belle = recount.recount(str(DATA / "belle_chat_800.json"))
    assert (belle["rows"], belle["same speaker twice"], belle["ending on human"]) == (800, 5, 0)
    assert (belle["fewest turns"], belle["most turns of all"]) == (4, 16)
    alpaca = recount.recount(str(DATA / "alpaca_en_demo.json"))
    assert (alpaca["rows"], alpaca["duplicates"]) == (999, 14)
    for name, rows in (("dpo_en_demo.json", 300), ("dpo_zh_500.jsonl", 500)):
        pairs = recount.recount(str(DATA / name))
        assert pairs["rows"] == pairs["pairs"] == rows
    assert recount.recount_documents(str(DATA / "c4_demo.jsonl"))["documents"] == 300
    assert recount.recount_documents(str(DATA / "wiki_demo.txt"))["documents"] == 30
