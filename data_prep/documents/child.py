"""A child process in which files are read: it may take only so long and so much memory, and can neither call out nor start
a program."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Callable

from data_prep.common.parallel import end_with_parent
from data_prep.documents.sections import NotRead

# What Python reports before it happens (the audit events of the standard library), and no document needs.
FORBIDDEN = (
    "socket.connect",
    "socket.getaddrinfo",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
)


class Child:
    """Calls a function in a child process; after a call that went wrong in another one.

    Args:
        function: picklable, as is what it takes and returns. It may raise NotRead.
        seconds, megabytes: for each call, the memory in addition to what the process takes before it.
    """

    def __init__(self, function: Callable, seconds: float, megabytes: int) -> None:
        self.function, self.seconds, self.megabytes = function, seconds, megabytes
        self.process = None

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_) -> None:
        self._end()

    def __call__(self, *arguments):
        """The function's result. Raises NotRead: its own, or for a call that took too long or too much, or crashed."""
        if self.process is None:
            self._start()
        try:
            self.connection.send(arguments)
            if not self.connection.poll(self.seconds):
                self._end()
                raise NotRead("refused", f"not read within {self.seconds:g} seconds (--time_limit)")
            result = self.connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            code = self.process.exitcode
            self._end()
            raise NotRead("unreadable", f"the library that reads it crashed (exit code {code})") from None
        if isinstance(result, NotRead):
            raise result
        return result

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would share the locks of this process's threads
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, self.function, self.megabytes), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()  # started: the time of a call begins now

    def _end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
            self.process = None


def _serve(connection, function: Callable, megabytes: int) -> None:
    end_with_parent()
    with open(os.devnull, "w") as nowhere:  # what libraries say of a file holds what is in the file
        for descriptor in (1, 2):
            os.dup2(nowhere.fileno(), descriptor)
    calling = False

    def forbid(event: str, _) -> None:
        if calling and event in FORBIDDEN:
            raise PermissionError(f"a document asked for {event}")

    sys.addaudithook(forbid)
    connection.send("ready")
    while True:
        try:
            arguments = connection.recv()
        except EOFError:  # the parent is gone
            return
        _limit_memory(megabytes)
        calling = True
        try:
            result = function(*arguments)
        except NotRead as error:
            result = error
        except MemoryError:
            result = NotRead("refused", f"needs more than {megabytes:,} MiB of memory (--memory_limit)")
        except RecursionError:
            result = NotRead("refused", "nested too deeply")
        except Exception as error:
            result = NotRead("unreadable", f"{type(error).__name__}: {error}"[:200])
        calling = False
        connection.send(result)


def _limit_memory(megabytes: int) -> None:
    """Let this process take so much more address space than it has; systems that cannot do that are left alone."""
    with contextlib.suppress(ImportError, ValueError, OSError, AttributeError):
        import resource

        import psutil

        most = psutil.Process().memory_info().vms + (megabytes << 20)
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
