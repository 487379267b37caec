"""Shared by the tests: tokenizers and models so small that they are built in seconds, one whose answer is known."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library is imported: no test touches the network
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

import io  # noqa: E402
import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from helpers.models import POSITIONS, save, tiny_config  # noqa: E402
from transformers import (  # noqa: E402
    AutoTokenizer,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
)

from data_prep.common.errors import run_main  # noqa: E402
from data_prep.train_tokenizer import END_OF_TURN, train_tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory):
    """262 entries: the 256 bytes and the special tokens, no merge; a letter is a token. It ends at <|endoftext|>."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(iter(["yes and no, and what is right"]), 262).save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_chat_tokenizer(tiny_tokenizer, tmp_path_factory):
    """The same, with the end of turn as its end of sequence, as recipes/sft.py saves it."""
    folder = tmp_path_factory.mktemp("chat_tokenizer")
    tiny_tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder, eos_token=END_OF_TURN)


@pytest.fixture(scope="session")
def tiny_model_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A causal language model of random weights that ends at <|end|>."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer))
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_reward_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A reward model of random weights."""
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(tiny_config(tiny_chat_tokenizer, num_labels=1))
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "reward")


@pytest.fixture(scope="session")
def zero_model_dir(tiny_tokenizer, tmp_path_factory) -> Path:
    """A base model whose weights are all zero: every token is as likely as any other, everywhere."""
    model = GPT2LMHeadModel(tiny_config(tiny_tokenizer))
    for weight in model.parameters():
        torch.nn.init.zeros_(weight)
    return save(model, tiny_tokenizer, tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="session")
def talker(tiny_chat_tokenizer, tmp_path_factory):
    """talker("yes") is the folder of a model that answers "yes" to everything, and stops.

    Attention and MLP are zero, every token has a direction of its own, and the output matrix leads from each letter to
    the next: <|assistant|> → y → e → s → <|end|>. No letter may come twice in the answer.
    """

    def build(answer: str) -> Path:
        size = len(tiny_chat_tokenizer)
        model = GPT2LMHeadModel(
            tiny_config(tiny_chat_tokenizer, n_layer=1, n_head=1, n_embd=size, tie_word_embeddings=False)
        )
        for name, weight in model.named_parameters():
            if "ln_" not in name:  # layer norms stay the identity
                torch.nn.init.zeros_(weight)
        with torch.no_grad():
            model.transformer.wte.weight.copy_(torch.eye(size))
            chain = tiny_chat_tokenizer(f"<|assistant|>{answer}<|end|>", add_special_tokens=False)["input_ids"]
            assert len(set(chain)) == len(chain)
            for token, successor in zip(chain, chain[1:], strict=False):
                model.lm_head.weight[successor, token] = 100.0
        return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("talkers") / answer.replace("\n", "_"))

    return build


@pytest.fixture(scope="session")
def yes(talker) -> Path:
    """A model that answers "yes" to everything, and stops."""
    return talker("yes")


@pytest.fixture(scope="session")
def no(talker) -> Path:
    """One that answers "no"."""
    return talker("no")


@pytest.fixture(scope="session")
def long_is_good_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """A reward model whose reward rises with the length of the conversation, and depends on nothing else.

    Position p is the direction (sin, -sin, cos, -cos) of an angle that goes from -90 to 90 degrees over the context:
    of the same length everywhere, so that the layer norm keeps it, and with a sine that rises.
    """
    model = GPT2ForSequenceClassification(tiny_config(tiny_chat_tokenizer, num_labels=1))
    for name, weight in model.named_parameters():
        if "ln_" not in name:
            torch.nn.init.zeros_(weight)
    angles = (torch.arange(POSITIONS) / (POSITIONS - 1) - 0.5) * torch.pi
    with torch.no_grad():
        columns = torch.stack([angles.sin(), -angles.sin(), angles.cos(), -angles.cos()], dim=1)
        model.transformer.wpe.weight[:, :4] = columns
        model.score.weight[0, 0] = 1.0
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "long_is_good")


@pytest.fixture
def command(monkeypatch, capsys):
    """command(module, "--option", value, …) runs it as `python -m` would; returns (exit code, stdout, stderr)."""

    def call(module, *arguments) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, arguments)])
        capsys.readouterr()
        code = 0
        try:
            run_main(module.main)
        except SystemExit as ended:
            code = ended.code
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def write_conversations(tmp_path):
    """write_conversations([("id", "question", "answer"), …]) writes them in the Baichuan format; returns the path."""

    def write(rows: list[tuple[str, str, str]], name: str = "conversations.json") -> Path:
        turns = [
            {"id": key, "conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for key, q, a in rows
        ]
        (tmp_path / name).write_text(json.dumps(turns), encoding="utf-8")
        return tmp_path / name

    return write


@pytest.fixture
def questions(write_conversations) -> Path:
    """Four questions, three of them answered by "yes" and one by "no"."""
    rows = [
        ("a/what/1", "1?", "yes"),
        ("b/what/2", "2?", "no"),
        ("c/module/3", "3?", "yes"),
        ("d/module/4", "4?", "yes"),
    ]
    return write_conversations(rows)


@pytest.fixture(scope="session")
def ready_to_end_dir(tiny_chat_tokenizer, tmp_path_factory) -> Path:
    """An assistant whose answers end after a few tokens, after any of them; see `ready_to_end`."""
    from helpers.recipes import ready_to_end

    return ready_to_end(tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "ready_to_end")


@pytest.fixture(scope="session")
def other_tokenizer_dir(tmp_path_factory) -> Path:
    """A reward model with another tokenizer than `tiny_chat_tokenizer`."""
    from helpers.ppo import reward_model_with_another_tokenizer

    return reward_model_with_another_tokenizer(tmp_path_factory.mktemp("models") / "other_tokenizer")


@pytest.fixture
def build_ppo(tiny_chat_tokenizer, ready_to_end_dir, tiny_reward_dir, tmp_path):
    """build_ppo(gamma=0.5, …) is a PPOTrainer in this process; see `helpers.ppo.build_trainer`."""
    from helpers.ppo import build_trainer  # TRL's trainers are slow to import

    def build(policy: Path = ready_to_end_dir, **changes):
        return build_trainer(tiny_chat_tokenizer, policy, tiny_reward_dir, tmp_path / "trainer", **changes)

    return build


@pytest.fixture(scope="module")
def reward_file(tmp_path_factory) -> Path:
    """A file of functions that reward; see `helpers.ppo_runs.REWARDS`."""
    from helpers.ppo_runs import REWARDS

    path = tmp_path_factory.mktemp("rewards") / "rewards.py"
    path.write_text(REWARDS)
    return path


@pytest.fixture(scope="module")
def run_settings(ready_to_end_dir, reward_file, tmp_path_factory) -> dict:
    """Updates of 8 answers, rewarded by their number of characters."""
    from helpers.ppo_runs import settings_of_a_run

    return settings_of_a_run(ready_to_end_dir, reward_file, tmp_path_factory.mktemp("prompts"))


@pytest.fixture
def chat_with(monkeypatch, command):
    """chat_with(folder, b"hi\\n", "--option", value, …) is eval.chat with those bytes typed: (exit code, stdout, stderr)."""
    from eval import chat

    def call(folder: Path, typed: bytes = b"", *options, encoding: str = "utf-8") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding=encoding))
        return command(chat, "--model", folder, "--max_new_tokens", 8, *options)

    return call
