"""Which models are assistants."""


def is_assistant(tokenizer) -> bool:
    """Whether a tokenizer is that of an assistant: its chat template closes a turn with its end of sequence.

    A base model may come with the template that its assistant will have, but ends its texts otherwise.
    """
    if tokenizer.chat_template is None or tokenizer.eos_token is None:
        return False
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return tokenizer.apply_chat_template(turns, tokenize=False).rstrip().endswith(tokenizer.eos_token.rstrip())
