"""What a row holds beside its turns: a system text is used, media set the row aside, all else is counted by name."""

import json
import sys

import pytest
from helpers.chat_tokens import trained
from helpers.conversations import gpt, human, messages, system, write
from helpers.recipes import EXACT, again, succeeded

from data_prep import check
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import read_json, read_jsonl
from data_prep.common.reasoning import DONE
from data_prep.readers.conversations import read_conversations
from data_prep.readers.preferences import load_rankings, read_rankings
from data_prep.readers.prompts import load_prompts
from data_prep.tokens.sft_dataset import load_tokenized

SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def refusal(read, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        read(*arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    "row",
    [
        {"conversations": [human("a"), gpt("b")], "system": "Be brief."},
        {"messages": messages("a", "b"), "system": "Be brief."},
        {"text": "Human: a\nAssistant: b", "system": "Be brief."},
        {"messages": messages("system: Be brief.", "a", "b"), "system": "Be brief."},
        {"messages": messages("system: Be brief.", "a", "b"), "system": ""},
        {"prompt": messages("system: Be brief.", "a"), "completion": "b", "system": "Be brief."},
    ],
)
def test_the_system_text_of_a_row_is_its_first_turn(tmp_path, row):
    (read,), _ = read_conversations(write(tmp_path, [row]))
    assert read["messages"] == messages("system: Be brief.", "a", "b")


def test_two_system_texts_that_differ_are_a_problem(tmp_path):
    path = write(tmp_path, [{"conversations": [system("Be long."), human("a"), gpt("b")], "system": "Be brief."}])
    message = refusal(read_conversations, path)
    assert "1 × two system turns that differ\n" in message
    assert "found 'Be brief.' under 'system' and 'Be long.' as the first turn; expected one system turn, or" in message
    path = write(tmp_path, [{"conversations": [human("a"), gpt("b")], "system": 7}])
    assert "found 7 at 'system'; expected a text" in refusal(read_conversations, path)


@pytest.mark.parametrize(
    "row",
    [
        {**PAIR, "system": "Be brief."},
        {"conversations": [human("Q")], "chosen": gpt("a"), "rejected": gpt("b"), "system": "Be brief."},
        {**PAIR, "prompt": [SYSTEM, *messages("Q")], "system": "Be brief."},
        {"chosen": messages("Q", "a"), "rejected": messages("Q", "b"), "system": "Be brief."},
        {"chosen": messages("system: Be brief.", "Q", "a"), "rejected": messages("system: Be brief.", "Q", "b"), "system": "Be brief."},
    ],
)  # fmt: skip
def test_the_system_text_beside_preferences_is_the_first_turn_of_their_prompt(tmp_path, row):
    (ranking,), _ = read_rankings(write(tmp_path, [row]))
    assert ranking["prompt"] == messages("system: Be brief.", "Q") and ranking["completions"] == ["a", "b"]


def test_two_system_texts_beside_preferences_that_differ_are_a_problem(tmp_path):
    for row in (
        {**PAIR, "prompt": [SYSTEM, *messages("Q")], "system": "Be long."},
        {"chosen": [SYSTEM, *messages("Q", "a")], "rejected": [SYSTEM, *messages("Q", "b")], "system": "Be long."},
    ):
        assert "1 × two system turns that differ\n" in refusal(read_rankings, write(tmp_path, [row]))


# LLaMA-Factory's, OpenAI's (weight) and others'; of id, empty fields and bookkeeping nothing is said.
ROWS = [
    {"id": 1, "messages": messages("a", "b"), "context": "c", "source": "x", "images": [], "category": None},
    {"messages": messages("c", "d"), "context": "d", "input": "e", "system": "Be brief.", "weight": 0.5},
    {"instruction": "e", "input": "f", "output": "g", "text": "efg"},
    {"messages": [{"role": "user", "content": "h"}, {"role": "assistant", "content": "i", "weight": 0, "name": ""}]},
]
UNREAD = "fields not read: context (2 rows), input (1 row), text (1 row), weight (1 row), weight in turns (1 row)"


def test_fields_that_nobody_reads_are_counted(tmp_path, capsys):
    path = write(tmp_path, ROWS)
    load_tokenized(path, trained(), None)
    assert capsys.readouterr().out.splitlines()[:2] == ["chat.json: 4 conversations", UNREAD]
    load_prompts(path)
    assert UNREAD in capsys.readouterr().out.splitlines()
    read_conversations(path)
    own = write(tmp_path, ROWS[:1], "one.json")
    load_tokenized(own, trained(), None, columns="messages=messages,system=context")
    assert "fields not read" not in capsys.readouterr().out
    load_tokenized(own, trained(), None, columns="messages=messages")
    assert "fields not read: context (1 row)\n" in capsys.readouterr().out


def test_a_column_whose_name_is_no_text_is_named_all_the_same(tmp_path, monkeypatch, capsys):
    """A name with a byte that is no UTF-8 can be neither printed nor written as it stands."""
    (tmp_path / "rows.csv").write_bytes(b"prompt,chosen,rejected,m\xe1rgin\nWhich?,this,that,1.5\n")
    monkeypatch.setattr(sys, "argv", ["check", str(tmp_path / "rows.csv"), "--output", str(tmp_path / "out")])
    check.main()
    assert "not read: m\\udce1rgin (1 row)" in capsys.readouterr().out


def test_fields_of_preferences_that_nobody_reads_are_counted(tmp_path, capsys):
    answer = {"role": "assistant", "content": "a", "reasoning_content": "Hm."}
    rows = [
        {**PAIR, "tools": "[1]", "subset": "chat", "prompt_id": "x"},
        {**PAIR, "prompt": "R", "chosen": [answer], "subset": "code"},
    ]
    path = write(tmp_path, rows)
    said = "fields not read: subset (2 rows), reasoning_content in turns (1 row), tools (1 row)"
    for read in (load_rankings, read_rankings, load_prompts):
        read(path)
        assert said in capsys.readouterr().out.splitlines()


def test_an_input_without_an_instruction_and_reasoning_without_a_place_are_counted(tmp_path, capsys):
    question = {"question": "Q", "chosen": "a", "rejected": "b", "input": "x"}
    load_rankings(write(tmp_path, [{**PAIR, "input": "x"}, question, {**PAIR, "input": "", "margin": 1}]))
    assert "fields not read: input (2 rows)" in capsys.readouterr().out.splitlines()
    load_rankings(write(tmp_path, [{"instruction": "Q", "input": "x", "chosen": "a", "rejected": "b"}]))
    load_rankings(write(tmp_path, [question]), columns="question=question,chosen=chosen,rejected=rejected,input=input")
    assert capsys.readouterr().out.count("fields not read") == 1
    answer = {"question": "Q", "answer": "a", "cot": "Hm."}
    load_prompts(write(tmp_path, [{**answer, "label": True}]))
    assert "fields not read: cot (1 row)" in capsys.readouterr().out.splitlines()
    alpaca = {"instruction": messages("Q"), "input": "x", "output": "a"}
    reasoned = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "a", "reasoning": ["s1", "s2"]}]
    rows = [alpaca, {**answer, "answer": messages("Q", "a")[1:], "reasoning": 5}, {"messages": reasoned}]
    load_tokenized(write(tmp_path, rows), trained(), None)
    said = "fields not read: cot (1 row), input (1 row), reasoning (1 row), reasoning in turns (1 row)"
    assert said in capsys.readouterr().out.splitlines()
    load_tokenized(
        write(tmp_path, rows[:1]), trained(), None, columns="instruction=instruction,output=output,input=input"
    )
    assert "fields not read: input (1 row)" in capsys.readouterr().out.splitlines()


