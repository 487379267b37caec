"""What a document says word for word that can be asked: facts, each with its place in the text. No model is needed.

definition   "A queue is a list that …", 「队列是一种…」, "**queue**: …", a term with its definition indented below it
heading      a heading and the first paragraph below it
faq          "Q: … A: …", 「问：… 答：…」, a heading that is a question
purpose      a title "module.name(signature)" and the first sentence below it; also
signature    the title itself, or a signature that stands alone below a bare name, and
parameter    each parameter that numpydoc's section "Parameters" describes: the first sentence
cell         a table in Markdown: the cell of a row, named by its first cell, and a column, named by its heading
"""

import re
import textwrap
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.corpus.text_units import is_unspaced, units
from data_prep.questions.blocks import (
    HEADING,
    PARAGRAPH,
    TABLE,
    Block,
    Section,
    blocks,
    on_one_line,
    sections,
    sentence_end,
)

# {kind: what its wordings may hold between braces}
KINDS = {
    "definition": ("subject",),
    "heading": ("subject",),
    "faq": ("question",),
    "purpose": ("name",),
    "signature": ("name",),
    "parameter": ("name", "parameter"),
    "cell": ("row", "column"),
}
SHORTEST = {"en": 12, "zh": 6}  # characters of an answer, but that of a cell
LONGEST_SUBJECT = 80
DEEPER = " > "  # between a heading and the one below it, in the "heading" of data_prep.read_documents

NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"
TITLE = re.compile(rf"`{{0,2}}(?P<name>{NAME})(?P<arguments>\(.*\)(?:[ \t]*->[ \t]*[^\n`]+)?)?`{{0,2}}$", re.DOTALL)
CALL = re.compile(rf"(?P<name>{NAME})\((?:[^\n]|\n(?=[ \t)]))*\)(?:[ \t]*->[ \t]*[^\n]+)?$")
# The headings of a docstring's parts: they do not say what the part is about.
NUMPYDOC = {
    "parameters", "other parameters", "returns", "yields", "receives", "raises", "warns", "warnings", "see also", "notes",
    "references", "examples", "attributes", "methods",
}  # fmt: skip
PARAMETER = re.compile(
    r"^(?P<indent>[ \t]*)(?P<name>\*{0,2}[A-Za-z_]\w*)[ \t]*:[^\n]*\n"
    r"(?P<body>(?P=indent)[ \t]+\S[^\n]*(?:\n(?P=indent)[ \t]+\S[^\n]*)*)",
    re.MULTILINE,
)
FAQ = re.compile(
    r"^[ \t>*_-]*(?:Q|Question|问题?)[ \t]?\d*[ \t]*[:：][*_]*[ \t]*(?P<question>\S[^\n]*?)[*_]*[ \t]*\n(?:[ \t]*\n)*"
    r"[ \t>*_-]*(?:A|Answer|回?答|答案)[ \t]?\d*[ \t]*[:：][*_]*[ \t]*"
    r"(?P<answer>\S[^\n]*(?:\n(?![ \t>*_-]*(?:Q|Question|问题?)[ \t]?\d*[ \t]*[:：])[ \t]*\S[^\n]*)*)",
    re.MULTILINE,
)
# A subject of up to five words, and a verb that defines it.
DEFINED_EN = re.compile(
    r"(?P<subject>(?:(?:An?|The)\s+)?[`*\"']*[A-Za-z][\w.+#/-]*[`*\"']*(?:\s+[`*\"'(]*[\w.+#/-]+[`*\"')]*){0,4}?)\s+"
    r"(?:is\s+(?:an?|the|one\s+of|any)|refers\s+to|means|denotes|stands\s+for)\s"
)
POINTS = {
    "it", "this", "that", "these", "those", "there", "here", "what", "which", "who", "he", "she", "they", "we", "you", "i",
    "if", "when", "where", "how", "why", "but", "and", "or", "so", "as", "for", "in", "on", "at", "to", "by", "with", "one",
    "result", "default", "following", "output", "input", "same", "first", "second", "last", "other", "only", "example",
    "another", "each", "all", "some", "its", "his", "her", "their", "our", "your", "my", "note", "because", "since", "while",
}  # fmt: skip
DEFINED_ZH = re.compile(
    r"(?:所谓)?(?P<subject>[\u3400-\u9fff\w·《》“”.+#-]{2,20}?)(?:[（(][^）)\n]{0,80}[）)])?[，,]?\s*"
    r"(?:是指|指的是|是一[种個个类類门門项項]|是)"
)
POINTS_ZH = re.compile(
    r"^(?:[这那它他她我你您其此但而如因若或也就不在由对从当每各某]|所以|虽然|目前|现在|于是|可是|还是|要是|总是|尤其|特别)"
    r"|[不就也都还還只但可总總正便算要而并或于则則仍乃才又便即若更最]$"
)
TERM = re.compile(
    r"[-*+]?[ \t]*(?:\*\*|__)(?P<subject>[^*_\n]{2,60}?)[:：]?(?:\*\*|__)[ \t]*[:：—–-]+[ \t]*(?P<rest>\S)"
)
LISTED = re.compile(r"(?P<subject>[^\s:：|>#*+-][^\n:：|]{1,59})\n(?P<indent>[ \t]{2,})(?P<rest>\S)")
QUESTION = re.compile(r"[?？][*_`\"”]*$")


