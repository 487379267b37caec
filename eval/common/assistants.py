"""Which models are assistants, and what their chat templates refuse."""

from jinja2 import TemplateError

from data_prep.common.errors import InputError


def is_assistant(tokenizer) -> bool:
    """Whether a tokenizer is that of an assistant: its chat template closes a turn with a token that the model stops at.

    That is its end of sequence, or one that the generation config beside it names (Gemma's). A base model may come with the
    template that its assistant will have, but ends its texts otherwise. Raises InputError for a template that cannot write a
    question and its answer.
    """
    from transformers import GenerationConfig

    from data_prep.models.generation import named_stop_ids  # slow to import

    if tokenizer.chat_template is None:
        return False
    try:
        settings = GenerationConfig.from_pretrained(tokenizer.name_or_path)
    except OSError:  # there is none
        settings = None
    ends = [token.rstrip() for token in tokenizer.convert_ids_to_tokens(named_stop_ids(settings, tokenizer)) if token]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False)
    except (TemplateError, TypeError) as error:
        name = getattr(tokenizer, "name_or_path", "") or "the tokenizer"
        raise InputError(f"{name}: its chat template cannot write a question and its answer: {error}") from None
    return text.rstrip().endswith(tuple(ends))


def refuses_system_turn(tokenizer) -> bool:
    """Whether the chat template refuses a system turn before a question, as Gemma's does."""
    turns = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError:
        return True
    return False
