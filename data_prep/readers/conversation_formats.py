"""One row of any of the common formats → messages, and what is wrong with it.

    conversations            Baichuan, ShareGPT: [{"from": "human" | "gpt" | "system", "value": str}, ...]
    messages                 OpenAI: [{"role": "user" | "assistant" | "system", "content": str}, ...]
    instruction, output      Alpaca; optional: "input", "history" ([[question, answer], ...]) and "system"
    prompt, completion       or prompt, response; or question, answer; text or messages; optional: "history", "system"
    "Human: … Assistant: …"  in one string (Belle), under instruction, prompt, conversations, messages or text

The format of a row is recognised by its own keys, so a file may mix formats. Other keys are ignored, but one: a row
whose "label" or "kto_tag" is true or false is a judgement of its answer, and no demonstration (preference_formats.py).
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.common.text import counted, shorten
from data_prep.readers.columns import renamed
from data_prep.rows.problems import NOT_UNICODE, Problem, not_utf8

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation"), "tool"),
    "function_call": "function_call",
}
PLAIN_ROLES = ("system", "user", "assistant")  # those that this project's chat template supports
UNKNOWN_FORMAT = "no known format"
CONTRADICTION = "two formats that contradict each other"
SAME_SPEAKER = "two turns of the same speaker in a row"
TRAILING_HUMAN = "trailing human turn"
ROLE_ALIAS = "role alias"
UNSUPPORTED_ROLE = "role that the chat template does not support"
REPAIRABLE = (SAME_SPEAKER, ROLE_ALIAS, TRAILING_HUMAN)
JUDGED = "an answer labelled good or bad"
LABEL_FIELDS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's
LABELS = {"true": True, "1": True, "false": False, "0": False}
QUESTION_AND_ANSWER = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
EXPECTED = "'conversations', 'messages' or " + ", ".join(f"{q!r} and {a!r}" for q, a in QUESTION_AND_ANSWER)
# All fields that are read.
FIELDS = ("id", "conversations", "messages", "system", "history", "input", "text",
          *dict.fromkeys(key for pair in QUESTION_AND_ANSWER for key in pair))  # fmt: skip
SPOKEN = re.compile(r"(?:^|\n)[ \t]*(Human|Assistant)[ \t]*[:：]")
# {role: who may speak next}; "" is the start, or a system turn at the start.
FOLLOWERS = {
    "": ("user",),
    "user": ("assistant", "function_call"),
    "assistant": ("user", "function_call"),
    "function_call": ("tool", "function_call"),
    "tool": ("tool", "assistant", "function_call"),
}
NAMES = {"user": "human", "assistant": "gpt"}  # the roles in messages to the user, as most files call them


class Candidate(NamedTuple):
    """A row read in one of the formats."""

    name: str  # of the format: its fields
    turns: list  # as they stand in the row
    problems: list[Problem]


def to_conversation(
    value, columns: dict[str, str] | None = None, roles: Iterable[str] = PLAIN_ROLES
) -> tuple[list[dict], list[Problem]]:
    """The messages `{"role", "content"}` of a row's value, and what is wrong with them.

    What needs no guess is repaired in the messages, and is among the problems: role aliases, consecutive turns of one
    speaker, a human turn at the end. With any other problem the messages are not usable.

    Args:
        columns: {field: column of the file}; None: recognise the format by the keys.
        roles: those that the chat template supports.
    """
    if not isinstance(value, dict):
        return [], [Problem("not an object", shorten(value), "{'id', 'conversations': [...]}")]
    if columns is not None:
        value, missing = renamed(value, columns)
        if missing:
            return [], missing
    field, label = label_of(value)
    if label is not None and is_conversation(value):
        expected = (
            "a conversation to learn from; labelled answers are preferences: recipes/kto.py takes them. Name the columns to "
            "read (columns) if this is no such label"
        )
        return [], [Problem(JUDGED, f"{shorten(value[field])} under {field!r}", expected)]
    candidates = _found_formats(value)
    if not candidates:
        return [], [Problem(UNKNOWN_FORMAT, f"keys {shorten(sorted(value))}", EXPECTED)]
    results = [([], each.problems) if each.problems else alternating(each.turns) for each in candidates]
    messages, problems = results[0]
    if len(results) > 1 and any(other[0] != messages for other in results[1:]):
        found = " and ".join(repr(each.name) for each in candidates)
        return [], [Problem(CONTRADICTION, f"{found}, which differ", "one of them, or the same in both")]
    if all(problem.kind in REPAIRABLE for problem in problems):
        strange = [role for role in dict.fromkeys(message["role"] for message in messages) if role not in roles]
        problems = problems + [
            Problem(UNSUPPORTED_ROLE, f"turns of {role}", f"{', '.join(roles)} only") for role in strange
        ]
    return messages, problems


def is_conversation(value: dict) -> bool:
    """Whether the row has the fields of any format of conversations."""
    return next(_candidates(value), None) is not None


def label_of(value: dict) -> tuple[str, bool | None]:
    """(the field of a row that labels its answer, "" without one; whether the answer is good, None if it does not say)."""
    field = next((field for field in LABEL_FIELDS if value.get(field) is not None), "")
    return field, LABELS.get(str(value.get(field)).strip().lower())


def _candidates(value: dict) -> Iterator[Candidate]:
    """The row read in every format whose fields it has."""
    for key in ("conversations", "messages", "text"):
        content = value.get(key)
        spoken = _spoken(content) if isinstance(content, str) else None
        if spoken:
            yield Candidate(key, spoken, [])
        elif isinstance(content, list) and key != "text":
            yield Candidate(key, content, [])
    for question, answer in QUESTION_AND_ANSWER:
        if value.get(question) is not None and value.get(answer) is not None:
            yield Candidate(f"{question} and {answer}", *_question_and_answer(value, question, answer))


def _found_formats(value: dict) -> list[Candidate]:
    """The candidates that hold something, or the first one if none does."""
    found = list(_candidates(value))
    full = [each for each in found if each.problems or any(_content(turn) for turn in each.turns)]
    return full or found[:1]


def _content(turn):
    return (turn.get("value") or turn.get("content") or turn.get("tool_calls")) if isinstance(turn, dict) else turn


def _spoken(text: str) -> list[dict] | None:
    """The turns of a string "Human: … Assistant: …", stripped; None for any other string.

    An empty assistant turn at the end, which asks for the answer, is dropped.
    """
    parts = SPOKEN.split(text.strip())
    if parts[0].strip() or "Human" not in parts[1:2] or "Assistant" not in parts:
        return None
    turns = [
        {"from": "human" if speaker == "Human" else "gpt", "value": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"from": "gpt", "value": ""} else turns


def _question_and_answer(value: dict, question: str, answer: str) -> tuple[list, list[Problem]]:
    """The turns of a row that holds a question and its answer."""
    asked, answered, history = value[question], value[answer], value.get("history") or []
    turns = [] if value.get("system") in (None, "") else [{"role": "system", "content": value["system"]}]
    if not isinstance(history, list):
        return [], [
            Problem("history not in pairs", f"{shorten(history)} under 'history'", "[[question, answer], ...]")
        ]
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return [], [Problem("history not in pairs", f"{shorten(pair)} under 'history'", "[question, answer]")]
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    if question == "instruction" and isinstance(asked, str) and isinstance(value.get("input"), str) and value["input"]:
        asked = f"{asked}\n{value['input']}" if asked.strip() else value["input"]
    if isinstance(asked, list):
        turns += asked
    elif isinstance(asked, str) and (spoken := _spoken(asked)):
        turns += spoken
    else:
        turns.append({"role": "user", "content": asked})
    if not isinstance(answered, list):
        answered = [answered] if isinstance(answered, dict) else [{"role": "assistant", "content": answered}]
    return turns + answered, []


def to_messages(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns `{"from", "value"}` or `{"role", "content"}` as messages, and what is wrong with them.

    Role aliases are repaired, and are among the problems. An assistant's tool calls (OpenAI's "tool_calls") become a turn
    of their own with the role function_call and the calls as JSON. The order of the turns is checked only if every turn by
    itself is valid.
    """
    messages, problems = [], []
    for number, turn in enumerate(turns, start=1):
        where = f"turn {number}"
        if not isinstance(turn, dict):
            expected = "{'from', 'value'} or {'role', 'content'}"
            problems.append(Problem("turn is not an object", f"{shorten(turn)} at {where}", expected))
            continue
        key, text_key = ("role", "content") if "role" in turn and "from" not in turn else ("from", "value")
        speaker, text = turn.get(key), turn.get(text_key)
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None and isinstance(speaker, str) and (role := ROLES.get(speaker.strip().lower())):
            expected = repr(speaker.strip().lower())
            problems.append(Problem(ROLE_ALIAS, f"{shorten(speaker)} under {key!r} at {where}", expected))
        if role is None:
            expected = "human, gpt (or user, assistant), system, tool or function_call"
            problems.append(Problem("unknown role", f"{shorten(speaker)} under {key!r} at {where}", expected))
        others: list[str] = []
        if isinstance(text, list):
            text, others = _joined(text)
            problems += [Problem("turn that is not text", f"{each} at {where}", "text alone") for each in others]
        calls = turn.get("tool_calls")
        if not calls or text:
            problems += [] if others else text_problem(text, "empty turn", where)
            messages.append({"role": role, "content": text})
        if calls:
            messages.append({"role": "function_call", "content": json.dumps(calls, ensure_ascii=False, default=str)})
    if all(problem.kind == ROLE_ALIAS for problem in problems):
        problems += order_problems(messages)
    return messages, problems


