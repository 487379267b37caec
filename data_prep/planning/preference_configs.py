"""The YAML files that data_prep.start writes for the stages that learn from preferences: see configs.py."""

import math
from pathlib import Path

import numpy as np

from data_prep.planning import sizes
from data_prep.planning.configs import (
    Machine,
    Model,
    Stage,
    checkpointing,
    context_line,
    full_rate,
    longer,
    model_lines,
    passes_in,
    rates,
)
from data_prep.planning.measure import Turns

MORE = 1.15  # times as much for the good answers in all: the middle of 1 to 4/3
EVALUATIONS = 7  # of PPO: before, after a fifth of the updates each, and after


def preference_batch(rankings: Turns, model: Model, machine: Machine, least: int = 4) -> tuple[int, int]:
    """(rows a step, rows at once)."""
    batch = sizes.power_of_two(rankings.rows / 32, 64, least)
    at_once = sizes.micro_batch(batch, 2 * model.context, model.vocabulary, model.width, model.layers, machine.memory)
    return batch, min(at_once, batch)


def preference_rate(model: Model) -> tuple:
    """The line of the learning rate of DPO and KTO, which move a policy by AdamW alone, away from its reference."""
    if model.name is None:
        return "learning_rate", 0.00005, "recipes/configs/dpo_zh's"
    return rates(model, 0, 0, 0.000005, 0.00005)[0]


def last_lines(run: Path, name: str) -> list[tuple]:
    """What the trainings on rankings and labels end with alike."""
    return [
        ("lr_scheduler_type", "linear"),
        ("warmup_steps", 0.05, "of the steps"),
        ("logging_steps", 0.05, "of the steps"),
        ("save_strategy", "no"),
        ("report_to", "none"),
        ("output_dir", str(run / name)),
    ]


def reward(
    run: Path, origin: str, rankings: Turns, files: tuple[str, str], model: Model, machine: Machine, seconds: float
) -> Stage:
    passes = passes_in(rankings.tokens, 2, model, machine, seconds)
    batch, at_once = preference_batch(rankings, model, machine)
    steps = math.ceil(rankings.rows / batch) * passes
    lines = [
        ("model_name_or_path", origin),
        ("rankings", [files[0]], f"{rankings.rows:,} rankings, {rankings.tokens:,} tokens with all their answers"),
        ("heldout", [files[1]]),
        ("on_bad", "repair"),
        ("results_dir", str(run / "results")),
        context_line("max_length", model, {"rankings, which are left out": rankings.lengths}),
        *model_lines(model),
        *checkpointing(model),
        ("per_device_train_batch_size", at_once),
        ("per_device_eval_batch_size", at_once),
        (
            "gradient_accumulation_steps",
            batch // at_once,
            f"× {at_once} = {batch} rankings a step: a 32nd of them, 4 to 64",
        ),
        (
            "num_train_epochs",
            passes,
            f"× {rankings.rows:,} / {batch} = {steps} steps; more passes are learned by heart",
        ),
        *rates(model, 0.33, 0.25, 0.00001, 0.0001),
        ("center_rewards_coefficient", 0.01),
        *last_lines(run, "reward"),
    ]
    return Stage(
        "reward",
        lines,
        rankings.rows,
        rankings.tokens * passes,
        steps,
        rankings.tokens * passes * model.flops_per_token,
    )


