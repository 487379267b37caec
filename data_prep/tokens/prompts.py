"""Prompts that fit: those that are too long for the context are dropped, and counted."""

from data_prep.common.errors import InputError
from data_prep.tokens.chat_encoder import encode_prompts


def drop_long_prompts(dataset, tokenizer, max_prompt_length: int | None):
    """`dataset` without rows whose "prompt" has more than `max_prompt_length` tokens (None: no limit).

    The tokens are those of the chat template up to where the answer begins. Prints how many rows are dropped. Raises
    InputError if none is left.
    """
    if max_prompt_length is None:
        return dataset

    def lengths(rows: dict[str, list]) -> dict[str, list[int]]:
        return {"length": list(map(len, encode_prompts(tokenizer, rows["prompt"])))}

    measured = dataset.map(lengths, batched=True, remove_columns=dataset.column_names, desc="measuring prompts")
    kept = [index for index, length in enumerate(measured["length"]) if length <= max_prompt_length]
    if not kept:
        raise InputError(f"no prompt fits in max_prompt_length {max_prompt_length}: raise it")
    if dropped := len(dataset) - len(kept):
        limit = f"max_prompt_length={max_prompt_length:,} tokens"
        print(f"{dropped:,} of {len(dataset):,} prompts are longer than {limit}: dropped")
    return dataset.select(kept) if dropped else dataset
