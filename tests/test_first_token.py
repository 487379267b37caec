"""What a document's first token is predicted from, by the tokenizer's special tokens: eval.perplexity."""

import json
import math

import pytest
from helpers.models import save
from transformers import AutoTokenizer, GPT2LMHeadModel

from data_prep.common.files import write_jsonl
from data_prep.models.bits_per_byte import window_batches
from eval import perplexity


@pytest.fixture
def measure(command, zero_model_dir, tmp_path):
    """measure(texts, bos_token=None, …) is eval.perplexity with such a tokenizer: (exit code, stdout, stderr, result)."""

    def call(texts: list[str], **tokens) -> tuple[int, str, str, dict]:
        tokenizer = AutoTokenizer.from_pretrained(zero_model_dir)
        for name, token in tokens.items():
            setattr(tokenizer, name, token)
        save(GPT2LMHeadModel.from_pretrained(zero_model_dir), tokenizer, tmp_path / "model")
        write_jsonl(tmp_path / "documents.jsonl", [{"text": text} for text in texts])
        given = ("--documents", tmp_path / "documents.jsonl", "--results_dir", tmp_path)
        code, out, err = command(perplexity, "--model", tmp_path / "model", *given)
        result = tmp_path / "perplexity_model.json"
        return code, out, err, json.loads(result.read_text()) if code == 0 else {}

    return call


# One of 262 tokens for a byte, all as likely: 8.033 bits. The second document is longer than the context of 64.
TEXTS = ["ab", "what is right " * 20, "x"]


def test_without_bos_token_it_is_predicted_from_eos_token(measure, tmp_path):
    code, out, err, found = measure(TEXTS, bos_token=None, eos_token="<|end|>")
    assert code == 0, err
    assert (found["first_token_from"], found["tokens"], found["bytes"]) == ("eos_token", 283, 283)
    assert "has no bos_token: a document's first token is predicted from '<|end|>', its eos_token\n" in out
    assert found["metrics"]["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    (batch,) = window_batches(["ab"], tokenizer, 64, 1)
    a, b = tokenizer("ab")["input_ids"]
    assert (batch["input_ids"].tolist(), batch["labels"].tolist()) == ([[tokenizer.eos_token_id, a]], [[a, b]])


def test_without_both_it_is_not_scored_and_counted(measure, tmp_path):
    code, out, err, found = measure(TEXTS, bos_token=None, eos_token=None)
    assert code == 0, err
    assert (found["first_token_from"], found["unscored_tokens"]) == (None, 3)
    assert (found["tokens"], found["bytes"]) == (1 + 279, 1 + 279)  # nothing is left of "x"
    assert found["sources"]["documents"]["documents"] == 2
    assert found["metrics"]["bits_per_byte"] == pytest.approx(math.log2(262), rel=1e-5)
    line = "neither bos_token nor eos_token: the first token of each document, 3 in all, is not scored, and its bytes are "
    assert line in out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("abc" * 30)["input_ids"]  # 90 tokens, of which 89 are scored: windows of 64 and 25
    (batch,) = window_batches(["abc" * 30], tokenizer, 64, 2)
    assert batch["labels"].tolist() == [ids[1:65], ids[65:] + [-100] * 39]
    assert batch["input_ids"][0].tolist() == ids[:64] and batch["input_ids"][1, :25].tolist() == ids[64:89]
    assert batch["bytes"] == [64, 25]
    code, _, err, _ = measure(["x", "y"], bos_token=None, eos_token=None)
    assert code == 1 and "error: no token can be scored: " in err and "Traceback" not in err


def test_with_bos_token_nothing_is_said(measure):
    code, out, err, found = measure(TEXTS)
    assert code == 0 and found["first_token_from"] == "bos_token" and "unscored_tokens" not in found, err
    assert found["tokens"] == 283 and "first token" not in out
