"""The table of methods with best of n and PPO in other ways, and what is shown of the gate, the diagnosis and an alarm."""

import re
from pathlib import Path

import pytest
from helpers.evaluations import interval
from helpers.recipes import results
from matplotlib.axes import Axes

from data_prep.common.files import write_results
from data_prep.common.plots import as_png, canvas
from eval import report
from eval.reporting.drawing.pictures import score_against_kl
from eval.reporting.tables import comparison, verdict


def write_method(folder: Path, name: str, seconds: float, rate: float, points: float | None = None, **about) -> None:
    """What training `name` and comparing its sampled answers with SFT's leave in `folder`; `points` are the rater's."""
    if name != "best_of_8":
        write_results(folder, name, {"seconds": seconds, "metrics": {"episodes": 9216}})
    shown = interval(rate, rate - 0.02, rate + 0.02)
    metrics = {
        "win_rate": shown,
        "wins": 5,
        "ties": 2,
        "losses": 2,
        "exact_match": shown,
        "opponent_exact_match": shown,
    }
    if points is not None:
        sides = {side: interval(points, points - 0.1, points + 0.1) for side in ("model", "opponent", "difference")}
        metrics["eval_funcs"] = {"rubric": sides}
    won = {"judge": "a stand-in", "prompts": 9, "temperature": 1.0, "metrics": metrics, "opponent": "sft", **about}
    write_results(folder, f"win_rate_{name}_vs_sft", won)


def read(folder: Path) -> dict:
    return {path.stem: results(folder, path.stem) for path in sorted(folder.glob("*.json"))}


@pytest.fixture
def compared(tmp_path) -> Path:
    """The folder of a run with every row that the table of methods knows; the names do not sort in its order."""
    folder = tmp_path / "results"
    write_method(folder, "ppo", 150.0, 0.64, 0.40)
    write_method(folder, "ppo_seed1", 152.0, 0.62, 0.30, opponent="sft_seed1")
    write_method(folder, "ppo_seed2", 151.0, 0.66, 0.50)
    write_method(folder, "ppo_rater", 149.0, 0.80, 0.50)  # more than PPO, and no other method
    write_method(folder, "ppo_right_or_wrong", 148.0, 0.55)
    write_method(folder, "ppo_over_budget", 900.0, 0.90)
    write_method(folder, "dpo", 153.0, 0.60)
    write_method(folder, "best_of_8", 7.0, 0.72, model="sft", best_of=8)
    return tmp_path


def test_every_way_has_its_row(command, compared):
    assert command(report, "--run", compared)[0] == 0
    page, written = (compared / "report.html").read_text(), (compared / "results.md").read_text()
    table = re.search(r'<table id="methods">(.*?)</table>', page, re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]]
    assert [row[0] for row in rows] == [
        "PPO", "PPO, seed 1", "PPO, seed 2", "PPO, the rater itself as reward", "PPO on right or wrong only",
        "PPO beyond its KL budget", "DPO", "Best of 8 by the reward model",
    ]  # fmt: skip
    # log 8 - 7/8 = 2.079 - 0.875
    assert rows[-1][1:] == ["72.0% [70.0%, 74.0%]", "–", "at most 1.20", "–", "–"]
    assert rows[5][1:] == ["90.0% [88.0%, 92.0%]", "not run", "not run", "900 s", "9,216 answers"]
    assert "| Best of 8 by the reward model | 72.0% [70.0%, 74.0%] | – | at most 1.20 | – | – |" in written
    assert "starts from a fine-tuned model (SFT) and is compared with that one: sft, sft_seed1." in page


def test_who_is_compared_with_whom(compared):
    assert verdict(comparison(read(compared / "results"))) == [
        "Trained at equal wall time: 148 to 153 s.",
        "PPO's win rate is above 50% with its whole interval in 3 of 3 runs.",
        "Best of 8's win rate is higher than PPO's: 72.0% against 64.0% (mean of 3 seeds); their intervals do not overlap.",
        "With the rater itself as reward PPO gains 0.50 of the rater's points an answer over SFT, sampled; with the reward "
        "model it gains 80% of that (mean of 3 seeds, 60% to 100%).",
    ]


@pytest.mark.parametrize(
    ("removed", "rater", "said"),
    [
        (("ppo_seed1", "ppo_seed2"), 0.5, " it gains 80% of that."),
        (("ppo_rater",), 0.5, None),
        ((), 0.0, None),
        ((), -0.1, None),
        ((), None, None),
        (("win_rate_ppo_vs_sft", "win_rate_ppo_seed1_vs_sft", "ppo_seed2"), 0.5, None),
    ],
)
def test_the_share_of_the_rater_is_left_out_where_it_is_not_known(compared, removed, rater, said):
    write_method(compared / "results", "ppo_rater", 149.0, 0.8, rater)
    for name in removed:
        (compared / "results" / f"{name}.json").unlink()
    sentences = [each for each in verdict(comparison(read(compared / "results"))) if "the rater itself" in each]
    assert len(sentences) == (said is not None) and (not said or sentences[0].endswith(said))


