"""The reward gate: figures worked out by hand, planted rewards through the command, and the recipes that ask it."""

import itertools
import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.processes import run, torchrun
from helpers.recipes import EXACT, Done, again, conversation, differing, is_png, refused, results, succeeded
from hypothesis import given as generated
from hypothesis import settings as effort
from hypothesis import strategies as st

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl, write_json, write_jsonl
from data_prep.gate.answers import other_rows, rated_rows, read_answers
from data_prep.gate.gate import check_reward
from data_prep.gate.measures import (
    best_of_n,
    calibration,
    correlation,
    expected_best,
    lengths_of,
    pairs_right,
    spread,
    verdicts,
)
from data_prep.gate.ngrams import ngram_scores
from data_prep.gate.verdict import as_verdict, decide
from eval import reward_gate
from recipes.trainers import reward_gate as before_training

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUV"


def row(ranks: list[int], counts: list[int] | None = None, scores=None, texts=None, question: str = "?") -> dict:
    texts = texts or list("abcdefgh"[: len(ranks)])
    counts = counts or [1] * len(ranks)
    prompt = [{"role": "user", "content": question}]
    return {"prompt": prompt, "completions": texts, "counts": counts, "ranks": ranks, "scores": scores, "columns": {}}


# Figures by hand


def test_pairs_put_right_count_half_where_the_reward_ties_and_prompts_without_a_pair_not_at_all():
    rows = [row([0, 1, 1]), row([2, 2])]
    # a over b: equal, a over c: right; b and c tie.
    assert pairs_right(rows, [[1.0, 1.0, 0.0], [1.0, 2.0]]) == [0.75, None]
    assert pairs_right(rows, [None, [1.0, 2.0]]) == [None, None]


def test_the_expected_best_by_hand():
    """Of a, a, b, c two are drawn: six pairs. By a reward that puts a and b level, above c: 2, 1, 2, 1, 2, 0 points."""
    counts, worth = [2, 1, 1], [2.0, 0.0, 0.0]
    assert expected_best(counts, [1.0, 1.0, 0.0], worth, 2) == pytest.approx(8 / 6)
    assert expected_best(counts, worth, worth, 2) == pytest.approx(5 / 6 * 2)  # only b with c has no a
    assert expected_best(counts, worth, worth, 1) == 1.0


@generated(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(-2, 2)), min_size=1, max_size=4
    ).filter(lambda answers: any(count for count, _, _ in answers)),
    st.data(),
)  # fmt: skip
@effort(max_examples=60, deadline=None)
def test_the_expected_best_is_the_mean_over_all_subsets(answers, data):
    draws = [(value, worth) for count, value, worth in answers for _ in range(count)]
    n = data.draw(st.integers(1, len(draws)))
    means = []
    for subset in itertools.combinations(draws, n):
        most = max(value for value, _ in subset)
        picks = [worth for value, worth in subset if value == most]
        means.append(sum(picks) / len(picks))
    found = expected_best(*([float(value) if place else value for value in column] for place, column in enumerate(zip(*answers, strict=True))), n)  # fmt: skip
    assert found == pytest.approx(sum(means) / len(means))


def test_best_of_n_stops_where_most_prompts_have_fewer_samples():
    rows = [row([0, 1], counts=[2, 2], scores=[1.0, 0.0], question=letter) for letter in "ab"]
    rows += [row([0, 1], scores=[1.0, 0.0], question=letter) for letter in "cd"]
    worth, words = verdicts(rows)
    found = best_of_n(rows, worth, worth)
    assert words == "points of the rater" and [(each["n"], each["prompts"]) for each in found] == [
        (1, 4),
        (2, 4),
        (4, 2),
    ]
    # Two of a, a, b, b hold an a in 5 of 6 cases, two of a, b always; a random answer gives 0.5.
    assert found[1]["rater"]["value"] == pytest.approx((5 / 6 + 1) / 2)
    assert found[1]["gain"]["value"] == found[1]["rater_gain"]["value"] == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_without_scores_an_answer_is_worth_its_chance_to_beat_a_sampled_one():
    worth, words = verdicts([row([0, 1, 1], counts=[2, 1, 1])])
    assert worth == [[0.75, 0.25, 0.25]] and words == "chance to beat a random answer"


