"""What eval.diagnose works out and says, from figures by hand."""

import math

import pytest
import torch

from data_prep.common.errors import InputError
from data_prep.gate.verdict import as_verdict
from eval import diagnose
from eval.diagnosis import perfect
from eval.diagnosis.stages import leash, measure_sft, repetition, weights_moved
from eval.diagnosis.verdict import check_gate, check_perfect, check_ppo, check_sft, table, weakest


def row(counts: list[int], stopped: list[bool] | None = None) -> dict:
    return {
        "completions": list("abcdefgh")[: len(counts)],
        "counts": counts,
        "stopped": stopped or [True] * len(counts),
    }


def test_a_control_token_in_a_reference_is_as_long_as_its_letters(tiny_chat_tokenizer):
    """As in training: "a<|end|>" is eight tokens of one letter each and the end of turn."""
    prompt = [{"role": "user", "content": "?"}]
    answered = {**row([1]), "prompt": prompt, "ids": [[5]], "scores": [1.0], "columns": {"reference": "a<|end|>"}}
    found = measure_sft([answered] * 2, tiny_chat_tokenizer, max_new_tokens=9)
    assert (found["reference_length"], found["references_too_long"]) == (9.0, 0.0)


def test_how_far_kl_coef_lets_a_policy_go_by_hand():
    """Rewards 0 and 1, each sampled once: the optimum at kl_coef 1 takes the better one e times as often."""
    rows, rewards = [row([1, 1])] * 2, [[0.0, 1.0]] * 2
    found = leash(rows, rewards, 1.0)
    better = math.e / (1 + math.e)
    assert found["gain"]["value"] == pytest.approx(better - 0.5)
    assert found["kl"] == pytest.approx(better * math.log(2 * better) + (1 - better) * math.log(2 * (1 - better)))
    assert found["spread"] == pytest.approx(math.sqrt(0.5))  # 4 answers, 2 means: 4 · 0.25 / 2
    assert leash(rows, rewards, 0.0)["gain"]["value"] == 0.5 and leash(rows, rewards, 0.0)["kl"] == pytest.approx(
        math.log(2)
    )
    assert leash(rows, rewards, 1e6)["gain"]["value"] == pytest.approx(0.0, abs=1e-6)
    # Of three samples two are the worse answer: e against 2. And a truncated answer costs what its penalty is.
    assert leash([row([2, 1])] * 2, rewards, 1.0)["gain"]["value"] == pytest.approx(math.e / (2 + math.e) - 1 / 3)
    assert leash([row([1, 1], [True, False])] * 2, rewards, 1.0, 1.0)["gain"]["value"] == 0.0


def test_repetition_and_moved_weights_by_hand():
    assert repetition([1, 2, 3, 1, 2, 3]) == 0.25 and repetition([1, 2, 3]) == repetition([]) == 0.0
    one, other = torch.nn.Linear(2, 1, bias=False), torch.nn.Linear(2, 1, bias=False)
    one.weight.data, other.weight.data = torch.tensor([[3.0, 4.5]]), torch.tensor([[3.0, 4.0]])
    assert weights_moved(one, other) == 0.1 and weights_moved(one, one) == 0.0


def interval(value: float, low: float, high: float, n: int = 100) -> dict:
    return {"value": value, "low": low, "high": high, "n": n}


RISEN, NOTHING, FALLEN = interval(0.5, 0.4, 0.6), interval(0.0, -0.05, 0.05), interval(-0.5, -0.6, -0.4)
NEVER, ALWAYS = interval(0.0, 0.0, 0.0), interval(1.0, 1.0, 1.0)


def sft(**changes) -> dict:
    best = {"n": 8, "random": interval(0.5, 0.4, 0.6), "rater_gain": RISEN}
    found = {
        "max_new_tokens": 48,
        "eos_rate": ALWAYS,
        "empty": NEVER,
        "repetition": NEVER,
        "length": interval(10, 9, 11),
    }
    found |= {"reference_length": 10.0, "reference_repetition": 0.0, "references_too_long": 0.0, "differ": ALWAYS}
    return {**found, "best_of_n": [best], **changes}


def ppo(**changes) -> dict:
    settings = {"learning_rate": 1e-5, "kl_coef": 0.1, "kl_budget": 5.0, "num_value_warmup_updates": 0}
    found = {"updates": 100, "logged_kl": 1.0, "alarms": [], "weights_moved": 0.01, "kl": interval(1.0, 0.9, 1.1)}
    found |= {"train": {"reward": RISEN}, "heldout": {"reward": RISEN, "judge": RISEN}}
    found |= {"leash": {"kl_coef": 0.1, "spread": 1.0, "gain": interval(1.2, 1.1, 1.3), "kl": 1.5}}
    return {**found, **changes, "settings": {**settings, **changes.get("settings", {})}}


