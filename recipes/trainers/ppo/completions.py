"""The table of sampled answers: all of them in completions.jsonl, some on the screen."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from data_prep.common.files import read_jsonl, write_jsonl
from data_prep.common.text import printable

SHOWN = 4  # rows on the screen


def log_completions(path: Path, step: int, texts: list[str], rollout) -> None:
    """Append the answers of update `step` to the file at `path`, and print some of them.

    Rows of this and later updates that a killed run left in the file are replaced. `texts` are the answers of
    `rollout`, a scored one.
    """
    earlier = [row for row in read_jsonl(path) if row["step"] < step] if path.exists() else []
    columns = (rollout.rows, texts, rollout.stopped.tolist(), rollout.scores.tolist())
    rows = [
        {"step": step, "prompt": row["prompt"], "completion": text, "stopped": stopped, "score": round(score, 4)}
        for row, text, stopped, score in zip(*columns, strict=True)
    ]
    write_jsonl(path, earlier + rows)

    table = Table("prompt", "answer", "score", title=f"update {step}", show_lines=True)
    for row in rows[:SHOWN]:
        question = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
        table.add_row(*(Text(printable(text)) for text in (question, row["completion"])), f"{row['score']:.2f}")
    Console().print(table)
