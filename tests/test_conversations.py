"""Conversations: from every common format on disk to messages; every problem is named, and no row is lost."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers.conversations import FAST, dialogues, gpt, human, messages, system, write
from helpers.data import BELLE, needs_data
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config

from data_prep.common.errors import InputError
from data_prep.models.loading import check_context
from data_prep.readers.conversation_formats import ALL_ROLES
from data_prep.readers.conversations import conversation_rows, load_conversations, read_conversations
from data_prep.rows.bad_rows import BadRows
from data_prep.train_tokenizer import train_tokenizer


def refusal(path, **policy) -> str:
    with pytest.raises(InputError) as caught:
        read_conversations(path, **policy)
    return str(caught.value)


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["the cat sat on the mat, the cat sat", "def f(x): return x + 10", "数据"] * 5, 300)


def test_roles_ids_system_and_trailing_turn(tmp_path):
    first = write(
        tmp_path,
        [
            {"id": "a", "conversations": [system(), human(" Hi\n"), gpt("Hello. ")]},
            {"id": 7, "conversations": [human("1"), gpt("2"), human("3")]},
            {"conversations": [{"from": "user", "value": "x"}, {"from": "assistant", "value": "y"}]},
        ],
    )
    second = write(tmp_path, [{"id": None, "conversations": [human("p"), gpt("q")]}], "more.json")
    rows, repaired = read_conversations([first, second])
    one, other = str(first), str(second)
    assert rows == [
        {"id": "a", "source": one, "row": 1, "messages": messages("system: Be brief.", " Hi\n", "Hello. ")},
        {"id": "7", "source": one, "row": 2, "messages": messages("1", "2")},
        {"id": "chat.json:3", "source": one, "row": 3, "messages": messages("x", "y")},
        {"id": "more.json:1", "source": other, "row": 1, "messages": messages("p", "q")},
    ]
    assert repaired == {"trailing human turn": 1}


@FAST
@given(st.lists(dialogues(), min_size=1, max_size=3), st.booleans())
def test_any_valid_messages_come_back_unchanged(tmp_path, conversations, trailing):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = []
    for number, conversation in enumerate(conversations):
        turns = [{"from": names[message["role"]], "value": message["content"]} for message in conversation]
        rows.append({"id": str(number), "conversations": turns + [human()] * trailing})
    read, repaired = read_conversations(write(tmp_path, rows))
    assert [row["messages"] for row in read] == conversations
    assert repaired == ({"trailing human turn": len(rows)} if trailing else {})


DEFECTIVE = {
    "not an object": ("hello", "found 'hello'"),
    "not an object (null)": (None, "found None"),
    "no known format": ({"id": "b", "text": "x"}, "(id 'b'), line 1: found keys ['id', 'text']"),
    "no known format (null)": ({"conversations": None}, "found keys ['conversations']; expected 'conversations', "),
    "no known format (half)": ({"instruction": "x"}, "found keys ['instruction']"),
    "two formats that contradict each other": (
        {"messages": messages("a", "b"), "prompt": "a", "completion": "c"},
        "found 'messages' and 'prompt and completion', which differ",
    ),
    "history not in pairs": ({"instruction": "x", "output": "y", "history": [["q"]]}, "found ['q'] under 'history'"),
    "input or reasoning that is not text": (
        {"instruction": "Sort", "input": [3, 1], "output": "[1, 3]"},
        "found [3, 1] under 'input'; expected a string below the instruction, or nothing",
    ),
    "input or reasoning that is not text (number)": (
        {"instruction": "Double", "input": 5, "output": "10"},
        "found 5 under 'input'",
    ),
    "input or reasoning that is not text (object, beside the same in turns)": (
        {"messages": messages("Sort", "a"), "instruction": "Sort", "input": {"b": 1}, "output": "a"},
        "found {'b': 1} under 'input'",
    ),
    "input or reasoning that is not text (steps)": (
        {"question": "Twice 2?", "answer": "4.", "cot": ["s1", "s2"]},
        "found ['s1', 's2'] under 'cot'; expected a string, the reasoning before the answer, or nothing",
    ),
    "turn that is not text": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}, *messages("", "b")[1:]]},
        "found 'image_url' at turn 1",
    ),
    "role that the chat template does not support": (
        {
            "conversations": [
                human(),
                {"from": "function_call", "value": '{"name": "f"}'},
                {"from": "tool", "value": "1"},
                gpt(),
            ]
        },
        "found turns of tool; expected system, user, assistant only",
    ),
    "wrong order (tool)": (
        {"conversations": [human(), {"from": "tool", "value": "1"}, gpt()]},
        "found tool at turn 2; expected gpt or function_call",
    ),
    "role alias": (
        {"conversations": [{"from": "Human ", "value": "a"}, gpt()]},
        "found 'Human ' under 'from' at turn 1",
    ),
    "turn is not an object": ({"conversations": [human(), "yes"]}, "found 'yes' at turn 2"),
    "unknown role": (
        {"conversations": [human(), {"from": "bot", "value": "x"}]},
        "found 'bot' under 'from' at turn 2",
    ),
    "unknown role (list)": ({"conversations": [{"from": ["human"], "value": "x"}]}, "found ['human'] under 'from'"),
    "unknown role (none)": ({"conversations": [{"value": "x"}]}, "found keys ['value'] at turn 1"),
    "empty turn": ({"conversations": [human(""), gpt()]}, "found '' at turn 1"),
    "empty turn (blank)": ({"conversations": [human(), gpt(" \n\u3000")]}, r"found ' \n\u3000' at turn 2"),
    "empty turn (null)": ({"conversations": [human(), gpt(None)]}, "found None at turn 2"),
    "turn that is not text (number)": (
        {"conversations": [human(), gpt(7)]},
        "found 7 at turn 2; expected a text: a string with more than blanks in it",
    ),
    "turn that is not text (the number of a choice)": (
        {"question": "2 + 2?", "choices": ["3", "4"], "answer": 1},
        "found 1 at turn 2; expected a text: ",
    ),
    "not Unicode": (
        {"conversations": [human(), gpt("ab\ud800")]},
        r"found '\ud800' (half a surrogate pair) at turn 2",
    ),
    "no assistant turn": ({"conversations": [human()]}, "found 1 turn, none of them gpt"),
    "no assistant turn (system)": ({"conversations": [system(), human()]}, "found 2 turns, none of them gpt"),
    "no assistant turn (empty)": ({"conversations": []}, "found 0 turns, none of them gpt"),
    "two turns of the same speaker in a row": (
        {"conversations": [human(), gpt(), gpt()]},
        "found gpt at turn 3 after gpt; expected human",
    ),
    "two turns of the same speaker in a row (human)": (
        {"conversations": [human(), gpt(), human(), human()]},
        "found human at turn 4 after human; expected gpt",
    ),
    "wrong order": ({"conversations": [gpt(), human(), gpt()]}, "found gpt at turn 1; expected human"),
    "wrong order (after system)": ({"conversations": [system(), gpt()]}, "found gpt at turn 2; expected human"),
    "wrong order (system)": ({"conversations": [human(), system(), gpt()]}, "found system at turn 2"),
}


@pytest.mark.parametrize("kind", DEFECTIVE)
def test_a_defective_row_is_named(tmp_path, kind):
    row, found = DEFECTIVE[kind]
    path = write(tmp_path, [{"conversations": [human(), gpt()]}, row])
    message = refusal(path)
    number = 2 if kind.startswith("role that") else 1  # function_call and tool
    assert message.startswith(f"{path}: 1 row cannot be used: {number} × {kind.split(' (')[0]}\n")
    assert "  row 2" in message and found in message
    assert "; expected " in message and message.endswith("run the same command again.")


def test_all_defects_of_all_files_come_in_one_error(tmp_path):
    bad = [{"id": f"r{number}", "conversations": [human(""), gpt(), gpt("")]} for number in range(1, 8)]
    first = write(tmp_path, bad)
    second = write(tmp_path, [{"conversations": [human(), gpt()]}, 3], "other.json")
    lines = refusal([first, second]).splitlines()
    assert lines[0] == f"{first}: 7 rows cannot be used: 14 × empty turn"
    assert lines[1] == "  row 1 (id 'r1'), line 1: found '' at turn 1; expected a string with more than blanks in it"
    assert len(lines) == 15 and lines[11] == "  and 2 rows more"
    assert lines[12] == f"{second}: 1 row cannot be used: 1 × not an object"
    assert lines[13].startswith("  row 2, line 1: found 3; expected ")


@pytest.mark.parametrize(
    ("content", "found"),
    [("{}", "found keys []"), ("[]", "1 × empty file"), ('[\n {"id": }]', "found line 2, column 9: Expecting value")],
)
def test_a_file_that_is_no_list_of_rows(tmp_path, content, found):
    path = tmp_path / "chat.json"
    path.write_text(content)
    message = refusal(path)
    assert message.startswith(str(path)) and found in message


def test_no_file():
    assert "no data file" in refusal([])
    assert "gone.json: no such file" in refusal("gone.json")


def test_load_prints_what_was_trimmed(tmp_path, capsys):
    rows = [{"id": "a", "conversations": [human("1"), gpt("2")]}, {"conversations": [human(), gpt(), human()]}]
    dataset = load_conversations(write(tmp_path, rows))
    assert capsys.readouterr().out == "chat.json: 2 conversations, 1 trailing human turn trimmed\n"
    assert dataset[:] == {
        "id": ["a", "chat.json:2"],
        "source": [f"{tmp_path}/chat.json"] * 2,
        "row": [1, 2],
        "messages": [messages("1", "2"), messages("How many?", "Seven.")],
    }
    load_conversations(str(write(tmp_path, rows[:1])))
    assert capsys.readouterr().out == "chat.json: 1 conversation\n"


# One and the same conversation in every format; "4." is the answer, "And 3?" / "6." the second exchange.
SAME = messages("Twice 2?", "4.", "And 3?", "6.")
FORMATS = {
    "Baichuan": {"conversations": [human("Twice 2?"), gpt("4."), human("And 3?"), gpt("6.")]},
    "ShareGPT": {"conversations": [{"from": "user", "value": "Twice 2?"}, {"from": "chatgpt", "value": "4."},
                                   {"from": "human", "value": "And 3?"}, {"from": "bing", "value": "6."}]},
    "OpenAI": {"messages": SAME},
    "OpenAI in parts": {"messages": [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"][:2]}, {"type": "text", "text": m["content"][2:]}]}
        for m in SAME]},
    "roles under conversations": {"conversations": SAME},
    "Alpaca": {"instruction": "And 3?", "input": "", "output": "6.", "history": [["Twice 2?", "4."]]},
    "prompt and completion": {"prompt": "And 3?", "completion": "6.", "history": [["Twice 2?", "4."]], "system": None},
    "messages in prompt and completion": {"prompt": SAME[:3], "completion": SAME[3:]},
    "prompt and response": {"prompt": SAME[:3], "response": "6."},
    "Belle": {"instruction": "Human:Twice 2?\nAssistant:4.\nHuman:And 3?\nAssistant:", "input": "", "output": "6."},
    "Guanaco": {"text": "### Human: Twice 2?### Assistant: 4.### Human: And 3?### Assistant: 6."},
    "Guanaco in lines": {"text": "### Human:Twice 2?\n\n### Assistant: 4.\n###Human: And 3?\n### Assistant: 6.\n"},
    "JSON text": {"messages": json.dumps(SAME)},
    "JSON text under conversations": {"conversations": json.dumps([human("Twice 2?"), gpt("4."), *SAME[2:]])},
    "one string": {"text": "Human: Twice 2?\n\nAssistant: 4.\n\nHuman: And 3?\n\nAssistant: 6."},
    "one string under conversations": {"conversations": "\n\nHuman：Twice 2?\nAssistant: 4.\nHuman: And 3?\nAssistant: 6."},
    "the same twice": {"messages": SAME, "conversations": [human("Twice 2?"), gpt("4."), human("And 3?"), gpt("6.")]},
    "prompt beside messages": {"prompt": "Twice 2?", "prompt_id": "f00", "messages": SAME},
}  # fmt: skip


def test_every_format_is_known_by_its_own_row(tmp_path):
    rows, repaired = read_conversations(write(tmp_path, list(FORMATS.values())))
    assert {name: row["messages"] for name, row in zip(FORMATS, rows, strict=True)} == dict.fromkeys(FORMATS, SAME)
    assert not repaired


def test_only_a_text_that_begins_with_hashes_is_parted_by_them(tmp_path):
    rows = [
        {"text": "Human: Which marks?\nAssistant: ### Human: and ### Assistant: they are."},
        {"text": "### Human: Which marks?### Assistant: These:\nHuman: and\nAssistant: they are."},
    ]
    read, _ = read_conversations(write(tmp_path, rows))
    assert [row["messages"] for row in read] == [
        messages("Which marks?", "### Human: and ### Assistant: they are."),
        messages("Which marks?", "These:\nHuman: and\nAssistant: they are."),
    ]


def test_alpaca_puts_the_input_below_the_instruction_and_the_system_text_first(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "You count."},
        {"instruction": "", "input": "Hi", "output": "Ho"},
        {"question": "Why?", "answer": "So."},
    ]
    read, _ = read_conversations(write(tmp_path, rows))
    assert [row["messages"] for row in read] == [
        messages("system: You count.", "Add.\n1, 2", "3"),
        messages("Hi", "Ho"),
        messages("Why?", "So."),
    ]


def test_tool_turns_are_kept_where_they_have_a_place(tmp_path):
    calls = [{"type": "function", "function": {"name": "twice", "arguments": '{"x": 2}'}}]
    turns = [
        {"role": "user", "content": "Twice 2?"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "4."},
    ]
    path = write(tmp_path, [{"messages": turns}])
    bad_rows = BadRows("error")
    (row,) = conversation_rows([str(path)], bad_rows, roles=ALL_ROLES)
    call = {"type": "function", "function": {"name": "twice", "arguments": {"x": 2}}}  # the arguments as an object
    assert row["messages"] == [turns[0], {"role": "assistant", "content": "", "tool_calls": [call]}, *turns[2:]]
    assert "2 × role that the chat template does not support" in refusal(path)


def test_columns_say_where_the_fields_are(tmp_path):
    path = write(tmp_path, [{"q": "a", "a": "b", "messages": "no list"}, {"q": "c", "a": "d", "id": 7}])
    rows, _ = read_conversations(path, columns="prompt=q,completion=a")
    assert [(row["id"], row["messages"]) for row in rows] == [
        ("chat.json:1", messages("a", "b")),
        ("7", messages("c", "d")),
    ]
    path = write(tmp_path, [{"dialogue": [human("a"), gpt("b")]}, {"dialog": []}])
    rows, _ = read_conversations(
        write(tmp_path, [{"dialogue": [human("a"), gpt("b")]}], "one.json"), columns="messages=dialogue"
    )
    assert rows[0]["messages"] == messages("a", "b")
    message = refusal(path, columns="messages=dialogue")
    assert "row 2, line 1: found keys ['dialog']; expected the column 'dialogue', which columns names" in message
    for wrong, found in (("messages", "'messages'"), ("a=", "'a='"), ("mesages=x", "the field 'mesages'"), ("", "''")):
        assert f"columns: found {found}" in refusal(path, columns=wrong)


def test_repair_repairs_what_is_certain_and_counts_it(tmp_path, capsys):
    text = """[
 {"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT ", "value": "b",},]},
 {"conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "c"}, {"from": "gpt", "value": "b"},
                    {"from": "human", "value": "d"}]},
]"""
    path = tmp_path / "chat.json"
    path.write_text(text, encoding="utf-8-sig")
    dataset = load_conversations(path, on_bad="repair")
    assert dataset["messages"][:] == [messages("a", "b"), messages("a\nc", "b")]
    assert capsys.readouterr().out == (
        "chat.json: 2 conversations, 1 trailing human turn trimmed, repaired: 2 × trailing comma, 2 × role alias, "
        "1 × byte order mark, 1 × two turns of the same speaker in a row\n"
    )
    assert "found a comma with nothing after it, line 2, column 83; expected no comma after the last one" in refusal(
        path
    )


def test_what_cannot_be_repaired_is_refused_under_repair(tmp_path):
    path = write(tmp_path, [{"conversations": [human(), human(), gpt("")]}, {"conversations": [human(), gpt()]}])
    assert "1 row cannot be used: 1 × empty turn\n" in refusal(path, on_bad="repair")
    assert "on_bad is 'mend'; expected error, repair, quarantine" in refusal(path, on_bad="mend")


def test_quarantine_keeps_bad_rows_unchanged(tmp_path, capsys):
    path, aside = tmp_path / "chat.jsonl", tmp_path / "out" / "quarantine.jsonl"
    lines = [
        json.dumps({"conversations": [human(), gpt()]}).encode(),
        b'{"conversations": [{"from": "human", "value": "caf\xe9"}',
        json.dumps({"id": "x", "conversations": [human(), gpt("")]}).encode(),
    ]
    path.write_bytes(b"\n".join(lines))
    assert len(load_conversations(path, on_bad="quarantine", quarantine=aside)) == 1
    assert capsys.readouterr().out == (
        f"chat.jsonl: 1 conversation; rows in 3 = rows out 1 + quarantined 2, which are in {aside}\n"
    )
    kept = [json.loads(line) for line in aside.read_text("ascii").splitlines()]
    assert [(row["file"], row["line"], row["row"]) for row in kept] == [(str(path), 2, 2), (str(path), 3, 3)]
    assert [[reason["kind"] for reason in row["reasons"]] for row in kept] == [
        ["broken JSON", "not UTF-8"],
        ["empty turn"],
    ]
    assert [row["raw"].encode("utf-8", "surrogateescape") for row in kept] == lines[1:]
    path.write_bytes(lines[1])
    assert "no conversation is left of 1 row" in refused_to_load(path, on_bad="quarantine", quarantine=aside)
    assert len(aside.read_text().splitlines()) == 1
    path.write_bytes(lines[0])  # fixed: the older quarantine would list rows that are now in
    load_conversations(path, on_bad="quarantine", quarantine=aside)
    assert capsys.readouterr().out.endswith("; rows in 1 = rows out 1 + quarantined 0\n") and not aside.exists()
    assert "there is no file for the bad rows" in refusal(path, on_bad="quarantine")


def refused_to_load(path, **policy) -> str:
    with pytest.raises(InputError) as caught:
        load_conversations(path, **policy)
    return str(caught.value)


KILLED = """
import os, signal, sys
from data_prep.readers.conversations import conversation_rows
from data_prep.rows.bad_rows import BadRows
bad_rows = BadRows("quarantine", sys.argv[2])
for row in conversation_rows([sys.argv[1]], bad_rows):
    if row["row"] == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
