"""A learner at a desk in JupyterLab: predictions, exercises and explorers by keyboard, and what is kept."""

import json
import subprocess

import pytest
from browser_fixtures import browser, lab, watched
from chromium_here import DEADLINE_S
from legible import contrasts
from notebook_page import NotebookPage, notebook
from themes import LEGIBLE, THEMES

assert browser and lab and watched  # fixtures

FIRST = "00_start_here.ipynb"
SMALL = {
    "imports": (
        "import torch\nimport torch.distributed as dist\nfrom course_lib import check, explore, predict, run"
    ),
    "asks": 'messages = predict("browser-messages", "How many messages are sent?", unit="messages")',
    "chooses": 'sender = predict("browser-sender", "Who sends?", choices=("rank 0", "rank 1", "both"))',
    "compares": (
        'messages.compare(3)\nsender.compare("both", {"rank 0": "It sends two.", "rank 1": "It sends one."})'
    ),
    "my_share": "def my_share(batch):\n    raise NotImplementedError",
    "judges": "check.my_share(my_share)",
    "explores": "explore.memory()",
    "says": 'def says():\n    print("I am", dist.get_rank())\n\n\nrun(says, ranks=2)',
    "fails": "# raises\ndef divide():\n    return 1 / dist.get_rank()\n\n\nrun(divide, ranks=2)",
    "ends": "",
}
RIGHT = "def my_share(batch):\n    return batch[dist.get_rank() :: dist.get_world_size()]"
ALL_OF_IT = "def my_share(batch):\n    return batch"


@pytest.fixture(scope="module")
def small(lab, watched):
    """A small notebook of the desk, opened beside the first chapter."""
    notebook(lab.desk / "small.ipynb", lab.desk / FIRST, **SMALL)
    return NotebookPage(watched, "desk/small.ipynb").open()


def kept(lab, kind: str) -> list[dict]:
    """Lines of the desk's record."""
    path = lab.desk / "record.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if line["kind"] == kind]


def saved(lab) -> str:
    return (lab.desk / "small.ipynb").read_text(encoding="utf-8")


def test_the_desk_opens_on_its_first_chapter_and_nothing_is_answered(lab, watched):
    copies = sorted(lab.desk.rglob("*.ipynb"))
    assert len(copies) >= 46
    for path in copies:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), path
    chapter = NotebookPage(watched, f"desk/{FIRST}").ready()
    assert all(cell["outputs"] == [] for cell in chapter.cells().values())
    assert not chapter.dirty(), "who closes it is asked whether to save it"
    page = watched.page
    assert page.locator(".jp-OutputArea-output").count() == 0
    title = json.loads((lab.desk / FIRST).read_text(encoding="utf-8"))["cells"][0]["source"][0].strip("# \n")
    page.get_by_role("heading", name=title).wait_for()
    page.locator(".jp-NotebookPanel-toolbar").get_by_text("Distributed training").wait_for()
    assert page.locator("[role=dialog], .Toastify__toast").count() == 0, "a question at the start"


def test_predictions_are_typed_locked_and_answered_by_keyboard_alone(lab, small):
    small.run("imports")
    small.run("asks")
    page = small.page
    small.focus_back("input[type=text]")
    page.keyboard.type("many")
    small.press("Enter")
    page.get_by_text("a number, please").wait_for()
    assert kept(lab, "guess") == []
    small.press("Control+a")
    page.keyboard.type("4")
    small.press("Enter")
    page.get_by_text("kept; it may change until the run").wait_for()
    small.run("chooses")
    for number in (1, 0):
        small.focus_back(f"input[type=radio][value='{number}']")
        small.press("Space")
        small.shown("chooses").get_by_text("kept; it may change until the run").wait_for()
        small.until(lambda chosen=f"rank {number}": kept(lab, "guess")[-1]["guess"] == chosen)
    small.run("compares")
    told = small.text("compares")
    assert "measured 3 messages; you said 4 (33% too high)" in told
    assert "measured: both; you said: rank 0. It sends two." in told
    # locked: a line has taken the field's place, also when the cell is run again
    for _ in range(2):
        assert small.text("asks") == "Predict: How many messages are sent? You said: 4 messages, compared."
        assert small.shown("asks").locator("input").count() == 0
        small.run("asks")
    guesses = [(line["name"], line["guess"]) for line in kept(lab, "guess")]
    assert guesses[0] == ("browser-messages", 4) and guesses[-1] == ("browser-sender", "rank 0")
    answers = {line["name"]: (line["guess"], line["measured"]) for line in kept(lab, "compared")}
    assert answers == {"browser-messages": (4, 3), "browser-sender": ("rank 0", "both")}


