r"""One row of preferences in any of the common formats → a ranking of answers to one prompt.

    {"prompt", "chosen", "rejected"}              a pair; no "prompt" if both sides are whole conversations
    {"messages", "rejected_response"}             a pair (ms-swift): the last turn is better than the text beside it
    {"prompt", "completions", "ranks"}            any number of answers; the lowest rank is the best
    {"prompt", "completions", "scores"}           the highest score is the best, and differences of scores are margins
    {"prompt", "completion", "label"}             one answer, good or bad (TRL's format for KTO); the label is true or false
    {"messages", "label"}                         the same; any format of conversation_formats.py, whose last turn is judged

The prompt is a text or turns, under "prompt", "question", "conversations" or "instruction" (followed by "input", a string). A
text may come with "system" (str) and "history" (a list of [question, answer]). An answer is a text, a turn, a list of
turns that may begin with the prompt; those of a pair may be hh-rlhf's "\n\nHuman: … \n\nAssistant: …" (Bai 2022,
arXiv:2204.05862). Turns are `{"role", "content"}` or `{"from", "value"}`. Ranked answers may also be objects with their
own "rank" (Nectar) or score (UltraFeedback, arXiv:2310.01377). A pair may have scores for its sides, or their difference,
"margin". LLaMA-Factory's "kto_tag" is a label too. Other fields are ignored.
"""

import math
import re
from typing import NamedTuple

from data_prep.common.text import counted, shorten
from data_prep.readers.columns import renamed
from data_prep.readers.conversation_formats import (
    EMPTY_TURN,
    LABEL_FIELDS,
    OTHER_NAMES,
    PLAIN_ROLES,
    ROLE_ALIAS,
    ROLES,
    SAME_SPEAKER,
    TRAILING_HUMAN,
    is_conversation,
    label_of,
    merge_same_speaker,
    order_problems,
    role_key,
    speaker,
    to_conversation,
    to_messages,
    unsupported_roles,
    with_input,
    with_system,
)
from data_prep.readers.ranks import pairs, ranks_of_scores
from data_prep.rows.problems import ON_A_SCALE, Problem

PROMPT_FIELDS = ("prompt", "question", "conversations", "instruction")
CHOSEN = ("chosen", "response_chosen")  # response_*: MedicalGPT
REJECTED = ("rejected", "response_rejected")
COMPLETIONS = ("completions", "answers", "responses")
ANSWERS = {"pair": (*CHOSEN, *REJECTED), "ranking": COMPLETIONS, "label": ("completion",)}
TEXTS = ("response", "answer", "completion", "text")  # the text of an answer that is an object
# UltraFeedback's overall_score was wrong for 2,628 answers until it was corrected by their fine-grained scores: those first.
SCORES = ("score", "fine-grained_score", "overall_score", "rating", "reward")
PAIR_SCORES = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
    ("chosen-rating", "rejected-rating"),
)
# All fields that are read.
FIELDS = ("id", "system", "history", "input", *PROMPT_FIELDS, *CHOSEN, *REJECTED, *COMPLETIONS, "completion", "ranks", "scores",
          *LABEL_FIELDS, "margin", *(field for sides in PAIR_SCORES for field in sides))  # fmt: skip
SWIFT_FIELDS = ("messages", "rejected_response")
HUMAN = "\n\nHuman:"
QUESTION = {"role": "user", "content": "?"}

NO_ANSWER = "completion is not an answer"
MISMATCH, EMPTY, IDENTICAL = "prompt mismatch", "empty completion", "identical completions ranked differently"
# What `preference_of` repairs, without guessing, in the ranking that it returns with the problem.
REPAIRABLE = (SAME_SPEAKER, ROLE_ALIAS)


