"""People rank in the browser: who gets which prompt, what is written, who agrees; the page in a real browser."""

import argparse
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data_prep import rank_page
from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_jsonl
from data_prep.pages.launch import start
from data_prep.pages.ranking import FRAME, ranking_page
from data_prep.ranking.agreement import kendall_tau, krippendorff_alpha, rater_agreement
from data_prep.ranking.journal import Journal
from data_prep.ranking.people import People
from data_prep.readers.conversations import read_conversations
from data_prep.readers.preferences import read_rankings
from eval import arena, report
from tests.helpers.browser import PHONE, browser, opened, screenshot

SAMPLED = 'window.taken="%s"'
HOSTILE = [
    *(f"<{tag}>{SAMPLED % number}</{tag}>" for number, tag in enumerate(("script", "style", "title", "textarea", "b"))),
    *(f"<{tag} {event}='{SAMPLED % tag}' src=x autofocus open href=x>" for tag, event in (
        ("img", "onerror"), ("svg", "onload"), ("body", "onload"), ("input", "onfocus"), ("details", "ontoggle"),
        ("video", "onerror"), ("iframe", "onload"), ("select", "onfocus"), ("marquee", "onstart"), ("a", "onclick"),
    )),
    '<iframe srcdoc="<script>parent.taken=1</script>">', "</textarea><script>taken=2</script>",
    '" onmouseover="taken=3" x="', "' onfocus='taken=4' autofocus x='", "`-(taken=5)-`", "${window.taken=6}",
    "{{ 78901 * 7 }} {{constructor.constructor('taken=7')()}}", "[x](javascript:taken=8) **bold** $\\href{javascript:1}{x}$",
    "<object data=javascript:taken=11>",
    "<!--><img src=x onerror=taken=9>-->", "<math><mtext><style><img src=x onerror=taken=10>", "\u202egnp.exe \u2067a",
    "\x00\x1b[2J\x07", "مرحبا بالعالم، هذا نص طويل من اليمين إلى اليسار 12", "W" * 2000,
]  # fmt: skip


def rows_of(number: int, answers: int = 3) -> list[dict]:
    return [
        {
            "id": f"q{row}",
            "prompt": f"What is {row}?",
            "completions": [f"{row}{letter}" for letter in "abcdef"[:answers]],
        }
        for row in range(number)
    ]


def page_arguments(**changed) -> argparse.Namespace:
    options = {"host": "127.0.0.1", "port": None, "logins": None, "username": None, "language": "en"}
    return argparse.Namespace(**{**options, **changed})


def options_of(**options) -> list[str]:
    words = []
    for name, value in options.items():
        words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def run(monkeypatch, module, while_served, **options) -> None:
    """The command; `while_served(people)` is done instead of serving the page."""
    monkeypatch.setattr(module, "ranking_page", lambda people, *_: people)
    monkeypatch.setattr(module, "serve", lambda people, *_: while_served(people))
    monkeypatch.setattr(sys, "argv", [module.__name__, *options_of(**options)])
    module.main()


@pytest.fixture
def completions(tmp_path) -> Path:
    write_jsonl(tmp_path / "completions.jsonl", rows_of(6))
    return tmp_path / "completions.jsonl"


def shown_ranks(task: dict, best_first: str) -> list[int]:
    """The ranks, in the order shown, of answers whose last letters stand in `best_first` from the best to the worst."""
    return [best_first.index(text[-1]) for text in task["answers"]]


# Who gets which prompt


def test_a_share_of_the_prompts_is_given_to_two_people_and_nothing_to_more(tmp_path):
    rows = [{**row, "prompt": []} for row in rows_of(10)]
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=False, per_rater=True)) as journal:
        people = People(rows, journal, overlap=0.2, seed=1)
        given = {"Ada": [], "Ben": [], "Cai": []}
        while any(people.task(name)["task"] for name in given):
            in_hand = {name: task["row"] for name in given if (task := people.task(name)["task"])}
            for name, row in in_hand.items():
                people.judge(name, row, {"ranks": [0, 1, 2]})
                given[name].append(row)
        every = [row for rows in given.values() for row in rows]
        assert sorted(set(every)) == list(range(10)) and len(every) == 12  # two of ten are given twice
        assert all(len(set(rows)) == len(rows) for rows in given.values())
        # What one has in hand the others get only where nothing else is left.
        assert given["Ada"][0] == 0 and len({rows[0] for rows in given.values()}) >= 2
        assert people.agreement()["prompts"] == 2


