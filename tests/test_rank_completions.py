"""Rank completions by each kind of rater; stop in the middle and resume."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.rank_completions import main, parts
from data_prep.ranking.journal import Journal
from data_prep.ranking.terminal import parse_order
from data_prep.readers.preferences import read_rankings

DRAWN = {"model": "runs/sft", "temperature": 1.0, "seed": 42}
REFERENCE = "Return a copy of the string."
ROWS = [
    {
        "id": "1",
        "prompt": [{"role": "user", "content": "What does str.copy do?"}],
        "completions": ["Return a copy  of the string.", "Return a copy of the strings.", "Something else", "zzz"],
        "counts": [1, 1, 1, 0],
        "reference": REFERENCE,
        "drawn": DRAWN,
    },
    {"id": "2", "prompt": "Is it?", "completions": ["yes"], "reference": "yes", "drawn": DRAWN},
    {"id": "3", "prompt": "Is it?", "completions": ["zzz", "qqq"], "reference": "yes", "drawn": DRAWN},
    {"id": "4", "prompt": "And now?", "completions": ["no", "yes", "yes, it is"], "reference": "yes", "drawn": DRAWN},
]
STAND_IN = "a stand-in for a human rater: agreement with the reference (exact, then chrF in steps of 25.0)"


@pytest.fixture
def completions(tmp_path) -> Path:
    return write(tmp_path / "completions.jsonl", ROWS)


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def command(**options) -> list[str]:
    given = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "data_prep.rank_completions", *given]


def rank(monkeypatch, **options) -> None:
    """The command in this process."""
    monkeypatch.setattr(sys, "argv", command(**options)[2:])
    main()


def without_time(rows: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "ranked_at"} for row in rows]


# By reference, a function, a reward model


def test_the_command_of_the_quickstart_ranks_by_the_reference(completions, tmp_path):
    output = tmp_path / "rankings.jsonl"
    done = subprocess.run(command(completions=completions, output=output), capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"ranked the answers to 2 of 4 prompts by {STAND_IN}: 8 pairs; left out: 1 with one answer, 1 with all answers "
        f"tied; the rankings are in {output}\n"
    )
    first, second = read(output)
    stamp = first.pop("ranked_at")
    assert stamp.endswith("+00:00") and len(stamp) == len("2026-01-31T12:00:00+00:00")
    # Blanks aside the first is the reference; one letter more is the step below; the others share less than a quarter.
    assert first == {
        **{key: ROWS[0][key] for key in ("id", "prompt", "completions", "counts", "drawn")},
        "ranks": [0, 1, 2, 2],
        "ranked_by": STAND_IN,
    }
    assert second["prompt"] == [{"role": "user", "content": "And now?"}] and second["ranks"] == [2, 0, 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["completions.jsonl", "rankings.jsonl"]
    assert [row["ranks"] for row in read_rankings(output)[0]] == [[0, 1, 2, 2], [2, 0, 1]]


def test_by_exact_match_all_others_tie(completions, tmp_path, monkeypatch):
    rank(monkeypatch, measure="exact_match", completions=completions, output=tmp_path / "r.jsonl")
    assert [row["ranks"] for row in read(tmp_path / "r.jsonl")] == [[0, 1, 1, 1], [1, 0, 1]]


def test_a_perfect_chrf_without_an_exact_match_comes_second(tmp_path, monkeypatch):
    """chrF leaves blanks out: "it is" and "itis" are the same to it. With a tie width of 100, zzz ties with it."""
    rows = [{"prompt": "Q", "completions": ["itis", " it  is\n", "zzz"], "reference": "it is"}]
    completions = write(tmp_path / "completions.jsonl", rows)
    rank(monkeypatch, completions=completions, output=tmp_path / "r.jsonl")
    assert read(tmp_path / "r.jsonl")[0]["ranks"] == [1, 0, 2]
    rank(monkeypatch, tie_width=100, completions=completions, output=tmp_path / "wide.jsonl")
    assert read(tmp_path / "wide.jsonl")[0]["ranks"] == [1, 0, 1]
    function = "data_prep.rewards.chrf"
    rank(monkeypatch, by="function", function=function, completions=completions, output=tmp_path / "chrf.jsonl")
    assert read(tmp_path / "chrf.jsonl")[0]["scores"] == pytest.approx([1, 1, 0], abs=1e-6)


FUNCTIONS = """
def brevity(prompts, completions, drawn, **columns):
    assert len(prompts) == len(completions) == len(drawn) and drawn[0]["model"] == "runs/sft"
    assert all(prompt[-1]["role"] == "user" for prompt in prompts)
    return [-len(completion[0]["content"]) for completion in completions]