class Fact(NamedTuple):
    """`answer` is `text[start:end]` of the document, blanks and line breaks aside; `asked` fills the braces of a wording."""

    kind: str
    asked: dict[str, str]
    answer: str
    start: int
    end: int
    field: str = "text"  # of the document's row; "heading" if the fact stands there

    @property
    def language(self) -> str:
        """ "zh" if most of it is written without blanks between words, else "en"."""
        return "zh" if is_unspaced(units(" ".join([*self.asked.values(), self.answer]))) else "en"


def facts(text: str, longest: int, heading: str = "", left_out: Counter | None = None) -> list[Fact]:
    """The facts in a document, in the order of their kinds and places.

    Args:
        longest: characters of an answer. A longer paragraph is asked for its first sentence; whose answer is longer even
            so, and one too short to be an answer, is left out and counted in `left_out` by reason.
        heading: that of the document's row, if it has one, after those above it: "Guide > Install"; the text may begin with
            it too.
    """
    left_out = Counter() if left_out is None else left_out
    parts = sections(blocks(text))
    found = [*_faq(text, parts, longest), *_titled(text, parts, longest, heading.strip())]
    found += [fact for part in parts for block in part.blocks for fact in _of_block(text, block, part, parts)]
    kept = []
    for fact in found:
        if len(fact.answer) > longest:
            left_out["answer longer than --longest_answer"] += 1
        elif fact.kind not in ("cell", "signature") and len(fact.answer) < SHORTEST[fact.language]:
            left_out["answer too short"] += 1
        elif any(not value.strip() or len(value) > LONGEST_SUBJECT for value in _subjects(fact)):
            left_out["nothing to ask about, or a name too long"] += 1
        else:
            kept.append(fact)
    return kept


def _subjects(fact: Fact) -> list[str]:
    return [] if fact.kind == "faq" else list(fact.asked.values())


def plain(text: str) -> str:
    """A title or term without the marks of Markdown around it."""
    return on_one_line(re.sub(r"\*\*|__|`|^\*|\*$", "", text.replace("\\_", "_"))).strip()


def _sentence(text: str, kind: str, asked: dict[str, str], start: int, end: int) -> Fact:
    """The fact whose answer is the first sentence of `text[start:end]`."""
    end = sentence_end(text, start, end)
    return Fact(kind, asked, on_one_line(text[start:end]), start, end)


