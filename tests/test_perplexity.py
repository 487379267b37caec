"""eval.perplexity, with figures worked out by hand."""

import math

import pytest
from helpers.recipes import results

from data_prep.common.files import write_jsonl
from data_prep.models.bits_per_byte import heldout_batches
from data_prep.tokens.corpus_tokens import encoded_documents
from eval import perplexity


def test_zero_model_spreads_its_bets_evenly(command, zero_model_dir, tmp_path):
    # 262 entries, all as likely, and a token per byte: log2(262) bits per byte, perplexity 262. The second document is
    # longer than the context of 64.
    texts = ["yes and no", "what is right " * 20]
    write_jsonl(tmp_path / "documents.jsonl", [{"text": text} for text in texts])
    command_line = ("--model", zero_model_dir, "--documents", tmp_path / "documents.jsonl", "--results_dir", tmp_path)
    code, out, err = command(perplexity, *command_line)
    assert code == 0, err
    found = results(tmp_path, "perplexity_base")
    assert found["metrics"]["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    assert found["metrics"]["perplexity_per_token"] == pytest.approx(262, rel=1e-4)
    assert (found["tokens"], found["bytes"], found["context"]) == (10 + 280, 10 + 280, 64)
    assert "8.033 bits per byte, perplexity 262.0 per token, on 290 bytes (290 tokens)" in out


def test_the_text_of_a_control_token_is_characters_as_in_a_corpus(command, zero_model_dir, tiny_tokenizer, tmp_path):
    write_jsonl(tmp_path / "documents.jsonl", [{"text": "a<|endoftext|>b"}])  # 15 bytes, a token each
    (batch,) = heldout_batches(tmp_path / "documents.jsonl", tiny_tokenizer, 64)
    (ids,) = encoded_documents(tmp_path / "documents.jsonl", tiny_tokenizer.name_or_path)
    assert batch["labels"].tolist() == [ids[:-1].tolist()] and batch["labels"].shape == (1, 15)
    assert tiny_tokenizer.eos_token_id not in batch["labels"] and batch["bytes"] == [15]
    command_line = ("--model", zero_model_dir, "--documents", tmp_path / "documents.jsonl", "--results_dir", tmp_path)
    code, _, err = command(perplexity, *command_line)
    assert code == 0, err
    found = results(tmp_path, "perplexity_base")
    assert (found["tokens"], found["bytes"]) == (15, 15)
    assert found["metrics"]["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)


def test_windows_cover_every_token_once(tiny_tokenizer, tmp_path):
    text = "abcdefg" * 3  # 21 tokens in windows of 8: 8, 8 and 5
    write_jsonl(tmp_path / "one.jsonl", [{"text": text}])
    (batch,) = heldout_batches(tmp_path / "one.jsonl", tiny_tokenizer, 8)
    ids = tiny_tokenizer(text)["input_ids"]
    assert batch["labels"].tolist() == [ids[:8], ids[8:16], ids[16:] + [-100] * 3]
    assert batch["input_ids"][0].tolist() == [tiny_tokenizer.bos_token_id, *ids[:7]]
    assert batch["input_ids"][1].tolist() == ids[7:15]  # a window starts from the token before it, and knows no more
    assert batch["bytes"] == [8, 8, 5]
