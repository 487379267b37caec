"""The stages of the chain and the methods that improve the assistant: titles, commands, and one sentence for each."""

import re

# In the order of the chain: {stage: (title, command, what it did, its main metric)}.
STAGES = {
    "pretrain": (
        "Pretraining",
        "accelerate launch recipes/pretrain.py",
        "{parameters} parameters from random weights on {tokens} tokens",
        "{bits_per_byte} bits per byte on held-out text (before: {bits_per_byte_first})",
    ),
    "sft": (
        "Supervised fine-tuning",
        "accelerate launch recipes/sft.py",
        "fine-tuned on {conversations} conversations",
        "EOS rate {eos_rate}; loss {loss_first} → {loss_last}",
    ),
    "reward": (
        "Reward model",
        "accelerate launch recipes/reward.py",
        "learned from {rankings} rankings",
        "prefers the better answer in {accuracy} of pairs",
    ),
    "ppo": (
        "PPO",
        "accelerate launch recipes/ppo.py",
        "{episodes} answers to {prompts} prompts sampled and scored",
        "score {eval_score_first} → {eval_score_last} on held-out prompts, KL {eval_kl_last}",
    ),
}
# PPO in other ways, each with the name that recipes/compare.sh gives it: no other methods.
VARIANTS = {
    "ppo_rater": "PPO, the rater itself as reward",
    "ppo_right_or_wrong": "PPO on right or wrong only",  # its reward model learned from rankings by that alone
    "ppo_over_budget": "PPO beyond its KL budget",  # driven there on purpose
}
# The methods that improve the assistant, in the same form.
METHODS = {
    "ppo": STAGES["ppo"],
    **{name: (title, *STAGES["ppo"][1:]) for name, title in VARIANTS.items()},
    "dpo": (
        "DPO",
        "accelerate launch recipes/dpo.py",
        "{steps} steps on {pairs} pairs of answers",
        "prefers the better answer in {eval_accuracy} of held-out pairs",
    ),
    "kto": (
        "KTO",
        "accelerate launch recipes/kto.py",
        "{steps} steps on {answers} labelled answers",
        "rewards held-out answers labelled good with {eval_chosen}, those labelled bad with {eval_rejected}",
    ),
    "rloo": (
        "RLOO",
        "accelerate launch recipes/rloo.py",
        "{episodes} answers to {prompts} prompts sampled and scored",
        "score {score_last}, KL {kl_last} at the end of training",
    ),
    "grpo": (
        "GRPO",
        "accelerate launch recipes/grpo.py",
        "{episodes} answers to {prompts} prompts sampled and scored",
        "score {score_last}, KL {kl_last} at the end of training",
    ),
}

BEST_OF = "best_of_8"  # samples of the SFT model itself: nothing is trained, all there is of it is a win rate
BEST_OF_TITLE = "Best of 8 by the reward model"


def trainings(results: dict) -> dict[str, str]:
    """{name of the results: title} of every method that was trained, each followed by its further seeds."""
    found = {}
    for method, (title, *_) in METHODS.items():
        seeds = [match[1] for name in results if (match := re.fullmatch(rf"{method}_seed(\d+)", name))]
        found |= {method: title} if method in results else {}
        found |= {f"{method}_seed{seed}": f"{title}, seed {seed}" for seed in sorted(seeds, key=int)}
    return found


def method_of(name: str) -> str:
    return name.split("_seed")[0]
