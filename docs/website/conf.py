"""Settings of the website, for Sphinx: `make book`."""

import importlib.util
import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]
MATHJAX = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent / "static" / "mathjax"

project = html_title = "Learn distributed training by running it"
author = "the course authors"
language = "en"
# The address of the repository, as https://github.com/OWNER/NAME: without it nothing links there.
repository = os.environ.get("REPOSITORY", "").rstrip("/")

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx.ext.mathjax",
    "docstrings",
    "outputs",
]
exclude_patterns = ["downloads"]
smartquotes = False
highlight_language = "text"  # of what names none: drawings, tables, what one types
toc_object_entries_show_parents = "hide"

# Chapters are shown as they are stored.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # else fetched from another host
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

# The library, from its docstrings.
default_role = "literal"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
napoleon_use_ivar = True
napoleon_use_rtype = False
suppress_warnings = ["ref.python"]  # two classes have one name, and an annotation does not say which
napoleon_custom_sections = ["Errors", "Source", "Sources"]
viewcode_line_numbers = True

html_theme = "sphinx_book_theme"
html_theme_options = {
    "home_page_in_toc": True,
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "repository_url": repository,
    "use_repository_button": bool(repository),
    "use_issues_button": bool(repository),
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
# Pages of source code stand in no list, and to lay the list of all pages beside each takes half of the build.
html_sidebars = {"_modules/**": ["navbar-logo.html", "search-button-field.html"]}
html_context = {"default_mode": "auto"}  # dark where the reader's system is
html_favicon = str(HERE / "static" / "ring.svg")
html_static_path = [str(HERE / "static")]
html_css_files = ["website.css"]
html_search_scorer = str(HERE / "scorer.js")
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

# Formulas without a request to another host.
mathjax_path = "mathjax/tex-chtml.js"


def setup(app):
    app.connect("builder-inited", _copy_mathjax)


def _copy_mathjax(app):
    from sphinx.util.fileutil import copy_asset

    into = Path(app.outdir) / "_static" / "mathjax"
    for part in ("tex-chtml.js", "output/chtml/fonts/woff-v2"):
        copy_asset(MATHJAX / part, (into / part).parent if part.endswith(".js") else into / part)
