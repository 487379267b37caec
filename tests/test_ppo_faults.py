"""Every fault of TRL 1.12's PPOTrainer, one test each: TRL's trainer fails it, strictly, and ours passes it.

Both are built on the same tiny models, prompts and arguments. Left out is what shows under a DDP wrapper alone (LoRA
without a reference model crashes, saving fails): see test_ppo_two_processes.py.
"""

import copy
import gc
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers.models import tiny_config
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig as TRLPPOConfig
from trl.experimental.ppo import PPOTrainer as TRLPPOTrainer

from data_prep.common.errors import InputError
from recipes.trainers.ppo.config import REFUSED, PPOConfig
from recipes.trainers.ppo.trainer import PPOTrainer

PROMPTS = [[{"role": "user", "content": letter}] for letter in "abcdefgh"]
PROMPT = 4  # tokens of each: <|user|> a <|end|> <|assistant|>
BATCH = 4
SETTINGS = {
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "num_sample_generations": 0,
    "save_strategy": "no",
    "logging_steps": 1,
    "per_device_train_batch_size": BATCH,
    "total_episodes": BATCH,  # one update
    "num_ppo_epochs": 1,
    "response_length": 8,
    "temperature": 1.0,
    "stop_token": "eos",
    "learning_rate": 0.01,
    "lr_scheduler_type": "constant",
}
# What is not the default of arguments that are no integers.
OTHER_VALUES = {
    **dict.fromkeys(("fp16", "auto_find_batch_size", "use_liger_kernel", "torch_compile"), True),
    **dict.fromkeys(("batch_eval_metrics", "prediction_loss_only"), True),
    "label_smoothing_factor": 0.1,
    "label_names": ["labels"],
    "neftune_noise_alpha": 5.0,
    "train_sampling_strategy": "group_by_length",
    "include_num_input_tokens_seen": "all",
    "include_for_metrics": ["inputs"],
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval", "eval_use_gather_object"), True),
    **dict.fromkeys(("eval_do_concat_batches", "ds3_gather_for_generation"), False),
    **dict.fromkeys(("torch_compile_backend", "torch_compile_mode"), "default"),
}


@pytest.fixture(scope="module", autouse=True)
def frozen_heap():
    """TRL's trainer collects garbage in every update, among all that the process holds: most of a second each time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)  # it would decide the precision in both trainers


def stock(tokenizer, folder: Path, models: dict, dataset: Dataset | None = None, callbacks=None, **settings):
    """TRL's trainer on ids, which is all that it takes."""
    if dataset is None:
        dataset = Dataset.from_list([{"input_ids": ids_of(tokenizer, prompt)} for prompt in PROMPTS])
    args = TRLPPOConfig(output_dir=str(folder), **{**SETTINGS, **settings})
    return TRLPPOTrainer(
        args, tokenizer, **models, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks or []
    )


def ours(tokenizer, folder: Path, models: dict, dataset: Dataset | None = None, callbacks=None, **settings):
    """Ours on the same prompts as messages."""
    if dataset is None:
        dataset = Dataset.from_list([{"prompt": prompt} for prompt in PROMPTS])
    args = PPOConfig(output_dir=str(folder), **{**SETTINGS, **settings})
    return PPOTrainer(args, tokenizer, **models, train_dataset=dataset, eval_dataset=dataset, callbacks=callbacks)


def fails_on_stock(reason: str, raises: type[BaseException] = AssertionError):
    """Run a test with `train` as each of the two; where TRL's passes, or fails otherwise, the test is wrong."""
    mark = pytest.mark.xfail(strict=True, raises=raises, reason=f"TRL 1.12: {reason}")
    return pytest.mark.parametrize("train", [pytest.param(stock, marks=mark), ours])


DID_NOT_RAISE = pytest.fail.Exception  # what pytest.raises fails with