def test_an_exercise_goes_from_its_stub_to_solved_by_keyboard(lab, small):
    small.run("imports")
    small.run("my_share")
    small.run("judges")
    assert "not attempted yet" in small.text("judges") and kept(lab, "verdict") == []
    for answer, words in ((ALL_OF_IT, "my share: not yet"), (RIGHT, "my share: solved")):
        small.write("my_share", answer)
        small.press("Shift+Enter", "Shift+Enter")  # the exercise, and its check below it
        small.page.wait_for_function(
            "([path, words]) => { const panel = [...jupyterapp.shell.widgets('main')].find("
            "w => w.context?.path === path); return JSON.stringify(panel.content.widgets.find("
            "c => c.model.id === 'judges').model.outputs.toJSON()).includes(words) }",
            arg=[small.path, words],
        )
        small.quiet()
        small.shown("judges").get_by_text(words).wait_for()  # the panel
    verdicts = kept(lab, "verdict")
    assert [(line["exercise"], line["passed"]) for line in verdicts] == [
        ("my_share", False),
        ("my_share", True),
    ]


def test_an_explorer_moves_by_keyboard(small):
    small.run("imports")
    small.run("explores")
    shown = small.shown("explores").locator(".jupyter-widgets").first  # below it is what stands in its place
    picture = shown.locator("img")
    picture.wait_for()
    before = [picture.get_attribute("src"), picture.get_attribute("alt"), shown.locator("table").inner_text()]
    small.go_to("says")
    small.focus_back("button[title='ranks: one step on']")
    small.press("Space")
    small.page.wait_for_function(
        "src => ![...document.querySelectorAll('.jp-OutputArea img')].some(img => img.src === src)",
        arg=before[0],
    )
    after = [picture.get_attribute("src"), picture.get_attribute("alt"), shown.locator("table").inner_text()]
    assert all(one != other for one, other in zip(before, after)), (before[1:], after[1:])


@pytest.mark.parametrize("theme", THEMES)
def test_all_that_a_cell_shows_can_be_read_in_both_themes(small, watched, theme):
    small.theme(theme)
    if theme == THEMES[0]:
        small.write("my_share", ALL_OF_IT)
        for cell in (cell for cell in SMALL if cell not in ("compares", "ends")):
            small.run(cell)
    for cell in ("asks", "judges", "explores", "says", "fails"):
        shown = small.shown(cell).locator(".jp-OutputArea-output")  # without the number beside it
        shown.first.wait_for()
        found = contrasts(shown)
        assert found, f"{cell} shows no text"
        assert [text for text in found if text[0] < LEGIBLE] == [], f"{cell}, {theme}"
        watched.page.screenshot(path=watched.keep(f"looks_{theme}") / f"{cell}.png")


def look_again(lab, small, note: str) -> None:
    small.page.goto(lab.url("lab/tree/desk/small.ipynb"), wait_until="commit")
    small.ready()
    assert small.cells()["ends"]["text"] == note
    assert "How many messages are sent?" in small.text("asks") and "says on 2 ranks" in small.text("says")
    for cell in ("asks", "says", "explores"):
        shown = small.shown(cell)
        shown.get_by_text("Loading widget").first.wait_for(state="detached")
        shown.locator(".jp-OutputArea-output:visible").first.wait_for()  # a dead widget is hidden
        assert "Error displaying widget" not in shown.inner_text(), cell
        assert "model not found" not in shown.inner_text(), cell
    small.shown("explores").locator("img:visible").first.wait_for()


def test_a_page_that_is_opened_again_while_its_kernel_runs_shows_all(lab, small):
    small.write("ends", "# my own note")
    for cell in ("imports", "asks", "says", "explores"):
        small.run(cell)
    small.save()
    small.page.goto("about:blank")
    look_again(lab, small, "# my own note")


def test_a_second_command_keeps_all_and_shows_it_again(lab, small):
    note = "# my own note"
    small.write("ends", note)
    for cell in ("imports", "asks", "says", "explores"):
        small.run(cell)
    small.save()
    before = saved(lab)
    told, _ = lab.command("desk", stdout=subprocess.PIPE, stderr=subprocess.STDOUT).communicate(
        timeout=DEADLINE_S
    )
    assert "Error" not in told and saved(lab) == before and note in before
    small.page.goto("about:blank")
    lab.stop()
    lab.start()
    assert saved(lab) == before
    look_again(lab, small, note)
