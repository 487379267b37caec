"""What a run reads, so that one that goes on can tell whether it is the same: data, models, tokenizers, functions.

Read from the files themselves, 256 MiB of each option at most: a larger file is told by its size and by blocks spread
evenly over it. Not by its time, which a copy to another machine changes. What is on the Hub is told by its name alone.
"""

import contextlib
import hashlib
import io
from pathlib import Path

from data_prep.common.files import regular_file
from data_prep.rows.read import data_files, is_glob
from recipes.trainers.push.record import MODELS

DATA = ("conversations", "rankings", "prompts", "tokens", "heldout", "heldout_general")
PATTERNS = {*DATA} - {"tokens"}  # data_prep reads them, and takes globs
FUNCTIONS = ("reward_funcs", "eval_funcs")  # path/to/file.py:name
OF_A_MODEL = ("config.json", "adapter_config.json", "*.safetensors", "token*", "*.jinja", "vocab.json", "merges.txt")
BLOCK, READ = 1 << 16, 1 << 28


def inputs_of(settings: dict) -> dict[str, str]:
    """{"conversations: data/talk.json": "3105 bytes, d7a8fbb3…", …} of all local files that `settings` name."""
    found = {}
    for option in (*MODELS, "tokenizer", "chat_template_path", *DATA, *FUNCTIONS):
        given = settings.get(option) or []
        names = [str(name).rsplit(":", 1)[0] if option in FUNCTIONS else str(name) for name in listed(given)]
        paths = [Path(each) for name in names for each in (matched(name) if option in PATTERNS else [name])]
        files = [file for path in paths for file in files_of(path, option in (*MODELS, "tokenizer"))]
        for file in files:
            found[f"{option}: {file}"] = fingerprint(file, READ // len(files))
    return found


def listed(value) -> list:
    return value if isinstance(value, list) else [value]


def matched(name: str) -> list[str]:
    """The files that a glob stands for where data is read, else the name itself. Raises what `data_files` raises."""
    if not is_glob(name):
        return [name]
    with contextlib.redirect_stdout(io.StringIO()):  # what is not read is told when the recipe reads
        return data_files(name, plain_text=True)


def files_of(path: Path, of_a_model: bool) -> list[Path]:
    """The files below `path` that are read, in order."""
    if path.is_file():
        return [path]
    if of_a_model:
        return sorted({file for pattern in OF_A_MODEL for file in path.glob(pattern) if file.is_file()})
    files = (file for file in path.rglob("*") if file.is_file())
    return sorted(file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts))


def fingerprint(path: Path, most: int) -> str:
    """The size of a file and a hash of it, or of blocks of `most` bytes together that are spread evenly over it.

    Raises InputError for a file that may not be read.
    """
    size, digest = regular_file(path).stat().st_size, hashlib.blake2b(digest_size=16)
    number = max(2, most // BLOCK)
    starts = (
        range(0, size, BLOCK) if size <= most else [each * (size - BLOCK) // (number - 1) for each in range(number)]
    )
    with path.open("rb") as file:
        for start in starts:
            file.seek(start)
            digest.update(file.read(BLOCK))
    return f"{size} bytes, {digest.hexdigest()}"


def changed_inputs(before: dict[str, str], now: dict[str, str], told: set[str]) -> list[str]:
    """What differs, ["conversations: data/talk.json has changed", …]; options in `told` are said to differ already.

    Where files were added or removed those are named, and of the others only what has another size: how much of a file
    was read depends on their number.
    """
    keys = [key for key in sorted({*before, *now}) if key.split(":")[0] not in told]
    others = [f"{key} is {'new' if key in now else 'gone'}" for key in keys if (key in now) != (key in before)]
    for key in keys:
        if key in now and key in before:
            one, two = (text.split(",")[: -1 if others else None] for text in (before[key], now[key]))
            if one != two:
                others.append(f"{key} has changed")
    return others
