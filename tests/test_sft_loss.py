"""SFT's loss over chunks (recipes/trainers/sft_loss.py) against TRL's, which computes everything twice."""

import pytest
import torch
from trl.trainer import sft_trainer

from recipes.planning import memory
from recipes.trainers import sft_loss

TRLS = sft_trainer._chunked_cross_entropy_loss  # before a trainer of ours puts its own in this place
BIAS = torch.linspace(-0.5, 0.5, 11)


def compute(function, given: dict, labelled: bool = True) -> list[torch.Tensor]:
    """The four numbers of a loss and its gradients, of 2 rows of 40 tokens, 9 wide, 11 entries, in chunks of 16."""
    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 40, 9, requires_grad=True), torch.randn(11, 9, requires_grad=True)
    labels = torch.where(torch.rand(2, 40) < 0.6, torch.randint(0, 11, (2, 40)), -100)
    if not labelled:
        labels[:] = -100
    (loss, *others) = function(hidden, weight, 16, **{"labels": labels} | given)
    loss.backward()
    return [loss, *others, hidden.grad, weight.grad]


@pytest.mark.parametrize("kept", [sft_loss.KEPT, 0], ids=["kept", "recomputed"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"num_items_in_batch": 100},
        {"num_items_in_batch": torch.tensor(100)},
        {"logit_scale": 0.5, "final_logit_softcapping": 3.0},
        {"lm_head_bias": BIAS},
        {"shift_labels": torch.arange(80).reshape(2, 40) % 11},
    ],
    ids=["mean", "number", "tensor", "scaled", "bias", "shifted"],
)
def test_every_number_and_gradient_is_trls_to_the_last_bit(kept, given, monkeypatch):
    monkeypatch.setattr(sft_loss, "KEPT", kept)
    ours, trls = compute(sft_loss.chunked_loss, given), compute(TRLS, given)
    assert all(torch.equal(a, b) for a, b in zip(ours, trls, strict=True))
    assert ours[0] > 0 and ours[-1].abs().sum() > 0


def test_a_batch_without_labels_has_a_zero_loss_that_reaches_every_weight():
    loss, correct, entropy, number, hidden, weight = compute(sft_loss.chunked_loss, {}, labelled=False)
    assert [loss, correct, entropy, number] == [0, 0, 0, 0]
    assert torch.equal(hidden, torch.zeros(2, 40, 9)) and torch.equal(weight, torch.zeros(11, 9))


def test_a_chunk_is_computed_once_where_all_are_small_and_again_for_the_gradient_where_not(monkeypatch):
    computed = []
    once = sft_loss.chunk_sums
    monkeypatch.setattr(sft_loss, "chunk_sums", lambda *given: computed.append(len(given[0])) or once(*given))
    compute(sft_loss.chunked_loss, {"shift_labels": torch.arange(80).reshape(2, 40) % 11})
    assert computed == [16] * 5
    monkeypatch.setattr(sft_loss, "KEPT", 4 * 80 * 11 - 1)  # a byte short of 80 tokens' 11 entries
    computed.clear()
    compute(sft_loss.chunked_loss, {"shift_labels": torch.arange(80).reshape(2, 40) % 11})
    assert computed == [16] * 10


def test_the_plan_counts_what_is_kept_and_a_chunk_of_trls():
    assert (memory.KEPT, memory.CHUNK) == (sft_loss.KEPT, sft_trainer._CHUNKED_LM_HEAD_CHUNK_SIZE)
