"""The results of a run's folder: what is there is kept, and said to be stale where it was measured otherwise."""

import json
from pathlib import Path

from data_prep.common.files import read_json, read_jsonl, write_jsonl, write_results
from eval.common.stamps import stamp, weight_files

PER_ROW = "per_row"  # below the results: one line per prompt or document, so that models can be paired later
COUNTS = ("prompts", "rankings")


def difference(found: dict, made: dict) -> str | None:
    """The first thing that a result was measured with and that is another in `made`, in words; else None.

    What a result does not name, as one of another command, is not looked at. Of "eval_funcs", which `made` has by
    name, a result may have more. Of "data" the files may have moved: "digest", where a result has it, says what is in them.
    """
    for key, now in made.items():
        was = found.get(key)
        if key == "eval_funcs":
            if missing := [name for name in now if name not in found.get("metrics", {}).get(key, {})]:
                return f"it was measured without {', '.join(missing)}"
        elif was is None or was == now:
            continue
        elif key == "digest":
            return f"it is of other rows of {', '.join(made['data'])}: the files or --seed have changed"
        elif key != "data":
            return f"its {f'number of {key}' if key in COUNTS else key} is {was}, not {now}"
        elif found.get("digest") != made["digest"] and not _same_files(was, now):
            return f"its data is {', '.join(was)}, not {', '.join(now)}"
    return None


def _same_files(was: list[str], now: list[str]) -> bool:
    """Whether these are the same files, or have the same names and the first are gone: a run may be moved."""
    return len(was) == len(now) and all(
        Path(old).resolve() == Path(new).resolve() or (Path(old).name == Path(new).name and not Path(old).exists())
        for old, new in zip(was, now, strict=True)
    )


class Store:
    """Results by name. `wants` says whether one is to be measured, `write` puts it down."""

    def __init__(self, folder: Path, overwrite: bool) -> None:
        self.folder, self.overwrite = folder, overwrite
        self.asked: list[str] = []
        self.kept: list[str] = []
        self.written: list[str] = []
        self.stale: dict[str, str] = {}

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def wants(self, name: str, made: dict, *folders: str) -> bool:
        """Whether the result of the checkpoints in `folders` is to be measured; what is kept is looked at.

        `made`: what it would be measured with, see `difference`.
        """
        if name in self.written or name in self.kept:
            return False
        self.asked += [] if name in self.asked else [name]
        if self.overwrite or not self.path(name).exists():
            return True
        self.kept.append(name)
        if reason := self._stale(name, folders) or difference(read_json(self.path(name)), made):
            self.stale[name] = reason
            print(f"{self.path(name)}: kept, but stale: {reason}; --overwrite measures it anew")
        return False

    def _stale(self, name: str, folders: tuple[str, ...]) -> str | None:
        noted = {Path(key).name: each for key, each in read_json(self.path(name)).get("checkpoints", {}).items()}
        for folder in folders:
            was, now = noted.get(Path(folder).name), stamp(folder)
            if was and was["weights"] != now["weights"]:
                return f"it is of weights {was['weights']} ({was['changed']}), {folder} has {now['weights']} ({now['changed']})"
            if noted and not was:
                return f"it was measured without {folder}"
            newest = max(path.stat().st_mtime for path in weight_files(folder))
            if not was and self.path(name).stat().st_mtime < newest:
                return f"it does not say of which weights it is, and is older than {folder} ({now['changed']})"
        return None

    def write(self, name: str, result: dict) -> None:
        write_results(self.folder, name, result)
        self.written.append(name)

    def read(self, name: str) -> dict | None:
        """A result; None where there is none."""
        return read_json(self.path(name)) if self.path(name).exists() else None

    def rows(self, name: str, key: dict) -> list | None:
        """The lines of an earlier measurement with the same `key` (weights, data, settings); None where there is none."""
        path = self.folder / PER_ROW / f"{name}.jsonl"
        if not path.exists():
            return None
        first, *rows = read_jsonl(path)
        return rows if first == json.loads(json.dumps(key)) else None

    def keep_rows(self, name: str, key: dict, rows: list[dict]) -> None:
        write_jsonl(self.folder / PER_ROW / f"{name}.jsonl", [key, *rows])
