"""What a chat template has no place for: which roles, and which conversations it refuses, as problems of their rows.

Some refuse a system turn (Gemma, Mistral), or two calls in one turn (Llama 3.1). Readers that are given `refused`
hand such rows to `BadRows`, as any other bad row.
"""

from collections.abc import Callable

from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template

from data_prep.readers.conversation_formats import PLAIN_ROLES, unsupported_roles
from data_prep.rows.problems import Problem
from data_prep.tokens.chat_encoder import ChatEncoder, NotRendered, Rendered, as_text, template_of

REFUSED = "refused by the chat template"


def template_roles(tokenizer) -> tuple[str, ...]:
    """What the chat template supports, of `ALL_ROLES`: roles, calls and tools whose content appears in the text. Reasoning
    always has a place, in the text before the answer."""
    found = []
    question, answer = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    function = {"type": "function", "function": {"name": "probe", "arguments": {}}}
    call = {"role": "assistant", "content": "", "tool_calls": [function]}
    tried = {role: {"role": role, "content": "probe"} for role in (*PLAIN_ROLES, "tool")}
    conversations = {
        "system": [tried["system"], question, answer],
        "user": [tried["user"], answer],
        "assistant": [question, tried["assistant"]],
        "function_call": [question, call],
        "tool": [
            question,
            {**call, "tool_calls": [{**function, "function": {"name": "f", "arguments": {}}}]},
            tried["tool"],
        ],
        "tools": [question, answer],
    }
    for role, messages in conversations.items():
        template = template_of(tokenizer, role not in PLAIN_ROLES)
        tools = [function] if role == "tools" else None
        try:
            (text,), _ = render_jinja_template(
                conversations=[messages], tools=tools, chat_template=template, **tokenizer.special_tokens_map
            )
        except (TemplateError, TypeError):
            continue
        if "probe" in text:
            found.append(role)
    return (*found, "reasoning_content")


class Renderer:
    """Renders the conversation of a row, as `encoder` does; what keeps the template from it is a problem of the row.

    `last`: the conversation rendered last.
    """

    def __init__(self, encoder: ChatEncoder, roles: tuple[str, ...]) -> None:
        """`roles`: those that the template has a place for (`template_roles`)."""
        self.encoder, self.roles, self.last = encoder, roles, Rendered("", [], {})

    def __call__(self, messages: list[dict]) -> list[Problem]:
        if found := unsupported_roles(messages, self.roles):
            return found
        try:
            (self.last,) = self.encoder.render([messages])
        except NotRendered as error:
            return [_refusal(error)]
        return []


def refused_by(tokenizer) -> Callable[[list[dict]], list[Problem]]:
    """What keeps the tokenizer's chat template from writing messages: a role that it has no place for, or a refusal."""
    roles = template_roles(tokenizer)

    def problems(messages: list[dict]) -> list[Problem]:
        if found := unsupported_roles(messages, roles):
            return found
        try:
            as_text(tokenizer, messages)
        except NotRendered as error:
            return [_refusal(error)]
        return []

    return problems


def _refusal(error: NotRendered) -> Problem:
    found = f"a conversation that the chat template refuses: {error.reason}"
    return Problem(REFUSED, found, "one that it can write, or another template")
