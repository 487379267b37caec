"""`report_to`: every stage writes its curves where it is told to, offline, and its last line says where to look."""

import sqlite3
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.recipes import ENVIRONMENT, EXACT, command, succeeded

from data_prep.common.files import write_json
from recipes.trainers.trackers import where_to_look


def asked_for(*trackers: str, **settings) -> SimpleNamespace:
    shared = {"output_dir": "runs/my run", "trackio_space_id": None, "project": "huggingface"}
    return SimpleNamespace(report_to=list(trackers), **{**shared, **settings})


def test_a_line_says_where_to_look(monkeypatch):
    for name in ("TENSORBOARD_LOGGING_DIR", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    assert where_to_look(asked_for()) == [] and where_to_look(SimpleNamespace(report_to=None)) == []
    assert where_to_look(asked_for("tensorboard", "trackio", "wandb")) == [
        "curves: tensorboard --logdir 'runs/my run'",
        "curves: trackio show --project huggingface",
        "curves: at the address that wandb has printed above",
    ]
    (space,) = where_to_look(asked_for("trackio", trackio_space_id="me/curves"))
    assert space == "curves: https://huggingface.co/spaces/me/curves"
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "elsewhere")
    assert where_to_look(asked_for("tensorboard", "wandb")) == [
        "curves: tensorboard --logdir elsewhere",
        "curves: they are in ./wandb; wandb sync sends them to its server",
    ]


@pytest.fixture
def stages(tmp_path, tiny_model_dir, tiny_reward_dir) -> dict[str, dict]:
    """The settings of one short training each."""
    turns = [[("human", f"{letter}?"), ("gpt", "yes")] for letter in "abcdefgh"]
    rows = [{"conversations": [{"from": who, "value": text} for who, text in each]} for each in turns]
    write_json(tmp_path / "asked.json", rows)
    ranked = [{"prompt": f"{letter}?", "chosen": "yes", "rejected": "no"} for letter in "abcdefgh"]
    write_json(tmp_path / "ranked.json", ranked)
    short = {**EXACT, "max_steps": 1, "per_device_train_batch_size": 2, "logging_steps": 1}
    data = {"prompts": tmp_path / "asked.json", "response_length": 4, "total_episodes": 4, "reward_gate": "off"}
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1, "num_mini_batches": 1}
    models = {"sft_model_path": tiny_model_dir, "reward_model_path": tiny_reward_dir}
    start = {"model_name_or_path": tiny_model_dir, "max_length": 64}
    return {
        "sft": {**short, **start, "conversations": tmp_path / "asked.json", "max_new_tokens": 4},
        "reward": {**short, **start, "rankings": tmp_path / "ranked.json"},
        "dpo": {**short, **start, "rankings": tmp_path / "ranked.json"},
        "ppo": {**EXACT, **data, **batch, **models},
    }


@pytest.mark.slow
@pytest.mark.parametrize("tracker", ["tensorboard", "trackio", "wandb"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_a_stage_writes_its_curves(stages, stage, tracker, tmp_path, monkeypatch):
    pytest.importorskip(tracker, reason=f"needs the extra {tracker}")
    for name, value in (("TRACKIO_DIR", tmp_path / "trackio"), ("WANDB_MODE", "offline"), ("WANDB_DIR", tmp_path)):
        monkeypatch.setitem(ENVIRONMENT, name, str(value))  # read when the library is imported
    done = succeeded(command(stage, **{**stages[stage], "report_to": tracker, "output_dir": tmp_path / "out"}))
    if tracker == "tensorboard":
        written = [path for path in Path(tmp_path / "out").rglob("events.out.tfevents.*") if path.stat().st_size > 200]
        assert written and f"curves: tensorboard --logdir {tmp_path / 'out'}" in done.out
    elif tracker == "trackio":
        with sqlite3.connect(tmp_path / "trackio" / "huggingface.db") as base:
            assert base.execute("select count(*) from metrics").fetchone()[0] > 0
        assert "curves: trackio show --project huggingface" in done.out
    else:
        (written,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
        assert b"train/" in written.read_bytes() and f"curves: they are in {tmp_path}/wandb; wandb sync" in done.out
