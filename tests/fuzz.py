"""Random rows, files and YAMLs against the doctor, the readers, the recipes' arguments and the tools' commands.

    python -m tests.fuzz --minutes 10 --seed 0
    python -m tests.fuzz --replay runs/fuzz/rows-17

Mutates valid rows of all formats (types, keys, nesting, Unicode), files (bytes, cuts, compression) and the YAMLs of
recipes/configs, and checks of each that

    nothing is raised but InputError and SystemExit
    rows in = rows out + quarantined, and the raw text of the quarantined ones is in the file, in order
    every row that goes on is in the schema: roles in turn, texts that are not blank and can be written as UTF-8
    the rows written are read again as they are, and each reader takes as many rows as the doctor kept

Prints a tally per kind. A failure is written into --failures, with the file and what was raised. Run by hand: not a test.
"""

import argparse
import contextlib
import functools
import gzip
import importlib
import io
import lzma
import math
import os
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest import mock

import yaml
import zstandard

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any library is imported

from data_prep import check, clean_corpus, hold_out, mix_corpus, rank_completions, train_tokenizer
from data_prep.checking.rows import as_written
from data_prep.common.errors import InputError, run_main
from data_prep.common.files import read_json, read_jsonl
from data_prep.readers.conversation_formats import PLAIN_ROLES, REPAIRABLE, to_conversation
from data_prep.readers.conversations import read_conversations
from data_prep.readers.documents import read_documents
from data_prep.readers.preference_formats import REPAIRABLE as REPAIRABLE_PREFERENCES
from data_prep.readers.preference_formats import preference_of
from data_prep.readers.preferences import read_rankings
from data_prep.readers.prompts import read_prompts
from data_prep.rows.bad_rows import BadRows
from tests.helpers.mutations import COMPRESS, OTHERS, VALID, changed, damaged, dumped, some_rows, written, yaml_value

ROOT = Path(__file__).parents[1]
ROWS_AT_ONCE = 50  # of "values", whose tally counts rows
RECIPES = ("pretrain", "continue_pretraining", "sft", "reward", "dpo", "kto", "ppo", "rloo", "grpo")


class Failed(AssertionError):
    """A property that does not hold."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Failed(what)


def run(module, words: list) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command in this process; what it raises otherwise, it raises."""
    out, err, argv = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = [module.__name__, *map(str, words)]
    code = 0
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            run_main(module.main)
    except SystemExit as stopped:
        code = stopped.code or 0
    finally:
        sys.argv = argv
    require(code in (0, 1, 2), f"exit code {code}")
    if code == 1:
        told = "error: " in err.getvalue() or "no row is left" in out.getvalue()
        require(told, f"exit code 1 without an error: {err.getvalue()[-300:]}")
    return code, out.getvalue(), err.getvalue()


def check_schema(row: dict, kind: str) -> None:
    """A row that the doctor kept."""
    turns = row["messages"] if kind == "conversations" else row["prompt"]
    roles = [turn["role"] for turn in turns]
    require(bool(turns) and set(roles) <= {*PLAIN_ROLES, "tool"}, f"roles {roles}")
    # Calls of tools, and what the tools return, have turns and an order of their own.
    said = [turn for turn in turns if turn["role"] != "tool" and not turn.get("tool_calls")]
    if said == turns:
        after = roles[1:] if roles[0] == "system" else roles
        require(after == [("user", "assistant")[place % 2] for place in range(len(after))], f"order {roles}")
        require(roles[-1] == ("assistant" if kind == "conversations" else "user"), f"ends on {roles[-1]}")
    texts = [turn["content"] for turn in said]
    if kind == "preferences":
        answers = [row["completion"]] if "completion" in row else row["completions"]
        texts += answers
        if "completion" in row:
            require(isinstance(row["label"], bool), f"label {row['label']}")
        else:
            require(len(row["ranks"]) == len(answers) > 1, "ranks")
            require(all(type(rank) is int for rank in row["ranks"]), "ranks are integers")
            scores = row.get("scores")
            require(scores is None or (len(scores) == len(answers) and all(map(math.isfinite, scores))), "scores")
    for text in texts:
        require(isinstance(text, str) and bool(text.strip()), f"text {text!r}")
        text.encode("utf-8")


def plain_bytes(path: Path) -> bytes | None:
    """The decompressed content, or None where it cannot be told."""
    open_ = {".gz": gzip.open, ".xz": lzma.open, ".zst": zstandard.open}.get(path.suffix, open)
    try:
        with open_(path, "rb") as file:
            return file.read()
    except Exception:  # whatever a broken archive raises
        return None