def test_the_variance_within_prompts_and_between_them_by_hand():
    rows, values = [row([0, 1], counts=[3, 1]), row([0, 1])], [[1.0, 3.0], [5.0, 7.0]]
    # Means 1.5 and 6, of all 3. Within: (3·0.25 + 2.25 + 1 + 1) / (6 − 2). Of the means: 4·2.25 + 2·9 = 27, and one
    # prompt weighs 6 − (16 + 4) / 6.
    within, between = 1.25, (27 - 1.25) / (6 - 20 / 6)
    expected = {"within": within, "between": between, "share_within": within / (within + between)}
    assert spread(rows, values) == pytest.approx(expected)
    assert spread(rows[:1], values[:1])["within"] is None


def test_the_correlation_with_length_within_prompts_and_over_all_by_hand():
    rows = [row([0, 1], texts=["a", "bb"])] * 2
    rewards = [[1.0, 2.0], [11.0, 12.0]]
    assert correlation(rows, rewards, lengths_of(rows), within=True) == pytest.approx(1.0)
    # Distances from the means: lengths ±0.5, rewards ±5.5 and ±4.5: a product of 1 by the root of 1 · 101.
    assert correlation(rows, rewards, lengths_of(rows), within=False) == pytest.approx(1 / math.sqrt(101))
    assert correlation(rows, [[1.0, 1.0], [5.0, 5.0]], lengths_of(rows), within=True) is None


def test_calibration_by_hand():
    """Two prompts with a margin of log 3, a probability of 0.75, once right and once wrong."""
    found = calibration([row([0, 1]), row([1, 0])], [[math.log(3), 0.0], [math.log(3), 0.0]])
    assert found["error"] == pytest.approx(0.25)
    (one,) = found["bins"]
    assert (one["from"], one["to"], one["share"], one["observed"]) == (0.7, 0.8, 1.0, 0.5)


def test_a_prompt_with_several_rows_counts_once():
    rows = [row([0, 1], question=f"{number}") for number in range(20)]
    rewards = [[1.0, 0.0]] * 13 + [[0.0, 1.0]] * 7
    one, two = (check_reward(rows * n, rewards * n, [None] * 20 * n, [None] * 20 * n)["metrics"] for n in (1, 2))
    assert one["prompts"] == two["prompts"] == 20 and one["accuracy"] == two["accuracy"]
    assert one["accuracy"]["value"] == 13 / 20
    assert one["best_of_n"] == two["best_of_n"]
    assert one["calibration"]["error"] == pytest.approx(two["calibration"]["error"])
    assert one["baselines"]["longer"] == two["baselines"]["longer"]
    # Nineteen prompts are too few, however often they were ranked.
    few = check_reward(rows[1:] * 2, rewards[1:] * 2, [None] * 38, [None] * 38)["verdict"]
    assert "19 prompts with answers that differ in rank, expected at least 20" in few["reason"]


def test_the_n_gram_model_knows_what_answers_alone_tell_of_prompts_that_it_was_not_fitted_on():
    rng, told, hidden = random.Random(0), [], []
    for number in range(60):
        texts = [f"{rng.choice(LETTERS)}{number} {word}" for word in rng.sample(["please", "thanks", "no"], 3)]
        told.append(row([int("no" in text) for text in texts], texts=texts, question=str(number)))
        ranks = rng.sample([0, 1, 2], 3)
        hidden.append(row(ranks, texts=texts, question=str(number)))
    accuracy = [sum(pairs_right(rows, ngram_scores(rows))) / 60 for rows in (told, hidden)]
    assert accuracy[0] == 1.0 and 0.3 < accuracy[1] < 0.7
    assert ngram_scores(told[:1]) == [None]  # nothing to fit on


def test_another_prompt_differs_and_leaves_room():
    rows = [row([0, 1], question=question) for question in ("one", "one", "two", "long")]
    found = other_rows(rows, starts=[3, 3, 3, 30], longest=[5, 5, 5, 5], limit=10)
    assert found[0] == found[1] == 2 and found[2] in (0, 1) and found[3] in (0, 1, 2)
    assert other_rows(rows[:2], [3, 3], [5, 5], 10) == [None, None]