def nothing(prompts, completions, **columns):
    return [float("nan")] * len(completions)

def too_few(prompts, completions, **columns):
    return [1.0]

def stops(prompts, completions, **columns):
    raise KeyboardInterrupt
"""


@pytest.fixture
def functions(tmp_path) -> Path:
    path = tmp_path / "functions.py"
    path.write_text(FUNCTIONS)
    return path


def test_by_a_function_the_scores_are_kept_as_margins(completions, functions, tmp_path, monkeypatch, capsys):
    output = tmp_path / "r.jsonl"
    rank(monkeypatch, by="function", function=f"{functions}:brevity", completions=completions, output=output)
    rows = read(output)
    assert [row["ranks"] for row in rows] == [[2, 2, 1, 0], [0, 1, 2]]
    assert [row["scores"] for row in rows] == [[-29, -29, -14, -3], [-2, -3, -10]]
    assert {row["ranked_by"] for row in rows} == {f"a stand-in for a human rater: the function {functions}:brevity"}
    assert "ranked the answers to 2 of 4 prompts" in capsys.readouterr().out
    assert [row["scores"] for row in read_rankings(output)[0]] == [[-29, -29, -14, -3], [-2, -3, -10]]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nothing", "found the score nan; expected finite numbers"),
        ("too_few", "1 rewards for 9 answers; expected one each"),
        ("absent", "no such function"),
    ],
)
def test_a_function_that_gives_no_scores_is_refused(completions, functions, tmp_path, monkeypatch, name, found):
    options = {"by": "function", "function": f"{functions}:{name}", "completions": completions}
    with pytest.raises(InputError, match=found):
        rank(monkeypatch, **options, output=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_by_a_reward_model(completions, long_is_good_dir, tiny_model_dir, tmp_path, monkeypatch):
    # Its reward rises with the length. Beside an answer stand three marks, the question and the end of turn, a letter is
    # a token: the first prompt with its longest answers is 55 of 64 tokens long.
    output = tmp_path / "r.jsonl"
    options = {"by": "reward_model", "completions": completions, "output": output}
    rank(monkeypatch, **options, reward_model=long_is_good_dir)
    rows = read(output)
    assert [row["ranks"] for row in rows] == [[0, 0, 1, 2], [2, 1, 0]]
    assert rows[0]["scores"][0] == rows[0]["scores"][1] > rows[0]["scores"][2] > rows[0]["scores"][3]
    assert rows[0]["ranked_by"] == f"the reward model {long_is_good_dir}"
    output.unlink()
    with pytest.raises(InputError, match=r"expected a reward model \(recipes/reward.py\), found"):
        rank(monkeypatch, **options, reward_model=tiny_model_dir)
    write(completions, [*ROWS, {"id": "5", "prompt": "Q", "completions": ["a", "b" * 60]}])
    with pytest.raises(
        InputError, match="row 5 of the completions: an answer has 65 tokens with its prompt, .* 64 pos"
    ):
        rank(monkeypatch, **options, reward_model=long_is_good_dir)


@given(st.lists(st.integers(0, 200), max_size=30))
def test_parts_hold_every_row_with_something_to_rank_once(sizes):
    found = parts([{"completions": ["a"] * size} for size in sizes])
    assert [index for part in found for index in part] == [index for index, size in enumerate(sizes) if size > 1]
    assert all(len(part) == 1 or sum(sizes[index] for index in part) <= 128 for part in found)


# By a person


def in_terminal(monkeypatch, lines: list[str], **options) -> None:
    typed = iter(lines)

    def answer(question: str) -> str:
        try:
            return next(typed)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)
    rank(monkeypatch, by="person", **{"rater": "Ada", "seed": 42, **options})


def shown(out: str) -> list[list[str]]:
    """The answers under each prompt, in the order in which they were shown."""
    return [
        [answer.split("\n")[1] for answer in screen.split("--- answer ")[1:]] for screen in out.split("=" * 72)[1:]
    ]


def test_a_person_ranks_without_knowing_whose_answers_they_are(completions, tmp_path, monkeypatch, capsys):
    output = tmp_path / "r.jsonl"
    in_terminal(monkeypatch, ["2>1=4>3", "2>1", "s"], completions=completions, output=output)
    out = capsys.readouterr().out
    first, second, third = shown(out)
    assert first != ROWS[0]["completions"] and sorted(first) == sorted(ROWS[0]["completions"])
    assert "runs/sft" not in out and "reference" not in out
    place = dict(zip(first, [1, 0, 2, 1], strict=True))
    rows = read(output)
    assert rows[0]["ranks"] == [place[text] for text in ROWS[0]["completions"]]
    assert rows[1]["id"] == "3" and rows[1]["ranks"] == ([0, 1] if second[1] == "zzz" else [1, 0])
    assert [(row["ranked_by"], row["rater"], row["drawn"]) for row in rows] == [("a person", "Ada", DRAWN)] * 2
    assert out.endswith(
        "ranked the answers to 2 of 4 prompts by a person: 6 pairs; left out: 1 with one answer, 1 skipped; "
        f"the rankings are in {output}\n"
    )


def test_a_person_stops_resumes_and_takes_back(completions, tmp_path, monkeypatch, capsys):
    output, journal = tmp_path / "r.jsonl", tmp_path / "r.jsonl.journal"
    options = {"completions": completions, "output": output}
    in_terminal(monkeypatch, ["u", "what?", "1>2>2>4", "1>2>3", "1>2>3>4", "q"], **options)
    out = capsys.readouterr().out
    assert "there is no ranking to take back" in out and "found 'what?'; expected a number from 1 to 4" in out
    assert "2 is there twice" in out and "4 missing: every answer needs a place" in out
    assert out.endswith(f"1 ranking kept in {journal}; the same command resumes\n") and not output.exists()
    # Another person goes on: takes back what the first one said, ranks it anew, and ends with the input.
    in_terminal(monkeypatch, ["u", "1=2=3=4", "1=2"], **options, rater="Bea")
    assert f"{journal}: 1 ranking of an earlier run; resuming after them" in capsys.readouterr().out
    in_terminal(monkeypatch, ["w"], **options)
    assert "left out: 1 with one answer, 1 not ranked; the rankings are" in capsys.readouterr().out
    rows = read(output)
    # Ties are what the person found: they are kept, and readers of rankings leave them out, with a count.
    assert [(row["id"], row["ranks"], row["rater"]) for row in rows] == [("1", [0] * 4, "Bea"), ("3", [0, 0], "Bea")]
    assert not journal.exists()


def test_control_characters_in_an_answer_do_not_reach_the_terminal(tmp_path, monkeypatch, capsys):
    rows = [{"prompt": "Q\x1b]0;title\x07", "completions": ["\x1b[2Jgone\r", "a\tb\n好\ud800"]}]
    options = {"completions": write(tmp_path / "c.jsonl", rows), "output": tmp_path / "r.jsonl"}
    in_terminal(monkeypatch, ["q"], **options)
    out = capsys.readouterr().out
    assert "\x1b" not in out and "\r" not in out and "\\x1b[2Jgone\\r" in out and "a\tb\n好\\ud800" in out
    assert "Q\\x1b]0;title\\x07" in out


def test_in_a_real_terminal(completions, tmp_path):
    output = tmp_path / "r.jsonl"
    ours, theirs = pty.openpty()
    options = {"by": "person", "rater": "Ada", "completions": completions, "output": output}
    process = subprocess.Popen(command(**options), stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.write(ours, b"1>2>3>4\n2>1\n3=2>1\n")
    text = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # Linux says so when the other side has closed
            break
        if not piece:
            break
        text += piece
    assert process.wait() == 0 and b"prompt 3 of 3" in text and len(read(output)) == 3
    os.close(ours)


ORDERS = [("2>1=3", [1, 0, 1]), (" 3 > 2 > 1 ", [2, 1, 0]), ("1=2=3", [0, 0, 0]), ("3=1>2", [0, 1, 0])]


@pytest.mark.parametrize(("text", "ranks"), ORDERS)
def test_orders_by_hand(text, ranks):
    assert parse_order(text, 3) == ranks


@pytest.mark.parametrize(
    "text", ["", ">", "1>2", "1>2>3>", "1>2>4", "0>1>2", "1 2 3", "1>2=2>3", "²>1>3", "１>2>3", "-1"]
)
def test_what_is_no_order_is_refused(text):
    with pytest.raises(ValueError, match="expected a number from 1 to 3|twice|missing"):
        parse_order(text, 3)


@given(st.permutations(range(1, 6)), st.lists(st.sampled_from(">="), min_size=4, max_size=4))
def test_an_order_read_is_the_order_written(numbers, signs):
    text = str(numbers[0]) + "".join(sign + str(number) for sign, number in zip(signs, numbers[1:], strict=True))
    ranks = parse_order(text, 5)
    for sign, left, right in zip(signs, numbers, numbers[1:], strict=False):
        assert ranks[right - 1] - ranks[left - 1] == (sign == ">")


# Stopped and resumed

MANY = [
    {
        "id": str(number),
        "prompt": f"Question {number}?",
        "completions": [f"yes {number}", "no", "y" * (number % 50 + 4)],
    }
    for number in range(200)
]
SLOW = """
import time

