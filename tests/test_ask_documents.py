"""Questions out of documents without a model: what is asked, where the answer stands, what is left out."""

import json
from collections import Counter

import pytest
import yaml
from helpers.conversations import FAST
from hypothesis import given
from hypothesis import strategies as st

from data_prep import ask_documents, check
from data_prep.common.files import write_jsonl
from data_prep.questions.facts import KINDS, facts
from data_prep.questions.wordings import WORDINGS

GUIDE = """# Guide

A queue is a list that is read from one end, e.g. by a worker. It never ends.

This is a paragraph that defines nothing.

## How do I install it?

Download the file.

Then run it.

## Opening hours

The office opens at nine and closes at five. On Fridays it closes at noon.

```
A dog is an animal that stands in code.
```

**Backlog**: the work that nobody has begun yet. It grows.

Q: Is it free?
A: Yes, for ever,
and for everybody.

| City   | Inhabitants | River |
|--------|------------:|-------|
| Vienna | 2,000,000   | Danube |
| Graz   |             | Mur   |
"""
DOCSTRING = """tools.scale(values, by=1)

Multiply every value.  The list is new.

Parameters
----------
values : list of int
    What is multiplied, a list
    or a tuple. It stays as it is.
by : int, optional
    The factor.

Returns
-------
list
    A new list is a list that was not there.
"""
CHINESE = """# 队列

队列是一种先进先出的线性表。它很常用。

这是一段没有定义的文字。

问：队列要钱吗？
答：不要钱，永远免费。
"""


def of(text: str, **options) -> dict[tuple, str]:
    """{(kind, what is asked about …): answer}"""
    return {(fact.kind, *fact.asked.values()): fact.answer for fact in facts(text, 300, **options)}


def test_what_a_guide_says():
    assert of(GUIDE) == {
        ("faq", "Is it free?"): "Yes, for ever,\nand for everybody.",
        ("faq", "How do I install it?"): "Download the file.\n\nThen run it.",
        ("heading", "Guide"): "A queue is a list that is read from one end, e.g. by a worker. It never ends.",
        ("heading", "Opening hours"): "The office opens at nine and closes at five. On Fridays it closes at noon.",
        ("definition", "a queue"): "A queue is a list that is read from one end, e.g. by a worker.",
        ("definition", "Backlog"): "the work that nobody has begun yet.",
        ("cell", "Vienna", "Inhabitants"): "2,000,000",
        ("cell", "Vienna", "River"): "Danube",
        ("cell", "Graz", "River"): "Mur",
    }


@pytest.mark.parametrize(
    ("code", "heading"),
    [
        ("``` x ``` is code within a line.", "## Opening hours"),
        ("````\n# no\n```\n# no\n````", "## Opening hours"),
        ("It is shut.", "Opening hours\n~~~~~~~~~~~~~"),  # in reStructuredText
    ],
)
def test_headings_after_code_and_underlined_by_tildes_are_asked_for(code, heading):
    text = f"# Guide\n\n{code}\n\n{heading}\n\nThe office opens at nine."
    assert of(text)["heading", "Opening hours"] == "The office opens at nine."


def test_what_a_docstring_says():
    expected = {
        ("signature", "tools.scale"): "tools.scale(values, by=1)",
        ("purpose", "tools.scale"): "Multiply every value.",
        ("parameter", "tools.scale", "values"): "What is multiplied, a list or a tuple.",
    }  # "The factor." is no answer: 11 characters
    assert of(DOCSTRING) == expected
    assert of(f"# `{DOCSTRING.replace(')', ')`', 1)}") == expected, "with the marks of Markdown"
    # As those of C are: a bare name above a signature, of more lines than one.
    text = "tools.scale\n\nscale(\n    values,\n)\n\nMultiply every value.\n"
    assert of(text) == {
        ("signature", "tools.scale"): "scale( values, )",
        ("purpose", "tools.scale"): "Multiply every value.",
    }


