"""What a stage computes: tokens and FLOPs of a step, and how many steps there are."""

import math
from typing import NamedTuple

from recipes.planning.architecture import Counts
from recipes.planning.data import Data

ROLLOUTS = ("ppo", "rloo", "grpo")
ASSUMED = 1024  # tokens, where neither the rows nor a limit of their length are known


class Work(NamedTuple):
    """One optimizer step (of PPO, one update) of all processes together, and their number.

    rows: sequences at once on a device. length: tokens of the longest. mean: tokens of a sequence.
    tokens: those of a step that are trained on, once. flops: of the model. recomputed: those of activation checkpointing.
    read: bytes of weights that sampling reads from memory, token by token.
    steps: None where the rows are not known. how: the tokens as a calculation.
    """

    rows: float
    length: int
    mean: float
    tokens: float
    flops: float
    recomputed: float
    read: float
    steps: int | None
    how: str
    notes: list[str]


def checkpoints(values: dict) -> bool:
    """Whether activations are computed again in the backward pass; transformers 5 has two names for it."""
    asked = values.get("activation_checkpointing")
    return bool(values.get("gradient_checkpointing") if asked is None else asked)


def again(model: Counts, length: float) -> float:
    """FLOP per token of the second forward pass through the blocks."""
    return 2 * model.linear + 4 * model.layers * model.attention * length


def within(data: Data, length: int, cut: bool) -> tuple[Data, int]:
    """(the data of rows up to `length` tokens, how many rows are left out of it); with `cut` longer ones are truncated.

    Where no row is so short all are taken as truncated: the recipe would refuse them.
    """
    fits = data.lengths <= length
    if cut or not fits.any():
        kept = totals = data.lengths.clip(max=length)
        mean = data.mean * kept.mean() / data.lengths.mean()
    else:
        kept, totals = data.lengths[fits], data.totals[fits]
        mean = data.mean * totals.mean() / data.totals.mean()
    left_out = data.rows - round(data.rows * len(kept) / len(data.lengths))
    return data._replace(rows=data.rows - left_out, lengths=kept, mean=float(mean), totals=totals), left_out


def work_of(stage: str, values: dict, models: dict[str, Counts], data: Data | None, rows_given: int | None) -> Work:
    """The work of a stage.

    Args:
        models: {"policy": …}, and of the stages that have them "value", "reference" and "reward".
        data: what is known of its data, None if nothing.
        rows_given: rows of a pass, for data that is not here.
    """
    at_once, notes = values["per_device_train_batch_size"], []
    a_step = at_once * values["gradient_accumulation_steps"]
    policy = models["policy"]
    if stage in ROLLOUTS:
        return _rollouts(stage, values, models, data, rows_given, a_step)
    length = values.get("n_positions") or values.get("max_length") or policy.positions
    if length == math.inf:
        length = int(data.lengths.max()) if data else ASSUMED
    if length > policy.positions:
        notes.append(f"max_length: found {length:,}, but the model has {policy.positions:,} positions")
    packed = "tokens" in values or (stage == "sft" and values["packing"])
    answers, mean, longest = (1 if stage in ("sft", "kto") else 2), float(length), length
    known = data.rows if data else rows_given
    if data and "tokens" not in values:
        data, left_out = within(data, length, cut=stage == "sft" and values["long"] != "drop")
        if left_out:
            notes.append(f"{left_out:,} of {known:,} rows are longer than max_length, {length:,}: they are left out")
        known = data.rows
    if data and not packed:
        mean, longest = data.mean, int(data.lengths.max())
        answers = data.answers if stage == "reward" else answers
    elif not packed:
        notes.append(
            f"the lengths of the rows are not known here: all are taken as {length:,} tokens, the most there may be"
        )
    if "tokens" in values:
        known = data and data.rows // length
        answers = 1
    elif packed and known:
        known = math.ceil(known * (data.mean if data else length) / length)
    elif known and stage == "kto" and values["loss_type"] != "apo_zero_unpaired" and known % at_once == 1:
        known -= 1  # a batch by itself
    steps = values["max_steps"] if values["max_steps"] > 0 else None
    if steps is None and known:
        in_a_pass = math.ceil(
            math.ceil(known / at_once) / values["gradient_accumulation_steps"]
        )  # as the Trainer counts
        steps = max(1, math.ceil(in_a_pass * values["num_train_epochs"]))
    sequences = a_step * answers
    tokens = sequences * mean
    flops = tokens * policy.training(mean)
    again_flops = tokens * again(policy, mean) if checkpoints(values) else 0.0
    if stage == "dpo" and not values["precompute_ref_log_probs"]:
        flops += tokens * policy.forward(mean)
    if stage == "kto":  # the reference, and both on mismatched answers, from which the KL is estimated
        flops += tokens * policy.forward(mean) * (1 if values["loss_type"] == "apo_zero_unpaired" else 3)
    each = f"{length:,}" if packed or not data else f"{mean:,.1f}"
    inner = f" × {answers:,.3g} answers" if answers != 1 else ""
    how = f"{_steps(steps)} × {values['gradient_accumulation_steps']:,} × {at_once:,} rows{inner} × {each}"
    return Work(at_once * answers, longest, mean, tokens, flops, again_flops, 0.0, steps, how, notes)


