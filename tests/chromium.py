"""Pages in a real browser: what they complain about, what they ask for, what they show."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

__all__ = ["WIDTHS", "Tab", "browser"]

WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, or a skip. Of a module: while it is open, a loop runs in this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: extra dev")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no chromium on this machine")
    as_root = ["--no-sandbox"] if os.geteuid() == 0 else []
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=program, args=as_root)
        yield opened
        opened.close()


class Tab:
    """A page, what its console said against it, and the addresses that it asked."""

    def __init__(self, browser: Any, *, width: int = 1280, offline: bool = False) -> None:
        size = {"width": width, "height": 850}
        self.context = browser.new_context(viewport=size, offline=offline)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def _console(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(message.text)

    def fits(self) -> bool:
        """Whether nothing is wider than the screen."""
        shown = self.page.evaluate("document.documentElement.scrollWidth")
        return bool(shown <= self.page.viewport_size["width"])

    def texts(self, selector: str) -> list[str]:
        """Of all that it matches."""
        return list(self.page.locator(selector).all_inner_texts())
