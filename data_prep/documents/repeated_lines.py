"""Headers, footers and page numbers: lines at the edge of a page that stand there on other pages too."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator

DEEP = 4  # lines of a header or a footer at most
PAGES = 3  # a line that stands on fewer pages is text
APART = 3  # pages at most from one to the next: headers stand on left or right pages, and change with the chapter
NUMBER = re.compile(r"\d+")
ROMAN = re.compile(r"[ivxlc]{1,8}", re.I)
VALUES = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
NAMED = re.compile(r"page|seite|págin[ae]|página|of|de|von|sur|第|页|頁|共|p\.|[\W\d_]", re.I)
EXAMPLES = 5


def _roman(text: str) -> int:
    values = [VALUES[letter] for letter in text.lower()]
    return sum(-value if value < after else value for value, after in zip(values, [*values[1:], 0], strict=True))


def forms(line: str, page: int) -> Iterator[str]:
    """The line itself, and with each number in it told relative to the page: "Page 7" is on page 5 what "Page 8" is on 6."""
    line = " ".join(line.split())
    yield line
    for number in NUMBER.finditer(line):
        if len(number[0]) < 7:
            yield f"{line[: number.start()]}\0{int(number[0]) - page}\0{line[number.end() :]}"
    if ROMAN.fullmatch(line):
        yield f"\0{_roman(line) - page}\0roman"


def _repeated(lines: list[str | None]) -> set[int]:
    """The pages whose line, out of one for each page, repeats."""
    pages = defaultdict(list)
    for page, line in enumerate(lines):
        for form in set(forms(line, page)) if line is not None else ():
            pages[form].append(page)
    found: set[int] = set()
    for on in pages.values():
        run: list[int] = []
        for page in on:
            if run and page - run[-1] > APART:
                run = []
            run.append(page)
            if len(run) == PAGES:
                found.update(run)
            elif len(run) > PAGES:
                found.add(page)
    return found


def without_repeated_lines(pages: list[str]) -> tuple[list[str], Counter, list[str]]:
    """(pages, {"headers", "footers", "page numbers": lines removed}, the first few of them).

    Only the first and the last line of a page are looked at, and the next ones where they go. So what repeats within the
    text of pages stays.
    """
    removed, examples = Counter(), {}
    lines = [page.split("\n") for page in pages]
    for edge, name in ((0, "headers"), (-1, "footers")):
        going = [*range(len(pages))]  # the pages whose edge has gone so far
        for _ in range(DEEP):
            at_edge: list[str | None] = [None] * len(pages)
            for page in going:
                while lines[page] and not lines[page][edge].strip():
                    lines[page].pop(edge)
                at_edge[page] = lines[page][edge] if lines[page] else None
            going = sorted(_repeated(at_edge))
            for page in going:
                line = lines[page].pop(edge).strip()
                removed[name if NAMED.sub("", line) and not ROMAN.fullmatch(line) else "page numbers"] += 1
                examples.setdefault(line, None)
    return ["\n".join(page) for page in lines], removed, [*examples][:EXAMPLES]
