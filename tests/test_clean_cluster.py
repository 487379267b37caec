"""A corpus cleaned by two tasks of datatrove: the documents that clean_corpus keeps, tokens that pretraining reads."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

pytest.importorskip("datatrove", reason="needs datatrove: pip install -e '.[datatrove]'")

from data_prep import clean_cluster, clean_corpus
from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.corpus import datatrove_blocks
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


def test_two_tasks_keep_the_fields_that_one_command_keeps(command, tmp_path):
    rows = [{"text": text(0), "file": "a.md", "page": 2}, {"text": text(1), "source": "wiki", "number": 9}]
    more = [{"text": text(2), "prompt": "a", "response": "b"}, {"text": text(3), "url": "http://a", "note": "\ud800"}]
    write_jsonl(tmp_path / "a.jsonl", rows)
    write_jsonl(tmp_path / "b.jsonl", more)
    given = ("--corpus", tmp_path / "a.jsonl", tmp_path / "b.jsonl")
    code, _, err = command(clean_corpus, *given, "--num_workers", 1, "--output_dir", tmp_path / "one")
    assert code == 0, err
    code, out, err = command(clean_cluster, *given, "--tasks", 2, "--output_dir", tmp_path / "two")
    assert code == 0, err
    places = [{"source": str(tmp_path / name), "row": row} for name in ("a.jsonl", "b.jsonl") for row in (1, 2)]
    found = kept(tmp_path / "two", "documents/*.jsonl")
    assert found == kept(tmp_path / "one", "documents.jsonl") and found == [
        {"text": text(0), **places[0], "file": "a.md", "page": 2},
        {"text": text(1), **places[1], "number": 9},
        {"text": text(2), **places[2]},
        {"text": text(3), **places[3], "url": "http://a", "note": "\ud800"},
    ]
    said = "fields replaced by the text, and the file and row that it comes from: source (1 row)"
    assert f"{tmp_path}/a.jsonl: {said}\n" in out
    assert (
        f"{tmp_path}/b.jsonl: fields left out, with which a row is no document but a conversation or a preference: "
        in out
    )


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


def test_where_nothing_is_left_the_output_is_empty_and_has_no_tokens(tiny_tokenizer, command, tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": "tiny"}])
    given = ("--corpus", tmp_path / "a.jsonl", "--tokenizer", tiny_tokenizer.name_or_path)
    code, out, err = command(clean_cluster, *given, "--output_dir", tmp_path / "out")
    assert code == 0, err
    assert (
        f"2 documents in, 0 out; they are in {tmp_path}/out/documents\nno document is left: there are no tokens\n"
        in out
    )
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["documents", "report.json"]
    assert (tmp_path / "out" / "documents" / "00000.jsonl").read_text() == ""
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["documents_out"] == report["bytes_out"] == 0 and report["filtered"]["too short"]["documents"] == 2
    assert not (tmp_path / ".out.unfinished").exists()


def test_a_second_run_in_the_same_output_is_refused_while_the_first_works(corpus, command, tmp_path, monkeypatch):
    given, sign, refused = ("--corpus", *corpus, "--output_dir", tmp_path / "out"), datatrove_blocks.Sign.run, []

    def signing(self, data, rank=0, world_size=1):
        refused.append(command(clean_cluster, *given))
        return sign(self, data, rank, world_size)

    monkeypatch.setattr(datatrove_blocks.Sign, "run", signing)
    code, _, err = command(clean_cluster, *given)
    ((second, _, said),) = refused
    assert second == 1 and f"error: {tmp_path}/.out.unfinished: another run is working there; wait for it" in said
    assert code == 0 and len(kept(tmp_path / "out", "documents/*.jsonl")) == 18, err
    assert not (tmp_path / ".out.unfinished").exists()


def test_a_task_that_failed_runs_again_and_no_other(corpus, tiny_tokenizer, command, tmp_path, monkeypatch):
    """The second of two tasks fails in the first step; then the first in the last, between its two files."""
    given = ("--corpus", *corpus)
    code, _, err = command(clean_corpus, *given, "--num_workers", 1, "--output_dir", tmp_path / "one")
    assert code == 0, err
    given += ("--tasks", 2, "--tokenizer", tiny_tokenizer.name_or_path, "--output_dir", tmp_path / "two")
    done, sign, write = [], datatrove_blocks.Sign.run, datatrove_blocks.write_jsonl

    def signing(self, data, rank=0, world_size=1):
        if rank == 1 and 1 not in done:
            done.append(rank)
            raise MemoryError("task 1")
        done.append(rank)
        return sign(self, data, rank, world_size)

    def writing(path, rows):
        if path.name == "00002.jsonl" and "write" not in done:
            done.append("write")
            raise MemoryError("task 0")
        done.append(path.name)
        write(path, rows)

    monkeypatch.setattr(datatrove_blocks.Sign, "run", signing)
    monkeypatch.setattr(datatrove_blocks, "write_jsonl", writing)
    for failed in ("task 1", "task 0"):
        with pytest.raises(MemoryError, match=failed):
            command(clean_cluster, *given)
        assert not (tmp_path / "two").exists()
    code, _, err = command(clean_cluster, *given)
    assert code == 0, err
    assert done == [0, 1, 1, "00000.jsonl", "write", "00002.jsonl", "00001.jsonl"]
    documents = [tmp_path / "one" / "documents.jsonl"]
    assert kept(tmp_path / "two", "documents/*.jsonl") == kept(tmp_path / "one", "documents.jsonl")
    ids = encoded_documents(documents, tiny_tokenizer.name_or_path)
    tokens = TokenShards(tmp_path / "two" / "tokens")
    assert tokens[:].tolist() == [each for document in ids for each in document.tolist()]
    reports = [json.loads((tmp_path / name / "report.json").read_text()) for name in ("one", "two")]
    assert reports[0]["documents_out"] == reports[1]["documents_out"] == 18


class Warned:
    """An executor that, as datatrove's for Ray, does no more than warn of tasks that failed."""

    logging_dir = Namespace(path="logs/filter")

    def run(self) -> None:
        pass

    def get_incomplete_ranks(self) -> list[int]:
        return [1, 3]