def brevity(prompts, completions, **columns):
    time.sleep(0.15)
    return [-len(completion[0]["content"]) for completion in completions]
"""


def test_a_killed_run_is_resumed_and_gives_the_same_file(tmp_path, monkeypatch, capsys):
    completions = write(tmp_path / "completions.jsonl", MANY)
    (tmp_path / "slow.py").write_text(SLOW)
    options = {"by": "function", "function": f"{tmp_path / 'slow.py'}:brevity", "completions": completions}
    whole, output = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    journal = tmp_path / "killed.jsonl.journal"
    rank(monkeypatch, **options, output=whole)
    process = subprocess.Popen(command(**options, output=output), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 43:  # the settings and the first part
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not output.exists()
    journal.write_bytes(journal.read_bytes()[:-20])  # as if it had been killed while it wrote the last line
    judged = journal.read_bytes().count(b"\n") - 1
    assert 0 < judged < 200
    capsys.readouterr()
    rank(monkeypatch, **options, output=output)
    out = capsys.readouterr().out
    assert "dropped its last line, which was only half written" in out
    assert f"{judged} rankings of an earlier run; resuming after them" in out
    assert without_time(read(output)) == without_time(read(whole)) and len(read(whole)) == 200
    assert not journal.exists()


def test_an_interrupted_run_says_so_and_keeps_no_output(completions, functions, tmp_path):
    output = tmp_path / "r.jsonl"
    options = {"by": "function", "function": f"{functions}:stops", "completions": completions, "output": output}
    done = subprocess.run(command(**options), capture_output=True, text=True)
    assert done.returncode == 130 and "Traceback" not in done.stderr
    assert done.stderr.endswith("interrupted: run the same command again to resume\n") and not output.exists()


def test_a_journal_of_another_run_is_refused(completions, tmp_path, monkeypatch):
    output = tmp_path / "r.jsonl"
    options = {"completions": completions, "output": output}
    in_terminal(monkeypatch, ["1>2>3>4", "q"], **options)
    with pytest.raises(InputError, match="was started with by 'person', now it is 'reference'. Use the former"):
        rank(monkeypatch, **options)
    with pytest.raises(InputError, match="was started with seed 42, now it is 7"):
        in_terminal(monkeypatch, [], **options, seed=7)
    write(completions, ROWS[:3])
    with pytest.raises(InputError, match="was started with sha256 of the completions '"):
        in_terminal(monkeypatch, [], **options)
    write(completions, ROWS)
    journal = tmp_path / "r.jsonl.journal"
    journal.write_text(journal.read_text().replace('{"row"', "oops", 1))
    with pytest.raises(InputError, match="line 2 is no line of a journal"):
        in_terminal(monkeypatch, [], **options)


HOLDER = """
import sys, time
from pathlib import Path
from data_prep.ranking.journal import Journal

