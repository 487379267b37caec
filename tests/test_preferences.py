"""Rankings from files on disk to pairs and splits."""

import csv
import gzip
import json
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from helpers.data import DATA, needs_data
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.readers.preference_formats import formats_of
from data_prep.readers.preferences import load_rankings, read_rankings
from data_prep.readers.ranks import pairs, ranks_of_scores

USER = [{"role": "user", "content": "Q"}]
ASSISTANT_LAST = [*USER, {"role": "assistant", "content": "A"}]


def write(folder: Path, rows, name="ranked.jsonl") -> Path:
    path = folder / name
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(lines if path.suffix == ".jsonl" else json.dumps(rows), encoding="utf-8")
    return path


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_rankings(path)
    return str(caught.value)


PAIR = {"completions": ["good", "bad"], "ranks": [0, 1]}
SIDES = {"chosen": "good", "rejected": "bad"}
EARLIER = [*USER, {"role": "assistant", "content": "A"}, {"role": "user", "content": " and now?"}]
SYSTEM = {"role": "system", "content": "S"}


def whole(answer: str) -> list[dict]:
    return [*USER, {"role": "assistant", "content": answer}]


def hh(answer: str) -> str:
    return f"\n\nHuman: Q\n\nAssistant: A\n\nHuman:  and now?\n\nAssistant: {answer}"


