"""The policy for bad rows (`on_bad`: error, repair or quarantine), and the counts of a run."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_write
from data_prep.common.text import counted, shorten
from data_prep.rows.problems import ON_A_SCALE, Row

ON_BAD = ("error", "repair", "quarantine")


class Defects:
    """The problems of the rows of the user's files, collected so that one run shows them all."""

    SHOWN = 5  # rows shown per file; the others are only counted, by kind
    PROBLEMS = 3  # shown of a row

    def __init__(self) -> None:
        # {file: (rows, {kind: count}, messages about the first rows)}
        self.files: dict[str, tuple[Counter, Counter, list[str]]] = {}

    def add(self, row: Row) -> None:
        """Add the problems of a row."""
        rows, kinds, shown = self.files.setdefault(row.path, (Counter(), Counter(), []))
        rows["bad"] += 1
        kinds.update(problem.kind for problem in row.problems)
        if rows["bad"] <= self.SHOWN:
            identifier = row.value.get("id") if isinstance(row.value, dict) else None
            name = f"row {row.number:,}" + ("" if identifier is None else f" (id {shorten(str(identifier))})")
            name += "" if row.line is None else f", line {row.line:,}"
            first = row.problems[: self.PROBLEMS]
            shown += [f"  {name}: found {problem.found}; expected {problem.expected}" for problem in first]
            if len(row.problems) > len(first):
                shown.append(f"  {name}: and {counted(len(row.problems) - len(first), 'problem')} more")

    def lines(self) -> list[str]:
        """For each file, the count of every kind of problem and the first bad rows."""
        lines = []
        for path, (rows, kinds, shown) in self.files.items():
            listed = ", ".join(f"{count:,} × {kind}" for kind, count in kinds.most_common())
            lines += [f"{path}: {counted(rows['bad'], 'row')} cannot be used: {listed}", *shown]
            if rows["bad"] > self.SHOWN:
                lines.append(f"  and {counted(rows['bad'] - self.SHOWN, 'row')} more")
        return lines

    def kinds(self) -> set[str]:
        """The kinds of problem that were found."""
        return {kind for _, kinds, _ in self.files.values() for kind in kinds}

    def raise_if_any(self, repairable: Iterable[str], can_choose: bool) -> None:
        """Raise one `InputError` that says what is wrong, then what to do; nothing if no row is bad."""
        if not self.files:
            return
        lines, found = self.lines(), self.kinds()
        certain = [kind for kind in repairable if kind in found]
        if can_choose and certain:
            lines.append(f"on_bad: repair can repair: {', '.join(certain)}.")
        if can_choose:
            lines.append(
                "on_bad: quarantine leaves bad rows out and keeps them, unchanged, in a file of their own; on the command "
                "line: --on_bad quarantine. Or fix them and run the same command again."
            )
        else:
            lines.append("Fix them and run the same command again.")
        raise InputError("\n".join(lines))


class BadRows:
    """What one run does with bad rows, and how many rows it has seen.

    error       collect them all; `close` raises one InputError that names them
    repair      keep rows whose problems are all repairable, counted by kind in `repaired`; treat the others as errors
    quarantine  write bad rows unchanged, with file, line and reasons, to the JSONL file `quarantine`. The file appears
                whole at `close`, and only if a row is bad

    The quarantine belongs to the output beside it. An older file is replaced, or removed at `close` if no row is in
    quarantine any more, whatever `on_bad` is now, so that it never lists rows that are in the output.

    Attributes: rows_in = rows_out + quarantined; `repaired`, {kind of problem: rows}.
    """

    def __init__(self, on_bad: str, quarantine: str | Path | None = None, can_choose: bool = True) -> None:
        """`can_choose=False`: the command has no option on_bad, and its errors name none."""
        if on_bad not in ON_BAD:
            raise InputError(f"on_bad is {on_bad!r}; expected {', '.join(ON_BAD)}")
        if on_bad == "quarantine" and quarantine is None:
            raise InputError("on_bad is 'quarantine', but there is no file for the bad rows; expected error or repair")
        self.on_bad, self.quarantine, self._can_choose = on_bad, quarantine, can_choose
        self.repaired: Counter = Counter()
        self.rows_in = self.rows_out = self.quarantined = 0
        self._defects = Defects()
        self._repairable: dict[str, None] = {}  # in the order in which they were named
        self._stack = contextlib.ExitStack()
        self._file = None  # opened for the first bad row

    def accept(self, row: Row, repairable: Iterable[str] = ()) -> bool:
        """Count a row and apply the policy to it. Returns whether the row is to be used.

        Args:
            row: with all its problems, those found in reading it and those of its content.
            repairable: the kinds of problem that the caller can repair, or has repaired, without guessing.
        """
        self.rows_in += 1
        self._repairable.update(dict.fromkeys(repairable))
        if row.problems:
            if self.on_bad == "quarantine":
                self._quarantine(row)
                return False
            if self.on_bad == "error" or any(problem.kind not in self._repairable for problem in row.problems):
                self._defects.add(row)
                return False
            self.repaired.update(problem.kind for problem in row.problems)
        self.rows_out += 1
        return True

    def _quarantine(self, row: Row) -> None:
        self.quarantined += 1
        self._defects.add(row)
        if self._file is None:
            self._file = self._stack.enter_context(atomic_write(self.quarantine))
        reasons = [problem._asdict() for problem in row.problems]
        kept = {"file": row.path, "line": row.line, "row": row.number, "reasons": reasons, "raw": row.raw}
        # In ASCII: half a surrogate pair, which stands for a byte that is not UTF-8, cannot be written as UTF-8.
        self._file.write(json.dumps(kept) + "\n")

    def close(self) -> None:
        """Under error and repair, raise one InputError for all bad rows; under quarantine, finish its file.

        A label on a scale is an error under quarantine, too: rows beside it would be used with the meaning of another.
        """
        if ON_A_SCALE in self._defects.kinds():
            with self._stack:  # which leaves no half-written quarantine
                raise InputError(
                    "\n".join([*self.reasons(), "No row is used beside such a label, whatever on_bad is."])
                )
        if self.on_bad != "quarantine":
            self._defects.raise_if_any(self._repairable, self._can_choose)
        if self.quarantine is not None and not self.quarantined:
            Path(self.quarantine).unlink(missing_ok=True)
        self._stack.close()
        if self.rows_in != self.rows_out + self.quarantined:
            raise RuntimeError(f"{self.rows_in} rows in, {self.rows_out} out, {self.quarantined} quarantined")

    def counts_line(self) -> str:
        """The counts of a run, which show that no row was lost: "rows in 3 = rows out 2 + quarantined 1, which are in bad.jsonl"."""
        line = f"rows in {self.rows_in:,} = rows out {self.rows_out:,} + quarantined {self.quarantined:,}"
        return line + (f", which are in {self.quarantine}" if self.quarantined else "")

    def nothing_left(self, names: str, noun: str) -> InputError:
        """The error for a run with no `noun` left, with the reasons for which its rows were quarantined."""
        message = f"{names}: no {noun} is left of {counted(self.rows_in, 'row')}; expected at least one"
        return InputError("\n".join([message, *self.reasons()]))

    def reasons(self) -> list[str]:
        """Why rows are not used, as lines to print: of each file the count of every kind of problem, and the first rows."""
        return self._defects.lines()
