"""Servers with OpenAI's interface, asked through its client, and vLLM in this process."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import torch

from data_prep.common.errors import InputError
from data_prep.questions.server import without_key
from eval.serving_checks.answers import Expected
from eval.serving_checks.rows import DIFFERS, FAILS, NOT_INSTALLED, NOTE, Row

NEEDED = ("openai", "fastapi", "uvicorn")  # by `transformers serve`; the extra "serving" of pyproject.toml
COMMAND = "from transformers.cli.transformers import main; main()"  # what bin/transformers runs
PATIENCE = 300  # seconds until a server that loads a model has to answer


class NoServer(Exception):
    """The server did not start."""


@contextlib.contextmanager
def transformers_serve(folder: str) -> Iterator[str]:
    """The address of a `transformers serve` of its own for `folder`, on 127.0.0.1, stopped at the end.

    Raises NoServer with what it printed last if it ends, or does not answer in time.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-c", COMMAND, "serve", folder, "--host", "127.0.0.1", "--port", str(port)]
    if not torch.accelerator.is_available():
        words += ["--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + PATIENCE
            while not _answers(f"http://127.0.0.1:{port}/health"):
                if server.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    lines = log.read().decode(errors="replace").split("\n")
                    last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
                    raise NoServer(last)
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as answer:
            return answer.status == 200
    except (OSError, urllib.error.URLError):
        return False


def server_row(expected: Expected, folder: str, url: str | None, key: str, tolerance: float) -> Row:
    """A server at `url`, or a `transformers serve` of its own, asked each prompt with no setting but the messages.

    `key` is that of the server at `url`, "" if it needs none.
    """
    check = "server" if url else "transformers serve"
    missing = [name for name in NEEDED[: 1 if url else None] if importlib.util.find_spec(name) is None]
    if missing:
        return Row(check, NOT_INSTALLED, f"{', '.join(missing)}: pip install -e '.[serving]'")
    if url:
        return asked(check, expected, _served_name(url, folder, key), url, tolerance, key)
    if (Path(folder) / "adapter_config.json").exists():  # transformers 5.23 looks for a config.json in it
        return Row(
            check, NOTE, "not asked: it serves no adapter by itself; merge it, or name a server that does with --url"
        )
    folder = str(Path(folder).resolve()) if Path(folder).exists() else folder
    try:
        with transformers_serve(folder) as own:
            return asked(check, expected, folder, own, tolerance)
    except NoServer as error:
        return Row(check, FAILS, f"it does not start: {error}")


def _client(url: str, key: str):
    """OpenAI's client for a server; a proxy of the environment is not asked for an address on this machine."""
    import openai

    local = openai.DefaultHttpxClient(trust_env=False) if "//127.0.0.1" in url or "//localhost" in url else None
    return openai.OpenAI(base_url=url, api_key=key or "none", max_retries=0, timeout=600, http_client=local)


def _served_name(url: str, folder: str, key: str) -> str:
    """What the server at `url` calls its model: the only name that it lists, or the folder."""
    import openai

    with _client(url, key) as client:
        try:
            names = [model.id for model in client.models.list()]
        except openai.APIStatusError:  # as transformers serve without a cache of the Hub
            return folder
        except openai.APIError as error:
            said = without_key(str(error), key)
            raise InputError(f"--url {url}: no server with OpenAI's interface answers there ({said})") from None
    return names[0] if len(names) == 1 else folder


def asked(
    check: str, expected: Expected, name: str, url: str, tolerance: float | None, key: str = "", **settings
) -> Row:
    """A server's answers to the prompts, asked with `settings` alone; without a tolerance no log-probability is compared.

    `key` is sent as the bearer token, and stands in no row.
    """
    import openai

    with _client(url, key) as client:
        given, logprobs, counts = [], [], []
        options = {"logprobs": True} if tolerance is not None else {}
        for prompt in expected.prompts:
            messages = [{"role": each["role"], "content": each["content"]} for each in prompt]
            try:
                try:
                    answer = client.chat.completions.create(model=name, messages=messages, **settings, **options)
                except (openai.BadRequestError, openai.UnprocessableEntityError):
                    if not options:
                        raise
                    options = {}  # it gives no log-probabilities, as transformers serve of 5.23
                    answer = client.chat.completions.create(model=name, messages=messages, **settings)
            except openai.APIError as error:
                given.append(error)
                continue
            choice = answer.choices[0]
            given.append(choice.message.content or "")
            counts.append((len(given) - 1, answer.usage.prompt_tokens if answer.usage else None))
            tokens = choice.logprobs.content if options and choice.logprobs else None
            logprobs.append(torch.tensor([token.logprob for token in tokens or ()]))
    told = logprobs if options and len(logprobs) == len(given) and all(map(len, logprobs)) else None
    silent = "" if told or tolerance is None else "it gives no log-probabilities"
    row = expected.row(check, given, told, tolerance, silent, key)
    for index, count in counts:
        if count not in (None, len(expected.ids[index])):
            wrong = f"its prompt {index + 1} has {count} tokens, {len(expected.ids[index])} are expected"
            return row._replace(status=DIFFERS if row.status != FAILS else FAILS, detail=f"{row.detail}; {wrong}")
    return row


def vllm_row(expected: Expected, folder: str, tolerance: float) -> Row:
    """vLLM in this process, with the sampling parameters that it takes from the folder."""
    if importlib.util.find_spec("vllm") is None:
        return Row("vLLM", NOT_INSTALLED, "pip install vllm, on a GPU")
    from vllm import LLM

    engine = LLM(model=folder, trust_remote_code=False)
    parameters = engine.get_default_sampling_params()
    parameters.max_tokens, parameters.logprobs = expected.max_new_tokens, 1  # its own default is 16 tokens
    outputs = [each.outputs[0] for each in engine.chat(expected.prompts, parameters)]
    given = [list(output.token_ids) for output in outputs]
    told = [
        torch.tensor([step[token].logprob for step, token in zip(output.logprobs, output.token_ids, strict=True)])
        for output in outputs
    ]
    return expected.row("vLLM", given, told, tolerance)