bad_rows.close()
"""


@pytest.mark.parametrize("moment", [2, 4998, 10_000])
def test_killed_at_any_moment_a_run_leaves_the_whole_quarantine_or_none(tmp_path, moment):
    rows = [
        {"conversations": [human(), gpt("Seven." * (number % 2))]} for number in range(5000)
    ]  # the odd ones are bad
    path, aside = write(tmp_path, rows), tmp_path / "quarantine.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, path, aside, str(moment)], cwd=Path(__file__).parents[1])
    if moment <= 5000:
        assert done.returncode == -signal.SIGKILL and not aside.exists()
    else:
        assert done.returncode == 0 and len(aside.read_text().splitlines()) == 2500


ENDING = """
import multiprocessing, os, sys, time
from data_prep.readers.conversations import load_conversations
from data_prep.common.errors import InputError, run_main

def main():
    dataset = load_conversations(sys.argv[1])
    mapped = dataset.map(lambda row: {"turns": len(row["messages"])}, num_proc=2)
    if sys.argv[2] == "forked":  # a child that ends does not take what its parent reads
        if child := os.fork():
            os.waitpid(child, 0)
        else:
            sys.exit()
    folder = os.path.dirname(dataset.cache_files[0]["filename"])
    print(folder, *sorted(name.partition("-")[0].partition("_")[0] for name in os.listdir(folder)), flush=True)
    if sys.argv[2] == "refused":
        raise InputError("no")
    if sys.argv[2] == "terminated":
        time.sleep(100)

