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
    monkeypatch.setattr(training, "matrix_rate", lambda kind: 1.0)
    monkeypatch.setattr(training, "recipe", lambda *given: pytest.fail("a recipe was started"))
    with pytest.raises(InputError, match=message):
        training.run(arguments(tmp_path, **changed))


def test_the_fraction_is_that_of_the_steps_between_a_short_run_and_a_long_one(tmp_path, monkeypatch):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    write_jsonl(tmp_path / "run/data/corpus_heldout.jsonl", [{"text": "a"}] * 9)
    asked = []

    def recipe(stage, config, folder, changed):
        asked.append(changed["max_steps"])
        write_json(folder / "model/config.json", {"n_layer": 1, "n_embd": 2, "vocab_size": 3, "n_positions": 4})
        # 5 s are spent once, and 2 s on each step of 100 tokens: 50 tokens a second
        return {"tokens": 100 * changed["max_steps"], "seconds": 5 + 2 * changed["max_steps"]}

    monkeypatch.setattr(training, "recipe", recipe)
    rates = iter([700.0, 1000.0])  # beside another process, and alone
    monkeypatch.setattr(training, "matrix_rate", lambda kind: next(rates))
    monkeypatch.setattr(training, "share_of_muon", lambda run, folder, steps: 0.25)
    found = training.pretrain(arguments(tmp_path, steps=12), tmp_path / "out")
    assert asked == [2, 14]
    flops = 6 * (12 * 1 * 2**2 + 3 * 2) + 12 * 1 * 2 * 4  # N without the table of positions
    assert found == {
        "pretraining over the matrix rate": pytest.approx(50 * flops / 1000),
        "Muon, share of a step": 0.25,
    }


def test_muons_share_is_its_seconds_over_those_of_whole_steps():
    seconds = {("a/loss_watch.py", "training_step"): 6.0, ("a/trainer.py", "training_step"): 5.9}
    seconds |= {("a/trainer.py", "_clip_grad_norm"): 1.0, ("a/muon.py", "step"): 3.0, ("a/muon.py", "_step_muon"): 2.0}
    stats = Namespace(stats={(path, 1, name): (1, 1, 0.0, value, {}) for (path, name), value in seconds.items()})
    assert training.share_of_step(stats) == 0.2


def test_steps_that_are_lost_in_the_noise_are_an_error(tmp_path, monkeypatch):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    write_jsonl(tmp_path / "run/data/corpus_heldout.jsonl", [{"text": "a"}] * 9)
    monkeypatch.setattr(training, "matrix_rate", lambda kind: 1.0)
    monkeypatch.setattr(training, "recipe", lambda *given: {"tokens": given[3]["max_steps"], "seconds": 5.0})
    with pytest.raises(InputError, match="--steps 12: 14 steps took no longer than 2: .*; take more"):
        training.pretrain(arguments(tmp_path, steps=12), tmp_path / "out")


def test_the_first_step_is_told_when_it_is_printed(tmp_path, monkeypatch):
    """A process that ends only when its first line was read; one whose output waits in a buffer never does."""
    existing = tmp_path / "run/base/config.json"
    existing.parent.mkdir(parents=True)
    existing.touch()
    script = (
        "import pathlib, sys, time; print({'loss': 1})\n"
        "for _ in range(600):\n"
        f"    if pathlib.Path({str(tmp_path / 'read')!r}).exists(): sys.exit()\n"
        "    time.sleep(0.05)\n"
        "sys.exit(3)"
    )
    clock = iter([0.0, 7.0, 10.0, 12.0])  # started, read; twice, of which the second counts

    def now() -> float:
        seconds = next(clock)
        if seconds in (7.0, 12.0):
            (tmp_path / "read").touch()
        return seconds

    def launch(stage, config, folder, changed):
        (folder / "model").mkdir(parents=True)
        (tmp_path / "read").unlink(missing_ok=True)
        return [sys.executable, "-c", script]

    monkeypatch.setattr(training, "launch", launch)
    monkeypatch.setattr(training, "time", Namespace(perf_counter=now))
    monkeypatch.setattr(training.shutil, "rmtree", lambda folder: (tmp_path / "read").unlink())
    assert training.start(arguments(tmp_path), tmp_path / "out") == {"command to first step": 2.0}


def test_trls_trainer_runs_in_the_environment_of_ours(tmp_path, monkeypatch):
    script = "import json, os, sys; print(json.dumps(dict(os.environ)), file=open(sys.argv[2] + '.env', 'w')); print(4, 1.5)"
    monkeypatch.setattr(training, "TRL", script)
    assert training.seconds_of_trl("SFT", tmp_path, tmp_path / "rows.jsonl", 512, 4) == 1.5
    seen = json.loads((tmp_path / "rows.jsonl.env").read_text())
    assert training.ENVIRONMENT.items() <= seen.items()
    with pytest.raises(InputError, match="TRL's SFTTrainer took 4 of 5 rows"):
        training.seconds_of_trl("SFT", tmp_path, tmp_path / "rows.jsonl", 512, 5)


@pytest.mark.parametrize(("gpu", "attention"), [(False, "eager"), (True, None)])
def test_the_attention_of_a_processor_is_not_taken_to_a_gpu(gpu, attention, tmp_path, monkeypatch):
    monkeypatch.setattr(training.torch.cuda, "is_available", lambda: gpu)
    training.launch("sft", "quickstart", tmp_path, {})
    assert json.loads((tmp_path / "sft.yaml").read_text()).get("attn_implementation") == attention


@pytest.mark.slow
def test_the_recipes_are_measured_against_trls_trainers(tmp_path, tiny_chat_tokenizer):
    run = quickstart_like_run(tmp_path / "run", tiny_chat_tokenizer, ["a?", "b b?", "c c c?"])
    ranking = {"completions": ["a b", "b", "c"], "ranks": [0, 1, 1]}
    rows = [{"prompt": [{"role": "user", "content": f"{number} a?"}], **ranking} for number in range(4)]
    write_jsonl(run / "data/rankings.jsonl", rows)
    rows = [{"id": str(number), "conversations": TURNS} for number in range(12)]
    write_json(tmp_path / "a.json", [{"id": "x", "conversations": BROKEN}, *rows])
    options = ["--run", run, "--data", tmp_path / "a.json", "--part", "sft", "reward", "--rows", 8, "--repeats", 2]
    command = [sys.executable, "-m", "eval.speed", "training", *options, "--results_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "speed_training.json").read_text())
    assert list(results["metrics"]) == ["SFT over TRL's SFTTrainer", "reward training over TRL's RewardTrainer"]
    assert all(value > 0 for value in results["metrics"].values())
    assert {name: (sum(values) / 2, len(values)) for name, values in results["runs"].items()} == {
        name: (pytest.approx(value), 2) for name, value in results["metrics"].items()
    }
    assert {part: len(cores) for part, cores in results["cores_of_others"].items()} == {"sft": 2, "reward": 2}
    assert "other processes kept up to " in done.stdout
    assert results["matrix_gflops"]["fp32"] > 0
