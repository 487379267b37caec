"""A document as sections, and the texts of files as Unicode: what all formats share."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

LONGEST = 1 << 24  # characters of a document: as JSON it stays below the longest row that is read (rows/json_rows.py)
DEEPER = " > "  # between a heading and the one below it
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*?)[ \t]*#*[ \t]*$")
FENCE = re.compile(r" {0,3}(`{3,}(?!.*`)|~{3,})")  # "``` a ```" is code within a line
SETEXT = re.compile(r" {0,3}(=+|-{2,})[ \t]*$")
UNDERLINE = re.compile(r"([=\-`:'\"~^_*+#<>.])\1+[ \t]*$")  # of a title in reStructuredText


class NotRead(Exception):
    """A file that is not read: `kind` is empty, scanned, encrypted, refused or unreadable."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(kind, reason)
        self.kind, self.reason = kind, reason


class Section(NamedTuple):
    """A part of a document: a page or slide with its number from 1, or what stands below a heading."""

    text: str
    page: int | None = None
    heading: str = ""  # with those above it: "Guide > Install"


class Heading(NamedTuple):
    """A heading on the lines from `first` to before `after`; level 1 is the highest."""

    first: int
    after: int
    level: int
    title: str


class Converted(NamedTuple):
    """A document that was read."""

    sections: list[Section]
    left_out: Counter  # {what: number}, of all that is in the file and not in the sections
    repeated: list[str] = []  # the first headers and footers that were removed
    missing: list[str] = []  # parts that it names and that are not in the file


def decoded(data: bytes) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark; line breaks as "\\n". Raises NotRead."""
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise NotRead("unreadable", f"byte {error.start:,} is not {error.encoding}: save the file as UTF-8") from None
    if "\0" in text:
        raise NotRead("unreadable", "zero bytes in it: not a text")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def fence_after(line: str, fence: str) -> str:
    """The fence that Markdown's code stands in after a line, "" for none, given the one that it stood in before."""
    if not (mark := FENCE.match(line)):
        return fence
    if not fence:
        return mark[1]
    return "" if mark[1].startswith(fence) and not line.strip().strip(fence[0]) else fence


def markdown_headings(lines: list[str]) -> Iterator[Heading]:
    """The headings in Markdown, those in fenced code aside."""
    fence = ""
    for number, line in enumerate(lines):
        before, fence = fence, fence_after(line, fence)
        if before or fence:
            continue
        if found := ATX.match(line):
            yield Heading(number, number + 1, len(found[1]), found[2])
        elif (under := SETEXT.match(line)) and number and _can_be_title(lines, number - 1):
            yield Heading(number - 1, number + 1, 1 if under[1][0] == "=" else 2, lines[number - 1].strip())


def _can_be_title(lines: list[str], number: int) -> bool:
    """Whether a line can be the title above an underline: a longer paragraph, a table or a list is none."""
    line = lines[number]
    return bool(line.strip()) and line.lstrip()[0] not in "|#>-*+" and (number == 0 or not lines[number - 1].strip())


def rst_headings(lines: list[str]) -> Iterator[Heading]:
    """The titles in reStructuredText. The first kind of underline is level 1, the next new kind level 2, and so on."""
    kinds: list[tuple[str, bool]] = []
    for number in range(1, len(lines)):
        title, under = lines[number - 1], UNDERLINE.match(lines[number])
        if (
            not under
            or not title.strip()
            or UNDERLINE.match(title)
            or len(lines[number].rstrip()) < len(title.rstrip())
        ):
            continue
        over = number > 1 and lines[number - 2].rstrip() == lines[number].rstrip()
        if not over and (title[0].isspace() or (number > 1 and lines[number - 2].strip())):
            continue
        kind = (under[1], over)
        if kind not in kinds:
            kinds.append(kind)
        yield Heading(number - 1 - over, number + 1, kinds.index(kind) + 1, title.strip())


def by_heading(text: str, headings: Callable[[list[str]], Iterator[Heading]] = markdown_headings) -> list[Section]:
    """The sections of a text, each beginning with its heading; all of the text is in them.

    A heading with nothing below it but another heading stays with the section that follows it.
    """
    lines = text.split("\n")
    found = list(headings(lines))
    ends = [heading.first for heading in found[1:]] + [len(lines)]
    sections = [Section("\n".join(lines[: found[0].first if found else len(lines)]))]
    path: list[Heading] = []
    start = None
    for heading, end in zip(found, ends, strict=True) if found else ():
        start = heading.first if start is None else start
        path = [above for above in path if above.level < heading.level] + [heading]
        if any(line.strip() for line in lines[heading.after : end]) or end == len(lines):
            name = DEEPER.join(" ".join(above.title.split()) for above in path if above.title)
            sections.append(Section("\n".join(lines[start:end]), heading=name))
            start = None
    return [section._replace(text=section.text.strip("\n")) for section in sections if section.text.strip()]


def finished(
    sections: Iterable[Section], left_out: Counter | None = None, repeated: list[str] | None = None
) -> Converted:
    """The sections that have text, without control characters. Raises NotRead if there are none, or too much."""
    left_out, kept, length = Counter(left_out), [], 0
    for section in sections:
        text, removed = CONTROL.subn("", section.text)
        left_out["control characters"] += removed
        length += len(text)
        if length > LONGEST:
            raise NotRead("refused", f"more than {LONGEST:,} characters of text: split the file")
        if any(0xD800 <= ord(character) < 0xE000 for character in {*text, *section.heading}):
            raise NotRead("unreadable", "half a surrogate pair in it: its text is not Unicode")
        if text.strip():
            kept.append(section._replace(text=text, heading=CONTROL.sub("", section.heading)))
    if not kept:
        raise NotRead("empty", "no text in it")
    return Converted(kept, +left_out, repeated or [])
