"""From your own files to a whole run: the configs, worked out from your data, and the script that runs them in order.

    python -m data_prep.start data/mine.json --output_dir runs/mine
    python -m data_prep.start data/*.jsonl corpus/ --output_dir runs/mine --minutes 30
    python -m data_prep.start data/mine.json --model Qwen/Qwen2.5-0.5B-Instruct --output_dir runs/mine
    bash runs/mine/run.sh

Takes documents, conversations and preferences, in any mixture of the formats that data_prep.check and
data_prep.mix_corpus take, and goes as far as they allow: a base model from documents, an assistant from conversations, a
reward model and PPO from preferences, or KTO where these are answers labelled good or bad, one a prompt. Without documents
the conversations are the corpus; without conversations the best answers of the preferences, or those labelled good, are the
demonstrations. `--model` starts from a model that is there, by LoRA if it is large for this machine.

The output folder holds the checked data, a part of each kind held out by prompt, a YAML for each stage, in which every
value that depends on your data has its arithmetic beside it, and `run.sh`, which skips what is done: the same command
resumes. No prompt that is held out of conversations or preferences is trained on in the other; rows left out for it
are counted, and so are rows of a kind of which there are too few, in files that are mostly of another. Nothing is
trained here. The seconds that are printed are worked out from the rate of matrix products that this machine has just
now: expect them within a factor of two.
"""

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from functools import partial
from itertools import islice
from pathlib import Path

from data_prep.common.errors import InputError, run_main
from data_prep.common.files import atomic_folder, atomic_write, read_json, read_jsonl, vacant
from data_prep.common.text import counted
from data_prep.planning import sizes
from data_prep.planning.configs import Machine
from data_prep.planning.files import (
    are_ranked,
    check_apart,
    count_labels,
    count_shared,
    is_corpus,
    write_demonstrations,
    write_documents,
    write_good_answers,
    write_sample,
)
from data_prep.planning.measure import conversations_in, labels_in, measure_text, measure_turns, rankings_in
from data_prep.planning.origin import origin_of
from data_prep.planning.road import Data, Measured, plan, table
from data_prep.readers.answered import all_prompts
from data_prep.readers.documents import read_documents
from data_prep.readers.preferences import ALONE, read_rankings
from data_prep.readers.unread import fields_line
from data_prep.rows.bad_rows import ON_BAD
from data_prep.rows.read import data_files

ROOT = Path(__file__).parents[1]
LEAST = 20  # rows of a kind: fewer leave nothing to measure on
LEAST_LABELLED = 2  # answers of a label, in each part: KTO's batches may leave out one
SEEDS = range(20)
HELD_OUT = {"documents": 0.1, "conversations": 0.1, "preferences": 0.2}
MOST_HELD_OUT = 1000  # rows of a kind: a measure does not need more
TOKENIZER_SAMPLE = 1 << 25  # bytes: of more an even sample is enough to count tokens with


