"""Answers measured and judged by functions, and the chart, tables and example that the report makes of it."""

import re
from pathlib import Path

import matplotlib.image
import pytest
from helpers.evaluations import assert_small_picture, interval
from helpers.recipes import results
from matplotlib.axes import Axes

from data_prep.common.files import write_results
from data_prep.common.intervals import bootstrap_interval
from data_prep.judging.judges import short_name
from eval import answers, report, win_rate
from eval.reporting.drawing.chart import against_sft, chart
from eval.reporting.drawing.example import caption, example_question, mark
from eval.reporting.drawing.pictures import LABEL, MARGIN, answers_picture, score_against_kl


@pytest.fixture
def facts(write_conversations) -> Path:
    """Four questions whose references have a further fact on the second line."""
    rows = [("a/what/1", "yes\nmod"), ("b/what/2", "no\nmod"), ("c/module/3", "yes\nx"), ("d/module/4", "yes\nmod")]
    return write_conversations([(key, f"{key[-1]}?", reference) for key, reference in rows])


@pytest.fixture(scope="module")
def complete(talker) -> Path:
    return talker("yes\nmod")


REWARDS = [f"data_prep.rewards.{name}" for name in ("asked_fact", "all_facts", "rubric")]


def test_answers_measured_by_functions(command, complete, facts, tmp_path):
    arguments = ("--model", complete, "--conversations", facts, "--group_by", "/([a-z]+)/", "--max_new_tokens", 8)
    code, out, err = command(answers, *arguments, "--eval_funcs", *REWARDS, "--name", "x", "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "answers_x")
    # "yes", then "mod": both right, only the second, only the first, both right.
    points = {"asked_fact": [1, 0, 1, 1], "all_facts": [1, 0, 0, 1], "rubric": [3, -1, 1, 3]}
    assert found["metrics"]["eval_funcs"] == {name: bootstrap_interval(each) for name, each in points.items()}
    assert found["groups"]["what"]["eval_funcs"] == {
        name: bootstrap_interval(each[:2]) for name, each in points.items()
    }
    assert found["groups"]["module"]["eval_funcs"]["rubric"] == {"value": 2.0, "low": 1.0, "high": 3.0, "n": 2}
    assert "(module 50.0% [0.0%, 100.0%]; asked fact right 100.0% [100.0%, 100.0%]; all facts right 50.0% [" in out
    assert "EOS rate 100%; asked fact right 75.0% [25.0%, 100.0%]; all facts right 50.0% [0.0%, 100.0%]; " in out
    assert "; rater's points 1.50 [" in out and "eval_funcs" not in found["examples"][0]


@pytest.mark.parametrize(("temperature", "compared"), [(1.0, 16), (0, 1)])
def test_win_rate_by_a_function(command, complete, yes, facts, tmp_path, temperature, compared):
    # "yes\nmod" gets 3, -1, 1 and 3 points, "yes" 2, -2, 2 and 2: where the further fact is wrong, saying less wins.
    arguments = ("--model", complete, "--opponent", yes, "--conversations", facts, "--max_new_tokens", 8)
    arguments += ("--judge", REWARDS[2], "--eval_funcs", *REWARDS, "--temperature", temperature)
    code, out, err = command(win_rate, *arguments, "--name", "x", "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "win_rate_x")
    metrics = found["metrics"]
    assert metrics["win_rate"] == bootstrap_interval([1, 1, 0, 1]) and found["temperature"] == temperature
    assert (metrics["wins"], metrics["ties"], metrics["losses"]) == (3 * compared, 0, compared)
    points = {
        "asked_fact": ([1, 0, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]),
        "all_facts": ([1, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 1]),
        "rubric": ([3, -1, 1, 3], [2, -2, 2, 2], [1, 1, -1, 1]),
    }
    sides = ("model", "opponent", "difference")
    # 1.959964 + 0.841621 = 2.801585 standard errors: the root of the sum of squares about the mean / (4 - 1), / 4 prompts.
    detectable = {
        "asked_fact": None,  # all alike
        "all_facts": pytest.approx(2.801585 * (1 / 3 / 4) ** 0.5),  # 4 times 1/2 from 1/2: squares of 1
        "rubric": pytest.approx(2.801585 * (3 / 3 / 4) ** 0.5),  # 3 times 1/2 and once 3/2 from 1/2: squares of 3
    }
    assert metrics["eval_funcs"] == {
        name: {**dict(zip(sides, map(bootstrap_interval, each), strict=True)), "detectable": detectable[name]}
        for name, each in points.items()
    }
    # The outcomes are 3 times 1/4 and once 3/4 from 3/4: squares of 3/4.
    assert metrics["detectable"] == pytest.approx(2.801585 * (3 / 4 / 3 / 4) ** 0.5)
    assert "; so many prompts would show 70.0 percentage points; exact match of its answers " in out
    assert found["judge"] == (
        "a stand-in for a human judge: the function data_prep.rewards.rubric (the higher value wins, equal ones tie)"
    )
    assert f"The judge is {found['judge']}\n" in out and found["examples"][2]["outcome"] == 0.0
    shown = {
        "asked fact right 75.0% [25.0%, 100.0%] against 75.0% [25.0%, 100.0%]: +0.0 [+0.0, +0.0] percentage points":
        "what so many prompts would show is not known: all are alike",
        "all facts right 50.0% [0.0%, 100.0%] against 0.0% [0.0%, 0.0%]: +50.0 [+0.0, +100.0] percentage points":
        "so many prompts would show 80.9 percentage points",
    }  # fmt: skip
    for difference, smallest in shown.items():
        assert f"x: {difference}; {smallest}\n" in out
    assert "x: rater's points 1.50 [" in out
    assert " against 1.00 [-1.00, 2.00]: +0.50 [-0.50, +1.00]; so many prompts would show 1.40\n" in out


def test_equal_values_tie(command, complete, yes, facts, tmp_path):
    arguments = ("--model", complete, "--opponent", yes, "--conversations", facts, "--max_new_tokens", 8)
    arguments += ("--judge", REWARDS[0], "--name", "x", "--results_dir", tmp_path, "--num_return_sequences", 2)
    assert command(win_rate, *arguments)[0] == 0
    metrics = results(tmp_path, "win_rate_x")["metrics"]
    assert metrics["win_rate"] == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 4} and metrics["ties"] == 16
    assert "eval_funcs" not in metrics


UNFIT = """
def few(prompts, completions, **columns): return [1.0, 2.0]
def nan(prompts, completions, **columns): return [float("nan")] * len(completions)
"""


@pytest.mark.parametrize(
    ("module", "option", "names", "found"),
    [
        (win_rate, "--judge", ["data_prep.rewards.x"], "data_prep.rewards.x: no such function"),
        (win_rate, "--judge", ["{}:few"], "few: 2 rewards for 1 answers; expected one each"),
        (win_rate, "--eval_funcs", ["{}:absent"], "functions.py:absent: no such function"),
        (answers, "--eval_funcs", ["{}:absent"], "functions.py:absent: no such function"),
        (answers, "--eval_funcs", ["{}:nan"], "nan: found nan for an answer; expected finite numbers"),
        (answers, "--eval_funcs", REWARDS[:1] * 2, "--eval_funcs: found two functions named asked_fact"),
    ],
)
def test_a_function_that_does_not_fit_is_refused_before_the_models_are_read(
    command, facts, tmp_path, module, option, names, found
):
    (tmp_path / "functions.py").write_text(UNFIT)
    names = [name.format(tmp_path / "functions.py") for name in names]
    arguments = ("--model", tmp_path / "no", "--conversations", facts, option, *names)
    code, _, err = command(module, *arguments, *(("--opponent", tmp_path / "no") if module is win_rate else ()))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and found in errors[0] and "Traceback" not in err


# The report


RUBRIC = "a stand-in for a human judge: the function data_prep.rewards.rubric"


def write_stage(folder: Path, stage: str, asked: float, complete: float, points: float) -> None:
    """What asking the model `stage` the held-out questions leaves in `folder`."""
    functions = {"asked_fact": interval(asked, 0.1, 0.9), "all_facts": interval(complete, 0.0, 0.9)}
    functions["brevity"] = interval(0.25, -1.0, 1.0)
    functions["rubric"] = interval(points, -2.0, 3.0)
    metrics = {"exact_match": interval(complete, 0.0, 0.9), "eval_funcs": functions}
    about = {"model": f"runs/x/{stage}", "data": ["data/conversations_heldout.json"]}
    write_results(folder, f"answers_{stage}_heldout", {**about, "metrics": metrics})


def write_rate(folder: Path, name: str, temperature: float, rate: dict, judge: str = RUBRIC, **functions) -> None:
    """What comparing two models leaves in `folder`; `functions` are (model, opponent, difference) each."""
    sides = ("model", "opponent", "difference")
    metrics = {"win_rate": rate, "wins": 5, "ties": 2, "losses": 2, "exact_match": rate, "opponent_exact_match": rate}
    if functions:
        metrics["eval_funcs"] = {key: dict(zip(sides, each, strict=True)) for key, each in functions.items()}
    about = {"judge": judge, "prompts": 9, "temperature": temperature}
    write_results(folder, f"win_rate_{name}", {**about, "metrics": metrics})


@pytest.fixture
def judged(tmp_path) -> Path:
    """The folder of a run with results of base, SFT and PPO by functions, greedy and sampled, and no model."""
    folder = tmp_path / "judged" / "results"
    for stage, figures in {"base": (0.1, 0.0, -1.5), "sft": (0.77, 0.003, 1.23), "ppo": (0.797, 0.5, 1.95)}.items():
        write_stage(folder, stage, *figures)
    facts = (interval(0.797, 0.1, 0.9), interval(0.77, 0.1, 0.9), interval(0.027, -0.0031, 0.05))
    points = (interval(1.95, 1.8, 2.1), interval(1.23, 1.1, 1.3), interval(0.72, -0.001, 0.8))
    write_rate(folder, "ppo_vs_sft", 1.0, interval(0.64, 0.62, 0.66), asked_fact=facts)
    write_rate(folder, "ppo_vs_sft_greedy", 0, interval(0.81, 0.78, 0.84), rubric=points)
    write_rate(folder, "sft_vs_base_greedy", 0, interval(0.93, 0.9, 0.97))
    write_rate(folder, "sft_vs_base", 1.0, interval(0.9, 0.8, 0.95), judge="agreement")
    write_results(folder, "ppo", {"seconds": 150.0, "metrics": {"episodes": 9216}})
    write_results(folder, "dpo", {"seconds": 150.0, "metrics": {}, "pairs": 7})
    return folder.parent


def read_run(run: Path) -> dict:
    return {path.stem: results(run / "results", path.stem) for path in sorted(run.glob("results/*.json"))}


def test_win_rates_against_sft_are_turned_round_and_of_one_judge(judged):
    def near(value: float, low: float, high: float) -> dict:
        return {key: pytest.approx(each) for key, each in interval(value, low, high).items()}

    # SFT wins 93% against the base model, so that wins 7% against SFT; the sampled answers had another judge.
    judge, rates, left_out = against_sft(read_run(judged))
    assert left_out == ["sft vs base"] and judge == RUBRIC and list(rates) == ["greedy", "sampled"]
    assert rates["greedy"] == {"ppo": interval(0.81, 0.78, 0.84), "base": near(0.07, 0.03, 0.1)}
    assert rates["sampled"] == {"ppo": interval(0.64, 0.62, 0.66)}
    write_rate(judged / "results", "base_vs_sft", 1.0, interval(0.08, 0.05, 0.2))
    assert against_sft(read_run(judged))[1]["sampled"]["base"] == interval(0.08, 0.05, 0.2)
    assert against_sft({}) == ("", {}, [])


def test_the_page_opens_with_the_chart(command, judged):
    code, out, err = command(report, "--run", judged)
    assert code == 0, err
    page = (judged / "report.html").read_text().replace("&#39;", "'")
    figure = re.search(
        r'<h2 id="wins">Who is preferred</h2>\s*<figure class="chart"><img src="data:image/png;base64,[^"]*" alt="(.*?)">'
        "<figcaption><b>(.*?)</b>(.*?)</figcaption>",
        page,
    )
    assert figure[1] == (
        "Win rate against SFT, Base model: 7.0% [3.0%, 10.0%] (greedy). Win rate against SFT, PPO: 81.0% [78.0%, 84.0%] "
        "(greedy), 64.0% [62.0%, 66.0%] (sampled). Asked fact right, greedy: Base model 10.0% [10.0%, 90.0%], SFT 77.0% "
        "[10.0%, 90.0%], PPO 79.7% [10.0%, 90.0%]. All facts right, greedy: Base model 0.0% [0.0%, 90.0%], SFT 0.3% "
        "[0.0%, 90.0%], PPO 50.0% [0.0%, 90.0%]."
    )
    assert figure[2] == (
        "Left: how often a judge prefers a model's answer to SFT's; above the dashed line the model is preferred. Right: how "
        "many answers are right."
    )
    assert figure[3] == (
        "Win rate: share of comparisons with SFT's answers that are won, on 9 prompts; a tie counts half. The judge is "
        f"{RUBRIC}. Left out, as another judged: sft vs base. Right answers: share of greedy answers to 9 prompts. Black "
        "lines: 95 % intervals over prompts."
    )
    assert page.index('class="chart"') < page.index('class="tiles"') and page.count('src="data:image/png') == 1


@pytest.mark.parametrize(
    ("kept", "words"),
    [
        (("win_rate_ppo_vs_sft",), "Win rate against SFT, PPO: 64.0% [62.0%, 66.0%] (sampled)."),
        (("answers_sft_heldout", "win_rate_sft_vs_base"), "Win rate against SFT, Base model: 10.0% [5.0%, 20.0%] (sampled). "
        "Asked fact right, greedy: SFT 77.0% [10.0%, 90.0%]. All facts right, greedy: SFT 0.3% [0.0%, 90.0%]."),
        (("answers_ppo_heldout",), "Asked fact right, greedy: PPO 79.7% [10.0%, 90.0%]. All facts right, greedy: PPO 50.0% "
        "[0.0%, 90.0%]."),
    ],
)  # fmt: skip
def test_the_chart_draws_what_is_there(judged, kept, words, tmp_path):
    drawn = chart({name: result for name, result in read_run(judged).items() if name in kept})
    assert drawn["words"] == words
    for name in ("picture", "png"):
        (tmp_path / f"{name}.png").write_bytes(drawn[name])
        assert_small_picture(tmp_path / f"{name}.png")
    heights = [int.from_bytes(drawn[name][20:24]) for name in ("picture", "png")]
    assert heights[0] == 410 < heights[1]  # the one that stands alone has its caption in it
    assert chart({"ppo": {"metrics": {}}, "answers_sft": {"metrics": {"eval_funcs": {}}}}) is None


def test_no_bar_reaches_the_border_of_the_chart_and_no_text_breaks_it(judged, tmp_path):
    found = read_run(judged)
    for name in ("win_rate_ppo_vs_sft", "win_rate_ppo_vs_sft_greedy"):
        found[name]["judge"] = "$x^2$ \\frac{ \x1b[31m " + "W" * 900
        found[name]["metrics"]["win_rate"] = interval(1.0, 1.0, 1.0)
    for name in ("asked_fact", "all_facts"):
        found["answers_ppo_heldout"]["metrics"]["eval_funcs"][name] = interval(1.0, 0.9, 1.0)
    (tmp_path / "x.png").write_bytes(chart(found)["png"])
    image = matplotlib.image.imread(tmp_path / "x.png")
    assert all((part == 1).all() for part in (image[:8], image[-4:], image[:, :14], image[:, -12:]))


def test_functions_in_the_tables(command, judged):
    assert command(report, "--run", judged)[0] == 0
    page = (judged / "report.html").read_text().replace("&#39;", "'")
    written = (judged / "results.md").read_text()
    shown = re.search('<h2 id="measures">Answers measured by functions</h2>(.*?)<h2', page, re.S)[1]
    # Those of data_prep/rewards.py first, then others by their names.
    assert re.findall("<h3>(.*?)</h3>", shown) == ["Asked fact right", "All facts right", "Rater's points", "Brevity"]
    cells = re.findall(r'<td class="number">(.*?)</td>', shown)
    assert cells[8:12] == ["-1.50 [-2.00, 3.00]", "1.23 [-2.00, 3.00]", "1.95 [-2.00, 3.00]", "9"]
    assert "| asked fact right, greedy, sft: `conversations_heldout` | 77.0% [10.0%, 90.0%] |" in written
    assert "| rater's points, greedy, base: `conversations_heldout` | -1.50 [-2.00, 3.00] |" in written

    sides = re.search(r'<table id="both_sides">(.*?)</table>', page, re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", sides, re.S)[1:]]
    assert rows == [
        ["ppo vs sft", "sampled", "asked fact right", "79.7% [10.0%, 90.0%]", "77.0% [10.0%, 90.0%]",
         "+2.7 [-0.3, +5.0] percentage points"],
        ["ppo vs sft", "greedy", "rater's points", "1.95 [1.80, 2.10]", "1.23 [1.10, 1.30]", "+0.72 [+0.00, +0.80]"],
    ]  # fmt: skip
    assert (
        "| asked fact right, sampled answers, difference: ppo vs sft | +2.7 [-0.3, +5.0] percentage points |"
        in written
    )
    assert "| win rate, greedy answers: ppo vs sft | 81.0% [78.0%, 84.0%] |" in written
    assert "| win rate, sampled answers: ppo vs sft | 64.0% [62.0%, 66.0%] |" in written
    judges = (
        f"The judge of ppo vs sft, ppo vs sft greedy, sft vs base greedy is {RUBRIC}. The judge of sft vs base is agr"
    )
    assert judges in page

    methods = re.search(r'<table id="methods">(.*?)</table>', page, re.S)[1]
    assert re.findall(r"<th[^>]*>(.*?)</th>", methods) == [
        "Method", "Win rate", "Win rate, greedy", "Asked fact right, greedy", "All facts right, greedy",
        "Rater's points, greedy", "Brevity, greedy", "KL, nats per answer", "Training", "Learned from",
    ]  # fmt: skip
    assert "| DPO | – | – | – | – | – | – | – | 150 s | 7 pairs |" in written
    assert (
        "| PPO | 64.0% [62.0%, 66.0%] | 81.0% [78.0%, 84.0%] | 79.7% [10.0%, 90.0%] | 50.0% [0.0%, 90.0%] |" in written
    )


def test_the_exact_match_is_left_out_where_all_facts_are_counted(command, judged):
    # With complete references it is the same figure twice: in the tiles, the tables, and the list of results.md.
    assert command(report, "--run", judged)[0] == 0
    page, written = (judged / "report.html").read_text(), (judged / "results.md").read_text()
    tiles = re.findall(r'<div class="tile"><span>(.*?)</span><strong>(.*?)</strong><span>(.*?)</span>', page)
    asked = "base 10% → sft 77% → ppo 80%; conversations_heldout"
    assert tiles[1] == ("Asked fact right, greedy", "80%", asked)
    assert tiles[3] == ("Win rate, greedy", "81%", "ppo vs sft; a tie counts half")
    assert "<h2>Exact match</h2>" not in page and "xact match, greedy" not in page + written
    said = "Greedy answers are those to held-out questions (SFT: asked fact right 77.0% [10.0%, 90.0%]; all facts right 0.3%"
    assert said in page and "Exact match is that of" not in page

    # DPO's answers were not measured by functions.
    about = {"model": "runs/x/dpo", "data": ["data/conversations_heldout.json"]}
    right = {"exact_match": interval(0.4, 0.3, 0.5)}
    write_results(judged / "results", "answers_dpo_heldout", {**about, "metrics": right})
    (judged / "results" / "win_rate_ppo_vs_sft_greedy.json").unlink()
    assert command(report, "--run", judged)[0] == 0
    page, written = (judged / "report.html").read_text(), (judged / "results.md").read_text()
    assert re.findall(r"\| exact match, greedy, (\w+): `conversations_heldout` \| (.*?) \|", written) == [
        ("dpo", "40.0% [30.0%, 50.0%]")
    ]
    assert "<h2>Exact match</h2>" in page and '<th class="number data">Exact match, greedy</th>' in page
    assert "Exact match is that of greedy answers to held-out questions (SFT: 0.3% [0.0%, 90.0%]).\n" in page
    tiles = re.findall(r'<div class="tile"><span>(.*?)</span><strong>(.*?)</strong><span>(.*?)</span>', page)
    assert tiles[1][0] == "Asked fact right, greedy"
    assert tiles[3] == ("Win rate", "64%", "ppo vs sft; a tie counts half")


def test_publish_the_chart(command, judged, tmp_path):
    folder = tmp_path / "published"
    folder.mkdir()
    code, out, err = command(report, "--run", judged, "--publish", folder)
    assert code == 0 and f"{folder}: results.json, RESULTS.md, stages.png\n" in out, err
    assert_small_picture(folder / "stages.png")
    for path in judged.glob("results/*_*.json"):
        path.unlink()
    assert command(report, "--run", judged, "--publish", folder)[0] == 0
    assert not (folder / "stages.png").exists()  # it would show another run


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("it is\nso", ("right", "all facts right")),
        (" it  is\n\nso ", ("right", "all facts right")),
        ("it is", ("partly", "asked fact alone")),
        ("it is\nnot", ("partly", "asked fact right, not all of the rest")),
        ("it is\nso\nso", ("partly", "asked fact right, not all of the rest")),
        ("it is so", ("wrong", "asked fact wrong")),
        ("so\nit is", ("wrong", "asked fact wrong")),
        ("", ("wrong", "asked fact wrong")),
    ],
)
def test_marks_of_answers(answer, expected):
    assert mark(answer, "it is\nso") == expected