class StopAtOnce(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = True


def ids_of(tokenizer, prompt: list[dict]) -> list[int]:
    text = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def random_models(tokenizer, seed: int = 0) -> dict[str, torch.nn.Module]:
    """Policy and reference of the same random weights, and reward and value model."""
    torch.manual_seed(seed)
    policy = GPT2LMHeadModel(tiny_config(tokenizer, n_layer=1))
    scorers = [GPT2ForSequenceClassification(tiny_config(tokenizer, n_layer=1, num_labels=1)) for _ in range(2)]
    return dict(zip(("model", "ref_model", "reward_model", "value_model"),
                    (policy, copy.deepcopy(policy), *scorers), strict=True))  # fmt: skip


@pytest.fixture
def models(tiny_chat_tokenizer) -> dict[str, torch.nn.Module]:
    return random_models(tiny_chat_tokenizer)


def with_policy(models: dict, policy: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {**models, "model": policy, "ref_model": copy.deepcopy(policy)}


@pytest.fixture
def yes_sayers(models, talker) -> dict[str, torch.nn.Module]:
    """The policy answers y e s <|end|>: 4 tokens."""
    return with_policy(models, AutoModelForCausalLM.from_pretrained(talker("yes")))


def sampling(tokenizer, logits: dict[int, float]) -> GPT2LMHeadModel:
    """A policy that samples tokens by these logits at every position, and other tokens never."""
    model = GPT2LMHeadModel(tiny_config(tokenizer, n_layer=1, tie_word_embeddings=False))
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        model.transformer.ln_f.bias[0] = 1.0  # every position is the first direction
        model.lm_head.weight[:, 0] = -100.0
        for token, logit in logits.items():
            model.lm_head.weight[token, 0] = logit
        # No position has the second direction: it changes no logit, and shows whether a gradient comes from them.
        model.lm_head.weight[:, 1] = torch.arange(len(tokenizer)) / len(tokenizer)
    return model


def scoring(model: GPT2ForSequenceClassification, value: float) -> GPT2ForSequenceClassification:
    """The model, made to say `value` of everything; a gradient reaches its last layer norm all the same."""
    with torch.no_grad():
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.zero_()
        model.transformer.ln_f.bias[0] = value
        model.score.weight.zero_()
        model.score.weight[0, 0] = 1.0
    return model


def watch_samples(policy) -> list[torch.Tensor]:
    """What `policy.generate` gives back, prompts and answers, one tensor per call from now on."""
    sampled, generate = [], policy.generate

    def watched(*args, **kwargs):
        output = generate(*args, **kwargs)
        sampled.append(getattr(output, "sequences", output))
        return output

    policy.generate = watched
    return sampled


def watch_gradients(module: torch.nn.Module) -> list[torch.Tensor]:
    """Gradients of what `module` puts out, one tensor per backward pass from now on."""
    gradients = []

    def watch(module, args, output):
        if output.requires_grad:
            output.register_hook(gradients.append)

    module.register_forward_hook(watch)
    return gradients


def answers(sampled: torch.Tensor, stop: int, width: int = PROMPT) -> list[list[int]]:
    """The answers in what was sampled, each to its first stop token."""
    rows = sampled[:, width:].tolist()
    return [row[: row.index(stop) + 1] if stop in row else row for row in rows]


def reached(gradient: torch.Tensor) -> list[list[int]]:
    """At which positions of each row a gradient is not zero; rows in order, since the two trainers shuffle them."""
    return sorted(row.nonzero().flatten().tolist() for row in gradient.abs().sum(-1))


def weights(models: dict) -> dict[str, torch.Tensor]:
    """Of policy and value model, copied."""
    return {f"{name}.{key}": weight.detach().clone() for name in ("model", "value_model")
            for key, weight in models[name].named_parameters()}  # fmt: skip


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[key], second[key]) for key in first)


def steps_with(trainer, key: str) -> list[int]:
    return [row["step"] for row in trainer.state.log_history if key in row]


# Arguments of the Trainer


