"""The results of a run's folder: what is there is kept, and said to be stale where it is of other weights."""

import json
from pathlib import Path

from data_prep.common.files import read_json, read_jsonl, write_jsonl, write_results
from eval.common.stamps import stamp, weight_files

PER_ROW = "per_row"  # below the results: one line per prompt or document, so that models can be paired later


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

    def wants(self, name: str, *folders: str) -> bool:
        """Whether the result of the checkpoints in `folders` is to be measured; what is kept is looked at."""
        if name in self.written or name in self.kept:
            return False
        self.asked += [] if name in self.asked else [name]
        if self.overwrite or not self.path(name).exists():
            return True
        self.kept.append(name)
        if reason := self._stale(name, folders):
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
