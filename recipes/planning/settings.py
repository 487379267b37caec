"""The settings of a run as its recipe would read them, whether or not its data, models and packages are there."""

import functools
import re
from pathlib import Path
from typing import get_type_hints

from data_prep.common.errors import InputError
from data_prep.common.yaml_file import read_yaml
from recipes.trainers.arguments import REFUSED, StrictParser
from recipes.trainers.batch import keep_global_batch
from recipes.trainers.values import check_values, typed

ORDER = ("mix", "pretrain", "continue_pretraining", "sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo")
CONFIGS = Path(__file__).parents[1] / "configs"


def stage_of(path: Path) -> str:
    """The stage of a YAML: that of the command in its first line, else its name."""
    try:
        first = path.read_text(encoding="utf-8").partition("\n")[0]
    except (OSError, UnicodeDecodeError):
        first = ""  # read_yaml says what is wrong
    found = re.search(r"recipes/(\w+)\.py|data_prep\.(mix)_corpus", first)
    stage = (found[1] or found[2]) if found else path.stem
    if stage not in ORDER:
        raise InputError(
            f"{path}: found no stage in its first line or its name; expected one of {', '.join(ORDER)}: begin the file with "
            "its command, # python recipes/sft.py --config FILE.yaml, or name it sft.yaml"
        )
    return stage


@functools.cache
def _defaults(kinds: tuple[type, ...]) -> tuple[dict, dict]:
    """({option: default}, {option: type hint}) of a recipe's dataclasses; what has no default is None."""
    parser = StrictParser(kinds, add_help=False, allow_abbrev=False)
    hints = {name: hint for kind in kinds for name, hint in get_type_hints(kind).items()}
    return {action.dest: action.default for action in parser._actions if action.dest in hints}, hints


def read_settings(path: Path, kinds: tuple[type, ...], refused: dict[str, str]) -> dict:
    """{option: value} of a YAML with the defaults of its recipe.

    `gradient_accumulation_steps` is that of one process; several share the micro batches.

    Nothing that depends on this machine is asked: a plan for eight GPUs is made on a laptop.

    Raises InputError for an unknown key, a value of the wrong type or out of range, a field the recipe ignores, and
    rows of an update that are no multiple of those at once.
    """
    given = read_yaml(path)
    given.pop("env", None)
    defaults, hints = _defaults(kinds)
    for name in given:
        if name not in defaults:
            raise InputError(f"{path}: unknown key {name}")
        if name in refused or name in REFUSED:
            raise InputError(f"{path}: {name}: the recipe would ignore it: {refused.get(name) or REFUSED[name]}")
    try:
        values = {**defaults, **{name: typed(name, value, hints[name]) for name, value in given.items()}}
        values["bf16"] = given.get("bf16", not given.get("fp16", False))  # what a GPU has; recipes ask the machine
        check_values({**values, **dict.fromkeys(refused), "report_to": "none"})
        keep_global_batch(values, set(given), processes=1)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return values


def files_of(names: list[str]) -> list[Path]:
    """YAMLs, those of a folder in the order of its stages. Raises InputError for what is neither."""
    files = []
    for path in map(Path, names):
        if path.is_dir():
            found = sorted(path.glob("*.yaml"), key=lambda each: ORDER.index(stage_of(each)))
            if not found:
                raise InputError(f"{path}: found no *.yaml in this folder")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise InputError(f"{path}: not found; expected the YAML of a recipe, or a folder of them")
    return files


def makers(files: list[Path]) -> dict[str, Path]:
    """{output folder: the YAML that makes it}, of the given files, those beside them and those of recipes/configs."""
    beside = [each for path in files for each in sorted(path.parent.glob("*.yaml"))]
    made = {}
    for path in [*files, *beside, *sorted(CONFIGS.rglob("*.yaml"))]:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = next((line for line in lines if line.startswith("output_dir:")), "").removeprefix("output_dir:")
        if folder := found.partition(" #")[0].strip().strip("\"'"):
            made.setdefault(folder, path)
    return made


def vocabulary_in_commands(tokenizer: str, folder: Path) -> int | None:
    """`--vocab_size` of the command that trains this tokenizer, in a YAML's head there or in a script of recipes/."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.glob("*.yaml"))]
    texts += [path.read_text(encoding="utf-8") for path in sorted(CONFIGS.parent.glob("*.sh"))]
    for text in texts:
        text = re.sub(r"\\\n#?\s*", " ", text).replace("$RUN", f"runs/{folder.name}")
        for line in text.splitlines():
            size = re.search(r"train_tokenizer .*--vocab_size (\d+)", line)
            if size and re.search(rf"--output_dir {re.escape(tokenizer)}(\s|$)", line):
                return int(size[1])
    return None
