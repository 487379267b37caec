r"""What a run will need, before anything runs: parameters, tokens, FLOPs, memory, hours and price.

    python -m recipes.plan recipes/configs/gpt2_small --gpu h100 --num_gpus 8 --utilisation 0.4 --price_per_hour 2.5
    python -m recipes.plan recipes/configs/quickstart/pretrain.yaml --measure
    python -m recipes.plan --like gpt3-175b

What the first says of pretraining:

    model        124,475,904 parameters (N = 123,689,472)
    tokens       19,073 steps × 16 × 32 rows × 1,024 = 9,999,745,024
    Chinchilla   20 × 124,475,904 = 2,489,518,080 tokens (Hoffmann 2022); this run has 80.3 a parameter
    FLOPs        8.55e+18: 855,383,040 a token
    time         45 min; price 15.02

Reads the YAMLs of the recipes, of one stage, several or all in a folder. Models need not be there: one that another YAML
makes is followed back to its pretraining, and built without memory to be counted. Rows are counted where the data is
there; --rows says how many there will be. FLOPs are 6N + 12·L·d·T a token (PaLM, arXiv:2204.02311, appendix B; N without
tables that are only looked up, L layers, d heads × their width, T tokens of a row), forward passes of references, values
and rewards 2N + 4·L·d·T; hours are FLOPs, those of activation checkpointing included, over utilisation × the GPU's bf16
rate × GPUs, which share the batch of the YAML. Memory is estimated part by part, for each GPU. --measure runs two steps
on the longest batch on this machine for the memory, two on ordinary ones for the time, and says what they took.
"""

import argparse
import ast
import functools
import importlib
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from recipes.planning.hardware import GPUS, USABLE
from recipes.planning.memory import SHARDINGS
from recipes.planning.published import LIKE, like
from recipes.planning.settings import files_of, makers


@functools.cache
def recipe_arguments(stage: str) -> tuple[tuple[type, ...], dict[str, str]]:
    """(the dataclasses that a recipe hands to `parse_arguments`, the fields it refuses), read off the recipe."""
    module = importlib.import_module(f"recipes.{stage}")
    calls = [
        node
        for node in ast.walk(ast.parse(Path(module.__file__).read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    call = next(node for node in calls if getattr(node.func, "id", "") == "parse_arguments")
    kinds = tuple(functools.reduce(getattr, ast.unparse(each).split("."), module) for each in call.args)
    return kinds, module.REFUSED


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", metavar="CONFIG", help="YAMLs of recipes, or folders of them")
    parser.add_argument("--gpu", choices=sorted(GPUS), default="h100", help="default: h100")
    parser.add_argument("--num_gpus", type=int, default=1, help="default: 1")
    parser.add_argument("--sharding", choices=SHARDINGS, default="ddp", help="how several GPUs share; default: ddp")
    parser.add_argument(
        "--utilisation",
        type=float,
        default=0.4,
        help="fraction of the GPU's bf16 rate that training reaches; default: 0.4",
    )
    parser.add_argument("--price_per_hour", type=float, help="price of one GPU for an hour; default: no price")
    parser.add_argument("--rows", type=int, help="rows of the training data where it is not here; default: not known")
    parser.add_argument(
        "--measure", action="store_true", help="run two steps of each stage here, and correct the estimate"
    )
    parser.add_argument("--like", choices=sorted(LIKE), help="check a published training instead of a config")
    given = parser.parse_args()
    if bool(given.configs) == bool(given.like):
        raise InputError("expected the YAML of a recipe or a folder of them, or --like NAME, and not both")
    for name in ("num_gpus", "rows"):
        if getattr(given, name) is not None and getattr(given, name) < 1:
            raise InputError(f"--{name}: expected at least 1, found {getattr(given, name)}")
    if not 0 < given.utilisation <= 1:
        raise InputError(f"--utilisation: expected more than 0 and at most 1, found {given.utilisation}")
    if given.price_per_hour is not None and given.price_per_hour < 0:
        raise InputError(f"--price_per_hour: expected at least 0, found {given.price_per_hour}")
    return given


def main() -> None:
    given = parse_arguments()
    if given.like:
        print("\n".join(like(given.like)))
        return
    files = files_of(given.configs)

    from recipes.planning.architecture import Sources
    from recipes.planning.report import mix_lines, plan_lines, summary
    from recipes.planning.run_plan import plan_of, reader
    from recipes.trainers import quiet

    quiet.renamed_in_transformers()
    quiet.four_bit_kernels()
    read = reader(recipe_arguments)
    sources = Sources(makers(files), read)
    print(
        f"{given.num_gpus} × {given.gpu}: {GPUS[given.gpu].flops / 1e12:,.0f} TFLOP/s in bf16, of which "
        f"{given.utilisation:.0%}, and {GPUS[given.gpu].memory / 1e9:,.0f} GB each, of which {USABLE:.0%} are counted on"
    )
    plans = []
    for path in files:
        stage, values = read(path)
        if stage == "mix":
            print("\n".join(["", *mix_lines(path, values)]))
            continue
        plan = plan_of(path, stage, values, sources, given.rows, given.num_gpus, given.sharding)
        print("\n".join(["", *plan_lines(plan, sources, given)]), flush=True)
        plans.append(plan)
        if given.measure:
            from recipes.planning.measure import measure, measured_lines

            print("\n".join(measured_lines(plan, measure(plan))), flush=True)
    if len(plans) > 1:
        print("\n".join(["", *summary(plans, given)]))


if __name__ == "__main__":
    run_main(main)