def test_a_docstring_in_sections_is_asked_about_by_the_name_above_them():
    above, below = DOCSTRING.split("\nParameters")
    name = "tools.scale(values, by=1)"
    asked = of(f"# {above}", heading=name) | of(f"Parameters{below}", heading=f"Tools > {name} > Parameters")
    assert asked == of(DOCSTRING)
    (signature, purpose) = facts("Multiply every value.", 300, heading=f"Tools > {name}")
    assert (signature.field, signature.start, signature.end) == ("heading", 8, 33), "it stands in the heading alone"
    assert (purpose.field, purpose.answer) == ("text", "Multiply every value.")
    assert of("It is shut on Sundays.", heading="Shop > Hours") == {("heading", "Hours"): "It is shut on Sundays."}


def test_what_a_chinese_document_says():
    assert of(CHINESE) == {
        ("faq", "队列要钱吗？"): "不要钱，永远免费。",
        ("heading", "队列"): "队列是一种先进先出的线性表。它很常用。",
        ("definition", "队列"): "队列是一种先进先出的线性表。",
    }
    assert of("法国的京城\n是巴黎，也是全国的政治中心。") == {
        ("definition", "法国的京城"): "法国的京城是巴黎，也是全国的政治中心。"
    }
    assert of("但是我们还是要去的，这不是问题。") == {}


def test_an_answer_that_is_too_long_gives_its_first_sentence_or_is_counted():
    left_out: Counter = Counter()
    text = "# Hours\n\nIt opens at nine. " + "It closes at five. " * 20 + "\n\n# Names\n\n" + "no end, " * 50
    (fact,) = facts(text, 100, left_out=left_out)
    assert fact.answer == "It opens at nine." and left_out == {"answer longer than --longest_answer": 1}


PIECES = ["# A b\n", "\n", "x is a y that z. W.\n", "Q: a?\nA: b c d e f g\n", "| a | b |\n|---|---|\n| c | d\\|e |\n", "m.f(x)\n",
          "Parameters\n---\n", "x : int\n    Long words, that go on\n    and on. More.\n", "术语是一种词。\n", "```\n", "**T**: u\n",
          "term\n  its definition, long enough\n", "  ", "(", "|", "?"]  # fmt: skip


@FAST
@given(st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=14).map("".join))
def test_an_answer_is_the_text_of_its_place_blanks_aside(text):
    for fact in facts(text, 300):
        assert set(fact.asked) == set(KINDS[fact.kind]) and fact.answer.strip()
        assert "".join(fact.answer.split()) == "".join(text[fact.start : fact.end].split())


