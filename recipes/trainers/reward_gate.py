"""The reward gate before PPO, RLOO and GRPO: is the reward model fit to be learned from by this policy?

What is measured, and when a reward is fit, is in data_prep/gate/; `python -m eval.reward_gate` does the same by itself.
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from accelerate.utils import broadcast_object_list

from data_prep.common.errors import InputError
from data_prep.common.files import read_json, write_json
from data_prep.common.text import counted
from data_prep.gate.answers import holds_rankings, leave_out_long, other_rows, rated_rows, read_answers, select
from data_prep.gate.gate import behind_other_prompts, check_reward
from data_prep.gate.scorers import by_reward_model, lengths_in_tokens, policy_logprobs
from data_prep.gate.verdict import MIN_PROMPTS, MORE, as_verdict
from data_prep.models.generation import generate_answers
from data_prep.models.loading import context_of
from data_prep.models.reward_functions import call_reward_function, load_function
from recipes.trainers.sharding import on_device

if TYPE_CHECKING:  # slow to import
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer

    from recipes.trainers.resuming import Run

FILE = "reward_gate.json"  # in output_dir: a run that is resumed does not measure again
MOST_PROMPTS, MOST_ANSWERS = 128, 8
HOW = (
    "give heldout and eval_funcs (a verdict that no reward is made of), or rankings as heldout; or run python -m "
    "eval.reward_gate"
)


def gate_reward(
    script,
    trainer: Trainer,
    run: Run,
    reward_model: PreTrainedModel | None,
    reward_tokenizer: PreTrainedTokenizerBase | None,
    heldout,
    max_new_tokens: int,
) -> dict | None:
    """Print the verdict on `reward_model`, and return it with its figures (see `check_reward`), for the results.

    Up to `MOST_ANSWERS` answers of the policy to each of up to `MOST_PROMPTS` held-out prompts, sampled at the run's
    temperature, are judged by the first of `eval_funcs`. Without those, rankings in `heldout` are taken as they are. The
    random numbers that training sees are not touched. A resumed run measures nothing: it returns what the first part
    found.

    Args:
        script: the recipe's own arguments: reward_gate, heldout, eval_funcs, on_bad and columns are read.
        reward_model: None, and with it the result, where functions alone reward.
        reward_tokenizer: None where it is the policy's.
        heldout: the dataset of prompts, or None.

    Raises InputError with `reward_gate` stop, unless the verdict is "fit".
    """
    if script.reward_gate == "off" or reward_model is None:
        return None
    path = Path(trainer.args.output_dir) / FILE
    if run.checkpoint is not None:
        return read_json(path) if path.exists() else None
    found, start = None, time.perf_counter()
    if trainer.is_world_process_zero():  # not prepared for several processes yet, a model is whole on each
        policy = trainer.accelerator.unwrap_model(trainer.model)
        policy = getattr(policy, "policy", policy)  # PPO has it beside its value model
        with _untouched(policy, reward_model), on_device(policy, trainer.args.device):
            readers = (policy, trainer.processing_class, reward_model, reward_tokenizer or trainer.processing_class)
            found = _check(script, trainer.args, readers, heldout, max_new_tokens)
    (found,) = broadcast_object_list([found])  # the first process decides: the last digits may differ between them
    found["seconds"] = time.perf_counter() - start
    if trainer.is_world_process_zero():
        write_json(path, found)
    verdict = found["verdict"]
    if script.reward_gate == "stop" and verdict["word"] != "fit":
        raise InputError(f"reward_gate stop{found['about']}: {verdict['line']}")
    print(f"reward gate{found['about']}: {verdict['line']}")
    return found


def _check(script, args, readers: tuple, heldout, max_new_tokens: int) -> dict:
    """What `check_reward` says, with "about", in words whose answers they are."""
    policy, tokenizer, reward_model, reward_tokenizer = readers
    if script.eval_funcs and heldout:
        prompts = heldout[: min(len(heldout), MOST_PROMPTS)]
        number = len(prompts["prompt"])
        if number < MIN_PROMPTS:
            reason = f"{counted(number, 'held-out prompt')}, expected at least {MIN_PROMPTS}"
            return _unmeasured(as_verdict("not shown", reason, MORE))
        rows = _sampled(script, args, policy, tokenizer, prompts, max_new_tokens)
        whose = (
            f" on {MOST_ANSWERS} answers of the policy to each of {number} held-out prompts, by {script.eval_funcs[0]}"
        )
    elif script.heldout and holds_rankings(script.heldout, script.columns):
        try:
            quarantine = Path(args.output_dir) / "quarantine_heldout.jsonl"
            rows = read_answers(script.heldout, script.on_bad, quarantine, script.columns)
        except InputError as error:
            return _unmeasured(as_verdict("not checked", str(error).splitlines()[0], HOW))
        rows = random.Random(args.seed).sample(rows, min(len(rows), MOST_PROMPTS))
        rows = [select(row, [*range(len(row["completions"]))][:MOST_ANSWERS]) for row in rows]
        whose = f" on {counted(len(rows), 'held-out ranking')}, of answers that need not be the policy's own"
        rows = _that_fit(rows, policy, tokenizer, "the policy")
    else:
        return _unmeasured(as_verdict("not checked", "there are no held-out answers that somebody judges", HOW))
    rows = _that_fit(rows, reward_model, reward_tokenizer, "the reward model")
    if not rows:
        return _unmeasured(as_verdict("not shown", "no answer fits into the context", "sample shorter answers"))
    starts, lengths = lengths_in_tokens(reward_tokenizer, rows)
    longest = [max(own) - start for start, own in zip(starts, lengths, strict=True)]
    others = other_rows(rows, starts, longest, _context(reward_model), args.seed)
    score = by_reward_model(reward_model, reward_tokenizer, args.per_device_eval_batch_size)
    logprobs = policy_logprobs(policy, tokenizer, rows, args.temperature, args.per_device_eval_batch_size)
    found = check_reward(rows, score(rows), behind_other_prompts(rows, others, score), logprobs)
    return {**found, "about": whose}


def _unmeasured(verdict: dict) -> dict:
    return {"verdict": verdict, "metrics": {}, "about": ""}


def _sampled(script, args, policy, tokenizer, prompts: dict[str, list], max_new_tokens: int) -> list[dict]:
    """Answers of the policy, judged by the first of `eval_funcs`; it is loaded again, and may keep a state of its own."""
    judge = load_function(script.eval_funcs[0])
    samples = generate_answers(
        policy,
        tokenizer,
        prompts["prompt"],
        max_new_tokens,
        args.temperature,
        MOST_ANSWERS,
        max(args.per_device_eval_batch_size, args.per_device_train_batch_size),  # training samples as many at once
        args.seed,
        desc="sampling for the reward gate",
    )

    def rate(texts: list[str], places: list[int]) -> list[float]:
        columns = {name: [values[place] for place in places] for name, values in prompts.items()}
        return call_reward_function(judge, columns.pop("prompt"), texts, columns)

    return rated_rows(prompts["prompt"], samples, rate)


def _context(model) -> float:
    return context_of(model.config) or math.inf


def _that_fit(rows: list[dict], model, tokenizer, whose: str) -> list[dict]:
    return leave_out_long(rows, lengths_in_tokens(tokenizer, rows)[1], _context(model), whose) if rows else rows


@contextlib.contextmanager
def _untouched(*models: torch.nn.Module) -> Iterator[None]:
    """Leave random numbers and models as they were: a run is the same with the gate and without."""
    python, numpy, modes = random.getstate(), np.random.get_state(), [model.training for model in models]
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for model, training in zip(models, modes, strict=True):
            model.train(training)
