"""Packed conversations in rows (recipes/trainers/packed_rows.py) against TRL's, which joins the rows of a batch to one."""

import pytest
import torch
from datasets import Dataset
from helpers.models import POSITIONS
from helpers.recipes import EXACT
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from recipes.trainers.packed_rows import PackedSFTTrainer, number_of_tokens

TEXTS = ["abcdefgh", "ijk", "lmnopqrstu", "vw", "xyz"]


@pytest.fixture(params=["sdpa", "eager"])
def trainer_of(request, tiny_model_dir, tiny_chat_tokenizer, tmp_path):
    """A trainer of a class, on TEXTS packed into rows of POSITIONS tokens, one update of all of them."""
    ids = [tiny_chat_tokenizer(text)["input_ids"] for text in TEXTS * 6]

    def build(kind: type) -> SFTTrainer:
        size = {"per_device_train_batch_size": 4, "max_length": POSITIONS, "packing": True, "packing_strategy": "bfd"}
        once = {"num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no"}
        args = SFTConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **size, **once, **EXACT)
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation=request.param)
        dataset = Dataset.from_dict({"input_ids": ids, "labels": ids})
        return kind(model, args, train_dataset=dataset, processing_class=tiny_chat_tokenizer)

    return build


def test_conversations_in_a_row_are_read_as_alone(trainer_of):
    trainer = trainer_of(PackedSFTTrainer)
    (batch,) = trainer.get_train_dataloader()
    rows, columns = batch["input_ids"].shape
    assert rows > 1 and columns <= POSITIONS and "attention_mask" not in batch
    model, seen = trainer.model.eval(), []
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row in range(rows):
            starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
            for start, end in zip(starts, [*starts[1:], columns], strict=True):
                ids, labels = batch["input_ids"][row, start:end], batch["labels"][row, start:end]
                assert labels[0] == -100 and labels[1:].equal(ids[1:])
                if end - start > 1:  # else it is padding
                    seen.append(trainer.processing_class.decode(ids))
                    assert torch.allclose(logits[row, start:end], model(input_ids=ids[None]).logits[0], atol=1e-5)
    assert sorted(seen) == sorted(TEXTS * 6)


def test_loss_weights_and_number_of_tokens_are_those_of_one_joined_row(trainer_of):
    ours, joined = trainer_of(PackedSFTTrainer), trainer_of(SFTTrainer)
    for trainer in (ours, joined):
        trainer.train()
    (log, *_), (other, *_) = ours.state.log_history, joined.state.log_history
    assert log["loss"] == pytest.approx(other["loss"], rel=1e-5)
    assert log["num_tokens"] == other["num_tokens"] == 6 * sum(map(len, TEXTS))
    for weight, same in zip(ours.model.parameters(), joined.model.parameters(), strict=True):
        assert torch.allclose(weight, same, atol=1e-6)


def test_padding_is_not_counted():
    assert number_of_tokens(torch.tensor([[0, 1, 0, 1, 2], [0, 1, 0, 0, 0], [0, 1, 2, 3, 4]])) == 5 + 2 + 5