@pytest.fixture
def ask(tmp_path, command):
    """ask(rows, "--option", …) runs the command; returns (exit code, stdout, stderr, {file: conversations})."""

    def run(rows, *options):
        write_jsonl(tmp_path / "documents.jsonl", rows)
        code, out, err = command(
            ask_documents, tmp_path / "documents.jsonl", "--output", tmp_path / "out.json", *options
        )
        written = {path.name: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
        return code, out, err, written

    return run


ROWS = [{"text": GUIDE, "file": "guide.md"}, {"text": DOCSTRING, "file": "scale.md", "page": 3}]


def test_the_outputs_ask_the_same_in_other_words(ask, tmp_path, command):
    names = {name: tmp_path / f"{name}.json" for name in ("prompts", "reworded")}
    options = ["--kinds", "purpose", "definition", "--wordings_per_question", 2]
    options += [word for name, path in names.items() for word in (f"--{name}", path)]
    code, out, err, written = ask(ROWS, *options)
    assert code == 0, err
    found = {name: [row["conversations"][1]["value"] for row in rows] for name, rows in written.items()}
    answers = ["A queue is a list that is read from one end, e.g. by a worker.", "the work that nobody has begun yet."]
    answers.append("Multiply every value.")
    assert found["reworded.json"] == answers
    assert found["out.json"] == found["prompts.json"] == [answer for answer in answers for _ in range(2)]
    asked = [row["conversations"][0]["value"] for rows in written.values() for row in rows]
    assert len(set(asked)) == len(asked) == 15
    assert len({row["id"] for rows in written.values() for row in rows}) == 15
    first, last = written["out.json"][0], written["out.json"][-1]
    start = GUIDE.index("A queue")
    assert first["source"] == {"file": "guide.md", "row": 1, "start": start, "end": start + 62, "kind": "definition"}
    assert last["source"] == {"file": "scale.md", "row": 2, "page": 3, "start": 27, "end": 48, "kind": "purpose"}
    assert "2 documents: 3 answers found: 2 definition, 1 purpose\n" in out
    assert f"6 conversations in {tmp_path}/out.json\n" in out
    # The reader takes them as they are, and says of no field that it is not read.
    code, out, err = command(check, tmp_path / "out.json")
    assert code == 0 and "fields" not in out and "nothing is wrong with these rows" in out, out + err


def test_what_is_asked_depends_on_the_seed(ask, tmp_path):
    asked = []
    for seed in (0, 0, 1):
        _, _, _, written = ask(ROWS, "--seed", seed, "--questions_per_document", 3, "--wordings_per_question", 1)
        asked.append([row["conversations"] for row in written["out.json"]])
        (tmp_path / "out.json").unlink()
    assert asked[0] == asked[1] != asked[2] and [len(each) for each in asked] == [6, 6, 6]


def test_a_question_with_several_answers_is_left_out_and_one_that_is_repeated_is_asked_once(ask):
    texts = {"Hours": "It opens at nine.", " Hours": "It opens at ten.", "Price": "It is free of charge."}
    rows = [{"text": f"# {title}\n\n{text}"} for title, text in texts.items()]
    rows.append({"text": "# price\n\nIt is free\nof charge."})
    code, out, err, written = ask(rows, "--wordings_per_question", 1)
    assert code == 0, err
    assert [row["conversations"][1]["value"] for row in written["out.json"]] == ["It is free of charge."]
    assert written["out.json"][0]["id"].startswith("documents.jsonl:3/heading/9-30/")
    assert "left out: 2 × question with several answers, 1 × repeated\n" in out


def test_documents_are_held_out_whole_by_the_file_that_they_come_from(ask, tmp_path):
    rows = [{"text": f"# Part {part} of {file}\n\nIt has the number {part}{file}.", "file": f"{file}.md"}
            for file in range(40) for part in range(2)]  # fmt: skip
    code, out, err, written = ask(rows, "--heldout", tmp_path / "held.json", "--heldout_fraction", 0.25)
    assert code == 0, err
    files = {name: {row["source"]["file"] for row in found} for name, found in written.items()}
    assert not files["held.json"] & files["out.json"] and len(files["held.json"] | files["out.json"]) == 40
    assert 4 <= len(files["held.json"]) <= 16
    assert len(written["held.json"]) == 2 * len(files["held.json"]), "in one wording each"
    wordings = yaml.safe_load(WORDINGS.read_text())["held_out"]["en"]["heading"]
    subjects = [row["conversations"][0]["value"] for row in written["held.json"]]
    assert all(any(text.startswith(wording.split("{")[0]) for wording in wordings) for text in subjects)
    code, _, err, _ = ask(rows[:2], "--heldout", tmp_path / "other.json", "--output", tmp_path / "b.json")
    assert code == 1 and "--heldout_fraction 0.1: of 2 documents none is held out; give another fraction" in err


def test_files_of_one_name_and_rows_of_one_id_are_documents_of_their_own(tmp_path, command):
    texts = [
        f"# Part {part}\n\nIt has number {part}0.\n\n# More of {part}\n\nIt has number {part}1." for part in range(6)
    ]
    for name, rows in (
        ("a/documents", [{"text": texts[0]}, {"text": texts[1], "id": "x"}]),
        ("b/documents", [{"text": texts[2]}, {"text": texts[3], "id": "x"}]),
        ("other", [{"text": texts[4]}, {"text": texts[5], "id": "y"}]),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    files = [tmp_path / f"{name}.jsonl" for name in ("a/documents", "b/documents", "other")]
    options = ("--kinds", "heading", "--wordings_per_question", 1)
    for most in (1, 2):  # --questions_per_document
        output = tmp_path / f"{most}.json"
        given = (*options, "--questions_per_document", most, "--output", output)
        code, _, err = command(ask_documents, *files, *given)
        assert code == 0, err
        ids = [row["id"] for row in json.loads(output.read_text())]
        assert len(set(ids)) == len(ids)
        # Another file's rows have no part in a document's own number of questions.
        names = [
            "a/documents.jsonl:1",
            "a/documents.jsonl:2",
            "b/documents.jsonl:1",
            "b/documents.jsonl:2",
            "other.jsonl:1",
            "y",
        ]
        assert Counter(each.split("/heading/")[0] for each in ids) == dict.fromkeys(names, most)


def test_the_source_of_an_answer_says_which_of_several_inputs_has_its_row(tmp_path, command):
    files = [tmp_path / folder / "docs.jsonl" for folder in "ab"]
    for number, file in enumerate(files):
        texts = [f"# Part {number}{row}\n\nIt has the number {number}{row} of all." for row in range(2)]
        write_jsonl(file, [{"text": texts[0]}, {"text": texts[1], "file": "x.md"}])
    sources = []
    for inputs in (files, files[:1]):
        output = tmp_path / f"{len(inputs)}.json"
        options = ("--kinds", "heading", "--wordings_per_question", 1, "--output", output)
        code, _, err = command(ask_documents, *inputs, *options)
        assert code == 0, err
        sources.append([row["source"] for row in json.loads(output.read_text())])
    place = {"start": 11, "end": 11 + 28, "kind": "heading"}
    own, named = [{"file": str(file), "row": 1} for file in files], {"file": "x.md", "row": 2}
    of_both = [own[0], {**named, "input": "a/docs.jsonl"}, own[1], {**named, "input": "b/docs.jsonl"}]
    assert sources == [[{**each, **place} for each in found] for found in (of_both, [own[0], named])]


@pytest.mark.parametrize("column", ["file", "heading", "page"])
def test_half_a_surrogate_pair_in_what_is_written_with_a_question_is_a_bad_row(column, ask, tmp_path):
    rows = [{"text": GUIDE, "file": "a.md"}, {"text": DOCSTRING, column: "x\ud800"}]
    code, _, err, written = ask(rows)
    assert code == 1 and written == {} and "Traceback" not in err
    assert (
        f"documents.jsonl: 1 row cannot be used: 1 × not Unicode\n  row 2, line 2: found 'x\\ud800' under '{column}'; "
        in err
    )
    code, out, err, written = ask(rows, "--on_bad", "quarantine")
    assert code == 0, err
    assert {row["source"]["file"] for row in written["out.json"]} == {"a.md"}
    assert "2 rows in = 1 out + 1 quarantined\n" in out
    (bad,) = (tmp_path / "out.json.bad_rows.quarantine.jsonl").read_text().splitlines()
    assert json.loads(bad)["row"] == 2


def test_chinese_is_asked_in_chinese(ask):
    _, _, _, written = ask([{"text": CHINESE}])
    assert len(written["out.json"]) == 12
    assert all(
        any("\u4e00" <= letter <= "\u9fff" for letter in row["conversations"][0]["value"])
        for row in written["out.json"]
    )


def test_the_wordings_are_disjoint_and_of_every_kind(tmp_path, ask):
    wordings = yaml.safe_load(WORDINGS.read_text())
    assert all(list(wordings[name][language]) == list(KINDS) for name in wordings for language in ("en", "zh"))
    for language in ("en", "zh"):
        each = [wording for own in wordings.values() for kind in own[language].values() for wording in kind]
        assert len(set(each)) == len(each) > 60
    # In a file of one's own: only what is used must be there, and braces of a document are left alone.
    own = tmp_path / "own.yaml"
    own.write_text("demonstrations: {en: {heading: ['About {subject}?']}, zh: {heading: ['{subject}？']}}\n")
    _, _, err, written = ask(
        [{"text": "# {name} {subject}\n\nIt is a name."}], "--wordings", own, "--kinds", "heading"
    )
    assert written["out.json"][0]["conversations"][0]["value"] == "About {name} {subject}?", err


@pytest.mark.parametrize(
    ("yaml_text", "says"),
    [
        ("demonstrations: {en: {heading: ['x']}}", "demonstrations: en: heading: found 'x'; expected {subject} in it"),
        ("demonstrations: {en: {heading: []}}", "demonstrations: en: heading: found []; expected a list of wordings"),
        ("demonstrations: {en: {headings: ['{subject}']}}", "demonstrations: en: found the kind 'headings'; expected"),
        ("demo: {}", "found the set 'demo'; expected demonstrations, prompts, held_out"),
        (
            "demonstrations: {en: {heading: ['{subject}']}, zh: {heading: ['{subject}']}}\n"
            "held_out: {en: {heading: ['{subject}']}}",
            "held_out: en: heading: '{subject}' is in demonstrations too; expected each wording in one set",
        ),
    ],
)
def test_broken_wordings_are_told_in_one_line(yaml_text, says, ask, tmp_path):
    (tmp_path / "own.yaml").write_text(yaml_text)
    code, out, err, written = ask(ROWS, "--wordings", tmp_path / "own.yaml", "--kinds", "heading")
    assert code == 1 and err.startswith(f"error: {tmp_path}/own.yaml: {says}") and err.count("\n") == 1
    assert not written


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--span", 100], "--span needs --model"),
        (["--retries", 1, "--model", "x"], "--retries needs --url"),
        (["--url", "http://a/v1"], "--url needs --model"),
        (["--kinds", "faq", "--model", "x"], "--kinds is for questions without --model"),
        (["--heldout_fraction", 0.5], "--heldout_fraction needs --heldout"),
        (["--batch_size", 2, "--model", "x", "--url", "http://a/v1"], "--batch_size is for a checkpoint"),
        (["--longest_answer", 0], "--longest_answer 0: expected at least 1"),
        (["--prompts", "{out}"], "--output, --prompts: found one file twice; give each its own"),
    ],
)
def test_an_option_is_used_or_refused_by_name(options, says, ask, tmp_path):
    code, _, err, written = ask(ROWS, *[str(word).format(out=tmp_path / "out.json") for word in options])
    assert code == 1 and err.startswith(f"error: {says}") and err.count("\n") == 1 and not written


def test_nothing_is_overwritten_and_nothing_written_of_bad_rows(ask, tmp_path):
    code, _, err, written = ask([*ROWS, {"file": "no text"}])
    assert code == 1 and "1 row cannot be used: 1 × no text" in err and not written
    code, out, _, written = ask([*ROWS, {"file": "no text"}], "--on_bad", "quarantine")
    assert code == 0 and "3 rows in = 2 out + 1 quarantined" in out and written
    assert json.loads((tmp_path / "out.json.bad_rows.quarantine.jsonl").read_text())["row"] == 3
    code, _, err, _ = ask(ROWS)
    assert code == 1 and err == f"error: {tmp_path}/out.json: is there already; remove it or give another path\n"
    code, _, err, _ = ask([{"text": "nothing to ask about"}], "--output", tmp_path / "b.json")
    assert code == 1 and "--output: found no question to write from 1 document; a model can ask" in err