@fails_on_stock("bf16 is ignored")
def test_bf16_computes_in_bf16(train, tiny_chat_tokenizer, models, tmp_path):
    seen = set()
    for head in (models["model"].lm_head, models["value_model"].score):
        head.register_forward_hook(lambda module, args, output: seen.add(output.dtype))
    train(tiny_chat_tokenizer, tmp_path, models, bf16=True).train()
    assert seen == {torch.bfloat16}


@fails_on_stock("gradient_checkpointing is ignored")
def test_gradient_checkpointing_computes_a_layer_again_on_the_way_back(train, tiny_chat_tokenizer, models, tmp_path):
    passes = {"model": 0, "value_model": 0}
    for name in passes:

        def count(module, args, name=name):
            passes[name] += torch.is_grad_enabled()

        models[name].transformer.h[0].attn.register_forward_pre_hook(count)  # the block's own call is not repeated
    train(tiny_chat_tokenizer, tmp_path, models, gradient_checkpointing=True).train()
    assert passes == {"model": 2, "value_model": 2}  # of the one micro-batch


@fails_on_stock("max_grad_norm is ignored")
def test_max_grad_norm_limits_a_step(train, tiny_chat_tokenizer, models, tmp_path):
    before = weights(models)
    train(tiny_chat_tokenizer, tmp_path, models, max_grad_norm=1e-3, optim="sgd", learning_rate=1.0).train()
    after = weights(models)
    # One step of plain descent at rate 1 moves by the gradient itself, whose norm was far more.
    moved = math.sqrt(sum((after[key] - before[key]).square().sum().item() for key in before))
    assert moved == pytest.approx(1e-3, rel=0.01)


@fails_on_stock("eval_strategy is ignored")
def test_eval_strategy_evaluates(train, tiny_chat_tokenizer, models, tmp_path):
    trainer = train(
        tiny_chat_tokenizer, tmp_path, models, eval_strategy="steps", eval_steps=1, total_episodes=2 * BATCH
    )
    trainer.train()
    assert [steps_with(trainer, f"eval_{name}") for name in ("score", "kl", "length")] == [[1, 2]] * 3


@fails_on_stock("Trainer.__init__ was never called", raises=AttributeError)
def test_evaluate_by_hand(train, tiny_chat_tokenizer, yes_sayers, tmp_path):
    found = train(tiny_chat_tokenizer, tmp_path, yes_sayers).evaluate()
    assert (found["eval_length"], found["eval_eos_rate"], found["eval_kl"]) == (4.0, 1.0, 0.0)


@fails_on_stock("logging_steps is ignored")
def test_logging_steps_logs_every_so_many_updates(train, tiny_chat_tokenizer, models, tmp_path):
    trainer = train(tiny_chat_tokenizer, tmp_path, models, logging_steps=2, total_episodes=4 * BATCH)
    trainer.train()
    assert steps_with(trainer, "objective/kl") == [2, 4]


@fails_on_stock("save_strategy epoch is ignored")
def test_save_strategy_epoch_saves_after_each_epoch(train, tiny_chat_tokenizer, models, tmp_path):
    train(tiny_chat_tokenizer, tmp_path, models, save_strategy="epoch", total_episodes=4 * BATCH).train()
    # 8 prompts 4 at a time: an epoch is two updates.
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-4"]


@fails_on_stock("nothing is evaluated, so none is the best")
def test_the_best_model_is_loaded_and_outlives_save_total_limit(train, tiny_chat_tokenizer, models, tmp_path):
    every = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "kl", "greater_is_better": False}
    # A rate of 0 in the first update leaves the policy where its reference is; the long steps after it do not.
    steps = {"total_episodes": 4 * BATCH, "learning_rate": 0.5, "lr_scheduler_type": "constant_with_warmup"}
    before = weights(models)
    trainer = train(
        tiny_chat_tokenizer, tmp_path, models, **every, **best, save_total_limit=2, **steps, warmup_steps=2
    )
    trainer.train()
    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-1")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-1", "checkpoint-4"]
    assert same(weights(models), before)
    for folder, name in (("checkpoint-4", "model"), ("checkpoint-4/value_model", "value_model")):
        last = load_file(tmp_path / folder / "model.safetensors")["transformer.wpe.weight"]
        assert not torch.equal(last, before[f"{name}.transformer.wpe.weight"])


