"""Work on batches by several processes, its results in the order of the batches: they do not depend on the number."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from data_prep.common.errors import InputError

AHEAD = 2  # batches a worker that are under way or waiting: no more lie in memory


class WorkerLost(InputError):
    """Not the input's fault: a worker was ended by the system."""


def cores() -> int:
    """The processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_order(function: Callable, batches: Iterable, num_workers: int) -> Iterator[tuple]:
    """(batch, function(batch)) of each batch, in order.

    With one worker all is done in this process. To several go the batches and the function, which pickle has to know;
    what a worker needs besides it makes for itself. Raises WorkerLost where the system ends a worker.
    """
    if num_workers == 1:
        yield from ((batch, function(batch)) for batch in batches)
        return
    pending: deque = deque()
    with ProcessPoolExecutor(num_workers, initializer=_end_with_parent) as pool:
        try:
            for batch in batches:
                pending.append((batch, pool.submit(function, batch)))
                if len(pending) > AHEAD * num_workers:
                    done, future = pending.popleft()
                    yield done, future.result()
            for done, future in pending:
                yield done, future.result()
        except BrokenProcessPool:
            raise WorkerLost("a worker process was ended from outside, for want of memory perhaps: the same command with "
                             "a smaller --num_workers goes on from here") from None  # fmt: skip
        finally:
            pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """In a worker: it ends when its parent is gone, killed or not; Ctrl-C is the parent's to answer."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
