"""Parallel work on batches with results in their order, so that they do not depend on the number of workers."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial

from data_prep.common.errors import InputError

AHEAD = 2  # batches per worker in work or waiting: no more are in memory


class WorkerLost(InputError):
    """The system killed a worker: not the fault of the input."""


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def submit_ahead(submit: Callable, items: Iterable, ahead: int) -> Iterator[tuple]:
    """(item, result) of every item, in order. Up to `ahead` items are submitted before the result of one is waited for.

    Args:
        submit: item → `concurrent.futures.Future`.
    """
    pending: deque = deque()
    for item in items:
        pending.append((item, submit(item)))
        if len(pending) > ahead:
            done, future = pending.popleft()
            yield done, future.result()
    while pending:
        done, future = pending.popleft()
        yield done, future.result()


def in_order(function: Callable, batches: Iterable, num_workers: int) -> Iterator[tuple]:
    """(batch, function(batch)) of every batch, in order, computed by `num_workers` processes; 1: by this process.

    The function and the batches must be picklable. Raises WorkerLost if the system kills a worker.
    """
    if num_workers == 1:
        yield from ((batch, function(batch)) for batch in batches)
        return
    with ProcessPoolExecutor(num_workers, initializer=end_with_parent) as pool:
        try:
            yield from submit_ahead(partial(pool.submit, function), batches, AHEAD * num_workers)
        except BrokenProcessPool:
            raise WorkerLost(
                "a worker process was killed, perhaps out of memory: the same command with a smaller --num_workers resumes "
                "from here"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Run in a child process: exit when the parent is gone, killed or not, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
