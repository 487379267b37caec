"""What is wrong with an option is told in one line, and before anything slow is imported."""

import importlib
import os
import shutil
import subprocess
import sys

import pytest
from helpers.recipes import ENVIRONMENT, ROOT, arguments_of, refused, words
from helpers.recipes import again as run_again

from data_prep.common.errors import InputError
from recipes.trainers.values import check_values, typed

RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.py") if path.stem != "__init__")
LEAST = {"conversations": "x", "model_name_or_path": "x"}


@pytest.fixture
def sft(tmp_path):
    """sft(learning_rate=-1) is what the command says; sft("key: value") what it says to a YAML."""

    def run(yaml: str = "", **options):
        (tmp_path / "sft.yaml").write_text(yaml)
        options = {**LEAST, "output_dir": tmp_path / "out", **options}
        return run_again("sft", config=tmp_path / "sft.yaml", **{k: v for k, v in options.items() if v is not None})

    return run


# Names


def test_a_typo_is_told_with_what_was_meant(sft, tmp_path):
    refused(sft(learnig_rate=3), "error: unknown option --learnig_rate; did you mean --learning_rate?")
    refused(sft(**{"learnig-rate": 3}), "error: unknown option --learnig-rate; did you mean --learning-rate?")
    refused(sft(**{"learnig_rate=3": ""}), "error: unknown option --learnig_rate; did you mean --learning_rate?")
    refused(sft(xyzzy=3), "error: unknown option --xyzzy; see --help for all of them")
    path = tmp_path / "sft.yaml"
    refused(sft("max_lenght: 3"), f"error: {path}: unknown key max_lenght; did you mean max_length?")
    refused(sft("a: 1\n"), f"error: {path}: unknown key a; see --help for all of them")
    refused(sft(save_strategy=["no", "oops"]), "error: oops: found a word that belongs to no option")


def test_a_key_that_stands_twice_is_told_with_its_lines(sft, tmp_path):
    message = f"error: {tmp_path / 'sft.yaml'}: line 3: found the key 'seed' again, after line 1"
    refused(sft("seed: 1\nlogging_steps: 3\nseed: 2\n"), message)


def test_config_is_read_with_an_equals_sign_too_and_given_once(tmp_path):
    (tmp_path / "a.yaml").write_text("learning_rate: fast\n")
    message = "error: learning_rate: invalid float value: 'fast'"
    refused(run_again("sft", **{f"config={tmp_path / 'a.yaml'}": "--seed=1"}, **LEAST), message)
    twice = {"config": tmp_path / "a.yaml", f"config={tmp_path / 'b.yaml'}": "--seed=1"}
    refused(run_again("sft", **twice), "error: --config: found 2 files, expected one: ")


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "unreadable", "list", "binary"])
def test_a_config_that_is_no_yaml_file_is_told(kind, tmp_path):
    path = tmp_path / "config.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "missing":
        path.write_bytes({"list": b"- 1\n", "binary": b"\xff\xfe\x00", "unreadable": b"seed: 1\n"}[kind])
    if kind == "unreadable":
        if os.geteuid() == 0:
            pytest.skip("root reads every file")
        path.chmod(0)
    refused(run_again("sft", config=path, **LEAST), f"error: {path}: ")


