"""Character F-score of predictions against references, 0 to 100 (chrF2; Popović 2015, aclanthology.org/W15-3049).

    evaluate.load("eval/metrics/chrf.py").compute(predictions=["a b"], references=["a c"])

As sacrebleu computes it, with its defaults (character n-grams up to 6, no word n-grams, recall weighing twice as much
as precision). Loaded by its path, so that no script is fetched from the Hub.
"""

import datasets
import evaluate

from data_prep.common.agreement import corpus_chrf, sentence_chrf


class Chrf(evaluate.Metric):
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
        """{"chrf": of all of them as one corpus, "sentence_chrf": one score per question}."""
        scores = [sentence_chrf(text, reference) for text, reference in zip(predictions, references, strict=True)]
        return {"chrf": corpus_chrf(predictions, references), "sentence_chrf": scores}