# A row, and what comes of it: prompt, completions, ranks, and scores where there are any.
READABLE = {
    "ranked": ({"prompt": "Q", "completions": ["b", "a", "c"], "ranks": [1, 0, 1]}, USER, ["b", "a", "c"], [1, 0, 1]),
    "messages": ({"prompt": ASSISTANT_LAST + USER, **PAIR}, ASSISTANT_LAST + USER, ["good", "bad"], [0, 1]),
    "pair": ({"prompt": "Q", **SIDES}, USER, ["good", "bad"], [0, 1]),
    "question": ({"question": "Q", **SIDES}, USER, ["good", "bad"], [0, 1]),
    "instruction": ({"instruction": "Q", **SIDES}, USER, ["good", "bad"], [0, 1]),
    "instruction, input": (
        {"instruction": "Translate", "input": "Q", **SIDES},
        [{"role": "user", "content": "Translate\nQ"}],
        ["good", "bad"],
        [0, 1],
    ),
    "instruction blank, input": ({"instruction": " ", "input": "Q", **SIDES}, USER, ["good", "bad"], [0, 1]),
    "instruction, no input": ({"instruction": "Q", "input": "", **SIDES}, USER, ["good", "bad"], [0, 1]),
    "medical": (
        {
            "system": "S",
            "history": [["q1", "a1"]],
            "question": "Q",
            "response_chosen": "good",
            "response_rejected": "bad",
        },
        [SYSTEM, {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}, *USER],
        ["good", "bad"],
        [0, 1],
    ),
    "medical, nothing before": (
        {"system": "", "history": [], "question": "Q", "response_chosen": "good", "response_rejected": "bad"},
        USER,
        ["good", "bad"],
        [0, 1],
    ),
    "turns": (
        {
            "conversations": [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        [SYSTEM, *USER],
        ["good", "bad"],
        [0, 1],
    ),
    "answers as messages": (
        {"prompt": USER, "chosen": whole("good")[1:], "rejected": whole("bad")[1:]},
        USER,
        ["good", "bad"],
        [0, 1],
    ),
    "whole conversations": ({"chosen": whole("good"), "rejected": whole("bad")}, USER, ["good", "bad"], [0, 1]),
    "whole conversations, prompt again": (
        {"prompt": "Q", "chosen": whole("good"), "rejected": whole("bad"), "messages": whole("good")},
        USER,
        ["good", "bad"],
        [0, 1],
    ),
    "whole conversations with a system turn, prompt without": (
        {"prompt": "Q", "chosen": [SYSTEM, *whole("good")], "rejected": [SYSTEM, *whole("bad")]},
        [SYSTEM, *USER],
        ["good", "bad"],
        [0, 1],
    ),
    "system beside whole conversations": (
        {"prompt": "Q", "system": "S", "chosen": whole("good"), "rejected": whole("bad")},
        [SYSTEM, *USER],
        ["good", "bad"],
        [0, 1],
    ),
    "content in parts": (
        {
            "prompt": [{"role": "user", "content": [{"type": "text", "text": "Q"}]}],
            "chosen": [{"role": "assistant", "content": [{"type": "text", "text": "good"}]}],
            "rejected": "bad",
        },
        USER,
        ["good", "bad"],
        [0, 1],
    ),
    "one answer whole, one alone": (
        {"prompt": "Q", "chosen": whole("good"), "rejected": "bad"},
        USER,
        ["good", "bad"],
        [0, 1],
    ),
    "hh-rlhf": ({"chosen": hh("good"), "rejected": hh("bad")}, EARLIER, ["good", "bad"], [0, 1]),
    "hh-rlhf, its prompt apart": ({"prompt": hh(""), **SIDES}, EARLIER, ["good", "bad"], [0, 1]),
    "hh-rlhf, Nectar": (
        {
            "prompt": "\n\nHuman: Q\n\nAssistant: ",
            "answers": [{"answer": "bad", "model": "m", "rank": 2.0}, {"answer": "good", "model": "n", "rank": 1.0}],
        },
        USER,
        ["bad", "good"],
        [2, 1],
    ),
    "UltraFeedback": (
        {
            "instruction": "Q",
            "models": ["m", "n", "o"],
            "completions": [
                {"response": "bad", "overall_score": 9.5, "fine-grained_score": 1.25, "critique": "hm"},
                {"response": "good", "overall_score": 7, "fine-grained_score": 4.5, "critique": "ah"},
                {"response": "same", "overall_score": 5, "fine-grained_score": 1.25, "critique": "hm"},
            ],
        },
        USER,
        ["bad", "good", "same"],
        [1, 0, 1],
        [1.25, 4.5, 1.25],
    ),
    "UltraFeedback, overall": (
        {"instruction": "Q", "completions": [{"response": t, "overall_score": s} for t, s in (("a", 7.5), ("b", 8))]},
        USER,
        ["a", "b"],
        [1, 0],
        [7.5, 8.0],
    ),
    "scores": (
        {"prompt": "Q", "completions": ["a", "b", "c"], "scores": [-0.5, 3, -2]},
        USER,
        ["a", "b", "c"],
        [1, 0, 2],
        [-0.5, 3.0, -2.0],
    ),
    "ranks and scores": (
        {"prompt": "Q", "completions": ["a", "b", "c"], "ranks": [0, 0, 1], "scores": [2, 1, 0]},
        USER,
        ["a", "b", "c"],
        [0, 0, 1],
        [2.0, 1.0, 0.0],
    ),
    "scored pair": (
        {"prompt": "Q", **SIDES, "score_chosen": 8.0, "score_rejected": "7.5"},
        USER,
        ["good", "bad"],
        [0, 1],
        [8.0, 7.5],
    ),
    "rated pair": (
        {"prompt": "Q", **SIDES, "chosen-rating": 4, "rejected-rating": 4},
        USER,
        ["good", "bad"],
        [0, 1],
        [4.0, 4.0],
    ),
    "margin": ({"prompt": "Q", **SIDES, "margin": 0.5}, USER, ["good", "bad"], [0, 1], [0.5, 0.0]),
    "no margin": ({"prompt": "Q", **SIDES, "margin": ""}, USER, ["good", "bad"], [0, 1]),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("name", READABLE)
def test_every_format_becomes_a_ranking(tmp_path, name, suffix):
    row, prompt, completions, ranks, *scores = READABLE[name]
    rows, counts = read_rankings(write(tmp_path, [row], f"ranked.{suffix}"))
    expected = {"prompt": prompt, "completions": completions, "ranks": ranks}
    assert rows == [expected | ({"scores": scores[0]} if scores else {})]
    better_worse = {(0, 1): 1, (1, 0): 1, (2, 1): 1, (1, 0, 1): 2, (0, 0, 1): 2, (1, 0, 2): 3}  # ranks: pairs
    assert counts == {"rows": 1, "rankings": 1, "pairs": better_worse[tuple(ranks)], "quarantined": 0}


def test_pairs_from_csv_parquet_and_compressed_files_in_one_folder(tmp_path):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["prompt", "chosen", "rejected", "margin"], ['Q, "1"', "good\n", "bad", "1.5"]])
    rows = [{"prompt": "Q2", **SIDES, "system": None}, {"prompt": "Q3", **SIDES, "system": "S"}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"chosen": hh("x"), "rejected": hh("y")}).encode()))
    found, counts = read_rankings(tmp_path)
    assert counts == {"rows": 4, "rankings": 4, "pairs": 4, "quarantined": 0}
    assert [row["prompt"] for row in found] == [
        [{"role": "user", "content": 'Q, "1"'}],
        [{"role": "user", "content": "Q2"}],
        [SYSTEM, {"role": "user", "content": "Q3"}],
        EARLIER,
    ]
    # One row has a margin, so every row says whether it has scores.
    assert [row["scores"] for row in found] == [[1.5, 0.0], None, None, None]
    assert load_rankings(tmp_path).column_names == ["prompt", "completions", "ranks", "scores"]