def test_samples_become_answers_with_counts_ranked_by_the_rater():
    samples = [[{"text": text, "stopped": stopped, "ids": [number]} for number, (text, stopped) in enumerate(own)]
               for own in ([("a", True), ("bb", True), ("a", True), ("a", False)], [("ccc", True)])]  # fmt: skip
    first, second = rated_rows([["p"], ["q"]], samples, lambda texts, places: [len(t) + 10.0 * p for t, p in zip(texts, places, strict=True)])  # fmt: skip
    assert (first["completions"], first["counts"], first["stopped"]) == (
        ["a", "bb", "a"],
        [2, 1, 1],
        [True, True, False],
    )
    assert (first["scores"], first["ranks"], first["ids"]) == ([1.0, 2.0, 1.0], [1, 0, 1], [[0], [1], [3]])
    assert second["scores"] == [13.0]


def test_rankings_keep_their_counts_and_their_ties(tmp_path, capsys):
    rows = [
        {"prompt": "1", "completions": ["a", "b", "c"], "ranks": [0, 1, 2], "counts": [2, 1, 0], "scores": [3, 2, 1], "x": 7},
        {"prompt": "2", "completions": ["a", "b"], "ranks": [0, 0]},
        {"prompt": "3", "completion": "a", "label": True},
    ]  # fmt: skip
    write_jsonl(tmp_path / "r.jsonl", rows)
    one, two = read_answers(tmp_path / "r.jsonl")
    assert (one["completions"], one["counts"], one["ranks"], one["scores"]) == (["a", "b"], [2, 1], [0, 1], [3.0, 2.0])
    assert one["columns"]["x"] == 7 and two["counts"] == [1, 1] and two["scores"] is None
    out = capsys.readouterr().out
    assert "left out: 1 answer that the policy did not sample" in out and "left out: 1 row with no answers to" in out
    write_jsonl(tmp_path / "r.jsonl", [{**rows[0], "counts": [1, -1, 2]}])
    with pytest.raises(InputError, match=r"row 1: found \[1, -1, 2\] under 'counts'; expected how often"):
        read_answers(tmp_path / "r.jsonl")


# Verdicts


def planted(right: int, of: int = 40) -> tuple[list[dict], list[list[float]]]:
    """Rows in which a and b are the better answer by turns, and values that put the first `right` of them right."""
    rows = [row([i % 2, 1 - i % 2], scores=[1.0 - i % 2, i % 2], question=str(i)) for i in range(of)]
    return rows, [own["scores"] if i < right else own["scores"][::-1] for i, own in enumerate(rows)]


@pytest.mark.parametrize(
    ("right", "by_policy", "line"),
    [
        (40, 20, "fit: best of 2 gains 0.50 [0.50, 0.50] points of the 0.50 that the rater's own pick would; next: train"),
        (24, 40, "not fit: knows less than the policy's own log-likelihood (60.0% against 100.0% of pairs, difference −40.0 ["),
        (40, 40, "not fit: knows no more than the policy's own log-likelihood (100.0% against 100.0% of pairs, difference "
                 "+0.0 [+0.0, +0.0] points); next: rank answers by what demonstrations do not show"),
        (36, 35, "not shown: 40 prompts are too few, or it knows no more than the policy's own log-likelihood (90.0% against "
                 "87.5% of pairs, difference +2.5 [+0.0, +7.5] points); next: rank answers to more prompts; if it stays so, "),
        (20, 19, "not shown: 40 prompts are too few, or it knows no more than chance (50.0% against 50.0% of pairs, "),
        (0, 0, "not fit: knows less than chance (0.0% against 50.0% of pairs, difference −50.0 [−50.0, −50.0] points); next: "
               "look at rankings and ranks by hand"),
    ],
    ids=["fit", "less", "no_more", "too_few", "chance", "contrary"],
)  # fmt: skip
def test_the_verdict_names_what_knows_more(right, by_policy, line):
    rows, rewards = planted(right)
    _, logprobs = planted(by_policy)
    found = check_reward(rows, rewards, [None] * len(rows), logprobs)
    assert found["verdict"]["line"].startswith(line)
    assert found["metrics"]["accuracy"]["value"] == right / 40
    assert found["metrics"]["baselines"]["policy"]["difference"]["value"] == pytest.approx((right - by_policy) / 40)


