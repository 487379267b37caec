"""Who judges answers, by one name: a function, a reward model, a language model, people's rankings, or the reference.

    data_prep.rewards.rubric, my_rewards.py:brevity     a function in the form of data_prep/rewards.py
    runs/quickstart/reward                              a reward model, a folder or Hub id
    Qwen/Qwen3-0.6B                                     a language model, a folder or Hub id, with the settings' defaults
    judge.yaml                                          a language model with settings: see data_prep/judging/settings.py
    rankings.jsonl                                      the ranks in a file, of people or of whoever ranked
    reference                                           agreement with the reference answer

All of them do the same two things: they compare answers to a prompt by pairs, and rank them. A function, a reward model and
the reference also give each answer a number by itself: `as_function`.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from data_prep.common.agreement import exact_match, sentence_chrf
from data_prep.common.errors import InputError
from data_prep.judging.language_model import LanguageModel, Outcomes, Pair
from data_prep.judging.settings import Settings, read_settings
from data_prep.models.reward_functions import load_function
from data_prep.ranking.raters import Rater, by_chrf, by_function, by_reward_model
from data_prep.readers.preferences import prompt_key, read_rankings
from data_prep.rows.read import ENDINGS, data_files, kind_of_file, names_of, rows_of

TIE_WIDTH = 5.0  # chrF points
REFERENCE = (
    "a proxy for a human judge: agreement with the reference answer (an exact match beats any other answer, "
    f"then the higher sentence chrF; two matches, or scores less than {TIE_WIDTH:g} points apart, tie)"
)
FUNCTION = "a stand-in for a human judge: the function {} (the higher value wins, equal ones tie)"
MATCH_OR_CHRF = "data_prep.rewards.match_or_chrf"  # the reference, as a number for each answer
REWARD_MODEL = "the reward model {} (the higher reward wins, equal ones tie)"
NAMES = (
    "a function (path/to/file.py:name or package.module.name, such as data_prep.rewards.rubric), a reward model or a "
    "language model (folder or Hub id), the YAML of a language model (data_prep/judging/), a file of rankings, or reference"
)


class Judge(NamedTuple):
    """`outcomes(rows, pairs)` compares, `rank(rows)` ranks; rows are those of `data_prep.ranking.raters`.

    outcomes        f(rows, pairs or None for all) -> for each row {(i, j): 1 if answer i is better than j, 0.5 for a tie,
                    0 if it is worse, None without a verdict}
    rank            f(rows) -> for each row {"ranks", "scores" if there are any}, {} without a ranking
    people          whether its verdicts are those of people
    language_model  what asks, with what it found of itself; None for any other judge
    rows            the ranked rows of a file of rankings
    """

    words: str
    outcomes: Callable[[list[dict], list[list[Pair]] | None], list[Outcomes]]
    rank: Rater
    people: bool = False
    language_model: LanguageModel | None = None
    rows: list[dict] | None = None

    def check(self, row: dict) -> None:
        """InputError if it cannot judge the answer "reference" of a row: before others are generated."""
        self.outcomes([{**row, "completions": [row["reference"]]}], [[]])

    def told(self) -> dict | None:
        """What a language model told of itself: see `LanguageModel.found`; None for any other judge."""
        return self.language_model.found() if self.language_model else None

    def close(self) -> None:
        """The output is whole: what was kept to resume is no longer needed."""
        if self.language_model:
            self.language_model.close()


def load_judge(name: str, rubric: str | Path | None = None, journal: Path | None = None) -> Judge:
    """The judge of that name: see above.

    Args:
        rubric: of a language model, in the place of its own.
        journal: where a language model's replies are kept until `close`, so that the same command resumes.

    Raises InputError for a name that is none of these, and for a rubric that nothing reads.
    """
    asks = None
    if name.endswith((".yaml", ".yml")):
        asks = read_settings(name)
    elif not (name == "reference" or is_function(name) or _is_data(name) or is_reward_model(name)):
        asks = Settings(name)
    if asks is None and rubric is not None:
        raise InputError(f"--rubric: {name} is no language model; a rubric is what one is told")
    if asks is not None:
        model = LanguageModel(asks, rubric, journal)
        return Judge(model.words, model.outcomes, model.rank, language_model=model)
    if name == "reference":
        return Judge(REFERENCE, _by_reference, by_chrf(25.0))
    if is_function(name):
        return of_rater(FUNCTION.format(name), by_function(name))
    if _is_data(name):
        return recorded(name)
    return of_rater(REWARD_MODEL.format(name), by_reward_model(name, []))


def as_function(name: str, option: str) -> Callable[..., list[float]]:
    """The judge of that name as a function in the form of data_prep/rewards.py: a number for each answer by itself.

    Raises InputError, which names the `option`, for a judge that only compares answers with each other: a language model,
    a file of rankings.
    """
    if name == "reference" or is_function(name):
        return load_function(MATCH_OR_CHRF if name == "reference" else name)
    if not is_reward_model(name):
        raise InputError(
            f"{option} {name}: it only compares answers with each other; expected what gives each answer a number by itself: "
            "a function (path/to/file.py:name or package.module.name), a reward model (folder or Hub id), or reference"
        )
    rate = by_reward_model(name, [])

    def reward(prompts: list, completions: list, **columns) -> list[float]:
        texts = [each if isinstance(each, str) else each[-1]["content"] for each in completions]
        rows = [{"prompt": prompt, "completions": [text]} for prompt, text in zip(prompts, texts, strict=True)]
        return [value for ranking in rate(rows) for value in ranking["scores"]]

    reward.__name__ = name
    return reward


def short_name(name: str) -> str:
    """What results of a judge or reward are called: a function's own name, or that of the file, folder or model."""
    if is_function(name):
        return name.replace(":", ".").rsplit(".", 1)[-1]
    return Path(name).stem if name.endswith((".yaml", ".yml")) or _is_data(name) else Path(name).name