def test_labelled_answers_are_held_against_each_other_by_prompt(tmp_path, capsys):
    labelled = [
        ("1", "good", True), ("2", "only good", True), ("1", "bad", False), ("1", "fine", 1), ("3", "same", "true"),
        ("3", "same", "false"), ("3", "other", False), ("4", "x", True), ("4", "x", False), ("4", "y", True), ("4", "z", 0),
    ]  # fmt: skip
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in labelled]
    rows.insert(1, {"prompt": "5", **SIDES})
    rows.append({"prompt": [{"from": "user", "value": "1"}], "completion": whole("worse")[1:], "label": False})
    dataset = load_rankings(write(tmp_path, rows))
    # Of "3" one text is labelled both ways, and the other has none to stand against.
    assert capsys.readouterr().out == (
        "ranked.jsonl: 3 rankings, 6 pairs; left out: 2 labelled answers whose prompt has only one label "
        "(recipes/kto.py takes these), "
        "4 labelled answers whose text has both labels\n"
    )
    found = {row["prompt"][0]["content"]: (row["completions"], row["ranks"]) for row in dataset}
    assert found == {
        "1": (["good", "bad", "fine", "worse"], [0, 1, 0, 1]),
        "5": (["good", "bad"], [0, 1]),
        "4": (["y", "z"], [0, 1]),
    }
    assert dataset.column_names == ["prompt", "completions", "ranks"]


