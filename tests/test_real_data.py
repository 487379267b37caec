"""The runs on public data, as their YAMLs give the commands, with models so small that only the plumbing is tested.

Nobody in this project wrote these files: they hold what no test would invent. They are not part of the repository; where
they are absent (`../shared/data`), these tests are skipped.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data"
TINY = "--n_layer 1 --n_head 2 --n_embd 32"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the public data in {DATA}")


def head_commands(config: str) -> tuple[str, str]:
    """(the command in line one of a YAML, the commands in its head comment that come before it)."""
    lines = (ROOT / "recipes" / "configs" / config).read_text(encoding="utf-8").splitlines()
    before = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    return lines[0].removeprefix("# "), "\n".join(before)


class Checkout:
    """A root to run the commands in, without leaving anything in the real one: the code and the data are links."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "main"
        self.root.mkdir()
        for name in ("recipes", "data_prep"):
            (self.root / name).symlink_to(ROOT / name)
        (folder / "shared").mkdir()
        (folder / "shared" / "data").symlink_to(DATA)

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

    def prepare(self, config: str) -> str:
        """Run the commands that a YAML says come before it."""
        return self.run(head_commands(config)[1])

    def stage(self, config: str, options: str = "") -> str:
        """Run the command in line one of a YAML, with options; one process, without the launcher."""
        command = head_commands(config)[0].replace("accelerate launch ", "python ")
        return self.run(f"{command} {options}")

    def json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def belle(checkout) -> dict[str, str]:
    """What each stage of the run on Chinese conversations printed."""
    decay = """--lr_scheduler_kwargs '{"num_decay_steps": 4}' --warmup_steps 2"""
    whole = "--conversations ../shared/data/belle_chat_800.json --max_steps 4 --logging_steps 1 --max_new_tokens 4"
    return {
        "tokenizer": checkout.prepare("belle/mix.yaml"),
        "mix": checkout.stage("belle/mix.yaml"),
        "pretrain": checkout.stage("belle/pretrain.yaml", f"{TINY} --max_steps 12 --logging_steps 4 {decay}"),
        "sft": checkout.stage("belle/sft.yaml", whole),
    }


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


def test_a_chinese_tokenizer_gives_every_text_back(belle, checkout):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkout.root / "runs/belle/tokenizer")
    rows = json.loads((DATA / "belle_chat_800.json").read_text(encoding="utf-8"))
    texts = [turn["value"] for row in rows for turn in row["conversations"]]
    assert len(rows) == 800 and len(tokenizer) == 6000
    assert [tokenizer.decode(ids) for ids in tokenizer(texts)["input_ids"]] == texts
    assert "mixed 141,994 tokens (779,391 bytes)" in belle["mix"]


def test_chinese_pretraining_and_sft_run_and_merged_turns_are_counted(belle, checkout):
    figures = checkout.json("runs/belle/base/pretrain.json")["metrics"]
    assert figures["loss_last"] < figures["loss_first"]
    assert "800 conversations, repaired: 5 × two turns of the same speaker in a row" in belle["sft"]
    example = belle["sft"].split("enters the loss:\n")[1].split("stops by itself")[0]
    assert "\ufffd" not in example and "\033[32m[" in example  # characters of several tokens are shown whole
    results = checkout.json("runs/belle/sft/sft.json")
    assert results["conversations"] == 800
    assert 0 < results["metrics"]["eval_loss"] < 10


def test_chinese_preferences_train_a_reward_model_and_what_is_left_out_is_counted(belle, checkout):
    checkout.prepare("dpo_zh/reward.yaml")
    printed = checkout.stage("dpo_zh/reward.yaml", "--max_steps 3 --logging_steps 1")
    assert "train.jsonl: 397 rankings, 397 pairs" in printed
    assert "heldout.jsonl: 103 rankings, 103 pairs" in printed
    assert "167 of 397 rankings hold an answer beyond 512 tokens" in printed
    assert "39 of 103 rankings hold an answer beyond 512 tokens" in printed
    assert "trained a reward model on 230 rankings" in printed  # 397 − 167
    figures = checkout.json("runs/dpo_zh/reward/reward.json")["metrics"]
    assert figures["pairs"] == figures["accuracy"]["n"] == 103 - 39
    assert figures["reload_difference"] < 1e-3


def test_a_mixture_of_c4_and_wikipedia_has_the_shares_asked_for(checkout):
    checkout.prepare("c4_wiki/mix.yaml")
    printed = checkout.stage("c4_wiki/mix.yaml")
    assert re.search(r"source +asked +realised +tokens +documents +passes\n", printed)
    assert re.search(r"c4 +76\.92% +7\d\.\d\d% ", printed) and re.search(r"wikipedia +23\.08% +2\d\.\d\d% ", printed)
    mixture = checkout.json("runs/c4_wiki/data/tokens/index.json")
    tokens = {name: source["tokens"] for name, source in mixture["sources"].items()}
    assert 580_000 <= sum(tokens.values()) == mixture["tokens"]
    assert tokens["c4"] / mixture["tokens"] == pytest.approx(15 / 19.5, abs=0.01)
    assert tokens["wikipedia"] / mixture["tokens"] == pytest.approx(4.5 / 19.5, abs=0.01)
    size = (checkout.root / "runs/c4_wiki/data/tokens/shard-00000.bin").stat().st_size
    assert size == 2 * mixture["tokens"]  # uint16: the vocabulary has 8,192 entries
