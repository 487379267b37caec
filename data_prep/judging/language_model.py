"""A language model that judges: every comparison is asked in both orders, and what it costs and prefers by place is told.

A win counts where both orders agree, everything else is a tie, as the conservative reading of Zheng 2023 (arXiv:2306.05685,
section 3.4) has it; a comparison with a reply that holds no verdict has no outcome.
"""

import contextlib
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data_prep.common.batches import batched
from data_prep.common.errors import InputError
from data_prep.common.intervals import bootstrap_interval, by_prompt, show_interval
from data_prep.common.text import counted
from data_prep.judging.rubric import LETTERS, RUBRIC, Rubric, messages, read_rubric, verdict
from data_prep.judging.settings import Settings
from data_prep.questions.asking import ask_checkpoint, ask_server, cost, digest
from data_prep.questions.server import Server, check_url, key_from
from data_prep.ranking.journal import Journal
from data_prep.readers.preferences import prompt_key
from data_prep.readers.ranks import ranks_of_scores

Pair = tuple[int, int]  # places of two answers in a row's completions, the lower one first
Outcomes = dict[Pair, float | None]  # 1: the first of the pair wins, 0.5: a tie, 0: it loses, None: no verdict


class Shown(NamedTuple):
    """Answers to one row's prompt in the order in which they were shown, and what came back."""

    prompt: str  # as `prompt_key` writes it
    id: str
    texts: list[str]
    order: tuple[int, ...]  # their places in the row
    reply: dict
    ranks: list[int] | None  # of the answers as they were shown
    reason: str  # why there are none

    def outcome(self, pair: Pair) -> float | None:
        if self.ranks is None:
            return None
        one, other = (self.ranks[self.order.index(place)] for place in pair)
        return 0.5 + ((one < other) - (one > other)) / 2


