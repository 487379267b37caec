"""What answers are like: right or not, whether they end, whether they loop, and whether they have the references' form."""

import re

import numpy as np

from data_prep.common.intervals import bootstrap_interval
from data_prep.corpus.text_units import units
from eval.common.grouped import grouped
from eval.metrics import load_metric

TIMES = 3  # a phrase so often in a row is a loop
# What opens a line that is more than text: a list, a heading, a quotation, a fence, a table, a speaker.
MARK = re.compile(
    r"\s*([-*+•]\s|\d+[.)]\s|#+\s|>|```|\||<\||(?:human|user|assistant|question|answer)\s*:)", re.IGNORECASE
)
ENDS = {".": ".!?。！？…", ",": ",;:，；：、-–—", ")": ")]}>\"'”’»）】」`"}


def loops(text: str) -> bool:
    """Whether a phrase of two or more words stands three times or more in a row somewhere in the text.

    After Holtzman 2020 (arXiv:1904.09751), who look for such a phrase of at least two words at the end of a text alone. A
    word counts if it stands six times in a row; in scripts without blanks between words characters are the words.
    """
    found = units(text)
    _, ids = np.unique(np.array(found, dtype=object).astype(str), return_inverse=True)
    for size in range(2, len(ids) // TIMES + 1):
        same = np.concatenate(([0], (ids[size:] == ids[:-size]).astype(int), [0]))
        starts, ends = np.flatnonzero(np.diff(same) == 1), np.flatnonzero(np.diff(same) == -1)
        if len(starts) and (ends - starts).max() >= (TIMES - 1) * size:
            return True
    return False


def form_of(text: str) -> dict:
    """The form of a text: lines that are not blank, characters, the kind of its last character, marks that open lines."""
    lines = [line for line in text.splitlines() if line.strip()]
    last = text.rstrip()[-1:]
    end = next((kind for kind, letters in ENDS.items() if last and last in letters), "a" if last.isalnum() else last)
    marks = {match[1].strip()[:1].casefold() for line in lines if (match := MARK.match(line))}
    return {"lines": len(lines), "characters": len(text.strip()), "end": end, "marks": marks}


def form_faults(texts: list[str], references: list[str]) -> list[list[str]]:
    """For each text in what it differs from every reference: "empty", "lines", "length", "end", "marks"; [] if in nothing.

    lines, length: more or fewer than any reference has. end: the last character is of a kind (letter or digit, end of a
    sentence, comma, bracket or quotation mark, another one) that no reference ends on. marks: a line opens as no line of a
    reference does (a list, a heading, a fence, a table, a speaker's name).
    """
    known = [form_of(reference) for reference in references if reference.strip()]
    ends, marks = {form["end"] for form in known}, set().union(*(form["marks"] for form in known))
    spans = {key: [form[key] for form in known] for key in ("lines", "characters")}
    found = []
    for text in texts:
        form = form_of(text)
        if not form["characters"]:
            found.append(["empty"])
            continue
        outside = {key: not min(own) <= form[key] <= max(own) for key, own in spans.items() if own}
        faults = {
            "lines": outside.get("lines", False),
            "length": outside.get("characters", False),
            "end": bool(known) and form["end"] not in ends,
            "marks": bool(form["marks"] - marks),
        }
        found.append([name for name, differs in faults.items() if differs])
    return found


def _metrics_of(rows: list[dict], answers: list[dict], measured: dict, faults: list[list[str]]) -> dict:
    texts = {"predictions": [answer["text"] for answer in answers], "references": [row["reference"] for row in rows]}
    metrics = {
        "exact_match": load_metric("exact_match").compute(**texts)["exact_match"],
        "chrf": load_metric("chrf").compute(**texts)["chrf"],
        "eos_rate": sum(answer["stopped"] for answer in answers) / len(answers),
        "length": sum(answer["tokens"] for answer in answers) / len(answers),
        "no_end": bootstrap_interval([not answer["stopped"] for answer in answers]),
        "loops": bootstrap_interval([loops(answer["text"]) for answer in answers]),
        "in_form": bootstrap_interval([not each for each in faults]),
        "form_faults": {
            name: sum(name in each for each in faults) for name in ("empty", "lines", "length", "end", "marks")
        },
    }
    if measured:
        metrics["eval_funcs"] = {name: bootstrap_interval(values) for name, values in measured.items()}
    return metrics


def measure_answers(
    rows: list[dict], answers: list[dict], measured: dict[str, list[float]], pattern: re.Pattern | None
) -> tuple[dict, dict]:
    """(metrics, {group: metrics}) of one answer to each of `rows` ({"id", "prompt", "reference"}).

    exact_match     with its 95 % interval over prompts, whitespace aside
    chrf            of all as one corpus, 0 to 100
    eos_rate        share of answers that end with the end of turn; length: mean in tokens
    no_end          share that does not end within the limit, with its interval
    loops           share in which a phrase repeats without end (see `loops`), with its interval
    in_form         share in the form of the references (see `form_faults`), with its interval; form_faults: answers by fault
    eval_funcs      the mean of each function in `measured`, with its interval

    Args:
        pattern: splits the metrics by what it finds in a row's id; None: no groups.
    """
    faults = form_faults([answer["text"] for answer in answers], [row["reference"] for row in rows])
    groups = {}
    for group, positions in grouped(rows, pattern).items() if pattern else ():
        own = {name: [values[i] for i in positions] for name, values in measured.items()}
        picked = ([each[i] for i in positions] for each in (rows, answers))
        groups[group] = _metrics_of(*picked, own, [faults[i] for i in positions])
    return _metrics_of(rows, answers, measured, faults), groups
