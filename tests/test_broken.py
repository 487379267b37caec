"""Broken input, as data: what the user is told of each file and each setting, and that no row is lost.

tests/broken/data.yaml and configuration.yaml say how their cases are written. A case is run as its command, in this process.
"""

import base64
import bz2
import gzip
import importlib
import io
import lzma
import os
import re
import shlex
import sys
from pathlib import Path
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
import pytest
import yaml
import zstandard
from helpers.models import save, tiny_config, write_shards
from transformers import GPT2LMHeadModel

from data_prep import check
from data_prep.common.errors import run_main
from data_prep.common.files import read_json, read_jsonl

FOLDER = Path(__file__).parent / "broken"
DATA = yaml.safe_load((FOLDER / "data.yaml").read_text(encoding="utf-8"))
CONFIGURATION = yaml.safe_load((FOLDER / "configuration.yaml").read_text(encoding="utf-8"))
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # what a terminal would obey; tabs and line breaks aside


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch, capsys):
    """run("data_prep.check a.jsonl") or run("recipes/sft.py --config a.yaml"), in this process."""
    environment = dict(os.environ)

    def call(command: str) -> Done:
        words = shlex.split(command)
        module = importlib.import_module(words[0].removesuffix(".py").replace("/", "."))
        monkeypatch.setattr(sys, "argv", words)
        capsys.readouterr()
        code = 0
        try:
            run_main(module.main)
        except SystemExit as stopped:
            code = stopped.code or 0
        return Done(code, *capsys.readouterr())

    monkeypatch.setattr(check, "page", lambda report: "")  # pictures take long; tests/test_check.py looks at the page
    yield call
    os.environ.clear()  # the libraries' arguments leave settings there for accelerate
    os.environ.update(environment)


COMPRESS = {
    "gzip": lambda content: gzip.compress(content, mtime=0),
    "xz": lzma.compress,
    "zstd": zstandard.compress,
    "bz2": bz2.compress,
}


def parquet(columns: dict) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


