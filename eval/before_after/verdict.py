"""Better, worse or no difference shown; and what to do about it.

A difference counts only if its 95 % interval excludes 0, over at least 20 documents or prompts: that of a few is too
narrow.
"""

from data_prep.common.text import counted

FEWEST = 20  # documents or prompts
BITS, MATCH = "bits per byte", "exact match"
FEW = "too few"
DOMAIN = "domain"  # the source that the model was adapted to; every other is what it shall not forget

USE, RAISE, REFUSE = "use it", "raise replay", "do not use it"
MIXED, NO_GAIN, NOT_SHOWN, NONE = "mixed", "no gain on the domain shown", "forgetting not shown", "no difference shown"
ADVICE = {
    USE: "use it",
    RAISE: "raise replay (the share of general text or conversations), or train more gently, and measure again",
    REFUSE: "do not use it: worse, and no gain on the domain is shown",
    MIXED: "look closer before you use it: on the domain itself it is better by one measure and worse by another",
    NO_GAIN: "nothing is gained on the domain by what was measured: train longer, or on more of it",
    NOT_SHOWN: "give more held-out text of the general source before you use it: what was forgotten is not known",
    NONE: "no difference shown by what was measured",
}


def measures_of(documents: dict, questions: dict, after: str) -> list[dict]:
    """One row for each source and measure: {"source", "measure", "n", "loss", "change"}.

    "loss" is an interval in shares, whose positive values are losses: the rise of bits per byte relative to the model
    before, and the fall of exact match. "change" says "better", "worse", "no difference shown" or "too few".
    """
    rows = []
    for source, found in documents.items():
        rows.append(_row(source, BITS, found["documents"], found["models"][after]["relative"]))
    for source, found in questions.items():
        its = found["models"][after]["difference"]
        loss = {"value": -its["value"], "low": -its["high"], "high": -its["low"]}
        rows.append(_row(source, MATCH, found["prompts"], loss))
    return rows


def _row(source: str, measure: str, n: int, loss: dict) -> dict:
    change = FEW if n < FEWEST else "worse" if loss["low"] > 0 else "better" if loss["high"] < 0 else NONE
    return {"source": source, "measure": measure, "n": n, "loss": loss, "change": change}


def verdict(measures: list[dict], forgetting_budget: float, exact_match_budget: float) -> dict:
    """{"word", "line", "reasons": [a sentence for each measure]}.

    Args:
        forgetting_budget: the largest rise of bits per byte of a source other than the domain, as a share.
        exact_match_budget: the largest fall of its exact match, as a share of the questions.
    """
    budgets = {BITS: forgetting_budget, MATCH: exact_match_budget}
    domain = [row for row in measures if row["source"] == DOMAIN]
    others = [row for row in measures if row["source"] != DOMAIN]
    gains, setbacks = ([row for row in domain if row["change"] == change] for change in ("better", "worse"))
    losses = [row for row in others if row["change"] == "worse"]
    beyond = beyond_budget(losses, budgets)
    unknown = [row for row in others if row["change"] == FEW and row["measure"] == BITS]
    if gains:
        word = RAISE if beyond else MIXED if setbacks else NOT_SHOWN if unknown else USE
    elif losses or setbacks:
        word = REFUSE
    else:
        word = NO_GAIN if any(row["change"] == "better" for row in others) else NONE
    reasons = [in_words(row, None if row["source"] == DOMAIN else budgets[row["measure"]]) for row in measures]
    too_few = [row for row in domain if row["change"] == FEW] if word in (NONE, NO_GAIN) else []
    shown = [row["change"] in ("better", "worse") or row in unknown + too_few or word == NONE for row in measures]
    told = [reason for reason, tell in zip(reasons, shown, strict=True) if tell]
    advice = ADVICE[word]
    if too_few:
        advice = "not known" if len(too_few) == len(domain) else ADVICE[NONE]
        advice += "; give more held-out documents or questions of the domain"
    return {"word": word, "line": f"{'; '.join(told)}. Verdict: {advice}", "reasons": reasons}


def beyond_budget(measures: list[dict], budgets: dict[str, float]) -> list[dict]:
    """The measures of other sources than the domain whose loss is shown, and larger than the budget of its kind."""
    losses = [row for row in measures if row["source"] != DOMAIN and row["change"] == "worse"]
    return [row for row in losses if row["loss"]["value"] > budgets[row["measure"]]]


def in_words(row: dict, budget: float | None) -> str:
    """A sentence on a measure: "worse on general by 4.1% bits per byte [3.2, 5.0], beyond the budget of 3%"."""
    source, measure, loss, change = row["source"], row["measure"], row["loss"], row["change"]
    bits = measure == BITS
    if change == FEW:
        number = counted(row["n"], "document" if bits else "question")
        return f"{source}, {measure}: {number} cannot show a difference; expected at least {FEWEST}"
    unit = "%" if bits else " points"
    size = size_of(loss, unit, measure, -1 if change == "better" or (change == NONE and not bits) else 1)
    allowed = "" if budget is None else f"the budget of {100 * budget:g}{unit}"
    if change == NONE:
        not_excluded = allowed and loss["high"] > budget
        return f"{NONE} on {source}: {size}" + (f"; a loss beyond {allowed} is not excluded" if not_excluded else "")
    words = f"{change} on {source} by {size}"
    if allowed and change == "worse":
        words += f", {'beyond' if loss['value'] > budget else 'within'} {allowed}"
        words += " (its interval reaches to both sides)" if loss["low"] <= budget < loss["high"] else ""
    return words


def size_of(loss: dict, unit: str, measure: str, sign: int) -> str:
    """ "4.1% bits per byte [3.2, 5.0]"."""
    low, high = sorted((100 * sign * loss["low"], 100 * sign * loss["high"]))
    return f"{100 * sign * loss['value']:z.1f}{unit} {measure} [{low:z.1f}, {high:z.1f}]"
