"""What may be given as data and what may not: pipes, links to nothing, forbidden files; and what a folder holds besides."""

import json
import os
import re
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict, load_from_disk

from data_prep import check, clean_corpus, hold_out, mix_corpus, read_documents, train_tokenizer
from data_prep.common.errors import InputError
from data_prep.common.files import atomic_folder, atomic_write, read_jsonl, write_json
from data_prep.readers.conversations import load_conversations, read_conversations
from data_prep.rows.read import data_files, read_rows
from data_prep.tokens.shards import TokenShards
from eval.before_after.seen import training_rows

GOOD = '{"instruction": "a", "output": "b"}\n'


COMMANDS = {
    check: lambda path, out: [path],
    hold_out: lambda path, out: [path, "--fraction", 0.5, "--train", out / "a", "--heldout", out / "b"],
    train_tokenizer: lambda path, out: ["--corpus", path, "--vocab_size", 300, "--output_dir", out],
    clean_corpus: lambda path, out: ["--corpus", path, "--output_dir", out],
}


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
@pytest.mark.parametrize("inside", [False, True], ids=["named", "in a folder"])
def test_what_is_no_file_is_one_line_and_no_hang(command, tmp_path, monkeypatch, module, inside):
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    (data / "good.jsonl").write_text(GOOD)
    path = data / "rows.jsonl"
    os.mkfifo(path)
    given = COMMANDS[module](data if inside else path, out)
    assert command(module, *given) == (
        1,
        "",
        f"error: {path}: found a pipe; expected a file\n",
    )
    path.unlink()
    path.symlink_to("gone.jsonl")
    said = f"error: {path}: no such file or folder; it is a link to gone.jsonl\n"
    assert command(module, *given) == (1, "", said)
    path.unlink()
    path.symlink_to("/dev/null")
    assert command(module, *given)[2] == f"error: {path}: found a device; expected a file\n"
    path.unlink()
    path.write_text(GOOD)
    opened = Path.open

    def denied(self, *arguments, **options):
        if self == path:
            raise PermissionError(13, "Permission denied")
        return opened(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", denied)  # root may read everything
    said = f"error: {path}: cannot be read (Permission denied)\n"
    assert command(module, *given) == (1, "", said)
    assert not out.exists()


def test_a_file_that_may_no_longer_be_read_is_a_problem_of_the_file(tmp_path, monkeypatch):
    def denied(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert [each.kind for each in row.problems] == ["unreadable file"] and "Permission denied" in row.problems[0].found


def test_a_folder_that_may_not_be_read_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.jsonl").write_text(GOOD)
    scan = os.scandir

    def denied(path):
        if str(path).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=f"^{tmp_path}/inner: cannot be read \\(Permission denied\\)$"):
        data_files(tmp_path)


def test_links_in_a_folder_are_followed_and_nothing_is_read_twice(tmp_path):
    for folder in ("data/deep", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jsonl").write_text(GOOD)
    (tmp_path / "data" / "up").symlink_to("..")  # a loop, which also leads to data/deep again
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    found = [os.path.realpath(file) for file in data_files(tmp_path / "data")]
    assert sorted(found) == [f"{tmp_path}/data/deep/a.jsonl", f"{tmp_path}/elsewhere/a.jsonl"]


@pytest.fixture
def mixed(tmp_path) -> Path:
    """A folder with one file of rows, and seven others that conversations are not read from; two hidden ones besides."""
    names = ["a.jsonl", "a.md", "deep/B.MD", "c.docx", "LICENSE", "d.md.gz", "notes.v2.txt", "e.\x1b[2J", ".hidden.md"]
    for name in [*names, ".git/config", ".checkpoints/a.jsonl"]:
        (tmp_path / "mixed" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mixed" / name).write_text(GOOD)
    return tmp_path / "mixed"


def test_files_in_a_folder_that_nobody_reads_are_counted_by_ending(command, mixed, capsys):
    listed = ".md (2), without an ending (1), .\\x1b[2j (1), .docx (1), .md.gz (1)"
    code, out, _ = command(check, mixed)
    assert code == 0 and out.startswith(f"{mixed}: 6 files not read: {listed}\n"), "the doctor reads .txt as documents"
    load_conversations(mixed)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{mixed}: 7 files not read: {listed}, .txt (1)", "a.jsonl: 1 conversation"]


def test_files_that_a_glob_names_and_nobody_reads_are_counted(mixed, capsys):
    assert data_files(f"{mixed}/a.*") == [f"{mixed}/a.jsonl"]
    assert capsys.readouterr().out == f"{mixed}/a.*: 1 file not read: .md (1)\n"
    data_files([mixed / "a.jsonl", f"{mixed}/a.json*"])
    assert capsys.readouterr().out == ""


def test_the_command_that_reads_other_documents_is_named_where_text_is_read(mixed, tmp_path, capsys):
    data_files(mixed, plain_text=True)
    advice = "python -m data_prep.read_documents makes documents of .md, .docx"
    assert capsys.readouterr().out.splitlines()[1:] == [f"{mixed}: {advice}"]
    data_files(mixed)
    assert "read_documents" not in capsys.readouterr().out
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "a.PDF").write_text("")
    for path, found in (
        (tmp_path / "papers", "found no file that ends in"),
        (mixed / "a.md", "found the ending '.md'"),
    ):
        kinds = ".pdf" if path.is_dir() else ".md"
        with pytest.raises(InputError, match=rf"{found}.*; python -m data_prep.read_documents makes .* of {kinds}$"):
            data_files(path, plain_text=True)


def test_many_endings_are_the_first_ten(tmp_path, capsys):
    for ending in ("jsonl", *"abcdefghijkl"):
        (tmp_path / f"x.{ending}").write_text(GOOD)
    data_files(tmp_path)
    listed = ", ".join(f".{ending} (1)" for ending in "abcdefghij")
    assert capsys.readouterr().out == f"{tmp_path}: 12 files not read: {listed}, and 2 more\n"


def test_quarantined_rows_in_a_folder_are_no_data(tmp_path):
    (tmp_path / "rows.jsonl").write_text(GOOD + "{oops\n")
    names = ["quarantine.jsonl", "quarantine_heldout.jsonl", "rows.jsonl.quarantine.jsonl"]
    for name in names:
        rows, _ = read_conversations(tmp_path / "rows.jsonl", "quarantine", tmp_path / name)
        assert len(rows) == 1 and (tmp_path / name).exists()
    assert data_files(tmp_path) == [f"{tmp_path}/rows.jsonl"]
    assert data_files(tmp_path / names[0]) == [f"{tmp_path}/{names[0]}"], "named, it is read"
    (tmp_path / "quarantine.jsonl").write_text(GOOD)
    assert f"{tmp_path}/quarantine.jsonl" in data_files(tmp_path), "rows of the user's own are data whatever the name"


def test_what_commands_write_beside_the_data_is_left_out_of_a_folder_and_named(command, tmp_path, capsys):
    (tmp_path / "papers").mkdir()
    for name, text in {"a.md": "# A\n\nwhat is right", "b.txt": "and what is not"}.items():
        (tmp_path / "papers" / name).write_text(text)
    given = [tmp_path / "papers", "--fraction", 0, "--output_dir", tmp_path / "read"]
    assert command(read_documents, *given)[0] == 0
    given = [*COMMANDS[clean_corpus](tmp_path / "read", tmp_path / "clean"), "--quality", "none", "--num_workers", 1]
    code, out, err = command(clean_corpus, *given)
    assert code == 0 and "2 documents in = 2 out" in out, out + err  # not three
    left_out = f"{tmp_path}/read: 1 file left out that data_prep wrote beside the data: report.json\n"
    assert out.startswith(left_out)
    data = [f"{tmp_path}/clean/documents.jsonl"]
    assert data_files(tmp_path / "clean", plain_text=True) == data
    said = f"{tmp_path}/clean: 2 files left out that data_prep wrote beside the data: report.json, report.txt\n"
    assert capsys.readouterr().out == said
    assert data_files(tmp_path / "clean" / "report.txt", plain_text=True) == [f"{tmp_path}/clean/report.txt"], "named"
    # what only has such a name is data
    for name, text in {"report.json": GOOD, "index.json": GOOD, "report.txt": "It began in May."}.items():
        (tmp_path / "clean" / name).write_text(text)
    names = ["documents.jsonl", "index.json", "report.json", "report.txt"]
    assert data_files(tmp_path / "clean", plain_text=True) == [f"{tmp_path}/clean/{name}" for name in names]
    assert capsys.readouterr().out == ""


def test_a_glob_reads_the_folders_that_it_matches(mixed, capsys):
    other = mixed.parent / "mixture.jsonl"
    other.write_text(GOOD)
    (mixed / "deep" / "b.jsonl").write_text(GOOD)
    (mixed / "quarantine.jsonl").write_text('{"file": "a.jsonl", "row": 1}\n')
    files = [f"{mixed}/a.jsonl", f"{mixed}/deep/b.jsonl", str(other)]
    assert data_files(f"{mixed.parent}/mix*") == data_files([mixed, other]) == files
    pattern, folder = capsys.readouterr().out.split(f"{mixed}: ", 1)
    left_out, not_read = pattern.replace(f"{mixed.parent}/mix*", str(mixed)).splitlines()
    assert left_out == f"{mixed}: 1 file left out that data_prep wrote beside the data: quarantine.jsonl"
    assert not_read.startswith(f"{mixed}: 7 files not read: .md (2), ")
    assert f"{mixed}: {folder}".splitlines() == [left_out, not_read]
    assert data_files(f"{mixed}/dee*/") == [f"{mixed}/deep/b.jsonl"]
    assert data_files(f"{mixed}/**/*.jsonl") == [
        f"{mixed}/a.jsonl",
        f"{mixed}/deep/b.jsonl",
        f"{mixed}/quarantine.jsonl",
    ]


@pytest.mark.parametrize("on_bad", ["error", "repair", "quarantine"])
def test_a_quarantine_of_an_earlier_run_goes_when_a_run_leaves_nothing_out(tmp_path, on_bad):
    path, aside = tmp_path / "rows.jsonl", tmp_path / "out" / "quarantine.jsonl"
    path.write_text(GOOD + "{oops\n")
    read_conversations(path, "quarantine", aside)
    if on_bad != "quarantine":
        with pytest.raises(InputError):
            read_conversations(path, on_bad, aside)
        assert aside.exists(), "the run failed: what there is belongs to the earlier one"
    path.write_text(GOOD)
    read_conversations(path, on_bad, aside)
    assert not aside.exists()


def test_a_row_with_many_problems_is_a_few_lines(tmp_path):
    turns = [{"from": f"robot {number}", "value": "a"} for number in range(17)]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"conversations": turns}))
    with pytest.raises(InputError) as caught:
        read_conversations(tmp_path / "rows.jsonl")
    lines = str(caught.value).splitlines()
    assert [line for line in lines if line.startswith("  row 1")][-1] == "  row 1, line 1: and 14 problems more"
    assert lines[0].endswith("17 × unknown role") and len(lines) == 6


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for write in (atomic_write, atomic_folder):
        with (
            pytest.raises(InputError, match=f"^{tmp_path}/file/out: cannot be written \\("),
            write(tmp_path / "file" / "out"),
        ):
            pass
    with pytest.raises(InputError, match="cannot be read \\(File name too long\\)"):
        data_files("x" * 300 + ".jsonl")


