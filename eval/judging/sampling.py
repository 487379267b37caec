"""The answers of the two models that are compared, and the best of n by a reward model."""

import math

from data_prep.common.errors import InputError
from data_prep.models.generation import generate_answers
from data_prep.models.loading import context_of
from data_prep.models.scoring import score_answers
from data_prep.tokens.chat_encoder import encode_prompts

Answers = list[list[dict]]  # of `generate_answers`: one list per prompt


def check_room(name: str, model, tokenizer, prompts: list[list[dict]], max_new_tokens: int) -> None:
    """`InputError` where a prompt leaves no room for an answer in the reward model `name`: before any is generated."""
    room = (context_of(model.config) or math.inf) - max_new_tokens
    if long := sum(len(ids) > room for ids in encode_prompts(tokenizer, prompts)):
        raise InputError(
            f"--reward_model {name}: {long:,} of {len(prompts):,} prompts have more than {room} tokens, its context minus "
            "max_new_tokens; use one with a longer context, or shorter prompts and answers"
        )


def sample_both(
    players: list[tuple], prompts: list[list[dict]], sampling: dict, seed: int, reward: tuple | None, best_of: int
) -> list[Answers]:
    """The answers of the model and those of its opponent, by different random numbers.

    Args:
        players: (name, model, tokenizer) of either.
        sampling: max_new_tokens, temperature, num_return_sequences and batch_size of `generate_answers`.
        seed: of the model; the opponent's is the next. With one seed both would use the same random numbers, and the
            answers would not be independent.
        reward: (reward model, its tokenizer), by which the model's answers are the best of `best_of` samples each; None
            where they are samples.
    """
    (name, model, tokenizer), (other_name, opponent, other_tokenizer) = players
    sampling = {**sampling, "exact": True}
    several = {**sampling, "num_return_sequences": sampling["num_return_sequences"] * best_of}
    own = generate_answers(model, tokenizer, prompts, **several, seed=seed, desc=name)
    if reward:
        own = pick_best(own, prompts, best_of, *reward, sampling["batch_size"])
    return [own, generate_answers(opponent, other_tokenizer, prompts, **sampling, seed=seed + 1, desc=other_name)]


def pick_best(answers: Answers, prompts: list[list[dict]], n: int, model, tokenizer, batch_size: int) -> Answers:
    """Of every `n` answers in a row to a prompt the one with the highest reward, the first of equals.

    The reward is read as in PPO and the gate: at the end of turn, or at the last token of an answer that did not stop.
    Raises `InputError` for a reward that is not finite.
    """
    flat = [(prompt, answer) for prompt, group in zip(prompts, answers, strict=True) for answer in group]
    asked, texts = [prompt for prompt, _ in flat], [answer["text"] for _, answer in flat]
    stopped = [answer["stopped"] for _, answer in flat]
    scores = score_answers(model, tokenizer, asked, texts, batch_size, stopped)
    if bad := [score for score in scores if not math.isfinite(score)]:
        raise InputError(f"the reward model: found {bad[0]} for an answer; expected finite numbers")
    rewards = iter(scores)
    best = []
    for group in answers:
        scored = [(answer, next(rewards)) for answer in group]
        blocks = (scored[start : start + n] for start in range(0, len(scored), n))
        best.append([max(block, key=lambda pair: pair[1])[0] for block in blocks])
    return best
