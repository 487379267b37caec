"""recipes/gpu_check.sh without a GPU: what it says, and that its commands are such as the recipes take."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.recipes import arguments_of

from recipes.trainers import arguments
from recipes.trainers.arguments import parse_arguments

ROOT = Path(__file__).parents[1]
STAGES = ("pretrain", "sft", "reward", "ppo")


def test_without_a_gpu_it_says_so_and_does_nothing():
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(["bash", "recipes/gpu_check.sh"], cwd=ROOT, env=environment, capture_output=True, text=True)
    said = "error: torch sees no CUDA GPU here; on a processor: python -m eval.speed training\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> list[list[str]]:
    """The commands of the script, with programs in their place that write down their words."""
    folder = tmp_path_factory.mktemp("copy")
    for name in ("recipes", "accelerate_configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "recipes/quickstart.sh").write_text(
        "mkdir -p runs/quickstart/data; touch runs/quickstart/data/prompts_ppo.json\n"
    )
    (folder / "bin").mkdir()
    for name in ("python", "accelerate"):
        program = folder / "bin" / name
        program.write_text(f'#!/bin/bash\necho "$(basename "$0") $*" >> {folder}/commands\n')
        program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}", "REPEATS": "1"}
    subprocess.run(["bash", "recipes/gpu_check.sh"], cwd=folder, env=environment, check=True, capture_output=True)
    return [line.split() for line in (folder / "commands").read_text().splitlines()]


@pytest.mark.parametrize("stage", STAGES)
def test_each_stage_of_gpt2s_size_is_given_what_its_recipe_takes(commands, stage, monkeypatch):
    (line,) = [words for words in commands if f"recipes/{stage}.py" in words]
    words = line[line.index(f"recipes/{stage}.py") :]
    assert words[1:3] == ["--config", f"recipes/configs/gpt2_small/{stage}.yaml"]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(arguments, "check_folders", lambda values: None)
    monkeypatch.setattr(os, "environ", dict(os.environ))  # the library's arguments leave settings there
    script, args = parse_arguments(*arguments_of(stage))[:2]
    assert args.output_dir == f"runs/gpu_check/{'base' if stage == 'pretrain' else stage}"
    assert script.results_dir == "runs/gpu_check/results"
    assert args.total_episodes == 1536 if stage == "ppo" else 0 < args.max_steps <= 16


def test_it_measures_pretraining_sft_reward_training_and_ppo_and_publishes(commands):
    measured = [words[3] for words in commands if words[:3] == ["python", "-m", "eval.speed"]]
    assert measured == ["training", "ppo", "publish"]
    assert [words for words in commands if "training" in words][0][-4:] == [
        "--repeats",
        "1",
        "--results_dir",
        "runs/gpu_check/results",
    ]
