"""A cleaned document as a row: its text, the file and row that it comes from, and the other fields of that row."""

import json
from collections import Counter

from data_prep.common.json_values import json_value
from data_prep.common.text import printable
from data_prep.readers import conversation_formats, preference_formats
from data_prep.readers.documents import TURNS, Document
from data_prep.readers.kinds import classify
from data_prep.readers.unread import fields_line

OWN = ("text", "source", "row")
REPLACED = "fields replaced by the text, and the file and row that it comes from"
LEFT_OUT = "fields left out, with which a row is no document but a conversation or a preference"
READ_OTHERWISE = {*conversation_formats.FIELDS, *preference_formats.FIELDS, *conversation_formats.OF_A_TREE} - {"id"}


def cleaned_row(document: Document, text_column: str, changed: dict[str, Counter]) -> dict:
    """{"text", "source", "row"} and the fields of the document's row that are not its text, with the types of JSON.

    Args:
        changed: {what became of them: {field: rows}}, counts the fields that are not as they were; a `defaultdict`.
    """
    text, row = document
    others = dict(row.value) if isinstance(row.value, dict) else {}
    others.pop(text_column if text_column in others else next((key for key in TURNS if key in others), None), None)
    replaced = [field for field in OWN if field in others]
    others = {field: value for field, value in others.items() if field not in OWN}
    left_out = []
    if READ_OTHERWISE & others.keys() and classify({**others, "text": text}) != classify({"text": text}):
        left_out = [field for field in others if field in READ_OTHERWISE]
    for way, fields in ((REPLACED, replaced), (LEFT_OUT, left_out)):
        changed[way].update(printable(field) for field in fields if row.value[field] is not None)
    kept = {"text": text, "source": row.path, "row": row.number}
    kept |= {field: value for field, value in others.items() if field not in left_out}
    try:
        json.dumps(kept, allow_nan=False)
    except (TypeError, ValueError):  # another type, or NaN
        for field, value in kept.items():
            ways: set[str] = set()
            kept[field] = json_value(value, ways)
            for way in ways:
                changed[way][printable(field)] += 1
    return kept


def changed_lines(changed: dict[str, Counter]) -> list[str]:
    """What became of fields that are not as they were, a line each."""
    return [f"{way}: {fields_line(fields)}" for way, fields in changed.items() if fields]
