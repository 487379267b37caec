"""The models behind addresses that a chat talks to: one alone, or several that have names."""

import os
import re
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.questions.server import check_url, key_from
from eval.common.sources import NAMED, named_values

KEY = "OPENAI_API_KEY"  # the environment variable of the key where there is one address


class Address(NamedTuple):
    """Where to ask for a model's answers. `key` is shown nowhere."""

    name: str  # "": that of the model
    url: str
    model: str | None  # None: the only one that is listed there
    key: str


def add_address_options(parser) -> None:
    """`--url`, `--url_model` and `--api_key_env`, as `addresses` reads them."""
    many = {"nargs": "+", "action": "extend", "default": []}
    parser.add_argument(
        "--url",
        **many,
        metavar="ADDRESS",
        help="address with OpenAI's interface, such as http://127.0.0.1:8000/v1, as one more model; of several each has a "
        "name: name=ADDRESS",
    )
    parser.add_argument(
        "--url_model",
        **many,
        metavar="MODEL",
        help="name of the model there (default: the only one that it lists); of named addresses: name=MODEL",
    )
    parser.add_argument(
        "--api_key_env",
        **many,
        metavar="VARIABLE",
        help=f"environment variable with its key (default: {KEY}); of named addresses: name=VARIABLE (default: no key)",
    )


def addresses(arguments) -> list[Address]:
    """The addresses of `add_address_options`, in their order.

    The key of one is never sent to another: with names, one that has no `--api_key_env` gets none. Raises `InputError` for
    what does not fit together, or a variable without a key.
    """
    words, models, variables = arguments.url, arguments.url_model, arguments.api_key_env
    if not words:
        if given := [option for option, found in (("--url_model", models), ("--api_key_env", variables)) if found]:
            raise InputError(f"{given[0]}: is for --url, which is not given")
        return []
    matches = [NAMED.fullmatch(word) for word in words]
    for word, match in zip(words, matches, strict=True):
        check_url(match[2] if match else word)
    if len(words) == 1 and not matches[0]:
        for option, found in (("--url_model", models), ("--api_key_env", variables)):
            if len(found) > 1:
                raise InputError(f"{option}: found {len(found)} values; expected one, as there is one --url")
        key = _key("--api_key_env", variables[0]) if variables else key_from(KEY)
        return [Address("", words[0], models[0] if models else None, key)]
    for word, match in zip(words, matches, strict=True):
        if not match:
            raise InputError(f"--url {word}: found no name; of several addresses each has one: name={word}")
    urls = named_values("--url", words)
    if any(not NAMED.fullmatch(word) for word in variables):  # not shown: it may be the key itself
        raise InputError("--api_key_env: found no name; expected name=VARIABLE, the name being that of an address")
    models, variables = named_values("--url_model", models), named_values("--api_key_env", variables)
    for option, found in (("--url_model", models), ("--api_key_env", variables)):
        if unknown := [name for name in found if name not in urls]:
            raise InputError(f"{option} {unknown[0]}=…: no address has this name; expected {', '.join(urls)}")
    return [
        Address(
            name, url, models.get(name), _key(f"--api_key_env {name}=…", variables[name]) if name in variables else ""
        )
        for name, url in urls.items()
    ]


def _key(option: str, variable: str) -> str:
    """The key in an environment variable that was asked for. The error does not show what may be the key itself."""
    if not re.fullmatch(r"[A-Za-z_]\w*", variable) or not os.environ.get(variable, "").strip():
        raise InputError(f"{option}: found no key; expected the name of an environment variable that holds it")
    return key_from(variable)
