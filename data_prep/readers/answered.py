"""Which prompts does a row answer? Rows are held out by them, and kinds of data on the same prompts are kept apart by them."""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from data_prep.readers import conversation_formats, preference_formats
from data_prep.readers.kinds import classify
from data_prep.readers.preferences import prompt_key
from data_prep.rows.problems import Problem
from data_prep.rows.read import data_files, rows_of

# Rows are held out unchanged: whoever reads them next repairs these.
REPAIRABLE = {*conversation_formats.REPAIRABLE, *preference_formats.REPAIRABLE}


def prompt_of(value, text_column: str) -> tuple[list[dict], list[Problem]]:
    """The prompt of a row as messages, and the problems for which the row cannot be used."""
    kind = classify(value, text_column)
    if kind == "preferences":
        preference, problems = preference_formats.preference_of(value)
        prompt = preference.get("prompt", [])
    elif kind == "document":
        text = value[text_column]
        prompt, problems = (
            [{"role": "user", "content": text}],
            conversation_formats.text_problem(text, "text", text_column),
        )
    else:
        messages, problems = conversation_formats.to_conversation(value)
        prompt = list(itertools.takewhile(lambda message: message["role"] != "assistant", messages))
    return prompt, [problem for problem in problems if problem.kind not in REPAIRABLE]


def answered_prompts(value) -> set[str]:
    """The keys (see `prompt_key`) of all prompts that a usable row answers.

    A preference answers one. A conversation answers what precedes each of its answers, for fine-tuning learns all of them.
    A document answers none.
    """
    kind = classify(value)
    if kind == "preferences":
        return {prompt_key(preference_formats.preference_of(value)[0].get("prompt", []))}
    if kind != "conversations":
        return set()
    messages, _ = conversation_formats.to_conversation(value)
    answers = (index for index, message in enumerate(messages) if message["role"] == "assistant")
    return {prompt_key(messages[:index]) for index in answers}


def prompts_in(paths: str | Path | Iterable[str | Path]) -> Iterator[set[str]]:
    """The `answered_prompts` of each row of files."""
    return (answered_prompts(row.value) for row in rows_of(data_files(paths)))


def all_prompts(paths: str | Path | Iterable[str | Path]) -> set[str]:
    """The keys of all prompts that the rows of files answer."""
    return {key for prompts in prompts_in(paths) for key in prompts}