@pytest.mark.parametrize(
    ("rows", "rewards", "line"),
    [
        (planted(40)[0], [[0.1, 0.1 + 1e-9]] * 40, "not fit: gives each of 80 answers the reward 0.1; next: look at how"),
        (planted(40)[0], [[float(i), i] for i in range(40)], "not fit: gives all answers to a prompt the same reward; next"),
        (planted(40)[0], [[0.0, math.nan]] * 39 + [[0.0, math.inf]],
         "not fit: the reward of 40 of 80 answers is not a number; next"),
        ([row([0, 0])] * 30, [[0.0, 1.0]] * 30,
         "not shown: no answer is ranked above another to the same prompt (30 prompts); next: sample more"),
        (planted(1, 1)[0], [[0.0, 1.0]], "not shown: 1 prompt with answers that differ in rank, expected at least 20; next"),
        ([row([0, 1], scores=[1.0, math.nan])] * 30, [[0.0, 1.0]] * 30,
         "not shown: the rater's score of 30 of 60 answers is not a number; next"),
    ],
    ids=["constant", "constant_in_prompts", "nan", "ties", "one_prompt", "rater_nan"],
)  # fmt: skip
def test_what_cannot_be_measured_is_one_clear_line(rows, rewards, line):
    found = check_reward(rows, rewards, [None] * len(rows), [None] * len(rows))
    assert found["verdict"]["line"].startswith(line) and found["metrics"] == {}


def test_a_reward_whose_favourites_are_no_better_is_not_fit():
    rows, rewards = planted(40)
    measured = check_reward(rows, rewards, [None] * 40, [None] * 40)["metrics"]
    last = measured["best_of_n"][-1]
    last["gain"] = {"value": -0.1, "low": -0.2, "high": 0.0, "n": 40}
    assert decide(measured)["reason"] == (
        "best of 2 gains −0.10 [−0.20, 0.00] points of the 0.50 that the rater's own pick would: its favourites are no better"
    )
    last["gain"] = {"value": 0.1, "low": 0.0, "high": 0.2, "n": 40}
    assert decide(measured)["line"].startswith("not shown: 40 prompts are too few, or its favourites are no better")


# The command, with planted rewards

FUNCTIONS = """
import random


def pairs(prompts, completions):
    return [(prompt[-1]["content"], completion[-1]["content"]) for prompt, completion in zip(prompts, completions)]


def knows(prompts, completions, **columns):
    return [float(asked == text) for asked, text in pairs(prompts, completions)]


def shuffled(prompts, completions, **columns):
    return [random.Random(asked + text).random() for asked, text in pairs(prompts, completions)]


def length(prompts, completions, **columns):
    return [float(len(text)) for _, text in pairs(prompts, completions)]


def small_letters(prompts, completions, **columns):
    return [float(sum("a" <= each <= "z" for each in text)) for _, text in pairs(prompts, completions)]
"""


