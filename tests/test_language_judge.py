"""A language model as a judge: by stand-ins whose verdicts, bias, agreement and cost are worked out by hand."""

import json
import re
from pathlib import Path

import pytest
from helpers.completions import serving
from helpers.recipes import results

from data_prep import rank_completions
from data_prep.common.files import read_jsonl, write_jsonl
from data_prep.common.intervals import bootstrap_interval
from data_prep.judging.agreement import agreement
from data_prep.judging.rubric import RUBRIC, messages, read_rubric, verdict
from eval import best_of_n, judge, win_rate

# Five pairs. Their people like what is called good best, but for the last prompt.
PEOPLE = [
    ("One?", ["good", "bad"], [0, 1]),
    ("Two?", ["bad one", "fine one", "good one"], [2, 1, 0]),
    ("Three?", ["good too", "bad too"], [1, 0]),
]
WORTH = {"bad": 0, "fine": 1, "good": 2}
EVERYTHING = ""  # a part of every prompt


def shown(prompt: str) -> list[tuple[str, str]]:
    """[(letter, answer)] of what a judge is asked."""
    return re.findall(r"^\[([A-Z])\]\n(.*)$", prompt, re.MULTILINE)


def perfect(prompt: str) -> str:
    """The verdict of a judge that knows what is good."""
    ranked = sorted(shown(prompt), key=lambda each: -WORTH[each[1].split()[0]])
    letters = [letter for letter, _ in ranked]
    return f"It is better.\n**Verdict:** {letters[0] if len(letters) == 2 else ' > '.join(letters)}"


@pytest.fixture
def rankings(tmp_path) -> Path:
    rows = [
        {
            "prompt": [{"role": "user", "content": question}],
            "completions": texts,
            "ranks": ranks,
            "ranked_by": "a person",
        }
        for question, texts, ranks in PEOPLE
    ]
    write_jsonl(tmp_path / "people.jsonl", rows)
    return tmp_path / "people.jsonl"


@pytest.fixture
def judge_at(tmp_path, monkeypatch):
    """judge_at(server, key=value, …) is the YAML of a judge that asks it."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def write(server, **settings) -> Path:
        values = {"model": "m", "url": server.url, "retries": 0, "concurrency": 1, **settings}
        (tmp_path / "judge.yaml").write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
        return tmp_path / "judge.yaml"

    return write


@pytest.fixture
def judged(command, rankings, judge_at, tmp_path):
    """judged(replies, "--option", …, key=value) is eval.judge on people's rankings: (code, out, err, metrics, server)."""

    def run(replies, *options, data=("--rankings", rankings), **settings):
        with serving({EVERYTHING: replies}) as server:
            given = ("--judge", judge_at(server, **settings), *data, "--name", "x", "--results_dir", tmp_path)
            code, out, err = command(judge, *given, *options)
        path = tmp_path / "judge_x.json"
        return code, out, err, json.loads(path.read_text())["metrics"] if path.exists() else None, server

    return run


def same(value: float, n: int) -> dict:
    return {"value": value, "low": value, "high": value, "n": n}


def test_a_judge_that_always_prefers_the_first_is_all_bias(judged):
    code, out, err, metrics, server = judged("Verdict: A")
    assert code == 0, err
    assert len(server.asked) == metrics["replies"] == 10 and metrics["pairs"] == 5, "both orders of each pair"
    assert metrics["position_bias"] == metrics["changed"] == same(1.0, 3)
    assert metrics["ties"] == 5 and metrics["without_verdict"] == 0, "a verdict that the order makes is none"
    (agreed,) = metrics["agreement"]
    assert agreed["accuracy"] == same(0.5, 3) and agreed["kappa"]["value"] == 0 and agreed["kendall_tau"] is None
    assert (
        "x: 5 pairs in both orders: 5 with a verdict, 5 of them ties; position bias +100.0% [+100.0%, +100.0%]" in out
    )
    assert (
        "the order changes 100.0% [100.0%, 100.0%] of verdicts; cost: 10 requests, 100 prompt tokens, 30 comp" in out
    )


