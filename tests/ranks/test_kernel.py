"""What happens in a real Jupyter kernel: functions from cells, progress, the Interrupt button, restarts, a
killed kernel, nbval.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from conftest import kernel_manager
from left_behind import Traces, shared_memory_of
from nbclient import NotebookClient
from test_faults import SOON_S, gone

HANGS = """
import os, time, torch, torch.distributed as dist
def hangs(path):
    open(os.path.join(path, f"pid{dist.get_rank()}"), "w").write(str(os.getpid()))
    if dist.get_rank() == 0:
        time.sleep(1000)
    dist.all_reduce(torch.ones(1))
"""


class Kernel:
    """A real kernel and a client that waits for answers."""

    def __init__(self, **options):
        self.manager = kernel_manager(kernel_name="python3")
        self.manager.start_kernel(**options)
        self.connect()

    def connect(self):
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=900)

    def run(self, code, wait=True, timeout=900):
        outputs = []
        if not wait:
            return self.client.execute(code)
        while True:
            reply = self.client.execute_interactive(code, timeout=timeout, output_hook=outputs.append)
            if reply["content"]["status"] != "aborted":
                return reply["content"], outputs
            # a kernel refuses what comes right behind an error, until it is done with the error

    def close(self):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)

    @property
    def below(self) -> list[psutil.Process]:
        return psutil.Process(self.manager.provisioner.pid).children(recursive=True)

    def hang(self, path: Path) -> list[psutil.Process]:
        """Start a job that hangs, wait until its ranks do, and return all processes below the kernel."""
        for old in path.glob("pid*"):
            old.unlink()
        self.run(f"from course_lib import run\n{HANGS}\nrun(hangs, {str(path)!r}, ranks=3)", wait=False)
        until(lambda: all(told(path / f"pid{rank}") for rank in range(3)))
        below = self.below
        assert {int(p.read_text()) for p in path.glob("pid*")} <= {process.pid for process in below}
        return below


@pytest.fixture(scope="module")
def kernel():
    kernel = Kernel()
    kernel.run("from course_lib import run\nimport torch, torch.distributed as dist\nFACTOR = 3")
    kernel.run("class Scaler:\n    def __call__(self, x):\n        return FACTOR * x")
    kernel.run(
        "def work(x):\n    t = torch.tensor([Scaler()(x) + dist.get_rank()])\n    dist.all_reduce(t)\n   "
        " return t.item(), Scaler()"
    )
    yield kernel
    kernel.close()


def texts(outputs) -> str:
    return "".join(o["content"].get("text", "") for o in outputs if o["msg_type"] == "stream")


def test_a_function_from_a_cell_uses_names_of_other_cells(kernel):
    content, outputs = kernel.run(
        "job = run(work, 10, ranks=2)\nprint([r[0] for r in job.results], type(job.results[0][1]) is Scaler)"
    )
    assert content["status"] == "ok" and "[61, 61] True" in texts(outputs)


def test_the_error_names_cell_line_and_rank(kernel):
    content, outputs = kernel.run(
        "def bad():\n    if dist.get_rank() == 1:\n        raise ValueError('boom')\nrun(bad)"
    )
    assert content["ename"] == "RankError"
    shown = "\n".join(content["traceback"])
    assert (
        "raised ValueError: boom" in shown
        and "line 3, in bad" in shown
        and "raise ValueError('boom')" in shown
        and "Cell" in shown
    )
    # nbval compares evalue, and numbers cells in its own way
    assert "Cell In[" in shown and "cell, line 3, in bad" in content["evalue"]
    assert "site-packages" not in shown and "course_lib/" not in shown


def test_the_hint_of_an_error_works_when_it_is_copied_after_other_errors(kernel):
    content, _ = kernel.run(
        "def bad():\n    if dist.get_rank() == 1:\n        raise ValueError('boom')\nrun(bad)"
    )
    hint = content["traceback"][-1].splitlines()[-1].split("everything: ")[1]
    for _ in range(2):
        assert kernel.run("1 / 0")[0]["ename"] == "ZeroDivisionError"
        assert "ValueError: boom" in texts(kernel.run(hint)[1])


BELONGS = (
    "belongs to the notebook, as do exit, quit, display, and lines with ! or %; a rank has none of them."
)


@pytest.mark.parametrize(
    "line, words",
    [
        ("exit()", f"TypeError: f cannot be sent to the ranks: exit {BELONGS}"),
        ("quit(1)", f"TypeError: f cannot be sent to the ranks: quit {BELONGS}"),
        ("!echo hello", f"TypeError: f cannot be sent to the ranks: get_ipython {BELONGS}"),
        ("%time torch.ones(3)", f"TypeError: f cannot be sent to the ranks: get_ipython {BELONGS}"),
        (
            "print(lock)",
            (
                "TypeError: f cannot be sent to the ranks: lock is a lock, which cannot be copied to another"
                " process"
            ),
        ),
        (
            "display(1)",
            (
                "raised NameError: name 'display' is not defined. display belongs to the notebook; a rank has"
                " none: print, or return what is to be shown."
            ),
        ),
    ],
)
def test_what_belongs_to_the_notebook(kernel, line, words):
    kernel.run("import threading; lock = threading.Lock()")
    content, _ = kernel.run(f"def f():\n    {line}\nrun(f, ranks=1)")
    shown = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(content["traceback"]))
    assert words in shown and "course_lib/" not in shown and len(shown.splitlines()) <= 4


def test_open_needs_no_notebook(kernel):
    """IPython puts an `open` of its own among the notebook's names; a rank takes Python's."""
    _, outputs = kernel.run(
        "import sys\ndef opens():\n    with open('/dev/null'):\n        return 'IPython' in"
        " sys.modules\nprint(run(opens).results)"
    )
    assert "[False, False]" in texts(outputs)


def test_classes_of_a_cell_by_name(kernel):
    kernel.run("class Net(torch.nn.Linear):\n    def scale(self):\n        return FACTOR")
    _, outputs = kernel.run(
        """