# Values


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("max_steps: many", "max_steps: invalid int value: 'many'"),
        ("max_steps: 2.5", "max_steps: found 2.5, expected a whole number"),
        ("max_steps: true", "max_steps: found True, expected a whole number"),
        ("max_steps:", "max_steps: found None, expected a whole number"),
        ("learning_rate: [1, 2]", "learning_rate: found [1, 2], expected a number"),
        ("learning_rate: .nan", "learning_rate: found nan, expected a number"),
        ("learning_rate: .inf", "learning_rate: found inf, expected a number"),
        ("packing: 2", "packing: found 2, expected true or false"),
        ("packing: perhaps", "packing: Truthy value expected: got perhaps"),
        ("save_strategy: no", "save_strategy: found False, expected one of no, steps, epoch, best"),
        ("lr_scheduler_type: liner", "lr_scheduler_type: found 'liner', expected one of linear, cosine,"),
        ("output_dir: {a: 1}", "output_dir: found {'a': 1}, expected text"),
        ("lora_target_modules: {a: 1}", "lora_target_modules: found {'a': 1}, expected a list"),
        ("lr_scheduler_kwargs: 3", "lr_scheduler_kwargs: found 3, expected keys and values or text"),
        ("conversations: [1, {a: 1}]", "conversations: found [1, {'a': 1}], expected a list"),
        ("env: 3", "env: found 3, expected keys and values"),
    ],
)
def test_a_value_of_the_wrong_type_in_a_yaml_is_told(yaml, message, sft):
    key = yaml.split(":")[0]
    refused(sft(yaml, **{key: None}), f"error: {message}")


def test_resuming_is_told_by_true_and_false_too(sft):
    for value in ("true", "false", "last"):
        refused(sft(f"resume_from_checkpoint: {value}"), "error: x: neither a finished checkpoint")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": "many"}, "max_steps: invalid int value: 'many'"),
        ({"learning-rate": "fast"}, "learning_rate: invalid float value: 'fast'"),
        ({"per_device_train_batch_size": 0}, "per_device_train_batch_size: expected at least 1, found 0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps: expected at least 1, found 0"),
        ({"learning_rate": -1}, "learning_rate: expected at least 0, found -1.0"),
        ({"max_steps": -2}, "max_steps: expected at least 1, or -1 for num_train_epochs, found -2"),
        ({"max_steps": 0}, "max_steps: expected at least 1, or -1 for num_train_epochs, found 0"),
        ({"num_train_epochs": -1}, "num_train_epochs: expected more than 0, found -1.0"),
        ({"adam_beta2": 1}, "adam_beta2: expected less than 1, found 1.0"),
        ({"eval_strategy": "stepz"}, "eval_strategy: invalid choice: 'stepz' (choose from"),
        ({"optim": "adam"}, "optim: invalid choice: 'adam' (choose from"),
        ({"report_to": "trackio"}, "report_to: trackio is not installed: pip install -e '.[trackio]'"),
        ({"report_to": "tensorboard"}, "report_to: tensorboard is not installed: pip install -e '.[tensorboard]'"),
        ({"report_to": "tensorbord"}, "report_to: found tensorbord, expected one of "),
        ({"use_liger_kernel": True}, "use_liger_kernel: liger-kernel is not installed: pip install liger-kernel"),
        ({"deepspeed": "zero2.json"}, "deepspeed: DeepSpeed is not installed: pip install -e '.[deepspeed]'"),
        ({"optim": "galore_adamw"}, "optim: galore_adamw needs galore_torch, which is not installed: pip install gal"),
        ({"conversations": None}, "missing: --conversations"),
        ({"model_name_or_path": None}, "model_name_or_path: expected a folder or a model of the Hub"),
        ({"output_dir": None}, "output_dir: expected a folder to write to"),
        ({"fp16": True, "bf16": True}, "At most one of fp16 and bf16 can be True"),
    ],
    ids=lambda each: each if isinstance(each, str) else "-".join(each),
)
def test_a_value_that_cannot_be_is_told(options, message, sft):
    refused(sft(**options), f"error: {message}")
    assert not (ROOT / "trainer_output").exists()


@pytest.mark.parametrize("recipe", ["dpo", "kto", "rloo", "grpo"])
def test_a_reference_that_cannot_follow_the_policy_is_told(recipe, tiny_model_dir, tiny_reward_dir, tmp_path):
    data = {"rankings": "x"} if recipe in ("dpo", "kto") else {"prompts": "x", "reward_model_path": tiny_reward_dir}
    given = {"model_name_or_path": tiny_model_dir, "output_dir": tmp_path / "out", "sync_ref_model": True, **data}
    done = run_again(recipe, **given, use_peft=True, lora_target_modules="all-linear")
    refused(done, "error: sync_ref_model: with use_peft the reference is the policy without its adapter")
    if "rankings" in data:
        done = run_again(recipe, **given, precompute_ref_log_probs=True)
        refused(done, "error: sync_ref_model: the reference moves, and precompute_ref_log_probs needs one that stays")
    else:
        refused(run_again(recipe, **given, beta=0), "error: sync_ref_model: with beta 0 there is no reference")