def test_best_of_n_of_another_model_has_no_bound(tmp_path):
    # The bound is on the way from the model that is sampled; SFT is another one here.
    write_method(tmp_path, "best_of_8", 7.0, 0.7, model="ppo", best_of=8)
    (row,) = comparison(read(tmp_path))
    assert row["best_of"] is None and row["win_rate"]["value"] == 0.7 and verdict([row]) == []


CURVES = {
    "held-out score": [[0, 0.25], [30, 1.0], [60, 2.0]],
    "held-out KL": [[0, 0.0], [30, 4.5], [60, 9.0]],
    "held-out rubric": [[0, 0.5], [30, 0.9], [60, 0.2]],
}


def alarms(**steps: int) -> list[dict]:
    return [{"step": step, "alarm": name, "message": "!"} for name, step in steps.items()]


@pytest.mark.parametrize(
    ("raised", "place", "said"),
    [
        (alarms(length_drift=5, kl_over_budget=20, overoptimization=60), 9.0,
         " The alarm overoptimization was raised at update 60, at 9 nats per answer."),
        # Between two evaluations: a third of the way from 4.5 to 9.
        (alarms(kl_over_budget=40), 6.0, " The alarm kl_over_budget was raised at update 40, at 6 nats per answer."),
        (alarms(overoptimization=30) + alarms(overoptimization=60), 4.5, " raised at update 30, at 4.5 nats per answer."),
        (alarms(kl_over_budget=99), 9.0, " raised at update 99, at 9 nats per answer."),  # after the last evaluation
        (alarms(length_drift=30), None, "this is more than chance."),
    ],
)  # fmt: skip
def test_the_path_shows_where_the_alarm_was_raised(monkeypatch, raised, place, said):
    lines, names = [], []
    monkeypatch.setattr(Axes, "axvline", lambda self, x, **how: lines.append(x))
    monkeypatch.setattr(Axes, "annotate", lambda self, text, *at, **how: names.append(text))
    found = score_against_kl(CURVES, raised)
    assert lines == ([] if place is None else [pytest.approx(place)]) and found["words"].endswith(said)
    shown = [name for name in names if name.startswith("alarm ")]
    assert len(shown) == len(lines) and all(f"The {name} was raised at" in found["words"] for name in shown)


def test_the_run_beyond_its_budget_has_its_path(command, tmp_path):
    for name in ("ppo_over_budget", "ppo_rater"):
        about = {"seconds": 1, "metrics": {}, "curves": CURVES, "alarms": alarms(overoptimization=60)}
        write_results(tmp_path / "results", name, about)
    assert command(report, "--run", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text()
    section = re.search("<h2>PPO beyond its KL budget</h2>(.*?)<h2", page, re.S)[1]
    assert (
        "alarm overoptimization was raised at update 60" in section and "<strong>overoptimization</strong>" in section
    )
    assert page.count('<figure class="path">') == 1  # the rater is no reward model whose score could be fooled


def test_gate_and_diagnosis_show_their_verdicts(command, tmp_path):
    folder = tmp_path / "results"
    line = "fit: knows <more> than the policy; next: train"
    metrics = {"prompts": 300, "accuracy": interval(0.83, 0.8, 0.86), "worth": "points", "baselines": {"chance": {}}}
    metrics |= {"best_of_n": [{"n": 1}]}
    write_results(folder, "reward_gate_heldout", {"verdict": {"word": "fit", "line": line}, "metrics": metrics})
    figure, _ = canvas(1, 1)
    (folder / "reward_gate_heldout.png").write_bytes(as_png(figure))
    write_results(
        folder, "diagnosis", {"verdict": {"part": None, "line": "no part is weak: so it is"}, "checks": [{}]}
    )
    write_results(folder, "nothing", {"seconds": 1.0})
    assert command(report, "--run", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text()
    shown = page[page.index("Gates and alarms</h2>") : page.index("Methods compared</h2>")]
    assert re.findall("<h3>(.*?)</h3>\n<p>(.*?)</p>", shown) == [
        ("diagnosis", "No part is weak: so it is"),
        ("reward_gate_heldout", "Fit: knows &lt;more&gt; than the policy; next: train"),
    ]
    assert "<h3>nothing</h3>" not in shown and shown.count('<img src="data:image/png;base64,') == 1
    figures = [("prompts", "300"), ("accuracy", "83.0% [80.0%, 86.0%]"), ("worth", "points")]
    assert re.findall("<dt>(.*?)</dt><dd>(.*?)</dd>", shown) == figures
    for name in ("reward_gate_heldout", "diagnosis"):
        (folder / f"{name}.json").unlink()
    assert command(report, "--run", tmp_path)[0] == 0
    assert "Gates and alarms" not in (tmp_path / "report.html").read_text()
