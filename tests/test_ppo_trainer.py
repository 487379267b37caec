"""PPOTrainer in this process: its arguments, the functions that reward, its optimizer, what it saves."""

import ast
import re
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers.recipes import (
    ROOT,
    loaded,
)
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import (
    AutoModelForSequenceClassification,
    TrainingArguments,
)

from data_prep.common.errors import InputError
from data_prep.rewards import chrf, exact_match
from data_prep.train_tokenizer import END_OF_TURN
from recipes.trainers.ppo.config import REFUSED, PPOConfig
from recipes.trainers.ppo.policy_and_value import answer_logprobs

# Arguments


PPO = ROOT / "recipes" / "trainers" / "ppo"


def read_as_args(path: Path) -> set[str]:
    """Every name that a module reads as `args.name` or `self.args.name`."""
    reads = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)]
    return {
        node.attr
        for node in reads
        if ast.unparse(node.value) in ("args", "self.args") and not isinstance(node.ctx, ast.Store)
    }


def test_every_argument_is_read_by_the_trainer_or_refused():
    names = {each.name for each in fields(PPOConfig)}
    inherited = {each.name for each in fields(TrainingArguments)}
    read = read_as_args(PPO / "trainer.py") | read_as_args(PPO / "prepare.py")
    # Models are given to the trainer; the recipe loads them from these two, which are TRL's.
    paths = {"sft_model_path", "reward_model_path"}
    assert names - inherited - read - REFUSED.keys() == paths
    assert paths <= read_as_args(PPO.parents[1] / "ppo.py")
    assert REFUSED.keys() <= names


@pytest.mark.parametrize("name", ["max_seconds", "stop_on", "reward_funcs", "eval_funcs", "value_model_path"])
def test_the_trainer_has_no_argument_that_the_recipe_alone_reads(name, tmp_path):
    """PPOTrainer(PPOConfig(max_seconds=60)) once ran for ever."""
    with pytest.raises(TypeError, match=name):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, **{name: None})


# Rewards


def test_functions_get_texts_for_texts_and_their_rewards_in_order(build_ppo):
    asked = []

    def number(prompts, completions, topic, **columns):
        asked.append((prompts, completions, topic, columns))
        return [10, 20, 30]

    rows = [{"prompt": question, "topic": topic} for question, topic in (("a", "x"), ("bcd", "y"), ("ef", "z"))]
    trainer = build_ppo(rows=rows, reward_funcs=[number], reward_weights=[0.5])
    rollout = trainer.roll_out([trainer.train_dataset[index] for index in range(3)], range(3))
    trainer.score(rollout)
    ((prompts, completions, topic, columns),) = asked
    assert prompts == ["a", "bcd", "ef"] and topic == ["x", "y", "z"] and columns == {}
    assert completions == rollout.texts(trainer.processing_class) and all(
        isinstance(text, str) for text in completions
    )
    assert rollout.rewards["number"].tolist() == [10, 20, 30] and rollout.scores.tolist() == [5, 10, 15]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda prompts, completions, **columns: [None] * len(prompts), "found NoneType; expected a number"),
        (lambda prompts, completions: [1.0] * len(prompts), "expected f(prompts, completions, **columns)"),
    ],
)
def test_a_function_of_another_form_is_one_clear_error(build_ppo, function, message):
    trainer = build_ppo()
    row = {**trainer.train_dataset[0], "reference": "a"}
    with pytest.raises(InputError, match=re.escape(message)):
        trainer.rewards_by(function, [row], ["a"])


def test_the_measures_that_come_with_the_recipes():
    references = ["yes", "it is", "no"]
    assert exact_match([], ["yes", " it  is\n", "yes"], references) == [1, 1, 0]
    messages = [[{"role": "assistant", "content": text}] for text in ("yes", "it was", "no")]
    assert exact_match([], messages, references, topic=["x", "y", "z"]) == [1, 0, 1]
    # ab against ac: of the single letters one of two is right, of the pairs none: (1/2 + 0) / 2
    assert chrf([], ["yes", "xyz", "ab"], ["yes", "abc", "ac"]) == pytest.approx([1, 0, 0.25], abs=1e-6)


