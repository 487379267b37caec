"""Who may open a page: one login that everybody shares, or a file with one for each person."""

import os

from data_prep.common.errors import InputError
from data_prep.common.text import printable
from data_prep.ranking.people import rater_name

SHORTEST_PASSWORD = 8


def add_login_options(parser) -> None:
    """`--logins`, `--username` and `--password_env`."""
    parser.add_argument(
        "--logins",
        metavar="FILE",
        help="file with a line name:password for each person who may open the page (default: no login)",
    )
    parser.add_argument("--username", help="name of one login that all share, instead of --logins (default: no login)")
    parser.add_argument(
        "--password_env",
        default="PAGE_PASSWORD",
        help="environment variable with the password of --username (default: PAGE_PASSWORD)",
    )


def logins_of(arguments) -> list[tuple[str, str]]:
    """[(name, password)] that may open the page, [] without a login. `InputError` for a login that cannot be used.

    A password stands on no command line, where everybody on the machine could read it, and in no error.
    """
    if arguments.logins is not None:
        if arguments.username is not None:
            raise InputError("--logins and --username: expected one of them")
        return _read(arguments.logins)
    if arguments.username is None:
        return []
    if not arguments.username.strip():
        raise InputError("--username: found no name; expected one")
    password = os.environ.get(arguments.password_env, "")
    if len(password) < SHORTEST_PASSWORD:
        raise InputError(
            f"--username {arguments.username}: expected a password of at least {SHORTEST_PASSWORD} characters in the "
            f"environment variable {arguments.password_env}"
        )
    return [(arguments.username.strip(), password)]


def _read(path: str) -> list[tuple[str, str]]:
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise InputError(f"--logins {path}: cannot be read ({reason})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, colon, password = line.partition(":")
        where = f"{path}: line {number}"
        if not colon:  # the whole line may be a password: it is not shown
            raise InputError(f"{where}: found no colon; expected name:password")
        try:
            name = rater_name(name)
        except ValueError as error:
            raise InputError(f"{where}: {error} before the colon") from None
        if name in found:
            raise InputError(f"{where}: found the name {printable(name)} again; expected each once")
        if len(password) < SHORTEST_PASSWORD:
            raise InputError(
                f"{where}: {name}: expected a password of at least {SHORTEST_PASSWORD} characters after the colon"
            )
        found[name] = password
    if not found:
        raise InputError(f"{path}: found no login; expected lines name:password")
    return list(found.items())


def logged_in(request) -> str | None:
    """The name of whoever has logged in, of a request that reached a server function of Gradio's.

    Gradio gives those the plain request, without the name that it gives to listeners; it is found here as there.
    """
    app = request.app
    cookies = (request.cookies.get(f"access-token-{kind}{app.cookie_id}") for kind in ("", "unsecure-"))
    return app.tokens.get(next(filter(None, cookies), None))
