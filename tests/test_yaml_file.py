"""YAML read strictly: what plain YAML passes over in silence is one line that names the place."""

import os
import sys

import pytest

from data_prep import mix_corpus
from data_prep.common.errors import InputError, run_main
from data_prep.common.yaml_file import read_yaml


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: 1\nb: 2\na: 3\n", "line 3: found the key 'a' again, after line 1; expected each key once: remove one"),
        (b"a:\n  x: 1\n  y: [{z: 1, z: 2}]\n", "line 3: found the key 'z' again, after line 3;"),
        (b'"a": 1\na: 2\n', "line 2: found the key 'a' again, after line 1;"),
        (b"a: 1\nb: [2\n", "line 3, column 1: not YAML (expected ',' or ']'"),
        (b"a: b: c\n", "line 1, column 5: not YAML (mapping values are not allowed here)"),
        (b"a: 2026-13-45\n", "not YAML (month must be in 1..12)"),
        (b"a: !!int ''\n", "not YAML (string index out of range)"),
        (b"a: !!python/name:os.system\n", "line 1, column 4: not YAML (could not determine a constructor"),
        (b"a: " + b"[" * 5000, "not YAML (maximum recursion depth"),
        (b"a: 1\n---\na: 2\n", "line 2, column 1: not YAML (but found another document)"),
        (b"- a\n", "expected keys and values, found list"),
        (b"1: a\n", "found the key 1, which YAML does not read as text"),
        (b"null: a\n", "found the key None, which YAML does not read as text"),
        (b"caf\xe9: 1\n", "byte 3 is not UTF-8"),
    ],
)
def test_what_is_not_settings_is_one_line(tmp_path, content, message):
    path = tmp_path / "mix.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_yaml(path)
    said = str(caught.value)
    assert said.startswith(f"{path}: ") and message in said and "\n" not in said


def test_keys_and_values_as_plain_yaml_reads_them(tmp_path):
    path = tmp_path / "mix.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: &own {x: 1, y: 2}\nb:\n  <<: *own\n  y: 3\n")
    # A merged mapping (<<) is there to be overridden: y is no duplicate.
    assert read_yaml(path) == {"a": {"x": 1, "y": 2}, "b": {"x": 1, "y": 3}}
    path.write_bytes(b"# nothing yet\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path, kind):
    path = {"folder": tmp_path, "pipe": tmp_path / "pipe", "device": "/dev/null"}[kind]
    if kind == "pipe":
        os.mkfifo(path)
    with pytest.raises(InputError, match=f"^{path}: found a {kind}; expected a file$"):
        read_yaml(path)


def test_a_file_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    path = tmp_path / "mix.yaml"
    path.write_text("a: 1\n")

    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", denied)  # root may read everything
    with pytest.raises(InputError, match=f"^{path}: cannot be read \\(Permission denied\\)$"):
        read_yaml(path)


def test_a_source_that_is_named_twice_stops_the_mixture(tmp_path, monkeypatch, capsys):
    (tmp_path / "mix.yaml").write_text("sources:\n  web: {files: [a.jsonl]}\n  web: {files: [b.jsonl]}\n")
    monkeypatch.setattr(sys, "argv", ["mix_corpus", "--config", str(tmp_path / "mix.yaml")])
    with pytest.raises(SystemExit) as stopped:
        run_main(mix_corpus.main)
    assert stopped.value.code == 1 and capsys.readouterr().err == (
        f"error: {tmp_path}/mix.yaml: line 3: found the key 'web' again, after line 2; expected each key once: "
        "remove one of them\n"
    )
