"""What the figures say: a line for each check, and the one that names the weakest part.

A check is {"stage", "name", "status", "says", "next"}: ok; wrong, surely; unclear, where an interval holds both; skipped.
Stages stand on one another, so the weakest part is the first that is surely wrong, else the first that is unclear.
"""

import math

from data_prep.common.intervals import show_interval, show_nats
from data_prep.common.text import counted
from data_prep.gate.verdict import points as signed

PARTS = {"sft": "the SFT model", "reward": "the reward model", "ppo": "PPO", "perfect": "PPO with the judge as reward"}
LEAST_EOS = 0.9  # a tenth of truncated answers is as much as missing_eos_penalty can mend
MOST_EMPTY = 0.05
REPETITION_RISE = 0.2  # as PPO's alarm of that name has it
LENGTHS = (0.5, 2.0)  # times the references
LEAST_DIFFER = 0.1  # prompts whose answers differ to the judge: in the others there is nothing to pick
# The best policy under kl_coef gains about spread / kl_coef standard deviations of the reward within a prompt. Best of 2
# gains 0.56 of them: a coefficient that allows a fifth holds PPO still.
LEAST_GAIN = 0.2
# KL as a share of that policy's: below it PPO has hardly set out.
SET_OUT = 0.1
FATAL = ("non_finite_loss", "reward_not_finite")


def points(interval: dict) -> str:
    """A difference with its interval, in two digits after the point, or three where they are small."""
    return signed(interval, digits=2 if max(abs(interval["low"]), abs(interval["high"])) >= 0.1 else 3)


def check(stage: str, name: str, status: str, says: str, then: str | None = None) -> dict:
    return {"stage": stage, "name": name, "status": status, "says": says, "next": then}


def check_sft(found: dict) -> list[dict]:
    """Of what `eval.diagnosis.stages.measure_sft` found."""
    limit, checks = found["max_new_tokens"], []

    def add(name: str, wrong: bool, says: str, then: str) -> None:
        checks.append(check("sft", name, "wrong" if wrong else "ok", says, then if wrong else None))

    eos = found["eos_rate"]
    if found["references_too_long"] > 1 - LEAST_EOS:
        then = f"raise response_length: {found['references_too_long']:.0%} of the references are longer"
    else:
        then = "train it longer, on answers that end; stop_token_id, if set, has to be what ends a turn in its chat template"
    add("stops", eos["high"] < LEAST_EOS, f"{show_interval(eos)} of its answers end within {limit} tokens", then)
    length, reference = found["length"], found["reference_length"]
    shown = f"{length['value']:.1f} [{length['low']:.1f}, {length['high']:.1f}] tokens"
    if reference is None:
        checks.append(check("sft", "length", "skipped", f"{shown}; there are no references to compare with"))
    else:
        outside = length["high"] < LENGTHS[0] * reference or length["low"] > LENGTHS[1] * reference
        says = f"{shown}, the references {reference:.1f}"
        add("length", outside, says, "look at its answers, and train it longer on demonstrations of the form you want")
    empty = found["empty"]
    then = "leave empty answers out of the demonstrations, and look at what the prompts ask"
    add("empty answers", empty["low"] > MOST_EMPTY, f"{show_interval(empty)} of its answers are empty", then)
    repeated, usual = found["repetition"], found["reference_repetition"] or 0.0
    says = f"{show_interval(repeated)} of an answer's 3-grams repeat earlier ones, {usual:.1%} of the references'"
    then = "train it longer or from a larger base model; a lower temperature makes it worse"
    add("repetition", repeated["low"] > usual + REPETITION_RISE, says, then)
    last, differ = found["best_of_n"][-1], found["differ"]
    if last["n"] == 1:
        says = "one answer to a prompt leaves nothing to pick from"
        return [*checks, check("sft", "headroom", "skipped", says, "--num_return_sequences 8")]
    says = (
        f"best of {last['n']} by the judge gains {points(last['rater_gain'])} over {last['random']['value']:.2f} of a random "
        f"answer; answers differ to the judge for {show_interval(differ)} of the prompts"
    )
    none = last["rater_gain"]["low"] <= 0 or differ["high"] < LEAST_DIFFER
    then = (
        "there is nothing to pick from, so no RL can gain: sample at a higher temperature, take prompts that are neither "
        "always nor never answered well, or a judge that tells more apart"
    )
    add("headroom", none, says, then)
    return checks


def check_gate(found: dict) -> list[dict]:
    """Of what `data_prep.gate.gate.check_reward` found."""
    verdict, metrics = found["verdict"], found["metrics"]
    says = verdict["reason"]
    if metrics:
        says = f"right on {show_interval(metrics['accuracy'])} of pairs: {says}"
    chance = metrics.get("baselines", {}).get("chance")
    # No better than a coin on as many prompts as these is a finding, whatever more prompts would show.
    guesses = chance is not None and chance["difference"]["low"] <= 0
    if verdict["word"] == "fit":
        return [check("reward", "gate", "ok", f"fit: {says}")]
    status = "wrong" if verdict["word"] == "not fit" or guesses else "unclear"
    return [check("reward", "gate", status, says, verdict["next"])]


