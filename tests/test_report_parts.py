"""Parts of the report: the prompted base model, masks, the rater's reasons, the chain, two runs, the Chinese page."""

import json
import re
from pathlib import Path

import pytest
from helpers.evaluations import interval
from transformers import AutoTokenizer

from data_prep import check
from data_prep.common.files import write_json, write_jsonl, write_results
from eval import report
from eval.reporting.chain import chain
from eval.reporting.reading import asking
from eval.reporting.reading.asking import ask, fake_dialogue, first_turns
from eval.reporting.reading.masking import mask_example, texts_of_tokens
from eval.reporting.reading.rankings import ranking_example, score_histograms, score_rankings, why
from eval.reporting.reading.run_folder import model_folders
from eval.reporting.sections import READ_AS
from eval.reporting.stages import METHODS, STAGES
from eval.reporting.tables import of_different_judges
from eval.reporting.two_runs import difference
from eval.reporting.words import say, speaking, translations

ROOT = Path(__file__).parents[1]


def spoken(rows: list[tuple[str, str]]) -> list[dict]:
    return [{"conversations": [{"from": "human", "value": a}, {"from": "gpt", "value": b}]} for a, b in rows]


def test_a_made_up_dialogue_never_holds_the_question_or_its_answer(tmp_path):
    rows = [(f"{number}?", f"answer {number}") for number in range(30)] + [("long?", "x" * 300)]
    write_json(tmp_path / "talk.json", spoken(rows))
    question = {"prompt": [{"role": "user", "content": "0?"}], "reference": "answer 10"}
    turns = first_turns(tmp_path / "talk.json", question)
    assert turns == [("1?", "answer 1"), ("11?", "answer 11"), ("20?", "answer 20")]  # thirds of the 28 that are left
    assert fake_dialogue(turns[:1], "0?") == "Q: 1?\nA: answer 1\n\nQ: 0?\nA:"


def test_no_model_is_asked_twice(talker, tmp_path, monkeypatch):
    (tmp_path / "ppo").symlink_to(talker("yes"))
    rows = [{"prompt": [{"role": "user", "content": f"{number}?"}]} for number in range(3)]
    assert ask(tmp_path, ["ppo", "none"], rows[:2], 8) == {"ppo": ["yes", "yes"]}
    path = tmp_path / "results" / "report" / "answers_ppo.json"
    kept = json.loads(path.read_text())
    kept["kept"] = dict.fromkeys(kept["kept"], "kept")
    write_json(path, kept)
    assert ask(tmp_path, ["ppo"], rows, 8) == {"ppo": ["kept", "kept", "yes"]}
    monkeypatch.setattr(asking, "stamp", lambda folder: "another model")
    assert ask(tmp_path, ["ppo"], rows[:1], 8) == {"ppo": ["yes"]}