if sys.argv[2] == "a child":
    child = multiprocessing.get_context("fork").Process(target=main)
    child.start()
    child.join()
else:
    run_main(main)
"""


@pytest.mark.parametrize(
    ("how", "code"), [("by itself", 0), ("refused", 1), ("terminated", 143), ("a child", 0), ("forked", 0)]
)
def test_a_process_leaves_nothing_in_the_temporary_folder(tmp_path, how, code):
    path = write(tmp_path, [{"conversations": [human(), gpt()]}] * 4)
    with tempfile.TemporaryDirectory() as temporary:  # a short name: multiprocessing puts sockets there
        process = subprocess.Popen(
            [sys.executable, "-c", ENDING, path, how],
            cwd=Path(__file__).parents[1], env={**os.environ, "TMPDIR": temporary}, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stdout.readline() == "chat.json: 4 conversations\n"
        folder, *files = process.stdout.readline().split()
        assert Path(folder).parent == Path(temporary) and files == ["cache", "cache", "data.arrow"]
        if how == "terminated":
            process.terminate()
        process.communicate()
        assert process.returncode == code and not list(Path(temporary).rglob("*"))


@needs_data
def test_belle_is_refused_for_the_five_rows_in_which_a_speaker_goes_on():
    message = refusal(BELLE)
    assert "5 rows cannot be used: 5 × two turns of the same speaker in a row\n" in message
    assert [int(number) for number in re.findall(r"  row (\d+) ", message)] == [74, 456, 489, 655, 791]
    assert "on_bad: repair can repair: two turns of the same speaker in a row." in message


@needs_data
def test_belle_is_read_whole_under_repair():
    rows, repaired = read_conversations(BELLE, on_bad="repair")
    assert len(rows) == 800 and repaired == {"two turns of the same speaker in a row": 5}
    source = json.loads(BELLE.read_text("utf-8"))[73]["conversations"]
    assert rows[73]["messages"][1]["content"] == source[1]["value"] + "\n" + source[2]["value"]


@needs_data
def test_belle_without_those_rows_is_read(tmp_path):
    rows = [row for n, row in enumerate(json.loads(BELLE.read_text("utf-8")), 1) if n not in (74, 456, 489, 655, 791)]
    read, repaired = read_conversations(write(tmp_path, rows))
    assert len(read) == 795 and not repaired
    for row, source in zip(read, rows, strict=True):
        assert row["id"] == source["id"]
        assert [message["content"] for message in row["messages"]] == [t["value"] for t in source["conversations"]]


def test_what_does_not_fit_the_checkpoint_is_refused(tokenizer):
    size = len(tokenizer)
    check_context(tokenizer, GPT2Config(vocab_size=size, n_positions=64), 64)
    check_context(tokenizer, GPT2Config(vocab_size=size + 60, n_positions=64), 1)
    with pytest.raises(InputError, match="max_length is 65, but the model has 64 positions"):
        check_context(tokenizer, GPT2Config(vocab_size=size, n_positions=64), 65)
    with pytest.raises(InputError, match=f"does not fit the checkpoint: it has {size} entries, the model {size - 1}"):
        check_context(tokenizer, GPT2Config(vocab_size=size - 1, n_positions=64), 64)
    bare = train_tokenizer(["a"], 262)
    bare.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        check_context(bare, GPT2Config(), 64)