def test_a_judge_that_knows_has_no_bias_and_its_agreement_with_people_is_told(judged, rankings):
    prices = {"price_per_million_prompt_tokens": 10000, "price_per_million_completion_tokens": 50000}
    code, out, err, metrics, _ = judged(perfect, **prices)
    assert code == 0, err
    assert metrics["position_bias"] == metrics["changed"] == same(0.0, 3) and metrics["ties"] == 0
    (agreed,) = metrics["agreement"]
    assert agreed["with"] == "people (the rankings in people.jsonl)" and agreed["people"] and agreed["pairs"] == 5
    # Right on the prompts one and two, wrong on the third. Of 5 pairs 4 agree, of which chance gives half: (0.8 − 0.5) / 0.5.
    assert agreed["accuracy"] == bootstrap_interval([1, 1, 0])
    assert agreed["kappa"]["value"] == pytest.approx(0.6) and agreed["kendall_tau"] == bootstrap_interval([1, 1, -1])
    assert metrics["cost"] == {"requests": 10, "prompt_tokens": 100, "completion_tokens": 30, "price": 2.5}
    assert "30 completion tokens, 2.5000 at the prices given\n" in out
    assert (
        "x: agreement with people (the rankings in people.jsonl): 66.7% [0.0%, 100.0%] of decided pairs, kappa 0.6"
        in out
    )


def test_babble_is_counted_and_nothing_is_guessed(judged, tmp_path):
    code, out, err, metrics, _ = judged("A is good. B is good as well, so I prefer neither A nor B.")
    assert code == 0, err
    assert metrics["without_verdict"] == metrics["pairs"] == 5 and metrics["unparsable"] == {"no verdict": 10}
    assert metrics["position_bias"] is None and metrics["ties"] == 0 and metrics["agreement"][0]["pairs"] == 0
    assert "5 without, as 10 of 10 replies cannot be read (10 no verdict)" in out
    assert "agreement with people" in out and "not measured, no pair has a verdict of both\n" in out
    replies = [*read_jsonl(tmp_path / "judge_x_replies.jsonl")]
    assert len(replies) == 10 and {row["reason"] for row in replies} == {"no verdict"}
    assert [row["shown"] for row in replies[:2]] == [["good", "bad"], ["bad", "good"]]


def test_a_server_that_fails_half_way_is_asked_for_the_rest_alone(judged, tmp_path):
    code, _, err, metrics, server = judged([*["Verdict: tie"] * 4, (500, {}, "{}")])
    assert code == 1 and "HTTP 500" in err and "Traceback" not in err and metrics is None
    assert len(server.asked) == 5 and len([*tmp_path.glob(".judge_x.*.journal")]) == 1
    code, out, err, metrics, server = judged("Verdict: tie")  # elsewhere: another port
    assert code == 0, err
    assert len(server.asked) == 6 and "4 of 10 replies of an earlier run; resuming after them" in out
    assert metrics["ties"] == 5 and metrics["cost"]["requests"] == 10 and not [*tmp_path.glob(".judge_x.*.journal")]


def test_a_comparison_that_the_server_refuses_has_no_verdict_and_stops_no_other(
    command, rankings, judge_at, judged, tmp_path
):
    """The first of the ten prompts, One? in the order good, bad: a content filter, say."""
    refusal = (400, {}, json.dumps({"error": {"message": "filtered"}}))

    def filtered(prompt: str):
        if prompt == "Hi":
            return "Hello."
        return refusal if [text for _, text in shown(prompt)] == ["good", "bad"] else perfect(prompt)

    code, out, err, metrics, server = judged(filtered)
    assert code == 0, err
    assert len(server.asked) == 11 and metrics["cost"]["requests"] == 11
    assert metrics["pairs"] == 5 and metrics["without_verdict"] == 1
    assert metrics["unparsable"] == {"refused by the server": 1} and metrics["agreement"][0]["pairs"] == 4
    said = "HTTP 400 Bad Request (filtered)"
    assert f"{server.url}: refused 1 of 10 prompts, which count as not answered; the first: {said}\n" in out
    assert "1 without, as 1 of 10 replies cannot be read (1 refused by the server)" in out
    first, second = [*read_jsonl(tmp_path / "judge_x_replies.jsonl")][:2]
    assert (first["shown"], first["ranks"], first["reply"]) == (["good", "bad"], None, "")
    assert (first["reason"], first["refused"]) == ("refused by the server", said)
    assert second["ranks"] == [1, 0] and "refused" not in second
    rows = [{"id": question, "prompt": question, "completions": texts} for question, texts, _ in PEOPLE]
    write_jsonl(tmp_path / "completions.jsonl", rows)
    with serving({EVERYTHING: filtered}) as server:
        given = ("--by", "judge", "--judge", judge_at(server), "--completions", tmp_path / "completions.jsonl")
        code, out, err = command(rank_completions, *given, "--output", tmp_path / "ranked.jsonl")
    assert code == 0, err
    assert [row["id"] for row in read_jsonl(tmp_path / "ranked.jsonl")] == ["Two?", "Three?"]
    assert "ranked the answers to 2 of 3 prompts by" in out and "left out: 1 without a verdict" in out