def test_tasks_that_failed_under_ray_are_named_and_nothing_waits_for_them():
    with pytest.raises(InputError, match="logs/filter: tasks 1, 3 failed: look at the logs there"):
        clean_cluster.run_in_order([Warned(), None])


def test_rays_executor_is_built(tmp_path):
    arguments = Namespace(work=tmp_path, executor="ray", workers=4, memory_gb=3)
    executor = clean_cluster.executor_of(arguments)([lambda data, rank, tasks: None], "filter", 7, None)
    assert (executor.tasks, executor.workers, executor.mem_per_cpu_gb, executor.depends) == (7, 4, 3, None)
    assert executor.logging_dir.path == f"{tmp_path}/logs/filter"


def stand_in(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{script}")
    (folder / name).chmod(0o755)


SLURM = ("--executor", "slurm", "--slurm_partition", "cpu", "--tasks", 2, "--workers", 2, "--memory_gb", 3)


def test_what_slurm_is_given(corpus, command, tmp_path, monkeypatch):
    """`sbatch` is a stand-in that keeps what it is given, and answers as Slurm does."""
    line = 'n=$(ls {0} | wc -l); echo "$@" > {0}/$n.arguments; cat "${{@: -1}}" > {0}/$n.script; '
    line += 'echo "Submitted batch job $((100 + n / 2))"'
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    stand_in(tmp_path / "bin", "sbatch", line.format(jobs))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    code, out, err = command(clean_cluster, "--corpus", *corpus, *SLURM, "--output_dir", tmp_path / "out")
    assert code == 0 and f"submitted; {tmp_path / 'out'} appears when the last job, clean-report, has ended" in out, (
        err
    )
    numbers = sorted({int(path.stem) for path in jobs.iterdir()})
    scripts = [(jobs / f"{number}.script").read_text() for number in numbers]
    arguments = [(jobs / f"{number}.arguments").read_text() for number in numbers]
    steps = [place for place, script in enumerate(scripts) if "launch_pickled_pipeline" in script]
    names = [re.search("--job-name=(.*)", scripts[place])[1] for place in steps]
    assert names == ["clean-filter", "clean-compare", "clean-write", "clean-report"]
    arrays = [re.search("--array=(.*)", scripts[place])[1] for place in steps]
    assert arrays == ["0-1%2", "0-0%2", "0-1%2", "0-0%2"]
    # each waits for the one before it: jobs are numbered from 100, and every second one adds up datatrove's counts
    waits = [re.search(r"--dependency=(\S+)", arguments[place]) for place in steps]
    assert [wait and wait[1] for wait in waits] == [None, "afterok:100", "afterok:102", "afterok:104"]
    first = scripts[steps[0]]
    assert "--partition=cpu\n" in first and "--mem-per-cpu=3G\n" in first and "--time=24:00:00\n" in first
    assert "--qos" not in first and f"export PATH={Path(sys.executable).parent}:$PATH\n" in first
    assert re.search(r"^srun +-l -n 1 launch_pickled_pipeline \S+/logs/filter/executor.pik$", first, flags=re.M)


@pytest.mark.slow
def test_slurms_jobs_keep_what_one_command_keeps(corpus, command, tmp_path, monkeypatch):
    """`sbatch` is a stand-in that runs each task of the array at once, one after the other."""
    bin = tmp_path / "bin"
    run = """script="${@: -1}"
    last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
    for task in $(seq 0 "$last"); do
        SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here bash "$script" >&2 || exit 1
    done
    echo "Submitted batch job 7"
    """
    stand_in(bin, "sbatch", run)
    stand_in(bin, "srun", 'shift 3; exec "$@"')
    stand_in(bin, "scontrol", "echo here")
    monkeypatch.setenv("PATH", f"{bin}{os.pathsep}/usr/bin{os.pathsep}/bin")  # not where this Python is
    code, _, err = command(clean_cluster, "--corpus", *corpus, *SLURM, "--output_dir", tmp_path / "two")
    assert code == 0, err
    code, _, err = command(clean_corpus, "--corpus", *corpus, "--num_workers", 1, "--output_dir", tmp_path / "one")
    assert code == 0, err
    assert kept(tmp_path / "two", "documents/*.jsonl") == kept(tmp_path / "one", "documents.jsonl")


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_documents(corpus, command, tmp_path):
    write_jsonl(corpus[2], [{"text": text(number, 400)} for number in range(1000, 3000)])
    given = ["--corpus", *corpus, "--tasks", "3", "--output_dir"]
    line = [sys.executable, "-m", "data_prep.clean_cluster", *given, str(tmp_path / "killed")]
    process = subprocess.Popen(line, start_new_session=True)
    work = tmp_path / ".killed.unfinished"
    while not (work / "logs" / "filter" / "completions" / "00000").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)  # datatrove's own process too, which would stay for ever
    process.wait()
    assert not (tmp_path / "killed").exists()
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "already completed" in done.stderr
    code, _, err = command(clean_cluster, *given, tmp_path / "whole")
    assert code == 0, err
    assert kept(tmp_path / "killed", "documents/*.jsonl") == kept(tmp_path / "whole", "documents/*.jsonl")
