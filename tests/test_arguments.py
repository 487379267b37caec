"""The options of the recipes: each is read by somebody or refused by name; what recipes share is the same in each."""

import ast
import functools
import importlib
import inspect
import os
import re
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
import transformers
import trl
from helpers.models import POSITIONS, save, tiny_config
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    ROOT,
    again,
    arguments_of,
    command,
    conversation,
    in_hub_cache,
    ranking,
    refused,
    succeeded,
    weights,
    words,
)
from transformers import GPT2LMHeadModel, PreTrainedModel

from data_prep.common.files import write_json, write_jsonl
from data_prep.tokens.shards import ShardWriter, tokenizer_hash, write_index
from recipes.trainers import arguments
from recipes.trainers.ppo.config import REFUSED as PPO_REFUSED

RECIPES = sorted(
    path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem not in ("__init__", "plan", "push_to_hub")
)
# The class whose loop reads the options of each recipe's library.
TRAINERS = {
    "pretrain": transformers.Trainer,
    "continue_pretraining": transformers.Trainer,
    "sft": trl.SFTTrainer,
    "reward": trl.RewardTrainer,
    "ppo": transformers.Trainer,
    "dpo": trl.DPOTrainer,
    "kto": trl.KTOTrainer,
    "rloo": trl.RLOOTrainer,
    "grpo": trl.GRPOTrainer,
}


@functools.cache
def names_read(path: Path) -> frozenset[str]:
    """The attributes that a file reads of its arguments: `args.x`, `self.args.x`, `script.x`, `getattr(args, "x")` …"""
    bases = {"args", "script", "model_args", "training_args", "training_arguments"}
    own = {"self"} if path.name == "training_args.py" else set()

    def is_arguments(node: ast.expr) -> bool:
        if isinstance(node, ast.Name):
            return node.id in bases | own
        return isinstance(node, ast.Attribute) and node.attr == "args"

    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load) and is_arguments(node.value):
            found.add(node.attr)
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr" and is_arguments(node.args[0]):
            found.add(getattr(node.args[1], "value", ""))
        if path.name == "batch.py" and isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "get":
            found.add(getattr(node.args[0], "value", ""))  # it changes an option before there are arguments
        if own and isinstance(node, ast.FunctionDef) and node.name == "__post_init__":  # takes old names for new ones
            pairs = (each for each in ast.walk(node) if isinstance(each, ast.Tuple))
            found |= {each.value for pair in pairs for each in pair.elts if isinstance(each, ast.Constant)}
    return frozenset(found)


@functools.cache
def sources(recipe: str) -> frozenset[Path]:
    """The files that read a recipe's options: its own, the project's trainers, and those of the library's trainer."""
    own = {ROOT / "recipes" / f"{recipe}.py", *(ROOT / "recipes" / "trainers").rglob("*.py")}
    if recipe != "ppo":
        own = {path for path in own if "ppo" not in path.parts}
    trainer = {Path(inspect.getsourcefile(kind)) for kind in TRAINERS[recipe].__mro__ if kind is not object}
    library = Path(transformers.__file__).parent
    shared = {*library.glob("trainer*.py"), library / "training_args.py", *(library / "integrations").glob("*.py")}
    shared |= {path for name in ("utils", "callbacks", "base_trainer") for path in _trl(name)}
    shared |= {
        Path(inspect.getsourcefile(trl.get_peft_config)),
        Path(inspect.getsourcefile(trl.get_quantization_config)),
    }
    return frozenset(own | trainer | shared)


def _trl(name: str) -> list[Path]:
    path = Path(trl.__file__).parent / "trainer" / f"{name}.py"
    return [path] if path.exists() else []


OPTIONS = [(recipe, kind, each.name) for recipe in RECIPES for kind in arguments_of(recipe) for each in fields(kind)]


@pytest.mark.parametrize(("recipe", "kind", "name"), OPTIONS, ids=lambda each: getattr(each, "__name__", each))
def test_every_option_is_read_or_refused_by_name(recipe, kind, name):
    refused_here = {*arguments.REFUSED, *getattr(importlib.import_module(f"recipes.{recipe}"), "REFUSED", {})}
    if recipe == "ppo":
        refused_here |= {*PPO_REFUSED}
    assert name in refused_here or any(name in names_read(path) for path in sources(recipe))


