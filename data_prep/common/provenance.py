"""The machine and the commit that a measurement was made with."""

import os
import platform
import subprocess
from pathlib import Path


def machine() -> dict:
    """Processor, cores, GPU (if there is one) and the versions of torch and Python that this process runs on."""
    import torch

    about = {"cpu": _processor(), "cores": os.cpu_count()}
    if torch.cuda.is_available():
        about["gpu"] = torch.cuda.get_device_name()
    return {**about, "torch": torch.__version__, "python": platform.python_version()}


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux; platform.processor() is often empty there
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit that this file is from, with "-dirty" if the checkout differs from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        described = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip() or None