def ppo(
    run: Path,
    origin: str,
    prompts: Turns,
    files: tuple[str, str],
    response: int,
    model: Model,
    machine: Machine,
    seconds: float,
) -> Stage:
    room = model.context - response
    fit = prompts.prompts[prompts.prompts <= room]
    answer = float(np.minimum(prompts.answers, response).mean())
    batch = sizes.power_of_two(len(fit) / len(prompts.prompts) * prompts.asked, 128 if machine.gpu else 64)
    asked = 128 if machine.gpu else 64  # in an evaluation
    # Per token, where 6N is its forward and backward: sampling 2N, policy, reference, reward and value model 4 × 2N
    # forward; all answers of a rollout are padded to its longest prompt. Then policy and value model 2 × 6N, in
    # micro-batches of like length.
    padded = float(np.quantile(fit, 1 - 1 / batch, method="higher")) + response
    sampled = padded * model.flops_per_token * 10 / 6
    episode = sampled + (float(fit.mean()) + answer) * model.flops_per_token * 12 / 6
    evaluated = EVALUATIONS * asked * sampled
    possible = max(0.0, seconds * machine.flops - evaluated) / episode
    while batch > 32 and possible / batch < 60:
        batch //= 2
    updates = 10 * max(3, min(20, int(possible / batch / 10)))
    between = updates // 5
    micro = sizes.micro_batch(batch, model.context, model.vocabulary, model.width, model.layers, machine.memory)
    micro = min(micro, 16)
    budget = sizes.two_digits(0.1 * response)
    if model.name is None:
        rate, why = (
            sizes.two_digits(0.0002 * 192 / model.width),
            f"0.0002 × 192 / {model.width}: the quickstart's width",
        )
    else:
        rate, why = (0.00001, "of the adapters") if model.lora else full_rate(model, 0.000002)
    cut = np.mean(prompts.answers > response)
    lines = [
        ("sft_model_path", origin),
        ("reward_model_path", str(run / "reward")),
        ("prompts", [files[0]], f"{prompts.asked:,} prompts"),
        ("heldout", [files[1]]),
        ("on_bad", "repair"),
        (
            "long_prompts",
            "drop",
            f"beyond {model.context:,} − {response} of the answer = {room:,} tokens: {longer(prompts.prompts, room)} of them",
        ),
        ("max_prompts", asked, f"in each of {EVALUATIONS} evaluations"),
        ("results_dir", str(run / "results")),
        *model_lines(model),
        *checkpointing(model),
        ("stop_token", "eos"),
        (
            "response_length",
            response,
            f"of the answers in the data {100 * cut:.1f} % are longer, on average they have {prompts.answers.mean():.0f} tokens",
        ),
        ("temperature", 1.0),
        (
            "missing_eos_penalty",
            1.0 if cut <= 0.25 else 0.0,
            "1 where a quarter of the answers at most is longer than response_length, else 0: it would teach brevity alone",
        ),
        (
            "total_episodes",
            updates * batch,
            f"{updates} updates × {batch}; 30 to 200 updates, {seconds:.0f} s of --minutes",
        ),
        ("per_device_train_batch_size", micro),
        ("gradient_accumulation_steps", batch // micro, f"× {micro} = {batch} answers an update"),
        ("local_rollout_forward_batch_size", min(batch, 4 * micro)),
        ("per_device_eval_batch_size", min(128, 4 * micro)),
        ("num_mini_batches", 1),
        ("num_ppo_epochs", 1),
        ("normalize_rewards", True),
        ("kl_coef", 0.45, "in units of the rewards' spread before training, as in the quickstart"),
        ("kl_budget", budget, f"0.1 nats × {response} tokens; beyond it no checkpoint counts as the best"),
        ("stop_on", ["kl_over_budget", "non_finite_loss"]),
        ("cliprange", 0.2),
        (
            "cliprange_value",
            10.0,
            "rewards may differ by several units: at TRL's 0.2 the value model cannot follow them",
        ),
        ("vf_coef", 0.1),
        ("gamma", 1.0),
        ("lam", 0.95),
        (
            "learning_rate",
            rate,
            why,
        ),
        ("value_learning_rate", sizes.two_digits(5 * rate), "5 times that of the policy"),
        ("num_value_warmup_updates", 0.1, "of the updates"),
        ("max_grad_norm", 1.0),
        ("num_sample_generations", 5),
        ("logging_steps", 1),
        ("eval_strategy", "steps"),
        ("eval_steps", between, "a fifth of the updates"),
        ("save_strategy", "steps"),
        ("save_steps", between),
        ("save_total_limit", 1),
        ("load_best_model_at_end", True),
        ("metric_for_best_model", "score", "the reward on held-out prompts; of checkpoints within kl_budget"),
        ("report_to", "none"),
        ("output_dir", str(run / "ppo")),
    ]
    return Stage(
        "ppo", lines, prompts.asked, round(updates * batch * answer), updates, updates * batch * episode + evaluated
    )


def dpo(run: Path, origin: str, rankings: Turns, files: tuple[str, str], model: Model, machine: Machine) -> Stage:
    batch, at_once = preference_batch(rankings, model, machine)
    steps = math.ceil(rankings.rows / batch)
    lines = [
        ("model_name_or_path", origin),
        ("rankings", [files[0]], f"{rankings.rows:,} rankings"),
        ("heldout", [files[1]]),
        ("on_bad", "repair"),
        ("results_dir", str(run / "results")),
        context_line("max_length", model, {"rankings, which are left out": rankings.lengths}),
        *model_lines(model),
        ("beta", 0.1),
        ("precompute_ref_log_probs", False),
        *checkpointing(model),
        ("per_device_train_batch_size", at_once),
        ("per_device_eval_batch_size", at_once),
        ("gradient_accumulation_steps", batch // at_once, f"× {at_once} = {batch} rankings a step"),
        ("num_train_epochs", 1, f"× {rankings.rows:,} / {batch} = {steps} steps"),
        preference_rate(model),
        *last_lines(run, "dpo"),
    ]
    return Stage("dpo", lines, rankings.rows, rankings.tokens, steps, rankings.tokens * model.flops_per_token * 4 / 3)


def label_weights(good: int, bad: int) -> list[tuple]:
    """The lines that weigh good answers against bad ones: 1 to 4/3 times as much in all (Ethayarajh 2024, section 4.2)."""
    weights, why = {"desirable_weight": 1.0, "undesirable_weight": 1.0}, "1 to 4/3"
    if good < bad:
        weights["desirable_weight"] = sizes.two_digits(MORE * bad / good)
    elif good > 4 / 3 * bad:
        weights["undesirable_weight"] = sizes.two_digits(good / bad / MORE)
    (first, above), (second, below) = weights.items()
    total = f"{above:g} × {good:,} / ({below:g} × {bad:,}) = {above * good / below / bad:.2f}"
    return [(first, above, f"{total}, within {why}: good answers against bad ones"), (second, below)]


def kto(
    run: Path,
    origin: str,
    answers: Turns,
    good: int,
    files: tuple[str, str],
    model: Model,
    machine: Machine,
    seconds: float,
) -> Stage:
    # A token costs twice a forward and backward: the policy learns from an answer (3 units of a forward), the reference
    # scores it (1), and both score another's answer for the KL (2).
    passes = passes_in(2 * answers.tokens, 3, model, machine, seconds)
    batch, at_once = preference_batch(answers, model, machine, least=8)
    at_once = max(2, at_once)
    steps = math.ceil(answers.rows / batch) * passes
    lines = [
        ("model_name_or_path", origin),
        ("rankings", [files[0]], f"{answers.rows:,} labelled answers, {good:,} good and {answers.rows - good:,} bad"),
        ("heldout", [files[1]]),
        ("on_bad", "repair"),
        ("results_dir", str(run / "results")),
        context_line("max_length", model, {"answers, which are left out": answers.lengths}),
        *model_lines(model),
        ("beta", 0.1),
        *label_weights(good, answers.rows - good),
        ("precompute_ref_log_probs", False),
        *checkpointing(model),
        ("per_device_train_batch_size", at_once, "2 or more: the KL is estimated with each other's answers"),
        ("per_device_eval_batch_size", at_once),
        (
            "gradient_accumulation_steps",
            batch // at_once,
            f"× {at_once} = {batch} answers a step: a 32nd of them, 8 to 64",
        ),
        (
            "num_train_epochs",
            passes,
            f"× {answers.rows:,} / {batch} = {steps} steps; 3 at most, and {seconds:.0f} s, its share of --minutes",
        ),
        preference_rate(model),
        *last_lines(run, "kto"),
    ]
    tokens = answers.tokens * passes
    return Stage("kto", lines, answers.rows, tokens, steps, 2 * tokens * model.flops_per_token)
