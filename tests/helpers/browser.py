"""A page in a real browser: Debian's chromium, driven by Playwright, that notes what it asked for and what ran in it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@contextlib.contextmanager
def browser() -> Iterator:
    """Playwright's browser; skips the test, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="the browser is driven by playwright (extra test)")
    if CHROMIUM is None:
        pytest.skip("no chromium on the PATH")
    with api.sync_playwright() as playwright:
        own = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield own
        own.close()


@contextlib.contextmanager
def opened(own, address: str, size: dict = DESKTOP, **context) -> Iterator:
    """A page of `own`; at its end nothing has run, failed or been asked of another host, and nothing was too wide."""
    seen = own.new_context(viewport=size, **context)
    page, foreign, wrong = seen.new_page(), [], []
    page.on("request", lambda request: foreign.append(request.url) if not request.url.startswith(address) else None)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(address)
    yield page
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []
    assert wrong == [] and page.evaluate("window.taken") is None
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    seen.close()


def screenshot(page, name: str, folder: Path) -> None:
    """A picture of the page in the folder that SCREENSHOTS names, else in that of the test."""
    folder = Path(os.environ.get("SCREENSHOTS", folder))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
