"""Command-line options of the commands that let models answer prompts: which prompts, how the answers are sampled."""

import argparse
import hashlib
import math
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import existing, read_jsonl
from data_prep.common.numbers import check_at_least
from data_prep.rows.bad_rows import ON_BAD
from data_prep.rows.read import HUB

COUNTS = ("limit", "num_return_sequences", "max_new_tokens", "batch_size")


def add_conversations_options(parser, required: bool) -> None:
    """`--conversations`, `--on_bad` and `--columns`, as `read_prompts` takes them; bad rows go beside `--output`."""
    parser.add_argument(
        "--conversations", nargs="+", required=required, help="files, folders, globs or hf://owner/name:config:split"
    )
    parser.add_argument(
        "--on_bad", choices=ON_BAD, default="error", help="bad rows (quarantine: into OUTPUT.quarantine.jsonl)"
    )
    parser.add_argument(
        "--columns", help="the file's own column names: field=column,… (default: look for a known format)"
    )


def add_sampling_options(
    parser, max_new_tokens: int, seed_for: str, answers: str = "answers sampled per prompt"
) -> None:
    """`--limit`, `--num_return_sequences`, `--temperature`, `--max_new_tokens`, `--batch_size` and `--seed`.

    Args:
        max_new_tokens: the default.
        seed_for: what the seed decides, in words.
        answers: what `--num_return_sequences` is, in words; "" where every model answers once, and there is no such option.
    """
    add = parser.add_argument
    add("--limit", type=int, help="number of prompts, sampled at random (default: all)")
    if answers:
        add("--num_return_sequences", type=int, default=4, help=f"{answers} (default: 4)")
    add("--temperature", type=float, default=1.0, help="sampling temperature (default: 1.0; 0: greedy)")
    tokens = f"longest answer in tokens (default: {max_new_tokens})"
    add("--max_new_tokens", type=int, default=max_new_tokens, help=tokens)
    add("--batch_size", type=int, default=128, help="sequences generated at once (default: 128)")
    add("--seed", type=int, default=42, help=f"seed for {seed_for} (default: 42)")


def check_sampling_options(arguments: argparse.Namespace) -> None:
    """Raise `InputError` for values of `add_sampling_options` that are out of their range."""
    check_at_least(1, arguments, *(name for name in COUNTS if name in arguments))
    if not 0 <= arguments.temperature < math.inf:
        raise InputError(f"--temperature {arguments.temperature:g}: expected at least 0, where 0 is greedy")


def check_model(name: str) -> None:
    """Raise `InputError` for a folder that is not there; a name that may be the Hub's is looked at when it is loaded."""
    if Path(name).is_absolute() or name.startswith((".", "runs")):
        existing(name, "recipes/sft.py")


def digest_of(files: list[str]) -> str:
    """A hash of what is in data files, in their order; of a data set on the Hub, of its name."""
    whole = hashlib.sha256()
    for name in files:
        if name.startswith(HUB):
            whole.update(name.encode())
            continue
        with open(name, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def drawn_before(path: Path, settings: dict, option: str) -> bool:
    """Whether an earlier run has drawn the answers in `path` (their "drawn") with these settings.

    Raises `InputError` that names the difference if it had others; `option` is what gives another file.
    """
    if not path.exists():
        return False
    before = next(read_jsonl(path), {}).get("drawn") or {}
    names = [name for name in {**settings, **before} if before.get(name) != settings.get(name)]
    if names:
        changes = "; ".join(f"{name} {before.get(name)!r}, now it is {settings.get(name)!r}" for name in names)
        raise InputError(f"{path}: was drawn with {changes}. Use the former, or give another {option}")
    print(f"{path}: the answers that were drawn before")
    return True
