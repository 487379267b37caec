"""What a run leaves: one whole model, pushed or not, the same bytes each time; and how an interrupted one goes on.

All recipes through their commands, on models so small that a run takes a second.
"""

import errno
import json
import os
import re
import shutil
import subprocess
from datetime import date, timedelta
from importlib import metadata
from pathlib import Path

import pytest
import torch
import yaml
from helpers.hub import local_hub
from helpers.models import POSITIONS, save
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    LORA,
    RECIPES,
    ROOT,
    Done,
    again,
    conversation,
    differing,
    refused,
    succeeded,
)
from helpers.stages import short_runs
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPTNeoXConfig,
    MixtralConfig,
    Trainer,
    TrainingArguments,
)

from data_prep.common.errors import InputError
from data_prep.common.files import UNFINISHED, write_json
from data_prep.models.loading import load_checkpoint, load_reward_model
from recipes.trainers import resuming, saving
from recipes.trainers.checkpoints import FILES
from recipes.trainers.inputs import changed_inputs, inputs_of

TOKEN = "hf_secret_of_the_user"


@pytest.fixture(scope="module")
def hub():
    with local_hub() as server:
        yield server


@pytest.fixture(scope="module")
def settings(tiny_tokenizer, tiny_model_dir, tiny_reward_dir, ready_to_end_dir, tmp_path_factory) -> dict[str, dict]:
    """Three steps of each recipe, by LoRA where there is a model to start from, and a checkpoint after each."""
    return short_runs(
        tmp_path_factory.mktemp("data"), tiny_tokenizer, tiny_model_dir, tiny_reward_dir, ready_to_end_dir
    )


@pytest.fixture(scope="module")
def pushed(settings, hub, tmp_path_factory):
    """pushed(recipe): the folder of a run with checkpoints that was pushed to the Hub, once for each recipe."""
    kept: dict[str, tuple[Path, Done]] = {}

    def finished(recipe: str) -> tuple[Path, Done]:
        if recipe not in kept:
            folder = tmp_path_factory.mktemp("pushed") / recipe
            online = {"HF_ENDPOINT": hub.address, "HF_HUB_OFFLINE": "0"}
            ENVIRONMENT.update(online)
            try:
                push = {"push_to_hub": True, "hub_model_id": f"me/{recipe}", "hub_token": TOKEN}
                kept[recipe] = folder, succeeded(again(recipe, **settings[recipe], **push, output_dir=folder))
            finally:
                ENVIRONMENT.update(HF_HUB_OFFLINE="1")
                del ENVIRONMENT["HF_ENDPOINT"]
        return kept[recipe]

    return finished


def models_of(recipe: str, folder: Path) -> list[Path]:
    return [folder, folder / "value_model"] if recipe == "ppo" else [folder]