def test_marks_where_there_is_one_fact():
    assert mark("it  is", "it is\n") == ("right", "exact match") and mark("it", "it is") == ("wrong", "no exact match")
    assert mark("it\nis", "it is") == ("right", "exact match") and mark("", "") == ("right", "exact match")


def test_the_example_shows_all_facts_beside_the_asked_one():
    questions = [{"reference": "a b\nc"} for _ in range(5)]
    answers = {
        "base": ["a b\nc", "a b", "x", "a b", "x"],  # whatever it says
        "sft": ["x", "a b\nd", "a b\nc", "a b", "a b"],  # wrong; not the asked fact alone; all; alone; alone
        "ppo": ["a b\nc", "a b\nc", "a b\nc", "a b\n c", "a b\nc"],
    }
    question, given = example_question(questions, answers)
    assert question["number"] == 4 and given == {"base": "a b", "sft": "a b", "ppo": "a b\n c"}
    assert example_question(questions[:3], {name: texts[:3] for name, texts in answers.items()}) is None
    # PPO gives one fact, too.
    assert example_question(questions, {**answers, "ppo": answers["sft"]}) is None


def test_a_page_looks_at_the_first_questions_and_a_published_one_at_all(
    command, complete, yes, write_conversations, tmp_path
):
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    for name, folder in (("sft", yes), ("ppo", complete)):
        (run / name).symlink_to(folder)
    questions = [(str(number), f"{number}?", "no\nmod" if number < 70 else "yes\nmod") for number in range(1, 72)]
    write_conversations(questions).rename(run / "data" / "conversations_heldout.json")
    arguments = ("--run", run, "--max_new_tokens", 8, "--limit", 1)
    assert command(report, *arguments)[0] == 0
    assert "How it was chosen" not in (run / "report.html").read_text()
    code, out, err = command(report, *arguments, "--publish", tmp_path)
    assert code == 0 and "answers.png\n" in out, err
    assert "(number 70) that PPO answers with all facts" in (run / "report.html").read_text()
    assert_small_picture(tmp_path / "answers.png")


