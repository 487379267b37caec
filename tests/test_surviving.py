"""Told to stop, a full disk, a loss that is not finite, half a checkpoint: what is whole stays, and the run goes on.

One small Trainer through `train` of recipes/trainers/resuming.py, as every recipe trains. Kills of whole commands at random
moments are in tests/survive.py.
"""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.models import tiny_config
from helpers.recipes import ENVIRONMENT, ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

from data_prep.common.errors import InputError
from recipes.trainers import checkpoints, inputs, loss_watch
from recipes.trainers.checkpoints import last_checkpoint
from recipes.trainers.resuming import Run, train

MARKED, UPDATES = 99, 6  # a token of one row alone; updates of two batches of two rows: 24 rows, one pass


class Marked(Trainer):
    """A trainer whose loss is `loss` for a batch with the marked token."""

    loss = None

    def compute_loss(self, model, given, return_outputs=False, num_items_in_batch=None):
        loss = super().compute_loss(model, given, return_outputs, num_items_in_batch)
        return loss * self.loss if self.loss is not None and (given["input_ids"] == MARKED).any() else loss


class At(TrainerCallback):
    """Do something at the beginning of an update, counted from 1."""

    def __init__(self, update: int, what) -> None:
        self.update, self.what = update, what

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step + 1 == self.update:
            self.what()