def as_killed(finished: Path, folder: Path, steps: int) -> Path:
    """A folder as a kill after so many steps leaves it."""
    folder.mkdir()
    for step in range(1, steps + 1):
        shutil.copytree(finished / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(finished / "settings.json", folder / UNFINISHED)
    return folder


# Pushed


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_is_pushed_is_the_one_model_that_is_on_disk(recipe, pushed, settings, hub):
    folder, done = pushed(recipe)
    assert not [path for path in folder.rglob("adapter*") if "checkpoint" not in str(path)]
    commits = [files for name, files in hub.commits if name == f"me/{recipe}"]
    assert len(commits) == 1  # none along the way
    on_disk = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    there = {name: content for name, content in commits[0].items() if name != ".gitattributes"}
    model = {"README.md", "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "curve.png"}
    assert model <= there.keys() <= {*model, "generation_config.json", "chat_template.jinja"}
    for name, content in there.items():
        assert str(folder.parent).encode() not in content, name
        if name != "tokenizer_config.json":  # without what it says of this machine
            assert content == on_disk[name].read_bytes(), name
    assert (
        hub.private[f"me/{recipe}"] and json.loads((folder / "pushed.json").read_text())["repo_id"] == f"me/{recipe}"
    )
    card = ModelCard(there["README.md"].decode())
    assert recipe in card.data.tags and card.data.base_model is None and "None" not in card.content
    given = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", card.text, flags=re.S)[-1])
    assert given["learning_rate"] == 0.01 and given["save_steps"] == 1 and "hub_token" not in given
    assert given.keys() <= settings[recipe].keys(), "what the libraries derive from it is not told"
    assert not list(folder.glob("training_args.bin")) and not (folder / UNFINISHED).exists()
    for path in on_disk.values():
        assert TOKEN.encode() not in path.read_bytes(), path
    assert TOKEN not in done.out + done.err and not any(TOKEN in line for line in hub.log)
    assert done.out.splitlines()[-1].startswith("pushed to ")
    for model in models_of(recipe, folder):
        assert (model / "model.safetensors").stat().st_mode & 0o777 == (model / "config.json").stat().st_mode & 0o777


# The same command


QUICK = ("pretrain", "sft", "ppo")


@pytest.mark.parametrize(
    "recipe", [each if each in QUICK else pytest.param(each, marks=pytest.mark.slow) for each in RECIPES]
)
def test_two_runs_give_the_same_bytes_pushed_or_not_killed_or_not(recipe, pushed, settings, tmp_path):
    first, _ = pushed(recipe)
    given = settings[recipe]
    # anew, without a push and checkpoints
    succeeded(again(recipe, **{**given, "save_strategy": "no"}, output_dir=tmp_path / "second"))
    # the same command after a kill
    folder = as_killed(first, tmp_path / "killed", 2)
    done = succeeded(again(recipe, **given, output_dir=folder))
    assert f"resuming from {folder}/checkpoint-2; " in done.out
    for other in (tmp_path / "second", folder):
        for one, two in zip(models_of(recipe, first), models_of(recipe, other), strict=True):
            assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
            assert not list(two.glob("adapter*"))
    refused(again(recipe, **given, output_dir=folder), f"{folder}: holds a finished model")


@pytest.mark.parametrize("recipe", ["pretrain", "sft", "reward", "ppo"])
def test_a_run_killed_after_its_last_step_trains_no_further_step(recipe, pushed, settings, tmp_path):
    first, _ = pushed(recipe)
    folder = as_killed(first, tmp_path / "killed", 3)
    # a schedule that is not at 0 after the last step would show the step too many in the weights
    succeeded(again(recipe, **settings[recipe], output_dir=folder))
    assert not (folder / "checkpoint-4").exists()
    for one, two in zip(models_of(recipe, first), models_of(recipe, folder), strict=True):
        assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    found, expected = (json.loads((each / f"{recipe}.json").read_text()) for each in (folder, first))
    assert found["curves"] == expected["curves"] or recipe == "pretrain"
    assert found["seconds"] >= expected["seconds"] / 2  # all of the training, not what was left of it


def pythia(**shared) -> GPTNeoXConfig:
    """Its head has another name in the file than in the model."""
    return GPTNeoXConfig(num_hidden_layers=1, num_attention_heads=2, hidden_size=16, intermediate_size=32, **shared)


def mixtral(**shared) -> MixtralConfig:
    """Its experts are one weight in the model, and one each in the file."""
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "hidden_size": 16}
    return MixtralConfig(**layers, intermediate_size=32, num_local_experts=2, num_experts_per_tok=1, **shared)


@pytest.mark.parametrize(
    ("kind", "in_file"),
    [(pythia, "embed_out.weight"), pytest.param(mixtral, "experts.0.w1.weight", marks=pytest.mark.slow)],
)
def test_a_model_whose_file_has_other_names_goes_on_and_keeps_its_best(
    kind, in_file, settings, tiny_chat_tokenizer, tmp_path
):
    """transformers' Trainer loads the names in a file that are the model's own, and goes on without the others."""
    ids = {key: getattr(tiny_chat_tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    shared = {"vocab_size": len(tiny_chat_tokenizer), "max_position_embeddings": POSITIONS, **ids}
    start = save(AutoModelForCausalLM.from_config(kind(**shared)), tiny_chat_tokenizer, tmp_path / "start")
    best = {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    write_json(tmp_path / "heldout.json", [conversation(letter, letter, "yes") for letter in "mnop"])
    evaluation = {"heldout": tmp_path / "heldout.json", "eval_strategy": "steps", "eval_steps": 1}
    for recipe, given in (
        ("sft", {"model_name_or_path": start, **evaluation, **best}),
        ("ppo", {"sft_model_path": start}),
    ):
        whole = {key: value for key, value in settings[recipe].items() if key not in (*LORA, "lora_r")}
        given = {**whole, **given, **EXACT}
        first, folder = tmp_path / recipe, tmp_path / f"{recipe}_killed"
        done = succeeded(again(recipe, **given, output_dir=first))
        assert any(name.endswith(in_file) for name in load_file(first / "model.safetensors"))
        succeeded(again(recipe, **given, output_dir=as_killed(first, folder, 2)))
        assert differing(folder / "checkpoint-3", first / "checkpoint-3") == set()
        assert differing(folder, first) == set()
        if recipe == "sft":  # the highest loss is asked for, which is the first: a kept model that is not the last
            assert "kept: update 1 of 3" in done.out, done.out
            assert differing(first, first / "checkpoint-1") == set()
        names = set(load_file(first / "model.safetensors"))
        assert differing(first / "checkpoint-1", first / "checkpoint-3") == names, "every weight is trained"


def test_a_checkpoint_of_another_model_is_not_gone_on_from(pushed, settings, tmp_path):
    folder = as_killed(pushed("pretrain")[0], tmp_path / "run", 2)
    name = "transformer.h.0.attn.c_attn.bias"
    kept = load_file(folder / "checkpoint-2" / "model.safetensors")
    kept["of_another"] = kept.pop(name)
    save_file(kept, folder / "checkpoint-2" / "model.safetensors", metadata={"format": "pt"})
    files = json.loads((folder / "checkpoint-2" / FILES).read_text())
    files["model.safetensors"] = (folder / "checkpoint-2" / "model.safetensors").stat().st_size
    write_json(folder / "checkpoint-2" / FILES, files)
    refused(
        again("pretrain", **settings["pretrain"], output_dir=folder),
        f"{folder}/checkpoint-2: expected the weights of a GPT2LMHeadModel, found some missing or of another model",
        f"(of_another, {name}): remove this checkpoint",
    )


def test_other_settings_are_told_apart_from_a_run_that_goes_on(pushed, settings, tmp_path):
    first, _ = pushed("sft")
    folder = as_killed(first, tmp_path / "run", 2)
    given = {**settings["sft"], "learning_rate": 0.02, "seed": 7}
    text = refused(again("sft", **given, output_dir=folder), "learning_rate 0.01 → 0.02; seed 42 → 7")
    assert text == (
        f"error: {folder}: holds checkpoints of a run with other settings (learning_rate 0.01 → 0.02; seed 42 → 7): "
        "resume it all the same by --resume_from_checkpoint last, start anew by --resume_from_checkpoint false, "
        "or give another --output_dir"
    )
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-1", "checkpoint-2", UNFINISHED]
    given["seed"] = 42
    done = succeeded(again("sft", **given, output_dir=folder, resume_from_checkpoint="last"))
    said = (
        "resuming with another setting, as told: learning_rate 0.01 → 0.02: without effect, the checkpoint's is kept\n"
    )
    assert said in done.out and differing(first, folder) == set()
    # anew: as if nothing had been there
    folder = as_killed(first, tmp_path / "anew", 2)
    given = {**settings["sft"], "max_steps": 1}
    done = succeeded(again("sft", **given, output_dir=folder, resume_from_checkpoint="false"))
    assert f"{folder}: 2 checkpoints of an earlier run removed\n" in done.out
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-1"]


@pytest.mark.parametrize(
    ("recipe", "changed", "before"),
    [
        ("sft", {"dataloader_num_workers": 1, "dataset_num_proc": 2, "eval_accumulation_steps": 2, "log_level": "error"}, 0),
        # The marker is that of a run whose version recorded the address, with which it would differ.
        ("grpo", {"vllm_server_host": "gpu7", "vllm_server_port": 8123, "vllm_group_port": 51217}, 8000),
    ],
)  # fmt: skip
def test_where_and_how_a_run_works_keeps_none_from_going_on(recipe, changed, before, pushed, settings, tmp_path):
    first, _ = pushed(recipe)
    folder = as_killed(first, tmp_path / "run", 2)
    marker = json.loads((folder / UNFINISHED).read_text())
    assert not changed.keys() & marker["settings"].keys()
    marker["settings"] |= dict.fromkeys(changed, before)
    write_json(folder / UNFINISHED, marker)
    done = succeeded(again(recipe, **settings[recipe], **changed, output_dir=folder))
    assert f"resuming from {folder}/checkpoint-2;" in done.out and differing(first, folder) == set()


def test_other_steps_between_logs_evaluations_and_checkpoints_hold_from_then_on(pushed, settings, tmp_path):
    first, _ = pushed("pretrain")
    folder = as_killed(first, tmp_path / "run", 1)
    given = {**settings["pretrain"], "save_steps": 3, "eval_steps": 1, "logging_steps": 2}
    done = succeeded(again("pretrain", **given, output_dir=folder, resume_from_checkpoint="last"))
    told = [line.split(": ")[1].split()[0] for line in done.out.splitlines() if "another setting, as told: " in line]
    assert told == ["eval_steps", "logging_steps", "save_steps"] and "without effect" not in done.out, done.out
    assert {path.name for path in folder.glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-3"}
    curves = json.loads((folder / "pretrain.json").read_text())["curves"]
    assert [step for step, _ in curves["held-out bits per byte"]] == [0, 2, 3]
    assert [step for step, _ in curves["loss"]] == [1, 2]
    assert differing(first, folder) == set()


@pytest.mark.parametrize(
    ("recipe", "name", "value"), [("pretrain", "muon_lr", 0.02), ("ppo", "value_learning_rate", 0.01)]
)
def test_a_checkpoint_of_another_optimizer_is_refused_by_the_setting(recipe, name, value, pushed, settings, tmp_path):
    folder = as_killed(pushed(recipe)[0], tmp_path / "run", 2)
    otherwise = "start anew by --resume_from_checkpoint false, or give another --output_dir"
    because = "and its optimizer has other groups of weights"
    # Told so too where nothing is said of resuming: "last" would lead no further.
    for asked in ({"resume_from_checkpoint": "last"}, {}):
        text = refused(again(recipe, **settings[recipe], **{name: value}, **asked, output_dir=folder))
        assert text == (
            f"error: {name}: found {value}, but {folder}/checkpoint-2 was trained without it, {because}: leave it out, "
            f"{otherwise}"
        )
    marker = json.loads((folder / UNFINISHED).read_text())
    marker["settings"][name] = value
    write_json(folder / UNFINISHED, marker)
    text = refused(again(recipe, **settings[recipe], output_dir=folder, resume_from_checkpoint="last"))
    assert text == (
        f"error: {name}: found none, but {folder}/checkpoint-2 was trained with {value}, {because}: set it to {value}, "
        f"{otherwise}"
    )


@pytest.mark.parametrize(
    ("recipe", "name", "value"),
    [("pretrain", "n_embd", 24), ("sft", "lora_r", 3), ("sft", "optim", "adafactor"), ("sft", "use_peft", False)],
)
def test_a_checkpoint_of_other_shapes_is_refused_by_the_setting(recipe, name, value, pushed, settings, tmp_path):
    folder = as_killed(pushed(recipe)[0], tmp_path / "run", 2)
    marker = json.loads((folder / UNFINISHED).read_text())
    own, marker["settings"][name] = marker["settings"][name], value
    write_json(folder / UNFINISHED, marker)
    for asked in ({"resume_from_checkpoint": "last"}, {}):
        text = refused(again(recipe, **settings[recipe], **asked, output_dir=folder))
        assert text == (
            f"error: {name}: found {own}, but {folder}/checkpoint-2 was trained with {value}, and what it holds has other "
            f"shapes: set it to {value}, start anew by --resume_from_checkpoint false, or give another --output_dir"
        )


def test_an_optimizer_whose_state_is_the_same_goes_on(pushed, settings, tmp_path):
    first, _ = pushed("sft")
    folder = as_killed(first, tmp_path / "run", 2)
    given = {**settings["sft"], "optim": "adamw_torch", "output_dir": folder, "resume_from_checkpoint": "last"}
    done = succeeded(again("sft", **given))
    assert "resuming with another setting, as told: optim adamw_torch_fused → adamw_torch\n" in done.out


def test_with_lora_muon_lr_keeps_no_run_from_going_on(pushed, settings, tmp_path):
    first, _ = pushed("sft")
    folder = as_killed(first, tmp_path / "run", 2)
    given = {**settings["sft"], "muon_lr": 0.02, "output_dir": folder, "resume_from_checkpoint": "last"}
    succeeded(again("sft", **given))
    assert differing(first, folder) == set()


def test_a_run_that_goes_on_another_day_writes_the_date_of_its_first(tiny_model_dir, tmp_path):
    shutil.copytree(tiny_model_dir, tmp_path / "dated")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "dated")
    # As Llama 3.2's and gpt-oss's: the day stands in every conversation.
    tokenizer.chat_template = "{{ 'today ' + strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    tokenizer.save_pretrained(tmp_path / "dated")
    (tmp_path / "chat.json").write_text(json.dumps([conversation("1", "a", "b"), conversation("2", "c", "d")]))
    given = {"conversations": tmp_path / "chat.json", "model_name_or_path": tmp_path / "dated", **EXACT}
    given |= {"max_length": POSITIONS, "max_new_tokens": 4, "max_steps": 2, "save_steps": 1}
    given |= {"save_total_limit": 2, "output_dir": tmp_path / "out"}
    done = succeeded(again("sft", **given))
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert f"today {date.fromisoformat(record['day']):%d %b %Y}" in done.out
    assert date.today() - date.fromisoformat(record["day"]) <= timedelta(days=1)
    folder = as_killed(tmp_path / "out", tmp_path / "killed", 1)
    record = json.loads((folder / UNFINISHED).read_text())
    write_json(folder / UNFINISHED, {**record, "day": "2020-02-03"})
    done = succeeded(again("sft", **{**given, "output_dir": folder}))
    assert f"resuming from {folder}/checkpoint-1;" in done.out and "today 03 Feb 2020" in done.out
    assert json.loads((folder / "settings.json").read_text())["day"] == "2020-02-03"


def test_other_data_models_versions_and_processes_are_told_apart_too(pushed, settings, tmp_path):
    folder, data = as_killed(pushed("sft")[0], tmp_path / "run", 1), settings["sft"]["conversations"]
    marker, content = json.loads((folder / UNFINISHED).read_text()), data.read_bytes()
    model = f"model_name_or_path: {settings['sft']['model_name_or_path']}"
    assert {f"{model}/{name}" for name in ("config.json", "model.safetensors", "tokenizer.json")} < {*marker["inputs"]}
    marker["inputs"][f"{model}/tokenizer.json"] = "7 bytes, 0"
    del marker["inputs"][f"{model}/config.json"]
    marker["versions"]["trl"], marker["processes"] = "1.11.0", 2
    write_json(folder / UNFINISHED, marker)
    try:
        data.write_bytes(content.replace(b'"yes"', b'"yea"', 1))  # as long as it was
        refused(again("sft", **settings["sft"], output_dir=folder), f"other files ({model}/config.json is new; ")
        marker["inputs"][f"{model}/config.json"] = pushed_input(pushed, f"{model}/config.json")
        write_json(folder / UNFINISHED, marker)
        text = refused(again("sft", **settings["sft"], output_dir=folder))
    finally:
        data.write_bytes(content)
    changed = f"{model}/tokenizer.json has changed"
    assert text.startswith(
        f"error: {folder}: holds checkpoints of a run with other files (conversations: {data} has changed; {changed}), "
        f"other versions (trl 1.11.0 → {metadata.version('trl')}), other processes (processes 2 → 1): resume it all the same"
    )


def test_files_that_a_glob_gives_are_told_apart_too(tmp_path):
    """The readers' own rules: what a folder holds is read, too, and what is hidden in it is not."""
    for name in ("part-1.jsonl", "part-2.jsonl", "part-3/deep.json", "part-3/.hidden.json", "other.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    settings = {
        "conversations": [f"{tmp_path}/part-*"],
        "heldout": [f"{tmp_path}/oth[e]r.jsonl"],
        "prompts": ["hf://a/b*"],
    }
    before = inputs_of(settings)
    names = ("part-1.jsonl", "part-2.jsonl", "part-3/deep.json")
    assert [*before] == [*(f"conversations: {tmp_path}/{name}" for name in names), f"heldout: {tmp_path}/other.jsonl"]
    (tmp_path / "part-2.jsonl").write_text("[]")
    assert changed_inputs(before, inputs_of(settings), set()) == [
        f"conversations: {tmp_path}/part-2.jsonl has changed"
    ]
    (tmp_path / "part-4.jsonl").write_text("{}")
    assert f"conversations: {tmp_path}/part-4.jsonl is new" in changed_inputs(before, inputs_of(settings), set())
    with pytest.raises(InputError, match="found no file that ends in"):
        inputs_of({"conversations": [f"{tmp_path}/none-*.jsonl"]})


def pushed_input(pushed, name: str) -> str:
    return json.loads((pushed("sft")[0] / "settings.json").read_text())["inputs"][name]


def test_checkpoints_of_nobody_knows_what_are_not_resumed_by_themselves(pushed, settings, tmp_path):
    first, _ = pushed("sft")
    folder = as_killed(first, tmp_path / "run", 1)
    (folder / UNFINISHED).unlink()
    refused(again("sft", **settings["sft"], output_dir=folder), "a run whose settings are not known")


# Unfinished


def test_an_unfinished_model_is_never_taken_for_a_finished_one(pushed, settings, tmp_path):
    """As a kill between the last write of the model and that of its results leaves it."""
    for recipe, load in (("sft", load_checkpoint), ("reward", load_reward_model)):
        folder = tmp_path / recipe
        shutil.copytree(pushed(recipe)[0], folder)
        load(str(folder))
        os.replace(folder / "settings.json", folder / UNFINISHED)
        with pytest.raises(InputError, match="its training has not finished; the command that began it, run again"):
            load(str(folder))
    start = {**settings["dpo"], "model_name_or_path": tmp_path / "sft", "output_dir": tmp_path / "out"}
    refused(again("dpo", **start), f"{tmp_path / 'sft'}: its training has not finished")
    # and its own command finishes it
    succeeded(again("sft", **settings["sft"], output_dir=tmp_path / "sft"))
    assert differing(pushed("sft")[0], tmp_path / "sft") == set()


def trainer_of(folder: Path, model) -> Trainer:
    return Trainer(model, TrainingArguments(str(folder), use_cpu=True, report_to="none"))


def test_a_disk_that_fills_up_at_the_last_save_leaves_no_model(tiny_model_dir, tmp_path, monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    trainer = trainer_of(tmp_path, model)
    (tmp_path / UNFINISHED).write_text("{}")

    def full(folder: str, **_) -> None:
        Path(folder).mkdir()
        shutil.copy(tiny_model_dir / "config.json", folder)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(trainer, "save_model", full)
    with pytest.raises(
        InputError, match="the disk is full; no checkpoint is whole: make room and run the same command"
    ):
        saving.save_model(trainer, {"": model})
    assert not (tmp_path / "config.json").exists() and not resuming.is_finished(tmp_path)


def test_a_model_that_does_not_load_as_it_was_is_not_kept(tiny_model_dir, tiny_reward_dir, tmp_path):
    """Other weights, and an adapter beside them: the folder keeps no config.json, by which it would pass for whole."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    trainer = trainer_of(tmp_path / "weights", model)
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        other.transformer.wte.weight[0, 0] += 1e-3
    with pytest.raises(RuntimeError, match="is another than that trained: do not use it .*wte.weight"):
        saving.save_model(trainer, {"": other})
    assert not (tmp_path / "weights" / "config.json").exists()
    for name, kind in ((tiny_model_dir, AutoModelForCausalLM), (tiny_reward_dir, AutoModelForSequenceClassification)):
        folder = tmp_path / kind.__name__
        model = kind.from_pretrained(name)
        model.save_pretrained(folder)
        saving.check_reload(folder, model)
        (folder / "adapter_weights").touch()
        with pytest.raises(RuntimeError, match="adapter_weights"):
            saving.check_reload(folder, model)


@pytest.mark.parametrize("cut", ["trainer_state.json", "model.safetensors", "optimizer.pt"])
@pytest.mark.parametrize("size", [0, 100])
def test_a_checkpoint_with_a_file_cut_short_is_passed_over(cut, size, pushed, tmp_path, capsys):
    folder = as_killed(pushed("pretrain")[0], tmp_path / "run", 2)
    path = folder / "checkpoint-2" / cut
    path.write_bytes(path.read_bytes()[:size])
    assert resuming.last_checkpoint(folder) == str(folder / "checkpoint-1")
    said = capsys.readouterr().out
    assert said == f"{folder}/checkpoint-2: a run was killed while writing it ({cut} is cut short); skipped\n"


# Before any work


def test_a_push_that_cannot_be_is_told_before_training(settings, hub, tmp_path, monkeypatch):
    push = {**settings["sft"], "push_to_hub": True, "hub_model_id": "me/none", "output_dir": tmp_path / "out"}
    refused(again("sft", **push), "push_to_hub: me/none: no token found", "hf auth login")
    refused(again("sft", **push, hub_token=TOKEN), "push_to_hub: me/none: ", "cannot be reached")  # offline
    refused(again("sft", **push, hub_strategy="every_save"), "hub_strategy: found every_save", "expected end")
    monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", "http://127.0.0.1:1")
    refused(again("sft", **push, hub_token=TOKEN), "http://127.0.0.1:1 cannot be reached")
    assert not (tmp_path / "out").exists()
    monkeypatch.setitem(ENVIRONMENT, "HF_ENDPOINT", hub.address)
    monkeypatch.setattr(hub, "refuse", "/commit/")
    done = again("sft", **push, hub_token=TOKEN)
    text = refused(
        done,
        f"the model in {tmp_path / 'out'} is whole, but not pushed: ",
        "403",
        "no file arrived",
        f"recipes/push_to_hub.py --model {tmp_path / 'out'} --repo_id me/none",
    )
    assert TOKEN not in done.out + done.err + text
    assert resuming.is_finished(tmp_path / "out") and (tmp_path / "out" / "sft.json").exists()


@pytest.mark.parametrize(("asked", "said"), [("nowhere", "no such folder"), ("tests", "no trainer_state.json")])
def test_a_checkpoint_that_is_none_is_refused(asked, said, settings, tmp_path):
    given = {**settings["sft"], "output_dir": tmp_path / "out", "resume_from_checkpoint": asked}
    refused(again("sft", **given), f"resume_from_checkpoint: {asked}: {said}; expected last, false, or the folder")


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        (("results.json", "model/settings.json"), {"results.json", "model/settings.json"}),  # finished
        (("results.json", "model/unfinished.json"), {"model/unfinished.json"}),  # killed after its results
        (("model/unfinished.json",), {"model/unfinished.json"}),  # killed before: its command goes on
        (("model/settings.json",), set()),  # the user wants it again
    ],
)
def test_a_stage_of_the_quickstart_goes_on_or_starts_over(left, kept, tmp_path):
    (tmp_path / "model").mkdir()
    for name in left:
        (tmp_path / name).write_text("{}")
    line = f". recipes/steps.sh; unfinished {tmp_path}/results.json {tmp_path}/model"
    subprocess.run(["bash", "-euc", line], cwd=ROOT, check=True)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.json")} == kept