def test_the_caption_of_an_example_with_further_facts():
    metrics = {"exact_match": interval(0.4, 0.3, 0.5), "eval_funcs": {"all_facts": interval(0.503, 0.4, 0.6)}}
    stages = {"answers_ppo_heldout": {"model": "runs/x/ppo", "data": ["asked.json"], "metrics": metrics}}
    said = caption({"number": 3, "reference": "a\nb"}, {"sft": "a", "ppo": "a\nb"}, stages, Path("data/asked.json"))
    assert said == (
        "How it was chosen: the first question of asked.json (number 3) that PPO answers with all facts of the reference "
        "while SFT gives the asked fact alone. It shows what changes, not how often: the share with all facts right on "
        "held-out questions is PPO 50.3%."
    )


def test_report_shows_how_right_an_answer_is(command, complete, yes, talker, facts, tmp_path):
    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    for name, folder in (("base", talker("no")), ("sft", yes), ("ppo", complete)):
        (run / name).symlink_to(folder)
    facts.rename(run / "data" / "conversations_heldout.json")
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--limit", 3)
    assert code == 0, err
    assert "3 of 4 prompts are used (--limit)" in out
    page = (run / "report.html").read_text()
    assert "(number 1) that PPO answers with all facts of the reference while SFT gives the asked fact alone." in page
    example = re.search(r'<div class="question example">(.*?)</div>', page, re.S)[1]
    assert re.findall(r"<d[td].*?</d[td]>", example, re.S) == [
        "<dt>reference</dt>", "<dd>yes\nmod</dd>",
        "<dt>Base</dt>", "<dd>no</dd>",
        "<dt>SFT</dt>", '<dd class="partly">yes ✓ <small>asked fact alone</small></dd>',
        "<dt>PPO</dt>", '<dd class="right">yes\nmod ✓ <small>all facts right</small></dd>',
    ]  # fmt: skip


