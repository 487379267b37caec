"""eval.lm_eval_tasks: our own tasks on a run's files, and figures equal to those of lm-eval's own command."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from helpers.recipes import ENVIRONMENT
from transformers import AutoTokenizer

from data_prep.common.errors import InputError
from data_prep.common.files import write_json, write_jsonl
from data_prep.tokens.chat_encoder import encode_prompts
from eval import adaptation, lm_eval_tasks
from eval.common.assistants import is_assistant, refuses_system_turn
from eval.tasks.files import facts, own_tasks, write_tasks
from eval.tasks.harness import run_tasks

INSTALLED = importlib.util.find_spec("lm_eval") is not None
needs_lm_eval = pytest.mark.skipif(not INSTALLED, reason="lm-eval is not installed: pip install -e '.[lm-eval]'")


def row(identifier: str, reference: str, turns: int = 1) -> dict:
    return {
        "id": identifier,
        "prompt": [{"role": "user", "content": f"{identifier}?"}] * turns,
        "reference": reference,
    }


ROWS = [
    row("a/one/1", "1"),
    row("a/two/2", "two"),
    row("b/one/3", "3"),
    row("c/one/4", " 1 "),
    row("d/one/5", "5", turns=3),
]


def test_wrong_answers_are_of_the_same_kind():
    items, left_out = facts(ROWS, "/([a-z]+)/", 42)
    # "two" stands alone among its kind; "1" is right for two questions, and a wrong choice for neither.
    assert [(item["id"], sorted(item["choices"])) for item in items] == [
        ("a/one/1", ["1", "3"]), ("b/one/3", ["1", "3"]), ("c/one/4", ["1", "3"]),
    ]  # fmt: skip
    assert [item["choices"][item["answer"]] for item in items] == ["1", "3", "1"]
    assert left_out == {"of several turns, or without a reference": 1, "whose kind has no other answer": 1}
    items, _ = facts(ROWS, None, 42)
    assert [len(set(item["choices"])) for item in items] == [3, 3, 3, 3]  # 1, 3 and two


def test_choices_do_not_hang_on_the_rows_around_them():
    rows = [row(f"x{number}", str(number)) for number in range(9)]
    items, _ = facts(rows, None, 1)
    assert all(len(set(item["choices"])) == 4 for item in items)
    assert {item["answer"] for item in items} == {0, 1, 2, 3}  # no place is always right
    assert facts(rows[::-1], None, 1)[0] == items[::-1]


def test_tasks_are_files_that_lm_eval_reads(tmp_path, capsys):
    folder = tmp_path / "tasks"
    tasks = own_tasks({"general": ["a b", "c"]}, {"domain": ROWS}, "/([a-z]+)/", 42)
    assert [*tasks] == ["documents_general", "facts_domain"]
    write_tasks(folder, tasks)
    assert capsys.readouterr().out == (
        "facts_domain: 3 questions; left out: 1 of several turns, or without a reference, 1 whose kind has no other answer\n"
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "documents.yaml", "documents_general.jsonl", "documents_general.yaml",
        "facts.yaml", "facts_domain.jsonl", "facts_domain.yaml",
    ]  # fmt: skip
    task = yaml.safe_load((folder / "facts_domain.yaml").read_text())
    data = folder / "facts_domain.jsonl"
    assert task == {
        "include": "facts.yaml",
        "task": "facts_domain",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
    }
    assert len(data.read_text().splitlines()) == 3
    columns = yaml.safe_load((folder / "facts.yaml").read_text())
    assert {columns[key] for key in ("doc_to_text", "doc_to_choice", "doc_to_target")} < set(
        json.loads(data.open().readline())
    )


def test_the_chat_template_is_on_for_assistants(tiny_tokenizer, tiny_chat_tokenizer, tmp_path):
    assert is_assistant(tiny_chat_tokenizer)
    assert tiny_tokenizer.chat_template and not is_assistant(tiny_tokenizer)  # a base model ends texts otherwise
    # Gemma's end of sequence is another token than its end of turn, which its generation config names beside it.
    tiny_tokenizer.save_pretrained(tmp_path)
    end = tiny_tokenizer.convert_tokens_to_ids("<|end|>")
    for ends, assistant in ((tiny_tokenizer.eos_token_id, False), ([tiny_tokenizer.eos_token_id, end], True)):
        write_json(tmp_path / "generation_config.json", {"eos_token_id": ends})
        assert is_assistant(AutoTokenizer.from_pretrained(tmp_path)) == assistant


# As Gemma's: no system turn, and questions and answers in turn.
STRICT = """{%- for message in messages -%}
{%- if message['role'] == 'system' -%}{{- raise_exception('System role not supported') -}}{%- endif -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') -}}
{%- endif -%}
{{- '<|' + message['role'] + '|>' + message['content'] + '<|end|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"""


@pytest.fixture
def strict(talker, tmp_path) -> Path:
    """The model that says yes, with such a template."""
    folder = shutil.copytree(talker("yes"), tmp_path / "strict")
    (folder / "chat_template.jinja").write_text(STRICT)
    return folder


def test_what_a_template_refuses_is_known_and_one_error(command, strict, tiny_chat_tokenizer, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(strict)
    assert is_assistant(tokenizer) and refuses_system_turn(tokenizer) and not refuses_system_turn(tiny_chat_tokenizer)
    user, system = {"role": "user", "content": "a"}, {"role": "system", "content": "b"}
    (ids,) = encode_prompts(tokenizer, [[user]])
    assert tokenizer.decode(ids) == "<|user|>a<|end|><|assistant|>"
    for turns, reason in (
        ([system, user], "System role not supported"),
        ([user, user], "Conversation roles must alt"),
    ):
        with pytest.raises(InputError, match=f"cannot render the conversation that begins with 'a': {reason}"):
            encode_prompts(tokenizer, [[user], turns])
    (strict / "chat_template.jinja").write_text("{{ raise_exception('nothing at all') }}")
    monkeypatch.setattr(lm_eval_tasks, "check_installed", lambda: None)
    code, _, err = command(lm_eval_tasks, "--model", strict, "--tasks", "arc_easy")
    assert (code, err) == (
        1,
        f"error: {strict}: its chat template cannot write a question and its answer: nothing at all\n",
    )


@pytest.mark.slow
@needs_lm_eval
def test_a_task_whose_turns_the_template_refuses(strict, talker, tmp_path, capsys):
    """lm-eval itself leaves a system turn out, with a warning, and ends in a traceback for other turns."""
    write_jsonl(tmp_path / "rows.jsonl", [{"q": "1?", "a": 0}, {"q": "2?", "a": 1}, {"q": "3?", "a": 0}])
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}}}
    task = {**data, "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "q", "doc_to_target": "a",
            "doc_to_choice": ["yes", "no"], "metric_list": [{"metric": "acc"}]}  # fmt: skip
    silent = {"fewshot_config": {"split": "test", "doc_to_target": "", "doc_to_choice": None}, "num_fewshot": 1}
    for name, more in {"described": {"description": "Be brief."}, "plain": {}, "silent": silent}.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **task, **more}))
    capsys.readouterr()
    found = run_tasks(str(strict), ["described", "plain"], tmp_path, True)
    line = (
        "described: 3 questions without the task's description: the chat template refuses a system turn, and lm-eval "
    )
    assert [each for each in capsys.readouterr().out.splitlines() if "chat template" in each] == [
        line + "leaves it out"
    ]
    assert found["described"]["acc"] == found["plain"]["acc"] and found["plain"]["acc"]["value"] == pytest.approx(
        2 / 3
    )
    run_tasks(str(talker("yes")), ["described"], tmp_path, True)
    run_tasks(str(strict), ["described"], tmp_path, False)
    assert "chat template" not in capsys.readouterr().out
    with pytest.raises(
        InputError, match=r"--tasks silent: the chat template of .* refuses the turns of a task \(Conv"
    ):
        run_tasks(str(strict), ["silent"], tmp_path, True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (["--tasks", "ours"], "--tasks ours: found no --conversations and no --documents; expected both or neither"),
        (["--tasks", "arc_easy", "--documents", "a=b"], "found --conversations or --documents, but no ours"),
        (["--tasks", "ours", "--documents", "b"], "--documents b: found no name"),
        (["--tasks", "arc_easy", "--limit", "0"], "--limit 0: expected at least 1"),
    ],
)
def test_what_cannot_be_used_is_said(command, monkeypatch, given, says):
    monkeypatch.setattr(lm_eval_tasks, "check_installed", lambda: None)
    code, out, err = command(lm_eval_tasks, "--model", "m", *given)
    assert code == 1 and says in err and err.count("\n") == 1


