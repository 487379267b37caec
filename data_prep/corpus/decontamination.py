"""Decontamination: find documents that share a run of words with an evaluation text.

The test is that of GPT-3 (Brown 2020, arXiv:2005.14165, appendix C): a run of 13 words, in lower case and without
punctuation. In scripts without blanks between words, two characters count as a word, because a run of 13 characters may
be a common phrase. An evaluation text of 8 to 12 words has to match as a whole. Shorter ones are not looked for: they
match by chance.
"""

import re
from collections.abc import Iterable, Iterator

from data_prep.common.errors import InputError
from data_prep.corpus.text_units import UNSPACED_CHARACTER, is_unspaced, joined, ngrams
from data_prep.readers.documents import read_documents
from data_prep.rows.read import is_text, read_rows

RUN, SHORTEST = 13, 8  # words
WORD = re.compile(rf"{UNSPACED_CHARACTER}|(?:(?!{UNSPACED_CHARACTER})\w)+")


def strings(value) -> Iterator[str]:
    """Every string in a row of any shape: prompts, answers, choices."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


class EvaluationTexts:
    """The runs of words in evaluation files.

    Attributes: `texts`, the number of strings in the files; `short`, how many of them are too short to look for.

    Raises InputError for a row that cannot be read, and if every text is too short.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self.texts = self.short = 0
        self._runs: dict[int, set[int]] = {}  # {units in a run: hashes of the runs}
        for file in files:
            for text in _texts(file):
                words = WORD.findall(text.lower())
                self.texts += 1
                characters_a_word = 2 if is_unspaced(words) else 1
                if len(words) < SHORTEST * characters_a_word:
                    self.short += 1
                    continue
                size = min(RUN * characters_a_word, len(words))
                self._runs.setdefault(size, set()).update(map(hash, ngrams(words, size)))
        if not self._runs:
            raise InputError(f"{', '.join(files)}: no text of {SHORTEST} words or more to look for")

    def shared_run(self, text: str) -> str | None:
        """The first run of words that `text` shares with an evaluation text, or None."""
        words = WORD.findall(text.lower())
        for size, runs in sorted(self._runs.items(), reverse=True):
            for run in ngrams(words, size):
                if hash(run) in runs:
                    return joined(run)
        return None


def _texts(file: str) -> Iterator[str]:
    if is_text(file):
        yield from read_documents(file)
        return
    for row in read_rows(file):
        if row.problems and row.value is None:
            problem = row.problems[0]
            raise InputError(f"{file}: row {row.number}: found {problem.found}; expected {problem.expected}")
        yield from strings(row.value)
