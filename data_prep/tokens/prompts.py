"""Prompts that leave room for an answer: those that are too long are refused, dropped or truncated, all at once."""

import math

from transformers import AutoConfig

from data_prep.common.errors import InputError
from data_prep.models.loading import checkpoint_or_hub_id, context_of, load_tokenizer
from data_prep.tokens.chat_encoder import encode_prompts

LONG_PROMPTS = ("error", "drop", "truncate")
SHOWN = 5


def longest_prompt(
    tokenizer, policy: str, revision: str, others: list[str | None], max_new_tokens: int, limit: int | None = None
) -> float:
    """The most tokens of a prompt: the shortest context among the models that read it, less `max_new_tokens`.

    `others` are reward and value models (None: there is none); one with another vocabulary reads texts, not these ids,
    and does not count. `limit`, where it is given, is the most at all. Infinite where no model has a limit.

    Raises InputError where no room is left for a prompt, and for a model that is not there.
    """
    contexts = {policy: AutoConfig.from_pretrained(policy, revision=revision, trust_remote_code=False)}
    for name in filter(None, others):
        checkpoint_or_hub_id(name, "recipes/reward.py")
        if _reads_ids_of(tokenizer, name):
            contexts[name] = AutoConfig.from_pretrained(name, trust_remote_code=False)
    positions = {name: context_of(config) or math.inf for name, config in contexts.items()}
    shortest = min(positions, key=positions.get)
    room = positions[shortest] - max_new_tokens
    if room < 1:
        found = f"{shortest} has {positions[shortest]:,} positions, and an answer up to {max_new_tokens:,} tokens"
        raise InputError(f"{found}: no prompt has room before it; sample shorter answers")
    return room if limit is None else min(room, limit)


def _reads_ids_of(tokenizer, name: str) -> bool:
    try:
        return load_tokenizer(name).get_vocab() == tokenizer.get_vocab()
    except (OSError, ValueError):  # a value model is saved without one
        return True


def fit_prompts(dataset, heldout, tokenizer, limit: float, long_prompts: str) -> tuple:
    """`dataset` and `heldout` (or None) as `load_prompts` gives them, every "prompt" at most `limit` tokens long.

    The tokens are those of the chat template up to where the answer begins. What is longer

    error       is one InputError for both, with file and row of the first `SHOWN`
    drop        is left out
    truncate    loses its oldest turns, a system turn aside; then the beginning of its last question; see `truncated`

    and counted on the screen. Raises InputError where none is left, and for a prompt that cannot be truncated so far.
    The column "place" is not in what is returned.
    """
    if long_prompts not in LONG_PROMPTS:
        raise InputError(f"long_prompts is {long_prompts!r}; expected {', '.join(LONG_PROMPTS)}")
    parts = {"training": dataset, "held-out": heldout} if heldout else {"training": dataset}
    lengths = {name: _lengths(part, tokenizer) for name, part in parts.items()}
    long = {name: [index for index, length in enumerate(own) if length > limit] for name, own in lengths.items()}
    if long_prompts == "error" and any(long.values()):
        raise InputError("\n".join(_listed(parts, lengths, long, limit)))
    for name, part in parts.items():
        if long[name] and long_prompts == "drop":
            kept = [index for index, length in enumerate(lengths[name]) if length <= limit]
            if not kept:
                raise InputError(f"all {len(part):,} {name} prompts are longer than {limit:,} tokens: none is left")
            parts[name] = part.select(kept)
        elif long[name]:
            cut = {index: truncated(part[index]["prompt"], tokenizer, limit) for index in long[name]}
            if hopeless := [index for index, messages in cut.items() if messages is None]:
                place, within = part[hopeless[0]]["place"], f"the chat template alone takes more than {limit:,} tokens"
                raise InputError(
                    f"{place}: cannot be truncated: {within}; expected shorter answers, or a longer context"
                )
            parts[name] = part.map(
                lambda row, index, cut=cut: {"prompt": cut.get(index, row["prompt"])},
                with_indices=True,
                desc="truncating",
            )
        if long[name]:
            what = "dropped" if long_prompts == "drop" else "truncated, oldest turns first"
            print(f"{len(long[name]):,} of {len(part):,} {name} prompts are longer than {limit:,} tokens: {what}")
    parts = {name: part.remove_columns("place") for name, part in parts.items()}
    return parts["training"], parts.get("held-out")


def _lengths(dataset, tokenizer) -> list[int]:
    """The tokens of each row's "prompt"."""

    def lengths(rows: dict[str, list]) -> dict[str, list[int]]:
        return {"length": list(map(len, encode_prompts(tokenizer, rows["prompt"])))}

    measured = dataset.map(lengths, batched=True, remove_columns=dataset.column_names, desc="measuring prompts")
    return list(measured["length"])


def _listed(parts: dict, lengths: dict, long: dict, limit: float) -> list[str]:
    """The lines of the error for prompts that are too long."""
    numbers = " and ".join(f"{len(long[name]):,} of {len(part):,} {name} prompts" for name, part in parts.items())
    lines = [f"{numbers} are longer than {limit:,} tokens, which leaves room for an answer:"]
    found = [(name, index) for name, own in long.items() for index in own]
    for name, index in found[:SHOWN]:
        lines.append(f"  {parts[name][index]['place']} ({name}): {lengths[name][index]:,} tokens")
    if len(found) > SHOWN:
        lines.append(f"  … and {len(found) - SHOWN:,} more")
    return [*lines, "set long_prompts to drop, or to truncate (oldest turns first), or sample shorter answers"]


def truncated(messages: list[dict], tokenizer, limit: float) -> list[dict] | None:
    """`messages`, which end on a question, in at most `limit` tokens; None where even an empty question has more.

    First the oldest turns go, a question with what answers it; a system turn stays. If the last question alone is too
    long, its beginning goes: what is asked mostly stands at the end. The system turn goes only where it leaves no token
    for the question.
    """

    def length(kept: list[dict]) -> int:
        return len(encode_prompts(tokenizer, [kept])[0])

    system = messages[:1] if messages[0]["role"] == "system" else []
    turns = messages[len(system) :]
    starts = [index for index, message in enumerate(turns) if message["role"] == "user"] or [0]
    for start in starts:
        if length(kept := [*system, *turns[start:]]) <= limit:
            return kept
    *before, question = turns[starts[-1] :]
    for front in [[*system, *before], before] if system else [before]:
        text = question["content"]
        while text:
            excess = length([*front, {**question, "content": text}]) - limit
            if excess <= 0:
                return [*front, {**question, "content": text}]
            offsets = tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, split_special_tokens=True
            )["offset_mapping"]
            # Several tokens may share a character: at least one character goes at a time.
            text = text[max(1, offsets[excess][0]) :] if excess < len(offsets) else ""
    return None