def _passage(text: str, kind: str, asked: dict[str, str], found: list[Block], longest: int) -> Fact:
    """The fact whose answer is all blocks, the first, or its first sentence: the most that is short enough."""
    for last in (found[-1], found[0]):
        start, end = found[0].start, last.end
        lines = text[start:end].split("\n")
        answer = "\n".join([lines[0], textwrap.dedent("\n".join(lines[1:]))]).strip() if len(lines) > 1 else lines[0]
        if len(answer) <= longest:
            return Fact(kind, asked, answer, start, end)
    return _sentence(text, kind, asked, found[0].start, found[0].end)


def _faq(text: str, parts: list[Section], longest: int) -> Iterator[Fact]:
    """Questions that the document itself asks and answers."""
    for found in FAQ.finditer(text):
        start, end = found.span("answer")
        yield Fact("faq", {"question": plain(found["question"])}, text[start:end].strip(), start, end)
    for part in parts:
        title = text[part.heading.start : part.heading.end] if part.heading else ""
        if QUESTION.search(title) and (below := _prose(part)):
            yield _passage(text, "faq", {"question": plain(title)}, below, longest)


def _prose(part: Section) -> list[Block]:
    """The paragraphs right under a heading, up to the first block of another kind."""
    below: list[Block] = []
    for block in part.blocks:
        if block.kind != PARAGRAPH:
            break
        below.append(block)
    return below


def _titled(text: str, parts: list[Section], longest: int, heading: str) -> Iterator[Fact]:
    """Facts of sections that have a title: docstrings, and other sections with their first paragraph."""
    name = ""  # of the docstring that the sections belong to
    parts = list(parts)
    if parts and parts[0].heading is None and parts[0].blocks and _is_title_line(text, parts[0].blocks[0]):
        first, *others = parts[0].blocks  # a title without the marks of a heading
        parts[0] = Section(Block(HEADING, first.start, first.end), others)
    above, _, own = heading.rpartition(DEEPER)
    for title in (*above.split(DEEPER), own):
        if found := _docstring_title(title):
            name = found["name"]
    if own and parts and parts[0].heading is None and not text.lstrip(" #*`").startswith(own):
        if title := _docstring_title(own):
            if title["arguments"]:
                place = (len(heading) - len(own), len(heading), "heading")
                yield Fact("signature", {"name": name}, on_one_line(own.strip("`")), *place)
            yield from _purpose(text, name, parts[0].blocks, bool(title["arguments"]))
        elif (below := _prose(parts[0])) and not QUESTION.search(own):
            yield _passage(text, "heading", {"subject": plain(own)}, below[:1], longest)
        elif below:
            yield _passage(text, "faq", {"question": plain(own)}, below, longest)
    for part in parts:
        if part.heading is None:
            continue
        start, end = part.heading.start, part.heading.end
        if title := _docstring_title(text[start:end]):
            name = title["name"]
            if title["arguments"]:
                yield Fact("signature", {"name": name}, on_one_line(title[0].strip("`")), start, end)
            yield from _purpose(text, name, part.blocks, bool(title["arguments"]))
        elif plain(text[start:end]).casefold() in NUMPYDOC:
            if name and "parameters" in text[start:end].casefold() and part.blocks:
                yield from _parameters(text, name, part.blocks)
        elif not QUESTION.search(text[start:end]):
            name = ""
            if below := _prose(part)[:1]:
                yield _passage(text, "heading", {"subject": plain(text[start:end])}, below, longest)


def _docstring_title(title: str) -> re.Match | None:
    """The name and arguments in a title "module.name(signature)" or "module.name"; None if it is no such title."""
    found = TITLE.match(title.strip().replace("\\_", "_"))
    return found if found and (found["arguments"] or "." in found["name"]) else None


def _is_title_line(text: str, block: Block) -> bool:
    return (
        block.kind == PARAGRAPH
        and block.end < len(text)
        and _docstring_title(text[block.start : block.end]) is not None
    )