def examine(path: Path, work: Path, on_bad: str, tally: Counter) -> dict[str, int]:
    """The doctor on a file, and all that must hold of what it writes; {kind: rows kept}."""
    run(check, [path, "--output", work / "out", "--on_bad", on_bad])
    if not (work / "out").exists():
        tally["refused"] += 1
        return {}
    report = read_json(*(work / "out").rglob("check.json"))
    kept = {file.stem: list(read_jsonl(file)) for file in (work / "out").rglob("*.jsonl")}
    aside = kept.pop("quarantine", [])
    counts = report["rows"]
    require(counts["in"] == counts["out"] + counts["quarantined"], f"{counts}")
    require(
        counts["out"] == sum(map(len, kept.values())), f"{counts}, written {[len(each) for each in kept.values()]}"
    )
    require(counts["quarantined"] == len(aside), f"{counts}, {len(aside)} in quarantine.jsonl")
    for kind in kept.keys() - {"documents"}:
        for row in kept[kind]:
            check_schema(row, kind)
    content = None if path.suffix == ".parquet" else plain_bytes(path)
    if content is not None:
        end = 0
        for row in aside:
            raw = row["raw"].encode("utf-8", "surrogateescape")
            at = content.find(raw, end)
            require(at >= 0, f"row {row['row']} in quarantine is not in the file as it stands: {raw[:200]!r}")
            end = at + len(raw)
    for kind, rows in kept.items():  # read again: nothing changes
        if rows:
            folder = work / f"again_{kind}"
            run(check, [work / "out" / f"{kind}.jsonl", "--output", folder])
            again = list(read_jsonl(folder / f"{kind}.jsonl"))
            strip = [{key: each[key] for key in each if key not in ("source", "row")} for each in rows]
            require(
                strip == [{key: each[key] for key in each if key not in ("source", "row")} for each in again],
                f"{kind} read again differ",
            )
            shutil.rmtree(folder)
    shutil.rmtree(work / "out")
    tally["accepted" if counts["out"] else "all rows set aside"] += 1
    return {kind: len(rows) for kind, rows in kept.items()} | {"in": counts["in"]}