def test_no_bar_and_no_colour_where_there_is_no_terminal(command, tmp_path, monkeypatch):
    folder = tmp_path / ("a-long-name-of-a-folder" * 8)
    folder.mkdir()
    lines = [GOOD.replace('"a"', f'"a{number}"') for number in range(5)]
    (folder / "rows.jsonl").write_text("".join(lines) + "{oops\n")
    for variable in ("FORCE_COLOR", "COLUMNS"):
        monkeypatch.setenv(variable, "40")
    code, out, error = command(check, folder / "rows.jsonl")
    assert (code, error) == (0, "") and "\033" not in out
    assert f"broken JSON: {folder}/rows.jsonl:6: found line 6, column 2: " in out, "no line is wrapped"
    given = COMMANDS[hold_out](folder / "rows.jsonl", tmp_path / "out")
    code, out, error = command(hold_out, *given, "--on_bad", "quarantine")
    assert (code, error) == (0, "") and out.count("\n") == 2


@pytest.fixture
def read(command, tmp_path) -> Path:
    """What read_documents leaves of ten documents, three of them held out."""
    (tmp_path / "papers").mkdir()
    for number in range(10):
        (tmp_path / "papers" / f"{number}.md").write_text(f"# Number {number}\n\nthe text of {number} alone\n")
    given = [tmp_path / "papers", "--fraction", 0.3, "--output_dir", tmp_path / "read"]
    code, _, err = command(read_documents, *given)
    assert code == 0, err
    return tmp_path / "read"


