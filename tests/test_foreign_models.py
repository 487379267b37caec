"""A checkpoint from elsewhere: what cannot be used is refused in one line, and nothing that lies in its folder is run."""

import ast
import io
import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from helpers.models import POSITIONS, save
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    ROOT,
    Done,
    again,
    conversation,
    loaded,
    ranking,
    refused,
    results,
    succeeded,
    words,
)
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3Config,
    GPT2LMHeadModel,
    GraniteConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
)

from data_prep.common.errors import InputError
from data_prep.common.files import readable, write_json, write_jsonl
from data_prep.models.generation import generate_answers
from data_prep.models.loading import (
    check_length,
    checkpoint_or_hub_id,
    context_of,
    load_checkpoint,
    load_reward_model,
    load_tokenizer,
)
from eval import perplexity
from eval.judging.kl import kl_divergence
from eval.pages.talkers import Checkpoint


@pytest.fixture
def copied(tiny_model_dir, tmp_path) -> Path:
    """A copy of a good checkpoint, to be broken."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def change(file: Path, **changes) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


class Evil:
    """Unpickled, it writes the file `ran` beside itself."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "ran")


def pickled(folder: Path, stem: str = "pytorch_model") -> None:
    """Weights as torch.save wrote them before safetensors, and code among them."""
    (folder / f"{stem}.bin").write_bytes(pickle.dumps(Evil(folder / "ran")))
    (folder / "model.safetensors").unlink()


def adapter_alone(folder: Path) -> None:
    base = folder.with_name("base")
    shutil.copytree(folder, base)
    pickled(folder, "adapter_model")
    (folder / "config.json").unlink()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base), "r": 1}
    (folder / "adapter_config.json").write_text(json.dumps(about))


def cut(folder: Path, share: float) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(len(content) * share)])


def in_shards(folder: Path, index: dict | None = None) -> None:
    """In five files, the second of them lost."""
    model = GPT2LMHeadModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model-00002-of-00005.safetensors").unlink()
    if index is not None:
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def without(folder: Path, name: str) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


