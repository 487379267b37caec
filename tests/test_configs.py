"""Every YAML: it parses with the recipe's own arguments, its commands and paths fit together, its arithmetic is right."""

import ast
import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, Qwen2Config, Qwen2ForCausalLM, get_scheduler
from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

from data_prep import mix_corpus
from data_prep.common.errors import InputError
from recipes.trainers.arguments import parse_arguments
from recipes.trainers.muon import MuonWithAdamW

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
HUB_MODELS = {"Qwen/Qwen2.5-7B": 131_072}  # the positions of models that no recipe here makes


def short(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def values(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe_arguments(stage: str) -> list[type]:
    """The dataclasses that a recipe hands to `parse_arguments`, read off its source."""
    module = importlib.import_module(f"recipes.{stage}")
    calls = (node for node in ast.walk(ast.parse(Path(module.__file__).read_text())) if isinstance(node, ast.Call))
    call = next(node for node in calls if getattr(node.func, "id", "") == "parse_arguments")
    return [getattr(module, argument.id) for argument in call.args]


@pytest.fixture
def parse(monkeypatch):
    """parse(path, stage) is what the stage's script makes of a YAML; the files named in it need not be there."""
    monkeypatch.setattr(mix_corpus, "existing", lambda path, made_by="": Path(path))
    environment = dict(os.environ)

    def call(path: Path, stage: str | None = None):
        stage = stage or path.stem
        if stage == "mix":
            return mix_corpus.read_config(path)
        monkeypatch.setattr(sys, "argv", [f"recipes/{stage}.py", "--config", str(path)])
        return parse_arguments(*recipe_arguments(stage))

    yield call
    os.environ.clear()  # the library's arguments leave settings there for accelerate
    os.environ.update(environment)


def test_every_yaml_on_disk_is_tested():
    on_disk = [name for _, _, names in os.walk(FOLDER) for name in names if name.lower().endswith((".yaml", ".yml"))]
    assert len(CONFIGS) == len(on_disk) >= 15


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_line_one_is_the_command_that_uses_the_file(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    config = path.relative_to(ROOT).as_posix()
    if path.stem == "mix":
        assert first == f"# python -m data_prep.mix_corpus --config {config}"
    else:
        assert first == f"# accelerate launch recipes/{path.stem}.py --config {config}"
        assert (ROOT / "recipes" / f"{path.stem}.py").is_file()


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_it_parses_with_the_arguments_of_its_recipe(path, parse):
    parsed = parse(path)
    for key, value in values(path).items():
        found = (
            parsed[key] if path.stem == "mix" else next(getattr(part, key) for part in parsed if hasattr(part, key))
        )
        if key == "lora_target_modules":
            found = [found]  # trl takes a list of one apart
        if key == "report_to":
            found = found or "none"  # what transformers makes of "none" is an empty list
        assert found == value, key


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_a_misspelt_key_is_refused_by_name(path, parse, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(path.read_text(encoding="utf-8") + "\noutput_dirr: nowhere\n", encoding="utf-8")
    with pytest.raises(InputError, match="output_dirr"):
        parse(copy, path.stem)


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_what_a_run_reads_is_what_an_earlier_stage_writes(path):
    """A model, tokenizer or folder of tokens is another YAML's output, or made by a command in this one's head."""
    outputs = {values(other)["output_dir"] for other in CONFIGS} | set(HUB_MODELS)
    made = re.findall(
        r"--output_dir (\S+)", "".join(p.read_text(encoding="utf-8") for p in path.parent.glob("*.yaml"))
    )
    made += re.findall(
        r"--output_dir (\S+)", (ROOT / "recipes" / "quickstart.sh").read_text().replace("$RUN", "runs/quickstart")
    )
    given = values(path)
    for key in ("model_name_or_path", "sft_model_path", "reward_model_path", "tokens"):
        assert given.get(key) in outputs | {None}, key
    assert given.get("tokenizer") in {*made, None}


def context_of(model: str) -> int:
    """The positions of a model that a YAML names, followed back to the pretraining it came from."""
    if model in HUB_MODELS:
        return HUB_MODELS[model]
    maker = next(values(path) for path in CONFIGS if values(path)["output_dir"] == model)
    return maker["n_positions"] if "n_positions" in maker else context_of(maker["model_name_or_path"])


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("sft", "reward", "ppo")], ids=short)
def test_what_is_trained_on_fits_the_context(path):
    given = values(path)
    if path.stem == "ppo":
        assert 2 * given["response_length"] <= context_of(given["sft_model_path"])  # the prompt needs room too
    else:
        assert given["max_length"] <= context_of(given["model_name_or_path"])


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem == "ppo"], ids=short)
def test_a_ppo_rollout_divides_evenly(path, parse):
    _, args, _ = parse(path)
    rollout = args.per_device_train_batch_size * args.gradient_accumulation_steps
    assert rollout % args.num_mini_batches == 0
    assert rollout // args.num_mini_batches % args.per_device_train_batch_size == 0  # whole micro batches
    assert args.total_episodes % rollout == 0