def test_rankings_that_are_tied_are_left_out_and_printed(tmp_path, capsys):
    rows = [
        {"prompt": "1", "completions": ["a", "b", "c"], "ranks": [2, 0, 1]},
        {"prompt": "2", "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "3", "completions": ["a", "b"], "scores": [0.5, 0.5]},
        {"prompt": "5", "completions": ["x", "y", "x"], "ranks": [0, 1, 0]},
    ]
    dataset = load_rankings(write(tmp_path, rows))
    assert capsys.readouterr().out == "ranked.jsonl: 2 rankings, 5 pairs; left out: 2 with all completions tied\n"
    assert dataset.column_names == ["prompt", "completions", "ranks"]
    assert dataset[1] == {
        "prompt": [{"role": "user", "content": "5"}],
        "completions": ["x", "y", "x"],
        "ranks": [0, 1, 0],
    }
    load_rankings([write(tmp_path, rows[:1]), write(tmp_path, rows[:1], "b.json")])
    assert capsys.readouterr().out == "ranked.jsonl, b.json: 2 rankings, 6 pairs\n"


def test_a_file_without_any_preference_is_refused(tmp_path):
    path = write(tmp_path, [{"prompt": "2", "completions": ["a", "b"], "ranks": [1, 1]}])
    assert refusal(path).startswith(
        f"{path.name}: no ranking is left: found 1 with all completions tied; expected a row"
    )


DEFECTIVE = {
    "not an object": (5, "found 5"),
    "unknown fields": ({"prompt": "Q", "chosen": "a"}, "found keys ['chosen', 'prompt']"),
    "unknown fields (answers twice)": ({"prompt": "Q", **PAIR, "answers": []}, "'answers', 'completions'"),
    "unknown fields (no score)": (
        {"prompt": "Q", "completions": [{"response": "a", "score": None}, {"response": "b"}]},
        "found keys ['completions', 'prompt']",
    ),
    "no prompt": ({"chosen": "a", "rejected": "b"}, "found 'chosen' and 'rejected' alone; expected one of prompt, "),
    "unknown fields (two prompts)": ({"prompt": "Q", "question": "Q", **PAIR}, "'prompt', 'question'"),
    "unknown fields (both)": ({"prompt": "Q", "chosen": "a", "rejected": "b", **PAIR}, "'chosen', 'completions'"),
    "prompt is not a text": ({"prompt": 3, **PAIR}, "found 3 under 'prompt'"),
    "input or reasoning that is not text": (
        {"instruction": "Sort", "input": [3, 1], **SIDES},
        "found [3, 1] under 'input'; expected a string below the instruction, or nothing",
    ),
    "input or reasoning that is not text (number)": ({"instruction": "Sort", "input": 5, **PAIR}, "found 5 under"),
    "empty turn": ({"prompt": " ", **PAIR}, "found ' ' at turn 1"),
    "unknown role": ({"prompt": [{"role": "bot", "content": "Q"}], **PAIR}, "found 'bot' under 'role' at turn 1"),
    "prompt does not end on a human turn": ({"prompt": ASSISTANT_LAST, **PAIR}, "found assistant as its last turn"),
    "prompt does not end on a human turn (empty)": ({"prompt": [], **PAIR}, "found no turn under 'prompt'"),
    "history not in pairs": ({"question": "Q", "history": ["q1"], **PAIR}, "found 'q1' under 'history'"),
    "history not in pairs (text)": ({"question": "Q", "history": "q1", **PAIR}, "found 'q1' under 'history'"),
    "too few completions": ({"prompt": "Q", "completions": ["a"], "ranks": [0]}, "found ['a'] under 'completions'"),
    "lengths differ": (
        {"prompt": "Q", "completions": ["a", "b"], "ranks": [0, 1, 2]},
        "found 2 completions and 3 ranks; expected one rank per completion",
    ),
    "ranks are not integers": (
        {"prompt": "Q", "completions": ["a", "b"], "ranks": [0.5, 1]},
        "found [0.5, 1] under 'ranks'",
    ),
    "ranks are not integers (bool)": (
        {"prompt": "Q", "completions": ["a", "b"], "ranks": [True, False]},
        "found [True, False] under 'ranks'",
    ),
    "empty completion": ({"prompt": "Q", "completions": ["a", "\n"], "ranks": [0, 1]}, r"found '\n' at completion 2"),
    "empty completion (pair)": ({"prompt": "Q", "chosen": "", "rejected": "b"}, "found '' at 'chosen'"),
    "empty completion (null)": (
        {"prompt": "Q", "completion": [{"from": "gpt", "value": None}], "label": 1},
        "found None at",
    ),
    "empty completion (hh-rlhf)": ({"chosen": hh(""), "rejected": hh("b")}, "found '' at 'chosen'"),
    "empty completion (UltraFeedback)": (
        {"prompt": "Q", "completions": [{"response": "", "score": 1}, {"response": "a", "score": 2}]},
        "found '' at completion 1",
    ),
    "completion is not an answer": (
        {"prompt": "Q", "chosen": "a", "rejected": {"from": "human", "value": "b"}},
        "found {'from': 'human', 'value': 'b'} at 'rejected'",
    ),
    "completion is not an answer (number)": ({"prompt": "Q", "chosen": "a", "rejected": 5}, "found 5 at 'rejected'"),
    "completion is not an answer (hh-rlhf)": (
        {"chosen": hh("a"), "rejected": "\n\nHuman: Q"},
        r"found '\n\nHuman: Q' at 'rejected'",
    ),
    "completion is not an answer (object)": (
        {"prompt": "Q", "completions": [{"reply": "a", "score": 1}, {"text": "b", "score": 2}]},
        "found {'reply': 'a', 'score': 1} at completion 1",
    ),
    "completion is not an answer (none)": ({"prompt": "Q", "chosen": [], "rejected": "b"}, "found [] at 'chosen'"),
    "completion is not an answer (call)": (
        {
            "prompt": "Q",
            "chosen": "a",
            "rejected": [{"role": "assistant", "content": "b", "tool_calls": [{"name": "f"}]}],
        },
        "at 'rejected'; expected a text, or turns that end on the assistant's",
    ),
    "role that the chat template does not support": (
        {
            "prompt": [*ASSISTANT_LAST[:1], {"from": "function_call", "value": '{"name": "f"}'}],
            **PAIR,
        },
        "found turns of function_call; expected system, user, assistant only",
    ),
    "prompt mismatch": (
        {"chosen": [SYSTEM, *whole("good")], "rejected": whole("bad")},
        "found 'chosen' and 'rejected' part at turn 1, before the last",
    ),
    "prompt mismatch (shorter)": (
        {"chosen": hh("good"), "rejected": "\n\nHuman: Q\n\nAssistant: bad"},
        "found 'chosen' and 'rejected' part at turn 2, before the last",
    ),
    "prompt mismatch (one has none)": (
        {"chosen": whole("good"), "rejected": "bad"},
        "found a prompt in 'chosen', none in 'rejected'",
    ),
    "prompt mismatch (another prompt beside)": (
        {"prompt": "P", "chosen": whole("good"), "rejected": whole("bad")},
        "found 'P' as the prompt, 'Q' in 'chosen'",
    ),
    "identical completions ranked differently": (
        {"prompt": "Q", "chosen": "same", "rejected": "same"},
        "found 'same' at 'chosen' and at 'rejected'; expected two different texts",
    ),
    "identical completions ranked differently (three)": (
        {"prompt": "Q", "completions": ["x", "y", "x"], "ranks": [1, 1, 0]},
        "found 'x' at completion 3 and at completion 1",
    ),
    "scores contradict the ranks": (
        {"prompt": "Q", **SIDES, "score_chosen": 1, "score_rejected": 2.5},
        "found 1 for 'chosen', 2.5 for 'rejected', which is ranked lower",
    ),
    "scores are not numbers": (
        {"prompt": "Q", "completions": ["a", "b"], "scores": [1, "N/A"]},
        "found [1, 'N/A'] under 'scores'",
    ),
    "scores are not numbers (missing)": (
        {"prompt": "Q", "completions": [{"response": "a", "score": 1}, {"response": "b"}]},
        "found [1, None] under 'score'",
    ),
    "scores are not numbers (infinite)": ({"prompt": "Q", **SIDES, "margin": "inf"}, "found ['inf'] under 'margin'"),
    "label is not true or false": (
        {"prompt": "Q", "completion": "a", "label": "maybe"},
        "found 'maybe' under 'label'",
    ),
}


@pytest.mark.parametrize("kind", DEFECTIVE)
def test_a_defective_row_is_named(tmp_path, kind):
    row, found = DEFECTIVE[kind]
    path = write(tmp_path, [{"prompt": "Q", **PAIR}, row], "ranked.json")
    if isinstance(row, dict):  # data_prep.check tells preferences from conversations by this
        assert bool(formats_of(row)) == (not kind.startswith("unknown fields") or len(row) > 2)
    message = refusal(path)
    assert message.startswith(f"{path}: 1 row cannot be used: 1 × {kind.split(' (')[0]}\n")
    assert "  row 2" in message and found in message and "; expected " in message


def test_all_defects_come_in_one_error(tmp_path):
    rows = [{"prompt": "", "chosen": "", "rejected": "b"}, {"id": 9, "prompt": "Q"}]
    lines = refusal(write(tmp_path, rows)).splitlines()
    assert lines[0].endswith("2 rows cannot be used: 1 × empty turn, 1 × empty completion, 1 × unknown fields")
    assert [line[:25] for line in lines[1:4]] == [*["  row 1, line 1: found ''"] * 2, "  row 2 (id '9'), line 2:"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("r.txt", "a,b", "found the ending '.txt'; expected .json, .jsonl, .csv, .parquet"),
        ("r.jsonl", "\n", "1 × empty file\n  row 1, line 1: found no row; expected at least one row"),
        ("r.csv", "prompt,chosen,rejected\n", "1 × empty file"),
        ("r.jsonl", '{"prompt": "Q"\n', "1 row cannot be used: 1 × broken JSON"),
        ("r.jsonl", "[1]\n", "1 × not an object"),
        ("r.json", "{}", "found keys []"),
    ],
)
def test_a_file_that_holds_no_rows(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_text(content)
    message = refusal(path)
    assert message.startswith(str(path)) and found in message


TWICE = [{"from": "human", "value": "Q"}, {"from": "human", "value": "more"}]


def test_repair_merges_turns_of_one_speaker_and_counts(tmp_path, capsys):
    rows = [
        {"conversations": TWICE, **SIDES},
        {"chosen": [*TWICE, *whole("good")[1:]], "rejected": [*TWICE, *whole("bad")[1:]]},
    ]
    path = write(tmp_path, rows)
    path.write_text(path.read_text().replace('}], "chosen"', '},], "chosen"'))
    dataset = load_rankings(path, "repair")
    assert dataset["prompt"][:] == [[{"role": "user", "content": "Q\nmore"}]] * 2
    assert dataset["completions"][:] == [["good", "bad"]] * 2
    out = capsys.readouterr().out
    assert out.startswith("ranked.jsonl: 2 rankings, 2 pairs; repaired: ") and "1 × trailing comma" in out
    assert "3 × two turns of the same speaker in a row" in out
    message = refusal(path)
    assert "2 rows cannot be used: 3 × two turns of the same speaker in a row, 1 × trailing comma\n" in message
    # Roles that are only written differently are repaired too.
    aliases = {
        "prompt": [{"role": "User ", "content": "Q"}],
        "chosen": [{"role": "ASSISTANT", "content": "a"}],
        "rejected": "b",
    }
    dataset = load_rankings(write(tmp_path, [aliases]), "repair")
    assert (dataset[0]["prompt"], dataset[0]["completions"]) == (USER, ["a", "b"])
    assert "repaired: 2 × role alias" in capsys.readouterr().out
    # What cannot be repaired stays an error.
    rows.append({"prompt": "Q", "chosen": "same", "rejected": "same"})
    with pytest.raises(InputError, match="1 row cannot be used: 1 × identical completions ranked differently"):
        load_rankings(write(tmp_path, rows), "repair")


def test_quarantine_keeps_the_untouched_row_its_place_and_reason(tmp_path, capsys):
    bad = '{"prompt": "Q", "chosen" : "same", "rejected": "same"}'
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps({"prompt": "Q", **SIDES}) + "\n\n" + bad + "\n{broken\n", encoding="utf-8")
    aside = tmp_path / "run" / "quarantine.jsonl"
    assert len(load_rankings(path, "quarantine", aside)) == 1
    assert capsys.readouterr().out == (
        f"ranked.jsonl: 1 ranking, 1 pair; rows in 3 = rows out 1 + quarantined 2, which are in {aside}\n"
    )
    first, second = map(json.loads, aside.read_text().splitlines())
    assert first == {
        "file": str(path),
        "line": 3,
        "row": 2,
        "reasons": [
            {
                "kind": "identical completions ranked differently",
                "found": "'same' at 'chosen' and at 'rejected'",
                "expected": "two different texts",
            }
        ],
        "raw": bad,
    }
    assert (second["line"], second["row"], second["raw"]) == (4, 3, "{broken")
    path.write_text(bad)
    with pytest.raises(InputError) as caught:
        load_rankings(path, "quarantine", aside)
    assert str(caught.value).splitlines()[:2] == [
        "ranked.jsonl: no ranking is left of 1 row; expected at least one",
        f"{path}: 1 row cannot be used: 1 × identical completions ranked differently",
    ]


