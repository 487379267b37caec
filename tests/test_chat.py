"""eval.chat at its prompt: what is no text, what stops it, and its commands."""

import builtins
from functools import partial

import pytest


@pytest.fixture
def talk(chat_with, yes):
    return partial(chat_with, yes)


@pytest.mark.parametrize(
    ("typed", "encoding", "told"),
    [
        (b"hi\ncaf\xe9\n\xff\xfe\nhi\n", "utf-8", "utf-8"),
        (b"hi\n" + b"\xff\n\x81\n" + "漢\n".encode("gbk"), "gbk", "gbk"),
    ],
)
def test_a_line_that_is_no_text_is_told_of_and_the_conversation_goes_on(talk, typed, encoding, told):
    code, out, err = talk(typed, encoding=encoding)
    assert code == 0 and "Traceback" not in err
    assert out.count(f"you> (that line is not {told}, and was not sent)\n") == 2 and out.count("model> yes\n") == 2


def test_ctrl_c_at_the_prompt_leaves_and_promises_nothing(talk, monkeypatch):
    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "input", interrupted)
    code, out, err = talk(b"")
    assert code == 130 and out.endswith("\n(left; a conversation is not kept)\n") and "resume" not in out + err


def test_help_is_answered_by_the_chat_itself(talk):
    code, out, _ = talk(b" /help \n")
    assert code == 0 and "model>" not in out
    assert "you> /reset   forget the conversation\n/help    show this text\n/exit    leave, as Ctrl-D" in out


@pytest.mark.parametrize("value", ["-1", "-0.5", "nan", "inf"])
def test_a_temperature_that_is_none_is_refused(talk, value):
    code, out, err = talk(b"hi\n", "--temperature", value)
    assert (code, out) == (1, "")
    assert err == f"error: --temperature {value}: expected at least 0, where 0 is greedy\n"


def test_a_system_turn_that_is_no_text_is_refused(talk):
    code, out, err = talk(b"hi\n", "--system", "caf\udce9")  # as Python reads an argument of invalid bytes
    assert (code, out) == (1, "")
    assert err == "error: --system: 'caf\\udce9' is not utf-8\n"


def test_a_pipe_gets_no_colours(talk):
    code, out, _ = talk(b"hi\n/reset\n\nhi\n")
    assert code == 0 and "\x1b" not in out and out.count("you> model> yes\n") == 2
