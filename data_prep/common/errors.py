"""How every script reports bad input: one clear message on stderr and exit code 1."""

import os
import signal
import sys
from collections.abc import Callable

from data_prep.common.imports import collect_seldom, end_without_collecting
from data_prep.common.text import printable


class InputError(ValueError):
    """The user's input cannot be used; the message names the file, the row, what was found and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` becomes a message on stderr and exit code 1.

    Any other exception is a bug and keeps its traceback. SIGTERM, which schedulers send, exits as `sys.exit` does, so that
    temporary files are removed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if hasattr(os, "register_at_fork"):  # a worker process just ends, whatever it is doing
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    collect_seldom()
    end_without_collecting()
    try:
        main()
    except InputError as error:
        _close_progress_bars()
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        sys.exit(130)


def _close_progress_bars() -> None:
    """Let what is printed next begin a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(sys.modules["tqdm"].tqdm._instances):
            bar.close()