def _steps(steps: int | None) -> str:
    return f"{steps:,} steps" if steps else "a step"


def answer_length(values: dict) -> int:
    return values.get("response_length") or values.get("max_completion_length") or 512


def _rollouts(stage: str, values: dict, models: dict, data: Data | None, rows_given: int | None, a_step: int) -> Work:
    """PPO, RLOO and GRPO: answers are sampled, scored and trained on. All are taken as long as they may become."""
    policy, answer, notes = models["policy"], answer_length(values), []
    room = max(1, policy.positions - answer)
    most = values.get("max_prompt_length") or (room if data or room < math.inf else ASSUMED)
    if most > room:
        notes.append(
            f"max_prompt_length: found {most:,}, but {policy.positions:,} positions leave {room:,} beside the answer"
        )
    if data:
        prompt, longest = min(data.mean, most), min(int(data.lengths.max()), most)
    else:
        prompt = longest = most
        notes.append(f"the prompts are not here: all are taken as {most:,} tokens, the most there may be")
    mean, prompts = prompt + answer, data.rows if data else rows_given
    tokens = a_step * mean
    if stage == "ppo":
        epochs = values["num_ppo_epochs"]
        steps = values["max_steps"] if values["max_steps"] > 0 else None
        if steps is None and (episodes := values["total_episodes"]):
            steps = math.ceil(episodes / a_step)
        if steps is None and prompts:
            steps = math.ceil(
                prompts // a_step * values["num_train_epochs"]
            )  # what does not fill a rollout is left out
        again_twice = 1  # the rollout is scored by the policy as it was
    else:
        epochs, again_twice = values["num_iterations"], 0
        steps = values["max_steps"] if values["max_steps"] > 0 else None
        if steps is None and prompts:
            # As TRL counts: prompts that do not fill a generation are left out of a pass.
            at_once, accumulation = values["per_device_train_batch_size"], values["gradient_accumulation_steps"]
            drawn = values["generation_batch_size"] or at_once * (values["steps_per_generation"] or accumulation)
            micro = prompts * values["num_generations"] // drawn * drawn // at_once * epochs
            steps = math.ceil(math.ceil(micro / accumulation) * values["num_train_epochs"])
        notes += ["a step is one of the optimizer"] if epochs > 1 else []
    trained = [models[name] for name in ("policy", "value") if name in models]
    per_token = policy.forward(mean)  # sampling, with a cache
    per_token += again_twice * sum(each.forward(mean) for each in trained)
    per_token += sum(models[name].forward(mean) for name in ("reference", "reward") if name in models)
    if "adapter reference" in models:
        per_token += policy.forward(mean)
    share = 1 if stage == "ppo" else 1 / epochs  # an answer is sampled once for all of its optimizer steps
    passes = epochs if stage == "ppo" else 1
    flops = tokens * (per_token * share + passes * sum(each.training(mean) for each in trained))
    again_flops = tokens * passes * sum(again(each, mean) for each in trained) if checkpoints(values) else 0.0
    read = answer * share * policy.parameters * (2 if values["bf16"] else 4)
    how = f"{_steps(steps)} × {a_step:,} answers × ({prompt:,.1f} of the prompt + {answer:,})"
    return Work(
        values["per_device_train_batch_size"],
        longest + answer,
        mean,
        tokens,
        flops,
        again_flops,
        read,
        steps,
        how,
        notes,
    )
