"""A real Chromium for the tests of this folder, and what one can look at when such a test has failed."""

import contextlib
import importlib.util
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DEADLINE_S", "Watched", "chromium", "missing"]

DEADLINE_S = 600  # for whatever one waits for: the machine may be busy with much else
_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_KEPT = Path(__file__).resolve().parents[2] / "build" / "browser"


def missing() -> str:
    """Why there can be no browser; empty where there can be one."""
    if importlib.util.find_spec("playwright") is None:
        return "the extra `browser` is not installed (playwright)"
    return "" if _program() else f"none of {', '.join(_PROGRAMS)} is installed"


def _program() -> str | None:
    """Of the system: the browser that playwright would download is not needed."""
    named = os.environ.get("CHROMIUM")
    return named or next(filter(None, map(shutil.which, _PROGRAMS)), None)


@contextlib.contextmanager
def chromium() -> Iterator:
    """Playwright's Browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=_program(), timeout=DEADLINE_S * 1000)
        try:
            yield browser
        finally:
            browser.close()


class Watched:
    """A page, with what its console and its network have told. With `with`: an error names the folder where
    one can look at it, and the page is closed.

    Attributes:
        page: playwright's Page.
        errors: lines of errors, of the console or raised in the page.
        hosts: of whom the page has asked something.
    """

    def __init__(self, browser, **context):
        self._context = browser.new_context(**context)
        self.page = self._context.new_page()
        self.page.set_default_timeout(DEADLINE_S * 1000)
        self.errors: list[str] = []
        self.hosts: set[str] = set()
        self._console: list[str] = []
        self.page.on("console", lambda told: self._tell(told.type, told.text))
        self.page.on("pageerror", lambda error: self._tell("error", str(error)))
        self.page.on("requestfailed", lambda request: self._tell("request failed", request.url))
        self.page.on("request", lambda request: self._ask(request.url))

    def _tell(self, kind: str, text: str) -> None:
        self._console.append(f"{kind}: {text}")
        if kind == "error":
            self.errors.append(text)

    def _ask(self, url: str) -> None:
        if host := re.match(r"\w+://([^/]+)", url):
            self.hosts.add(host[1])

    def keep(self, name: str) -> Path:
        """Write down how the page looks now, and its console; return the folder."""
        folder = _KEPT / re.sub(r"\W+", "_", name)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "console.txt").write_text("\n".join(self._console) + "\n", encoding="utf-8")
        with contextlib.suppress(Exception):  # a page that has ended, say: the failure itself is told
            self.page.screenshot(path=folder / "page.png", timeout=60_000)
            (folder / "page.html").write_text(self.page.content(), encoding="utf-8")
        return folder

    def note(self, error: BaseException, name: str) -> None:
        """Let an error name the folder."""
        error.add_note(f"How the page looked, and its console: {self.keep(name)}")

    def __enter__(self) -> "Watched":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if error is not None:
            self.note(error, self.page.url)
        self._context.close()
