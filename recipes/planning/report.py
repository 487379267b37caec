"""A plan as lines of text."""

import argparse
import math
from pathlib import Path

from data_prep.planning.configs import yaml_value
from recipes.planning.architecture import Sources
from recipes.planning.hardware import GPUS
from recipes.planning.run_plan import CHINCHILLA, Plan, changes, fits
from recipes.trainers.sharding import WHOLE


def gigabytes(size: float) -> str:
    if size < 0.1e9:
        return f"{size / 1e6:,.1f} MB"
    return f"{size / 1e9:,.2f} GB" if size < 10e9 else f"{size / 1e9:,.1f} GB"


def duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:,.3g} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def mix_lines(path: Path, values: dict) -> list[str]:
    """A mixture: what tokenizing will write. Nothing is trained."""
    sources = values.get("sources") or {}
    lines = [f"{path}: mix, {len(sources)} sources for {values.get('output_dir')}"]
    total = values.get("total_tokens")
    if total:
        lines.append(
            f"  tokens       {total:,}, {gigabytes(2 * total)} on disk, twice that for a vocabulary above 65,536"
        )
    else:
        lines.append(
            f"  tokens       {values.get('passes')} × the corpus; python -m data_prep.mix_corpus --dry_run counts it"
        )
    return lines


def plan_lines(plan: Plan, sources: Sources, given: argparse.Namespace) -> list[str]:
    """Model, tokens, FLOPs, memory, time and price of a stage, and what to change where it does not fit."""
    work, gpu = plan.work, GPUS[given.gpu]
    policy = plan.models["policy"]
    lines = [f"{plan.path}: {plan.stage}", f"  architecture {plan.origin}"]
    for name, model in plan.models.items():
        if model is None:
            lines.append("  reference    the policy with its adapter switched off")
            continue
        adapter = f", {model.adapter:,} of an adapter trained" if model.adapter else ""
        label = "model" if len(plan.models) == 1 else name
        lines.append(f"  {label:12} {model.parameters:,} parameters (N = {model.multiplied:,}){adapter}")
    total = plan.total(work.tokens)
    lines.append(f"  tokens       {work.how} = {total or work.tokens:,.0f}")
    if plan.stage == "pretrain":
        best = CHINCHILLA * policy.parameters
        seen = f"; this run has {total / policy.parameters:,.3g} a parameter" if total else ""
        lines.append(f"  Chinchilla   {CHINCHILLA} × {policy.parameters:,} = {best:,} tokens (Hoffmann 2022){seen}")
        if total:
            width = math.sqrt(6 * policy.parameters * total / (6 * CHINCHILLA))
            lines.append(f"               the same 6·N·D would be best spent on {width:,.3g} parameters")
    flops = plan.total(work.flops)
    again = (
        f" and {plan.total(work.recomputed) or work.recomputed:.3g} to recompute activations"
        if work.recomputed
        else ""
    )
    lines.append(
        f"  FLOPs        {flops or work.flops:.3g}{'' if flops else ' a step'}: {work.flops / work.tokens:,.0f} a token{again}"
    )
    parts = ", ".join(f"{name} {gigabytes(size)}" for name, size in plan.parts.items())
    lines.append(f"  memory       {gigabytes(plan.peak)} at the peak of a GPU: {parts}")
    lines.append(f"  time         {time_and_price(plan, given)}")
    lines += [f"  note: {note}" for note in work.notes]
    accumulation = plan.values["gradient_accumulation_steps"]
    if accumulation % given.num_gpus and (rows := plan.values.get("global_batch_size")):
        at_once = plan.values["per_device_train_batch_size"]
        lines.append(
            f"  note: global_batch_size: {rows:,} rows do not divide into {given.num_gpus} GPUs × {at_once}: the recipe would "
            "refuse them"
        )
    elif accumulation % given.num_gpus:
        lines.append(
            f"  note: gradient_accumulation_steps: {accumulation:,} is no multiple of {given.num_gpus} GPUs: they cannot share "
            "the batch evenly"
        )
    if given.num_gpus > 1 and given.sharding in WHOLE.get(plan.stage, ()):
        lines.append(
            f"  note: recipes/{plan.stage}.py refuses {given.sharding}: it needs whole weights on each GPU; see ddp"
        )
    if not fits(plan.peak, gpu.memory):
        lines.append(f"  DOES NOT FIT {gigabytes(plan.peak)}, and a {given.gpu} has {gigabytes(gpu.memory)}")
        if found := changes(plan, sources, gpu.memory, given.num_gpus, given.sharding):
            keys = ", ".join(f"{name}: {yaml_value(value)}" for name, value in found[0].items())
            lines.append(f"  change       {keys} → {gigabytes(found[1])}")
        else:
            more = (
                ""
                if given.num_gpus > 1 or plan.stage in WHOLE
                else "; --num_gpus 8 --sharding fsdp2 shows what sharding does"
            )
            lines.append(f"  change       no smaller batch, checkpointing, LoRA or 4-bit weights makes it fit{more}")
    return lines


def time_and_price(plan: Plan, given: argparse.Namespace) -> str:
    """Hours on the GPUs, and what they cost."""
    gpu, limit = GPUS[given.gpu], plan.values.get("max_seconds")
    seconds = plan.seconds(gpu, given.num_gpus, given.utilisation)
    if seconds is None and not limit:
        a_step = (plan.work.flops + plan.work.recomputed) / (gpu.flops * given.utilisation * given.num_gpus)
        a_step += plan.work.read / gpu.bandwidth
        return f"{a_step:.3g} s a step; how many there are is not known: the data is not here (--rows N)"
    cut = bool(limit) and (seconds is None or limit < seconds)
    seconds = limit if cut else seconds
    text = f"{duration(seconds)}{', where max_seconds ends it' if cut else ''}"
    if given.price_per_hour is not None:
        text += f"; price {seconds / 3600 * given.num_gpus * given.price_per_hour:,.2f}"
    return text


def summary(plans: list[Plan], given: argparse.Namespace) -> list[str]:
    """All stages as a table."""
    lines = [f"{'stage':22}{'parameters':>16}{'tokens':>16}{'FLOPs':>10}{'memory':>11}  time"]
    for plan in plans:
        tokens, flops = plan.total(plan.work.tokens), plan.total(plan.work.flops)
        shown = (f"{tokens:,.0f}" if tokens else "?", f"{flops:.2e}" if flops else "?", gigabytes(plan.peak))
        name, number = plan.stage, f"{plan.models['policy'].parameters:,}"
        lines.append(f"{name:22}{number:>16}{shown[0]:>16}{shown[1]:>10}{shown[2]:>11}  {time_and_price(plan, given)}")
    return lines