@pytest.mark.parametrize("path", [path for path in CONFIGS if "warmup_stable" in path.read_text("utf-8")], ids=short)
def test_the_learning_rate_warms_up_holds_and_decays_within_the_run(path, parse):
    _, args = parse(path)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_scheduler(
        args.lr_scheduler_type, optimizer, args.warmup_steps, args.max_steps, dict(args.lr_scheduler_kwargs)
    )
    rate = schedule.lr_lambdas[0]
    start = args.max_steps - args.lr_scheduler_kwargs["num_decay_steps"]
    assert args.warmup_steps < start
    assert rate(args.warmup_steps) == rate(start) == 1.0 > rate(start + 1)
    assert rate(args.max_steps) == pytest.approx(args.lr_scheduler_kwargs["min_lr_ratio"])


# What the comments say.


def comments(path: Path) -> list[str]:
    """The comments of a YAML without its commands: those that fill lines as one text, each behind a value by itself.

    One behind a value that goes on calculating ("× 4 rows = …") starts with that value.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#     ")]
    behind = [re.fullmatch(r"\w+: (\S.*?)\s+# (.*)", line) for line in lines if not line.startswith("#")]
    texts = [
        f"{found[1].replace('_', '')} {found[2]}" if found[2][0] in "×/" else found[2] for found in behind if found
    ]
    return [" ".join(whole), *texts]


UNITS = {"k": 1e3, "kB": 1e3, "M": 1e6, "B": 1e9, "GB": 1e9, "TFLOP/s": 1e12, "ms": 1e-3}
OPERAND = r"\d[\d,.e]*"


def as_number(text: str, unit: str = "") -> float:
    return float(text.replace(",", "").rstrip(".")) * UNITS.get(unit, 1.0)


def equations(text: str) -> list[tuple[str, float, float]]:
    """(as written, left side, right side) of the calculations in a text: numbers with units, + − × / and brackets."""
    found = []
    text = re.sub(r"(\d)((?: \w+)*), ([×+])", r"\1\2 \3", text)  # "121 M tokens, × 6": one calculation that goes on
    text = re.sub(r" \([a-z][^()]*\)", "", text)  # remarks between brackets: "16 bytes (fp32, two moments)"
    for sides in re.finditer(rf"([^=:;]+) = (?=({OPERAND})(?: ([\w/]+))?)", text):
        left = re.sub(r"(?<=\d),(?=\d{3})", "", sides[1])
        for start in range(len(left)):  # the longest end of the left side that is a calculation
            if left[start] not in "0123456789(" or (start and left[start - 1] in "0123456789."):
                continue
            words = re.sub(r"(\d) (k|kB|M|B|GB|ms)\b", lambda m: f"{m[1]}*{UNITS[m[2]]}", left[start:])
            words = re.sub(r"(?<![\d.])[A-Za-z][\w-]*(/s)?", " ", words)  # what the numbers count: tokens, bytes, rows
            formula = words.replace("×", "*").replace("²", "**2").replace("−", "-").strip()
            if re.fullmatch(r"[\d.e+\-*/() ]+", formula) and re.search(r"\d\)? *[*/+-]", formula):
                try:
                    value = eval(compile(ast.parse(formula, mode="eval"), "comment", "eval"))
                except (SyntaxError, TypeError, ZeroDivisionError):
                    continue
                found.append((sides[0] + sides[2], value, as_number(sides[2], sides[3] or "")))
                break
    return found


def all_equations(path: Path) -> list[tuple[str, float, float]]:
    return [found for text in comments(path) for found in equations(text)]


def test_the_reader_of_calculations_reads_them():
    text = "12 × 768² and (3 × 4 + 2) × 2 bytes = 28 GB; 6 × 124.5 M × 10.0 B = 7.47e18. It is 7.47e18 / 3.96e14 = 18,900 s"
    assert [(left, right) for _, left, right in equations(text)] == [
        (28, 28e9),
        (6 * 124.5e6 * 10e9, 7.47e18),
        (7.47e18 / 3.96e14, 18_900),
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_the_arithmetic_in_the_comments_is_right(path):
    for written, left, right in all_equations(path):
        if right >= 1000 or "." not in f"{right:g}":
            assert left == pytest.approx(right, rel=0.05), written


def test_the_large_runs_are_worked_out():
    counted = {path.parent.name: 0 for path in CONFIGS}
    for path in CONFIGS:
        counted[path.parent.name] += len(all_equations(path))
    assert counted["gpt2_small"] >= 25 and counted["qwen2.5_7b_lora"] >= 15, counted


WITH_STEPS = [path for path in CONFIGS if "max_steps" in values(path) and path.parent.name != "quickstart"]


@pytest.mark.parametrize("path", WITH_STEPS, ids=short)
def test_the_tokens_of_a_run_are_what_its_comment_says(path, parse):
    script, args = parse(path)[:2]
    length = script.n_positions if path.stem == "pretrain" else args.max_length
    tokens = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * length
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("max_steps:"))
    assert as_number(re.search(r"= ([\d,]+) tokens", line)[1]) == pytest.approx(tokens, rel=0.01)
    if path.stem == "pretrain":  # and the mixture holds about as many, or is read several times
        mixture = values(path.with_name("mix.yaml"))
        if "total_tokens" in mixture:
            assert tokens <= mixture["total_tokens"] <= 1.05 * tokens


# Dry runs of what does not fit here: on the meta device, where a tensor has a shape and no memory.


def test_gpt2_small_has_its_parameters_and_optimizer_without_being_allocated(parse):
    script, args = parse(FOLDER / "gpt2_small" / "pretrain.yaml")
    head = (FOLDER / "gpt2_small" / "mix.yaml").read_text(encoding="utf-8")
    vocab_size = int(re.search(r"--vocab_size (\d+)", head)[1])
    keys = ("n_layer", "n_head", "n_embd", "n_positions", "activation_function")
    shape = {key: getattr(script, key) for key in keys}
    # Per block: 768 × 2304 + 2304 (query, key, value), 768 × 768 + 768, 768 × 3072 + 3072, 3072 × 768 + 768 and two
    # norms of 2 × 768 make 7,087,872; twelve are 85,054,464; the last norm is 1,536. The rest are the two tables.
    blocks = 12 * 7_087_872 + 1_536
    with torch.device("meta"):
        assert GPT2LMHeadModel(GPT2Config(**shape, vocab_size=50_257)).num_parameters() == 124_439_808
        model = GPT2LMHeadModel(GPT2Config(**shape, vocab_size=vocab_size))
        assert model.num_parameters() == blocks + (50_304 + 1_024) * 768 == 124_475_904
        optimizer = MuonWithAdamW(model, script.muon_lr, args.learning_rate, args.weight_decay)
        for weight in model.parameters():
            weight.grad = torch.empty_like(weight)
        optimizer.step()
    sizes = [sum(weight.numel() for weight in group["params"]) for group in optimizer.param_groups]
    # 12 × 12 × 768² in matrices; the tables; 12 × 13 × 768 + 1,536 in biases and norms
    assert sizes == [84_934_656, 39_419_904, 121_344]
    state = [entry for states in optimizer.state.values() for entry in states.values() if torch.is_tensor(entry)]
    assert {tensor.device.type for tensor in state} == {"meta"}
    assert sum(tensor.numel() * tensor.element_size() for tensor in state) == 4 * sizes[0] + 8 * (sizes[1] + sizes[2])


def test_qwen_7b_has_the_parameters_and_adapters_of_the_comment(parse):
    text = " ".join(comments(FOLDER / "qwen2.5_7b_lora" / "sft.yaml"))
    _, args, model_args = parse(FOLDER / "qwen2.5_7b_lora" / "sft.yaml")
    with torch.device("meta"):
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=152_064, hidden_size=3584, intermediate_size=18_944, num_hidden_layers=28,
                num_attention_heads=28, num_key_value_heads=4, tie_word_embeddings=False,
            )
        )  # fmt: skip
        # A block: query and output 2 × 3584² , key and value 2 × 3584 × 512, their biases 3584 + 2 × 512, three of
        # 3584 × 18,944, two norms: 233,057,792. Twenty-eight, two tables of 152,064 × 3584, the last norm.
        assert model.num_parameters() == 28 * 233_057_792 + 2 * 152_064 * 3584 + 3584 == 7_615_616_512
        adapted = get_peft_model(
            model,
            LoraConfig(r=model_args.lora_r, target_modules=model_args.lora_target_modules, task_type="CAUSAL_LM"),
        )
    trainable, _ = adapted.get_nb_trainable_parameters()
    # r × (inputs + outputs): query 3584 + 3584, key and value 3584 + 512 each, output 3584 + 3584, three of 3584 + 18,944
    assert trainable == 16 * 28 * (7168 + 4096 + 4096 + 7168 + 3 * 22_528) == 40_370_176
    assert "7,615,616,512 parameters" in text and "40,370,176 parameters" in text


def test_the_chat_template_for_qwen_marks_answers_and_ends_on_the_end_of_turn(parse, tiny_tokenizer):
    _, args, _ = parse(FOLDER / "qwen2.5_7b_lora" / "sft.yaml")
    tokenizer = type(tiny_tokenizer).from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": args.eos_token}
    )
    tokenizer.chat_template = (ROOT / args.chat_template_path).read_text(encoding="utf-8")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye?"},
        {"role": "assistant", "content": "Bye."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\nHello."
        "<|im_end|>\n<|im_start|>user\nBye?<|im_end|>\n<|im_start|>assistant\nBye.<|im_end|>"
    )
    assert text.startswith(tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True))
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    inside = [token for token, counts in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if counts]
    assert tokenizer.decode(inside) == "Hello.<|im_end|>Bye.<|im_end|>"
    # Why the YAML gives a template: TRL marks the one of the instruct models, and refuses any that differs from it.
    tokenizer.chat_template = qwen2_5_chat_template
    assert "generation %}" in get_training_chat_template(tokenizer)
    tokenizer.chat_template = qwen2_5_chat_template.replace("You are Qwen, created by Alibaba Cloud. ", "")
    with pytest.raises(ValueError, match="not training-compatible"):
        get_training_chat_template(tokenizer)


@pytest.mark.parametrize("path", LAUNCHES, ids=lambda path: path.stem)
def test_accelerate_reads_its_configs(path):
    config = load_config_from_file(str(path))  # refuses a key it does not know
    assert config.num_machines == 1 and config.num_processes >= 1
    assert (
        path.read_text(encoding="utf-8")
        .splitlines()[0]
        .startswith(f"# accelerate launch --config_file accelerate_configs/{path.name} ")
    )


def test_the_accelerate_configs_are_found():
    assert len(LAUNCHES) == len(list((ROOT / "accelerate_configs").iterdir())) >= 6