import io, multiprocessing
def by_name():
    stream, everyone = io.BytesIO(), [None] * 2
    torch.save(Net(2, 2), stream)
    dist.all_gather_object(everyone, Scaler())
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return stream.getvalue(), everyone, pool.map(work_of_child, [2])
def work_of_child(x):
    return Scaler()(x)
saved, everyone, child = run(by_name).results[1]
print(torch.load(io.BytesIO(saved), weights_only=False).scale(), [type(x) is Scaler for x in everyone], child)"""  # noqa: E501
    )
    assert "3 [True, True] [6]" in texts(outputs)


@pytest.mark.parametrize(
    "first, label", [("run(len, 'x')", "len"), ("check.average(lambda values: values)", "your function")]
)
def test_the_first_run_of_a_kernel_shows_a_sign_and_can_be_interrupted(first, label):
    kernel = Kernel()
    try:
        kernel.run(
            "import os, tempfile\nfolder = tempfile.mkdtemp()\nopen(folder + '/cloudpickle.py',"
            " 'w').write('import time; time.sleep(600)')\n"
            # a server that needs very long to start
            "from course_lib import check, run\nos.environ['PYTHONPATH'] = folder"
        )
        kernel.run(first, wait=False)
        sign, shown = False, None
        while shown is None:
            message = kernel.client.get_iopub_msg(timeout=900)
            if "preparing to start ranks, once per kernel" in str(message["content"]):
                sign = True
                kernel.manager.interrupt_kernel()
            if message["msg_type"] == "error":
                shown = message["content"]
        assert sign and shown["ename"] == "RankInterrupt"
        assert (
            shown["evalue"]
            == f"{label} was interrupted while the fork server was starting. It goes on starting: the next"
            " run finds it ready."
        )
        assert len("".join(shown["traceback"]).splitlines()) == 1
    finally:
        servers = kernel.below
        kernel.close()
        for server in servers:
            server.kill()


def test_a_warning_points_at_the_learners_cell(kernel):
    _, outputs = kernel.run(
        "def quiet():\n    x = torch.ones(2)\n    if dist.get_rank():\n        dist.all_reduce(x)\n   "
        " else:\n        dist.all_reduce(x)\nrun(quiet);"
    )
    told = texts(outputs)
    assert "RankWarning" in told and "run(quiet)" in told and "from different lines" in told


def test_row_9_the_interrupt_button(kernel, tmp_path):
    below = kernel.hang(tmp_path)
    ranks = {int(p.read_text()) for p in tmp_path.glob("pid*")}
    begin = time.monotonic()
    kernel.manager.interrupt_kernel()
    shown = None
    while shown is None:
        message = kernel.client.get_iopub_msg(timeout=900)
        if message["msg_type"] == "error":
            shown = message["content"]
    assert time.monotonic() - begin < SOON_S
    assert shown["ename"] == "RankInterrupt" and "hangs was interrupted." in shown["evalue"]
    assert "time.sleep(1000)" in shown["evalue"] and "waits in all_reduce of float32[1]" in shown["evalue"]
    assert gone([p for p in below if p.pid in ranks])
    content = {"status": "aborted"}
    # a kernel drops what arrives while it still handles an interrupt
    while content["status"] == "aborted":
        # the kernel's variables survive
        content, outputs = kernel.run("print(run(work, 1, ranks=2).results[0][0], FACTOR)")
    assert "7 3" in texts(outputs)


LATER = {  # by another thread of the kernel, while a job runs
    "exits at once": "wait_for('leave'); os._exit(0)",
    "killed with a forked child": (
        "wait_for('pid0'); child = os.fork(); child or time.sleep(1000); open(folder + '/child',"
        " 'w').write(str(child))"
    ),
}


@pytest.mark.parametrize("how", ["restart", "hard restart", "killed", "interrupted in vain", *LATER])
def test_row_10_nothing_outlives_the_kernel(tmp_path, how):
    """Not a process (of a rank, of one in a session of its own), no directory, no shared memory, no
    socket.
    """
    (tmp_path / "tmp").mkdir()
    traces = Traces(tmp_path / "tmp")
    kernel = Kernel(env=traces.environ)
    try:
        kernel.run(
            f"import os, sys, threading, time; sys.path.insert(0, {str(Path(__file__).parent)!r}); import"
            f" faults\nfrom course_lib import run\nfolder = {str(tmp_path)!r}\ndef wait_for(name):\n    while"
            " not os.path.exists(os.path.join(folder, name)): time.sleep(0.01)\ndef later():"
            f" {LATER.get(how, 'pass')}\nthreading.Thread(target=later).start()"
        )
        job = "run(faults.hangs_with_everything, folder, ranks=3)"
        kernel.run(
            (
                f"while True:\n    try: {job}\n    except KeyboardInterrupt: pass"
                if how == "interrupted in vain"
                else job
            ),
            wait=False,
        )
        until(lambda: all(told(tmp_path / f"pid{rank}") for rank in range(3)))
        assert (
            len(traces.look()) >= 9
            and traces.files()
            and len(traces.shared_memory()) == 3
            and len(traces.sockets()) >= 3
        )
        spare = set()
        if how == "exits at once":
            (tmp_path / "leave").touch()
        elif "restart" in how:
            kernel.manager.restart_kernel(now=how == "hard restart")
            spare = {kernel.manager.provisioner.pid}
        else:
            if how == "interrupted in vain":  # as nbval does with a cell that takes too long
                kernel.manager.interrupt_kernel()
                time.sleep(5)
            elif how == "killed with a forked child":  # it has copies of all the kernel's sockets
                spare = {int(until(lambda: told(tmp_path / "child")))}
            os.kill(kernel.manager.provisioner.pid, signal.SIGKILL)
        left = traces.left(SOON_S, spare)
        for pid in spare:
            os.kill(pid, signal.SIGKILL)
        assert left == []
    finally:
        kernel.close()


def told(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def until(holds, wait_s: float = 240):
    """Wait until `holds()` is true, and return it."""
    end = time.monotonic() + wait_s
    while not (value := holds()):
        assert time.monotonic() < end
        time.sleep(0.05)
    return value


def test_row_10_nbval_gives_up_on_a_cell(tmp_path):
    warm_up = (
        "import threading\ndef start():\n    from course_lib.jobs import run_quietly\n    run_quietly(len,"
        " 'x')\nthread = threading.Thread(target=start)\nthread.start()"
    )
    # a busy machine takes long
    cells = [
        warm_up,
        *["thread.join(10)"] * 60,
        "from course_lib import run\n" + HANGS,
        f"run(hangs, {str(tmp_path)!r}, ranks=3)",
    ]
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "hangs.ipynb")
    (tmp_path / "tmp").mkdir()
    traces = Traces(tmp_path / "tmp")
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--nbval",
            "--nbval-cell-timeout=40",
            "--nbval-current-env",
            "-q",
            "-p",
            "no:cacheprovider",
            str(tmp_path / "hangs.ipynb"),
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env=traces.environ,
    )
    assert "RankInterrupt" in result.stdout and "waits in all_reduce of float32[1]" in result.stdout, (
        result.stdout
    )
    pids = {int(p.read_text()) for p in tmp_path.glob("pid*")}
    assert len(pids) == 3, result.stdout
    assert traces.left(SOON_S) == [] and not shared_memory_of(pids)


def test_progress_leaves_one_static_line(tmp_path):
    """A job that is long enough for a widget stores the same outputs as a short one, so that nbval can
    compare them; nothing of what its ranks print is among them.
    """
    cells = [
        "import time\nfrom course_lib import run\ndef nap(s):\n    print(s, time.time())\n"
        "    time.sleep(s)\nrun(nap, 0)",
        "job = run(nap, 0)",
        "job = run(nap, 2.5)",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute()
    stored = [[(o["output_type"], dict(o["data"])) for o in cell.outputs] for cell in notebook.cells[1:]]
    assert stored[0] == stored[1] == [("display_data", {"text/plain": "nap on 2 ranks"})]


@pytest.fixture(scope="module")
def seen_kernel():
    """One at which a person looks, as JupyterLab starts it."""
    kernel = Kernel(env=os.environ | {"JPY_SESSION_NAME": "a.ipynb"})
    yield kernel
    kernel.close()


SLOW_TALK = """
import os, time, torch.distributed as dist
from course_lib import run
def talk(seen):
    print("here is", dist.get_rank())
    while not os.path.exists(seen):
        time.sleep(0.01)
    print("goodbye")