# Content that is too long, or too strange, to stand in the YAML.
MADE = {
    "nested": lambda depth: "[" + "[" * depth + "]" * depth + "]",
    "nested row": lambda depth: DATA["rows"]["GOOD"] + "\n" + '{"messages": ' + "[" * depth + "\n" + DATA["rows"]["FINE"],
    "digits": lambda count: "[" + DATA["rows"]["GOOD"].replace("{", '{"id": ' + "9" * count + ", ", 1) + "]",
    "zeros": lambda count: DATA["rows"]["GOOD"] + "\n" + "\0" * count,
    "long line": lambda count: DATA["rows"]["GOOD"].replace('"a"', '"' + "a " * (count // 2) + '"'),
}  # fmt: skip


def filled(text: str) -> str:
    """`text` with whole rows where their names stand."""
    for name, row in DATA["rows"].items():
        text = text.replace(name, row)
    return text


def bytes_of(case: dict) -> tuple[bytes, bytes]:
    """(the content of a case's file, the same before it was compressed)"""
    if "parquet" in case:
        plain = parquet(case["parquet"])
    elif "base64" in case:
        plain = base64.b64decode(case["base64"])
    elif "make" in case:
        name, _, number = case["make"].rpartition(" ")
        plain = MADE[name](int(number)).encode()
    else:
        text = "\n".join(case["lines"]) + "\n" if "lines" in case else case["text"]
        plain = filled(text).encode(case.get("encoding", "utf-8"))
        for old, new in case.get("bytes", {}).items():
            plain = plain.replace(old.encode("latin-1"), new.encode("latin-1"))
    content = plain
    for method in case.get("compress", "").split():
        content = COMPRESS[method](content)
    content = content * case.get("times", 1)
    content = content[: len(content) - case.get("cut", 0)]
    return content + case.get("append", "").encode("latin-1"), plain


def printed(text: str) -> list[str]:
    """The lines that a terminal shows, those of progress bars among them."""
    return [line.rstrip() for line in re.split(r"[\r\n]+", text)]


def said(done: Done) -> list[str]:
    """The message of a refused command: its lines, the last that were printed."""
    assert done.code == 1 and "Traceback" not in done.out + done.err, done
    lines = [line for line in printed(done.err) if line]
    starts = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert len(starts) == 1, done.err
    return lines[starts[0] :]


def holds(line: str, says: str | list[str]) -> bool:
    return all(part in line for part in ([says] if isinstance(says, str) else says))


def named(case: dict) -> str:
    return case.get("name") or case["file"]


def positions(parts: list[bytes], whole: bytes) -> list[int]:
    """Where each part stands in `whole`, after the end of the one before it; a part that does not is a failure."""
    found, end = [], 0
    for part in parts:
        found.append(whole.index(part, end))
        end = found[-1] + len(part)
    return found


@pytest.fixture
def path(tmp_path, request) -> Path:
    case = request.param
    file = tmp_path / case["file"]
    file.write_bytes(bytes_of(case)[0])
    return file


WITH_ROWS = [case for case in DATA["cases"] if "rows" in case]
SPOKEN = [case for case in DATA["cases"] if "says" in case]


def ids(cases: list[dict]) -> list[str]:
    return [named(case).replace(" ", "-") for case in cases]


def examined(run, path: Path, folder: Path, on_bad: str = "") -> dict:
    """The doctor's report on a file, with the rows that it wrote."""
    done = run(f"data_prep.check {shlex.quote(str(path))} --output {folder} {on_bad}")
    assert not CONTROL.search(done.out)
    (file,) = folder.rglob("check.json")
    report = read_json(file)
    assert done.code == ("no row is left" in done.out) and "Traceback" not in done.out + done.err
    kept = {file.stem: list(read_jsonl(file)) for file in folder.rglob("*.jsonl")}
    aside = kept.pop("quarantine", [])
    counts = [report["rows"][key] for key in ("in", "out", "quarantined")]
    assert "no row is left" not in done.out or not any(kept.values())
    out = sum(map(len, kept.values()))
    assert counts == [out + len(aside), out, len(aside)]
    return {"counts": counts, "kept": kept, "aside": aside, "findings": report["findings"]}


def without_place(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("source", "row")}


@pytest.mark.parametrize(("case", "path"), [(case, case) for case in WITH_ROWS], ids=ids(WITH_ROWS), indirect=["path"])
def test_the_doctor_loses_no_row(case, path, tmp_path, run):
    found = examined(run, path, tmp_path / "out")
    assert found["counts"] == case["rows"]
    assert {each["kind"]: [row["row"] for row in each["first"]] for each in found["findings"]} == case["finds"]
    for row in found["aside"]:
        assert row["file"] == str(path) and row["reasons"]
    if path.suffix != ".parquet":  # whose rows have no text
        raw = [row["raw"].encode("utf-8", "surrogateescape") for row in found["aside"]]
        assert len(positions(raw, bytes_of(case)[1])) == len(raw)  # unchanged, and in order
    for kind, rows in found["kept"].items():  # what was written is read again as it is
        if rows:
            again = examined(run, tmp_path / "out" / f"{kind}.jsonl", tmp_path / kind)
            assert list(map(without_place, again["kept"][kind])) == list(map(without_place, rows))
    if "repaired" in case:
        assert examined(run, path, tmp_path / "repaired", "--on_bad repair")["counts"] == case["repaired"]


@pytest.mark.parametrize(("case", "path"), [(case, case) for case in SPOKEN], ids=ids(SPOKEN), indirect=["path"])
def test_a_broken_file_is_explained(case, path, tmp_path, run):
    command = DATA["commands"][case.get("by", "conversations")]
    done = run(command.format(file=shlex.quote(str(path)), dir=tmp_path))
    first, *others = said(done)
    assert first.startswith(f"error: {path}: ") or "by" in case
    assert all(re.match(r"  (row [\d,]+|and [\d,]+ row)|on_bad: ", line) for line in others), others
    assert any(holds(line, case["says"]) for line in (first, *others)), done.err
    assert not others or others[-1].startswith("on_bad: ") or "is left" in first
    left = {each.name for each in tmp_path.iterdir()} - {path.name}
    assert not left  # neither an output nor half of one


@pytest.fixture(scope="module")
def places(tmp_path_factory, tiny_tokenizer, tiny_chat_tokenizer, tiny_model_dir, tiny_reward_dir, zero_model_dir):
    """{name: path} of what the cases of configuration.yaml name between braces."""
    root = tmp_path_factory.mktemp("places")
    files = {name: root / f"{name}.jsonl" for name in CONFIGURATION["data"]}
    for name, path in files.items():
        path.write_text("\n".join(CONFIGURATION["data"][name]) + "\n", encoding="utf-8")
    write_shards(root / "tokens", list(range(6, 206)), zero_model_dir)
    GPT2LMHeadModel(tiny_config(tiny_tokenizer)).save_pretrained(root / "without_tokenizer")
    save(GPT2LMHeadModel(tiny_config(tiny_chat_tokenizer)), tiny_chat_tokenizer, root / "without_weights")
    (root / "without_weights" / "model.safetensors").unlink()
    for name in ("empty", "prose", "dangling"):
        (root / name).mkdir()
    (root / "prose" / "notes.txt").write_text("Once upon a time.")
    (root / "dangling" / "link.jsonl").symlink_to(root / "nowhere")
    names = ("tokens", "without_tokenizer", "without_weights", "empty", "prose", "dangling")
    folders = {name: root / name for name in names}
    models = {"model": tiny_model_dir, "reward": tiny_reward_dir, "base": zero_model_dir}
    return {key: str(value) for key, value in {**files, **folders, **models}.items()}


def with_places(value, places: dict[str, str]):
    """A value of a YAML, every {name} in it replaced by its path."""
    if isinstance(value, dict):
        return {key: with_places(each, places) for key, each in value.items()}
    if isinstance(value, list):
        return [with_places(each, places) for each in value]
    return re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), value) if isinstance(value, str) else value


