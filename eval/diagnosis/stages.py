"""What is measured of each stage: sampled answers, the gate on them, and PPO beside the model that it started from.

`rows` are those of `data_prep.gate.answers.rated_rows`, one a prompt, with the judge's "scores". An answer counts as often
as it was sampled, each prompt weighs 1, and intervals are over prompts.
"""

import math
from collections.abc import Callable

import numpy as np
import torch

from data_prep.common.intervals import bootstrap_interval
from data_prep.common.text import counted
from data_prep.gate.answers import other_rows, rated_rows
from data_prep.gate.gate import behind_other_prompts, check_reward
from data_prep.gate.measures import best_of_n, spread
from data_prep.gate.scorers import by_reward_function, by_reward_model, lengths_in_tokens, policy_logprobs
from data_prep.models.generation import generate_answers
from data_prep.models.loading import context_of
from data_prep.tokens.chat_encoder import encode_prompts
from eval.common.functions import measure

KL_STEP = 0.98  # target_kl lowers kl_coef by 2 % an update at most (Ziegler 2019, section 2.2)


def prompts_that_fit(rows: list[dict], readers: list[tuple], max_new_tokens: int) -> list[dict]:
    """The rows whose prompts leave room for an answer with each of `readers`, (model, tokenizer); the rest is counted."""
    kept = rows
    for model, tokenizer in readers:
        room = (context_of(model.config) or math.inf) - max_new_tokens
        lengths = map(len, encode_prompts(tokenizer, [row["prompt"] for row in kept]))
        kept = [row for row, length in zip(kept, list(lengths), strict=True) if length <= room]
    if left_out := len(rows) - len(kept):
        print(f"{left_out:,} of {counted(len(rows), 'prompt')} leave no room for {max_new_tokens} tokens: left out")
    return kept


def sample(model, tokenizer, rows: list[dict], judge: Callable, settings: dict, desc: str, seed: int) -> list[dict]:
    """Answers of `model` to the prompts of `rows` (of `read_prompts`), each with what `judge` gives it.

    Args:
        settings: of the sampling: max_new_tokens, temperature, num_return_sequences, batch_size.
    """
    prompts = [row["prompt"] for row in rows]
    samples = generate_answers(model, tokenizer, prompts, **settings, seed=seed, desc=desc)

    def rate(texts: list[str], places: list[int]) -> list[float]:
        return [value for (value,) in measure(judge, [rows[place] for place in places], [[text] for text in texts])]

    rated = rated_rows(prompts, samples, rate)
    return [{**own, "columns": {"reference": row["reference"]}} for own, row in zip(rated, rows, strict=True)]


def means(rows: list[dict], values: list[list[float]]) -> list[float]:
    """Of each row the mean over its sampled answers."""
    return [float(np.average(own, weights=row["counts"])) for row, own in zip(rows, values, strict=True)]


def paired(ours: list[dict], values: list[list[float]], theirs: list[dict], others: list[list[float]]) -> dict:
    """The mean difference of two models' values on the same prompts, with its interval over them."""
    return bootstrap_interval(np.array(means(ours, values)) - np.array(means(theirs, others)))


def reward_of(model, tokenizer, functions: list[Callable], weights: list[float] | None, batch_size: int) -> Callable:
    """f(rows) → the reward that PPO is given, one list a row: of the reward model (or None) and the functions, weighted."""
    parts = [by_reward_model(model, tokenizer, batch_size)] if model is not None else []
    parts += map(by_reward_function, functions)
    weights = weights or [1.0] * len(parts)

    def score(rows: list[dict]) -> list[list[float]]:
        each = [part(rows) for part in parts]
        return [
            [float(np.dot(weights, values)) for values in zip(*own, strict=True)] for own in zip(*each, strict=True)
        ]

    return score


def measure_sft(rows: list[dict], tokenizer, max_new_tokens: int) -> dict:
    """Whether the answers end, what they look like beside the references, and what best of n by the judge would bring."""
    references = [row["columns"]["reference"] for row in rows]
    plain = {"add_special_tokens": False, "split_special_tokens": True}  # special tokens in a text are text
    ids = [tokenizer(text, **plain)["input_ids"] for text in references if text.strip()]
    lengths = [len(own) + 1 for own in ids]  # with the end of turn
    cut = [min(length, max_new_tokens) for length in lengths]  # as the answers are
    per_answer = {
        "eos_rate": lambda row: row["stopped"],
        "empty": lambda row: [not text.strip() for text in row["completions"]],
        "repetition": lambda row: [repetition(own) for own in row["ids"]],
        "length": lambda row: [len(own) for own in row["ids"]],
    }
    found = {
        name: bootstrap_interval(means(rows, [[*map(float, value(row))] for row in rows]))
        for name, value in per_answer.items()
    }
    found |= {
        "prompts": len(rows),
        "answers": sum(sum(row["counts"]) for row in rows),
        "max_new_tokens": max_new_tokens,
        "reference_length": float(np.mean(cut)) if cut else None,
        "reference_repetition": float(np.mean([*map(repetition, ids)])) if ids else None,
        "references_too_long": float(np.mean([length > max_new_tokens for length in lengths])) if lengths else 0.0,
        "differ": bootstrap_interval([float(len({*row["scores"]}) > 1) for row in rows]),
        "best_of_n": best_of_n(rows, *[[row["scores"] for row in rows]] * 2),
    }
    return found


def repetition(ids: list[int], n: int = 3) -> float:
    """The share of the n-grams of a text that repeat an earlier one; 0 for a text with fewer than two."""
    grams = [tuple(ids[start : start + n]) for start in range(len(ids) - n + 1)]
    return 1 - len({*grams}) / len(grams) if len(grams) > 1 else 0.0


