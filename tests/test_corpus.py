"""Documents, the tokenizer, and the domain made from the documentation inside Python."""

import gzip
import json
import lzma
import subprocess
import sys
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep import python_docs
from data_prep.common.errors import InputError
from data_prep.common.files import write_jsonl
from data_prep.python_docs import complete_answer, first_sentence
from data_prep.readers.documents import read_documents
from data_prep.rows.bad_rows import BadRows
from data_prep.train_tokenizer import train_tokenizer


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


def test_documents_by_ending(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "two"}\n')
    (tmp_path / "verse.txt").write_text("to be\nor not to be\n")
    (tmp_path / "wiki.txt").write_text("x" * 900 + "\n" + "y" * 900 + "\n")
    (tmp_path / "c.json").write_text('[{"conversations": [{"value": "q"}, {"value": "a"}]}]')
    (tmp_path / "d.json").write_text('[{"messages": [{"content": "q"}, {"content": "a"}]}, {"text": "t"}]')
    (tmp_path / "e.csv").write_text("text,n\none,1\n")
    pq.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), tmp_path / "f.parquet")
    assert list(read_documents(tmp_path / "a.jsonl")) == ["one", "two"]
    assert list(read_documents(tmp_path / "verse.txt")) == ["to be\nor not to be\n"]
    assert list(read_documents(tmp_path / "wiki.txt")) == ["x" * 900, "y" * 900]
    assert list(read_documents(tmp_path / "c.json")) == ["q\n\na"]
    assert list(read_documents(tmp_path / "d.json")) == ["q\n\na", "t"]
    assert list(read_documents(tmp_path / "e.csv")) == ["one"]
    assert list(read_documents(tmp_path / "f.parquet")) == ["one", "two"]
    everything = ["one", "two", "q\n\na", "q\n\na", "t", "one", "one", "two", "to be\nor not to be\n"]
    assert list(read_documents(tmp_path)) == [*everything, "x" * 900, "y" * 900], "a folder's files are sorted"
    assert list(read_documents(str(tmp_path / "[af].*"))) == ["one", "two", "one", "two"]


@pytest.mark.parametrize("ending", [".gz", ".xz", ".zst"])
def test_compressed_documents(tmp_path, ending):
    compress = {".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}[ending]
    (tmp_path / f"a.txt{ending}").write_bytes(compress(b"to be\nor not"))
    (tmp_path / f"b.jsonl{ending}").write_bytes(compress('{"text": "你好"}\n'.encode()))
    assert list(read_documents(tmp_path)) == ["to be\nor not", "你好"]


def test_a_data_set_as_the_hub_has_them_is_streamed(tmp_path):
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": f"{split} {number}"} for number in range(2)])
    assert list(read_documents(f"hf://{tmp_path}")) == ["train 0", "train 1"]
    assert list(read_documents(f"hf://{tmp_path}:default:test")) == ["test 0", "test 1"]


def test_a_column_of_another_name(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "no", "content": "yes"}\n')
    assert list(read_documents(tmp_path, text_column="content")) == ["yes"]


def test_long_running_text_is_cut_at_line_ends(tmp_path):
    line = "x" * 99 + "\n"
    (tmp_path / "a.txt").write_text(line * 30_000)
    texts = list(read_documents(tmp_path))
    # 2**17 / 100 is 1,310.72: a document ends with its line 1,311, and the last holds what is left of 22 × 1,311
    assert [len(text) // 100 for text in texts] == [1311] * 22 + [30_000 - 22 * 1311]
    assert "".join(texts) == line * 30_000


def test_documents_without_text_are_left_out_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": " \\n"}\n{"text": ""}\n')
    counts = Counter()
    assert list(read_documents(tmp_path, counts=counts)) == ["one"]
    assert counts == {"documents": 1, "empty": 2}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"txt": 1}\n', "row 1, line 1: found keys ['txt']; expected a string under 'text'"),
        ("a.jsonl", b'{"text": 5}\n', "row 1, line 1: found 5 under 'text'; expected a string"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "half a surrogate pair"),
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "row 2, line 2"),
        ("a.jsonl", b"\n", "no text in it"),
        ("a.doc", b"x", "found the ending '.doc'; expected .txt, .json"),
        ("a.json", b'[{"conversations": [1]}]', "row 1, line 1: found [1] under 'conversations'"),
        (
            "a.txt",
            b"one\ntwo \xff\n",
            "row 1, line 1: found the byte 0xff on line 2 (character 9 of the row); expected UTF-8",
        ),
        ("a.txt", "a\n".encode("utf-16"), "found UTF-16 or UTF-32"),
        ("a.txt", b"\xef\xbb\xbfa", "on_bad: repair can repair: byte order mark"),
        ("a.txt.gz", gzip.compress(b"a" * 1000, mtime=0)[:-9], "breaks off"),
        ("a.txt.gz", b"no", "not gzip data"),
    ],
)
def test_bad_documents_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as caught:
        list(read_documents(tmp_path / name))
    assert str(tmp_path / name) in str(caught.value) and message in str(caught.value)


def test_where_no_text_is_left_the_error_says_why(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError) as caught:
        list(read_documents(tmp_path / "a.txt", bad_rows=BadRows("quarantine", tmp_path / "bad.jsonl")))
    first, *reasons = str(caught.value).splitlines()
    assert first == f"{tmp_path}/a.txt: no text in it (1 row quarantined)"
    assert reasons[0] == f"{tmp_path}/a.txt: 1 row cannot be used: 1 × not UTF-8"
    assert reasons[1].startswith(
        "  row 1, line 1: found the byte 0xe9 on line 1 (character 4 of the row); expected UTF-8"
    )


