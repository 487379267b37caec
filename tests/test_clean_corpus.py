"""The filters of a corpus, each on both sides of its threshold, and the command."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from datetime import date

import psutil
import pyarrow.parquet
import pytest

from data_prep import ask_documents, clean_corpus
from data_prep.common.batches import batched_by_length
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import write_json, write_jsonl
from data_prep.corpus import near_duplicates, rules
from data_prep.corpus.decontamination import EvaluationTexts
from data_prep.corpus.quality import quality_reason, repeated_characters
from data_prep.corpus.text_units import units
from data_prep.readers.documents import read_documents


def words(count: int, seed: int = 0) -> list[str]:
    """Different words of five letters."""
    rng = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=5))] = None
    return list(found)


def filtered_by(text: str, language: str = "de") -> str | None:
    found = quality_reason(text, language)
    return found and found.filter


def test_units_are_words_and_the_characters_of_scripts_without_blanks():
    assert units("the cat, 猫は x2") == ["the", "cat,", "猫", "は", "x2"]


def test_length():
    assert filtered_by(" ".join(words(49))) == "too short"
    assert filtered_by(" ".join(words(50))) is None
    assert quality_reason(" ".join(words(50)), "de", most=49).filter == "too long"


def test_two_chinese_characters_are_a_word():
    text = "".join(chr(0x4E00 + number) for number in range(100))
    assert filtered_by(text) is None
    assert quality_reason(text[:99], "zh") == ("too short", "49.5 words, at least 50 wanted")


@pytest.mark.parametrize("symbol", ["#", "...", "…"])
def test_symbols_a_word(symbol):
    # 60 words: 6 symbols are a tenth of them, and 7 are more
    plain = words(60)
    for count, expected in ((6, None), (7, "symbols")):
        text = " ".join(word + symbol if number < count else word for number, word in enumerate(plain))
        assert filtered_by(text) == expected


@pytest.mark.parametrize(
    ("bullet", "end", "most", "name"), [("- ", "", 18, "bullet lines"), ("", " …", 6, "unfinished lines")]
)
def test_bullets_and_unfinished_lines(bullet, end, most, name):
    lines = [" ".join(words(20, seed)) for seed in range(20)]
    for count, expected in ((most, None), (most + 1, name)):
        marked = [f"{bullet}{line}{end}" if number < count else line for number, line in enumerate(lines)]
        assert filtered_by("\n".join(marked)) == expected


def test_words_without_letters():
    numbers = [str(1000 + number) for number in range(21)]
    assert filtered_by(" ".join(words(80) + numbers[:20])) is None
    assert filtered_by(" ".join(words(80) + numbers)) == "few letters"


def test_word_length():
    assert filtered_by(" ".join(word[:3] for word in words(200)[:60])) is None
    assert filtered_by(" ".join(word[:2] for word in words(60))) == "word length"
    assert (
        filtered_by(" ".join(a + b for a, b in zip(words(60), words(60, 1), strict=True))) is None
    )  # 10 letters each
    assert filtered_by(" ".join(a + b for a, b in zip(words(60), words(60, 1), strict=True)) + "a") == "word length"


def test_english_has_stop_words():
    assert filtered_by(" ".join([*words(60), "The"]), "en") == "no stop words"
    assert filtered_by(" ".join([*words(60), "The", "of"]), "en") is None
    assert filtered_by(" ".join(words(60)), "de") is None


def test_repeated_lines_and_paragraphs():
    different = [" ".join(words(30, seed)) for seed in range(10)]
    for between in ("\n", "\n\n"):
        assert filtered_by(between.join([*different, "stop"] + ["stop"] * 4)) is None  # 4 of 15 repeat an earlier one
        assert filtered_by(between.join([*different, "stop"] + ["stop"] * 5)) == "repetition"  # 5 of 16
    lines = [" ".join(words(4, seed)) for seed in range(20)]  # of 23 characters; backwards, no longer run repeats
    assert filtered_by("\n".join([*lines, *lines[4::-1]])) is None  # 5 × 23 of 25 × 24 - 1 characters: 0.19
    found = quality_reason("\n".join([*lines, *lines[5::-1]]), "de")  # 6 × 23 of 26 × 24 - 1: 0.22
    assert found == ("repetition", "0.22 of characters in lines repeat earlier ones, at most 0.20 wanted")


def test_the_most_frequent_ngrams():
    # 180 words and their blanks are 1,079 characters; "alpha beta" has 10, and 11 with its blank
    def text(count: int) -> str:
        return " ".join(word + " alpha beta" * (number < count) for number, word in enumerate(words(180)))

    assert len(text(27)) == 1079 + 27 * 11 == 1376 and 270 / 1376 < 0.20 < 280 / 1387
    assert filtered_by(text(27)) is None
    found = quality_reason(text(28), "de")
    assert found.measured == "0.20 of characters in the 2-gram 'alpha beta', at most 0.20 wanted"


def test_repeated_ngrams_count_each_character_once():
    # the run a b c d e stands three times: the second and the third repeat it, five letters each
    assert repeated_characters(list("abcdexabcdeyabcde"), 5) == 10
    assert repeated_characters(list("abcdefghij"), 5) == 0
    # a a a a a a: from the second place on everything was seen; of overlapping runs one counts
    assert repeated_characters(list("aaaaaaaaaaa"), 5) == 10
    base = words(100)
    assert filtered_by(" ".join(base + base[:12])) is None  # 60 of 671 characters in repeated 10-grams = 0.09
    assert filtered_by(" ".join(base + base[:24])) == "repetition"  # 100 of 743 = 0.13 in 10-grams


# Decontamination


def test_a_run_of_thirteen_words_is_found_whatever_its_case_and_punctuation(tmp_path):
    question = words(20)
    write_json(tmp_path / "eval.json", [{"prompt": " ".join(question), "choices": [{"text": "yes no"}]}])
    texts = EvaluationTexts([str(tmp_path / "eval.json")])
    assert (texts.texts, texts.short) == (2, 1)
    run = [word.upper() + "," for word in question[3:16]]
    assert texts.shared_run(" ".join(["before", *run, "after"])) == " ".join(question[3:16])
    assert texts.shared_run(" ".join(["before", *run[:12], "after"])) is None


def test_a_short_evaluation_text_is_looked_for_as_a_whole(tmp_path):
    (tmp_path / "eval.txt").write_text("one two three four five six seven eight\n")
    texts = EvaluationTexts([str(tmp_path / "eval.txt")])
    assert texts.shared_run("Zero one two three four five six seven eight nine") is not None
    assert texts.shared_run("one two three four five six seven nine") is None
    (tmp_path / "eval.txt").write_text("one two three four five six seven\n")
    with pytest.raises(InputError, match="no text of 8 words or more"):
        EvaluationTexts([str(tmp_path / "eval.txt")])


def test_chinese_is_looked_for_by_twenty_six_characters(tmp_path):
    question = "".join(chr(0x4E00 + number) for number in range(40))
    write_jsonl(tmp_path / "eval.jsonl", [{"q": question}])
    texts = EvaluationTexts([str(tmp_path / "eval.jsonl")])
    assert texts.shared_run("好" + question[5:31] + "好") == question[5:31]
    assert texts.shared_run("好" + question[5:30] + "好") is None


# The command


def test_what_each_filter_removed_is_counted_and_shown(tmp_path, monkeypatch, capsys):
    good = [" ".join(words(60, seed)) for seed in range(4)]
    evaluation = " ".join(words(20, 99))
    texts = [
        good[0],
        "short",
        good[1],
        good[0],  # an exact duplicate
        good[1] + " more",  # a near-duplicate
        f"{good[2]} {evaluation}",
        f"{good[3]} {'#' * 7}",
        "",
    ]
    write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    write_jsonl(tmp_path / "eval.jsonl", [{"question": evaluation}])
    command = ["clean_corpus", "--corpus", tmp_path / "a.jsonl", "--evaluation", tmp_path / "eval.jsonl"]
    command += ["--output_dir", tmp_path / "clean"]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    monkeypatch.setattr(rules, "language", lambda text: "de")
    clean_corpus.main()

    rows = [json.loads(line) for line in (tmp_path / "clean" / "documents.jsonl").read_text().splitlines()]
    assert [(row["text"], row["row"]) for row in rows] == [(good[0], 1), (good[1], 3)]
    report = json.loads((tmp_path / "clean" / "report.json").read_text())
    assert {name: removed["documents"] for name, removed in report["filtered"].items()} == {
        "too short": 1, "evaluation text": 1, "symbols": 1, "exact duplicate": 1, "near-duplicate": 1,
    }  # fmt: skip
    assert (report["documents_in"], report["documents_out"]) == (7, 2)
    assert report["bytes_in"] == sum(map(len, texts)) and report["bytes_out"] == len(good[0]) + len(good[1])
    assert report["filtered"]["too short"]["bytes"] == len("short")
    (example,) = report["filtered"]["near-duplicate"]["examples"]
    assert example["row"] == 5 and example["source"] == str(tmp_path / "a.jsonl")
    assert sorted(path.name for path in (tmp_path / "clean").iterdir()) == [
        "documents.jsonl", "report.json", "report.txt",
    ]  # fmt: skip
    out = capsys.readouterr().out
    assert "1 document without text left out" in out and "7 documents in = 2 out + 5 filtered" in out
    assert (
        f"{tmp_path / 'a.jsonl'}, row 2: 1 words, at least 50 wanted: short"
        in (tmp_path / "clean" / "report.txt").read_text()
    )


def test_a_document_keeps_the_fields_of_its_row(tmp_path, command):
    rows = [
        {"text": "one", "file": "a/guide.pdf", "page": 3, "url": "http://a", "meta": {"tags": ["x", None]}},
        {"text": "two", "source": "wiki", "row": 7, "id": "t", "note": "\ud800"},
        {"text": "three", "messages": [{"role": "user", "content": "hi"}], "prompt": "hi", "lang": "en"},
        {"text": "four", "prompt": "about what? alone it makes no conversation"},
        {"text": "five", "source": None},
        {"messages": [{"role": "user", "content": "six"}, {"role": "assistant", "content": "yes"}], "url": "http://b"},
        {"text": "seven", "deep": json.loads("[" * 600 + "]" * 600)},
    ]
    write_jsonl(tmp_path / "a.jsonl", rows)
    given = ("--corpus", tmp_path / "a.jsonl", "--quality", "none", "--num_workers", 1)
    code, out, err = command(clean_corpus, *given, "--output_dir", tmp_path / "clean")
    assert code == 0, err
    found = [json.loads(line) for line in (tmp_path / "clean" / "documents.jsonl").read_text().splitlines()]
    places = [{"source": str(tmp_path / "a.jsonl"), "row": number} for number in range(1, 8)]
    assert found == [
        {
            "text": "one",
            **places[0],
            "file": "a/guide.pdf",
            "page": 3,
            "url": "http://a",
            "meta": {"tags": ["x", None]},
        },
        {"text": "two", **places[1], "id": "t", "note": "\ud800"},
        {"text": "three", **places[2], "lang": "en"},
        {"text": "four", **places[3], "prompt": "about what? alone it makes no conversation"},
        {"text": "five", **places[4]},
        {"text": "six\n\nyes", **places[5], "url": "http://b"},
        {"text": "seven", **places[6], "deep": rows[6]["deep"]},
    ]
    lines = [
        "fields replaced by the text, and the file and row that it comes from: row (1 row), source (1 row)",
        "fields left out, with which a row is no document but a conversation or a preference: messages (1 row), prompt (1 row)",
    ]
    assert out.splitlines()[:2] == lines
    assert json.loads((tmp_path / "clean" / "report.json").read_text())["reading"] == lines
    write_jsonl(tmp_path / "b.jsonl", [{"content": "one", "text": "a title", "file": "b.md"}])
    given = ("--corpus", tmp_path / "b.jsonl", "--quality", "none", "--text_column", "content")
    code, out, err = command(clean_corpus, *given, "--num_workers", 1, "--output_dir", tmp_path / "other")
    assert code == 0 and out.startswith(
        "fields replaced by the text, and the file and row that it comes from: text (1 row)\n"
    )
    (row,) = map(json.loads, (tmp_path / "other" / "documents.jsonl").read_text().splitlines())
    assert row == {"text": "one", "source": str(tmp_path / "b.jsonl"), "row": 1, "file": "b.md"}


def test_columns_of_parquet_that_json_does_not_know_are_written_and_counted(tmp_path, command):
    table = {"text": ["one", "two"], "day": [date(2024, 5, 1)] * 2, "score": [float("nan"), 0.5]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    given = ("--corpus", tmp_path / "a.parquet", "--quality", "none", "--num_workers", 1)
    code, out, err = command(clean_corpus, *given, "--output_dir", tmp_path / "clean")
    assert code == 0, err
    found = [json.loads(line) for line in (tmp_path / "clean" / "documents.jsonl").read_text().splitlines()]
    assert [(row["day"], row["score"]) for row in found] == [("2024-05-01", None), ("2024-05-01", 0.5)]
    assert "written as text, which JSON has no other form for: day (2 rows)\n" in out
    assert "written as null, which was NaN or Infinity: score (1 row)\n" in out


def test_after_cleaning_a_document_is_still_held_out_whole(tmp_path, command):
    rows = [
        {"text": f"# Part {part} of {file}\n\nIt has the number {part}{file}.", "file": f"{file}.md"}
        for file in range(40)
        for part in range(2)
    ]
    write_jsonl(tmp_path / "documents.jsonl", rows)
    given = ("--corpus", tmp_path / "documents.jsonl", "--quality", "none", "--threshold", 1, "--num_workers", 1)
    code, _, err = command(clean_corpus, *given, "--output_dir", tmp_path / "clean")
    assert code == 0, err
    outputs = [tmp_path / "out.json", tmp_path / "held.json"]
    options = ("--output", outputs[0], "--heldout", outputs[1], "--heldout_fraction", 0.25)
    code, _, err = command(ask_documents, tmp_path / "clean" / "documents.jsonl", *options)
    assert code == 0, err
    trained, held = ({row["source"]["file"] for row in json.loads(path.read_text())} for path in outputs)
    assert trained and held and not trained & held and trained | held == {f"{file}.md" for file in range(40)}


def test_exact_duplicates_alone_at_a_threshold_of_one(tmp_path, monkeypatch):
    text = " ".join(words(60))
    write_jsonl(tmp_path / "a.jsonl", [{"text": text}, {"text": text + " more"}, {"text": text}])
    command = f"clean_corpus --corpus {tmp_path}/a.jsonl --threshold 1 --quality none --output_dir {tmp_path}/clean"
    monkeypatch.setattr(sys, "argv", command.split())
    clean_corpus.main()
    assert len((tmp_path / "clean" / "documents.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--threshold 0", "--threshold 0.0: expected more than 0 and at most 1"),
        ("--evaluation none.json", "none.json: no such file or folder"),
        ("--languages en", "languages are detected by script only"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(tmp_path, monkeypatch, capsys, more, message):
    write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}])
    monkeypatch.setattr(rules, "method", lambda: "script only: pip install -e '.[data]' detects languages")
    monkeypatch.setattr(sys, "argv", f"clean_corpus --corpus {tmp_path} --output_dir {tmp_path}/clean {more}".split())
    with pytest.raises(SystemExit, match="1"):
        run_main(clean_corpus.main)
    assert message in capsys.readouterr().err and not (tmp_path / "clean").exists()


def test_bad_rows_end_the_command_with_one_message(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"txt": 1}\n')
    command = [sys.executable, "-m", "data_prep.clean_corpus", "--corpus", str(tmp_path), "--output_dir"]
    done = subprocess.run([*command, str(tmp_path / "clean")], capture_output=True, text=True)
    assert done.returncode == 1 and "row 2, line 2" in done.stderr and "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


# Several processes, and runs that are killed


def documents_of(folder, count: int) -> None:
    """Documents of 200 words each: one in ten is too short, one in ten is a duplicate, one a near-duplicate."""
    vocabulary, rng = words(5000), random.Random(0)
    texts: list[str] = []
    for number in range(count):
        text = " ".join(rng.choices(vocabulary, k=200))
        texts.append(
            {3: "short", 5: texts[-1] if texts else "", 7: f"{texts[-1] if texts else ''} more"}.get(number % 10, text)
        )
    write_jsonl(folder / "a.jsonl", [{"text": text} for text in texts])


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def clean(folder, monkeypatch, workers: int, *more: str) -> dict[str, bytes]:
    command = [
        "clean_corpus",
        "--corpus",
        folder / "a.jsonl",
        "--output_dir",
        folder / "clean",
        "--num_workers",
        workers,
    ]
    monkeypatch.setattr(sys, "argv", [*map(str, command), *more])
    clean_corpus.main()
    return content(folder / "clean")


def test_the_bytes_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    documents_of(tmp_path, 100)
    monkeypatch.setattr(clean_corpus, "BATCH_CHARACTERS", 10_000)  # 8 documents
    monkeypatch.setattr(near_duplicates, "BATCH_CHARACTERS", 10_000)
    alone = clean(tmp_path, monkeypatch, 1)
    (tmp_path / "clean").rename(tmp_path / "alone")
    assert clean(tmp_path, monkeypatch, 3) == alone
    report = json.loads(alone["report.json"])
    assert {name: removed["documents"] for name, removed in report["filtered"].items()} == {
        "too short": 10, "exact duplicate": 10, "near-duplicate": 10,
    }  # fmt: skip
    assert report["documents_out"] == len(alone["documents.jsonl"].splitlines()) == 70


def at_work(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended may wait a while for somebody to take note."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_bytes_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    documents_of(tmp_path, 3000)
    batches = len(list(batched_by_length(read_documents(tmp_path / "a.jsonl"), clean_corpus.BATCH_CHARACTERS)))
    undisturbed = clean(tmp_path, monkeypatch, 2)
    (tmp_path / "clean").rename(tmp_path / "undisturbed")
    command = [sys.executable, "-m", "data_prep.clean_corpus", "--corpus", tmp_path / "a.jsonl", "--output_dir"]
    command += [tmp_path / "clean", "--num_workers", 2]
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    journal = tmp_path / ".clean.unfinished" / "reasons.jsonl"
    while not (journal.exists() and b"\n" in journal.read_bytes()) and process.poll() is None:
        time.sleep(0.002)
    workers = psutil.Process(process.pid).children()
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it was done before it could be killed"
    assert len(workers) == 2
    end = time.monotonic() + 300
    while any(map(at_work, workers)) and time.monotonic() < end:
        time.sleep(0.1)
    assert not any(map(at_work, workers)), "workers live on without their parent"
    assert not (tmp_path / "clean").exists()
    with journal.open("ab") as file:
        file.write(b'[["too sh')  # the half of a line that a kill may leave
    known, judged, reasons = journal.read_bytes().count(b"\n"), [], clean_corpus.reasons
    monkeypatch.setattr(clean_corpus, "reasons", lambda *given: judged.append(1) or reasons(*given))
    assert clean(tmp_path, monkeypatch, 1) == undisturbed
    assert len(judged) == batches - known
    assert "documents were filtered by the interrupted run; resuming after them\n" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "clean", "undisturbed"]


def test_a_run_with_other_settings_starts_over(tmp_path, monkeypatch, capsys):
    documents_of(tmp_path, 20)
    real = clean_corpus.write_json

    def killed(path, *given):
        if path.name == "report.json":
            raise KeyboardInterrupt
        real(path, *given)

    monkeypatch.setattr(clean_corpus, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        clean(tmp_path, monkeypatch, 1)
    monkeypatch.setattr(clean_corpus, "write_json", real)
    rows = clean(tmp_path, monkeypatch, 1, "--min_words", "201")["documents.jsonl"].splitlines()
    assert "files or settings differ from those of the interrupted run: starting over" in capsys.readouterr().out
    assert len(rows) == 2, "those of 200 words and one more"


def test_a_worker_that_is_ended_from_outside_is_named(tmp_path, monkeypatch, capsys):
    documents_of(tmp_path, 20)
    monkeypatch.setattr(clean_corpus, "reasons", lost)
    with pytest.raises(SystemExit, match="1"):
        run_main(lambda: clean(tmp_path, monkeypatch, 2))
    assert "a worker process was killed, perhaps out of memory: " in capsys.readouterr().err
    assert (tmp_path / ".clean.unfinished").exists() and not (tmp_path / "clean").exists()
    monkeypatch.undo()
    assert clean(tmp_path, monkeypatch, 2)


def lost(*given) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
