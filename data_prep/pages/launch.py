"""What the pages in a browser share: where they are served and to whom, that nothing leaves the machine, text as text, style.

A page is served on 127.0.0.1; anywhere else only behind a login. It asks no other host for anything: Gradio's analytics are
off, the fonts are the system's, and a Content-Security-Policy makes the browser refuse what Gradio or a model's text might
still ask for. Requests that another site's page sends from the user's browser are refused.

    parser = argparse.ArgumentParser(...); add_page_options(parser)
    check_page_options(arguments)                       # before anything loads
    with page("Chat") as blocks: ...                    # Gradio's Blocks
    serve(blocks, arguments, css="…", js="() => {…}")   # until Ctrl-C
"""

import html
import importlib.util
import ipaddress
import os
import socket
import threading
from urllib.parse import urlsplit

from data_prep.common.errors import InputError
from data_prep.common.text import printable
from data_prep.pages.logins import add_login_options, logins_of
from data_prep.pages.words import LANGUAGES, in_language

FIRST_PORT = 7860
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "sans-serif")
MONOSPACED_FONTS = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# Gradio's own scripts stand in the page and build functions from templates.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
# `.text` is what people and models wrote: each line in its own direction, nothing wider than the page.
STYLE = """
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; text-align: start; }
.quiet { color: var(--neutral-600); }
.dark .quiet { color: var(--neutral-400); }
.gradio-container { --block-info-text-color: var(--neutral-500); }
.dark .gradio-container { --block-info-text-color: var(--neutral-400); }
gradio-app, .gradio-container, .gradio-container .main, .gradio-container .wrap, main { width: 100%; }
.gradio-container { max-width: 76rem !important; margin: 0 auto !important; }
.gradio-container * { min-width: 0; }
:focus-visible { outline: 2px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) { .gradio-container main { padding: 0.5rem !important; } }
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""


def add_page_options(parser) -> None:
    """The options that every page has."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to serve on; another one needs a login (default: 127.0.0.1)"
    )
    parser.add_argument("--port", type=int, help=f"port (default: the first free one from {FIRST_PORT} on)")
    add_login_options(parser)
    parser.add_argument("--language", choices=LANGUAGES, default="en", help="language of the page (default: en)")


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_page_options(arguments) -> None:
    """Raise InputError for a page that cannot be served so, or that others could open without a login."""
    if importlib.util.find_spec("gradio") is None:
        raise InputError("the page needs gradio: pip install -e '.[pages]'")
    host, port = arguments.host, arguments.port
    if port is not None and not 0 < port < 65536:
        raise InputError(f"--port {port}: expected 1 to 65535")
    if not logins_of(arguments) and not is_loopback(host):
        raise InputError(
            f"--host {host}: others can open the page there, so it needs a login; give --logins FILE, or --username NAME "
            f"and set the environment variable {arguments.password_env} to a password"
        )
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except (OSError, UnicodeError) as error:
        named = f"--host {host}" + (f" --port {port}" if port else "")
        raise InputError(
            f"{named}: no page can be served there ({getattr(error, 'strerror', None) or error})"
        ) from None


def text_html(text: str, kind: str = "") -> str:
    """A text that somebody or a model wrote, as HTML: escaped, with codes for control characters, in its own direction."""
    return f'<div class="text {kind}" dir="auto">{html.escape(printable(text))}</div>'


class Guard:
    """ASGI middleware: no request of another site's page, nor under another host's name; the policy on every response.

    A name that an attacker's DNS resolves to 127.0.0.1 would otherwise reach a page that has no login, and Gradio lets any
    origin read what it answers where it is not served as localhost.
    """

    def __init__(self, app, local: bool) -> None:
        self.app, self.local = app, local

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        known = {host, headers.get("x-forwarded-host", host)}
        if (self.local and not is_loopback(_hostname(f"//{host}"))) or (
            origin and urlsplit(origin).netloc not in known
        ):
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"refused: the request comes from another site"})
            return

        async def with_policy(message) -> None:
            if message["type"] == "http.response.start":
                added = {
                    "content-security-policy": POLICY,
                    "referrer-policy": "no-referrer",
                    "x-content-type-options": "nosniff",
                }
                message["headers"] = [
                    *message["headers"],
                    *((key.encode(), value.encode()) for key, value in added.items()),
                ]
            await send(message)

        await self.app(scope, receive, with_policy)


def _hostname(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def page(title: str):
    """Gradio's Blocks, to be filled, without its analytics."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported
    import gradio

    return gradio.Blocks(title=title, analytics_enabled=False)


def start(blocks, arguments, css: str = "", js: str | None = None) -> str:
    """Serve `blocks` from a thread of its own; returns the address. `blocks.close()` ends it."""
    import gradio
    import matplotlib.pyplot  # noqa: F401  Gradio imports it at the first click, which would wait two seconds
    from starlette.middleware import Middleware

    local = is_loopback(arguments.host)
    own = f"127.0.0.1,localhost,::1,{arguments.host}"  # Gradio asks itself whether it runs: not through a proxy
    for variable in ("no_proxy", "NO_PROXY"):
        os.environ[variable] = ",".join(filter(None, (os.environ.get(variable), own)))
    theme = gradio.themes.Default(font=SYSTEM_FONTS, font_mono=MONOSPACED_FONTS)
    logins = logins_of(arguments)
    blocks.launch(
        server_name=arguments.host,
        server_port=arguments.port,
        auth=logins or None,
        auth_message=in_language({}, arguments.language).login if logins else None,
        app_kwargs={"middleware": [Middleware(Guard, local=local)], "docs_url": None, "redoc_url": None},
        theme=theme,
        css=STYLE + css,
        js=js,
        footer_links=[],
        share=False,
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        num_workers=0,
        enable_monitoring=False,
        strict_cors=True,
        quiet=True,
        prevent_thread_lock=True,
    )
    return f"http://{'localhost' if arguments.host in ('0.0.0.0', '::') else blocks.server_name}:{blocks.server_port}/"


def serve(blocks, arguments, css: str = "", js: str | None = None) -> None:
    """Serve `blocks` until Ctrl-C, and say where."""
    address = start(blocks, arguments, css, js)
    print(f"the page: {address} (Ctrl-C ends it)", flush=True)
    if not is_loopback(arguments.host):
        print(
            "it is not encrypted: reach it through an SSH tunnel, or put a server with TLS in front of it", flush=True
        )
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("\n(the page is closed)")
    finally:
        blocks.close(verbose=False)