@fails_on_stock("should_training_stop is ignored")
def test_a_callback_stops_the_run(train, tiny_chat_tokenizer, models, tmp_path):
    trainer = train(tiny_chat_tokenizer, tmp_path, models, callbacks=[StopAtOnce()], total_episodes=3 * BATCH)
    trainer.train()
    assert trainer.state.global_step == 1


@fails_on_stock("mini-batches are shuffled by the global NumPy generator, which nothing seeds")
def test_the_seed_alone_decides(train, tiny_chat_tokenizer, tmp_path):
    def end(seed: int, state: int) -> dict[str, torch.Tensor]:
        models = random_models(tiny_chat_tokenizer)
        trainer = train(tiny_chat_tokenizer, tmp_path, models, num_mini_batches=4, num_ppo_epochs=2, seed=seed)
        np.random.seed(state)
        trainer.train()
        return weights(models)

    first = end(seed=1, state=1)
    assert same(end(seed=1, state=2), first)
    assert not same(end(seed=2, state=1), first)


@pytest.mark.parametrize("name", REFUSED)
def test_an_argument_that_nothing_would_read_is_refused_by_name(name, tmp_path):
    with pytest.raises(InputError, match=rf"^{name}: not supported by PPO: "):
        PPOConfig(output_dir=str(tmp_path), **{**SETTINGS, name: OTHER_VALUES.get(name, 2)})


@pytest.mark.parametrize("name", ["batch_size", "label_smoothing_factor", "neftune_noise_alpha", "use_liger_kernel"])
def test_trls_arguments_take_it_without_a_word(name, tmp_path):
    value = OTHER_VALUES.get(name, 2)
    assert getattr(TRLPPOConfig(output_dir=str(tmp_path), **{**SETTINGS, name: value}), name) == value


# Saving and resuming


@fails_on_stock("no resume", raises=TypeError)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(train, tiny_chat_tokenizer, models, tmp_path):
    given = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 3 * BATCH}
    train(tiny_chat_tokenizer, tmp_path / "whole", models, **given).train()
    resumed = random_models(tiny_chat_tokenizer, seed=1)
    resumed |= {name: models[name] for name in ("ref_model", "reward_model")}
    trainer = train(tiny_chat_tokenizer, tmp_path / "resumed", resumed, **given)
    trainer.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert same(weights(resumed), weights(models))


@fails_on_stock("the value model is never saved")
def test_a_checkpoint_holds_the_value_model(train, tiny_chat_tokenizer, models, tmp_path):
    head = models["value_model"].score.weight
    before = head.detach().clone()
    train(tiny_chat_tokenizer, tmp_path, models, save_strategy="steps", save_steps=1).train()
    files = [load_file(path) for path in (tmp_path / "checkpoint-1").rglob("*.safetensors")]
    heads = [file["score.weight"] for file in files if "score.weight" in file]
    assert len(heads) == 1 and torch.equal(heads[0], head) and not torch.equal(heads[0], before)


@fails_on_stock("without a stop token the generation config loses its own")
def test_the_saved_model_knows_where_to_stop(train, tiny_chat_tokenizer, models, tmp_path):
    trainer = train(tiny_chat_tokenizer, tmp_path, models, stop_token=None)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert GenerationConfig.from_pretrained(tmp_path / "saved").eos_token_id == tiny_chat_tokenizer.eos_token_id


# Answers


@fails_on_stock("without a stop token response_length tokens are sampled")
def test_answers_end_at_the_end_of_turn_without_being_told(train, tiny_chat_tokenizer, yes_sayers, tmp_path):
    sampled = watch_samples(yes_sayers["model"])
    train(tiny_chat_tokenizer, tmp_path, yes_sayers, stop_token=None).train()
    assert [tuple(each.shape) for each in sampled] == [(BATCH, PROMPT + 4)]


