"""Running a recipe by several processes."""

import socket
import subprocess
import sys
from pathlib import Path

from helpers.recipes import (
    ENVIRONMENT,
    ROOT,
    Done,
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
