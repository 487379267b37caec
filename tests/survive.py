"""Kill every stage at random moments, run the same command again, and compare with a run that nobody killed.

    python tests/survive.py --kills 20
    python tests/survive.py --kills 20 --stages sft ppo --signal TERM
    python tests/survive.py --kills 20 --stages quickstart

A stage here is a recipe on a tiny model with a checkpoint after every update, so that many kills fall while one is written.
`quickstart` is recipes/quickstart.sh itself, in a copy of this repository with a few updates of each stage (`--until sft`: up
to the assistant); it and all its children are killed. After a kill the same command runs again, and is killed again; when
it comes to its end, its weights (and the quickstart's data) must be those of the run that nobody killed, byte for byte, and
it starts over until there were so many kills. With TERM a run must say by its exit code that it saved (143), or have been
stopped before it trained or after (-15). A run that ends by itself with another code, or does not end in ten times the time
of the whole one, is a failure.

Each kill is a line on stderr; on stdout there is a line for each stage and one for all. The tally is kept in
`output_dir`/tally.json: stopped by Ctrl-C or SIGTERM, the same command goes on (with more --kills, it adds to them). A stage
begins again if the code is another, or if it failed. Exits with 1 if anything differed; what was left then stays in `output_dir`.
"""

import argparse
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import torch
import yaml
from helpers.models import save, tiny_config
from helpers.recipes import ENVIRONMENT, RECIPES, ROOT, processes, ready_to_end, run_as_script, words
from helpers.stages import short_runs
from transformers import AutoTokenizer, GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.common.files import UNFINISHED, read_json, write_json
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer

UPDATES = 8
# RLOO and GRPO draw answers for four updates at once: most kills fall between updates on the same answers.
DRAWN_AT_ONCE = {"steps_per_generation": 2, "num_iterations": 2}
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
    "--conversations $RUN/data/prompts_rankings.json": "--conversations $RUN/data/prompts_rankings.json --limit 100",
    "--conversations $RUN/data/conversations_heldout_names.json": "--conversations $RUN/data/conversations_heldout_names.json --limit 20",
    "--limit 400 --num_return_sequences 16": "--limit 40 --num_return_sequences 4",
    "--limit 1000": "--limit 20",
    # So small an assistant never knows a fact: the rubric would leave few answers untied.
    "RUBRIC=data_prep.rewards.rubric": "RUBRIC=data_prep.rewards.chrf",
}


class Stage:
    """A command that writes to a folder: started, waited for, killed."""

    def __init__(self, name: str, folder: Path, settings: dict | None, until: str) -> None:
        self.name, self.folder, self.settings, self.until = name, folder, settings, until
        self.log, self.process, self.started = f"{folder}.log", None, 0.0

    def start(self) -> None:
        self.started = time.time()
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

    def wait(self, seconds: float) -> int | None:
        """The exit code, or None if it still runs after `seconds`."""
        if self.settings is not None:
            self.process.join(seconds)
            return self.process.exitcode
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def send(self, number: int) -> None:
        try:
            if self.settings is None:
                os.killpg(self.process.pid, number)
            else:
                os.kill(self.process.pid, number)
        except ProcessLookupError:  # it has ended
            pass

    def children_end(self) -> None:
        """Wait for what bash has started: told to stop, it ends at once, and a recipe when it has saved."""
        until = time.perf_counter() + 120
        while self.settings is None and time.perf_counter() < until:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)

    def stop(self) -> None:
        """Leave no process behind."""
        if self.process is not None and self.wait(0) is None:
            self.send(signal.SIGKILL)
            self.wait(60)
            self.children_end()

    def clear(self) -> None:
        shutil.rmtree(self.written, ignore_errors=True)

    @property
    def written(self) -> Path:
        return self.folder if self.settings is not None else self.folder / "runs"

    def result(self) -> dict[str, str]:
        """{file: sha256} of the finished models' weights, and for the quickstart of the data in between."""
        names = ["model.safetensors"] if self.settings is not None else ["model.safetensors", "*.jsonl", "conv*.json"]
        found = (path for name in names for path in self.written.rglob(name) if "checkpoint-" not in str(path))
        return {
            str(path.relative_to(self.folder)): hashlib.sha256(without_times(path.read_bytes())).hexdigest()
            for path in sorted(found)
        }

    @property
    def finished(self) -> bool:
        """Whether a recipe has come to its end: the same command would be refused."""
        here = self.settings is not None and (self.written / "config.json").exists()
        return here and not (self.written / UNFINISHED).exists()

    def moment(self) -> str:
        """Where the run was when it was killed, by what it has written since it was started."""
        files = [path for path in self.written.rglob("*") if path.is_file() and path.stat().st_mtime >= self.started]
        new = [path.relative_to(self.written) for path in sorted(files, key=lambda path: path.stat().st_mtime_ns)]
        if any("partial-" in str(path) for path in new):
            return "while saving a checkpoint"
        if not new:
            return "before it wrote anything"
        if self.settings is None:
            return f"in {new[-1].parts[1] if len(new[-1].parts) > 2 else new[-1].parts[-1]}"
        if any(path.name == "config.json" and len(path.parts) == 1 for path in new):
            return "after the end" if self.finished else "while saving the model"
        return "after a checkpoint" if any(path.parts[0].startswith("checkpoint-") for path in new) else "in between"


