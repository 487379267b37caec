"""From documents to what a model is asked, and from its replies to questions whose answers stand in the document."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.common.text import shorten
from data_prep.common.yaml_file import read_prompt
from data_prep.corpus.text_units import is_unspaced, units
from data_prep.questions.grounding import located, overlap, strange_numbers
from data_prep.rows.problems import not_utf8

PROMPT = Path(__file__).with_name("prompt.yaml")
SHORTEST_SPAN = 20  # characters: too little to ask about
REASONING = re.compile(r"\A\s*<think>.*?</think>", re.DOTALL)
UNANSWERABLE = {"", "null", "none", "n/a", "unanswerable", "无法回答", "没有", "无"}
BRACKETS_TRIED = 200  # at which JSON may begin in a reply

# Why a question, or a whole reply, is in quarantine.
UNPARSABLE, CUT_OFF, ODD_ITEM = "unparsable reply", "reply cut off at --max_new_tokens", "no question and answer"
NO_ANSWER, NOT_THERE, NUMBER = "unanswerable", "answer not in its span", "number not in its span"
TWICE, SURROGATE, NOTHING = "asked before", "not Unicode", "no question in the reply"
REFUSED = "refused by the server"


class Span(NamedTuple):
    """A part of a document, which a model is asked about: `text` is `start` to `end` of the document."""

    document: int
    start: int
    end: int
    text: str


class Template(NamedTuple):
    """The turns that ask a model, by language; "" for no system turn."""

    prompt: dict[str, str]
    system: dict[str, str]


def read_template(path: str | Path) -> Template:
    """The prompt in a YAML file. Raises InputError for one that is missing, broken or without {text}."""
    return Template(*read_prompt(path, ("text",)))


def spans(document: int, text: str, most: int) -> Iterator[Span]:
    """The text in parts of at most `most` characters, which end with a paragraph, else a line, a sentence or a word."""
    start = 0
    while start < len(text):
        end = min(start + most, len(text))
        if end < len(text):
            for mark in ("\n\n", "\n", "。", ". ", " "):
                if (found := text.rfind(mark, start + most // 2, end)) >= 0:
                    end = found + len(mark)
                    break
        part = text[start:end]
        first = start + len(part) - len(part.lstrip())
        if part.strip():
            yield Span(document, first, first + len(part.strip()), part.strip())
        start = end


def messages(template: Template, span: Span, number: int, file: str, heading: str) -> list[dict]:
    """The conversation that asks about a span."""
    language = "zh" if is_unspaced(units(span.text)) else "en"
    values = {"text": span.text, "number": str(number), "file": file, "heading": heading}
    # At once, so that braces in a document are left alone.
    turns = [
        {"role": role, "content": re.sub(r"\{(text|number|file|heading)\}", lambda found: values[found[1]], text)}
        for role, text in (("system", template.system[language]), ("user", template.prompt[language]))
    ]
    return [turn for turn in turns if turn["content"].strip()]


def parsed(text: str) -> list | None:
    """The items of the JSON in a reply, whatever stands around it; None if there is none.

    Taken are a list, an object that holds one, as those of synthetic-data-kit do, and objects one after another.
    """
    text, decoder, position, items = REASONING.sub("", text), json.JSONDecoder(), 0, []
    for _ in range(BRACKETS_TRIED):
        found = re.compile(r"[\[{]").search(text, position)
        if not found:
            break
        try:
            value, position = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            position = found.end()
            continue
        lists = [each for each in value.values() if isinstance(each, list)] if isinstance(value, dict) else [value]
        if isinstance(value, dict) and "question" in value:
            items.append(value)
        elif len(lists) == 1 and (not lists[0] or any(isinstance(item, dict) for item in lists[0])):
            return lists[0]
    return items or None


class Judged(NamedTuple):
    """A question of a reply. `reason` says why it is in quarantine; "" for one to use, with its place in the document."""

    question: str
    answer: str
    reason: str
    found: str = ""
    overlap: float = 0.0
    start: int = 0
    end: int = 0


def judged(reply: dict, span: Span, least: float, asked: set[str]) -> list[Judged]:
    """The questions of a reply about `span`, each accepted or with the reason why not.

    Args:
        least: the overlap of an answer with its span, from which on it is accepted.
        asked: the questions accepted before, as `same` writes them; gets those of this reply.
    """
    if "refused" in reply:
        return [Judged("", "", REFUSED, reply["refused"])]
    items = parsed(reply["text"])
    if items is None:
        return [Judged("", "", CUT_OFF if reply["finish"] == "length" else UNPARSABLE, reply["text"])]
    if not items:
        return [Judged("", "", NOTHING, reply["text"])]
    return [_judged(item, span, least, asked) for item in items]


def _judged(item, span: Span, least: float, asked: set[str]) -> Judged:
    question, answer = (item.get("question"), item.get("answer")) if isinstance(item, dict) else (None, None)
    if not isinstance(question, str) or not question.strip() or not isinstance(answer, str | None):
        return Judged("", "", ODD_ITEM, shorten(item, 1000))
    question, answer = question.strip(), (answer or "").strip()
    if not_utf8(question + answer) is not None:
        return Judged(ascii(question), ascii(answer), SURROGATE)
    if answer.lower().strip(" .。！!") in UNANSWERABLE:
        return Judged(question, answer, NO_ANSWER)
    share = overlap(answer, span.text)
    if share < least:
        return Judged(question, answer, NOT_THERE, f"{share:.2f} of its words; expected {least:g}", share)
    if strange := strange_numbers(answer, span.text):
        return Judged(question, answer, NUMBER, strange[0], share)
    if same(question) in asked:
        return Judged(question, answer, TWICE, "", share)
    start, end = located(answer, span.text) or (0, len(span.text))
    asked.add(same(question))
    return Judged(question, answer, "", "", share, span.start + start, span.start + end)


def same(question: str) -> str:
    """A question without what does not make it another: case, blanks, punctuation."""
    return re.sub(r"[\W_]+", "", question.casefold()) or question
