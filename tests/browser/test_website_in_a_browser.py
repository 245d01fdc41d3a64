"""The website in a browser: pages load without an error and without asking another host, in both themes, on a
desk and on a phone; its search finds.
"""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser_fixtures import browser
from chromium_here import Watched
from legible import contrasts
from themes import LEGIBLE

assert browser  # a fixture

BOOK = Path(__file__).resolve().parents[2] / "build" / "book"
# a window of a laptop, and of a phone; each theme once
WINDOWS = [(1280, "dark"), (390, "light")]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words):
        pass


@pytest.fixture(scope="module")
def book(browser):
    """The address of the website. Where it is not built, a test is skipped."""
    if not (BOOK / "index.html").exists():
        pytest.skip("the website is not built (make book)")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=BOOK))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def pages() -> list[str]:
    """The first page, and one or two of each kind."""
    found = sorted(path.relative_to(BOOK).as_posix() for path in BOOK.rglob("*.html"))
    ends = ("_start_here", "_pipeline_schedules", "scripts/start_here", "api/theory", "api/demo")
    ends += ("symptoms", "faults", "try")
    return ["index.html", *(next(page for page in found if page.endswith(f"{end}.html")) for end in ends)]


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_a_chapter_can_be_read_without_javascript(browser, book, theme):
    settings = {
        "viewport": {"width": 390, "height": 900},
        "color_scheme": theme,
        "java_script_enabled": False,
    }
    with Watched(browser, **settings) as watched:
        for name in pages()[:3]:
            watched.page.goto(f"{book}/{name}", wait_until="load")
            text = contrasts(watched.page.locator("article").first)
            assert len(text) > 50 and text[0][0] >= LEGIBLE, (name, theme, text[:3])


@pytest.mark.parametrize("width, theme", WINDOWS)
def test_pages_load_without_an_error_and_without_another_host(browser, book, width, theme):
    settings = {"viewport": {"width": width, "height": 900}, "color_scheme": theme}
    with Watched(browser, **settings) as watched:
        for name in pages():
            watched.page.goto(f"{book}/{name}", wait_until="load")
            watched.page.wait_for_load_state("networkidle")
            assert watched.errors == [], name
            assert watched.hosts == {book.removeprefix("http://")}, name
            wide = watched.page.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{name} is {wide} pixels wide on a window of {width}"
            watched.page.screenshot(path=watched.keep(f"website_{theme}_{width}") / f"{Path(name).stem}.png")
            dim = [text for text in contrasts(watched.page.locator("article").first) if text[0] < LEGIBLE]
            assert dim == [], f"{name}, {theme}"


def test_the_search_finds_a_name(browser, book):
    with Watched(browser) as watched:
        watched.page.goto(f"{book}/search.html?q=all_gather")
        found = watched.page.locator("#search-results li a")
        found.first.wait_for()
        assert any("collectives" in (link.get_attribute("href") or "") for link in found.all())
        assert watched.errors == [] and watched.hosts == {book.removeprefix("http://")}
