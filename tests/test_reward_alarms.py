"""Rewards that teach nothing or are no numbers: what PPO, RLOO and GRPO say of them, in the same words."""

import pytest
from helpers.recipes import EXACT, again, conversation, differing, refused, results, succeeded
from transformers import TrainerControl, TrainerState

from data_prep.common.errors import InputError
from data_prep.common.files import write_json
from recipes.trainers.alarms import RewardAlarms

REWARDS = """
import math
calls = 0

def constant(prompts, completions, **columns):
    return [-len(completion) / 100 for completion in completions]  # of a list of one message

def by_prompt(prompts, completions, **columns):
    return [float(ord(prompt[-1]["content"][0])) for prompt in prompts]

def length(completions):
    return [float(len(completion[-1]["content"])) for completion in completions]

def once(prompts, completions, **columns):
    global calls
    calls += 1
    return [math.nan if calls == 1 else length(completions)[0], *length(completions)[1:]]

def infinite(prompts, completions, **columns):
    return [math.inf, *length(completions)[1:]]

def text(prompts, completions, **columns):
    return ["good" for _ in completions]

def one_less(prompts, completions, **columns):
    return [1.0 for _ in completions[1:]]

def raises(prompts, completions, **columns):
    return [completion.strip() for completion in completions]
"""
FORM = "The completions of conversations are lists of messages: the text is completion[-1]['content']"