def alternating(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns as messages in which user and assistant alternate, and what was or is wrong with them.

    Consecutive turns of one speaker are merged, and a human turn at the end is trimmed. If anything else is wrong the
    messages are as they were.
    """
    messages, problems = to_messages(turns)
    if any(problem.kind not in REPAIRABLE for problem in problems):
        return messages, problems
    merged, _ = merge_same_speaker(messages)
    if all(message["role"] not in ("assistant", "function_call") for message in merged):
        found = f"{counted(len(messages), 'turn')}, none of them gpt"
        problems.append(Problem("no assistant turn", found, "at least one gpt turn"))
    elif merged[-1]["role"] == "user":
        merged.pop()
        problems.append(Problem(TRAILING_HUMAN, f"human at turn {len(messages)}, the last", "gpt"))
    return merged, problems


def _joined(parts: list) -> tuple[str, list[str]]:
    """The text in OpenAI's content parts, and the types of the parts that are not text."""
    texts, others = [], []
    for part in parts:
        if isinstance(part, dict) and part.get("type", "text") == "text" and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            others.append(shorten(part.get("type") if isinstance(part, dict) else part))
    return "".join(texts), others


def text_problem(text, kind: str, where: str) -> list[Problem]:
    """[] for a text that is not blank; otherwise its problem: of `kind` if it is blank or not a string."""
    if not isinstance(text, str) or not text.strip():
        return [Problem(kind, f"{shorten(text)} at {where}", "a string with more than blanks in it")]
    if (start := not_utf8(text)) is not None:  # JSON can contain half a surrogate pair, which no tokenizer accepts
        found = f"{text[start]!r} (half a surrogate pair) at {where}, character {start + 1}"
        return [Problem(NOT_UNICODE, found, "complete characters")]
    return []


def order_problems(messages: list[dict]) -> list[Problem]:
    """What is wrong with the order, which should be: system (optional), user, assistant, user, assistant, ...

    Before an assistant's answer there may be function calls, each followed by the outputs of tools.
    """
    problems = []
    for index, message in enumerate(messages):
        role, where = message["role"], f"turn {index + 1}"
        before = messages[index - 1]["role"] if index else ""
        before = "" if index == 1 and before == "system" else before
        if role == "system":
            if index:
                problems.append(Problem("wrong order", f"system at {where}", "a system turn only at the start"))
        elif role == before and role in NAMES:
            (other,) = set(NAMES) - {role}
            problems.append(Problem(SAME_SPEAKER, f"{NAMES[role]} at {where} after {NAMES[role]}", NAMES[other]))
        elif role not in FOLLOWERS.get(before, (role,)):  # after a misplaced system turn anyone may speak
            expected = " or ".join(NAMES.get(other, other) for other in FOLLOWERS[before])
            problems.append(Problem("wrong order", f"{NAMES.get(role, role)} at {where}", expected))
    return problems


def merge_same_speaker(messages: list[dict]) -> tuple[list[dict], int]:
    """The messages with consecutive turns of one speaker joined by a line break, and by how many they are fewer."""
    merged: list[dict] = []
    for message in messages:
        if merged and merged[-1]["role"] == message["role"] and message["role"] in NAMES:
            merged[-1] = {"role": message["role"], "content": merged[-1]["content"] + "\n" + message["content"]}
        else:
            merged.append(message)
    return merged, len(messages) - len(merged)