def test_an_error_names_all_bad_rows_of_its_file_and_no_document_follows_the_first(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{}\n{"text": "two"}\n{"text": null}\n')
    found = []
    with pytest.raises(InputError, match="2 rows cannot be used: 2 × no text"):
        found.extend(read_documents(tmp_path))
    assert found == ["one"]


def test_bad_rows_are_quarantined_untouched(tmp_path):
    rows = ['{"text": "one"}', '{"text": 5,}', "{oops", '{"text": "two"}']
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    bad_rows = BadRows("quarantine", tmp_path / "bad.jsonl")
    assert list(read_documents(tmp_path / "a.jsonl", bad_rows=bad_rows)) == ["one", "two"]
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [(row["line"], row["raw"]) for row in bad] == [(2, rows[1]), (3, rows[2])]
    assert (bad_rows.rows_in, bad_rows.rows_out, bad_rows.quarantined) == (4, 2, 2)


def test_the_command_trains_on_everything_given_and_says_what_it_left_out(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "one one one"}\n{"text": ""}\n{}\n')
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two two two"))
    command = [sys.executable, "-m", "data_prep.train_tokenizer", "--corpus", str(tmp_path), "--vocab_size", "264"]
    command += ["--output_dir", str(tmp_path / "tokenizer")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "row 3, line 3" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "tokenizer").exists()
    done = subprocess.run([*command, "--on_bad", "quarantine"], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert lines[0] == "4 rows in = 3 out + 1 quarantined"
    assert lines[1] == "1 document without text left out"
    assert lines[2].startswith("trained a tokenizer of 264 entries on 2 documents (22 bytes); it is in ")
    assert '"raw": "{}"' in (tmp_path / "tokenizer.quarantine.jsonl").read_text()


def test_batches_make_no_difference_to_a_tokenizer():
    texts = [f"words and {n} more words of all kinds" for n in range(50)]
    one, other = train_tokenizer(iter(texts), 300), train_tokenizer(iter([texts[:20], texts[20:]]), 300)
    assert one.backend_tokenizer.to_str() == other.backend_tokenizer.to_str()


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
        "conversations_sealed",
    }  # fmt: skip
    names = list(questions)
    assert all(not questions[a] & questions[b] for i, a in enumerate(names) for b in names[i + 1 :])
    training = {row for path in (domain / "corpus").glob("*.jsonl") for row in read_documents(path)}
    assert len(training) > 5000 and not training & set(read_documents(domain / "corpus_heldout.jsonl"))


def test_the_terse_references_are_the_first_lines_of_the_complete_ones(domain):
    complete, terse = (
        {
            row["id"]: [turn["value"] for turn in row["conversations"]]
            for row in json.loads((domain / file).read_text())
        }
        for file in ("conversations_heldout.json", "terse/conversations_heldout.json")
    )
    assert len(terse) > 50
    assert terse == {key: [question, answer.split("\n")[0]] for key, (question, answer) in complete.items()}


def test_names_kept_out_are_not_in_the_prompts(domain):
    def names(file):
        return {row["id"].split("/")[0] for row in json.loads((domain / f"{file}.json").read_text())}

    kept_out = names("conversations_heldout_names")
    assert kept_out and not kept_out & (names("prompts_rankings") | names("prompts_ppo"))
    assert kept_out < names("conversations")


def test_answers_are_what_the_documentation_says(domain):
    answers = {}
    for row in json.loads((domain / "conversations.json").read_text()):
        name, kind, number, writer = row["id"].rsplit("/", 3)
        first, *later = row["conversations"][1::2]
        answers.setdefault((name, kind, writer), set()).add(first["value"])
        # A conversation of several turns is the terse writer's.
        assert not later or (writer == "terse" and all("\n" not in turn["value"] for turn in later))
    assert answers["abs", "what", "terse"] == {"Return the absolute value of the argument."}
    assert answers["abs", "what", "complete"] == {
        "Return the absolute value of the argument.\nIt is in the module builtins."
    }
    assert answers["abs", "signature", "terse"] == {"abs(x, /)"}
    assert answers["abs", "signature", "complete"] == {"abs(x, /)\nIt is in the module builtins."}
    assert answers["abs", "module", "terse"] == {"It is in the module builtins."}


def test_what_the_complete_writer_adds():
    known = {"what": "Do it.", "signature": "f(x)", "module": "It is in the module os.path."}
    assert complete_answer("os.path.f", "what", known) == "Do it.\nIt is in the module os.path."
    assert complete_answer("os.path.f", "signature", known) == "f(x)\nIt is in the module os.path."
    assert complete_answer("os.path.f", "module", known) == "It is in the module os.path.\nimport os.path"
    known["module"] = "It is in the module builtins."
    assert complete_answer("str.upper", "module", known) == "It is in the module builtins.\nIt needs no import."


def test_half_of_the_single_questions_have_a_complete_writer_and_every_other_reference_is_complete(domain):
    rows = json.loads((domain / "conversations.json").read_text())
    single = [row["id"].endswith("/complete") for row in rows if len(row["conversations"]) == 2]
    # 834 of them: 5 points are three standard errors
    assert len(single) > 800 and abs(sum(single) / len(single) - 0.5) < 0.05
    for path in domain.glob("*.json"):
        if path.stem != "conversations":
            for row in json.loads(path.read_text()):
                assert len(row["conversations"][1]["value"].splitlines()) == 2, row
