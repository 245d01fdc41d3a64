"""Jobs in JupyterLab: whole chapters by Run All, a job that is interrupted, a kernel that is restarted, a
page that is closed while a job runs.
"""

import json
import re

import psutil
import pytest
from browser_fixtures import browser, lab, watched
from chromium_here import DEADLINE_S
from legible import contrasts
from notebook_page import NotebookPage, notebook
from themes import LEGIBLE, THEMES

assert browser and lab and watched  # fixtures

FIRST = "00_start_here.ipynb"
CHAPTERS = (FIRST, "01_one_training_step.ipynb", "04_ddp.ipynb")
SMALL = {
    "imports": (
        "import os\nimport time\nfrom pathlib import Path\n\nimport torch.distributed as dist\n\n"
        "from course_lib import measure, run"
    ),
    "hangs": (
        "def hangs(folder):\n    (folder / f'pid{dist.get_rank()}').write_text(str(os.getpid()))\n"
        "    time.sleep(10_000)\n\n\nrun(hangs, FOLDER, ranks=2, timeout=9_000)"
    ),
    "steps": (
        "def steps(folder):\n    (folder / f'pid{dist.get_rank()}').write_text(str(os.getpid()))\n"
        "    while not (folder / 'go').exists():\n        with measure.step():\n            time.sleep(0.1)\n"
        "    print('went on')\n\n\nrun(steps, FOLDER, ranks=2, timeout=9_000)"
    ),
    "after": "def works():\n    return 10 + dist.get_rank()\n\n\nprint(run(works, ranks=2).results)",
}


@pytest.fixture
def small(lab, watched, tmp_path):
    """A small notebook of the desk, with a cell whose ranks never end, and the folder where they tell their
    processes.
    """
    cells = {**SMALL, "imports": f"{SMALL['imports']}\n\nFOLDER = Path({str(tmp_path)!r})"}
    name = f"jobs_{tmp_path.name}.ipynb"
    notebook(lab.desk / name, lab.desk / FIRST, **cells)
    return NotebookPage(watched, f"desk/{name}").open()


def ranks_at_work(small: NotebookPage, folder, cell: str = "hangs") -> list[psutil.Process]:
    """Run a cell whose ranks do not end; its ranks, once both are at work."""
    small.run("imports")
    small.run(cell, wait=False)

    def told() -> list[int]:
        return [int(text) for path in folder.glob("pid*") if (text := path.read_text())]

    small.until(lambda: len(told()) == 2)
    return [psutil.Process(pid) for pid in told()]


def raised(chapter: NotebookPage, meant: set[str]) -> dict[str, str]:
    """Errors that are not meant, by their cells."""
    cells = chapter.cells().items()
    failed = [name for name, cell in cells if any(o["output_type"] == "error" for o in cell["outputs"])]
    return {name: chapter.text(name) for name in failed if name not in meant}


def test_whole_chapters_run_by_run_all_and_the_page_stays_usable(lab, watched):
    page = watched.page
    chapters = [NotebookPage(watched, f"desk/{name}") for name in CHAPTERS]
    for chapter in chapters:  # side by side: a rank that sleeps leaves its core to others
        chapter.open()
        chapter.go_to(next(iter(chapter.cells())))
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    for chapter in chapters:
        published = json.loads((lab.desk / chapter.path.removeprefix("desk/")).read_text(encoding="utf-8"))
        meant = {
            cell["id"]
            for cell in published["cells"]
            if "raises-exception" in cell["metadata"].get("tags", ())
        }
        chapter.until(lambda: raised(chapter, meant) or None not in chapter.counts().values())
        chapter.quiet()
        assert raised(chapter, meant) == {}, chapter.path
        # and one cell more, typed by hand
        first = next(iter(chapter.counts()))
        chapter.write(first, chapter.cells()[first]["text"] + "\nprint('one', 'more')")
        chapter.run(first)
        assert "one more" in chapter.text(first)
        chapter.save()
    assert page.get_by_role("dialog").count() == 0


