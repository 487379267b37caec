"""recipes/ppo.py through its command, one process and two: what it learns, saves, resumes and refuses.

A run takes seconds: models of 2 layers, answers of a few bytes. The policy of most runs is `ready_to_end`, whose
answers end after a few tokens, so that lengths vary; `talker` always says the same.
"""

import json
import math
import os
import shutil
import signal
import statistics
import tempfile
import time
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from helpers.models import save, tiny_config
from helpers.ppo import QUESTIONS
from helpers.processes import accelerate_launch, run, torchrun
from helpers.recipes import (
    ENVIRONMENT,
    EXACT,
    LORA,
    Done,
    again,
    conversation,
    differing,
    loaded,
    processes,
    refused,
    results,
    run_as_script,
    succeeded,
    words,
)
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2LMHeadModel,
)
from transformers import GPT2ForSequenceClassification as Classifier

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json
from data_prep.models.reward_functions import load_function
from data_prep.models.scoring import score_answers
from data_prep.rewards import exact_match
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer
from recipes.trainers.resuming import last_checkpoint

HELD_OUT = ["0", "11", "222", "3", "44"]
FULL: dict = {}
LORA_BY_HAND = pytest.param("lora", marks=pytest.mark.slow)  # where LoRA goes the same way through the trainer
BY_LORA = {**LORA, "lora_r": 4}

REWARDS = '''
import json
import time
from pathlib import Path

HERE = Path(__file__).parent


def texts(completions):
    return [each if isinstance(each, str) else each[-1]["content"] for each in completions]


def letters(prompts, completions, **columns):
    """The number of characters; while there is a file `slow`, slowly."""
    if (HERE / "slow").exists():
        time.sleep(0.4)
    return [float(len(text)) for text in texts(completions)]


def share_of_a(prompts, completions, **columns):
    return [text.count("a") / max(1, len(text)) for text in texts(completions)]


def small_letters(prompts, completions, **columns):
    return [float(sum("a" <= character <= "z" for character in text)) for text in texts(completions)]


def constant(prompts, completions, **columns):
    """3 for every answer; what was asked of it goes to a file."""
    with (HERE / "asked.jsonl").open("a") as file:
        file.write(json.dumps({"prompts": prompts, "completions": completions, **columns}) + "\\n")
    return [3] * len(prompts)


def one_too_few(prompts, completions, **columns):
    return [0.0] * (len(prompts) - 1)


calls = []


def third(prompts, completions, **columns):
    """1 in the fourth evaluation, which is that of update 3 after the one before training."""
    calls.append(len(prompts))
    return [float(len(calls) == 4)] * len(prompts)


number = 4
'''


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(scope="module")
def run_settings(ready_to_end_dir, reward_file, tmp_path_factory) -> dict:
    """Updates of 8 answers, rewarded by their number of characters."""
    folder = tmp_path_factory.mktemp("prompts")
    write_json(folder / "prompts.json", [conversation(question, question, "yes") for question in QUESTIONS])
    write_json(folder / "heldout.json", [conversation(question, question, "yes") for question in HELD_OUT])
    files = {
        "sft_model_path": ready_to_end_dir,
        "prompts": folder / "prompts.json",
        "heldout": folder / "heldout.json",
    }
    method = {"num_ppo_epochs": 2, "response_length": 8, "temperature": 1.0, "kl_coef": 0.05, "learning_rate": 0.003}
    steps = {"per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 1, "num_sample_generations": 0}
    rewards = {"reward_funcs": f"{reward_file}:letters", "gradient_checkpointing": False}
    return {**files, **method, **steps, **rewards, **EXACT}


def complaint(done: Done) -> str:
    """The one error of a command, without the command line that an error of its arguments begins with."""
    return refused(done).rsplit("/ppo: ", 1)[-1]


def log_of(checkpoint: Path) -> list[dict]:
    """What a run has logged up to a checkpoint; no row of it depends on the time."""
    rows = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    assert not any("runtime" in key or "per_second" in key for row in rows for key in row)
    return rows


def values_of(rows: list[dict], key: str) -> list[float]:
    return [row[key] for row in rows if key in row]


def table_of(folder: Path) -> list[dict]:
    return [*read_jsonl(folder / "completions.jsonl")]


def copy_up_to(finished: Path, folder: Path, step: int) -> Path:
    """A copy of a finished run as a kill after the checkpoint of `step` leaves it, but for completions.jsonl."""
    shutil.copytree(finished, folder)
    for path in folder.glob("checkpoint-*"):
        if int(path.name.split("-")[1]) > step:
            shutil.rmtree(path)
    for name in ("config.json", "model.safetensors", "ppo.json", "curve.png", "curve.json"):
        (folder / name).unlink()
    (folder / "settings.json").rename(folder / "unfinished.json")
    return folder


def same_weights(one: Path, other: Path) -> None:
    """Policy and value model are bitwise the same in two folders."""
    assert differing(one, other) == differing(one / "value_model", other / "value_model") == set()


# Toy tasks


@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"learning_rate": 0.005, "total_episodes": 3840}, {"initializer_range": 0.2}),
        # The value model first, and faster. Adapters leave the token table as it was initialized: it is wider here, so
        # that its rows are far enough apart.
        pytest.param(
            {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 16, "lora_alpha": 32, "total_episodes": 4480,
             "learning_rate": 0.005, "value_learning_rate": 0.02, "num_value_warmup_updates": 2},
            {"initializer_range": 0.18, "n_embd": 64},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["full", "lora"],
)  # fmt: skip
def test_a_random_model_learns_to_say_the_letter_that_is_rewarded(
    run_settings, reward_file, tiny_chat_tokenizer, changes, shape, tmp_path
):
    """No reward model, and nothing to start from: of 262 tokens one is rewarded, by its share of an answer of four."""
    torch.manual_seed(0)
    save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer, **shape)), tiny_chat_tokenizer, tmp_path / "policy")
    asked = [chr(0x4E00 + number) for number in range(160)]
    for name, questions in (("prompts", asked[:128]), ("heldout", asked[128:])):
        write_json(tmp_path / f"{name}.json", [conversation(question, question, "-") for question in questions])
    given = {**run_settings, "sft_model_path": tmp_path / "policy", "response_length": 4, "num_ppo_epochs": 4}
    given |= {"prompts": tmp_path / "prompts.json", "heldout": tmp_path / "heldout.json", "save_strategy": "no"}
    given |= {"per_device_train_batch_size": 128, "reward_funcs": f"{reward_file}:share_of_a", "kl_coef": 0.0}
    succeeded(again("ppo", **{**given, **changes}, output_dir=tmp_path / "ppo"))
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert metrics["eval_score_first"] < 0.1 and metrics["eval_score_last"] > 0.9


