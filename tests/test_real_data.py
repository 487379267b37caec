"""The runs on public data, as their YAMLs give the commands, with models so small that only the plumbing is tested.

Nobody in this project wrote these files: they hold what no test would invent. They are not part of the repository, and
without them (see helpers/data.py) these tests are skipped. The commands run as they stand, in a folder of their own,
but nothing is downloaded: in place of curl, the file is linked there. The numbers were counted without the code of this
project, by json, hashlib (for what is held out) and tokenizers.
"""

import json
import re

import numpy
import pytest
import torch
from helpers.checkout import Checkout
from helpers.data import BELLE, DATA, needs_data
from helpers.models import save, tiny_config
from transformers import GPT2LMHeadModel

from data_prep.common.files import write_jsonl

TINY = "--n_layer 1 --n_head 2 --n_embd 32"

pytestmark = needs_data


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Checkout:
    return Checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture(scope="module")
def belle(checkout) -> dict[str, str]:
    """What each stage of the run on Chinese conversations printed."""
    decay = """--lr_scheduler_kwargs '{"num_decay_steps": 4}' --warmup_steps 2"""
    return {
        "tokenizer": checkout.prepare("belle/mix.yaml"),
        "mix": checkout.stage("belle/mix.yaml"),
        "pretrain": checkout.stage("belle/pretrain.yaml", f"{TINY} --max_steps 12 --logging_steps 4 {decay}"),
        "sft": checkout.stage("belle/sft.yaml", "--max_steps 4 --warmup_steps 1 --logging_steps 1 --max_new_tokens 4"),
    }


@pytest.mark.slow
def test_shakespeare_in_characters_is_learned(checkout):
    assert "a tokenizer of 262 entries" in checkout.prepare("shakespeare/mix.yaml")
    # 1,003,854 characters in documents of 131,072, to the end of a line: 8, each with an end of text
    assert "mixed 1,003,862 tokens (1,003,854 bytes)" in checkout.stage("shakespeare/mix.yaml")
    steps = """--max_steps 60 --eval_steps 60 --logging_steps 10 --lr_scheduler_kwargs '{"num_decay_steps": 20}'"""
    checkout.stage("shakespeare/pretrain.yaml", f"{TINY} {steps}")
    results = checkout.json("runs/shakespeare/base/pretrain.json")
    assert results["tokens"] == 60 * 12 * 64
    figures = results["metrics"]
    assert figures["loss_last"] < figures["loss_first"] - 0.5
    # A uniform guess among 262 tokens is 8.03 bits a byte; letters alone, without any context, are below 5.
    assert figures["bits_per_byte"] < 5


@pytest.mark.slow
def test_chinese_conversations_are_held_out_by_prompt_and_kept_whole(belle, checkout):
    sides = [
        [
            json.loads(line)
            for line in (checkout.root / f"runs/belle/data/{name}.jsonl").read_text("utf-8").splitlines()
        ]
        for name in ("train", "heldout")
    ]
    rows = json.loads(BELLE.read_text(encoding="utf-8"))
    assert [len(side) for side in sides] == [719, 81]
    assert sorted(sides[0] + sides[1], key=rows.index) == rows  # `head` cuts off nothing of the first 800
    questions = [{row["conversations"][0]["value"] for row in side} for side in sides]
    assert not questions[0] & questions[1]
    assert len(questions[0] | questions[1]) == 710  # 90 of the 800 begin as another one does


def test_a_chinese_tokenizer_gives_every_text_back(belle, checkout):
    assert "a tokenizer of 6,000 entries on 719 documents (783,639 bytes)" in belle["tokenizer"]
    tokenizer = checkout.tokenizer("runs/belle/tokenizer")
    rows = json.loads(BELLE.read_text(encoding="utf-8"))
    texts = [turn["value"] for row in rows for turn in row["conversations"]]
    assert len(rows) == 800 and len(tokenizer) == 6000
    assert [tokenizer.decode(ids) for ids in tokenizer(texts)["input_ids"]] == texts
    assert "mixed 143,948 tokens (783,639 bytes)" in belle["mix"]


