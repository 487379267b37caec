"""A domain from an installed package: what is asked, what is answered, and what is held out."""

import json
import re
import sys
from pathlib import Path

import pytest

from data_prep import package_docs

PLANTED = '''
"""A planted module."""

def total(values, start=0):
    """Add all values up.

    Parameters
    ----------
    values : list <of numbers>
        What is added.

    Returns
    -------
    The sum.
    """

def builtin():
    """builtin(a, b=1, /) -> int

    Do what C functions do in their docstrings.
    """

def same():
    """Add all values up.

    With another text below it, so that a question would have two right names.
    """

def copied():
    """Add all values up.

    Parameters
    ----------
    values : list <of numbers>
        What is added.

    Returns
    -------
    The sum.
    """

def short():
    """Too short."""

def rambling():
    """%s."""

def _private():
    """Nobody asks about what is private."""

class Box:
    """A box that holds a few things."""

    def open(self):
        """Open the box and give back what is in it."""
'''


@pytest.fixture
def planted(tmp_path, monkeypatch):
    (tmp_path / "planted_docs.py").write_text(PLANTED % ("a long sentence " * 9))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "planted_docs", raising=False)
    return tmp_path / "out"


def test_names_and_answers_are_what_the_docstrings_say(planted, command):
    code, out, err = command(package_docs, "--modules", "planted_docs", "--output_dir", planted)
    assert code == 0, err
    rows = json.loads((planted / "conversations_heldout.json").read_text())
    answers = {row["id"].removesuffix("/held_out"): row["conversations"][1]["value"] for row in rows}
    module = "It is in the module planted_docs."
    # In the order of their names: Box, builtin, copied, …; total is copied under a second name, and same repeats a sentence.
    assert answers == {
        "planted_docs.Box/what": "A box that holds a few things.",
        "planted_docs.Box/signature": "planted_docs.Box()",
        "planted_docs.Box/module": module,
        "planted_docs.builtin/what": "Do what C functions do in their docstrings.",
        "planted_docs.builtin/signature": "planted_docs.builtin()",
        "planted_docs.builtin/module": module,
        "planted_docs.copied/what": "Add all values up.",
        "planted_docs.copied/signature": "planted_docs.copied()",
        "planted_docs.copied/module": module,
    }
    skipped = "1 no docstring, 1 first sentence too long or too short, 2 repeated, 0 more than --names"
    assert f"names asked about: 3; skipped: {skipped}\n" in out
    # 20 + 12 + 3 demonstrations of each name
    assert re.search(r"^conversations.json +105 conversations$", out, re.M)
    assert command(package_docs, "--modules", "planted_docs", "--output_dir", planted)[0] == 1  # it is there


def test_documents_are_the_docstrings_and_their_headings(planted, command):
    assert command(package_docs, "--modules", "json", "planted_docs", "--output_dir", planted, "--names", 99)[0] == 0
    pages = {path.stem: path for path in planted.rglob("planted_docs/*")}
    assert {path.suffix for path in pages.values()} == {".html"}  # the second module
    assert pages["copied"].read_text().split("<body>\n")[1] == (
        "<h1>planted_docs.copied()</h1>\n<pre>Add all values up.</pre>\n"
        "<h2>Parameters</h2>\n<pre>values : list &lt;of numbers&gt;\n    What is added.</pre>\n"
        "<h2>Returns</h2>\n<pre>The sum.</pre>\n</body>\n</html>\n"
    )
    assert "total" not in pages and "Box.open" in pages
    text = (planted / "documents" / "json" / "loads.md").read_text()
    assert text.startswith("# json.loads(s, *, cls=None") and "\n\nDeserialize ``s``" in text


@pytest.fixture(scope="module")
def domain(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("domain") / "numpy"
    documents, known, _ = package_docs.read_package(["numpy", "numpy.linalg", "numpy.fft", "numpy.ma"], 60)
    package_docs.write_documents(output, documents, set(known))
    package_docs.write_conversations(output, known)
    return output


def test_no_question_stands_in_two_files(domain):
    files = sorted(domain.glob("*.json"))
    questions = [{row["conversations"][0]["value"] for row in json.loads(path.read_text())} for path in files]
    assert [path.stem for path in files] == ["conversations", "conversations_heldout", "conversations_validation"]
    assert all(not a & b for i, a in enumerate(questions) for b in questions[i + 1 :])


def test_what_is_held_out_is_about_no_name_that_is_asked_about_nor_one_of_its_namesakes(domain):
    def last(name: str) -> str:
        return name.rsplit(".", 1)[-1].lower()

    rows = json.loads((domain / "conversations.json").read_text())
    asked = {last(row["id"].split("/")[0]) for row in rows}
    documents, heldout = (
        {last(path.stem) for path in (domain / folder).rglob("*") if path.is_file()}
        for folder in ("documents", "documents_heldout")
    )
    assert len(asked) > 50 and asked <= documents and len(heldout) > 50
    assert not heldout & documents


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["no_such_module"], "--modules: no_such_module cannot be imported (No module named 'no_such_module')"),
        (["errno"], "--modules errno: found 0 documents and no name whose first sentence is an answer"),
    ],
)
def test_modules_that_say_nothing_are_refused(modules, message, command, tmp_path):
    code, _, err = command(package_docs, "--modules", *modules, "--output_dir", tmp_path / "out")
    assert code == 1 and message in err and not (tmp_path / "out").exists()
