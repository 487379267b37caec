"""One row of any of the common formats → messages, and what is wrong with it.

    conversations            Baichuan, ShareGPT: [{"from": "human" | "gpt" | "system", "value": str}, ...]
    messages                 OpenAI: [{"role": "user" | "assistant" | "system", "content": str}, ...]
    instruction, output      Alpaca; optional: "input" (a string), "history" ([[question, answer], ...]) and "system"
    prompt, completion       or prompt, response; or question, answer; text or messages; optional: "history", "system"
    question, answer         of easy-dataset and synthetic-data-kit; the reasoning (a string) is under "cot" or "reasoning".
                             The latter's file, {"summary", "qa_pairs" or "cot_examples": [...]}, is read as the list in it
    "Human: … Assistant: …"  in one string (Belle), under instruction, prompt, conversations, messages or text; or
                             "### Human: …### Assistant: …" (Guanaco), on one line or several

Turns under conversations and messages may be a list as JSON text. The format of a row is recognised by its own keys, so a
file may mix formats. What may stand beside the turns, or in them:

    system                             the first turn; a problem if it differs from a system turn that is there
    label, kto_tag                     true or false: a judgement of the answer, no demonstration (preference_formats.py)
    is_safe, helpfulness, rejected_response  a judgement too: a problem, unless `columns` names what is to be learned
    tools                              as transformers passes them to the chat template (see tools.py)
    tool_calls, function_call          an assistant's turn that is in the loss; together with its text, if it has any
    turns of tool, observation         the results, which are not
    <think>…</think>, reasoning_content  kept, dropped or masked (see common/reasoning.py)
    content: [{"type": "text", …}]     the texts under "text" or "value", joined; a part of another type is a problem
    images, audios, videos             a problem: the text alone is not what was said
    any other field                    not read, but counted (`unread_fields`)
"""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from data_prep.common.reasoning import BLOCK, REASONING_FIELDS
from data_prep.common.text import counted, shorten
from data_prep.readers.columns import renamed
from data_prep.readers.tools import CALL, any_tools, tool_calls, tool_definitions
from data_prep.readers.unread import media_problems, unread_of
from data_prep.rows.csv_rows import cell_value
from data_prep.rows.problems import NOT_UNICODE, Problem, not_utf8

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function"), "tool"),
    "function_call": "function_call",
}
PLAIN_ROLES = ("system", "user", "assistant")  # without tools
# All that a chat template may have a place for, as this project's has: "function_call" is an assistant's turn with calls.
ALL_ROLES = (*PLAIN_ROLES, "function_call", "tool", "tools", "reasoning_content")
UNKNOWN_FORMAT = "no known format"
CONTRADICTION = "two formats that contradict each other"
EMPTY_TURN, NO_TEXT = "empty turn", "turn that is not text"
NOT_TEXT = "input or reasoning that is not text"
TWO_SYSTEMS = "two system turns that differ"
SAME_SPEAKER = "two turns of the same speaker in a row"
TRAILING_HUMAN = "trailing human turn"
ROLE_ALIAS = "role alias"
UNSUPPORTED_ROLE = "role that the chat template does not support"
REPAIRABLE = (SAME_SPEAKER, ROLE_ALIAS, TRAILING_HUMAN)
JUDGED = "an answer labelled good or bad"
LABEL_FIELDS = ("label", "kto_tag")  # TRL's and LLaMA-Factory's
JUDGED_FIELDS = ("is_safe", "helpfulness", "rejected_response")  # BeaverTails', HelpSteer2's and ms-swift's
LABELS = {"true": True, "1": True, "false": False, "0": False}
QUESTION_AND_ANSWER = (
    ("instruction", "output"),
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
REASONING_BESIDE = ("cot", "reasoning")  # "question" and "answer"
EXPECTED = "'conversations', 'messages' or " + ", ".join(f"{q!r} and {a!r}" for q, a in QUESTION_AND_ANSWER)
OTHER_NAMES = (
    "other names: columns: prompt=COLUMN,completion=COLUMN in a recipe's YAML; python -m data_prep.check "
    "--columns prompt=COLUMN,completion=COLUMN --output FOLDER writes rows that every command reads"
)
OF_A_TREE = ("role", "message_tree_id", "parent_id")  # beside "text" in OASST1's rows; the first message has no parent
# All fields that are read.
FIELDS = ("id", "conversations", "messages", "system", "history", "input", "text", "tools", *REASONING_BESIDE,
          *dict.fromkeys(key for pair in QUESTION_AND_ANSWER for key in pair))  # fmt: skip
SPOKEN = re.compile(r"(?:^|\n)[ \t]*(Human|Assistant)[ \t]*[:：]")
MARKED = re.compile(r"###[ \t]*(Human|Assistant)[ \t]*[:：]")
# {role: who may speak next}; "" is the start, or a system turn at the start. A tool may answer an assistant: its text may
# hold the call (Hermes).
FOLLOWERS = {
    "": ("user",),
    "user": ("assistant", "function_call"),
    "assistant": ("user", "tool"),
    "function_call": ("tool", "function_call"),
    "tool": ("tool", "assistant", "function_call"),
}
NAMES = {"user": "human", "assistant": "gpt"}  # the roles in messages to the user, as most files call them


class Candidate(NamedTuple):
    """A row read in one of the formats."""

    name: str  # of the format: its fields
    turns: list  # as they stand in the row
    problems: list[Problem]
    fields: tuple[str, ...]  # of the row, that were read


def to_conversation(
    value, columns: dict[str, str] | None = None, roles: Iterable[str] = ALL_ROLES
) -> tuple[list[dict], list[Problem]]:
    """The messages `{"role", "content"}` of a row's value, and what is wrong with them.

    A message may also have "tool_calls", "reasoning_content" (both the assistant's), "name" and "tool_call_id" (a tool's);
    the first one has the "tools" of the row. What needs no guess is repaired in the messages, and is among the problems:
    role aliases, consecutive turns of one speaker, a human turn at the end. With any other problem the messages are not
    usable.

    Args:
        columns: {field: column of the file}; None: recognise the format by the keys.
        roles: what the chat template supports, of `ALL_ROLES`. "tools" and "reasoning_content" are left out if it does not.
    """
    if not isinstance(value, dict):
        return [], [Problem("not an object", shorten(value), "{'id', 'conversations': [...]}")]
    if media := media_problems(value):
        return [], media
    if columns is not None:
        value, missing = renamed(value, columns)
        if missing:
            return [], missing
    if judged := _judged(value):
        return [], judged
    candidates = _found_formats(value)
    if not candidates:
        return [], [unknown_format(value, f"{EXPECTED}; {OTHER_NAMES}")]
    if unreadable := [problem for each in candidates for problem in each.problems]:
        return [], unreadable
    results = [with_system(*alternating(each.turns), value.get("system")) for each in candidates]
    messages, problems = results[0]
    if len(results) > 1 and any(other[0] != messages for other in results[1:]):
        found = " and ".join(repr(each.name) for each in candidates)
        return [], [Problem(CONTRADICTION, f"{found}, which differ", "one of them, or the same in both")]
    if all(problem.kind in REPAIRABLE for problem in problems):
        problems = problems + unsupported_roles(messages, roles)
        messages, found = _with_tools(messages, value, roles)
        problems += found
        if "reasoning_content" not in roles:
            messages = [{key: message[key] for key in message if key != "reasoning_content"} for message in messages]
    return messages, problems


def _judged(value: dict) -> list[Problem]:
    """The problem of a conversation whose answer is judged: it may be a bad one. [] for any other row."""
    field, label = label_of(value)
    expected = (
        "a conversation to learn from; labelled answers are preferences: recipes/kto.py takes them. Name the columns to read "
        "(columns) if this is no such label"
    )
    if label is None:
        field = next((field for field in JUDGED_FIELDS if value.get(field) is not None), "")
        expected = (
            "a conversation to learn from, without a judgement: keep the good answers alone, without this field, or name the "
            "columns (columns): messages=COLUMN or prompt=COLUMN,completion=COLUMN to learn from all; prompt=COLUMN,"
            "completion=COLUMN,label=COLUMN, of true and false, for recipes/kto.py"
        )
    if not field or not is_conversation(value):
        return []
    return [Problem(JUDGED, f"{shorten(value[field])} under {field!r}", expected)]


def unknown_format(value: dict, expected: str) -> Problem:
    """The problem of a row without the fields of any format; `expected`: which fields can be read."""
    if is_of_tree(value):
        found = f"a message of a tree (keys {shorten(sorted(value), 300)})"
        return Problem(UNKNOWN_FORMAT, found, "a row for each conversation, with all its turns")
    for field in ("conversations", "messages"):
        if isinstance(value.get(field), str):
            expected = "a list of turns, or the same as JSON text"
            return Problem(UNKNOWN_FORMAT, f"{shorten(value[field])} under {field!r}", expected)
    return Problem(UNKNOWN_FORMAT, f"keys {shorten(sorted(value), 300)}", expected)


def speaker(message: dict) -> str:
    """The role of a message; an assistant who calls tools is a "function_call"."""
    return "function_call" if message.get("tool_calls") else message["role"]


def unsupported_roles(messages: list[dict], roles: Iterable[str]) -> list[Problem]:
    """The problems of turns of other roles than `roles`: those of tools, which most readers have no place for, and those
    that the chat template does not write."""
    expected = f"{', '.join(role for role in roles if role in ROLES.values())} only"
    reason = dict.fromkeys(PLAIN_ROLES, ", as the chat template has no place for others")
    if "tool" not in roles:
        tools = ": recipes/sft.py alone takes calls of tools, with a chat template that has them"
        reason |= dict.fromkeys(("function_call", "tool"), tools)
    strange = [role for role in dict.fromkeys(map(speaker, messages)) if role not in roles]
    return [Problem(UNSUPPORTED_ROLE, f"turns of {role}", expected + reason.get(role, "")) for role in strange]


def unread_fields(value, columns: dict[str, str] | None = None, roles: Iterable[str] = ALL_ROLES) -> list[str]:
    """The fields of a row, and of its turns, that hold something and are not read. Takes the arguments of
    `to_conversation`."""
    if not isinstance(value, dict):
        return []
    kept = value if columns is None else {field: value.get(column) for field, column in columns.items()}
    found = list(_candidates(kept))
    read = {"system", "tools", *(field for each in found for field in each.fields)}
    named = {"id", *read}
    unread = unread_of(value, named if columns is None else [columns[field] for field in columns if field in named])
    turns = [turn for each in found for turn in each.turns if isinstance(turn, dict)]
    if any_tools(kept.get("tools")) or (turns and any_tools(turns[0].get("tools"))):
        unread += ["tools"] * ("tools" not in roles)
        unread += ["tools, which the system turn shows"] * ("tools" in roles and _shown(turns, kept.get("system")))
    return unread + [f"{key} in turns" for key in unread_in_turns(turns, roles)]


def unread_in_turns(turns: list[dict], roles: Iterable[str]) -> dict[str, None]:
    """The fields of turns that hold something and are not read."""
    unread: dict[str, None] = {}
    for number, turn in enumerate(turns):
        if len(turn) > 2:
            role = ROLES.get(str(turn.get(role_key(turn))).strip().lower())
            read = {
                *(("role", "content") if role_key(turn) == "role" else ("from", "value")),
                *(["tools"] * (not number)),
            }
            read |= {"tool_calls", "function_call"} if role == "assistant" else set()
            if role == "assistant" and "reasoning_content" in roles:
                read |= {field for field in REASONING_FIELDS if isinstance(turn.get(field), str)}
            read |= {"name", "tool_call_id"} if role == "tool" else set()
            unread |= dict.fromkeys(unread_of(turn, read))
    return unread


def _shown(turns: list[dict], system) -> bool:
    """Whether a system turn lists tools in its text, as Hermes' do."""
    texts = [system, *(turn.get("content", turn.get("value")) for turn in turns[:1])]
    texts = [_joined(text)[0] if isinstance(text, list) else text for text in texts]
    return any(isinstance(text, str) and "<tools>" in text for text in texts)


def with_system(messages: list[dict], problems: list[Problem], system) -> tuple[list[dict], list[Problem]]:
    """The messages with the row's "system" as their first turn, unless they have the same one, and their problems."""
    if system in (None, "") or not messages or any(problem.kind not in REPAIRABLE for problem in problems):
        return messages, problems
    if found := text_problem(system, EMPTY_TURN, "'system'"):
        return messages, problems + found
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": system}, *messages], problems
    if messages[0]["content"] == system:
        return messages, problems
    found = f"{shorten(system)} under 'system' and {shorten(messages[0]['content'])} as the first turn"
    return messages, [*problems, Problem(TWO_SYSTEMS, found, "one system turn, or the same text in both")]


def _with_tools(messages: list[dict], value: dict, roles: Iterable[str]) -> tuple[list[dict], list[Problem]]:
    """The messages with the row's tools, if the template takes them and no system turn lists them in its text."""
    own = next(
        (message["tools"] for message in messages[:2] if "tools" in message), None
    )  # after the row's system turn
    if own is not None:
        messages = [{key: message[key] for key in message if key != "tools"} for message in messages]
    tools = value["tools"] if any_tools(value.get("tools")) else own
    first = messages[0]
    if not any_tools(tools) or "tools" not in roles or (first["role"] == "system" and "<tools>" in first["content"]):
        return messages, []
    tools, problems = tool_definitions(tools)
    return [{**first, "tools": tools}, *messages[1:]], problems


def is_conversation(value: dict) -> bool:
    """Whether the row has the fields of any format of conversations."""
    return next(_candidates(value), None) is not None


def is_of_tree(value: dict) -> bool:
    """Whether the row is one message of a tree of answers: no conversation, and no document."""
    role, *others = OF_A_TREE
    return role in value and any(field in value for field in others)


def label_of(value: dict) -> tuple[str, bool | None]:
    """(the field of a row that labels its answer, "" without one; whether the answer is good, None if it does not say)."""
    field = next((field for field in LABEL_FIELDS if value.get(field) is not None), "")
    return field, LABELS.get(str(value.get(field)).strip().lower())


def _candidates(value: dict) -> Iterator[Candidate]:
    """The row read in every format whose fields it has."""
    for key in ("conversations", "messages", "text"):
        content = value.get(key)
        if isinstance(content, str) and key != "text":
            content = cell_value(key, content)  # in Parquet, where a list of any objects has no type
        spoken = _spoken(content) if isinstance(content, str) else None
        if spoken:
            yield Candidate(key, spoken, [], (key,))
        elif isinstance(content, list) and key != "text":
            yield Candidate(key, content, [], (key,))
    for question, answer in QUESTION_AND_ANSWER:
        if value.get(question) is not None and value.get(answer) is not None:
            fields = (question, answer, "history", *(["input"] * reads_input(value, question)))
            fields += tuple(_reasoning_fields(value) if question == "question" else ())
            yield Candidate(f"{question} and {answer}", *_question_and_answer(value, question, answer), fields)


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
    text = text.strip()
    parts = (MARKED if MARKED.match(text) else SPOKEN).split(text)
    if parts[0].strip() or "Human" not in parts[1:2] or "Assistant" not in parts:
        return None
    turns = [
        {"from": "human" if speaker == "Human" else "gpt", "value": said.strip()}
        for speaker, said in zip(parts[1::2], parts[2::2], strict=True)
    ]
    return turns[:-1] if turns[-1] == {"from": "gpt", "value": ""} else turns


def reads_input(value: dict, field: str) -> bool:
    """Whether "input" belongs to the prompt under `field`: beside an instruction that is a text."""
    return field == "instruction" and isinstance(value.get(field), str)


def with_input(value: dict, field: str) -> tuple[object, list[Problem]]:
    """What is under `field`, an instruction with the row's "input" below it, and what is wrong with that."""
    asked, given = value[field], value.get("input")
    if field != "instruction" or given in (None, ""):
        return asked, []
    if not isinstance(given, str):
        return asked, [_not_text(given, "input", "a string below the instruction")]
    if not isinstance(asked, str):
        return asked, []
    return (f"{asked}\n{given}" if asked.strip() else given), []


def _not_text(found, field: str, expected: str) -> Problem:
    return Problem(NOT_TEXT, f"{shorten(found)} under {field!r}", f"{expected}, or nothing")


def _reasoning_fields(value: dict) -> list[str]:
    """The field beside "question" and "answer" that holds the answer's reasoning, the first of two; [] if none does.

    An answer in turns has its reasoning in them.
    """
    found = [field for field in REASONING_BESIDE if value.get(field) not in (None, "")]
    return [] if isinstance(value["answer"], list) else found[:1]


def _question_and_answer(value: dict, question: str, answer: str) -> tuple[list, list[Problem]]:
    """The turns of a row that holds a question and its answer."""
    answered, history = value[answer], value.get("history") or []
    turns: list = []
    if not isinstance(history, list):
        return [], [
            Problem("history not in pairs", f"{shorten(history)} under 'history'", "[[question, answer], ...]")
        ]
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return [], [Problem("history not in pairs", f"{shorten(pair)} under 'history'", "[question, answer]")]
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    asked, problems = with_input(value, question)
    reasoning = {field: value[field] for field in (_reasoning_fields(value) if question == "question" else ())}
    for field, text in reasoning.items():
        if not isinstance(text, str):
            problems = [*problems, _not_text(text, field, "a string, the reasoning before the answer")]
    if problems:
        return [], problems
    if isinstance(asked, list):
        turns += asked
    elif isinstance(asked, str) and (spoken := _spoken(asked)):
        turns += spoken
    else:
        turns.append({"role": "user", "content": asked})
    if not isinstance(answered, list):
        answered = [answered] if isinstance(answered, dict) else [{"role": "assistant", "content": answered}]
        for text in reasoning.values():
            answered = [{"reasoning_content": text, **answered[0]}]
    return turns + answered, []


def to_messages(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns `{"from", "value"}` or `{"role", "content"}` as messages, and what is wrong with them.

    Role aliases are repaired, and are among the problems. A function call joins the assistant's text or call before it, as
    one turn. The order of the turns is checked only if every turn by itself is valid.
    """
    messages, problems = [], []
    for number, turn in enumerate(turns, start=1):
        where = f"turn {number}"
        if number == 1 and _says_nothing(turn):
            continue
        if not isinstance(turn, dict):
            expected = "{'from', 'value'} or {'role', 'content'}"
            problems.append(Problem("turn is not an object", f"{shorten(turn)} at {where}", expected))
            continue
        key = role_key(turn)
        if key not in turn:
            expected = (
                "{'from', 'value'} or {'role', 'content'}: rename the keys of the turns in the file (columns renames those of "
                "a row alone)"
            )
            problems.append(Problem("unknown role", f"keys {shorten(sorted(turn))} at {where}", expected))
            continue
        named = turn.get(key)
        role = ROLES.get(named) if isinstance(named, str) else None
        if role is None and isinstance(named, str) and (role := ROLES.get(named.strip().lower())):
            expected = repr(named.strip().lower())
            problems.append(Problem(ROLE_ALIAS, f"{shorten(named)} under {key!r} at {where}", expected))
        if role is None:
            expected = "human, gpt (or user, assistant), system, tool or function_call"
            problems.append(Problem("unknown role", f"{shorten(named)} under {key!r} at {where}", expected))
        message, found = _message(turn, role, turn.get("content" if key == "role" else "value"), where)
        problems += found
        if number == 1 and any_tools(turn.get("tools")):
            message["tools"] = turn["tools"]
        before = messages[-1] if messages else {}
        if role == "function_call" and before.get("role") == "assistant" and isinstance(before["content"], str):
            messages[-1] = _joined_turns(before, message)
        else:
            messages.append(message)
    if all(problem.kind == ROLE_ALIAS for problem in problems):
        problems += order_problems(messages)
    return messages, problems


def _says_nothing(turn) -> bool:
    """Whether a turn is an empty system turn, which easy-dataset writes where there is none, as others an empty "system"."""
    if not isinstance(turn, dict) or turn.get(role_key(turn)) != "system" or any_tools(turn.get("tools")):
        return False
    return turn.get("content" if role_key(turn) == "role" else "value", 0) in ("", None)


def role_key(turn: dict) -> str:
    """The field with the role of a turn."""
    return "role" if "role" in turn and "from" not in turn else "from"


def _message(turn: dict, role: str | None, text, where: str) -> tuple[dict, list[Problem]]:
    """A turn with `text` under its content, as a message, and what is wrong with it."""
    problems: list[Problem] = []
    others: list[str] = []
    more: dict = {}
    calls: list = []
    if isinstance(text, list) and role != "function_call":
        text, more, others = _joined(text)
        problems += [Problem(NO_TEXT, f"{each} at {where}", "text alone") for each in others]
        calls = more.pop("tool_calls", [])
    if role == "function_call":
        role, said = "assistant", BLOCK.match(text) if isinstance(text, str) else None
        calls, text = (text[said.end() :], text[: said.end()]) if said else (text, "")
    elif role == "assistant":
        calls = calls or turn.get("tool_calls") or turn.get("function_call")
        reasoning = more.pop("reasoning_content", None) or next(filter(None, map(turn.get, REASONING_FIELDS)), None)
        if isinstance(reasoning, str) and reasoning.strip():
            more["reasoning_content"] = reasoning
            problems += text_problem(reasoning, EMPTY_TURN, where)
    elif role == "tool":
        more = {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str)}
    if role != "assistant" or not any_tools(calls):
        calls = []
    else:
        calls, found = tool_calls(calls, where)
        more["tool_calls"] = calls
        problems += found
        text = "" if text is None or (isinstance(text, str) and not text.strip()) else text
    if not (calls and text == ""):
        problems += (
            [] if others or CALL in (problem.kind for problem in problems) else text_problem(text, EMPTY_TURN, where)
        )
    return {"role": role, "content": text, **more}, problems


def _joined_turns(first: dict, second: dict) -> dict:
    """Two turns of one speaker as one."""
    texts = [message["content"] for message in (first, second) if message["content"]]
    joined = {**first, **second, "content": "\n".join(texts)}
    for key in ("tool_calls", "reasoning_content"):
        if key in first and key in second:
            joined[key] = first[key] + (["\n", []][key == "tool_calls"]) + second[key]
    return joined


def alternating(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns as messages in which user and assistant alternate, and what was or is wrong with them.

    Consecutive turns of one speaker are merged, and a human turn at the end is trimmed. If anything else is wrong the
    messages are as they were.
    """
    messages, problems = to_messages(turns)
    if any(problem.kind not in REPAIRABLE for problem in problems):
        return messages, problems
    merged, _ = merge_same_speaker(messages)
    if all(message["role"] != "assistant" for message in merged):
        found = f"{counted(len(messages), 'turn')}, none of them gpt"
        problems.append(Problem("no assistant turn", found, "at least one gpt turn"))
    elif merged[-1]["role"] == "user":
        merged.pop()
        problems.append(Problem(TRAILING_HUMAN, f"human at turn {len(messages)}, the last", "gpt"))
    return merged, problems


def _joined(parts: list) -> tuple[str, dict, list[str]]:
    """The text in content parts (OpenAI's with "text", LLaMA-Factory's with "value"), the reasoning and the tool calls in
    them as fields of the message, and the types of the parts that are neither."""
    texts, more, others = [], {}, []
    for part in parts:
        kind = part.get("type", "text") if isinstance(part, dict) else None
        text = (
            next((part[key] for key in ("text", "value", kind) if key in part), None)
            if isinstance(kind, str)
            else None
        )
        if kind == "text" and isinstance(text, str):
            texts.append(text)
        elif kind in ("reasoning", "thinking") and isinstance(text, str):
            more["reasoning_content"] = more.get("reasoning_content", "") + text
        elif kind == "tool_call" and text:
            more["tool_calls"] = [*more.get("tool_calls", []), text]
        else:
            others.append(shorten(part.get("type") if isinstance(part, dict) else part))
    return "".join(texts), more, others


def text_problem(text, kind: str, where: str) -> list[Problem]:
    """[] for a text that is not blank; otherwise its problem: of `kind` if it is blank or nothing."""
    if not isinstance(text, str | None):
        kind = NO_TEXT if kind == EMPTY_TURN else kind
        return [Problem(kind, f"{shorten(text)} at {where}", "a text: a string with more than blanks in it")]
    if not (text or "").strip():
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
        role, where = speaker(message), f"turn {index + 1}"
        before = speaker(messages[index - 1]) if index else ""
        before = "" if index == 1 and before == "system" else before
        role = "assistant" if (before, role) == ("assistant", "function_call") else role  # the same speaker goes on
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
        goes_on = merged and merged[-1]["role"] == message["role"] and message["role"] in NAMES
        if goes_on and not merged[-1].get("tool_calls"):
            merged[-1] = _joined_turns(merged[-1], message)
        else:
            merged.append(message)
    return merged, len(messages) - len(merged)
