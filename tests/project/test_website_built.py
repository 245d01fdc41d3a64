"""The website as it is built: no warning, no request to another host, words for each figure.

Slow, and only where what `make book` installs is here.
"""

import importlib.util
import os
import posixpath
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from project import parts

ROOT = Path(__file__).resolve().parents[2]
MISSING = [
    name
    for name in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx-mathjax-offline")
    if importlib.util.find_spec(name) is None
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"`make book` installs what is missing: {MISSING}")
LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
POINTS = {"canonical", "next", "prev", "index", "search", "author", "license", "genindex"}  # rel of a link


def page_of_chapter(name: str) -> str:
    """Without the ending of its file."""
    (file,) = [chapter.file for part in parts().values() for chapter in part if chapter.name == name]
    return f"notebooks/{Path(file).stem}"


class Page(HTMLParser):
    """What a page loads, where it leads, its anchors, and its pictures."""

    def __init__(self, text: str):
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.pictures: list[dict] = []
        self.styles = " ".join(re.findall(r"<style[^>]*>(.*?)</style>", text, re.DOTALL))
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        its = dict(attributes)
        self.anchors |= {its[key] for key in ("id", "name") if its.get(key)}
        if tag == "a" and its.get("href"):
            self.links.append(its["href"])
        if tag == "img":
            self.pictures.append(its)
        if tag in LOADS and its.get(LOADS[tag]) and not (tag == "link" and its.get("rel") in POINTS):
            self.loads.append(its[LOADS[tag]])


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The website, built with every warning an error; WEBSITE names one that `make book` has built so."""
    if built := os.environ.get("WEBSITE"):
        return Path(built)
    folder = tmp_path_factory.mktemp("website")
    python = [sys.executable]
    website = ROOT / "docs" / "website"
    environ = os.environ | {"REPOSITORY": "", "PYTHONPATH": str(ROOT)}
    for command in (
        [*python, website / "pages.py", folder / "pages"],
        [*python, "-m", "sphinx", "-W", "--keep-going", "-q", "-j", "2", "-c", website]
        + ["-d", folder / "read", folder / "pages", folder / "book"],
    ):
        done = subprocess.run(list(map(str, command)), env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-5000:]
    return folder / "book"


@pytest.fixture(scope="module")
def pages(site) -> dict[str, Page]:
    files = [path for path in site.rglob("*.html") if "_static" not in path.parts]
    return {str(path.relative_to(site)): Page(path.read_text(encoding="utf-8")) for path in files}


def test_no_page_loads_anything_from_another_host(site, pages):
    for name, page in pages.items():
        for address in page.loads:
            assert address.startswith("data:") or not urlsplit(address).netloc, (name, address)
        assert not re.search(r"url\([\"']?(https?:)?//|@import", page.styles), name
    for path in [*site.rglob("*.css")]:
        style = path.read_text(encoding="utf-8", errors="ignore")
        assert not re.search(r"url\([\"']?(https?:)?//|@import +(url\()?[\"']?https?:", style), path


def test_what_pages_load_and_lead_to_is_there(site, pages):
    for name, page in pages.items():
        for address in [*page.loads, *page.links]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            assert (site / target).exists(), (name, address)
            if name.startswith("_modules/"):
                continue  # source leads back to where a name is defined; some are described elsewhere
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, (name, address)


def test_each_figure_has_its_words(pages):
    figures = 0
    for name, page in pages.items():
        for picture in page.pictures:
            assert picture.get("alt"), (name, picture.get("src"))
            if name.startswith("notebooks/") and "_images" in picture["src"]:
                figures += 1
                assert not re.match(r"[./]*_images/", picture["alt"]), name  # Sphinx's stopgap: the address
    assert figures > 150


def test_each_page_lists_every_chapter(pages):
    chapters = [chapter for part in parts().values() for chapter in part]
    for name, page in pages.items():
        if name.startswith(("notebooks/", "docs/", "api/")) or name == "index.html":
            known = {posixpath.normpath(posixpath.join(posixpath.dirname(name), link)) for link in page.links}
            for chapter in chapters:
                file = f"notebooks/{chapter.file[:-6]}.html"
                assert file in known or file == name, (name, file)


def test_each_chapter_can_be_downloaded_as_it_is(site, pages):
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        (link,) = [
            link
            for link in pages[f"notebooks/{path.stem}.html"].links
            if link.endswith(f"/{path.name}") and not urlsplit(link).netloc  # another leads to Binder
        ]
        assert (site / "notebooks" / link).read_bytes() == path.read_bytes()


def test_predictions_verdicts_and_moving_pictures_are_told_apart(site):
    first = (site / f"{page_of_chapter('start_here')}.html").read_text(encoding="utf-8")
    assert first.count('class="a-prediction') >= 3 and first.count("a-verdict") == 3 and "a-job" in first
    moving = site / f"{page_of_chapter('collectives_and_the_ring')}.html"
    assert "data:image/png;base64," in moving.read_text(encoding="utf-8")