@fails_on_stock("pad is sampled like any token, and truncates the answer")
def test_pad_is_never_sampled(train, tiny_chat_tokenizer, models, tmp_path):
    pad, end = tiny_chat_tokenizer.pad_token_id, tiny_chat_tokenizer.eos_token_id
    other = tiny_chat_tokenizer.convert_tokens_to_ids("a")
    given = with_policy(models, sampling(tiny_chat_tokenizer, {pad: 0.0, other: 0.0}))  # as likely as each other
    sampled = watch_samples(given["model"])
    train(tiny_chat_tokenizer, tmp_path, given).train()
    assert answers(sampled[0], end) == [[other] * 8] * BATCH


@fails_on_stock("prompts are padded where the tokenizer pads: the answer follows on padding")
def test_prompts_of_unlike_lengths_under_a_tokenizer_that_pads_on_the_right(
    train, tiny_chat_tokenizer, yes_sayers, tmp_path
):
    tokenizer = copy.deepcopy(tiny_chat_tokenizer)
    tokenizer.padding_side = "right"
    prompts = [[{"role": "user", "content": text}] for text in ("a", "bc", "def", "ghij")]
    column = "prompt" if train is ours else "input_ids"
    rows = [{column: prompt if train is ours else ids_of(tokenizer, prompt)} for prompt in prompts]
    sampled = watch_samples(yes_sayers["model"])
    train(tokenizer, tmp_path, yes_sayers, Dataset.from_list(rows)).train()
    yes = tokenizer("yes<|end|>", add_special_tokens=False)["input_ids"]
    assert answers(sampled[0], tokenizer.eos_token_id, width=PROMPT + 3) == [yes] * BATCH


@fails_on_stock("it is accepted, and the end of an answer reads as padding", raises=DID_NOT_RAISE)
def test_a_pad_token_that_ends_answers_is_refused(train, tiny_chat_tokenizer, models, tmp_path):
    tokenizer = copy.deepcopy(tiny_chat_tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(InputError, match="pads with what ends an answer"):
        train(tokenizer, tmp_path, models)


@fails_on_stock("the dataset must hold input_ids", raises=ValueError)
@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ("ab", ["a", "b"]),
        ([{"role": "user", "content": "a"}], ["<|user|>", "a", "<|end|>", "<|assistant|>"]),
    ],
    ids=["text", "messages"],
)
def test_the_dataset_holds_prompts(train, prompt, tokens, tiny_chat_tokenizer, models, tmp_path):
    sampled = watch_samples(models["model"])
    train(tiny_chat_tokenizer, tmp_path, models, Dataset.from_list([{"prompt": prompt}] * BATCH)).train()
    expected = tiny_chat_tokenizer.convert_tokens_to_ids(tokens)
    assert sampled[0][:, : len(tokens)].tolist() == [expected] * BATCH


# Rewards and losses


@fails_on_stock("the missing-EOS penalty looks for eos, whatever answers stop on")
def test_the_penalty_looks_at_the_stop_token_in_use(train, tiny_chat_tokenizer, yes_sayers, tmp_path):
    def value_model_after(penalty: float | None, response_length: int) -> torch.Tensor:
        given = copy.deepcopy(yes_sayers)
        stop = tiny_chat_tokenizer.convert_tokens_to_ids("s")
        settings = {"missing_eos_penalty": penalty, "response_length": response_length, "optim": "sgd"}
        train(tiny_chat_tokenizer, tmp_path, given, stop_token=None, stop_token_id=stop, **settings).train()
        return given["value_model"].score.weight

    assert torch.equal(value_model_after(5.0, 8), value_model_after(None, 8))  # y e s: stopped
    assert not torch.equal(value_model_after(5.0, 2), value_model_after(None, 2))  # y e: truncated


