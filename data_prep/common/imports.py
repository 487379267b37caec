"""Large libraries at less cost: Python's collector of reference cycles does not look through them."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """Pause the collector while libraries are imported, and leave what is there afterwards out of its later rounds.

    torch and transformers make half a million objects that stay until the end. The collector looks through all of them
    again whenever there are a quarter more: a fifth of the time of importing them.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def collect_seldom() -> None:
    """Leave what is imported by now out of the collector's rounds, and begin one after 10,000 new objects, not some hundred.

    Most objects are freed without it. recipes/sft.py came to its first step in 10.2 s, and in 10.9 before (medians of eight
    pairs, f1e1a85 and 67b0c55).
    """
    if not gc.get_freeze_count():  # once: what is garbage by then stays
        gc.freeze()
    gc.set_threshold(10_000, *gc.get_threshold()[1:])


def end_without_collecting() -> None:
    """Let the process end without a last search for reference cycles, which takes a second and a half after torch.

    The system takes the memory back anyway. What must happen at the end stands in `finally` or `atexit`, and still does.
    """
    atexit.register(gc.freeze)
