"""In which words a fact is asked for: a file of wordings, in three sets that share none."""

import random
import re
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.common.yaml_file import read_yaml
from data_prep.questions.facts import KINDS, Fact

WORDINGS = Path(__file__).with_name("wordings.yaml")
SETS = ("demonstrations", "prompts", "held_out")
LANGUAGES = ("en", "zh")
Wordings = dict[str, dict[str, dict[str, list[str]]]]  # {set: {language: {kind: [wording]}}}


def read_wordings(path: str | Path, sets: tuple[str, ...], kinds: tuple[str, ...]) -> Wordings:
    """The wordings in a YAML or JSON file. Raises InputError for one that is missing, broken, or in two sets."""
    wordings = read_yaml(path)
    seen: dict[str, str] = {}
    for name in wordings:
        if name not in SETS:
            raise InputError(f"{path}: found the set {shorten(name)}; expected {', '.join(SETS)}")
    for name in (name for name in SETS if name in wordings or name in sets):
        for language in LANGUAGES:
            own = wordings.get(name)
            own = own.get(language) if isinstance(own, dict) else None
            own = own if isinstance(own, dict) else {}
            if strange := [kind for kind in own if kind not in KINDS]:
                expected = ", ".join(KINDS)
                raise InputError(
                    f"{path}: {name}: {language}: found the kind {shorten(strange[0])}; expected {expected}"
                )
            for kind in dict.fromkeys([*(kinds if name in sets else ()), *own]):
                where = f"{path}: {name}: {language}: {kind}"
                _check_list(own.get(kind), kind, where)
                for wording in own[kind]:
                    if seen.setdefault(wording, name) != name:
                        raise InputError(
                            f"{where}: {shorten(wording)} is in {seen[wording]} too; expected each wording in one set: "
                            "an evaluation must not ask as training did"
                        )
    return wordings


def _check_list(found, kind: str, where: str) -> None:
    if not isinstance(found, list) or not found or not all(isinstance(wording, str) for wording in found):
        raise InputError(f"{where}: found {shorten(found)}; expected a list of wordings")
    for wording in found:
        fields = set(re.findall(r"\{([^{}]*)\}", wording))
        if fields != set(KINDS[kind]):
            expected = " and ".join(f"{{{field}}}" for field in KINDS[kind])
            raise InputError(f"{where}: found {shorten(wording)}; expected {expected} in it")


def questions(fact: Fact, wordings: dict[str, dict[str, list[str]]], number: int, key: str) -> list[str]:
    """`number` questions for a fact, or as many as there are wordings of its kind; which ones depends on `key` alone."""
    own = wordings[fact.language][fact.kind]
    chosen = random.Random(key).sample(own, min(number, len(own)))
    # At once, so that braces in a document are left alone.
    return [re.sub(r"\{(\w+)\}", lambda found: fact.asked[found[1]], wording) for wording in chosen]
