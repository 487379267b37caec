"""The benchmark of training, small: the recipes and TRL's trainers side by side, and what it refuses."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from helpers.ppo import quickstart_like_run
from transformers import TrainingArguments

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from data_prep.models.loading import load_tokenizer
from eval.benchmarks import processes, training
from recipes import pretrain
from recipes.trainers.arguments import parse_arguments

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
        ({"part": ["sample"]}, "sft/config.json: no such file"),
        ({"part": ["sft"]}, "a.json: no such file"),
    ],
)
def test_what_cannot_be_measured_is_said_before_anything_is_trained(tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(training, "matrix_rates", lambda: {"fp32": 1.0})
    monkeypatch.setattr(training, "matrix_rate", lambda kind: 1.0)
    monkeypatch.setattr(training, "recipe", lambda *given: pytest.fail("a recipe was started"))
    with pytest.raises(InputError, match=message):
        training.run(arguments(tmp_path, **changed))


def test_the_fraction_is_that_of_the_steps_after_the_first_that_are_logged(tmp_path, monkeypatch):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    write_jsonl(tmp_path / "run/data/corpus_heldout.jsonl", [{"text": "a"}] * 9)
    asked = []

    def recipe(stage, config, folder, changed):
        asked.append((config, changed["logging_steps"], changed["max_steps"]))
        write_json(folder / "model/config.json", {"n_layer": 1, "n_embd": 2, "vocab_size": 3, "n_positions": 4})
        # 5 s are spent once, and 2 s on each step of 100 tokens: 50 tokens a second
        steps = [1, *range(2, 15, 2)]
        return {"curves": {"tokens per second": [[step, 100 * step / (5 + 2 * step)] for step in steps]}}

    monkeypatch.setattr(training, "recipe", recipe)
    rates = iter([700.0, 1000.0])  # beside another process, and alone
    monkeypatch.setattr(training, "matrix_rate", lambda kind: next(rates))
    monkeypatch.setattr(training, "share_of_muon", lambda run, folder, steps: 0.25)
    found = training.pretrain(arguments(tmp_path, steps=12), tmp_path / "out")
    assert asked == [("quickstart", 2, 14)]
    flops = 6 * (12 * 1 * 2**2 + 3 * 2) + 12 * 1 * 2 * 4  # N without the table of positions
    assert found == {
        "pretraining over the matrix rate": pytest.approx(50 * flops / 1000),
        "Muon, share of a step": 0.25,
    }


@pytest.mark.parametrize(("part", "muon_lr", "width"), [("pretrain", 0.01, 192), ("gpt2", None, 768)])
def test_pretraining_takes_the_settings_that_it_is_measured_with(part, muon_lr, width, tmp_path, monkeypatch):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    write_jsonl(tmp_path / "run/data/corpus_heldout.jsonl", [{"text": "a"}] * 9)

    class Started(Exception):
        pass

    def recipe(stage, config, folder, changed):
        command = processes.launch(stage, config, folder, changed)
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *command[command.index("--config") :]])
        script, _ = parse_arguments(pretrain.ScriptArguments, TrainingArguments, refused=pretrain.REFUSED)
        assert (script.muon_lr, script.n_embd) == (muon_lr, width)
        raise Started

    monkeypatch.setattr(training, "recipe", recipe)
    monkeypatch.setattr(training, "matrix_rate", lambda kind: 1.0)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: False)
    with pytest.raises(Started):
        training.MEASURES[part](arguments(tmp_path), tmp_path / "out")


@pytest.mark.parametrize(("steps", "first", "last"), [(1, 2, 4), (12, 2, 14), (60, 10, 70), (8, 2, 10), (13, 2, 16)])
def test_the_last_step_is_a_logged_one(tmp_path, steps, first, last):
    (tmp_path / "run/data/tokens").mkdir(parents=True)
    write_jsonl(tmp_path / "run/data/corpus_heldout.jsonl", [{"text": "a"}] * 9)
    given = training.inputs_of(tmp_path / "run", tmp_path, steps)
    assert (given["logging_steps"], given["max_steps"]) == (first, last) and last % first == 0


def test_muons_share_is_its_seconds_over_those_of_whole_steps():
    seconds = {("a/loss_watch.py", "training_step"): 6.0, ("a/trainer.py", "training_step"): 5.9}
    seconds |= {("a/trainer.py", "_clip_grad_norm"): 1.0, ("a/muon.py", "step"): 3.0, ("a/muon.py", "_step_muon"): 2.0}
    stats = Namespace(stats={(path, 1, name): (1, 1, 0.0, value, {}) for (path, name), value in seconds.items()})
    assert training.share_of_step(stats) == 0.2


def test_steps_that_are_lost_in_the_noise_are_an_error():
    with pytest.raises(InputError, match="14 steps took no longer than 2: too few to tell their time; raise --steps"):
        training.rate_of_steps([[1, 20.0], [2, 40.0], [14, 280.0]])


def test_a_widened_tokenizer_reads_as_before(tmp_path, tiny_chat_tokenizer):
    tiny_chat_tokenizer.save_pretrained(tmp_path / "narrow")
    wide = load_tokenizer(processes.widened(tmp_path / "narrow", 500, tmp_path / "out"))
    assert len(tiny_chat_tokenizer) < 500 == len(wide)
    text = "what is it? 漢字 <|end|>"
    assert wide(text)["input_ids"] == tiny_chat_tokenizer(text)["input_ids"]


def test_what_a_gpu_held_is_put_beside_the_times():
    ours, theirs = {"seconds": 2.0, "peak": 3.0}, {"seconds": 5.0, "peak": 12.0}
    assert training.over_trl("SFT", "SFTTrainer", ours, theirs) == {
        "SFT over TRL's SFTTrainer": 2.5,
        "SFT, peak memory of the GPU over TRL's": 0.25,
    }
    del ours["peak"]  # a processor
    assert training.over_trl("SFT", "SFTTrainer", ours, theirs) == {"SFT over TRL's SFTTrainer": 2.5}


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
    script = "import json, os, sys; print(json.dumps(dict(os.environ)), file=open(sys.argv[2] + '.env', 'w')); print(4, 1.5, 0.0)"
    monkeypatch.setattr(processes, "TRL", script)
    found = processes.trl("SFT", tmp_path, tmp_path / "rows.jsonl", 512, 4)
    assert found == {"seconds": 1.5, "peak": 0.0}
    seen = json.loads((tmp_path / "rows.jsonl.env").read_text())
    assert processes.ENVIRONMENT.items() <= seen.items()
    with pytest.raises(InputError, match="TRL's SFTTrainer took 4 of 5 rows"):
        processes.trl("SFT", tmp_path, tmp_path / "rows.jsonl", 512, 5)


@pytest.mark.parametrize(("gpu", "attention"), [(False, "eager"), (True, None)])
def test_the_attention_of_a_processor_is_not_taken_to_a_gpu(gpu, attention, tmp_path, monkeypatch):
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: gpu)
    processes.launch("sft", "quickstart", tmp_path, {})
    assert json.loads((tmp_path / "sft.yaml").read_text()).get("attn_implementation") == attention


def test_as_many_answers_are_sampled_by_generate_as_by_ours(tmp_path, tiny_model_dir, monkeypatch):
    """Both scripts, as processes: three prompts of different lengths, two answers to each, four rows at once."""
    prompts = [[{"role": "user", "content": text}] for text in ("a?", "a b c?", "b")]
    write_jsonl(tmp_path / "prompts.jsonl", ({"prompt": prompt} for prompt in prompts))
    printed = []

    def call(name: str, command: list[str]) -> str:
        printed.append(called(name, command).split())
        return f"{printed[-1][-2]} 0.5"

    called = processes.call
    monkeypatch.setattr(processes, "call", call)
    for script in (processes.GENERATE, processes.ANSWERS):
        assert processes.sampled(script, tiny_model_dir, tmp_path / "prompts.jsonl", 2, 4, 5) == 12.0  # 6 in 0.5 s
    assert all(float(words[-1]) > 0 for words in printed)


@pytest.mark.slow
def test_the_recipes_are_measured_against_trls_trainers(tmp_path, tiny_chat_tokenizer):
    run = quickstart_like_run(tmp_path / "run", tiny_chat_tokenizer, ["a?", "b b?", "c c c?"])
    ranking = {"completions": ["a b", "b", "c"], "ranks": [0, 1, 1]}
    rows = [{"prompt": [{"role": "user", "content": f"{number} a?"}], **ranking} for number in range(4)]
    write_jsonl(run / "data/rankings.jsonl", rows)
    rows = [{"id": str(number), "conversations": TURNS} for number in range(12)]
    write_json(run / "data/prompts_rankings.json", rows)
    write_json(tmp_path / "a.json", [{"id": "x", "conversations": BROKEN}, *rows])
    options = ["--run", run, "--data", tmp_path / "a.json", "--rows", 8, "--repeats", 2]
    options += ["--part", "sft", "reward", "sample"]
    command = [sys.executable, "-m", "eval.speed", "training", *options, "--results_dir", tmp_path]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "speed_training.json").read_text())
    over = ["SFT over TRL's SFTTrainer", "reward training over TRL's RewardTrainer", "sampled answers/s over generate"]
    assert list(results["metrics"]) == over
    assert all(value > 0 for value in results["metrics"].values())
    assert {name: (sum(values) / 2, len(values)) for name, values in results["runs"].items()} == {
        name: (pytest.approx(value), 2) for name, value in results["metrics"].items()
    }
    assert {part: len(cores) for part, cores in results["cores_of_others"].items()} == {
        "sft": 2,
        "reward": 2,
        "sample": 2,
    }
    assert "other processes kept up to " in done.stdout
    assert results["matrix_gflops"]["fp32"] > 0