run(talk, SEEN);
"""


def test_what_ranks_print_is_seen_while_they_run_and_stays_where_a_person_looks(seen_kernel, tmp_path):
    seen_kernel.run(SLOW_TALK.replace("SEEN", repr(str(tmp_path / "seen"))), wait=False)
    shown = []
    while not shown or shown[-1]["msg_type"] != "update_display_data":
        shown.append(seen_kernel.client.get_iopub_msg(timeout=900))
        assert shown[-1]["msg_type"] != "error", shown[-1]
        live = str(shown[-1]["content"].get("data", {}).get("state"))
        if all(f"rank {rank} |</span> here is {rank}" in live for rank in (0, 1)):
            (tmp_path / "seen").touch()
    begun, _ = [message["content"] for message in shown if message["msg_type"] == "display_data"]
    over = shown[-1]["content"]
    assert begun["transient"] == over["transient"] and begun["data"]["text/plain"] == "talk on 2 ranks"
    assert set(over["data"]) == {"text/plain", "text/html"}
    assert over["data"]["text/plain"] == "talk on 2 ranks"
    lines = re.sub("<[^>]*>", "", over["data"]["text/html"].replace("</div>", "\n"))
    assert "rank 0 | here is 0\nrank 0 | goodbye\nrank 1 | here is 1\nrank 1 | goodbye\n" in lines


@pytest.mark.parametrize(
    "cell, told",
    [
        ("dist.get_rank()", "This ran in the notebook itself, which is no rank: only what `run` starts"),
        ("run(rank_of(), ranks=2)", "without its brackets: run(rank_of, ranks=2)"),
        ("1 / 0", ""),
    ],
)
def test_row_19_a_call_outside_of_the_ranks_is_told_below_torchs_error(seen_kernel, cell, told):
    seen_kernel.run(
        "import torch.distributed as dist\nfrom course_lib import about, run\nabout()\nabout()\n"
        "def rank_of():\n    return dist.get_rank()"
    )
    content, outputs = seen_kernel.run(cell)
    # on a busy machine, one text may arrive in pieces
    said = "".join(output["content"]["text"] for output in outputs if output["msg_type"] == "stream")
    assert content["status"] == "error" and bool(said) == bool(told)
    assert told in said and said.count("\n") == bool(told)


SLOW_START = """
import os, tempfile
from course_lib import check
folder = tempfile.mkdtemp()
open(folder + "/cloudpickle.py", "w").write(
    "import sys, time; time.sleep(4); sys.path.remove(%r); del sys.modules['cloudpickle']; import cloudpickle"
    % folder
)
os.environ["PYTHONPATH"] = folder
def stub(tensor):
    raise NotImplementedError