def formats_of(row: dict) -> list[str]:
    """The formats whose fields `row` has, of "pair", "ranking" and "label": one if the row can be read, none if it is
    not a preference."""
    row = with_sides(_given(row))
    found = []
    if any(field in row for field in CHOSEN) and any(field in row for field in REJECTED):
        found.append("pair")
    for field in COMPLETIONS:
        answers = row[field] if isinstance(row.get(field), list) else []
        scored = any({"rank", *SCORES} & set(_given(answer)) for answer in answers if isinstance(answer, dict))
        if field in row and (scored or "ranks" in row or "scores" in row):
            found.append("ranking")
    field, label = label_of(row)
    if "completion" in row and field or not found and label is not None and is_conversation(row):
        found.append("label")
    return found


def with_sides(row: dict) -> dict:
    """A row of ms-swift's, turns and a text that is worse than the last of them, with both sides of the pair; others as they
    are."""
    turns, rejected = row.get("messages"), row.get("rejected_response")
    if not isinstance(turns, list) or not isinstance(rejected, str):
        return row
    if any(row.get(field) is not None for field in (*CHOSEN, *REJECTED, "chosen_response")):
        return row
    last = turns[-1] if turns else None
    if not isinstance(last, dict) or ROLES.get(str(last.get(role_key(last)))) != "assistant":
        return row
    others = {field: value for field, value in row.items() if field not in SWIFT_FIELDS}
    return {**others, "chosen": turns, "rejected": [*turns[:-1], {"role": "assistant", "content": rejected}]}


def _given(fields: dict) -> dict:
    """The fields that are not None: Parquet gives every row the columns of all."""
    return {field: value for field, value in fields.items() if value is not None}


def preference_of(row: dict, columns: dict[str, str] | None = None) -> tuple[dict, list[Problem]]:
    """The row as `{"prompt": messages, "completions": [str, …], "ranks": [int, …], "scores": [float, …] or None}`, or
    with "label" (bool) instead of ranks and scores; and what is wrong with it.

    If every problem is in `REPAIRABLE` the ranking is complete, and repaired. With any other problem it is not usable.

    Args:
        columns: {field: column of the file}; None: the fields have their usual names.
    """
    if columns is not None:
        row, missing = renamed(row, columns)
        if missing or (missing := _on_a_scale(row)):
            return {}, missing
    row = with_sides(_given(row))
    formats, prompts = formats_of(row), [field for field in PROMPT_FIELDS if field in row]
    if formats == ["label"] and "completion" not in row:
        return _labelled_conversation(row)
    sides = [field for field in ANSWERS[formats[0]] if field in row] if len(formats) == 1 else []
    if len(sides) != (2 if formats == ["pair"] else 1) or len(prompts) > 1:
        expected = (
            "'prompt' and one of: 'completions' and 'ranks', 'completions' and 'scores', 'chosen' and 'rejected', "
            f"'completion' and 'label', each under one name; {OTHER_NAMES}"
        )
        return {}, [Problem("unknown fields", f"keys {sorted(row)}", expected)]
    prompt, problems = _prompt(row, prompts[0]) if prompts else (None, [])
    answers = _answers(row, formats[0], sides)
    problems += answers.problems
    if not answers.names:
        return {}, problems
    read = _completions(answers, pair=formats == ["pair"])
    problems += read.problems
    if all(problem.kind in REPAIRABLE for problem in problems):
        prompt, found = _shared_prompt(answers.names, prompt, read.before)
        problems += found
        if not prompts and prompt:
            prompt, problems = with_system(prompt, problems, row.get("system"))
    ranking = {"prompt": prompt, "completions": read.texts, **answers.judgement}
    if "ranks" in ranking and all(problem.kind in REPAIRABLE for problem in problems):
        problems += _contradictions(answers.names, ranking)
    return ranking, problems


def _on_a_scale(row: dict) -> list[Problem]:
    """The problem of a row of named columns whose label is a number other than 0 and 1."""
    field, label = label_of(row)
    number = None if label is not None or not field else _number(row[field])
    if number in (None, 0, 1):
        return []
    expected = "true or false, 1 or 0: of a scale 0 and 1 are not bad and good; make a column of true and false of it"
    return [Problem(ON_A_SCALE, f"{shorten(row[field])} under {field!r}", expected)]


