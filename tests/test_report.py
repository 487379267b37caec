"""eval.report: what its page shows of a run, and its table of methods."""

import json
import re
from pathlib import Path

import pytest
from helpers.evaluations import evaluated_run, interval
from helpers.recipes import conversation, results

from data_prep.common.files import write_json, write_jsonl, write_results
from eval import report
from eval.reporting.reading.run_folder import data_files
from eval.reporting.tables import comparison, verdict


@pytest.fixture
def run(tmp_path, yes, no, zero_model_dir, write_conversations):
    return evaluated_run(tmp_path, {"base": zero_model_dir, "sft": no, "ppo": yes}, write_conversations)


def test_report(command, run):
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8)
    assert code == 0 and "Loading weights" not in err, err
    assert out.endswith("report.html: 5 results; not run: reward\n")
    page = (run / "report.html").read_text()
    # Once as the example, which is the first question that PPO alone answers exactly, and once among the others.
    assert "<script" not in page and page.count("Is &lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; bad?") == 2
    assert "(number 1) that PPO answers with exactly the reference; Base and SFT give other answers, no two" in page
    assert "4.3 M parameters from random weights on 40,960 tokens" in page
    assert "2.5 bits per byte on held-out text (before: 8.03)" in page
    assert "EOS rate 98%; loss 4 → 0.5" in page
    assert "score 0.25 → 1.5 on held-out prompts, KL –" in page  # a figure that the stage did not write
    assert "<dt>eval exact match last</dt><dd>62%</dd>" in page and "<dt>eval score last</dt><dd>1.5</dd>" in page
    assert "not run; it is run by <code>accelerate launch recipes/reward.py</code>" in page
    assert "Not run; it is run by <code>python -m eval.win_rate</code>" in page
    assert page.count('<dd class="right">yes ✓</dd>') == 3 and page.count("<dd>no</dd>") == 3
    assert page.count("<dd>(nothing)</dd>") == 3  # the base model of zeros
    assert "Not run: a chart of base, SFT and PPO." in page
    assert "75.0% [50.0%, 100.0%]" in page
    assert page.count('src="data:image/png;base64,') == 4
    assert "http" not in page and " src=" in page and "<link" not in page  # nothing beside itself


def test_results_json_has_every_figure_but_no_curve(command, run):
    command(report, "--run", run, "--max_new_tokens", 8, "--models")
    found = json.loads((run / "results.json").read_text())
    assert list(found["stages"]) == ["answers_ppo", "answers_sft", "ppo", "pretrain", "sft"]
    assert found["stages"]["sft"] == {
        "stage": "sft", "seconds": 3.0, "conversations": 12,
        "metrics": {"eos_rate": 0.98, "loss_first": 4.0, "loss_last": 0.5},
    }  # fmt: skip
    assert {"cpu", "cores", "torch", "python"} <= set(found["machine"])
    assert "Not run: none of the models  is in" in (run / "report.html").read_text()


def test_the_page_of_a_run_by_data_prep_start_shows_its_questions_and_claims_no_other_stage(command, run):
    """SFT of a model of the Hub, on the files that data_prep.start names."""
    questions = run / "data" / "conversations_heldout.json"
    write_jsonl(questions.with_suffix(".jsonl"), json.loads(questions.read_text()))
    write_jsonl(run / "data" / "conversations_train.jsonl", [conversation("1", "a?", "yes")])
    for gone in (questions, run / "base", run / "ppo", *(run / "results").glob("p*.json")):
        gone.unlink()
    answered = json.loads((run / "results" / "answers_sft.json").read_text())
    answered["metrics"]["eval_funcs"] = {"asked_fact": {"value": 0.75, "low": 0.5, "high": 1.0, "n": 2}}
    write_json(run / "results" / "answers_sft_heldout.json", answered)
    code, _, err = command(report, "--run", run, "--max_new_tokens", 8)
    assert code == 0, err
    page = (run / "report.html").read_text().replace("&#39;", "'")
    assert page.count("<dd>no</dd>") == 3  # to the first question, which the page opens with, and to both
    assert "SFT has learned from conversations to answer and to stop." in page
    for absent in (
        "from random weights: on text",
        "The base model only goes on",
        "PPO has learned",
        "Left: how often",
    ):
        assert absent not in page, absent
    assert "<b>How many answers are right.</b>" in page
    assert f"data_prep.check {run}/data/conversations_train.jsonl" in page


