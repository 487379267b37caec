"""Kill every stage at random moments, run the same command again, and compare with a run that nobody killed.

    python tests/survive.py --kills 20
    python tests/survive.py --kills 20 --stages sft ppo --signal TERM
    python tests/survive.py --kills 20 --stages quickstart

A stage here is a recipe on a tiny model with a checkpoint after every update, so that many kills fall while one is written.
`quickstart` is recipes/quickstart.sh itself, in a copy of this repository with a few updates of each stage (`--until sft`: up
to the assistant); it and all its children are killed. After a kill the same command runs again, and is killed again; when
it comes to its end, its weights must be those of the run that nobody killed, byte for byte, and it starts over until
there were so many kills. With TERM a run must say by its exit code that it saved (143). Prints a line for each stage, and
exits with 1 if anything differed. A kill is a second to some seconds of computing.
"""

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
import yaml
from helpers.models import save, tiny_config
from helpers.recipes import ENVIRONMENT, RECIPES, ROOT, processes, ready_to_end, run_as_script, words
from helpers.stages import short_runs
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer

UPDATES = 8
# The quickstart with a few updates of each stage: {file: {key: value}}, and less to sample in its commands.
SMALL = {
    "mix": {"total_tokens": 40_000},
    "pretrain": {
        "n_layer": 1,
        "n_embd": 48,
        "max_steps": 40,
        "eval_steps": 20,
        "save_steps": 5,
        "lr_scheduler_kwargs": {},
    }
    | {"lr_scheduler_type": "linear"},
    "sft": {"max_steps": 20, "save_strategy": "steps", "save_steps": 4},
    "reward": {"max_steps": 10, "save_strategy": "steps", "save_steps": 2},
    "ppo": {"total_episodes": 512, "max_prompts": 16, "eval_steps": 2, "save_steps": 2, "save_only_model": False}
    | {"stop_on": []},
}
LESS = {
    "--limit 400": "--limit 20",
    "--limit 1000": "--limit 20",
    "--limit 200": "--limit 10",
    "sequences 16": "sequences 2",
}


class Stage:
    """A command that writes to a folder: started, waited for, killed."""

    def __init__(self, name: str, folder: Path, settings: dict | None, until: str) -> None:
        self.name, self.folder, self.settings, self.until = name, folder, settings, until
        self.log, self.partial = f"{folder}.log", set()

    def start(self) -> None:
        if self.settings is None:
            environment = {**ENVIRONMENT, "PYTHONPATH": str(self.folder), "UNTIL": self.until}
            environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
            with open(f"{self.log}.out", "w") as out, open(f"{self.log}.err", "w") as err:
                line = ["bash", "recipes/quickstart.sh"]
                self.process = subprocess.Popen(
                    line, cwd=self.folder, env=environment, stdout=out, stderr=err, start_new_session=True
                )
            return
        line = words(self.name, {**self.settings, "output_dir": self.folder})
        self.process = processes().Process(target=run_as_script, args=(line, self.log, {**ENVIRONMENT}))
        self.process.start()

    def wait(self, seconds: float | None) -> int | None:
        """The exit code, or None if it still runs after `seconds`."""
        if self.settings is not None:
            self.process.join(seconds)
            return self.process.exitcode
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: int) -> None:
        if self.settings is None:
            os.killpg(self.process.pid, number)
        else:
            os.kill(self.process.pid, number)

    def clear(self) -> None:
        shutil.rmtree(self.written, ignore_errors=True)

    @property
    def written(self) -> Path:
        return self.folder if self.settings is not None else self.folder / "runs"

    def result(self) -> dict[str, bytes]:
        """The weights of the finished models, and for the quickstart the data in between."""
        names = ["model.safetensors"] if self.settings is not None else ["model.safetensors", "*.jsonl", "conv*.json"]
        found = (path.relative_to(self.folder) for name in names for path in self.written.rglob(name))
        return {str(path): (self.folder / path).read_bytes() for path in found if "checkpoint-" not in str(path)}

    def moment(self) -> str:
        """Where the run was when it was killed, by what it left."""
        partial = {(path, path.stat().st_mtime_ns) for path in self.written.rglob("partial-*")}
        saving, self.partial = partial - self.partial, partial
        if saving:
            return "while saving"
        if self.settings is None:
            return "in between"
        return "after a checkpoint" if any(self.written.glob("checkpoint-*")) else "before a checkpoint"


