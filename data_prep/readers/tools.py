"""Tools in the user's rows: their definitions and the calls, in the form that chat templates of transformers take.

    definitions   the row's "tools", or those of its first turn (GLM): a list, or that list as JSON (LLaMA-Factory)
    calls         "tool_calls" of an assistant's turn (OpenAI), or a turn "function_call" that holds JSON (LLaMA-Factory)

A call is {"name", "arguments"}, alone or under "function"; its arguments may be JSON in a string, as OpenAI writes them.
"""

import json

from data_prep.common.text import shorten
from data_prep.rows.problems import FINITE, NOT_FINITE, NOT_UNICODE, Problem, not_utf8

TOOLS, CALL = "tools that are not definitions", "tool call that cannot be read"


def tool_calls(value, where: str) -> tuple[list[dict], list[Problem]]:
    """Calls as [{"type": "function", "function": {"name", "arguments": {…}}}, …], and what is wrong with them."""
    value = _parsed(value)
    calls = [_call(each) for each in (value if isinstance(value, list) else [value])]
    if not calls or None in calls:
        expected = '{"name": …, "arguments": {…}}, or a list of these'
        return [], [Problem(CALL, f"{shorten(value)} at {where}", expected)]
    return _as_json(calls, where)


def tool_definitions(value) -> tuple[list[dict], list[Problem]]:
    """Tools as [{"type": "function", "function": {"name", …}}, …], and what is wrong with them."""
    value = _parsed(value)
    tools = [_parsed(each) for each in (value if isinstance(value, list) else [value])]
    if not all(isinstance(tool, dict) and isinstance(tool.get("function", tool), dict) for tool in tools):
        return [], [Problem(TOOLS, f"{shorten(value)} under 'tools'", "a list of JSON schemas")]
    wrapped = [
        tool if "function" in tool or "type" in tool else {"type": "function", "function": tool} for tool in tools
    ]
    return _as_json(wrapped, "'tools'")


def any_tools(value) -> bool:
    """Whether a row's "tools" are more than an empty list."""
    return bool(value) and not (isinstance(value, str) and value.strip() in ("", "[]", "null"))


def _parsed(value):
    """Text as the JSON in it, if it is any."""
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            pass
    return value


def _call(value) -> dict | None:
    call = _parsed(value)
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return None
    name, arguments = function.get("name"), function.get("arguments")
    arguments = {} if arguments in (None, "") else _parsed(arguments)
    if not isinstance(name, str) or not name.strip() or not isinstance(arguments, dict):
        return None
    identifier = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**identifier, "type": "function", "function": {"name": name, "arguments": arguments}}


def _as_json(value, where: str) -> tuple[list[dict], list[Problem]]:
    """Calls or tools with JSON's types alone (Parquet has dates, too), and what is wrong with them."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # Python reads Infinity in a text, and Parquet has it as a number
        return [], [Problem(NOT_FINITE, f"{shorten(value)} at {where}", FINITE)]
    except RecursionError:
        return [], [Problem(CALL, f"a value nested too deeply at {where}", "fewer brackets within each other")]
    if not_utf8(text) is not None:
        return [], [Problem(NOT_UNICODE, f"half a surrogate pair at {where}", "complete characters")]
    return json.loads(text), []
