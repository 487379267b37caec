"""Load reward functions by name, and call them."""

import functools
import importlib
import importlib.util
import inspect
import traceback
from collections.abc import Callable

from data_prep.common.errors import InputError
from data_prep.common.files import existing

# Where the commonest mistake is to take a list of messages for a text: it has a length, too.
FORM = (
    "The completions of conversations are lists of messages: the text is completion[-1]['content'] "
    "(data_prep.rewards.text_of)"
)


def load_function(name: str) -> Callable:
    """The function named `path/to/file.py:name` or `package.module.name`; an InputError if there is none.

    What it raises, and what it returns that is not a number per answer, becomes an InputError too.
    """
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
    except (ImportError, AttributeError, ValueError, SyntaxError) as error:
        expected = "path/to/file.py:name or package.module.name"
        raise InputError(f"{name}: no such function ({error}); expected {expected}") from None
    if not callable(function):
        raise InputError(f"{name}: found {type(function).__name__}; expected a function")

    @functools.wraps(function)
    def checked(prompts: list, completions: list, **columns) -> list[float]:
        given = {"prompts": prompts, "completions": completions, **columns}
        _check_arguments(function, given)
        try:
            values = function(**given)
        except InputError:
            raise
        except Exception as error:  # the user's own code may raise anything
            last = traceback.extract_tb(error.__traceback__)[-1]
            raised = f"{type(error).__name__} ({error}) in {last.filename}, line {last.lineno}"
            raise InputError(f"{name}: raised {raised}; expected a number per answer. {FORM}") from error
        return _numbers(function, values, len(completions))

    return checked


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
    _check_arguments(function, given)
    return _numbers(function, function(**given), len(texts))


def _check_arguments(function: Callable, given: dict) -> None:
    try:
        inspect.signature(function).bind(**given)
    except TypeError as error:
        raise InputError(f"{function.__name__}: {error}; expected f(prompts, completions, **columns)") from None


def _numbers(function: Callable, values, answers: int) -> list[float]:
    """What `function` returned, as one float for each of so many answers."""
    kinds = {type(value).__name__ for value in values} if isinstance(values, list) else {type(values).__name__}
    try:
        if "str" in kinds:  # a text may read as a number, and was not meant as one
            raise TypeError
        rewards = [float(value) for value in values]
    except TypeError:
        found = ", ".join(sorted(kinds))
        raise InputError(f"{function.__name__}: found {found}; expected a number per answer") from None
    if len(rewards) != answers:
        raise InputError(f"{function.__name__}: {len(rewards)} rewards for {answers} answers; expected one each")
    return rewards