def check_ppo(found: dict, fit: bool) -> list[dict]:
    """Of the figures of a PPO run (see `eval.diagnosis.stages.measure_ppo`), "kl" and "weights_moved" among them.

    Args:
        fit: whether the gate found the reward fit: if it did, a verdict that does not follow is PPO's doing.
    """
    settings, leash, kl = found["settings"], found["leash"], found["kl"]
    train, heldout, judge = found["train"]["reward"], found["heldout"]["reward"], found["heldout"]["judge"]
    raised, tight = train["low"] > 0, is_tight(leash)
    checks = [_check_steps(found, raised, tight), _check_leash(found, tight, fit)]
    gain = f"{points(train)} over the SFT model on {counted(train['n'], 'training prompt')}"
    if raised:
        checks.append(check("ppo", "reward", "ok", gain))
    elif checks[0]["status"] == "wrong" or tight:  # and that is why
        checks.append(check("ppo", "reward", "wrong", gain))
    elif not leash["spread"] or train["high"] >= LEAST_GAIN * leash["spread"]:
        checks.append(check("ppo", "reward", "unclear", gain, "a larger --limit shows it, or more episodes"))
    else:
        says = (
            f"{gain}: it moved {show_nats(kl)} nats for less than {LEAST_GAIN:g} of the reward's spread within a prompt "
            f"({leash['spread']:.3g})"
        )
        then = (
            "lower learning_rate or num_ppo_epochs, take more answers an update (gradient_accumulation_steps), and look at "
            "value/explained_variance: at 0 the value model is no help"
        )
        checks.append(check("ppo", "reward", "wrong", says, then))
    gain = f"{points(heldout)} over the SFT model on {counted(heldout['n'], 'held-out prompt')}"
    if heldout["low"] > 0 or not raised:
        checks.append(check("ppo", "held-out reward", "ok" if heldout["low"] > 0 else "unclear", gain))
    else:
        status = "wrong" if heldout["high"] <= 0 else "unclear"
        then = "give it more prompts, or fewer episodes: it learns its own prompts by heart"
        checks.append(check("ppo", "held-out reward", status, f"{gain}, {points(train)} on its own", then))
    budget, says = settings.get("kl_budget"), f"{show_nats(kl)} nats per answer"
    if budget is not None and kl["low"] > budget:
        then = "raise kl_coef or lower learning_rate, or take an earlier checkpoint"
        says = f"{says}, beyond kl_budget {budget:g}: over-optimised"
        checks.append(check("ppo", "KL", "wrong", says, then))
    else:
        says += f", kl_budget {budget:g}" if budget is not None else "; no kl_budget is set"
        checks.append(check("ppo", "KL", "ok", says))
    checks.append(_check_judge(heldout, judge, fit))
    alarms = found["alarms"]
    if alarms is None:
        checks.append(check("ppo", "alarms", "skipped", "there is no ppo.json to read them from"))
    elif not alarms:
        checks.append(check("ppo", "alarms", "ok", "none"))
    else:
        worst = next((each for each in alarms if each["alarm"] in FATAL), alarms[-1])
        says = f"{counted(len(alarms), 'alarm')}, {worst['alarm']} at update {worst['step']}: {worst['message']}"
        status = "wrong" if worst["alarm"] in FATAL else "unclear"
        checks.append(check("ppo", "alarms", status, says, "see the alarm's own advice"))
    return checks


def is_tight(leash: dict) -> bool:
    """Whether the KL coefficient leaves hardly anything to be gained."""
    return bool(leash["spread"]) and leash["gain"]["high"] < LEAST_GAIN * leash["spread"]


def _check_steps(found: dict, raised: bool, tight: bool) -> dict:
    """Did the policy move at all, and if not, why?"""
    settings, kl, moved, leash = found["settings"], found["kl"], found["weights_moved"], found["leash"]
    updates = found["updates"]
    if moved == 0:
        says = "its weights are those of the SFT model, bit by bit"
        warmup = settings.get("num_value_warmup_updates") or 0
        warmup = math.ceil(warmup * (updates or 0)) if warmup < 1 else warmup  # below 1 it is a share
        if not settings.get("learning_rate") and not settings.get("muon_lr"):
            return check("ppo", "steps", "wrong", f"learning_rate is 0: {says}", "raise learning_rate")
        if updates is not None and warmup >= updates:
            says = f"all of its {counted(updates, 'update')} are the value model's warm-up: {says}"
            return check("ppo", "steps", "wrong", says, "lower num_value_warmup_updates, or raise total_episodes")
        then = "look at the alarms and at policy/skipped_steps"
        return check("ppo", "steps", "wrong", f"no step was taken: {says}", then)
    says = f"weights moved by {moved:.2g} of their norm, the policy by {show_nats(kl)} nats per answer"
    if raised or tight or not leash["spread"] or abs(kl["value"]) >= SET_OUT * leash["kl"]:
        return check("ppo", "steps", "ok", says)
    rate = settings.get("learning_rate")
    says = (
        f"learning_rate {rate if rate is None else format(rate, 'g')} in "
        f"{'an unknown number of updates' if updates is None else counted(updates, 'update')} is too little: {says}, where "
        f"kl_coef {leash['kl_coef']:g} lets it gain {points(leash['gain'])} at {leash['kl']:.2f}"
    )
    return check("ppo", "steps", "wrong", says, "raise learning_rate, or total_episodes")


