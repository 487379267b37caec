"""A login for each rater: the file of them, whose name a judgement bears, and that no password is seen or kept."""

import argparse
import contextlib
import http.cookiejar
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
from helpers.browser import PHONE, browser, opened, screenshot

from data_prep import rank_page
from data_prep.common.files import read_jsonl
from data_prep.pages import launch
from data_prep.pages.launch import add_page_options, start
from data_prep.pages.ranking import FRAME, ranking_page
from data_prep.ranking.journal import Journal
from data_prep.ranking.people import People

PASSWORDS = {"Ada": "correct horse", "Ben 本": "battery:staple"}


@pytest.fixture
def logins(tmp_path) -> Path:
    lines = [f"{name}:{password}" for name, password in PASSWORDS.items()]
    (tmp_path / "logins").write_text("\r\n\r\n".join(["\ufeff" + lines[0], *lines[1:]]), encoding="utf-8")
    return tmp_path / "logins"


@contextlib.contextmanager
def served(logins: Path, rows: list[dict], folder: Path):
    """(the page's address, its Blocks) of the ranking page; both people get every row."""
    parser = argparse.ArgumentParser()
    add_page_options(parser)
    arguments = parser.parse_args(["--logins", str(logins)])
    output = folder / "rankings.jsonl"
    with contextlib.closing(Journal(folder / "journal", {}, durable=True, per_rater=True)) as journal:
        people = People(rows, journal, overlap=1, seed=1, changed=rank_page.write_to(output))
        blocks = ranking_page(people, "en", "Rank the answers", {}, named=True)
        try:
            yield start(blocks, arguments, FRAME), blocks
        finally:
            blocks.close(verbose=False)


def rows_of(number: int) -> list[dict]:
    asked = [[{"role": "user", "content": f"{row}?"}] for row in range(number)]
    return [{"prompt": prompt, "completions": ["xa", "xb", "xc"]} for prompt in asked]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("Ada:correct horse\nBen\n", "line 2: found no colon; expected name:password"),
        ("\n:correct horse", "line 2: expected a name of 1 to 60 characters"),
        ("A\x1bda:correct horse", "line 1: expected a name of 1 to 60 characters"),
        ("Ada:correct horse\n Ada :horse correct", "line 2: found the name Ada again; expected each once"),
        ("Ada:horse12", "line 1: Ada: expected a password of at least 8 characters after the colon"),
        ("\n\n", "found no login; expected lines name:password"),
        (b"Ada:correct horse \xff", "cannot be read (it is no text in UTF-8)"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_a_file_that_holds_no_logins_is_refused_without_a_password(content, told, command, tmp_path, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    path = tmp_path / "logins"
    if content is not None:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    code, out, err = command(rank_page, "--completions", "none", "--output", tmp_path / "r.jsonl", "--logins", path)
    assert (code, out) == (1, "") and told in err and err.startswith("error: ") and err.count("\n") == 1
    assert "horse" not in err


def test_one_login_for_all_and_one_for_each_are_not_given_together(command, logins, monkeypatch):
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    words = ["--completions", "none", "--output", "r.jsonl", "--logins", logins, "--username", "me"]
    code, _, err = command(rank_page, *words)
    assert (code, err) == (1, "error: --logins and --username: expected one of them\n")


def test_a_judgement_bears_the_name_of_the_login_whatever_the_page_says(logins, tmp_path, capfd):
    """As a browser asks: with the cookie that the login gave."""
    pytest.importorskip("gradio", reason="the page is Gradio's (extra pages)")

    def asked_by(opener, name: str, **question) -> dict:
        ids = [number for number, block in blocks.blocks.items() if hasattr(block, name)]
        body = {"session_hash": "s", "component_id": ids[0], "fn_name": name, "data": question}
        url, headers = f"{address}gradio_api/component_server", {"Content-Type": "application/json"}
        with opener.open(urllib.request.Request(url, json.dumps(body).encode(), headers)) as response:
            return json.loads(response.read())

    with served(logins, rows_of(2), tmp_path) as (address, blocks):
        openers = {}
        for name, password in [*PASSWORDS.items(), ("Ada", "battery:staple"), ("nobody", "correct horse")]:
            jar = http.cookiejar.CookieJar()
            local = urllib.request.ProxyHandler({})
            opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar), local)
            form = urllib.parse.urlencode({"username": name, "password": password}).encode()
            if PASSWORDS.get(name) == password:
                assert opener.open(f"{address}login", form).status == 200
                openers[name] = opener
            else:
                with pytest.raises(urllib.error.HTTPError, match="400"):
                    opener.open(f"{address}login", form)
                with pytest.raises(urllib.error.HTTPError, match="401"):
                    asked_by(opener, "ranking_task", rater="Ada")
        ada, ben = openers.values()
        assert asked_by(ben, "ranking_task", rater="Ben 本", row=1)["task"]["row"] == 1
        # The row that another one had on this page before is not given to Ada.
        said = asked_by(ada, "ranking_task", rater="Ben 本", row=1)
        assert said["rater"] == "Ada" and said["task"]["row"] == 0
        judgement = {"row": 0, "judgement": {"ranks": [0, 1, 2]}}
        found = asked_by(ada, "ranking_judge", rater="Ben 本", **judgement)
        assert found == {
            "error": "Not saved: you are logged in as Ada by now. Reload the page, which then is that of Ada."
        }
        assert "logged in as Ben 本" in asked_by(ben, "ranking_undo", rater="Ada")["error"]
        assert asked_by(ada, "ranking_judge", rater="Ada", **judgement)["mine"] == 1
    (row,) = read_jsonl(tmp_path / "rankings.jsonl")
    assert row["rater"] == "Ada"
    seen = "".join(capfd.readouterr()) + "".join(path.read_text() for path in tmp_path.glob("[jr]*"))
    assert not any(password in seen for password in PASSWORDS.values())


