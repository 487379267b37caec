"""Continued pretraining through its command: bits per byte of each source, forgetting, adapters, what is refused."""

import json
import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from accelerate import PartialState
from helpers.models import POSITIONS, save, tiny_config, write_shards
from helpers.processes import by_two
from helpers.recipes import EXACT, LORA, Done, again, differing, is_png, loaded, refused, results, succeeded
from torch import distributed
from transformers import (
    AutoTokenizer,
    GPT2LMHeadModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    TrainerControl,
    TrainerState,
)

from data_prep.common.errors import InputError
from data_prep.models.bits_per_byte import bits_per_byte, heldout_batches
from data_prep.train_tokenizer import train_tokenizer
from recipes.trainers import sources
from recipes.trainers.blocks import check_documents_apart
from recipes.trainers.sources import SourceMonitor

DOMAIN, GENERAL = "abcdefgh", "stuvwxyz"
LETTER = math.log(4)


@pytest.fixture(scope="module")
def base(tiny_tokenizer, tmp_path_factory) -> Path:
    """A model that takes each of a to h for four times as likely as each of the other 254 tokens, whatever comes before.

    The last layer norm gives nearly (1, 0, 0, …) whatever comes in, and there the eight letters have ln 4, the others 0: each of
    the eight has probability 4 / (8 × 4 + 254) = 4 / 286, any other 1 / 286.
    """
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tiny_tokenizer))
    with torch.no_grad():
        model.transformer.ln_f.weight.fill_(1e-5)  # 0 would keep the blocks from learning
        model.transformer.ln_f.bias[0] = 1.0
        model.transformer.wte.weight[:, 0] = 0.0
        model.transformer.wte.weight[tiny_tokenizer.convert_tokens_to_ids(list(DOMAIN)), 0] = LETTER
    return save(model, tiny_tokenizer, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def settings(base, tiny_tokenizer, tmp_path_factory) -> dict:
    """24 blocks of the domain alone, no replay; held out: eight documents of each kind."""
    folder = tmp_path_factory.mktemp("data")
    write_shards(
        folder, tiny_tokenizer(f"{DOMAIN * 3}<|endoftext|>")["input_ids"], tiny_tokenizer.name_or_path, copies=62
    )
    for name, letters in (("domain", DOMAIN), ("general", GENERAL)):
        (folder / f"{name}.jsonl").write_text(json.dumps({"text": letters * 4}) + "\n")
    return {
        "model_name_or_path": base,
        "tokens": folder,
        "heldout": folder / "domain.jsonl",
        "heldout_general": folder / "general.jsonl",
        "max_length": POSITIONS,
        "document_attention": True,
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "eval_steps": 4,
        "logging_steps": 4,
        "learning_rate": 0.05,
        **EXACT,
    }


@pytest.fixture(scope="module")
def full(settings, tmp_path_factory) -> tuple[Path, Done]:
    folder = tmp_path_factory.mktemp("runs") / "full"
    return folder, succeeded(again("continue_pretraining", **settings, muon_lr=0.02, save_steps=4, output_dir=folder))


def test_bits_per_byte_of_each_source_are_those_of_the_model_at_step_0_and_learned_later(full):
    folder, done = full
    found = results(folder, "continue_pretraining")
    domain, general = (found["curves"][f"bits per byte, {source}"] for source in ("domain", "general"))
    # A letter is a token and a byte: log2(286 / 4) and log2(286) bits.
    assert domain[0] == [0, pytest.approx(math.log2(286 / 4), abs=1e-3)]
    assert general[0] == [0, pytest.approx(math.log2(286), abs=1e-3)]
    assert [step for step, _ in domain] == [step for step, _ in general] == [0, 4, 8, 12]
    assert found["bits_per_byte"] == {
        source: {"before": points[0][1], "after": points[-1][1]}
        for source, points in (("domain", domain), ("general", general))
    }
    assert domain[-1][1] < domain[0][1] - 2 and found["tokens"] == 12 * 4 * POSITIONS
    assert f"step 0: bits per byte: domain {domain[0][1]:.3f}, general {general[0][1]:.3f}\n" in done.out
    share = domain[-1][1] / domain[0][1] - 1
    assert f"bits per byte, domain: {domain[0][1]:.3f} → {domain[-1][1]:.3f} ({share:+.1%})\n" in done.out
    assert is_png(folder / "curve.png") and json.loads((folder / "curve.json").read_text()) == found["curves"]
    model, tokenizer = loaded(folder)
    assert model.config.use_cache and tokenizer.eos_token == "<|endoftext|>"


def test_another_kind_of_model_whose_tokenizer_begins_with_nothing_is_continued(settings, tiny_tokenizer, tmp_path):
    """As Qwen's is: grouped heads, rotary positions, no bos_token; a document begins at its end of text."""
    tokenizer = type(tiny_tokenizer).from_pretrained(tiny_tokenizer.name_or_path)
    tokenizer.bos_token = None
    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "head_dim": 16,
        "num_attention_heads": 2,
    }
    shape |= {"num_key_value_heads": 1, "max_position_embeddings": POSITIONS, "vocab_size": len(tokenizer)}
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**shape, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id))
    torch.nn.init.constant_(model.model.norm.weight, 1e-5)  # of 262 tokens each is as likely as the others
    base = save(model, tokenizer, tmp_path / "base")
    assert AutoTokenizer.from_pretrained(base).bos_token is None
    given = {**settings, "model_name_or_path": base, "output_dir": tmp_path / "out", "muon_lr": 0.02}
    succeeded(again("continue_pretraining", **given))
    measured = results(tmp_path / "out", "continue_pretraining")["bits_per_byte"]
    assert measured["domain"]["before"] == pytest.approx(math.log2(262), abs=1e-3)
    assert measured["general"]["before"] == pytest.approx(math.log2(262), abs=1e-3)
    assert measured["domain"]["after"] < 6
    loaded(tmp_path / "out")


