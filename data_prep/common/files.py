"""Reading and writing the files that pass from stage to stage.

Outputs are written under a temporary name and renamed: a reader sees a complete file or none.
"""

import contextlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from data_prep.common.errors import InputError

# In the output folder of a recipe from the first step of its training until its model is saved whole.
UNFINISHED = "unfinished.json"

NOT_FILES = {
    stat.S_ISDIR: "folder",
    stat.S_ISFIFO: "pipe",
    stat.S_ISSOCK: "socket",
    stat.S_ISCHR: "device",
    stat.S_ISBLK: "device",
}


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def _writable(path: Path) -> Iterator[None]:
    """What the system refuses in the block is an `InputError` of one line about `path`."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from None


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator:
    """Open `path` for writing under a temporary name in the same folder; rename on success, remove on failure."""
    path = Path(path)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, mode, **({} if "b" in mode else {"encoding": "utf-8"})) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp makes 0600, which no colleague can read
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if the block succeeds, replacing an older one."""
    path = Path(path)
    with _writable(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def readable(folder: str | Path) -> None:
    """Give the weights anywhere in `folder` the mode of any new file: safetensors makes 0600, which no server can read."""
    for path in Path(folder).rglob("*.safetensors"):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o7777 | 0o666 & ~_umask())


@contextlib.contextmanager
def unfinished(output: str | Path) -> Iterator[Path]:
    """The folder `.NAME.unfinished` beside `output`, for work that a killed run can resume.

    It is removed if the block succeeds. Raises InputError while another process works in it.
    """
    with locked_work(output) as work:
        yield work
        shutil.rmtree(work)


@contextlib.contextmanager
def locked_work(output: str | Path) -> Iterator[Path]:
    """The folder of `unfinished`, which stays. Raises InputError while another process works in it."""
    work = Path(output).parent / f".{Path(output).name}.unfinished"
    with _writable(work):
        work.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(work / ".lock").acquire(timeout=0)
    except Timeout:
        raise InputError(f"{work}: another run is working there; wait for it, or stop it") from None
    with lock:
        yield work


def write_json(path: str | Path, value, indent: int | None = 1) -> None:
    with atomic_write(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=indent)
        file.write("\n")


def json_line(row: dict) -> str:
    """A row as a line of JSON; in ASCII if a text in it has half a surrogate pair, which UTF-8 cannot encode."""
    line = json.dumps(row, ensure_ascii=False)
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        line = json.dumps(row)
    return line + "\n"


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> int:
    """Write one JSON object per line. Returns the number of rows."""
    count = 0
    with atomic_write(path) as file:
        for row in rows:
            file.write(json_line(row))
            count += 1
    return count


def existing(path: str | Path, made_by: str = "") -> Path:
    """`path` as a Path. Raises an `InputError` that names the command `made_by` if it does not exist."""
    if not _is_there(path):
        link = f"; it is a link to {os.readlink(path)}" if os.path.islink(path) else ""
        raise InputError(f"{path}: no such file or folder{link}" + (f"; it is made by: {made_by}" if made_by else ""))
    return Path(path)


def _is_there(path: str | Path) -> bool:
    try:
        return Path(path).exists()
    except OSError as error:  # a folder above it may not be entered, or the name is too long
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None


def regular_file(path: str | Path, made_by: str = "") -> Path:
    """`path` as a Path. Raises an `InputError` of one line if it is not a file, or may not be read.

    A pipe or a device is refused before it is opened: opening a pipe would wait for its writer for ever.
    """
    try:
        mode = existing(path, made_by).stat().st_mode
        kind = next((kind for test, kind in NOT_FILES.items() if test(mode)), None)
        if kind is None:
            Path(path).open("rb").close()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if kind is not None:
        raise InputError(f"{path}: found a {kind}; expected a file")
    return Path(path)


def vacant(path: str | Path) -> Path:
    """`path` as a Path. Raises InputError if it exists: no script overwrites its output."""
    if _is_there(path):
        raise InputError(f"{path}: is there already; remove it or give another path")
    return Path(path)


def check_writable(name: str, folder: Path) -> None:
    """Raise InputError if the `folder` of the option `name` is none, or cannot be made or written to."""
    there = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise InputError(f"{name}: {there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"{name}: {there}: no permission to write; choose another folder")


def read_json(path: str | Path):
    """The value in a JSON file. Raises an `InputError` with line and column if it is not JSON."""
    try:
        return json.loads(regular_file(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}, column {error.colno}: not JSON ({error.msg})") from None


def read_jsonl(path: str | Path) -> Iterator[dict]:
    """The objects in a JSONL file, one at a time; blank lines are skipped. Raises InputError for a line that is not one."""
    with regular_file(path).open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip())  # a line that breaks off does so before its line break
            except UnicodeDecodeError:
                raise InputError(f"{path}: line {number} is not UTF-8; save the file as UTF-8") from None
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number}, column {error.colno}: not JSON ({error.msg})") from None
            if not isinstance(row, dict):
                raise InputError(f"{path}: line {number}: expected a JSON object, found {type(row).__name__}")
            yield row


def whole_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines of an append-only file from its beginning; a last line that is only half written is cut off the file."""
    file.seek(0)
    while (line := file.readline()).endswith(b"\n"):
        yield line
    file.truncate(file.tell() - len(line))


def write_results(folder: str | Path, stage: str, results: dict) -> Path:
    """Write the metrics of a stage to `folder/<stage>.json`, where `eval/report.py` finds them. Returns that path."""
    path = Path(folder) / f"{stage}.json"
    write_json(path, {"stage": stage, **results})
    return path