def the_line(checks: list[dict]) -> str:
    return weakest(checks, {"sft": sft(), "reward": {}, "reward_in_words": None})["line"]


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (sft(eos_rate=interval(0.1, 0.05, 0.2), references_too_long=0.6),
         "(stops): 10.0% [5.0%, 20.0%] of its answers end within 48 tokens; next: raise response_length: 60% of the references "
         "are longer"),
        (sft(length=interval(40, 30, 48)),
         "(length): 40.0 [30.0, 48.0] tokens, the references 10.0; next: look at its answers"),
        (sft(length=interval(3, 2, 4)), "(length): 3.0 [2.0, 4.0] tokens, the references 10.0; next: look at"),
        (sft(empty=interval(0.3, 0.2, 0.4)), "(empty answers): 30.0% [20.0%, 40.0%] of its answers are empty; next: leave"),
        (sft(repetition=interval(0.5, 0.4, 0.6)),
         "(repetition): 50.0% [40.0%, 60.0%] of an answer's 3-grams repeat earlier ones, 0.0% of the references'; next: train"),
        (sft(differ=interval(0.02, 0.0, 0.05)),
         "(headroom): best of 8 by the judge gains +0.50 [+0.40, +0.60] over 0.50 of a random answer; answers differ to the "
         "judge for 2.0% [0.0%, 5.0%] of the prompts; next: there is nothing to pick from, so no RL can gain: sample at"),
    ],
    ids=["stops", "long", "short", "empty", "repetition", "headroom"],
)  # fmt: skip
def test_what_is_wrong_with_an_sft_model_is_named(found, line):
    assert the_line(check_sft(found)).startswith(f"the weakest part is the SFT model {line}")
    assert {each["status"] for each in check_sft(sft())} == {"ok"}
    assert check_sft(sft(reference_length=None))[1]["status"] == "skipped"


@pytest.mark.parametrize(
    ("found", "fit", "line"),
    [
        (ppo(weights_moved=0.0, settings={"num_value_warmup_updates": 100}, train={"reward": NOTHING}), True,
         "is PPO (steps): all of its 100 updates are the value model's warm-up: its weights are those of the SFT model, bit by "
         "bit; next: lower num_value_warmup_updates, or raise total_episodes"),
        (ppo(weights_moved=0.0, train={"reward": NOTHING}), True, "is PPO (steps): no step was taken: its weights are those"),
        (ppo(weights_moved=1e-6, kl=interval(0.001, 0.0, 0.002), train={"reward": NOTHING}), True,
         "is PPO (steps): learning_rate 1e-05 in 100 updates is too little: weights moved by 1e-06 of their norm, the policy by "
         "0.00 [0.00, 0.00] nats per answer, where kl_coef 0.1 lets it gain +1.20 [+1.10, +1.30] at 1.50; next: raise "
         "learning_rate, or total_episodes"),
        (ppo(leash={"kl_coef": 20.0, "spread": 1.0, "gain": interval(0.05, 0.04, 0.06), "kl": 0.001}), True,
         "is PPO (kl_coef): too high: kl_coef 20 lets the best policy gain +0.050 [+0.040, +0.060] of reward, 0.05 of its "
         "spread within a prompt (1); the penalty reached 20 at 1 nats; next: lower kl_coef to about 1, that spread"),
        (ppo(train={"reward": NOTHING}), True,
         "is PPO (reward): +0.000 [−0.050, +0.050] over the SFT model on 100 training prompts: it moved 1.00 [0.90, 1.10] "
         "nats for less than 0.2 of the reward's spread within a prompt (1); next: lower learning_rate or num_ppo_epochs"),
        (ppo(train={"reward": interval(0.2, -0.1, 0.5)}), True,
         "may be PPO (reward): +0.20 [−0.10, +0.50] over the SFT model on 100 training prompts; next: a larger --limit shows"),
        (ppo(heldout={"reward": FALLEN, "judge": RISEN}), True,
         "is PPO (held-out reward): −0.50 [−0.60, −0.40] over the SFT model on 100 held-out prompts, +0.50 [+0.40, +0.60] on "
         "its own; next: give it more prompts, or fewer episodes"),
        (ppo(kl=interval(9.0, 8.0, 10.0)), True,
         "is PPO (KL): 9.00 [8.00, 10.00] nats per answer, beyond kl_budget 5: over-optimised; next: raise kl_coef or lower"),
        (ppo(heldout={"reward": RISEN, "judge": FALLEN}), True,
         "is PPO (judge): the reward rose by +0.50 [+0.40, +0.60], but −0.50 [−0.60, −0.40] by the judge on the same prompts: "
         "over-optimised; next: raise kl_coef, take an earlier checkpoint, and rank answers of this policy"),
        (ppo(heldout={"reward": RISEN, "judge": NOTHING}), False,
         "may be PPO (judge): the reward rose by +0.50 [+0.40, +0.60], but +0.000 [−0.050, +0.050] by the judge on the same "
         "prompts: the reward is not fit; next: see the gate: a better reward first"),
        (ppo(alarms=[{"alarm": "non_finite_loss", "step": 3, "message": "loss not finite"}]), True,
         "is PPO (alarms): 1 alarm, non_finite_loss at update 3: loss not finite; next: see the alarm's own advice"),
    ],
    ids=["warm_up", "no_step", "too_little", "kl_coef", "no_gain", "too_few", "by_heart", "budget", "over", "unfit", "alarm"],
)  # fmt: skip
def test_what_is_wrong_with_ppo_is_named(found, fit, line):
    assert the_line(check_ppo(found, fit)).startswith(f"the weakest part {line}")
    assert {each["status"] for each in check_ppo(ppo(), True)} == {"ok"}