@pytest.fixture
def coin_flippers(tiny_chat_tokenizer, models) -> dict[str, torch.nn.Module]:
    """Policy and reference end an answer with odds of one half at every token, or go on; each answer scores 1.

    The values are all 0, and the gradient at a position is that of the value there.
    """
    tokens = (tiny_chat_tokenizer.convert_tokens_to_ids("a"), tiny_chat_tokenizer.eos_token_id)
    scoring(models["value_model"], 0.0)
    scoring(models["reward_model"], 1.0)
    return with_policy(models, sampling(tiny_chat_tokenizer, dict.fromkeys(tokens, 0.0)))


@fails_on_stock("the score lands one token after EOS")
def test_the_score_sits_on_the_last_token(train, tiny_chat_tokenizer, coin_flippers, tmp_path):
    sampled = watch_samples(coin_flippers["model"])
    gradients = watch_gradients(coin_flippers["value_model"].transformer.ln_f)
    # Without foresight (gamma 0) the return of a token is its own reward: values of 0 are wrong where the score is.
    train(tiny_chat_tokenizer, tmp_path, coin_flippers, gamma=0.0, kl_coef=0.0).train()
    lengths = [len(answer) for answer in answers(sampled[0], tiny_chat_tokenizer.eos_token_id)]
    assert min(lengths) < max(lengths)
    # The value of a token stands at the position before it.
    assert [reached(each) for each in gradients] == [sorted([PROMPT + length - 2] for length in lengths)]


@fails_on_stock("the value after EOS is trained")
def test_no_value_after_the_end_is_trained(train, tiny_chat_tokenizer, coin_flippers, tmp_path):
    sampled = watch_samples(coin_flippers["model"])
    gradients = watch_gradients(coin_flippers["value_model"].transformer.ln_f)
    # With all of it (gamma and lambda 1) the return of every token is the score.
    train(tiny_chat_tokenizer, tmp_path, coin_flippers, gamma=1.0, lam=1.0, kl_coef=0.0).train()
    lengths = [len(answer) for answer in answers(sampled[0], tiny_chat_tokenizer.eos_token_id)]
    expected = sorted([*range(PROMPT - 1, PROMPT + length - 1)] for length in lengths)
    assert [reached(each) for each in gradients] == [expected]


@pytest.mark.parametrize("train", [stock, ours])  # TRL's passes this one: it must not get lost
def test_nothing_after_the_end_is_in_the_policy_loss_or_the_kl(train, tiny_chat_tokenizer, coin_flippers, tmp_path):
    go_on, end = tiny_chat_tokenizer.convert_tokens_to_ids("a"), tiny_chat_tokenizer.eos_token_id
    # The reference goes on with odds of 3 to 1.
    coin_flippers["ref_model"] = sampling(tiny_chat_tokenizer, {go_on: 0.0, end: -math.log(3)})
    sampled = watch_samples(coin_flippers["model"])
    gradients = watch_gradients(coin_flippers["model"].transformer.ln_f)
    trainer = train(tiny_chat_tokenizer, tmp_path, coin_flippers)
    trainer.train()
    sampled_answers = answers(sampled[0], end)
    expected = sorted([*range(PROMPT - 1, PROMPT + len(answer) - 1)] for answer in sampled_answers)
    assert [reached(each) for each in gradients] == [expected]
    nats = {go_on: math.log(0.5 / 0.75), end: math.log(0.5 / 0.25)}
    kl = sum(nats[token] for answer in sampled_answers for token in answer) / BATCH
    assert trainer.state.log_history[0]["objective/kl"] == pytest.approx(kl, abs=1e-5)


@fails_on_stock("with accumulation num_mini_batches changes nothing")
def test_the_number_of_optimizer_steps(train, tiny_chat_tokenizer, models, tmp_path):
    size = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
    trainer = train(tiny_chat_tokenizer, tmp_path, models, **size, num_mini_batches=2, num_ppo_epochs=3)
    trainer.train()
    taken = {int(state["step"]) for state in trainer.optimizer.state.values()}  # AdamW's own count, of each weight
    assert taken == {2 * 3}


