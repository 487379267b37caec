"""Which stages the data allow, their configs, and the script that runs them in order."""

import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.planning import configs, preference_configs, sizes
from data_prep.planning.configs import Machine, Model, Stage, as_yaml
from data_prep.planning.measure import Text, Turns
from data_prep.planning.origin import Origin, size_of

LAUNCH = "accelerate launch --quiet --config_file accelerate_configs/single_process.yaml"
FOLDERS = {"pretrain": "base"}
END_OF_TURN = "<|end|>"  # in the chat template of tokenizers made here
TITLES = {
    "pretrain": "Pretrain a GPT-2-style model from random weights.",
    "sft": "Fine-tune it on the conversations.",
    "reward": "Train a reward model on the rankings.",
    "ppo": "Improve the assistant by PPO against the reward model.",
    "dpo": "Improve the assistant by DPO on the rankings.",
    "kto": "Improve the assistant by KTO on the answers labelled good or bad.",
}


class Data(NamedTuple):
    """The data of a run, each kind as (training file, held-out file), by their paths in the finished run."""

    corpus: dict[str, tuple[str, str]]  # {source: files}: what tokenizer and base model learn from; {}: from a model
    turns: tuple[str, str] | None  # conversations, or the best answers of preferences
    preferences: tuple[str, str] | None
    labels: tuple[str, str] | None  # preferences again, where they make no rankings
    splits: list[list[str]]  # the commands that make a part, its file last


class Measured(NamedTuple):
    """What is in the training files, in tokens of the run's tokenizer."""

    text: Text | None
    turns: Turns | None
    rankings: Turns | None
    labels: Turns | None
    good: int = 0  # of the labels


class Road(NamedTuple):
    """A run as it is planned."""

    stages: list[Stage]
    files: dict[str, str]  # {name in the run's folder: its text}
    notes: list[str]  # what is to be said of it


def context_of(measured: Measured, most: int, gpu: bool) -> int:
    """The context: as long as 95 % of each of the kinds; of documents alone, which go on in the next row, up to 512."""
    kinds = [kind.lengths for kind in (measured.turns, measured.rankings, measured.labels) if kind]
    if not kinds:
        return sizes.context(measured.text.lengths, min(most, 1024 if gpu else 512))
    return max(sizes.context(lengths, most) for lengths in kinds)


