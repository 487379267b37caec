"""Several machines: the lines in accelerate_configs and the script for Slurm, as accelerate takes them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

ROOT = Path(__file__).parents[1]
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", [path for path in LAUNCHES if "single" not in path.stem], ids=lambda path: path.stem)
def test_accelerate_understands_the_line_for_several_machines(path):
    text = path.read_text(encoding="utf-8").replace("\\\n#", "")
    (line,) = re.findall(r"^# +(accelerate launch .* --num_machines 4 .*)$", text, re.M)
    args = launch_command_parser().parse_args(line.split()[2:])
    args, config, _ = _validate_launch_command(args)
    assert (args.num_machines, args.machine_rank, args.main_process_port) == (4, 0, 29500)
    assert args.num_processes in (8, 32) and args.training_script == "recipes/sft.py"
    assert args.use_deepspeed == path.stem.startswith("deepspeed") and args.use_fsdp == (path.stem == "fsdp2")


def test_slurm_starts_a_launcher_on_each_machine(tmp_path):
    """srun stands in for itself: it runs its command once a machine, as Slurm does."""
    stand_ins = {
        "scontrol": 'echo "node7"; echo "node8"',
        "srun": 'echo "srun $1 $2"; shift 2; for SLURM_NODEID in 0 1; do SLURM_NODEID=$SLURM_NODEID "$@"; done',
        "accelerate": 'echo "$@"',
    }
    for name, script in stand_ins.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
        (tmp_path / name).chmod(0o755)
    place = {
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "40001",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "8",
        "SLURM_CPUS_PER_TASK": "64",
    }
    line = ["bash", "recipes/launch.slurm", "accelerate_configs/ddp.yaml", "recipes/sft.py", "--config", "a b.yaml"]
    environment = {**os.environ, **place, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["srun --kill-on-bad-exit=1 --cpus-per-task=64"] + [
        "launch --quiet --config_file accelerate_configs/ddp.yaml --num_machines 2 --num_processes 16 --machine_rank "
        f"{machine} --main_process_ip node7 --main_process_port 20001 recipes/sft.py --config a b.yaml"
        for machine in (0, 1)
    ], done.stderr
    done = subprocess.run(line[:3], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: expected a launch file and a recipe")
