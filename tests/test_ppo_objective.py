"""PPOTrainer optimises the objective of TRL 1.12's trainer: losses and gradients of one update on the same answers.

Both go through their own `train()`; TRL's is given the answers that ours sampled. It differs from ours on purpose in
where the score sits and in which values count, both by one line of its code (`TRL_LINE`): it runs on these answers as
it is and with that line changed, and once on answers of its own.
"""

import inspect
import math
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from helpers.ppo import quickstart_like_run
from torch.nn.utils.rnn import pad_sequence
from trl.experimental.ppo import ppo_trainer as trl_ppo

from recipes.trainers.ppo.benchmark import SETTINGS, build_trainer
from recipes.trainers.ppo.rollout import Rollout

QUESTIONS = ["a?", "b b?", "c c c?", "d?", "e e?", "f f f?", "g?", "a?"]  # one of them twice
TRL_LINE, TRL_LINE_AS_OURS = "sequence_lengths_p1 = sequence_lengths + 1", "sequence_lengths_p1 = sequence_lengths"
SIZES = {
    "per_device_train_batch_size": 8,
    "local_rollout_forward_batch_size": 8,
    "response_length": 12,
    "num_ppo_epochs": 1,
    "seed": 42,
}


class Update(NamedTuple):
    """What a trainer logs of its one update, and the gradients it left; the weights stay as they were."""

    ratio: float
    log_ratio_rms: float  # a mean of ratios could hide some above 1 and some below
    policy_loss: float
    value_loss: float
    policy_gradient: torch.Tensor
    value_gradient: torch.Tensor


def one_update(which: str, run: Path, output_dir: Path, train) -> Update:
    gradients, parameters = [], []

    def optimizer(weights):
        parameters.extend(weights)
        still = torch.optim.SGD(weights, lr=0.0)
        still.register_step_pre_hook(keep)
        return still

    def keep(*_) -> None:
        if not gradients and any(weight.grad is not None for weight in parameters):
            gradients.extend(torch.zeros_like(w) if w.grad is None else w.grad.clone() for w in parameters)

    trainer = build_trainer(which, run, {**SETTINGS, **SIZES}, 1, output_dir, optimizer=optimizer)
    size = len(list(trainer.accelerator.unwrap_model(trainer.model).policy.parameters()))
    train(trainer)
    logged = {key: value for row in trainer.state.log_history for key, value in row.items()}
    stock_names = ("val/ratio", "policy/approxkl_avg", "loss/policy_avg", "loss/value_avg")
    our_names = ("policy/ratio", "policy/approxkl", "loss/policy", "loss/value")
    ratio, approxkl, *losses = (logged[name] for name in (stock_names if which == "stock" else our_names))
    halves = (torch.cat([part.flatten() for part in half]) for half in (gradients[:size], gradients[size:]))
    return Update(ratio, math.sqrt(2 * approxkl), *losses, *halves)


def on_the_answers_of(rollout: Rollout, train):
    """`train` of TRL's with the answers of `rollout` where it would sample some."""
    answers: dict[tuple, list] = {}
    for row, mask in enumerate(rollout.mask):
        prompt = rollout.input_ids[row, : int(rollout.positions[row, 0]) + 1]
        answers.setdefault(tuple(prompt.tolist()), []).append(rollout.answers[row][mask])

    def batch_generation(model, queries, size, pad_token_id, generation_config):
        given = [answers[tuple(row[row != pad_token_id].tolist())].pop() for row in queries]
        both = torch.cat([queries, pad_sequence(given, batch_first=True, padding_value=pad_token_id)], 1)
        logits = trl_ppo.forward(model, both, pad_token_id).logits[:, queries.shape[1] - 1 : -1]
        return both, logits / generation_config.temperature

    def run(trainer) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trl_ppo, "batch_generation", batch_generation)
            train(trainer)

    return run


def train_with_line_as_ours(trainer) -> None:
    source = textwrap.dedent(inspect.getsource(type(trainer).train))
    assert source.count(TRL_LINE) == 1, "is this TRL 1.12?"
    scope = {}
    # The original's text, so that nothing else can differ from it: a copy here would have to be checked against it.
    exec(source.replace(TRL_LINE, TRL_LINE_AS_OURS), vars(trl_ppo), scope)
    scope["train"](trainer)


@pytest.fixture(scope="module")
def rollouts() -> list[Rollout]:
    return []


@pytest.fixture(scope="module")
def updates(rollouts, tiny_chat_tokenizer, tmp_path_factory) -> dict[str, Update]:
    folder = tmp_path_factory.mktemp("objective")
    run = quickstart_like_run(folder / "run", tiny_chat_tokenizer, QUESTIONS)

    def keeping_its_rollout(trainer) -> None:
        update = trainer.update

        def keeping(model, rollout):
            rollouts.append(rollout)
            return update(model, rollout)

        trainer.update = keeping
        trainer.train()

    def plain(trainer) -> None:
        trainer.train()

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)  # it would decide the precision in both trainers
        found = {"ours": one_update("ours", run, folder / "ours", keeping_its_rollout)}
        (rollout,) = rollouts
        for name, train in (
            ("stock_own_answers", plain),
            ("stock", on_the_answers_of(rollout, plain)),
            ("stock_adjusted", on_the_answers_of(rollout, train_with_line_as_ours)),
        ):
            found[name] = one_update("stock", run, folder / name, train)
    return found


def test_in_the_first_epoch_a_policy_is_as_likely_as_it_was(updates):
    for update in updates.values():
        assert update.ratio == pytest.approx(1, abs=1e-4) and update.log_ratio_rms < 1e-4


def test_losses_are_those_of_trl_with_the_scores_place_and_values_as_ours(updates):
    ours, adjusted = updates["ours"], updates["stock_adjusted"]
    assert ours.policy_loss == pytest.approx(adjusted.policy_loss, abs=1e-4)
    assert ours.value_loss == pytest.approx(adjusted.value_loss, abs=1e-4)
    assert abs(ours.value_loss - updates["stock"].value_loss) > 1, "or the line that is replaced does nothing"


def test_gradients_are_those_of_trl_with_the_scores_place_and_values_as_ours(updates, rollouts):
    ours, adjusted = updates["ours"], updates["stock_adjusted"]
    # TRL whitens by a variance over n - 1 tokens, ours over n: our advantages are so much longer.
    tokens = int(rollouts[0].mask.sum())
    policy_gradient = ours.policy_gradient / math.sqrt(tokens / (tokens - 1))
    for found, expected in (
        (policy_gradient, adjusted.policy_gradient),
        (ours.value_gradient, adjusted.value_gradient),
    ):
        assert (found - expected).norm() / expected.norm() < 1e-3 and expected.norm() > 0
