"""The filters that look at one document by itself, their options, and the files that they are for."""

import argparse
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.numbers import check_at_least
from data_prep.common.text import counted
from data_prep.corpus.decontamination import EvaluationTexts
from data_prep.corpus.languages import language, method
from data_prep.corpus.quality import Reason, quality_reason
from data_prep.rows.bad_rows import ON_BAD
from data_prep.rows.read import data_files


class Rules(NamedTuple):
    """The settings of the filters that look at one document by itself."""

    quality: str
    min_words: int
    max_words: int
    languages: tuple[str, ...]
    evaluation: tuple[str, ...]  # files


@cache
def evaluation_texts(files: tuple[str, ...]) -> EvaluationTexts:
    return EvaluationTexts(files)


@cache  # once in each process
def document_filter(rules: Rules) -> Callable[[str], Reason | None]:
    """The filters that look at one document by itself, as one function of its text."""
    evaluation = evaluation_texts(rules.evaluation) if rules.evaluation else None
    by_gopher = rules.quality == "gopher"

    def reason(text: str) -> Reason | None:
        spoken = language(text) if by_gopher or rules.languages else ""
        if by_gopher and (found := quality_reason(text, spoken, rules.min_words, rules.max_words)):
            return found
        if rules.languages and spoken not in rules.languages:
            return Reason("language", f"{spoken}, wanted: {', '.join(rules.languages)}")
        if evaluation and (run := evaluation.shared_run(text)):
            return Reason("evaluation text", f"shares: {run}")
        return None

    return reason


def add_options(parser: argparse.ArgumentParser) -> None:
    """What to filter, and how."""
    parser.add_argument("--corpus", nargs="+", required=True, help="files, folders, globs or hf:// names")
    parser.add_argument("--text_column", default="text", help="column with the text (default: text)")
    parser.add_argument("--on_bad", choices=ON_BAD, default="error", help="bad rows (default: error)")
    parser.add_argument(
        "--quality",
        choices=("gopher", "none"),
        default="gopher",
        help="quality rules (default: gopher, of MassiveText)",
    )
    parser.add_argument("--min_words", type=int, default=50, help="shortest document, for gopher (default: 50)")
    parser.add_argument(
        "--max_words", type=int, default=100_000, help="longest document, for gopher (default: 100000)"
    )
    parser.add_argument("--languages", nargs="+", metavar="CODE", help="languages to keep: en, zh, … (default: all)")
    parser.add_argument(
        "--evaluation", nargs="+", metavar="FILE", help="remove documents that share a run of words with these files"
    )
    parser.add_argument(
        "--threshold", type=float, default=0.8, help="similarity of near-duplicates (default: 0.8; 1: only exact ones)"
    )


def files_and_rules(arguments: argparse.Namespace) -> tuple[list[str], Rules]:
    """The files of the corpus and the rules for it. Raises InputError for what is wrong with either, before any work."""
    check_at_least(1, arguments, "min_words", "max_words")
    if not 0 < arguments.threshold <= 1:
        raise InputError(f"--threshold {arguments.threshold}: expected more than 0 and at most 1")
    if arguments.languages and "script" in method():
        raise InputError(f"--languages: languages are detected by {method()}")
    files = data_files(arguments.corpus, plain_text=True)
    evaluation = data_files(arguments.evaluation, plain_text=True) if arguments.evaluation else []
    rules = Rules(
        arguments.quality,
        arguments.min_words,
        arguments.max_words,
        tuple(arguments.languages or ()),
        tuple(evaluation),
    )
    document_filter(rules)  # raises what is wrong with the rules before any work
    if evaluation:
        texts = evaluation_texts(rules.evaluation)
        print(f"{counted(texts.texts, 'evaluation text')}, {texts.short:,} of them too short to look for")
    return files, rules
