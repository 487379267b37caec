"""The reward model's part of a report: one ranking with the rater's reasons, and the scores of better and worse answers."""

import random
from pathlib import Path

import numpy as np

from data_prep.common.errors import InputError
from data_prep.common.files import read_jsonl
from data_prep.common.plots import BLUE, RED, as_uri, canvas
from eval.reporting.reading.asking import KEPT, keep, kept, stamp
from eval.reporting.reading.run_folder import RANKINGS, data_file
from eval.reporting.words import label, say

SCORED, SEED = 200, 42  # rankings whose best and worst answers are scored
LOOKED_AT = 2000  # rankings among which one is looked for
SHOWN, LONGEST = 4, 400  # answers of the ranking that is shown, and the characters of the longest
REASONS = ("reasons", "reason", "notes", "note")  # what a rater may have written beside the ranks


def read_rows(path: Path) -> list[dict]:
    """The rankings of a file as data_prep.rank_completions writes them; rows of any other form are left out."""
    rows = []
    for row in read_jsonl(path):
        texts, ranks = (row.get(key) for key in ("completions", "ranks")) if isinstance(row, dict) else (None, None)
        if isinstance(texts, list) and isinstance(ranks, list) and len(texts) == len(ranks) > 1:
            whole = all(isinstance(text, str) for text in texts) and isinstance(row.get("prompt"), list | str)
            if whole and all(isinstance(rank, int) for rank in ranks) and min(ranks) < max(ranks):
                rows.append(row)
    return rows


def rankings_file(run: Path) -> Path | None:
    """The rankings that the reward model was not trained on, or else those that it was."""
    path = data_file(run, "rankings_heldout", "preferences_heldout", *RANKINGS)
    return path if path.exists() else None


def question_of(prompt: list[dict] | str) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def references(path: Path) -> dict[str, str]:
    """{id: reference} of the answers that were ranked, from the file beside it; empty where there is none."""
    beside = path.with_name(path.name.replace("rankings", "completions"))
    if beside == path or not beside.exists():
        return {}
    return {str(row["id"]): row["reference"] for row in read_jsonl(beside) if row.keys() >= {"id", "reference"}}


def why(text: str, reference: str) -> list[tuple[float, str]]:
    """[(points, reason)] that data_prep.rewards.rubric gives an answer, line by line."""
    lines = [[" ".join(line.split()) for line in each.splitlines() if line.strip()] for each in (text, reference)]
    (first, *others), (asked, *further) = (each or [""] for each in lines)
    found = [(2.0, say("the fact that was asked for"))] if first == asked else [(-2.0, say("not what was asked for"))]
    for line in others:
        found.append((1.0, say("a further fact")) if line in further else (-1.0, say("wrong or repeated")))
        further = [each for each in further if each != line]
    return found


def reasons_of(row: dict, index: int, reference: str | None) -> list[tuple[float | None, str]]:
    """[(points or None, reason)] for an answer's rank: those of the rubric, if they add up to its score, or what the rater
    wrote in the row: a text for all answers, or one for each."""
    scores = row.get("scores")
    if reference is not None and isinstance(scores, list) and len(scores) == len(row["completions"]):
        found = why(row["completions"][index], reference)
        if sum(points for points, _ in found) == scores[index]:
            return found
    for key in REASONS:
        written = row.get(key)
        if isinstance(written, list) and len(written) == len(row["completions"]) and written[index]:
            return [(None, str(written[index]))]
    return []