@fails_on_stock("with accumulation and mini-batches, averages go over places that were never filled")
def test_metrics_are_averages_of_what_was_computed(train, tiny_chat_tokenizer, models, tmp_path):
    size = {"per_device_train_batch_size": BATCH // 2, "gradient_accumulation_steps": 2}
    trainer = train(tiny_chat_tokenizer, tmp_path, models, **size, num_mini_batches=2, learning_rate=0.0)
    trainer.train()
    # A policy that stands still is as likely to give its answers as it was.
    ratio = trainer.state.log_history[0]["val/ratio" if train is stock else "policy/ratio"]
    assert ratio == pytest.approx(1.0, abs=1e-5)


@fails_on_stock("training the value trains the reward", raises=DID_NOT_RAISE)
def test_one_object_as_reward_and_value_model_is_refused(train, tiny_chat_tokenizer, models, tmp_path):
    with pytest.raises(ValueError, match="reward_model and value_model are one object"):
        train(tiny_chat_tokenizer, tmp_path, {**models, "value_model": models["reward_model"]})


# What ours had wrong itself


def test_the_policys_own_generation_config_does_not_change_the_samples(tiny_chat_tokenizer, models, tmp_path):
    trainer = ours(tiny_chat_tokenizer, tmp_path, models)
    rows = list(trainer.train_dataset)
    sampled = trainer.roll_out(rows, range(8)).answers
    own = trainer.model.policy.generation_config
    own.repetition_penalty, own.num_beams, own.top_k = 100.0, 2, 1
    assert torch.equal(trainer.roll_out(rows, range(8)).answers, sampled)
    assert trainer.model.policy.generation_config is own and own.repetition_penalty == 100.0


def test_the_policy_stands_still_while_the_value_model_warms_up(tiny_chat_tokenizer, models, tmp_path):
    before = {name: weight.clone() for name, weight in models["model"].state_dict().items()}
    score = models["value_model"].score.weight.detach().clone()
    trainer = ours(
        tiny_chat_tokenizer, tmp_path, models, num_value_warmup_updates=1, weight_decay=0.1, total_episodes=2 * BATCH
    )
    trainer.add_callback(StopAtOnce())
    trainer.train()
    assert all(torch.equal(before[name], weight) for name, weight in models["model"].state_dict().items())
    assert not torch.equal(models["value_model"].score.weight, score)


def test_a_checkpoint_stops_at_the_stop_token_in_use(tiny_chat_tokenizer, models, tmp_path):
    other = tiny_chat_tokenizer("s")["input_ids"][0]
    trainer = ours(tiny_chat_tokenizer, tmp_path, models, stop_token=None, stop_token_id=other, save_strategy="steps",
                   save_steps=1)  # fmt: skip
    trainer.train()
    assert GenerationConfig.from_pretrained(tmp_path / "checkpoint-1").eos_token_id == other


def test_another_dataset_can_be_evaluated(tiny_chat_tokenizer, yes_sayers, tmp_path):
    trainer = ours(tiny_chat_tokenizer, tmp_path, yes_sayers)
    assert trainer.evaluate(Dataset.from_list([{"prompt": PROMPTS[0]}]))["eval_length"] == 4


def test_the_reward_after_penalties_counts_them(tiny_chat_tokenizer, yes_sayers, tmp_path):
    """Answers of 4 tokens, truncated after 3: the penalty is in rlhf_reward, not in the score."""
    plain = ours(tiny_chat_tokenizer, tmp_path, yes_sayers, response_length=3).evaluate()
    trainer = ours(tiny_chat_tokenizer, tmp_path, yes_sayers, response_length=3, missing_eos_penalty=2.0)
    penalized = trainer.evaluate()
    assert penalized["eval_score"] == pytest.approx(plain["eval_score"])
    assert penalized["eval_rlhf_reward"] == pytest.approx(plain["eval_rlhf_reward"] - 2)
