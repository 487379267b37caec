"""The command that samples completions: what it reads, what it counts, what it writes."""

import json
import sys

import pytest
from helpers.conversations import gpt, human, write

from data_prep import rank_completions, rank_page, sample_completions
from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.pages import launch
from data_prep.sample_completions import main
from eval import arena, win_rate


def row(key: str, question: str, answer: str) -> dict:
    return {"id": key, "conversations": [human(question), gpt(answer)]}


@pytest.fixture
def sample(tmp_path, yes, monkeypatch, capsys):
    """sample(path, "--limit", 1) runs the command; returns the rows of its output and what it printed."""

    def run(conversations, *more) -> tuple[list[dict], str]:
        output = tmp_path / "completions.jsonl"
        command = ["sample_completions", "--model", yes, "--conversations", conversations, "--output", output]
        command += ["--num_return_sequences", 2, "--max_new_tokens", 8, *more]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        main()
        return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()], capsys.readouterr().out

    return run


def test_completions_with_the_reference_and_others(tmp_path, yes, sample):
    path = write(tmp_path, [row("a", "Is it?", "yes"), row("b", "Why?", "so"), row("c", "Who?", " yes")])
    rows, out = sample(path, "--include_reference", "--include_others", 1, "--seed", 3)
    assert [list(each) for each in rows] == [["id", "prompt", "completions", "counts", "reference", "drawn"]] * 3
    assert [each["prompt"] for each in rows] == [[{"role": "user", "content": q}] for q in ("Is it?", "Why?", "Who?")]
    assert [each["completions"][:2] for each in rows[1:]] == [["yes", "so"], ["yes", " yes"]]
    assert rows[0]["completions"] in (["yes", "so"], ["yes", " yes"]), "one of the two other references"
    assert [each["counts"][0] for each in rows] == [2, 2, 2] and rows[1]["counts"][1:] in ([0], [0, 0])
    assert rows[0]["drawn"] == {
        "model": str(yes), "temperature": 1.0, "max_new_tokens": 8, "num_return_sequences": 2, "include_reference": True,
        "include_others": 1, "seed": 3,
    }  # fmt: skip
    # Both answers to a and c match exactly, blanks aside: 4 of 6
    expected = "sampled 6 answers to 3 prompts (exact match 67%, EOS rate 100%, 0 empty ones left out); they are in "
    assert out.endswith(f"{expected}{tmp_path}/completions.jsonl\n")


def test_prompts_that_have_bad_answers_alone_add_no_empty_reference(tmp_path, sample, monkeypatch):
    labelled = [("Is it?", "bad", False), ("Why?", "so", True), ("Who?", "bad", False), ("How?", " so", True)]
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in labelled]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    rows, out = sample(tmp_path / "labels.jsonl", "--include_reference", "--include_others", 3)
    assert [each["reference"] for each in rows] == ["so", " so", "", ""]
    assert [set(each["completions"]) for each in rows] == [{"yes", "so", " so"}] * 4
    assert "2 prompts without a reference: nothing but answers labelled bad\n" in out
    words = "sampled 8 answers to 4 prompts (exact match 0% of the 4 to prompts with a reference, EOS rate 100%, "
    assert words in out
    words = ["--completions", tmp_path / "completions.jsonl", "--output", tmp_path / "rankings.jsonl"]
    monkeypatch.setattr(sys, "argv", ["rank_completions", *map(str, words)])
    rank_completions.main()
    assert len((tmp_path / "rankings.jsonl").read_text().splitlines()) == 2  # without a reference all answers tie


def test_exact_match_is_a_share_of_the_answers_to_prompts_with_a_reference(tmp_path, sample):
    """The model answers yes: right to the first prompt, wrong to the second; the third has no right answer."""
    labelled = [("Is it?", "yes", True), ("Why?", "so", True), ("Who?", "bad", False)]
    rows = [{"prompt": prompt, "completion": text, "label": label} for prompt, text, label in labelled]
    write_jsonl(tmp_path / "labels.jsonl", rows)
    _, out = sample(tmp_path / "labels.jsonl")
    assert "sampled 6 answers to 3 prompts (exact match 50% of the 4 to prompts with a reference, EOS rate 1" in out
    (tmp_path / "completions.jsonl").unlink()
    write_jsonl(tmp_path / "labels.jsonl", rows[2:])
    _, out = sample(tmp_path / "labels.jsonl")
    assert "sampled 2 answers to 1 prompt (EOS rate 100%, 0 empty ones left out)" in out


def test_a_trailing_human_turn_is_trimmed_and_counted(tmp_path, sample):
    turns = [human("Is it?"), gpt("yes"), human("And now?")]
    rows, out = sample(write(tmp_path, [{"id": "a", "conversations": turns}]))
    assert rows[0]["prompt"] == [{"role": "user", "content": "Is it?"}] and rows[0]["reference"] == "yes"
    assert out.startswith("chat.json: 1 conversation, 1 trailing human turn trimmed\n")


