"""Every YAML: it parses with the recipe's own arguments, its commands and paths fit together, its arithmetic is right."""

import ast
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers.recipes import arguments_of
from peft import LoraConfig, get_peft_model
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    get_scheduler,
)
from trl.chat_template_utils import get_training_chat_template, qwen2_5_chat_template

from data_prep import mix_corpus
from data_prep.common.errors import InputError
from recipes.trainers import arguments
from recipes.trainers.arguments import parse_arguments
from recipes.trainers.muon import MuonWithAdamW

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "recipes" / "configs"
CONFIGS = sorted(FOLDER.rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
# The positions of models that no recipe here makes.
HUB_MODELS = {"Qwen/Qwen2.5-7B": 131_072, "Qwen/Qwen3-0.6B-Base": 32_768, "Qwen/Qwen3-8B-Base": 32_768}


def short(path: Path) -> str:
    return path.relative_to(FOLDER).as_posix()


def values(path: Path) -> dict:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture
def parse(monkeypatch):
    """parse(path, stage) is what the stage's script makes of a YAML; the files named in it need not be there."""
    monkeypatch.setattr(mix_corpus, "existing", lambda path, made_by="": Path(path))
    monkeypatch.setattr(arguments, "check_folders", lambda values: None)
    environment = dict(os.environ)

    def call(path: Path, stage: str | None = None):
        stage = stage or path.stem
        if stage == "mix":
            return mix_corpus.read_config(path)
        monkeypatch.setattr(sys, "argv", [f"recipes/{stage}.py", "--config", str(path)])
        return parse_arguments(*arguments_of(stage))

    yield call
    os.environ.clear()  # the library's arguments leave settings there for accelerate
    os.environ.update(environment)


def commands(path: Path) -> list[str]:
    """The commands in the head of a YAML that come before the one in line one, each on one line."""
    lines = path.read_text(encoding="utf-8").splitlines()
    block = "\n".join(line.removeprefix("#     ") for line in lines if line.startswith("#     "))
    return re.sub(r"\\\n\s*", "", block).splitlines()


def strings(value) -> list[str]:
    """All strings in a value of a YAML, those in lists and maps too."""
    if isinstance(value, (dict, list)):
        return [text for each in (value.values() if isinstance(value, dict) else value) for text in strings(each)]
    return [value] if isinstance(value, str) else []


def test_every_yaml_on_disk_is_tested():
    on_disk = [name for _, _, names in os.walk(FOLDER) for name in names if name.lower().endswith((".yaml", ".yml"))]
    assert len(CONFIGS) == len(on_disk) == len(CALCULATIONS)


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_line_one_is_the_command_that_uses_the_file(path):
    first = path.read_text(encoding="utf-8").splitlines()[0]
    config = path.relative_to(ROOT).as_posix()
    if path.stem == "mix":
        assert first == f"# python -m data_prep.mix_corpus --config {config}"
    else:
        assert first == (
            "# accelerate launch --quiet --config_file accelerate_configs/single_process.yaml "
            f"recipes/{path.stem}.py --config {config}"
        )
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
def test_data_is_given_as_lists_of_files(path):
    """The parser takes a text where a list is expected, and a recipe would read it letter by letter."""
    data = ("conversations", "rankings", "prompts", "heldout", "heldout_general")
    assert [key for key in data if not isinstance(values(path).get(key, []), list)] == []


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_a_misspelt_key_is_refused_by_name(path, parse, tmp_path):
    copy = tmp_path / "copy.yaml"
    copy.write_text(path.read_text(encoding="utf-8") + "\noutput_dirr: nowhere\n", encoding="utf-8")
    with pytest.raises(InputError, match="output_dirr"):
        parse(copy, path.stem)


def made_by(command: str) -> set[str]:
    """The files and folders that a command writes."""
    made = set(re.findall(r"(?:--(?:train|heldout|output|output_dir|prompts|reworded)|>|mkdir -p) (\S+)", command))
    if "data_prep.read_documents" in command:
        made |= {f"{folder}/{name}.jsonl" for folder in made for name in ("documents", "documents_heldout")}
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_what_a_run_reads_is_what_an_earlier_command_writes(path):
    """A path under runs/ is another YAML's output, or made by the quickstart or by a command in a head."""
    made = {values(other)["output_dir"] for other in CONFIGS if other != path}
    for name in ("quickstart", "adapt"):
        made |= made_by((ROOT / "recipes" / f"{name}.sh").read_text().replace("$RUN", f"runs/{name}"))
    made = made.union(*(made_by(command) for other in CONFIGS if other != path for command in commands(other)))
    for command in commands(path):
        made |= made_by(command)
        assert {word for word in command.split() if word.startswith("runs/")} <= made, command
    given = {key: value for key, value in values(path).items() if key not in ("output_dir", "results_dir")}
    # In these folders a command writes several files.
    several = ("runs/quickstart/data", "runs/adapt/numpy", "runs/adapt/data", "runs/adapt/data_heldout")
    assert {*several} <= made
    read = {text for text in strings(given) if text.startswith("runs/")}
    read = {text for text in read if not text.startswith(tuple(f"{folder}/" for folder in several))}
    assert read <= made
    models = {given.get(key) for key in ("model_name_or_path", "sft_model_path", "reward_model_path")}
    assert models <= read | {*HUB_MODELS, None}  # what is no path is a model of the Hub that is known here


CURL = re.compile(r"curl -f?L --create-dirs -o (data/\S+) https://raw\.githubusercontent\.com(?:/[\w.-]+){4,}")
FETCHED = {"belle": 1, "c4_wiki": 2, "dpo_zh": 1, "shakespeare": 1}  # files; the other folders fetch none


@pytest.mark.parametrize("folder", sorted({path.parent for path in CONFIGS}), ids=lambda folder: folder.name)
def test_what_is_read_under_data_is_fetched_there_by_an_earlier_command(folder):
    """A clone has no data/: a head of the same folder says how each file gets there."""
    fetched: set[str] = set()
    for command in (command for path in sorted(folder.glob("*.yaml")) for command in commands(path)):
        if "curl" in command:
            curl = CURL.fullmatch(command)
            assert curl and curl[1] not in fetched, command
            fetched.add(curl[1])
        else:
            assert set(re.findall(r"(?<![\w/])data/\S+", command)) <= fetched, command
    read = {text for path in folder.glob("*.yaml") for text in strings(values(path)) if text.startswith("data/")}
    assert read <= fetched and len(fetched) == FETCHED.get(folder.name, 0)
    assert "/data/" in (ROOT / ".gitignore").read_text().splitlines()


def test_nothing_that_a_user_runs_or_reads_needs_a_folder_beside_the_clone():
    files = [*ROOT.glob("README*.md")]
    for folder in ("recipes", "data_prep", "eval"):
        files += [file for file in (ROOT / folder).rglob("*") if file.is_file()]
    assert {*CONFIGS, ROOT / "README.md", ROOT / "README.zh-CN.md", ROOT / "eval" / "README.md"} <= {*files}
    assert [file for file in files if b"../shared" in file.read_bytes()] == []


def context_of(model: str) -> int:
    """The positions of a model that a YAML names, followed back to the pretraining it came from."""
    if model in HUB_MODELS:
        return HUB_MODELS[model]
    maker = next(values(path) for path in CONFIGS if values(path)["output_dir"] == model)
    return maker["n_positions"] if "n_positions" in maker else context_of(maker["model_name_or_path"])


@pytest.mark.parametrize("path", [path for path in CONFIGS if "max_length" in values(path)], ids=short)
def test_what_is_trained_on_fits_the_context(path):
    given = values(path)
    assert given["max_length"] <= context_of(given["model_name_or_path"])


@pytest.mark.parametrize("path", [path for path in CONFIGS if path.stem in ("ppo", "rloo", "grpo")], ids=short)
def test_the_answer_to_the_longest_prompt_fits_the_context(path):
    given = values(path)
    context = context_of(given.get("sft_model_path") or given["model_name_or_path"])
    answer = given.get("response_length") or given["max_completion_length"]
    assert given.get("max_prompt_length", answer) + answer <= context  # without a limit: as long as an answer at least
    if path.parent.name != "quickstart":
        rewarded = values(path.with_name("reward.yaml"))["max_length"]
        assert given["max_prompt_length"] + answer <= rewarded  # longer than that the reward model has seen none


def test_every_stage_that_has_a_context_is_asked_whether_it_fits():
    fitted = [path.stem for path in CONFIGS if "max_length" in values(path)]
    assert {stem: fitted.count(stem) for stem in {*fitted}} == {
        "continue_pretraining": 3, "sft": 7, "reward": 4, "dpo": 4, "kto": 1
    }  # fmt: skip


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

    One behind a value that goes on calculating ("× 4 rows = …", "+ 256 = …") starts with that value.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line.lstrip("# ") for line in lines if line.startswith("#") and not line.startswith("#     ")]
    behind = [re.fullmatch(r" *\w+: (\S.*?)\s+# (.*)", line) for line in lines if not line.startswith("#")]
    texts = [
        f"{found[1].replace('_', '')} {found[2]}" if found[2][0] in "×/+" else found[2] for found in behind if found
    ]
    return [" ".join(whole), *texts]


