"""The doctor on what the recipes will do with long rows, and on rows that contradict each other; counted by hand."""

import json
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import check
from data_prep.checking.clashes import NONE, Clashes
from data_prep.checking.rows import OPPOSED, checked_rows
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import read_json, write_jsonl
from data_prep.readers.preferences import read_rankings

ALONE = "the only label of its prompt"
SAME_ID = "the same id on different rows"


def chat(question: str, answer: str, **fields) -> dict:
    return {**fields, "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


def pair(prompt: str, chosen: str, rejected: str, **fields) -> dict:
    return {**fields, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def labelled(prompt: str, completion: str, label) -> dict:
    return {"prompt": prompt, "completion": completion, "label": label}


@pytest.fixture
def report(tmp_path, monkeypatch, capsys):
    """report({name: rows}, *options) is (check.json, what was printed, on one line without blanks)."""

    def run(files: dict[str, list[dict]], *options) -> tuple[dict, str]:
        for name, rows in files.items():
            write_jsonl(tmp_path / name, rows)
        words = ["check", *(str(tmp_path / name) for name in files), *map(str, options)]
        monkeypatch.setattr(sys, "argv", [*words, "--output", str(tmp_path / "out")])
        run_main(check.main)
        return read_json(tmp_path / "out" / "report" / "check.json"), "".join(capsys.readouterr().out.split())

    return run


def findings(found: dict) -> dict[str, list[tuple[int, str]]]:
    """{kind: [(row, what was found), …]}; every one of them is kept."""
    assert all(each["treatment"] == "kept" for each in found["findings"])
    return {each["kind"]: [(first["row"], first["found"]) for first in each["first"]] for each in found["findings"]}


def test_what_the_recipes_do_with_long_rows_and_which_context_keeps_more(report, tiny_chat_tokenizer, tmp_path):
    tiny_chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    # A letter is a token, and four marks stand beside question and answer. The conversations have 8, 13, 20 and 55 tokens.
    rows = [chat("q", "a" * length) for length in (3, 8, 15, 50)]
    # 6 and 7 tokens; 6 and 13; 15, of them 13 before the answer.
    rows += [pair("q", "b", "cc"), pair("q", "b", "c" * 8), labelled("q" * 10, "b", True)]
    found, out = report({"rows.jsonl": rows}, "--tokenizer", tmp_path / "tokenizer", "--max_length", 12)
    keeps = [{"max_length": 16, "rows": 2}, {"max_length": 32, "rows": 3}, {"max_length": 64, "rows": 4}]
    assert found["context"] == {
        "max_length": 12,
        "conversations": {"rows": 4, "long": 3, "would_take": keeps},
        "preferences": {"rows": 3, "long": 2, "would_take": [{"max_length": 16, "rows": 3}]},
        "prompts": {"longest": 13, "without_room": 1},
    }
    # Conversations: 4 masked each; 4, 8, 8 and 8 learned; 1, 8 and 43 cut. The first pair: 2 × 4 masked, 2 + 3 learned.
    tokens = {"total": 96 + 13 + 19 + 15, "learned": 28 + 5, "masked": 16 + 8, "truncated": 52, "left_out": 19 + 15}
    assert {key: found["tokens"][key] for key in tokens} == tokens
    assert sum(tokens.values()) == 2 * tokens["total"]
    for sentence in (
        "beyond 12 tokens: 3 of 4 conversations, which recipes/sft.py truncates (or, by long, drops or splits); "
        "n_positions (and max_length) 16 would keep 50.0 % whole, 32 75.0 %, 64 100 %",
        "beyond 12 tokens: 2 of 3 preferences, by one answer or more: recipes/reward.py leaves such a ranking out, dpo.py "
        "its pairs with the answer, kto.py the answer; n_positions (and max_length) 16 would keep 100 % whole",
        "1 prompt leaves no room for an answer (the longest has 13 tokens): too long for recipes/ppo.py",
        "57 kept, of them 33 (23.1 %) to learn from and 24 (16.8 %) masked; 52 (36.4 %) truncated at 12 tokens, "
        "34 (23.8 %) left out with preferences",
    ):
        assert sentence.replace(" ", "") in out, sentence
    assert {kind: [row for row, _ in places] for kind, places in findings(found).items()} == {
        "over-long for the context": [2, 3, 4],
        "an answer over-long for the context": [6, 7],
        ALONE: [7],
    }


def test_rows_that_fit_are_said_to_and_a_prompt_leaves_the_rest_for_its_answer(report, tiny_chat_tokenizer, tmp_path):
    tiny_chat_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rows = [chat("abc", "d"), {"messages": [*chat("a", "b")["messages"], *chat("c", "d")["messages"]]}]
    found, out = report({"rows.jsonl": rows}, "--tokenizer", tmp_path / "tokenizer", "--max_length", 12)
    # 8 tokens; twice 6, of which the last answer, d and its end, are 2.
    assert found["context"]["conversations"] == {"rows": 2, "long": 0, "would_take": []}
    assert found["context"]["prompts"] == {"longest": 10, "without_room": 0}
    assert "beyond12tokens:noneof2conversations" in out
    assert "thelongestprompthas10tokens:2areleftforananswer" in out


def test_without_a_limit_nothing_is_said_about_the_context(report):
    assert report({"rows.jsonl": [chat("a", "b")]})[0]["context"] is None


def test_one_label_a_prompt_is_said_before_training_and_what_can_be_done(report, tmp_path):
    rows = [labelled("1", "good", True), labelled("2", "only good", True), labelled("1", "bad", False)]
    rows += [labelled("3", "same", True), labelled("3", "same", False), labelled("3", "other", "false")]
    rows += [{**chat("4", "thumb down"), "kto_tag": False}]
    found, out = report({"rows.jsonl": rows})
    places = findings(found)
    assert places[ALONE] == [
        (2, "good answers alone to this prompt"),
        (6, "bad answers alone to this prompt"),  # the other of this prompt has both labels, and counts for none
        (7, "bad answers alone to this prompt"),
    ]
    said = "expected answers of both labels to a prompt, or recipes/kto.py: reward.py and dpo.py leave this one out"
    assert said.replace(" ", "") in out
    # as the reader of rankings counts them
    assert read_rankings(tmp_path / "rows.jsonl")[1]["labelled answers whose prompt has only one label"] == 3


def test_an_id_on_two_different_rows_is_named_with_both_places(report, tmp_path):
    files = {
        "one.jsonl": [
            chat("a", "b", id=7),
            chat("c", "d", id="7"),
            chat("a", "b", id=7),
            chat("e", "f"),
            chat("g", "h"),
        ],
        "two.jsonl": [chat("other", "file", id=7), pair("p", "x", "y", id="p"), pair("p", "x", "z", id="p")],
    }
    found, _ = report(files)
    assert findings(found)[SAME_ID] == [(2, f"the id '7' of {tmp_path / 'one.jsonl'}:1, which is another row")]


def test_opposite_judgements_are_named_with_both_places(report, tmp_path):
    path = tmp_path / "rows.jsonl"
    ranks = {"prompt": "1", "completions": ["c", "a", "b"], "ranks": [0, 1, 2]}
    rows = [pair("1", "a", "b"), pair("2", "b", "a"), pair("1", "b", "a"), ranks, labelled("3", "x", True)]
    rows += [labelled("3", "x", False), labelled("3", "x", True)]
    found, _ = report({"rows.jsonl": rows})
    order = "an order of two answers, and the opposite at"
    assert findings(found)[OPPOSED] == [
        (3, f"{order} {path}:1"),
        (4, f"{order} {path}:3"),
        (6, f"the label False, and the opposite at {path}:5"),
        (7, f"the label True, and the opposite at {path}:6"),
    ]


def test_the_copy_of_a_near_duplicate_is_called_identical(report, tmp_path):
    text = " ".join(f"w{number}" for number in range(60))
    rows = [chat(f"Say {text}", "a"), chat(f"Say {text}", "b")]
    found, _ = report({"one.jsonl": rows, "two.jsonl": rows})
    places = findings(found)
    assert [row for row, _ in places["near-duplicate conversation"]] == [2]
    one = tmp_path / "one.jsonl"
    assert places["duplicate conversation"] == [(1, f"the turns of {one}:1 again"), (2, f"the turns of {one}:2 again")]


ROWS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("pq"), st.permutations("abc")).map(
            lambda each: {"prompt": each[0], "completions": each[1], "ranks": [0, 1, 1]}
        ),
        st.tuples(st.sampled_from("pq"), st.sampled_from("abc"), st.booleans()).map(lambda each: labelled(*each)),
    ),
    max_size=8,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_clashes_are_those_that_a_comparison_of_all_rows_finds(rows, tmp_path):
    path = tmp_path / "rows.jsonl"
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    clashes = Clashes()
    for checked in checked_rows([str(path)]) if rows else ():
        clashes.add(checked)

    def said(row: dict) -> set[tuple]:
        if "label" in row:
            return {(row["prompt"], row["completion"], row["label"])}
        return {(row["prompt"], row["completions"][0], worse) for worse in row["completions"][1:]}

    def opposite(vote: tuple) -> tuple:
        return (*vote[:2], not vote[2]) if isinstance(vote[2], bool) else (vote[0], vote[2], vote[1])

    found = clashes.earlier()
    for position, row in enumerate(rows):
        denied = {opposite(vote) for vote in said(row)}
        earlier = [number for number in range(position) if said(rows[number]) & denied]
        assert found[OPPOSED][position] == (earlier[0] if earlier else NONE)
    alone = int((found[ALONE] != NONE).sum())
    try:
        counts = read_rankings(path)[1] if rows else {}
    except InputError as error:
        counts = (
            {"labelled answers whose prompt has only one label": alone}
            if f"found {alone:,} labelled" in str(error)
            else {}
        )
    assert alone == counts.get("labelled answers whose prompt has only one label", 0)
