"""What PPOTrainer checks and sets before it trains: rewards, stop token, batch sizes, prompts."""

import math
from collections.abc import Callable

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from data_prep.common.errors import InputError
from data_prep.models.generation import stop_token_ids
from data_prep.models.loading import context_of
from data_prep.tokens.chat_encoder import encode_prompts, encode_text
from recipes.trainers.padding import check_pad_token
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.ppo.rollout import METRICS
from recipes.trainers.schedule import check_schedule


def check_names(argument: str, functions: list[Callable]) -> None:
    """Raise InputError for a function whose name another metric has: metrics are logged by name."""
    names = [function.__name__ for function in functions]
    if taken := {name for name in names if names.count(name) > 1 or name in (*METRICS, "reward_model")}:
        raise InputError(f"{argument}: {', '.join(sorted(taken))} is taken: metrics are logged by name; rename one")


def reward_weights(args: PPOConfig, rewards: int) -> list[float]:
    """A weight for each of the rewards; raises InputError if there is none or their numbers differ."""
    if not rewards:
        raise InputError("nothing to reward answers by: give a reward model, reward_funcs or both")
    weights = args.reward_weights or [1.0] * rewards
    if len(weights) != rewards:
        raise InputError(f"reward_weights: {rewards} rewards, found {len(weights)} weights")
    return weights


def stop_tokens_of(args: PPOConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens that end an answer; raises InputError if the first is the pad token."""
    eos = args.stop_token == "eos" or args.stop_token_id is None
    stops = stop_token_ids(model.generation_config, tokenizer) if eos else [args.stop_token_id]
    check_pad_token(tokenizer, stops, "the tokenizer")
    return stops


def set_rollouts_as_batches(args: PPOConfig, prompts: int) -> int:
    """Set `args` so that the Trainer takes a rollout for a batch and an update for a step; returns a rollout's size.

    Raises InputError if a rollout does not divide into mini-batches or the prompts do not fill one.
    """
    args.world_size = PartialState().num_processes  # PPOConfig declares a field over the property of that name
    size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    if size % args.num_mini_batches:
        raise InputError(f"a rollout of {size} does not divide into {args.num_mini_batches} mini-batches")
    if prompts < size * args.world_size:
        raise InputError(f"{prompts} prompts do not fill one rollout of {size * args.world_size}")
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, 1
    args.dataloader_drop_last = True  # a ragged last rollout would weigh its answers more
    args.remove_unused_columns = False
    if args.total_episodes is not None:
        args.max_steps = math.ceil(args.total_episodes / (size * args.world_size))
    return size


def value_warmup_updates(args: PPOConfig, prompts: int, size: int) -> int:
    """The number of updates in which the value model alone is trained.

    Args:
        prompts: number of training prompts.
        size: of a rollout on one process.

    Raises InputError where `args` ask for more updates of a kind than the run has.
    """
    per_epoch = prompts // (size * args.world_size)
    updates = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    asked = args.num_value_warmup_updates
    if asked >= 1 and asked != int(asked):
        raise InputError(
            f"num_value_warmup_updates: found {asked}, expected a whole number of updates, or a share below 1"
        )
    warmup = math.ceil(asked * updates) if asked < 1 else int(asked)  # as transformers counts warmup_steps
    if warmup >= updates:
        raise InputError(
            f"num_value_warmup_updates: {warmup} warm-up updates of {updates}: the policy would never "
            f"be trained; set it below {updates}, or raise total_episodes ({size * args.world_size} an update)"
        )
    check_schedule(args, updates)
    return warmup


def shortest_context(models: list[PreTrainedModel]) -> float:
    """Tokens of the longest conversation that all of `models` can read; infinite if none has a limit."""
    return min(context_of(model.config) or math.inf for model in models)


def with_prompt_ids(
    dataset: Dataset, tokenizer: PreTrainedTokenizerBase, max_length: float, num_proc: int | None = None
) -> Dataset:
    """`dataset` with `prompt_ids`: a text prompt as it stands, messages up to where the assistant's turn begins.

    Control tokens that a prompt spells out are encoded as characters.

    Raises InputError for prompts without tokens or with more than `max_length`.
    """

    def encode(rows: dict[str, list]) -> dict[str, list[list[int]]]:
        prompts = rows["prompt"]
        if isinstance(prompts[0], str):  # a column is of one type
            return {"prompt_ids": [encode_text(tokenizer, prompt) for prompt in prompts]}
        return {"prompt_ids": encode_prompts(tokenizer, prompts)}

    encoded = dataset.map(encode, batched=True, num_proc=num_proc, desc="Tokenizing")
    lengths = list(enumerate(map(len, encoded["prompt_ids"]), start=1))
    if bad := [f"prompt {number} has {length:,}" for number, length in lengths if not 0 < length <= max_length]:
        listed = ", ".join(bad[:5]) + (" …" if len(bad) > 5 else "")
        raise InputError(
            f"{len(bad):,} of {len(lengths):,} prompts do not have 1 to {max_length:,} tokens (the context less "
            f"response_length): {listed}; leave them out, or lower response_length"
        )
    return encoded


def same_rows(rows: list[dict]) -> dict[str, list[dict]]:
    """The collator: prompts are padded when answers are sampled."""
    return {"rows": rows}
