"""Masks by counting control tokens are those of the chat template, and are not tried where they might not be."""

import json

import pytest
from helpers.chat_tokens import trained
from helpers.conversations import messages, write
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from data_prep.common.errors import InputError
from data_prep.tokens.chat_encoder import ChatEncoder, special_token_text
from data_prep.tokens.control_tokens import ControlTokens, Counted
from data_prep.tokens.sft_dataset import load_tokenized

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


def test_a_vocabulary_may_have_holes():
    tokenizer = trained()
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["id"] += 1000
    backend["model"]["vocab"].update((token["content"], token["id"]) for token in backend["added_tokens"])
    holed = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(backend)), eos_token="<|end|>")
    holed.chat_template = tokenizer.chat_template
    assert len(holed) < max(holed.get_vocab().values()) and as_the_template(holed)


@pytest.mark.parametrize("normalizer", [None, normalizers.NFC()])
def test_a_blank_at_the_border_of_an_answer_is_learned(normalizer):
    """As GPT-NeoX's tokenizer has it, whose offsets leave out blanks; without an end of turn in the marks."""
    tokenizer = trained()
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.backend_tokenizer.normalizer = normalizer
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}A:{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}U:{{ m.content }}{% endif %}{{ '\n' }}{% endfor %}"
    )
    encoder = ChatEncoder(tokenizer)
    ((ids, mask),) = encoder.encode(encoder.render([messages("Q", " Yo ", "R", "Z ", "S", "x")]))
    assert tokenizer.decode(ids) == "U:Q\nA: Yo \nU:R\nA:Z \nU:S\nA:x\n"
    assert tokenizer.decode(ids[mask]) == " Yo Z x"


def test_a_character_of_no_token_is_passed_over(tmp_path, capsys):
    """A tokenizer that strips: an answer of its blanks alone has nothing to learn, and is counted."""
    tokenizer = trained()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip(left=True, right=True)
    ((ids, mask),) = ChatEncoder(tokenizer).encode(ChatEncoder(tokenizer).render([messages("Q", " Yo ", "R", "Z")]))
    assert tokenizer.decode(ids[mask]).replace(" ", "") == "Yo<|end|>Z<|end|>"
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% generation %}{% endgeneration %}{% endfor %}"
    with pytest.raises(InputError, match="no conversation is left"):
        load_tokenized(write(tmp_path, [{"messages": messages("a", "b")}]), tokenizer, None)
    assert "may be of any length; without a token to learn, and dropped: 1\n" in capsys.readouterr().out