def test_a_skipped_prompt_goes_to_somebody_else(tmp_path):
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=False, per_rater=True)) as journal:
        people = People([{**row, "prompt": []} for row in rows_of(1)], journal, overlap=0, seed=1)
        people.judge("Ada", people.task("Ada")["task"]["row"], {"skipped": True})
        assert people.task("Ada")["task"] is None
        assert people.task("Ben")["task"]["row"] == 0


# What is written


def test_what_people_say_becomes_rankings_and_demonstrations(completions, tmp_path, monkeypatch, capsys):
    output = tmp_path / "rankings.jsonl"

    def judge(people):
        said = iter(
            [
                lambda task: {"ranks": shown_ranks(task, "bca"), "note": "clear"},
                lambda task: {"ranks": [5, 5, 9], "better_answer": "Mine.\n"},  # two tie, whatever the numbers
                lambda task: {"ranks": [0, 0, 0]},
                lambda task: {"all_bad": True},
                lambda task: {"skipped": True, "better_answer": "Mine too."},
            ]
        )
        for say in said:
            task = people.task(" Ada ")["task"]
            people.judge("Ada", task["row"], say(task))
            assert len((tmp_path / "rankings.jsonl.journal").read_text().splitlines()) == task["row"] + 2

    run(monkeypatch, rank_page, judge, completions=completions, output=output, overlap=0.5)
    assert (
        "5 judgements by 1 person: 2 with a preference, 1 all equal, 1 all bad, 1 skipped, 2 with a better answer"
        in (capsys.readouterr().out)
    )
    rows = list(read_jsonl(output))
    assert [row["id"] for row in rows] == ["q0", "q1", "q2", "q3"]
    assert rows[0]["ranks"] == [2, 0, 1] and rows[0]["note"] == "clear"  # b, c, a, wherever they were shown
    assert sorted(rows[1]["ranks"]) == [0, 0, 1] and rows[3]["ranks"] == [0, 0, 0] and rows[3]["all_bad"] is True
    assert {(row["ranked_by"], row["rater"]) for row in rows} == {("a person", "Ada")}
    # As recipes/reward.py reads it: 3 pairs of the first, 2 of the second; two rankings without a preference are counted.
    rankings, counts = read_rankings(output)
    assert counts == {"rows": 4, "rankings": 2, "pairs": 5, "with all completions tied": 2, "quarantined": 0}
    assert rankings[0]["ranks"] == [2, 0, 1]
    # As recipes/sft.py reads it.
    demonstrations, _ = read_conversations(tmp_path / "rankings.demonstrations.jsonl")
    assert [[turn["content"] for turn in row["messages"]] for row in demonstrations] == [
        ["What is 1?", "Mine.\n"],
        ["What is 4?", "Mine too."],
    ]

    def undo(people):
        assert people.undo("Ben") is None and people.undo("Ada") == {"skipped": True, "better_answer": "Mine too."}
        assert people.undo("Ada") == {"all_bad": True}
        people.undo("Ada")
        assert sorted(people.undo("Ada")["ranks"]) == [0, 0, 1]
        assert people.task("Ada")["task"]["row"] == 1

    run(monkeypatch, rank_page, undo, completions=completions, output=output)
    assert [row["id"] for row in read_jsonl(output)] == ["q0"]
    assert list(read_jsonl(tmp_path / "rankings.demonstrations.jsonl")) == []


@pytest.mark.parametrize(
    ("rater", "row", "judgement", "found"),
    [
        ("", 0, {}, "expected a name"),
        ("a\u202eb", 0, {}, "expected a name"),
        ("Ada", 9, {"skipped": True}, "no prompt 9"),
        ("Ada", [0], {"skipped": True}, r"no prompt \[0\]"),
        ("Ada", 0, {"ranks": [0, 1]}, "for each of 3 answers"),
        ("Ada", 0, {"ranks": [0, None, 1]}, "for each of 3 answers"),
        ("Ada", 0, {"skipped": True, "note": 1}, "note: expected a text"),
    ],
)
def test_what_cannot_be_understood_is_not_written(tmp_path, rater, row, judgement, found):
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=False, per_rater=True)) as journal:
        people = People([{**row, "prompt": []} for row in rows_of(2)], journal, overlap=0, seed=1)
        with pytest.raises(ValueError, match=found):
            people.judge(rater, row, judgement)
        assert journal.rankings == {}


