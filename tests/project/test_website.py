"""The website has a page for all that the project offers, and its links lead somewhere: from its sources."""

import importlib
import inspect
import json
import posixpath
import re
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from chapter_code import modules_of_chapters
from chapters import last_sentence
from links import with_links
from packaging.requirements import Requirement
from pages import all_pages, main
from project import page_of, parts
from reference import public_names

ROOT = Path(__file__).resolve().parents[2]
WEBSITE = ROOT / "docs" / "website"
REPOSITORY = "https://github.com/somebody/course"
CHAPTERS = sorted(path.name for path in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def pages() -> dict:
    return all_pages()


def texts_of(file: str, content) -> list[str]:
    """The Markdown of a page."""
    if file.endswith(".md"):
        return [content]
    if not file.endswith(".ipynb") or file.startswith("downloads/"):
        return []
    return [cell["source"] for cell in json.loads(content)["cells"] if cell["cell_type"] == "markdown"]


def test_each_chapter_is_in_one_part_in_reading_order():
    assert [chapter.file for part in parts().values() for chapter in part] == CHAPTERS
    assert list(parts())[0].startswith("Part I: ") and len(parts()) == 5


def test_parts_that_forget_a_chapter_are_refused(tmp_path):
    for name in ("README.md", "docs/design.md", *(f"notebooks/{name}" for name in CHAPTERS[1:])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    with pytest.raises(ValueError, match="do not have the same chapters"):
        parts(tmp_path)


def test_each_chapter_each_solution_and_each_script_has_a_page_that_is_listed(pages):
    listed = "\n".join(text for file, text in pages.items() if file.endswith("index.md"))
    for name in CHAPTERS:
        assert f"<notebooks/{name[:-6]}>" in listed and f"<{name[:-6]}>" in listed
        assert {f"notebooks/{name}", f"notebooks/solutions/{name}", f"downloads/{name}"} <= set(pages)
        assert pages[f"downloads/{name}"] == (ROOT / "notebooks" / name).read_bytes()
    for path in (ROOT / "notebooks" / "scripts").iterdir():
        if path.suffix in (".py", ".sbatch"):
            assert path.read_text(encoding="utf-8").rstrip() in pages[f"notebooks/scripts/{path.stem}.md"]
            assert f"[{path.name}]({path.stem}.md)" in listed and f"\n{path.stem}\n" in listed


def test_each_text_in_docs_has_a_page_that_is_listed(pages):
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.name}" in pages and f"<docs/{path.stem}>" in pages["index.md"]


def test_each_public_name_is_in_the_reference_once(pages):
    reference = "\n".join(text for file, text in pages.items() if file.startswith("api/"))
    described = re.findall(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)$", reference, re.MULTILINE)
    assert len(described) == len(set(described)) > 500
    names = public_names()
    homes = defaultdict(set)
    for module, its in names.items():
        for name, found in its.items():
            homes[found].add(f"{module}.{name}")
    assert not [found for found, where in homes.items() if len(where & set(described)) != 1]
    for module in ["course_lib", *modules_of_chapters()]:
        loaded = importlib.import_module(module)
        offered = {
            name for name in getattr(loaded, "__all__", ()) if not inspect.ismodule(getattr(loaded, name))
        }
        assert offered <= set(names.get(module, ())), module


def test_what_a_name_is_was_read_rightly():
    names = public_names()
    assert names["course_lib"]["run"] == names["course_lib.jobs"]["run"]
    assert names["course_lib"]["run"].kind == "function"
    assert names["course_lib"]["Job"].kind == "class"
    assert names["course_lib.plots"]["timeline"].module == "course_lib.plots.lanes"
    assert names["course_lib.check"]["own_ddp"].module == "course_lib.check.ddp"
    assert names["course_lib.plots"]["COLORS"].kind == "data"


def test_no_link_leads_nowhere(pages):
    for file, content in pages.items():
        for text in texts_of(file, content):
            text = re.sub(r"^```.*?^```|`[^`\n]+`(?!\])", "", text, flags=re.MULTILINE | re.DOTALL)
            for target in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", text):
                assert posixpath.normpath(posixpath.join(posixpath.dirname(file), target)) in pages, (
                    file,
                    target,
                )


def test_each_figure_says_in_words_what_it_shows(pages):
    seen = 0
    for file, content in pages.items():
        if file.startswith("notebooks/") and file.endswith(".ipynb"):
            for cell in json.loads(content)["cells"]:
                for output in cell.get("outputs", []):
                    if "image/png" in output.get("data", {}):
                        seen += 1
                        assert len(output["metadata"]["image/png"]["alt"]) > 10, file
    assert seen > 150


def test_the_sentence_that_announces_a_figure():
    text = "A first one. In the picture, look at `a` and [the next](01_b.ipynb), $x$:"
    assert last_sentence(text) == "In the picture, look at a and the next, x:"


def test_a_solved_chapter_is_told_from_its_chapter_and_not_found_twice(pages):
    solved, chapter = (json.loads(pages[f"notebooks/{way}{CHAPTERS[0]}"]) for way in ("solutions/", ""))
    assert solved["metadata"]["nosearch"] and "nosearch" not in chapter["metadata"]
    assert "(solved)" in solved["cells"][0]["source"].partition("\n")[0]
    assert "(solved)" not in chapter["cells"][0]["source"].partition("\n")[0]


@pytest.mark.parametrize(
    "text, known, unknown",
    [
        ("[chapter](04_ddp.ipynb)", "[chapter](04_ddp.ipynb)", "[chapter](04_ddp.ipynb)"),
        (
            "[all](../README.md#the-chapters)",
            "[all](../index.md#the-chapters)",
            "[all](../index.md#the-chapters)",
        ),
        ("[it](../Makefile)", f"[it]({REPOSITORY}/blob/HEAD/Makefile)", "it"),
        ("[there](https://arxiv.org)", "[there](https://arxiv.org)", "[there](https://arxiv.org)"),
        ("see `course_lib/mini/ddp`", "see [`course_lib/mini/ddp`](../api/mini.ddp.rst)", None),
        ("see `course_lib/theory.py`", "see [`course_lib/theory.py`](../api/theory.rst)", None),
        (
            "`tests/conftest.py`",
            f"[`tests/conftest.py`]({REPOSITORY}/blob/HEAD/tests/conftest.py)",
            "`tests/conftest.py`",
        ),
        ("`course_lib/no_such.py`", "`course_lib/no_such.py`", "`course_lib/no_such.py`"),
        ("# `course_lib/theory.py`", "# `course_lib/theory.py`", "# `course_lib/theory.py`"),
        ("```\n[it](../Makefile)\n```", "```\n[it](../Makefile)\n```", "```\n[it](../Makefile)\n```"),
    ],
)
def test_links_lead_to_pages_or_to_a_repository_that_is_known(text, known, unknown):
    assert with_links(text, "notebooks/03_x.ipynb", REPOSITORY) == known
    assert with_links(text, "notebooks/03_x.ipynb") == (known if unknown is None else unknown)


def test_files_have_the_pages_that_show_them():
    assert page_of("README.md") == "index.md"
    assert page_of("course_lib/mini/ring/halves.py") == "api/mini.ring.rst"
    assert page_of("course_lib/measure/ledger.py") == "api/measure.rst"
    assert page_of("notebooks/scripts/ddp.py") == "notebooks/scripts/ddp.md"
    assert page_of("pyproject.toml") is None and page_of("course_lib/no_such.py") is None


def test_without_a_repository_nothing_leads_to_one(pages):
    written = "\n".join(text for file, content in pages.items() for text in texts_of(file, content))
    assert "/blob/HEAD/" not in written and "mybinder.org/v2" not in written
    others = all_pages(REPOSITORY)
    for name in CHAPTERS:
        first = json.loads(others[f"notebooks/{name}"])["cells"][0]["source"]
        assert f"https://mybinder.org/v2/gh/somebody/course/HEAD?urlpath=lab/tree/desk/{name}" in first
    for page in ("index.md", "try.md"):  # the course opens where a learner begins
        assert f"urlpath=lab/tree/desk/{CHAPTERS[0]})" in others[page]
    assert f"git clone {REPOSITORY} course" in others["try.md"]


def test_a_page_that_has_not_changed_is_not_written_again(tmp_path):
    main([str(tmp_path)])
    (tmp_path / "gone.md").write_text("of an earlier build")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    (tmp_path / "try.md").write_text("changed")
    main([str(tmp_path)])
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.name for path in before if after.get(path) != before[path]} == {"try.md", "gone.md"}


def test_the_settings_use_what_the_extra_installs_and_nothing_is_run():
    settings = (WEBSITE / "conf.py").read_text(encoding="utf-8")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in extras["optional-dependencies"]["book"]:
        name = Requirement(line).name
        assert re.search(rf"\b{name.replace('-', '[-_]')}\b", settings), f"nothing uses {name}"
    assert 'nb_execution_mode = "off"' in settings and "://" not in re.sub("#.*", "", settings)


def test_docstrings_become_what_docutils_reads():
    pytest.importorskip("sphinx", reason="`make book` installs it")
    from docstrings import as_restructured

    text = """Do `it`s work.

    x = 1

Args:
    a: one `b` thing.

Errors: ValueError where
    it is wrong.

busy: in *spans*.
length: of all,
    in seconds.

a.py   one
b.py   two"""
    wanted = """Do ``it``\\ s work.

::

    x = 1

Args:
    a: one ``b`` thing.

Errors:
    ValueError where
    it is wrong.

- **busy**: in \\*spans\\*.
- **length**: of all,
  in seconds.

::

    a.py   one
    b.py   two
"""
    assert as_restructured(text.splitlines()) == wanted.splitlines() + [""]