def test_the_page_tells_what_the_doctor_found(command, tmp_path):
    """Of four rows one says nothing, and one is there twice."""
    rows = [[("a?", "yes")], [("b?", "no")], [("b?", "no")], [("c?", "")]]
    write_json(tmp_path / "data" / "conversations.json", [row for turns in rows for row in spoken(turns)])
    code, _, err = command(report, "--run", tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    words = f"data_prep.check {tmp_path}/data/conversations.json --output {tmp_path}/doctor"
    assert code == 0 and f"<code>python -m {words}</code>" in page, err
    assert command(check, *words.split()[1:])[0] == 0
    assert command(report, "--run", tmp_path)[0] == 0
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "doctor/report/check.json</span>: 4 rows in, 3 kept, 1 quarantined, 0 repaired." in page
    assert "data_prep.check" not in page
    assert '<td>duplicate conversation</td><td class="number">1</td>' in page


def test_the_table_of_models_has_the_context_by_whatever_name_the_config_has_it(tmp_path):
    text = {"max_position_embeddings": 4321, "vocab_size": 77}
    for name, config in {
        "base": {"model_type": "gpt2", "n_positions": 96, "vocab_size": 88},
        "sft": {"model_type": "gemma3", "text_config": text, "architectures": ["Gemma3ForConditionalGeneration"]},
        "ppo": {"model_type": "unheard_of"},
    }.items():
        write_json(tmp_path / name / "config.json", config)
    found = {each.pop("name"): each for each in model_folders(tmp_path)}
    assert found == {
        "base": {"kind": "–", "parameters": "0", "context": "96", "vocabulary": "88"},
        "sft": {"kind": "Gemma3ForConditionalGeneration", "parameters": "0", "context": "4,321", "vocabulary": "77"},
        "ppo": {"kind": "–", "parameters": "0", "context": "–", "vocabulary": "–"},
    }


def test_the_tokens_that_carry_loss_are_the_assistants(tiny_chat_tokenizer, tmp_path):
    tiny_chat_tokenizer.save_pretrained(tmp_path / "sft")
    write_json(tmp_path / "talk.json", spoken([("Hi", "Yo"), ("Hi", "abcd")]))
    found = mask_example(tmp_path / "sft", tmp_path / "talk.json")
    said = [("<|user|>", False), ("H", False), ("i", False), ("<|end|>", False), ("<|assistant|>", False)]
    assert found["tokens"] == [*said, ("Y", True), ("o", True), ("<|end|>", True)]
    assert (found["learned"], found["total"], found["mean"], found["measured"]) == (3, 8, 9.0, 2)
    assert found["share"] == pytest.approx(8 / 18)
    assert mask_example(tmp_path / "sft", tmp_path / "none.json") is None


def test_tokens_that_are_one_letter_together_are_one_piece(tiny_chat_tokenizer):
    ids = AutoTokenizer.from_pretrained(tiny_chat_tokenizer.name_or_path)("a汉", add_special_tokens=False)["input_ids"]
    assert len(ids) == 4  # 汉 is three bytes
    assert texts_of_tokens(tiny_chat_tokenizer, ids, [False, True, True, True]) == [("a", False), ("汉", True)]


def test_the_raters_reasons_add_up_to_its_score(tmp_path):
    assert why("a\nb\nb\nx", "a\nb") == [
        (2.0, "the fact that was asked for"), (1.0, "a further fact"), (-1.0, "wrong or repeated"), (-1.0, "wrong or repeated"),
    ]  # fmt: skip
    row = {"id": "1", "prompt": "?", "completions": ["b", "a\nb", "a"], "ranks": [2, 0, 1], "scores": [-2.0, 3.0, 9.0]}
    write_jsonl(tmp_path / "rankings.jsonl", [{"id": "0", "completions": "no list"}, row])
    write_jsonl(tmp_path / "completions.jsonl", [{"id": "1", "reference": "a\nb"}])
    found = ranking_example(tmp_path / "rankings.jsonl")
    assert [(each["text"], each["rank"], len(each["reasons"])) for each in found["answers"]] == [
        ("a\nb", 1, 2), ("a", 2, 0), ("b", 3, 1),  # 9 is not what the rubric gives "a": no reason is made up
    ]  # fmt: skip
    (tmp_path / "completions.jsonl").unlink()
    write_jsonl(tmp_path / "rankings.jsonl", [{**row, "reasons": ["", "clear", ""], "ranked_by": "Ann"}])
    found = ranking_example(tmp_path / "rankings.jsonl")
    assert found["by"] == "Ann" and found["answers"][0]["reasons"] == [(None, "clear")]


def test_chosen_and_rejected_answers_are_scored_once(long_is_good_dir, tmp_path):
    (tmp_path / "reward").symlink_to(long_is_good_dir)
    path = tmp_path / "data" / "rankings_heldout.jsonl"
    prompt = [{"role": "user", "content": "?"}]
    rows = [{"prompt": prompt, "completions": ["y", "yes"], "ranks": ranks} for ranks in ([1, 0], [1, 0], [0, 1])]
    write_jsonl(path, rows)
    scores = score_rankings(tmp_path, path, None)
    assert scores["of"] == 3 and len(scores["chosen"]) == len(scores["rejected"]) == 3
    found = score_histograms(scores)
    assert found["right"] == pytest.approx(2 / 3) and found["n"] == 3  # the longer answer scores more
    assert (tmp_path / "results" / "report" / "reward_scores.json").exists()
    assert score_rankings(tmp_path, path, None) == scores


def test_the_chain_says_what_went_in_and_out(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "model.safetensors").write_bytes(b"x" * 1_500_000)
    write_json(tmp_path / "data" / "conversations.json", [])
    results = {"sft": {"conversations": 2000, "seconds": 12.0}}
    ppo = {"prompts": 70, "metrics": {"episodes": 1000}, "curves": {"length": [[1, 10.0], [2, 20.0]]}}
    boxes = chain(tmp_path, {**results, "ppo": ppo}, {}, {"mean": 36.4})
    assert [box["title"] for box in boxes] == ["Supervised fine-tuning", "PPO"]
    assert boxes[0]["into"] == [("conversations", "2,000 conversations · about 73,000 tokens · 0.0 MB")]
    assert boxes[0]["out"] == [("sft/", "1.5 MB")] and boxes[0]["seconds"] == 12.0
    told = [("sft/", "1.5 MB"), ("prompts", "70 prompts"), ("its own answers", "1,000 answers · about 15,000 tokens")]
    assert boxes[1]["into"] == told and boxes[1]["out"] == []


def test_judges_of_one_comparison_stand_side_by_side():
    def won(judge: str, rate: float) -> tuple:
        result = {"model": "x/ppo", "opponent": "x/sft", "judge": judge, "temperature": 1.0}
        return "", interval(rate, rate - 0.1, rate + 0.1), result

    rates = [won("a rule", 0.7), won("people", 0.6), ("", interval(0.5, 0.4, 0.6), {"judge": "x"})]
    ((title, rows),) = of_different_judges(rates)
    assert title == "ppo against sft, sampled answers"
    assert [(name, rate["value"]) for name, rate in rows] == [("a rule (9)", 0.7), ("people (9)", 0.6)]
    assert of_different_judges(rates[:1]) == []


# Two runs


def test_the_difference_of_two_intervals():
    found = difference(interval(0.5, 0.46, 0.53), interval(0.7, 0.67, 0.74))
    # 0.2 less √(0.03² + 0.03²), plus √(0.04² + 0.04²)
    assert [found[key] for key in ("value", "low", "high")] == pytest.approx([0.2, 0.2 - 0.0424264, 0.2 + 0.0565685])
    assert difference(1.5, 1.0) == {"value": -0.5, "low": None, "high": None}


@pytest.fixture
def two_runs(tmp_path) -> tuple[Path, Path]:
    runs = tmp_path / "one", tmp_path / "two"
    for run, right in zip(runs, (interval(0.5, 0.46, 0.53), interval(0.7, 0.67, 0.74)), strict=True):
        write_json(run / "data" / "conversations_heldout.json", spoken([("Hi <b>", "Yo")]))
        about = {"data": ["runs/x/data/conversations_heldout.json"], "model": "runs/x/ppo", "prompts": 9}
        write_results(run / "results", "answers_ppo_heldout", {**about, "metrics": {"exact_match": right}})
        bits = {"held-out bits per byte": [[0, 8.0], [9, 2.0]]}
        write_results(run / "results", "pretrain", {"metrics": {"bits_per_byte": 2.0}, "curves": bits})
        settings = {"heldout": [str(run / "data" / "text.jsonl")], "n_layer": 4 if run.name == "one" else 6}
        write_json(run / "base" / "settings.json", {"recipe": "pretrain.py", "settings": settings, "given": settings})
        (run / "data" / "text.jsonl").write_text("the same")
    write_results(runs[1] / "results", "dpo", {"metrics": {}})
    return runs


def test_two_runs_side_by_side(command, two_runs):
    code, out, err = command(report, *two_runs)
    assert code == 0, err
    assert "not compared, as one run alone has them: dpo" in out and "2 results compared, 1 not" in out
    page = (two_runs[1] / "report_one_two.html").read_text()
    rows = re.findall(r"<tr><td>exact match</td>(.*?)</tr>", page)
    cells = re.findall(r'<td class="number">(.*?)</td>', rows[0])
    expected = ["50.0% [46.0%, 53.0%]", "70.0% [67.0%, 74.0%]", "<strong>+20.0 [+15.8, +25.7] points</strong>"]
    assert cells == expected and "<td>n_layer</td><td>4</td><td>6</td>" in page
    assert "At the end: A 2, B 2." in page and page.count("data:image/png") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: write_json(run / "data" / "conversations_heldout.json", spoken([("Hi", "No")])),
         "not compared: answers_ppo_heldout: different prompts: conversations_heldout.json is another file in"),
        (lambda run: (run / "data" / "conversations_heldout.json").unlink(), "so that it cannot be told"),
        (lambda run: write_results(run / "results", "answers_ppo_heldout", {"prompts": 8, "data": ["x"], "metrics": {}}),
         "not compared: answers_ppo_heldout: prompts differs: 9 and 8"),
        (lambda run: (run / "data" / "text.jsonl").write_text("other"), "not compared: pretrain: different prompts: text.jsonl"),
        (lambda run: (run / "base" / "settings.json").unlink(), "not compared: pretrain: 1 files of prompts and 0"),
    ],
)  # fmt: skip
def test_what_was_measured_on_other_prompts_is_refused_by_name(command, two_runs, change, said):
    change(two_runs[1])
    code, out, err = command(report, *two_runs)
    assert code == 0 and said in out, err
    assert said.split(": ", 2)[-1].split(" is another")[0] in (two_runs[1] / "report_one_two.html").read_text()