def test_all_answers_at_once_are_asked_about_in_both_orders(judged):
    code, _, err, metrics, server = judged(perfect, ask="ranking")
    assert code == 0, err
    orders = [[text for _, text in shown(body["messages"][-1]["content"])] for _, _, body in server.asked]
    assert len(orders) == 6 and orders[2:4] == [PEOPLE[1][1], PEOPLE[1][1][::-1]]
    assert metrics["pairs"] == 5 and metrics["position_bias"] == same(0.0, 3)
    assert metrics["agreement"][0]["accuracy"] == bootstrap_interval([1, 1, 0])


def test_without_people_agreement_is_said_not_to_be_measured(judged, rankings, tmp_path):
    rows = [{**row, "reference": row["completions"][0]} for row in read_jsonl(rankings)]
    write_jsonl(tmp_path / "completions.jsonl", rows)
    data = ("--completions", tmp_path / "completions.jsonl")
    code, out, err, metrics, _ = judged(perfect, data=data)
    assert code == 0 and metrics["agreement"] == [] and "x: agreement with people: not measured\n" in out, err
    code, out, err, metrics, _ = judged(perfect, "--agreement_with", "data_prep.rewards.exact_match", data=data)
    assert code == 0, err
    # The reference is good, bad one, good too; in the second prompt the two others tie to the function.
    assert metrics["agreement"][0]["accuracy"] == bootstrap_interval([1, 0, 1])
    assert "the function data_prep.rewards.exact_match (the higher value wins, equal ones tie): 66.7% [" in out
    assert out.endswith("; agreement with people: not measured\n")


def test_any_other_judge_is_held_against_people_too(command, rankings, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(prompts, completions, **columns): return [-len(each[-1]['content']) for each in completions]\n"
    )
    given = (
        "--judge",
        f"{tmp_path / 'mine.py'}:short",
        "--rankings",
        rankings,
        "--results_dir",
        tmp_path,
        "--name",
        "x",
    )
    code, out, err = command(judge, *given)
    assert code == 0, err
    # To it bad beats good, fine one ties with good one and loses to bad one, and bad too beats good too: of the pairs that
    # people decided it gets 0; 0, 0 and a half; 1.
    agreed = results(tmp_path, "judge_x")["metrics"]["agreement"][0]
    assert agreed["accuracy"] == bootstrap_interval([0, 0.5 / 3, 1])
    assert "it does not see an order" in out


def test_rankings_by_a_judge(command, rankings, judge_at, tmp_path):
    rows = [{"id": question, "prompt": question, "completions": texts} for question, texts, _ in PEOPLE]
    rows.append({"id": "4", "prompt": "Unclear?", "completions": ["good", "bad"]})
    write_jsonl(tmp_path / "completions.jsonl", rows)
    output = tmp_path / "out" / "rankings.jsonl"
    with serving({"Unclear?": "Verdict: A or B", EVERYTHING: perfect}) as server:
        given = ("--by", "judge", "--judge", judge_at(server), "--completions", tmp_path / "completions.jsonl")
        given += ("--output", output, "--agreement_with", rankings)
        code, out, err = command(rank_completions, *given)
        assert code == 0, err
        assert len(server.asked) == 12, "what people ranked too is asked about once"
        words = f"the language model m at {server.url} (rubric: the shipped one; asked in both orders)"
    found = [*read_jsonl(output)]
    assert [row["ranks"] for row in found] == [[0, 1], [2, 1, 0], [0, 1]]
    assert found[1]["scores"] == [0.0, 0.5, 1.0] and found[0]["ranked_by"] == words
    assert "the judge: agreement with people (the rankings in people.jsonl): 66.7% [" in out
    assert out.endswith(
        f"ranked the answers to 3 of 4 prompts by {words}: 5 pairs; left out: 1 without a verdict; the rankings are in {output}\n"
    )
    assert [path.name for path in output.parent.iterdir()] == ["rankings.jsonl"]


