"""From conversations to tokens and labels: as the chat template has them, with nothing typed turned into control."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.chat_tokens import HARD_TEXTS, spells_out, trained
from helpers.conversations import FAST, dialogues, human, messages, system, write
from helpers.conversations import gpt as answer
from helpers.data import BELLE, needs_data
from hypothesis import given
from hypothesis import strategies as st
from transformers import AddedToken

from data_prep.common import arrow_dataset
from data_prep.common.errors import InputError
from data_prep.readers.conversation_formats import ALL_ROLES
from data_prep.tokens.chat_encoder import ChatEncoder, encode_prompts, labels
from data_prep.tokens.sft_dataset import load_tokenized
from data_prep.tokens.template_problems import template_roles
from data_prep.train_tokenizer import SPECIAL_TOKENS

# A template of another make: it trims, writes a system turn of its own, and no control token stands beside an answer.
TRIMMING = (
    "{%- if messages[0]['role'] != 'system' %}{{ 'Be good.\n\n' }}{% endif -%}"
    "{%- for message in messages -%}"
    "{{- message['role'] + ': ' -}}"
    "{%- if message['role'] == 'assistant' -%}{% generation %}{{ message['content'] | trim }}{{ eos_token }}"
    "{% endgeneration %}{%- else -%}{{ message['content'] | trim }}{%- endif -%}"
    "{{- '\n' -}}"
    "{%- endfor -%}"
)


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


@pytest.fixture(scope="module")
def trimming():
    tokenizer = trained()
    tokenizer.chat_template = TRIMMING
    return tokenizer


def encoded(tokenizer, *conversations) -> list[tuple[list[int], list[int]]]:
    """Ids and mask of each conversation, as lists."""
    encoder = ChatEncoder(tokenizer)
    return [(ids.tolist(), mask.astype(int).tolist()) for ids, mask in encoder.encode(encoder.render(conversations))]


def by_pieces(tokenizer, conversation) -> tuple[list[int], list[int]]:
    """Tokens and mask put together turn by turn, without the template: role, content, end of turn."""
    ids, mask = [], []
    for message in conversation:
        content = tokenizer(message["content"])["input_ids"]
        ids += tokenizer.convert_tokens_to_ids([f"<|{message['role']}|>"]) + content
        ids += tokenizer.convert_tokens_to_ids(["<|end|>"])
        mask += [0] + [int(message["role"] == "assistant")] * (len(content) + 1)
    return ids, mask


def test_the_picture_text_spans_mask_labels(tokenizer):
    """The example in the docstring of chat_encoder.py."""
    encoder = ChatEncoder(tokenizer)
    (rendered,) = encoder.render([messages("Hi", "Yo")])
    assert rendered.text == "<|user|>Hi<|end|><|assistant|>Yo<|end|>" and rendered.spans == [(30, 39)]
    ((ids, mask),) = encoder.encode([rendered])
    tokens = ["<|user|>", "H", "i", "<|end|>", "<|assistant|>", "Y", "o", "<|end|>"]
    assert [tokenizer.decode([token]) for token in ids] == tokens
    assert mask.tolist() == [False] * 5 + [True] * 3
    assert labels(ids, mask).tolist() == [-100] * 5 + tokenizer.convert_tokens_to_ids(["Y", "o", "<|end|>"])


def test_generation_stands_on_no_file_parser():
    for module in ("data_prep.tokens.chat_encoder", "data_prep.models.generation"):
        program = f"import sys, {module}; print(*(name for name in sys.modules if name.startswith('data_prep.')))"
        done = subprocess.run(
            [sys.executable, "-c", program], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
        )
        loaded = done.stdout.split()
        assert module in loaded
        assert not [name for name in loaded if name.split(".")[1] in ("rows", "readers")]


@FAST
@given(st.lists(dialogues().filter(lambda each: not spells_out(each)), min_size=1, max_size=3))
def test_tokens_and_masks_are_those_of_the_chat_template(tokenizer, trimming, conversations):
    for each in (tokenizer, trimming):
        whole = each.apply_chat_template(conversations, return_assistant_tokens_mask=True, return_dict=True)
        expected = list(zip(whole["input_ids"], whole["assistant_masks"], strict=True))
        assert encoded(each, *conversations) == expected
    assert encoded(tokenizer, *conversations) == [by_pieces(tokenizer, each) for each in conversations]


@FAST
@given(dialogues(HARD_TEXTS))
def test_tokens_are_those_of_a_sanitized_template(tokenizer, trimming, conversation):
    for each in (tokenizer, trimming):
        ((ids, mask),) = encoded(each, conversation)
        assert ids == each.apply_chat_template(conversation, sanitize_control_tokens=True)["input_ids"]
        assert len(mask) == len(ids)


@FAST
@given(dialogues(HARD_TEXTS))
def test_masks_cover_exactly_the_assistant_turns(tokenizer, conversation):
    ((ids, mask),) = encoded(tokenizer, conversation)
    special = set(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))
    # What was typed holds no control token: those that are there are the template's, two for every turn.
    assert [tokenizer.decode([token]) for token in ids if token in special] == [
        token for message in conversation for token in (f"<|{message['role']}|>", "<|end|>")
    ]
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(conversation, tokenize=False)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    turns, turn = [], []
    for token, counts in zip(ids, mask, strict=True):
        turn += [token] if counts else []
        if turn and token == end:
            turns, turn = [*turns, tokenizer.decode(turn)], []
    assert turns == [m["content"] + "<|end|>" for m in conversation if m["role"] == "assistant"] and not turn


def test_a_control_token_that_somebody_typed_is_ordinary_text(tokenizer):
    typed = messages("a<|endoftext|><|end|>", "<|user|>b")
    ((ids, mask),) = encoded(tokenizer, typed)
    special = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>", "<|assistant|>", "<|end|>"])
    assert [token for token in ids if token in tokenizer.all_special_ids] == special
    assert tokenizer.decode(ids) == "<|user|>a<|endoftext|><|end|><|end|><|assistant|><|user|>b<|end|>"
    assert tokenizer.decode([token for token, counts in zip(ids, mask, strict=True) if counts]) == "<|user|>b<|end|>"


def test_a_last_character_of_several_tokens_is_in_the_mask_whole():
    tokenizer = trained()
    tokenizer.chat_template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}|{% endfor %}"
    ((ids, mask),) = encoded(tokenizer, messages("é", "ü"))
    assert tokenizer.decode(ids) == "é|ü|"
    assert mask == [1, 1, 0, 1, 1, 0]  # each two bytes, neither of them merged


@FAST
@given(dialogues(HARD_TEXTS))
def test_the_template_of_a_prefix_is_a_prefix(tokenizer, conversation):
    whole = tokenizer.apply_chat_template(conversation, tokenize=False)
    for end in range(1, len(conversation)):
        asks = conversation[end]["role"] == "assistant"
        prefix = tokenizer.apply_chat_template(conversation[:end], tokenize=False, add_generation_prompt=asks)
        assert whole.startswith(prefix)
    assert whole.endswith("<|end|>")


@FAST
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@FAST
@given(st.lists(dialogues(HARD_TEXTS), min_size=1, max_size=3), st.sampled_from([".json", ".jsonl"]))
def test_any_messages_survive_from_the_file_to_the_tokens(tokenizer, tmp_path, conversations, ending):
    rows = [json.dumps({"messages": conversation}, ensure_ascii=False) for conversation in conversations]
    path = tmp_path / f"chat{ending}"
    text = "[" + ",\n".join(rows) + "]" if ending == ".json" else "\n".join(rows)
    path.write_text(text, encoding="utf-8")
    dataset = load_tokenized(path, tokenizer, None)
    assert dataset.column_names == ["id", "source", "row", "messages", "more", "input_ids", "labels"]
    assert dataset["messages"][:] == conversations
    for row, (ids, mask) in zip(dataset, encoded(tokenizer, *conversations), strict=True):
        assert row["input_ids"] == ids
        assert row["labels"] == [token if counts else -100 for token, counts in zip(ids, mask, strict=True)]
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(row["messages"], tokenize=False)


def test_the_file_has_few_batches_however_many_rows(tokenizer, tmp_path, monkeypatch):
    path = write(tmp_path, [{"messages": messages(f"Z{number}", "Q")} for number in range(600)])
    dataset = load_tokenized(path, tokenizer, None)  # 256 rows are encoded at once
    assert len(dataset.data.to_batches()) == 1 and dataset["row"][:] == list(range(1, 601))
    monkeypatch.setattr(arrow_dataset, "BLOCK", 1)
    apart = load_tokenized(path, tokenizer, None)
    assert [len(batch) for batch in apart.data.to_batches()] == [256, 256, 88] and apart[:] == dataset[:]


def test_without_assistant_only_every_token_enters_the_loss(tokenizer, tmp_path):
    path = write(tmp_path, [{"messages": messages("a", "b")}])
    row = load_tokenized(path, tokenizer, None, assistant_only=False)[0]
    assert row["labels"] == row["input_ids"] == tokenizer.apply_chat_template(messages("a", "b"))["input_ids"]


# Bytes are single tokens where nothing was merged: a turn of n such letters takes n + 2 tokens.
SHORT = {"conversations": [human("Z"), answer("Q")]}  # 3 + 3
LONG = {"conversations": [human("ZQZQ"), answer("QZQ")]}  # 6 + 5
SEVERAL = {
    "conversations": [system("Z"), human("Z"), answer("Q"), human("QQ"), answer("Z"), human("ZQZQZQZQ"), answer("Q")]
}
# system 3, exchanges of 3 + 3, 4 + 3 and 10 + 3: 29 tokens


def outcome(tokenizer, path, capsys, *arguments, **policy) -> tuple[list[str], list[int], str]:
    """What of the conversations is left as text, how many tokens each has, and the last line that was printed."""
    dataset = load_tokenized(path, tokenizer, *arguments, **policy)
    texts = [tokenizer.decode(row["input_ids"]).replace("<|end|>", "/") for row in dataset]
    return texts, [len(row["input_ids"]) for row in dataset], capsys.readouterr().out.splitlines()[-1]


def test_over_long_conversations_are_truncated_and_counted(tokenizer, tmp_path, capsys):
    path = write(tmp_path, [SHORT, LONG, LONG])
    cut = "<|user|>ZQZQ/<|assistant|>Q"
    assert outcome(tokenizer, path, capsys, 8) == (
        ["<|user|>Z/<|assistant|>Q/", cut, cut],
        [6, 8, 8],
        "2 conversations are longer than max_length=8 tokens: training will not see the last 6 tokens of them",
    )
    path = write(tmp_path, [SHORT, LONG])
    assert outcome(tokenizer, path, capsys, 10)[1:] == (
        [6, 10],
        "1 conversation is longer than max_length=10 tokens: training will not see the last 1 token of them",
    )
    assert outcome(tokenizer, path, capsys, 7)[1:] == (
        [6],
        "1 conversation is longer than max_length=7 tokens: training will not see the last 4 tokens of them; "
        "1 of those truncated has no answer left and is dropped",
    )
    assert outcome(tokenizer, path, capsys, 11)[1:] == ([6, 11], "no conversation is longer than max_length=11 tokens")
    assert outcome(tokenizer, path, capsys, None)[1:] == ([6, 11], "conversations may be of any length")


def test_over_long_conversations_are_dropped_and_counted(tokenizer, tmp_path, capsys):
    path = write(tmp_path, [LONG, SHORT, LONG])
    assert outcome(tokenizer, path, capsys, 8, long="drop")[1:] == (
        [6],
        "2 conversations are longer than max_length=8 tokens: dropped, with 22 tokens (long: drop)",
    )
    with pytest.raises(InputError, match="max_length=5, long=drop: no conversation is left"):
        load_tokenized(path, tokenizer, 5, long="drop")
    with pytest.raises(InputError, match="long is 'cut'; expected drop, truncate, split"):
        load_tokenized(path, tokenizer, 5, long="cut")


def test_over_long_conversations_are_split_at_turns_and_counted(tokenizer, tmp_path, capsys):
    path = write(tmp_path, [SEVERAL, SHORT])
    first, second = "<|user|>Z/<|assistant|>Q/", "<|user|>QQ/<|assistant|>Z/"
    third = "<|user|>ZQZQZQZQ/<|assistant|>Q/"
    assert outcome(tokenizer, path, capsys, 16, long="split") == (
        [f"<|system|>Z/{first}{second}", f"<|system|>Z/{third}", first],
        [16, 16, 6],
        "1 conversation is longer than max_length=16 tokens: split at turns into 2 (long: split)",
    )
    assert outcome(tokenizer, path, capsys, 15, long="split") == (
        [f"<|system|>Z/{first}", f"<|system|>Z/{second}", f"<|system|>Z/{third[:-1]}", first],
        [9, 10, 15, 6],
        "1 conversation is longer than max_length=15 tokens: split at turns into 3 (long: split); of them 1 are still "
        "longer, an exchange each: training will not see the last 1 token of them",
    )
    dataset = load_tokenized(path, tokenizer, 15, long="split")
    assert dataset["row"][:] == [1, 1, 1, 2] and dataset["messages"][1] == messages("system: Z", "QQ", "Z")


@FAST
@given(dialogues(HARD_TEXTS), st.integers(8, 60))
def test_what_is_split_is_whole_turns_of_the_conversation(tokenizer, tmp_path, conversation, max_length):
    path = write(tmp_path, [{"messages": conversation}])
    try:
        pieces = load_tokenized(path, tokenizer, max_length, long="split")
    except InputError:  # nothing but questions that fill the whole length
        return
    system_turn = [message for message in conversation if message["role"] == "system"]
    joined = []
    for piece in pieces:
        assert len(piece["input_ids"]) <= max_length and set(piece["labels"]) != {-100}
        assert piece["messages"][: len(system_turn)] == system_turn
        turns = piece["messages"][len(system_turn) :]
        assert turns[0]["role"] == "user" and turns[-1]["role"] == "assistant"
        joined += turns
    remaining = iter(conversation)
    assert all(turn in remaining for turn in joined)  # in order, none twice


def test_typed_control_tokens_are_counted(tokenizer, tmp_path, capsys):
    rows = [{"messages": messages("a<|end|><|end|>", "<|pad|>")}, {"messages": messages("a", "b")}]
    load_tokenized(write(tmp_path, rows), tokenizer, None)
    counted = "encoded as ordinary text: <|end|> 2 times, <|pad|> 1 times\n"
    assert f"special tokens typed in turns are {counted}" in capsys.readouterr().out


def test_tokens_of_roles_that_are_not_special_stay_text_where_somebody_types_them(tmp_path, capsys):
    other, roles = trained(), ["<｜User｜>", "<｜Assistant｜>"]  # DeepSeek's: ordinary added tokens
    other.add_tokens([AddedToken(each, normalized=False) for each in (*roles, "<think>", "</think>", "\n\n")])
    other.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% else %}{{ '<｜Assistant｜>' }}"
        "{% generation %}{{ m.content + '<|end|>' }}{% endgeneration %}{{ '\n\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<｜Assistant｜><think>' }}{% endif %}"
    )
    user, assistant, think, closed, breaks, end = other.convert_tokens_to_ids(
        [*roles, "<think>", "</think>", "\n\n", "<|end|>"]
    )
    # The letters of a typed token, as the tokenizer without added tokens has them.
    typed = [token for part in ("<", "｜User｜>") for token in trained()(part)["input_ids"]]
    assert trained().decode(typed) == roles[0] and user not in typed
    (prompt,) = encode_prompts(other, [messages(f"a{roles[0]}<think>")])
    assert prompt[0] == user and prompt[-3:] == [think, assistant, think] and prompt.count(user) == 1
    assert other.decode(prompt) == f"{roles[0]}a{roles[0]}<think>{roles[1]}<think>"
    path = write(tmp_path, [{"messages": messages(f"a{roles[1]}", f"<think>b</think>{roles[0]}\n\n")}])
    (row,) = load_tokenized(path, other, None)
    ids = row["input_ids"]
    assert (ids.count(user), ids.count(assistant), ids.count(think), ids.count(closed)) == (1, 1, 1, 1)
    assert ids[-3:] == [breaks, end, breaks]
    learned = [label for label in row["labels"] if label != -100]
    assert other.decode(learned) == f"<think>b</think>{roles[0]}\n\n<|end|>" and learned == ids[-len(learned) - 1 : -1]
    counted = "ordinary text: <｜Assistant｜> 1 times, <｜User｜> 1 times\n"
    assert f"special tokens typed in turns are encoded as {counted}" in capsys.readouterr().out


def test_the_roles_that_a_template_has_a_place_for(tokenizer):
    assert set(template_roles(tokenizer)) == set(ALL_ROLES)
    other = trained()
    other.chat_template = TRIMMING
    assert template_roles(other) == ("system", "user", "assistant", "tool", "reasoning_content")
    other.chat_template = (
        "{{ raise_exception('no system') if messages[0]['role'] == 'system' }}{{ messages[0].content }}"
    )
    assert template_roles(other) == ("user", "reasoning_content")


def test_tool_turns_go_where_the_template_has_a_place_for_them(tokenizer, trimming, tmp_path):
    turns = [human("Z"), answer("f()"), {"from": "observation", "value": "o"}, answer("Q")]
    path = write(tmp_path, [{"conversations": turns}, SHORT])
    (row, _) = load_tokenized(path, trimming, None)
    text = "Be good.\n\nuser: Z\nassistant: f()<|endoftext|>\ntool: o\nassistant: Q<|endoftext|>\n"
    assert trimming.decode(row["input_ids"]) == text
    other = trained()  # an older one of this project
    other.chat_template = tokenizer.chat_template.replace("== 'tool'", "== 'a tool'")
    with pytest.raises(InputError, match="1 × role that the chat template does not support"):
        load_tokenized(path, other, None)
    aside = tmp_path / "quarantine.jsonl"
    assert len(load_tokenized(path, other, None, on_bad="quarantine", quarantine=aside)) == 1


def test_a_template_without_marks(tmp_path):
    from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

    path, tokenizer = write(tmp_path, [SHORT]), trained()
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    with pytest.raises(InputError, match="expected these marks, or assistant_only_loss: false"):
        load_tokenized(path, tokenizer, None)
    tokenizer.chat_template = qwen2_5_chat_template  # TRL has the same one with marks
    row = load_tokenized(path, tokenizer, None)[0]
    whole = tokenizer.apply_chat_template(
        messages("Z", "Q"), chat_template=get_training_chat_template(tokenizer),
        return_assistant_tokens_mask=True, return_dict=True,
    )  # fmt: skip
    assert row["input_ids"] == whole["input_ids"]
    # Its marks begin at the line break behind "assistant", which the prompt ends with.
    marks = whole["assistant_masks"]
    first = marks.index(1)
    assert tokenizer.decode(whole["input_ids"][first]) == "\n"
    assert [label != -100 for label in row["labels"]] == [False] * (first + 1) + [
        each == 1 for each in marks[first + 1 :]
    ]
    learned = [label for label in row["labels"] if label != -100]
    assert tokenizer.decode(learned) == "Q<|im_end|>\n"


def test_what_the_prompt_ends_with_is_not_learned_though_marks_enclose_it(tmp_path):
    """As in gpt-oss, whose marks begin at <|start|>assistant; an answer that repeats it keeps its own."""
    tokenizer = trained()
    tokenizer.chat_template = (
        "{%- for message in messages -%}{%- if message['role'] == 'assistant' -%}{%- generation -%}"
        "{{- '<|assistant|>to: ' + message['content'] + '<|end|>' -}}{%- endgeneration -%}"
        "{%- else -%}{{- '<|user|>' + message['content'] + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<|assistant|>to:' -}}{%- endif -%}"
    )
    turns = [human("Z"), answer("to: Q"), human("X"), answer("Y")]
    row = load_tokenized(write(tmp_path, [{"conversations": turns}]), tokenizer, None)[0]
    assert tokenizer.decode(row["input_ids"]) == (
        "<|user|>Z<|end|><|assistant|>to: to: Q<|end|><|user|>X<|end|><|assistant|>to: Y<|end|>"
    )
    assert tokenizer.decode([label for label in row["labels"] if label != -100]) == " to: Q<|end|> Y<|end|>"


@needs_data
def test_belle_has_the_tokens_and_masks_of_the_template(tokenizer, capsys):
    dataset = load_tokenized(BELLE, tokenizer, 1024, on_bad="repair")
    for row in dataset.select(range(0, 800, 40)):
        whole = tokenizer.apply_chat_template(row["messages"], return_assistant_tokens_mask=True, return_dict=True)
        ids, mask = whole["input_ids"][:1024], whole["assistant_masks"][:1024]
        assert row["input_ids"] == ids
        assert row["labels"] == [token if counts else -100 for token, counts in zip(ids, mask, strict=True)]
