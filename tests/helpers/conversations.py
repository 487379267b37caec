"""Conversations for the tests, and files of them."""

import json
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

# Everything UTF-8 can write; blanks alone are no turn.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def dialogues(draw, texts=TEXTS):
    """Messages of one valid conversation: perhaps a system turn, then user and assistant in turn, ending on one."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for question, answer in draw(st.lists(st.tuples(texts, texts), min_size=1, max_size=4)):
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def human(text="How many?"):
    return {"from": "human", "value": text}


def gpt(text="Seven."):
    return {"from": "gpt", "value": text}


def system(text="Be brief."):
    return {"from": "system", "value": text}


def write(folder: Path, rows, name="chat.json") -> Path:
    path = folder / name
    path.write_text(json.dumps(rows, ensure_ascii=True), encoding="utf-8")
    return path


def messages(*texts: str) -> list[dict]:
    """Messages of user and assistant in turn; "system: …" opens."""
    system = [{"role": "system", "content": texts[0][8:]}] if texts[0].startswith("system: ") else []
    roles = ("user", "assistant") * len(texts)
    return system + [{"role": r, "content": t} for r, t in zip(roles, texts[len(system) :], strict=False)]
