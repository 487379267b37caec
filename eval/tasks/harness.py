"""Tasks by lm-evaluation-harness on one model, as its own command runs them."""

import fnmatch
import importlib.util
import logging
import math
from pathlib import Path

from data_prep.common.errors import InputError
from data_prep.common.text import counted, printable
from eval.common.assistants import is_assistant, refuses_system_turn

OURS = "ours"


def check_installed() -> None:
    """Raise `InputError` where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed; expected: pip install -e '.[lm-eval]'")


def task_names(words: list[str], ours: list[str]) -> list[str]:
    """The tasks that `--tasks` names, "a,b" or "a b"; "ours" stands for those of our own files."""
    names = [name for word in words for name in word.split(",") if name]
    return list(dict.fromkeys(each for name in names for each in (ours if name == OURS else [name])))


def check_tasks(tasks: list[str], ours: list[str]) -> None:
    """Raise `InputError` for a name that is none of `ours` and none of lm-eval's, whose list needs no network."""
    others = [name for name in tasks if not fnmatch.filter(ours, name)]
    if others:  # its own thousands of YAMLs take seconds to read
        from lm_eval.tasks import TaskManager

        _check_names(TaskManager(), others)


def _check_names(manager, tasks: list[str]) -> None:
    if missing := [name for name in tasks if not manager.match_tasks([name])]:
        raise InputError(
            f"--tasks {missing[0]}: found no such task; expected ours, or one that lm_eval ls tasks lists"
        )


def run_tasks(
    model: str,
    tasks: list[str],
    include_path: Path | None,
    apply_chat_template: bool,
    batch_size: int = 8,
    limit: int | None = None,
    num_fewshot: int | None = None,
) -> dict[str, dict]:
    """{task: {metric: {"value", "stderr" or None}, "n": documents}} of a folder or Hub id, groups of tasks included.

    Metrics are named as lm-eval does, without the filter "none". All else is what its command `lm_eval run --model hf`
    does by default, also where the chat template refuses a system turn: prompts then go without the task's description, and a
    line on the screen says so. Raises `InputError` for a task that is not there, whose data cannot be had, or whose turns the
    template refuses.
    """
    import datasets
    from jinja2 import TemplateError
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from data_prep.common.machine import training_device

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    # Its own thousands of YAMLs take seconds to read: only where one of them is asked for
    own = include_path and all((include_path / f"{name}.yaml").exists() for name in tasks)
    manager = TaskManager(include_path=include_path and str(include_path), include_defaults=not own)
    _check_names(manager, tasks)
    names = list(dict.fromkeys(each for name in tasks for each in manager.match_tasks([name])))
    device = training_device().type
    arguments = {"pretrained": model, "trust_remote_code": False, "use_safetensors": True}
    try:
        found = simple_evaluate(
            "hf", arguments, names, task_manager=manager, apply_chat_template=apply_chat_template, log_samples=False,
            batch_size=batch_size, limit=limit, num_fewshot=num_fewshot, device=device,
        )  # fmt: skip
    except (OSError, datasets.exceptions.DatasetsError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(
            f"--tasks {' '.join(names)}: the data of a task, or the model, cannot be had ({reason}); public tasks fetch "
            "theirs from the Hub once: run it with a network and without HF_HUB_OFFLINE"
        ) from None
    except TemplateError as error:
        raise InputError(
            f"--tasks {' '.join(names)}: the chat template of {model} refuses the turns of a task ({error}): give the tasks "
            "one by one to see which, and that one with --num_fewshot 0 or --apply_chat_template false"
        ) from None
    if apply_chat_template:
        _tell_left_out(model, found)
    counts = {name: number["effective"] for name, number in found.get("n-samples", {}).items()}
    return {name: {"n": counts.get(name)} | _metrics(own) for name, own in found["results"].items()}


def _tell_left_out(model: str, found: dict) -> None:
    """Print which tasks lost their description: lm-eval takes a system turn that the template refuses out of the prompts."""
    from data_prep.models.loading import load_tokenizer

    described = [name for name, own in found["configs"].items() if isinstance(own, dict) and own.get("description")]
    if described and refuses_system_turn(load_tokenizer(model)):
        for name in described:
            number = found["n-samples"][name]["effective"]
            print(
                f"{printable(name)}: {counted(number, 'question')} without the task's description: the chat template "
                "refuses a system turn, and lm-eval leaves it out"
            )


def compare_models(models: dict[str, str], tasks: list[str], include_path: Path, batch_size: int) -> dict[str, dict]:
    """{task: {metric: {"models": {name: value with stderr}, "difference": of the last to the first, with stderr}}}.

    Args:
        models: {name: folder or Hub id}; the chat template is on for those that are assistants.

    The two runs are taken as independent, which as a rule makes the standard error of the difference larger than it is.
    """
    from data_prep.models.loading import load_tokenizer

    found = {}
    for name, folder in models.items():
        found[name] = run_tasks(folder, tasks, include_path, is_assistant(load_tokenizer(folder)), batch_size)
    first, *_, last = models
    compared: dict[str, dict] = {}
    for task, metrics in found[first].items():
        compared[task] = {}
        for metric in (key for key in metrics if key != "n"):
            values = {name: own[task][metric] for name, own in found.items()}
            errors = [values[name]["stderr"] for name in (first, last)]
            difference = {
                "value": values[last]["value"] - values[first]["value"],
                "stderr": None if None in errors else math.hypot(*errors),
            }
            compared[task][metric] = {"models": values, "difference": difference}
    return compared


def _metrics(own: dict) -> dict[str, dict]:
    """{metric: {"value", "stderr"}} of what lm-eval has for one task: "acc,none" and "acc_stderr,none"."""
    found = {}
    for key, value in own.items():
        metric, comma, way = key.partition(",")
        if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = own.get(f"{metric}_stderr,{way}")
        known = isinstance(error, int | float) and math.isfinite(error)
        name = metric if way == "none" else f"{metric}, {way}"
        found[name] = {"value": float(value), "stderr": float(error) if known else None}
    return found


def show(measured: dict) -> str:
    """ "0.750 ± 0.250": a value with its standard error."""
    return f"{measured['value']:.3f}" + ("" if measured["stderr"] is None else f" ± {measured['stderr']:.3f}")
