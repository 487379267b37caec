"""Our own lm-eval tasks on the files of a run: one folder, which lm-eval's own command reads by `--include_path`."""

import random
import shutil
from pathlib import Path

import yaml

from data_prep.common.errors import InputError
from data_prep.common.files import atomic_folder, atomic_write, write_jsonl
from data_prep.common.text import counted
from eval.common.grouped import grouped, pattern_of

FOLDER = Path(__file__).parent
CHOICES = 4  # the answer and three of the same kind; fewer where there are not so many


def facts(rows: list[dict], group_by: str | None, seed: int) -> tuple[list[dict], dict[str, int]]:
    """({"id", "question", "choices", "answer": its position}, counts of the questions left out and why).

    The wrong choices are the references of other questions of the same kind, drawn at random by `seed`; a kind is what the
    expression `group_by` finds in the ids (None: all are of one kind). Left out are questions of several turns, and those
    of a kind with one answer only.
    """
    single = [row for row in rows if len(row["prompt"]) == 1 and row["reference"].strip()]
    left_out = {
        "of several turns, or without a reference": len(rows) - len(single),
        "whose kind has no other answer": 0,
    }
    pattern = pattern_of(group_by)
    kinds = grouped(single, pattern) if pattern else {"": range(len(single))}
    found: dict[int, dict] = {}
    for kind, positions in kinds.items():
        answers = sorted({single[position]["reference"].strip() for position in positions})
        for position in positions:
            row = single[position]
            right = row["reference"].strip()
            # Each question by its own random numbers: another file beside it changes none of its choices.
            draw = random.Random(f"{seed} {kind} {row['id']}")
            others = [answer for answer in answers if answer != right]
            if not others:
                left_out["whose kind has no other answer"] += 1
                continue
            choices = [right, *draw.sample(others, min(CHOICES - 1, len(others)))]
            draw.shuffle(choices)
            question = row["prompt"][0]["content"]
            found[position] = {
                "id": row["id"], "question": question, "choices": choices, "answer": choices.index(right),
            }  # fmt: skip
    return [found[position] for position in sorted(found)], left_out


def own_tasks(
    documents: dict[str, list[str]], questions: dict[str, list[dict]], group_by: str | None, seed: int
) -> dict[str, list[dict]]:
    """{task: its rows}: `facts_<source>` of the questions and `documents_<source>` of the texts, for `write_tasks`.

    Prints what is left out. Raises `InputError` for a source without one question that has another answer of its kind.
    """
    rows = {f"documents_{source}": [{"text": text} for text in texts] for source, texts in documents.items()}
    for source, own in questions.items():
        items, left_out = facts(own, group_by, seed)
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in left_out.items() if number)
        if not items:
            raise InputError(f"--conversations {source}: no question with choices (left out: {reasons})")
        if reasons:
            print(f"facts_{source}: {counted(len(items), 'question')}; left out: {reasons}")
        rows[f"facts_{source}"] = items
    return rows


def write_tasks(folder: Path, rows: dict[str, list[dict]]) -> None:
    """Write the tasks of `own_tasks` into `folder`, which is made anew, whole or not at all."""
    with atomic_folder(folder) as new:
        for base in sorted({name.partition("_")[0] for name in rows}):
            shutil.copyfile(FOLDER / f"{base}.yaml", new / f"{base}.yaml")
        for name, own in rows.items():
            write_jsonl(new / f"{name}.jsonl", own)
            data = {"data_files": {"test": str((folder / f"{name}.jsonl").absolute())}}
            task = {"include": f"{name.partition('_')[0]}.yaml", "task": name, "dataset_kwargs": data}
            with atomic_write(new / f"{name}.yaml") as file:
                yaml.safe_dump(task, file, allow_unicode=True, sort_keys=False)
