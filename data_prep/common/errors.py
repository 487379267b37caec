"""The one way a script reports bad input: a clear line on stderr and exit code 1."""

import os
import signal
import sys
from collections.abc import Callable


class InputError(ValueError):
    """The user's input cannot be used; the message names the file, the row, what was found and what to do."""


def run_main(main: Callable[[], None]) -> None:
    """Run a script's `main`; input errors and bad configuration become one line on stderr and exit code 1.

    Only errors the user can act on are shortened: anything else keeps its traceback, because it is a bug. A SIGTERM, as
    schedulers send it, is an exit like any other: temporary files are removed.
    """
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    if hasattr(os, "register_at_fork"):  # a worker that is told to end just ends, whatever it is at
        os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted: run the same command again to go on", file=sys.stderr)
        sys.exit(130)
