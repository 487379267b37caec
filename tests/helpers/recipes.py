"""Running a recipe as its command, and looking at what it left."""

import ast
import functools
import importlib
import json
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import huggingface_hub
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2LMHeadModel,
)

from helpers.models import save, tiny_config

ROOT = Path(__file__).parents[2]
STAGES = ("pretrain", "sft", "reward", "ppo")
RECIPES = (*STAGES, "continue_pretraining", "dpo", "kto", "rloo", "grpo")
# As it was before any test: the libraries' arguments leave settings in it. Models so small gain nothing by a second thread.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
EXACT = {"use_cpu": True, "bf16": False, "report_to": "none"}  # the same figures on every machine
LORA = {"use_peft": True, "lora_target_modules": "all-linear", "report_to": "none"}  # with what the machine has


class Done(NamedTuple):
    """What a command left: its exit code and what it printed."""

    code: int
    out: str
    err: str


def arguments_of(recipe: str) -> tuple[type, ...]:
    """The dataclasses that a recipe hands to `parse_arguments`, read off its source."""
    module = importlib.import_module(f"recipes.{recipe}")
    calls = (node for node in ast.walk(ast.parse(Path(module.__file__).read_text())) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "parse_arguments")
    return tuple(functools.reduce(getattr, ast.unparse(each).split("."), module) for each in call.args)


def words(recipe: str, settings: dict) -> list[str]:
    """The command line: {"max_steps": 3, "prompts": ["a", "b"]} is --max_steps 3 --prompts a b."""
    line = [f"recipes/{recipe}.py"]
    for key, value in settings.items():
        line += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return line


def command(recipe: str, **settings) -> Done:
    """Run a recipe as a user does."""
    line = [sys.executable, *words(recipe, settings)]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    return Done(done.returncode, done.stdout, done.stderr)


def run_as_script(line: list[str], log: str, environment: dict[str, str]) -> None:
    """What `python` does with the words of a command, in a process that has imported the libraries."""
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    # Read from the environment when the library was imported.
    huggingface_hub.constants.HF_HUB_CACHE = environment.get("HF_HUB_CACHE", huggingface_hub.constants.HF_HUB_CACHE)
    if address := environment.get("HF_ENDPOINT"):
        constants = huggingface_hub.constants
        constants.ENDPOINT, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_XET = address, False, True
        huggingface_hub.hf_api.api.endpoint = address
    os.chdir(ROOT)
    torch.set_num_threads(1)
    sys.argv, sys.path[:0] = line, [str(ROOT / "recipes")]
    runpy.run_path(line[0], run_name="__main__")


@functools.cache
def processes():
    """Where processes come from: on Linux forks of one that holds the libraries, elsewhere new ones."""
    # bitsandbytes, where it is installed, starts CUDA when it is imported, which a fork cannot use.
    forks = sys.platform == "linux" and not torch.cuda.is_available()
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    # What the recipes import late, too: a fork then has nothing left to import.
    late = [f"trl.trainer.{method}_trainer" for method in ("sft", "dpo", "kto", "rloo", "grpo")]
    late += ["recipes.trainers.reward_trainer", "recipes.trainers.ppo.trainer", "peft", "transformers.trainer"]
    late += ["transformers.models.gpt2.modeling_gpt2", "trl.models.utils", "data_prep.models.generation"]
    context.set_forkserver_preload(
        ["pytest", *(f"recipes.{recipe}" for recipe in RECIPES), *late, "tests.helpers.warm"]
    )
    return context


def again(recipe: str, **settings) -> Done:
    """Run a recipe in a process of its own, without the imports."""
    with tempfile.TemporaryDirectory() as folder:
        log = f"{folder}/log"
        process = processes().Process(target=run_as_script, args=(words(recipe, settings), log, {**ENVIRONMENT}))
        process.start()
        process.join(120)
        if process.is_alive():
            process.kill()
            process.join()
        return Done(process.exitcode, *(Path(f"{log}.{name}").read_text() for name in ("out", "err")))


def succeeded(done: Done) -> Done:
    assert done.code == 0, f"exit code {done.code}\n{done.out[-2000:]}\n{done.err[-4000:]}"
    return done


def results(folder: Path, stage: str) -> dict:
    return json.loads((folder / f"{stage}.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def differing(first: Path, second: Path) -> set[str]:
    """The names of the weights that are not bitwise the same in two folders."""
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


def loaded(folder: Path, kind=AutoModelForCausalLM):
    """(model, tokenizer) by plain from_pretrained, every weight of the model found in the folder and no adapter there."""
    model, info = kind.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert not list(folder.glob("adapter*")), "an adapter beside the merged model"
    return model, AutoTokenizer.from_pretrained(folder)


def served_as(folder: Path, eos_token_id: int | list[int] = 2) -> bool:
    """Whether a model of 64 positions is saved to answer greedily, within them, up to its end of turn."""
    found = json.loads((folder / "generation_config.json").read_text())
    del found["transformers_version"]
    return found == {
        "do_sample": False,
        "max_length": 64,
        "exponential_decay_length_penalty": [48, 1e6],
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": eos_token_id,
        "suppress_tokens": [1],
        "use_cache": True,
    }


def conversation(key: str, *texts: str, system: str | None = None) -> dict:
    """Texts as turns of human and gpt in the Baichuan format."""
    turns = [{"from": "system", "value": system}] if system else []
    turns += [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
    return {"id": key, "conversations": turns}


def ranking(question: str, ranks: dict[str, int]) -> dict:
    return {"prompt": question, "completions": list(ranks), "ranks": list(ranks.values())}


def in_hub_cache(cache: Path, name: str, revisions: dict[str, Path]) -> None:
    """Put folders into the cache of the Hub as revisions of the model `name`, as after a download."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    for number, (revision, model) in enumerate(revisions.items()):
        commit = f"{number:040x}"
        shutil.copytree(model, folder / "snapshots" / commit)
        (folder / "refs" / revision).write_text(commit)


def is_png(path: Path) -> bool:
    return path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


LONG = "x" * 70


def ready_to_end(tokenizer, folder: Path) -> Path:
    """An assistant that ends its answer with nearly the same probability after every token, its other tokens alike.

    The last layer norm gives nearly (1, 0, 0, …) whatever comes in, and the end of turn has 4.7 there, every other token
    0: the end has probability exp(4.7) / (exp(4.7) + 261) = 0.297, each of the others 0.703 / 261.
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tokenizer))
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(0.05)  # 0 would keep the blocks from learning
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[tokenizer.eos_token_id, 0] = 4.7
    return save(model, tokenizer, folder)


def refused(done: Done, *messages: str) -> str:
    """The error of a command that must have ended with one, which holds all of `messages`."""
    assert done.code == 1 and "Traceback" not in done.err, f"exit code {done.code}\n{done.err[-3000:]}"
    lines = done.err.splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith("error:")]
    assert len(starts) == 1, done.err[-3000:]
    text = "\n".join(lines[starts[0] :])
    assert all(message in text for message in messages), text
    return text
