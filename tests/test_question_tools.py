"""Files of other tools that make questions out of documents are read as they are: easy-dataset, synthetic-data-kit."""

import json

import pytest

from data_prep import check
from data_prep.common.errors import InputError
from data_prep.readers.conversation_formats import ALL_ROLES
from data_prep.readers.conversations import conversation_rows, read_conversations
from data_prep.rows.bad_rows import BadRows

ASKED = {"role": "user", "content": "Why?"}
PLAIN = [ASKED, {"role": "assistant", "content": "So."}]
THOUGHT = [ASKED, {"role": "assistant", "content": "So.", "reasoning_content": "It follows."}]
PAIRS = [{"question": "Why?", "answer": "So."}, {"question": "Who?", "answer": "He."}]
COT = [{"question": "Why?", "reasoning": "It follows.", "answer": "So."}]
TURNS = [[{"role": "system", "content": "Be kind."}, *PLAIN]]


def dumped(*objects, indent=2) -> str:
    return "\n".join(json.dumps(each, indent=indent, ensure_ascii=False) for each in objects)


# What each writes by its own code (easy-dataset: useDatasetExport.js, llamaFactory/generate/route.js; synthetic-data-kit:
# qa_generator.py, cot_generator.py, curate.py, format_converter.py), by hand.
FILES = {
    "easy-dataset, Alpaca": ("a.json", dumped([{"instruction": "", "input": "Why?", "output": "So.", "system": ""}]), [PLAIN]),
    "easy-dataset, Alpaca with reasoning": (
        "a.jsonl", dumped({"instruction": "Why?", "input": "", "output": "<think>It follows.</think>\nSo.", "system": ""}, indent=None),
        [[ASKED, {"role": "assistant", "content": "<think>It follows.</think>\nSo."}]]),
    "easy-dataset, ShareGPT": ("a.json", dumped([{"messages": PLAIN}]), [PLAIN]),
    "easy-dataset, ShareGPT as CSV": ("a.csv", 'question,answer,label\nWhy?,"So.",Causes\n', [PLAIN]),
    "easy-dataset, its own fields": (
        "a.json", dumped([{"question": "Why?", "answer": "So.", "cot": "It follows.", "label": "Causes", "chunk": "It is so."}]),
        [THOUGHT]),
    "easy-dataset, multilingual thinking": (
        "a.json",
        dumped(*[{"reasoning_language": "English", "developer": "", "user": "Why?", "analysis": "It follows.", "final": "So.",
                  "messages": [{"content": "", "role": "system", "thinking": None}, {**ASKED, "thinking": None},
                               {"content": "So.", "role": "assistant", "thinking": "It follows."}]}] * 2),
        [THOUGHT] * 2),
    "synthetic-data-kit, pairs": ("a.json", dumped({"summary": "A \"text\".\nIt is so.", "qa_pairs": PAIRS}), [PLAIN, [
        {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "He."}]]),
    "synthetic-data-kit, curated": (
        "a.json",
        dumped({"summary": "", "qa_pairs": [{**PAIRS[0], "rating": 8.5}], "conversations": TURNS, "metrics": {"total": 2}}),
        [PLAIN]),
    "synthetic-data-kit, reasoning": (
        "a.json", dumped({"summary": "A text.", "cot_examples": COT, "conversations": TURNS}), [THOUGHT]),
    "synthetic-data-kit, saved as jsonl": ("a.jsonl", dumped(PAIRS[0], indent=None), [PLAIN]),
    "synthetic-data-kit, saved as ft": ("a.json", dumped([{"messages": TURNS[0]}]), TURNS),
}  # fmt: skip


@pytest.mark.parametrize("tool", FILES)
def test_a_file_of_the_tool_is_read_as_it_is(tool, tmp_path, command):
    name, text, expected = FILES[tool]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    bad_rows = BadRows("error")
    rows = list(conversation_rows([str(path)], bad_rows, roles=ALL_ROLES))
    bad_rows.close()
    assert [row["messages"] for row in rows] == expected
    code, out, err = command(check, path)
    number = len(expected)
    assert code == 0 and f"rows in {number} = rows out {number} + quarantined 0" in out, out + err


def test_what_a_toolkit_file_has_beside_its_pairs_is_not_passed_over(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(dumped({"summary": "A text.", "qa_pairs": PAIRS, "more": [1]}))
    with pytest.raises(InputError, match="1 row cannot be used: 1 × broken JSON"):
        read_conversations(path)
    path.write_text(dumped({"summary": "A text.", "qa_pairs": PAIRS, "conversations": TURNS})[:-20])
    with pytest.raises(InputError, match="1 row cannot be used: 1 × broken JSON"):
        read_conversations(path)


def test_an_empty_turn_elsewhere_is_still_a_problem(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(dumped([{"messages": [{"role": "user", "content": ""}, PLAIN[1]]}]))
    with pytest.raises(InputError, match="empty turn"):
        read_conversations(path)
