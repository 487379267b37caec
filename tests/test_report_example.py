"""The example in the report: the question that its rule picks, its caption, and a picture that no text breaks."""

from pathlib import Path

import matplotlib.image
import pytest
from helpers.evaluations import assert_small_picture

from data_prep.common.plots import sheet, wrapped
from eval.reporting.drawing.example import caption, example_question, mark
from eval.reporting.drawing.pictures import answers_picture


def test_the_example_is_the_first_question_that_the_rule_fits():
    questions = [{"reference": reference} for reference in ("a b", "a b", "a b", "a b", "a b")]
    answers = {
        "base": ["x", "x", "x", "x", "x"],
        "sft": ["a b", "y", "x", "y", "y"],  # right; different; the base model's; different; different
        "ppo": ["a b", "z", "a b", "a  b", "a b"],  # right; wrong; right; right but for a blank; right
    }
    question, given = example_question(questions, answers)
    assert question == {"reference": "a b", "number": 4} and given == {"base": "x", "sft": "y", "ppo": "a  b"}
    assert example_question(questions, {"base": answers["base"], "sft": answers["base"]}) is None
    assert example_question(questions, {"ppo": answers["ppo"]}) is None and example_question(questions, {}) is None


def test_the_caption_says_the_rule_and_how_often():
    exact = {"exact_match": {"value": 0.775, "low": 0.7, "high": 0.8, "n": 400}}
    stages = {
        "answers_sft_heldout": {"model": "runs/x/sft", "data": ["runs/x/asked.json"], "metrics": exact},
        "answers_sft_other": {"model": "runs/x/sft", "data": ["runs/x/other.json"], "metrics": exact},
        "win_rate": {"model": "runs/x/ppo", "opponent": "runs/x/sft", "data": ["runs/x/asked.json"], "metrics": exact},
    }
    said = caption(
        {"number": 1234, "reference": "z"}, {"base": "x", "sft": "y", "ppo": "z"}, stages, Path("data/asked.json")
    )
    assert said == (
        "How it was chosen: the first question of asked.json (number 1,234) that PPO answers with exactly the "
        "reference; Base and SFT give other answers, no two of them equal. It shows what changes, not how often: exact "
        "match on held-out questions is SFT 77.5%."
    )


@pytest.mark.parametrize(
    "text",
    ["", "$x^2$ costs 5$ \\frac{", "W" * 5000, "word " * 900, "\x1b[31m\x00 é 漢字", "a\nb\n\nc"],
)
def test_no_text_breaks_the_picture_or_leaves_it(text, tmp_path):
    question = {"prompt": [{"role": "user", "content": text}], "reference": text}
    answers = {"base": text, "ppo": text}
    marks = {name: mark(text, text) for name in answers}
    (tmp_path / "x.png").write_bytes(answers_picture(question, answers, marks, text))
    assert_small_picture(tmp_path / "x.png")
    image = matplotlib.image.imread(tmp_path / "x.png")
    border = [image[:4], image[-4:], image[:, :24], image[:, -24:]]
    assert all((part == 1).all() for part in border)  # white: nothing reaches the border


def test_wrapped_text_keeps_its_words_and_its_width():
    figure, panel = sheet(300)
    text = " ".join(f"word{number}" for number in range(30))
    lines = wrapped(figure, text, 200, 99, size=12)
    assert " ".join(lines) == text and len(lines) > 5
    for line in lines:
        drawn = panel.text(0, 0, line, fontsize=12, parse_math=False).get_window_extent()
        assert 80 < drawn.width <= 200.5
    short = wrapped(figure, text, 200, 2, size=12)
    assert len(short) == 2 and short[0] == lines[0] and short[1].endswith(" …") and lines[1].startswith(short[1][:-2])
    assert wrapped(figure, "", 200, 2, size=12) == []
    assert "".join(wrapped(figure, "W" * 100, 200, 99, size=12)) == "W" * 100
