"""Masks by counting control tokens are those of the chat template, and are not tried where they might not be."""

import pytest
from helpers.chat_tokens import trained
from helpers.conversations import messages
from tokenizers import AddedToken, normalizers, pre_tokenizers

from data_prep.tokens.chat_encoder import ChatEncoder, special_token_text
from data_prep.tokens.control_tokens import ControlTokens, Counted

CONVERSATIONS = [messages("Hi", "Yo"), messages("system: Z", " a ", " x", "b\n", "é x"), messages("数", "据")]
TEXT = "<|user|>Hi<|end|><|assistant|>Yo<|end|>"


def control(tokenizer) -> ControlTokens:
    return ControlTokens(tokenizer, special_token_text(tokenizer))


def as_the_template(tokenizer) -> bool:
    """Whether ids and masks are those of transformers."""
    encoder = ChatEncoder(tokenizer)
    found = encoder.encode(encoder.render(CONVERSATIONS))
    whole = tokenizer.apply_chat_template(CONVERSATIONS, return_assistant_tokens_mask=True, return_dict=True)
    assert sum(map(sum, whole["assistant_masks"])) > 10
    return [ids.tolist() for ids, _ in found] == whole["input_ids"] and [
        mask.astype(int).tolist() for _, mask in found
    ] == whole["assistant_masks"]


def test_spans_between_control_tokens_are_counted():
    tokenizer = trained()
    user, end, assistant = tokenizer.convert_tokens_to_ids(["<|user|>", "<|end|>", "<|assistant|>"])
    found = control(tokenizer)
    assert found.counted(TEXT, [(30, 39)]) == Counted([user, end, assistant, end], [(3, 4)])
    assert found.counted(TEXT, [(0, 39)]) == Counted([user, end, assistant, end], [(0, 4)])
    assert found.counted(TEXT + ".", [(0, 40)]) == Counted([user, end, assistant, end], [(0, 5)])
    assert found.counted(TEXT, [(31, 39)]) is None and found.counted(TEXT, [(30, 32)]) is None
    assert as_the_template(tokenizer)


def test_a_control_token_that_became_part_of_another_is_not_counted():
    tokenizer = trained()
    tokenizer.add_tokens("x<|end|>")  # the longer match from the left
    assert control(tokenizer).counted(TEXT, [(30, 39)]) is not None
    assert as_the_template(tokenizer)


@pytest.mark.parametrize("kind", ["normalizer", "metaspace", "prefix space", "rstrip"])
def test_tokenizers_that_change_the_text_are_left_to_offsets(kind):
    tokenizer = trained()
    backend = tokenizer.backend_tokenizer
    if kind == "normalizer":
        backend.normalizer = normalizers.NFC()
    elif kind == "metaspace":
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), backend.pre_tokenizer])
    elif kind == "prefix space":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    else:
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<|x|>", special=True, rstrip=True)]})
    assert control(tokenizer).counted(TEXT, [(30, 39)]) is None
    assert as_the_template(tokenizer)
