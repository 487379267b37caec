"""Plain text, Markdown, reStructuredText and notebooks: read as they are. No directive, link or cell is followed or run."""

import json
from collections import Counter

from data_prep.documents.repeated_lines import without_repeated_lines
from data_prep.documents.sections import Converted, NotRead, Section, by_heading, decoded, finished, rst_headings


def convert_text(data: bytes) -> Converted:
    """Plain text as one section, or as its pages where form feeds divide it, as in RFCs."""
    pages = decoded(data).split("\f")
    if len(pages) == 1:
        return finished([Section(pages[0])])
    pages, removed, examples = without_repeated_lines(pages)
    return finished([Section(text, page) for page, text in enumerate(pages, start=1)], removed, examples)


def convert_markdown(data: bytes) -> Converted:
    return finished(by_heading(decoded(data)))


def convert_rst(data: bytes) -> Converted:
    return finished(by_heading(decoded(data), rst_headings))


def convert_notebook(data: bytes) -> Converted:
    """The Markdown and the code of a Jupyter notebook (nbformat 4) in order, the code fenced; outputs are left out, counted."""
    try:
        notebook = json.loads(decoded(data))
        cells = notebook["cells"]
        language = notebook.get("metadata", {}).get("language_info", {}).get("name", "python")
        parts, left_out = [], Counter()
        for cell in cells:
            source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
            if cell["cell_type"] == "code":
                left_out["notebook outputs"] += len(cell.get("outputs", ()))
                source = f"```{language}\n{source}\n```" if source.strip() else ""
            parts.append(source)
    except json.JSONDecodeError as error:
        raise NotRead("unreadable", f"line {error.lineno}: not JSON ({error.msg})") from None
    except (KeyError, TypeError, AttributeError, RecursionError):
        raise NotRead("unreadable", "no notebook of nbformat 4: open it in Jupyter and save it") from None
    return finished(by_heading("\n\n".join(filter(str.strip, parts))), left_out)
