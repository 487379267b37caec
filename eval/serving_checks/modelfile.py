"""Ollama's Modelfile for a GGUF file, with the chat template in Ollama's language, and whether both write the same."""

import json
import os

SYSTEM, QUESTION, ANSWER, NEXT = "\ue001", "\ue002", "\ue003", "\ue004"  # of no language: they mark the contents


def turns_of(tokenizer) -> dict[str, tuple[str, str]] | None:
    """What the chat template writes before and after the content of a turn: {role: (before, after)}.

    Under "" is what it writes (before all turns, where the next answer begins). None where it does not write every
    turn by itself, as one that trims contents or counts turns.
    """

    def rendered(messages: list[tuple[str, str]], add_generation_prompt: bool = False) -> str:
        conversation = [{"role": role, "content": content} for role, content in messages]
        options = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
        return tokenizer.apply_chat_template(conversation, **options)

    whole = [("system", SYSTEM), ("user", QUESTION), ("assistant", ANSWER), ("user", NEXT)]
    first, after_user = rendered(whole[1:2]).split(QUESTION)
    text = rendered(whole, add_generation_prompt=True)
    pieces = []
    for mark in (SYSTEM, QUESTION, ANSWER, NEXT):
        if text.count(mark) != 1:
            return None
        piece, text = text.split(mark)
        pieces.append(piece)
    before_system, system_to_user, user_to_assistant, assistant_to_user = pieces
    before_user = os.path.commonprefix([each[::-1] for each in (first, system_to_user, assistant_to_user)])[::-1]
    beginning = first.removesuffix(before_user)
    if not (
        before_system.startswith(beginning)
        and user_to_assistant.startswith(after_user)
        and text.startswith(after_user)
    ):
        return None
    return {
        "": (beginning, text.removeprefix(after_user)),
        "system": (before_system.removeprefix(beginning), system_to_user.removesuffix(before_user)),
        "user": (before_user, after_user),
        "assistant": (user_to_assistant.removeprefix(after_user), assistant_to_user.removesuffix(before_user)),
    }


def written(turns: dict[str, tuple[str, str]], prompt: list[dict]) -> str:
    """The text that `turns` make of a prompt, as Ollama does by the Modelfile."""
    inner = "".join(turns[each["role"]][0] + each["content"] + turns[each["role"]][1] for each in prompt)
    return turns[""][0] + inner + turns[""][1]


def modelfile(
    file_name: str, turns: dict[str, tuple[str, str]], end: str, bos: str | None, context: int | None
) -> str:
    """The Modelfile of a GGUF file beside it: greedy, the template, the end of an answer.

    llama.cpp adds the BOS itself where the tokenizer does, so a BOS that the template begins with is left out.
    """
    beginning = turns[""][0].removeprefix(bos or "")
    roles = "".join(
        f'{{{{ {"if" if role == "system" else "else if"} eq .Role "{role}" }}}}{turns[role][0]}{{{{ .Content }}}}{turns[role][1]}'
        for role in ("system", "user", "assistant")
    )
    template = f"{beginning}{{{{ range .Messages }}}}{roles}{{{{ end }}}}{{{{ end }}}}{turns[''][1]}"
    parameters = {"temperature": 0, **({"num_ctx": context} if context else {}), "stop": json.dumps(end)}
    lines = [f"FROM ./{file_name}", f'TEMPLATE """{template}"""']
    return "\n".join([*lines, *(f"PARAMETER {key} {value}" for key, value in parameters.items()), ""])
