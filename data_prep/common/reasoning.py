"""Reasoning before an assistant's answer: a block `<think>…</think>` at the head of its text, or `reasoning_content`.

keep   as the data have it. Reasoning in a field of its own becomes a block, if the chat template has no place for it
drop   the answer alone
mask   in the tokens, but not in the loss
"""

import re

REASONING = ("keep", "drop", "mask")
# The names that transformers takes for the field (`_alias_reasoning_fields` of its chat_template_utils).
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
BLOCK = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
DONE = {"keep": "kept", "drop": "dropped", "mask": "masked: in the tokens, not in the loss"}


def block(reasoning: str) -> str:
    """The reasoning as a block before the answer, as the models of DeepSeek and Qwen write it."""
    return f"<think>\n{reasoning}\n</think>\n\n"


def reasoning_of(message: dict) -> str:
    """The reasoning of an assistant's message; "" if there is none."""
    if message["role"] != "assistant":
        return ""
    if reasoning := message.get("reasoning_content"):
        return reasoning.strip()
    found = BLOCK.match(message["content"]) if "<think>" in message["content"] else None
    return found[1].strip() if found else ""


def without_reasoning(message: dict) -> dict:
    """The message without its reasoning; its content may be empty then."""
    if not reasoning_of(message):
        return message
    left = {key: value for key, value in message.items() if key != "reasoning_content"}
    found = BLOCK.match(message["content"])
    return {**left, "content": message["content"][found.end() :] if found else message["content"]}
