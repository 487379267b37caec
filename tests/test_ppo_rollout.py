"""Sampling answers: by the policy's probabilities, each by random numbers of its own; and rollouts made of them."""

import json
import math
import shutil
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.models.own_draws import OwnDraws
from recipes.trainers.ppo.policy_and_value import groups_by_length
from recipes.trainers.ppo.rollout import repetition


def chi_square(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected) ** 2 / expected).sum().item()


def test_sampled_tokens_have_the_frequencies_of_the_softmax():
    generator = torch.Generator().manual_seed(0)
    scores = torch.tensor([2.0, 0.0, -torch.inf, 1.0, -2.0])
    uniforms = torch.rand(20_000, 1, generator=generator)
    chosen = OwnDraws(uniforms, 3, temperature=2.0)(torch.zeros(20_000, 3), scores.expand(20_000, 5))
    assert torch.isinf(chosen).sum(1).eq(4).all()  # all but one are out
    found = (chosen == 0).sum(0).float()
    # exp(1), exp(0), 0, exp(0.5) and exp(−1), over their sum 5.73488
    expected = 20_000 * torch.tensor([2.71828, 1.0, 0.0, 1.64872, 0.36788]) / 5.73488
    assert found[2] == 0
    kept = torch.tensor([0, 1, 3, 4])
    assert chi_square(found[kept], expected[kept]) < 16.3  # 99.9 % of chi-square with 3 degrees of freedom


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.just(-math.inf), st.floats(-30, 30, width=32)), min_size=1, max_size=12),
    st.one_of(st.sampled_from([0.0, 1e-45, 1 - 2**-24, 0.5]), st.floats(0, 1, exclude_max=True, width=32)),
    st.sampled_from([0.1, 0.7, 1.0, 2.0]),
)
def test_a_token_without_probability_is_never_sampled(scores, uniform, temperature):
    if max(scores) == -math.inf:
        scores[0] = 0.0
    scores = torch.tensor([scores])
    chosen = OwnDraws(torch.tensor([[uniform]]), 1, temperature)(torch.zeros(1, 1), scores).argmax(-1)
    assert (scores / temperature).softmax(-1)[0, chosen] > 0


def test_the_first_and_the_last_token_that_has_any_probability_can_be_sampled():
    scores = torch.tensor([[-torch.inf, 1.0, 0.0, -torch.inf]])
    for uniform, token in ((0.0, 1), (1 - 2**-24, 2)):
        chosen = OwnDraws(torch.tensor([[uniform]]), 1, 1.0)(torch.zeros(1, 1), scores)
        assert chosen.argmax(-1).item() == token


def test_answers_follow_the_policy_over_many_episodes(build_ppo):
    """The seeds of episodes are neighbours: their first numbers must be as good as any."""
    trainer = build_ppo(rows=[{"prompt": "a"}], response_length=2)
    rows = [dict(trainer.train_dataset[0])] * 4096
    rollout = trainer.roll_out(rows, range(4096))
    with torch.no_grad():
        logits = trainer.model.policy(input_ids=torch.tensor([rows[0]["prompt_ids"]])).logits[0, -1]
    logits[trainer.processing_class.pad_token_id] = -torch.inf
    probabilities = logits.softmax(-1)
    (end,) = trainer.stop_token_ids
    groups = torch.arange(len(probabilities)) % 10
    groups[end] = 10
    expected = 4096 * torch.zeros(11).scatter_add_(0, groups, probabilities)
    found = torch.zeros(11).scatter_add_(0, groups[rollout.answers[:, 0]], torch.ones(4096))
    assert 0.25 < expected[10] / 4096 < 0.35
    assert chi_square(found, expected) < 29.6  # 99.9 % with 10 degrees of freedom
    # What follows the first token does not depend on it: the model's answers hardly do, and the numbers must not.
    second = rollout.answers[rollout.mask[:, 1], 1]
    low = rollout.answers[rollout.mask[:, 1], 0] % 10 < 5
    shares = [(second[rows] == end).float().mean().item() for rows in (low, ~low)]
    # 0.297 of some 1,440 each: a standard deviation of 0.017 between the two
    assert abs(shares[0] - shares[1]) < 0.055 and shares[0] == pytest.approx(0.297, abs=0.05)
    assert not (rollout.answers[rollout.mask] == trainer.processing_class.pad_token_id).any()