def test_columns_say_where_the_fields_are(tmp_path, capsys):
    rows = [{"id": 1, "q": "Q", "good": "good", "bad": "bad", "prompt": 7, "margin": "x"}]
    named = "prompt=q,chosen=good,rejected=bad"
    (found,), _ = read_rankings(write(tmp_path, rows), columns=named)
    assert found == {"prompt": USER, "completions": ["good", "bad"], "ranks": [0, 1]}
    assert load_rankings(tmp_path / "ranked.jsonl", columns=named)[0] == found
    table = 'q,texts,marks\nQ,"[""a"", ""b""]","[1, 2.5]"\n'
    (tmp_path / "cells.csv").write_text(table)
    (found,), _ = read_rankings(tmp_path / "cells.csv", columns="prompt=q,completions=texts,scores=marks")
    assert found == {"prompt": USER, "completions": ["a", "b"], "ranks": [1, 0], "scores": [1.0, 2.5]}
    ranked = write(tmp_path, [{"q": "Q", "texts": ["a", "b"], "order": [2, 1]}], "ranked.json")
    (found,), _ = read_rankings(ranked, columns={"prompt": "q", "completions": "texts", "ranks": "order"})
    assert found["ranks"] == [2, 1]
    labelled = write(tmp_path, [{"q": "Q", "a": "a", "ok": True}, {"q": "Q", "a": "b", "ok": False}], "labelled.json")
    (found,), _ = read_rankings(labelled, columns="prompt=q,completion=a,label=ok")
    assert (found["completions"], found["ranks"]) == (["a", "b"], [0, 1])