def test_report_of_an_empty_run_says_what_is_missing(command, tmp_path):
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    assert "0 results; not run: pretrain, sft, reward, ppo" in out
    page = (tmp_path / "report.html").read_text()
    for name in ("pretrain", "sft", "reward", "ppo"):
        assert f"not run; it is run by <code>accelerate launch recipes/{name}.py</code>" in page
    assert "there are no questions at" in page and "There are no finished models" in page


def test_what_lies_beside_the_data_or_cannot_be_read_does_not_end_the_report(command, tmp_path):
    """A journal and its lock, an archive, an unfinished folder and hidden files are no data files of the run."""
    data = tmp_path / "data"
    for name, content in {
        "whole.json": b'[{"a": 1}, {"a": 2}]', "lines.jsonl": b"{}\n{}\n{}\n", "half.json": b'[{"a": 1}, {"a"',
        "number.json": b"7", "rankings_by_people.jsonl.journal": b'{"settings": {}}\n{"row": 0}\n',
        ".rankings.json.lock": b"", "corpus.json.lock": b"", "talk.jsonl.gz": b"\x1f\x8b", "talk.json.gz": b"\x1f\x8b",
        ".mine.unfinished/kept.json": b"{", "mine.unfinished/kept.jsonl": b"{}\n", ".hidden.json": b"[]",
    }.items():  # fmt: skip
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(content)
    (data / "folder.json").mkdir()
    found = [(str(each["name"]), each["rows"]) for each in data_files(tmp_path)]
    assert found == [
        ("data/half.json", "–"),
        ("data/lines.jsonl", "3"),
        ("data/number.json", "–"),
        ("data/whole.json", "2"),
    ]
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "data/half.json" in page
    assert not [name for name in (".journal", ".lock", ".gz", "kept.json", ".hidden.json") if name in page]


def test_report_shows_samples_bars_and_noted_times(command, run):
    (run / "base").unlink()
    (run / "base").mkdir()
    rows = [{"step": step, "prompt": "<p>", "sample": f"sample {step}  <b>\n x"} for step in range(0, 110, 10)]
    write_jsonl(run / "base" / "samples.jsonl", rows)
    interval = {"value": 0.6, "low": 0.5, "high": 0.7, "n": 9}
    won = {"win_rate": interval, "wins": 5, "ties": 2, "losses": 2, "exact_match": interval}
    write_results(
        run / "results", "win_rate_ppo_vs_sft",
        {"judge": "a <stand-in>", "prompts": 9, "metrics": {**won, "opponent_exact_match": interval}},
    )  # fmt: skip
    write_results(run / "results", "reward_accuracy_x", {"metrics": {"accuracy": interval}})
    (run / "results" / "times.tsv").write_text("tokenizer\t7\npretrain.json\t99\n")
    code, out, err = command(report, "--run", run, "--limit", 1, "--max_new_tokens", 8)
    assert code == 0, err
    page = (run / "report.html").read_text()
    shown = [step for step in range(0, 110, 10) if f"sample {step} &lt;b&gt; x" in page]
    assert len(shown) == 6 and shown[0] == 0 and shown[-1] == 100
    assert "base: not\n  run." in page or "base: not run." in " ".join(page.split())
    assert "ppo vs sft" in page and "a &lt;stand-in&gt;" in page
    assert page.count('style="width:60.0%"') == 2 and page.count('style="left:50.0%;width:20.0%"') == 2
    assert "99 s" in page and "12 s" in page  # the whole command, and the training in it
    assert ">7 s<" in page


def write_method(folder: Path, name: str, seconds: float, rate: dict | None, **learned) -> None:
    """What training `name` and comparing it with SFT leave in `folder`."""
    episodes = {"episodes": learned.pop("episodes")} if "episodes" in learned else {}
    write_results(folder, name, {"seconds": seconds, **learned, "metrics": episodes})
    if rate:
        right = {"exact_match": rate, "opponent_exact_match": rate, "wins": 5, "ties": 2, "losses": 2}
        figures = {"win_rate": rate, "kl": interval(3.21, 3.0, 12.345), **right}
        about = {"judge": "a stand-in", "prompts": 9, "temperature": 1.0}
        write_results(folder, f"win_rate_{name}_vs_sft", {**about, "metrics": figures})