def test_a_checkpoint_judges_and_a_win_rate_says_what_it_found(
    command, talker, write_conversations, tmp_path, long_is_good_dir
):
    (tmp_path / "short.yaml").write_text('prompt: "{question}{answers}"\n')
    data = write_conversations([("a", "1?", "yes"), ("b", "2?", "no")])
    (tmp_path / "judge.yaml").write_text(f"model: {talker('A')}\nmax_new_tokens: 4\n")
    arguments = ("--model", talker("yes"), "--opponent", talker("no"), "--conversations", data, "--max_new_tokens", 8)
    arguments += ("--temperature", 0, "--name", "x", "--results_dir", tmp_path)
    asks = ("--judge", tmp_path / "judge.yaml", "--rubric", tmp_path / "short.yaml")
    code, out, err = command(win_rate, *arguments, *asks)
    assert code == 0, err
    found = results(tmp_path, "win_rate_x")
    assert found["metrics"]["win_rate"] == same(0.5, 2) and found["metrics"]["ties"] == 2
    assert found["judge_told"]["position_bias"] == same(1.0, 2) and found["agreement"] == "not measured"
    assert "position bias +100.0%" in out and "x: the judge: agreement with people: not measured\n" in out
    # The longer answer is the better one.
    code, out, err = command(win_rate, *arguments, "--judge", long_is_good_dir)
    assert code == 0 and results(tmp_path, "win_rate_x")["metrics"]["win_rate"] == same(1.0, 2), err
    assert f"The judge is the reward model {long_is_good_dir} (the higher reward wins, equal ones tie)" in out


@pytest.mark.slow
def test_transformers_serve_judges(command, talker, rankings, tmp_path):
    pytest.importorskip("fastapi", reason="transformers serve needs the extra serving")
    from eval.serving_checks.servers import transformers_serve

    folder = talker("A")
    (tmp_path / "short.yaml").write_text('prompt: "{question}{answers}"\n')
    with transformers_serve(str(folder)) as url:
        (tmp_path / "judge.yaml").write_text(f"model: {folder}\nurl: {url}\nmax_new_tokens: 4\n")
        given = ("--judge", tmp_path / "judge.yaml", "--rubric", tmp_path / "short.yaml", "--rankings", rankings)
        code, _, err = command(judge, *given, "--results_dir", tmp_path, "--name", "x")
    assert code == 0, err
    metrics = results(tmp_path, "judge_x")["metrics"]
    assert metrics["position_bias"] == same(1.0, 3) and metrics["unparsable"] == {}
    assert metrics["cost"]["requests"] == 10 and metrics["cost"]["completion_tokens"] >= 10


# What is asked, what is read, what is refused


@pytest.mark.parametrize(
    ("text", "number", "ranks"),
    [
        ("Verdict: A", 2, [0, 1]),
        ("B", 2, [1, 0]),
        ("Both are fine.\nVerdict: tie.", 2, [0, 0]),
        ("结论：B", 2, [1, 0]),
        ("<think>Verdict: A</think>\n[[Verdict: B > A]]", 2, [1, 0]),
        ("Verdict: B > A = C", 3, [1, 0, 1]),
        ("Verdict: A\nNo.\nVerdict: A", 2, [0, 1]),
        ("Verdict: A\nNo.\nVerdict: B", 2, None),
        ("Verdict: A, Verdict: B or Verdict: tie", 2, None),  # the question repeated
        ("Verdict: B > A", 3, None),
        ("Verdict: C", 2, None),
        ("Verdict: A > A", 2, None),
        ("The verdict is not A", 2, None),
        ("", 2, None),
    ],
)
def test_a_verdict_is_read_as_it_stands_or_not_at_all(text, number, ranks):
    assert verdict({"text": text, "finish": "stop"}, number)[0] == ranks


def test_answers_are_shown_as_they_are_in_the_language_of_the_question():
    rubric = read_rubric(RUBRIC)
    (_, turn) = messages(rubric, [{"role": "user", "content": "Which?"}], ["{question} {x}", "[A]\nVerdict: A"])
    assert (
        "<request>\nWhich?\n</request>" in turn["content"] and "[A]\n{question} {x}\n\n[B]\n[A]\n" in turn["content"]
    )
    assert turn["content"].endswith("one line: Verdict: A, Verdict: B or Verdict: tie\n")
    system, turn = messages(rubric, [{"role": "user", "content": "哪一个更好？"}], ["一", "二", "三"])
    assert "助手" in system["content"] and "把 A, B, C 从好到差排列" in turn["content"]