@pytest.fixture(scope="module")
def functions(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("functions") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture
def gate(command):
    """gate("--option", value, …) is python -m eval.reward_gate: (exit code, stdout, stderr)."""
    return lambda *arguments: Done(*command(reward_gate, *arguments))


def write_rankings(path: Path, policy: Path | None, by_length: bool = False) -> Path:
    """48 questions of one letter, each with four answers: that letter is right and three others are wrong; or answers of
    one to four letters, the longer the better."""
    rng, rows = random.Random(0), []
    for letter in LETTERS:
        texts = [letter, *rng.sample([each for each in LETTERS if each != letter], 3)]
        texts = [text * (4 - place) for place, text in enumerate(texts)] if by_length else texts
        ranks = [0, 1, 2, 3] if by_length else [0, 1, 1, 1]
        order = rng.sample(range(4), 4)
        ranked = {"completions": [texts[i] for i in order], "ranks": [ranks[i] for i in order], "counts": [1, 2, 1, 4]}
        rows.append({"prompt": letter, **ranked, **({"drawn": {"model": str(policy)}} if policy else {})})
    write_jsonl(path, rows)
    return path


@pytest.mark.parametrize(
    ("reward", "by_length", "start"),
    [
        ("knows", False, "fit: best of 8 gains "),
        ("shuffled", False, "not "),
        ("length", True, "not fit: knows no more than length alone (the longer answer) (100.0% against 100.0% of pairs, "),
        ("length", False, "not "),
        ("a reward model", True, "not fit: knows no more than length alone (the longer answer) (100.0% against 100.0% of "),
    ],
)  # fmt: skip
def test_planted_rewards_are_told_apart(
    gate, functions, tiny_model_dir, long_is_good_dir, reward, by_length, start, tmp_path
):
    rankings = write_rankings(tmp_path / "rankings.jsonl", tiny_model_dir, by_length)
    which = ["--reward", long_is_good_dir if reward == "a reward model" else f"{functions}:{reward}"]
    given = ["--policy", tiny_model_dir, "--rankings", rankings, "--name", "planted", "--results_dir", tmp_path]
    done = gate(*which, *given)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1].startswith(f"planted, on 48 prompts: {start}") and "warning" not in done.out
    found = results(tmp_path, "reward_gate_planted")
    assert found["verdict"]["line"].startswith(start) and found["policy"] == str(tiny_model_dir)
    if found["metrics"]:
        assert is_png(tmp_path / "reward_gate_planted.png")
        assert {"chance", "longer", "shorter", "answer_only", "ngrams", "policy"} == set(found["metrics"]["baselines"])
    if reward == "knows":
        assert found["metrics"]["accuracy"]["value"] == 1.0
        assert found["metrics"]["baselines"]["answer_only"]["accuracy"]["value"] < 0.6  # right for another prompt
        assert [each["n"] for each in found["metrics"]["best_of_n"]] == [1, 2, 4, 8]
        best = found["metrics"]["best_of_n"][-1]
        assert best["gain"] == best["rater_gain"] and best["reward"] == best["rater"]


def test_the_command_says_whose_answers_it_cannot_vouch_for(
    gate, functions, tiny_model_dir, ready_to_end_dir, tmp_path
):
    given = ["--reward", f"{functions}:knows", "--policy", tiny_model_dir, "--limit", 21, "--rankings"]
    done = gate(*given, write_rankings(tmp_path / "a.jsonl", ready_to_end_dir))
    assert f"warning: the answers are those of {ready_to_end_dir}, not of {tiny_model_dir}" in done.out
    assert "21 of 48 prompts are used (--limit)" in done.out and "knows, on 21 prompts: " in done.out
    done = gate(*given, write_rankings(tmp_path / "b.jsonl", None))
    assert done.out.count("warning: the rankings do not say whose answers they are") == 1


def test_prompts_that_the_reward_model_was_trained_on_are_refused(gate, tiny_model_dir, long_is_good_dir, tmp_path):
    rankings = write_rankings(tmp_path / "rankings.jsonl", tiny_model_dir)
    folder = tmp_path / "reward"
    shutil.copytree(long_is_good_dir, folder)
    rows = [*read_jsonl(rankings)]
    write_jsonl(tmp_path / "trained.jsonl", [{**each, "prompt": each["prompt"] * (1 + (n > 2))} for n, each in enumerate(rows)])  # fmt: skip
    write_json(
        folder / "settings.json", {"settings": {"rankings": [str(tmp_path / "trained.jsonl")], "columns": None}}
    )
    given = ["--reward", folder, "--policy", tiny_model_dir, "--rankings", rankings]
    refused(gate(*given), "rankings.jsonl: 3 of 48 held-out prompts are trained on too")
    (tmp_path / "trained.jsonl").unlink()
    done = gate(*given)
    assert done.code == 0 and "was trained on these prompts is not known: " in done.out


@pytest.mark.parametrize("kind", ["a language model", "its settings", "rankings"])
def test_what_only_compares_answers_is_no_reward(gate, kind, tiny_model_dir, tmp_path):
    rankings = write_rankings(tmp_path / "rankings.jsonl", tiny_model_dir)
    (tmp_path / "judge.yaml").write_text(f"model: {tiny_model_dir}\n")
    name = {"a language model": tiny_model_dir, "its settings": tmp_path / "judge.yaml", "rankings": rankings}[kind]
    done = gate("--reward", name, "--policy", tiny_model_dir, "--rankings", rankings)
    refused(
        done, f"--reward {name}: it only compares answers with each other; expected what gives each answer a number"
    )