def test_chinese_pretraining_and_sft_run_and_merged_turns_are_counted(belle, checkout):
    figures = checkout.json("runs/belle/base/pretrain.json")["metrics"]
    assert figures["loss_last"] < figures["loss_first"]
    assert "train.jsonl: 719 conversations, repaired: 5 × two turns of the same speaker in a row" in belle["sft"]
    assert "heldout.jsonl: 81 conversations" in belle["sft"]
    example = belle["sft"].split("enters the loss:\n")[1].split("EOS rate")[0]
    assert "\ufffd" not in example and "[" in example  # characters of several tokens are shown whole
    results = checkout.json("runs/belle/sft/sft.json")
    assert 0 < results["conversations"] < 719  # what four steps have seen
    assert 0 < results["metrics"]["eval_loss"] < 10


@pytest.mark.slow
def test_chinese_preferences_train_a_reward_model_and_what_is_left_out_is_counted(belle, checkout):
    checkout.prepare("dpo_zh/reward.yaml")
    printed = checkout.stage("dpo_zh/reward.yaml", "--max_steps 3 --warmup_steps 1 --logging_steps 1")
    assert "train.jsonl: 397 rankings, 397 pairs" in printed
    assert "heldout.jsonl: 103 rankings, 103 pairs" in printed
    assert "170 of 397 rankings hold an answer beyond 512 tokens" in printed
    assert "40 of 103 rankings hold an answer beyond 512 tokens" in printed
    assert "trained a reward model on 24 of 227 rankings" in printed  # 397 − 170
    figures = checkout.json("runs/dpo_zh/reward/reward.json")["metrics"]
    assert figures["pairs"] == figures["accuracy"]["n"] == 103 - 40
    assert figures["reload_difference"] < 1e-3


def test_a_mixture_of_c4_and_wikipedia_has_the_shares_asked_for(checkout):
    checkout.prepare("c4_wiki/mix.yaml")
    printed = checkout.stage("c4_wiki/mix.yaml")
    # What the shard holds, read without the code that wrote it: whole documents between ends of text, entry 0.
    tokenizer = checkout.tokenizer("runs/c4_wiki/tokenizer")
    c4 = [json.loads(line)["text"] for line in (DATA / "c4_demo.jsonl").open(encoding="utf-8")]
    sources = {"c4": c4[:270], "wikipedia": (DATA / "wiki_demo.txt").read_text("utf-8").split("\n")[:-1]}
    lengths = {
        name: {tuple(ids): len(ids) + 1 for ids in tokenizer(texts)["input_ids"]} for name, texts in sources.items()
    }
    assert {name: sum(each.values()) for name, each in lengths.items()} == {"c4": 170_455, "wikipedia": 253_516}
    ids = numpy.fromfile(checkout.root / "runs/c4_wiki/data/tokens/shard-00000.bin", dtype="<u2")
    ends = numpy.flatnonzero(ids == tokenizer.convert_tokens_to_ids("<|endoftext|>"))
    documents = [tuple(part[part != 0].tolist()) for part in numpy.split(ids, ends + 1)[:-1]]
    tokens = {
        name: sum(lengths[name][document] for document in documents if document in lengths[name]) for name in lengths
    }
    index = checkout.json("runs/c4_wiki/data/tokens/index.json")
    assert tokens == {name: source["tokens"] for name, source in index["sources"].items()}
    assert sum(tokens.values()) == index["tokens"] == len(ids)
    # At least what is asked for, and beyond it no more than one of the articles, which are never split.
    assert 580_000 <= len(ids) < 580_000 + 29_069
    assert tokens["c4"] / len(ids) == pytest.approx(15 / 19.5, abs=0.01)
    assert tokens["wikipedia"] / len(ids) == pytest.approx(4.5 / 19.5, abs=0.01)
    for name, asked in (("c4", "76.92%"), ("wikipedia", "23.08%")):
        share, passes = 100 * tokens[name] / len(ids), tokens[name] / sum(lengths[name].values())
        count = sum(document in lengths[name] for document in documents)
        assert re.search(
            rf"^{name} +{asked} +{share:.2f}% +{tokens[name]:,} +{count} +{passes:.2f}$", printed, re.MULTILINE
        )


