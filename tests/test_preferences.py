"""Rankings from files on disk to pairs and splits."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.files import InputError
from data_prep.preferences import load_rankings, pairs, read_rankings, split_by_prompt

DATA = Path(__file__).parents[2] / "shared" / "data"
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
READABLE = {
    "ranked": ({"prompt": "Q", "completions": ["b", "a", "c"], "ranks": [1, 0, 1]}, USER, ["b", "a", "c"], [1, 0, 1]),
    "messages": ({"prompt": ASSISTANT_LAST + USER, **PAIR}, ASSISTANT_LAST + USER, ["good", "bad"], [0, 1]),
    "pair": ({"prompt": "Q", "chosen": "good", "rejected": "bad"}, USER, ["good", "bad"], [0, 1]),
    "question": ({"question": "Q", "chosen": "good", "rejected": "bad"}, USER, ["good", "bad"], [0, 1]),
    "medical": (
        {
            "system": "S",
            "history": [["q1", "a1"]],
            "question": "Q",
            "response_chosen": "good",
            "response_rejected": "bad",
        },
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "q1"},
            {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "Q"},
        ],
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
        [{"role": "system", "content": "S"}, *USER],
        ["good", "bad"],
        [0, 1],
    ),
}


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
@pytest.mark.parametrize("name", READABLE)
def test_every_format_becomes_a_ranking(tmp_path, name, suffix):
    row, prompt, completions, ranks = READABLE[name]
    rows, counts = read_rankings(write(tmp_path, [row], f"ranked.{suffix}"))
    assert rows == [{"prompt": prompt, "completions": completions, "ranks": ranks}]
    assert counts["rankings"] == 1 and counts["pairs"] == len(ranks) - 1


def test_rows_that_teach_nothing_are_left_out_and_printed(tmp_path, capsys):
    rows = [
        {"prompt": "1", "completions": ["a", "b", "c"], "ranks": [2, 0, 1]},
        {"prompt": "2", "completions": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "3", "chosen": "same", "rejected": "same"},
        {"prompt": "4", "completions": ["x", "y", "x"], "ranks": [0, 1, 1]},
        {"prompt": "5", "completions": ["x", "y", "x"], "ranks": [0, 1, 0]},
    ]
    path = write(tmp_path, rows)
    dataset = load_rankings(path)
    assert capsys.readouterr().out == (
        "ranked.jsonl: 2 rankings, 5 pairs; left out: 1 with all completions tied, "
        "2 with identical completions ranked differently\n"
    )
    assert dataset.column_names == ["prompt", "completions", "ranks"]
    assert dataset[1] == {
        "prompt": [{"role": "user", "content": "5"}],
        "completions": ["x", "y", "x"],
        "ranks": [0, 1, 0],
    }
    load_rankings([write(tmp_path, rows[:1]), write(tmp_path, rows[:1], "b.json")])
    assert capsys.readouterr().out == "ranked.jsonl, b.json: 2 rankings, 6 pairs\n"


@pytest.mark.parametrize(
    "row",
    [{"prompt": "2", "completions": ["a", "b"], "ranks": [1, 1]}, {"prompt": "3", "chosen": "s", "rejected": "s"}],
)
def test_a_file_without_any_preference_is_refused(tmp_path, row):
    path = write(tmp_path, [row])
    message = refusal(path)
    assert message.startswith(f"{path}: no ranking is left: ") and "1 with" in message


DEFECTIVE = {
    "not an object": (5, "found 5"),
    "unknown fields": ({"prompt": "Q", "chosen": "a"}, "found keys ['chosen', 'prompt']"),
    "unknown fields (no prompt)": ({"chosen": "a", "rejected": "b"}, "found keys ['chosen', 'rejected']"),
    "unknown fields (two prompts)": ({"prompt": "Q", "question": "Q", **PAIR}, "'prompt', 'question'"),
    "unknown fields (both)": ({"prompt": "Q", "chosen": "a", "rejected": "b", **PAIR}, "'chosen', 'completions'"),
    "prompt is no text": ({"prompt": 3, **PAIR}, "found 3 under 'prompt'"),
    "empty turn": ({"prompt": " ", **PAIR}, "found ' ' at turn 1"),
    "unknown role": ({"prompt": [{"role": "bot", "content": "Q"}], **PAIR}, "found 'bot' under 'from' at turn 1"),
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
    "empty completion (turn)": (
        {"prompt": "Q", "chosen": "a", "rejected": {"from": "human", "value": "b"}},
        "found {'from': 'human', 'value': 'b'} at 'rejected'",
    ),
}


@pytest.mark.parametrize("kind", DEFECTIVE)
def test_a_defective_row_is_named(tmp_path, kind):
    row, found = DEFECTIVE[kind]
    path = write(tmp_path, [{"prompt": "Q", **PAIR}, row], "ranked.json")
    message = refusal(path)
    assert message.startswith(f"{path}: 1 row cannot be used: 1 × {kind.split(' (')[0]}\n")
    assert "  row 2" in message and found in message and "; expected " in message


def test_all_defects_come_in_one_error(tmp_path):
    rows = [{"prompt": "", "chosen": "", "rejected": "b"}, {"id": 9, "prompt": "Q"}]
    lines = refusal(write(tmp_path, rows)).splitlines()
    assert lines[0].endswith("2 rows cannot be used: 1 × empty turn, 1 × empty completion, 1 × unknown fields")
    assert [line[:17] for line in lines[1:4]] == ["  row 1: found ''", "  row 1: found ''", "  row 2 (id '9'):"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("r.csv", "a,b", "found the ending '.csv'; expected .jsonl or .json"),
        ("r.jsonl", "\n", "found an empty file"),
        ("r.jsonl", "{}\n[1]\n", "line 2: expected a JSON object, found list"),
        ("r.json", "{}", "found dict"),
    ],
)
def test_a_file_that_holds_no_rows(tmp_path, name, content, found):
    path = tmp_path / name
    path.write_text(content)
    message = refusal(path)
    assert message.startswith(str(path)) and found in message


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


def asked(text: str, mark: int = 0) -> dict:
    return {"prompt": [{"role": "user", "content": text}], "completions": ["a", "b"], "ranks": [0, 1], "mark": mark}


@settings(deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=80), st.floats(0.05, 0.95), st.integers(0, 3))
def test_no_prompt_stands_on_both_sides(numbers, fraction, seed):
    rows = [asked(f"question {number}", mark) for mark, number in enumerate(numbers)]
    try:
        train, held_out = split_by_prompt(rows, fraction, seed)
    except InputError as error:
        assert f"{len(rows):,} row" in str(error)
        return
    assert train and held_out
    texts = [{row["prompt"][0]["content"] for row in side} for side in (train, held_out)]
    assert not texts[0] & texts[1]
    assert sorted(row["mark"] for row in train + held_out) == list(range(len(rows)))
    # A prompt keeps its side when others are added.
    grown = split_by_prompt([*rows, asked("another"), asked("one more")], fraction, seed)
    assert [row for row in grown[1] if row in rows] == held_out


def test_split_holds_out_the_fraction_and_depends_on_the_seed():
    rows = [asked(str(number)) for number in range(2000)]
    held_out = [split_by_prompt(rows, 0.1, seed)[1] for seed in (0, 0, 1)]
    assert held_out[0] == held_out[1] != held_out[2]
    # 200 expected; the standard deviation is sqrt(2000 * 0.1 * 0.9) = 13.4, and 5 of them are allowed.
    assert all(133 <= len(side) <= 267 for side in held_out)


def test_split_refuses_an_empty_side():
    with pytest.raises(InputError, match="of 1 row; expected rows on both sides"):
        split_by_prompt([asked("only")], 0.1, 0)
    with pytest.raises(InputError, match=r"found 1\.5; expected a number between 0 and 1"):
        split_by_prompt([asked("only")], 1.5, 0)


@pytest.mark.parametrize(("name", "rows", "systems"), [("dpo_zh_500.jsonl", 500, 84), ("dpo_en_demo.json", 300, 80)])
def test_real_pairs(name, rows, systems, capsys):
    if not (DATA / name).exists():
        pytest.skip(f"the real data is absent: {DATA / name}")
    dataset = load_rankings(DATA / name)
    assert capsys.readouterr().out == f"{name}: {rows} rankings, {rows} pairs\n"
    assert sum(prompt[0]["role"] == "system" for prompt in dataset["prompt"]) == systems
    train, held_out = split_by_prompt(dataset, 0.1, 0)
    assert len(train) + len(held_out) == rows
    prompts = [{json.dumps(row["prompt"]) for row in side} for side in (train, held_out)]
    assert not prompts[0] & prompts[1]