class LanguageModel:
    """Judges by a checkpoint or a server.

    Args:
        rubric: takes the place of that of the settings.
        journal: replies are kept in files that begin with this path, so that the same command goes on after a kill; they
            stay until `close`. None: they are not kept.

    Raises InputError for a rubric, an address, a key or a model that cannot be used: before anything is asked.
    """

    def __init__(self, settings: Settings, rubric: str | Path | None = None, journal: Path | None = None) -> None:
        self.settings, self.journal = settings, journal
        path = Path(rubric or settings.rubric)
        self.rubric: Rubric = read_rubric(path)
        self.key = ""
        if settings.url:
            check_url(settings.url)
            self.key = key_from(settings.api_key_env)
        else:
            from data_prep.models.loading import load_config  # slow to import

            load_config(settings.model, "recipes/sft.py")
        name = "the shipped one" if path.samefile(RUBRIC) else str(path)
        where = f" at {settings.url}" if settings.url else ""
        self.words = f"the language model {settings.model}{where} (rubric: {name}; asked in both orders)"
        self.shown: list[tuple[Shown, Shown]] = []  # both orders of each list of answers that was asked about
        self.replies: list[dict] = []
        self._journals: list[Path] = []

    def outcomes(self, rows: list[dict], pairs: list[list[Pair]] | None = None) -> list[Outcomes]:
        """The outcome of each of the `pairs` of each row's answers.

        Args:
            rows: {"prompt": messages, "completions": different texts}, with the "reference" that a rubric may need.
            pairs: by row; None: of all its answers, which `ask: ranking` shows all at once.
        """
        lists = self._lists(rows, pairs)
        keys: dict[str, int] = {}  # what is asked, once, however many rows hold it
        prompts: list[list[dict]] = []
        asked: list[tuple[int, tuple[int, ...], int]] = []
        for row, order in ((row, order) for row, one in lists for order in (one, one[::-1])):
            texts = [rows[row]["completions"][place] for place in order]
            turns = messages(self.rubric, rows[row]["prompt"], texts, rows[row].get("reference"))
            number = keys.setdefault(json.dumps(turns), len(prompts))
            if number == len(prompts):
                prompts.append(turns)
            asked.append((row, order, number))
        replies = self._replies(prompts) if prompts else []
        self.replies += replies
        found: list[Outcomes] = [{} for _ in rows]
        told: set[frozenset[int]] = set()  # what another row holds too counts once
        for (row, order, number), (_, back, other) in batched(asked, 2):
            both = tuple(self._shown(rows[row], *each) for each in ((order, replies[number]), (back, replies[other])))
            for pair in _pairs(order):
                found[row][pair] = _together(*(each.outcome(pair) for each in both))
            if frozenset((number, other)) not in told:
                told.add(frozenset((number, other)))
                self.shown.append(both)
        return found

    def _shown(self, row: dict, order: tuple[int, ...], reply: dict) -> Shown:
        texts = [row["completions"][place] for place in order]
        return Shown(prompt_key(row["prompt"]), row.get("id", ""), texts, order, reply, *verdict(reply, len(order)))

    def _lists(self, rows: list[dict], pairs: list[list[Pair]] | None) -> list[tuple[int, tuple[int, ...]]]:
        """(row, places of the answers to show together)."""
        if self.rubric.needs_reference:
            for number, row in enumerate(rows, start=1):
                if not isinstance(row.get("reference"), str):
                    raise InputError(
                        f"the rubric asks for {{reference}}, but row {number} has no text under 'reference'"
                    )
        if pairs is None and self.settings.ask == "ranking":
            if wide := [row for row in rows if len(row["completions"]) > len(LETTERS)]:
                raise InputError(
                    f"ask: ranking: found {len(wide[0]['completions'])} answers to a prompt; expected at most {len(LETTERS)}"
                )
            return [
                (n, tuple(range(len(row["completions"])))) for n, row in enumerate(rows) if len(row["completions"]) > 1
            ]
        wanted = pairs if pairs is not None else [_pairs(range(len(row["completions"]))) for row in rows]
        return [(number, pair) for number, own in enumerate(wanted) for pair in dict.fromkeys(own)]

    def _replies(self, prompts: list[list[dict]]) -> list[dict]:
        settings = self.settings
        names = ("model", "max_new_tokens", "temperature", "seed")
        about = {name: getattr(settings, name) for name in names}
        about["prompts"] = digest([json.dumps(turns) for turns in prompts])
        with self._open(about) as journal:
            if journal.rankings:
                had = f"{len(journal.rankings):,} of {len(prompts):,} replies"
                print(f"{journal.path}: {had} of an earlier run; resuming after them")
            how = (settings.temperature, settings.max_new_tokens, settings.seed)
            if settings.url:
                server = Server(settings.url, settings.model, self.key, *how, settings.timeout, settings.retries)
                return ask_server(server, prompts, journal, settings.concurrency)
            return ask_checkpoint(
                settings.model,
                prompts,
                journal,
                settings.max_new_tokens,
                settings.temperature,
                settings.batch_size,
                settings.seed,
                shorter="a shorter rubric, shorter answers",
            )

    @contextlib.contextmanager
    def _open(self, about: dict) -> Iterator[Journal]:
        with contextlib.ExitStack() as stack:
            if self.journal is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                path = folder / "journal"
            else:
                # Another question, another file: what was sampled anew, or a second set of rows, is no continuation.
                key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:8]
                path = self.journal.with_name(f"{self.journal.name}.{key}.journal")
                self._journals.append(path)
            durable = bool(self.settings.url)
            yield stack.enter_context(contextlib.closing(Journal(path, about, durable, stamp="replied_at")))

    def close(self) -> None:
        """Remove the journals: the output is whole."""
        for path in self._journals:
            path.unlink(missing_ok=True)
        self._journals.clear()

    def rank(self, rows: list[dict]) -> list[dict]:
        """See `ranks_of_outcomes`."""
        return ranks_of_outcomes(rows, self.outcomes(rows))

    def found(self) -> dict:
        """What all comparisons told of the judge: counts, the bias by place, what they cost.

        position_bias   mean over pairs of what an answer gets shown before the other less shown after it, -1 to 1: 1
                        where the one that is shown first always wins, -1 where it never does, 0 without a bias
        changed         share of the pairs whose verdict changes with the order
        Both are over the pairs with a verdict in both orders, averaged by prompt, with an interval over prompts; None
        where there is none.
        """
        prompts: list[str] = []
        biases: list[float] = []
        changed: list[bool] = []
        ties = pairs = without = 0
        for both in self.shown:
            for pair in _pairs(both[0].order):
                first, second = (each.outcome(pair) for each in both)
                pairs += 1
                if first is None or second is None:
                    without += 1
                    continue
                ties += _together(first, second) == 0.5
                prompts.append(both[0].prompt)
                biases.append(first - second)
                changed.append(first != second)
        reasons = Counter(each.reason for both in self.shown for each in both if each.reason)
        spent, line = cost(self.replies)
        if self.settings.has_prices:
            price = (
                spent["prompt_tokens"] * self.settings.price_per_million_prompt_tokens
                + spent["completion_tokens"] * self.settings.price_per_million_completion_tokens
            ) / 1e6
            spent["price"] = price
            line += f", {price:.4f} at the prices given"
        return {
            "pairs": pairs,
            "ties": ties,
            "without_verdict": without,
            "replies": 2 * len(self.shown),
            "unparsable": dict(reasons),
            "position_bias": bootstrap_interval(by_prompt(prompts, biases)) if prompts else None,
            "changed": bootstrap_interval(by_prompt(prompts, changed)) if prompts else None,
            "cost": spent,
            "cost_line": line,
        }

    def records(self) -> list[dict]:
        """What was asked and came back, one record a reply, to be read by people."""
        return [
            {
                "id": each.id,
                "shown": each.texts,
                "ranks": each.ranks,
                **({"reason": each.reason} if each.reason else {}),
                "reply": each.reply["text"],
                **({"refused": each.reply["refused"]} if "refused" in each.reply else {}),
            }
            for both in self.shown
            for each in both
        ]


