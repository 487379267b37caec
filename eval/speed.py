"""Benchmarks: how fast is training, and how fast are data prepared for it, on this machine?

    python -m eval.speed matrix
    python -m eval.speed shakespeare
    python -m eval.speed ppo --run runs/quickstart
    python -m eval.speed data
    python -m eval.speed training --run runs/quickstart --results_dir runs/speed
    python -m eval.speed publish --results_dir runs/speed --folder recipes/configs/quickstart

`matrix` prints the rate of a matrix product (1024³; on a GPU 8192³), by which speeds compare between machines.
`shakespeare` times nanoGPT's small model to nanoGPT's loss (eval/benchmarks/shakespeare.py). `ppo` times TRL 1.12's own
PPO trainer and ours (recipes/trainers/ppo/benchmark.py, which has its options). `data` measures data preparation
(eval/benchmarks/data.py), `training` pretraining, SFT and reward training (eval/benchmarks/training.py). Each is run
several times: medians, with the least and the most beside them, and how many cores other processes kept busy meanwhile.
Run them on a quiet machine: no test looks at their times. `publish` writes what --results_dir holds into --folder:
speed.json, and its table into RESULTS.md, whose other text is kept.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from data_prep.common.errors import run_main
from data_prep.common.files import write_results
from data_prep.common.machine import matrix_rates
from data_prep.common.provenance import commit, machine
from eval.benchmarks import data, shakespeare, training
from eval.benchmarks.publishing import publish


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    matrix = commands.add_parser("matrix", help="GFLOP/s of a matrix product")
    matrix.set_defaults(
        measure=lambda arguments: {"metrics": matrix_rates(), "machine": machine(), "commit": commit()}
    )
    for name, module in (("shakespeare", shakespeare), ("data", data), ("training", training)):
        command = commands.add_parser(
            name, help=module.run.__doc__, description=module.__doc__, formatter_class=parser.formatter_class
        )
        module.add_arguments(command)
        command.set_defaults(measure=module.run)
    for command in set(commands.choices.values()):
        command.add_argument(
            "--results_dir", help="folder for speed_<command>.json; default: results are only printed"
        )
    command = commands.add_parser("publish", help="what was measured, as speed.json and a table in RESULTS.md")
    command.add_argument("--results_dir", required=True, help="folder with speed_<command>.json")
    command.add_argument("--folder", required=True, help="folder for speed.json, and of RESULTS.md")
    # A command of its own, because nothing in eval imports a recipe: its options are passed on, --help among them.
    commands.add_parser("ppo", help="episodes/s and peak memory of TRL's PPO trainer and of ours", add_help=False)
    arguments, others = parser.parse_known_args()
    if arguments.command == "ppo":
        sys.exit(subprocess.run([sys.executable, "-m", "recipes.trainers.ppo.benchmark", *others]).returncode)
    if others:
        parser.error(f"unrecognized arguments: {' '.join(others)}")
    if arguments.command == "publish":
        written = publish(Path(arguments.results_dir), Path(arguments.folder))
        print(f"{' and '.join(written)} are written into {arguments.folder}")
        return
    results = arguments.measure(arguments)
    if arguments.results_dir:
        write_results(arguments.results_dir, f"speed_{arguments.command}", results)


if __name__ == "__main__":
    run_main(main)