def compare(stage: Stage, tally: dict) -> str:
    """Count an end, and clear the folder for the next run; a failure, and the folder stays, if it differs."""
    found, expected = stage.result(), tally["expected"]
    if found != expected:
        differ = [name for name in sorted({*found, *expected}) if found.get(name) != expected.get(name)]
        tally["failures"].append(f"differs: {', '.join(differ)}")
        return ""
    tally["ends"] += 1
    stage.clear()
    return f"end {tally['ends']}, byte for byte"


def survive(stage: Stage, kills: int, number: int, seed: int, tally: dict, keep) -> None:
    """Kill a stage so many times; `tally`, which `keep()` writes to the disk, says what came of it.

    {"seconds" and "expected" of the run that nobody killed, "runs", "ends", "moments" of the kills, "failures"}
    """
    if stage.settings is not None:  # the process that others are forked from imports the libraries first
        first = processes().Process(target=os.getpid)
        first.start()
        first.join()
    if "expected" not in tally:
        stage.clear()
        print(f"{stage.name}: a run that nobody kills …", file=sys.stderr, flush=True)
        begun = time.perf_counter()
        stage.start()
        code, expected = stage.wait(24 * 3600), stage.result()
        if code != 0 or not any(name.endswith("model.safetensors") for name in expected):
            tally["failures"].append(f"exit code {code} and {len(expected)} files without a kill: {stage.log}.err")
            tally["done"] = True
            return
        tally |= {"seconds": time.perf_counter() - begun, "expected": expected}
        stage.clear()
        keep()
    if stage.finished:  # cut off just then
        compare(stage, tally)
    length, moments, ended = tally["seconds"], Counter(tally["moments"]), not any(stage.written.glob("*"))
    told = f"{stage.name}: {length:.0f} s without a kill, {moments.total()} of {kills} kills"
    print(f"{told}; the rest takes about {(kills - moments.total()) * length:.0f} s", file=sys.stderr, flush=True)
    while (moments.total() < kills or not ended) and not tally["failures"]:
        tally["runs"] += 1
        last, ended = moments.total() >= kills, False
        draw = random.Random(f"{seed} {stage.name} {tally['runs']}").uniform(0, length)
        begun = time.perf_counter()
        stage.start()
        code, killed = stage.wait(10 * length + 60 if last else draw), False
        if code is None and last:
            tally["failures"].append(f"still running after {10 * length + 60:.0f} s: {stage.log}.err")
            stage.stop()
        elif code is None:
            stage.send(number)
            if (code := stage.wait(10 * length + 60)) is None:
                tally["failures"].append(f"still running after SIG{signal.Signals(number).name[3:]}: {stage.log}.err")
                stage.stop()
            stage.children_end()
            killed = code in (-number, 128 + number)
        what = ""
        if killed:
            moment = stage.moment()
            moments[moment] += 1
            tally["moments"] = dict(sorted(moments.items()))
            what = f"kill {moments.total()} of {kills} {moment} (exit code {code})"
        if code == 0 or (killed and stage.finished):
            ended, what = True, f"{what}{', ' * bool(what)}{compare(stage, tally)}"
        elif code is not None and not killed:
            tally["failures"].append(f"exit code {code}: {stage.log}.err")
        what = tally["failures"][-1] if tally["failures"] else what
        print(f"{stage.name}: {time.perf_counter() - begun:.1f} s, {what}", file=sys.stderr, flush=True)
        keep()
    tally["done"] = True


