"""The words of a page in the language of whoever uses it."""

from types import SimpleNamespace

LANGUAGES = ("en", "zh")  # the order of the words in a table

# Words that more than one page has.
SHARED = {
    "login": ("This page asks for a login.", "请先登录。"),
    "stop": ("Stop", "停止"),
    "save": ("Save", "保存"),
    "settings": ("Settings", "设置"),
}


def in_language(table: dict[str, tuple[str, str]], language: str) -> SimpleNamespace:
    """The words of a page's table, {name: (English, Chinese)}, and the shared ones, in one language, as attributes."""
    column = LANGUAGES.index(language)
    return SimpleNamespace(**{name: both[column] for name, both in {**SHARED, **table}.items()})
