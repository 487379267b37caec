"""The arena in a real browser: a person judges two models blind, and the report reads the win rate."""

import json
import sys

import pytest
from helpers.browser import DESKTOP, PHONE, browser, opened, screenshot

from data_prep.common.files import read_jsonl
from data_prep.common.intervals import bootstrap_interval, show_interval
from data_prep.pages.launch import start
from eval import arena, report


@pytest.mark.slow
def test_a_person_judges_two_models_blind_and_the_report_shows_who_wins(talker, command, monkeypatch, tmp_path):
    """Ten votes: six for "yes", two for "no", one equal, one "all bad": the win rate is (6 + 2 × 0.5) / 10.

    Half of them on a desktop by keyboard, half on a phone by finger, with the page loaded again in between.
    """
    pytest.importorskip("gradio", reason="the page is Gradio's (extra pages)")
    yes, no, results = str(talker("yes")), str(talker("no")), tmp_path / "run" / "results"
    asked = [f"Is {number} a number?" for number in range(10)]
    rows = [
        {"id": text, "conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]}
        for text in asked
    ]
    (tmp_path / "asked.json").write_text(json.dumps(rows))
    votes = ["yes", "yes", "no", "=", "yes", "yes", "bad", "no", "yes", "yes"]

    def vote(page, finger: bool) -> None:
        answers = page.locator(".answer .text").all_inner_texts()
        assert sorted(answers) == ["no", "yes"]
        said, before = votes[judged()], judged()
        if said in ("=", "bad"):
            does = {"=": "equal", "bad": "bad"}[said]
            if finger:
                page.locator(f"[data-does={does}]").tap()
            else:
                page.keyboard.press({"=": "=", "bad": "b"}[said])
        elif finger:
            page.locator(f".answer[data-answer='{answers.index(said)}'] [data-place='0']").tap()
        else:
            page.keyboard.press(str(answers.index(said) + 1))
        if said != "bad":
            if finger:
                page.locator("[data-does=save]").tap()
            else:
                page.keyboard.press("Enter")
        page.wait_for_function(
            r"number => new RegExp(`^\\D*${number} ·`).test(document.querySelector('.progress').textContent)",
            arg=before + 1,
        )

    def judged() -> int:
        path = results / "win_rate_yes_vs_no_by_people.json"
        metrics = json.loads(path.read_text())["metrics"] if path.exists() else {}
        return sum(metrics.get(key, 0) for key in ("wins", "ties", "losses"))

    def in_browser(blocks, arguments, css) -> None:
        address = start(blocks, arguments, css)
        with browser() as own:
            for size, finger in ((DESKTOP, False), (PHONE, True)):
                with opened(own, address, size, has_touch=finger) as page:
                    name = "desktop" if size == DESKTOP else "phone"
                    page.locator("[name=rater]").fill("Ada")
                    screenshot(page, f"arena_name_{name}", tmp_path)
                    page.keyboard.press("Enter")
                    page.locator(".rank .answer").first.wait_for()
                    screenshot(page, f"arena_{name}", tmp_path)
                    told = page.get_by_text("Tap 1st beside the better answer" if finger else "Keys: the number of")
                    assert told.is_visible()
                    if not finger:  # the buttons stand in one row
                        tops = [button.bounding_box()["y"] for button in page.locator(".actions button").all()]
                        assert len(set(tops)) == 1
                    for number in range(5):
                        assert yes not in page.content() and no not in page.content()  # blind
                        vote(page, finger)
                        if number == 2:
                            page.reload()
                            page.locator(".rank .answer").first.wait_for()
            with opened(own, address, PHONE) as page:
                page.locator("[name=rater]").fill("Ada")
                page.keyboard.press("Enter")
                page.get_by_text("There is nothing left for you to judge.").wait_for()
                screenshot(page, "arena_finished", tmp_path)
                # An Enter too many takes nothing back.
                with page.expect_response(lambda response: "component_server" in response.url):
                    page.keyboard.press("Enter")
                assert judged() == 10
        blocks.close(verbose=False)

    monkeypatch.setattr(arena, "serve", in_browser)
    words = ("--model", yes, "--opponent", no, "--conversations", tmp_path / "asked.json", "--results_dir", results)
    code, out, err = command(arena, *words, "--max_new_tokens", 8, "--overlap", 0)
    assert code == 0, err
    found = json.loads((results / "win_rate_yes_vs_no_by_people.json").read_text())
    metrics = found["metrics"]
    counts = {key: metrics[key] for key in ("wins", "ties", "losses", "all_bad", "skipped", "same_answer")}
    assert counts == {"wins": 6, "ties": 2, "losses": 2, "all_bad": 1, "skipped": 0, "same_answer": 0}
    outcomes = [{"yes": 1.0, "no": 0.0}.get(said, 0.5) for said in votes]
    assert metrics["win_rate"] == bootstrap_interval(outcomes) and metrics["win_rate"]["value"] == 0.7
    assert f"yes_vs_no_by_people: wins {show_interval(metrics['win_rate'])} on 10 prompts, judged by people" in out
    assert [row["ranks"] for row in read_jsonl(results / "arena_yes_vs_no_by_people.jsonl")] == [
        {"yes": [0, 1], "no": [1, 0]}.get(said, [0, 0]) for said in votes
    ]
    monkeypatch.setattr(sys, "argv", ["report", "--run", str(tmp_path / "run")])
    report.main()
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert show_interval(metrics["win_rate"]) in page and found["judge"] in page
    with browser() as own, opened(own, (tmp_path / "run" / "report.html").as_uri(), PHONE) as shown:
        shown.get_by_text("people, who did not see which model answered").first.scroll_into_view_if_needed()
        screenshot(shown, "arena_in_the_report", tmp_path)
