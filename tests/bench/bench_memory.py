"""How much memory a chapter needs: kernel, fork server and all ranks together, at the worst moment.

    python tests/bench/bench_memory.py [notebooks/04_ddp.ipynb ...]

Runs each notebook (the first four if none is named) in a kernel of its own, and sums, five times a second,
the proportional set size (PSS) of the kernel and of every process below it: pages that several of them share
count once. JupyterLab's own server comes on top: it is started once, and counted idle.
"""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import psutil
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
EVERY_S = 0.2


def pss_bytes(process: psutil.Process) -> int:
    """Of a process and all below it; one that has just ended counts as nothing."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            pass
    return total


def peak_of(path: Path) -> int:
    """Bytes at the worst moment of a notebook that runs from top to bottom."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(path.parent)}})
    over, seen = threading.Event(), [0]
    here = psutil.Process()

    def watch() -> None:
        while not over.wait(EVERY_S):
            try:
                seen.extend(map(pss_bytes, here.children()))  # the kernel
                seen[:] = [max(seen)]
            except psutil.NoSuchProcess:
                pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        client.execute()
    finally:
        over.set()
        watcher.join()
    return seen[0]


def server_bytes() -> int:
    """Of JupyterLab's server, when it has started and nobody is there."""
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--port=0", "--allow-root"]
    server = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    try:
        for line in server.stderr:
            if "is running at" in line:
                break
        time.sleep(5)
        return pss_bytes(psutil.Process(server.pid))
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


if __name__ == "__main__":
    paths = [Path(name).resolve() for name in sys.argv[1:]]
    for path in paths or sorted((ROOT / "notebooks").glob("0[0-3]_*.ipynb")):
        print(f"{path.stem:32}{peak_of(path) / 1e6:8.0f} MB", flush=True)
    print(f"{'the server of JupyterLab, idle':32}{server_bytes() / 1e6:8.0f} MB")
