"""Questions about names: the wordings they are asked in, and conversations of them that stand in one file alone."""

import hashlib
import json
import random
from pathlib import Path

from data_prep.common.errors import InputError

WORDINGS = json.loads((Path(__file__).parents[1] / "python_docs_wordings.json").read_text(encoding="utf-8"))


def digest(text: str) -> int:
    """A number that depends on the text alone (`hash` differs between runs)."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def conversation(identifier: str, turns: list[tuple[str, str]]) -> dict:
    """A row in the Baichuan format from (question, answer) pairs."""
    messages = []
    for question, answer in turns:
        messages += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": identifier, "conversations": messages}


def embellished(wording: str, use: str, share: float, rng: random.Random) -> str:
    """The wording, with small talk before it and after it, each with a probability of `share`.

    `use` is "demonstrations", "prompts" or "evaluation", each of which has its own small talk.
    """
    around = WORDINGS["around"][use]
    if rng.random() < share:
        opening = rng.choice(around["before"])
        mid_sentence = opening.rstrip()[-1] in ",:" and not wording.startswith(("{name}", "I"))
        wording = opening + (wording[0].lower() + wording[1:] if mid_sentence else wording)
    return wording + rng.choice(around["after"]) if rng.random() < share else wording


def check_no_question_twice(rows: dict[str, list]) -> None:
    """Raise if two files share a first question: an evaluation must not use what training saw."""
    asked: dict[str, str] = {}
    for file, conversations in rows.items():
        for question in {row["conversations"][0]["value"] for row in conversations}:
            if question in asked:
                raise InputError(f"the question {question!r} is in both {asked[question]} and {file}")
            asked[question] = file