def test_bad_rows_end_the_command_or_are_repaired_or_quarantined(tmp_path, sample):
    (tmp_path / "chat.jsonl").write_text(
        '{"id": "a", "messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "yes"}]}\n'
        '{"id": "b", "messages": [{"role": "human", "content": "Q"}, {"role": "assistant", "content": "no"},]}\n'
    )
    with pytest.raises(InputError, match="1 row cannot be used: .*trailing comma") as told:
        sample(tmp_path / "chat.jsonl")
    assert "\non_bad: quarantine leaves" in str(told.value) and "line: --on_bad quarantine. Or" in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["chat.jsonl"]
    rows, out = sample(tmp_path / "chat.jsonl", "--on_bad", "repair")
    assert [(each["id"], each["reference"]) for each in rows] == [("a", "yes"), ("b", "no")]
    assert (
        out.startswith("chat.jsonl: 2 conversations, repaired: 1 × ") and "1 × trailing comma" in out.splitlines()[0]
    )
    (tmp_path / "completions.jsonl").unlink()
    rows, out = sample(tmp_path / "chat.jsonl", "--on_bad", "quarantine")
    assert [each["id"] for each in rows] == ["a"]
    quarantine = tmp_path / "completions.jsonl.quarantine.jsonl"
    assert out.startswith("chat.jsonl: 1 conversation") and "quarantined 1" in out and str(quarantine) in out
    assert [json.loads(line)["row"] for line in quarantine.read_text().splitlines()] == [2]


def test_columns_with_names_of_their_own(tmp_path, sample):
    write_jsonl(tmp_path / "a.jsonl", [{"q": "Is it?", "a": "yes"}])
    with pytest.raises(InputError, match="1 row cannot be used"):
        sample(tmp_path / "a.jsonl")
    rows, _ = sample(tmp_path / "a.jsonl", "--columns", "prompt=q,completion=a")
    assert rows[0]["prompt"] == [{"role": "user", "content": "Is it?"}] and rows[0]["reference"] == "yes"


def test_a_data_set_of_the_hub(tmp_path, sample):
    folder = tmp_path / "hub"
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": "yes"}]
    for split in ("train", "test"):
        write_jsonl(folder / f"{split}.jsonl", [{"id": split, "messages": turns}])
    rows, _ = sample(f"hf://{folder}:default:test")
    assert [each["id"] for each in rows] == ["test"]


def test_a_limit_is_sampled_by_the_seed(tmp_path, sample):
    path = write(tmp_path, [row(str(number), f"{number}?", "yes") for number in range(50)])
    chosen = []
    for seed in (0, 0, 1):
        rows, out = sample(path, "--limit", 3, "--seed", seed)
        assert "3 of 50 prompts are used (--limit)\n" in out
        chosen.append([each["id"] for each in rows])
        (tmp_path / "completions.jsonl").unlink()
    assert chosen[0] == chosen[1] != chosen[2] and all(len(ids) == 3 for ids in chosen)
    with pytest.raises(InputError, match="--limit 0: expected at least 1"):
        sample(path, "--limit", 0)


def test_a_model_that_cannot_answer_is_refused(tmp_path, yes, sample, tiny_reward_dir):
    path = write(tmp_path, [row("a", "Is it?", "yes")])
    with pytest.raises(InputError, match="expected a language model, found GPT2ForSequenceClassification"):
        sample(path, "--model", tiny_reward_dir)
    with pytest.raises(InputError, match="--max_new_tokens 64: expected 1 to 63; .* has 64 positions"):
        sample(path, "--max_new_tokens", 64)
    assert [file.name for file in tmp_path.iterdir()] == ["chat.json"]


@pytest.mark.parametrize(
    ("module", "needed"),
    [
        (sample_completions, ["--model", "m", "--conversations", "c", "--output", "o.jsonl"]),
        (rank_page, ["--model", "m", "--conversations", "c", "--output", "o.jsonl"]),
        (arena, ["--model", "m", "--opponent", "n", "--conversations", "c", "--results_dir", "r"]),
        (win_rate, ["--model", "m", "--opponent", "n", "--conversations", "c"]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_each_command_that_samples_refuses_the_same_values(module, needed, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launch.importlib.util, "find_spec", lambda name: name)
    for option, value, told in (
        ("--temperature", -1, "--temperature -1: expected at least 0, where 0 is greedy"),
        ("--temperature", "nan", "--temperature nan: expected at least 0, where 0 is greedy"),
        ("--max_new_tokens", 0, "--max_new_tokens 0: expected at least 1"),
        ("--batch_size", 0, "--batch_size 0: expected at least 1"),
        ("--limit", 0, "--limit 0: expected at least 1"),
    ):
        assert command(module, *needed, option, value) == (1, "", f"error: {told}\n")
    assert list(tmp_path.iterdir()) == []
