"""A journal of rankings, or of a model's replies, appended to beside the output, so that a stopped run can be resumed."""

import contextlib
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.common.errors import InputError
from data_prep.common.files import whole_lines


class Journal:
    """Rankings by the row they are about, in a file: a line of settings, then one JSON line per ranking.

    A ranking is in the file when `add` returns: a killed process loses at most the one it was writing, whose half line
    the next run drops. One process at a time writes the file; `.NAME.lock` beside it is its lock, and one left behind by
    a killed process locks nothing.

    Attributes: `rankings`, {row: ranking} in the order in which they were made, {(row, rater): ranking} with
    `per_rater`; `path`.
    """

    def __init__(
        self, path: Path, settings: dict, durable: bool, stamp: str = "ranked_at", per_rater: bool = False
    ) -> None:
        """Open or create the journal at `path`.

        Args:
            settings: what the rankings depend on. A journal with other settings raises `InputError`.
            durable: wait for the disk after every ranking, so that not even a power cut loses one. It costs
                milliseconds each: for rankings that cost a person's time.
            stamp: the field with the time of a ranking.
            per_rater: several people rank, and one row may have a ranking by each; all have a "rater".
        """
        self.path, self.durable, self.stamp, self.per_rater = path, durable, stamp, per_rater
        self.rankings: dict[int | tuple[int, str], dict] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise InputError(f"{path}: another process is writing it; wait until it has ended") from None
        self._file = path.open("a+b")
        try:
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: dict) -> None:
        size = self._file.seek(0, os.SEEK_END)
        lines = list(whole_lines(self._file))
        if self._file.seek(0, os.SEEK_END) < size:
            print(f"{self.path}: dropped its last line, which was only half written")
        if lines:
            self._read(lines, settings)
        else:
            self._write([{"settings": settings}])

    def _read(self, lines: list[bytes], settings: dict) -> None:
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                if number == 1:
                    before = record["settings"]
                elif record.pop("undone", False):
                    self.rankings.pop(self._key(record), None)
                else:
                    self.rankings[self._key(record)] = record
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f"{self.path}: line {number} is no line of a journal: {line[:60]!r}. Delete this line, or delete the "
                    "file to start over"
                ) from None
        for name in [*settings, *before]:
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"{self.path}: was started with {name} {before.get(name)!r}, now it is {settings.get(name)!r}. Use "
                    "the former, give another --output, or delete the journal to start over"
                )

    def _key(self, ranking: dict) -> int | tuple[int, str]:
        return (ranking["row"], ranking["rater"]) if self.per_rater else ranking["row"]

    def _write(self, records: list[dict]) -> None:
        # In one call: after a kill the file holds a prefix of these lines.
        self._file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        self._file.flush()
        if self.durable:
            os.fsync(self._file.fileno())

    def add(self, rankings: list[dict]) -> None:
        """Append rankings, each with the "row" it is about, stamped with the time."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        rankings = [{**ranking, self.stamp: now} for ranking in rankings]
        self._write(rankings)
        self.rankings |= {self._key(ranking): ranking for ranking in rankings}

    def undo(self, rater: str | None = None) -> dict | None:
        """Take back the last ranking, with `rater` the last of that person; returns it, or None if there is none."""
        own = (key for key, ranking in reversed(self.rankings.items()) if rater in (None, ranking.get("rater")))
        if (key := next(own, None)) is None:
            return None
        ranking = self.rankings[key]
        self._write([{**{name: ranking[name] for name in ("row", "rater") if name in ranking}, "undone": True}])
        return self.rankings.pop(key)

    def close(self) -> None:
        """Unlock the journal, which stays."""
        self._file.close()
        # Removed while it is held: whoever opened it meanwhile sees that it is gone. Windows removes it at the release.
        with contextlib.suppress(OSError):
            os.unlink(self._lock.lock_file)
        self._lock.release()
