"""Command-line options that several evaluations share."""

import argparse
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import check_writable
from data_prep.judging.judges import NAMES, Judge, load_judge
from data_prep.rows.bad_rows import ON_BAD

CONVERSATIONS = (
    "files, folders or globs of conversations, in any format that data_prep reads (see data_prep/README.md)"
)


def add_result_options(parser: argparse.ArgumentParser, default_name: str) -> None:
    """`--name` and `--results_dir`; `default_name` says in words what the name is without the option."""
    parser.add_argument("--name", help=f"name of the results file (default: {default_name})")
    parser.add_argument("--results_dir", help="folder for the results file (default: results are only printed)")


def add_row_options(parser: argparse.ArgumentParser) -> None:
    """`--on_bad` and `--columns`, as the recipes take them."""
    add_on_bad(parser)
    parser.add_argument("--columns", help="field=column,… if the file names its columns otherwise (default: detected)")


def add_on_bad(parser: argparse.ArgumentParser) -> None:
    """`--on_bad`."""
    parser.add_argument(
        "--on_bad",
        choices=ON_BAD,
        default="error",
        help="bad rows: stop with an error (default), repair what is certain, or quarantine them in --results_dir",
    )


def quarantine_file(on_bad: str, results_dir: str | None, name: str) -> Path | None:
    """Where bad rows go: `<results_dir>/quarantine_<name>.jsonl`, None without a results folder.

    Raises `InputError` if rows are to be quarantined and there is no folder for them, and if it cannot be written to.
    """
    if results_dir:
        check_writable("--results_dir", Path(results_dir))
    if on_bad == "quarantine" and not results_dir:
        raise InputError("--on_bad quarantine: give --results_dir, where bad rows go to quarantine_<name>.jsonl")
    return Path(results_dir, f"quarantine_{name}.jsonl") if results_dir else None


def add_judge(parser: argparse.ArgumentParser, default: str = "reference, agreement with the reference") -> None:
    """`--judge`, `--rubric` and `--agreement_with`; `default` is that of `--judge`, its first word, and what it is."""
    parser.add_argument(
        "--judge",
        metavar="NAME",
        default=default.split(",")[0],
        help=f"who judges: {NAMES} (default: {default})",
    )
    parser.add_argument("--rubric", help="with a language model: the YAML of what it is told (default: its own)")
    parser.add_argument(
        "--agreement_with",
        metavar="NAME",
        help="whom the judge's agreement is measured with: a file of rankings, best of people, which it is asked about too, "
        "or another judge on the same answers (default: none, and the agreement is not measured)",
    )


def load_judges(arguments: argparse.Namespace, journal: Path | None) -> tuple[Judge, Judge | None]:
    """(the judge, whom its agreement is measured with or None) of `add_judge`. Raises `InputError` for what is neither."""
    judge = load_judge(arguments.judge, arguments.rubric, journal)
    other = load_judge(arguments.agreement_with) if arguments.agreement_with else None
    if other and other.language_model:
        raise InputError(
            "--agreement_with: found a language model; expected rankings, a function, a reward model or reference"
        )
    return judge, other