MEDIA = [
    ({"images": ["a.png"]}, "found ['a.png'] under 'images'"),
    ({"image": "a.png"}, "found 'a.png' under 'image'"),
    ({"audios": ["a.wav"]}, "found ['a.wav'] under 'audios'"),
    ({"videos": ["a.mp4"]}, "found ['a.mp4'] under 'videos'"),
]


@pytest.mark.parametrize(("field", "found"), MEDIA)
def test_rows_with_media_are_set_aside(tmp_path, capsys, field, found):
    sound, aside = {"messages": messages("a", "b"), "images": [], "videos": None}, tmp_path / "quarantine.jsonl"
    path = write(tmp_path, [sound, {"messages": messages("<image>What?", "A cat."), **field}])
    message = refusal(load_tokenized, path, trained(), None)
    assert "1 × images, audio or video\n" in message and f"{found}; expected text alone" in message
    dataset = load_tokenized(path, trained(), None, on_bad="quarantine", quarantine=aside)
    assert dataset["messages"][:] == [messages("a", "b")] and len(list(read_jsonl(aside))) == 1
    assert "not read" not in capsys.readouterr().out
    path = write(tmp_path, [PAIR, {**PAIR, **field}])
    for read in (load_rankings, load_prompts):
        assert f"{found}; expected text alone" in refusal(read, path)


