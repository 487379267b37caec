"""Prompts that fit: those that are too long for the context are dropped, and counted."""

from data_prep.common.errors import InputError
from data_prep.tokens.chat_encoder import encode_prompts


def prompt_lengths(dataset, tokenizer) -> list[int]:
    """The tokens of each row's "prompt": those of the chat template up to where the answer begins."""

    def lengths(rows: dict[str, list]) -> dict[str, list[int]]:
        return {"length": list(map(len, encode_prompts(tokenizer, rows["prompt"])))}

    measured = dataset.map(lengths, batched=True, remove_columns=dataset.column_names, desc="measuring prompts")
    return list(measured["length"])


def drop_long_prompts(dataset, tokenizer, max_prompt_length: int | None):
    """`dataset` without rows whose "prompt" has more than `max_prompt_length` tokens (None: no limit).

    Prints how many rows are dropped. Raises InputError if none is left.
    """
    if max_prompt_length is None:
        return dataset
    lengths = prompt_lengths(dataset, tokenizer)
    kept = [index for index, length in enumerate(lengths) if length <= max_prompt_length]
    if not kept:
        raise InputError(f"no prompt fits in max_prompt_length {max_prompt_length}: raise it")
    if dropped := len(dataset) - len(kept):
        limit = f"max_prompt_length={max_prompt_length:,} tokens"
        print(f"{dropped:,} of {len(dataset):,} prompts are longer than {limit}: dropped")
    return dataset.select(kept) if dropped else dataset


def check_prompt_fits(longest: int, max_new_tokens: int, config, name: str) -> None:
    """Raise InputError if a prompt of `longest` tokens and an answer of `max_new_tokens` do not fit the model `name`."""
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None or longest + max_new_tokens <= positions:
        return
    found = f"a prompt has {longest:,} tokens and an answer up to {max_new_tokens:,}, but {name} has {positions:,} positions"
    left = positions - max_new_tokens
    drop = f"set max_prompt_length to {left:,} or less to drop such prompts, or " if left > 0 else ""
    raise InputError(f"{found}: {drop}sample shorter answers")