UNITS = {"k": 1e3, "kB": 1e3, "M": 1e6, "B": 1e9, "GB": 1e9, "TFLOP/s": 1e12, "ms": 1e-3, "%": 1e-2}
OPERAND = r"\d[\d,.e]*"


def as_number(text: str, unit: str = "") -> float:
    return float(text.replace(",", "").rstrip(".")) * UNITS.get(unit, 1.0)


def half_a_step(text: str, unit: str = "") -> float:
    """Half a unit of the last digit that is written other than a closing 0 of a whole number: 0.05 for "2.0"."""
    digits, _, power = text.replace(",", "").rstrip(".").partition("e")
    whole, _, decimals = digits.partition(".")
    closing = len(whole) - len(whole.rstrip("0")) if not decimals else -len(decimals)
    return 0.5 * 10.0 ** (closing + int(power or 0)) * UNITS.get(unit, 1.0)


def equations(text: str) -> list[tuple[str, float, float, float]]:
    """(as written, left side, right side, how far apart they may be) of the calculations in a text.

    They are made of numbers with units, + − × / and brackets. The right side is rounded to the digits that are written.
    """
    found = []
    text = re.sub(r"(\d)((?: \w+)*), ([×+/])", r"\1\2 \3", text)  # "121 M tokens, × 6": one calculation that goes on
    text = re.sub(r" \([a-z][^()]*\)", "", text)  # remarks between brackets: "16 bytes (fp32, two moments)"
    for sides in re.finditer(rf"([^=:;]+) = (?=({OPERAND})(?: ([\w/%]+))?)", text):
        left = re.sub(r"(?<=\d),(?=\d{3})", "", sides[1])
        for start in range(len(left)):  # the longest end of the left side that is a calculation
            if left[start] not in "0123456789(" or (start and left[start - 1] in "0123456789."):
                continue
            words = re.sub(r"(\d) (k|kB|M|B|GB|ms)\b", lambda m: f"{m[1]}*{UNITS[m[2]]}", left[start:])
            words = re.sub(r"(?<![\d.])[A-Za-z][\w-]*(/s)?", " ", words)  # what the numbers count: tokens, bytes, rows
            formula = words.replace("×", "*").replace("²", "**2").replace("−", "-").strip()
            if re.search(r"[\d)] *\(", formula):
                continue  # two numbers with a word between: no calculation
            if re.fullmatch(r"[\d.e+\-*/() ]+", formula) and re.search(r"\d\)? *[*/+-]", formula):
                try:
                    value = eval(compile(ast.parse(formula, mode="eval"), "comment", "eval"))
                except (SyntaxError, TypeError, ZeroDivisionError):
                    continue
                number = sides[2], sides[3] or ""
                found.append((sides[0] + sides[2], value, as_number(*number), half_a_step(*number)))
                break
    return found