@pytest.fixture
def trainer(tiny_tokenizer, tmp_path):
    """trainer(marked_row, callback, **arguments): a new one, always of the same weights."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer.name_or_path)

    def new(callback: At | None = None, marked: int | None = None, folder: str = "run", **arguments) -> Marked:
        torch.manual_seed(0)
        rows = [[10 + row, 40, 50, MARKED if row == marked else 60] for row in range(24)]
        rows = Dataset.from_dict({"input_ids": rows, "labels": rows})
        small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_steps": UPDATES}
        kept = {"save_strategy": "steps", "save_steps": 2, "logging_steps": 1, "report_to": "none", "use_cpu": True}
        return Marked(
            GPT2LMHeadModel(tiny_config(tokenizer, n_layer=1)),
            TrainingArguments(str(tmp_path / folder), **{**small, **kept, "disable_tqdm": True, **arguments}),
            train_dataset=rows,
            eval_dataset=rows.select(range(2)),
            processing_class=tokenizer,
            callbacks=[callback] if callback else [],
        )

    return new


def begun(checkpoint: str | None = None) -> Run:
    return Run(checkpoint, False, {"settings": {}})


def weights_of(trainer: Trainer) -> list[torch.Tensor]:
    return [weight.detach().clone() for weight in trainer.model.parameters()]


def steps_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


# Told to stop


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGUSR1, 138, marks=pytest.mark.slow)]
)
def test_a_signal_saves_within_the_step_and_the_run_goes_on_to_the_same_weights(
    number, code, trainer, tmp_path, capsys
):
    whole = trainer(folder="whole")
    train(whole, begun())
    before = signal.getsignal(number)
    stopped = trainer(At(3, lambda: os.kill(os.getpid(), number)), save_strategy="no")
    with pytest.raises(SystemExit) as told:
        train(stopped, begun())
    folder = tmp_path / "run"
    assert told.value.code == code and signal.getsignal(number) == before
    said = f"{number.name}: {folder}/checkpoint-3 is saved; run the same command again to resume"
    assert capsys.readouterr().out.strip().splitlines()[-1] == said
    assert steps_of(folder) == ["checkpoint-3"]
    again = trainer()
    train(again, begun(last_checkpoint(folder)))
    assert all(map(torch.equal, weights_of(again), weights_of(whole)))
    losses = [[row["loss"] for row in each.state.log_history if "loss" in row] for each in (again, whole)]
    assert losses[0] == losses[1] and len(losses[0]) == UPDATES


# Half a checkpoint


def test_a_kill_while_saving_leaves_the_checkpoint_before_and_no_half_one(trainer, tmp_path, capsys):
    folder, killed = tmp_path / "run", trainer()
    save = killed._save_rng_state
    killed._save_rng_state = lambda to: os.kill(os.getpid(), signal.SIGINT) if to.endswith("-4") else save(to)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background jobs ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            train(killed, begun())
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps_of(folder) == ["checkpoint-2", "partial-checkpoint-4"]
    assert last_checkpoint(folder) == f"{folder}/checkpoint-2"
    said = f"\n{folder}/partial-checkpoint-4: a run was killed while writing it; skipped\n"
    assert capsys.readouterr().out.endswith(said)
    train(trainer(), begun(f"{folder}/checkpoint-2"))
    assert steps_of(folder) == ["checkpoint-2", "checkpoint-4", "checkpoint-6"]


@pytest.mark.parametrize(
    ("damage", "flaw"),
    [
        (lambda path: (path / "optimizer.pt").unlink(), "no optimizer.pt"),
        (lambda path: (path / "trainer_state.json").write_text("{}"), "trainer_state.json holds no step"),
        (lambda path: (path / "trainer_state.json").write_text(""), "trainer_state.json is cut short"),
        (lambda path: os.truncate(path / "scheduler.pt", 100), "scheduler.pt is cut short"),
        (lambda path: os.truncate(path / "model.safetensors", 9000), "model.safetensors is cut short"),
        (lambda path: os.truncate(path / "rng_state.pth", 0), "rng_state.pth is cut short"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_by_name(damage, flaw, one_run, tmp_path, capsys):
    folder = tmp_path / "copy"
    shutil.copytree(one_run, folder)
    damage(folder / "checkpoint-4")
    assert last_checkpoint(folder) == f"{folder}/checkpoint-2"
    assert capsys.readouterr().out == f"{folder}/checkpoint-4: a run was killed while writing it ({flaw}); skipped\n"


@pytest.fixture(scope="module")
def one_run(tiny_tokenizer, tmp_path_factory):
    """The checkpoints of two and four updates."""
    folder, rows = tmp_path_factory.mktemp("runs") / "run", [[1, 2, 3]] * 8
    kept = {"save_strategy": "steps", "save_steps": 2, "report_to": "none", "use_cpu": True, "disable_tqdm": True}
    arguments = TrainingArguments(str(folder), per_device_train_batch_size=2, max_steps=4, **kept)
    model = GPT2LMHeadModel(tiny_config(tiny_tokenizer, n_layer=1))
    train(Trainer(model, arguments, train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows})), begun())
    return folder


def test_the_best_checkpoint_is_named_where_it_lies_and_old_ones_go(trainer, tmp_path):
    run = trainer(
        eval_strategy="steps", eval_steps=2, load_best_model_at_end=True, save_total_limit=1, learning_rate=0.0
    )
    train(run, begun())
    assert run.state.best_model_checkpoint == f"{tmp_path}/run/checkpoint-6"  # the last of equals
    state = json.loads((tmp_path / "run" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == f"{tmp_path}/run/checkpoint-6"
    assert steps_of(tmp_path / "run") == ["checkpoint-6"]


@pytest.mark.slow
def test_kills_at_random_moments_of_whole_commands_are_tallied_and_the_tally_goes_on(tmp_path):
    """Cut off after its first kill, the same command adds the other kills to that one."""
    line = [
        sys.executable,
        "tests/survive.py",
        "--kills",
        "3",
        "--stages",
        "pretrain",
        "rloo",
        "--output_dir",
        tmp_path,
    ]
    cut = subprocess.Popen(line, cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = next(told for told in cut.stderr if told.startswith("pretrain: ") and ", kill 1 of 3 " in told)
    cut.send_signal(signal.SIGTERM)
    out, _ = cut.communicate()
    assert cut.returncode == 143 and re.match(r"pretrain: [12] kills .*; cut off: the same command goes on$", out), (
        first
    )
    kept = json.loads((tmp_path / "tally.json").read_text())["pretrain by SIGKILL"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    *told, last = done.stdout.splitlines()
    assert [line.split(":")[0] for line in told] == ["pretrain", "rloo"]
    whole = r"\w+: 3 kills \(.*\); \d+ ends, all byte for byte the run that nobody killed$"
    assert all(re.match(whole, line) for line in told), told
    assert re.match(r"2 stages, 6 kills by SIGKILL, \d+ ends; 0 stages failed$", last)
    assert "a run that nobody kills" not in done.stderr.split("rloo")[0]  # the first command's is kept
    tally = json.loads((tmp_path / "tally.json").read_text())["pretrain by SIGKILL"]
    assert tally["expected"] == kept["expected"] and tally["runs"] > kept["runs"]


def test_the_quickstart_that_is_killed_is_a_small_one(tmp_path):
    from survive import LESS, small_quickstart

    small_quickstart(tmp_path)  # ends where the quickstart has no such command any more
    script = (tmp_path / "recipes" / "quickstart.sh").read_text()
    assert all(short in script for short in LESS.values()) and "--limit 400" not in script
    assert "total_tokens: 40000\n" in (tmp_path / "recipes" / "configs" / "quickstart" / "mix.yaml").read_text()


# A full disk


def test_a_full_disk_leaves_the_last_whole_checkpoint_and_one_line(trainer, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    full = At(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard)))  # less than the weights take
    try:
        with pytest.raises(InputError) as error:
            train(trainer(full), begun())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    folder = tmp_path / "run"
    assert str(error.value) == (
        f"{folder}: the disk is full; {folder}/checkpoint-2 is whole: make room and run the same command again"
    )
    assert steps_of(folder) == ["checkpoint-2"]


# A loss that is not finite


def test_a_loss_that_is_not_finite_stops_with_its_rows_before_it_reaches_the_weights(trainer, tmp_path):
    marked = 5
    folder, run = tmp_path / "run", trainer(marked=marked, save_steps=1)
    run.loss = float("nan")
    with pytest.raises(InputError) as error:
        train(run, begun())
    step, rows = found(str(error.value))
    assert marked in rows and len(rows) == 2 and all(torch.isfinite(weight).all() for weight in weights_of(run))
    kept = f"{folder}/checkpoint-{step - 1} is kept"
    assert f"the loss of update {step} is nan: stopped before it changes the weights; {kept}; " in str(error.value)
    # the same rows when the run goes on in the middle of a pass
    run = trainer(marked=marked)
    run.loss = float("nan")
    with pytest.raises(InputError) as error:
        train(run, begun(last_checkpoint(folder)))
    assert step > 1 and found(str(error.value)) == (step, rows)


def found(message: str) -> tuple[int, list[int]]:
    rows = message.split("rows of the batch in train_dataset: ")[1]
    return int(re.search(r"update (\d+)", message)[1]), [int(row) for row in re.findall(r"row (\d+)", rows)]


def test_a_gradient_that_is_not_finite_stops_too(trainer):
    run = trainer(marked=5)
    run.loss = 1e38  # its square, in the norm, is beyond fp32
    with pytest.raises(InputError, match=r"the gradient norm of update 4 is (inf|nan): stopped before .*row 5 '"):
        train(run, begun())


def test_weights_that_are_not_finite_are_no_checkpoint(trainer, tmp_path):
    run = trainer()

    def spoil() -> None:
        with torch.no_grad():
            run.model.transformer.wte.weight[200] = float("inf")  # a token that no row has

    run.add_callback(At(4, spoil))
    run.loss = None
    run.training_step = lambda *args: torch.tensor(1.0)  # a loss that does not look at it
    with pytest.raises(
        InputError, match=r"checkpoint-4: not written: \S+wte.weight is NaN or infinite; \S+/checkpoint-2 is"
    ):
        train(run, begun())
    assert steps_of(tmp_path / "run") == ["checkpoint-2"]


def test_a_spike_is_logged_with_its_rows(trainer, monkeypatch, capsys):
    monkeypatch.setattr(loss_watch, "FEWEST", 1)
    run = trainer(marked=3, learning_rate=0.0, save_strategy="no", max_steps=3)
    run.loss = 50.0
    train(run, begun())
    spikes = [row for row in run.state.log_history if "loss_spike" in row]
    assert [(spike["step"], len(spike["rows"])) for spike in spikes] == [(2, 4)] and 3 in spikes[0]["rows"]
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("loss spike at update ")]
    assert (
        len(said) == 1
        and "update 2: 108, the 1 before it 4.21 ± 0; its rows in train_dataset: row " in said[0]
        and "row 3 '" in said[0]
    )


# The same inputs


@given(content=st.binary(min_size=1, max_size=40), place=st.integers(0, 39), most=st.sampled_from([4, 16, 64]))
@settings(max_examples=30, deadline=None)
def test_a_byte_of_a_small_file_and_the_ends_of_a_large_one_make_another_fingerprint(
    content, place, most, tmp_path_factory
):
    block, inputs.BLOCK = inputs.BLOCK, 4
    try:
        path = tmp_path_factory.mktemp("file") / "data"
        path.write_bytes(content)
        before = inputs.fingerprint(path, most)
        place %= len(content)
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        read = len(content) <= most or place < 4 or place >= len(content) - 4
        assert not read or inputs.fingerprint(path, most) != before
        path.write_bytes(content)
        os.utime(path, (1, 1))  # copied to another machine
        assert inputs.fingerprint(path, most) == before and before.startswith(f"{len(content)} bytes, ")
    finally:
        inputs.BLOCK = block


def test_files_added_to_a_folder_are_named_and_only_other_sizes_of_the_rest():
    before, now = (
        {"tokens: a": "5 bytes, x", "tokens: b": "6 bytes, x"},
        {"tokens: a": "5 bytes, y", "tokens: c": "1 bytes, z"},
    )
    assert inputs.changed_inputs(before, now, set()) == ["tokens: b is gone", "tokens: c is new"]
    assert inputs.changed_inputs(before, {**before, "tokens: b": "6 bytes, y"}, set()) == ["tokens: b has changed"]
    assert inputs.changed_inputs(before, now, {"tokens"}) == []


def test_the_list_of_files_is_written_last(one_run):
    listed = json.loads((one_run / "checkpoint-2" / checkpoints.FILES).read_text())
    assert {
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "trainer_state.json",
    } <= listed.keys()
    assert all((one_run / "checkpoint-2" / name).stat().st_size == size for name, size in listed.items())


def test_the_time_at_which_rows_were_ranked_is_not_compared():
    """The quickstart's rankings bear it; a run that is killed and goes on ranks later."""
    from survive import without_times

    row = b'{"prompt": "a", "ranks": [1, 0], "ranked_at": "2026-11-27T23:%d:00+00:00"}'
    assert without_times(row % 12) == without_times(row % 21)
    assert without_times(row % 12) != without_times((row % 12).replace(b"[1, 0]", b"[0, 1]"))