# (what is done to a good checkpoint, what the message must hold)
BROKEN = {
    "pickled": (pickled, "pytorch_model.bin: pickled weights, and reading those can run code; expected model.safet"),
    "pickled shards": (
        lambda folder: pickled(folder, "pytorch_model-00001-of-00002"),
        "pytorch_model-00001-of-00002.bin: pickled weights",
    ),
    "truncated": (
        lambda folder: cut(folder, 0.5),
        "model.safetensors: not a whole safetensors file (Error while deser",
    ),
    "header alone": (lambda folder: cut(folder, 0.01), "model.safetensors: not a whole safetensors file"),
    "empty": (lambda folder: cut(folder, 0), "model.safetensors: not a whole safetensors file"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "found no weights; expected model.safetens",
    ),
    "missing shard": (
        in_shards,
        "model-00002-of-00005.safetensors: no such file, but model.safetensors.index.json names it",
    ),
    "index without a map": (lambda folder: in_shards(folder, {}), "expected an object with a 'weight_map'"),
    "wider": (
        lambda folder: change(folder / "config.json", n_embd=64),
        "weights and config.json do not fit: transformer.h.0.attn.c_attn.bias is (96,), by the config it is (192,)",
    ),
    "deeper": (
        lambda folder: change(folder / "config.json", n_layer=3),
        "found no weights for 12 tensors of the model, transformer.h.2.attn.c_attn.bias among them",
    ),
    "tensor left out": (
        lambda folder: without(folder, "transformer.wpe.weight"),
        "found no weights for 1 tensors of the model, transformer.wpe.weight among them",
    ),
    "eos outside": (
        lambda folder: change(folder / "config.json", eos_token_id=[2, 262]),
        "config.json has eos_token_id [2, 262]; expected less than its vocab_size, 262",
    ),
    "pad outside": (
        lambda folder: change(folder / "config.json", pad_token_id=999),
        "config.json has pad_token_id 999; expected less than its vocab_size, 262",
    ),
    "config cut": (
        lambda folder: (folder / "config.json").write_text('{"model_type":'),
        "model: neither a finished checkpoint's folder nor a model on the Hub (It looks like the config file at",
    ),
    "config of a list": (lambda folder: (folder / "config.json").write_text("[]"), "model: cannot be loaded: "),
    "unknown kind": (
        lambda folder: change(folder / "config.json", model_type="nonesuch"),
        "model: cannot be loaded: The checkpoint you are trying to load has model type `nonesuch`",
    ),
}
# Of the tokenizer beside it, which a value model has none of.
BROKEN_TOKENIZERS = {
    "eos not among the tokens": (
        lambda folder: change(folder / "tokenizer_config.json", eos_token="<nope>"),
        "its eos_token '<nope>' is token 262, but the model has 262 tokens",
    ),
    "pad not among the tokens": (
        lambda folder: change(folder / "tokenizer_config.json", pad_token="<nope>"),
        "its pad_token '<nope>' is token 262, but the model has 262 tokens",
    ),
    "larger than the model": (
        lambda folder: change(folder / "tokenizer_config.json", extra_special_tokens=["<one>", "<two>"]),
        "the tokenizer does not fit the checkpoint: it has 264 entries, the model 262",
    ),
    "cut": (
        lambda folder: (folder / "tokenizer.json").write_text("{"),
        "no tokenizer that can be loaded (Expecting property name",
    ),
    "of nothing": (lambda folder: (folder / "tokenizer.json").write_text("{}"), "no tokenizer that can be loaded ("),
    "of a list": (
        lambda folder: (folder / "tokenizer_config.json").write_text("[]"),
        "no tokenizer that can be loaded (",
    ),
    "template that reaches out": (
        lambda folder: (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}"),
        "its chat template cannot be used: access to attribute '__class__' of 'str' object is unsafe",
    ),
}


def one_line(code: int, err: str, message: str) -> None:
    lines = [line for line in err.splitlines() if line]
    assert code == 1 and len(lines) == 1, err
    (line,) = lines
    assert line.startswith("error: ") and message in line, err


@pytest.mark.parametrize("name", BROKEN | BROKEN_TOKENIZERS)
def test_a_broken_checkpoint_is_refused_in_one_line(chat_with, copied, name):
    damage, message = (BROKEN | BROKEN_TOKENIZERS)[name]
    damage(copied)
    code, out, err = chat_with(copied, b"hi\n")
    one_line(code, err, message)
    assert out == "" and not (copied / "ran").exists()


@pytest.mark.parametrize("name", BROKEN)
def test_a_recipe_looks_before_any_work(copied, name):
    # Every recipe asks this for its models' names, before it reads data.
    damage, message = BROKEN[name]
    damage(copied)
    with pytest.raises(InputError) as told:
        checkpoint_or_hub_id(str(copied), "recipes/pretrain.py")
    assert message in str(told.value) and len(str(told.value).splitlines()) == 1
    assert not (copied / "ran").exists()


def test_an_adapter_of_pickled_weights_is_refused(chat_with, copied):
    adapter_alone(copied)
    code, _, err = chat_with(copied, b"hi\n")
    one_line(code, err, "adapter_model.bin: pickled weights, and reading those can run code")
    assert not (copied / "ran").exists()


def test_a_reward_model_whose_head_is_not_in_the_file_is_refused(tiny_reward_dir, tmp_path):
    # The library would draw a head at random, and only warn.
    folder = Path(shutil.copytree(tiny_reward_dir, tmp_path / "reward"))
    without(folder, "score.weight")
    message = "found no weights for 1 tensors of the model, score.weight among them"
    for load in (load_reward_model, lambda name: checkpoint_or_hub_id(name, "recipes/reward.py")):
        with pytest.raises(InputError, match=message):
            load(str(folder))