@pytest.mark.parametrize("module", [lm_eval_tasks, adaptation])
def test_what_to_install_is_said(command, monkeypatch, tmp_path, module):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    given = ["--model", "m"]
    if module is adaptation:
        given = [
            "--before",
            "m",
            "--after",
            "m",
            "--documents",
            "domain=a",
            "general=b",
            "--output_dir",
            tmp_path / "out",
        ]
    code, out, err = command(module, *given, "--tasks", "arc_easy")
    assert code == 1 and err == "error: lm-eval is not installed; expected: pip install -e '.[lm-eval]'\n"


def test_bad_rows_of_each_source_are_kept_in_a_file_of_their_own(command, talker, questions, tmp_path, monkeypatch):
    """The general files, read later, have no bad row: they leave those of the domain where they are."""
    monkeypatch.setattr(lm_eval_tasks, "check_installed", lambda: None)
    monkeypatch.setattr(lm_eval_tasks, "run_tasks", lambda *_: {})
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([*json.loads(questions.read_text()), {"id": "bad"}]))
    for name, rows in (("domain", [{"text": "ab"}, {"text": 5}]), ("general", [{"text": "cd"}])):
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
    given = ["--documents", *(f"{name}={tmp_path / name}.jsonl" for name in ("domain", "general"))]
    given += ["--conversations", f"domain={bad}", f"general={questions}", "--on_bad", "quarantine"]
    model = ("--model", talker("yes"), "--tasks", "ours", "--name", "x")
    code, out, err = command(lm_eval_tasks, *model, *given, "--results_dir", tmp_path / "out")
    assert code == 0, err
    found = {path.name: json.loads(path.read_text())["file"] for path in (tmp_path / "out").glob("quarantine*")}
    assert found == {
        "quarantine_x_conversations_domain.jsonl": str(bad),
        "quarantine_x_documents_domain.jsonl": str(tmp_path / "domain.jsonl"),
    }
    code, out, err = command(lm_eval_tasks, *model, *given)
    assert code == 1 and "error: --on_bad quarantine: give --results_dir" in err


