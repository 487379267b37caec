"""How far a model's answers are from another model, in nats."""

import math

from data_prep.common.intervals import bootstrap_interval
from data_prep.models.loading import context_of
from data_prep.models.scoring import sequence_logprobs
from data_prep.tokens.chat_encoder import encode_prompts


def same_ids(tokenizer, other) -> bool:
    """Whether both tokenizers give a conversation the same ids, so that token probabilities can be compared."""
    return tokenizer.get_vocab() == other.get_vocab() and tokenizer.chat_template == other.chat_template


def kl_divergence(
    model,
    opponent,
    tokenizer,
    prompts: list[list[dict]],
    answers: list[list[dict]],
    max_new_tokens: int,
    temperature: float,
    batch_size: int,
) -> dict | None:
    """The KL divergence of `model` from `opponent` in nats per answer, with its interval over prompts.

    Estimated on answers sampled from `model`: the mean of log p_model - log p_opponent, summed over an answer's
    tokens, the end of turn included (k1 of http://joschu.net/blog/kl-approx.html: unbiased, and so
    sometimes below 0 if the two are close). `answers` are those of `generate_answers` to each prompt, sampled with
    `max_new_tokens` and at `temperature`. Prompts too long for one of the models were truncated: they are left out, and
    their number is printed. None if no prompt is left.
    """
    longest = min(context_of(player.config) or math.inf for player in (model, opponent)) - max_new_tokens
    whole = [index for index, ids in enumerate(encode_prompts(tokenizer, prompts)) if len(ids) <= longest]
    if len(whole) < len(prompts):
        left_out = len(prompts) - len(whole)
        print(f"KL: {left_out:,} of {len(prompts):,} prompts are longer than {longest} tokens and are left out")
    if not whole:
        return None
    asked = [prompts[index] for index in whole for _ in answers[index]]
    sampled = [answer["ids"] for index in whole for answer in answers[index]]
    own, other = (
        sequence_logprobs(player, tokenizer, asked, sampled, temperature, batch_size) for player in (model, opponent)
    )
    differences = iter([mine - its for mine, its in zip(own, other, strict=True)])
    return bootstrap_interval(
        [sum(next(differences) for _ in answers[index]) / len(answers[index]) for index in whole]
    )