def test_methods_compared(command, tmp_path):
    folder = tmp_path / "results"
    write_method(folder, "ppo", 240.0, interval(0.65, 0.6, 0.7), episodes=12800)
    write_method(folder, "ppo_seed10", 250.4, None, episodes=12864)
    write_method(folder, "ppo_seed2", 250.0, interval(0.63, 0.45, 0.75), episodes=640)
    write_method(folder, "rloo", 262.0, interval(0.7, 0.66, 0.74), episodes=9000)
    write_method(folder, "dpo", 244.0, interval(0.6, 0.5, 0.7), pairs=5000)
    write_method(folder, "kto", 241.0, None, answers=300)
    for model, right in (("sft", 0.5), ("ppo", 0.6)):
        answered = {"model": model, "data": ["x.json"], "metrics": {"exact_match": interval(right, 0.4, 0.9)}}
        write_results(folder, f"answers_{model}_heldout", answered)
    code, out, err = command(report, "--run", tmp_path)
    assert code == 0, err
    page = (tmp_path / "report.html").read_text()
    table = re.search(r'<table id="methods">(.*?)</table>', page, re.S)[1]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", table, re.S)[1:]]
    assert rows == [
        ["PPO", "65.0% [60.0%, 70.0%]", "60.0% [40.0%, 90.0%]", "3.21 [3.00, 12.35]", "240 s", "12,800 answers"],
        ["PPO, seed 2", "63.0% [45.0%, 75.0%]", "not run", "3.21 [3.00, 12.35]", "250 s", "640 answers"],
        ["PPO, seed 10", "not run", "not run", "not run", "250 s", "12,864 answers"],
        ["DPO", "60.0% [50.0%, 70.0%]", "not run", "3.21 [3.00, 12.35]", "244 s", "5,000 pairs"],
        ["KTO", "not run", "not run", "not run", "241 s", "300 labelled answers"],
        ["RLOO", "70.0% [66.0%, 74.0%]", "not run", "3.21 [3.00, 12.35]", "262 s", "9,000 answers"],
    ]
    caption = (
        "Trained at equal wall time: 240 to 262 s. PPO's win rate is above 50% with its whole interval in 1 of 2 "
    )
    caption += (
        "runs. RLOO's win rate is higher than PPO's: 70.0% against 64.0% (mean of 2 seeds); their intervals overlap."
    )
    assert caption.replace("'", "&#39;") in table
    assert "sampled at temperature 1, against" in page and "(SFT: 50.0% [40.0%, 90.0%])" in page
    assert "<strong>65%</strong><span>ppo vs sft; a tie counts half</span>" in page  # not DPO's, which sorts before it
    written = (tmp_path / "results.md").read_text()
    assert "| win rate, sampled answers: ppo seed2 vs sft | 63.0% [45.0%, 75.0%] |" in written
    assert "| exact match, greedy, ppo: `x` | 60.0% [40.0%, 90.0%] |" in written
    assert "| RLOO | 70.0% [66.0%, 74.0%] | – | 3.21 [3.00, 12.35] | 262 s | 9,000 answers |" in written
    assert "| PPO, seed 10 | – | – | – | 250 s | 12,864 answers |" in written and caption in " ".join(written.split())


def test_a_run_of_ppo_alone_says_how_to_compare(command, run):
    command(report, "--run", run, "--max_new_tokens", 8, "--models")
    page = (run / "report.html").read_text()
    assert '<tr><td>PPO</td><td class="number">not run</td>' in page
    assert "Other methods and seeds: not run; run\n    <code>bash recipes/compare.sh</code>" in page


@pytest.mark.parametrize(
    ("seconds", "rates", "expected"),
    [
        ((100, 114.9), (0.6, 0.59), ["Trained at equal wall time: 100 to 115 s.", "above", "No other"]),
        ((100, 115), (0.6, 0.6), ["Not trained equally long: PPO for 100 s, GRPO for 115 s.", "above", "No other"]),
        ((300, 100), (0.5, 0.9), ["Not trained equally long: GRPO for 100 s, PPO for 300 s.", "above", "GRPO's"]),
    ],
)
def test_what_the_table_of_methods_says(tmp_path, seconds, rates, expected):
    for name, taken, rate in zip(("ppo", "grpo"), seconds, rates, strict=True):
        write_method(tmp_path, name, taken, interval(rate, rate - 0.05, rate + 0.05), episodes=1)
    said = verdict(comparison({path.stem: results(tmp_path, path.stem) for path in tmp_path.glob("*")}))
    assert len(said) == 3 and all(part in sentence for part, sentence in zip(expected, said, strict=True))
    if rates[1] == 0.9:
        assert said[1:] == [
            "PPO's win rate is above 50% with its whole interval in 0 of 1 runs.",
            "GRPO's win rate is higher than PPO's: 90.0% against 50.0%; their intervals do not overlap.",
        ]


