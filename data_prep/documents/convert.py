"""One file → its sections. What runs in the child process (child.py)."""

from pathlib import Path
from typing import NamedTuple

from data_prep.documents.endings import REFUSED, ending
from data_prep.documents.sections import Converted, NotRead

LARGEST = 1 << 28  # bytes of a file


class Limits(NamedTuple):
    """What a file may cost."""

    max_pages: int
    time_limit: float  # seconds
    memory_limit: int  # MiB


def convert(path: str, limits: Limits) -> Converted:
    """The document in a file. Raises NotRead."""
    kind = ending(path)
    if kind in REFUSED:
        raise NotRead("refused", REFUSED[kind])
    if (size := Path(path).stat().st_size) > LARGEST:
        raise NotRead("refused", f"{size:,} bytes, at most {LARGEST:,} are read: split the file")
    data = Path(path).read_bytes()
    if not data.strip():
        raise NotRead("empty", "nothing in it")
    if kind == ".pdf":
        from data_prep.documents.pdf import convert_pdf

        return convert_pdf(data, limits.max_pages)
    if kind == ".epub":
        from data_prep.documents.epub import convert_epub

        return convert_epub(data)
    if kind in (".html", ".htm", ".xhtml", ".docx", ".pptx", ".xlsx"):
        from data_prep.documents import markup

        by = {".docx": markup.convert_docx, ".pptx": markup.convert_pptx, ".xlsx": markup.convert_xlsx}
        return by.get(kind, markup.convert_html)(data)
    from data_prep.documents import text_files

    by = {".txt": text_files.convert_text, ".rst": text_files.convert_rst, ".ipynb": text_files.convert_notebook}
    return by.get(kind, text_files.convert_markdown)(data)
