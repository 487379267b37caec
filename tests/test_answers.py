"""eval.answers through its command, with figures worked out by hand."""

import re

from helpers.recipes import results

from data_prep.common.intervals import bootstrap_interval
from eval import answers
from eval.common.grouped import grouped


def test_answers(command, yes, questions, tmp_path):
    arguments = ("--model", yes, "--conversations", questions, "--group_by", "/([a-z]+)/", "--max_new_tokens", 8)
    code, out, err = command(answers, *arguments, "--name", "talk", "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "answers_talk")
    assert found["metrics"]["exact_match"] == bootstrap_interval([1, 0, 1, 1])
    assert found["metrics"]["exact_match"]["value"] == 0.75
    assert found["metrics"]["eos_rate"] == 1.0
    assert found["metrics"]["length"] == 4  # y, e, s and the end of the turn
    assert found["metrics"]["chrf"] < 100
    values = {group: (v["exact_match"]["value"], v["exact_match"]["n"]) for group, v in found["groups"].items()}
    assert values == {"module": (1.0, 2), "what": (0.5, 2)}
    assert found["groups"]["module"]["chrf"] == 100
    assert found["examples"][1] == {
        "id": "b/what/2", "prompt": [{"role": "user", "content": "2?"}], "reference": "no", "answer": "yes",
    }  # fmt: skip
    assert out.startswith("conversations.json: 4 conversations\n") and out.count("\n") == 2
    assert "talk: exact match 75.0% [25.0%, 100.0%] on 4 prompts (module 100.0%" in out
    assert out.endswith(", EOS rate 100%\n")


def test_answers_that_never_stop_and_limit(command, zero_model_dir, questions, tmp_path):
    arguments = ("--model", zero_model_dir, "--conversations", questions, "--max_new_tokens", 5, "--limit", 3)
    code, _, err = command(answers, *arguments, "--results_dir", tmp_path)
    assert code == 0, err
    found = results(tmp_path, "answers_base")  # of all-zero logits, greedy takes entry 0: <|endoftext|>, its own end
    assert found["prompts"] == 3 and found["groups"] == {}
    assert found["metrics"]["exact_match"]["value"] == 0.0
    assert found["metrics"]["length"] == 1


def test_what_the_expression_does_not_find_is_a_group_of_its_own():
    rows = [{"id": "a/what/1"}, {"id": "42"}]
    assert grouped(rows, re.compile("/([a-z]+)/")) == {"no match": [1], "what": [0]}
    assert grouped(rows, re.compile("[0-9]+")) == {"1": [0], "42": [1]}
