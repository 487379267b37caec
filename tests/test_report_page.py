"""The report in a real browser: it needs nothing beside itself, and what models wrote stays text."""

import shutil
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from data_prep.common.errors import run_main
from data_prep.common.files import write_jsonl, write_results
from eval import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
EVIL = "<script>document.title = 'taken'</script><img src='http://example.com/x.png' onerror='document.title = 1'>"
LOADED = ("src", "href", "srcset", "data", "poster", "action", "background")  # attributes that name something else


class Page(HTMLParser):
    """Tags with their attributes, style sheets, and the text of a document's cells, list items and title."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.texts: dict[str, list[str]] = {name: [] for name in ("td", "li", "caption", "title", "style")}
        self.open: list[str] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in self.texts:
            self.open.append(tag)
            self.texts[tag].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            self.open.remove(tag)

    def handle_data(self, data: str) -> None:
        for tag in self.open:
            self.texts[tag][-1] += data


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Page:
    """The report of a run with two methods and hostile answers, as the browser holds it after its scripts have run."""
    if not BROWSER:
        pytest.skip("there is no Chromium or Chrome on the PATH")
    run = tmp_path_factory.mktemp("run")
    shown = {"value": 0.65, "low": 0.6, "high": 0.7, "n": 9}
    nats = {"value": 3.2, "low": 3.0, "high": 3.5, "n": 9}
    curves = {f"held-out {name}": [[0, 0.0], [60, 1.0]] for name in ("score", "KL", "exact_match")}
    alarm = {"step": 12, "alarm": "repetition", "message": EVIL}
    trained = {"seconds": 240.0, "metrics": {"episodes": 12800}, "curves": curves, "alarms": [alarm]}
    write_results(run / "results", "ppo", trained)
    write_results(run / "results", "dpo", {"seconds": 60.0, "pairs": 5000, "metrics": {}})
    won = {"win_rate": shown, "kl": nats, "exact_match": shown, "opponent_exact_match": shown}
    won |= {"wins": 5, "ties": 2, "losses": 2}
    about = {"judge": EVIL, "prompts": 9, "temperature": 1.0, "metrics": won}
    write_results(run / "results", "win_rate_ppo_vs_sft", about)
    row = {"step": 1, "prompt": [{"role": "user", "content": "Right?"}], "completion": EVIL, "score": 0.5}
    write_jsonl(run / "ppo" / "completions.jsonl", [row])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["report", "--run", str(run)])
        run_main(report.main)
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={run / 'profile'}", "--dump-dom"]
    done = subprocess.run(
        [BROWSER, *flags, (run / "report.html").as_uri()], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "</html>" in done.stdout, done.stderr[-2000:]
    return Page(done.stdout)


def test_nothing_is_loaded_from_elsewhere(page):
    named = [(tag, key, value) for tag, attributes in page.tags for key, value in attributes.items() if key in LOADED]
    inside = {"#" + attributes["id"] for _, attributes in page.tags if "id" in attributes}
    assert named and all(value.startswith("data:image/png;base64,") or value in inside for _, _, value in named)
    assert [tag for tag, _ in page.tags if tag in ("script", "link", "iframe", "object", "embed", "base")] == []
    (style,) = page.texts["style"]
    assert "url(" not in style and "@import" not in style


def test_what_models_wrote_is_text(page):
    assert EVIL in page.texts["td"] and f"Update 12: repetition: {EVIL}" in page.texts["li"]
    (title,) = page.texts["title"]
    assert title.endswith("what each stage brought")  # no script has changed it
    assert not [attributes for _, attributes in page.tags if any(key.startswith("on") for key in attributes)]


def test_the_table_of_methods_is_there(page):
    cells = page.texts["td"]
    rows = ["PPO", "65.0% [60.0%, 70.0%]", "not run", "3.20 [3.00, 3.50]", "240 s", "12,800 answers"]
    rows += ["DPO", "not run", "not run", "not run", "60 s", "5,000 pairs"]
    assert any(cells[i : i + len(rows)] == rows for i in range(len(cells)))
    (caption,) = page.texts["caption"]
    assert "Not trained equally long: DPO for 60 s, PPO for 240 s." in " ".join(caption.split())


def test_the_picture_says_in_words_what_it_shows(page):
    words = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert len(words) == 2 and words[0] == "Win rate against SFT, PPO: 65.0% [60.0%, 70.0%] (sampled)."
    assert words[1].startswith("Score against KL. From update 0 to 60 the KL went from 0 to 1 nats")
