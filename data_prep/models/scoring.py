"""Reward scores and log-probabilities of given answers, and a reward model's agreement with rankings."""

import math

import numpy as np
import torch
from tqdm.auto import tqdm

from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval, by_prompt
from data_prep.models.loading import context_of
from data_prep.models.padding import padded
from data_prep.readers.preferences import prompt_key
from data_prep.readers.ranks import pairs
from data_prep.tokens.chat_encoder import answer_end, encode_conversations, encode_prompts, encode_text
from data_prep.tokens.generation_prompt import head_of_answers

# Computed at once, 1 GiB in fp32: of a batch of long answers, those of a large vocabulary would fill a GPU.
LOGITS = 2**28


def encode_answers(tokenizer, prompts: list[list[dict] | str], answers: list[list[str]]) -> list[list[list[int]]]:
    """The ids of each prompt with each of its answers: one list per prompt, in it one list of ids per answer.

    A prompt of messages becomes a conversation up to the end of the answer (see `answer_end`), which is where answers that
    are sampled end too: what the template writes behind it, such as a line break, is cut, and an end that it does not write
    is added. A text prompt is continued by the answer's text and the end of sequence. Text that looks like a special token
    stays text (see `encode_conversations`).
    """
    conversations = [
        [*prompt, {"role": "assistant", "content": answer}]
        for prompt, own in zip(prompts, answers, strict=True)
        if not isinstance(prompt, str)
        for answer in own
    ]
    encoded = iter(_ended(tokenizer, encode_conversations(tokenizer, conversations)) if conversations else [])
    return [
        [
            [*encode_text(tokenizer, prompt + answer), tokenizer.eos_token_id]
            if isinstance(prompt, str)
            else next(encoded)
            for answer in own
        ]
        for prompt, own in zip(prompts, answers, strict=True)
    ]


def _ended(tokenizer, conversations: list[list[int]]) -> list[list[int]]:
    """The ids of each conversation up to the end of its last answer, which is added where the template writes none."""
    end, written = answer_end(tokenizer)
    if end is None:
        return conversations
    return [ids[: len(ids) - ids[::-1].index(end)] if written and end in ids else [*ids, end] for ids in conversations]


@torch.no_grad()
def score_answers(
    model,
    tokenizer,
    prompts: list[list[dict] | str],
    answers: list[str],
    batch_size: int = 128,
    stopped: list[bool] | None = None,
) -> list[float]:
    """The reward of each answer to the prompt at the same index, read at the end-of-turn token.

    `stopped` is False for a truncated answer: it gets no end of turn, and its reward is read at its own last token.

    Raises InputError if a prompt with its answer is longer than the reward model's context.
    """
    model.eval()
    encoded = [ids for (ids,) in encode_answers(tokenizer, prompts, [[answer] for answer in answers])]
    for index in (index for index, ended in enumerate(stopped or []) if not ended):
        prompt = prompts[index]
        text = isinstance(prompt, str)
        before = encode_text(tokenizer, prompt) if text else encode_prompts(tokenizer, [prompt])[0]
        head = [] if text else head_of_answers(tokenizer)  # which the template writes before a whole answer, too
        encoded[index] = (
            before + head + tokenizer(answers[index], add_special_tokens=False, split_special_tokens=True)["input_ids"]
        )
    longest, positions = max(map(len, encoded), default=0), context_of(model.config) or math.inf
    if longest > positions:
        raise InputError(
            f"a prompt with its answer has {longest} tokens, the reward model {positions} positions: use a "
            "reward model with a longer context, or shorter prompts and answers"
        )
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))
    scores = [0.0] * len(encoded)
    for start in tqdm(
        range(0, len(order), batch_size), desc="scoring", unit="batch", disable=len(order) < batch_size or None
    ):
        indices = order[start : start + batch_size]
        for index, score in zip(indices, rewards_of_ids(model, [encoded[i] for i in indices]), strict=True):
            scores[index] = score
    return scores


def rewards_of_ids(model, rows: list[list[int]]) -> list[float]:
    """The reward of each of `rows` of ids, read at its last token.

    Padding is on the right, because left padding would shift GPT-2's positions (0.068 against −0.167 for the same row), and
    with the token that the model's own config names, by which it finds the last one. Where none is named it takes one row
    at a time.
    """
    pad = model.config.get_text_config().pad_token_id
    batches = [rows] if pad is not None else [[row] for row in rows]
    inputs = (padded(batch, pad or 0, "right", model.device) for batch in batches)
    return [reward for each in inputs for reward in model(**each, use_cache=False).logits.squeeze(-1).float().tolist()]