def mixture(folder: Path, files: list, tokenizer) -> Path:
    settings = {"tokenizer": tokenizer.name_or_path, "passes": 1, "output_dir": str(folder / "tokens")}
    write_json(folder / "mix.yaml", {**settings, "sources": {"domain": {"files": [*map(str, files)]}}})
    return folder / "mix.yaml"


@pytest.mark.parametrize("given", ["read", "read/*.jsonl", "rea*"])
def test_a_folder_with_held_out_documents_is_not_read_whole(command, read, given, tiny_tokenizer, tmp_path):
    path = f"{tmp_path}/{given}"
    said = f"error: {path}: found documents_heldout.jsonl, held out by name, beside documents.jsonl: read together, "
    said += "evaluations would see what was trained on; expected one or the other, by its name: "
    said += f"{read}/documents.jsonl, say\n"
    commands = {mix_corpus: ["--config", mixture(tmp_path, [path], tiny_tokenizer)]}
    commands |= {module: options(path, tmp_path / "out") for module, options in COMMANDS.items()}
    for module, options in commands.items():
        code, _, err = command(module, *options)
        assert (code, err) == (1, said), module.__name__
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mix.yaml", "papers", "read"], "nothing is written"
    with pytest.raises(InputError, match="found documents_heldout.jsonl, held out by name, beside documents.jsonl"):
        next(training_rows([path]))  # eval.adaptation --trained_on