def line_of(name: str, tally: dict) -> str:
    told = ", ".join(f"{count} {moment}" for moment, count in tally["moments"].items())
    ends = f"{tally['ends']} ends, all byte for byte the run that nobody killed" if tally["ends"] else "no end yet"
    verdict = "; ".join(tally["failures"]) or ends
    cut = "" if tally.get("done") else "; cut off: the same command goes on"
    return f"{name}: {sum(tally['moments'].values())} kills ({told}); {verdict}{cut}"


def tiny_stages(folder: Path) -> dict[str, dict]:
    """The settings of every recipe on tiny models in `folder`."""
    train_tokenizer(iter(["yes and no, and what is right"]), 262).save_pretrained(folder / "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.save_pretrained(folder / "chat")
    chat = AutoTokenizer.from_pretrained(folder / "chat", eos_token=END_OF_TURN)
    torch.manual_seed(0)
    model = save(GPT2LMHeadModel(tiny_config(chat)), chat, folder / "model")
    reward = save(GPT2ForSequenceClassification(tiny_config(chat, num_labels=1)), chat, folder / "reward")
    shutil.rmtree(folder / "data", ignore_errors=True)  # of a tally that goes on: shards would be added to
    (folder / "data").mkdir()
    runs = short_runs(folder / "data", tokenizer, model, reward, ready_to_end(chat, folder / "ready"), UPDATES)
    return {name: {**run, **(DRAWN_AT_ONCE if name in ("rloo", "grpo") else {})} for name, run in runs.items()}


def small_quickstart(folder: Path) -> None:
    """A copy of this repository whose quickstart has a few updates of each stage."""
    for name in ("recipes", "data_prep", "eval", "accelerate_configs"):
        shutil.rmtree(folder / name, ignore_errors=True)
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, changes in SMALL.items():
        path = folder / "recipes" / "configs" / "quickstart" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}, allow_unicode=True))
    script = folder / "recipes" / "quickstart.sh"
    text = script.read_text()
    for long, short in LESS.items():
        if long not in text:
            sys.exit(f"tests/survive.py: recipes/quickstart.sh has no {long!r} any more: LESS is out of date")
        text = text.replace(long, short)
    script.write_text(text)


def without_times(content: bytes) -> bytes:
    """What a file holds but for the time at which its rows were ranked, which is that of the run."""
    return re.sub(rb'"ranked_at": "[^"]*"', b"", content)


def commit() -> str:
    """The commit of this repository, and a hash of what differs from it; "" where there is no git."""
    told = [
        subprocess.run(["git", *line], cwd=ROOT, capture_output=True, check=False).stdout
        for line in (["describe", "--always", "--abbrev=12"], ["diff", "HEAD"])
    ]
    return told[0].decode().strip() + (f" and {hashlib.sha256(told[1]).hexdigest()[:12]}" if told[1] else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of each stage (default: 20)")
    parser.add_argument("--stages", nargs="+", default=[*RECIPES], choices=[*RECIPES, "quickstart"])
    parser.add_argument("--signal", choices=["KILL", "TERM"], default="KILL")
    parser.add_argument("--until", default="", help="sft: end the quickstart there")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument(
        "--output_dir", type=Path, default=ROOT / "runs" / "survive", help="tally and runs (default: runs/survive)"
    )
    args = parser.parse_args()
    folder, number, version = args.output_dir.absolute(), getattr(signal, f"SIG{args.signal}"), commit()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tally.json"
    tallies = read_json(path) if path.exists() else {}
    settings, ran = tiny_stages(folder), []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in args.stages:
        key = f"{name} by SIG{args.signal}" + (f" until {args.until}" if name == "quickstart" and args.until else "")
        place = folder / key.replace(" ", "_")
        if tallies.get(key, {}).get("commit") != version or tallies[key]["failures"]:
            shutil.rmtree(place, ignore_errors=True)
            tallies[key] = {"commit": version, "runs": 0, "ends": 0, "moments": {}, "failures": []}
        if name == "quickstart":
            small_quickstart(place)
        stage, tally = Stage(name, place, settings.get(name), args.until), tallies[key]
        tally["done"] = False
        try:
            survive(stage, args.kills, number, args.seed, tally, lambda: write_json(path, tallies))
        finally:
            stage.stop()
            write_json(path, tallies)
            print(line_of(name, tally), flush=True)
        ran.append(tally)
    kills, ends = sum(sum(each["moments"].values()) for each in ran), sum(each["ends"] for each in ran)
    failed = sum(bool(each["failures"]) for each in ran)
    print(f"{len(ran)} stages, {kills} kills by SIG{args.signal}, {ends} ends; {failed} stages failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
