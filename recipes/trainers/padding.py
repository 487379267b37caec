"""The padding token of a tokenizer that has none, or that pads with what ends an answer."""

import re

from data_prep.common.errors import InputError

# Names of special tokens that stand in no text, the first kind first.
KINDS = [r"^(?!.*(image|video|audio)).*pad", r"reserved|unused|place.?holder", r"unk", r"end.?of.?text"]
REMEDY = "a token of its vocabulary that no text holds"


def spare_token(tokenizer, ends: list[int]) -> str | None:
    """A special token that neither stands in the chat template nor is one of `ends`, by its name (`KINDS`), or None."""
    template = str(tokenizer.chat_template)
    used = {*ends, tokenizer.bos_token_id if "bos_token" in template else None}
    used.add(tokenizer.eos_token_id if "eos_token" in template else None)
    free = [
        token.content
        for number, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and number not in used and token.content not in template
    ]
    return next((token for kind in KINDS for token in free if re.search(kind, token.lower())), None)


def take_pad_token(tokenizer, given: str | None, ends: list[int], needed: bool) -> None:
    """Let `tokenizer` pad with the token `given`, or, where its own is one of `ends` or missing, with a spare one.

    Args:
        ends: the ids that an answer ends with.
        needed: raise InputError where it pads with one of `ends` then; else a line says what will refuse that.

    Raises InputError for a token that is not in the vocabulary.
    """
    if given and given not in tokenizer.get_vocab():
        raise InputError(f"pad_token: found {given!r}, which is not in the vocabulary; expected one of its tokens")
    own = tokenizer.pad_token
    tokenizer.pad_token = given or own
    if tokenizer.pad_token_id not in (None, *ends):
        return
    found = f"{tokenizer.pad_token}, which ends an answer" if tokenizer.pad_token else "none"
    if not given and (spare := spare_token(tokenizer, ends)):
        print(f"pad_token: {spare}, which the chat template leaves alone; the tokenizer has {found}")
        tokenizer.pad_token = spare
    elif needed:
        raise InputError(
            f"pad_token: found {found}, and a reward model is read at the last token that is no padding; expected "
            f"{REMEDY}, by pad_token (--pad_token TOKEN) here and of recipes/sft.py"
        )
    else:
        print(
            f"pad_token: {tokenizer.pad_token or tokenizer.eos_token}, which ends an answer, for want of another; reward "
            f"models, PPO, RLOO and GRPO refuse that. Give {REMEDY}, by pad_token (--pad_token TOKEN)"
        )


def check_pad_token(tokenizer, ends: list[int], name: str) -> None:
    """Raise InputError where the tokenizer of the model `name` pads with the first of `ends`, or with nothing."""
    if tokenizer.pad_token_id in (None, *ends[:1]):
        found = f"pads with what ends an answer ({tokenizer.pad_token})" if tokenizer.pad_token else "has no pad_token"
        raise InputError(
            f"{name} {found}: answers could not be told from padding. Fine-tune with recipes/sft.py, whose pad_token "
            f"(--pad_token TOKEN) is {REMEDY}, or name one as pad_token in its tokenizer_config.json"
        )
