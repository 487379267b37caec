"""Best-of-n sampling in eval.win_rate: which samples are kept, and what is refused."""

import pytest
from helpers.recipes import results

from data_prep.common.intervals import bootstrap_interval
from data_prep.models.generation import generate_answers
from data_prep.models.loading import load_checkpoint
from eval import win_rate
from eval.judging.sampling import pick_best

QUESTIONS = [("a", "1?", "yes"), ("b", "22?", "no"), ("c", "333?", "so")]
LONGER = (
    "def longer(prompts, completions, **columns): return [len(each[-1]['content'].encode()) for each in completions]\n"
)


def answer(text: str, stopped: bool = True) -> dict:
    return {"text": text, "stopped": stopped}


def test_of_every_n_the_best_is_kept_the_first_of_equals(long_is_good_dir):
    # The reward grows with the tokens; a letter is one, and so is the end of turn, which a truncated answer lacks.
    asked = [[{"role": "user", "content": text}] for text in ("?", "how?")]
    answers = [
        [answer("a"), answer("bbb"), answer("cc"), answer("dd"), answer("ee"), answer("f")],
        [answer("abc", False), answer("abc"), answer("abcd", False), answer("xyz"), answer(""), answer("", False)],
    ]
    model, tokenizer = load_checkpoint(str(long_is_good_dir), reward_model=True)
    pairs = pick_best(answers, asked, 2, model, tokenizer, 5)
    assert pairs == [[answers[0][index] for index in (1, 2, 4)], [answers[1][index] for index in (1, 2, 4)]]
    threes = pick_best(answers, asked, 3, model, tokenizer, 128)
    assert threes == [[answers[0][1], answers[0][3]], [answers[1][1], answers[1][3]]]


def test_best_of_n_by_its_command(
    command, ready_to_end_dir, tiny_model_dir, long_is_good_dir, write_conversations, tmp_path
):
    (tmp_path / "judge.py").write_text(LONGER)
    arguments = ("--model", ready_to_end_dir, "--opponent", tiny_model_dir, "--max_new_tokens", 8, "--seed", 5)
    arguments += ("--conversations", write_conversations(QUESTIONS), "--num_return_sequences", 2, "--batch_size", 12)
    arguments += ("--judge", f"{tmp_path / 'judge.py'}:longer", "--name", "x", "--results_dir", tmp_path)
    code, out, err = command(win_rate, *arguments, "--best_of", 3, "--reward_model", long_is_good_dir)
    assert code == 0, err
    found = results(tmp_path, "win_rate_x")
    metrics = found["metrics"]

    prompts = [[{"role": "user", "content": question}] for _, question, _ in QUESTIONS]
    model, tokenizer = load_checkpoint(str(ready_to_end_dir))
    samples = generate_answers(model, tokenizer, prompts, 8, 1.0, 6, 12, 5, exact=True)
    others = generate_answers(*load_checkpoint(str(tiny_model_dir)), prompts, 8, 1.0, 2, 12, 6, exact=True)

    def tokens(each: dict) -> int:
        return len(each["text"].encode()) + each["stopped"]

    kept = [[max(group[start : start + 3], key=tokens) for start in (0, 3)] for group in samples]
    assert [max(group, key=tokens) for group in samples] != [group[0] for group in samples]
    wins = []
    for own, its in zip(kept, others, strict=True):
        lengths = [[len(each["text"].encode()) for each in side] for side in (own, its)]
        wins.append([0.5 + ((one > other) - (one < other)) / 2 for one in lengths[0] for other in lengths[1]])
    assert metrics["win_rate"] == bootstrap_interval([sum(each) / 4 for each in wins])
    assert [row["answer"] for row in found["examples"]] == [own[0]["text"] for own in kept]
    assert [row["opponent_answer"] for row in found["examples"]] == [its[0]["text"] for its in others]
    assert metrics["length"] == sum(each["tokens"] for own in kept for each in own) / 6
    assert metrics["wins"] + metrics["ties"] + metrics["losses"] == 12 and found["num_return_sequences"] == 2
    assert (found["best_of"], found["reward_model"]) == (3, str(long_is_good_dir)) and found["seconds"] > 0
    assert "kl" not in metrics and "KL" not in out and f"its answers are the best of 3 by {long_is_good_dir}. " in out

    assert command(win_rate, *arguments)[0] == 0
    found = results(tmp_path, "win_rate_x")
    assert "kl" in found["metrics"] and not {"best_of", "reward_model"} & set(found)


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (("--best_of", 8), "--best_of and --reward_model: expected both or neither"),
        (("--reward_model", "no"), "--best_of and --reward_model: expected both or neither"),
        (("--best_of", 1, "--reward_model", "no"), "--best_of 1: expected at least 2"),
        (("--best_of", 2, "--reward_model", "no", "--temperature", 0), "--best_of: expected --temperature above 0"),
    ],
)
def test_what_does_not_go_together_is_refused_before_the_models_are_read(command, tmp_path, options, found):
    missing = tmp_path / "missing"
    code, _, err = command(
        win_rate, "--model", missing, "--opponent", missing, "--conversations", missing, *map(str, options)
    )
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 1 and len(errors) == 1 and found in errors[0] and "Traceback" not in err


def test_a_reward_model_that_cannot_score_is_refused_before_answers_are_sampled(
    command, tiny_model_dir, long_is_good_dir, write_conversations, monkeypatch
):
    monkeypatch.setattr("eval.judging.sampling.generate_answers", lambda *a, **b: pytest.fail("answers were sampled"))
    rows = [*QUESTIONS, ("d", "x" * 54, "yes")]  # with the marks 57 tokens, of 64 that hold 8 of the answer
    arguments = ("--model", tiny_model_dir, "--opponent", tiny_model_dir, "--max_new_tokens", 8, "--best_of", 2)
    arguments += ("--conversations", write_conversations(rows))
    for reward_model, found in (
        (tiny_model_dir, "expected a reward model (recipes/reward.py), found GPT2LMHeadModel"),
        (long_is_good_dir, "1 of 4 prompts have more than 56 tokens, its context minus max_new_tokens; use one with"),
    ):
        code, _, err = command(win_rate, *arguments, "--reward_model", reward_model)
        assert code == 1 and found in err and "Traceback" not in err