def test_agreement_with_the_reference_can_be_asked_for_by_its_name(gate, tiny_model_dir, tmp_path):
    """The reference is the letter that is asked for; of the four answers one letter is that one."""
    rankings = write_rankings(tmp_path / "rankings.jsonl", tiny_model_dir)
    write_jsonl(rankings, [{**each, "reference": each["prompt"]} for each in read_jsonl(rankings)])
    given = ["--policy", tiny_model_dir, "--rankings", rankings, "--results_dir", tmp_path]
    succeeded(gate("--reward", "reference", *given))
    found = results(tmp_path, "reward_gate_reference")
    assert found["reward"] == "reference" and found["metrics"]["accuracy"]["value"] == 1.0


# Before PPO, RLOO and GRPO


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_json(folder / "prompts.json", [conversation(f"{letter}{letter}", f"{letter}{letter}", "yes") for letter in LETTERS[:16]])  # fmt: skip
    write_json(folder / "heldout.json", [conversation(letter, letter, "yes") for letter in LETTERS[:40]])
    return folder


@pytest.fixture(scope="module")
def ppo_settings(data, functions, ready_to_end_dir, long_is_good_dir) -> dict:
    models = {"sft_model_path": ready_to_end_dir, "reward_model_path": long_is_good_dir}
    files = {"prompts": data / "prompts.json", "heldout": data / "heldout.json"}
    method = {"response_length": 8, "num_mini_batches": 1, "total_episodes": 16, "learning_rate": 0.003}
    steps = {"per_device_train_batch_size": 8, "logging_steps": 1, "save_steps": 1, "num_sample_generations": 0}
    judge = {"eval_funcs": f"{functions}:small_letters", "gradient_checkpointing": False}
    return {**models, **files, **method, **steps, **judge, **EXACT}


def test_ppo_warns_stops_or_does_not_look_and_trains_the_same(ppo_settings, functions, tmp_path):
    says = f"reward gate on 8 answers of the policy to each of 40 held-out prompts, by {functions}:small_letters: not "
    warned = succeeded(again("ppo", **ppo_settings, output_dir=tmp_path / "warn"))
    (line,) = [line for line in warned.out.splitlines() if line.startswith("reward gate")]
    assert line.startswith(says) and "; next: " in line and "attention_mask" not in warned.err
    kept = results(tmp_path / "warn", "ppo")["reward_gate"]
    assert line.endswith(kept["verdict"]["line"]) and kept == json.loads(
        (tmp_path / "warn/reward_gate.json").read_text()
    )
    assert kept["metrics"]["samples"] <= 40 * 8 and kept["metrics"]["best_of_n"][-1]["n"] == 8

    off = succeeded(again("ppo", **ppo_settings, reward_gate="off", output_dir=tmp_path / "off"))
    assert "reward gate" not in off.out and results(tmp_path / "off", "ppo")["reward_gate"] is None
    for part in ("", "value_model"):
        assert differing(tmp_path / "warn" / part, tmp_path / "off" / part) == set()

    stopped = again("ppo", **ppo_settings, reward_gate="stop", output_dir=tmp_path / "stop")
    refused(stopped, f"reward_gate stop{kept['about']}: {kept['verdict']['line']}")
    assert not (tmp_path / "stop" / "config.json").exists() and not [*(tmp_path / "stop").glob("checkpoint-*")]

    # Resumed: as a kill after the last checkpoint leaves it.
    (tmp_path / "warn" / "config.json").unlink()
    (tmp_path / "warn" / "settings.json").rename(tmp_path / "warn" / "unfinished.json")
    resumed = succeeded(again("ppo", **ppo_settings, reward_gate="stop", output_dir=tmp_path / "warn"))
    assert "resuming from" in resumed.out and "reward gate" not in resumed.out
    assert results(tmp_path / "warn", "ppo")["reward_gate"] == kept