@torch.no_grad()
def sequence_logprobs(
    model,
    tokenizer,
    prompts: list[list[dict]],
    answers: list[list[int]],
    temperature: float = 1.0,
    batch_size: int = 128,
) -> list[float]:
    """The log-probability of each answer given the prompt at the same index, in nats, summed over its tokens.

    Args:
        answers: the sampled ids ("ids" of `generate_answers`), including the end of turn if there is one. Encoding the
            text again may give other ids.
        temperature: of the sampling.

    The softmax is over the whole vocabulary, although `generate_answers` never samples the pad token. Padding is on the
    right, as in `rewards_of_ids`. Prompt and answer have to fit into the model's context.
    """
    model.eval()
    starts = encode_prompts(tokenizer, prompts)
    encoded = [start + answer for start, answer in zip(starts, answers, strict=True)]
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]))  # by length: less padding
    sums = [0.0] * len(encoded)
    for begin in range(0, len(order), batch_size):
        indices = order[begin : begin + batch_size]
        batch = padded([encoded[i] for i in indices], tokenizer.pad_token_id or 0, "right", model.device)
        length, first = batch["input_ids"].shape[1], min(len(starts[i]) for i in indices)
        # From the position that predicts the first answer token: logits of the prompts would take most of the memory.
        kept = length - first + 1
        at_once = max(1, LOGITS // (kept * model.config.get_text_config().vocab_size))
        logprobs = []
        for some in range(0, len(indices), at_once):
            part = {name: rows[some : some + at_once] for name, rows in batch.items()}
            logits = model(**part, use_cache=False, logits_to_keep=kept).logits[:, :-1].float()
            tokens = part["input_ids"][:, first:, None]
            logprobs += (logits / temperature).log_softmax(-1).gather(-1, tokens).squeeze(-1).tolist()
        for index, row in zip(indices, logprobs, strict=True):
            sums[index] = sum(row[len(starts[index]) - first : len(encoded[index]) - first])
    return sums


def ranking_agreement(model, tokenizer, rows: list[dict], max_length: int | None = None) -> dict:
    """The `agreement_with_rankings` of a reward model; arguments and errors are those of `score_rankings`."""
    return agreement_with_rankings(*score_rankings(model, tokenizer, rows, max_length))


def score_rankings(
    model, tokenizer, rows: list[dict], max_length: int | None = None, batch_size: int = 128
) -> tuple[list[dict], list[list[float]]]:
    """(the rankings that fit, the reward of each of their completions), `rows` of {"prompt", "completions", "ranks"}.

    Rankings with an answer longer than `max_length` tokens (default: the model's context) are left out, and their number
    is printed. Raises `InputError` if none is left. Rewards have five decimals: further ones depend on the batch.
    """
    max_length = max_length or context_of(model.config) or math.inf
    encoded = encode_answers(tokenizer, [row["prompt"] for row in rows], [row["completions"] for row in rows])
    kept = [row for row, own in zip(rows, encoded, strict=True) if all(len(ids) <= max_length for ids in own)]
    if left_out := len(rows) - len(kept):
        print(f"{left_out:,} of {len(rows):,} rankings hold an answer beyond {max_length} tokens and are left out")
    if not kept:
        raise InputError(f"no ranking fits in {max_length} tokens")
    flat = [(row["prompt"], completion) for row in kept for completion in row["completions"]]
    scores = iter(score_answers(model, tokenizer, *map(list, zip(*flat, strict=True)), batch_size))
    return kept, [[round(next(scores), 5) for _ in row["completions"]] for row in kept]


def agreement_with_rankings(rows: list[dict], scores: list[list[float]]) -> dict:
    """What rewards make of rankings, from `score_rankings`.

    Returns {"accuracy": of all pairs of unequal rank, averaged over prompts, with its interval over prompts, "margin":
    mean reward of the better minus the worse answer, "length_correlation": Pearson correlation of reward and characters
    (None if all rewards or all lengths are equal), "pairs": their number}.
    """
    keys, rights, margins, number = [], [], [], 0
    for row, own in zip(rows, scores, strict=True):
        differences = [own[better] - own[worse] for better, worse in pairs(row["ranks"])]
        if differences:
            keys.append(prompt_key(row["prompt"]))
            rights.append(float(np.mean([difference > 0 for difference in differences])))
            margins.append(float(np.mean(differences)))
            number += len(differences)
    all_scores = [score for own in scores for score in own]
    lengths = [len(completion) for row in rows for completion in row["completions"]]
    with np.errstate(invalid="ignore"):  # a constant has no correlation: NumPy divides 0 by 0
        correlation = float(np.corrcoef(all_scores, lengths)[0, 1])
    return {
        "accuracy": bootstrap_interval(by_prompt(keys, rights)),
        "margin": float(np.mean(by_prompt(keys, margins))),
        "length_correlation": correlation if math.isfinite(correlation) else None,  # NaN is not JSON
        "pairs": number,
    }