@pytest.mark.slow
def test_chinese_documents_are_learned_asked_about_and_served(checkout):
    """The road of recipes/adapt.sh: real questions and answers as documents, real answers to other questions as general text."""
    root, runs = checkout.root, "runs/zh"
    (root / "zh").mkdir()
    asked: dict[str, str] = {}
    for row in json.loads(BELLE.read_text(encoding="utf-8")):
        question, answer = (turn["value"].strip() for turn in row["conversations"][:2])
        if 8 <= len(question) <= 60 and 30 <= len(answer) <= 150 and "\n" not in question + answer:
            asked[question] = answer
    for number, (question, answer) in enumerate(asked.items()):
        (root / "zh" / f"{number}.md").write_text(f"问：{question}\n答：{answer}\n", encoding="utf-8")
    assert len(asked) == 276
    pairs = [json.loads(line) for line in (DATA / "dpo_zh_500.jsonl").open(encoding="utf-8")]
    texts = [{"text": pair["chosen"]} for pair in pairs]
    (root / runs).mkdir(parents=True)
    write_jsonl(root / runs / "replay.jsonl", texts[:400])
    write_jsonl(root / runs / "general.jsonl", texts[400:])

    checkout.run(f"python -m data_prep.read_documents zh --rows document --fraction 0.2 --output_dir {runs}/data")
    documents = f"{runs}/data/documents.jsonl"
    checkout.run(
        f"python -m data_prep.ask_documents {documents} --output {runs}/conversations.json "
        f"--reworded {runs}/reworded.json --wordings_per_question 2"
    )
    conversations, reworded = checkout.json(f"{runs}/conversations.json"), checkout.json(f"{runs}/reworded.json")
    rows = [json.loads(line) for line in (root / documents).open(encoding="utf-8")]
    for row in (*conversations, *reworded):
        question, answer = (turn["value"] for turn in row["conversations"])
        source = row["source"]
        assert rows[source["row"] - 1]["text"][source["start"] : source["end"]] == answer
        assert question.strip() and asked.get(question, answer) == answer
    assert 0 < len(reworded) <= len(conversations)
    checkout.run(
        f"python -m data_prep.train_tokenizer --corpus {documents} {runs}/replay.jsonl --vocab_size 1024 "
        f"--output_dir {runs}/tokenizer"
    )
    tokenizer = checkout.tokenizer(f"{runs}/tokenizer")
    torch.manual_seed(0)
    save(GPT2LMHeadModel(tiny_config(tokenizer, n_positions=256)), tokenizer, root / runs / "model")
    mixture = {
        "tokenizer": f"{runs}/model",
        "sources": {
            "domain": {"files": [documents], "weight": 0.7},
            "replay": {"files": [f"{runs}/replay.jsonl"], "weight": 0.3},
        },
        "total_tokens": 60_000,
        "output_dir": f"{runs}/tokens",
    }
    (root / "mix.yaml").write_text(json.dumps(mixture))  # JSON is YAML
    checkout.run("python -m data_prep.mix_corpus --config mix.yaml")
    steps = "--learning_rate 0.01 --warmup_steps 2 --logging_steps 10 --report_to none --per_device_train_batch_size 4"
    heldout = f"domain={runs}/data/documents_heldout.jsonl general={runs}/general.jsonl"
    checkout.run(
        f"python recipes/continue_pretraining.py --model_name_or_path {runs}/model --tokens {runs}/tokens --max_length 256 "
        f"--document_attention true --heldout {runs}/data/documents_heldout.jsonl --heldout_general {runs}/general.jsonl "
        f"--max_steps 40 --eval_steps 20 --output_dir {runs}/base {steps}"
    )
    checkout.run(
        f"python recipes/sft.py --model_name_or_path {runs}/base --conversations {runs}/conversations.json "
        f"--heldout {runs}/reworded.json --assistant_only_loss true --max_length 256 --max_steps 20 --max_new_tokens 8 "
        f"--activation_checkpointing false --output_dir {runs}/sft {steps}"
    )
    printed = checkout.run(
        f"python -m eval.adaptation --before {runs}/model --after {runs}/sft --before_base {runs}/model "
        f"--after_base {runs}/base --documents {heldout} --conversations domain={runs}/reworded.json --limit 20 "
        f"--max_new_tokens 16 --trained_on {documents} {runs}/replay.jsonl {runs}/conversations.json "
        f"--max_seen 0.02 --output_dir {runs}"
    )
    assert "general: 2 of 100 held-out documents were seen in training" in printed  # two answers are given twice
    assert "domain: 0 of 20 held-out questions were seen in training" in printed
    found = checkout.json(f"{runs}/results.json")["adaptation"]
    for source in ("domain", "general"):
        bits = found["bits_per_byte"][source]
        assert bits["after"] < bits["before"] - 0.1
    assert found["exact_match"]["domain"].keys() == {"before", "after"}
    checkout.run(
        f"python -m eval.serving --model {runs}/sft --conversations {runs}/reworded.json --limit 3 --max_new_tokens 16 "
        f"--results_dir {runs}/results"
    )
    assert (root / runs / "results" / "serving_sft.json").exists()