def survive(stage: Stage, kills: int, number: int, draw: random.Random) -> bool:
    """Kill a stage so many times, and print what came of it."""
    stage.clear()
    if stage.settings is not None:  # the process that others are forked from imports the libraries first
        first = processes().Process(target=os.getpid)
        first.start()
        first.join()
    begun = time.perf_counter()
    stage.start()
    if stage.wait(None) != 0:
        print(f"{stage.name}: failed without a kill\n{Path(f'{stage.log}.err').read_text()[-2000:]}")
        return False
    length, expected = time.perf_counter() - begun, stage.result()
    stage.clear()
    moments, ends, failures, ended = Counter(), 0, [], False
    while (sum(moments.values()) < kills or not ended) and not failures:
        stage.start()
        ended = False
        last = sum(moments.values()) >= kills
        code = stage.wait(None if last else draw.uniform(0, length))
        if code is None:
            stage.send(number)
            code = stage.wait(None)
            if code != 0:
                moments[stage.moment()] += 1
            if number == signal.SIGTERM and code not in (0, 143, -15):
                failures.append(f"exit code {code}")
            if code != 0:
                continue
        if code != 0:
            failures.append(f"exit code {code}: {Path(f'{stage.log}.err').read_text()[-1500:]}")
        elif (found := stage.result()) != expected:
            failures.append(f"differs: {sorted(name for name in expected if found.get(name) != expected[name])}")
        else:
            ends, ended = ends + 1, True
            if not last:
                stage.clear()
    told = ", ".join(f"{count} {moment}" for moment, count in sorted(moments.items()))
    verdict = "; ".join(failures) or f"{ends} ends, all byte for byte the run that nobody killed"
    print(f"{stage.name}: {sum(moments.values())} kills ({told}); {verdict}", flush=True)
    return not failures


def tiny_stages(folder: Path) -> dict[str, dict]:
    """The settings of every recipe on tiny models in `folder`."""
    train_tokenizer(iter(["yes and no, and what is right"]), 262).save_pretrained(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "chat")
    chat = AutoTokenizer.from_pretrained(folder / "chat", eos_token=END_OF_TURN)
    torch.manual_seed(0)
    model = save(GPT2LMHeadModel(tiny_config(chat)), chat, folder / "model")
    reward = save(GPT2ForSequenceClassification(tiny_config(chat, num_labels=1)), chat, folder / "reward")
    (folder / "data").mkdir()
    return short_runs(folder / "data", tokenizer, model, reward, ready_to_end(chat, folder / "ready"), UPDATES)


def small_quickstart(folder: Path) -> None:
    """A copy of this repository whose quickstart has a few updates of each stage."""
    for name in ("recipes", "data_prep", "eval", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in SMALL.items():
        path = folder / "recipes" / "configs" / "quickstart" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, allow_unicode=True))
    script = folder / "recipes" / "quickstart.sh"
    text = script.read_text()
    for long, short in LESS.items():
        text = re.sub(re.escape(long), short, text)
    script.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each stage (default: 20)")
    parser.add_argument("--stages", nargs="+", default=[*RECIPES], choices=[*RECIPES, "quickstart"])
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--until", default="", help="sft: end the quickstart there")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    args = parser.parse_args()
    draw, whole = random.Random(args.seed), True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = tiny_stages(folder)
        for stage in args.stages:
            if stage == "quickstart":
                small_quickstart(folder / "quickstart")
            one = Stage(
                stage,
                folder / "quickstart" if stage == "quickstart" else folder / stage,
                settings.get(stage),
                args.until,
            )
            whole &= survive(one, args.kills, getattr(signal, f"SIG{args.signal}"), draw)
    sys.exit(not whole)


if __name__ == "__main__":
    main()
