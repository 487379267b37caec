"""Which rows an update is made of: as many as the YAML says, the same ones for any number of processes."""

import math
import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch.utils.data import Sampler

from data_prep.common.errors import InputError

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer, TrainingArguments


def keep_global_batch(values: dict, given: set[str], processes: int | None = None) -> str | None:
    """Set `gradient_accumulation_steps` in `values` so that an update has `global_batch_size` rows over all processes.

    Args:
        processes: those of this run where none are given.

    Returns what is to be said about the rows of an update, None if one process trains by the options as they stand.
    Raises InputError if they do not divide.
    """
    processes = processes or int(os.environ.get("WORLD_SIZE", 1))
    rows = values.get("global_batch_size")
    each = values["per_device_train_batch_size"]
    if rows is not None:
        if "gradient_accumulation_steps" in given:
            raise InputError(
                "gradient_accumulation_steps: it follows from global_batch_size, per_device_train_batch_size and the number "
                "of processes; leave one of them out"
            )
        if rows % (each * processes):
            raise InputError(
                f"global_batch_size: {rows:,} rows do not divide into {processes} × {each} "
                f"(processes × per_device_train_batch_size) = {each * processes:,}: "
                + (
                    f"set per_device_train_batch_size to a divisor of {rows // processes:,}"
                    if rows % processes == 0
                    else f"take a number of processes that divides {rows:,}"
                )
            )
        values["gradient_accumulation_steps"] = rows // (each * processes)
    elif processes == 1:
        return None
    steps, length = values["gradient_accumulation_steps"], values.get("n_positions")
    total = processes * each * steps
    tokens = f" of {length:,} tokens = {total * length:,} tokens" if length else ""
    told = f"an update: {processes} processes × {each} × {steps} accumulated = {total:,} rows{tokens}"
    if rows is None:
        told += (
            f"; one process would take {each * steps:,}: global_batch_size keeps a number for any number of processes"
        )
    return told


def tokens_after(args: "TrainingArguments", rows: int, length: int) -> Callable[[int], int]:
    """The function that gives the tokens trained on after a number of updates, from `rows` rows of `length` tokens.

    The last update of each pass has what is left of the rows.
    """
    at_once = args.train_batch_size * args.world_size
    an_update = at_once * args.gradient_accumulation_steps
    if args.dataloader_drop_last:
        rows -= rows % at_once

    def tokens(updates: int) -> int:
        passes, others = divmod(updates, max(1, math.ceil(rows / an_update)))
        return (passes * rows + min(others * an_update, rows)) * length

    return tokens


class GroupedByLength(Sampler):
    """Rows of about the same length together, as `train_sampling_strategy: group_by_length` asks.

    transformers' own sampler draws from the random numbers of its process at the time, which differ after a resume, and
    takes the batch of one process for the whole batch: a resumed run, or one of two processes, would see other batches.

    Args:
        lengths: of the rows.
        batch_size: rows of an update, over all processes.
        seed: with the epoch it gives the order.
    """

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        from transformers.trainer_pt_utils import get_length_grouped_indices  # slow to import

        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=generator))


class PromptsByEpoch(Sampler):
    """The order that TRL's RepeatSampler has in each pass, whichever pass comes first.

    TRL draws the order of each pass from one generator, which no checkpoint keeps: a run resumed in its second pass would
    see the prompts in the order of the first again.

    Args:
        sampler: a RepeatSampler; its order of the first pass follows from its seed.
    """

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.epoch = sampler, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            generator = self.sampler.generator.manual_seed(self.sampler.seed)
            for _ in range(self.epoch):
                torch.randperm(self.sampler.num_samples, generator=generator)
        return iter(self.sampler)


def order_by_seed_and_step(trainer: "Trainer") -> None:
    """Make the order of the rows depend on seed and step alone."""
    from transformers.trainer_pt_utils import LengthGroupedSampler  # slow to import

    args, sampler_of, run_epoch = trainer.args, trainer._get_train_sampler, trainer._run_epoch

    def sampler(*given):
        found = sampler_of(*given)
        if hasattr(found, "mini_repeat_count"):
            return PromptsByEpoch(found)
        if not isinstance(found, LengthGroupedSampler):
            return found
        seed = args.seed if args.data_seed is None else args.data_seed
        return GroupedByLength(found.lengths, found.batch_size * args.world_size, seed)

    def run_epoch_in_order(**kwargs) -> None:
        # Resumed in a later epoch, a sampler below those of several processes and of the skipped batches would not be told.
        inner = getattr(kwargs["train_dataloader"], "batch_sampler", None)
        while hasattr(inner, "batch_sampler"):
            inner = inner.batch_sampler
        if hasattr(getattr(inner, "sampler", None), "set_epoch"):
            inner.sampler.set_epoch(kwargs["epoch"])
        run_epoch(**kwargs)

    trainer._get_train_sampler, trainer._run_epoch = sampler, run_epoch_in_order