def ranks_of_outcomes(rows: list[dict], outcomes: list[Outcomes]) -> list[dict]:
    """{"ranks", "scores"} of each row's answers, {} for a row with a comparison without a verdict.

    A score is the share of the other answers that an answer beats, a tie counting half; the highest has rank 0.
    """
    found = []
    for row, own in zip(rows, outcomes, strict=True):
        number = len(row["completions"])
        if None in own.values():
            found.append({})
            continue
        scores = [0.0] * number
        for (one, other), value in own.items():
            scores[one] += value
            scores[other] += 1 - value
        found.append({"ranks": ranks_of_scores(scores), "scores": [score / max(1, number - 1) for score in scores]})
    return found


def told_line(found: dict) -> str:
    """What `LanguageModel.found` returns, in words."""
    pairs, without = found["pairs"], found["without_verdict"]
    line = (
        f"{counted(pairs, 'pair')} in both orders: {pairs - without:,} with a verdict, {found['ties']:,} of them ties"
    )
    if without:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in found["unparsable"].items())
        line += f"; {without:,} without, as {sum(found['unparsable'].values()):,} of {found['replies']:,} replies cannot be read ({reasons})"
    if found["position_bias"]:
        bias, changed = (found[key] for key in ("position_bias", "changed"))
        value, low, high = (f"{bias[key]:+z.1%}" for key in ("value", "low", "high"))
        line += (
            f"; position bias {value} [{low}, {high}] (+100%: the answer shown first always wins); the order changes "
            f"{show_interval(changed)} of verdicts"
        )
    return f"{line}; {found['cost_line']}"


def _pairs(places) -> list[Pair]:
    return list(itertools.combinations(sorted(places), 2))


def _together(first: float | None, second: float | None) -> float | None:
    """The outcome of a pair asked in both orders."""
    if first is None or second is None:
        return None
    return first if first == second else 0.5