def answer_length(turns: Turns, context: int, gpu: bool) -> int:
    """Room for an answer: 90 % of those in the data fit, but half the context, and 128 tokens on a processor, at most."""
    wanted = sizes.multiple_of_16(np.quantile(turns.answers, 0.9, method="higher"))
    return int(min(wanted, context // 2, 512 if gpu else 128))


def trainings_of(data: Data, origin: Origin | None) -> list[str]:
    """The trainings that the data allow. PPO needs a padding token: where there is none, DPO takes its place."""
    last = ["dpo"] if origin and not origin.pads else ["reward", "ppo"]
    last = last if data.preferences else ["kto"] if data.labels else []
    return ([] if origin else ["pretrain"]) + (["sft"] if data.turns else []) + last


def plan(
    data: Data,
    measured: Measured,
    root: Path,
    run: Path,
    vocabulary: int,
    origin: Origin | None,
    machine: Machine,
    seconds: float,
) -> Road:
    """The run that suits the data, the machine and the seconds that it may take.

    Args:
        root: the folder of the repository, in which the script runs.
        run: the folder of the run, as the files call it.
        vocabulary: entries of the tokenizer.
        origin: the model to start from; None: random weights.
    """
    trainings = trainings_of(data, origin)
    share = sizes.shares(trainings, seconds)
    most = 4096 if machine.gpu else 1024
    why = f"the power of two in which {sizes.KEPT:.0%} fit, at most {most:,} {'on a GPU' if machine.gpu else 'on a processor'}"
    shape = None
    if origin:
        model = size_of(origin, machine)
        why = f"{why}, and the model's {model.context:,}"
        model = model._replace(context=context_of(measured, min(most, model.context), machine.gpu), context_why=why)
    else:
        context = context_of(measured, most, machine.gpu)
        shape = sizes.best_shape(vocabulary, context, measured.text.tokens, share["pretrain"] * machine.flops)
        parameters, flops = shape.parameters(vocabulary, context), shape.flops_per_token(vocabulary, context)
        model = Model(None, shape.n_layer, shape.n_embd, parameters, flops, vocabulary, context, why)
    kinds = {"conversations": measured.turns, "rankings": measured.rankings, "labelled answers": measured.labels}
    stages, notes = [], []
    base, sft = model.name or str(run / "base"), str(run / "sft")
    if shape:
        heldout = [files[1] for files in data.corpus.values()]
        lengths = {name: kind.lengths for name, kind in kinds.items() if kind}
        lengths = lengths or {"documents, which go on in the next row": measured.text.lengths}
        stages.append(configs.pretrain(run, measured.text, lengths, heldout, shape, model, machine, share["pretrain"]))
    if data.turns:
        extra = lines_of(origin, run) if origin else [("eos_token", END_OF_TURN)]
        answer = answer_length(measured.turns, model.context, machine.gpu)
        stages.append(configs.sft(run, base, measured.turns, data.turns, extra, answer, model, machine, share["sft"]))
    for name, kind in kinds.items():
        if kind and np.mean(kind.lengths > model.context) > 1 - sizes.KEPT:
            what = "truncated" if name == "conversations" else "left out of training"
            notes.append(
                f"{configs.longer(kind.lengths, model.context)} of the {name} are longer than {model.context:,} tokens, "
                f"max_length, and {what}; see what data_prep.check says, or take a model with a longer context"
            )
    if data.preferences:
        rankings = (measured.rankings, data.preferences)
        if "ppo" in trainings:
            answer = answer_length(measured.rankings, model.context, machine.gpu)
            stages.append(preference_configs.reward(run, sft, *rankings, model, machine, share["reward"]))
            stages.append(preference_configs.ppo(run, sft, *rankings, answer, model, machine, share["ppo"]))
            notes.append(
                f"instead of the reward model and PPO, dpo.yaml: {LAUNCH} recipes/dpo.py --config {run}/dpo.yaml"
            )
        else:
            notes.append(f"DPO instead of PPO: the tokenizer of {model.name} has no padding token apart from its end")
        stages.append(preference_configs.dpo(run, sft, *rankings, model, machine))
    if data.labels:
        labelled = (measured.labels, measured.good, data.labels)
        stages.append(preference_configs.kto(run, sft, *labelled, model, machine, share["kto"]))
        notes.append(
            f"KTO instead of a reward model and PPO: one label a prompt makes no ranking, and the {measured.labels.rows:,} "
            f"labelled answers, {measured.good:,} of them good, make too few"
        )
    files = {f"{stage.name}.yaml": as_yaml(head_of(stage, run, machine), stage.lines) for stage in stages}
    if shape:
        sources = {name: [files[0]] for name, files in data.corpus.items()}
        command = f"python -m data_prep.mix_corpus --config {run / 'mix.yaml'}"
        files["mix.yaml"] = as_yaml([command], configs.mix(run, sources, measured.text))
    if origin and origin.template:
        files["chat_template.jinja"] = origin.template
        notes.append(f"{model.name} has no chat template that marks its answers: chat_template.jinja is given to it")
    ran = [stage for stage in stages if stage.name in trainings]
    steps = steps_of(data, run, ran, vocabulary if shape else None)
    files["run.sh"] = script(root, run, steps, ran, bool(origin and not origin.folder))
    return Road(ran, files, notes)


def lines_of(origin: Origin, run: Path) -> list[tuple]:
    """Lines of sft.yaml for a model that is there."""
    lines = [("chat_template_path", str(run / "chat_template.jinja"))] if origin.template else []
    return lines + (
        [("eos_token", origin.end_of_turn, "what ends an answer in its chat template")] if origin.end_of_turn else []
    )


def head_of(stage: Stage, run: Path, machine: Machine) -> list[str]:
    """The first lines of a YAML: its command, and the time it takes."""
    rate = f"{machine.flops / 1e9:,.0f} GFLOP/s, {sizes.EFFICIENCY:.0%} of the rate of matrix products when this was written"
    return [
        f"{LAUNCH} recipes/{stage.name}.py --config {run / f'{stage.name}.yaml'}",
        f"{stage.flops:.2g} FLOP, at {rate}: about {stage.flops / machine.flops:,.0f} s, and {sizes.START} s to start.",
    ]


def table(road: Road, machine: Machine) -> list[str]:
    """The stages: what they train on, and about how long."""
    lines = [f"{'stage':9}{'rows':>10}{'tokens':>14}{'steps':>8}{'about':>10}"]
    for stage in road.stages:
        seconds = stage.flops / machine.flops + sizes.START
        about = f"{seconds:,.0f} s" if seconds < 600 else f"{seconds / 60:,.0f} min"
        lines.append(f"{stage.name:9}{stage.rows:10,}{stage.tokens:14,}{stage.steps:8,}{about:>10}")
    return lines


def step(output: Path | str, *words: str | Path, launch: bool = False) -> str:
    """A step of the script: skipped where its output is there."""
    command = ("$LAUNCH " if launch else "") + shlex.join(map(str, words))
    return f"step {shlex.quote(str(output))} \\\n    {command}"


def steps_of(data: Data, run: Path, stages: list[Stage], vocabulary: int | None) -> list[str]:
    """The commands of the run in order, each with a comment."""
    steps = [
        "# A part of each kind was held out when the configs were written. What is lost of it is made again as it was."
    ]
    steps += [step(command[-1], "python", "-m", *command) for command in data.splits]
    if vocabulary:
        corpus = [files[0] for files in data.corpus.values()]
        tokenizer = ["--vocab_size", vocabulary, "--output_dir", run / "tokenizer"]
        steps += ["# Train a byte-level BPE tokenizer, chat template inside."]
        steps += [
            step(run / "tokenizer", "python", "-m", "data_prep.train_tokenizer", "--corpus", *corpus, *tokenizer)
        ]
        steps += ["# Tokenize the corpus."]
        steps += [step(run / "data" / "tokens", "python", "-m", "data_prep.mix_corpus", "--config", run / "mix.yaml")]
    for stage in stages:
        results, folder = run / "results" / f"{stage.name}.json", run / FOLDERS.get(stage.name, stage.name)
        steps += [f"# {TITLES[stage.name]}", f"unfinished {shlex.join(map(str, (results, folder)))}"]
        steps += [step(results, f"recipes/{stage.name}.py", "--config", run / f"{stage.name}.yaml", launch=True)]
    return steps


def script(root: Path, run: Path, steps: list[str], stages: list[Stage], online: bool) -> str:
    """run.sh."""
    name = FOLDERS.get(stages[-1].name, stages[-1].name)
    last = f"the results: {run}/results · talk to it: python -m eval.chat --model {run / name}"
    lines = [
        "#!/usr/bin/env bash",
        "# Written by python -m data_prep.start. A step whose output is there is skipped: the same command resumes.",
        "set -euo pipefail",
        f"cd {shlex.quote(str(root))}",
        f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH",
        f"RUN={shlex.quote(str(run))}",
        ". recipes/steps.sh",
        *(["export HF_HUB_OFFLINE=0  # the model may have to be fetched"] if online else []),
        'mkdir -p "$RUN/results"',
        "",
        *steps,
        "",
        f"printf '\\n%s\\n' {shlex.quote(last)}",
    ]
    return "\n".join(lines) + "\n"