# What every recipe needs beside a model. No file is there: it would be told of if it were read first.
RECIPES = {
    "sft": ("model_name_or_path", {"conversations": "no.jsonl"}),
    "reward": ("model_name_or_path", {"rankings": "no.jsonl"}),
    "dpo": ("model_name_or_path", {"rankings": "no.jsonl"}),
    "ppo": ("sft_model_path", {"prompts": "no.jsonl", "reward_funcs": "x:y"}),
    "rloo": ("model_name_or_path", {"prompts": "no.jsonl", "reward_funcs": "x:y"}),
    "grpo": ("model_name_or_path", {"prompts": "no.jsonl", "reward_funcs": "x:y"}),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_refuse_pickled_weights_before_data(copied, tmp_path, recipe):
    pickled(copied)
    model, others = RECIPES[recipe]
    told = refused(
        again(recipe, **{model: copied}, **others, output_dir=tmp_path / "out"), "pytorch_model.bin: pickled"
    )
    assert len(told.splitlines()) == 1
    assert not (copied / "ran").exists() and not (tmp_path / "out").exists()


def test_a_recipe_refuses_an_end_that_is_no_token(copied, tmp_path):
    settings = {"model_name_or_path": copied, "conversations": "no.jsonl", "output_dir": tmp_path / "out"}
    told = refused(
        again("sft", **settings, eos_token="<nope>"), "eos_token: found '<nope>', which is not in the vocab"
    )
    assert len(told.splitlines()) == 1


# Code in the folder


def with_code(folder: Path) -> Path:
    """Write a module into a folder. Returns the file that it would write if it were run."""
    write = f"from pathlib import Path\nPath({str(folder / 'ran')!r}).write_text('ran')\n"
    (folder / "evil.py").write_text(f"{write}class Evil:\n    pass\n")
    return folder / "ran"


def of_a_kind_of_its_own(folder: Path) -> Path:
    classes = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM"), "evil.Evil")
    change(folder / "config.json", model_type="evil", auto_map=classes)
    return with_code(folder)


def test_code_in_a_folder_is_not_run_whatever_is_typed(chat_with, copied):
    ran = of_a_kind_of_its_own(copied)
    code, out, err = chat_with(copied, b"y\ny\ny\ny\nhello\n")
    one_line(code, err, "it brings Python code of its own, which is never run here")
    assert not ran.exists() and out == ""


def test_code_in_a_folder_is_not_run_by_a_recipe(copied, tmp_path):
    ran = of_a_kind_of_its_own(copied)
    settings = {"model_name_or_path": copied, "conversations": "no.jsonl", "output_dir": tmp_path / "out"}
    line = [sys.executable, *words("sft", settings)]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, input="y\n" * 9, capture_output=True, text=True)
    refused(
        Done(done.returncode, done.stdout, done.stderr), "it brings Python code of its own, which is never run here"
    )
    assert not ran.exists() and "[y/N]" not in done.stdout


