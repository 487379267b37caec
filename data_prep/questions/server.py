"""One reply of an OpenAI-compatible server: POST /chat/completions, with a time limit and a bounded number of tries."""

import contextlib
import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import NamedTuple

from data_prep.common.errors import InputError
from data_prep.common.text import printable, shorten

BUSY = {408, 409, 425, 429, 500, 502, 503, 504}  # statuses after which the same request may succeed
REFUSALS = {400, 413, 422}  # that may be about one prompt alone: a content filter, a prompt longer than the context
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the server asks for
LARGEST = 1 << 24  # bytes of a reply


class Refused(InputError):
    """The server refused a request, perhaps for its prompt alone. `reason` is what it says; `requests` counts every try."""

    def __init__(self, message: str, reason: str, requests: int) -> None:
        super().__init__(message)
        self.reason, self.requests = reason, requests


class _Told(InputError):
    """What a server says in place of a reply, under status 200. `code` is the status that it names, None if it names none."""

    def __init__(self, message: str, reason: str, code: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.code = reason, code


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the key to another host."""

    def redirect_request(self, *_):
        return None


class Server(NamedTuple):
    """Where to ask, and how. `key` is sent as the bearer token, and stands in no message."""

    url: str
    model: str
    key: str
    temperature: float
    max_new_tokens: int
    seed: int
    timeout: float  # seconds
    retries: int

    def reply(self, messages: list[dict]) -> dict:
        """The server's reply to a conversation: {"text", "finish", "requests", "prompt_tokens", "completion_tokens"}.

        `requests` counts every try; the tokens are those that the server reports, None if it reports none. Raises
        InputError if the server refuses, does not speak the protocol, or cannot be reached in `retries` further tries;
        `Refused`, which is one, where that may be about this conversation alone.
        """
        body = self._body(messages)
        for tried in range(self.retries + 1):
            try:
                return {**self._once(body), "requests": tried + 1}
            except urllib.error.HTTPError as error:
                reason, wait = self._refusal(error), error.headers.get("Retry-After", "")
                if error.code in REFUSALS:
                    raise Refused(f"{self.url}: {reason}", reason, tried + 1) from None
                if error.code not in BUSY:
                    raise InputError(f"{self.url}: {reason}") from None
            except _Told as error:
                reason, wait = error.reason, ""
                if error.code not in BUSY:
                    raise Refused(str(error), reason, tried + 1) from None
            except (OSError, http.client.HTTPException) as error:  # no connection, a time-out, a reply that breaks off
                reason, wait = self._safe(str(getattr(error, "reason", error)) or type(error).__name__), ""
            if tried < self.retries:
                time.sleep(min(float(wait) if wait.isdigit() else 2.0**tried, LONGEST_WAIT))
        raise InputError(
            f"{self.url}: no reply in {self.retries + 1} {'tries' if self.retries else 'try'} ({reason}); the same command, run again, goes on "
            "with the replies that have come"
        )

    def reply_or_refusal(self, messages: list[dict]) -> dict:
        """`reply`, or of a prompt that alone is refused one without a text: {…, "finish": "refused", "refused": what it says}.

        After a refusal the server is asked a prompt of two letters in the same turns; `requests` and the tokens count that
        too. Raises InputError as `reply` does, and if that is refused as well: then it is about every request.
        """
        try:
            return self.reply(messages)
        except Refused as error:
            refused = error
        try:
            short = self.reply([{**turn, "content": "Hi"} for turn in messages])
        except Refused:
            raise InputError(
                f"{refused}; it refuses a prompt of two letters too: expected a model and settings that it knows"
            ) from None
        told = {"text": "", "finish": "refused", "refused": refused.reason}
        return {**short, **told, "requests": refused.requests + short["requests"]}

    def stream(self, messages: list[dict]) -> Iterator[tuple[str, str | None]]:
        """The server's reply to a conversation as it comes, (piece of text, why it ended or None), asked for once.

        From a server that does not stream the reply is one piece. Raises InputError as `reply` does, and for an error
        that the server tells midway. Closing the iterator closes the connection.
        """
        try:
            with self._send("chat/completions", {**self._body(messages), "stream": True}) as response:
                whole, streamed = b"", False
                while line := response.readline(LARGEST):
                    streamed = streamed or line.startswith(b"data:")
                    if not streamed:
                        whole += line[: LARGEST - len(whole)]
                    elif line.startswith(b"data:") and line[5:].strip() not in (b"", b"[DONE]"):
                        yield self._piece(line[5:])
            if not streamed:
                said = self._whole(whole)
                yield said["text"], said["finish"]
        except urllib.error.HTTPError as error:
            raise InputError(f"{self.url}: {self._refusal(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            raise InputError(f"{self.url}: no reply ({self._safe(reason)})") from None

    def models(self) -> list[str]:
        """The names of the models that the server lists. Raises InputError if it lists none, or does not answer."""
        try:
            with self._send("models") as response:
                names = [model["id"] for model in json.loads(response.read(LARGEST))["data"]]
            if names and all(isinstance(name, str) for name in names):
                return names
            found = "none"
        except urllib.error.HTTPError as error:
            found = self._refusal(error)
        except (OSError, http.client.HTTPException) as error:
            found = self._safe(str(getattr(error, "reason", error)) or type(error).__name__)
        except (ValueError, LookupError, TypeError):
            found = "no list of models"
        raise InputError(f"{self.url}: asked for its models, found {found}; expected a server with OpenAI's interface")

    def _body(self, messages: list[dict]) -> dict:
        return {
            "model": self.model,
            "messages": messages,
            "temperature": self.temperature,
            "max_tokens": self.max_new_tokens,
            "seed": self.seed,
        }

    def _send(self, what: str, body: dict | None = None) -> http.client.HTTPResponse:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{what}", data, headers)
        return _opener(self.url).open(request, timeout=self.timeout)

    def _piece(self, content: bytes) -> tuple[str, str | None]:
        expected = "choices[0].delta.content"
        value = self._parsed(content, "piece", expected)
        try:
            if not value.get("choices"):  # the last piece may hold the usage alone
                return "", None
            choice = value["choices"][0]
            text = (choice.get("delta") or {}).get("content") or ""
            return text.encode("utf-8", "replace").decode(), choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError):
            raise self._strange(content, "piece", expected) from None

    def _once(self, body: dict) -> dict:
        with self._send("chat/completions", body) as response:
            return self._whole(response.read(LARGEST))

    def _whole(self, content: bytes) -> dict:
        """A reply that came as a whole."""
        expected = "a chat completion: choices[0].message.content"
        value = self._parsed(content, "reply", expected)
        try:
            choice, usage = value["choices"][0], value.get("usage") or {}
            self._check_told(choice, "reply")
            finish, message = choice.get("finish_reason"), choice["message"]
            if finish == "content_filter" and not (message or {}).get("content"):
                raise self._told("found no text in its reply", finish)
            text = message.get("content") or ""
            if not isinstance(text, str):
                raise TypeError
        except (LookupError, TypeError, AttributeError):
            raise self._strange(content, "reply", expected) from None
        counts = {key: usage.get(key) for key in ("prompt_tokens", "completion_tokens")}
        return {
            "text": text.encode("utf-8", "replace").decode(),  # JSON may hold half a surrogate pair
            "finish": finish,
            **{key: count if isinstance(count, int) else None for key, count in counts.items()},
        }

    def _parsed(self, content: bytes, what: str, expected: str) -> dict:
        """The object in `content`. Raises InputError for what is none, and for an error that the server tells in it."""
        try:
            value = json.loads(content)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise self._strange(content, what, expected)
        self._check_told(value, what)
        return value

    def _check_told(self, value: dict, what: str) -> None:
        """Raise `_Told` for an error in a reply, or in the choice of one."""
        if told := value.get("error"):  # some servers write "error": null beside a text
            code = str(told.get("code") if isinstance(told, dict) else None)
            found = f"found an error in place of a {what}"
            raise self._told(found, _message(told), int(code) if code.isdecimal() else None)

    def _told(self, found: str, said: str, code: int | None = None) -> _Told:
        reason = f"{found} ({self._safe(said)})"
        return _Told(f"{self.url}: {reason}", reason, code)

    def _strange(self, content: bytes, what: str, expected: str) -> InputError:
        found = shorten(self._hidden(content.decode("utf-8", "replace")))
        return InputError(f"{self.url}: found the {what} {printable(found)}; expected {expected}")

    def _refusal(self, error: urllib.error.HTTPError) -> str:
        """What a server says that does not reply, on one line."""
        try:
            said = error.read(LARGEST).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            said = ""
        with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
            said = _message(json.loads(said)["error"])
        return f"HTTP {error.code} {self._safe(str(error.reason))}" + (f" ({self._safe(said)})" if said else "")

    def _safe(self, text: str) -> str:
        """The beginning of a server's `text`, on one line and without the key."""
        return printable(" ".join(self._hidden(text).split())[:200])

    def _hidden(self, text: str) -> str:
        """`text` without the key, which servers may repeat in their refusals: before it is truncated, or half would stay."""
        return without_key(text, self.key)


def without_key(text: str, key: str) -> str:
    """`text` with "[key]" in the place of the key; "" is none."""
    return text.replace(key, "[key]") if key else text


def _message(error) -> str:
    """What a reply says under "error": a message, or an object with one."""
    return str(error.get("message") or error if isinstance(error, dict) else error)


def _opener(url: str) -> urllib.request.OpenerDirector:
    """What sends the requests: without redirects, and without a proxy to this machine itself."""
    local = urllib.parse.urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1")
    return urllib.request.build_opener(_NoRedirect, *([urllib.request.ProxyHandler({})] if local else []))


def check_url(url: str, variable: str = "--api_key_env") -> None:
    """Raise InputError for an address that no request can be sent to, and for one that holds a password.

    Args:
        variable: what names the environment variable with the key, or its own name.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True) and " " not in url
    except ValueError:
        good, parts = False, None
    if parts and (parts.username or parts.password):
        raise InputError(f"--url: found a password in it; expected the key in an environment variable ({variable})")
    if not good or parts.query or parts.fragment:
        found = "--url" if "@" in url else f"--url {shorten(url)}"  # before an @ may stand a password
        raise InputError(f"{found}: expected an address such as http://127.0.0.1:8000/v1")


def key_from(variable: str) -> str:
    """The key in an environment variable, "" if there is none: a server of one's own needs none."""
    key = os.environ.get(variable, "").strip()
    if not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{variable}: the environment variable holds no key: it has characters that no key has")
    return key
