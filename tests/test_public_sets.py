"""Rows as public data sets have them: what they are read as, and what is said where they cannot be."""

import json

import pyarrow
import pyarrow.parquet
import pytest
from helpers.conversations import messages

from data_prep import check, clean_corpus, train_tokenizer
from data_prep.common.errors import InputError
from data_prep.common.files import read_json, read_jsonl, write_jsonl
from data_prep.readers.conversations import load_conversations
from data_prep.readers.labels import load_labels
from data_prep.readers.preferences import load_rankings
from data_prep.readers.prompts import read_prompts

COLUMNS = "--columns prompt=COLUMN,completion=COLUMN"
SAID = messages("Twice 2?", "4.")


@pytest.fixture
def checked(command, tmp_path):
    """checked(rows, options…): (check.json, what is printed, {kind: rows written}) of the doctor."""

    def run(rows: list[dict], *options: str) -> tuple[dict, str, dict]:
        write_jsonl(tmp_path / "rows.jsonl", rows)
        output = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
        _, out, err = command(check, tmp_path / "rows.jsonl", "--output", output, *options)
        assert err == ""
        written = {path.stem: list(read_jsonl(path)) for path in output.glob("*.jsonl")}
        return read_json(output / "report" / "check.json"), out, written

    return run


OASST = [
    {"message_id": "a", "text": "Why?", "role": "prompter", "message_tree_id": "a", "lang": "en"},
    {"message_id": "b", "parent_id": "a", "text": "So.", "role": "assistant", "message_tree_id": "a"},
]


@pytest.mark.parametrize("parent", ["left out", "null"])  # in JSON Lines, in Parquet
def test_a_message_of_a_tree_is_no_document(checked, parent):
    first, second = OASST
    report, out, written = checked([{**first, "parent_id": None} if parent == "null" else first, second])
    (finding,) = report["findings"]
    assert (finding["kind"], finding["rows"], written) == ("no known format", 2, {})
    keys = "['message_id', 'message_tree_id', 'parent_id', 'role', 'text']"
    assert finding["first"][1]["found"] == f"a message of a tree (keys {keys})"
    assert finding["first"][1]["expected"] == "a row for each conversation, with all its turns"


def test_a_message_of_a_tree_that_was_a_corpus_is_a_document_when_it_is_cleaned(command, tmp_path):
    """Its text is what was asked for, and the next command reads it as such."""
    write_jsonl(tmp_path / "oasst.jsonl", OASST)
    given = ["--corpus", tmp_path / "oasst.jsonl", "--quality", "none", "--output_dir", tmp_path / "clean"]
    assert command(clean_corpus, *given)[0] == 0
    given = [tmp_path / "clean", "--output", tmp_path / "out"]
    assert command(check, *given)[0] == 0
    assert [row["text"] for row in read_jsonl(tmp_path / "out" / "documents.jsonl")] == ["Why?", "So."]


JUDGED = {
    "BeaverTails": ({"prompt": "Twice 2?", "response": "4.", "is_safe": False}, "False under 'is_safe'"),
    "HelpSteer2": (
        {"prompt": "Twice 2?", "response": "4.", "helpfulness": 0, "verbosity": 2},
        "0 under 'helpfulness'",
    ),
    "When2Call": (
        {"messages": SAID[:1], "chosen_response": SAID[1], "rejected_response": SAID[1]},
        "{'role': 'assistant', 'content': '4.'} under 'rejected_response'",
    ),
}


@pytest.mark.parametrize("name", JUDGED)
def test_a_judged_answer_is_no_demonstration(checked, tmp_path, name):
    row, found = JUDGED[name]
    report, _, written = checked([row, {"prompt": "Twice 3?", "response": "6.", **dict.fromkeys(list(row)[2:])}])
    (finding,) = report["findings"]
    assert (finding["kind"], finding["rows"]) == ("an answer labelled good or bad", 1)
    assert finding["first"][0]["found"] == found
    assert finding["first"][0]["expected"].startswith("a conversation to learn from, without a judgement: ")
    assert [each["messages"] for each in written["conversations"]] == [messages("Twice 3?", "6.")], (
        "without, it is one"
    )
    with pytest.raises(InputError, match="1 row cannot be used: 1 × an answer labelled good or bad"):
        load_conversations(tmp_path / "rows.jsonl")


def test_columns_say_what_is_learned_of_a_judged_answer(checked, tmp_path):
    rows = [{"prompt": f"{n}?", "response": f"{n}.", "is_safe": n == 1} for n in range(3)]
    report, _, written = checked(rows, "--columns", "prompt=prompt,completion=response")
    assert not report["findings"] and len(written["conversations"]) == 3
    report, _, written = checked(rows, "--columns", "prompt=prompt,completion=response,label=is_safe")
    assert [row["label"] for row in written["preferences"]] == [False, True, False]
    dataset = load_labels(tmp_path / "rows.jsonl", columns="prompt=prompt,completion=response,label=is_safe")
    assert list(dataset["label"]) == [False, True, False]


SCALE = [{"prompt": f"{n}?", "response": f"{n}.", "helpfulness": n, "id": n} for n in (0, 1, 4, 1, 3)]