def test_a_judgement_that_is_sent_twice_is_kept_once(tmp_path):
    rows = [{**row, "prompt": []} for row in rows_of(2)]
    for _ in range(2):  # the second time with the journal opened again
        with contextlib.closing(Journal(tmp_path / "j", {}, durable=True, per_rater=True)) as journal:
            people = People(rows, journal, overlap=0, seed=1)
            people.judge("Ada", 0, {"ranks": [0, 1, 2]})
            assert people.state("Ada")["mine"] == 1 and people.task("Ada")["task"]["row"] == 1


def test_after_a_restart_a_page_goes_on_with_what_it_showed(tmp_path):
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=False, per_rater=True)) as journal:
        people = People([{**row, "prompt": []} for row in rows_of(4)], journal, overlap=0, seed=1)
        assert people.task("Ben", had=1)["task"]["row"] == 1
        people.judge("Ada", 2, {"ranks": [0, 1, 2]})
        assert people.task("Ada", had=2)["task"]["row"] == 0  # judged already: the next


def test_two_processes_on_one_journal_and_a_file_of_others_are_refused(completions, tmp_path, monkeypatch):
    output = tmp_path / "rankings.jsonl"
    settings = {"completions": completions, "output": output}
    with (
        contextlib.closing(Journal(tmp_path / "rankings.jsonl.journal", {}, durable=True, per_rater=True)),
        pytest.raises(InputError, match=r"rankings.jsonl.journal: another process is writing it"),
    ):
        run(monkeypatch, rank_page, lambda people: None, **settings)
    (tmp_path / "rankings.jsonl.journal").unlink()
    output.write_text("{}\n")
    with pytest.raises(InputError, match="rankings.jsonl: is there already"):
        run(monkeypatch, rank_page, lambda people: None, **settings)
    for wrong, found in (
        ({"overlap": 2}, "expected a share"),
        ({"model": "x"}, "give --completions FILE, or --model"),
        ({"host": "0.0.0.0"}, "needs a login"),
    ):
        with pytest.raises(InputError, match=found):
            run(monkeypatch, rank_page, lambda people: None, **settings, **wrong)


# Agreement


def test_agreement_is_what_is_worked_out_by_hand():
    assert kendall_tau([0, 1, 2], [0, 1, 2]) == 1 and kendall_tau([0, 1, 2], [2, 1, 0]) == -1
    # Of three pairs two agree and one is a tie in the second ranking alone: 2 / sqrt(3 × 2).
    assert kendall_tau([0, 1, 2], [0, 1, 1]) == pytest.approx(2 / 6**0.5)
    assert kendall_tau([0, 0], [0, 1]) is None
    same, opposed = [[0, 1], [0, 1]], [[0, 1], [1, 0]]
    assert krippendorff_alpha([same, same])["value"] == 1
    # Each pair in both directions: 8 values, squares 8, squared differences 16; 1 − 16 × 7 / (2 × 8 × 8).
    assert krippendorff_alpha([same, opposed])["value"] == pytest.approx(0.125)
    assert krippendorff_alpha([[[0, 0], [0, 0]]]) is None
    found = rater_agreement([same, opposed, [[0, 1]], [[0, 0], [0, 1]]])
    assert (found["prompts"], found["without_order"]) == (3, 1)
    assert {key: found["kendall_tau"][key] for key in ("value", "low", "high", "n")} == {
        "value": 0, "low": -1, "high": 1, "n": 2
    }  # fmt: skip
    assert rater_agreement([]) == {
        "prompts": 0, "kendall_tau": None, "krippendorff_alpha": None, "without_order": 0
    }  # fmt: skip


# Drawn from models; the arena


@pytest.fixture
def conversations(tmp_path) -> Path:
    turns = [[{"from": "human", "value": f"{n}?"}, {"from": "gpt", "value": "yes"}] for n in range(4)]
    path = tmp_path / "conversations.json"
    path.write_text(json.dumps([{"id": str(n), "conversations": turn} for n, turn in enumerate(turns)]))
    return path


