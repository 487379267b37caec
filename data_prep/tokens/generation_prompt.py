"""Where a prompt ends and the answer begins: what the chat template writes there by itself.

    Qwen3          <|im_start|>assistant\\n                    <think>\\n\\n</think>\\n\\n Paris<|im_end|>
                   a prompt ends here (generation prompt)     the head of the answer   its text

The template writes the head before every plain answer, so a model learns to write it; it is no part of what the model says.
Some templates end a prompt with what they do not write in the answers that are trained on (DeepSeek-R1-Distill: "<think>").
"""

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.tokens.chat_encoder import ANSWER, EXCHANGE, encode_conversations, encode_prompts

SHOWN = 8  # tokens of a prompt's end and of an answer's begin in an error


def check_begins(
    tokenizer, prompts: list[list[dict] | str], answers: list[list[str]], encoded: list[list[list[int]]]
) -> None:
    """Raise InputError if a prompt, up to where the answer begins, has ids that its conversations do not begin with.

    `encoded` holds the ids of each prompt with each of its answers (`encode_answers`); they may be truncated. Text prompts
    are passed over. An answer whose own first character is one token with the prompt's last is no fault of the template.
    """
    chats = [index for index, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    starts = encode_prompts(tokenizer, [prompts[index] for index in chats]) if chats else []
    for index, start in zip(chats, starts, strict=True):
        for answer, ids in zip(answers[index], encoded[index], strict=True):
            same = next(
                (place for place, pair in enumerate(zip(start, ids, strict=False)) if len(set(pair)) > 1), None
            )
            if same is None:
                continue
            prompt, whole = tokenizer.decode(start), tokenizer.decode(ids)
            if whole.startswith(prompt) and whole[len(prompt) :].lstrip().startswith(answer.strip()[:20]):
                continue
            ends, begins = tokenizer.decode(start[same:]), tokenizer.decode(ids[same : same + SHOWN])
            raise InputError(
                f"the chat template ends a prompt with {shorten(ends)}, but with the answer {shorten(answer)} it writes "
                f"{shorten(begins)} there: what is trained on is not what generation sends, and answers would lose their "
                "head. Expected a template that begins an answer the same in both: give one to recipes/sft.py "
                "(chat_template_path), which saves it with the model, or data whose answers begin as the prompt ends"
            )


def head_of_answers(tokenizer) -> list[int]:
    """The ids that the template writes between the generation prompt and a plain answer's text; [] if none or unknown."""
    if tokenizer.chat_template is None:
        return []
    try:
        (start,), (whole,) = (encode_prompts(tokenizer, [EXCHANGE[:1]]), encode_conversations(tokenizer, [EXCHANGE]))
    except InputError:  # a template that cannot render so short a conversation
        return []
    if whole[: len(start)] != start:
        return []
    for length in range(len(start), len(whole)):
        if ANSWER[0] in tokenizer.decode(whole[length]):
            head = whole[len(start) : length]
            return head if tokenizer.decode(whole[length:]).lstrip().startswith(ANSWER) else []
    return []


def without_head(ids: list[int], head: list[int]) -> list[int]:
    """The ids of an answer without `head`, or what there is of it so far, if they begin with it."""
    return ids[len(head) :] if head[: len(ids)] == ids[: len(head)] else ids
