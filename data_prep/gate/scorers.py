"""What a reward model, a reward function and the policy say about ranked answers: one list per row, a number per answer."""

from collections.abc import Callable

from data_prep.models.reward_functions import call_reward_function
from data_prep.models.scoring import encode_answers, score_answers, sequence_logprobs
from data_prep.tokens.chat_encoder import encode_prompts

Rows = list[dict]


def _in_rows(rows: Rows, flat: list) -> list[list]:
    left = iter(flat)
    return [[next(left) for _ in row["completions"]] for row in rows]


def _prompts_and_texts(rows: Rows) -> tuple[list, list[str]]:
    return [row["prompt"] for row in rows for _ in row["completions"]], [
        text for row in rows for text in row["completions"]
    ]


def by_reward_model(model, tokenizer, batch_size: int = 128) -> Callable[[Rows], list[list[float]]]:
    """The reward read at the end of turn, or at the last token of an answer that is not "stopped"; see `score_answers`."""

    def score(rows: Rows) -> list[list[float]]:
        prompts, texts = _prompts_and_texts(rows)
        stopped = [ended for row in rows for ended in row.get("stopped") or [True] * len(row["completions"])]
        return _in_rows(rows, score_answers(model, tokenizer, prompts, texts, batch_size, stopped))

    return score


def by_reward_function(function: Callable) -> Callable[[Rows], list[list[float]]]:
    """A function of TRL's form (see data_prep/rewards.py); its columns are the fields that all rows have."""

    def score(rows: Rows) -> list[list[float]]:
        prompts, texts = _prompts_and_texts(rows)
        names = set.intersection(*(set(row.get("columns", {})) for row in rows))
        columns = {name: [row["columns"][name] for row in rows for _ in row["completions"]] for name in sorted(names)}
        return _in_rows(rows, call_reward_function(function, prompts, texts, columns))

    return score


def lengths_in_tokens(tokenizer, rows: Rows) -> tuple[list[int], list[list[int]]]:
    """(tokens of each row's prompt, of each of its answers with that prompt)."""
    prompts = [row["prompt"] for row in rows]
    encoded = encode_answers(tokenizer, prompts, [row["completions"] for row in rows])
    return [len(ids) for ids in encode_prompts(tokenizer, prompts)], [[len(ids) for ids in own] for own in encoded]


def policy_logprobs(
    model, tokenizer, rows: Rows, temperature: float = 1.0, batch_size: int = 128
) -> list[list[float]]:
    """The policy's log-probability of each answer, summed over its tokens, the end of turn included, in nats.

    Of the sampled ids where a row has them ("ids"); otherwise the text is encoded again, and taken to have ended.
    """
    prompts, _ = _prompts_and_texts(rows)
    starts = encode_prompts(tokenizer, [row["prompt"] for row in rows])
    encoded = encode_answers(tokenizer, [row["prompt"] for row in rows], [row["completions"] for row in rows])
    ids = [
        own["ids"][index] if own.get("ids") else answer[len(start) :]
        for own, start, answers in zip(rows, starts, encoded, strict=True)
        for index, answer in enumerate(answers)
    ]
    return _in_rows(rows, sequence_logprobs(model, tokenizer, prompts, ids, temperature, batch_size))