@pytest.mark.slow
def test_two_people_log_in_rank_and_see_whether_they_agree(logins, tmp_path):
    pytest.importorskip("gradio", reason="the page is Gradio's (extra pages)")

    def log_in(page, name: str) -> None:
        page.wait_for_selector("input[type=password]")
        page.locator("input").first.fill(name)
        page.locator("input[type=password]").fill(PASSWORDS[name])
        page.keyboard.press("Enter")
        page.locator(".rank .start button").wait_for()
        assert page.locator("[name=rater]:visible").count() == 0
        assert "Your name is kept with every judgement" in page.locator(".start").inner_text()

    def rank(page, best_first: str) -> None:
        before = page.locator(".progress").inner_text()
        for letter in best_first:
            number = page.locator(".answer .text").all_inner_texts().index(f"x{letter}") + 1
            page.keyboard.press(str(number))
        page.keyboard.press("Enter")
        page.wait_for_function("before => document.querySelector('.progress').innerText !== before", arg=before)

    with (
        browser() as own,
        served(logins, rows_of(3), tmp_path) as (address, _),
        opened(own, address) as one,
        opened(own, address, PHONE) as other,
    ):
        for page, name in ((one, "Ada"), (other, "Ben 本")):
            log_in(page, name)
            screenshot(page, f"rank_login_{len(page.context.pages)}_{page.viewport_size['width']}", tmp_path)
            page.keyboard.press("Enter")  # the button has the focus
            page.locator(".rank .answer").first.wait_for()
            assert page.locator(".who").inner_text() == name
        for best_first in ("abc", "abc"):
            rank(one, best_first)
        for best_first in ("abc", "abc"):
            rank(other, best_first)
        assert (
            "on 2 prompts: Kendall's tau 1.00 [1.00, 1.00], Krippendorff's alpha 1.00"
            in other.locator(".agreement").inner_text()
        )
        # A page that is loaded again goes on; after logging out somebody else may log in on it.
        other.reload()
        other.locator(".rank .answer").first.wait_for()
        assert other.locator(".who").inner_text() == "Ben 本"
        other.locator("[data-does=leave]").click()
        log_in(other, "Ada")
        other.keyboard.press("Enter")
        other.locator(".rank .answer").first.wait_for()
        assert other.locator(".who").inner_text() == "Ada"
        rank(other, "cba")
        one.reload()
        one.locator(".finished").wait_for()
    rows = list(read_jsonl(tmp_path / "rankings.jsonl"))
    assert [(row["prompt"][0]["content"], row["rater"], row["ranks"]) for row in rows] == [
        ("0?", "Ada", [0, 1, 2]),
        ("0?", "Ben 本", [0, 1, 2]),
        ("1?", "Ada", [0, 1, 2]),
        ("1?", "Ben 本", [0, 1, 2]),
        ("2?", "Ada", [2, 1, 0]),
    ]