def test_answers_are_drawn_from_several_models_once_and_shown_without_their_names(
    conversations, talker, tmp_path, monkeypatch, capsys
):
    yes, no = str(talker("yes")), str(talker("no"))
    settings = {
        "model": [yes, no],
        "conversations": conversations,
        "max_new_tokens": 8,
        "output": tmp_path / "r.jsonl",
    }

    def look(people):
        task = people.task("Ada")["task"]
        assert sorted(task["answers"]) == ["no", "yes"] and set(task) == {"row", "prompt", "answers"}
        people.judge("Ada", task["row"], {"ranks": [0, 1]})

    run(monkeypatch, rank_page, look, **settings)
    (row,) = read_jsonl(tmp_path / "r.jsonl")
    assert (row["completions"], row["counts"], row["models"]) == (["yes", "no"], [4, 4], [[yes], [no]])
    assert row["drawn"]["model"] == [yes, no]
    run(monkeypatch, rank_page, lambda people: None, **settings)
    assert "the answers that were drawn before" in capsys.readouterr().out
    with pytest.raises(InputError, match="r.completions.jsonl: was drawn with temperature 1.0, now it is 0.5. Use"):
        run(monkeypatch, rank_page, lambda people: None, **{**settings, "temperature": 0.5})


@pytest.mark.parametrize("module", [rank_page, arena])
def test_answers_to_other_prompts_are_not_taken_for_those_that_were_drawn(
    module, conversations, talker, tmp_path, monkeypatch, capsys
):
    yes, no = str(talker("yes")), str(talker("no"))
    settings = {"model": yes, "conversations": conversations, "max_new_tokens": 8}
    if module is arena:
        settings |= {"opponent": no, "results_dir": tmp_path / "results", "name": "a"}
    else:
        settings |= {"output": tmp_path / "r.jsonl"}

    def again(**changed) -> None:
        run(monkeypatch, module, lambda people: None, **{**settings, **changed})

    again()
    moved = conversations.rename(tmp_path / "moved.json")
    again(conversations=moved)  # the same rows, wherever they are
    assert "the answers that were drawn before" in capsys.readouterr().out
    columns = "conversations=conversations"
    for changed, said in (
        ({"limit": 2}, "limit None, now it is 2"),
        ({"columns": columns}, f"columns None, now it is '{columns}'"),
    ):
        with pytest.raises(
            InputError, match=f"completions.jsonl: was drawn with {said}. Use the former, or give another"
        ):
            again(conversations=moved, **changed)
    moved.write_text(moved.read_text().replace("1?", "one?"))
    with pytest.raises(InputError, match="was drawn with sha256 of the conversations '[0-9a-f]{64}', now it is '"):
        again(conversations=moved)


def test_the_arenas_win_rate_is_one_that_the_report_shows(conversations, talker, tmp_path, monkeypatch):
    yes, no = str(talker("yes")), str(talker("no"))
    results = tmp_path / "run" / "results"
    settings = {"model": yes, "opponent": no, "conversations": conversations, "results_dir": results}
    settings |= {"max_new_tokens": 8, "overlap": 0.25, "name": "a_vs_b"}

    def judge(people):
        assert not (results / "win_rate_a_vs_b.json").exists()
        for name in ("Ada", "Ben"):
            while task := people.task(name)["task"]:
                prefers_yes = name == "Ada" and task["row"] < 3
                best = "yes" if prefers_yes else "no"
                ranks = [int(text != best) for text in task["answers"]]
                people.judge(name, task["row"], {"ranks": ranks})

    run(monkeypatch, arena, judge, **settings)
    found = json.loads((results / "win_rate_a_vs_b.json").read_text())
    # Ada gives three wins and a loss; Ben, asked about one of the four, a loss.
    metrics = found["metrics"]
    assert [metrics[key] for key in ("wins", "ties", "losses", "same_answer")] == [3, 0, 2, 0]
    (twice,) = {row["id"] for row in read_jsonl(results / "arena_a_vs_b.jsonl") if row["rater"] == "Ben"}
    assert metrics["win_rate"]["value"] == (0.75 if twice == "3" else 0.625) and metrics["win_rate"]["n"] == 4
    assert found["judge"] == "people, who did not see which model answered (5 judgements by 2 people)"
    assert found["agreement"]["prompts"] == 1
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(tmp_path / "run")])
    report.main()
    page = (tmp_path / "run" / "report.html").read_text()
    assert "a vs b" in page and "who did not see which model answered (5 judgements by 2 people)" in page


