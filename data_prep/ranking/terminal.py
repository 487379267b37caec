"""A person ranks answers in the terminal, blind to which model or person gave them."""

import random

from data_prep.common.text import printable
from data_prep.ranking.journal import Journal

HELP = """\
Write the numbers of all answers from the best to the worst, > between them, = for answers that are equally good:
    2>1=3    the second is the best, the other two are equally good
s skips the prompt, u takes the last ranking back, w writes the output from the rankings so far and ends,
q stops (the same command resumes later), h shows this text."""


def parse_order(text: str, number: int) -> list[int]:
    """Dense ranks, 0 the best, of `number` answers, from an order such as "2>1=3"; a ValueError says what is wrong."""
    ranks: dict[int, int] = {}
    for rank, group in enumerate(text.split(">")):
        for name in group.split("="):
            name = name.strip()
            # isdecimal alone accepts digits of other scripts, as int() does.
            if not (name.isascii() and name.isdecimal() and 1 <= int(name) <= number):
                raise ValueError(f"found {name!r}; expected a number from 1 to {number}")
            if int(name) in ranks:
                raise ValueError(f"{int(name)} is there twice")
            ranks[int(name)] = rank
    if missing := [str(name) for name in range(1, number + 1) if name not in ranks]:
        raise ValueError(f"{' and '.join(missing)} missing: every answer needs a place")
    return [ranks[name] for name in range(1, number + 1)]


def show_answers(prompt: list[dict], answers: list[str]) -> None:
    """Print a conversation and the answers to it, numbered."""
    for message in prompt:
        print(f"\n[{printable(message['role'])}]\n{printable(message['content'])}")
    for number, answer in enumerate(answers, start=1):
        print(f"\n--- answer {number} ---\n{printable(answer)}")


def rank_in_terminal(rows: list[dict], journal: Journal, about: dict, seed: int) -> bool:
    """Ask for the order of the answers to each prompt that the journal has no ranking of yet; True: write the output.

    The order in which answers are shown depends on `seed` and the row. A ranking is {"row", "ranks"} or {"row",
    "skipped"}, and `about`. False: the person wants to resume later, or the input has ended.
    """
    todo = [index for index, row in enumerate(rows) if len(row["completions"]) > 1]
    print(HELP)
    while left := [index for index in todo if index not in journal.rankings]:
        index = left[0]
        completions = rows[index]["completions"]
        order = random.Random(f"{seed} {index}").sample(range(len(completions)), len(completions))
        print(f"\n{'=' * 72}\nprompt {len(todo) - len(left) + 1:,} of {len(todo):,}")
        show_answers(rows[index]["prompt"], [completions[place] for place in order])
        command = ask_for_order(len(completions))
        if command in (None, "q", "w"):
            return command == "w"
        if command == "u":
            if journal.undo() is None:
                print("there is no ranking to take back")
        elif command == "s":
            journal.add([{"row": index, "skipped": True, **about}])
        else:
            ranks = [0] * len(order)
            for place, rank in zip(order, command, strict=True):
                ranks[place] = rank
            journal.add([{"row": index, "ranks": ranks, **about}])
    return True


def ask_for_order(number: int) -> list[int] | str | None:
    """Ranks of the answers as shown, one of the commands s, u, w and q, or None if the input has ended."""
    while True:
        try:
            line = input("\norder (h for help): ").strip().lower()
        except EOFError:
            print()
            return None
        if line in ("s", "u", "w", "q"):
            return line
        if line in ("h", "?"):
            print(HELP)
            continue
        try:
            return parse_order(line, number)
        except ValueError as error:
            print(f"{error}. {HELP.splitlines()[1].strip()}")
