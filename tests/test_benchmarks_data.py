"""The benchmark of data preparation, small: it makes its inputs, runs every part and writes its results."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json
from eval.benchmarks import data as data_speed

ROOT = Path(__file__).parents[1]
TURNS = [{"from": "human", "value": "what is it?"}, {"from": "gpt", "value": "it is what it is, and it is 猫"}]


@pytest.fixture
def conversations(tmp_path) -> Path:
    write_json(tmp_path / "chats.json", [{"id": str(number), "conversations": TURNS} for number in range(3)])
    return tmp_path / "chats.json"


def test_inputs_are_the_rows_over_and_over_with_new_ids(tmp_path):
    rows = [{"id": "a", "conversations": TURNS}, {"id": "b", "conversations": TURNS[:1]}]
    data_speed.write_conversations(rows, 3, tmp_path / "some.json")
    found = json.loads((tmp_path / "some.json").read_text())
    assert [(row["id"], len(row["conversations"])) for row in found] == [("0", 2), ("1", 1), ("2", 2)]
    data_speed.write_corpus(rows, 60, tmp_path / "corpus.jsonl")
    texts = [row["text"] for row in read_jsonl(tmp_path / "corpus.jsonl")]
    # 11, two line breaks, 28 and the cat's 3 bytes: 44; then 11; these 55 are not yet 60
    assert [len(text.encode()) for text in texts] == [44, 11, 44]
    assert data_speed.text_bytes(tmp_path / "corpus.jsonl") == 99


def speed(conversations: Path, *parts: str) -> tuple[dict[str, float], str]:
    """The metrics that the command writes of these parts, and what it prints."""
    sizes = ["--conversations", "20", "--corpus_bytes", "30000", "--large_bytes", "30000", "--vocab_size", "280"]
    command = [sys.executable, "-m", "eval.speed", "data", "--data", conversations, *sizes, "--part", *parts]
    command += ["--repeats", "2", "--results_dir", conversations.parent]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    results = json.loads((conversations.parent / "speed_data.json").read_text())
    metrics = results["metrics"]
    assert results["settings"]["large_bytes"] == 30_000  # what the names of the metrics do not say
    assert {name: len(values) for name, values in results["runs"].items()} == dict.fromkeys(metrics, 2)
    assert all(value > 0 for value in metrics.values()) and all(name in done.stdout for name in metrics)
    return metrics, done.stdout


@pytest.mark.slow
def test_corpora_are_measured_and_the_metrics_written_down(conversations):
    metrics, printed = speed(conversations, "shards", "large", "bpe")
    assert list(metrics) == [
        "text to shards over encode_batch", "peak memory of text to shards", "BPE training over a bare call",
    ]  # fmt: skip
    assert "0.0 MB of text: " in printed and "BPE of 280 entries: " in printed


@pytest.mark.slow
def test_conversations_are_measured_and_the_metrics_written_down(conversations):
    metrics, printed = speed(conversations, "conversations", "memory")
    assert list(metrics) == [
        "conversations ready", "their peak memory", "peak memory of ten times as many", "over the first",
    ]  # fmt: skip
    assert "20 conversations: " in printed and "200 conversations: " in printed


def test_data_that_are_no_conversations_are_refused(tmp_path):
    write_json(tmp_path / "a.json", [{"text": "a"}])
    arguments = data_speed.argparse.Namespace(data=tmp_path / "a.json", part=data_speed.PARTS, repeats=1)
    with pytest.raises(InputError, match="expected a list of {'id', 'conversations'}"):
        data_speed.run(arguments)
