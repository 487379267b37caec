"""The comparison of both PPO trainers through its command: what it writes down, and that they optimise the same."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.models import save, tiny_config
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.common.errors import run_main
from data_prep.common.machine import bf16_is_fast
from eval import speed as eval_speed

ROOT = Path(__file__).parents[1]
QUESTIONS = ["a?", "b b?", "c c c?", "d?", "e e?", "f f f?", "g?", "a?", "i i?", "j?"]  # one of them twice
OPTIONS = ["--batch_size", 8, "--response_length", 12, "--num_ppo_epochs", 2, "--updates", 2, "--threads", 1]


@pytest.fixture
def run(tmp_path, tiny_chat_tokenizer, write_conversations) -> Path:
    """A run's folder: a random assistant that ends its answer at each token with a chance of about a sixth."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, tie_word_embeddings=False))
    with torch.no_grad():  # one direction is 4 in every hidden state, and only the end of turn looks at it
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 4.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tiny_chat_tokenizer.eos_token_id, 0] = 1.0
    folder = tmp_path / "run"
    save(model, tiny_chat_tokenizer, folder / "sft")
    reward_model = GPT2ForSequenceClassification(tiny_config(tiny_chat_tokenizer, num_labels=1))
    torch.nn.init.normal_(reward_model.score.weight)  # scores of about 5, or their place would hardly show
    save(reward_model, tiny_chat_tokenizer, folder / "reward")
    prompts = write_conversations([(str(number), text, "yes") for number, text in enumerate(QUESTIONS)])
    (folder / "data").mkdir()
    prompts.rename(folder / "data" / "prompts_ppo.json")
    return folder


def speed(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "eval.speed", "ppo", *map(str, arguments)]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )


def test_both_trainers_are_timed_and_optimise_the_same(run, tmp_path):
    done = speed("--run", run, *OPTIONS, "--results_dir", tmp_path / "results")
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "results" / "speed_ppo.json").read_text())

    workers = ["stock", "ours_fp32"] + ["ours_bf16"] * bf16_is_fast()
    assert list(results["processes"]) == workers
    for worker, figures in results["processes"].items():
        assert figures["precision"] == ("bf16" if worker.endswith("bf16") else "fp32")
        assert figures["episodes"] == 8, "the first of the two updates is not timed"
        assert figures["episodes_per_second"] == pytest.approx(8 / figures["seconds"])
        assert figures["peak_memory_mib"] >= figures["loaded_memory_mib"] > 100
        assert figures["mean_answer_length"] == figures["answer_tokens"] / 16
        assert 1 < figures["mean_answer_length"] < 12
    stock, last, metrics = results["processes"]["stock"], results["processes"][workers[-1]], results["metrics"]
    for key in ("episodes_per_second", "peak_memory_mib"):
        assert metrics[f"{key}_over_stock"] == pytest.approx(last[key] / stock[key])

    epoch = results["objective"]["first_epoch"]
    for figures in epoch.values():
        assert figures["ratio"] == pytest.approx(1, abs=1e-4) and figures["log_ratio_rms"] < 1e-4
    ours, adjusted, unmodified = epoch["ours"], epoch["stock_adjusted"], epoch["stock"]
    assert ours["policy_loss"] == pytest.approx(adjusted["policy_loss"], abs=1e-4)
    assert ours["value_loss"] == pytest.approx(adjusted["value_loss"], abs=1e-4)
    assert abs(ours["value_loss"] - unmodified["value_loss"]) > 1, "or the line that is replaced does nothing"
    assert results["objective"]["difference"]["policy_gradient"] < 1e-3
    assert results["objective"]["difference"]["value_gradient"] < 1e-3
    assert metrics["same_objective"] is True

    assert results["settings"]["threads"] == 1 and results["settings"]["response_length"] == 12
    assert results["matrix_gflops"]["fp32"] > 0
    assert re.search(r"^stock +[\d.]+ +1\.00 +\d+ +1\.00 ", done.stdout, flags=re.M)
    assert "the same objective as TRL's" in done.stdout


def test_what_cannot_be_compared_is_said_before_anything_is_trained(run, tmp_path, monkeypatch, capsys):
    def error_of(*arguments) -> str:
        monkeypatch.setattr(sys, "argv", ["speed", "ppo", *map(str, arguments)])
        with pytest.raises(SystemExit, match="1"):
            run_main(eval_speed.main)
        return capsys.readouterr().err

    prompts, sft = run / "data/prompts_ppo.json", tmp_path / "none/sft/config.json"
    assert (
        error_of("--run", run, "--batch_size", 64)
        == f"error: --batch_size 64: expected 1 to 10, the prompts in {prompts}\n"
    )
    assert error_of("--run", tmp_path / "none") == (
        f"error: {sft}: no such file or folder; it is made by: recipes/sft.py\n"
    )
    assert error_of("--run", run, "--updates", 1) == (
        "error: --updates 1: expected at least 2, because the first is not timed\n"
    )
