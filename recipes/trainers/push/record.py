"""What a run writes down for the model card, beside its settings: what was given, and with which versions."""

import dataclasses
import os
import platform
from collections.abc import Collection
from importlib import metadata
from pathlib import Path

from data_prep.common.provenance import commit

VERSIONS = ("torch", "transformers", "trl", "peft", "accelerate")
# Settings that come from the machine, that a card has no use for, or that name a machine or a place of the user's.
UNTOLD = (
    *("use_cpu", "bf16", "logging_first_step", "logging_steps", "hub_strategy", "sample_prompts", "project"),
    *("vllm_server_base_url", "vllm_server_host", "vllm_server_port", "vllm_group_port", "log_completions_hub_repo"),
    *("trackio_space_id", "trackio_static_space_id", "trackio_bucket_id"),
)
MODELS = ("model_name_or_path", "sft_model_path", "reward_model_path", "value_model_path")


def record_of(arguments: tuple, left_out: Collection[str]) -> dict:
    """What a run records as plain JSON.

    "given": the settings that were given (of arguments that `parse_arguments` did not read: all) and differ from their
    defaults, but for those in `left_out`; "local": the models that were folders when it began, where a name alone would not
    tell a folder from an id of the Hub; "results_dir", and "results_from_model", the way there from `output_dir`, which
    copies keep; "versions".
    """
    given, values = {}, {}
    for each in arguments:
        for field in dataclasses.fields(each):
            value = values[field.name] = getattr(each, field.name, None)
            default = field.default_factory() if callable(field.default_factory) else field.default
            told = field.name in getattr(each, "given", {field.name}) and field.name not in {*left_out, *UNTOLD}
            if told and value != default and plain(value):
                given[field.name] = value
    local = [values[name] for name in MODELS if values.get(name) and Path(values[name]).exists()]
    versions = {"python": platform.python_version()}
    for package in VERSIONS:
        versions[package] = metadata.version(package)
    if made_by := commit():
        versions["gpt-recipes"] = made_by
    results, output = values.get("results_dir"), values.get("output_dir")
    way = os.path.relpath(results, output) if results and output else None
    record = {"given": given, "local": local, "results_dir": results, "results_from_model": way}
    return {**record, "versions": versions}


def plain(value) -> bool:
    """Whether a value is text, a number, yes or no, or a list or an object of them that is not empty."""
    if isinstance(value, list):
        return bool(value) and all(map(plain, value))
    if isinstance(value, dict):
        return bool(value) and all(map(plain, value.values()))
    return isinstance(value, str | int | float)
