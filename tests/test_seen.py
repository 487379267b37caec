"""What a recipe says it has trained on is what training has seen, not what there was."""

import pytest
from helpers.recipes import EXACT, again, ranking, results, succeeded

from data_prep.common.files import write_jsonl

SHORT = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "logging_steps": 1, **EXACT}


@pytest.mark.parametrize(
    ("settings", "told", "number"),
    [
        ({"packing": False}, "fine-tuned on 8 of 64 conversations in ", 8),
        ({"packing": False, "gradient_accumulation_steps": 3}, "fine-tuned on 24 of 64 conversations in ", 24),
        ({"packing": False, "max_steps": 17}, "fine-tuned on 64 of 64 conversations in ", 64),
        # 64 conversations of 8 tokens, 4 of them marks of turns, are 8 rows of 64
        ({"packing": True, "per_device_train_batch_size": 1}, "fine-tuned on about 16 of 64 conversations in ", 16),
        ({"packing": True}, "fine-tuned on 64 of 64 conversations in ", 64),
    ],
)
def test_sft_counts_the_conversations_that_it_has_seen(tiny_model_dir, tmp_path, settings, told, number):
    turns = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "ye"}]
    write_jsonl(tmp_path / "train.jsonl", [{"messages": turns}] * 64)
    given = {"model_name_or_path": tiny_model_dir, "conversations": tmp_path / "train.jsonl", "max_length": 64}
    done = succeeded(again("sft", **given, **{**SHORT, **settings}, max_new_tokens=2, output_dir=tmp_path / "out"))
    assert told in done.out
    assert results(tmp_path / "out", "sft")["conversations"] == number


@pytest.mark.parametrize(
    ("recipe", "noun", "told"),
    [("reward", "rankings", "a reward model on 8 of 12 rankings in "), ("dpo", "pairs", " on 8 of 12 pairs in ")],
)
def test_reward_and_dpo_count_the_rankings_that_they_have_seen(tiny_model_dir, tmp_path, recipe, noun, told):
    write_jsonl(tmp_path / "train.jsonl", [ranking(letter, {"no": 1, "yes": 0}) for letter in "abcdefghijkl"])
    given = {"model_name_or_path": tiny_model_dir, "rankings": tmp_path / "train.jsonl", "max_length": 64}
    done = succeeded(again(recipe, **given, **SHORT, output_dir=tmp_path / "out"))
    assert told in done.out
    assert results(tmp_path / "out", recipe)[noun] == 8
