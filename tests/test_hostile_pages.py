"""The report and the doctor's page over hostile texts: no markup, no stretched page, no turned line; in a browser too."""

import html
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from data_prep import check
from data_prep.common.errors import run_main
from data_prep.common.files import write_json, write_jsonl, write_results
from data_prep.common.page import as_text
from eval import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
# {text: how a page shows it}; short enough for the name of a file
HOSTILE = {
    "<script>document.title='taken'<\\script>": None,
    "<img src=x onerror=document.title=1>": None,
    "\" onmouseover='document.title=1' x=\"": None,
    "{{ 78901 * 7 }} {% raw %} ${7}": None,
    "\u202egnp.exe": r"\u202egnp.exe",
    "\u2067a\u2069 \x1b[2J\x07": r"\u2067a\u2069 \x1b[2J\x07",
    "\u200fa": "\u2068\u200fa\u2069",
    "مرحبا 12": "\u2068مرحبا 12\u2069",
    "W" * 200: None,
    # What has run scripts in pages that escape half of it: the attribute, the style, the script and the address.
    "<svg onload=window.taken=1>": None,
    "<svg><animate onbegin=alert(1) attributeName=x dur=1s>": None,
    "<details open ontoggle=window.taken=2>": None,
    "<body onload=alert(2)>": None,
    "<iframe srcdoc='<script>parent.taken=3<\\script>'>": None,
    "<math><mtext><img src=x onerror=alert(3)>": None,
    "<input autofocus onfocus=window.taken=4>": None,
    "<video><source onerror=alert(4)>": None,
    "<a href=javascript:alert(5)>click<\\a>": None,
    "<meta http-equiv=refresh content='0;javascript:alert(6)'>": None,
    "<object data=javascript:alert(7)>": None,
    "<style>*{background:url(x)}<\\style>": None,
    "<!-- --><script>window.taken=5<\\script>": None,
    "]]><script>window.taken=6<\\script>": None,
    "' autofocus onfocus=window.taken=7 x='": None,
    "`onmouseover=window.taken=8`": None,
    "&lt;script&gt;window.taken=9&lt;\\script&gt;": None,
    "javascript:window.taken=10": None,
    "{{ ''.__class__.__mro__ }}": None,
    "{% for x in [1] %}{{ x }}{% endfor %}": None,
    "$\\alpha^{2}$ \\frac{1}{2} $": None,
}
assert len(HOSTILE) == 30


def shown(text: str) -> str:
    return HOSTILE[text] or text