def quiet(function, *arguments, **options):
    """What a reader returns, or None if it raised InputError."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            return function(*arguments, **options)
        except InputError as error:
            require(bool(str(error).strip()), "an error without words")
            return None


def read_everywhere(path: Path, work: Path, kept: dict[str, int]) -> None:
    """Every reader on a file: each raises InputError or takes as many rows as the doctor kept of its kind."""
    bad = BadRows("quarantine", work / "q.jsonl")
    for reader in (read_conversations, read_rankings):
        for on_bad in ("error", "repair", "quarantine"):
            found = quiet(reader, path, on_bad=on_bad, quarantine=work / "r.jsonl")
            if found and on_bad == "quarantine" and reader is read_rankings:
                counts = found[1]
                others = sum(counts[key] for key in counts if key.startswith(("with all", "labelled")))
                labelled = counts["rows"] - counts["quarantined"] - others - counts["rankings"]
                require(labelled >= 0, f"{counts}")  # labelled answers join their prompt's ranking
    quiet(read_prompts, path, None, 0, on_bad="quarantine", quarantine=work / "p.jsonl")
    texts = quiet(lambda: list(read_documents(path, bad_rows=bad)))
    for text in texts or ():
        text.encode("utf-8")
        require(bool(text.strip()), "an empty document")
    require(bad.rows_in == bad.rows_out + bad.quarantined, f"{bad.rows_in} documents in")
    parts = [work / "train.jsonl", work / "heldout.jsonl"]
    code, out, _ = run(
        hold_out, [path, "--fraction", 0.5, "--train", parts[0], "--heldout", parts[1], "--on_bad", "quarantine"]
    )
    if not code:
        rows = [sum(1 for _ in read_jsonl(part)) for part in parts]
        aside = Path(f"{parts[0]}.quarantine.jsonl")
        total = sum(rows) + (sum(1 for _ in read_jsonl(aside)) if aside.exists() else 0)
        require(not kept or total == kept["in"], f"hold_out: {total} of {kept.get('in')} rows: {out[-200:]}")


def fuzz_values(rng: random.Random, work: Path, tally: Counter) -> None:
    """Rows as values, without a file."""
    for _ in range(ROWS_AT_ONCE):
        row = changed(rng, rng.choice(VALID))
        try:
            tally["accepted" if is_taken(row) else "refused"] += 1
        except Exception:
            (work / "row.json").write_text(dumped(row))
            raise


def is_taken(row) -> bool:
    """Whether a row is read as a conversation or a preference; what it is read as is in the schema, and read so again."""
    taken = False
    messages, problems = to_conversation(row)
    if {problem.kind for problem in problems} <= set(REPAIRABLE):
        taken = True
        check_schema({"messages": messages}, "conversations")
        require(to_conversation({"messages": messages}) == (messages, []), f"{messages} read again differ")
    if isinstance(row, dict):
        ranking, problems = preference_of(row)
        if {problem.kind for problem in problems} <= set(REPAIRABLE_PREFERENCES):
            taken = True
            written = as_written(ranking)
            check_schema(written, "preferences")
            again, problems = preference_of(written)
            require((as_written(again), problems) == (written, []), f"{written} read again differ")
    hold_out.prompt_of(row, "text")
    return taken


ENDINGS = (".json", ".jsonl", ".jsonl", ".csv", ".parquet")


def fuzz_rows(rng: random.Random, work: Path, tally: Counter) -> None:
    ending = rng.choice(ENDINGS)
    path = work / f"rows{ending}"
    path.write_bytes(written(rng, some_rows(rng), ending))
    kept = examine(path, work, rng.choice(("quarantine", "quarantine", "repair", "error")), tally)
    read_everywhere(path, work, kept)


def fuzz_files(rng: random.Random, work: Path, tally: Counter) -> None:
    ending = rng.choice((*ENDINGS, ".txt"))
    content = written(rng, some_rows(rng), ending)
    if rng.random() < 0.7:
        content = damaged(rng, content)
    packed = "" if ending == ".parquet" else rng.choice(("", "", ".gz", ".xz", ".zst"))
    content = COMPRESS[packed](content)
    if packed and rng.random() < 0.5:
        content = damaged(rng, content) if rng.random() < 0.7 else rng.choice(OTHERS)(content)
    path = work / f"file{ending}{packed}"
    path.write_bytes(content)
    kept = {} if ending == ".txt" else examine(path, work, rng.choice(("quarantine", "quarantine", "repair")), tally)
    read_everywhere(path, work, kept)
    words = ["--corpus", path, "--on_bad", rng.choice(("error", "repair", "quarantine"))]
    if ending != ".txt" and rng.random() < 0.7:
        return
    code, _, _ = run(train_tokenizer, [*words, "--vocab_size", 270, "--output_dir", work / "tokenizer"])
    require(code or (work / "tokenizer" / "tokenizer.json").exists(), "no tokenizer")
    if ending == ".txt":
        tally["refused" if code else "accepted"] += 1
    if rng.random() < 0.2:
        run(clean_corpus, [*words, "--num_workers", 1, "--quality", "none", "--output_dir", work / "clean"])
    if rng.random() < 0.2:
        run(rank_completions, ["--completions", path, "--output", work / "ranked.jsonl"])


def fuzz_configs(rng: random.Random, work: Path, tally: Counter) -> None:
    """The arguments of a recipe, or the reader of mix_corpus, on a YAML that was changed."""
    from recipes.trainers import arguments

    path = rng.choice(sorted((ROOT / "recipes" / "configs").glob("*/*.yaml")))
    text = path.read_text(encoding="utf-8")
    if rng.random() < 0.3:
        content = damaged(rng, text.encode())
    else:
        values = yaml.safe_load(text)
        for _ in range(rng.choice((1, 1, 2, 3))):
            key = rng.choice(sorted(values, key=str)) if values else "x"
            what = rng.randrange(4)
            if what == 0 and values:
                del values[key]
            elif what == 1:
                values[
                    rng.choice(
                        [
                            "seed",
                            "weight_decay",
                            "num_train_epochs",
                            "lr_scheduler_kwargs",
                            "optim",
                            "on_bad",
                            "x",
                            str(key).upper(),
                            3,
                        ]
                    )
                ] = yaml_value(rng, 1)
            elif what == 2 and isinstance(values.get(key), dict) and values[key]:
                inner = rng.choice(sorted(values[key], key=str))
                values[key][inner] = yaml_value(rng, values[key][inner])
            else:
                values[key] = yaml_value(rng, values.get(key))
        content = yaml.safe_dump(values, allow_unicode=True, sort_keys=False).encode()
    config = work / "run.yaml"
    config.write_bytes(content)
    stage = path.stem if rng.random() < 0.9 else rng.choice((*RECIPES, "mix"))
    environment, argv = dict(os.environ), sys.argv
    out = io.StringIO()
    try:
        # The folders of the YAMLs are not there: looked at, few inputs would come any further.
        there = mock.patch.object(arguments, "check_folders", lambda values: None)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), there:
            if stage == "mix":
                mix_corpus.read_config(config)
            else:
                module = importlib.import_module(f"recipes.{stage}")
                sys.argv = [f"recipes/{stage}.py", "--config", str(config)]
                arguments.parse_arguments(*arguments_of(stage), refused=getattr(module, "REFUSED", None))
        tally["accepted"] += 1
    except InputError as error:
        require(bool(str(error).strip()), "an error without words")
        tally["refused"] += 1
    except SystemExit as stopped:
        require(
            stopped.code in (1, 2) and "error: " in out.getvalue(),
            f"exit code {stopped.code}: {out.getvalue()[-300:]}",
        )
        tally["refused by argparse"] += 1
    finally:
        sys.argv = argv
        os.environ.clear()
        os.environ.update(environment)


def arguments_of(stage: str) -> list[type]:
    """The dataclasses that a recipe hands to `parse_arguments`."""
    from transformers import TrainingArguments
    from trl import DPOConfig, GRPOConfig, KTOConfig, ModelConfig, RewardConfig, RLOOConfig, SFTConfig

    from recipes.trainers.ppo.config import PPOConfig

    own = importlib.import_module(f"recipes.{stage}").ScriptArguments
    if stage == "pretrain":
        return [own, TrainingArguments]
    kinds = {
        "continue_pretraining": TrainingArguments,
        "sft": SFTConfig,
        "reward": RewardConfig,
        "dpo": DPOConfig,
        "kto": KTOConfig,
        "ppo": PPOConfig,
        "rloo": RLOOConfig,
        "grpo": GRPOConfig,
    }
    return [own, kinds[stage], ModelConfig]


def fuzz_mixtures(rng: random.Random, work: Path, tally: Counter) -> None:
    """mix_corpus as a command, on small files and numbers that are changed."""
    corpus = work / f"corpus{rng.choice(('.txt', '.jsonl', '.json', '.csv'))}"
    content = written(rng, some_rows(rng), corpus.suffix)
    corpus.write_bytes(damaged(rng, content) if rng.random() < 0.3 else content)
    values = {"tokenizer": str(work / "tok"), "output_dir": str(work / "mixed"), "shard_tokens": 64, "on_bad": rng.choice(("error", "repair", "quarantine")),
              "sources": {"one": {"files": [str(corpus)], "weight": 1}}, rng.choice(("passes", "total_tokens")): rng.choice((1, 2, 50, 0.3))}  # fmt: skip
    if rng.random() < 0.5:
        key = rng.choice(sorted(values))
        values[key] = yaml_value(rng, values[key])
    if rng.random() < 0.3 and isinstance(values["sources"], dict) and isinstance(values["sources"].get("one"), dict):
        key = rng.choice(("weight", "max_epochs", "text_column", "files"))
        values["sources"]["one"][key] = yaml_value(rng, 1)
    if values.get("output_dir") not in (str(work / "mixed"), None):
        values["output_dir"] = str(work / "mixed")  # nowhere else
    shutil.copytree(work.parent / "tokenizer", work / "tok")
    (work / "mix.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    code, _, _ = run(mix_corpus, ["--config", work / "mix.yaml"])
    require(code or (work / "mixed" / "index.json").exists(), "no index")
    tally["refused" if code else "accepted"] += 1


# Commands of data_prep and eval; {0} is a file with rows.
TOOLS = {
    "data_prep.check": "{0}",
    "data_prep.hold_out": "{0} --fraction 0.5 --train train.jsonl --heldout heldout.jsonl",
    "data_prep.train_tokenizer": "--corpus {0} --vocab_size 300 --output_dir out",
    "data_prep.clean_corpus": "--corpus {0} --num_workers 1 --quality none --output_dir out",
    "data_prep.rank_completions": "--completions {0} --output out.jsonl",
    "data_prep.sample_completions": "--model none/none --conversations {0} --output out.jsonl",
    "eval.answers": "--model none/none --conversations {0}",
    "eval.perplexity": "--model none/none --documents {0}",
    "eval.reward_accuracy": "--model none/none --rankings {0}",
    "eval.win_rate": "--model none/none --opponent none/none --conversations {0}",
    "eval.report": "--run .",
}
WORDS = ["0", "1", "-1", "2", "0.5", "nan", "inf", "1e400", "99999999999999999999", "", "x", "none.jsonl", ".", "rows.jsonl", "error", "repair",
         "quarantine", "gopher", "en", "prompt=q", "prompt=prompt,completion=completion", "a=b=c", "(", "person", "function", "a.b", "mine.py:f",
         "reward_model", "chrf", "exact_match", "é", "\x1b[2J", "hf://", "hf://a/b:c:d", "*.jsonl"]  # fmt: skip


@functools.cache
def options_of(name: str) -> list[str]:
    """The options of a command, read off its help."""
    out, sys.argv = io.StringIO(), [name, "--help"]
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(name).main()
    # Not the number of processes, and nobody is there to rank in the terminal.
    return sorted(
        set(re.findall(r"--(\w+)", out.getvalue().partition("options:")[2])) - {"help", "num_workers", "rater"}
    )


def fuzz_commands(rng: random.Random, work: Path, tally: Counter) -> None:
    """A command on good rows, with options that fit or not."""
    name = rng.choice(sorted(TOOLS))
    rows = rng.choice((some_rows(rng), VALID))
    (work / "rows.jsonl").write_bytes(written(rng, rows, ".jsonl"))
    (work / "mine.py").write_text(
        "def f(prompts, completions, **columns):\n    return [len(each) for each in prompts]\n"
    )
    words = TOOLS[name].format("rows.jsonl").split()
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        words += [
            f"--{rng.choice(options_of(name))}",
            *(rng.choice(WORDS) for _ in range(rng.choice((0, 1, 1, 1, 2)))),
        ]
    (work / "command").write_text(f"{name} {words}")
    code, _, _ = run(importlib.import_module(name), words)
    tally[("accepted", "refused", "refused by argparse")[code]] += 1


FUZZERS = {
    "values": fuzz_values,
    "rows": fuzz_rows,
    "files": fuzz_files,
    "YAMLs": fuzz_configs,
    "mixtures": fuzz_mixtures,
    "commands": fuzz_commands,
}


def one(kind: str, seed: str, root: Path, tally: Counter) -> str | None:
    """Run one input; the traceback if it failed. The folder of the input stays for the caller."""
    work = root / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    tally["inputs"] += 1
    os.chdir(work)  # a word that is taken for a path is one in here
    try:
        FUZZERS[kind](random.Random(seed), work, tally)
    except (Exception, SystemExit):
        return traceback.format_exc()
    finally:
        os.chdir(ROOT)
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, help="time to run (default: 1)")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other inputs (default: 0)")
    parser.add_argument(
        "--kinds", nargs="+", choices=FUZZERS, default=list(FUZZERS), help="what to fuzz (default: all)"
    )
    parser.add_argument(
        "--failures", type=Path, default=Path("runs/fuzz"), help="folder for what failed (default: runs/fuzz)"
    )
    parser.add_argument(
        "--replay", type=Path, help="a folder that a failure left: run its input again, and show what is raised"
    )
    arguments = parser.parse_args()
    failures = arguments.failures.resolve()
    check.page = lambda report: ""  # pictures take longer than all the rest, and so does waiting for the disk
    os.fsync = lambda descriptor: None
    tallies = {kind: Counter() for kind in arguments.kinds}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        (root / "text.txt").write_text("yes and no, and what is right")
        run(train_tokenizer, ["--corpus", root / "text.txt", "--vocab_size", 270, "--output_dir", root / "tokenizer"])
        if arguments.replay:
            kind, seed = (arguments.replay / "input").read_text().splitlines()
            print(one(kind, seed, root, Counter()) or "it holds")
            return
        seen: Counter = Counter()
        end, number = time.monotonic() + 60 * arguments.minutes, 0
        while time.monotonic() < end:
            kind = arguments.kinds[number % len(arguments.kinds)]
            seed = f"{arguments.seed} {kind} {number}"
            raised = one(kind, seed, root, tallies[kind])
            if raised:
                tallies[kind]["failed"] += 1
                place = [line.strip() for line in raised.splitlines() if line.startswith("  File")][-1:]
                seen[(kind, *place)] += 1
                if seen[(kind, *place)] <= 3:  # of each place, a few
                    folder = failures / f"{kind}-{number}"
                    shutil.copytree(root / "work", folder, dirs_exist_ok=True)
                    (folder / "input").write_text(f"{kind}\n{seed}\n")
                    (folder / "raised.txt").write_text(raised)
                    print(f"{folder}: {raised.splitlines()[-1][:300]}", flush=True)
            number += 1
    for kind, tally in tallies.items():
        print(f"{kind}: " + ", ".join(f"{count:,} {what}" for what, count in tally.items()))
    for (kind, place), count in seen.most_common():
        print(f"{count:,} × {kind}: {place}")
    sys.exit(bool(seen))


if __name__ == "__main__":
    main()
