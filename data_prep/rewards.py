"""Functions that say how good answers are: measures in an evaluation, rewards in PPO, RLOO and GRPO, or a rater.

    --eval_funcs data_prep.rewards.exact_match
    --reward_funcs data_prep.rewards.exact_match
    python -m data_prep.rank_completions --by function --function data_prep.rewards.exact_match …

Each takes TRL's arguments, `prompts`, `completions` (texts, or lists of one assistant message) and the columns of the
dataset by name, and returns one number per answer. `reference` is the conversation's own last answer: agreement with it
is a stand-in for a human rater. Copy one to reward something else: a length, a format, a test that passes.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable

from data_prep.files import InputError, existing


def load_function(name: str) -> Callable:
    """The function that `path/to/file.py:name` or `package.module.name` names; an InputError where there is none."""
    module_name, _, function_name = name.rpartition(":" if ":" in name else ".")
    try:
        if ":" in name:
            path = existing(module_name)
            spec = importlib.util.spec_from_file_location(path.stem, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{name}: no such function ({error}); expected path/to/file.py:name or package.module.name"
                         ) from None  # fmt: skip
    if not callable(function):
        raise InputError(f"{name}: found {type(function).__name__}; expected a function")
    return function


def ask(function: Callable, prompts: list, texts: list[str], columns: dict[str, list]) -> list[float]:
    """What `function` says of answers, one number each; `InputError` where it takes or gives something else.

    Args:
        prompts: of each answer; where they are messages the answers are given as messages too, as TRL does.
        columns: of the dataset, by name, with one value per answer.
    """
    chat = not isinstance(prompts[0], str)
    completions = [[{"role": "assistant", "content": text}] for text in texts] if chat else texts
    given = {"prompts": prompts, "completions": completions, **columns}
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise InputError(f"{function.__name__}: {error}; expected f(prompts, completions, **columns)") from None
    values = function(**given)
    try:
        rewards = [float(value) for value in values]
    except TypeError:
        kinds = (
            sorted({type(value).__name__ for value in values}) if isinstance(values, list) else [type(values).__name__]
        )
        raise InputError(f"{function.__name__}: found {', '.join(kinds)}; expected a number per answer") from None
    if len(rewards) != len(texts):
        raise InputError(f"{function.__name__}: {len(rewards)} rewards for {len(texts)} answers; expected one each")
    return rewards


def text_of(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else completion[-1]["content"]


def exact_match(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """1 where the answer is the reference word for word, blanks aside, else 0."""
    return [
        float(text_of(completion).split() == answer.split())
        for completion, answer in zip(completions, reference, strict=True)
    ]


def chrf(prompts: list, completions: list, reference: list[str], **columns) -> list[float]:
    """Character F-score with the reference (Popović 2015, as sacrebleu computes it), 0 to 1."""
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return [
        metric.sentence_score(text_of(completion), [answer]).score / 100
        for completion, answer in zip(completions, reference, strict=True)
    ]
