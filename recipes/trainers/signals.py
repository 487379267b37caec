"""A run that is told to stop saves a checkpoint first: preemption, the end of its time, `kill`.

    SIGTERM: runs/sft/checkpoint-57 is saved; run the same command again to resume

The signals are SIGTERM and SIGUSR1 (Slurm: `#SBATCH --signal=USR1@120`), the exit code is 128 + the signal: 143 or 138.
"""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

import torch
from transformers import TrainerCallback

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopOnSignal(TrainerCallback):
    """Save after the step in which a signal arrives, and after its evaluation if one is due; then exit.

    The evaluation belongs to the checkpoint: without it the run that goes on would be another. Of several processes it is
    enough that one is told.
    """

    def __init__(self) -> None:
        self.received = self.leaving = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note a signal instead of ending at once; a second one changes nothing."""

        def note(number: int, frame) -> None:
            self.received = number

        follow_launcher()
        before = {each: signal.signal(each, note) for each in SIGNALS}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def on_step_end(self, args, state, control, **kwargs):
        self.leaving = self.received
        if args.world_size > 1:
            told = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
            self.leaving = int(told.item())
        if self.leaving:
            control.should_save = control.should_log = True  # logged: a resumed run has no losses of before
            args.save_only_model = False  # else nothing could go on from it

    def on_save(self, args, state, control, **kwargs):
        if self.leaving:
            name, folder = signal.Signals(self.leaving).name, f"{args.output_dir}/checkpoint-{state.global_step}"
            print(f"\n{name}: {folder} is saved; run the same command again to resume", flush=True)
            sys.exit(128 + self.leaving)


def follow_launcher() -> None:
    """On Linux, be told by SIGTERM if `accelerate launch` ends: it does so at once and tells nobody."""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ:
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)
