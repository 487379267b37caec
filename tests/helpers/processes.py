"""Running a recipe by several processes."""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

from helpers.recipes import (
    ENVIRONMENT,
    ROOT,
    Done,
    processes,
    run_as_script,
    succeeded,
    words,
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def torchrun() -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]


def accelerate_launch() -> list[str]:
    launch = [str(Path(sys.executable).with_name("accelerate")), "launch"]
    return [*launch, "--config_file", "accelerate_configs/multi_cpu.yaml", "--main_process_port", str(free_port())]


def run(launcher: list[str], recipe: str, **settings) -> Done:
    """Start a recipe by a launcher; a failure where that does not exit with 0."""
    line = [*launcher, *words(recipe, settings)]
    done = subprocess.run(line, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=240)
    return succeeded(Done(done.returncode, done.stdout, done.stderr))


def together(recipe: str, seconds: float = 120, **settings) -> Done:
    """Run a recipe in two processes, without the launcher and the imports, for so long at most; what the first left."""
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as folder:
        both = []
        for rank in ("0", "1"):
            environment = {**ENVIRONMENT, **place, "RANK": rank, "LOCAL_RANK": rank}
            arguments = (words(recipe, settings), f"{folder}/{rank}", environment)
            both.append(processes().Process(target=run_as_script, args=arguments))
        for process in both:
            process.start()
        for process in both:
            process.join(seconds)
            if process.is_alive():
                process.kill()
                process.join()
        logs = [[Path(f"{folder}/{rank}.{name}").read_text() for name in ("out", "err")] for rank in (0, 1)]
        done = [Done(process.exitcode, *log) for process, log in zip(both, logs, strict=True)]
        return next((each for each in done if each.code), done[0])


def in_group(function: Callable, arguments: tuple, rank: int, port: int, folder: str) -> None:
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ.update(place)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    assert distributed.get_world_size() == 2
    torch.save(function(*arguments), f"{folder}/{rank}.pt")
    distributed.barrier()
    distributed.destroy_process_group()


def by_two(function: Callable, *arguments) -> list:
    """What `function` of a test module returns in each of two processes, which are one gloo group."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        both = [
            processes().Process(target=in_group, args=(function, arguments, rank, port, folder)) for rank in (0, 1)
        ]
        for process in both:
            process.start()
        for process in both:
            process.join(120)
            if process.is_alive():
                process.kill()
        assert [process.exitcode for process in both] == [0, 0]
        return [torch.load(f"{folder}/{rank}.pt") for rank in (0, 1)]
