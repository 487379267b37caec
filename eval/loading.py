"""What the evaluations read: a checkpoint, the questions of conversations, a metric. Errors are one clear line."""

import random
from pathlib import Path

import torch

from data_prep.conversations import read_conversations
from data_prep.files import InputError, existing
from data_prep.generation import split_last_answer

METRICS = Path(__file__).with_name("metrics")


def load_checkpoint(name: str, reward_model: bool = False):
    """(model, tokenizer) of a folder or Hub id, on the accelerator if there is one.

    Raises `InputError` where there is none, and where it is of the other kind: loaded as a reward model, a language
    model gets a random score head, and the library only warns.
    """
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    if Path(name).is_absolute() or name.startswith((".", "runs")) or name.count("/") > 1:  # no Hub id looks like that
        existing(name, "recipes/reward.py" if reward_model else "recipes/pretrain.py, sft.py or ppo.py")
    if Path(name).exists() and not any(
        (Path(name) / file).exists() for file in ("config.json", "adapter_config.json")
    ):
        raise InputError(f"{name}: no config.json in it; expected the folder of a finished checkpoint")
    kind = AutoModelForSequenceClassification if reward_model else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
        model = kind.from_pretrained(name, use_safetensors=True)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{name}: neither a finished checkpoint's folder nor a model on the Hub ({reason})") from None
    except ValueError as error:  # no tokenizer in the folder, or a model type that transformers does not know
        raise InputError(f"{name}: cannot be loaded: {' '.join(str(error).split())[:200]}") from None
    found = " ".join(model.config.architectures or [])
    if reward_model and ("ForSequenceClassification" not in found or model.config.num_labels != 1):
        raise InputError(f"{name}: expected a reward model (recipes/reward.py), found {found or 'no architecture'}")
    if not reward_model and "ForSequenceClassification" in found:
        raise InputError(f"{name}: expected a language model, found {found}: that is a reward model")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return model.to(device).eval(), tokenizer


def check_chat(name: str, model, tokenizer, max_new_tokens: int) -> None:
    """Raise `InputError` where a model cannot be asked: no chat template, or no room beside the answer."""
    if tokenizer.chat_template is None:
        raise InputError(f"{name}: its tokenizer has no chat template; put a chat_template.jinja into the folder")
    positions = model.config.max_position_embeddings
    if not 0 < max_new_tokens < positions:
        raise InputError(
            f"--max_new_tokens {max_new_tokens}: expected 1 to {positions - 1}; {name} has {positions} positions"
        )


def read_questions(paths, limit: int | None, seed: int) -> list[dict]:
    """Rows {"id", "prompt": messages, "reference": str} of conversations; `limit` of them drawn at random by `seed`.

    The prompt is everything before the last answer, the reference is that answer. Raises what `read_conversations`
    raises.
    """
    rows, _ = read_conversations(paths)
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: expected at least 1")
    if limit and limit < len(rows):
        rows = random.Random(seed).sample(rows, limit)
    split = [split_last_answer(row["messages"]) for row in rows]
    return [{"id": row["id"], "prompt": prompt, "reference": answer}
            for row, (prompt, answer) in zip(rows, split, strict=True)]  # fmt: skip


def load_metric(name: str):
    """The metric `metrics/<name>.py`. Loaded by path: `evaluate.load(name)` would fetch a script from the Hub."""
    import evaluate  # slow to import

    return evaluate.load(str(METRICS / f"{name}.py"), keep_in_memory=True)
