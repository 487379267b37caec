"""The recipes and TRL's own trainers, each in a process of its own, and the random models that they are timed on."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from data_prep.common.errors import InputError
from data_prep.common.files import read_json, write_json
from data_prep.models.loading import load_tokenizer

ROOT = Path(__file__).parents[2]
GPT2 = {"n_layer": 12, "n_head": 12, "n_embd": 768, "n_positions": 1024}
VOCABULARY = 50_304  # GPT-2's 50,257, rounded up as in recipes/configs/gpt2_small
# As recipes/steps.sh: offline, and memory kept between steps.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "PYTHONWARNINGS": "ignore",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "67108864",
    "PYTHONUNBUFFERED": "1",  # the line of the first step comes when it is printed, not at the end
}

# TRL's trainers as its documentation starts them: a model, data, and nothing set but where it writes and the context,
# beyond which a GPT-2 cannot read. It prints how many rows train, the seconds of train(), and GiB of the GPU at most.
TRL = """
import sys, time
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
path, data, output, length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(path)
if "TRAINER" == "SFT":
    model = AutoModelForCausalLM.from_pretrained(path)
else:
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1, pad_token_id=tokenizer.pad_token_id)
arguments = TRAINERConfig(output_dir=output, num_train_epochs=1, max_length=int(length), save_strategy="no",
                          report_to="none", use_cpu=not torch.accelerator.is_available())
trainer = TRAINERTrainer(model, arguments, processing_class=tokenizer,
                         train_dataset=load_dataset("json", data_files=data, split="train"))
start = time.perf_counter()
trainer.train()
seconds = time.perf_counter() - start
print(len(trainer.train_dataset), seconds, torch.cuda.max_memory_allocated() / 2**30)
"""

# Sampled answers as transformers' documentation draws them: batches in the order of the file, padded on the left. It prints
# how many there are, and the seconds from the first prompt to the last text.
GENERATE = """
import json, sys, time
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
path, data, answers, at_once, length = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
model = AutoModelForCausalLM.from_pretrained(path).to(device).eval()
with open(data, encoding="utf-8") as file:
    prompts = [json.loads(line)["prompt"] for line in file]
