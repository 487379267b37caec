"""Wrong input of an evaluation: one clear line, and bad rows are refused, repaired or quarantined."""

import json
from pathlib import Path

import pytest
from helpers.recipes import results

from data_prep.common.files import write_json, write_jsonl
from eval import answers, chat, perplexity, report, reward_accuracy, win_rate

# Bad rows


@pytest.fixture
def defective(write_conversations) -> Path:
    """Three questions, all answered by "yes"; in the second, the user takes two turns in a row."""
    path = write_conversations([("a", "1?", "yes"), ("b", "2?", "yes"), ("c", "3?", "yes")])
    rows = json.loads(path.read_text())
    rows[1]["conversations"].insert(0, {"from": "human", "value": "Well"})
    write_json(path, rows)
    return path


@pytest.mark.parametrize("module", [answers, win_rate])
def test_a_bad_row_is_refused_repaired_or_quarantined(command, module, yes, no, defective, tmp_path):
    arguments = ("--model", yes, "--conversations", defective, "--max_new_tokens", 8, "--name", "x")
    arguments += ("--opponent", no) if module is win_rate else ()
    code, out, err = command(module, *arguments)
    assert code == 1 and f"{defective}: 1 row cannot be used" in err and "row 2 (id 'b')" in err
    assert "repair" in err and "quarantine" in err

    code, out, err = command(module, *arguments, "--on_bad", "quarantine")
    assert code == 1 and err.endswith(
        "error: --on_bad quarantine: give --results_dir, where bad rows go to quarantine_<name>.jsonl\n"
    )

    stem = f"{module.__name__.removeprefix('eval.')}_x"
    for on_bad, kept in (("repair", ["a", "b", "c"]), ("quarantine", ["a", "c"])):
        code, out, err = command(module, *arguments, "--on_bad", on_bad, "--results_dir", tmp_path / on_bad)
        assert code == 0, err
        found = results(tmp_path / on_bad, stem)
        assert [example["id"] for example in found["examples"]] == kept and found["prompts"] == len(kept)
        assert found["metrics"]["exact_match"]["value"] == 1.0
        if on_bad == "repair":
            assert "3 conversations, repaired: 1 × two turns of" in out
            assert found["examples"][1]["prompt"] == [{"role": "user", "content": "Well\n2?"}]
            assert not (tmp_path / on_bad / "quarantine_x.jsonl").exists()
        else:
            assert "rows in 3 = rows out 2 + quarantined 1" in out
            (bad,) = map(json.loads, (tmp_path / on_bad / "quarantine_x.jsonl").read_text().splitlines())
            assert (bad["file"], bad["row"]) == (str(defective), 2)


def test_bad_rankings_and_documents(command, long_is_good_dir, zero_model_dir, tmp_path):
    write_jsonl(tmp_path / "rankings.jsonl", [{"q": "1?", "good": "long answer", "bad": "short"}, {"q": "2?"}])
    arguments = ("--model", long_is_good_dir, "--rankings", tmp_path / "rankings.jsonl")
    arguments += ("--columns", "prompt=q,chosen=good,rejected=bad", "--name", "x", "--results_dir", tmp_path)
    assert command(reward_accuracy, *arguments)[0] == 1
    code, out, err = command(reward_accuracy, *arguments, "--on_bad", "quarantine")
    assert code == 0 and out.startswith("quarantined: 1\nwhether ") and "\nx: 100.0%" in out, err
    assert json.loads((tmp_path / "quarantine_x.jsonl").read_text())["row"] == 2

    write_jsonl(tmp_path / "documents.jsonl", [{"body": "yes"}, {"body": 7}])
    arguments = ("--model", zero_model_dir, "--documents", tmp_path / "documents.jsonl", "--text_column", "body")
    assert command(perplexity, *arguments)[0] == 1
    code, out, err = command(perplexity, *arguments, "--on_bad", "quarantine", "--results_dir", tmp_path)
    assert code == 0 and "rows in 2 = rows out 1 + quarantined 1" in out and "on 3 bytes (3 tokens)" in out, err
    assert json.loads((tmp_path / "quarantine_base.jsonl").read_text())["row"] == 2


# What is wrong with the input is one clear line


def test_bad_input(command, yes, tiny_reward_dir, questions, tmp_path):
    write_json(tmp_path / "empty" / "nothing.json", {})
    write_jsonl(tmp_path / "rankings.jsonl", [{"prompt": "?", "chosen": "ab", "rejected": "c"}])
    asked = ("--conversations", questions)
    cases = [
        (chat, ("--model", tmp_path / "no"), "no: no such file or folder; it is made by: recipes/pretrain.py"),
        (chat, ("--model", tmp_path / "empty"), "empty: no config.json in it; expected the folder of a finished"),
        (chat, ("--model", yes, "--max_new_tokens", 64), "--max_new_tokens 64: expected 1 to 63"),
        (chat, ("--model", "nobody/nothing"), "nobody/nothing: neither a finished checkpoint's folder nor"),
        (answers, ("--model", tiny_reward_dir, *asked), "expected a language model, found GPT2ForSequenceClass"),
        (answers, ("--model", yes, *asked, "--group_by", "("), "--group_by '(': not a regular expression"),
        (answers, ("--model", yes, *asked, "--limit", 0), "--limit 0: expected at least 1"),
        (answers, ("--model", yes, *asked, "--max_new_tokens", 99), "--max_new_tokens 99: expected 1 to 63"),
        (answers, ("--model", yes, "--conversations", tmp_path / "x.json"), "x.json: no such file or folder"),
        (win_rate, ("--model", yes, "--opponent", tmp_path / "no", *asked), "/no: no such file or folder"),
        (win_rate, ("--model", yes, "--opponent", yes, *asked, "--temperature", -1), "expected at least 0"),
        (perplexity, ("--model", yes, "--documents", tmp_path / "no.txt"), "no.txt: no such file or folder"),
        (perplexity, ("--model", yes, "--documents", yes / "model.safetensors"), "found the ending '.safetensors'"),
        (report, ("--run", tmp_path / "no"), "no: no such file or folder; it is made by: recipes/quickstart.sh"),
        (report, ("--run", tmp_path, "--prompts", tmp_path / "no.json"), "no.json: no such file or folder"),
    ]
    ranked = ("--rankings", tmp_path / "rankings.jsonl")
    cases += [
        (reward_accuracy, ("--model", yes, *ranked), "expected a reward model (recipes/reward.py), found GPT2LMHead")
    ]
    cases += [(reward_accuracy, ("--model", yes, "--rankings", tmp_path / "r.txt"), "found the ending '.txt'")]
    for module, arguments, message in cases:
        code, _, err = command(module, *arguments)
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        assert code == 1 and len(errors) == 1 and message in errors[0], (module.__name__, arguments, err)
        assert "Traceback" not in err
