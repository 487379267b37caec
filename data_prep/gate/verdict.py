"""Is a reward fit to be learned from? One line, with the reason and the next step."""

# What knows something about answers without having been trained for it, in words; and what to do about a reward that
# knows no more.
BASELINES = {
    "chance": "chance",
    "longer": "length alone (the longer answer)",
    "shorter": "length alone (the shorter answer)",
    "answer_only": "itself behind another prompt, the answer alone",
    "ngrams": "an n-gram model of the answers alone",
    "policy": "the policy's own log-likelihood",
}
NEXT = {
    "chance": "look at rankings and ranks by hand, train on more of them, and on answers of this policy",
    "longer": "rank answers of like length, or make the rankings agree less with it",
    "shorter": "rank answers of like length, or make the rankings agree less with it",
    "answer_only": "rank more prompts, whose answers are right for one prompt and wrong for another; fewer epochs",
    "ngrams": "rank more prompts, whose answers are right for one prompt and wrong for another; fewer epochs",
    "policy": "rank answers by what demonstrations do not show (what raters prefer, not what is likely), on more "
    "prompts and for fewer epochs; or reward by a function that knows the answer",
}
MORE = "rank answers to more prompts"
MIN_PROMPTS = 20  # of fewer a bootstrap interval means little
MOST_N = 8


def percent(interval: dict) -> str:
    return f"{interval['value']:.1%}"


def points(interval: dict, scale: float = 1.0, digits: int = 2) -> str:
    """A difference with its interval: "−8.9 [−12.0, −6.1]"."""
    value, low, high = (f"{scale * interval[key]:+z.{digits}f}".replace("-", "−") for key in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def as_verdict(word: str, reason: str, then: str) -> dict:
    """{"word": fit, not fit or not shown, "reason", "next", "line": all three}."""
    return {"word": word, "reason": reason, "next": then, "line": f"{word}: {reason}; next: {then}"}


def decide(measured: dict) -> dict:
    """The verdict on what `data_prep.gate.gate.measure` found; see `as_verdict`.

    Fit needs three things, each with the lower end of its 95 % interval: more pairs put right than chance, more than by
    each baseline on the same prompts, and a gain by the best of n. An interval that holds 0 shows nothing ("not shown").
    """
    accuracy, baselines = measured["accuracy"], measured["baselines"]
    prompts = accuracy["n"]
    # First what is surely less, the farthest first; then what is not shown. Beside chance all else is noise.
    ordered = sorted(baselines, key=lambda name: (name != "chance", baselines[name]["difference"]["value"]))
    below = [name for name in ordered if baselines[name]["difference"]["high"] <= 0]
    unclear = [name for name in ordered if baselines[name]["difference"]["low"] <= 0]
    for name in [*below, *unclear]:
        other = baselines[name]
        how = "less" if other["difference"]["high"] < 0 else "no more"
        figures = (
            f"{percent(accuracy)} against {percent(other['accuracy'])} of pairs, difference "
            f"{points(other['difference'], 100, 1)} points"
        )
        if name in below:
            return as_verdict("not fit", f"knows {how} than {BASELINES[name]} ({figures})", NEXT[name])
        either = f"{prompts:,} prompts are too few, or it knows no more than {BASELINES[name]} ({figures})"
        return as_verdict("not shown", either, f"{MORE}; if it stays so, {NEXT[name]}")
    best = [row for row in measured["best_of_n"] if 1 < row["n"] <= MOST_N]
    if not best:
        return as_verdict(
            "not shown", "no prompt has two sampled answers to pick from", "sample several answers to a prompt"
        )
    last = best[-1]
    if measured["worth"].startswith("chance"):
        scale, digits, unit = 100, 1, "points of the chance to beat a random answer"
    else:
        scale, digits, unit = 1.0, 2, "points"
    gain = f"best of {last['n']} gains {points(last['gain'], scale, digits).replace('+', '')} {unit}"
    whole = f"of the {scale * last['rater_gain']['value']:.{digits}f} that the rater's own pick would"
    if last["gain"]["low"] > 0:
        return as_verdict("fit", f"{gain} {whole}", "train")
    if last["gain"]["high"] <= 0:
        return as_verdict(
            "not fit", f"{gain} {whole}: its favourites are no better", "look at the answers that it scores highest"
        )
    return as_verdict(
        "not shown", f"{prompts:,} prompts are too few, or its favourites are no better: {gain} {whole}", MORE
    )
