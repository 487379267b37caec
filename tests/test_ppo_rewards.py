"""What recipes/ppo.py rewards answers by: functions, models, their weighted sum, and their scale."""

import math
import statistics
from pathlib import Path

import pytest
import torch
from helpers.models import save, tiny_config
from helpers.ppo_runs import complaint, log_of, same_weights, table_of, values_of
from helpers.recipes import again, conversation, differing, loaded, refused, results, succeeded
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers import GPT2ForSequenceClassification as Classifier

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json
from data_prep.models.reward_functions import load_function
from data_prep.rewards import exact_match
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer

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
