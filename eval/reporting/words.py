"""The language of a report: English stands in the code and in the pages, Chinese in pages/zh.json, {English: Chinese}.

Only the report itself speaks another language. Names of files, functions and metrics stay as they are, and so does what a
run has written: verdicts, alarms, data, answers.
"""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path

from data_prep.common.files import read_json

LANGUAGES = ("en", "zh")
CJK_FONTS = ("Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Noto Sans CJK TC", "Noto Sans CJK JP",
             "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei", "SimHei", "PingFang SC",
             "Hiragino Sans GB", "Heiti SC", "Arial Unicode MS")  # fmt: skip
_spoken = "en"


@contextlib.contextmanager
def speaking(language: str) -> Iterator[None]:
    """Let `say` and the labels of pictures speak one of `LANGUAGES` in the block."""
    global _spoken
    before, _spoken = _spoken, language
    try:
        with drawn_with(cjk_font() if language == "zh" else None):
            yield
    finally:
        _spoken = before


def spoken() -> str:
    return _spoken


def say(text: str, **values) -> str:
    """`text` in the language of the block, with `values` in its braces; the English where there is no translation."""
    if _spoken != "en":
        text = translations().get(" ".join(text.split()), text)
    return text.format(**values) if values else text


def label(text: str, **values) -> str:
    """`say` for what is drawn: English where no font of this machine has Chinese letters, which would be boxes."""
    return say(text, **values) if _spoken == "en" or cjk_font() else text.format(**values) if values else text


@functools.cache
def translations() -> dict[str, str]:
    return read_json(Path(__file__).parent / "pages" / "zh.json")


@functools.cache
def cjk_font() -> str | None:
    """The name of a font with Chinese letters that matplotlib finds, or None."""
    from matplotlib import font_manager  # slow to import

    names = {font.name for font in font_manager.fontManager.ttflist}
    return next((name for name in CJK_FONTS if name in names), None)


@contextlib.contextmanager
def drawn_with(font: str | None) -> Iterator[None]:
    """Let pictures be drawn with a font, and with the usual one where that has no letter."""
    if font is None:
        yield
        return
    import matplotlib

    with matplotlib.rc_context({"font.family": ["DejaVu Sans", font]}):
        yield