journal = Journal(Path(sys.argv[1]), {}, durable=True)
print("open", flush=True)
time.sleep(600)
"""


def test_two_runs_do_not_write_one_journal(tmp_path):
    path = tmp_path / "j"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "open\n"
    with pytest.raises(InputError, match="j: another process is writing it; wait until it has ended"):
        Journal(path, {}, durable=True)
    holder.kill()
    holder.communicate()
    assert {file.name for file in tmp_path.iterdir()} == {"j", ".j.lock"}, "the lock file of a killed process"
    journal = Journal(path, {}, durable=True)
    with pytest.raises(InputError, match="another process is writing it"):
        Journal(path, {}, durable=True)
    journal.close()
    assert [file.name for file in tmp_path.iterdir()] == ["j"]
    Journal(path, {}, durable=True).close()


def test_a_journal_that_is_refused_is_not_locked(tmp_path):
    Journal(tmp_path / "j", {"seed": 1}, durable=False).close()
    with pytest.raises(InputError, match="was started with seed 1, now it is 2") as caught:
        Journal(tmp_path / "j", {"seed": 2}, durable=False)
    journal = Journal(tmp_path / "j", {"seed": 1}, durable=False)  # while the first one's error still holds its frames
    journal.close()
    assert caught and [file.name for file in tmp_path.iterdir()] == ["j"]


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"prompt": "Q"}, "row 5: no completions, reference;"),
        ({"prompt": 3, "completions": [], "reference": ""}, "row 5: found neither text nor messages under 'prompt'"),
        ({"prompt": "Q", "completions": "a", "reference": ""}, "row 5: found no list of texts under 'completions'"),
        ({"prompt": "Q", "completions": ["a", "a"], "reference": ""}, "row 5: found an empty or repeated answer"),
        ({"prompt": "Q", "completions": ["a", " "], "reference": ""}, "row 5: found an empty or repeated answer"),
        ({"prompt": "Q", "completions": ["a", "b"], "reference": 1}, "row 5: found no text under 'reference'"),
    ],
)
def test_rows_of_another_shape_are_named(completions, tmp_path, monkeypatch, row, found):
    write(completions, [*ROWS, row])
    with pytest.raises(InputError) as caught:
        rank(monkeypatch, completions=completions, output=tmp_path / "r.jsonl")
    assert str(caught.value).startswith(f"{completions}: {found}")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"by": "person"}, "--by person needs --rater"),
        ({"by": "reference", "rater": "Ada"}, "--by reference does not use --rater"),
        ({"by": "reward_model"}, "--by reward_model needs --reward_model"),
        ({"by": "function", "function": "f", "reward_model": "m"}, "--by function does not use --reward_model"),
        ({"tie_width": 0}, "--tie_width: found 0.0; expected more than 0"),
    ],
)
def test_missing_and_unused_options_are_refused(completions, tmp_path, monkeypatch, options, found):
    with pytest.raises(InputError, match=found):
        rank(monkeypatch, **options, completions=completions, output=tmp_path / "r.jsonl")


def test_nothing_is_overwritten(completions, tmp_path, monkeypatch):
    (tmp_path / "r.jsonl").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        rank(monkeypatch, completions=completions, output=tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_text() == "mine"
