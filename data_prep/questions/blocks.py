"""A document's blocks, each with its place in the text: headings, paragraphs, tables, code."""

import re
from typing import NamedTuple

from data_prep.documents.sections import fence_after

HEADING, PARAGRAPH, TABLE, CODE = "heading", "paragraph", "table", "code"
MARKDOWN = re.compile(r"[ ]{0,3}#{1,6}[ \t]+(\S.*?)[ \t]*#*[ \t]*$")
UNDERLINE = re.compile(r"[ ]{0,3}([=\-~^\"'*+#`])\1{2,}[ \t]*$")
# Sentences end at the full stops of Chinese; at those of English where a new sentence or nothing follows.
SENTENCE_END = re.compile(r"[。！？]+[”』」）]*|[.!?]+[\"')\]”]*(?=\s+[A-Z0-9`'\"(\[*]|\s*\Z)")
ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|etc|vs|cf|fig|eq|no|al|dr|mr|mrs|st|resp)|\b[A-Z])\.\Z", re.IGNORECASE)
HAN = "\u3400-\u9fff\uf900-\ufaff\u3000-\u303f\uff00-\uffef"


class Block(NamedTuple):
    """Lines that belong together: `text[start:end]`. That of a heading is its title alone."""

    kind: str
    start: int
    end: int


class Section(NamedTuple):
    """What stands under a heading; the first section of a text may have none."""

    heading: Block | None
    blocks: list[Block]


def blocks(text: str) -> list[Block]:
    """The blocks of a text in Markdown, reStructuredText or neither."""
    found: list[Block] = []
    current: list[tuple[int, int]] = []  # lines
    fence, position = "", 0

    def close(kind: str = "") -> None:
        if current:
            first = text[slice(*current[0])].lstrip()
            own = CODE if first.startswith(">>>") else TABLE if first.startswith("|") else PARAGRAPH
            found.append(_trimmed(text, kind or own, current[0][0], current[-1][1]))
            current.clear()

    for line in text.splitlines(keepends=True):
        start, position = position, position + len(line)
        bare = line.rstrip()
        end = start + len(bare)
        underlined = not fence and len(current) == 1 and UNDERLINE.match(bare)
        underlined = underlined and not text.startswith((" ", "\t", "|"), current[0][0])
        # Four tildes or more, as long as the line above: the underline of reStructuredText, no fence of Markdown.
        tildes = underlined and bare.startswith("~~~~") and len(bare) >= current[0][1] - current[0][0]
        before, fence = fence, "" if tildes else fence_after(bare, fence)
        if before or fence:
            if not before:
                close()
            current.append((start, end))
            if not fence:
                close(CODE)
        elif not bare:
            close()
        elif title := MARKDOWN.match(bare):
            close()
            found.append(Block(HEADING, start + title.start(1), start + title.end(1)))
        elif underlined:
            found.append(_trimmed(text, HEADING, *current.pop()))
        elif UNDERLINE.match(bare) and not current:
            pass  # the line over a title, or between two parts
        else:
            if current and bare.lstrip().startswith("|") != text[slice(*current[-1])].lstrip().startswith("|"):
                close()  # a table begins or ends
            current.append((start, end))
    close(CODE if fence else "")
    return found


def _trimmed(text: str, kind: str, start: int, end: int) -> Block:
    return Block(kind, start + len(text[start:end]) - len(text[start:end].lstrip()), end)


def sections(found: list[Block]) -> list[Section]:
    """The blocks by the heading that they stand under, of whatever level."""
    parts = [Section(None, [])]
    for block in found:
        if block.kind == HEADING:
            parts.append(Section(block, []))
        else:
            parts[-1].blocks.append(block)
    return [part for part in parts if part.heading or part.blocks]


def sentence_end(text: str, start: int, end: int) -> int:
    """Where the first sentence of `text[start:end]` ends; `end` if it does not end before."""
    for found in SENTENCE_END.finditer(text, start, end):
        if (
            found[0] == "."
            and found.end() < end
            and ABBREVIATION.search(text, max(start, found.end() - 6), found.end())
        ):
            continue
        return found.end()
    return end


def on_one_line(text: str) -> str:
    """The text without line breaks: a blank for each, but none between two Chinese characters."""
    joined = re.sub(rf"(?<=[{HAN}])[ \t]*\n\s*(?=[{HAN}])", "", text.strip())
    return " ".join(joined.split())