@pytest.mark.parametrize("dtype", [None, "float32", "bfloat16", "float16", "auto"])
def test_flash_attention_in_32_bits_is_told(dtype, sft):
    done = sft(attn_implementation="flash_attention_3", bf16=True, dtype=dtype)
    if dtype in (None, "float32"):
        refused(
            done,
            "error: attn_implementation: flash_attention_3 computes in 16 bits, and dtype is float32: set dtype to bfloat16 "
            "or float16, or attn_implementation to sdpa, which uses flash kernels by itself",
        )
    else:
        refused(done, "error: x: neither a finished checkpoint")


@pytest.mark.parametrize("bf16", [False, True])
def test_flash_attention_in_32_bits_is_told_in_pretraining_too(bf16, tmp_path):
    """There the weights are in 32 bits, and everything is measured within autocast."""
    given = {"tokenizer": "x", "tokens": "x", "output_dir": tmp_path / "out", "use_cpu": True, "bf16": bf16}
    done = run_again("pretrain", **given, attn_implementation="kernels-community/flash-attn2")
    told = "attn_implementation: kernels-community/flash-attn2 computes in 16 bits, and bf16 is false: set bf16 to true, or"
    refused(done, f"error: {'heldout: expected files of documents' if bf16 else told}")


def test_an_output_folder_that_is_a_file_is_told(sft, tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("output_dir", "results_dir"):
        for folder in (tmp_path / "file", tmp_path / "file" / "below"):
            refused(sft(**{name: folder}), f"error: {name}: {tmp_path / 'file'} is a file; expected a folder")


@pytest.mark.parametrize(
    ("hint", "value", "expected"),
    [
        (list[str], "one", ["one"]),
        (list[float] | None, 1, [1]),
        (str | None, 12, "12"),
        (None | str | list[str], "all-linear", "all-linear"),
        (None | str | list[str], ["q", "v"], ["q", "v"]),
        (float, 3, 3),
        (int | None, None, None),
        (dict | str | None, {"a": 1}, {"a": 1}),
        (tuple[float, float] | None, [0, 1], (0, 1)),
    ],
)
def test_what_a_yaml_may_say(hint, value, expected):
    found = typed("name", value, hint)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize(
    ("n_embd", "n_head", "fine"), [(12, 3, True), (12, 5, False)], ids=["a multiple", "no multiple"]
)
def test_heads_share_the_width(n_embd, n_head, fine, tmp_path):
    values = {"n_embd": n_embd, "n_head": n_head, "max_steps": 1, "output_dir": str(tmp_path), "report_to": "none"}
    values |= {"use_liger_kernel": False, "optim": "sgd"}
    if fine:
        check_values(values)
    else:
        with pytest.raises(InputError, match="n_embd: found 12, expected a multiple of n_head, 5"):
            check_values(values)


def test_sampling_by_vllm_without_vllm_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    values = {"use_vllm": True, "max_steps": 1, "output_dir": str(tmp_path), "report_to": "none", "optim": "sgd"}
    with pytest.raises(InputError, match="use_vllm: vLLM is not installed: pip install vllm"):
        check_values(values)


# What is imported until then


def test_no_recipe_imports_what_is_slow_before_its_arguments_are_right():
    """peft and the models' code are two thirds of the time until a recipe can say that there is a typo."""
    slow = ("peft", "transformers.modeling_utils", "transformers.trainer", "trl.experimental.ppo", "torch._dynamo")
    program = "\n".join(f"import recipes.{recipe}" for recipe in RECIPES)
    program += f"\nimport sys, transformers, trl; transformers.TrainingArguments; trl.SFTConfig\nprint([name for name in {slow} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.slow
def test_an_adapter_is_known_as_one_though_peft_is_imported_late():
    program = (
        "import recipes.trainers.arguments\n"
        "from transformers import GPT2Config, GPT2LMHeadModel, trainer_utils\n"
        "model = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=1, n_embd=8, vocab_size=8, n_positions=8))\n"
        "assert not trainer_utils._is_peft_model(model)\n"
        "from peft import LoraConfig, get_peft_model\n"
        "assert trainer_utils._is_peft_model(get_peft_model(model, LoraConfig(target_modules=['c_attn'])))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ppo_takes_the_arguments_of_trl():
    from trl.experimental.ppo import PPOConfig

    assert PPOConfig in arguments_of("ppo")[1].__mro__


def test_under_the_launcher_of_the_readme_a_refusal_is_the_last_line_and_the_only_one():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    launch = "accelerate launch --quiet --config_file accelerate_configs/single_process.yaml recipes/sft.py"
    assert readme.count(launch) >= 3 and "accelerate launch recipes" not in readme
    line = [sys.executable, "-m", "accelerate.commands.launch", *launch.split()[2:], "--learnig_rate", "3"]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: unknown option --learnig_rate; did you mean --learning_rate?\n"


@pytest.mark.parametrize(
    ("module", "option", "required"),
    [
        ("eval.answers", "limit", "--model x --conversations x"),
        ("eval.answers", "batch_size", "--model x --conversations x"),
        ("eval.win_rate", "max_new_tokens", "--model x --opponent x --conversations x"),
        ("eval.perplexity", "batch_size", "--model x --documents x"),
        ("data_prep.sample_completions", "num_return_sequences", "--model x --conversations x --output x.jsonl"),
        ("data_prep.check", "max_length", "x"),
    ],
)
def test_a_number_of_the_other_commands_is_in_its_range(module, option, required, monkeypatch):
    main = importlib.import_module(module).main
    monkeypatch.setattr(sys, "argv", [module, *required.split(), f"--{option}", "0"])
    with pytest.raises(InputError, match=f"--{option} 0: expected at least 1"):
        main()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ("", {"model_name_or_path": "runs/none"}, "runs/none: no such file or folder; it is made by: recipes/pretrain.py"),
        ("cut", {}, "model.safetensors: not a whole safetensors file ("),
        ("", {"eos_token": "<nix>"}, "eos_token: found '<nix>', which is not in the vocabulary of "),
        ("", {"resume_from_checkpoint": "runs/none"}, "resume_from_checkpoint: runs/none: no such folder; expected last"),
    ],
    ids=["no model", "a model cut short", "no such token", "no checkpoint"],
)  # fmt: skip
def test_a_folder_that_will_not_do_is_told_before_anything_slow_is_imported(
    change, options, message, tiny_model_dir, tmp_path
):
    model = shutil.copytree(tiny_model_dir, tmp_path / "model")
    if change == "cut":
        weights = (model / "model.safetensors").read_bytes()
        (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    options = {"model_name_or_path": model, "conversations": "x", "output_dir": tmp_path / "out", **options}
    program = (
        f"import sys\nsys.argv = {words('sft', options)}\n"
        "from recipes import sft\n"
        "try:\n    sft.main()\nexcept Exception as error:\n    print(error)\n"
        "print([name for name in ('peft', 'transformers.modeling_utils') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    told, imported = done.stdout.splitlines()
    assert message in told and imported == "[]", done.stderr


def test_the_reward_model_is_looked_at_before_the_prompts_are(tiny_model_dir, tmp_path):
    options = {"model_name_or_path": tiny_model_dir, "prompts": "none.jsonl", "output_dir": tmp_path / "out"}
    for recipe in ("rloo", "grpo"):
        done = run_again(recipe, reward_model_path="runs/none", **options)
        refused(done, "error: runs/none: no such file or folder; it is made by: recipes/reward.py")