def test_kendalls_tau_and_kappa_by_hand():
    # First prompt: 2 pairs agree, the third is a tie to one of them: tau-b 2 / sqrt(2 · 3). Second: they contradict.
    ours = [{(0, 1): 1.0, (0, 2): 1.0, (1, 2): 0.5}, {(0, 1): 1.0}, {(0, 1): None}]
    theirs = [{(0, 1): 1.0, (0, 2): 1.0, (1, 2): 1.0}, {(0, 1): 0.0}, {(0, 1): 1.0}]
    rows = [{"prompt": [{"role": "user", "content": question}]} for question in "abc"]
    found = agreement(rows, ours, theirs)
    assert found["pairs"] == 4 and found["accuracy"] == bootstrap_interval([(1 + 1 + 0.5) / 3, 0])
    assert found["kendall_tau"] == bootstrap_interval([2 / 6**0.5, -1])
    # Both directions: of 8, 4 agree; ours 3 wins, 3 losses, 2 ties, theirs 4 and 4: chance 2 · 3/8 · 1/2 = 3/8.
    assert found["kappa"]["value"] == pytest.approx((0.5 - 0.375) / (1 - 0.375))
    assert agreement(rows[:1], [{(0, 1): None}], [{(0, 1): 1.0}]) is None
    # The same prompts a second time, ranked by another person, say: no more is known.
    assert agreement(rows * 2, ours * 2, theirs * 2) == {**found, "pairs": 8}


@pytest.mark.parametrize(
    ("yaml", "found"),
    [
        ("modle: m", "unknown key 'modle'; expected model, url, rubric"),
        ("url: http://127.0.0.1:1/v1", "missing key model"),
        ("model: m\nurl: http://127.0.0.1:1/v1\nbatch_size: 3", "batch_size: is for a model of this machine"),
        ("model: runs/none\nretries: 3", "retries: is for a server: it needs url"),
        ("model: m\ntemperature: warm", "temperature: found 'warm'; expected a number"),
        ("model: m\nask: all", "ask: found 'all'; expected pairs or ranking"),
        ("model: runs/none", "runs/none: no such file or folder"),
        ("model: m\nurl: nowhere", "'nowhere': expected an address"),
        ("model: m\nurl: http://127.0.0.1:1/v1\nrubric: {rubric}", "prompt: found no {answers} in it"),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_before_anything_is_asked(command, rankings, tmp_path, yaml, found):
    (tmp_path / "rubric.yaml").write_text('prompt: "{question}"\n')
    (tmp_path / "judge.yaml").write_text(yaml.replace("{rubric}", str(tmp_path / "rubric.yaml")))
    code, _, err = command(judge, "--judge", tmp_path / "judge.yaml", "--rankings", rankings)
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and found in errors[0] and "Traceback" not in err


# Best of n


@pytest.fixture
def samples(tmp_path) -> Path:
    """Four samples to two prompts, ranked: the long answer is worth less, and the short one was sampled three times."""
    rows = [
        {
            "prompt": question,
            "completions": ["good", "bad one"],
            "counts": [3, 1],
            "ranks": [0, 1],
            "scores": [5.0, 1.0],
        }
        for question in ("One?", "Two?")
    ]
    write_jsonl(tmp_path / "samples.jsonl", rows)
    return tmp_path / "samples.jsonl"


def test_best_of_n_by_the_rankings_and_by_a_judge(command, samples, judge_at, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def long(prompts, completions, **columns): return [len(each[-1]['content']) for each in completions]\n"
    )
    arguments = (
        "--reward",
        f"{tmp_path / 'mine.py'}:long",
        "--rankings",
        samples,
        "--name",
        "x",
        "--results_dir",
        tmp_path,
    )
    code, out, err = command(best_of_n, *arguments)
    assert code == 0, err
    found = results(tmp_path, "best_of_n_x")["metrics"]["best_of_n"]
    # Of 4 samples one is bad: random (3·5 + 1)/4; the reward picks it from 2 with chance 1/2, and always from 4.
    assert [row["n"] for row in found] == [1, 2, 4]
    assert [row["random"]["value"] for row in found] == [4.0] * 3
    assert [row["reward"]["value"] for row in found] == [4.0, 3.0, 1.0]
    assert [row["rater"]["value"] for row in found] == [4.0, 5.0, 5.0]
    assert found[2]["gain"] == same(-3.0, 2) and "n ends at 4: fewer than half of the prompts have more samples" in out
    assert "x: agreement with people: not measured\n" in out
    assert (tmp_path / "best_of_n_x.png").read_bytes()[:4] == b"\x89PNG"
    with serving({EVERYTHING: perfect}) as server:
        code, out, err = command(best_of_n, *arguments, "--judge", judge_at(server))
        assert code == 0, err
        assert len(server.asked) == 4
    found = results(tmp_path, "best_of_n_x")["metrics"]["best_of_n"]
    # The chance to beat a random sample: good 3/4 · 1/2 + 1/4 = 0.625, bad 1/8.
    assert [row["reward"]["value"] for row in found] == [0.5, 0.375, 0.125]
    assert [row["rater"]["value"] for row in found] == [0.5, 0.625, 0.625]
    assert "position bias +0.0% [+0.0%, +0.0%]" in out and "x: the judge: agreement with people: not measured\n" in out