def ranking_example(path: Path) -> dict | None:
    """{"prompt", "row", "answers": [{"text", "rank", "score", "reasons"}, …] from best to worst, "by", "note"} of the first
    ranking with the most different ranks, up to `SHOWN`; None where the file has no ranking."""
    rows = [row for row in read_rows(path)[:LOOKED_AT] if max(map(len, row["completions"])) <= LONGEST]
    if not rows:
        return None
    row = max(rows, key=lambda each: (min(len(set(each["ranks"])), SHOWN), -max(0, len(each["ranks"]) - SHOWN)))
    reference = references(path).get(str(row.get("id")))
    order = sorted(range(len(row["ranks"])), key=lambda index: row["ranks"][index])
    scores = row.get("scores") if isinstance(row.get("scores"), list) else [None] * len(order)
    answers = [
        {
            "text": row["completions"][index],
            "rank": row["ranks"][index] + 1,
            "score": scores[index] if index < len(scores) else None,
            "reasons": reasons_of(row, index, reference),
        }
        for index in (order if len(order) <= SHOWN else [*order[: SHOWN - 1], order[-1]])
    ]
    note = next((row[key] for key in REASONS if isinstance(row.get(key), str) and row[key]), None)
    by = row.get("ranked_by") or say("not named")
    return {"prompt": row["prompt"], "answers": answers, "by": by, "note": note, "number": len(order)}


def score_rankings(run: Path, path: Path, example: dict | None) -> dict | None:
    """{"chosen", "rejected": the reward of the best and of the worst answer of each ranking, "example": those of the
    example's answers, or None, "of": rankings in the file}; None without a reward model.

    At most `SCORED` rankings, sampled. {"error": why} where the reward model cannot read them.
    """
    folder = run / "reward"
    if not (folder / "config.json").exists():
        return None
    shown = [answer["text"] for answer in example["answers"]] if example else []
    kept_in = run / "results" / KEPT / "reward_scores.json"
    key = {"model": stamp(folder), "data": [path.name, path.stat().st_size], "shown": shown, "rankings": SCORED}
    if found := kept(kept_in, key):
        return found
    rows = read_rows(path)
    drawn = random.Random(SEED).sample(rows, min(SCORED, len(rows)))
    if not drawn:
        return None
    from data_prep.models.loading import load_checkpoint  # slow to import
    from data_prep.models.scoring import score_answers

    prompts = [row["prompt"] for row in drawn for _ in range(2)] + [example["prompt"] for _ in shown]
    texts = [row["completions"][row["ranks"].index(end(row["ranks"]))] for row in drawn for end in (min, max)]
    try:
        model, tokenizer = load_checkpoint(str(folder), reward_model=True)
        scores = score_answers(model, tokenizer, prompts, texts + shown)
    except InputError as error:
        return {"error": str(error)}
    pairs = scores[: len(texts)]
    found = {"chosen": pairs[::2], "rejected": pairs[1::2], "example": scores[len(texts) :], "of": len(rows)}
    keep(kept_in, key, found)
    return found


def score_histograms(scores: dict) -> dict:
    """{"picture": the rewards of chosen and of rejected answers as a data: URI, "right": the share of rankings in which the
    chosen one scores more, "n", "means": (of the chosen, of the rejected)}."""
    chosen, rejected = (np.array(scores[side]) for side in ("chosen", "rejected"))
    figure, (panel,) = canvas(6.6, 2.9, left=0.09, right=0.98, top=0.97, bottom=0.18)
    low, high = min(chosen.min(), rejected.min()), max(chosen.max(), rejected.max())
    bins = np.linspace(low, high if high > low else low + 1, 25)
    for values, color, name in (
        (rejected, RED, "rejected: the worst answer"),
        (chosen, BLUE, "chosen: the best answer"),
    ):
        panel.hist(values, bins, color=color, alpha=0.55, label=label(name))
        panel.axvline(values.mean(), color=color, linewidth=1.6, linestyle=(0, (4, 3)))
    panel.set_xlabel(label("score of the reward model"))
    panel.set_ylabel(label("answers"))
    panel.grid(visible=False, axis="x")
    panel.legend(frameon=False, fontsize=9, labelcolor="#7a818c")
    right = float((chosen > rejected).mean())
    means = (float(chosen.mean()), float(rejected.mean()))
    return {"picture": as_uri(figure), "right": right, "n": len(chosen), "means": means}
