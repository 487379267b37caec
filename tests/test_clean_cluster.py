"""A corpus cleaned by two tasks of datatrove: the documents that clean_corpus keeps, tokens that pretraining reads."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="needs datatrove: pip install -e '.[datatrove]'")

from data_prep import clean_cluster, clean_corpus
from data_prep.common.files import write_jsonl
from data_prep.tokens.corpus_tokens import encoded_documents
from data_prep.tokens.shards import TokenShards


def text(seed: int, words: int = 60) -> str:
    rng = random.Random(seed)
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5)) for _ in range(words))


@pytest.fixture
def corpus(tmp_path) -> list[str]:
    """Three files with bad documents, and duplicates within a file and across files, of both kinds."""
    rows = [[text(number) for number in range(first, first + 6)] for first in (0, 10, 20)]
    rows[0] += ["short", text(0), ""]
    rows[1] += [text(3), text(11) + " more", text(12, 30) + " #" * 30]
    rows[2] += [text(4) + " more", text(21), text(4) + " more"]
    names = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for name, texts in zip(names, rows, strict=True):
        write_jsonl(name, [{"text": each} for each in texts])
    return list(map(str, names))


def kept(folder: Path, pattern: str) -> list[dict]:
    return [json.loads(line) for path in sorted(folder.glob(pattern)) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("threshold", ["0.8", "1"])
def test_two_tasks_keep_what_one_command_keeps(corpus, tiny_tokenizer, command, tmp_path, threshold):
    given = ("--corpus", *corpus, "--threshold", threshold)
    code, _, err = command(clean_corpus, *given, "--num_workers", 1, "--output_dir", tmp_path / "one")
    assert code == 0, err
    more = ("--tasks", 2, "--tokenizer", tiny_tokenizer.name_or_path, "--output_dir", tmp_path / "two")
    code, out, err = command(clean_cluster, *given, *more)
    assert code == 0, err
    one = kept(tmp_path / "one", "documents.jsonl")
    assert kept(tmp_path / "two", "documents/*.jsonl") == one and len(one) == (18 if threshold == "0.8" else 20)
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    for key in ("documents_in", "bytes_in", "documents_out", "bytes_out"):
        assert reports[0][key] == reports[1][key]
    counts = [
        {kind: (removed["documents"], removed["bytes"]) for kind, removed in report["filtered"].items()}
        for report in reports
    ]
    assert counts[0] == counts[1] and counts[0]["exact duplicate"][0] == 4 - (threshold == "0.8")
    assert f"{corpus[0]}: 1 document without text left out" in out
    shards = TokenShards(tmp_path / "two" / "tokens")
    ids = encoded_documents([tmp_path / "one" / "documents.jsonl"], tiny_tokenizer.name_or_path)
    assert shards[:].tolist() == [each for document in ids for each in document.tolist()]
    shards.check_tokenizer(tiny_tokenizer.name_or_path, len(tiny_tokenizer))
    assert not list(tmp_path.glob(".two*"))


def test_a_run_with_other_settings_and_bad_rows_are_one_line(corpus, command, tmp_path):
    with open(corpus[1], "a") as file:
        file.write("no json\n")
    given = ("--corpus", *corpus, "--output_dir", tmp_path / "out")
    code, _, err = command(clean_cluster, *given)
    assert code == 1 and "b.jsonl" in err and "error:" in err
    code, _, err = command(clean_cluster, *given, "--threshold", "0.9")
    assert code == 1 and "left by a run with other files or settings" in err
    code, _, err = command(clean_cluster, *given, "--executor", "slurm")
    assert code == 1 and "--executor slurm: expected --slurm_partition" in err


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_documents(corpus, command, tmp_path):
    write_jsonl(corpus[2], [{"text": text(number, 400)} for number in range(1000, 3000)])
    given = ["--corpus", *corpus, "--tasks", "3", "--output_dir"]
    line = [sys.executable, "-m", "data_prep.clean_cluster", *given, str(tmp_path / "killed")]
    process = subprocess.Popen(line)
    work = tmp_path / ".killed.unfinished"
    while not (work / "logs" / "filter" / "completions" / "00000").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed").exists()
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "already completed" in done.stderr
    code, _, err = command(clean_cluster, *given, tmp_path / "whole")
    assert code == 0, err
    assert kept(tmp_path / "killed", "documents/*.jsonl") == kept(tmp_path / "whole", "documents/*.jsonl")