def is_function(name: str) -> bool:
    """Whether a name is that of a function: path/to/file.py:name or package.module.name."""
    if ".py:" in name:
        return True
    return "." in name and not {"/", "\\"} & set(name) and not Path(name).exists() and not _is_data(name)


def _is_data(name: str) -> bool:
    return name.startswith("hf://") or kind_of_file(name) in ENDINGS


def is_reward_model(name: str) -> bool:
    """Whether a name is that of a reward model, a folder or Hub id; InputError for a folder without a finished model."""
    if name == "reference" or name.endswith((".yaml", ".yml")) or is_function(name) or _is_data(name):
        return False
    from data_prep.models import loading  # slow to import

    return loading.is_reward_model(name)


def all_pairs(row: dict) -> list[Pair]:
    return list(itertools.combinations(range(len(row["completions"])), 2))


def of_rater(words: str, rater: Rater) -> Judge:
    """A judge that compares by ranks."""
    return Judge(words, lambda rows, pairs=None: _by_ranks(rows, rater(rows), pairs), rater)


def _by_ranks(rows: list[dict], rankings: list[dict], pairs: list[list[Pair]] | None) -> list[Outcomes]:
    wanted = pairs if pairs is not None else map(all_pairs, rows)
    return [
        {(i, j): outcome_of_values(-ranking["ranks"][i], -ranking["ranks"][j]) for i, j in own}
        for ranking, own in zip(rankings, wanted, strict=True)
    ]


def outcome_of_values(value: float, other: float) -> float:
    """1 if the first value is the higher one, 0.5 if they are equal, 0 if it is the lower one."""
    return 0.5 + ((value > other) - (value < other)) / 2


def outcome_by_reference(matches: bool, score: float, other_matches: bool, other_score: float) -> float:
    """1 if the first answer wins, 0.5 for a tie, 0 if it loses. Scores are chrF, 0 to 100."""
    if matches or other_matches:
        return 0.5 + (matches - other_matches) / 2
    if abs(score - other_score) < TIE_WIDTH:
        return 0.5
    return float(score > other_score)


def _by_reference(rows: list[dict], pairs: list[list[Pair]] | None = None) -> list[Outcomes]:
    found = []
    for row, own in zip(rows, pairs if pairs is not None else map(all_pairs, rows), strict=True):
        if not isinstance(row.get("reference"), str):
            raise InputError("the judge is agreement with the reference, but a row has no text under 'reference'")
        measured = [
            (exact_match(text, row["reference"]), sentence_chrf(text, row["reference"])) for text in row["completions"]
        ]
        found.append({(i, j): outcome_by_reference(*measured[i], *measured[j]) for i, j in own})
    return found


def recorded(
    paths: str | list[str],
    on_bad: str = "error",
    quarantine: str | Path | None = None,
    columns: dict[str, str] | str | None = None,
) -> Judge:
    """The ranks in files, read as `read_rankings` does. They hold for the answers in them: any other has no outcome."""
    rows, _ = read_rankings(paths, on_bad, quarantine, columns)
    rows = [_without_repeats(row) for row in rows]
    files = data_files(paths)
    whose = {row.value.get("ranked_by") for row in rows_of(files) if isinstance(row.value, dict)}
    people, names = whose == {"a person"}, names_of(files)
    if people:
        words = f"people (the rankings in {names})"
    else:
        said = ", ".join(sorted(name for name in whose if isinstance(name, str)))
        words = f"the rankings in {names} ({f'by {said}' if said else 'by whom they do not say'})"
    of_prompt: dict[str, list[dict]] = {}
    for row in rows:
        ranks = dict(zip(row["completions"], row["ranks"], strict=True))
        of_prompt.setdefault(prompt_key(row["prompt"]), []).append(ranks)

    def outcomes(asked: list[dict], pairs: list[list[Pair]] | None = None) -> list[Outcomes]:
        found = []
        for row, own in zip(asked, pairs if pairs is not None else map(all_pairs, asked), strict=True):
            texts, known = row["completions"], of_prompt.get(prompt_key(row["prompt"]), [])
            found.append({(i, j): _recorded_outcome(known, texts[i], texts[j]) for i, j in own})
        return found

    def rank(asked: list[dict]) -> list[dict]:
        found = []
        for row in asked:
            known = of_prompt.get(prompt_key(row["prompt"]), [])
            whole = [ranks for ranks in known if all(text in ranks for text in row["completions"])]
            found.append({"ranks": [whole[0][text] for text in row["completions"]]} if whole else {})
        return found

    return Judge(words, outcomes, rank, people, rows=rows)


def _without_repeats(row: dict) -> dict:
    """The row with each text once, as it is ranked first."""
    ranks = {}
    for text, rank in zip(row["completions"], row["ranks"], strict=True):
        ranks.setdefault(text, rank)
    return {"prompt": row["prompt"], "completions": [*ranks], "ranks": [*ranks.values()]}


def _recorded_outcome(known: list[dict], one: str, other: str) -> float | None:
    """The mean over the rankings that hold both answers, rounded to a win, a tie or a loss; None without one."""
    values = [outcome_of_values(-ranks[one], -ranks[other]) for ranks in known if one in ranks and other in ranks]
    return outcome_of_values(sum(values) / len(values), 0.5) if values else None
