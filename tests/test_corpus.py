"""Tokenizer, mixture and the embedded domain, from files to files."""

import json
import subprocess
import sys

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import mix_corpus, python_docs
from data_prep.corpus import read_documents
from data_prep.files import InputError, write_jsonl
from data_prep.mix_corpus import Source, mix, read_tokens, shuffled
from data_prep.python_docs import first_sentence
from data_prep.train_tokenizer import train_tokenizer


class Characters:
    """A tokenizer whose tokens are characters, so that counts can be worked out by hand."""

    eos_token_id = 0

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[ord(c) for c in text] for text in texts]}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(iter(["def upper(self): return a copy", "你好，世界"] * 20), 300)


@settings(deadline=None, max_examples=200)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_unicode_text_comes_back_unchanged(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_three_different_control_tokens(tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|pad|>", "<|end|>"])
    assert ids == [0, 1, 2]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InputError, match="at least 262"):
        train_tokenizer(iter(["a"]), 261)


def test_shuffled_keeps_every_item():
    import random

    assert sorted(shuffled(iter(range(100)), 10, random.Random(0))) == list(range(100))
    assert list(shuffled(iter(range(100)), 1, random.Random(0))) == list(range(100))


def test_shares_are_in_tokens_and_a_small_source_is_read_again(tmp_path):
    write_jsonl(tmp_path / "big.jsonl", [{"text": "b" * 9}] * 200)  # 10 tokens each with the end of text
    write_jsonl(tmp_path / "small.jsonl", [{"text": "s" * 4}] * 10)  # 5 tokens each: 50 in a pass
    big = Source("big", [tmp_path / "big.jsonl"], 3, Characters(), 16, 0)
    small = Source("small", [tmp_path / "small.jsonl"], 1, Characters(), 16, 0)
    documents = list(mix([big, small], 800))
    # 3 : 1 of 800 tokens is 600 and 200; 200 tokens of `small` are four passes over it
    assert (big.tokens, small.tokens) == (600, 200)
    assert (big.documents, small.documents) == (60, 40)
    assert sum(map(len, documents)) == 800
    assert all(ids[-1] == 0 for ids in documents)


def write_mixture(tmp_path, tokenizer, **changes):
    write_jsonl(tmp_path / "a.jsonl", [{"text": f"return a copy {n}"} for n in range(30)])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    config = {
        "tokenizer": str(tmp_path / "tokenizer"),
        "sources": {"a": {"files": [str(tmp_path / "a.jsonl")], "weight": 1}},
        "passes": 2,
        "output_dir": str(tmp_path / "tokens"),
        **changes,
    }
    (tmp_path / "mix.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "mix.yaml"


def test_the_command_writes_tokens_that_decode_to_the_documents(tmp_path, tokenizer, monkeypatch, capsys):
    path = write_mixture(tmp_path, tokenizer)
    monkeypatch.setattr(sys, "argv", ["mix_corpus", "--config", str(path)])
    mix_corpus.main()
    ids, meta = read_tokens(tmp_path / "tokens")
    texts = tokenizer.decode(ids.tolist()).split("<|endoftext|>")[:-1]
    assert sorted(texts) == sorted([f"return a copy {n}" for n in range(30)] * 2)
    assert meta["tokens"] == len(ids) and meta["bytes"] == sum(map(len, texts))
    assert ids.dtype == np.dtype("<u2")
    assert "100.00%   100.00%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sorces": {}}, r"unknown key \['sorces'\]"),
        ({"total_tokens": 5}, "either total_tokens or passes"),
        ({"sources": {"a": {"files": ["no.jsonl"]}}}, "no.jsonl: no such file"),
        ({"sources": {"a": {"files": [], "weight": -1}}}, "must be positive"),
    ],
)
def test_bad_mixtures_are_refused(tmp_path, tokenizer, changes, message):
    with pytest.raises(InputError, match=message):
        mix_corpus.read_config(write_mixture(tmp_path, tokenizer, **changes))


def test_documents_by_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "verse.txt").write_text("to be\nor not to be\n")
    (tmp_path / "wiki.txt").write_text("x" * 900 + "\n" + "y" * 900 + "\n")
    (tmp_path / "c.json").write_text('[{"conversations": [{"value": "q"}, {"value": "a"}]}]')
    assert list(read_documents(tmp_path / "a.jsonl")) == ["one", "two"]
    assert list(read_documents(tmp_path / "verse.txt")) == ["to be\nor not to be\n"]
    assert list(read_documents(tmp_path / "wiki.txt")) == ["x" * 900, "y" * 900]
    assert list(read_documents(tmp_path / "c.json")) == ["q\n\na"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"txt": 1}\n', "row 1: expected a string under 'text'"),
        ("a.jsonl", '{"text": "x"}\n{oops\n', "line 2, column 2: not JSON"),
        ("a.jsonl", "\n", "no text in it"),
        ("a.csv", "x", "unknown ending"),
        ("a.json", "{}", "expected a list"),
    ],
)
def test_bad_documents_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message):
        list(read_documents(tmp_path / name))


def test_errors_end_a_command_with_one_line_and_code_1(tmp_path):
    command = [sys.executable, "-m", "data_prep.mix_corpus", "--config", str(tmp_path / "none.yaml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"error: {tmp_path / 'none.yaml'}: no such file or folder\n"


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("Return a copy. The rest.", "Return a copy."),
        ("get(key) -> value\n\nLater.", ""),
        ("dict.get(key) -> value\nReturn the value\nfor key.", "Return the value for key."),
        ("One line without a stop\n\nMore.", "One line without a stop"),
    ],
)
def test_first_sentence(docstring, sentence):
    assert first_sentence(docstring) == sentence


@pytest.fixture(scope="module")
def domain(tmp_path_factory):
    output = tmp_path_factory.mktemp("domain")
    known, _ = python_docs.facts(60)
    python_docs.write_corpus(output, set(known))
    python_docs.write_conversations(output, known, prompts=4)
    return output


def test_no_question_or_document_stands_on_both_sides(domain):
    questions = {}
    for path in domain.glob("*.json"):
        questions[path.stem] = {row["conversations"][0]["value"] for row in json.loads(path.read_text())}
    assert set(questions) == {
        "conversations", "prompts_rankings", "prompts_ppo", "conversations_heldout", "conversations_heldout_own",
        "conversations_heldout_names", "conversations_heldout_others", "conversations_validation",
    }  # fmt: skip
    names = list(questions)
    assert all(not questions[a] & questions[b] for i, a in enumerate(names) for b in names[i + 1 :])
    training = {row for path in (domain / "corpus").glob("*.jsonl") for row in read_documents(path)}
    assert len(training) > 5000 and not training & set(read_documents(domain / "corpus_heldout.jsonl"))


def test_names_kept_out_are_not_in_the_prompts(domain):
    def names(file):
        return {row["id"].split("/")[0] for row in json.loads((domain / f"{file}.json").read_text())}

    kept_out = names("conversations_heldout_names")
    assert kept_out and not kept_out & (names("prompts_rankings") | names("prompts_ppo"))
    assert kept_out < names("conversations")


def test_answers_are_what_the_documentation_says(domain):
    answers = {
        row["id"]: row["conversations"][1]["value"] for row in json.loads((domain / "conversations.json").read_text())
    }
    assert answers["abs/what/0"] == "Return the absolute value of the argument."
    assert answers["abs/signature/0"] == "abs(x, /)"
    assert answers["abs/module/0"] == "It is in the module builtins."
