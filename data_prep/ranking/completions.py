"""The rows that are ranked: completions of data_prep.sample_completions, read and checked."""

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl

KEPT = ("id", "prompt", "completions", "counts", "models", "drawn")  # of a row, in its ranking


def read_completions(path: str, by_reference: bool) -> list[dict]:
    """The rows of `path` with prompts as messages; `InputError` for the first row of another shape."""
    rows = list(read_jsonl(path))
    if not rows:
        raise InputError(f"{path}: found an empty file; expected what data_prep.sample_completions writes")
    needed = {"prompt", "completions", *(["reference"] if by_reference else [])}
    for number, row in enumerate(rows, start=1):
        where = f"{path}: row {number}"
        if missing := needed - set(row):
            raise InputError(
                f"{where}: no {', '.join(sorted(missing))}; expected what data_prep.sample_completions writes"
            )
        if isinstance(row["prompt"], str):
            row["prompt"] = [{"role": "user", "content": row["prompt"]}]
        turns, texts = row["prompt"], row["completions"]
        if not isinstance(turns, list) or not all(
            isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)
            for turn in turns
        ):
            raise InputError(f"{where}: found neither text nor messages under 'prompt'")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{where}: found no list of texts under 'completions'")
        if not all(map(str.strip, texts)) or len(set(texts)) < len(texts):
            raise InputError(
                f"{where}: found an empty or repeated answer; expected different texts under 'completions'"
            )
        if by_reference and not isinstance(row["reference"], str):
            raise InputError(f"{where}: found no text under 'reference'")
    return rows