def test_the_same_answer_by_both_is_a_tie_nobody_is_asked_about(tmp_path):
    pairs = [["a", "b"], ["a", "a"], ["a", "b"], ["a", "a"]]
    rows = [{"prompt": [], "completions": pair} for pair in pairs]
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=False, per_rater=True)) as journal:
        people = People(rows, journal, overlap=0, seed=1)
        people.judge("Ada", 0, {"all_bad": True})
        assert arena.outcomes(people) == ({0: [0.5]}, 0)  # nobody has come to the second prompt
        people.judge("Ada", 2, {"ranks": [int(text != "a") for text in people.task("Ada")["task"]["answers"]]})
        assert arena.outcomes(people) == ({0: [0.5], 1: [0.5], 2: [1.0], 3: [0.5]}, 2)


# In the browser


@contextlib.contextmanager
def served(rows, tmp_path, language="en"):
    output = tmp_path / "rankings.jsonl"
    with contextlib.closing(Journal(tmp_path / "j", {}, durable=True, per_rater=True)) as journal:
        people = People(rows, journal, overlap=1, seed=1, changed=rank_page.write_to(output))
        blocks = ranking_page(people, language, "Rank the answers")
        try:
            yield start(blocks, page_arguments(language=language), FRAME), people
        finally:
            blocks.close(verbose=False)


def enter(page, name: str) -> None:
    page.locator("[name=rater]").fill(name)
    page.keyboard.press("Enter")
    page.locator(".rank .answer").first.wait_for()


def wait_for_judged(page, number: int) -> None:
    page.wait_for_function(
        r"number => new RegExp(`^\\D*${number} ·`).test(document.querySelector('.progress').textContent)", arg=number
    )


