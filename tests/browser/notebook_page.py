"""A notebook in JupyterLab: what a learner does with keys, and what stands there then."""

import json
import time
from collections.abc import Callable
from pathlib import Path

from chromium_here import DEADLINE_S, Watched

__all__ = ["NotebookPage", "notebook"]

_PANEL = "const panel = [...jupyterapp.shell.widgets('main')].find(w => w.context?.path === path);"
_CELLS = f"""path => {{ {_PANEL}
  return panel.content.widgets.map(cell => ({{
    id: cell.model.id, text: cell.model.sharedModel.source, type: cell.model.type,
    running: cell.model.executionState === 'running', outputs: cell.model.outputs?.toJSON() ?? []}})) }}"""
_STATUS = "panel.sessionContext.session?.kernel?.status"
_READY = f"""path => {{ if (!window.jupyterapp) return false; {_PANEL}
  return panel?.content?.widgets?.length && {_STATUS} === 'idle'
    && panel.sessionContext.session.kernel.connectionStatus === 'connected' }}"""
_THERE = f"""path => {{ if (!window.jupyterapp) return false; {_PANEL}
  return panel?.context?.isReady && panel.content.widgets.length === panel.context.model.cells.length }}"""
_QUIET = f"""path => {{ {_PANEL}
  return {_STATUS} === 'idle'
    && panel.content.widgets.every(cell => cell.model.executionState !== 'running') }}"""
_ACTIVE = f"path => {{ {_PANEL} return panel.content.activeCell.model.id }}"
_COUNT = f"""([path, id]) => {{ {_PANEL}
  return panel.content.widgets.find(cell => cell.model.id === id).model.executionCount }}"""
_FORGET = f"""([path, id]) => {{ {_PANEL}
  panel.content.widgets.find(cell => cell.model.id === id).model.executionCount = null }}"""
_GO = f"""([path, id]) => {{ {_PANEL}
  jupyterapp.shell.activateById(panel.id);
  const number = panel.content.widgets.findIndex(cell => cell.model.id === id);
  panel.content.activeCellIndex = number;
  panel.content.mode = 'command';
  return panel.content.scrollToItem(number) }}"""
_FOCUS = f"path => {{ {_PANEL} panel.content.activate(); panel.content.activeCell.node.focus() }}"