def run_module(name: str, *words: object, codes: tuple[int, ...] = (0,)) -> None:
    """Run `python -m data_prep.NAME WORDS…` as a user does; its error becomes an InputError."""
    command = [sys.executable, "-m", f"data_prep.{name}", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    error = re.search(r"^error: (.*)", done.stderr, re.MULTILINE | re.DOTALL)
    if done.returncode and error:
        raise InputError(error[1].strip())
    if done.returncode not in codes:
        raise RuntimeError(f"{shlex.join(command)}: {done.stderr}")


def examine(
    files: list[str], folder: Path, arguments: argparse.Namespace
) -> tuple[dict[str, Path], dict[str, int], list[str]]:
    """({kind: JSON Lines file in `folder`}, {kind: rows} of the `strays`, what the doctor says of the rows).

    Documents that stand among conversations are a kind too. The doctor ends with 1 where no row is left.
    """
    options = ["--text_column", arguments.text_column]
    options += ["--columns", arguments.columns] if arguments.columns else []
    run_module("check", *files, "--on_bad", arguments.on_bad, "--output", folder / "checked", *options, codes=(0, 1))
    (path,) = (folder / "checked").rglob("check.json")
    report = read_json(path)
    rows = report["rows"]
    said = [
        f"{counted(rows['in'], 'row')} in {counted(len(files), 'file')}: {rows['out']:,} kept, {rows['repaired']:,} of them "
        f"repaired, {rows['quarantined']:,} quarantined"
    ]
    for finding in report["findings"]:
        first = finding["first"][0]
        where = f"{first['file']}, row {first['row']}"
        said.append(f"  {finding['rows']:,} × {finding['kind']}, {finding['treatment']}; the first is {where}")
    if report["fields_not_read"]:
        said.append(f"  fields not read: {fields_line(report['fields_not_read'])}")
    said += [f"  {way}: {fields_line(fields)}" for way, fields in report["fields_changed"].items()]
    kinds = {}
    for kind in HELD_OUT:
        found = folder / "checked" / f"{kind}.jsonl"
        if found.exists() and found.stat().st_size:
            kinds[kind] = found if kind == "documents" else found.rename(folder / found.name)
    if not kinds:
        for finding in report["findings"]:
            first = finding["first"][0]
            said.append(f"  {finding['kind']}: found {first['found']}; expected {first['expected']}")
        raise InputError(
            "\n".join(["no row can be used", *said, f"see python -m data_prep.check {shlex.join(files)}"])
        )
    return kinds, strays(kinds, report["files"]), said


def strays(kinds: dict[str, Path], files: list[dict]) -> dict[str, int]:
    """{kind: rows} of the kinds with fewer than `LEAST` rows, all of them in files with more rows of another kind.

    Args:
        files: the doctor's counts, {kind: rows} of each file.
    """
    few = {kind: rows for kind, path in kinds.items() if (rows := count_rows(path, LEAST)) < LEAST}
    return {
        kind: rows
        for kind, rows in few.items()
        if all(file[kind] < max(file[other] for other in HELD_OUT) for file in files if file[kind])
    }


def kinds_of(files: list[str], folder: Path, arguments: argparse.Namespace) -> tuple[dict[str, Path], list[str]]:
    """({kind: JSON Lines file in `folder`}, what is to be said of them): what is trained on in the user's files."""
    corpus = [file for file in files if not arguments.columns and is_corpus(file, arguments.text_column)]
    others = [file for file in files if file not in corpus]
    kinds, few, said = examine(others, folder, arguments) if others else ({}, {}, [])
    checked = kinds.pop("documents", None)
    if (checked or corpus) and not arguments.model:
        kinds["documents"] = folder / "documents.jsonl"
        said += write_documents(checked, corpus, kinds["documents"], arguments.on_bad, arguments.text_column)
        if corpus or count_rows(kinds["documents"], LEAST) == LEAST:  # long ones were cut into many
            few.pop("documents", None)
    elif checked or corpus:
        number = len(corpus) + bool(checked)
        said.append(f"{counted(number, 'file')} of documents not used: --model is pretrained")
    if not kinds:
        raise InputError("found documents alone, and --model is pretrained; expected conversations or preferences")
    return kinds, said + leave_out(few, kinds)


def leave_out(few: dict[str, int], kinds: dict[str, Path]) -> list[str]:
    """Take the kinds out of `kinds` of which there are too few, if that leaves another; returns what is to be said of it."""
    few = {kind: rows for kind, rows in few.items() if kind in kinds}
    if len(few) == len(kinds):
        return []
    said = []
    for kind, rows in few.items():
        kinds.pop(kind).unlink()
        what = counted(rows, kind.removesuffix("s"))
        said.append(f"{what} not used, among more rows of another kind: {LEAST} are needed to train and to measure on")
    return said


def hold_out(path: Path, kind: str, beside: list | None = None) -> list:
    """Hold out a part of `path` by data_prep.hold_out; returns its options.

    Of few rows a seed may hold out none or too many, or good answers alone: then it is the next seed's turn. Raises
    InputError for fewer than `LEAST` rows.

    Args:
        beside: the options by which another kind was held out before. What it holds out is not trained on here. Its seed
            is the first: by one seed prompts that both kinds have are held out together, as far as the fractions are equal.
    """
    rows = count_rows(path)
    if rows < LEAST:
        noun = kind.removesuffix("s")
        raise InputError(f"found {counted(rows, noun)}; expected at least {LEAST}, to train on and to measure on")
    fraction = float(f"{min(HELD_OUT[kind], MOST_HELD_OUT / rows):.3g}")
    train, heldout = (path.with_name(f"{kind}_{part}.jsonl") for part in ("train", "heldout"))
    seeds = sorted(SEEDS, key=lambda seed: bool(beside) and seed != beside[beside.index("--seed") + 1])
    others = count_rows(beside[-1]) if beside else 0
    for seed in seeds:
        options = [
            *(["--without", beside[-3]] if beside else []),
            "--fraction",
            fraction,
            "--seed",
            seed,
            "--on_bad",
            "repair",
            "--heldout",
            heldout,
            "--train",
            train,
        ]
        try:
            run_module("hold_out", path, *options)
        except InputError as error:
            if seed == seeds[-1]:
                raise InputError(
                    f"no part of the {rows:,} {kind} can be held out, which is done by prompt: nearly all of them have the "
                    "same one; expected rows with other prompts"
                ) from error
            continue
        share = heldout.stat().st_size / (heldout.stat().st_size + train.stat().st_size)
        labels = labels_of((train, heldout)) if kind == "preferences" else None
        both = not labels or min(map(min, labels)) >= LEAST_LABELLED
        # Held out here, a prompt that most rows of the other kind begin with would take these from its training.
        few = not beside or count_shared(beside[-1], heldout) <= 2 * fraction * others
        if (both and few and fraction / 2 <= share <= 2 * fraction) or seed == seeds[-1]:
            break
        train.unlink()
        heldout.unlink()
    return options


def hold_out_all(kinds: dict[str, Path]) -> tuple[dict[str, list], list[str]]:
    """({kind: options of data_prep.hold_out}, what is to be said): a part of each kind is held out.

    No prompt that is held out of conversations or of preferences is trained on in the other: its rows are left out there.
    """
    splits, said = {}, []
    for kind in HELD_OUT:
        if kind in kinds:
            splits[kind] = hold_out(kinds[kind], kind, splits.get("conversations"))
    if not {"conversations", "preferences"} <= splits.keys():
        return splits, said
    conversations, preferences = splits["conversations"], splits["preferences"]
    if count_shared(conversations[-1], preferences[-3]):
        conversations[-1].unlink()
        conversations[-3].unlink()
        splits["conversations"] = ["--without", preferences[-3], *conversations]
        run_module("hold_out", kinds["conversations"], *splits["conversations"])
    for kind, other in (("conversations", "preferences"), ("preferences", "conversations")):
        *_, heldout, _, train = splits[kind]
        if left := count_rows(kinds[kind]) - count_rows(heldout) - count_rows(train):
            what = counted(left, kind.removesuffix("s"))
            said.append(f"{what} left out of training, with a prompt that is held out of the {other}")
        elif "--without" in splits[kind]:
            del splits[kind][:2]
    return splits, said


def commands_of(path: Path, options: list) -> list[list]:
    """The commands that hold out a part of `path` as `options` do, the held-out part first: each makes one of the parts."""
    *how, _, heldout, _, train = options
    apart = how[how.index("--without") + 2 :] if "--without" in how else how  # which rows are held out
    return [
        ["data_prep.hold_out", path, *apart, "--heldout", heldout],
        ["data_prep.hold_out", path, *how, "--train", train],
    ]


def count_rows(path: Path, most: int | None = None) -> int:
    """The rows of a file, counted up to `most`."""
    return sum(1 for _ in islice(read_jsonl(path), most))


def labels_of(parts: tuple[Path, Path]) -> list[tuple[int, int]] | None:
    """(answers labelled good, bad) of both parts of preferences, training first; None where that makes `LEAST` rankings."""
    return None if are_ranked(parts[0], LEAST) else [count_labels(path) for path in parts]


def check_labels(labels: list[tuple[int, int]]) -> None:
    """Raise InputError for fewer than `LEAST_LABELLED` answers of a label in one of the parts."""
    if min(map(min, labels)) < LEAST_LABELLED:
        good, bad = map(sum, zip(*labels, strict=True))
        raise InputError(
            f"found {counted(good, 'answer')} labelled good and {bad:,} labelled bad, which make fewer than {LEAST} "
            f"rankings; expected {LEAST_LABELLED} of each label to train on and {LEAST_LABELLED} to measure on, for "
            "recipes/kto.py, or prompts with answers of both labels"
        )


def demonstrations(parts: tuple[Path, Path], labelled: bool, folder: Path) -> tuple[tuple[Path, Path], list[str]]:
    """The good answers of both parts of preferences as conversations, training first; and what is to be said of them."""
    train, heldout = (folder / f"demonstrations_{part}.jsonl" for part in ("train", "heldout"))
    write = write_good_answers if labelled else write_demonstrations
    left = write(parts[0], train, all_prompts(parts[1]))
    write(parts[1], heldout, set())
    which = "answers labelled good" if labelled else "best answers of the preferences"
    said = [f"no conversations: the {which} are the demonstrations of fine-tuning"]
    if left:
        said.append(
            f"{counted(left, 'demonstration')} left out of training, with a held-out prompt in an earlier turn"
        )
    return (train, heldout), said


def tokenizer_for(corpus: list[str], folder: Path):
    """A tokenizer as the run will train it, in `folder`, to count tokens with."""
    from data_prep.models.loading import load_tokenizer  # slow to import

    size = sum(len(text.encode("utf-8")) for text in read_documents(corpus))
    sample = write_sample(corpus, folder / "sample.jsonl", size, TOKENIZER_SAMPLE)
    output = folder / "tokenizer"
    run_module("train_tokenizer", "--corpus", *sample, "--vocab_size", sizes.vocabulary(size), "--output_dir", output)
    return load_tokenizer(str(output))


def machine_of() -> Machine:
    """What this machine can do, measured now."""
    import psutil
    import torch

    from data_prep.common.machine import bf16_is_fast, matrix_rate

    gpu = torch.accelerator.is_available()
    memory = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
    rate = matrix_rate(torch.bfloat16 if bf16_is_fast() else torch.float32, seconds=2.0)  # others may use it too
    return Machine(rate * sizes.EFFICIENCY, memory or psutil.virtual_memory().available, gpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help="files, folders, globs or hf://owner/name:config:split")
    parser.add_argument("--output_dir", type=Path, required=True, help="the folder to write")
    parser.add_argument("--model", help="a model to start from, folder or Hub id (default: random weights)")
    parser.add_argument(
        "--minutes", type=float, default=10, help="time for all trainings on this machine (default: 10)"
    )
    parser.add_argument(
        "--on_bad",
        choices=ON_BAD,
        default="repair",
        help="bad rows; what repair cannot it quarantines (default: repair)",
    )
    parser.add_argument("--columns", help="field=column,… as in data_prep.check (default: recognise the format)")
    parser.add_argument("--text_column", default="text", help="column with the text of documents (default: text)")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes < float("inf"):
        raise InputError(f"--minutes {arguments.minutes:g}: expected more than 0")
    vacant(arguments.output_dir)
    files = data_files(arguments.files, plain_text=True)
    origin = origin_of(arguments.model) if arguments.model else None
    # The script runs in the root of the repository, wherever this command runs.
    run = arguments.output_dir if Path.cwd() == ROOT else arguments.output_dir.absolute()

    with atomic_folder(arguments.output_dir) as folder, tempfile.TemporaryDirectory() as temporary:
        (folder / "data").mkdir()

        # Data
        kinds, said = kinds_of(files, folder / "data", arguments)
        splits, left_out = hold_out_all(kinds)
        said += left_out

        # Kinds that are missing
        parts = {kind: (options[-1], options[-3]) for kind, options in splits.items()}
        labels = labels_of(parts["preferences"]) if "preferences" in parts else None
        if labels:
            parts["labels"] = parts.pop("preferences")
            check_labels(labels)
        # Raises if no ranking is left, as the reward model's training would.
        alone = sum(read_rankings(path, on_bad="repair")[1].get(ALONE, 0) for path in parts.get("preferences", ()))
        if alone:
            said.append(
                f"{counted(alone, 'labelled answer')} left out of the rankings, with one label alone at a prompt"
            )
        compared = "labels" if labels else "preferences"
        if compared in parts:
            if "conversations" not in parts:
                parts["conversations"], taught = demonstrations(parts[compared], bool(labels), folder / "data")
                said += taught
            check_apart(parts["conversations"][0], parts[compared][1])
            if "conversations" in splits:
                check_apart(parts[compared][0], parts["conversations"][1])
        sources = {kind: parts[kind] for kind in ("documents", "conversations") if kind in parts and not origin}
        if "documents" not in parts and not origin:
            said.append("no documents: the text of the conversations is the corpus of tokenizer and base model")

        # Tokens
        from data_prep.tokens.template_problems import template_roles  # slow to import

        corpus = [str(files[0]) for files in sources.values()]
        tokenizer = origin.tokenizer if origin else tokenizer_for(corpus, Path(temporary))
        conversations = partial(conversations_in, roles=template_roles(tokenizer))
        readers = {"conversations": conversations, "preferences": rankings_in, "labels": labels_in}
        turns = (
            measure_turns(of, parts[kind][0], tokenizer) if kind in parts else None for kind, of in readers.items()
        )
        good = labels[0][0] if labels else 0
        measured = Measured(measure_text(corpus, tokenizer) if corpus else None, *turns, good)

        # Stages
        def named(word: object) -> str:
            """A path as it will be called when the folder is in its place."""
            return str(run / word.relative_to(folder)) if isinstance(word, Path) else str(word)

        at = {kind: tuple(map(named, files)) for kind, files in parts.items()}
        held_out = (commands_of(kinds[kind], options) for kind, options in splits.items())
        # All held-out parts come before the training parts, some of which leave out what is held out of another kind.
        commands = [list(map(named, command)) for part in zip(*held_out, strict=True) for command in part]
        used = (at.get(kind) for kind in ("conversations", "preferences", "labels"))
        data = Data({kind: at[kind] for kind in sources}, *used, commands)
        machine = machine_of()
        road = plan(data, measured, ROOT, run, len(tokenizer), origin, machine, 60 * arguments.minutes)

        # Files
        for name, text in road.files.items():
            with atomic_write(folder / name) as file:
                file.write(text)
    print("\n".join([*said, "", *table(road, machine), "", *road.notes]))
    script = shlex.quote(str(arguments.output_dir / "run.sh"))
    print(f"the configs and the data are in {arguments.output_dir}; read them, then:\n\n    bash {script}")


if __name__ == "__main__":
    run_main(main)