def gate(rows: list[dict], reward: Callable, policy, tokenizer, reader: tuple | None, settings: dict) -> dict:
    """What `check_reward` says of `reward` on the policy's own answers.

    Args:
        reader: (reward model, its tokenizer), or None for functions alone.
    """
    starts, lengths = lengths_in_tokens(reader[1] if reader else tokenizer, rows)
    longest = [max(own) - start for start, own in zip(starts, lengths, strict=True)]
    context = (context_of(reader[0].config) if reader else None) or math.inf
    others = other_rows(rows, starts, longest, context)
    logprobs = policy_logprobs(policy, tokenizer, rows, settings["temperature"], settings["batch_size"])
    return check_reward(rows, reward(rows), behind_other_prompts(rows, others, reward), logprobs)


def kl(rows: list[dict], model, reference, tokenizer, settings: dict) -> dict:
    """The KL of `model` from `reference` in nats per answer, of answers sampled from `model`, with its interval."""
    own, its = (
        policy_logprobs(each, tokenizer, rows, settings["temperature"], settings["batch_size"])
        for each in (model, reference)
    )
    differences = [[a - b for a, b in zip(*pair, strict=True)] for pair in zip(own, its, strict=True)]
    return bootstrap_interval(means(rows, differences))


def leash(rows: list[dict], rewards: list[list[float]], kl_coef: float, missing_eos_penalty: float = 0.0) -> dict:
    """How far `kl_coef` lets a policy go, and what there is to be gained there, worked out from samples of the reference.

    The policy that maximises E[reward] − kl_coef · KL is the reference times exp(reward / kl_coef), normalised for each
    prompt (Ziegler 2019, arXiv:1909.08593; Korbak 2022, arXiv:2205.11275, section 3): however long PPO trains, it gains
    no more than that one does. Its gain and its KL are those of the samples weighted so. With few samples of a wide
    reward both are too low: of n samples no weights are further away than log n nats.

    Args:
        rows: with answers sampled from the reference.
        rewards: of each answer, without the penalty.

    Returns {"spread": standard deviation of the reward within a prompt, "gain": over the reference, with its interval,
    "kl": nats per answer, "kl_coef"}. With `kl_coef` 0 the optimum is the best sample.
    """
    whole = [
        [value - missing_eos_penalty * (not stopped) for value, stopped in zip(own, row["stopped"], strict=True)]
        for row, own in zip(rows, rewards, strict=True)
    ]
    gains, distances = [], []
    for row, own in zip(rows, whole, strict=True):
        chances = np.asarray(row["counts"], dtype=float) / sum(row["counts"])
        values = np.asarray(own)
        if kl_coef > 0:
            weights = chances * np.exp(np.maximum((values - values.max()) / kl_coef, -700.0))
        else:
            weights = chances * (values == values.max())
        weights /= weights.sum()
        gains.append(float(weights @ values - chances @ values))
        inside = weights > 0
        distances.append(float((weights[inside] * np.log(weights[inside] / chances[inside])).sum()))
    within = spread(rows, whole)["within"]
    return {
        "kl_coef": kl_coef,
        "spread": None if within is None else math.sqrt(within),
        "gain": bootstrap_interval(gains),
        "kl": float(np.mean(distances)),
    }


def measure_ppo(own: list, theirs: list, score: Callable, settings: dict, logged: dict) -> dict:
    """PPO beside the model that it started from.

    Args:
        own, theirs: PPO's and the SFT model's rows on held-out prompts, and on training prompts.
        score: see `reward_of`.
        settings: PPO's.
        logged: see `eval.diagnosis.run_settings.logged_by_ppo`.
    """
    found = {}
    rewards = [[score(rows) for rows in pair] for pair in (own, theirs)]
    for place, name in enumerate(("heldout", "train")):
        mine, its = own[place], theirs[place]
        judged = [[row["scores"] for row in rows] for rows in (mine, its)]
        found[name] = {
            "reward": paired(mine, rewards[0][place], its, rewards[1][place]),
            "judge": paired(mine, judged[0], its, judged[1]),
        }
    curves = logged.get("curves", {})
    steps = [step for step, _ in curves.get("score", [])]
    rollout = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    updates = max(steps) if steps else (settings.get("total_episodes") or 0) // rollout or None
    kl_coef = settings["kl_coef"]
    if settings.get("target_kl"):
        kl_coef *= KL_STEP ** (updates or 0)
    logged_kl = [value for _, value in curves.get("kl", []) if math.isfinite(value)]
    names = ("learning_rate", "muon_lr", "kl_coef", "target_kl", "kl_budget", "num_value_warmup_updates")
    return found | {
        "settings": {name: settings.get(name) for name in names},
        "updates": updates,
        "logged_kl": max(logged_kl, default=None),
        "alarms": logged.get("alarms"),
        "leash": leash(theirs[1], rewards[1][1], kl_coef, settings.get("missing_eos_penalty") or 0.0),
    }


@torch.no_grad()
def weights_moved(model, reference) -> float:
    """The norm of the difference of two models' weights over that of the reference; 0 if they are the same bit by bit."""
    theirs, moved, norm = reference.state_dict(), 0.0, 0.0
    for name, weight in model.state_dict().items():
        if name in theirs and theirs[name].shape == weight.shape:
            other = theirs[name].to(weight.device).double()
            moved += float((weight.double() - other).square().sum())
            norm += float(other.square().sum())
    return math.sqrt(moved / norm) if norm else 0.0
