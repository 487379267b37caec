"""Load reward functions by name, and call them."""

import importlib
import importlib.util
import inspect
from collections.abc import Callable

from data_prep.common.errors import InputError
from data_prep.common.files import existing


def load_function(name: str) -> Callable:
    """The function named `path/to/file.py:name` or `package.module.name`; an InputError if there is none."""
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
        expected = "path/to/file.py:name or package.module.name"
        raise InputError(f"{name}: no such function ({error}); expected {expected}") from None
    if not callable(function):
        raise InputError(f"{name}: found {type(function).__name__}; expected a function")
    return function


def call_reward_function(function: Callable, prompts: list, texts: list[str], columns: dict[str, list]) -> list[float]:
    """The rewards of answers, one number each; `InputError` if `function` takes or returns something else.

    Args:
        prompts: one per answer. If they are messages, the answers are passed as messages too, as TRL does.
        texts: the answers.
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
