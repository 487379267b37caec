"""A root to run commands in as a user does, its code a link to this one's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from helpers.data import fetched

ROOT = Path(__file__).parents[2]


def head_commands(config: str) -> tuple[str, str]:
    """(the command in line one of a YAML, the commands in its head comment that come before it)."""
    lines = (ROOT / "recipes" / "configs" / config).read_text(encoding="utf-8").splitlines()
    before = [line.removeprefix("#     ") for line in lines if line.startswith("#     ")]
    return lines[0].removeprefix("# "), "\n".join(before)


class Checkout:
    """A root to run the commands in, without leaving anything in the real one: its code is a link."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.root, self.environment = root, environment
        for name in ("recipes", "data_prep", "eval"):
            (root / name).symlink_to(ROOT / name)

    def run(self, command: str) -> str:
        """What `command` prints; a test failure where it exits with another code than 0."""
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            **self.environment,
        }
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=self.root, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout

    def fetch(self, curl: re.Match) -> str:
        """Put a file where a curl command would put it; what is left of the command is nothing."""
        path = self.root / curl[1]
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(fetched(curl[1]))
        return ""

    def prepare(self, config: str) -> str:
        """Run the commands that a YAML says come before it."""
        commands, files = re.subn(
            r"curl .* --create-dirs -o (\S+) \\\n +https://.*\n", self.fetch, head_commands(config)[1]
        )
        assert files and "curl" not in commands
        return self.run(commands)

    def stage(self, config: str, options: str = "") -> str:
        """Run the command in line one of a YAML, with options; one process, without the launcher."""
        command = head_commands(config)[0].replace(
            "accelerate launch --quiet --config_file accelerate_configs/single_process.yaml ", "python "
        )
        return self.run(f"{command} {options}")

    def json(self, path: str) -> dict:
        return json.loads((self.root / path).read_text(encoding="utf-8"))

    def tokenizer(self, path: str):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self.root / path)
