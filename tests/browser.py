"""Chromium for tests of the page, and for its pictures: Playwright's own, or the system's."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


class NoBrowser(Exception):
    """There is no Chromium here; the message says how to get one."""


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless Chromium, a Playwright `Browser`, for the time of a with block."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else next(filter(None, map(shutil.which, NAMES)), None)
        if path is None:
            raise NoBrowser(
                "needs Chromium: `playwright install chromium`, or the system's package"
            )
        # Its sandbox refuses to run as root.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()
