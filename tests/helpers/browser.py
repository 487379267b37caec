"""A real browser for the pages: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


@contextmanager
def browser() -> Iterator:
    """Playwright's browser; the test is skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if not BROWSER:
        pytest.skip("there is no Chromium or Chrome on the PATH")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


def keep_screenshot(page, name: str, otherwise: Path) -> None:
    """A picture of a page, in the folder that GPT_RECIPES_SCREENSHOTS names, or in `otherwise`."""
    folder = Path(os.environ.get("GPT_RECIPES_SCREENSHOTS", otherwise))
    folder.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=folder / f"{name}.png")
