"""What the tests of PPO share: a trainer built in this process, runs of recipes/ppo.py, and what they leave."""

from pathlib import Path

import torch
from transformers import GPT2ForSequenceClassification, GPT2LMHeadModel

from data_prep.common.files import write_json
from helpers.models import save, tiny_config
from helpers.recipes import conversation


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
