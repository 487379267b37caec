"""The language of a text offline, with the model and without it."""

import pytest

from data_prep.corpus import languages

needs_model = pytest.mark.skipif(languages._detector() is None, reason="the extra `data` is not installed")


@needs_model
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat on the mat and looked at the moon.", "en"),
        ("今天天气很好，我们一起去公园散步吧。", "zh"),
        ("今日はとても良い天気ですね。", "ja"),
        ("Где находится ближайшая библиотека?", "ru"),
        ("Wo ist die nächste Bücherei?\nDort drüben.", "de"),
        ("42", "unknown"),
        ("", "unknown"),
        ("\ud800 ?", "unknown"),
        ("The cat sat on \ud800 the mat and looked at the moon.", "en"),
    ],
)
def test_language(text, expected):
    assert languages.language(text) == expected
    assert languages.method() == "fastText lid.176"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat", "Latin script"),
        ("今天天气很好", "Han script"),
        ("今日は良い天気", "Kana script"),
        ("Где книга?", "Cyrillic script"),
        ("안녕하세요 a", "Hangul script"),
        ("1 + 1 = 2 😀", "unknown"),
    ],
)
def test_script_where_the_model_is_absent(monkeypatch, text, expected):
    monkeypatch.setattr(languages, "_detector", lambda: None)
    assert languages.language(text) == expected
    assert languages.method().startswith("script only")
