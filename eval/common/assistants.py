"""Which models are assistants, and what their chat templates refuse."""

from jinja2 import TemplateError

from data_prep.common.errors import InputError


def is_assistant(tokenizer) -> bool:
    """Whether a tokenizer is that of an assistant: its chat template closes a turn with its end of sequence.

    A base model may come with the template that its assistant will have, but ends its texts otherwise. Raises InputError for
    a template that cannot write a question and its answer.
    """
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        return False
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError) as error:
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        raise InputError(f"{name}: its chat template cannot write a question and its answer: {error}") from None
    return text.rstrip().endswith(tokenizer.eos_token.rstrip())


def refuses_system_turn(tokenizer) -> bool:
    """Whether the chat template refuses a system turn before a question, as Gemma's does."""
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return True
    return False
