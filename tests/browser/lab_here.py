"""JupyterLab on a desk of its own, by the command that a learner types."""

import contextlib
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from pathlib import Path

from chromium_here import DEADLINE_S
from left_behind import Traces

__all__ = ["LabHere"]

_PROJECT = Path(__file__).resolve().parents[2]


class LabHere:
    """`python -m course_lib.learner lab --place ...`, until the end of the `with`.

    Settings of this user's own JupyterLab are left alone, and not seen.

    Attributes:
        desk: the folder with the learner's copies.
        traces: of the server, its kernels and what they start.
    """

    def __init__(self, folder: Path):
        """`folder`: an empty one."""
        for name in ("place", "temporary", "config", "runtime", "data"):
            (folder / name).mkdir()
        self._place, self._folder = folder / "place", folder
        self.desk = self._place / "desk"
        self.traces = Traces(folder / "temporary")
        self._token = secrets.token_hex(16)
        self._server: subprocess.Popen | None = None

    def __enter__(self) -> "LabHere":
        self.start()
        return self

    def __exit__(self, *error) -> None:
        self.stop()

    def command(self, *words: str, **options) -> subprocess.Popen:
        """`python -m course_lib.learner` with these words, for this desk."""
        path = os.pathsep.join(filter(None, (str(_PROJECT), os.environ.get("PYTHONPATH"))))
        own = {
            f"JUPYTER_{name.upper()}_DIR": f"{self._folder / name}" for name in ("config", "runtime", "data")
        }
        command = [sys.executable, "-m", "course_lib.learner", *words, "--place", str(self._place)]
        environ = {**self.traces.environ, **own, "PYTHONPATH": path}
        return subprocess.Popen(command, env=environ, text=True, **options)

    def start(self) -> None:
        """Open the lab: the desk is laid, or brought up to date."""
        words = ("--no-browser", "--allow-root", f"--IdentityProvider.token={self._token}")
        words += ("--LabApp.expose_app_in_browser=True",)  # so that tests can ask for what a page holds
        with (self._folder / "lab.txt").open("a", encoding="utf-8") as log:
            self._server = self.command("lab", *words, stdout=log, stderr=log)
        written = self._folder / "runtime" / f"jpserver-{self._server.pid}.json"
        self._told, end = None, time.monotonic() + DEADLINE_S
        while self._told is None:
            assert self._server.poll() is None, f"the lab has ended:\n{self.log}"
            assert time.monotonic() < end, f"the lab did not start:\n{self.log}"
            time.sleep(0.1)
            with contextlib.suppress(OSError, ValueError):  # not yet, or half of it, or nobody listens yet
                told = json.loads(written.read_text(encoding="utf-8"))
                socket.create_connection((told["hostname"], told["port"])).close()
                self._told = told

    def stop(self) -> None:
        """As Ctrl-C does, twice: the server ends, and its kernels."""
        self._server.terminate()
        try:
            self._server.wait(DEADLINE_S)
        finally:
            self._server.kill()

    @property
    def log(self) -> str:
        """What the command has told in its terminal."""
        return (self._folder / "lab.txt").read_text(encoding="utf-8")

    @property
    def server(self) -> int:
        """The server's process."""
        return self._server.pid

    def url(self, path: str = "") -> str:
        """The address of a path, which lets one in; of none, the one that a browser is opened with."""
        return f"{self._told['url']}{path}?token={self._token}"