def test_a_picture_keeps_the_lines_of_an_answer(tmp_path):
    def height(text: str) -> int:
        question = {"prompt": [{"role": "user", "content": "?"}], "reference": "yes"}
        return int.from_bytes(answers_picture(question, {"ppo": text}, {"ppo": ("wrong", "")}, "")[20:24])

    one = height("a")
    assert [height(text) - one for text in ("a b", "a\nb", "a\n\nb\nc\n")] == [0, 25, 50]  # a line is 25 pixels
    assert height("a\n" * 9) - one == height("word " * 900) - one == 75  # four lines, the last of them shortened


def test_what_a_picture_has_no_room_for_is_marked(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, text, **font: drawn.append(text))
    question = {"prompt": [{"role": "user", "content": "?"}], "reference": "yes"}
    long = "\n".join(["a", "b " * 300, "c", "d", "e"])
    answers_picture(question, {"ppo": long}, {"ppo": ("wrong", "no exact match")}, "")
    first, second, third, fourth = drawn[1:5]
    assert first == "a" and third.endswith("b …") and fourth == "c d e" and second.startswith("b b")


def test_the_rubric_beside_score_and_kl():
    curves = {"held-out score": [[0, 0.25], [30, 1.0], [60, 2.0]], "held-out KL": [[0, 0.0], [30, 4.5], [60, 9.0]]}
    said = score_against_kl({**curves, "held-out rubric": [[0, 0.44], [30, 0.94], [60, 0.9]]})["words"]
    assert said.endswith(
        " The rating (rater's points of sampled answers, a proxy for a human judge) went from 0.44 to 0.9; it was highest "
        "at update 30, 0.94. Since then the score has risen and the rating has fallen, as in over-optimization. The alarms "
        "say whether this is more than chance."
    )
    said = score_against_kl({**curves, "held-out all_facts": [[0, 0.1], [60, 0.5]]})["words"]
    assert (
        "(all facts right of sampled answers, a proxy for a human judge) went from 10% to 50%; it was highest" in said
    )


@pytest.mark.parametrize("title", ["Base, prompted", "a name that is far longer than the column of names"])
def test_the_name_of_a_model_does_not_reach_its_answer(title, tmp_path):
    question = {"prompt": [{"role": "user", "content": "?"}], "reference": "yes"}
    path = tmp_path / "answers.png"
    path.write_bytes(answers_picture(question, {title: "no"}, {title: ("wrong", "")}, ""))
    between = matplotlib.image.imread(path)[80:, MARGIN + LABEL - 7 : MARGIN + LABEL - 2, :3]
    assert between.min() > 0.9


@pytest.mark.parametrize(
    ("judge", "name"),
    [
        ("data_prep.rewards.rubric", "rubric"),
        ("my.py:brevity", "brevity"),
        ("meta-llama/Llama-3.1-8B-Instruct", "Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen2.5-0.5B-Instruct"),
        ("runs/judge.yaml", "judge"),
        ("data/people.v2.jsonl", "people.v2"),
        ("reference", "reference"),
    ],
)
def test_results_of_different_judges_have_different_names(judge, name):
    assert short_name(judge) == name
