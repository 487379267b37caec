"""The metrics of the evaluations, with figures worked out by hand, and intervals as they are written."""

from pathlib import Path

import evaluate
import pytest

from data_prep.common.intervals import bootstrap_interval, show_interval, show_nats
from data_prep.judging.judges import outcome_by_reference
from eval import metrics
from eval.metrics import load_metric

SURE = {"low": 1.0, "high": 1.0}


def test_intervals_as_they_are_written():
    assert show_interval({"value": 0.721, "low": 0.698, "high": 0.743, "n": 9}) == "72.1% [69.8%, 74.3%]"
    assert show_nats({"value": 1.25, "low": -0.001, "high": 1.506, "n": 9}) == "1.25 [0.00, 1.51]"


def test_metrics_load_by_path_and_ignore_blanks_but_not_case():
    metric = evaluate.load(str(Path(metrics.__file__).with_name("exact_match.py")))
    texts = {"predictions": ["a  b\n", "A b", "", "é 漢字"], "references": ["a b", "a b", "x", "é 漢字"]}
    found = metric.compute(**texts)
    assert found["matches"] == [True, False, False, True]
    assert found["exact_match"] == bootstrap_interval([1, 0, 0, 1])
    assert found["exact_match"]["value"] == 0.5 and found["exact_match"]["n"] == 4


def test_chrf_by_hand():
    found = load_chrf([("abc", "abc"), ("c", "d")])
    assert found["sentence_chrf"] == [100.0, 0.0]
    # As one corpus: of the single characters 3 of 4 match, of the pairs 2 of 2, of the triples 1 of 1; precision and
    # recall are alike, and the mean over the orders that occur is (3/4 + 1 + 1) / 3.
    assert found["chrf"] == pytest.approx(100 * (0.75 + 1 + 1) / 3)
    # "ab" for "abc": precision 1 and 1; recall 2/3 and 1/2 (no triple in the answer, so that order is left out):
    # P = 1, R = 7/12, chrF2 = 5PR / (4P + R).
    recall = (2 / 3 + 1 / 2) / 2
    assert load_chrf([("ab", "abc")])["chrf"] == pytest.approx(100 * 5 * recall / (4 + recall))


def load_chrf(pairs):
    predictions, references = zip(*pairs, strict=True)
    return load_metric("chrf").compute(predictions=list(predictions), references=list(references))


def test_win_rate_metric():
    metric = load_metric("win_rate")
    assert metric.compute(wins=[1.0, 0.5, 0.0])["win_rate"]["value"] == 0.5
    assert metric.compute(wins=[1.0] * 5)["win_rate"] == {"value": 1.0, **SURE, "n": 5}
    with pytest.raises(ValueError, match="found 2.0"):
        metric.compute(wins=[2.0])


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ((True, 100.0), (False, 99.9), 1.0),  # a match beats anything, however close
        ((False, 99.9), (True, 100.0), 0.0),
        ((True, 100.0), (True, 100.0), 0.5),
        ((False, 54.9), (False, 50.0), 0.5),
        ((False, 55.0), (False, 50.0), 1.0),
        ((False, 50.0), (False, 55.0), 0.0),
    ],
)
def test_judge(first, second, expected):
    assert outcome_by_reference(*first, *second) == expected
