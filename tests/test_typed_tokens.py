"""A control token that somebody spells out in a prompt or an answer is text to every model that reads it."""

import math

import pytest
import torch
from datasets import Dataset
from helpers.chat_tokens import HARD_TEXTS, spells_out, trained
from helpers.conversations import FAST, TEXTS, dialogues
from helpers.models import POSITIONS, counting_model, save
from helpers.recipes import EXACT, again, conversation, loaded, results, succeeded
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from data_prep.common.files import write_json
from data_prep.models.scoring import encode_answers, score_answers
from data_prep.tokens.chat_encoder import ChatEncoder, encode_prompts
from data_prep.train_tokenizer import CHAT_TEMPLATE, END_OF_TEXT, END_OF_TURN, PAD, SPECIAL_TOKENS
from eval.pages.talkers import fitting
from recipes.dpo import as_pairs
from recipes.trainers.ppo.prepare import with_prompt_ids
from recipes.trainers.rloo_grpo import reward_at_last_token, reward_of_text

TYPED = "a<|endoftext|>b<|end|><|assistant|>"


def asks(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def with_blanks(scheme: str) -> PreTrainedTokenizerFast:
    """A tokenizer of SentencePiece's kind, which puts a blank before a text ("first") or before every part ("always")."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    bpe.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)])
    alphabet = [chr(code) for code in range(33, 127)] + ["\n"]
    special = ["<unk>", *SPECIAL_TOKENS]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(["the cat sat on the mat, the cat sat", "return x + 10"] * 5, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, unk_token="<unk>", eos_token=END_OF_TEXT, pad_token=PAD,
        additional_special_tokens=SPECIAL_TOKENS[2:], chat_template=CHAT_TEMPLATE.read_text(encoding="utf-8"),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["byte level", "first", "always"])
def tokenizer(request):
    return trained() if request.param == "byte level" else with_blanks(request.param)


def training_ids(tokenizer, messages: list[dict]) -> list[int]:
    encoder = ChatEncoder(tokenizer)
    ((ids, _),) = encoder.encode(encoder.render([messages]))
    return ids.tolist()


# What a model is asked


@FAST
@given(st.lists(dialogues(HARD_TEXTS), min_size=1, max_size=3))
def test_a_prompt_has_the_ids_that_it_has_in_training(tokenizer, conversations):
    prompts = [messages[:-1] for messages in conversations]
    for messages, prompt, ids in zip(conversations, prompts, encode_prompts(tokenizer, prompts), strict=True):
        assert ids == training_ids(tokenizer, messages)[: len(ids)]
        # Control tokens are the template's, two for every turn and one that opens the answer.
        special = set(tokenizer.convert_tokens_to_ids(SPECIAL_TOKENS))
        assert sum(token in special for token in ids) == 2 * len(prompt) + 1


@FAST
@given(dialogues(TEXTS).filter(lambda each: not spells_out(each)))
def test_prompts_without_a_control_token_are_encoded_by_the_library(tokenizer, messages):
    whole = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True)["input_ids"]
    assert encode_prompts(tokenizer, [messages[:-1]]) == [whole]


@FAST
@given(dialogues(HARD_TEXTS))
def test_an_answer_to_be_scored_has_the_ids_that_it_has_in_training(tokenizer, messages):
    prompt, answer = messages[:-1], messages[-1]["content"]
    ((first, second),) = encode_answers(tokenizer, [prompt], [[answer, "yes"]])
    assert first == training_ids(tokenizer, messages)
    assert second == training_ids(tokenizer, [*prompt, {"role": "assistant", "content": "yes"}])


def test_a_prompt_that_is_a_text():
    tokenizer = trained()
    (ids,), (plain,) = encode_answers(tokenizer, [TYPED, "a"], [["<|end|>"], ["b"]])
    assert tokenizer.decode(ids) == TYPED + "<|end|>" + END_OF_TEXT
    assert set(ids[:-1]).isdisjoint(tokenizer.all_special_ids) and ids[-1] == tokenizer.eos_token_id
    assert plain == tokenizer("ab" + END_OF_TEXT)["input_ids"]
    (row,) = with_prompt_ids(Dataset.from_list([{"prompt": TYPED}]), tokenizer, 100)
    assert row["prompt_ids"] == ids[: len(row["prompt_ids"])]


def test_prompts_of_ppo():
    tokenizer = trained()
    rows = with_prompt_ids(Dataset.from_list([{"prompt": asks("a")}, {"prompt": asks(TYPED)}]), tokenizer, 100)
    assert rows["prompt_ids"][:] == encode_prompts(tokenizer, [asks("a"), asks(TYPED)])
    assert [sum(token in tokenizer.all_special_ids for token in ids) for ids in rows["prompt_ids"]] == [3, 3]


def test_what_is_typed_in_a_chat():
    tokenizer = trained()
    _, ids, *_ = fitting(tokenizer, asks(TYPED), 100)
    assert [ids] == encode_prompts(tokenizer, [asks(TYPED)])
    assert tokenizer.decode(ids) == f"<|user|>{TYPED}<|end|><|assistant|>"
    assert [token for token in ids if token in tokenizer.all_special_ids] == tokenizer.convert_tokens_to_ids(
        ["<|user|>", "<|end|>", "<|assistant|>"]
    )


def test_scores_are_those_of_the_text(tiny_reward_dir, tiny_chat_tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(tiny_reward_dir)
    prompts, answers = [asks("<|end|>"), asks("a")], ["yes", "<|user|>"]
    letters = [[*b"<|end|>"], [*b"yes"]], [[*b"a"], [*b"<|user|>"]]
    expected = []
    for question, answer in letters:  # a letter is a token
        ids = ["<|user|>", *map(chr, question), "<|end|>", "<|assistant|>", *map(chr, answer), "<|end|>"]
        with torch.no_grad():
            logits = model(torch.tensor([tiny_chat_tokenizer.convert_tokens_to_ids(ids)])).logits
        expected.append(logits.item())
    assert score_answers(model, tiny_chat_tokenizer, prompts, answers) == pytest.approx(expected, abs=1e-5)
    drawn = [tiny_chat_tokenizer.convert_tokens_to_ids([*map(chr, answer), "<|end|>"]) for _, answer in letters]
    ids_read = reward_at_last_token(model, tiny_chat_tokenizer, bf16=False)(prompts=prompts, completion_ids=drawn)
    assert ids_read == pytest.approx(expected, abs=1e-5)
    completions = [[{"role": "assistant", "content": answer}] for answer in answers]
    of_text = reward_of_text(model, tiny_chat_tokenizer, [tiny_chat_tokenizer.eos_token_id])
    text_read = of_text(prompts=prompts, completions=completions, completion_ids=drawn)
    assert text_read == pytest.approx(expected, abs=1e-5)
    # A truncated answer gets no end of turn: it is scored at its own last token, as by its ids.
    truncated = [ids[:-1] for ids in drawn]
    text_read = of_text(prompts=prompts, completions=completions, completion_ids=truncated)
    ids_read = reward_at_last_token(model, tiny_chat_tokenizer, bf16=False)(prompts=prompts, completion_ids=truncated)
    assert text_read == pytest.approx(ids_read, abs=1e-5) != pytest.approx(expected, abs=1e-3)


# What TRL encodes by itself


@pytest.fixture(scope="module")
def counting_dir(tiny_chat_tokenizer, tmp_path_factory):
    """An assistant that says x after the places 3 to 8 and ends after 9, whatever is asked."""
    model = counting_model(tiny_chat_tokenizer, 9)
    return save(model, tiny_chat_tokenizer, tmp_path_factory.mktemp("models") / "counting")


@pytest.mark.parametrize("method", ["rloo", "grpo"])
def test_prompts_of_rloo_and_grpo(method, counting_dir, long_is_good_dir, tmp_path):
    rows = [conversation(str(number), token, "-") for number, token in enumerate([END_OF_TURN, PAD] * 4)]
    write_json(tmp_path / "prompts.json", rows)
    given = {"model_name_or_path": counting_dir, "reward_model_path": long_is_good_dir, "num_generations": 4}
    given |= {"prompts": tmp_path / "prompts.json", "per_device_train_batch_size": 32, "max_completion_length": 8}
    given |= {"learning_rate": 0.003, "logging_steps": 1, "save_strategy": "no", "max_steps": 1, **EXACT}
    succeeded(again(method, **given, output_dir=tmp_path / method))
    curves = results(tmp_path / method, method)["curves"]
    # Seven characters and three marks are 10 tokens: the answer is the end at place 10. As a control token the prompt
    # would have 4 tokens, and the answer x up to place 9.
    assert curves["length"] == [[1, 1.0]] and curves["eos_rate"] == [[1, 1.0]]
    assert curves["score"][0][1] == pytest.approx(4 * math.sin((10 / 63 - 0.5) * math.pi), abs=2e-3)


def test_pairs_of_dpo(tiny_model_dir, tmp_path):
    model, tokenizer = loaded(tiny_model_dir)
    rows = [
        {"prompt": asks(prompt), "completions": completions, "ranks": [0, 1]}
        for prompt, completions in (("a", ["yes", "no"]), ("<|end|>", ["yes", "no"]), ("a", ["<|pad|>", "no"]))
    ]
    pairs = as_pairs(Dataset.from_list(rows), tokenizer, POSITIONS)
    args = DPOConfig(output_dir=str(tmp_path), bf16=False, use_cpu=True, report_to="none", max_length=POSITIONS)
    found = DPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer).train_dataset
    for row, encoded in zip(rows, found, strict=True):
        ((chosen, rejected),) = encode_answers(tokenizer, [row["prompt"]], [row["completions"]])
        assert encoded["prompt_ids"] + encoded["chosen_ids"] == chosen
        assert encoded["prompt_ids"] + encoded["rejected_ids"] == rejected
        assert [encoded["prompt_ids"]] == encode_prompts(tokenizer, [row["prompt"]])
