"""Mean of comparisons, with its 95 % interval: 1 for a win, 0.5 for a tie, 0 for a loss.

    evaluate.load("eval/metrics/win_rate.py").compute(wins=[1.0, 0.5, 0.0])

One value per prompt. Where a prompt was compared several times, give the mean of these: they are not independent.
"""

import datasets
import evaluate

from data_prep.common.intervals import bootstrap_interval


class WinRate(evaluate.Metric):
    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="wins: one number between 0 and 1 per prompt",
            features=datasets.Features({"wins": datasets.Value("float64")}),
        )

    def _compute(self, wins):
        """{"win_rate": {"value", "low", "high", "n"}}. Raises ValueError for a number outside 0 to 1."""
        if outside := [win for win in wins if not 0 <= win <= 1]:
            raise ValueError(f"wins lie between 0 (all lost) and 1 (all won); found {outside[0]}")
        return {"win_rate": bootstrap_interval(wins)}