def test_an_answer_depends_neither_on_the_rows_beside_it_nor_on_their_number(build_ppo):
    trainer = build_ppo()
    rows = [trainer.train_dataset[index] for index in range(8)]
    assert len({len(row["prompt_ids"]) for row in rows}) == 4
    together = trainer.roll_out(rows, range(40, 48))
    backwards = trainer.roll_out(rows[::-1], range(47, 39, -1))
    alone = [trainer.roll_out([row], [episode]) for row, episode in zip(rows, range(40, 48), strict=True)]
    for index in range(8):
        wanted = together.answers[index, together.mask[index]]
        for other, row in ((backwards, 7 - index), (alone[index], 0)):
            assert other.answers[row, other.mask[row]].tolist() == wanted.tolist()
            assert other.stopped[row] == together.stopped[index] and other.last[row] == together.last[index]
    assert len(set(together.mask.sum(1).tolist())) > 2  # else answers of one length would do
    others = trainer.roll_out(rows, range(48, 56))
    assert others.texts(trainer.processing_class) != together.texts(trainer.processing_class)


def test_answers_that_ended_are_left_out_of_what_is_still_sampled_and_no_answer_changes(build_ppo):
    """Of 24 rows, calls go on with the open ones; a row sampled alone is one call to its end."""
    trainer = build_ppo()
    rows = [trainer.train_dataset[index % 8] for index in range(24)]
    calls, generate = [], trainer.model.policy.generate

    def counting(*args, **kwargs):
        calls.append(len(kwargs["input_ids"]))
        return generate(*args, **kwargs)

    trainer.model.policy.generate = counting
    together = trainer.roll_out(rows, range(24))
    assert calls[0] == 24 and len(calls) > 1 and all(after <= before // 2 for before, after in pairwise(calls))
    for index, row in enumerate(rows):
        calls.clear()
        alone = trainer.roll_out([row], [index])
        assert calls == [1]
        assert alone.answers[0, alone.mask[0]].tolist() == together.answers[index, together.mask[index]].tolist()
        assert alone.stopped[0] == together.stopped[index]


def test_the_generation_config_of_the_policy_does_not_change_what_is_sampled(build_ppo, ready_to_end_dir, tmp_path):
    """Qwen's says repetition_penalty 1.05: answers would be sampled from another distribution than is trained."""
    shutil.copytree(ready_to_end_dir, tmp_path / "policy")
    path = tmp_path / "policy" / "generation_config.json"
    written = {"repetition_penalty": 3.0, "min_new_tokens": 6, "top_k": 1, "do_sample": True, "temperature": 0.1}
    path.write_text(json.dumps({**json.loads(path.read_text()), **written}))
    trainers = [build_ppo(policy=policy) for policy in (ready_to_end_dir, tmp_path / "policy")]
    one, other = (each.roll_out([each.train_dataset[i] for i in range(8)], range(8)) for each in trainers)
    assert other.answers.tolist() == one.answers.tolist()


# A rollout


def test_text_prompts_are_encoded_as_they_stand(build_ppo):
    trainer = build_ppo(rows=[{"prompt": "ab"}])
    row = trainer.train_dataset[0]
    assert row["prompt_ids"] == trainer.processing_class("ab")["input_ids"]
    rollout = trainer.roll_out([row], [0])
    assert rollout.input_ids[0, :2].tolist() == row["prompt_ids"] and rollout.positions[0, 0] == 1


def test_rows_go_through_the_models_in_groups_of_like_length():
    lengths = torch.tensor([40] * 3 + [100] + [39] * 9 + [31] * 4 + [30] * 4 + [20])
    # The longest takes seven neighbours along to make eight; 39 down to 30 are alike, 20 is not: 14 rows, so eight of
    # them, then what is left.
    found = groups_by_length(lengths, 64)
    assert [lengths[group].tolist() for group in found] == [
        [100] + [40] * 3 + [39] * 4, [39] * 5 + [31] * 3, [31] + [30] * 4 + [20]
    ]  # fmt: skip
    assert sorted(torch.cat(found).tolist()) == list(range(22))
    assert [len(group) for group in groups_by_length(lengths, 4)] == [4, 4, 4, 4, 4, 2]
    assert [len(group) for group in groups_by_length(torch.full((64,), 9), 64)] == [64]


def test_repetition_is_the_share_of_three_grams_that_came_before():
    answers = torch.tensor(
        [[1, 2, 3, 1, 2, 3, 1], [5, 5, 5, 5, 9, 9, 9], [5, 5, 5, 5, 5, 5, 5], [1, 2, 3, 4, 5, 6, 7]]
    )
    lengths = torch.tensor([7, 4, 2, 7])
    # 123 231 312 123 231: 2 of 5; 555 555: 1 of 2, whatever stands after the end; two tokens have none
    assert repetition(answers, torch.arange(7) < lengths[:, None]).tolist() == pytest.approx([0.4, 0.5, 0.0, 0.0])
