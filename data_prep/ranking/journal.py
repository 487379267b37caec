"""A journal: judgements appended to a file beside the output, so that work that was stopped goes on where it was."""

import fcntl
import json
import os
from datetime import UTC, datetime
from pathlib import Path

from data_prep.common.errors import InputError


class Journal:
    """Judgements by the row they are about, kept in a file of one JSON line each after a first line of settings.

    A judgement is in the file when `add` returns: a killed process loses at most the one it was writing, whose half
    line is passed over by the next. The file is locked, and belongs to one process at a time.
    """

    def __init__(self, path: Path, settings: dict, durable: bool) -> None:
        """Open or begin the journal at `path`.

        Args:
            settings: what the judgements depend on. A journal of other settings raises `InputError`.
            durable: wait for the disk after every judgement, so that not even a power cut loses one: for judgements
                that cost a person's time, at milliseconds each.
        """
        self.path, self.durable = path, durable
        self.judgements: dict[int, dict] = {}  # in the order in which they were made
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.file.close()
            raise InputError(f"{path}: another process is writing it; wait until it has ended") from None
        self.file.seek(0)
        content = self.file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            print(f"{path}: its last line was cut short while it was written, and is passed over")
            self.file.truncate(whole)
        lines = content[:whole].splitlines()
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
                    self.judgements.pop(record["row"], None)
                else:
                    self.judgements[record["row"]] = record
            except (ValueError, KeyError, TypeError, AttributeError):
                raise InputError(
                    f"{self.path}: line {number} is no line of a journal: {line[:60]!r}. Take this line out, or remove "
                    "the file to begin again"
                ) from None
        for name in [*settings, *before]:
            if before.get(name) != settings.get(name):
                raise InputError(
                    f"{self.path}: was begun with {name} {before.get(name)!r}, now it is {settings.get(name)!r}. Go on "
                    "with the former, give another --output, or remove the journal to begin again"
                )

    def _write(self, records: list[dict]) -> None:
        # In one call: what is there after a kill is a prefix of these lines.
        self.file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode())
        self.file.flush()
        if self.durable:
            os.fsync(self.file.fileno())

    def add(self, judgements: list[dict]) -> None:
        """Append judgements, each with the "row" it is about, and note when they were made."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        judgements = [{**judgement, "ranked_at": now} for judgement in judgements]
        self._write(judgements)
        self.judgements |= {judgement["row"]: judgement for judgement in judgements}

    def undo(self) -> int | None:
        """Take back the last judgement; the row that it was about, or None where there is none."""
        if not self.judgements:
            return None
        row, _ = self.judgements.popitem()
        self._write([{"row": row, "undone": True}])
        return row

    def close(self) -> None:
        """Give the file free; it stays."""
        self.file.close()