@pytest.mark.parametrize("case", CONFIGURATION["cases"], ids=ids(CONFIGURATION["cases"]))
def test_a_wrong_setting_is_refused(case, places, tmp_path, run):
    places = {**places, "dir": str(tmp_path)}
    for name, content in case.get("files", {}).items():
        (tmp_path / name).write_text(with_places(content, places), encoding="utf-8")
    if "run" in case:
        start = CONFIGURATION["runs"][case["run"]]
        settings = {**start["settings"], **case.get("set", {})}
        for key in case.get("unset", []):
            del settings[key]
        text = case.get("yaml") or yaml.safe_dump(with_places(settings, places), allow_unicode=True)
        (tmp_path / "run.yaml").write_text(with_places(text, places), encoding="utf-8")
        command = f"{start['command']} {case.get('options', '')}"
    else:
        command = case["command"]
    before = sorted(tmp_path.rglob("*"))
    done = run(with_places(command, places))
    if case.get("code", 1) == 2:  # argparse: usage, then the error
        assert done.code == 2 and "Traceback" not in done.err
        lines = printed(done.err.strip())
    else:
        lines = said(done)
    shown = lines if "yaml" in case else lines[-1:]  # what is wrong with YAML takes a few lines
    assert any(holds(line, with_places(case["says"], places)) for line in shown), done.err
    assert sorted(tmp_path.rglob("*")) == before  # nothing was written


def test_there_are_as_many_cases_as_promised_and_each_once():
    cases = DATA["cases"] + CONFIGURATION["cases"]
    assert len(cases) >= 150 and len({case["kind"] for case in cases}) >= 30
    names = [named(case) for case in cases]
    assert len(set(names)) == len(names), {name for name in names if names.count(name) > 1}