def test_ppo_takes_rankings_as_they_are_and_says_what_it_cannot_check(ppo_settings, tiny_model_dir, tmp_path):
    given = {key: value for key, value in ppo_settings.items() if key not in ("heldout", "eval_funcs")}
    rankings = write_rankings(tmp_path / "rankings.jsonl", tiny_model_dir, by_length=True)
    done = succeeded(again("ppo", **given, heldout=rankings, output_dir=tmp_path / "rankings"))
    says = "reward gate on 48 held-out rankings, of answers that need not be the policy's own: not fit: knows no more than "
    assert f"{says}length alone (the longer answer) (100.0% against 100.0% of pairs" in done.out
    done = again("ppo", **given, output_dir=tmp_path / "nothing", reward_gate="stop")
    says = "not checked: there are no held-out answers that somebody judges; next: give heldout and eval_funcs"
    refused(done, f"reward_gate stop: {says}")
    refused(again("ppo", **given, output_dir=tmp_path / "x", reward_gate="maybe"), "reward_gate: ", "stop")


@pytest.mark.parametrize("recipe", ["rloo", pytest.param("grpo", marks=pytest.mark.slow)])
def test_rloo_and_grpo_ask_too_and_measure_what_judges(recipe, ppo_settings, tmp_path):
    mine = ("prompts", "heldout", "reward_model_path", "eval_funcs", *EXACT)
    given = {key: value for key, value in ppo_settings.items() if key in mine}
    given |= {"model_name_or_path": ppo_settings["sft_model_path"], "max_completion_length": 8, "num_generations": 2}
    given |= {"max_steps": 1, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 8, "save_strategy": "no"}
    done = succeeded(again(recipe, **given, output_dir=tmp_path / "run"))
    assert "reward gate on 8 answers of the policy to each of 40 held-out prompts, by " in done.out
    found = results(tmp_path / "run", recipe)
    assert found["reward_gate"]["verdict"]["word"] in ("not fit", "not shown")
    assert 0 <= found["metrics"]["eval_small_letters_first"] <= 8 and "eval_small_letters_last" in found["metrics"]


def test_the_gate_leaves_random_numbers_and_models_as_they_were():
    def drawn() -> tuple:
        return random.random(), np.random.rand(), torch.rand(1).item()

    model = torch.nn.Linear(1, 1)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    expected = drawn()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(3)
    with before_training._untouched(model):
        drawn()
        model.eval()
    assert drawn() == expected and model.training


@pytest.mark.slow
def test_of_two_processes_the_first_decides(ppo_settings, tmp_path):
    succeeded(again("ppo", **ppo_settings, output_dir=tmp_path / "one"))
    done = run(torchrun(), "ppo", **{**ppo_settings, "per_device_train_batch_size": 4}, output_dir=tmp_path / "two")
    one, two = (results(tmp_path / name, "ppo")["reward_gate"] for name in ("one", "two"))
    assert done.out.count("reward gate on 8 answers") == 1 and one["verdict"] == two["verdict"]
    assert one["metrics"] == two["metrics"]


@pytest.mark.parametrize("word", ["fit", "not shown"])
def test_stop_lets_a_fit_reward_pass_and_nothing_else(word, monkeypatch, tmp_path, capsys):
    found = {"verdict": as_verdict(word, "because", "go on"), "metrics": {}, "about": " on paper"}
    monkeypatch.setattr(before_training, "_check", lambda *arguments: found)
    cpu = torch.device("cpu")
    model = SimpleNamespace(training=True, train=lambda mode: None, device=cpu)
    trainer = SimpleNamespace(
        args=SimpleNamespace(output_dir=str(tmp_path), device=cpu), model=model, processing_class=None,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model), is_world_process_zero=lambda: True,
    )  # fmt: skip
    script, run = SimpleNamespace(reward_gate="stop"), SimpleNamespace(checkpoint=None)
    arguments = (script, trainer, run, model, None, None, 8)
    if word == "fit":
        assert before_training.gate_reward(*arguments) == found
    else:
        with pytest.raises(InputError, match="reward_gate stop on paper: not shown: because; next: go on"):
            before_training.gate_reward(*arguments)
    assert ("reward gate on paper: fit: because; next: go on\n" if word == "fit" else "") == capsys.readouterr().out
