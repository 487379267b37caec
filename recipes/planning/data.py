"""How many rows a run's data has, and how long they are, where the files and a tokenizer are there."""

import contextlib
import glob
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.models.loading import check_template
from data_prep.planning.measure import conversations_in, labels_in, measure_turns, rankings_in
from data_prep.readers.preferences import read_rankings
from data_prep.readers.prompts import load_prompts
from data_prep.readers.ranks import pairs
from data_prep.rows.read import data_files
from data_prep.tokens.shards import TokenShards
from data_prep.tokens.template_problems import template_roles

PROMPTS = 500  # of which the length is measured


class Data(NamedTuple):
    """One pass over the data of a stage.

    rows: conversations, rankings, pairs, labelled answers or prompts; of pretraining, tokens.
    answers: sequences that a row is trained as: of a ranking or a pair, its answers.
    lengths: tokens of a sequence, of a sample; of a ranking or a pair its longest.
    mean: tokens of a sequence.
    totals: tokens of a row, of the same sample as lengths; of a ranking or a pair all its answers, each with the prompt.
    """

    rows: int
    answers: float
    lengths: np.ndarray
    mean: float
    totals: np.ndarray


def pairs_in(path: Path) -> Iterator[list[list[dict]]]:
    """The pairs of a chosen and a rejected answer that recipes/dpo.py makes of a file's rankings, with their prompts."""
    for row in read_rankings(path, on_bad="repair")[0]:
        for pair in pairs(row["ranks"]):
            yield [[*row["prompt"], {"role": "assistant", "content": row["completions"][each]}] for each in pair]


def local(names: list[str] | None) -> bool:
    """Whether all files, folders and globs are here; a dataset on the Hub is not."""
    return bool(names) and all(Path(name).exists() or glob.glob(name, recursive=True) for name in names)


def data_of(stage: str, values: dict, tokenizer, made: int | None) -> Data | None:
    """What a stage reads, None where that is not here or names columns of its own.

    Args:
        made: tokens that mix.yaml will write, for pretraining from a folder that is not there yet.

    Raises InputError for files that cannot be read, and for a tokenizer without a chat template.
    """
    if "tokens" in values:
        tokens = len(TokenShards(values["tokens"])) if Path(values["tokens"]).exists() else made
        return tokens and Data(tokens, 1, np.array([]), 0.0, np.array([]))
    if tokenizer is None or values.get("columns"):
        return None
    key = {"sft": "conversations", "reward": "rankings", "dpo": "rankings", "kto": "rankings"}.get(stage, "prompts")
    if not local(values[key]):
        return None
    check_template(tokenizer, tokenizer.name_or_path)
    with contextlib.redirect_stdout(io.StringIO()):  # what a reader counts is told when the recipe reads
        if key == "prompts":
            rows = load_prompts(values[key], "repair")
            template = {"add_generation_prompt": True, "return_dict": False}
            sampled = [tokenizer.apply_chat_template(prompt, **template) for prompt in rows[:PROMPTS]["prompt"]]
            lengths = np.array([len(ids) for ids in sampled])
            return Data(len(rows), 1, lengths, float(lengths.mean()), lengths)
        if stage == "sft":
            read = partial(conversations_in, roles=template_roles(tokenizer))
        else:
            read = {"kto": labels_in, "dpo": pairs_in}.get(stage, rankings_in)
        bound = values.get("assistant_only_loss", False)  # preferences need no template that tells the turns apart
        found = [measure_turns(read, Path(file), tokenizer, bound) for file in data_files(values[key])]
    rows, sampled = sum(each.rows for each in found), sum(len(each.lengths) for each in found)
    answers = 1 if stage == "sft" else sum(len(each.answers) for each in found) / sampled
    tokens = sum(each.tokens for each in found)
    lengths, totals = (np.concatenate([getattr(each, name) for each in found]) for name in ("lengths", "totals"))
    return Data(rows, answers, lengths, tokens / rows / answers, totals)