def all_equations(path: Path) -> list[tuple[str, float, float, float]]:
    return [found for text in comments(path) for found in equations(text)]


def signs(path: Path) -> int:
    """The equals signs in the comments of a YAML, counted without the reader of calculations."""
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    texts = [line.partition("#")[2] for line in lines if not line.startswith("#     ")]
    return sum(text.split().count("=") for text in texts)


def test_the_reader_of_calculations_reads_them():
    text = "12 × 768² and (3 × 4 + 2) × 2 bytes = 28 GB; 6 × 124.5 M × 10.0 B = 7.47e18. It is 7.47e18 / 3.96e14 = 18,900 s"
    assert equations(text + ", 15 / 19.5 = 76.9 %") == [
        ("12 × 768² and (3 × 4 + 2) × 2 bytes = 28", 28, 28e9, 0.5e9),
        (" 6 × 124.5 M × 10.0 B = 7.47e18.", 6 * 124.5e6 * 10e9, 7.47e18, 0.5e16),
        ("7.47e18. It is 7.47e18 / 3.96e14 = 18,900", 7.47e18 / 3.96e14, 18_900, 50),
        ("18,900 s, 15 / 19.5 = 76.9", 15 / 19.5, pytest.approx(0.769), pytest.approx(0.0005)),
    ]


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_the_arithmetic_in_the_comments_is_right(path):
    for written, left, right, apart in all_equations(path):
        assert abs(left - right) <= apart * (1 + 1e-9), written


