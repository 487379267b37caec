"""What the tests of PPO share: a trainer in this process, a run's folder, a reward model with another tokenizer."""

from pathlib import Path

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from data_prep.common.files import write_json
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer
from helpers.models import save, tiny_config
from helpers.recipes import EXACT, conversation
from recipes.trainers.ppo.config import PPOConfig
from recipes.trainers.ppo.trainer import PPOTrainer

QUESTIONS = [letter * (1 + number % 4) for number, letter in enumerate("abcdefghijklmnopqrstuvwxyzABCDEF")]


def nothing(prompts, completions, **columns):
    return [0.0] * len(prompts)


def build_trainer(
    tokenizer,
    policy: Path,
    value_model: Path,
    output_dir: Path,
    rows: list[dict] | None = None,
    reward_funcs=(),
    reward_model=None,
    reward_tokenizer=None,
    **settings,
) -> PPOTrainer:
    """A trainer on `rows`, or on 8 of `QUESTIONS`, a rollout of all of them; without any reward, by `nothing`."""
    rows = rows or [{"prompt": [{"role": "user", "content": question}]} for question in QUESTIONS[:8]]
    size = {"per_device_train_batch_size": len(rows), "response_length": 8, "gradient_checkpointing": False}
    model, reference = (AutoModelForCausalLM.from_pretrained(policy) for _ in range(2))
    return PPOTrainer(
        PPOConfig(output_dir=str(output_dir), **{**size, "temperature": 1.0, **EXACT, **settings}),
        tokenizer,
        model,
        reference,
        reward_model,
        AutoModelForSequenceClassification.from_pretrained(value_model),
        Dataset.from_list(rows),
        reward_funcs=list(reward_funcs) or ([] if reward_model else [nothing]),
        reward_processing_class=reward_tokenizer,
    )


def reward_model_with_another_tokenizer(folder: Path) -> Path:
    """A reward model of random weights over 300 entries, merges of the policy's letters among them."""
    train_tokenizer(iter(["aa bb cc dd ee ff aaa bbb ccc ddd eee fff gggg hhhh " * 4]), 275).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, eos_token=END_OF_TURN)
    assert len(tokenizer) > 262 and len(tokenizer("bb")["input_ids"]) == 1
    torch.manual_seed(3)
    model = GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1, initializer_range=0.3))
    return save(model, tokenizer, folder)


def quickstart_like_run(folder: Path, tokenizer, questions: list[str]) -> Path:
    """A run's folder with sft, reward and prompts; the assistant ends with a chance of about a sixth at each token."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tokenizer, tie_word_embeddings=False))
    with torch.no_grad():  # one direction is 4 in every hidden state, and only the end of turn looks at it
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 4.0
        model.lm_head.weight[:, 0] = 0.0
        model.lm_head.weight[tokenizer.eos_token_id, 0] = 1.0
    save(model, tokenizer, folder / "sft")
    reward_model = GPT2ForSequenceClassification(tiny_config(tokenizer, num_labels=1))
    torch.nn.init.normal_(reward_model.score.weight)  # scores of about 5, or their place would hardly show
    save(reward_model, tokenizer, folder / "reward")
    (folder / "data").mkdir()
    rows = [conversation(str(number), question, "yes") for number, question in enumerate(questions)]
    write_json(folder / "data" / "prompts_ppo.json", rows)
    return folder