class Page(HTMLParser):
    """The tags of a document, its texts and the values of its attributes."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.texts = [], [], []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def command(module, *arguments) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        run_main(module.main)


def ranked(texts) -> list[dict]:
    """Rankings of hostile answers to hostile questions by hostile raters."""
    return [
        {
            "id": text,
            "prompt": text,
            "completions": [text, "a", "b"],
            "ranks": [0, 1, 2],
            "ranked_by": text,
            "note": text,
        }
        for text in texts
    ]


@pytest.fixture(scope="module")
def the_report(talker, tmp_path_factory) -> str:
    """Hostile texts as questions, references, answers, metrics, models, groups, data files, alarms, samples and labels."""
    run = tmp_path_factory.mktemp("run")
    (run / "ppo").symlink_to(talker("yes"))
    (run / "data").mkdir()
    rate = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    alarms, completed, sampled, asked = [], [], [], []
    for number, text in enumerate(HOSTILE):
        alarms.append({"step": 1, "alarm": text, "message": text})
        completed.append({"step": 1, "prompt": text, "completion": text, "score": 0.5})
        sampled.append({"step": 0, "prompt": text, "sample": text})
        asked.append({"prompt": text, "completion": text})
        (run / "data" / f"{text}.jsonl").write_text("{}\n")
        metrics = {"exact_match": rate, text: text}
        about = {"model": text, "data": [text], "groups": {text: metrics}, "metrics": metrics}
        write_results(run / "results", f"answers_{number}", about)
        write_results(
            run / "results", f"win_rate_{text}", {"judge": text, "prompts": 9, "metrics": {"win_rate": rate}}
        )
        write_results(run / "results", f"x {text}", {"metrics": {text: text}, "seconds": 1.0})
    metrics = {"bits_per_byte": 1.0, **{text: text for text in HOSTILE}}
    write_results(run / "results", "pretrain", {"metrics": metrics, "curves": {text: [[0, 1.0]] for text in HOSTILE}})
    write_results(run / "results", "sft", {"metrics": metrics, "alarms": alarms, "curves": {}})
    verdict = {"word": "fit", "line": " ".join(HOSTILE), "reason": "<b>", "next": "<i>"}
    write_results(run / "results", "reward_gate_x", {"verdict": verdict, "metrics": {text: text for text in HOSTILE}})
    write_results(run / "results", "ppo", {"metrics": metrics, "reward_gate": {"verdict": verdict, "about": "<u>"}})
    write_jsonl(run / "data" / "rankings_heldout.jsonl", ranked(HOSTILE))
    spoken = [
        {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": text}]} for text in HOSTILE
    ]
    (run / "data" / "conversations.json").write_text(json.dumps(spoken))
    (run / "sft").symlink_to(talker("no"))
    found = [{"kind": text, "rows": 1, "treatment": text} for text in HOSTILE]
    checked = {"rows": {"in": "<b>", "out": 1}, "findings": found, "files": [{"file": text} for text in HOSTILE]}
    write_json(run / "data" / "report" / "check.json", checked)
    (run / "made").mkdir()
    given = {text: [text] for text in HOSTILE}
    settings = {
        "recipe": "<script>.py",
        "settings": given,
        "given": given,
        "versions": {text: text for text in HOSTILE},
    }
    write_json(run / "made" / "settings.json", settings)
    write_jsonl(run / "base" / "samples.jsonl", sampled)
    write_jsonl(run / "data" / "conversations_heldout.json", asked)
    write_jsonl(run / "asked.jsonl", asked)
    (run / "data" / "conversations_heldout.json").unlink()
    command(report, "--run", run, "--prompts", run / "asked.jsonl", "--models", "ppo", "--limit", len(asked))
    return (run / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def the_doctors(tmp_path_factory) -> str:
    """Hostile texts as names of files, keys, ids, speakers and turns."""
    folder = tmp_path_factory.mktemp("data")
    for text in HOSTILE:
        rows = [{text: text}, {"id": text, "conversations": [{"from": text, "value": text}]}]
        (folder / f"{text}.json").write_text(json.dumps(rows))
    with pytest.raises(SystemExit):  # no row is left
        command(check, folder, "--output", folder / "out")
    return next(Path(folder / "out").rglob("*.html")).read_text(encoding="utf-8")


@pytest.fixture(params=["the_report", "the_doctors"])
def document(request) -> str:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_text(document, text):
    page = Page(document)
    whole = "".join(page.texts)
    # A name within a path is set apart with the path.
    assert shown(text)[:20] in whole or shown(text).strip("\u2068\u2069") in whole


def test_a_page_has_no_tag_attribute_or_character_from_the_data(document):
    page = Page(document)
    assert not {"script", "iframe", "object", "embed", "link", "base"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert all(
        value.startswith(("data:image/png;base64,", "#")) for name, value in page.attributes if name in ("src", "href")
    )
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066\u2067]", html.unescape(document))
    assert "552307" not in "".join(text for text in page.texts if "7" in text)


@pytest.mark.parametrize("text", HOSTILE)
def test_right_to_left_text_is_set_apart_and_all_else_stays(text):
    assert as_text(text) == shown(text)


def test_nothing_of_it_runs_in_a_browser(document, tmp_path):
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright, of the extra test")
    if not BROWSER:
        pytest.skip("there is no Chromium or Chrome on the PATH")
    path, ran = tmp_path / "page.html", []
    path.write_text(document, encoding="utf-8")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
        page.on(
            "request", lambda request: ran.append(request.url) if not request.url.startswith(("file:", "data:")) else 0
        )
        page.goto(path.as_uri())
        title = page.title()
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        for key in ("Tab", "Tab", "Enter"):
            page.keyboard.press(key)
        page.mouse.move(200, 400)
        assert page.evaluate("window.taken") is None and page.title() == title and ran == []
        assert (
            page.evaluate("document.querySelectorAll('script, iframe, object, embed, base, meta[http-equiv]').length")
            == 0
        )
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        browser.close()


@pytest.mark.parametrize("width", [1000, 380])
def test_no_text_stretches_a_page_or_turns_it(document, tmp_path, width):
    if not BROWSER:
        pytest.skip("there is no Chromium or Chrome on the PATH")
    # In a frame: a window of its own is never as narrow as a telephone's.
    frame = f'<iframe id="f" style="width:{width}px;height:800px;border:0" srcdoc="{html.escape(document)}"></iframe>'
    measure = """
        const page = document.getElementById('f').contentDocument, view = page.defaultView.innerWidth;
        const beyond = [...page.querySelectorAll('main, h1, h2, h3, p, li, dl, dd, dt, figure, .tile, .row, .question')]
            .filter(e => !e.closest('table'))  // a table scrolls within itself
            .filter(e => e.getBoundingClientRect().right > view + 1).map(e => e.outerHTML.slice(0, 80));
        document.title = JSON.stringify([page.documentElement.scrollWidth, view, page.title, beyond.slice(0, 3)]);"""
    path = tmp_path / "frame.html"
    path.write_text(f"<meta charset='utf-8'>{frame}<script>onload = () => {{{measure}}}</script>", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *flags, "--virtual-time-budget=5000", path.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    wide, view, title, beyond = json.loads(html.unescape(re.search("<title>(.*?)</title>", done.stdout, re.S)[1]))
    assert wide <= view <= width and beyond == [], (wide, view, beyond)
    assert title not in ("taken", "1")
