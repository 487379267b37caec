"""Functions that say how good answers are: measures in an evaluation, rewards in PPO, RLOO and GRPO, or a rater.

    --eval_funcs data_prep.rewards.exact_match
    --reward_funcs data_prep.rewards.exact_match
    python -m data_prep.rank_completions --by function --function data_prep.rewards.exact_match …

Each takes TRL's arguments, `prompts`, `completions` (texts, or lists of one assistant message) and the columns of the
dataset by name, and returns one number per answer. `reference` is the conversation's own last answer: agreement with it
is a stand-in for a human rater. Copy one to reward something else: a length, a format, a test that passes.
"""


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 where the answer is the reference word for word, blanks aside, else 0."""
    return [
        float(text_of(completion).split() == answer.split())
        for completion, answer in zip(completions, reference, strict=True)
    ]


def chrf(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """Character F-score with the reference (Popović 2015, as sacrebleu computes it), 0 to 1."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return [
        metric.sentence_score(text_of(completion), [answer]).score / 100
        for completion, answer in zip(completions, reference, strict=True)
    ]