torch.manual_seed(0)
texts, rows = [], int(at_once) // int(answers)
start = time.perf_counter()
for first in range(0, len(prompts), rows):
    batch = tokenizer.apply_chat_template(prompts[first : first + rows], add_generation_prompt=True, padding=True,
                                          return_tensors="pt", return_dict=True).to(device)
    drawn = model.generate(**batch, do_sample=True, top_k=0, max_new_tokens=int(length),
                           num_return_sequences=int(answers), eos_token_id=tokenizer.eos_token_id,
                           pad_token_id=tokenizer.pad_token_id)
    texts += tokenizer.batch_decode(drawn[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
print(len(texts), time.perf_counter() - start)
"""

# The same by the helper of the data scripts, recipes and evaluations.
ANSWERS = """
import sys, time
from data_prep.common.files import read_jsonl
from data_prep.models.generation import generate_answers
from data_prep.models.loading import load_checkpoint
path, data, answers, at_once, length = sys.argv[1:]
model, tokenizer = load_checkpoint(path)
prompts = [row["prompt"] for row in read_jsonl(data)]
start = time.perf_counter()
drawn = generate_answers(model, tokenizer, prompts, int(length), temperature=1.0, num_return_sequences=int(answers),
                         batch_size=int(at_once))
print(sum(map(len, drawn)), time.perf_counter() - start)
"""

# Runs a recipe, and writes GiB of the GPU that it held at most.
PEAK = """
import pathlib, runpy, sys
import torch
path, *sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
pathlib.Path(path).write_text(str(torch.cuda.max_memory_allocated() / 2**30))
"""


def environment() -> dict[str, str]:
    return {**os.environ, **ENVIRONMENT}


def write_settings(path: Path, settings: dict) -> None:
    """A YAML file; paths are those of this folder, wherever a command is run."""
    path.write_text(json.dumps(settings, default=lambda value: str(value.resolve())))  # JSON is YAML


def launch(stage: str, config: str, folder: Path, changed: dict) -> list[str]:
    """The command of a recipe with the settings of recipes/configs/<config>, some changed (None: left out)."""
    settings = yaml.safe_load((ROOT / f"recipes/configs/{config}/{stage}.yaml").read_text(encoding="utf-8"))
    settings |= changed | {"output_dir": folder / "model", "results_dir": folder, "save_strategy": "no"}
    settings = {key: value for key, value in settings.items() if value is not None}
    if torch.cuda.is_available():
        settings.pop("attn_implementation", None)  # the YAMLs have the one that is fast on a processor
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{stage}.yaml"
    write_settings(path, settings)
    single = ["--quiet", "--config_file", "accelerate_configs/single_process.yaml"]
    return ["accelerate", "launch", *single, f"recipes/{stage}.py", "--config", str(path)]


def recipe(stage: str, config: str, folder: Path, changed: dict) -> dict:
    """What a recipe writes of itself; its "seconds" are those of training alone. On a GPU "peak" is GiB of its memory."""
    command = launch(stage, config, folder, changed)
    if torch.cuda.is_available():
        script = folder / "peak.py"
        script.write_text(PEAK)
        place = command.index(f"recipes/{stage}.py")
        command[place:place] = [str(script), str(folder / "peak")]
    call(stage, command)
    peak = {"peak": float((folder / "peak").read_text())} if torch.cuda.is_available() else {}
    return read_json(folder / f"{stage}.json") | peak


def call(name: str, command: list[str]) -> str:
    """What a command printed; ends this one with the end of its output if it fails."""
    finished = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True)
    if finished.returncode:
        sys.exit(f"error: {name} ended with {finished.returncode}: {(finished.stdout + finished.stderr)[-2000:]}")
    return finished.stdout


def trl(trainer: str, model: Path, data: Path, length: int, rows: int) -> dict[str, float]:
    """{"seconds"} of train() of TRL's SFTTrainer or RewardTrainer, {"peak"} GiB; raises InputError if it left rows out."""
    script = TRL.replace("TRAINER", trainer)
    # As our own are run: nothing polls its memory, and the allocator keeps its memory too.
    command = [sys.executable, "-c", script, *map(str, (model, data, data.with_suffix(".trl"), length))]
    used, seconds, peak = call(f"TRL's {trainer}Trainer", command).split()[-3:]
    if int(used) != rows:
        raise InputError(
            f"TRL's {trainer}Trainer took {used} of {rows} rows: the others are longer than {length} tokens"
        )
    return {"seconds": float(seconds), "peak": float(peak)}


def sampled(script: str, model: Path, prompts: Path, *settings: int) -> float:
    """Answers/s of GENERATE or ANSWERS: `settings` are answers to each prompt, rows at once, tokens of an answer at most."""
    command = [sys.executable, "-c", script, *map(str, (model, prompts, *settings))]
    number, seconds = call("sampling", command).split()[-2:]
    return int(number) / float(seconds)


def random_model(tokenizer: Path, folder: Path) -> Path:
    """A random model with a tokenizer: 4 layers, 256 wide; on a GPU of GPT-2's size, with its vocabulary."""
    from transformers import GPT2Config, GPT2LMHeadModel

    shape = {"n_layer": 4, "n_head": 4, "n_embd": 256, "n_positions": 512}
    if torch.cuda.is_available():
        shape, tokenizer = GPT2, widened(tokenizer, VOCABULARY, folder)
    loaded = load_tokenizer(tokenizer)
    torch.manual_seed(0)
    special = {f"{name}_token_id": getattr(loaded, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    shape |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)  # as recipes/pretrain.py leaves a model
    GPT2LMHeadModel(GPT2Config(**shape, vocab_size=len(loaded), **special)).save_pretrained(folder / "model")
    loaded.save_pretrained(folder / "model")
    return folder / "model"


def widened(tokenizer: Path, entries: int, folder: Path) -> Path:
    """A copy of a tokenizer with so many entries; no text brings up the new ones."""
    copied = folder / "tokenizer"
    shutil.copytree(tokenizer, copied)
    content = read_json(copied / "tokenizer.json")
    vocabulary = content["model"]["vocab"]
    first = 1 + max(*vocabulary.values(), *(token["id"] for token in content["added_tokens"]))
    vocabulary |= {f"<unused {number}>": number for number in range(first, entries)}
    write_json(copied / "tokenizer.json", content)
    return copied
