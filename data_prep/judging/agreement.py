"""How far two judges agree on the same pairs of answers: accuracy, Cohen's kappa, Kendall's tau, with 95 % intervals."""

import numpy as np

from data_prep.common.intervals import bootstrap_interval, bootstrap_statistic, by_prompt, show_interval, show_nats
from data_prep.common.text import counted
from data_prep.judging.judges import Judge, all_pairs
from data_prep.judging.language_model import Outcomes, Pair
from data_prep.readers.preferences import prompt_key

NOT_MEASURED = "agreement with people: not measured"


def agreement(rows: list[dict], judged: list[Outcomes], others: list[Outcomes]) -> dict | None:
    """How often `judged` says of a pair of a row's answers what `others` say; None without a pair that both have a verdict on.

    accuracy        over the pairs that `others` decided: 1 for the same winner, 0.5 for a tie, averaged by prompt
    kappa           Cohen's, over win, tie and loss, 0 for what chance gives (Cohen 1960); each pair counts in both
                    directions, as which answer stands first in it means nothing
    kendall_tau     tau-b by prompt, averaged over the prompts where neither finds all pairs tied
    All are intervals over prompts, whose rows are averaged, or None where they are undefined.
    """
    keys, rights, taus, tables, pairs = [], [], [], [], 0
    for row, own, its in zip(rows, judged, others, strict=True):
        both = [(value, its[pair]) for pair, value in own.items() if value is not None and its.get(pair) is not None]
        if not both:
            continue
        keys.append(prompt_key(row["prompt"]))
        pairs += len(both)
        decided = [1 - abs(value - other) for value, other in both if other != 0.5]
        rights.append(sum(decided) / len(decided) if decided else None)
        signs = np.sign([[value - 0.5, other - 0.5] for value, other in both])
        norm = np.sqrt(np.prod((signs**2).sum(0)))
        taus.append(float(signs.prod(1).sum() / norm) if norm else None)
        table = np.zeros((3, 3))
        for value, other in both:
            table[int(2 * value), int(2 * other)] += 1
        tables.append(table + table[::-1, ::-1])
    if not pairs:
        return None
    rights, taus, tables = (by_prompt(keys, values) for values in (rights, taus, tables))
    return {
        "pairs": pairs,
        "prompts": len(tables),
        "accuracy": bootstrap_interval(rights) if rights else None,
        "kappa": _kappa(np.array(tables)),
        "kendall_tau": bootstrap_interval(taus) if taus else None,
    }


def _kappa(tables: np.ndarray) -> dict | None:
    """Cohen's kappa of the sum of one table per prompt, with its bootstrap interval over prompts."""

    def kappa(counts):
        share = counts / counts.sum((-2, -1), keepdims=True)
        same = np.trace(share, axis1=-2, axis2=-1)
        chance = (share.sum(-1) * share.sum(-2)).sum(-1)
        return (same - chance) / (1 - chance)

    return bootstrap_statistic(tables, kappa)


def judged_with_agreement(
    judge: Judge, rows: list[dict], pairs: list[list[Pair]] | None, other: Judge | None
) -> tuple[list[Outcomes], dict | None]:
    """(the outcomes of `judge`, how far they agree with `other`, or None without one).

    A file of rankings is compared on its own rows: the judge is asked about them too, in the same go, so that agreement
    is known where the answers judged are new. Any other judge is compared on the rows that are judged.
    """
    if other is None:
        return judge.outcomes(rows, pairs), None
    if other.rows is None:
        found = judge.outcomes(rows, pairs)
        return found, described(other, agreement(rows, found, other.outcomes(rows, pairs)))
    extra = other.rows
    if judge.language_model is None:  # asked apart: the columns of both need not be the same
        found, of_extra = judge.outcomes(rows, pairs), judge.outcomes(extra, None)
        return found, described(other, agreement(extra, of_extra, other.outcomes(extra, None)))
    by_row = None if pairs is None else [*pairs, *map(all_pairs, extra)]
    found = judge.outcomes([*rows, *extra], by_row)
    found, of_extra = found[: len(rows)], found[len(rows) :]
    return found, described(other, agreement(extra, of_extra, other.outcomes(extra, None)))


def described(other: Judge, measured: dict | None) -> dict:
    """What `agreement` measured, with whom."""
    return {"with": other.words, "people": other.people, **(measured or {"pairs": 0})}


def agreement_line(found: dict | None) -> str:
    """The agreement in words; says where that with people is not known."""
    if found is None:
        return NOT_MEASURED
    if not found["pairs"]:
        return f"agreement with {found['with']}: not measured, no pair has a verdict of both" + _people(found)
    parts = []
    if found["accuracy"]:
        parts.append(f"{show_interval(found['accuracy'])} of decided pairs")
    parts += [
        f"{name} {show_nats(found[key]) if found[key] else 'undefined'}"
        for name, key in (("kappa", "kappa"), ("Kendall's tau", "kendall_tau"))
    ]
    on = f"{counted(found['pairs'], 'pair')} of {counted(found['prompts'], 'prompt')}"
    return f"agreement with {found['with']}: {', '.join(parts)}, on {on}" + _people(found)


def _people(found: dict) -> str:
    return "" if found["people"] else f"; {NOT_MEASURED}"
