"""Reasoning before an answer: kept, dropped or masked, and counted."""

import pytest
from helpers.chat_tokens import HARD_TEXTS, trained
from helpers.conversations import FAST, dialogues, gpt, human, messages, write
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.tokens.sft_dataset import load_tokenized, messages_of

# As Qwen3's and DeepSeek's: it knows the field, and the reasoning of all turns but the last is left out.
FORGETTING = (
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.reasoning_content and loop.last %}{{ '<think>' + m.reasoning_content + '</think>' }}{% endif %}"
    "{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
IN_TEXT = {"conversations": [human("Why?"), gpt("<think>\nHm.\n</think>\n\nSo."), human("And?"), gpt("Thus.")]}
IN_A_FIELD = {"messages": [
    {"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So.", "reasoning_content": "Hm."},
    *messages("And?", "Thus."),
]}  # fmt: skip
IN_PARTS = {"messages": [
    {"role": "user", "content": "Why?"},
    {"role": "assistant", "content": [{"type": "reasoning", "value": "Hm."}, {"type": "text", "value": "So."}]},
    *messages("And?", "Thus."),
]}  # fmt: skip
START, END = "<|user|>Why?<|end|><|assistant|>", "So.<|end|><|user|>And?<|end|><|assistant|>Thus.<|end|>"
BLOCK = "<think>\nHm.\n</think>\n\n"


@pytest.fixture(scope="module")
def tokenizer():
    return trained()


def text_and_learned(tokenizer, row: dict) -> tuple[str, str]:
    learned = [token for token in row["labels"] if token != -100]
    return tokenizer.decode(row["input_ids"]), tokenizer.decode(learned)


@pytest.mark.parametrize("shape", [IN_TEXT, IN_A_FIELD, IN_PARTS], ids=["text", "field", "parts"])
@pytest.mark.parametrize(
    ("reasoning", "text", "learned", "said"),
    [
        ("keep", START + BLOCK + END, f"{BLOCK}So.<|end|>Thus.<|end|>", "1 turn kept"),
        ("drop", START + END, "So.<|end|>Thus.<|end|>", "1 turn dropped"),
        ("mask", START + BLOCK + END, "So.<|end|>Thus.<|end|>", "1 turn masked: in the tokens, not in the loss"),
    ],
)
def test_reasoning_is_kept_dropped_or_masked(tokenizer, tmp_path, capsys, shape, reasoning, text, learned, said):
    (row,) = load_tokenized(write(tmp_path, [shape]), tokenizer, None, reasoning=reasoning)
    assert text_and_learned(tokenizer, row) == (text, learned)
    out = capsys.readouterr().out.splitlines()
    assert out[1] == f"reasoning: {said}" and "not read" not in out[0] + out[2]
    kept = [message.get("reasoning_content") for message in messages_of(row)]
    assert kept == [None, "Hm." if reasoning != "drop" and shape is not IN_TEXT else None, None, None]


@FAST
@given(dialogues(HARD_TEXTS), st.data())
def test_what_is_masked_is_the_reasoning_alone(tokenizer, tmp_path, conversation, data):
    reasons = [data.draw(st.none() | HARD_TEXTS) if each["role"] == "assistant" else None for each in conversation]
    turns = [{**m, **({"reasoning_content": r} if r else {})} for m, r in zip(conversation, reasons, strict=True)]
    path = write(tmp_path, [{"messages": turns}])
    kept, masked, dropped = (load_tokenized(path, tokenizer, None, reasoning=r)[0] for r in ("keep", "mask", "drop"))
    assert kept["input_ids"] == masked["input_ids"]
    answers = [each["content"] for each in conversation if each["role"] == "assistant"]
    assert text_and_learned(tokenizer, dropped)[1] == "".join(f"{answer}<|end|>" for answer in answers)
    blocks = [
        f"<think>\n{r}\n</think>\n\n" if r else ""
        for r, m in zip(reasons, turns, strict=True)
        if m["role"] == "assistant"
    ]
    said = [block + answer + "<|end|>" for block, answer in zip(blocks, answers, strict=True)]
    assert text_and_learned(tokenizer, kept)[1] == "".join(said)
    # A blank at the head of an answer belongs to the block before it.
    own = [answer.lstrip() if block else answer for block, answer in zip(blocks, answers, strict=True)]
    assert text_and_learned(tokenizer, masked)[1] == "".join(f"{answer}<|end|>" for answer in own)


def test_a_template_that_leaves_reasoning_out_is_said_to(tmp_path, capsys):
    tokenizer = trained()
    tokenizer.chat_template = FORGETTING
    first = {"role": "assistant", "content": "So.", "reasoning_content": "Hm."}
    last = {"role": "assistant", "content": "Thus.", "reasoning_content": "Oh."}
    asks = {"role": "user", "content": "a"}
    path = write(tmp_path, [{"messages": [asks, first, asks, last]}])
    for reasoning, learned, done in (
        ("keep", "So.<think>Oh.</think>Thus.", "kept"),
        ("mask", "So.Thus.", "masked: in the tokens, not in the loss"),
    ):
        (row,) = load_tokenized(path, tokenizer, None, reasoning=reasoning)
        assert text_and_learned(tokenizer, row) == (
            "user:aassistant:So.user:aassistant:<think>Oh.</think>Thus.",
            learned,
        )
        said = f"reasoning: 2 turns {done}; the chat template leaves 1 of them out\n"
        assert said in capsys.readouterr().out


def test_reasoning_that_cannot_be_masked_is_refused(tokenizer, tmp_path):
    path = write(tmp_path, [IN_A_FIELD])
    with pytest.raises(InputError, match="mask needs a loss on the assistant's turns alone"):
        load_tokenized(path, tokenizer, None, reasoning="mask", assistant_only=False)
    with pytest.raises(InputError, match="reasoning is 'hide'; expected keep, drop, mask"):
        load_tokenized(path, tokenizer, None, reasoning="hide")
    other = trained()
    other.chat_template = (
        "{% for m in messages %}{% generation %}{{ 'analysis: ' + (m.reasoning_content or '') }} {{ m.content }}"
        "{% endgeneration %}{% endfor %}"
    )
    with pytest.raises(
        InputError, match="as <think>…</think> at the head of the assistant's turn; this one does not for 'Hm.'"
    ):
        load_tokenized(path, other, None, reasoning="mask")


def test_a_turn_of_reasoning_alone_has_nothing_left_to_learn(tokenizer, tmp_path, capsys):
    path = write(tmp_path, [{"conversations": [human(), gpt("<think>Hm.</think>\n")]}, IN_TEXT])
    with pytest.raises(InputError, match="1 × turn of reasoning alone\n.*found no text after it at turn 2"):
        load_tokenized(path, tokenizer, None, reasoning="drop")
    aside = tmp_path / "quarantine.jsonl"
    load_tokenized(path, tokenizer, None, "quarantine", quarantine=aside, reasoning="drop")
    assert "reasoning: 1 turn dropped\n" in capsys.readouterr().out  # of the row that is left
    load_tokenized(path, tokenizer, None)
    assert "reasoning: 2 turns kept\n" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["<think>never closed", "So <think>inside</think>.", "<think>\n\n</think>\n\nSo."])
def test_what_is_no_block_at_the_head_is_text(tokenizer, tmp_path, capsys, text):
    (row,) = load_tokenized(write(tmp_path, [{"messages": messages("a", text)}]), tokenizer, None, reasoning="drop")
    assert text_and_learned(tokenizer, row)[1] == f"{text}<|end|>"
    assert "reasoning" not in capsys.readouterr().out