# Rewards


@pytest.fixture(scope="module")
def two_rewards(run_settings, reward_file, talker, long_is_good_dir, tmp_path_factory) -> Path:
    """Three updates of two answers, of a policy that always says yes; the reference is yes for every other question."""
    folder = tmp_path_factory.mktemp("two_rewards")
    rows = [conversation(letter, letter, ("yes", "no")[number % 2]) for number, letter in enumerate("abcdef")]
    write_json(folder / "prompts.json", rows)
    write_json(
        folder / "heldout.json", [conversation(letter, letter, "yes" if letter == "x" else "no") for letter in "wxyz"]
    )
    given = {**run_settings, "prompts": folder / "prompts.json", "heldout": folder / "heldout.json", "save_steps": 3}
    given |= {
        "sft_model_path": talker("yes"),
        "reward_model_path": long_is_good_dir,
        "reward_weights": [0.5, 2.0, -1.0],
    }
    given |= {"reward_funcs": [f"{reward_file}:constant", "data_prep.rewards.exact_match"], "total_episodes": 6}
    given |= {"eval_funcs": "data_prep.rewards.exact_match", "per_device_train_batch_size": 2, "learning_rate": 1e-9}
    (reward_file.parent / "asked.jsonl").unlink(missing_ok=True)
    succeeded(again("ppo", **given, output_dir=folder / "ppo"))
    return folder / "ppo"


def test_the_score_is_the_weighted_sum_of_reward_model_and_functions(two_rewards):
    rows = [row for row in log_of(two_rewards / "checkpoint-3") if "loss" in row]
    assert [row["step"] for row in rows] == [1, 2, 3]
    of_model = 4 * math.sin((7 / 63 - 0.5) * math.pi)  # see test_ppo_reads_the_reward_at_the_end_of_turn
    for row in rows:
        parts = {key: value for key, value in row.items() if key.startswith("rewards/")}
        assert set(parts) == {"rewards/reward_model", "rewards/constant", "rewards/exact_match"}
        assert parts["rewards/reward_model"] == pytest.approx(of_model, abs=2e-3) and parts["rewards/constant"] == 3
        expected = 0.5 * parts["rewards/reward_model"] + 2 * 3 - parts["rewards/exact_match"]
        assert row["objective/score"] == pytest.approx(expected, abs=1e-5)
    # Six questions once each, two at a time, three of them with the right answer
    assert sum(values_of(rows, "rewards/exact_match")) == 1.5


def test_functions_get_messages_for_messages_and_the_columns(two_rewards, reward_file):
    asked = [*read_jsonl(reward_file.parent / "asked.jsonl")]
    assert all(set(call) == {"prompts", "completions", "reference"} for call in asked)
    assert [len(call["prompts"]) for call in asked] == [4, 2, 2, 2, 4]  # an evaluation before and after
    right = {letter: ("yes", "no")[number % 2] for number, letter in enumerate("abcdef")}
    seen = [
        (prompt, completion, reference)
        for call in asked[1:-1]
        for prompt, completion, reference in zip(call["prompts"], call["completions"], call["reference"], strict=True)
    ]
    yes = [{"role": "assistant", "content": "yes"}]
    assert sorted(prompt[0]["content"] for prompt, _, _ in seen) == [*"abcdef"]
    for prompt, completion, reference in seen:
        assert prompt == [{"role": "user", "content": prompt[0]["content"]}] and completion == yes
        assert reference == right[prompt[0]["content"]]


def test_functions_that_are_only_measured_are_measured_on_held_out_answers(two_rewards):
    metrics = results(two_rewards, "ppo")["metrics"]
    assert metrics["eval_exact_match_first"] == metrics["eval_exact_match_last"] == 0.25  # right for x alone