@pytest.fixture
def files(write_conversations, tmp_path) -> list:
    """Four questions, three of them answered by "yes"; two documents."""
    questions = write_conversations([("1", "1?", "yes"), ("2", "2?", "no"), ("3", "3?", "yes"), ("4", "4?", "yes")])
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "ab"}, {"text": "what is right " * 20}])
    return ["--conversations", f"domain={questions}", "--documents", f"domain={tmp_path / 'documents.jsonl'}"]


@pytest.mark.slow
@needs_lm_eval
def test_figures_by_hand_and_by_its_own_command(command, talker, zero_model_dir, files, tmp_path):
    yes = talker("yes")
    code, out, err = command(
        lm_eval_tasks,
        "--model",
        yes,
        "--tasks",
        "ours",
        *files,
        "--name",
        "yes",
        "--results_dir",
        tmp_path / "results",
    )
    assert code == 0, err
    found = json.loads((tmp_path / "results" / "lm_eval_yes.json").read_text())
    assert found["apply_chat_template"] is True
    facts = found["metrics"]["facts_domain"]
    assert (facts["n"], facts["acc"]["value"]) == (4, 0.75)  # it always says yes
    assert facts["acc"]["stderr"] == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert "facts_domain: acc 0.750 ± 0.250, acc_norm 0.750 ± 0.250 on 4" in out

    own = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={yes}",
        "--tasks", "facts_domain,documents_domain", "--include_path", tmp_path / "results" / "lm_eval_tasks_yes",
        "--apply_chat_template", "--device", "cpu", "--batch_size", "8", "--output_path", tmp_path / "own",
    ]  # fmt: skip
    done = subprocess.run(list(map(str, own)), env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = Path(tmp_path / "own").rglob("results*.json")
    theirs = json.loads(path.read_text())["results"]
    for task, metrics in found["metrics"].items():
        for metric in set(metrics) - {"n"}:
            assert metrics[metric]["value"] == theirs[task][f"{metric},none"]
            stderr = theirs[task][f"{metric}_stderr,none"]
            assert metrics[metric]["stderr"] == (None if stderr == "N/A" else stderr)

    code, out, err = command(lm_eval_tasks, "--model", zero_model_dir, "--tasks", "ours", *files, "--name", "zero",
                             "--results_dir", tmp_path / "results")  # fmt: skip
    assert code == 0, err
    found = json.loads((tmp_path / "results" / "lm_eval_zero.json").read_text())
    assert found["apply_chat_template"] is False
    # A token per byte, and 262 as likely as each other.
    assert found["metrics"]["documents_domain"]["bits_per_byte"]["value"] == pytest.approx(math.log2(262), rel=1e-5)


@pytest.mark.slow
@needs_lm_eval
def test_tasks_on_both_models(command, talker, files, tmp_path):
    code, out, err = command(
        adaptation, "--before", talker("no"), "--after", talker("yes"), *files, f"general={tmp_path / 'documents.jsonl'}",
        "--tasks", "facts_domain", "--max_new_tokens", 8, "--output_dir", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, err
    acc = json.loads((tmp_path / "out" / "results.json").read_text())["adaptation"]["lm_eval"]["facts_domain"]["acc"]
    assert (acc["models"]["before"]["value"], acc["models"]["after"]["value"]) == (0.25, 0.75)
    assert acc["difference"] == pytest.approx({"value": 0.5, "stderr": math.sqrt(2) * 0.25})
    assert "facts_domain" in (tmp_path / "out" / "adaptation.html").read_text()


@pytest.mark.slow
@needs_lm_eval
def test_tasks_that_are_not_there(command, talker, files, tmp_path):
    given = ("--before", tmp_path, "--after", tmp_path, *files, f"general={tmp_path / 'documents.jsonl'}", "--tasks")
    code, out, err = command(adaptation, *given, "arc_easy", "facts_domain,arc_eazy", "--output_dir", tmp_path / "out")
    says = "--tasks arc_eazy: found no such task; expected ours, or one that lm_eval ls tasks lists"
    assert (code, err) == (1, f"error: {says}\n")
    model = ("--model", talker("yes"))
    code, out, err = command(lm_eval_tasks, *model, "--tasks", "no_such_task")
    assert (
        code == 1
        and "--tasks no_such_task: found no such task; expected ours, or one that lm_eval ls tasks lists" in err
    )
    code, out, err = command(lm_eval_tasks, *model, "--tasks", "arc_easy")  # the tests run without a network
    assert code == 1 and "error: --tasks arc_easy: the data of a task, or the model, cannot be had (" in err