def _labelled_conversation(row: dict) -> tuple[dict, list[Problem]]:
    """A whole conversation with a label, which is that of its last turn."""
    unlabelled = {key: value for key, value in row.items() if key not in LABEL_FIELDS}
    messages, problems = to_conversation(unlabelled, roles=PLAIN_ROLES)
    expected = "turns that end on the assistant's, which is what the label is of"
    problems = [
        Problem(NO_ANSWER, problem.found, expected) if problem.kind == TRAILING_HUMAN else problem
        for problem in problems
    ]
    if any(problem.kind not in REPAIRABLE for problem in problems):
        return {}, problems
    answer = messages[-1]["content"]
    return {"prompt": messages[:-1], "completions": [answer], "label": label_of(row)[1]}, problems


class Answers(NamedTuple):
    """The answers of a row before their text is read. No names: ranks or scores do not fit the answers."""

    names: list[str]  # one per answer, for messages to the user
    values: list  # the answers as they stand in the row
    judgement: dict  # "ranks" and "scores", or "label"
    problems: list[Problem]


class Completions(NamedTuple):
    """The answers of a row, read. The lists have an entry per answer if there is no problem."""

    texts: list[str]
    before: list[list[dict] | None]  # the messages before the answer, in a whole conversation; None: the answer alone
    problems: list[Problem]


def _answers(row: dict, kind: str, sides: list[str]) -> Answers:
    """The answers under the fields `sides` of a row of the format `kind`, and which of them are better."""
    if kind == "pair":
        scores, problems = _pair_scores(row)
        judgement = {"ranks": [0, 1], "scores": scores}
        return Answers(list(map(repr, sides)), [row[field] for field in sides], judgement, problems)
    answers = row[sides[0]]
    if kind == "ranking":
        judgement, problems = _ranks_and_scores(answers, sides[0], row)
        names = [] if problems else [f"completion {number}" for number in range(1, len(answers) + 1)]
        return Answers(names, answers, judgement, problems)
    field, label = label_of(row)
    expected, found = "true or false", f"{shorten(row[field])} under {field!r}"
    problems = [] if label is not None else [Problem("label is not true or false", found, expected)]
    return Answers(["'completion'"], [answers], {"label": label}, problems)


def _completions(answers: Answers, pair: bool) -> Completions:
    """The texts of the answers. The sides of a `pair` alone may be in hh-rlhf's form: elsewhere such a text is an answer."""
    texts, before, problems = [], [], []
    for name, answer in zip(answers.names, answers.values, strict=True):
        turns = _hh_turns(answer) if pair and _is_hh(answer) else _turns(answer)
        # Read after a question, as every answer is: by itself it would be in the wrong order.
        said, found = to_messages([QUESTION, *turns[-1:]])
        if len(said) != 2 or speaker(said[1]) != "assistant":
            found = f"{shorten(answer if len(turns) < 2 else turns[-1])} at {name}"
            problems.append(Problem(NO_ANSWER, found, "a text, or turns that end on the assistant's"))
            continue
        for kind, where, expected in found:
            kind = EMPTY if kind == EMPTY_TURN else kind
            problems.append(Problem(kind, where.replace("at turn 2", f"at {name}"), expected))
        messages, found = _messages(turns[:-1])
        problems += [problem._replace(found=f"{problem.found} of {name}") for problem in found]
        texts.append(said[1]["content"])
        before.append(messages or None)
    return Completions(texts, before, problems)


def _turns(answer) -> list:
    """An answer as turns; anything that is not an answer stays as it is, alone in the list."""
    if isinstance(answer, str):
        return [{"role": "assistant", "content": answer}]
    if isinstance(answer, dict):
        texts = [answer[field] for field in TEXTS if field in answer]
        return [{"role": "assistant", "content": texts[0]}] if texts else [answer]
    return answer if isinstance(answer, list) else [answer]


