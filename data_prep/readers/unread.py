"""Fields of the user's rows that no reader uses: counted, and named on the screen. Media, which a text would miss, are a
problem of the row."""

from collections import Counter
from collections.abc import Iterable

from data_prep.common.reasoning import DONE
from data_prep.common.text import counted, printable, shorten
from data_prep.rows.problems import Problem

# They say which row it is, or how it came about, and nothing to learn from: those of the public data sets, and those that
# data_prep.check and data_prep.rank_completions write.
BOOKKEEPING = ("id", "prompt_id", "source", "row", "counts", "drawn", "ranked_at", "ranked_by")
MEDIA_FIELDS = ("images", "image", "audios", "audio", "videos", "video")
MEDIA = "images, audio or video"
SHOWN = 10  # fields


def media_problems(row: dict) -> list[Problem]:
    """The problem of a row with media: its text alone is not what was said. [] for other rows."""
    for field in MEDIA_FIELDS:
        value = row.get(field)
        if value and not (isinstance(value, list) and not any(value)):
            return [Problem(MEDIA, f"{shorten(value)} under {field!r}", "text alone: these models read nothing else")]
    return []


def unread_of(row: dict, read: Iterable[str]) -> list[str]:
    """The fields of a row that hold something and are not among those that are read, by names that can be written."""
    beside = row.keys() - {*read, *BOOKKEEPING, *MEDIA_FIELDS}
    return [printable(field) for field in beside if row[field] not in (None, "", [], {})]


class Tally:
    """What the rows in use hold beside their texts: fields that are not read, and turns with reasoning."""

    def __init__(self, reasoning: str = "keep") -> None:
        """`reasoning`: what is done with it (see `data_prep.common.reasoning`)."""
        self.fields: Counter = Counter()  # {field: rows}
        self.reasoning, self.turns, self.lost = reasoning, 0, 0

    def lines(self) -> list[str]:
        """The counts as lines to print; none if there is nothing to say."""
        said = [f"fields not read: {fields_line(self.fields)}"] if self.fields else []
        if self.turns:
            said.append(f"reasoning: {reasoning_line(self.reasoning, self.turns, self.lost)}")
        return said


def reasoning_line(policy: str, turns: int, lost: int) -> str:
    """What became of the reasoning in `turns` turns: "12 turns kept"."""
    left_out = f"; the chat template leaves {lost:,} of them out" if lost else ""
    return f"{counted(turns, 'turn')} {DONE[policy]}{left_out}"


def fields_line(fields: dict[str, int]) -> str:
    """{field: rows} as "images (6 rows), tools (300 rows)"."""
    listed = sorted(fields.items(), key=lambda each: (-each[1], each[0]))
    more = f", and {len(listed) - SHOWN:,} more" if len(listed) > SHOWN else ""
    return ", ".join(f"{name} ({counted(rows, 'row')})" for name, rows in listed[:SHOWN]) + more