@pytest.fixture
def trained(tiny_model_dir, tmp_path):
    """Train a random model on eight prompts by a function of `REWARDS`: four updates, each of them logged."""
    (tmp_path / "rewards.py").write_text(REWARDS)
    write_json(tmp_path / "prompts.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])

    def train(recipe: str, function: str, **settings):
        given = {
            "prompts": tmp_path / "prompts.json",
            "reward_funcs": f"{tmp_path / 'rewards.py'}:{function}",
            **EXACT,
        }
        given |= {"per_device_train_batch_size": 8, "learning_rate": 0.01, "logging_steps": 1, "save_strategy": "no"}
        if recipe == "ppo":
            given |= {"sft_model_path": tiny_model_dir, "response_length": 8, "num_mini_batches": 1}
            given |= {"num_ppo_epochs": 1, "total_episodes": 32}
        else:
            given |= {"model_name_or_path": tiny_model_dir, "max_completion_length": 8, "num_generations": 2}
            given |= {"max_steps": 4, "beta": 0.1, "weight_decay": 0.1}
        return again(recipe, **{**given, **settings}, output_dir=tmp_path / "out")

    return train


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_a_constant_reward_is_an_alarm_that_stops_the_run_if_asked(recipe, trained, tmp_path):
    done = succeeded(trained(recipe, "constant", stop_on="reward_constant"))
    found = results(tmp_path / "out", recipe)
    assert [(row["alarm"], row["step"]) for row in found["alarms"]] == [("reward_constant", 2)]
    said = (
        "every answer has the reward -0.01: nothing can be learned from it; look at what the reward function returns"
    )
    assert f"alarm reward_constant at update 2: {said} for different answers. {FORM}" in done.out
    assert found["alarms"][0]["message"].endswith("; the run is stopped")
    assert "\nalarms: reward_constant at update 2\n" in done.out
    assert [step for step, _ in found["curves"]["score"]] == [1, 2]


@pytest.mark.parametrize("recipe", ["rloo", "grpo"])
def test_groups_without_spread_are_an_alarm(recipe, trained, tmp_path):
    done = succeeded(trained(recipe, "by_prompt"))
    alarms = results(tmp_path / "out", recipe)["alarms"]
    assert [(row["alarm"], row["step"]) for row in alarms] == [("no_spread", 2)]
    assert "alarm no_spread at update 2: the answers to 100% of the prompts have one reward each" in done.out


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_a_reward_that_is_not_finite_leaves_the_weights_bit_for_bit(recipe, trained, tiny_model_dir, tmp_path):
    done = succeeded(trained(recipe, "infinite"))
    alarms = {row["alarm"]: row["step"] for row in results(tmp_path / "out", recipe)["alarms"]}
    assert alarms.pop("reward_not_finite") == 1 and not alarms.keys() - {"non_finite_loss"}
    assert differing(tmp_path / "out", tiny_model_dir) == set()
    name = "the reward model or function" if recipe == "ppo" else "infinite"
    said = f"alarm reward_not_finite at update 1: a reward by {name} is NaN or infinite: such updates are skipped; look at"
    assert said in done.out


@pytest.mark.slow
def test_a_resumed_run_skips_the_updates_left_on_answers_with_such_a_reward(trained, tiny_model_dir, tmp_path):
    given = {"steps_per_generation": 2, "max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    succeeded(trained("grpo", "infinite", **given))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "out" / name).unlink()
    first = tmp_path / "out" / "checkpoint-1"
    done = succeeded(trained("grpo", "infinite", **given, resume_from_checkpoint=first))
    assert f"resuming from {first};" in done.out and differing(tmp_path / "out", tiny_model_dir) == set()


@pytest.mark.parametrize("recipe", ["ppo", "rloo", "grpo"])
def test_after_an_update_that_was_skipped_the_run_learns_on(recipe, trained, tiny_model_dir, tmp_path):
    done = succeeded(trained(recipe, "once"))
    alarms = [(row["alarm"], row["step"]) for row in results(tmp_path / "out", recipe)["alarms"]]
    assert ("reward_not_finite", 1) in alarms and {step for _, step in alarms} == {1}
    assert differing(tmp_path / "out", tiny_model_dir)
    assert "alarms: reward_not_finite at update 1" in done.out or "reward_not_finite at update 1\n" in done.out


@pytest.mark.parametrize(
    "recipe, function, says",
    [
        ("rloo", "text", "text: found str; expected a number per answer"),
        ("grpo", "one_less", "one_less: 7 rewards for 8 answers; expected one each"),
        ("rloo", "raises", "rewards.py:raises: raised AttributeError ('list' object has no attribute 'strip') in "),
        ("ppo", "raises", "rewards.py:raises: raised AttributeError ('list' object has no attribute 'strip') in "),
    ],
)
def test_what_is_no_number_per_answer_is_one_line(recipe, function, says, trained, tmp_path):
    text = refused(trained(recipe, function), says)
    assert "\n" not in text.strip()
    if function == "raises":
        line = REWARDS.splitlines().index("    return [completion.strip() for completion in completions]") + 1
        assert f"in {tmp_path / 'rewards.py'}, line {line}; expected a number per answer. {FORM}" in text


def log(**changes) -> dict:
    return {"reward": 1.0, "reward_std": 0.5, "groups_without_spread": 0.0, "rewards/f/std": 0.5, **changes}


def raised(logs: list[dict]) -> list[tuple[str, int]]:
    alarms, state = RewardAlarms([]), TrainerState()
    for entry in logs:
        state.global_step += 1
        alarms.on_log(None, state, TrainerControl(), logs=entry)
    return [(row["alarm"], row["step"]) for row in alarms.raised]


def test_an_alarm_needs_its_sign_twice_and_more_than_half_of_the_groups():
    assert raised([log(), log(groups_without_spread=0.51), log(), log(groups_without_spread=0.51)]) == []
    assert raised([log(groups_without_spread=0.5)] * 5) == []
    assert raised([log(groups_without_spread=0.51)] * 5) == [("no_spread", 2)]


def test_a_reward_is_constant_up_to_rounding_and_whatever_the_penalty_for_truncated_answers_adds():
    constant = {"rewards/f/std": 1e-9, "rewards/missing_eos/std": 0.5}
    assert raised([log(**constant)] * 3) == [("reward_constant", 2)]
    assert raised([log(**constant, groups_without_spread=1.0)] * 3) == [
        ("reward_constant", 2)
    ]  # it says no_spread too
    assert raised([log(**{"rewards/f/std": 1e-3})] * 3) == []
    assert raised([log(**constant, **{"rewards/g/std": 0.5})] * 3) == []  # another function teaches
    assert raised([log(reward=None, **{"rewards/f/std": None}, groups_without_spread=0.0)] * 3) == []
    assert raised([{"eval_reward": 1.0}, {"train_loss": 1.0}]) == []


def test_a_name_that_no_alarm_has_is_refused_before_a_model_is_loaded(tmp_path):
    with pytest.raises(
        InputError, match="no alarm is called kl_over_budget; there are reward_constant, no_spread, rew"
    ):
        RewardAlarms(["kl_over_budget"])