def _is_hh(answer) -> bool:
    return isinstance(answer, str) and answer.startswith(HUMAN)


def _hh_turns(text: str) -> list[dict]:
    """hh-rlhf's text as turns. One space after the colon belongs to the mark; the texts are not stripped."""
    _, *parts = re.split(r"\n\n(Human|Assistant):", text)
    roles = {"Human": "user", "Assistant": "assistant"}
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return [{"role": roles[speaker], "content": value.removeprefix(" ")} for speaker, value in spoken]


def _messages(turns: list) -> tuple[list[dict], list[Problem]]:
    """Turns as messages, with consecutive turns of one speaker merged, and what was wrong with them."""
    messages, problems = to_messages(turns)
    if all(problem.kind in REPAIRABLE for problem in problems):
        messages, _ = merge_same_speaker(messages)
        problems += order_problems(messages)
    return messages, problems


def _prompt(row: dict, field: str) -> tuple[list[dict], list[Problem]]:
    """System text, history and the prompt under `field` as messages, and what is wrong with them."""
    history = row.get("history")
    prompt, problems = with_input(row, field)
    if problems:
        return [], problems
    turns: list = []
    if not isinstance(history or [], list):
        found = f"{shorten(history)} under 'history'"
        return [], [Problem("history not in pairs", found, "a list of [question, answer]")]
    for pair in history or []:
        if not isinstance(pair, list) or len(pair) != 2:
            return [], [Problem("history not in pairs", f"{shorten(pair)} under 'history'", "[question, answer]")]
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    if isinstance(prompt, list):
        turns += prompt
    elif _is_hh(prompt):
        own = _hh_turns(prompt)
        cue = own[-1]["role"] == "assistant" and not own[-1]["content"].strip()  # "Assistant:" alone at the end
        turns += own[:-1] if cue else own
    elif isinstance(prompt, str):
        turns.append({"role": "user", "content": prompt})
    else:
        return [], [
            Problem("prompt is not a text", f"{shorten(prompt)} under {field!r}", "a string or a list of turns")
        ]
    messages, problems = with_system(*_messages(turns), row.get("system"))
    return messages, problems or ([] if messages else [_no_human_end(f"no turn under {field!r}")])


def _no_human_end(found: str) -> Problem:
    return Problem("prompt does not end on a human turn", found, "a human turn for the completions to answer")


def _shared_prompt(
    names: list[str], prompt: list[dict] | None, before: list[list[dict] | None]
) -> tuple[list[dict] | None, list[Problem]]:
    """The one prompt that the prompt field and the whole conversations of a row agree on, and what is wrong with it.

    Args:
        prompt: from the row's prompt field; None if it has none.
        before: as in `Completions`.
    """
    whole = {name: messages for name, messages in zip(names, before, strict=True) if messages}
    expected = "answers to one prompt: the same turns before the last one"
    for name, messages in whole.items():
        first, shared = next(iter(whole.items()))
        if messages != shared:
            equal = [a == b for a, b in zip(shared, messages, strict=False)]
            place = equal.index(False) + 1 if False in equal else len(equal) + 1
            return None, [Problem(MISMATCH, f"{first} and {name} part at turn {place}, before the last", expected)]
    if prompt is None and len(whole) < len(names):
        if not whole:
            return None, [Problem("no prompt", f"{' and '.join(names)} alone", f"one of {', '.join(PROMPT_FIELDS)}")]
        alone = next(name for name in names if name not in whole)
        return None, [Problem(MISMATCH, f"a prompt in {next(iter(whole))}, none in {alone}", expected)]
    if whole:
        name, shared = next(iter(whole.items()))
        # One of them may begin earlier, with a system turn or the turns before the question: take the longer one.
        length = min(len(shared), len(prompt or []))
        if prompt is not None and prompt[-length:] != shared[-length:]:
            found = f"{shorten(prompt[-1]['content'])} as the prompt, {shorten(shared[-1]['content'])} in {name}"
            return None, [Problem(MISMATCH, found, expected)]
        prompt = max(shared, prompt or [], key=len)
    problems = unsupported_roles(prompt, PLAIN_ROLES)
    if not problems and prompt[-1]["role"] != "user":
        problems = [_no_human_end(f"{prompt[-1]['role']} as its last turn")]
    return [{"role": turn["role"], "content": turn["content"]} for turn in prompt], problems