@pytest.mark.parametrize("on_bad", ["error", "repair", "quarantine"])
@pytest.mark.parametrize("as_text", [False, True], ids=["numbers", "texts"])
def test_a_scale_is_no_label_whatever_becomes_of_bad_rows(command, tmp_path, on_bad, as_text):
    """0 and 1 of it would be a bad and a good answer."""
    rows = [{**row, "helpfulness": str(row["helpfulness"])} for row in SCALE] if as_text else SCALE
    write_jsonl(tmp_path / "rows.jsonl", rows)
    named = "prompt=prompt,completion=response,label=helpfulness,id=id"
    lines = [f"{tmp_path}/rows.jsonl: 2 rows cannot be used: 2 × a label on a scale"]
    for number in (3, 5):
        value = repr(rows[number - 1]["helpfulness"])
        expected = (
            "true or false, 1 or 0: of a scale 0 and 1 are not bad and good; make a column of true and false of it"
        )
        name = f"row {number} (id '{rows[number - 1]['id']}'), line {number}"
        lines.append(f"  {name}: found {value} under 'label'; expected {expected}")
    lines.append("No row is used beside such a label, whatever on_bad is.")
    given = [tmp_path / "rows.jsonl", "--columns", named, "--on_bad", on_bad, "--output", tmp_path / "out"]
    code, _, err = command(check, *given)
    assert (code, err) == (1, "error: " + "\n".join(lines) + "\n")
    aside = tmp_path / "aside.jsonl" if on_bad == "quarantine" else None
    for read, more in {load_labels: [], load_rankings: [], read_prompts: [None, 0]}.items():
        with pytest.raises(InputError) as raised:
            read(tmp_path / "rows.jsonl", *more, on_bad, aside, named)
        assert str(raised.value) == "\n".join(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"], "nothing is left"


def test_a_text_that_is_no_label_is_a_bad_row_alone(tmp_path):
    rows = [{**row, "helpfulness": value} for row, value in zip(SCALE, ("x", "true", 0, 1), strict=False)]
    write_jsonl(tmp_path / "rows.jsonl", rows)
    named = "prompt=prompt,completion=response,label=helpfulness"
    dataset = load_labels(tmp_path / "rows.jsonl", "quarantine", tmp_path / "aside.jsonl", named)
    assert list(dataset["label"]) == [True, False, True]
    (aside,) = read_jsonl(tmp_path / "aside.jsonl")
    assert [reason["kind"] for reason in aside["reasons"]] == ["label is not true or false"]


def test_the_rejected_response_of_ms_swift_makes_a_pair(checked, tmp_path, capsys):
    turns = messages("system: Be brief.", "Twice 2?", "4.", "And 3?", "6.")
    report, out, written = checked([{"messages": turns, "rejected_response": "7."}])
    assert not report["findings"] and not report["fields_not_read"]
    (row,) = written["preferences"]
    assert (row["prompt"], row["completions"], row["ranks"]) == (turns[:-1], ["6.", "7."], [0, 1])
    for whole in (SAID[:1], [*SAID, *SAID[:1]], []):  # no answer to compare
        report, _, written = checked([{"messages": whole, "rejected_response": "7."}])
        assert [each["kind"] for each in report["findings"]] == ["an answer labelled good or bad"] and not written


def test_messages_as_json_text_in_parquet(command, tmp_path):
    table = pyarrow.table({"messages": [json.dumps(SAID), json.dumps(SAID[:1]), "[{'role': 'user'}]"], "n": [1, 2, 3]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    for options in ([], ["--columns", "messages=messages"]):
        output = tmp_path / f"out{len(options)}"
        given = [tmp_path / "rows.parquet", "--output", output, *options]
        assert command(check, *given)[0] == 0
        assert [row["messages"] for row in read_jsonl(output / "conversations.jsonl")] == [SAID]
        report = read_json(output / "report" / "check.json")
        assert report["fields_not_read"] == {"n": 1}
        found = {each["kind"]: each["first"] for each in report["findings"]}
        assert found.keys() == {"no assistant turn", "no known format"}
        (unknown,) = found["no known format"]
        assert unknown["found"] == "\"[{'role': 'user'}]\" under 'messages'" and unknown["row"] == 3
        assert unknown["expected"] == "a list of turns, or the same as JSON text"


KEYS = [f"column_{number:02}" for number in range(25)]


def test_what_to_do_with_columns_of_other_names_is_said(command, tmp_path):
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, [dict.fromkeys(KEYS, "x")])
    keys = repr(KEYS)
    assert len(keys) > 300
    found = f"found keys {keys[:297]}...; expected "
    code, out, _ = command(check, path)
    told = f"columns of other names: {COLUMNS}; documents under another name than text: --text_column COLUMN\n"
    assert code == 1 and f"{path}:1: {found}" in out and told in out
    recipe = "; other names: columns: prompt=COLUMN,completion=COLUMN in a recipe's YAML; python -m data_prep.check "
    for read in (load_conversations, load_rankings, load_labels):
        with pytest.raises(InputError) as raised:
            read(path)
        assert f"{recipe}{COLUMNS} --output FOLDER writes rows that every command reads\n" in str(raised.value)
    corpus = (
        "; text under another name: --text_column COLUMN, as of clean_corpus, or text_column: COLUMN in the YAML of "
    )
    options = {clean_corpus: [], train_tokenizer: ["--vocab_size", 300]}
    for module, more in options.items():
        given = ["--corpus", path, "--output_dir", tmp_path / "out", *more]
        code, _, err = command(module, *given)
        assert code == 1 and found in err and f"{corpus}mix_corpus\n" in err


def test_rows_of_other_names_are_written_so_that_every_command_reads_them(checked):
    """As the message says."""
    _, _, written = checked([{"inputs": "Twice 2?", "targets": "4."}], "--columns", "prompt=inputs,completion=targets")
    assert [row["messages"] for row in written["conversations"]] == [SAID]