def test_columns_that_are_not_there_are_one_error_that_names_those_that_are(tmp_path):
    path = write(tmp_path, [{"id": 1, "q": "Q", "good": "good", "bad": "bad"}] * 3)
    with pytest.raises(InputError) as caught:
        read_rankings(path, columns="prompt=question,chosen=good,rejected=bad")
    lines = str(caught.value).splitlines()
    assert lines[0] == f"{path}: 3 rows cannot be used: 3 × missing column"
    assert lines[1] == (
        "  row 1 (id '1'), line 1: found keys ['id', 'q', 'good', 'bad']; expected the column 'question', which columns names"
    )
    with pytest.raises(InputError) as caught:
        read_rankings(path, "quarantine", tmp_path / "aside.jsonl", columns="prompt=question")
    assert "no ranking is left of 3 rows" in str(caught.value) and "found keys ['id', 'q', 'good'" in str(caught.value)
    for wrong, found in (
        ("prompt", "'prompt'; expected field=column"),
        ("messages=q", "the field 'messages'; expected one"),
    ):
        with pytest.raises(InputError) as caught:
            read_rankings(path, columns=wrong)
        assert f"columns: found {found}" in str(caught.value)


TEXT = st.sampled_from(["", " ", "a", "b", "\n\nHuman: Q\n\nAssistant: a", "好"])
ANSWER = st.one_of(TEXT, st.none(), st.builds(lambda text: [{"role": "assistant", "content": text}], TEXT))
NUMBER = st.sampled_from([0, 1, 2, 0.5, "1", "x", None, True])
PROMPT = {
    "prompt": st.sampled_from(["Q", "P", "", [{"from": "human", "value": "Q"}], 3, "\n\nHuman: Q\n\nAssistant:"])
}
RANKED = st.one_of(
    st.fixed_dictionaries({**PROMPT, "chosen": ANSWER, "rejected": ANSWER}, optional={"margin": NUMBER}),
    st.fixed_dictionaries({"chosen": ANSWER, "rejected": ANSWER}),
    st.fixed_dictionaries(
        {**PROMPT, "completions": st.lists(ANSWER, max_size=4), "ranks": st.lists(NUMBER, max_size=4)}
    ),
    st.fixed_dictionaries(
        {**PROMPT, "completions": st.lists(ANSWER, max_size=4), "scores": st.lists(NUMBER, max_size=4)}
    ),
    st.sampled_from([None, 5, [], {}, {"prompt": "Q"}]),
)
LABELLED = st.fixed_dictionaries({**PROMPT, "completion": ANSWER, "label": NUMBER})


