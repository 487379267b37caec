"""Which language model judges, and how: the YAML of a judge, or a model by its name alone."""

from pathlib import Path
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.text import shorten
from data_prep.common.yaml_file import read_yaml
from data_prep.judging.rubric import RUBRIC

ASK = ("pairs", "ranking")
WITH_URL = ("api_key_env", "timeout", "retries", "concurrency")


class Settings(NamedTuple):
    """The keys of the YAML, with their defaults."""

    model: str  # folder or Hub id; with url its name there
    url: str = ""  # of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1
    rubric: str = str(RUBRIC)
    ask: str = "pairs"  # several answers to a prompt: each pair, or all in one ranking
    max_new_tokens: int = 512
    temperature: float = 0.0
    seed: int = 0
    batch_size: int = 16  # without url: prompts at once
    api_key_env: str = "OPENAI_API_KEY"
    timeout: float = 120.0  # seconds
    retries: int = 3
    concurrency: int = 8
    price_per_million_prompt_tokens: float = 0.0  # in any currency
    price_per_million_completion_tokens: float = 0.0

    @property
    def has_prices(self) -> bool:
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)


LEAST = {
    "max_new_tokens": 1, "temperature": 0, "batch_size": 1, "retries": 0, "concurrency": 1,
    "price_per_million_prompt_tokens": 0, "price_per_million_completion_tokens": 0,
}  # fmt: skip


def read_settings(path: str | Path) -> Settings:
    """The judge that a YAML file describes. Raises InputError for an unknown key, a value out of its range, and a key that
    nothing reads."""
    values = read_yaml(path)
    kinds = Settings.__annotations__
    for key, value in values.items():
        if key not in kinds:
            raise InputError(f"{path}: unknown key {shorten(key)}; expected {', '.join(kinds)}")
        fits = isinstance(value, kinds[key]) or (kinds[key] is float and isinstance(value, int))
        if not fits or isinstance(value, bool):
            raise InputError(
                f"{path}: {key}: found {shorten(value)}; expected {'a text' if kinds[key] is str else 'a number'}"
            )
        if key in LEAST and not LEAST[key] <= value < float("inf"):
            raise InputError(f"{path}: {key}: found {value}; expected at least {LEAST[key]}")
    if not values.get("model"):
        raise InputError(f"{path}: missing key model; expected a folder, a Hub id, or with url its name there")
    settings = Settings(**values)
    if not 0 < settings.timeout < float("inf"):
        raise InputError(f"{path}: timeout: found {settings.timeout}; expected seconds, more than 0")
    if settings.ask not in ASK:
        raise InputError(f"{path}: ask: found {shorten(settings.ask)}; expected {' or '.join(ASK)}")
    unread = [key for key in (("batch_size",) if settings.url else WITH_URL) if key in values]
    if unread:
        where = "a model of this machine: it is not used with url" if settings.url else "a server: it needs url"
        raise InputError(f"{path}: {unread[0]}: is for {where}")
    return settings
