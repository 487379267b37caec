"""What data and models hold is shown on a terminal, and never obeyed by it: no title set, no screen cleared."""

import io
import json
import sys
from collections import deque
from types import SimpleNamespace

import pytest
import torch
from helpers.recipes import ROOT
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainerControl, TrainerState
from trl import GRPOTrainer, RLOOTrainer

from data_prep import check
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import read_jsonl, write_jsonl
from data_prep.common.text import printable
from data_prep.models.bits_per_byte import heldout_batches
from data_prep.ranking.terminal import show_answers
from data_prep.tokens.chat_encoder import encode_prompts
from eval import answers, chat
from recipes.sft import show_mask
from recipes.trainers import callbacks
from recipes.trainers.callbacks import PretrainingMonitor
from recipes.trainers.ppo.completions import log_completions
from recipes.trainers.rloo_grpo import show_control_characters

HOSTILE = "a\x1b]0;x\x07\x1b[2J\x9b31m\u202egnp.exe"
SHOWN = r"a\x1b]0;x\x07\x1b[2J\x9b31m\u202egnp.exe"
OBEYED = {*map(chr, [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)])}


def harmless(text: str) -> None:
    """There is nothing in what was printed that a terminal obeys, but a progress bar's return to its line."""
    assert not OBEYED & set(text.replace("\r", "")), ascii(text)


def run(module, monkeypatch, *arguments, typed: str = "") -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    run_main(module.main)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (HOSTILE, SHOWN),
        ("a\n\tb", "a\n\tb"),
        ("one\rtwo\x00\x7f", r"one\rtwo\x00\x7f"),
        ("\u2067x\u2069\u202c", r"\u2067x\u2069\u202c"),
        ("half \ud83d", r"half \ud83d"),
        ("漢字 é 😀 שלום \u200f مرحبا", "漢字 é 😀 שלום \u200f مرحبا"),  # a mark turns nothing but itself
    ],
)
def test_control_characters_become_codes(text, shown):
    assert printable(text) == shown


@given(st.text(alphabet=st.characters(codec=None)))
def test_no_text_keeps_a_control_character_and_nothing_else_changes(text):
    shown = printable(text)
    assert not OBEYED & set(shown) and shown.encode() is not None
    if not OBEYED & set(text) and text.encode("utf-8", "replace").decode() == text:
        assert shown == text


def test_an_error(capsys):
    def fail():
        raise InputError(HOSTILE)

    with pytest.raises(SystemExit):
        run_main(fail)
    assert capsys.readouterr().err == f"error: {SHOWN}\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_the_example_of_sft_has_colours_of_its_own_on_a_terminal_alone(tiny_tokenizer, monkeypatch, capsys, terminal):
    ids = tiny_tokenizer(HOSTILE)["input_ids"]
    asked, answer = {"role": "user", "content": HOSTILE}, {"role": "assistant", "content": HOSTILE}
    (prompt,) = encode_prompts(tiny_tokenizer, [[asked]])
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    row = {"input_ids": [*prompt, *ids], "labels": [*[-100] * len(prompt), *ids]}
    show_mask(tiny_tokenizer, {**row, "messages": [asked, answer], "more": None})
    inside = f"\x1b[32m[{SHOWN}]\x1b[0m" if terminal else f"[{SHOWN}]"
    assert capsys.readouterr().out.splitlines()[1] == f"  <|user|>{SHOWN}<|end|><|assistant|>{inside}"


def test_ppos_table_of_answers(tmp_path, capsys):
    rows = [{"prompt": HOSTILE}, {"prompt": [{"role": "user", "content": HOSTILE}]}]
    rollout = SimpleNamespace(rows=rows, stopped=torch.tensor([True, False]), scores=torch.tensor([1.0, 2.0]))
    log_completions(tmp_path / "completions.jsonl", 1, [HOSTILE, HOSTILE], rollout)
    out = capsys.readouterr().out
    harmless(out)
    assert out.count(SHOWN[:16]) == 4
    assert [row["completion"] for row in read_jsonl(tmp_path / "completions.jsonl")] == [HOSTILE, HOSTILE]  # as it is


