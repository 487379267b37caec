"""eval.chat through its command: it remembers what fits, forgets the rest, and continues text."""

import io
import subprocess
import sys
from pathlib import Path

from eval import chat


def talk(command, monkeypatch, text: str, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    return command(chat, *arguments)


def test_chat_answers_and_forgets(command, monkeypatch, yes):
    text = "hi\n\n/reset\nhi\n/exit\nnever read\n"
    code, out, err = talk(command, monkeypatch, text, "--model", yes, "--max_new_tokens", 8)
    assert code == 0, err
    assert "it answers, and remembers" in out
    assert out.count("model> yes\n") == 2 and "(forgotten)" in out and "never read" not in out


def test_chat_trims_what_no_longer_fits(command, monkeypatch, yes):
    # 56 tokens beside the answer. A turn of 10 letters is 12 with its two marks, an answer 5, and one opens the
    # answer: 12, 29 and 46 tokens come before the first three answers, with the fourth question it would be 64.
    text = "abcdefghij\n" * 4 + "x" * 100 + "\n"
    code, out, err = talk(command, monkeypatch, text, "--model", yes, "--max_new_tokens", 8)
    assert code == 0, err
    assert out.count("model> yes\n") == 5
    before, after = out.split("(no longer fits and is forgotten: the oldest 1 exchange)")
    assert before.count("model> yes\n") == 3
    assert "(no longer fits and is forgotten: the oldest 3 exchanges; the first 47 tokens" in after


def test_chat_continues_raw_text_and_recognizes_base_models(command, monkeypatch, yes, zero_model_dir):
    code, out, err = talk(command, monkeypatch, "<|assistant|>y\n", "--model", yes, "--raw", "--max_new_tokens", 8)
    assert code == 0, err
    assert "it continues your text" in out and "<|assistant|>yes\n" in out
    assert "it continues your text" in talk(command, monkeypatch, "", "--model", zero_model_dir)[1]


def test_chat_by_its_command(yes):
    line = [sys.executable, "-m", "eval.chat", "--model", str(yes), "--max_new_tokens", "8"]
    done = subprocess.run(line, input="hi\n", capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0 and "model> yes\n" in done.stdout, done.stderr
