"""Several people rank at a time, blind: who gets which prompt, what they say, and what is made of it."""

import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable

from data_prep.common.errors import InputError
from data_prep.common.text import counted, printable
from data_prep.ranking.agreement import rater_agreement
from data_prep.ranking.completions import KEPT
from data_prep.ranking.journal import Journal

BY = "a person"  # stored in rankings, as the terminal does: it stays as it is
LONGEST_NAME, LONGEST_TEXT = 60, 100_000


class People:
    """Gives each person prompts to rank, and keeps every judgement in a journal of several raters.

    A prompt is given to one person, a share `overlap` of them to two. What somebody has in hand is given to nobody else
    as long as others are left. The answers stand in an order that depends on seed, prompt and person. All methods may
    be called from several threads.

    A judgement in the journal is {"row", "rater", "ranked_by"} with "ranks" of all completions (0 the best, equal ones
    tie) or "skipped": true, and if the person said so "all_bad": true (the ranks then tie), "note" and "better_answer".
    """

    def __init__(
        self,
        rows: list[dict],
        journal: Journal,
        overlap: float,
        seed: int,
        changed: Callable[["People"], None] = lambda people: None,
    ) -> None:
        """`rows`: {"prompt": messages, "completions"}; those with fewer than two different answers are given to nobody.

        `changed` is called after each change of the journal, before the next one can be made.
        """
        self.rows, self.journal, self.seed, self._changed = rows, journal, seed, changed
        self.todo = [index for index, row in enumerate(rows) if len(set(row["completions"])) > 1]
        twice = random.Random(seed).sample(self.todo, round(overlap * len(self.todo)))
        self._raters_wanted = dict.fromkeys(self.todo, 1) | dict.fromkeys(twice, 2)
        self._in_hand: dict[str, int] = {}
        self._lock = threading.RLock()
        raters: defaultdict[int, set[str]] = defaultdict(set)
        for row, rater in journal.rankings:
            if row not in self._raters_wanted:
                raise InputError(f"{journal.path}: has a ranking of row {row + 1:,}, which cannot be ranked")
            raters[row].add(rater)
        self._judged_by = raters
        self._agreement: dict | None = None

    def _ranked(self, index: int) -> int:
        """How many people have ranked a row: skipped is not ranked."""
        return sum("ranks" in self.journal.rankings[index, rater] for rater in self._judged_by[index])

    def _order(self, index: int, rater: str) -> list[int]:
        number = len(self.rows[index]["completions"])
        return random.Random(f"{self.seed} {index} {rater}").sample(range(number), number)

    def _next(self, rater: str, had: int | None) -> int | None:
        if (held := self._in_hand.get(rater)) is not None:
            return held
        held_by_others = Counter(self._in_hand.values())
        open_rows = [
            index
            for index in self.todo
            if rater not in self._judged_by[index] and self._ranked(index) < self._raters_wanted[index]
        ]
        if had in open_rows:
            return had
        free = (
            index for index in open_rows if self._ranked(index) + held_by_others[index] < self._raters_wanted[index]
        )
        return next(free, open_rows[0] if open_rows else None)

    def task(self, rater: str, had: int | None = None) -> dict:
        """What a page shows this person: the prompt in hand, or the next one, and how far everybody is.

        `had` is the row that the page showed before the server was started again: who had it in hand is not in the journal.

        {"task": {"row", "prompt": messages, "answers": texts in the order shown}, or None if nothing is left, and what
        `state` says}. Raises ValueError for a name that cannot be used.
        """
        with self._lock:
            index = self._next(rater := rater_name(rater), had)
            if index is None:
                return {"task": None, **self.state(rater)}
            self._in_hand[rater] = index
            row = self.rows[index]
            answers = [row["completions"][place] for place in self._order(index, rater)]
            return {"task": {"row": index, "prompt": row["prompt"], "answers": answers}, **self.state(rater)}

    def judge(self, rater: str, row: int, judgement: dict) -> None:
        """Write down what a person says of the row in hand; returns when it is in the journal.

        A row that this person has judged already stays as it is: a page may send twice what it got no answer to.

        Args:
            judgement: "ranks" of the answers in the order in which they were shown, or "skipped" or "all_bad" (True);
                "note" and "better_answer", texts that may be empty.

        Raises ValueError if it cannot be understood.
        """
        with self._lock:
            rater = rater_name(rater)
            if type(row) is not int or row not in self._raters_wanted or not isinstance(judgement, dict):
                raise ValueError(f"there is no prompt {row!r} to rank")
            if rater not in self._judged_by[row]:
                said = self._said(row, rater, judgement)
                self.journal.add([{"row": row, **said, "ranked_by": BY, "rater": rater}])
                self._judged_by[row].add(rater)
                self._agreement = None
                self._changed(self)
            if self._in_hand.get(rater) == row:
                del self._in_hand[rater]

    def _said(self, row: int, rater: str, judgement: dict) -> dict:
        order, ranks = self._order(row, rater), judgement.get("ranks")
        if judgement.get("skipped") is True:
            said = {"skipped": True}
        elif judgement.get("all_bad") is True:
            said = {"ranks": [0] * len(order), "all_bad": True}
        elif isinstance(ranks, list) and len(ranks) == len(order) and all(type(rank) is int for rank in ranks):
            steps = sorted(set(ranks))
            placed = dict(zip(order, map(steps.index, ranks), strict=True))
            said = {"ranks": [placed[place] for place in range(len(order))]}
        else:
            raise ValueError(
                f"found the ranks {ranks!r}; expected a number for each of {counted(len(order), 'answer')}"
            )
        for name in ("note", "better_answer"):
            text = judgement.get(name) or ""
            if not isinstance(text, str) or len(text) > LONGEST_TEXT:
                raise ValueError(f"{name}: expected a text of at most {LONGEST_TEXT:,} characters")
            # A half surrogate pair, which a browser may send, cannot be written as UTF-8.
            said |= {name: text.encode("utf-8", "replace").decode()} if text.strip() else {}
        return said

    def undo(self, rater: str) -> dict | None:
        """Take back this person's last judgement, whose prompt is then in hand; None if there is none.

        Returns it as `judge` takes it: the ranks stand in the order shown.
        """
        with self._lock:
            ranking = self.journal.undo(rater := rater_name(rater))
            if ranking is None:
                return None
            index = ranking["row"]
            self._judged_by[index].discard(rater)
            self._in_hand[rater] = index
            self._agreement = None
            self._changed(self)
            said = {name: ranking[name] for name in ("all_bad", "skipped", "note", "better_answer") if name in ranking}
            if "ranks" in ranking and "all_bad" not in ranking:
                said["ranks"] = [ranking["ranks"][place] for place in self._order(index, rater)]
            return said

    def state(self, rater: str) -> dict:
        """How far this person and everybody are: {"mine": judgements of this person, "left": prompts that this person may
        still get, "by_all": judgements, "raters": people, "agreement"}."""
        with self._lock:
            mine = sum(name == rater for _, name in self.journal.rankings)
            left = sum(
                rater not in self._judged_by[index] and self._ranked(index) < self._raters_wanted[index]
                for index in self.todo
            )
            return {
                "mine": mine,
                "left": left,
                "by_all": len(self.journal.rankings),
                "raters": len({name for _, name in self.journal.rankings}),
                "agreement": self.agreement(),
            }

    def agreement(self) -> dict:
        """`rater_agreement` of all prompts that several people have ranked."""
        with self._lock:
            if self._agreement is None:
                ranked = defaultdict(list)
                for (index, _), ranking in self.journal.rankings.items():
                    if "ranks" in ranking:
                        ranked[index].append(ranking["ranks"])
                self._agreement = rater_agreement(list(ranked.values()))
            return self._agreement

    def rankings(self) -> list[dict]:
        """The rankings as recipes/reward.py reads them, one row per prompt and person, in the order of the prompts."""
        found = sorted(self.journal.rankings.items(), key=lambda item: item[0][0])
        return [
            {key: self.rows[index][key] for key in KEPT if key in self.rows[index]}
            | {key: value for key, value in ranking.items() if key != "row"}
            for (index, _), ranking in found
            if "ranks" in ranking
        ]

    def demonstrations(self) -> list[dict]:
        """The better answers that people typed, as rows in the Baichuan format, which recipes/sft.py reads."""
        speaker = {"user": "human", "assistant": "gpt", "system": "system"}
        rows = []
        for (index, rater), ranking in sorted(self.journal.rankings.items(), key=lambda item: item[0][0]):
            if "better_answer" in ranking:
                prompt = self.rows[index]["prompt"]
                turns = [
                    {"from": speaker.get(turn["role"], turn["role"]), "value": turn["content"]} for turn in prompt
                ]
                turns.append({"from": "gpt", "value": ranking["better_answer"]})
                row = {"id": str(self.rows[index].get("id", index + 1)), "conversations": turns}
                rows.append({**row, "written_by": rater, "written_at": ranking["ranked_at"]})
        return rows

    def summary(self) -> str:
        """How many judgements there are, and of which kinds, in a line."""
        all_of = list(self.journal.rankings.values())
        ranked = [ranking for ranking in all_of if "ranks" in ranking]
        all_bad = sum("all_bad" in ranking for ranking in ranked)
        tied = sum(len(set(ranking["ranks"])) < 2 for ranking in ranked) - all_bad
        kinds = (
            (len(ranked) - tied - all_bad, "with a preference"),
            (tied, "all equal"),
            (all_bad, "all bad"),
            (len(all_of) - len(ranked), "skipped"),
            (sum("better_answer" in ranking for ranking in all_of), "with a better answer"),
        )
        people = len({ranking["rater"] for ranking in all_of})
        line = f"{counted(len(all_of), 'judgement')} by {people:,} {'person' if people == 1 else 'people'}"
        return ": ".join([line, ", ".join(f"{number:,} {kind}" for number, kind in kinds if number)]).removesuffix(
            ": "
        )


def rater_name(name: str) -> str:
    """The name without blanks around it; ValueError if it is empty, too long, or holds what cannot be written."""
    name = name.strip() if isinstance(name, str) else ""
    if not 0 < len(name) <= LONGEST_NAME or len(name.splitlines()) > 1 or printable(name) != name:
        raise ValueError(
            f"expected a name of 1 to {LONGEST_NAME} characters, in one line and without control characters"
        )
    return name