@settings(deadline=None, max_examples=100)
@given(st.one_of(st.lists(RANKED, min_size=1, max_size=12), st.lists(LABELLED, min_size=1, max_size=12)))
def test_every_row_is_a_ranking_or_counted(tmp_path_factory, rows):
    folder = tmp_path_factory.getbasetemp()
    path, aside = write(folder, rows), folder / "quarantine.jsonl"
    try:
        rankings, counts = read_rankings(path, "quarantine", aside)
    except InputError as error:
        assert "no ranking is left" in str(error)
        return
    set_aside = [json.loads(line) for line in aside.read_text().splitlines()] if counts["quarantined"] else []
    assert aside.exists() == bool(set_aside)
    assert [json.loads(row["raw"]) for row in set_aside] == [rows[row["row"] - 1] for row in set_aside]
    labelled = isinstance(rows[0], dict) and "label" in rows[0]
    used = sum(len(row["completions"]) for row in rankings) if labelled else len(rankings)
    left_out = sum(count for name, count in counts.items() if name.startswith(("labelled answers", "with all")))
    assert len(rows) == counts["rows"] == used + left_out + len(set_aside) and counts["quarantined"] == len(set_aside)
    for row in rankings:
        assert len(row["completions"]) == len(row["ranks"]) and pairs(row["ranks"])
        assert row["prompt"][-1]["role"] == "user" and all(text.strip() for text in row["completions"])
        assert all(row["completions"][better] != row["completions"][worse] for better, worse in pairs(row["ranks"]))


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=8))
def test_ranks_keep_the_order_of_the_scores(scores):
    ranks = ranks_of_scores(scores)
    assert all((scores[a] > scores[b]) == (ranks[a] < ranks[b]) for a in range(len(ranks)) for b in range(len(ranks)))
    assert sorted(set(ranks)) == list(range(len(set(ranks))))


