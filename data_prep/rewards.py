"""Functions that score answers: as a reward in PPO, RLOO and GRPO, a metric in an evaluation, or a ranking.

    --eval_funcs data_prep.rewards.exact_match
    --reward_funcs data_prep.rewards.exact_match
    python -m data_prep.rank_completions --by function --function data_prep.rewards.exact_match …

Each takes TRL's arguments, `prompts`, `completions` (texts, or lists of one assistant message) and the columns of the
dataset by name, and returns one number per answer. `reference` is the conversation's own last answer: agreement with it
is a proxy for a human rater, not a human. Copy one to reward something else: a length, a format, a test that passes.
"""

from data_prep.common import agreement


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 if the answer has the reference's words in their order, whitespace aside; otherwise 0."""
    return [
        float(agreement.exact_match(text_of(completion), answer))
        for completion, answer in zip(completions, reference, strict=True)
    ]


def chrf(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """Character F-score with the reference (Popović 2015, as sacrebleu computes it), 0 to 1."""
    return [
        agreement.sentence_chrf(text_of(completion), answer) / 100
        for completion, answer in zip(completions, reference, strict=True)
    ]