# The calculations in each YAML. A comment in a form that is not read changes a number.
CALCULATIONS = {
    "adapt/continue_pretraining.yaml": 1,
    "adapt/mix.yaml": 0,
    "adapt/sft.yaml": 0,
    "adapt_qwen3_0.6b/continue_pretraining.yaml": 16,
    "adapt_qwen3_0.6b/dpo.yaml": 12,
    "adapt_qwen3_0.6b/mix.yaml": 1,
    "adapt_qwen3_0.6b/sft.yaml": 10,
    "adapt_qwen3_8b/continue_pretraining.yaml": 23,
    "adapt_qwen3_8b/dpo.yaml": 11,
    "adapt_qwen3_8b/mix.yaml": 1,
    "adapt_qwen3_8b/sft.yaml": 12,
    "belle/mix.yaml": 0,
    "belle/pretrain.yaml": 3,
    "belle/sft.yaml": 1,
    "c4_wiki/mix.yaml": 2,
    "c4_wiki/pretrain.yaml": 2,
    "dpo_zh/dpo.yaml": 1,
    "dpo_zh/ppo.yaml": 0,
    "dpo_zh/reward.yaml": 1,
    "gpt2_small/mix.yaml": 3,
    "gpt2_small/ppo.yaml": 15,
    "gpt2_small/pretrain.yaml": 18,
    "gpt2_small/reward.yaml": 6,
    "gpt2_small/sft.yaml": 6,
    "llama_mixture/mix.yaml": 2,
    "quickstart/dpo.yaml": 0,
    "quickstart/grpo.yaml": 1,
    "quickstart/kto.yaml": 0,
    "quickstart/mix.yaml": 0,
    "quickstart/ppo.yaml": 0,
    "quickstart/pretrain.yaml": 0,
    "quickstart/reward.yaml": 0,
    "quickstart/rloo.yaml": 1,
    "quickstart/sft.yaml": 0,
    "qwen2.5_7b_lora/ppo.yaml": 18,
    "qwen2.5_7b_lora/reward.yaml": 12,
    "qwen2.5_7b_lora/sft.yaml": 12,
    "shakespeare/mix.yaml": 1,
    "shakespeare/pretrain.yaml": 2,
}


@pytest.mark.parametrize("path", CONFIGS, ids=short)
def test_no_calculation_is_passed_over(path):
    assert len(all_equations(path)) == signs(path) == CALCULATIONS[short(path)]


WITH_STEPS = [path for path in CONFIGS if "max_steps" in values(path) and path.parent.name != "quickstart"]


@pytest.mark.parametrize("path", WITH_STEPS, ids=short)
def test_the_tokens_of_a_run_are_what_its_comment_says(path, parse):
    script, args = parse(path)[:2]
    length = {"pretrain": "n_positions", "continue_pretraining": "max_length"}.get(path.stem)
    length = getattr(script, length) if length else args.max_length
    tokens = args.max_steps * args.per_device_train_batch_size * args.gradient_accumulation_steps * length
    line = next(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("max_steps:"))
    assert as_number(re.search(r"= ([\d,]+) tokens", line)[1]) == pytest.approx(tokens, rel=0.01)
    if path.stem in (
        "pretrain",
        "continue_pretraining",
    ):  # and the mixture holds about as many, or is read several times
        mixture = values(path.with_name("mix.yaml"))
        if "total_tokens" in mixture:
            assert tokens <= mixture["total_tokens"] <= 1.05 * tokens