def test_parts_of_a_turn_that_are_text_are_joined_and_others_set_the_row_aside(tmp_path):
    parts = [{"type": "text", "value": "Twice "}, {"type": "text", "text": "2?"}]
    said = [
        {"role": "user", "content": parts, "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "text", "value": "4."}]},
    ]
    (read,), _ = read_conversations(write(tmp_path, [{"messages": said}]))
    assert read["messages"] == messages("Twice 2?", "4.")
    said[0]["content"] = [*parts, {"type": "image", "value": "a.png"}]
    message = refusal(read_conversations, write(tmp_path, [{"messages": said}]))
    assert "1 × turn that is not text\n" in message and "found 'image' at turn 1; expected text alone" in message


def checked(monkeypatch, capsys, *arguments) -> str:
    monkeypatch.setattr(sys, "argv", ["check", *map(str, arguments)])
    capsys.readouterr()
    run_main(check.main)
    return " ".join(capsys.readouterr().out.split())


def test_the_validator_counts_what_is_not_read(tmp_path, monkeypatch, capsys):
    rows = [*ROWS, {**PAIR, "subset": "chat"}, {"messages": messages("x", "y"), "images": ["a.png"], "context": "c"}]
    out = checked(monkeypatch, capsys, write(tmp_path, rows), "--output", tmp_path / "out")
    report = read_json(tmp_path / "out" / "report" / "check.json")
    expected = {"context": 2, "input": 1, "text": 1, "weight": 1, "weight in turns": 1, "subset": 1}
    assert report["fields_not_read"] == expected and report["reasoning"] == {
        "policy": "keep",
        "turns": 0,
        "left_out": 0,
    }
    assert "not read: context (2 rows), input (1 row), subset (1 row), text (1 row), weight (1 row), weight in" in out
    assert [(each["kind"], each["rows"]) for each in report["findings"]] == [("images, audio or video", 1)]
    assert (
        report["rows"]["quarantined"] == 1
        and "context (2 rows)" in (tmp_path / "out" / "report" / "check.html").read_text()
    )


TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
WITH_TOOLS = {"conversations": [
    human("2+2?"), {"from": "function_call", "value": '<think>Hm.</think>{"name": "add", "arguments": {"a": 2}}'},
    {"from": "observation", "value": "4"}, gpt("<think>Good.</think>Four.")], "tools": json.dumps([TOOL])}  # fmt: skip


@pytest.mark.parametrize("reasoning", ["keep", "mask", "drop"])
def test_the_validator_reads_tools_and_reasoning_as_training_does(
    tmp_path, tiny_chat_tokenizer, monkeypatch, capsys, reasoning
):
    path, folder = write(tmp_path, [WITH_TOOLS]), tmp_path / "tokenizer"
    tiny_chat_tokenizer.save_pretrained(folder)
    arguments = ["--tokenizer", folder, "--reasoning", reasoning]
    out = checked(monkeypatch, capsys, path, *arguments, "--output", tmp_path / "out")
    assert f"reasoning 2 turns {DONE[reasoning]}" in out
    report = read_json(tmp_path / "out" / "report" / "check.json")
    (row,) = load_tokenized(path, tiny_chat_tokenizer, None, reasoning=reasoning)
    tokens, labels = report["tokens"], [label for label in row["labels"] if label != -100]
    assert (tokens["total"], tokens["learned"]) == (len(row["input_ids"]), len(labels)) and report["findings"] == []
    # What it writes gives the same tokens again: tools and calls are in it.
    written = tmp_path / "out" / "conversations.jsonl"
    (read,) = read_jsonl(written)
    assert read["tools"] == [TOOL] and read["messages"][1]["tool_calls"] == [CALL]
    (second,) = load_tokenized(written, tiny_chat_tokenizer, None, reasoning=reasoning)
    assert (second["input_ids"], second["labels"]) == (row["input_ids"], row["labels"])


def test_fine_tuning_on_calls_with_their_reasoning_masked(tmp_path, tiny_model_dir):
    path = write(tmp_path, [WITH_TOOLS, {"messages": messages("a", "b")}] * 4)
    given = {**EXACT, "model_name_or_path": tiny_model_dir, "conversations": path, "long": "drop", "max_length": 64}
    given |= {"max_steps": 1, "max_new_tokens": 4, "assistant_only_loss": True, "output_dir": tmp_path / "sft"}
    done = succeeded(again("sft", **given, reasoning="mask"))
    assert "reasoning: 8 turns masked: in the tokens, not in the loss\n" in done.out
    assert "fields not read" not in done.out and "of 4 answers" in done.out
