"""The runs on public data, as their YAMLs give the commands, with models so small that only the plumbing is tested.

Nobody in this project wrote these files: they hold what no test would invent. They are not part of the repository, and
without them (see helpers/data.py) these tests are skipped. The commands run as they stand, in a folder of their own,
but nothing is downloaded: in place of curl, the file is linked there. The numbers were counted without the code of this
project, by json, hashlib (for what is held out) and tokenizers.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from helpers.data import BELLE, DATA, fetched, needs_data

ROOT = Path(__file__).parents[1]
TINY = "--n_layer 1 --n_head 2 --n_embd 32"

pytestmark = needs_data


def head_commands(config: str) -> tuple[str, str]:
    """(the command in line one of a YAML, the commands in its head comment that come before it)."""
    lines = (ROOT / "recipes" / "configs" / config).read_text(encoding="utf-8").splitlines()
    before = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    return lines[0].removeprefix("# "), "\n".join(before)


class Checkout:
    """A root to run the commands in, without leaving anything in the real one: its code is a link."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("recipes", "data_prep"):
            (root / name).symlink_to(ROOT / name)

    def run(self, command: str) -> str:
        """What `command` prints; a test failure where it exits with another code than 0."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=self.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def fetch(self, curl: re.Match) -> str:
        """Put a file where a curl command would put it; what is left of the command is nothing."""
        path = self.root / curl[1]
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(fetched(curl[1]))
        return ""

    def prepare(self, config: str) -> str:
        """Run the commands that a YAML says come before it."""
        commands, files = re.subn(
            r"curl .* --create-dirs -o (\S+) \\\n +https://.*\n", self.fetch, head_commands(config)[1]
        )
        assert files and "curl" not in commands
        return self.run(commands)

    def stage(self, config: str, options: str = "") -> str:
        """Run the command in line one of a YAML, with options; one process, without the launcher."""
        command = head_commands(config)[0].replace(
            "accelerate launch --quiet --config_file accelerate_configs/single_process.yaml ", "python "
        )
        return self.run(f"{command} {options}")

    def json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def tokenizer(self, path: str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.root / path)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def belle(checkout) -> dict[str, str]:
    """What each stage of the run on Chinese conversations printed."""
    decay = """--lr_scheduler_kwargs '{"num_decay_steps": 4}' --warmup_steps 2"""
    return {
        "tokenizer": checkout.prepare("belle/mix.yaml"),
        "mix": checkout.stage("belle/mix.yaml"),
        "pretrain": checkout.stage("belle/pretrain.yaml", f"{TINY} --max_steps 12 --logging_steps 4 {decay}"),
        "sft": checkout.stage("belle/sft.yaml", "--max_steps 4 --warmup_steps 1 --logging_steps 1 --max_new_tokens 4"),
    }


@pytest.mark.slow
def test_shakespeare_in_characters_is_learned(checkout):
    assert "a tokenizer of 262 entries" in checkout.prepare("shakespeare/mix.yaml")
    # 1,003,854 characters in documents of 131,072, to the end of a line: 8, each with an end of text
    assert "mixed 1,003,862 tokens (1,003,854 bytes)" in checkout.stage("shakespeare/mix.yaml")
    steps = """--max_steps 60 --eval_steps 60 --logging_steps 10 --lr_scheduler_kwargs '{"num_decay_steps": 20}'"""
    checkout.stage("shakespeare/pretrain.yaml", f"{TINY} {steps}")
    results = checkout.json("runs/shakespeare/base/pretrain.json")
    assert results["tokens"] == 60 * 12 * 64
    figures = results["metrics"]
    assert figures["loss_last"] < figures["loss_first"] - 0.5
    # A uniform guess among 262 tokens is 8.03 bits a byte; letters alone, without any context, are below 5.
    assert figures["bits_per_byte"] < 5


def test_chinese_conversations_are_held_out_by_prompt_and_kept_whole(belle, checkout):
    sides = [
        [
            json.loads(line)
            for line in (checkout.root / f"runs/belle/data/{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("train", "heldout")
    ]
    rows = json.loads(BELLE.read_text(encoding="utf-8"))
    assert [len(side) for side in sides] == [719, 81]
    assert sorted(sides[0] + sides[1], key=rows.index) == rows  # `head` cuts off nothing of the first 800
    questions = [{row["conversations"][0]["value"] for row in side} for side in sides]
    assert not questions[0] & questions[1]
    assert len(questions[0] | questions[1]) == 710  # 90 of the 800 begin as another one does


def test_a_chinese_tokenizer_gives_every_text_back(belle, checkout):
    assert "a tokenizer of 6,000 entries on 719 documents (783,639 bytes)" in belle["tokenizer"]
    tokenizer = checkout.tokenizer("runs/belle/tokenizer")
    rows = json.loads(BELLE.read_text(encoding="utf-8"))
    texts = [turn["value"] for row in rows for turn in row["conversations"]]
    assert len(rows) == 800 and len(tokenizer) == 6000
    assert [tokenizer.decode(ids) for ids in tokenizer(texts)["input_ids"]] == texts
    assert "mixed 143,948 tokens (783,639 bytes)" in belle["mix"]


def test_chinese_pretraining_and_sft_run_and_merged_turns_are_counted(belle, checkout):
    figures = checkout.json("runs/belle/base/pretrain.json")["metrics"]
    assert figures["loss_last"] < figures["loss_first"]
    assert "train.jsonl: 719 conversations, repaired: 5 × two turns of the same speaker in a row" in belle["sft"]
    assert "heldout.jsonl: 81 conversations" in belle["sft"]
    example = belle["sft"].split("enters the loss:\n")[1].split("EOS rate")[0]
    assert "\ufffd" not in example and "[" in example  # characters of several tokens are shown whole
    results = checkout.json("runs/belle/sft/sft.json")
    assert 0 < results["conversations"] < 719  # what four steps have seen
    assert 0 < results["metrics"]["eval_loss"] < 10


def test_chinese_preferences_train_a_reward_model_and_what_is_left_out_is_counted(belle, checkout):
    checkout.prepare("dpo_zh/reward.yaml")
    printed = checkout.stage("dpo_zh/reward.yaml", "--max_steps 3 --warmup_steps 1 --logging_steps 1")
    assert "train.jsonl: 397 rankings, 397 pairs" in printed
    assert "heldout.jsonl: 103 rankings, 103 pairs" in printed
    assert "170 of 397 rankings hold an answer beyond 512 tokens" in printed
    assert "40 of 103 rankings hold an answer beyond 512 tokens" in printed
    assert "trained a reward model on 24 of 227 rankings" in printed  # 397 − 170
    figures = checkout.json("runs/dpo_zh/reward/reward.json")["metrics"]
    assert figures["pairs"] == figures["accuracy"]["n"] == 103 - 40
    assert figures["reload_difference"] < 1e-3


def test_a_mixture_of_c4_and_wikipedia_has_the_shares_asked_for(checkout):
    checkout.prepare("c4_wiki/mix.yaml")
    printed = checkout.stage("c4_wiki/mix.yaml")
    # What the shard holds, read without the code that wrote it: whole documents between ends of text, entry 0.
    tokenizer = checkout.tokenizer("runs/c4_wiki/tokenizer")
    c4 = [json.loads(line)["text"] for line in (DATA / "c4_demo.jsonl").open(encoding="utf-8")]
    sources = {"c4": c4[:270], "wikipedia": (DATA / "wiki_demo.txt").read_text("utf-8").split("\n")[:-1]}
    lengths = {
        name: {tuple(ids): len(ids) + 1 for ids in tokenizer(texts)["input_ids"]} for name, texts in sources.items()
    }
    assert {name: sum(each.values()) for name, each in lengths.items()} == {"c4": 170_455, "wikipedia": 253_516}
    ids = numpy.fromfile(checkout.root / "runs/c4_wiki/data/tokens/shard-00000.bin", dtype="<u2")
    ends = numpy.flatnonzero(ids == tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    documents = [tuple(part[part != 0].tolist()) for part in numpy.split(ids, ends + 1)[:-1]]
    tokens = {
        name: sum(lengths[name][document] for document in documents if document in lengths[name]) for name in lengths
    }
    index = checkout.json("runs/c4_wiki/data/tokens/index.json")
    assert tokens == {name: source["tokens"] for name, source in index["sources"].items()}
    assert sum(tokens.values()) == index["tokens"] == len(ids)
    # At least what is asked for, and beyond it no more than one of the articles, which are never split.
    assert 580_000 <= len(ids) < 580_000 + 29_069
    assert tokens["c4"] / len(ids) == pytest.approx(15 / 19.5, abs=0.01)
    assert tokens["wikipedia"] / len(ids) == pytest.approx(4.5 / 19.5, abs=0.01)
    for name, asked in (("c4", "76.92%"), ("wikipedia", "23.08%")):
        share, passes = 100 * tokens[name] / len(ids), tokens[name] / sum(lengths[name].values())
        count = sum(document in lengths[name] for document in documents)
        assert re.search(
            rf"^{name} +{asked} +{share:.2f}% +{tokens[name]:,} +{count} +{passes:.2f}$", printed, re.MULTILINE
        )
