"""Share of predictions that are an exact match with the reference, whitespace aside.

    evaluate.load("eval/metrics/exact_match.py").compute(predictions=["a  b"], references=["a b"])

Case, punctuation and word order count. Loaded by its path, so that no script is fetched from the Hub.
"""

import datasets
import evaluate

from data_prep.common.agreement import exact_match
from data_prep.common.intervals import bootstrap_interval


class ExactMatch(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions, references: one string each per question",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        """{"exact_match": {"value", "low", "high", "n"}, "matches": one bool per question}; a 95 % interval."""
        matches = [exact_match(text, reference) for text, reference in zip(predictions, references, strict=True)]
        return {"exact_match": bootstrap_interval(matches), "matches": matches}
