"""Warnings that are dropped are untrue here, and no others are dropped."""

import logging

import pytest
import torch
from datasets import Dataset
from helpers.models import POSITIONS
from helpers.recipes import EXACT, again, conversation, ranking, refused, succeeded
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer

from data_prep.common.files import write_json, write_jsonl
from recipes.trainers import quiet


@pytest.fixture
def said():
    """said(logger, message): whether the message comes out of the logger."""

    def call(name: str, message: str) -> bool:
        logger = logging.getLogger(name)
        return bool(logger.filter(logging.LogRecord(name, logging.WARNING, "", 0, message, (), None)))

    yield call
    for name in ("trl.trainer.sft_trainer", "transformers.modeling_utils"):
        logging.getLogger(name).filters.clear()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("strategy", ["bfd", "bfd_split"])
def test_packed_samples_do_not_see_each_other(strategy, attention, tiny_model_dir, tiny_chat_tokenizer, tmp_path):
    """As TRL packs them: the logits of each sample are those it has alone."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, attn_implementation=attention)
    texts = ["abcdefgh", "ijk", "lmnopqrstu", "vw"]
    ids = [tiny_chat_tokenizer(text)["input_ids"] for text in texts]
    size = {"per_device_train_batch_size": 4, "max_length": POSITIONS, "packing": True, "packing_strategy": strategy}
    args = SFTConfig(output_dir=str(tmp_path), gradient_checkpointing=False, **size, **EXACT)
    dataset = Dataset.from_dict({"input_ids": ids})
    trainer = SFTTrainer(model, args, train_dataset=dataset, processing_class=tiny_chat_tokenizer)
    (batch,) = trainer.get_train_dataloader()
    assert batch["input_ids"].shape == (1, sum(map(len, ids))) and "attention_mask" not in batch
    model.eval()
    with torch.no_grad():
        inputs = {key: batch[key] for key in ("input_ids", "position_ids")}
        packed = model(**inputs, use_cache=False).logits[0]
        starts = [*(batch["position_ids"][0] == 0).nonzero().flatten().tolist(), packed.shape[0]]
        for start, end in zip(starts, starts[1:], strict=False):
            alone = model(input_ids=batch["input_ids"][:, start:end]).logits[0]
            assert torch.allclose(packed[start:end], alone, atol=1e-5)
    assert sorted(end - start for start, end in zip(starts, starts[1:], strict=False)) == sorted(map(len, ids))


def test_what_is_said_of_packing_is_dropped_where_it_is_untrue_alone(said):
    trainer = "trl.trainer.sft_trainer"
    untrue = "[RANK 0] You are using packing, but the attention implementation is not set to a supported …"
    quiet.packed_apart("wrapped", "sdpa")
    quiet.packed_apart(None, "sdpa")
    quiet.packed_apart("bfd", "flex_attention")
    assert said(trainer, untrue)
    quiet.packed_apart("bfd", "sdpa")
    assert not said(trainer, untrue) and said(trainer, "You are using packing, but something else is wrong")


def test_a_new_head_is_no_news_but_another_new_weight_is(said):
    quiet.new_head()
    report = "LOAD REPORT\nKey | Status |\n----+----+-\nscore.weight | MISSING |\n"
    assert not said("transformers.modeling_utils", report)
    assert said("transformers.modeling_utils", report + "transformer.wte.weight | MISSING |\n")
    assert said("transformers.modeling_utils", report.replace("score", "transformer.wte"))


@pytest.fixture
def data(tmp_path, tiny_model_dir):
    write_json(tmp_path / "chats.json", [conversation(letter, letter, "yes") for letter in "abcdefgh"])
    write_jsonl(tmp_path / "ranked.jsonl", [ranking(letter, {"yes": 0, "no": 1}) for letter in "abcdefgh"])
    size = {"max_steps": 1, "save_strategy": "no", "per_device_train_batch_size": 8, "max_length": POSITIONS, **EXACT}
    return {"model_name_or_path": tiny_model_dir, "output_dir": tmp_path / "out", **size}


WARNINGS = ("Warning", "MISSING", "cross-contamination", "Padding-free", "deprecated", "recommend")


def test_the_recipes_print_no_warning_that_is_not_for_the_user(data, tmp_path):
    sft = {**data, "conversations": tmp_path / "chats.json", "max_new_tokens": 4, "packing": True}
    rankings = {"rankings": tmp_path / "ranked.jsonl"}
    for recipe, given in {"sft": sft, "reward": {**data, **rankings}, "dpo": {**data, **rankings}}.items():
        done = succeeded(again(recipe, **{**given, "output_dir": tmp_path / recipe}))
        assert [word for word in WARNINGS if word in done.err] == [], done.err


def test_an_option_that_is_deprecated_is_said_to_be_where_it_is_given(data, tmp_path):
    given = {**data, "conversations": tmp_path / "chats.json", "max_new_tokens": 4, "gradient_checkpointing": False}
    done = succeeded(again("sft", **given))
    assert "`gradient_checkpointing` is deprecated" in done.err


def test_an_end_of_sequence_that_is_no_token_is_refused(data, tmp_path):
    given = {**data, "conversations": tmp_path / "chats.json", "eos_token": "<|nope|>"}
    refused(again("sft", **given), "error: eos_token: found '<|nope|>', which is not in the vocabulary of ")
