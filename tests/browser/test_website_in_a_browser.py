"""The website in a browser: pages load without an error and without asking another host, in both themes, on a
desk and on a phone; its search finds.
"""

import functools
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote_plus

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


def test_moving_pictures_play(browser, book):
    (name,) = [path.name for path in BOOK.glob("notebooks/*_collectives_and_the_ring.html")]
    with Watched(browser) as watched:
        watched.page.goto(f"{book}/notebooks/{name}", wait_until="load")
        figure = watched.page.locator("article figure:has(input[type=range])").first
        last = int(figure.locator("input").get_attribute("max"))
        figure.get_by_role("button", name="Play").click()
        shown: list[str] = []  # the words of each picture that was seen, in turn
        while len(shown) <= last:
            drawn = figure.evaluate(
                "figure => [...figure.querySelectorAll('img')].filter(picture => "
                "picture.checkVisibility() && picture.naturalWidth).map(picture => picture.alt)"
            )
            assert len(drawn) == 1
            shown += [words for words in drawn if shown[-1:] != [words]]
            figure.get_by_role("button", name="Play" if len(shown) > last else "Stop").wait_for()
        assert len(set(shown)) == last + 1 > 2 and watched.errors == []


@pytest.mark.parametrize(
    "words, first",
    [
        ("all_gather", r"api/.*\.all_gather$"),  # a name of the library
        ("ring", r"notebooks/\d+_collectives_and_the_ring"),  # in a chapter's title
        ("hang", r"notebooks/\d|docs/symptoms"),  # and not "exchange"
        ("deadlock", r"notebooks/\d+_start_here"),
        ("gradient accumulation", r"notebooks/\d"),
    ],
)
def test_the_search_finds_what_a_learner_looks_for(browser, book, words, first):
    with Watched(browser) as watched:
        watched.page.goto(f"{book}/search.html?q={quote_plus(words)}")
        watched.page.get_by_text("Search finished").wait_for()
        found = [link.get_attribute("href") for link in watched.page.locator("#search-results li a").all()]
        assert re.search(first, found[0].partition("?")[0]), found[:5]
        assert watched.errors == [] and watched.hosts == {book.removeprefix("http://")}