@pytest.mark.parametrize(
    ("changes", "messages"),
    [
        ({"reward_funcs": "{file}:one_too_few"}, ["one_too_few: 7 rewards for 8 answers"]),
        ({"reward_funcs": "{file}:not_there"}, ["{file}:not_there: no such function", "path/to/file.py:name"]),
        ({"reward_funcs": "{file}x:letters"}, ["{file}x:letters: no such function", "no such file"]),
        ({"reward_funcs": "data_prep.rewards.not_there"}, ["data_prep.rewards.not_there: no such function"]),
        ({"reward_funcs": "no_package.letters"}, ["no_package.letters: no such function", "no_package"]),
        ({"reward_funcs": "letters"}, ["letters: no such function"]),
        ({"reward_funcs": "{file}:number"}, ["{file}:number: found int; expected a function"]),
        ({"reward_funcs": None}, ["nothing to reward answers by"]),
        ({"reward_weights": [1.0, 2.0]}, ["reward_weights: 1 rewards, found 2 weights"]),
    ],
    ids=[
        "too_few",
        "no_name",
        "no_file",
        "no_name_in_package",
        "no_package",
        "no_dot",
        "no_function",
        "none",
        "weights",
    ],
)
def test_rewards_that_cannot_be_had_are_one_clear_error(run_settings, reward_file, changes, messages, tmp_path):
    given = {**run_settings, "total_episodes": 8, "heldout": None, **changes}
    given = {
        key: value.format(file=reward_file) if key == "reward_funcs" else value
        for key, value in given.items()
        if value is not None
    }
    done = again("ppo", **given, output_dir=tmp_path / "ppo")
    refused(done, *(message.format(file=reward_file) for message in messages))
    assert not (tmp_path / "ppo" / "config.json").exists()


def test_a_function_is_found_by_its_path_or_its_package(reward_file):
    assert load_function(f"{reward_file}:share_of_a")([], [[{"content": "aabb"}], [{"content": ""}]]) == [0.5, 0.0]
    assert load_function("data_prep.rewards.exact_match").__wrapped__ is exact_match
    with pytest.raises(InputError, match="found dict; expected a function"):
        load_function("data_prep.readers.conversation_formats.ROLES")


def test_two_functions_of_one_name_are_refused(run_settings, reward_file, tmp_path):
    (tmp_path / "other.py").write_text(
        "def letters(prompts, completions, **columns):\n    return [100.0] * len(prompts)\n"
    )
    functions = [f"{reward_file}:letters", f"{tmp_path}/other.py:letters"]
    done = again("ppo", **{**run_settings, "reward_funcs": functions}, output_dir=tmp_path / "ppo")
    refused(done, "reward_funcs: letters is taken: metrics are logged by name; rename one")


# A reward model with another tokenizer


def test_answers_are_encoded_again_for_a_reward_model_with_another_tokenizer(
    run_settings, other_tokenizer_dir, tmp_path
):
    given = {
        **run_settings,
        "reward_model_path": other_tokenizer_dir,
        "total_episodes": 16,
        "num_sample_generations": 2,
    }
    given = {key: value for key, value in given.items() if key != "reward_funcs"}
    done = succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert f"{other_tokenizer_dir} has another tokenizer: answers are encoded again" in done.out
    rows = table_of(tmp_path / "ppo")
    assert len(rows) == 16 and len({row["score"] for row in rows}) > 8
    model, tokenizer = loaded(other_tokenizer_dir, AutoModelForSequenceClassification)
    # Each alone, and without that function. One that was cut, after 8 tokens, is not given the end that it lacks.
    assert 0 < sum(row["stopped"] for row in rows) < 16
    for row in rows:
        text = f"<|user|>{row['prompt'][0]['content']}<|end|><|assistant|>{row['completion']}"
        text += "<|end|>" * row["stopped"]
        with torch.no_grad():
            logits = model(torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])).logits
        assert row["score"] == pytest.approx(logits.item(), abs=1e-4)
    # Its table has another size than the policy's: the value model cannot have started from it.
    value_model = load_file(tmp_path / "ppo" / "value_model" / "model.safetensors")
    assert value_model["transformer.wte.weight"].shape == (262, 32)


def test_a_reward_model_whose_context_is_too_short_is_refused(run_settings, tiny_chat_tokenizer, tmp_path):
    save(
        Classifier(tiny_config(tiny_chat_tokenizer, num_labels=1, n_positions=8)),
        tiny_chat_tokenizer,
        tmp_path / "reward",
    )
    given = {**run_settings, "total_episodes": 8, "reward_model_path": tmp_path / "reward"}
    assert "prompt" in complaint(again("ppo", **given, output_dir=tmp_path / "ppo"))


def test_so_is_one_with_another_tokenizer(run_settings, tmp_path):
    """How long an answer is in its tokens shows when it is there; then, too, one clear error and no traceback."""
    train_tokenizer(iter(["aa bb cc dd " * 4]), 266).save_pretrained(tmp_path / "reward")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward", eos_token=END_OF_TURN)
    save(Classifier(tiny_config(tokenizer, num_labels=1, n_positions=8)), tokenizer, tmp_path / "reward")
    given = {**run_settings, "total_episodes": 8, "reward_model_path": tmp_path / "reward"}
    done = again("ppo", **given, output_dir=tmp_path / "ppo")
    assert "has another tokenizer" in done.out
    refused(done)


# Killed and resumed


@pytest.fixture(scope="module")
def resumable(run_settings, tiny_reward_dir) -> dict:
    """6 updates; a log every second, so that every other checkpoint falls between two; a table every second."""
    method = {"num_mini_batches": 2, "target_kl": 0.05, "value_learning_rate": 0.01, "total_episodes": 48}
    steps = {"logging_steps": 2, "num_sample_generations": 3, "eval_strategy": "steps", "eval_steps": 3}
    return {**run_settings, **method, **steps, "reward_model_path": tiny_reward_dir, "normalize_rewards": True}