@pytest.mark.parametrize("kind", [GRPOTrainer, RLOOTrainer])
def test_the_table_of_rloo_and_grpo(kind, monkeypatch, capsys):
    # What their `log` does with log_completions.
    module = sys.modules[kind.__module__]
    monkeypatch.setattr(module, "print_prompt_completions_sample", module.print_prompt_completions_sample)
    show_control_characters(kind.__new__(kind))
    turns = [{"role": "user", "content": HOSTILE}]
    columns = deque([HOSTILE, turns]), deque([turns, HOSTILE]), {"score": deque([1.0, 2.0])}, deque([0.5, 0.25])
    module.print_prompt_completions_sample(*columns, 1, None, extra={"seen": deque([HOSTILE, HOSTILE])})
    out = capsys.readouterr().out
    harmless(out)
    assert r"\x1b]0" in out and "0.25" in out


@pytest.mark.parametrize("recipe", ["grpo", "rloo"])
def test_rloo_and_grpo_mend_their_table_before_training(recipe):
    source = (ROOT / "recipes" / f"{recipe}.py").read_text(encoding="utf-8")
    assert source.count("show_control_characters(trainer)") == 1
    assert source.index("show_control_characters(trainer)") < source.index("# Train\n")


def test_the_samples_of_pretraining(tiny_tokenizer, zero_model_dir, tmp_path, monkeypatch, capsys):
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(zero_model_dir)
    text = HOSTILE + "\u2028漢字"
    monkeypatch.setattr(callbacks, "continue_text", lambda *about: text)
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "yes"}])
    held_out = heldout_batches(tmp_path / "documents.jsonl", tiny_tokenizer, 64)
    args, state = SimpleNamespace(output_dir=str(tmp_path)), TrainerState(global_step=0, eval_steps=1, max_steps=9)
    monitor = PretrainingMonitor(held_out, tiny_tokenizer, [HOSTILE], int, 1.0)
    monitor.on_train_begin(args, state, TrainerControl(), model=model)
    out, path = capsys.readouterr().out, tmp_path / "samples.jsonl"
    harmless(out)
    assert r"\x1b[2J" in out
    # Readable in an editor, and by a run that resumes: U+2028 ends no row.
    row = {"step": 0, "prompt": HOSTILE, "sample": text}
    assert "漢字" in path.read_text(encoding="utf-8") and list(read_jsonl(path)) == [row]
    with path.open("a", encoding="utf-8") as file:
        file.write('{"step": 3, "pro')  # a killed run
    state.global_step, state.log_history = 2, [{"step": 0, "eval_bits_per_byte": 8.0}]
    monitor.on_train_begin(args, state, TrainerControl(), model=model)
    assert list(read_jsonl(path)) == [row]


def test_a_streamed_answer(talker, monkeypatch, capsys):
    # Its tokens are letters: the escape comes alone, and what it would begin comes after it.
    run(chat, monkeypatch, "--model", talker("\x1b[2J\x07é"), "--max_new_tokens", 9, typed="hi\n\x1b[2J\n")
    out = capsys.readouterr().out
    harmless(out)
    assert out.count("model> \\x1b[2J\\x07é\n") == 2


def test_text_to_continue_is_shown_again_with_codes(talker, monkeypatch, capsys):
    run(chat, monkeypatch, "--model", talker("yes"), "--raw", "--max_new_tokens", 4, typed="\x1b[2Jy\n")
    out = capsys.readouterr().out
    harmless(out)
    assert "\\x1b[2Jyes\n" in out


def test_answers_to_rank(capsys):
    show_answers([{"role": HOSTILE, "content": HOSTILE}], [HOSTILE])
    out = capsys.readouterr().out
    harmless(out)
    assert out.count(SHOWN) == 3


def test_the_groups_of_eval_answers(talker, write_conversations, tmp_path, monkeypatch, capsys):
    data = write_conversations([(HOSTILE, HOSTILE, "yes")])
    given = ("--conversations", data, "--group_by", ".+", "--max_new_tokens", 4)
    run(answers, monkeypatch, "--model", talker("yes"), *given)
    out = capsys.readouterr().out
    harmless(out)
    assert f"({SHOWN} 100.0%" in out


def test_the_doctor(tmp_path, monkeypatch, capsys):
    folder = tmp_path / HOSTILE
    folder.mkdir()
    (folder / f"{HOSTILE}.json").write_text(
        json.dumps([{HOSTILE: HOSTILE}, {"id": HOSTILE, "conversations": [{"from": HOSTILE, "value": HOSTILE}]}])
    )
    with pytest.raises(SystemExit):  # no row is left
        run(check, monkeypatch, folder)
    out = capsys.readouterr().out
    harmless(out)
    assert r"\x1b]0" in out and r"\u202e" in out