def test_text_prompts_and_a_reward_model_with_another_tokenizer(build_ppo, other_tokenizer_dir):
    model, tokenizer = loaded(other_tokenizer_dir, AutoModelForSequenceClassification)
    trainer = build_ppo(rows=[{"prompt": "ab"}], reward_model=model, reward_tokenizer=tokenizer)
    rollout = trainer.roll_out([trainer.train_dataset[0]], [0])
    assert rollout.stopped.item()
    trainer.score(rollout)
    ids = tokenizer("ab" + rollout.texts(trainer.processing_class)[0] + END_OF_TURN)["input_ids"]
    with torch.no_grad():
        assert rollout.scores.item() == pytest.approx(model(torch.tensor([ids])).logits.item(), abs=1e-4)


# The reference


@pytest.mark.parametrize("name", [None, "other"])
def test_the_reference_of_a_lora_policy_is_itself_without_its_adapter_or_with_another(build_ppo, name):
    trainer = build_ppo()
    start, trainer.ref_model = trainer.ref_model, None
    torch.manual_seed(0)
    adapter = LoraConfig(task_type="CAUSAL_LM", r=2, init_lora_weights=False)
    policy = trainer.model.policy = get_peft_model(trainer.model.policy, adapter)
    policy.add_adapter("other", adapter)
    trainer.args.ref_adapter_name = name
    rollout = trainer.roll_out(list(trainer.train_dataset), range(8))
    trainer.score(rollout)
    assert policy.active_adapter == "default"
    inputs = rollout.inputs(torch.arange(8))
    with torch.no_grad():
        by_start, _ = answer_logprobs(start, **inputs, temperature=1.0)
        policy.set_adapter("other")
        by_other, _ = answer_logprobs(policy, **inputs, temperature=1.0)
    assert (by_start - by_other).abs().max() > 1e-3 and (by_start - rollout.logprobs).abs().max() > 1e-3
    torch.testing.assert_close(rollout.ref_logprobs, by_other if name else by_start)


# Optimizer and saving


def test_only_the_value_model_has_the_value_learning_rate(build_ppo):
    trainer = build_ppo(learning_rate=0.001, value_learning_rate=0.01, weight_decay=0.1)
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): (group["lr"], group["weight_decay"]) for group in groups for weight in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(rates)  # none twice
    wrapper = trainer.model
    assert {rates[id(weight)][0] for weight in wrapper.policy.parameters()} == {0.001}
    assert {rates[id(weight)][0] for weight in wrapper.value_model.parameters()} == {0.01}
    # Biases and layer norms go without weight decay in either
    assert {rates[id(weight)][1] for weight in wrapper.parameters() if weight.ndim == 1} == {0.0}
    assert {rates[id(weight)][1] for weight in wrapper.parameters() if weight.ndim == 2} == {0.1}


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_weights_that_were_gathered_for_saving_are_what_is_saved(build_ppo, kind, tmp_path):
    """In parts on several processes (ZeRO-3, FSDP), a model's own weights are not whole: the Trainer hands them over."""
    trainer = build_ppo()
    if kind == "lora":
        trainer.model.policy = get_peft_model(trainer.model.policy, LoraConfig(task_type="CAUSAL_LM", r=2))
    gathered = {name: torch.full_like(weight, 2.0) for name, weight in trainer.model.state_dict().items()}
    trainer._save(str(tmp_path / "saved"), state_dict=gathered)
    policy = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    for file in (policy, "value_model/model.safetensors"):
        weights = load_file(tmp_path / "saved" / file)
        assert weights and all((weight == 2.0).all() for weight in weights.values())
