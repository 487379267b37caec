"""Conversations from files on disk to tokens and masks."""

import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import GPT2Config

from data_prep.conversations import (
    check_context,
    count_over_long,
    load_conversations,
    read_conversations,
    report_over_long,
)
from data_prep.files import InputError
from data_prep.train_tokenizer import SPECIAL_TOKENS, train_tokenizer

BELLE = Path(__file__).parents[2] / "shared" / "data" / "belle_chat_800.json"
needs_belle = pytest.mark.skipif(not BELLE.exists(), reason=f"the real data is absent: {BELLE}")
# Everything UTF-8 can write; blanks alone are no turn.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
# Texts that hold the special tokens' own spelling are the hard case for masks.
HARD_TEXTS = TEXTS | st.tuples(TEXTS, st.sampled_from(SPECIAL_TOKENS), TEXTS).map("".join)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def dialogues(draw, texts=TEXTS):
    """Messages of one valid conversation: perhaps a system turn, then user and assistant in turn, ending on one."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for question, answer in draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=4)):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def human(text="How many?"):
    return {"from": "human", "value": text}


def gpt(text="Seven."):
    return {"from": "gpt", "value": text}


def system(text="Be brief."):
    return {"from": "system", "value": text}


def write(folder: Path, rows, name="chat.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=True), encoding="utf-8")
    return path


def refusal(path) -> str:
    with pytest.raises(InputError) as caught:
        read_conversations(path)
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
    rows, counts = read_conversations([first, second])
    assert rows == [
        {
            "id": "a",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": " Hi\n"},
                {"role": "assistant", "content": "Hello. "},
            ],
        },
        {"id": "7", "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]},
        {"id": "chat.json:3", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
        {"id": "more.json:1", "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "q"}]},
    ]
    assert counts == {"conversations": 4, "trailing human turn trimmed": 1, "turns merged": 0}


@FAST
@given(st.lists(dialogues(), min_size=1, max_size=3), st.booleans())
def test_any_valid_messages_come_back_unchanged(tmp_path, conversations, trailing):
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    rows = []
    for number, messages in enumerate(conversations):
        turns = [{"from": names[message["role"]], "value": message["content"]} for message in messages]
        rows.append({"id": str(number), "conversations": turns + [human()] * trailing})
    read, counts = read_conversations(write(tmp_path, rows))
    assert [row["messages"] for row in read] == conversations
    assert counts == {
        "conversations": len(rows),
        "trailing human turn trimmed": len(rows) * trailing,
        "turns merged": 0,
    }


DEFECTIVE = {
    "not an object": ("hello", "found 'hello'"),
    "no 'conversations' list": ({"id": "b", "messages": []}, "(id 'b'): found keys ['id', 'messages']"),
    "no 'conversations' list (null)": ({"conversations": None}, "found None"),
    "turn is not an object": ({"conversations": [human(), "yes"]}, "found 'yes' at turn 2"),
    "unknown role": (
        {"conversations": [human(), {"from": "bot", "value": "x"}]},
        "found 'bot' under 'from' at turn 2",
    ),
    "unknown role (list)": ({"conversations": [{"from": ["human"], "value": "x"}]}, "found ['human'] under 'from'"),
    "unknown role (none)": ({"conversations": [{"value": "x"}]}, "found None under 'from' at turn 1"),
    "empty turn": ({"conversations": [human(""), gpt()]}, "found '' at turn 1"),
    "empty turn (blank)": ({"conversations": [human(), gpt(" \n\u3000")]}, r"found ' \n\u3000' at turn 2"),
    "empty turn (number)": ({"conversations": [human(), gpt(7)]}, "found 7 at turn 2"),
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
    "first turn not human": ({"conversations": [gpt(), human(), gpt()]}, "found gpt at turn 1; expected human"),
    "first turn not human (system)": ({"conversations": [system(), gpt()]}, "found gpt at turn 2; expected human"),
    "system turn not at the start": ({"conversations": [human(), system(), gpt()]}, "found system at turn 2"),
}


@pytest.mark.parametrize("kind", DEFECTIVE)
def test_a_defective_row_is_named(tmp_path, kind):
    row, found = DEFECTIVE[kind]
    path = write(tmp_path, [{"conversations": [human(), gpt()]}, row])
    message = refusal(path)
    assert message.startswith(f"{path}: 1 row cannot be used: 1 × {kind.split(' (')[0]}\n")
    assert "  row 2" in message and found in message
    assert "; expected " in message and message.endswith("run the same command again.")


def test_all_defects_of_all_files_come_in_one_error(tmp_path):
    bad = [{"id": f"r{number}", "conversations": [human(""), gpt(), gpt("")]} for number in range(1, 8)]
    first = write(tmp_path, bad)
    second = write(tmp_path, [{"conversations": [human(), gpt()]}, 3], "other.json")
    lines = refusal([first, second]).splitlines()
    assert lines[0] == f"{first}: 7 rows cannot be used: 14 × empty turn"
    assert lines[1] == "  row 1 (id 'r1'): found '' at turn 1; expected a string with more than blanks in it"
    assert len(lines) == 15 and lines[11] == "  and 2 rows more"
    assert lines[12] == f"{second}: 1 row cannot be used: 1 × not an object"
    assert lines[13].startswith("  row 2: found 3; expected ")


@pytest.mark.parametrize(
    ("content", "found"),
    [("{}", "found dict"), ("[]", "found an empty list"), ('[\n {"id": }]', "line 2, column 9: not JSON")],
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
    assert dataset.column_names == ["id", "messages"]
    assert dataset[0] == {
        "id": "a",
        "messages": [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}],
    }
    load_conversations(str(write(tmp_path, rows[:1])))
    assert capsys.readouterr().out == "chat.json: 1 conversation\n"


@needs_belle
def test_belle_is_refused_for_the_five_rows_in_which_a_speaker_goes_on():
    message = refusal(BELLE)
    assert "5 rows cannot be used: 5 × two turns of the same speaker in a row\n" in message
    assert [int(number) for number in re.findall(r"  row (\d+) ", message)] == [74, 456, 489, 655, 791]


@needs_belle
def test_belle_is_read_whole_under_repair():
    rows, counts = read_conversations(BELLE, on_bad="repair")
    assert counts == {"conversations": 800, "trailing human turn trimmed": 0, "turns merged": 5}
    source = json.loads(BELLE.read_text("utf-8"))[73]["conversations"]
    assert rows[73]["messages"][1]["content"] == source[1]["value"] + "\n" + source[2]["value"]


@needs_belle
def test_belle_without_those_rows_is_read(tmp_path):
    rows = [row for n, row in enumerate(json.loads(BELLE.read_text("utf-8")), 1) if n not in (74, 456, 489, 655, 791)]
    read, counts = read_conversations(write(tmp_path, rows))
    assert counts == {"conversations": 795, "trailing human turn trimmed": 0, "turns merged": 0}
    for row, source in zip(read, rows, strict=True):
        assert row["id"] == source["id"]
        assert [message["content"] for message in row["messages"]] == [t["value"] for t in source["conversations"]]


def by_pieces(tokenizer, messages) -> tuple[list[int], list[int]]:
    """Tokens and mask put together turn by turn, without the template: role, content, end of turn."""
    ids, mask = [], []
    for message in messages:
        content = tokenizer(message["content"])["input_ids"]
        ids += tokenizer.convert_tokens_to_ids([f"<|{message['role']}|>"]) + content
        ids += tokenizer.convert_tokens_to_ids(["<|end|>"])
        mask += [0] + [int(message["role"] == "assistant")] * (len(content) + 1)
    return ids, mask


@FAST
@given(dialogues(HARD_TEXTS))
def test_masks_cover_exactly_the_assistant_turns(tokenizer, messages):
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    ids, mask = by_pieces(tokenizer, messages)
    assert encoded["input_ids"] == ids
    assert encoded["assistant_masks"] == mask


@FAST
@given(dialogues(HARD_TEXTS))
def test_the_template_of_a_prefix_is_a_prefix(tokenizer, messages):
    whole = tokenizer.apply_chat_template(messages, tokenize=False)
    for end in range(1, len(messages)):
        asks = messages[end]["role"] == "assistant"
        prefix = tokenizer.apply_chat_template(messages[:end], tokenize=False, add_generation_prompt=asks)
        assert whole.startswith(prefix)
    assert whole.endswith("<|end|>")


@FAST
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_over_long_conversations_are_counted_and_reported(tokenizer, capsys):
    # Bytes are single tokens where nothing was merged: a turn of n such bytes takes n + 2 tokens.
    short = {"messages": [{"role": "user", "content": "Z"}, {"role": "assistant", "content": "Q"}]}
    long = {"messages": [{"role": "user", "content": "ZQZQ"}, {"role": "assistant", "content": "QZQ"}]}
    rows = [short, long, long]  # 6, 11 and 11 tokens
    assert count_over_long(rows, tokenizer, 8) == (2, 6)
    assert count_over_long(rows, tokenizer, 6) == (2, 10)
    assert count_over_long(rows, tokenizer, 5) == (3, 13)
    assert count_over_long(rows, tokenizer, 11) == (0, 0)
    report_over_long(rows, tokenizer, 8)
    report_over_long(rows[:2], tokenizer, 10)
    report_over_long(rows, tokenizer, 1024)
    assert capsys.readouterr().out.splitlines() == [
        "2 conversations are longer than max_length=8 tokens: training will not see the last 6 tokens of them",
        "1 conversation is longer than max_length=10 tokens: training will not see the last 1 token of them",
        "no conversation is longer than max_length=1,024 tokens",
    ]


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