def _purpose(text: str, name: str, below: list[Block], has_signature: bool) -> Iterator[Fact]:
    """The first sentence below the title of a docstring; before it a signature may stand alone, as in those of C."""
    below = [block for block in below if block.kind != TABLE]
    last = name.rpartition(".")[2]
    while below and (call := CALL.match(text[below[0].start : below[0].end])):
        if not has_signature and call["name"].rpartition(".")[2] == last:
            yield Fact("signature", {"name": name}, on_one_line(call[0]), below[0].start, below[0].end)
            has_signature = True
        below = below[1:]
    if below and below[0].kind == PARAGRAPH:
        yield _sentence(text, "purpose", {"name": name}, below[0].start, below[0].end)


def _parameters(text: str, name: str, below: list[Block]) -> Iterator[Fact]:
    # From the beginning of the line: where the descriptions begin is told by how much more they are indented.
    start, end = text.rfind("\n", 0, below[0].start) + 1, below[-1].end
    for found in PARAMETER.finditer(text, start, end):
        asked = {"name": name, "parameter": found["name"].lstrip("*")}
        first = found.start("body") + len(found["body"]) - len(found["body"].lstrip())
        yield _sentence(text, "parameter", asked, first, found.end("body"))


def _of_block(text: str, block: Block, part: Section, parts: list[Section]) -> Iterator[Fact]:
    """The definition that a paragraph begins with; the cells of a table."""
    if block.kind == TABLE:
        yield from _cells(text, block)
    title = text[part.heading.start : part.heading.end] if part.heading else ""
    if block.kind != PARAGRAPH or plain(title).casefold() in NUMPYDOC or FAQ.match(text, block.start):
        return
    for form in (TERM, LISTED):
        if found := form.match(text, block.start, block.end):
            if form is TERM or not found["subject"].rstrip().endswith(tuple(".,;!?([{。，；！？（")):
                asked = {"subject": plain(found["subject"])}
                yield _sentence(text, "definition", asked, found.start("rest"), block.end)
            return
    if found := DEFINED_EN.match(text, block.start, block.end):
        first, *others = words = found["subject"].split()
        if words and not {first.strip("`*\"'").lower(), words[-1].lower()} & POINTS:
            subject = " ".join([first.lower(), *others]) if first in ("A", "An", "The") else " ".join(words)
            yield _sentence(text, "definition", {"subject": plain(subject)}, block.start, block.end)
        return
    found = DEFINED_ZH.match(text, block.start, block.end)
    if found and re.search("[\u3400-\u9fff]", found[0][:-1]) and not POINTS_ZH.search(found["subject"]):
        yield _sentence(text, "definition", {"subject": plain(found["subject"])}, block.start, block.end)


def _cells(text: str, block: Block) -> Iterator[Fact]:
    """The cells of a table in Markdown whose first line names the columns; a row that shares its name with another none."""
    lines = [found.span() for found in re.finditer(r"[^\n]+", text[block.start : block.end])]
    rows = [_row(text, block.start + start, block.start + end) for start, end in lines]
    if len(rows) < 3 or not all(re.fullmatch(r":?-+:?", text[start:end]) for start, end in rows[1]):
        return
    columns = [plain(text[start:end]) for start, end in rows[0]]
    names = Counter(text[slice(*row[0])] for row in rows[2:] if row)
    for row in rows[2:]:
        if len(row) != len(columns) or names[name := text[slice(*row[0])]] > 1:
            continue
        for column, (start, end) in list(zip(columns, row, strict=True))[1:]:
            if start < end and column:
                yield Fact("cell", {"row": plain(name), "column": column}, text[start:end], start, end)


def _row(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where the cells of a line of a table begin and end, blanks around them aside."""
    begin = text.index("|", start, end) + 1
    line = text[begin:end].rstrip()
    line = line[:-1] if line.endswith("|") and not line.endswith("\\|") else line
    cells = []
    for part in re.split(r"(?<!\\)\|", line):
        own = len(part) - len(part.lstrip())
        cells.append((begin + own, begin + own + len(part.strip())))
        begin += len(part) + 1
    return cells
