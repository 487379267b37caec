"""Keep a conversation of the page: a row in the Baichuan format, added to a file that recipes/sft.py reads."""

import json
import uuid
from datetime import datetime
from pathlib import Path

from filelock import FileLock

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write, check_writable, read_json, read_jsonl, regular_file

ENDINGS = (".json", ".jsonl")


def check_file(path: str) -> None:
    """Raise InputError where no conversation can be added: another ending, a folder, what is not rows, no permission."""
    file = Path(path)
    if file.suffix not in ENDINGS:
        raise InputError(f"--save_to {path}: expected a name that ends in .json or .jsonl")
    check_writable("--save_to", file.parent)
    if file.exists():
        rows_of(file)


def rows_of(file: Path) -> list[dict]:
    """The rows in a .json (a list of objects) or .jsonl file; [] for an empty one. Raises InputError for anything else."""
    if regular_file(file).stat().st_size == 0:
        return []
    if file.suffix == ".jsonl":
        return list(read_jsonl(file))
    rows = read_json(file)
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: expected a list of rows, to add a conversation to")
    return rows


def baichuan_row(name: str, exchanges: list[tuple[str, str]], system: str = "") -> dict:
    """{"id", "conversations": [{"from": "human" | "gpt" | "system", "value": str}, …]} of a conversation with a model."""
    turns = [{"from": "system", "value": system}] if system else []
    for message, answer in exchanges:
        turns += [{"from": "human", "value": message}, {"from": "gpt", "value": answer}]
    return {"id": f"chat-{name}-{datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}", "conversations": turns}


def add_row(path: str, row: dict) -> int:
    """Add a row to a file, which is seen with it or without it and never in between; returns the number of rows then.

    Rows of a .jsonl file keep their bytes; a .json file is written anew, indented. Raises InputError as `check_file` does.
    """
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.parent / f".{file.name}.lock"):
        rows = rows_of(file) if file.exists() else []
        with atomic_write(file, "wb") as out:
            if file.suffix == ".jsonl":
                before = file.read_bytes() if file.exists() else b""
                out.write(before + (b"\n" if before and not before.endswith(b"\n") else b""))
                out.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            else:
                out.write(json.dumps([*rows, row], ensure_ascii=False, indent=1).encode() + b"\n")
    return len(rows) + 1
