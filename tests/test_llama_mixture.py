"""LLaMA's mixture: the plan of its config without a network, and its shares in small on seven sources made of files at hand."""

import argparse
import ast
import asyncio
import decimal
import inspect
import itertools
import json
import shutil
import tarfile
import textwrap
import typing
from pathlib import Path

import pytest
import yaml

from data_prep import mix_corpus
from data_prep.common.files import write_jsonl

CONFIG = Path(__file__).parents[1] / "recipes" / "configs" / "llama_mixture" / "mix.yaml"
PAPER = {  # arXiv:2302.13971, table 1: share of the tokens in percent, passes
    "commoncrawl": (67, 1.10),
    "c4": (15, 1.06),
    "github": (4.5, 0.64),
    "wikipedia": (4.5, 2.45),
    "books": (4.5, 2.23),
    "arxiv": (2.5, 1.06),
    "stackexchange": (2, 1.03),
}
FILES = (argparse, asyncio.base_events, ast, decimal, inspect, tarfile, typing)


@pytest.fixture
def config() -> dict:
    return yaml.safe_load(CONFIG.read_text(encoding="utf-8"))


def test_the_dry_run_tells_tokens_passes_and_disk_without_a_network(
    tiny_tokenizer, config, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_tokenizer.name_or_path, config["tokenizer"])
    code, out, err = command(mix_corpus, "--config", str(CONFIG), "--dry_run")
    assert code == 0, err
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split()[0] in PAPER}
    assert sum(share for share, _ in PAPER.values()) == 100
    for name, (share, epochs) in PAPER.items():
        assert rows[name][-3] == f"{share:.2f}%" and rows[name][-2] == f"~{share * 2_000_000_000:,.0f}"
        assert config["sources"][name]["max_epochs"] == epochs
        passes = share / 100 * config["total_tokens"] / config["sources"][name]["tokens"]
        assert float(rows[name][-1]) == pytest.approx(passes, abs=0.005) and passes <= epochs
    assert "max_epochs" not in out  # no source stops before the mixture ends
    # 200 B of two bytes; of the two large sources 200 B and 156 B are kept until then, of the others all: 457.5 B.
    assert "disk: ~400.0 GB for the mixture, and ~915.0 GB for its sources until it is complete; " in out


def test_in_small_the_shares_are_llamas_to_a_tenth_of_a_point(tiny_tokenizer, config, command, tmp_path):
    """As in the paper, each source has as many tokens as make its passes. A token is a byte."""
    total = 400_000
    small = {**config, "tokenizer": tiny_tokenizer.name_or_path, "total_tokens": total, "shuffle_buffer": 1000}
    for (name, (share, epochs)), module in zip(PAPER.items(), FILES, strict=True):
        lines, documents, tokens = itertools.cycle(textwrap.wrap(inspect.getsource(module), 200)), [], 0
        while tokens < share / 100 * total / epochs:
            documents.append({"text": next(lines)})
            tokens += len(documents[-1]["text"].encode()) + 1
        write_jsonl(tmp_path / f"{name}.jsonl", documents)
        small["sources"][name] = {"files": [str(tmp_path / f"{name}.jsonl")], "weight": share}
    small["output_dir"] = str(tmp_path / "tokens")
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(small))
    code, _, err = command(mix_corpus, "--config", str(tmp_path / "mix.yaml"))
    assert code == 0, err
    index = json.loads((tmp_path / "tokens" / "index.json").read_text())
    for name, (share, epochs) in PAPER.items():
        found = index["sources"][name]
        assert abs(100 * found["tokens"] / index["tokens"] - share) < 0.1, name
        assert found["passes"] == pytest.approx(epochs, rel=0.05), name
