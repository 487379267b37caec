"""What stands in an evaluation and was seen in training.

A document counts as seen if at least 80 % of its words stand in runs of 13 words that some training text has too (the runs
of data_prep/corpus/decontamination.py; by share of the text as in Llama 2, Touvron 2023, arXiv:2307.09288, A.6: one shared
phrase makes no document known). Shorter texts have to match as a whole. A question counts as seen if every user turn of its
prompt is, letter case and whitespace aside, a string of one training row. That an *answer* stands in the training texts is
no contamination: a question asked without the document can be answered in no other way.
"""

from collections.abc import Hashable, Iterable, Iterator

from data_prep.corpus.decontamination import RUN, SHORTEST, WORD, strings
from data_prep.corpus.text_units import is_unspaced, ngrams
from data_prep.readers.documents import read_documents
from data_prep.rows.read import data_files, is_text, read_rows

SEEN = 0.8  # of a document's words


def plain(text: str) -> str:
    return " ".join(text.lower().split())


def training_rows(paths: Iterable[str]) -> Iterator[list[str]]:
    """The strings of every row of the files, of any shape; a plain text file is a row for each of its documents."""
    for file in data_files(paths, plain_text=True):
        if is_text(file):
            yield from ([text] for text in read_documents(file))
        else:
            yield from (list(strings(row.value)) for row in read_rows(file) if row.value is not None)


class Runs:
    """The runs of words in documents, and which of them training texts have."""

    def __init__(self, texts: list[str]) -> None:
        self._documents: list[tuple[Hashable, int, list[int]]] = []  # (whole text, words in a run, hashes of its runs)
        for text in texts:
            words = WORD.findall(text.lower())
            characters_a_word = 2 if is_unspaced(words) else 1
            if len(words) < SHORTEST * characters_a_word:
                self._documents.append((plain(text), 0, []))
                continue
            size = min(RUN * characters_a_word, len(words))
            self._documents.append((None, size, [hash(run) for run in ngrams(words, size)]))
        self._asked = {run for _, _, runs in self._documents for run in runs}
        self._short = {whole for whole, size, _ in self._documents if not size}
        self._sizes = {size for _, size, _ in self._documents if size}
        self._found: set[Hashable] = set()

    def look_into(self, text: str) -> None:
        """Note what a training text has of them."""
        if self._short and (whole := plain(text)) in self._short:
            self._found.add(whole)
        words = WORD.findall(text.lower()) if self._sizes else []
        for size in self._sizes:
            self._found.update(self._asked.intersection(map(hash, ngrams(words, size))))

    def shares(self) -> list[float]:
        """The share of every document's words that stand in runs found in training."""
        shares = []
        for whole, size, runs in self._documents:
            if not size:
                shares.append(float(whole in self._found))
                continue
            covered, end = 0, 0
            for start, run in enumerate(runs):
                if run in self._found:
                    covered += start + size - max(start, end)
                    end = start + size
            shares.append(covered / (len(runs) + size - 1))
        return shares


class Prompts:
    """The user turns of prompts, and which prompts stand in a training row."""

    def __init__(self, rows: list[dict]) -> None:
        self._turns = [[plain(turn["content"]) for turn in row["prompt"] if turn["role"] == "user"] for row in rows]
        self._ending: dict[str, list[int]] = {}
        for number, turns in enumerate(self._turns):
            self._ending.setdefault(turns[-1], []).append(number)
        self._seen: set[int] = set()

    def look_into(self, texts: list[str]) -> None:
        """Note which prompts are in a training row of these strings."""
        found = {plain(text) for text in texts}
        for text in found & self._ending.keys():
            self._seen.update(number for number in self._ending[text] if found.issuperset(self._turns[number]))

    def shares(self) -> list[float]:
        return [float(number in self._seen) for number in range(len(self._turns))]


def seen_in_training(
    paths: list[str], documents: dict[str, list[str]], questions: dict[str, list[dict]]
) -> dict[str, dict[str, dict]]:
    """{"documents" or "questions": {source: {"n", "seen", "touched"}}}, counts.

    Args:
        paths: what was trained on, documents or conversations in any format.
        documents: {source: texts}.
        questions: {source: rows with a "prompt"}.

    "touched" documents share a run of 13 words with a training text, the stricter rule of GPT-3 (Brown 2020,
    arXiv:2005.14165, appendix C); "seen" ones most of their words.
    """
    runs = {source: Runs(texts) for source, texts in documents.items()}
    prompts = {source: Prompts(rows) for source, rows in questions.items()}
    for texts in training_rows(paths):
        for each in prompts.values():
            each.look_into(texts)
        for each in runs.values():
            for text in texts:
                each.look_into(text)
    return {
        kind: {source: _counts(each.shares()) for source, each in sets.items()}
        for kind, sets in (("documents", runs), ("questions", prompts))
    }


def _counts(shares: list[float]) -> dict:
    seen, touched = sum(share >= SEEN for share in shares), sum(share > 0 for share in shares)
    return {"n": len(shares), "seen": seen, "touched": touched}
