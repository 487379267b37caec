"""Which files are documents, what reads them, and which are known and refused."""

import importlib.util
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.text import counted

# {ending: the modules that read it; none: this project itself}
READ_BY = {
    ".txt": (),
    ".md": (),
    ".markdown": (),
    ".rst": (),
    ".ipynb": (),
    ".html": ("markitdown",),
    ".htm": ("markitdown",),
    ".xhtml": ("markitdown",),
    ".docx": ("markitdown", "mammoth"),
    ".pptx": ("markitdown", "pptx"),
    ".epub": ("markitdown",),
    ".xlsx": ("openpyxl",),
    ".pdf": ("pypdfium2",),
}
REFUSED = dict.fromkeys(
    (".docm", ".dotm", ".pptm", ".potm", ".xlsm", ".xltm"), "a file with macros: save it without them"
)
REFUSED |= {
    ".doc": "the format before Office 2007: save it as .docx",
    ".ppt": "the format before Office 2007: save it as .pptx",
    ".xls": "the format before Office 2007: save it as .xlsx",
}
ENDINGS = (*READ_BY, *REFUSED)


def ending(path: str | Path) -> str:
    return Path(path).suffix.lower()


def check_libraries(files: Iterable[str]) -> None:
    """Raise InputError if a file needs a library that is not installed."""
    named = list(files)
    kinds = Counter(map(ending, named))
    lacking = {kind for kind in kinds if not all(map(importlib.util.find_spec, READ_BY.get(kind, ())))}
    if not lacking:
        return
    listed = ", ".join(f"{kind} ({count:,})" for kind, count in kinds.most_common() if kind in lacking)
    raise InputError(
        f"{counted(sum(kinds[kind] for kind in lacking), 'file')} of {len(named):,} cannot be read without the extra "
        f"`documents`: {listed}; pip install -e '.[documents]', or name only the other files"
    )