def test_forgetting_is_an_alarm_where_nothing_is_replayed(full):
    folder, done = full
    found = results(folder, "continue_pretraining")
    general = dict(found["curves"]["bits per byte, general"])
    assert all(general[step] > general[0] * 1.03 for step in (4, 8, 12))
    # in the second measurement above the budget, and not raised again
    (alarm,) = found["alarms"]
    assert (alarm["step"], alarm["alarm"]) == (8, "forgetting")
    rise = general[8] / general[0] - 1
    line = f"alarm forgetting at update 8: general text takes {general[8]:.3f} bits per byte, {rise:.1%} more than before "
    assert line + "training, and forgetting_budget is 3.0%; give replay text more weight" in done.out
    assert "alarms: forgetting at update 8\n" in done.out


def test_forgetting_ends_the_run_where_it_is_told_to_and_within_the_budget_it_is_none(settings, full, tmp_path):
    given = {**settings, "muon_lr": 0.02}
    succeeded(again("continue_pretraining", **given, stop_on="forgetting", output_dir=tmp_path / "stopped"))
    stopped, whole = (results(folder, "continue_pretraining") for folder in (tmp_path / "stopped", full[0]))
    assert stopped["tokens"] == 8 * 4 * POSITIONS and stopped["alarms"][0]["message"].endswith("; the run is stopped")
    for source in ("domain", "general"):
        name = f"bits per byte, {source}"
        assert stopped["curves"][name] == whole["curves"][name][:3]
    loaded(tmp_path / "stopped")
    done = succeeded(again("continue_pretraining", **given, forgetting_budget=9, output_dir=tmp_path / "within"))
    assert results(tmp_path / "within", "continue_pretraining")["alarms"] == [] and "alarm" not in done.out


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(full, settings, tmp_path):
    folder = tmp_path / "resumed"
    shutil.copytree(full[0], folder)
    shutil.rmtree(folder / "checkpoint-12")
    for name in ("config.json", "model.safetensors", "continue_pretraining.json"):
        (folder / name).unlink()
    (folder / "settings.json").rename(folder / "unfinished.json")
    done = succeeded(again("continue_pretraining", **settings, muon_lr=0.02, save_steps=4, output_dir=folder))
    assert f"resuming from {folder}/checkpoint-8;" in done.out
    assert differing(full[0], folder) == set()
    one, other = (results(each, "continue_pretraining") for each in (full[0], folder))
    assert one["bits_per_byte"] == other["bits_per_byte"] and one["alarms"] == other["alarms"]
    for name in ("loss", "bits per byte, domain", "bits per byte, general"):
        assert one["curves"][name] == other["curves"][name]


