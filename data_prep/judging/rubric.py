"""What a language model is told that judges answers, and the verdict in its reply: read as it stands, never guessed."""

import re
from pathlib import Path
from typing import NamedTuple

from data_prep.common.reasoning import BLOCK
from data_prep.common.yaml_file import read_prompt
from data_prep.corpus.text_units import is_unspaced, units
from data_prep.readers.ranks import ranks_of_scores

RUBRIC = Path(__file__).with_name("rubric.yaml")
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
NEEDED = ("question", "answers")  # in every prompt, in braces
TIES = {"tie", "ties", "tied", "draw", "equal", "平局", "平", "一样好"}
LINE = re.compile(r"^\W*(?:verdict|结论)\W*[:：]\s*(.*)$", re.IGNORECASE | re.MULTILINE)
AROUND = " \t\n*_`\"'“”‘’[](){}.。"  # what models put around a verdict

# Why a reply holds no verdict.
NO_VERDICT, CUT_OFF, SEVERAL = "no verdict", "cut off at max_new_tokens", "several verdicts"
REFUSED = "refused by the server"


class Rubric(NamedTuple):
    """The turns that ask, by language; "" for no system turn."""

    prompt: dict[str, str]
    system: dict[str, str]

    @property
    def needs_reference(self) -> bool:
        return any("{reference}" in text for text in self.prompt.values())


def read_rubric(path: str | Path) -> Rubric:
    """The rubric in a YAML file. Raises InputError for one that is missing, broken or without what every prompt needs."""
    return Rubric(*read_prompt(path, NEEDED))


def how_to_answer(number: int, language: str) -> str:
    """How a verdict on so many answers is to be written."""
    letters = LETTERS[:number]
    if number == 2:
        words = [
            f"Verdict: {word}" if language == "en" else f"结论：{word}"
            for word in ("A", "B", "tie" if language == "en" else "平局")
        ]
        return f"{words[0]}, {words[1]} or {words[2]}" if language == "en" else " 或 ".join(words)
    named = ", ".join(letters)
    if language == "en":
        return f"Verdict: {named} from best to worst, with > between them, and = between equally good ones"
    return f"结论：把 {named} 从好到差排列，中间用 > 隔开，同样好的用 ="


def messages(rubric: Rubric, prompt: list[dict], answers: list[str], reference: str | None = None) -> list[dict]:
    """The conversation that asks which of `answers` is best, shown in this order as A, B, …"""
    single = len(prompt) == 1 and prompt[0]["role"] == "user"
    question = prompt[0]["content"] if single else "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)
    language = "zh" if is_unspaced(units(question)) else "en"
    values = {
        "question": question,
        "answers": "\n\n".join(f"[{letter}]\n{text}" for letter, text in zip(LETTERS, answers, strict=False)),
        "verdict": how_to_answer(len(answers), language),
        "reference": reference or "",
    }
    # At once, so that braces in answers are left alone.
    turns = [
        {"role": role, "content": re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), text)}
        for role, text in (("system", rubric.system[language]), ("user", rubric.prompt[language]))
    ]
    return [turn for turn in turns if turn["content"].strip()]


def verdict(reply: dict, number: int) -> tuple[list[int] | None, str]:
    """(the ranks of the answers in the order in which they were shown, 0 the best, or None; why there are none).

    A verdict is a line "Verdict: B > A = C", "Verdict: B" for two answers, or "Verdict: tie", at any place of the reply,
    or the whole reply. A reply with two different ones has none, as has one that leaves an answer out.

    Args:
        reply: {"text", "finish"}, as `data_prep.questions.server.Server.reply_or_refusal` gives it.
        number: of answers that were shown.
    """
    if "refused" in reply:
        return None, REFUSED
    text = BLOCK.sub("", reply["text"], count=1) if BLOCK.match(reply["text"]) else reply["text"]
    found = [_ranks(line, number) for line in LINE.findall(text)] or [_ranks(text, number)]
    if any(ranks is None for ranks in found):
        return None, CUT_OFF if reply.get("finish") == "length" else NO_VERDICT
    return (found[0], "") if all(ranks == found[0] for ranks in found) else (None, SEVERAL)


def _ranks(text: str, number: int) -> list[int] | None:
    """The ranks that "B > A = C", "B" or "tie" gives to so many answers; None for anything else."""
    text = text.strip(AROUND)
    letters = LETTERS[:number]
    if text.lower() in TIES:
        return [0] * number
    if number == 2 and text in ("A", "B"):
        return [0, 1] if text == "A" else [1, 0]
    levels = [[each.strip(AROUND) for each in level.split("=")] for level in text.split(">")]
    if sorted(letter for level in levels for letter in level) != list(letters):
        return None
    level_of = {letter: -place for place, level in enumerate(levels) for letter in level}
    return ranks_of_scores([level_of[letter] for letter in letters])