class NotebookPage:
    """One notebook of a lab, in a page."""

    def __init__(self, watched: Watched, path: str):
        """`path`: from the lab's root, such as "desk/00_start_here.ipynb"."""
        self.watched, self.page, self.path = watched, watched.page, path

    def ready(self) -> "NotebookPage":
        """Wait until it stands there, and its kernel is idle."""
        self.page.wait_for_function(_READY, arg=self.path)
        return self

    def open(self) -> "NotebookPage":
        """In the JupyterLab that the page shows already."""
        self.page.evaluate("path => { jupyterapp.commands.execute('docmanager:open', {path}) }", self.path)
        return self.ready()

    def open_again(self, url: str, meanwhile: Callable[[], object] = lambda: None) -> None:
        """Save it, close the page, and open it at its address; `meanwhile` is called while there is none. The
        kernel may be busy.
        """
        self.save()
        self.page.goto("about:blank")
        meanwhile()
        self.page.goto(url, wait_until="commit")
        self.page.wait_for_function(_THERE, arg=self.path)

    def cells(self) -> dict[str, dict]:
        """By their ids: text, type, whether it runs, and outputs as a notebook stores them."""
        return {cell["id"]: cell for cell in self.page.evaluate(_CELLS, self.path)}

    def outputs(self, cell: str) -> list[dict]:
        return self.cells()[cell]["outputs"]

    def counts(self) -> dict[str, int | None]:
        """Of each cell of code, the number in brackets beside it; None: it has not run."""
        return {
            name: self.page.evaluate(_COUNT, [self.path, name])
            for name, cell in self.cells().items()
            if cell["type"] == "code"
        }

    def text(self, cell: str) -> str:
        """What stands below a cell as text: printed, shown, or raised."""
        return "\n".join(filter(None, map(_text, self.outputs(cell))))

    def go_to(self, cell: str) -> None:
        """Make it the active one, in command mode, with the keyboard's focus on it."""
        self.page.evaluate(_GO, [self.path, cell])
        self.page.evaluate(_FOCUS, self.path)
        self.page.wait_for_function(f"path => ({_ACTIVE})(path) === {json.dumps(cell)}", arg=self.path)

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    def focus_back(self, on: str) -> None:
        """From a cell into what the one above it shows, by Shift+Tab alone: until something that answers to
        this selector of CSS has the focus.
        """
        for _ in range(20):
            self.press("Shift+Tab")
            if self.page.evaluate("on => document.activeElement.matches(on)", on):
                return
        raise AssertionError(f"there is no way back by keyboard to {on}")

    def run(self, cell: str, wait: bool = True) -> None:
        """By Shift+Enter, which also goes on to the next one."""
        self.go_to(cell)
        self.page.evaluate(_FORGET, [self.path, cell])  # a kernel that is new counts from 1 again
        self.press("Shift+Enter")
        if wait:
            self.page.wait_for_function(
                "([path, id]) => (" + _COUNT + ")([path, id]) !== null", arg=[self.path, cell]
            )
            self.quiet()

    def write(self, cell: str, text: str) -> None:
        """Type over what stands in a cell."""
        self.go_to(cell)
        self.press("Enter", "Control+a", "Delete")
        self.page.keyboard.insert_text(text)
        self.press("Escape")
        found = self.cells()[cell]["text"]
        assert found == text, f"what was typed became {found!r}"

    def until(self, holds: Callable[[], bool]) -> None:
        """Wait for what is not in the page."""
        end = time.monotonic() + DEADLINE_S
        while not holds():
            assert time.monotonic() < end, "waited in vain"
            self.page.wait_for_timeout(50)  # meanwhile the page goes on

    def status(self) -> str:
        """Of the kernel, as its light shows it: "busy", "idle" ..."""
        return self.page.evaluate(f"path => {{ {_PANEL} return {_STATUS} }}", self.path)

    def quiet(self) -> None:
        """Wait until no cell runs."""
        self.page.wait_for_function(_QUIET, arg=self.path)

    def shown(self, cell: str):
        """The outputs of a cell in the page, scrolled to: playwright's Locator."""
        self.page.evaluate(_GO, [self.path, cell])
        index = list(self.cells()).index(cell)
        panel = self.page.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
        return panel.locator(f".jp-Cell[data-windowed-list-index='{index}'] .jp-Cell-outputWrapper")

    def theme(self, name: str) -> None:
        """JupyterLab in "light" or "dark"."""
        self.page.evaluate(
            "theme => jupyterapp.commands.execute('apputils:change-theme', {theme})",
            f"JupyterLab {name.capitalize()}",
        )
        self.page.wait_for_function(
            "light => document.body.dataset.jpThemeLight === light", arg=str(name == "light").lower()
        )

    def dirty(self) -> bool:
        """Whether who closes it would be asked to save it."""
        return self.page.evaluate(f"path => {{ {_PANEL} return panel.context.model.dirty }}", self.path)

    def save(self) -> None:
        self.press("Escape", "Control+s")
        self.until(lambda: not self.dirty())


def notebook(path: Path, like: Path, **cells: str) -> None:
    """Write a small notebook of code cells, name -> text, with the kernel of another one. A cell whose text
    begins with "# raises" is one whose error is meant.
    """
    other = json.loads(like.read_text(encoding="utf-8"))
    made = [
        {
            "cell_type": "code",
            "id": name,
            "metadata": {"tags": ["raises-exception"]} if text.startswith("# raises") else {},
            "source": text,
            "outputs": [],
            "execution_count": None,
        }
        for name, text in cells.items()
    ]
    path.write_text(json.dumps(other | {"cells": made}), encoding="utf-8")


def _text(output: dict) -> str:
    said = output.get("text") or output.get("data", {}).get("text/plain") or output.get("traceback") or ""
    return "".join(said) if output["output_type"] != "error" else "\n".join(said)
