"""A loss that is not finite ends the run before it reaches the weights; a spike is logged. Both with their rows.

    loss spike at update 412: 9.31, the 411 before it 2.10 ± 0.12; its rows in train_dataset: row 17 'What does str.upper do?'; …

A spike is a loss seven standard deviations above the mean of the thousand updates before it, as in OLMo 2 (Walsh 2025,
arXiv:2501.00656, section 3). PPO, RLOO and GRPO draw their own rows, skip an update whose rewards are not finite, and
have alarms of their own (trainers/alarms.py).
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from data_prep.common.errors import InputError
from data_prep.common.text import printable
from recipes.trainers.checkpoints import last_checkpoint

if TYPE_CHECKING:  # slow to import
    from transformers import Trainer

SPIKE, WINDOW, FEWEST = 7.0, 1000, 20
SHOWN, LISTED = 4, 64  # rows named with their text, and by number


class Drawn:
    """A sampler that remembers which rows it gave in this pass."""

    def __init__(self, sampler) -> None:
        self.sampler, self.order = sampler, array("q")

    def __iter__(self) -> Iterator[int]:
        self.order = array("q")
        for index in self.sampler:
            self.order.append(index)
            yield index

    def __len__(self) -> int:
        return len(self.sampler)

    def __getattr__(self, name: str):  # `set_epoch` and what else accelerate asks for
        if name == "sampler":
            raise AttributeError(name)
        return getattr(self.sampler, name)


class LossWatch(TrainerCallback, ExportableState):
    """Watch the loss and the gradient norm of every update of `trainer`.

    Args:
        rows: what the rows of `trainer.train_dataset` were read from, in its order, if they do not say so themselves: with
            columns `source` (a file) and `row` (its number there).

    Raises InputError for a loss or a gradient that is not finite.
    """

    def __init__(self, trainer: Trainer, rows: Dataset | None = None) -> None:
        self.trainer, self.rows = trainer, rows
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.loss, self.batches, self.first_update, self.drawn = 0.0, 0, 0, None
        step, norm_of = trainer.training_step, trainer._get_grad_norm

        def training_step(*args, **kwargs):
            loss = step(*args, **kwargs)
            value = float(loss)
            self.batches += 1
            if not math.isfinite(value):
                self.stop("loss", value, last=True)
            self.loss += value
            return loss

        def get_grad_norm(*args, **kwargs):
            norm = norm_of(*args, **kwargs)
            scaled = getattr(trainer.accelerator, "scaler", None) is not None  # fp16: the scaler skips such updates
            if norm is not None and not scaled and not math.isfinite(value := float(norm)):
                self.stop("gradient norm", value)
            return norm

        trainer.training_step, trainer._get_grad_norm = training_step, get_grad_norm

    def state(self) -> dict:
        """What `trainer_state.json` keeps."""
        return {"args": {}, "attributes": {"losses": list(self.losses)}}

    def on_train_begin(self, args, state, control, **kwargs):
        name = type(self).__name__
        if state.global_step and name in state.stateful_callbacks:
            self.losses.extend(state.stateful_callbacks[name]["attributes"]["losses"])
        # Resumed from a checkpoint without this callback, the Trainer would fail with a KeyError at its next one.
        state.stateful_callbacks.setdefault(name, self.state())

    def begin_pass(self, dataloader, first_update: int) -> None:
        """Follow the rows that a pass over the data draws; the pass begins with the update `first_update`."""
        self.first_update, self.drawn = first_update, None
        batches = getattr(dataloader, "batch_sampler", None)
        while hasattr(batches, "batch_sampler"):  # accelerate's share of a process
            batches = batches.batch_sampler
        if hasattr(batches, "sampler"):
            if not isinstance(batches.sampler, Drawn):
                batches.sampler = Drawn(batches.sampler)
            self.drawn, self.batch_size = batches.sampler, batches.batch_size

    def on_step_end(self, args, state, control, **kwargs):
        value, self.loss = self.loss, 0.0
        batches, self.batches = self.batches, 0
        if len(self.losses) >= FEWEST:
            mean, spread = float(np.mean(self.losses)), float(np.std(self.losses))
            if value > mean + SPIKE * max(spread, 0.01 * abs(mean)):
                rows = self.rows_of(state.global_step - 1, range(batches))
                state.log_history.append({"step": state.global_step, "loss_spike": value, "rows": rows})
                message = (
                    f"loss spike at update {state.global_step}: {value:.3g}, the {len(self.losses)} before it {mean:.3g} ± "
                    f"{spread:.2g}; its rows in train_dataset: {self.shown(rows)}"
                )
                tqdm.write(message, file=sys.stderr)  # a process beside the first has no stdout
        self.losses.append(value)

    def rows_of(self, updates: int, batches: Sequence[int]) -> list[int]:
        """The rows in some batches of the update after `updates` others, on this process."""
        args = self.trainer.args
        if self.drawn is None:
            return []
        first = (updates - self.first_update) * args.gradient_accumulation_steps
        places = [(first + batch) * args.world_size + args.process_index for batch in batches]
        size = self.batch_size
        return [row for place in places for row in self.drawn.order[place * size : (place + 1) * size]]

    def stop(self, what: str, value: float, last: bool = False) -> None:
        """Raise InputError, with the rows of the update, or of its last batch alone."""
        step, folder = self.trainer.state.global_step, self.trainer.args.output_dir
        rows = self.rows_of(step, range(self.batches)[-1:] if last else range(self.batches))
        kept = last_checkpoint(folder)
        raise InputError(
            f"the {what} of update {step + 1} is {value}: stopped before it changes the weights; "
            f"{f'{kept} is kept' if kept else 'there is no checkpoint yet'}; look at its rows, or set learning_rate lower or "
            f"warmup_steps higher; rows of the {'batch' if last else 'update'} in train_dataset: {self.shown(rows)}"
        )

    def shown(self, rows: list[int]) -> str:
        """Rows by number, counted from 0, the first with the beginning of their text."""
        if not rows:
            return "not known with this sampler"
        texts = [f"{self.name(row)} {self.text(row)!r}" for row in rows[:SHOWN]]
        more = [self.name(row) for row in rows[SHOWN:LISTED]]
        left = [f"and {len(rows) - LISTED} more"] if len(rows) > LISTED else []
        return "; ".join([*texts, *([", ".join(more)] if more else []), *left])

    def name(self, row: int) -> str:
        """Where a row comes from: "row 3 of talk.json (id b7)", or its number in the training set."""
        for rows in (self.rows, self.trainer.train_dataset):
            same = rows is not None and len(rows) == len(self.trainer.train_dataset)  # none left out
            same &= not getattr(self.trainer.args, "packing", False)  # which changes their order
            if same and {"source", "row"} <= set(getattr(rows, "column_names", ())):
                found = rows[row]
                own = found.get("id")
                told = own not in (None, f"{Path(found['source']).name}:{found['row']}")  # a row without one gets that
                return f"row {found['row']} of {found['source']}" + (f" (id {printable(str(own))})" if told else "")
        return f"row {row}"

    def text(self, row: int) -> str:
        """The beginning of a row of the training set."""
        found = self.trainer.train_dataset[row]
        prompt = found.get("prompt") or found.get("messages")
        if isinstance(prompt, list) and prompt and isinstance(prompt[-1], dict):
            prompt = next(
                (each["content"] for each in reversed(prompt) if each["role"] == "user"), prompt[0]["content"]
            )
        if not isinstance(prompt, str):
            ids = next((found[key] for key in ("input_ids", "prompt_ids") if key in found), [])
            prompt = self.trainer.processing_class.decode(ids[:48])
        return printable(" ".join(prompt.split()))[:60]