@pytest.mark.parametrize("how", ["interrupted", "cancelled"])
def test_a_job_is_ended_by_keyboard_and_the_next_one_works(lab, small, tmp_path, how):
    ranks = ranks_at_work(small, tmp_path)
    if how == "interrupted":
        small.go_to("hangs")
        small.press("i", "i")
    else:
        small.shown("hangs").get_by_role("button", name="Cancel").wait_for()  # once the frontend is heard
        small.go_to("after")
        small.focus_back("button")
        small.press("Space")
    small.quiet()
    told = small.text("hangs")
    assert f"hangs was {how}" in told and "rank 0" in told and "rank 1" in told
    assert small.shown("hangs").get_by_role("button").count() == 0
    _, alive = psutil.wait_procs(ranks, timeout=DEADLINE_S)
    assert alive == []
    small.run("after")
    assert "[10, 11]" in small.text("after")


def least_steps(small: NotebookPage) -> int:
    """How many steps each rank has done at least, as the panel tells it."""
    told = re.findall(r"(\d+) steps", small.shown("steps").inner_text())
    return min(map(int, told)) if len(told) == 2 else 0


def look(small: NotebookPage, name: str) -> None:
    """Keep how the cell's output looks, which can be read in both themes."""
    for theme in reversed(THEMES):
        small.theme(theme)
        shown = small.shown("steps").locator(".jp-OutputArea-output")
        shown.first.screenshot(path=small.watched.keep("opened_again") / f"{name}_{theme}.png")
        found = contrasts(shown)
        assert found and [text for text in found if text[0] < LEGIBLE] == [], f"{name}, {theme}"


def test_a_page_opened_again_while_a_job_runs_shows_it_live_and_can_cancel_it(lab, small, tmp_path):
    ranks = ranks_at_work(small, tmp_path, "steps")
    small.shown("steps").get_by_role("button", name="Cancel").wait_for()
    small.until(lambda: least_steps(small) and small.status() == "busy")
    small.open_again(lab.url(f"lab/tree/{small.path}"))
    small.until(lambda: least_steps(small) and small.status() == "busy")
    before = least_steps(small)
    small.until(lambda: least_steps(small) > before + 3)
    look(small, "live")
    small.shown("steps").get_by_role("button", name="Cancel").click()
    _, alive = psutil.wait_procs(ranks, timeout=DEADLINE_S)
    assert alive == []
    # no output of the cell reaches this page any more, but what stays of the panel
    small.shown("steps").get_by_text("steps was cancelled: its ranks were stopped").wait_for()
    look(small, "cancelled")
    assert small.shown("steps").get_by_role("button").count() == 0
    small.run("after")
    assert "[10, 11]" in small.text("after")


def test_a_page_opened_again_after_a_job_has_ended_says_how(lab, small, tmp_path):
    ranks = ranks_at_work(small, tmp_path, "steps")
    small.until(lambda: least_steps(small))

    def let_it_end():
        (tmp_path / "go").touch()
        psutil.wait_procs(ranks, timeout=DEADLINE_S)

    small.open_again(lab.url(f"lab/tree/{small.path}"), let_it_end)
    shown = small.shown("steps")
    shown.get_by_text("It has ended.").wait_for()
    look(small, "ended")
    assert "rank 0 | went on" in shown.inner_text() and "Loading widget" not in shown.inner_text()
    assert not any(line in shown.inner_text() for line in ("its end was not seen", "Error displaying widget"))


def test_a_kernel_is_restarted_while_ranks_work_and_nothing_is_left(lab, small, tmp_path):
    other, files = {process.pid for process in lab.traces.look()}, set(lab.traces.files())
    ranks = ranks_at_work(small, tmp_path)
    mine = [process for process in lab.traces.look() if process.pid not in other]
    assert {rank.pid for rank in ranks} < {process.pid for process in mine}
    small.go_to("hangs")
    small.press("0", "0")
    small.page.get_by_role("dialog").get_by_text("Restart Kernel?").wait_for()
    small.press("Enter")
    _, alive = psutil.wait_procs(mine, timeout=DEADLINE_S)
    assert alive == []
    assert set(lab.traces.files()) <= files and lab.traces.shared_memory() == []
    small.ready()
    small.run("imports")
    small.run("after")
    assert "[10, 11]" in small.text("after")