def test_cudnn_attention_is_left_out_unless_a_run_is_compiled(parse):
    """Its plans are for one shape each, and batches have many; compiled pretraining has one."""
    for stage, kept in (("reward", False), ("pretrain", True)):
        torch.backends.cuda.enable_cudnn_sdp(True)
        parse(FOLDER / "gpt2_small" / f"{stage}.yaml")
        assert torch.backends.cuda.cudnn_sdp_enabled() == kept
    torch.backends.cuda.enable_cudnn_sdp(True)


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


@pytest.mark.parametrize("stage", ["continue_pretraining", "sft", "dpo"])
def test_the_command_for_eight_gpus_takes_the_same_tokens_a_step_without_quantization(stage, parse, monkeypatch):
    path = FOLDER / "adapt_qwen3_8b" / f"{stage}.yaml"
    _, args, model_args = parse(path)
    (eight,) = (command.split() for command in commands(path) if command.startswith("accelerate launch"))
    assert " ".join(eight[2:7]) == "--quiet --config_file accelerate_configs/fsdp2.yaml --num_processes 8"
    assert eight[7:10] == [f"recipes/{stage}.py", "--config", path.relative_to(ROOT).as_posix()]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", eight[7:])
    _, of_each, other = parse_arguments(*arguments_of(stage))
    steps = [each.per_device_train_batch_size * each.gradient_accumulation_steps for each in (args, of_each)]
    assert steps[0] == 8 * steps[1] and (model_args.load_in_4bit, other.load_in_4bit) == (True, False)


QWEN3 = {  # (hidden, intermediate, layers, heads, tied; parameters; adapter of continued pretraining, of SFT)
    "adapt_qwen3_0.6b": (1024, 3072, 28, 16, True, "596,049,920", "40,370,176", "10,092,544"),
    "adapt_qwen3_8b": (4096, 12_288, 36, 32, False, "8,190,735,360", "87,293,952", "43,646,976"),
}


@pytest.mark.parametrize("name", QWEN3)
def test_qwen3_has_the_parameters_and_adapters_of_the_comments(name, parse):
    hidden, intermediate, layers, heads, tied, parameters, *adapters = QWEN3[name]
    for stage, trainable in zip(("continue_pretraining", "sft"), adapters, strict=True):
        path = FOLDER / name / f"{stage}.yaml"
        model_args = parse(path)[2]
        with torch.device("meta"):
            model = Qwen3ForCausalLM(
                Qwen3Config(
                    vocab_size=151_936, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
                    num_attention_heads=heads, num_key_value_heads=8, head_dim=128, tie_word_embeddings=tied,
                )
            )  # fmt: skip
            assert f"{model.num_parameters():,}" == parameters
            adapted = get_peft_model(
                model,
                LoraConfig(r=model_args.lora_r, target_modules=model_args.lora_target_modules, task_type="CAUSAL_LM"),
            )
        assert f"{adapted.get_nb_trainable_parameters()[0]:,}" == trainable
        assert f"{trainable} parameters" in " ".join(comments(path))
    assert f"{parameters} parameters" in " ".join(comments(FOLDER / name / "continue_pretraining.yaml"))


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
    # The recipe's bf16 decides: what stood here won over `bf16: false`, and DeepSpeed's own key wins over both.
    assert config.mixed_precision == "no" and not {"bf16", "fp16"} & set(config.deepspeed_config)
    assert (
        path.read_text(encoding="utf-8")
        .splitlines()[0]
        .startswith(f"# accelerate launch --quiet --config_file accelerate_configs/{path.name} ")
    )


def test_the_accelerate_configs_are_found():
    assert len(LAUNCHES) == len(list((ROOT / "accelerate_configs").iterdir())) >= 6