def _check_leash(found: dict, tight: bool, fit: bool) -> dict:
    """Is there anything to be gained under this KL coefficient?"""
    leash, logged = found["leash"], found["logged_kl"]
    if not leash["spread"]:
        return check(
            "ppo", "kl_coef", "skipped", "the reward has no spread within a prompt: there is nothing to weigh"
        )
    share = leash["gain"]["value"] / leash["spread"]
    lowered = ", as far as target_kl can have lowered it," if found["settings"].get("target_kl") else ""
    says = (
        f"kl_coef {leash['kl_coef']:.3g}{lowered} lets the best policy gain {points(leash['gain'])} of reward, {share:.2f} of "
        f"its spread within a prompt ({leash['spread']:.3g})"
    )
    if not tight:
        return check("ppo", "kl_coef", "ok", says)
    says = f"too high: {says}"
    if logged:
        says += f"; the penalty reached {leash['kl_coef'] * logged:.3g} at {logged:.3g} nats"
    # Beside a reward that tells nothing apart every coefficient is too high.
    status = "wrong" if fit else "unclear"
    return check("ppo", "kl_coef", status, says, f"lower kl_coef to about {leash['spread']:.1g}, that spread")


def _check_judge(reward: dict, judge: dict, fit: bool) -> dict:
    """Does the judge's verdict on held-out prompts follow the reward?"""
    says = f"{points(judge)} by the judge on the same prompts"
    if reward["low"] <= 0:
        status = "ok" if judge["low"] > 0 else "wrong" if judge["high"] < 0 else "unclear"
        return check("ppo", "judge", status, f"{says}; the reward did not rise")
    if judge["low"] > 0:
        return check("ppo", "judge", "ok", says)
    blame = "over-optimised" if fit else "the reward is not fit"
    then = (
        "raise kl_coef, take an earlier checkpoint, and rank answers of this policy for the reward model"
        if fit
        else "see the gate: a better reward first"
    )
    status = "wrong" if judge["high"] <= 0 else "unclear"
    return check("ppo", "judge", status, f"the reward rose by {points(reward)}, but {says}: {blame}", then)


def check_perfect(found: dict, own: dict) -> list[dict]:
    """Of what the same PPO reaches with the judge as its reward, beside the run's `own` gain by the judge."""
    gain = found["judge"]
    says = f"{points(gain)} by the judge, the run's own {points(own)}"
    if gain["low"] > 0:
        says += f" ({own['value'] / gain['value']:.0%} of it)"
        return [check("perfect", "judge", "ok", says)]
    then = "PPO's settings are the weakness, not the reward: learning_rate, total_episodes, kl_coef"
    return [check("perfect", "judge", "wrong", says, then)]


def weakest(checks: list[dict], found: dict) -> dict:
    """{"part": stage or None, "line"}: the last line of the diagnosis."""
    for status in ("wrong", "unclear"):
        for each in checks:
            if each["status"] == status and each["next"]:
                part = {**PARTS, "reward": found.get("reward_in_words") or PARTS["reward"]}[each["stage"]]
                verb = "is" if status == "wrong" else "may be"
                line = f"the weakest part {verb} {part} ({each['name']}): {each['says']}; next: {each['next']}"
                return {"part": each["stage"], "status": status, "check": each["name"], "line": line}
    last = found["sft"]["best_of_n"][-1]
    there = f"best of {last['n']} by the judge would gain {points(last['rater_gain'])}"
    if not found.get("reward"):
        line = f"no part is weak: {there}; next: rank its answers and train a reward model (recipes/reward.py)"
    elif not found.get("ppo"):
        line = f"no part is weak: {there}; next: train by PPO (recipes/ppo.py)"
    else:
        gain = found["ppo"]["heldout"]["judge"]
        line = (
            f"no part is weak: PPO gains {points(gain)} by the judge, where {there}; next: more episodes, and learning_rate "
            "and kl_coef on validation prompts"
        )
    return {"part": None, "status": "ok", "check": None, "line": line}


def table(checks: list[dict]) -> list[str]:
    """A line for each check, under the name of its stage."""
    lines, stage = [], None
    for each in checks:
        if each["stage"] != stage:
            stage = each["stage"]
            lines.append(PARTS[stage])
        then = f"; next: {each['next']}" if each["next"] and each["status"] in ("wrong", "unclear") else ""
        lines.append(f"  {each['name']:<16} {each['status'] + ':':<9} {each['says']}{then}")
    return lines
