"""LoRA with `lora_modules_to_save` on a model whose embeddings and head are one matrix: what is trained is what is saved."""

import pytest
import torch
from helpers.models import tiny_config
from helpers.recipes import EXACT, LORA, again, conversation, differing, loaded, refused, results, succeeded
from peft import LoraConfig, get_peft_model
from transformers import GPT2LMHeadModel

from data_prep.common.errors import InputError
from data_prep.common.files import write_json
from data_prep.tokens.sft_dataset import load_tokenized
from recipes.trainers.adapter import check_tied, keep_tied


@pytest.fixture
def settings(tiny_model_dir, tmp_path) -> dict:
    for name, letters in {"train": "abcdefgh", "heldout": "op"}.items():
        write_json(tmp_path / f"{name}.json", [conversation(letter, letter, "yes") for letter in letters])
    given = {"model_name_or_path": tiny_model_dir, "conversations": tmp_path / "train.json", "max_length": 64}
    given |= {"heldout": tmp_path / "heldout.json", "max_steps": 8, "learning_rate": 0.02, "logging_steps": 1}
    return {**given, **LORA, **EXACT, "max_new_tokens": 4, "assistant_only_loss": True, "lora_modules_to_save": "wte"}


def test_fine_tuning_trains_and_saves_them_as_one(settings, tiny_model_dir, tmp_path):
    succeeded(again("sft", **settings, output_dir=tmp_path / "sft"))
    model, tokenizer = loaded(tmp_path / "sft")
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.transformer.wte.weight
    assert "transformer.wte.weight" in differing(tiny_model_dir, tmp_path / "sft")
    found = results(tmp_path / "sft", "sft")["metrics"]
    rows = load_tokenized(settings["heldout"], tokenizer, 64)
    losses = [model(**{key: torch.tensor([row[key]]) for key in ("input_ids", "labels")}).loss.item() for row in rows]
    assert found["eval_loss"] == pytest.approx(sum(losses) / 2, abs=1e-4)  # each answer has four tokens
    assert found["loss_last"] < found["loss_first"] - 1


@pytest.fixture
def adapted(tiny_tokenizer):
    """adapted("wte", …) is a model whose embeddings and head are one matrix, with an adapter that trains these in full."""

    def build(*modules: str, tied: bool = True):
        torch.manual_seed(0)
        model = GPT2LMHeadModel(tiny_config(tiny_tokenizer, n_layer=1, tie_word_embeddings=tied))
        settings = LoraConfig(r=1, target_modules=["c_fc"], fan_in_fan_out=True, modules_to_save=[*modules] or None)
        return get_peft_model(model, settings)

    return build


@pytest.mark.parametrize("modules", [("wte",), ("lm_head",), ("wte", "lm_head")])
def test_either_is_trained_for_both_and_merged_for_both(adapted, modules):
    model = adapted(*modules)
    keep_tied(model, merge=True)
    check_tied(model)
    ids = torch.tensor([[5, 6, 7]])
    trained = [weight for name, weight in model.named_parameters() if weight.requires_grad and "lora" not in name]
    assert [weight.shape for weight in trained] == [(262, 32)]
    with torch.no_grad():
        trained[0].add_(torch.randn_like(trained[0]))
    before = model(ids).logits
    merged = model.merge_and_unload()
    assert merged.lm_head.weight is merged.transformer.wte.weight and torch.equal(merged.lm_head.weight, trained[0])
    assert merged.config.tie_word_embeddings and torch.allclose(merged(ids).logits, before, atol=1e-4)


def test_where_they_cannot_be_one_it_is_an_error(adapted):
    with pytest.raises(
        InputError, match="lora_modules_to_save: .* are one matrix, which an adapter by itself cannot hold"
    ):
        keep_tied(adapted("wte"), merge=False)
    with pytest.raises(
        InputError, match="lora_modules_to_save: .* this recipe would train one of them alone: leave them"
    ):
        check_tied(adapted("lm_head"))
    for model in (adapted(), adapted("ln_f"), adapted("wte", tied=False), adapted().unload()):
        check_tied(model)
    for model in (adapted(), adapted("wte", tied=False)):
        keep_tied(model, merge=False)


@pytest.mark.slow
def test_recipes_that_do_not_tie_them_refuse_before_training(settings, tmp_path):
    refused(
        again("sft", **settings, merge_adapter=False, output_dir=tmp_path / "sft"),
        "lora_modules_to_save: embeddings and head of this model are one matrix, which an adapter by itself cannot hold",
    )
    rows = [{"prompt": letter, "completions": ["yes", "no"], "ranks": [0, 1]} for letter in "abcd"]
    write_json(tmp_path / "rankings.json", rows)
    given = {key: settings[key] for key in ("model_name_or_path", "max_length", "max_steps", "lora_modules_to_save")}
    for recipe in ("dpo", "kto"):
        done = again(
            recipe, **{**given, **LORA, **EXACT}, rankings=tmp_path / "rankings.json", output_dir=tmp_path / recipe
        )
        refused(done, "lora_modules_to_save: ", "this recipe would train one of them alone: leave them out")
        assert not list((tmp_path / recipe).glob("*.safetensors"))
