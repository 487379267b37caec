"""How many rows a run's data has, and how long they are, where the files and a tokenizer are there."""

import contextlib
import glob
import io
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.planning.measure import conversations_in, labels_in, measure_turns, rankings_in
from data_prep.readers.prompts import load_prompts
from data_prep.rows.read import data_files
from data_prep.tokens.sft_dataset import template_roles
from data_prep.tokens.shards import TokenShards

PROMPTS = 500  # of which the length is measured


class Data(NamedTuple):
    """One pass over the data of a stage.

    rows: conversations, rankings, labelled answers or prompts; of pretraining, tokens.
    answers: sequences that a row is trained as: of a ranking, its answers.
    lengths: tokens of a sequence, of a sample; of a ranking its longest.
    mean: tokens of a sequence.
    """

    rows: int
    answers: float
    lengths: np.ndarray
    mean: float


def local(names: list[str] | None) -> bool:
    """Whether all files, folders and globs are here; a dataset on the Hub is not."""
    return bool(names) and all(Path(name).exists() or glob.glob(name, recursive=True) for name in names)


def data_of(stage: str, values: dict, tokenizer, made: int | None) -> Data | None:
    """What a stage reads, None where that is not here or names columns of its own.

    Args:
        made: tokens that mix.yaml will write, for pretraining from a folder that is not there yet.

    Raises InputError for files that cannot be read.
    """
    if "tokens" in values:
        tokens = len(TokenShards(values["tokens"])) if Path(values["tokens"]).exists() else made
        return tokens and Data(tokens, 1, np.array([]), 0.0)
    if tokenizer is None or values.get("columns"):
        return None
    key = {"sft": "conversations", "reward": "rankings", "dpo": "rankings", "kto": "rankings"}.get(stage, "prompts")
    if not local(values[key]):
        return None
    with contextlib.redirect_stdout(io.StringIO()):  # what a reader counts is told when the recipe reads
        if key == "prompts":
            rows = load_prompts(values[key], "repair")
            template = {"add_generation_prompt": True, "return_dict": False}
            sampled = [tokenizer.apply_chat_template(prompt, **template) for prompt in rows[:PROMPTS]["prompt"]]
            lengths = np.array([len(ids) for ids in sampled])
            return Data(len(rows), 1, lengths, float(lengths.mean()))
        if stage == "sft":
            read = partial(conversations_in, roles=template_roles(tokenizer))
        else:
            read = labels_in if stage == "kto" else rankings_in
        found = [measure_turns(read, Path(file), tokenizer) for file in data_files(values[key])]
    rows, sampled = sum(each.rows for each in found), sum(len(each.lengths) for each in found)
    answers = 1 if stage == "sft" else sum(len(each.answers) for each in found) / sampled
    tokens = sum(each.tokens for each in found)
    return Data(rows, answers, np.concatenate([each.lengths for each in found]), tokens / rows / answers)