HELD_OUT = {
    "held-out score": [[0, 0.25], [30, 1.0], [60, 2.0], [60, 2.0]],
    "held-out KL": [[0, 0.0], [30, 4.5], [60, 9.0]],
    "held-out exact_match": [[0, 0.4], [30, 0.7], [60, 0.5]],
}


@pytest.mark.parametrize(
    ("changes", "said", "pictures"),
    [
        ({}, "it was highest at update 30, 70%. Since then the score has risen and the agreement has fallen", 2),
        ({"held-out exact_match": [[0, 0.4], [60, 0.5]]}, "went from 40% to 50%; it was highest at update 60, 50%.<", 2),
        ({"held-out score": [[0, 0.25], [30, 1.0], [60, 0.9]]}, "it was highest at update 30, 70%.<", 2),
        ({"held-out exact_match": []}, "went from 0 to 9 nats per answer and the reward model's score from 0.25 to 2.<", 2),
        ({"held-out chrf": [[0, 0.1], [60, 0.2]]}, "it was highest at update 30, 70%. Since", 3),  # the first measure
        ({"held-out exact_match": [], "held-out length": [[0, 9.0], [60, 9.0]]}, "score from 0.25 to 2.<", 3),
        ({"held-out KL": []}, None, 3),  # and so each for itself
    ],
)  # fmt: skip
def test_score_against_kl(command, tmp_path, changes, said, pictures):
    curves = {"score": [[1, 0.25]], **HELD_OUT, **changes}
    write_results(tmp_path / "results", "ppo_seed1", {"seconds": 1, "metrics": {}, "curves": curves})
    assert command(report, "--run", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text().replace("&#39;", "'")
    shown = re.findall(r'<figure class="path"><figcaption>(.*?<)/figcaption>', page)
    assert len(shown) == (said is not None) and page.count('src="data:image/png;base64,') == pictures
    if said:
        assert said in shown[0] and shown[0].startswith("From update 0 to 60 the KL went from 0 to 9 nats per answer")
        assert f'alt="Score against KL. {shown[0][:-1]}"' in page
        assert ("a proxy for a human judge" in shown[0]) == bool(curves["held-out exact_match"])


def test_alarms_and_answers_along_the_way(command, run):
    evil = "<script>alert('x')</script>"
    ppo = json.loads((run / "results" / "ppo.json").read_text())
    alarms = [{"step": 12, "alarm": "length_drift", "message": f"{evil}; raise kl_coef"}]
    write_results(run / "results", "ppo", {**ppo, "alarms": alarms})
    write_results(run / "results", "ppo_seed1", {**ppo, "alarms": []})
    rows = [
        {"step": step, "prompt": prompt, "completion": f"{evil} {step}.{number}", "score": 0.12345}
        for step in (1, 20, 40)
        for number, prompt in enumerate([[{"role": "user", "content": evil}], "a <b> text", "third", "fourth"])
    ]
    write_jsonl(run / "ppo_seed1" / "completions.jsonl", rows)
    code, out, err = command(report, "--run", run, "--max_new_tokens", 8, "--models")
    assert code == 0, err
    page = (run / "report.html").read_text()
    shown = "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;"
    assert f"<li>Update 12: <strong>length_drift</strong>: {shown}; raise kl_coef</li>" in page
    assert page.count("No alarm was raised.") == 1 and "<script" not in page
    cells = re.findall(r'<tr><td>(.*?)</td><td>(.*?)</td><td class="number">0.123</td></tr>', page)
    asked = (shown, "a &lt;b&gt; text", "third")
    expected = [(prompt, f"{shown} {step}.{i}") for step in (1, 40) for i, prompt in enumerate(asked)]
    assert cells == expected and "Prompt, update 1<" in page and "Prompt, update 40<" in page