def _number(value) -> float | None:
    """A finite number, or text that is one, as in CSV; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def _pair_scores(row: dict) -> tuple[list[float] | None, list[Problem]]:
    """[score of the chosen answer, score of the rejected one], or None if the row has none; "margin" gives [margin, 0]."""
    for fields in (*PAIR_SCORES, ("margin",)):
        values = [row[field] for field in fields if row.get(field) not in (None, "")]
        if len(values) == len(fields):
            scores = [_number(value) for value in values]
            if None in scores:
                return None, [_no_numbers(values, " and ".join(map(repr, fields)))]
            return (scores if len(scores) == 2 else [scores[0], 0.0]), []
    return None, []


def _no_numbers(values, where: str) -> Problem:
    return Problem(
        "scores are not numbers", f"{shorten(values)} under {where}", "finite numbers, the highest the best"
    )


def _ranks_and_scores(answers, field: str, row: dict) -> tuple[dict, list[Problem]]:
    """{"ranks", "scores"} of the answers under `field`, from lists in the row or from the answers, and what is wrong."""
    if not isinstance(answers, list) or len(answers) < 2:
        return {}, [Problem("too few completions", f"{shorten(answers)} under {field!r}", "a list of at least two")]
    objects = [_given(answer) for answer in answers if isinstance(answer, dict)]
    score = next((name for name in SCORES if any(name in answer for answer in objects)), None)
    ranks, scores = row.get("ranks"), row.get("scores")
    if ranks is None and any("rank" in answer for answer in objects):
        ranks = [answer.get("rank") if isinstance(answer, dict) else None for answer in answers]
    if scores is None and score is not None:
        scores = [answer.get(score) if isinstance(answer, dict) else None for answer in answers]
    for given, noun in ((ranks, "rank"), (scores, "score")):
        if isinstance(given, list) and len(given) != len(answers):
            found = f"{counted(len(answers), 'completion')} and {counted(len(given), noun)}"
            return {}, [Problem("lengths differ", found, f"one {noun} per completion")]
    if scores is not None:
        numbers = [_number(value) for value in scores] if isinstance(scores, list) else [None]
        if None in numbers:
            return {}, [_no_numbers(scores, repr(score or "scores"))]
        scores = numbers
    if ranks is None:
        return {"ranks": ranks_of_scores(scores), "scores": scores}, []
    # bool is an int to Python, but true and false do not say which answer is better. Nectar writes 1.0 for 1.
    numbers = [_number(value) for value in ranks] if isinstance(ranks, list) else [None]
    if any(number is None or number != int(number) for number in numbers):
        return {}, [
            Problem("ranks are not integers", f"{shorten(ranks)} under 'ranks'", "integers, the lowest the best")
        ]
    return {"ranks": [int(number) for number in numbers], "scores": scores}, []


def _contradictions(names: list[str], ranking: dict) -> list[Problem]:
    """The problem of a text that is ranked above itself, or of a better rank with a lower score; [] if there is none."""
    completions, scores = ranking["completions"], ranking["scores"]
    for better, worse in pairs(ranking["ranks"]):
        if completions[better] == completions[worse]:
            found = f"{shorten(completions[better])} at {names[better]} and at {names[worse]}"
            return [Problem(IDENTICAL, found, "two different texts")]
        if scores and scores[better] < scores[worse]:
            found = (
                f"{scores[better]:g} for {names[better]}, {scores[worse]:g} for {names[worse]}, which is ranked lower"
            )
            return [Problem("scores contradict the ranks", found, "no lower score for the better one")]
    return []