def test_lora_and_embeddings_are_merged_into_the_model_that_was_measured(base, settings, tmp_path):
    given = {**settings, **LORA, **EXACT, "lora_modules_to_save": "wte", "output_dir": tmp_path / "lora"}
    succeeded(again("continue_pretraining", **given))
    model, tokenizer = loaded(tmp_path / "lora")
    assert model.lm_head.weight is model.transformer.wte.weight
    matrices = {
        f"transformer.h.{block}.{name}.weight"
        for block in (0, 1)
        for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert differing(base, tmp_path / "lora") <= matrices | {"transformer.wte.weight"}
    assert "transformer.wte.weight" in differing(base, tmp_path / "lora")
    measured = results(tmp_path / "lora", "continue_pretraining")["bits_per_byte"]
    for source, file in (("domain", settings["heldout"]), ("general", settings["heldout_general"])):
        bits, _ = bits_per_byte(model, heldout_batches([file], tokenizer, POSITIONS), "cpu")
        assert bits == pytest.approx(measured[source]["after"], abs=1e-5)
    assert measured["domain"]["after"] < measured["domain"]["before"] - 0.5
    done = again("continue_pretraining", **{**given, "merge_adapter": False, "output_dir": tmp_path / "adapter"})
    refused(done, "lora_modules_to_save: embeddings and head of this model are one matrix, which an adapter by itself")


def test_what_is_trained_beside_quantized_weights_is_the_model_that_was_measured(settings, tiny_tokenizer, tmp_path):
    pytest.importorskip("bitsandbytes", reason="needs the extra quantization")
    torch.manual_seed(0)
    base = save(GPT2LMHeadModel(tiny_config(tiny_tokenizer)), tiny_tokenizer, tmp_path / "base")
    given = {**settings, **LORA, **EXACT, "load_in_4bit": True, "lora_modules_to_save": "wte", "learning_rate": 0.02}
    succeeded(again("continue_pretraining", **{**given, "model_name_or_path": base, "output_dir": tmp_path / "out"}))
    model, tokenizer = loaded(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight
    measured = results(tmp_path / "out", "continue_pretraining")["bits_per_byte"]["domain"]
    bits, _ = bits_per_byte(model, heldout_batches([settings["heldout"]], tokenizer, POSITIONS), "cpu")
    assert bits == pytest.approx(measured["after"], abs=1e-3) and bits < measured["before"] - 2


def test_tokens_of_another_tokenizer_or_another_end_of_documents_are_refused(settings, tiny_model_dir, tmp_path):
    # as many entries, and another first merge
    other = train_tokenizer(iter(["hello hello hello"] * 9), 263)
    same_size = train_tokenizer(iter(["world world world"] * 9), 263)
    base = save(GPT2LMHeadModel(tiny_config(same_size)), same_size, tmp_path / "base")
    other.save_pretrained(tmp_path / "other")
    write_shards(tmp_path / "tokens", [5] * 2 * POSITIONS + [0], tmp_path / "other", entries=263)
    given = {**settings, "output_dir": tmp_path / "out"}
    done = again("continue_pretraining", **{**given, "model_name_or_path": base})
    refused(done, f"{settings['tokens']}: tokenized with 262 entries, but {base} has 263; run data_prep.mix_corpus")
    done = again("continue_pretraining", **{**given, "model_name_or_path": base, "tokens": tmp_path / "tokens"})
    refused(done, f"{tmp_path / 'tokens'}: tokenized with a tokenizer other than {base}, with as many entries; run")
    # The assistant's tokenizer is the base model's, and ends at another token.
    done = again("continue_pretraining", **{**given, "model_name_or_path": tiny_model_dir})
    refused(done, "its documents end with <|endoftext|>, and ", f"{tiny_model_dir} ends its own with <|end|>; run ")
    assert not (tmp_path / "out").exists()


def test_what_cannot_show_forgetting_is_refused(settings, tiny_tokenizer, tmp_path):
    given = {**settings, "output_dir": tmp_path / "out"}
    without = {key: value for key, value in given.items() if key != "heldout_general"}
    refused(
        again("continue_pretraining", **without), "heldout_general: expected documents of general text that training"
    )
    (tmp_path / "seen.jsonl").write_text(json.dumps({"text": DOMAIN * 3}) + "\n")
    done = again("continue_pretraining", **{**given, "heldout_general": tmp_path / "seen.jsonl"})
    refused(done, f"{tmp_path / 'seen.jsonl'}: 1 of 1 held-out documents is trained on too")
    done = again("continue_pretraining", **{**given, "eval_steps": 0})
    refused(done, "error: eval_steps: expected at least 1, or a share of the run such as 0.1, found 0; ")
    refused(again("continue_pretraining", **given, forgetting_budget=-1), "forgetting_budget: expected at least 0")
    refused(
        again("continue_pretraining", **given, stop_on="forgeting"),
        "no alarm is called forgeting; there are forgetting",
    )
    refused(
        again("continue_pretraining", **{**given, "max_length": 65}),
        "max_length is 65, but the model has 64 positions",
    )


def measured(bits: float) -> list[float]:
    """What is logged of two sources where this process has measured so much of each."""
    monitor, state = SourceMonitor(0.03, []), TrainerState(max_steps=9)
    monitor.heldout, monitor.paused, device = {"domain": [], "general": []}, 0.0, torch.device("meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "bits_per_byte", lambda model, batches, device: (bits, 0.0))
        monitor.measure(SimpleNamespace(device=device), state, TrainerControl(), SimpleNamespace(device=device))
    return [state.log_history[0][f"eval_{source}_bits_per_byte"] for source in ("domain", "general")]


def measured_by_one_of_two() -> list[float]:
    os.environ["LOCAL_RANK"] = os.environ["RANK"]
    assert PartialState(cpu=True).num_processes == 2
    return measured(0.1 + distributed.get_rank())


def test_what_is_measured_never_lies_on_the_device_which_may_have_no_64_bits():
    assert measured(0.1) == [0.1, 0.1]


def test_of_two_processes_all_have_what_the_first_has_measured_to_the_last_bit():
    assert by_two(measured_by_one_of_two) == [[0.1, 0.1], [0.1, 0.1]]


class SeesAll(GPT2LMHeadModel):
    """A model that is told where documents begin, and masks nothing."""

    def forward(self, input_ids, position_ids=None, **kwargs):
        mask = torch.ones_like(input_ids)
        return super().forward(input_ids, position_ids=position_ids, attention_mask=mask, **kwargs)


class WithoutPositions(GPT2LMHeadModel):
    def forward(self, input_ids, **kwargs):
        return super().forward(input_ids, **kwargs)


def test_a_model_that_lets_documents_see_each_other_is_found(tiny_tokenizer):
    for seed in range(3):
        torch.manual_seed(seed)
        check_documents_apart(GPT2LMHeadModel(tiny_config(tiny_tokenizer)).eval(), tiny_tokenizer.eos_token_id)
        with pytest.raises(InputError, match="documents of a row see each other"):
            check_documents_apart(SeesAll(tiny_config(tiny_tokenizer)).eval(), tiny_tokenizer.eos_token_id)
    with pytest.raises(InputError, match="WithoutPositions takes no positions"):
        check_documents_apart(WithoutPositions(tiny_config(tiny_tokenizer)).eval(), tiny_tokenizer.eos_token_id)
