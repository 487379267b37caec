"""Arguments of a recipe: from its YAML and the command line, strict, and with the defaults this machine allows."""

import os
import sys
from pathlib import Path

import huggingface_hub
import psutil
import torch
import yaml
from trl import TrlParser

from data_prep.common.errors import InputError
from data_prep.common.files import existing
from data_prep.common.machine import bf16_is_fast
from data_prep.common.parallel import cores


def parse_arguments(*dataclass_types) -> tuple:
    """Instances of `dataclass_types` from `--config x.yaml` and the command line, which wins.

    `bf16` and `use_cpu` default to what the machine has, so that one YAML serves a laptop and a GPU; either can be
    set. Raises InputError for a missing file, an unknown key (a typo would otherwise vanish), and a value that the
    arguments' own checks refuse.
    """
    # TRL reports every trainer to the Hub unless told not to. The libraries are imported by now, so that an environment
    # variable would come too late for this process.
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
    parser = TrlParser(dataclass_types)
    # A run shorter than logging_steps would have no loss to show.
    parser.set_defaults(bf16=bf16_is_fast(), use_cpu=not torch.accelerator.is_available(), logging_first_step=True)
    if "--config" in sys.argv[:-1]:
        path = existing(sys.argv[sys.argv.index("--config") + 1])
        known = {field for kind in dataclass_types for field in kind.__dataclass_fields__} | {"env"}
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise InputError(f"{path}: not YAML ({error})") from None
        if unknown := set(config or {}) - known:
            raise InputError(f"{path}: unknown key {', '.join(sorted(unknown))}; see --help for the keys")
    try:
        parsed = parser.parse_args_and_config()
    except (ValueError, TypeError) as error:
        raise InputError(f"{' '.join(sys.argv[1:])}: {error}") from None
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and os.environ.get("OMP_NUM_THREADS") == "1"
    if launched and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        # `accelerate launch` leaves one core to a process that has the machine to itself; PyTorch alone takes them all.
        torch.set_num_threads(min(psutil.cpu_count(logical=False) or 1, cores()))
    return parsed


def last_checkpoint(output_dir: str) -> str | None:
    """The newest whole checkpoint in `output_dir`, or None.

    The Trainer does not write checkpoints atomically: one without `trainer_state.json`, the last file written, was cut
    short by a kill, and is passed over.
    """
    folders = [each for each in sorted(Path(output_dir).glob("checkpoint-*")) if each.name[11:].isdigit()]
    whole = [folder for folder in folders if (folder / "trainer_state.json").exists()]
    for folder in {*folders, *Path(output_dir).glob("partial-checkpoint-*")} - set(whole):
        print(f"{folder}: was cut short while it was written, and is passed over")
    return str(max(whole, key=lambda folder: int(folder.name.split("-")[-1]))) if whole else None


def check_output_dir(output_dir: str, resume: bool) -> None:
    """Refuse to write over a finished model: nothing is overwritten without being asked."""
    finished = any(os.path.exists(os.path.join(output_dir, f"{kind}config.json")) for kind in ("", "adapter_"))
    if finished and not resume:
        raise InputError(f"{output_dir}: holds a finished model; remove it or give another --output_dir")