def test_the_weakest_part_is_the_first_that_is_surely_wrong_else_the_first_that_is_unclear():
    unfit = as_verdict("not fit", "knows less than the policy", "rank more")
    unclear = as_verdict("not shown", "40 prompts are too few", "rank more")
    chance = {"baselines": {"chance": {"difference": interval(0.0, -0.1, 0.1)}}, "accuracy": interval(0.5, 0.4, 0.6)}
    wrong = check_ppo(ppo(kl=interval(9.0, 8.0, 10.0)), False)
    line = the_line([*check_sft(sft()), *check_gate({"verdict": unfit, "metrics": {}}), *wrong])
    assert line == "the weakest part is the reward model (gate): knows less than the policy; next: rank more"
    assert the_line([*check_gate({"verdict": unclear, "metrics": {}}), *wrong]).startswith(
        "the weakest part is PPO (KL)"
    )
    line = "the weakest part may be the reward model (gate): 40 prompts are too few; next: rank more"
    assert the_line([*check_gate({"verdict": unclear, "metrics": {}}), *check_ppo(ppo(), False)]) == line
    line = the_line([*check_gate({"verdict": unclear, "metrics": chance}), *wrong])
    says = "right on 50.0% [40.0%, 60.0%] of pairs: 40 prompts are too few"
    assert line == f"the weakest part is the reward model (gate): {says}; next: rank more"
    # Beside a reward that tells nothing apart, a high kl_coef is no finding about PPO.
    tight = ppo(leash={"kl_coef": 20.0, "spread": 1.0, "gain": interval(0.05, 0.04, 0.06), "kl": 0.001})
    line = the_line([*check_gate({"verdict": unclear, "metrics": {}}), *check_ppo(tight, False)])
    assert line.startswith("the weakest part may be the reward model (gate)")


def test_what_a_perfect_reward_gives():
    (found,) = check_perfect({"judge": RISEN}, interval(0.25, 0.2, 0.3))
    assert found["says"] == "+0.50 [+0.40, +0.60] by the judge, the run's own +0.25 [+0.20, +0.30] (50% of it)"
    (found,) = check_perfect({"judge": NOTHING}, NOTHING)
    assert found["status"] == "wrong" and found["next"].startswith("PPO's settings are the weakness, not the reward")


def test_the_config_for_the_judge_keeps_what_makes_the_run():
    settings = {
        "prompts": ["a"],
        "kl_coef": 0.2,
        "stop_token": "<STOP_TOKEN>",
        "stop_token_id": None,
        "target_kl": None,
    }
    settings |= {"reward_model_path": "r", "eval_strategy": "steps", "world_size": None, "total_episodes": 96}
    found = perfect.config_of(settings, {"reward_funcs": ["f"]})
    assert found == {
        "prompts": ["a"], "kl_coef": 0.2, "total_episodes": 96, "stop_token": "eos", "save_strategy": "no", "eval_strategy": "no",
        "report_to": "none", "num_sample_generations": 0, "reward_gate": "off", "reward_funcs": ["f"],
    }  # fmt: skip


def test_the_judge_becomes_the_reward_of_the_recipe():
    assert diagnose.reward_by("data_prep.rewards.rubric") == {"reward_funcs": ["data_prep.rewards.rubric"]}
    assert diagnose.reward_by("reference") == {"reward_funcs": ["data_prep.rewards.match_or_chrf"]}
    assert diagnose.reward_by("runs/quickstart/reward") == {"reward_model_path": "runs/quickstart/reward"}


@pytest.mark.slow
def test_an_error_of_the_recipe_is_told_in_one_line(tmp_path):
    settings = {"prompts": [str(tmp_path / "x.json")], "sft_model_path": str(tmp_path / "gone"), "kl_coef": 0.1}
    with pytest.raises(
        InputError, match="--with_judge_as_reward: recipes/ppo.py ended with 1: .*gone: no such file or folder"
    ):
        perfect.train_on({"reward_funcs": ["data_prep.rewards.exact_match"]}, settings, 1.0, None, str(tmp_path))


def test_the_table_has_a_line_for_each_check():
    checks = [*check_sft(sft()), *check_gate({"verdict": as_verdict("fit", "because", "train"), "metrics": {}})]
    lines = table(checks)
    assert len(lines) == 2 + len(checks) and lines[0] == "the SFT model" and lines[6] == "the reward model"
    assert lines[1] == "  stops            ok:       100.0% [100.0%, 100.0%] of its answers end within 48 tokens"
    assert lines[7] == "  gate             ok:       fit: because"