def test_code_in_the_folder_of_a_tokenizer_is_not_run(tiny_tokenizer, tmp_path, monkeypatch):
    tiny_tokenizer.save_pretrained(tmp_path)
    classes = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}
    change(tmp_path / "tokenizer_config.json", **classes)
    ran = with_code(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    with pytest.raises(InputError, match=r"no tokenizer that can be loaded \(it brings Python code of its own"):
        load_tokenizer(tmp_path)
    assert not ran.exists() and len(sys.stdin.read()) == 18  # nothing was asked


def test_nothing_is_loaded_without_saying_that_code_is_not_trusted():
    # Left out, trust_remote_code is None, and transformers asks on standard input.
    loose = []
    for path in (path for folder in ("recipes", "data_prep", "eval") for path in (ROOT / folder).rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith(("Auto", "kind.")):
                keywords = [ast.unparse(keyword) for keyword in node.keywords]
                given = "**" in "".join(keywords) and '"trust_remote_code": False' in source
                if (
                    ast.unparse(node.func).endswith(".from_pretrained")
                    and "trust_remote_code=False" not in keywords
                    and not given
                ):
                    loose.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert loose == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_weights_can_be_read_by_whom_their_neighbours_can(tmp_path, tiny_model_dir, umask, mode):
    folder = tmp_path / "value_model"
    folder.mkdir()
    weights = folder / "model.safetensors"
    weights.write_bytes((tiny_model_dir / "model.safetensors").read_bytes())
    weights.chmod(0o600)  # as safetensors leaves it
    before = os.umask(umask)
    try:
        readable(tmp_path)
    finally:
        os.umask(before)
    assert weights.stat().st_mode & 0o777 == mode


# Models whose config names no limit of the context, or names it for one of their parts


def bloom(**shared) -> BloomConfig:
    """No table of positions, and no limit: its attention falls off with distance."""
    return BloomConfig(hidden_size=32, n_layer=2, n_head=2, **shared)


def gemma3(**shared) -> Gemma3Config:
    """A text model beside one of images; the limit is in the config of the text."""
    layers = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_size": 32}
    text = {**layers, **shared, "num_key_value_heads": 1, "head_dim": 16, "max_position_embeddings": POSITIONS}
    vision = {**layers, "image_size": 8, "patch_size": 4}
    return Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **shared)


CONFIGS, CONTEXTS = {"bloom": bloom, "gemma3": gemma3}, {"bloom": None, "gemma3": POSITIONS}


@pytest.fixture(scope="module", params=CONFIGS)
def foreign(request, tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A model of random weights, whose folder is named after its kind."""
    ids = {key: getattr(tiny_chat_tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[request.param](vocab_size=len(tiny_chat_tokenizer), **ids))
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("foreign") / request.param)


def test_the_context_of_a_model_is_that_of_its_text(foreign, tiny_chat_tokenizer):
    config = load_checkpoint(str(foreign))[0].config
    assert not hasattr(config, "max_position_embeddings")
    assert context_of(config) == CONTEXTS[foreign.name]
    check_length(tiny_chat_tokenizer, config, POSITIONS)
    if foreign.name == "gemma3":
        with pytest.raises(InputError, match="max_length is 65, but the model has 64 positions"):
            check_length(tiny_chat_tokenizer, config, POSITIONS + 1)


def test_no_token_beyond_the_limit_of_mpt_can_be_read():
    config = MptConfig(d_model=8, n_heads=2, n_layers=1, vocab_size=9, max_seq_len=16)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert context_of(config) == 16
    assert model(input_ids=torch.ones(1, 16, dtype=torch.long)).logits.shape == (1, 16, 9)
    with pytest.raises(RuntimeError, match="size of tensor"):
        model(input_ids=torch.ones(1, 17, dtype=torch.long))


def test_a_model_of_another_context_is_talked_to(chat_with, foreign):
    code, out, err = chat_with(foreign, b"hello\n" + b"and " * 30 + b"\n")
    assert code == 0, err
    assert out.count("model> ") == 2
    assert ("do not fit and are truncated" in out) == (foreign.name == "gemma3")
    code, _, err = chat_with(foreign, b"hello\n", "--max_new_tokens", 0)
    room = f"1 to 63; {foreign} has 64 positions" if foreign.name == "gemma3" else "1 or more"
    one_line(code, err, f"--max_new_tokens 0: expected {room}")
    assert Checkpoint(str(foreign)).kind == "chat"


def test_a_model_of_another_context_is_asked(capsys, foreign):
    model, tokenizer = load_checkpoint(str(foreign))
    prompts = [[{"role": "user", "content": "what is right " * 8}], [{"role": "user", "content": "yes?"}]]
    answers = generate_answers(model, tokenizer, prompts, 8, temperature=1.0)
    assert all(1 <= answer["tokens"] <= 8 for (answer,) in answers)
    truncated = "1 of 2 prompts are longer than 56 tokens, the context minus max_new_tokens: truncated on the left"
    assert (truncated in capsys.readouterr().out) == (foreign.name == "gemma3")
    divergence = kl_divergence(model, model, tokenizer, prompts, answers, 8, 1.0, 2)
    assert divergence["value"] == 0
    assert ("KL: 1 of 2 prompts" in capsys.readouterr().out) == (foreign.name == "gemma3")


def test_a_model_of_another_context_is_measured_on_documents(command, foreign, tmp_path):
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "what is right " * 80}])  # 1,120 tokens
    given = ("--model", foreign, "--documents", tmp_path / "documents.jsonl", "--results_dir", tmp_path)
    code, _, err = command(perplexity, *given)
    assert code == 0, err
    found = results(tmp_path, f"perplexity_{foreign.name}")
    assert (found["tokens"], found["context"]) == (1120, CONTEXTS[foreign.name] or 1024)


def without_max_length(folder: Path, **settings) -> dict:
    """Settings as a YAML in `folder`, where max_length is left to the model."""
    settings |= {"max_length": None, "per_device_train_batch_size": 2, "max_steps": 2}
    config = folder / "settings.yaml"
    config.write_text(yaml.safe_dump({**EXACT, **settings}))
    return {"config": config, "output_dir": folder / "out"}


@pytest.mark.parametrize("recipe", ["sft", "dpo", "kto"])
def test_a_model_of_another_context_is_trained(foreign, tmp_path, recipe):
    data, long = tmp_path / "data.json", "what is right " * 8
    settings = {"model_name_or_path": str(foreign)}
    if recipe == "sft":
        write_json(data, [conversation(each, each, "yes") for each in ("a", "b", "c", "d", long)])
        settings |= {"conversations": [str(data)], "max_new_tokens": 8}
    else:
        write_jsonl(data.with_suffix(".jsonl"), [ranking(each, {"yes": 1, "no": 2}) for each in ("a", "b", long)])
        settings |= {"rankings": [str(data.with_suffix(".jsonl"))]}
    done = succeeded(again(recipe, **without_max_length(tmp_path, **settings)))
    found = {
        "sft": ("conversations may be of any length", "1 conversation is longer than max_length=64 tokens"),
        "dpo": (
            "3 pairs of a chosen and a rejected answer\n",
            "1 with an answer beyond 64 tokens (max_length) are left",
        ),
        "kto": ("3 answers labelled good and 3 labelled bad\n", "2 beyond 64 tokens (max_length) are left out"),
    }
    assert found[recipe][foreign.name == "gemma3"] in done.out
    assert loaded(tmp_path / "out")[0].generation_config.max_length == CONTEXTS[foreign.name]


def test_rows_are_not_packed_for_a_model_that_would_not_keep_them_apart(foreign, tmp_path):
    write_json(tmp_path / "data.json", [conversation(each, each, "yes") for each in "abcd"])
    settings = {"model_name_or_path": str(foreign), "conversations": [str(tmp_path / "data.json")], "packing": True}
    given = without_max_length(tmp_path, **settings, max_new_tokens=8)
    if foreign.name == "gemma3":
        succeeded(again("sft", **given))
        return
    refused(again("sft", **given), "max_length: the model's context has no limit; expected a number")
    given["max_length"] = POSITIONS
    refused(
        again("sft", **given), "packing: BloomForCausalLM takes no positions, which keep conversations of a row apart"
    )


# Kinds of models that compute otherwise than a recipe would take for granted

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
}
KINDS = {
    "bloom": bloom,
    "opt": lambda **shared: OPTConfig(
        hidden_size=32, ffn_dim=64, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=64, **shared
    ),
    "granite": lambda **shared: GraniteConfig(**LLAMA, logits_scaling=8.0, **shared),
    "mistral": lambda **shared: MistralConfig(**LLAMA, sliding_window=8, **shared),
    "mistral of a wide window": lambda **shared: MistralConfig(**LLAMA, sliding_window=32, **shared),
    # What bounds the logits by a millionth makes every token as likely as any other.
    "gemma2": lambda **shared: Gemma2Config(**LLAMA, head_dim=16, final_logit_softcapping=1e-6, **shared),
}


def odd_model(kind: str, tokenizer, folder: Path) -> Path:
    ids = {key: getattr(tokenizer, key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind](vocab_size=len(tokenizer), **ids))
    for weight in model.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.5)  # else hardly anything depends on what is attended to
    return save(model, tokenizer, folder / kind.partition(" ")[0])


def trained_on_four_rows(recipe: str, model: Path, folder: Path, **settings) -> Done:
    """The recipe for two steps on rows of 20 tokens or so."""
    data, length = folder / "data.json", {"max_length": POSITIONS, "max_steps": 2}
    if recipe == "reward":
        write_json(data, [ranking(each, {"yes, it is so": 1, "no": 2}) for each in ("what", "is it", "and", "why")])
    else:
        write_json(data, [conversation(each, each, "yes") for each in ("what", "is it", "and", "why")])
    if recipe == "ppo":
        (folder / "rewards.py").write_text(
            "def none(prompts, completions, **columns):\n    return [0.0] * len(prompts)\n"
        )
        given = {"sft_model_path": model, "prompts": data, "reward_funcs": f"{folder / 'rewards.py'}:none"}
        length = {"response_length": 8, "total_episodes": 4, "gradient_accumulation_steps": 2}
    else:
        given = {"model_name_or_path": model, {"sft": "conversations", "reward": "rankings"}[recipe]: data}
    given |= {"max_new_tokens": 4} if recipe == "sft" else {}
    given |= {**EXACT, **length, "per_device_train_batch_size": 2, "output_dir": folder / "out", **settings}
    return again(recipe, **given)


@pytest.mark.parametrize(
    ("kind", "recipe", "settings", "message"),
    [
        (
            "opt",
            "sft",
            {"packing": True},
            "packing: in OPTForCausalLM with attention 'sdpa' conversations of a row see",
        ),
        ("granite", "reward", {}, "granite: transformers has no model of the kind granite with a score head"),
        ("granite", "ppo", {}, "granite: transformers has no model of the kind granite with a score head"),
        ("bloom", "reward", {"shared_prompt": True}, "shared_prompt: bloom models take no mask but that of padding"),
        (
            "mistral",
            "reward",
            {"shared_prompt": True},
            "shared_prompt: in mistral models answers behind a shared prompt",
        ),
    ],
)
def test_what_a_model_does_not_keep_to_is_refused(kind, recipe, settings, message, tiny_chat_tokenizer, tmp_path):
    model = odd_model(kind, tiny_chat_tokenizer, tmp_path)
    told = refused(trained_on_four_rows(recipe, model, tmp_path, **settings), message)
    assert len(told.splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "recipe", "settings"),
    [
        ("opt", "sft", {"packing": True, "packing_strategy": "wrapped"}),  # conversations are not kept apart in it
        ("bloom", "sft", {"packing": True, "packing_strategy": "wrapped"}),
        ("mistral of a wide window", "reward", {"shared_prompt": True}),
    ],
)
def test_what_the_same_model_keeps_to_is_trained(kind, recipe, settings, tiny_chat_tokenizer, tmp_path):
    succeeded(trained_on_four_rows(recipe, odd_model(kind, tiny_chat_tokenizer, tmp_path), tmp_path, **settings))


def test_ppo_takes_the_logits_that_a_model_bounds(tiny_chat_tokenizer, tmp_path):
    # Of 262 equal tokens each has log-probability -ln 262; the entropy of an answer is that of its tokens together.
    model = odd_model("gemma2", tiny_chat_tokenizer, tmp_path)
    succeeded(trained_on_four_rows("ppo", model, tmp_path))
    (entropy,), (length,) = (results(tmp_path / "out", "ppo")["curves"][key] for key in ("entropy", "length"))
    assert entropy[1] / length[1] == pytest.approx(math.log(262), rel=1e-4)
