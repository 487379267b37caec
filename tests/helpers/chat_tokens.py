"""Texts that spell out control tokens, and a tokenizer trained for them."""

from hypothesis import strategies as st

from data_prep.train_tokenizer import SPECIAL_TOKENS, train_tokenizer
from helpers.conversations import TEXTS

# Texts that spell out a control token are the hard case for tokens and masks.
HARD_TEXTS = TEXTS | st.tuples(TEXTS, st.sampled_from(SPECIAL_TOKENS), TEXTS).map("".join)


def trained():
    return train_tokenizer(["the cat sat on the mat, the cat sat", "def f(x): return x + 10", "数据"] * 5, 300)


def spells_out(conversation) -> bool:
    return any(token in message["content"] for message in conversation for token in SPECIAL_TOKENS)