"""  # a server that needs long to start


def test_a_check_that_waits_for_the_server_shows_a_sign_that_goes_away(tmp_path):
    """What is stored of it is the verdict, as without the sign, and nbval finds nothing else."""
    cells = [nbformat.v4.new_code_cell(code) for code in (SLOW_START, "check.average(stub)")]
    notebook, heard = nbformat.v4.new_notebook(cells=cells), []
    client = NotebookClient(notebook, timeout=900, kernel_name="python3")
    hear = client.process_message
    client.process_message = lambda message, *others: (heard.append(message), hear(message, *others))[1]
    client.execute()
    shown = [message["content"] for message in heard if "your function on" in str(message["content"])]
    assert any("preparing to start ranks, once per kernel" in str(content) for content in shown)
    *signs, verdict = cells[1].outputs
    assert verdict.output_type == "execute_result" and "average: not attempted" in verdict.data["text/plain"]
    assert [(sign.output_type, sign.data) for sign in signs] == [("display_data", {})]
    cells[1].outputs = [verdict]
    nbformat.write(notebook, tmp_path / "slow.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", "--nbval-cell-timeout=900", "--nbval-current-env"]
    result = subprocess.run(
        [*command, "-q", "-p", "no:cacheprovider", str(tmp_path / "slow.ipynb")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0 and "2 passed" in result.stdout, result.stdout