def test_two_people_rank_in_two_browsers_by_keys_and_by_drag(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    rows = [{"prompt": [{"role": "user", "content": f"{n}?"}], "completions": ["xa", "xb", "xc"]} for n in range(3)]
    with (
        browser() as own,
        served(rows, tmp_path) as (address, people),
        opened(own, address) as ada,
        opened(own, address, PHONE, color_scheme="dark") as ben,
    ):
        enter(ada, "Ada <b>")
        enter(ben, "Ben")
        for key in "2=31":  # of three the third is placed by itself
            ada.keyboard.press(key)
        ada.keyboard.press("n")
        ada.keyboard.type("good 1=2")
        screenshot(ada, "rank_desktop", tmp_path)
        ada.keyboard.press("Control+Enter")
        wait_for_judged(ada, 1)
        answer, place = ".answer[data-answer='{}'] .chip", ".places li[data-place='{}']"
        for number, to in ((2, 0), (0, 1), (1, 1)):
            ben.drag_and_drop(answer.format(number), place.format(to))
        screenshot(ben, "rank_phone", tmp_path)
        ben.locator("[data-does=save]").click()
        wait_for_judged(ben, 1)
        said = {rater: ranking for (_, rater), ranking in people.journal.rankings.items()}
        shown = {name: people._order(0, name) for name in ("Ada <b>", "Ben")}
        assert [said["Ada <b>"]["ranks"][place] for place in shown["Ada <b>"]] == [1, 0, 0]
        assert [said["Ben"]["ranks"][place] for place in shown["Ben"]] == [1, 1, 0]
        assert said["Ada <b>"]["note"] == "good 1=2"
        # Undone, and said again after the page was loaded anew: the draft is still there.
        ada.keyboard.press("u")
        wait_for_judged(ada, 0)
        assert ada.locator("[aria-pressed=true]").count() == 3
        ada.keyboard.press("Backspace")
        ada.reload()
        ada.locator(".rank .answer").first.wait_for()
        assert ada.locator(".answer [aria-pressed=true]").count() == 2
        ada.keyboard.press("Enter")
        wait_for_judged(ada, 1)
        ada.keyboard.press("b")
        wait_for_judged(ada, 2)
        ada.keyboard.press("s")
        ada.locator(".finished").wait_for()
        assert len(people.journal.rankings) == 4


def test_the_answer_that_is_left_takes_the_free_place(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed")
    rows = [{"prompt": [{"role": "user", "content": f"{n}?"}], "completions": ["xa", "xb", "xc"]} for n in range(3)]
    button = ".answer[data-answer='{}'] button[data-place='{}']"
    # Placed by clicks, the worse first: (answer, place) → all places.
    cases = [([(0, 2), (1, 1)], [2, 1, 0]), ([(0, 0), (2, 2)], [0, 1, 2]), ([(1, 1), (2, 1)], [0, 1, 1])]
    with browser() as own, served(rows, tmp_path) as (address, people), opened(own, address) as page:
        enter(page, "Ada")
        for number, (clicks, expected) in enumerate(cases):
            for answer, place in clicks:
                page.locator(button.format(answer, place)).click()
            page.keyboard.press("Enter")
            if number < 2:
                wait_for_judged(page, number + 1)
            else:
                page.locator(".finished").wait_for()
            said = people.journal.rankings[number, "Ada"]["ranks"]
            assert [said[place] for place in people._order(number, "Ada")] == expected


@pytest.mark.slow
@pytest.mark.parametrize("language", ["en", "zh"])
def test_no_hostile_text_runs_or_stretches_the_page(tmp_path, language):
    pytest.importorskip("gradio", reason="gradio is not installed")
    number = len(HOSTILE)
    assert number == 30
    rows = [
        {
            "prompt": [{"role": "user", "content": text}],
            "completions": [HOSTILE[(n + step) % number] for step in (1, 2, 3)],
        }
        for n, text in enumerate(HOSTILE)
    ]
    with (
        browser() as own,
        served(rows, tmp_path, language) as (address, people),
        opened(own, address, PHONE) as page,
    ):
        for n, text in enumerate(HOSTILE):
            name = re.sub("[\x00-\x1f\u202a-\u202e\u2066-\u2069]", "", text)[:60].strip()
            enter(page, name)
            assert page.locator(".who").inner_text() == name
            page.keyboard.press("a")
            page.locator("[data-field=better] textarea").fill(text)
            page.keyboard.press("Escape")
            page.keyboard.press("b")
            wait_for_judged(page, 1)
            assert page.evaluate("window.taken") is None and "taken" not in page.title(), (n, text)
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), (n, text)
            assert page.locator(".rank :is(script, img, iframe, svg, b, details, video, select, math)").count() == 0
            page.evaluate("sessionStorage.clear()")
            page.goto(address)
        screenshot(page, f"rank_{language}", tmp_path)
        assert len(people.journal.rankings) == number
    assert all("better_answer" in row for row in read_jsonl(tmp_path / "rankings.jsonl"))


@pytest.mark.slow
def test_of_100_judgements_in_two_browsers_none_is_lost_by_a_kill(tmp_path):
    """Two people judge a hundred prompts; the server is killed in between, and the people go on as a person would."""
    pytest.importorskip("gradio", reason="gradio is not installed")
    write_jsonl(tmp_path / "completions.jsonl", rows_of(100, answers=4))
    output, log = tmp_path / "rankings.jsonl", tmp_path / "log"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = options_of(completions=tmp_path / "completions.jsonl", output=output, overlap=0, port=port)
    servers = []

    def serve() -> None:
        with log.open("w") as file:
            command = [sys.executable, "-m", "data_prep.rank_page", *words]
            servers.append(subprocess.Popen(command, stdout=file, stderr=file))
        until = time.monotonic() + 120
        while "the page:" not in log.read_text():
            assert servers[-1].poll() is None and time.monotonic() < until, log.read_text()
            time.sleep(0.2)

    def judge(pages: dict) -> None:
        for turn in range(50):
            for name, page in pages.items():
                for key in "3124":
                    page.keyboard.press(key)
                if turn == 20 and name == "Ben":  # a judgement in hand as the server dies
                    servers[-1].kill()
                    servers[-1].wait()
                    page.keyboard.press("Enter")
                    page.locator(".problem:visible").wait_for()
                    serve()
                    for each in pages.values():
                        each.reload()
                        each.locator(".rank .answer").first.wait_for()
                page.keyboard.press("Enter")
                wait_for_judged(page, turn + 1)

    try:
        serve()
        with browser() as own:
            pages = {name: own.new_context().new_page() for name in ("Ada", "Ben")}
            for name, page in pages.items():
                page.goto(f"http://127.0.0.1:{port}/")
                enter(page, name)
            judge(pages)
    finally:
        for server in servers:
            server.terminate()
            server.wait()
    rows = list(read_jsonl(output))
    assert len(servers) == 2 and [server.returncode for server in servers] == [-signal.SIGKILL, 128 + signal.SIGTERM]
    assert sorted(row["id"] for row in rows) == sorted(f"q{n}" for n in range(100))
    assert [sum(row["rater"] == name for row in rows) for name in ("Ada", "Ben")] == [50, 50]
    assert all(sorted(row["ranks"]) == [0, 1, 2, 3] for row in rows)