def test_pairs_by_hand():
    assert pairs([0, 1]) == [(0, 1)]
    assert pairs([1, 0]) == [(1, 0)]
    assert pairs([1, 0, 1]) == [(1, 0), (1, 2)]
    assert pairs([2, 0, 1]) == [(1, 0), (1, 2), (2, 0)]
    assert pairs([3, 3]) == []


@given(st.lists(st.integers(-3, 5), max_size=12))
def test_pairs_are_all_pairs_without_the_ties(ranks):
    found = pairs(ranks)
    n = len(ranks)
    # n over 2 pairs, less those inside each group of equal ranks.
    assert len(found) == n * (n - 1) // 2 - sum(c * (c - 1) // 2 for c in Counter(ranks).values())
    assert len(set(found)) == len(found)
    assert all(ranks[better] < ranks[worse] for better, worse in found)


@needs_data
@pytest.mark.parametrize(("name", "rows", "systems"), [("dpo_zh_500.jsonl", 500, 84), ("dpo_en_demo.json", 300, 80)])
def test_real_pairs(name, rows, systems, capsys):
    dataset = load_rankings(DATA / name)
    assert capsys.readouterr().out == f"{name}: {rows} rankings, {rows} pairs\n"
    assert sum(prompt[0]["role"] == "system" for prompt in dataset["prompt"]) == systems