def test_an_option_that_nobody_reads_is_found():
    """The test above on an option that is not there."""
    assert not any("lerning_rate" in names_read(path) for path in sources("sft"))
    assert any("learning_rate" in names_read(path) for path in sources("sft"))


# What is refused, through the command

LEAST = {
    "pretrain": {"tokenizer": "x", "tokens": "x"},
    "continue_pretraining": {"tokens": "x", "model_name_or_path": "x"},
    "sft": {"conversations": "x", "model_name_or_path": "x"},
    "reward": {"rankings": "x", "model_name_or_path": "x"},
    "ppo": {"prompts": "x", "sft_model_path": "x"},
    "dpo": {"rankings": "x", "model_name_or_path": "x"},
    "kto": {"rankings": "x", "model_name_or_path": "x"},
    "rloo": {"prompts": "x", "model_name_or_path": "x"},
    "grpo": {"prompts": "x", "model_name_or_path": "x"},
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_would_ignore_is_refused_before_any_work(recipe, tmp_path):
    """From the YAML and from the command line; the data and models named are not there."""
    own = getattr(importlib.import_module(f"recipes.{recipe}"), "REFUSED", {})
    known = {each.name for kind in arguments_of(recipe) for each in fields(kind)}
    assert set(own) <= known
    for name in sorted({*own, *arguments.REFUSED} & known):
        config = tmp_path / f"{name}.yaml"
        config.write_text(f"{name}: true\n")
        done = again(recipe, **LEAST[recipe], output_dir=tmp_path / "out", config=config)
        refused(done, f"error: {name}: this recipe would ignore it: ")
    name = "do_train"
    for spelled in (name, "do-train"):  # the library takes both
        done = again(recipe, **LEAST[recipe], output_dir=tmp_path / "out", **{spelled: "true"})
        refused(done, f"error: {name}: this recipe would ignore it: ")
    done = again(recipe, **LEAST[recipe], output_dir=tmp_path / "out", do_trai="true")  # and would take this one
    refused(done, "error: ", "--do_trai")


@pytest.mark.parametrize("recipe", [recipe for recipe in RECIPES if recipe != "pretrain"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lora_r": 8}, "error: lora_r: it needs use_peft"),
        ({"lora-alpha": 8}, "error: lora_alpha: it needs use_peft"),
        ({"per_device_eval_batch_size": 4}, "error: per_device_eval_batch_size: it needs heldout"),
        ({"eval_strategy": "steps"}, "error: eval_strategy: it needs heldout"),
        ({"load_in_4bit": True}, "error: load_in_4bit and load_in_8bit train nothing but LoRA adapters: add use_peft"),
        ({"use_bnb_nested_quant": True}, "error: use_bnb_nested_quant: it needs load_in_4bit"),
        ({"use_peft": True, "load_in_8bit": True, "dtype": "auto"}, "error: dtype: found auto with quantized weights"),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_an_option_that_needs_another_is_refused_without_it(recipe, given, message, tmp_path):
    if recipe == "continue_pretraining" and "eval_strategy" in given:
        message = "error: eval_strategy: this recipe would ignore it"
    refused(again(recipe, **LEAST[recipe], **given, output_dir=tmp_path / "out"), message)


def test_an_option_of_one_recipe_that_needs_another_is_refused_without_it(tmp_path):
    given = {**LEAST["ppo"], "output_dir": tmp_path / "out"}
    refused(again("ppo", **given, eval_funcs="x"), "error: eval_funcs: it needs heldout")
    refused(again("ppo", **given, max_prompts=3), "error: max_prompts: it needs heldout")
    refused(again("ppo", **given, heldout="x", max_prompts=0), "error: max_prompts: expected at least 1, found 0")
    given = {**LEAST["sft"], "output_dir": tmp_path / "out"}
    refused(again("sft", **given, merge_adapter=False), "error: merge_adapter: it needs use_peft")


@pytest.mark.parametrize("recipe", ["pretrain", "continue_pretraining", "sft", "reward", "ppo"])
def test_muon_has_an_adamw_of_its_own(recipe, tmp_path):
    given = {**LEAST[recipe], "output_dir": tmp_path / "out", "muon_lr": 0.01}
    refused(again(recipe, **given, optim="sgd"), "error: optim: Muon would ignore it")
    refused(again(recipe, **given, adam_beta1=0.8), "error: adam_beta1: Muon would ignore it")


@pytest.fixture(scope="module")
def runnable(tiny_model_dir, tiny_reward_dir, tmp_path_factory) -> dict[str, dict]:
    """Each recipe on a tiny model and data that it can use, for one step."""
    folder = tmp_path_factory.mktemp("runnable")
    chats = [conversation(letter, letter, "yes") for letter in "abcdefgh"]
    write_json(folder / "chats.json", chats)
    write_jsonl(folder / "ranked.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in "abcdefgh"])
    steps = {"max_steps": 1, "logging_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 8, **EXACT}
    chat = {"model_name_or_path": tiny_model_dir, **steps}
    online = {**chat, "prompts": folder / "chats.json", "reward_model_path": tiny_reward_dir}
    online |= {"num_generations": 2, "max_completion_length": 4}
    ppo = {**steps, "sft_model_path": tiny_model_dir, "reward_model_path": tiny_reward_dir}
    ppo |= {"prompts": folder / "chats.json", "num_mini_batches": 1, "response_length": 4, "total_episodes": 8}
    del ppo["max_steps"]
    return {
        "sft": {**chat, "conversations": folder / "chats.json", "max_length": POSITIONS, "max_new_tokens": 4},
        "reward": {**chat, "rankings": folder / "ranked.jsonl", "max_length": POSITIONS},
        "dpo": {**chat, "rankings": folder / "ranked.jsonl", "max_length": POSITIONS},
        "kto": {**chat, "rankings": folder / "ranked.jsonl", "max_length": POSITIONS},
        "ppo": ppo,
        "rloo": online,
        "grpo": online,
    }


CHAT_RECIPES = ("sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo")


@pytest.mark.parametrize("recipe", CHAT_RECIPES)
def test_an_attention_or_revision_that_is_not_there_is_refused(recipe, runnable, tiny_model_dir, tmp_path):
    given = {**runnable[recipe], "output_dir": tmp_path / "out"}
    refused(again(recipe, **given, attn_implementation="nonsense"), "error: attn_implementation: found 'nonsense'")
    message = f"error: model_revision is 'v2', but {tiny_model_dir} is a folder: only the Hub has revisions"
    refused(again(recipe, **given, model_revision="v2"), message)


class Loaded(Exception):
    """Ends a recipe where it loads a model."""


@pytest.mark.parametrize("recipe", CHAT_RECIPES)
def test_every_model_is_loaded_as_the_options_say(recipe, runnable, tmp_path, monkeypatch):
    """What `from_pretrained` makes of the options is written down for each model."""
    seen, load = [], PreTrainedModel.from_pretrained.__func__

    def written_down(cls, name, *positional, **given):
        found = load(cls, name, *positional, **given)
        model = found[0] if given.get("output_loading_info") else found
        if model.device.type != "meta":  # there the shapes of a checkpoint are looked at
            seen.append((model.config._attn_implementation, model.dtype, given["use_safetensors"]))
        return found

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(written_down))
    monkeypatch.setattr(transformers.Trainer, "train", lambda *_, **__: (_ for _ in ()).throw(Loaded()))
    given = {**runnable[recipe], "attn_implementation": "eager", "dtype": "bfloat16", "output_dir": tmp_path / "out"}
    monkeypatch.setattr(sys, "argv", words(recipe, given))
    environment = dict(os.environ)
    try:
        with pytest.raises(Loaded):
            importlib.import_module(f"recipes.{recipe}").main()
    finally:
        os.environ.clear()  # the library's arguments leave settings there for accelerate
        os.environ.update(environment)
    models = {"sft": 1, "reward": 1, "dpo": 2, "kto": 2, "ppo": 4, "rloo": 3, "grpo": 2}[
        recipe
    ]  # GRPO without a KL needs no reference
    assert seen == [("eager", torch.bfloat16, True)] * models


@pytest.mark.parametrize("recipe", CHAT_RECIPES)
def test_a_model_of_the_hub_is_trained_by_its_name_and_revision(
    recipe, runnable, tiny_model_dir, zero_chat_dir, tmp_path, monkeypatch
):
    """Of one name main is all zeros and v2 is not. Without a step of training v2 is what is saved."""
    in_hub_cache(tmp_path / "hub", "somebody/tiny", {"main": zero_chat_dir, "v2": tiny_model_dir})
    monkeypatch.setitem(ENVIRONMENT, "HF_HUB_CACHE", str(tmp_path / "hub"))
    key = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    given = {**runnable[recipe], key: "somebody/tiny", "model_revision": "v2", "learning_rate": 0.0}
    succeeded(again(recipe, **given, output_dir=tmp_path / "out"))
    saved, expected = weights(tmp_path / "out"), weights(tiny_model_dir)
    assert all(torch.equal(saved[name], weight) for name, weight in expected.items())
    given = {**given, "model_revision": "v3", "output_dir": tmp_path / "v3"}
    made_by = "recipes/pretrain.py" if recipe == "sft" else "recipes/sft.py"
    refused(again(recipe, **given), "error: somebody/tiny: neither a finished", f"it is made by: {made_by}")


@pytest.fixture(scope="module")
def zero_chat_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    model = GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "zero_chat")


@pytest.mark.parametrize("recipe", CHAT_RECIPES)
def test_without_a_model_the_option_is_named(recipe, runnable, tmp_path):
    key = "sft_model_path" if recipe == "ppo" else "model_name_or_path"
    given = {name: value for name, value in runnable[recipe].items() if name != key}
    refused(
        again(recipe, **given, output_dir=tmp_path / "out"), f"error: {key}: expected a folder or a model of the Hub"
    )


# Held-out data


@pytest.mark.parametrize("recipe", CHAT_RECIPES)
def test_held_out_prompts_that_are_trained_on_are_refused_by_every_recipe(recipe, runnable, tmp_path):
    key = next(key for key in ("conversations", "rankings", "prompts") if key in runnable[recipe])
    if key == "rankings":
        write_jsonl(tmp_path / "heldout.jsonl", [ranking(letter, {"yes": 0, "nope": 1}) for letter in "bxy"])
    else:
        write_jsonl(tmp_path / "heldout.jsonl", [conversation(letter, letter, "other") for letter in "bxy"])
    given = {**runnable[recipe], "heldout": tmp_path / "heldout.jsonl", "output_dir": tmp_path / "out"}
    message = f"error: {tmp_path / 'heldout.jsonl'}: 1 of 3 held-out prompts is trained on too; split by prompt"
    refused(again(recipe, **given), message)


def test_held_out_documents_that_are_trained_on_are_refused(tiny_tokenizer, tmp_path):
    texts, folder = ["abc", "d" * 70, "abcdef"], tiny_tokenizer.name_or_path
    writer = ShardWriter(tmp_path / "tokens", "<u2", shard_tokens=60)  # two shards
    for text in texts:
        writer.add([*tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id], len(text))
    writer.close()
    write_index(tmp_path / "tokens", writer.shards, "<u2", len(tiny_tokenizer), tokenizer_hash(folder))
    assert len(writer.shards) == 2
    given = {"tokenizer": folder, "tokens": tmp_path / "tokens", "n_positions": 16, "output_dir": tmp_path / "out"}
    given |= {"n_layer": 1, "n_head": 1, "n_embd": 8, "max_steps": 1, "per_device_train_batch_size": 1, **EXACT}
    write_jsonl(tmp_path / "both.jsonl", [{"text": text} for text in ("abd", "d" * 70, "abc", "abcde")])
    message = f"error: {tmp_path / 'both.jsonl'}: 2 of 4 held-out documents are trained on too; split by document"
    refused(again("pretrain", **given, heldout=tmp_path / "both.jsonl"), message)
    write_jsonl(tmp_path / "other.jsonl", [{"text": text} for text in ("abd", "d" * 71, "abcde")])  # alike, not equal
    succeeded(again("pretrain", **given, heldout=tmp_path / "other.jsonl"))
    given["output_dir"] = tmp_path / "another"
    refused(again("pretrain", **given), "error: heldout: expected files of documents that training does not see")


# What the recipes share


def described(kind: type, name: str) -> tuple:
    """Type, default and help of an option. (The parser changes `type` of the fields themselves.)"""
    (each,) = (each for each in fields(kind) if each.name == name)
    default = each.default_factory() if each.default_factory is not MISSING else each.default
    (owner,) = [parent for parent in kind.__mro__ if name in parent.__dict__.get("__annotations__", {})][:1]
    return str(owner.__annotations__[name]), default, each.metadata.get("help")


def test_an_option_is_the_same_word_for_word_in_every_recipe_that_has_it():
    own: dict[str, dict[str, tuple]] = {}
    for recipe in RECIPES:
        script = arguments_of(recipe)[0]
        for each in fields(script):
            own.setdefault(each.name, {})[recipe] = described(script, each.name)
    shared = {name: of for name, of in own.items() if len(of) > 1}
    assert {"heldout", "on_bad", "columns", "results_dir", "muon_lr", "muon_momentum", "max_seconds", "merge_adapter",
            "prompts", "rankings",
            "reward_funcs", "reward_model_path", "missing_eos_penalty", "max_prompt_length", "long_prompts",
            "max_prompts", "stop_on", "eval_funcs", "reward_gate", "tokens", "document_attention",
            "global_batch_size"} == set(shared)  # fmt: skip
    for name, of in shared.items():
        assert len(set(map(repr, of.values()))) == 1, (name, of)
    for recipe in CHAT_RECIPES:
        assert {"heldout", "on_bad", "columns", "results_dir"} <= {name for name, of in own.items() if recipe in of}
    # PPO's is in its own arguments, where TRL has it.
    assert described(arguments_of("ppo")[1], "reward_model_path") == own["reward_model_path"]["rloo"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_of_a_recipe_says_what_it_does(recipe):
    assert all(each.metadata.get("help") for each in fields(arguments_of(recipe)[0]))


# Without arguments, and --help


def test_accelerate_launch_without_arguments_shows_the_commands_and_no_traceback_where_it_is_quiet():
    """accelerate itself ends with 1 whatever the recipe's exit code, and adds a traceback of its own unless --quiet."""
    line = [sys.executable, "-m", "accelerate.commands.launch", "--quiet", "recipes/sft.py"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "recipes/sft.py \\\n        --config recipes/configs/quickstart/sft.yaml\n" in done.stderr
    assert "next: one of the commands above, or --help for every option\n" in done.stderr


def test_without_arguments_a_recipe_shows_its_commands_and_the_next_step():
    done = command("sft")
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert "recipes/sft.py \\\n        --config recipes/configs/quickstart/sft.yaml\n" in done.err
    assert done.err.endswith("next: one of the commands above, or --help for every option\n")


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_begins_with_the_options_of_the_recipe(recipe):
    done = again(recipe, help="")
    assert done.code == 0
    options = re.findall(r"^  --(\w+)", done.out, re.MULTILINE)
    own = [each.name for each in fields(arguments_of(recipe)[0])]
    assert [name for name in options if not name.startswith("no_")][: len(own)] == own
    assert done.out.index("options of this recipe:") < done.out.index("options of transformers, trl and peft:")
    assert "learning_rate" in options
    described = " ".join(done.out.split("options of this recipe:")[1].split("options of transformers")[0].split())
    assert "default: output_dir. --" in described and "(default: None)" not in described.partition("results_dir")[0]
    run = "adapt" if recipe == "continue_pretraining" else "quickstart"
    assert f"recipes/{recipe}.py \\\n        --config recipes/configs/{run}/{recipe}.yaml\n" in done.out
