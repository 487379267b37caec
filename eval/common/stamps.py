"""Which checkpoint a result is of: its weights' hash, so that a result of other weights is recognised."""

import functools
import hashlib
import time
from pathlib import Path


def weight_files(folder: str | Path) -> list[Path]:
    """The safetensors files of a model or an adapter in a folder."""
    return sorted(Path(folder).glob("*.safetensors"))


@functools.cache
def _hash(files: tuple[Path, ...], sizes_and_times: tuple) -> str:
    whole = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


def stamp(folder: str | Path) -> dict | None:
    """{"weights": the first 16 hex digits of the SHA-256 of its weights, "changed": when they were written, in UTC}.

    None for a model of the Hub, whose weights are not in a folder.
    """
    files = weight_files(folder)
    if not files:
        return None
    stats = [path.stat() for path in files]
    changed = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(max(each.st_mtime for each in stats)))
    weights = _hash(tuple(files), tuple((each.st_size, each.st_mtime_ns) for each in stats))
    return {"weights": weights, "changed": changed}


def stamps(*names: str) -> dict:
    """What a result says of its checkpoints: {"checkpoints": {folder: stamp}}; {} where none is in a folder."""
    found = {name: made for name in names if (made := stamp(name))}
    return {"checkpoints": found} if found else {}
