"""The benchmark of training, small: the recipes and TRL's trainers side by side, and what it refuses."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from helpers.ppo import quickstart_like_run

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from eval.benchmarks import training

ROOT = Path(__file__).parents[1]
TURNS = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "it is what it is"}]
BROKEN = [{"from": "human", "value": "what is it?"}, {"from": "human", "value": "well?"}]


def arguments(tmp_path, **changed) -> Namespace:
    given = {
        "run": tmp_path / "run",
        "data": tmp_path / "a.json",
        "part": ["start"],
        "repeats": 1,
        "steps": 1,
        "rows": 4,
    }
    return Namespace(**{**given, **changed})


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"repeats": 0}, "--repeats, --steps and --rows: expected at least 1"),
        ({"part": ["start"]}, "base/config.json: no such file"),
        ({"part": ["pretrain"]}, "data/tokens: no such file"),
        ({"part": ["reward"]}, "sft/config.json: no such file"),
        ({"part": ["sft"]}, "a.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_trained(tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(training, "matrix_rates", lambda: {"fp32": 1.0})
    monkeypatch.setattr(training, "recipe", lambda *given: pytest.fail("a recipe was started"))
    with pytest.raises(InputError, match=message):
        training.run(arguments(tmp_path, **changed))


def test_the_fraction_is_that_of_the_steps_between_a_short_run_and_a_long_one(tmp_path, monkeypatch):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    asked = []

    def recipe(stage, config, folder, changed):
        asked.append(changed["max_steps"])
        write_json(folder / "model/config.json", {"n_layer": 1, "n_embd": 2, "vocab_size": 3, "n_positions": 4})
        # 5 s are spent once, and 2 s on each step of 100 tokens: 50 tokens a second
        return {"tokens": 100 * changed["max_steps"], "seconds": 5 + 2 * changed["max_steps"]}

    monkeypatch.setattr(training, "recipe", recipe)
    found = training.pretrain(arguments(tmp_path, steps=12), tmp_path / "out", {"fp32": 7.0, "bf16": 1e-6})
    assert asked == [2, 14]
    flops = 6 * (12 * 1 * 2**2 + 3 * 2) + 12 * 1 * 2 * 4  # N without the table of positions
    assert found == {"pretraining over the matrix rate": pytest.approx(50 * flops / 1e3)}


@pytest.mark.slow
def test_the_recipes_are_measured_against_trls_trainers(tmp_path, tiny_chat_tokenizer):
    run = quickstart_like_run(tmp_path / "run", tiny_chat_tokenizer, ["a?", "b b?", "c c c?"])
    ranking = {"completions": ["a b", "b", "c"], "ranks": [0, 1, 1]}
    rows = [{"prompt": [{"role": "user", "content": f"{number} a?"}], **ranking} for number in range(4)]
    write_jsonl(run / "data/rankings.jsonl", rows)
    rows = [{"id": str(number), "conversations": TURNS} for number in range(12)]
    write_json(tmp_path / "a.json", [{"id": "x", "conversations": BROKEN}, *rows])
    options = ["--run", run, "--data", tmp_path / "a.json", "--part", "sft", "reward", "--rows", 8, "--repeats", 1]
    command = [sys.executable, "-m", "eval.speed", "training", *options, "--results_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "speed_training.json").read_text())
    assert list(results["metrics"]) == ["SFT over TRL's SFTTrainer", "reward training over TRL's RewardTrainer"]
    assert all(value > 0 for value in results["metrics"].values())
    assert results["runs"] == {name: [value] for name, value in results["metrics"].items()}
    assert "load average of the machine before" in done.stdout
    assert results["matrix_gflops"]["fp32"] > 0
