"""An HTML page from a template: what data and models hold stays text in it, and keeps to its place."""

import unicodedata
from pathlib import Path

from data_prep.common.text import printable

FIRST_STRONG_ISOLATE, POP_ISOLATE = "\u2068", "\u2069"


def as_text(value) -> str:
    """A value as a page shows it: with codes for control characters, and so that no right-to-left text turns its neighbours."""
    if hasattr(value, "__html__"):  # markup of the template itself
        return value
    text = printable(str(value))
    if any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text):
        return FIRST_STRONG_ISOLATE + text + POP_ISOLATE
    return text


def render(template: Path, values: dict) -> str:
    """The page that the Jinja template in a file makes of `values`; all of them are escaped. It can include its neighbours."""
    import jinja2

    neighbours = jinja2.FileSystemLoader(template.parent)
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True, "finalize": as_text}
    return jinja2.Environment(loader=neighbours, **options).get_template(template.name).render(values)