def test_held_out_documents_are_not_among_the_tokens(command, read, tiny_tokenizer, tmp_path):
    config = mixture(tmp_path, [read / "documents.jsonl"], tiny_tokenizer)
    assert command(mix_corpus, "--config", config)[0] == 0
    ids = TokenShards(tmp_path / "tokens")
    text = tiny_tokenizer.decode(ids[0 : len(ids)])
    trained, held_out = (list(read_jsonl(read / f"documents{part}.jsonl")) for part in ("", "_heldout"))
    assert len(trained) + len(held_out) == 10 and len(held_out) == sum(row["text"] not in text for row in held_out) > 0
    assert all(row["text"] in text for row in trained)


def test_what_is_held_out_alone_is_read_from_a_folder(tmp_path):
    """A folder of held-out files, or inside one of that name, is named by its path."""
    for name in ("heldout/a.jsonl", "heldout/b.jsonl", "eval/documents_heldout.jsonl", "eval/x_heldout_own.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(GOOD)
    assert [Path(file).name for file in data_files(tmp_path / "heldout")] == ["a.jsonl", "b.jsonl"]
    assert len(data_files(tmp_path / "eval")) == 2 and len(data_files(f"{tmp_path}/*/*_heldout*.jsonl")) == 2
    assert len(data_files([tmp_path / "heldout" / "a.jsonl", tmp_path / "eval" / "documents_heldout.jsonl"])) == 2
    (tmp_path / "upheld_outcomes.jsonl").write_text(GOOD)
    with pytest.raises(InputError, match="found .*, held out by name, beside upheld_outcomes.jsonl: "):
        data_files(tmp_path)


def test_a_page_about_held_out_data_is_a_document(command, tmp_path):
    for name in ("docs/heldout.md", "docs/guide.md", "both/manual/a.md", "both/manual_heldout/b.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"# {name}\n\nwhat is right in {name}")
    given = ["--fraction", 0, "--output_dir", tmp_path / "read"]
    code, out, _ = command(read_documents, tmp_path / "docs", *given)
    assert code == 0 and "2 files = 2 read" in out
    given = ["--fraction", 0, "--output_dir", tmp_path / "again"]
    code, _, err = command(read_documents, tmp_path / "both", *given)
    assert code == 1 and f"error: {tmp_path}/both: found b.md, held out by name, beside a.md: " in err


def splits(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(GOOD)
    return folder


SPLITS = {
    ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"): "data/train*",
    ("train_sft.jsonl", "train_gen.jsonl", "test_sft.jsonl"): "train*",
    ("train.jsonl.gz", "validation.jsonl.gz"): "train*",
    ("TRAIN.csv", "Dev.csv"): "TRAIN*",
    ("train/a.jsonl", "train/b.jsonl", "valid/a.jsonl"): "train",
    ("own.jsonl", "train.jsonl", "eval_own.jsonl"): "train*",
}


@pytest.mark.parametrize("names", SPLITS, ids=lambda names: names[0].partition(".")[0])
@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_a_split_to_train_on_and_one_to_measure_on_are_not_read_together(command, tmp_path, names, module):
    data = splits(tmp_path / "data set", *names)
    code, out, err = command(module, *COMMANDS[module](data, tmp_path / "out"))
    assert (code, out) == (1, "")
    apart = [Path(name).name for name in names if not re.match("train|own", name.removeprefix("data/"), re.I)]
    trained = sorted(name for name in names if re.match("train", name.removeprefix("data/"), re.I))
    beside = ", ".join(Path(name).name for name in trained)
    assert err == (
        f"error: {data}: found {apart[0]}, a split to measure on by name, beside {beside}: read together, evaluations would "
        f"see what was trained on; expected one or the other, by its name: {data}/{SPLITS[names]}, say\n"
    )
    with pytest.raises(InputError, match="a split to measure on by name"):
        data_files(f"{data}/**/*.*")
    chosen = data_files(f"{data}/{SPLITS[names]}")
    assert [str(Path(file).relative_to(data)) for file in chosen] == trained, "what the message names can be read"
    assert len(data_files([data / name for name in names])) == len(names), "each named, they are"


def test_names_that_only_begin_like_a_split_are_no_split(tmp_path):
    names = ["developers.jsonl", "testimony.jsonl", "train.jsonl", "training_log.jsonl", "valid2.jsonl"]
    assert data_files(splits(tmp_path, *names)) == [f"{tmp_path}/{name}" for name in names]
    assert len(data_files(splits(tmp_path / "other", "test.jsonl", "own.jsonl"))) == 2


def test_descriptions_of_the_data_are_left_out_of_a_folder_and_named(tmp_path, capsys):
    """What the Hub, `Dataset.save_to_disk` and LLaMA-Factory write beside the data."""
    kept = splits(tmp_path, "a.jsonl") / "a.jsonl"
    DatasetDict({"train": Dataset.from_list([{"text": "a"}])}).save_to_disk(tmp_path / "saved")
    write_json(tmp_path / "dataset_infos.json", {"default": {"description": "", "features": {}}}, indent=None)
    (tmp_path / "factory").mkdir()
    write_json(tmp_path / "factory" / "dataset_info.json", {"identity": {"file_name": "identity.json"}})
    capsys.readouterr()
    assert data_files(tmp_path) == [str(kept)]
    names = "dataset_infos.json, dataset_info.json, dataset_dict.json, state.json"
    arrow = f"in Python datasets.load_from_disk('{tmp_path}/saved/train').to_parquet(…) makes Parquet of .arrow"
    assert capsys.readouterr().out == (
        f"{tmp_path}: 5 files left out as descriptions of the data: {names}\n"
        f"{tmp_path}: 1 file not read: .arrow (1)\n{tmp_path}: {arrow}\n"
    )
    none = f"{tmp_path}/saved: found no file that ends in .json, .jsonl, .csv, .parquet there; expected at least one; {arrow}"
    with pytest.raises(InputError, match=f"^{re.escape(none)}$"):
        data_files(tmp_path / "saved")
    load_from_disk(tmp_path / "saved" / "train").to_parquet(tmp_path / "saved" / "rows.parquet")
    assert data_files(tmp_path / "saved") == [f"{tmp_path}/saved/rows.parquet"], "what is said can be done"
    capsys.readouterr()
    for name in ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json"):
        (tmp_path / name).write_text(GOOD)
    assert len(data_files(tmp_path)) == 6, "what only has such a name is data"


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__)
def test_a_pointer_of_git_lfs_is_one_line(command, tmp_path, module):
    for name in ("a.jsonl.gz", "b.parquet", "c.csv"):
        (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    splits(tmp_path, "d.jsonl")
    said = "found a pointer of Git LFS, not the data; run in that folder: git lfs pull\n"
    given = {
        tmp_path / "b.parquet": f"error: {tmp_path}/b.parquet: {said}",
        tmp_path: f"error: {tmp_path}/a.jsonl.gz and 2 files more: {said}",
    }
    for path, message in given.items():
        options = COMMANDS[module](path, tmp_path / "out")
        assert command(module, *options) == (1, "", message)
    assert data_files(tmp_path / "d.jsonl") == [f"{tmp_path}/d.jsonl"]