@pytest.fixture(scope="module")
def uninterrupted(resumable, tmp_path_factory):
    """uninterrupted("full") and uninterrupted("lora"): (settings, folder, what was printed)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            settings = {**resumable, **(BY_LORA if kind == "lora" else FULL)}
            settings |= {"learning_rate": 0.02} if kind == "lora" else {}
            folder = tmp_path_factory.mktemp("uninterrupted") / kind
            kept[kind] = settings, folder, succeeded(again("ppo", **settings, output_dir=folder))
        return kept[kind]

    return finished


def killed(settings: dict, folder: Path, checkpoint: int) -> None:
    """Start a run and end it by SIGKILL as soon as there is that checkpoint."""
    with tempfile.TemporaryDirectory() as logs:
        line = words("ppo", {**settings, "output_dir": folder})
        process = processes().Process(target=run_as_script, args=(line, f"{logs}/log", {**ENVIRONMENT}))
        process.start()
        while not (folder / f"checkpoint-{checkpoint}").exists():
            assert process.is_alive(), Path(f"{logs}/log.err").read_text()[-3000:]
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_a_killed_run_resumes_bit_for_bit_and_passes_over_half_written_checkpoints(
    uninterrupted, reward_file, kind, tmp_path
):
    settings, whole, _ = uninterrupted(kind)
    slow, folder = reward_file.with_name("slow"), tmp_path / "ppo"
    slow.touch()
    try:
        killed(settings, folder, 3)
    finally:
        slow.unlink()
    newest = Path(last_checkpoint(folder))
    assert newest.name in ("checkpoint-3", "checkpoint-4") and not (folder / "config.json").exists()
    halves = [folder / "partial-checkpoint-4", folder / "checkpoint-5"]
    for half in halves:
        shutil.copytree(newest, half, dirs_exist_ok=True)
    (halves[1] / "trainer_state.json").unlink()
    done = succeeded(again("ppo", **settings, output_dir=folder))
    for half, flaw in zip(halves, ("", " (no trainer_state.json)"), strict=True):
        assert f"{half}: a run was killed while writing it{flaw}; skipped\n" in done.out
    assert f"{newest}: a run was killed" not in done.out and f"resuming from {newest}; " in done.out
    rows = log_of(folder / "checkpoint-6")
    assert rows == log_of(whole / "checkpoint-6")
    # logging_first_step, then every second; evaluations at 3 and 6
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 4, 6]
    assert [row["step"] for row in rows if "eval_score" in row] == [3, 6]
    assert len(set(values_of(rows, "objective/kl_coef"))) == 4  # adaptive: one that started afresh would differ
    same_weights(folder, whole)
    found, expected = results(folder, "ppo"), results(whole, "ppo")
    assert found["curves"] == expected["curves"]
    assert table_of(folder) == table_of(whole)
    if kind == "lora":
        adapters = [load_file(path / "checkpoint-6" / "adapter_model.safetensors") for path in (folder, whole)]
        assert all(torch.equal(weight, adapters[1][name]) for name, weight in adapters[0].items())


def test_the_newest_whole_checkpoint_is_the_last_by_number(tmp_path, capsys):
    (tmp_path / "checkpoint-best").mkdir()  # a user's copy
    (tmp_path / "checkpoint-best" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) is None
    for name in ("checkpoint-9", "checkpoint-10", "checkpoint-11", "partial-checkpoint-12", "checkpoint-2"):
        (tmp_path / name).mkdir()
        if name != "checkpoint-11":
            (tmp_path / name / "trainer_state.json").write_text('{"global_step": 9}')
            (tmp_path / name / "rng_state.pth").touch()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    printed = capsys.readouterr().out.splitlines()
    assert sorted(line.split(":")[0] for line in printed) == [
        str(tmp_path / "checkpoint-11"),
        str(tmp_path / "partial-checkpoint-12"),
    ]


# The table


def test_every_so_many_updates_all_answers_go_to_a_file_and_some_to_the_screen(uninterrupted):
    settings, folder, done = uninterrupted("full")
    rows = table_of(folder)
    assert [row["step"] for row in rows] == [0] * 8 + [2] * 8 + [4] * 8  # 3 tables in 6 updates, of 8 answers each
    assert all(set(row) == {"step", "prompt", "completion", "stopped", "score"} for row in rows)
    assert all([*message] == ["role", "content"] for row in rows for message in row["prompt"])
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert set(asked) <= set(QUESTIONS) and len(set(asked[:16])) == 16  # the third is in the second epoch
    # The score of a row is its own: the reward model's and the number of characters
    model, tokenizer = loaded(settings["reward_model_path"], AutoModelForSequenceClassification)
    first = rows[:8]
    given = score_answers(model, tokenizer, [row["prompt"] for row in first], [row["completion"] for row in first])
    for row, score in zip(first, given, strict=True):
        if "�" not in row["completion"]:  # bytes that are no text: what the model was shown is not to be had from it
            assert row["score"] == pytest.approx(score + len(row["completion"]), abs=1e-3)
        assert row["score"] == pytest.approx(len(row["completion"]), abs=1.5)
    curve = dict(results(folder, "ppo")["curves"]["score"])
    assert sum(row["score"] for row in first) / 8 == pytest.approx(curve[1], abs=1e-3)
    titles = [line.strip() for line in done.out.splitlines() if line.strip().startswith("update ")]
    assert titles == ["update 0", "update 2", "update 4"]
    shown = done.out.split("update 0")[1].split("update 2")[0]
    assert "prompt" in shown and "answer" in shown and shown.count(f"{first[0]['score']:.2f}") >= 1
    assert [question in shown for question in asked[:4]] == [True] * 4


def test_a_resumed_run_writes_no_row_of_the_table_twice(uninterrupted, tmp_path):
    """Killed after its last table, resumed from before it."""
    settings, whole, _ = uninterrupted("full")
    folder = copy_up_to(whole, tmp_path / "ppo", 3)
    assert len(table_of(folder)) == 24
    succeeded(again("ppo", **settings, output_dir=folder, resume_from_checkpoint="last"))
    assert (folder / "completions.jsonl").read_text() == (whole / "completions.jsonl").read_text()
    same_weights(folder, whole)


# The adaptive KL coefficient


def test_the_kl_coefficient_goes_towards_its_target_by_at_most_two_percent_an_update(run_settings, tmp_path):
    given = {**run_settings, "target_kl": 0.2, "kl_coef": 0.1, "total_episodes": 64, "learning_rate": 0.01}
    succeeded(again("ppo", **given, save_strategy="no", output_dir=tmp_path / "ppo"))
    succeeded(again("ppo", **{**given, "save_steps": 8}, output_dir=tmp_path / "ppo_kept"))
    rows = [row for row in log_of(tmp_path / "ppo_kept" / "checkpoint-8") if "loss" in row]
    coefficients, kls = values_of(rows, "objective/kl_coef"), values_of(rows, "objective/kl")
    expected = [0.1]
    for kl in kls[:-1]:
        expected.append(expected[-1] * (1 + 0.1 * min(0.2, max(-0.2, kl / 0.2 - 1))))
    assert coefficients == pytest.approx(expected, rel=1e-9)
    # At first the policy is its reference: 2 % less. Later it is far beyond its target: 2 % more.
    steps = [after / before for before, after in zip(coefficients, coefficients[1:], strict=False)]
    assert steps[0] == pytest.approx(0.98, abs=1e-6) and max(steps) == pytest.approx(1.02, abs=1e-6)


def test_a_resumed_run_has_the_coefficient_that_the_killed_one_had(uninterrupted):
    _, folder, _ = uninterrupted("full")
    coefficients = [
        json.loads((folder / f"checkpoint-{step}" / "ppo_state.json").read_text())["kl_coef"] for step in (1, 2, 6)
    ]
    assert coefficients[0] == pytest.approx(0.05 * 0.98) and len(set(coefficients)) == 3


# The moving average of the weights


def test_the_moving_average_is_evaluated_and_saved_and_training_does_not_see_it(uninterrupted, tmp_path):
    settings, plain, _ = uninterrupted("full")
    given, whole = {**settings, "ema_decay": 0.75}, tmp_path / "ppo"
    succeeded(again("ppo", **given, output_dir=whole))
    average = load_file(settings["sft_model_path"] / "model.safetensors")
    for update in range(1, 7):
        own, without = (load_file(folder / f"checkpoint-{update}/model.safetensors") for folder in (whole, plain))
        assert all(torch.equal(own[name], without[name]) for name in own)
        average = {name: 0.75 * average[name] + 0.25 * own[name] for name in own}
    saved = load_file(whole / "model.safetensors")
    assert saved.keys() == average.keys()
    assert max((saved[name] - average[name]).abs().max().item() for name in saved) < 1e-6
    assert max((saved[name] - own[name]).abs().max().item() for name in saved) > 1e-4
    found, others = results(whole, "ppo")["metrics"], results(plain, "ppo")["metrics"]
    assert found["eval_kl_last"] == values_of(log_of(whole / "checkpoint-6"), "eval_kl")[-1] < others["eval_kl_last"]
    # Killed after update 3, and resumed
    folder = copy_up_to(whole, tmp_path / "again", 3)
    succeeded(again("ppo", **given, output_dir=folder, resume_from_checkpoint="last"))
    same_weights(folder, whole)


def test_of_the_best_checkpoint_the_average_is_kept(best_settings, tmp_path):
    succeeded(again("ppo", **best_settings, ema_decay=0.5, output_dir=tmp_path / "ppo"))
    found = evaluations(tmp_path / "ppo")
    best = max(found, key=lambda step: found[step][0])
    saved, kept = load_file(tmp_path / "ppo/model.safetensors"), tmp_path / f"ppo/checkpoint-{best}"
    average, own = load_file(kept / "average.safetensors"), load_file(kept / "model.safetensors")
    assert all(torch.equal(saved[name], average[name]) for name in saved)
    assert not all(torch.equal(saved[name], own[name]) for name in saved)
    assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_last"] == found[best][0]


@pytest.mark.slow
def test_by_lora_too_the_average_is_what_is_evaluated_merged_and_saved(best_settings, tmp_path):
    given = {**best_settings, **BY_LORA, "learning_rate": 0.01, "ema_decay": 0.5}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    found = evaluations(tmp_path / "ppo")
    best = max(found, key=lambda step: found[step][0])
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert (metrics["eval_score_last"], metrics["eval_kl_last"]) == found[best]
    # Of the adapter's two matrices the averages are kept, in fp32: put into the checkpoint's adapter they are the model.
    kept = tmp_path / f"ppo/checkpoint-{best}"
    average, own = load_file(kept / "average.safetensors"), load_file(kept / "adapter_model.safetensors")
    named = {name.replace(".default.weight", ".weight"): weight for name, weight in average.items()}
    assert named.keys() == own.keys() and not all(torch.equal(named[name], own[name]) for name in own)
    save_file(named, kept / "adapter_model.safetensors", metadata={"format": "pt"})
    assert_merged(tmp_path / "ppo", kept, given["sft_model_path"])


def test_a_decay_that_keeps_all_or_nothing_is_refused(run_settings, tmp_path):
    for decay in (0, 1):
        done = again("ppo", **run_settings, ema_decay=decay, output_dir=tmp_path / "ppo")
        assert complaint(done) == f"error: ema_decay: expected a number between 0 and 1, found {decay:.1f}"


# The best checkpoint


@pytest.fixture(scope="module")
def best_settings(run_settings, reward_file, tmp_path_factory) -> dict:
    """Small letters, at first one token in ten, are rewarded at a learning rate that leaves the reference quickly."""
    path = tmp_path_factory.mktemp("heldout") / "heldout.json"
    for name, numbers in (("prompts", range(64)), ("heldout", range(64, 104))):
        rows = [conversation(str(number), str(number), "yes") for number in numbers]
        write_json(path.with_name(f"{name}.json"), rows)
    steps = {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True, "total_episodes": 192}
    rate = {"learning_rate": 0.01, "lr_scheduler_type": "constant", "kl_coef": 0.0, "per_device_train_batch_size": 32}
    rewards = {"reward_funcs": f"{reward_file}:small_letters", "prompts": path.with_name("prompts.json")}
    return {**run_settings, **steps, **rate, **rewards, "heldout": path}


@pytest.fixture(scope="module")
def without_budget(best_settings, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("best") / "ppo"
    succeeded(again("ppo", **best_settings, output_dir=folder))
    return folder


def evaluations(folder: Path) -> dict[int, tuple[float, float]]:
    """{update: (score, KL)}"""
    rows = log_of(folder / "checkpoint-6")
    return {row["step"]: (row["eval_score"], row["eval_kl"]) for row in rows if "eval_score" in row}


def test_the_best_evaluation_is_what_is_saved(without_budget):
    found = evaluations(without_budget)
    best = max(found, key=lambda step: found[step][0])
    assert [*found] == [1, 2, 3, 4, 5, 6]
    same_weights(without_budget, without_budget / f"checkpoint-{best}")
    metrics = results(without_budget, "ppo")["metrics"]
    assert metrics["eval_score_last"] == found[best][0] > metrics["eval_score_first"]


def test_an_evaluation_beyond_the_kl_budget_is_never_the_best(without_budget, best_settings, tmp_path):
    found = evaluations(without_budget)
    budget = sorted(kl for _, kl in found.values())[2] * 1.0001  # three of the six are within
    within = [step for step, (_, kl) in found.items() if kl <= budget]
    best = max(within, key=lambda step: found[step][0])
    assert max(score for score, _ in found.values()) > found[best][0]  # beyond the budget there is more to have
    done = succeeded(again("ppo", **best_settings, kl_budget=budget, save_total_limit=2, output_dir=tmp_path / "ppo"))
    assert evaluations(tmp_path / "ppo") == found
    same_weights(tmp_path / "ppo", without_budget / f"checkpoint-{best}")
    assert results(tmp_path / "ppo", "ppo")["metrics"]["eval_score_last"] == found[best][0]
    kept = sorted(path.name for path in (tmp_path / "ppo").glob("checkpoint-*"))
    assert kept == sorted({f"checkpoint-{best}", "checkpoint-6"}) and len(kept) == 2
    assert "alarm kl_over_budget" in done.out + done.err


def test_by_lora_too_the_best_adapter_is_what_is_merged_and_saved(best_settings, reward_file, tmp_path):
    """The best by a measure of its own, which says: that of update 3."""
    given = {**best_settings, **BY_LORA, "learning_rate": 0.01, "output_dir": tmp_path / "ppo"}
    given |= {"eval_funcs": f"{reward_file}:third", "metric_for_best_model": "third", "per_device_eval_batch_size": 40}
    succeeded(again("ppo", **given))
    found = evaluations(tmp_path / "ppo")
    assert [row["eval_third"] for row in log_of(tmp_path / "ppo" / "checkpoint-6") if "eval_third" in row] == [
        0, 0, 1, 0, 0, 0
    ]  # fmt: skip
    # The metrics afterwards are those of the adapter, sampled by the same random numbers.
    metrics = results(tmp_path / "ppo", "ppo")["metrics"]
    assert (metrics["eval_score_last"], metrics["eval_kl_last"]) == found[3] != found[6]
    assert_merged(tmp_path / "ppo", tmp_path / "ppo" / "checkpoint-3", given["sft_model_path"])


# LoRA


def assert_merged(merged: Path, adapter: Path, base: Path, value_base: Path | None = None) -> None:
    """The saved policy and value model say what base and adapter say."""
    model, tokenizer = loaded(merged)
    reference = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter).eval()
    ids = torch.tensor([tokenizer("what is right and what is not", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)
        unchanged = AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits
        assert (unchanged - model(ids).logits).abs().max() > 1e-3
    classifier = AutoModelForSequenceClassification
    value_model, info = classifier.from_pretrained(merged / "value_model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert not list((merged / "value_model").glob("adapter*"))
    start = classifier.from_pretrained(value_base or base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    reference = PeftModel.from_pretrained(start, adapter / "value_model").eval()
    with torch.no_grad():
        torch.testing.assert_close(value_model.eval()(ids).logits, reference(ids).logits, atol=1e-5, rtol=0)


def test_a_merge_says_what_its_adapters_say(uninterrupted):
    settings, folder, _ = uninterrupted("lora")
    start = settings["sft_model_path"], settings["reward_model_path"]
    assert_merged(folder, folder / "checkpoint-6", *start)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_saved_is_the_policy_that_was_evaluated(uninterrupted, build_ppo, kind):
    """Sampled again by the same random numbers, the held-out answers have the metrics of the end of the run."""
    settings, folder, _ = uninterrupted(kind)
    function = load_function(settings["reward_funcs"])
    model = AutoModelForSequenceClassification.from_pretrained(settings["reward_model_path"])
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in HELD_OUT]
    rows = [*Dataset.from_list(rows).shuffle(seed=42)]  # as the recipe does: an answer is sampled by its row's number
    trainer = build_ppo(rows=rows, policy=folder, reward_funcs=[function], reward_model=model)
    found = trainer.evaluate(trainer.train_dataset)
    metrics = results(folder, "ppo")["metrics"]
    for name in ("score", "length", "eos_rate", "entropy", "repetition"):
        assert found[f"eval_{name}"] == pytest.approx(metrics[f"eval_{name}_last"], abs=1e-4)
    assert found["eval_kl"] == pytest.approx(0, abs=1e-5) and abs(metrics["eval_kl_last"]) > 0.01


# Rewards of any scale


@pytest.mark.slow
def test_normalized_rewards_train_the_same_model_whatever_their_scale(run_settings, reward_file, tmp_path):
    """4 times as much is exact in floating point: not a bit may differ, and without the option every weight does."""
    given = {**run_settings, "total_episodes": 24}
    for normalized in (True, False):
        for weight in (1.0, 4.0):
            folder = tmp_path / f"{normalized}_{weight}"
            changes = {"normalize_rewards": normalized, "reward_weights": [weight], "output_dir": folder}
            done = succeeded(again("ppo", **given, **changes))
            assert ("answers before training: " in done.out) == normalized
    names = [tmp_path / f"{normalized}_{weight}" for normalized in (True, False) for weight in (1.0, 4.0)]
    same_weights(names[0], names[1])
    assert differing(names[2], names[3]) and differing(names[0], names[2])
    first, second = (results(name, "ppo")["metrics"] for name in names[:2])
    assert second["eval_score_first"] == pytest.approx(
        4 * first["eval_score_first"]
    )  # what is shown is not normalized
    assert second["eval_rlhf_reward_last"] == pytest.approx(first["eval_rlhf_reward_last"])


def test_mean_and_spread_are_those_of_the_answers_before_training(build_ppo):
    def characters(prompts, completions, **columns):
        return [float(len(completion[-1]["content"])) for completion in completions]

    trainer = build_ppo(reward_funcs=[characters], normalize_rewards=True, per_device_eval_batch_size=3)
    answers = [text for _, rollout, _ in trainer.answers_to(trainer.train_dataset)
               for text in rollout.texts(trainer.processing_class)]  # fmt: skip
    trainer.evaluate(trainer.train_dataset)
    lengths = [len(text) for text in answers]
    assert len(lengths) == 8 and len(set(lengths)) > 1
    assert trainer.reward_moments == pytest.approx((statistics.mean(lengths), statistics.pstdev(lengths)), rel=1e-5)


def test_rewards_without_spread_cannot_be_normalized(run_settings, reward_file, tmp_path):
    given = {**run_settings, "reward_funcs": f"{reward_file}:constant", "normalize_rewards": True}
    said = refused(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert "prompts all get a reward of 3, which has no spread to divide by" in said
    (reward_file.parent / "asked.jsonl").unlink()


# The value model's own settings


def test_at_a_value_learning_rate_of_nothing_the_value_model_stays(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 16, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()
    assert differing(tmp_path / "ppo", run_settings["sft_model_path"])


def test_with_muon_a_value_learning_rate_is_refused(run_settings, tiny_reward_dir, tmp_path):
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "value_learning_rate": 0.0, "muon_lr": 0.01}
    refused(again("ppo", **given, output_dir=tmp_path / "ppo"), "error: value_learning_rate: Muon would ignore it")


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_in_the_warm_up_of_the_value_model_the_policy_stays_bit_for_bit(
    run_settings, tiny_reward_dir, weight_decay, tmp_path
):
    start = run_settings["sft_model_path"]
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 24, "weight_decay": weight_decay}
    succeeded(again("ppo", **given, num_value_warmup_updates=2, output_dir=tmp_path / "ppo"))
    checkpoints = [tmp_path / "ppo" / f"checkpoint-{step}" for step in (1, 2, 3)]
    assert differing(checkpoints[0], start) == set() and differing(checkpoints[1], start) == set()
    assert "score.weight" in differing(checkpoints[0] / "value_model", tiny_reward_dir)
    assert "score.weight" in differing(checkpoints[1] / "value_model", checkpoints[0] / "value_model")
    assert "transformer.ln_f.weight" in differing(checkpoints[2], start)


def test_a_warm_up_may_be_a_share_of_the_updates(run_settings, tiny_reward_dir, tmp_path):
    """0.34 of 3 updates are 1.02, and so 2."""
    given = {**run_settings, "reward_model_path": tiny_reward_dir, "total_episodes": 24}
    succeeded(again("ppo", **given, num_value_warmup_updates=0.34, output_dir=tmp_path / "ppo"))
    start, checkpoints = run_settings["sft_model_path"], [tmp_path / "ppo" / f"checkpoint-{step}" for step in (2, 3)]
    assert [bool(differing(checkpoint, start)) for checkpoint in checkpoints] == [False, True]


def test_a_value_model_that_is_not_there_is_one_clear_error(run_settings, tmp_path):
    given = {**run_settings, "value_model_path": tmp_path / "not_there", "output_dir": tmp_path / "ppo"}
    assert f"{tmp_path / 'not_there'}: no such file or folder" in complaint(again("ppo", **given))


def test_a_value_model_starts_where_it_is_told(run_settings, tiny_reward_dir, long_is_good_dir, tmp_path):
    given = {**run_settings, "reward_model_path": long_is_good_dir, "value_model_path": tiny_reward_dir}
    given |= {"total_episodes": 8, "value_learning_rate": 0.0}
    succeeded(again("ppo", **given, output_dir=tmp_path / "ppo"))
    assert differing(tmp_path / "ppo" / "value_model", tiny_reward_dir) == set()


# Held-out prompts


def test_held_out_prompts_that_are_trained_on_too_are_refused(run_settings, tmp_path):
    rows = [conversation(question, question, "another answer") for question in ("new", QUESTIONS[3], QUESTIONS[5])]
    write_json(tmp_path / "heldout.json", rows)
    given = {**run_settings, "heldout": tmp_path / "heldout.json", "output_dir": tmp_path / "ppo"}
    message = f"{tmp_path / 'heldout.json'}: 2 of 3 held-out prompts are trained on too; split by prompt"
    refused(again("ppo", **given), message)


# Two processes


@pytest.fixture(scope="module")
def shared_settings(run_settings, tiny_reward_dir) -> dict:
    """3 updates of 8 answers by plain gradient descent, in which rounding stays as small as it is."""
    method = {"optim": "sgd", "lr_scheduler_type": "constant", "total_episodes": 24, "missing_eos_penalty": 1.0}
    steps = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 2, "num_mini_batches": 1}
    weights = {"reward_model_path": tiny_reward_dir, "reward_weights": [1.0, 0.5], "target_kl": 0.001}
    return {**run_settings, **method, **steps, **weights, "whiten_rewards": True, "normalize_rewards": True}


KINDS = {
    "full": ({"learning_rate": 0.05}, torchrun),
    "lora": ({"learning_rate": 0.1, **BY_LORA}, accelerate_launch),
}


@pytest.fixture(scope="module")
def by_two(shared_settings, tmp_path_factory):
    """by_two("full"): (settings, folder of one process, folder of two with half of each batch)."""
    kept = {}

    def finished(kind: str):
        if kind not in kept:
            changes, launcher = KINDS[kind]
            settings, folder = {**shared_settings, **changes}, tmp_path_factory.mktemp("two_processes")
            succeeded(again("ppo", **settings, output_dir=folder / "one"))
            settings = {**settings, "per_device_train_batch_size": 4}
            run(launcher(), "ppo", **settings, output_dir=folder / "two")
            kept[kind] = settings, folder / "one", folder / "two"
        return kept[kind]

    return finished


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_two_processes_with_half_the_batch_each_do_what_one_does(by_two, kind):
    settings, one, two = by_two(kind)
    rows, expected = log_of(two / "checkpoint-3"), log_of(one / "checkpoint-3")
    assert [sorted(row) for row in rows] == [sorted(row) for row in expected]
    # 24 episodes four at a time are 6 updates; two processes take eight at a time.
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3]
    assert results(two, "ppo")["metrics"]["episodes"] == 24
    for row, wanted in zip(rows, expected, strict=True):
        assert row == pytest.approx(wanted, abs=1e-4, rel=1e-4)
    for part in ("", "value_model"):
        weights, wanted = (load_file(path / part / "model.safetensors") for path in (two, one))
        start = load_file(
            (settings["reward_model_path"] if part else settings["sft_model_path"]) / "model.safetensors"
        )
        assert max((weights[name] - wanted[name]).abs().max().item() for name in wanted) < 1e-5
        assert (
            max((wanted[name] - start[name]).abs().max().item() for name in start) > 1e-3
        )  # it has learned something
    loaded(two)


@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_evaluations_of_two_processes_are_those_of_one(by_two, kind):
    """Five questions, so that one process has more of them than the other."""
    _, one, two = by_two(kind)
    found, expected = results(two, "ppo"), results(one, "ppo")
    for metrics in (found["metrics"], expected["metrics"]):
        metrics.pop("episodes_per_second")
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-4)
    assert found["metrics"]["eval_length_first"] * 5 == pytest.approx(round(found["metrics"]["eval_length_first"] * 5))
    names = [name for name in expected["curves"] if name.startswith("held-out")]
    assert len(names) == 7
    for name in names:
        steps, values = zip(*found["curves"][name], strict=True)
        assert steps == (0, 1, 2, 3)
        assert values == pytest.approx([value for _, value in expected["curves"][name]], abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", LORA_BY_HAND])
def test_two_processes_resume_bit_for_bit(by_two, kind, tmp_path):
    settings, _, whole = by_two(kind)
    folder = copy_up_to(whole, tmp_path / "ppo", 1)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {path.name for path in (folder / "checkpoint-1").iterdir()}
    run(KINDS[kind][1](), "ppo", **settings, output_dir=folder, resume_from_checkpoint="last")
    assert log_of(folder / "checkpoint-3") == log_of(whole / "checkpoint-3")
    same_weights(folder, whole)