def test_two_runs_without_anything_in_common_are_refused(command, two_runs):
    for name in ("answers_ppo_heldout", "pretrain"):
        (two_runs[0] / "results" / f"{name}.json").unlink()
    write_results(two_runs[0] / "results", "sft", {"metrics": {}})
    code, _, err = command(report, *two_runs)
    assert code == 1 and "have no result that was measured on the same prompts:\n  sft: " in err
    assert command(report, *two_runs, "--publish", "x")[0] == 1 and command(report)[0] == 1
    assert not list(two_runs[1].glob("*.html"))


# Languages


def strings() -> set[str]:
    """All that the pages and their code say, as they write it: _("…"), say("…"), label("…") and the tables."""
    found = set(READ_AS.values())
    for title, _, did, figure in {**STAGES, **METHODS}.values():
        found |= {title, did, figure}
    for path in (ROOT / "eval" / "reporting" / "pages").glob("*.html"):
        pairs = re.findall(r"""\b_\((?:"((?:[^"\\]|\\.)*)"|'((?:[^'\\]|\\.)*)')""", path.read_text())
        found |= {one or other for one, other in pairs}
    for path in [*(ROOT / "eval" / "reporting").rglob("*.py"), ROOT / "eval" / "report.py"]:
        found |= set(re.findall(r'\b(?:say|label|drawn)\(\s*"([^"]*)"[,)]', path.read_text()))
    return {
        " ".join(text.split()) if text.strip() == text else text for text in found if re.search("[A-Za-z]{3}", text)
    }


def test_every_string_of_the_pages_is_there_in_chinese():
    table, methods = (
        translations(),
        {"PPO, the rater itself as reward", "PPO on right or wrong only", "PPO beyond its KL budget"},
    )
    assert sorted(strings() - set(table) - methods) == []
    for english, chinese in table.items():
        assert set(re.findall(r"\{(\w+)\}", english)) == set(re.findall(r"\{(\w+)\}", chinese)), english


def test_a_page_in_chinese(command, tmp_path):
    write_results(tmp_path / "results", "sft", {"seconds": 3.0, "conversations": 12, "metrics": {"eos_rate": 1.0}})
    assert command(report, tmp_path, "--language", "zh")[0] == 0
    page = (tmp_path / "report.html").read_text()
    assert '<html lang="zh">' in page and "<h1>每个阶段带来了什么</h1>" in page and "用 12 段对话微调" in page
    assert (
        "| | |" in (tmp_path / "results.md").read_text()
        and "Measured at commit" in (tmp_path / "results.md").read_text()
    )
    assert say("Rank") == "Rank"  # the language ends with the page
    with speaking("zh"):
        assert say("Rank") == "名次"
