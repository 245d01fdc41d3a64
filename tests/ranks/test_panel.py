"""What is seen of a job while it runs: a line for each rank, a button that cancels it, and what stands in
their place when the notebook is opened again. A client of Jupyter plays the frontend.
"""

import os
import re

import pytest
import test_kernel
from test_faults import gone

from course_lib.ranks import lines
from course_lib.ranks.launch import RankState

WAITS = """
import os, time, torch, torch.distributed as dist
from course_lib import check, measure, run, sweep
def waits(path, steps):
    for _ in range(steps):
        with measure.step(total=40) as step:
            step.loss = torch.tensor(0.5)
    open(os.path.join(path, f"pid{dist.get_rank()}"), "w").write(str(os.getpid()))
    while not os.path.exists(os.path.join(path, "go")):
        time.sleep(0.01)
"""


class Frontend:
    """A kernel at which a person looks, and what JupyterLab does beside it."""

    def __init__(self):
        self.button, self.has_subshells = "", True
        self.kernel = test_kernel.Kernel(env=os.environ | {"JPY_SESSION_NAME": "a.ipynb"})
        client = self.client = self.kernel.client
        known = client.kernel_info(reply=True, timeout=900)["content"].get("supported_features", ())
        self.subshell = ""
        if "kernel subshells" in known:
            client.control_channel.send(client.session.msg("create_subshell_request", {}))
            self.subshell = client.get_control_msg(timeout=900)["content"]["subshell_id"]

    def hear(self, holds):
        """Messages from now on, until one of which `holds` is true. What has drawn a button says so."""
        heard = []
        while not heard or not holds(heard[-1]):
            heard.append(self.client.get_iopub_msg(timeout=900))
            if model_of(heard[-1]) == "ButtonModel":
                self.button = heard[-1]["content"]["comm_id"]
                data = {"method": "update", "state": {"_view_count": 1}, "buffer_paths": []}
                self.send(self.button, data, self.has_subshells)
        return heard

    def send(self, comm, data, subshell):
        message = self.client.session.msg("comm_msg", {"comm_id": comm, "data": data})
        if subshell:
            message["header"]["subshell_id"] = self.subshell
        self.client.shell_channel.send(message)

    def begin(self, code):
        """Run code until its panel has a button that can be seen."""
        self.client.execute(code)
        self.hear(is_visible)

    def clicks(self):
        self.send(self.button, {"method": "custom", "content": {"event": "click"}}, True)


def model_of(message) -> str:
    return message["content"].get("data", {}).get("state", {}).get("_model_name", "")


def is_visible(message) -> bool:
    state = message["content"].get("data", {}).get("state", {}) if message["msg_type"] == "comm_msg" else {}
    return state.get("visibility") == "visible"


@pytest.fixture
def frontend(started):
    started.kernel.run("pass")  # done with the error of the test before, behind which it refuses what comes
    return started


@pytest.fixture(scope="module")
def started():
    frontend = Frontend()
    if not frontend.subshell:
        frontend.kernel.close()
        pytest.skip("this ipykernel has no subshells: a busy kernel hears no click")
    frontend.kernel.run(WAITS)
    yield frontend
    frontend.kernel.close()


def test_a_click_ends_a_job_while_the_kernel_is_busy(frontend, tmp_path):
    frontend.begin(f"run(waits, {str(tmp_path)!r}, 12, ranks=2)")
    test_kernel.until(lambda: all(test_kernel.told(tmp_path / f"pid{rank}") for rank in range(2)))
    below = frontend.kernel.below
    ranks = {int(path.read_text()) for path in tmp_path.glob("pid*")}
    frontend.clicks()
    *heard, error = frontend.hear(lambda message: message["msg_type"] == "error")
    told = error["content"]
    assert told["ename"] == "RankInterrupt"
    assert told["evalue"].startswith(
        "waits was cancelled: its ranks were stopped, and nothing of them is left.\n  rank 0: was stopped,"
        " after 12 of 40 steps\n      cell, line "
    )
    assert "course_lib/" not in "\n".join(told["traceback"])
    assert gone([process for process in below if process.pid in ranks])
    ended = [m["content"]["data"] for m in heard if m["msg_type"] == "update_display_data"]
    assert ended == [{"text/plain": "waits on 2 ranks"}, {}]
    content, outputs = frontend.kernel.run("print(run(len, 'x').results)")
    assert content["status"] == "ok" and "[1, 1]" in test_kernel.texts(outputs)


def test_the_rest_of_what_was_asked_for_does_not_run(frontend, tmp_path):
    frontend.begin(f"sweep(waits, {str(tmp_path)!r}, 1, ranks=(1, 2), repeats=2)")
    after = frontend.client.execute("print('after')")
    frontend.clicks()
    frontend.hear(lambda message: message["msg_type"] == "error")
    reply = frontend.client.get_shell_msg(timeout=900)
    while reply["parent_header"].get("msg_id") != after:
        reply = frontend.client.get_shell_msg(timeout=900)
    assert reply["content"]["status"] == "aborted"


def test_a_check_that_is_cancelled_gives_no_verdict(frontend):
    frontend.begin("def stuck(tensor):\n    time.sleep(1000)\ncheck.average(stuck)")
    frontend.clicks()
    *heard, error = frontend.hear(lambda message: message["msg_type"] == "error")
    assert error["content"]["evalue"].startswith("your function was cancelled")
    assert not [message for message in heard if message["msg_type"] == "execute_result"]


def test_where_a_busy_kernel_hears_no_click_there_is_no_button(frontend, tmp_path, monkeypatch):
    """A frontend without subshells: what it sends waits until the job is over."""
    monkeypatch.setattr(frontend, "has_subshells", False)
    frontend.client.execute(f"run(waits, {str(tmp_path)!r}, 1, ranks=1)")
    heard = []
    for _ in range(3):  # it is tried again
        heard += frontend.hear(lambda message: model_of(message) == "ButtonModel")
    (tmp_path / "go").touch()
    heard += frontend.hear(lambda message: message["msg_type"] == "update_display_data")
    assert not any(map(is_visible, heard))


def ask(client, kind, **content):
    """Send a request of a page that is opened; its number."""
    message = client.session.msg(kind, content)
    client.shell_channel.send(message)
    return message["header"]["msg_id"]


def test_a_page_that_is_opened_while_a_job_runs_is_answered_and_a_cell_waits(frontend, tmp_path):
    frontend.begin(f"run(waits, {str(tmp_path)!r}, 12, ranks=2)")
    frontend.hear(lambda message: "12 of 40 steps" in str(message["content"]))
    client = frontend.client
    cell = client.execute("print('next')")
    # as JupyterLab asks, without naming a subshell
    for kind in ("kernel_info", "comm_info"):
        asked = ask(client, f"{kind}_request")
        reply = client.get_shell_msg(timeout=900)
        while reply["parent_header"]["msg_id"] != asked:  # those of the cells before
            assert reply["parent_header"]["msg_id"] != cell
            reply = client.get_shell_msg(timeout=900)
        assert reply["msg_type"] == f"{kind}_reply" and reply["content"]["status"] == "ok"
        frontend.hear(lambda message: message["parent_header"].get("msg_id") == asked and is_idle(message))
    assert frontend.button in reply["content"]["comms"]
    target = {"comm_id": "states", "target_name": "jupyter.widget.control", "data": {}}
    message = client.session.msg("comm_open", target, metadata={"version": "1.0.0"})
    client.shell_channel.send(message)
    ask(client, "comm_msg", comm_id="states", data={"method": "request_states"})
    told = frontend.hear(lambda message: message["content"].get("comm_id") == "states")[-1]
    states = told["content"]["data"]["states"]
    assert states[frontend.button]["state"]["description"] == "Cancel"
    assert any("12 of 40 steps" in str(state["state"].get("value")) for state in states.values())
    # and as it asks if it has heard nothing of that for some seconds
    for widget, state in states.items():
        asked = ask(client, "comm_msg", comm_id=widget, data={"method": "request_state"})
        told = frontend.hear(
            lambda message: message["parent_header"].get("msg_id") == asked and is_idle(message)
        )
        (answer,) = (message for message in told if is_answer(message, asked))
        assert answer["content"]["comm_id"] == widget
        assert answer["content"]["data"]["state"]["_model_name"] == state["model_name"]
    (tmp_path / "go").touch()
    heard = frontend.hear(lambda message: "next" in str(message["content"].get("text")))
    assert [m["content"]["data"] for m in heard if m["msg_type"] == "update_display_data"][0] == {
        "text/plain": "waits on 2 ranks"
    }
    # for a page that hears of no output, the widget tells how the job has ended
    assert any("It has ended." in str(message["content"].get("data")) for message in heard)
    assert client.kernel_info(reply=True, timeout=900)["content"]["status"] == "ok"


def is_answer(message, asked) -> bool:
    return message["parent_header"].get("msg_id") == asked and message["msg_type"] == "comm_msg"


def is_idle(message) -> bool:
    return message["content"].get("execution_state") == "idle"


def test_figures_of_a_cell_are_shown_at_its_end_whatever_the_button_tells_meanwhile(frontend, tmp_path):
    frontend.kernel.run("%matplotlib inline\nimport matplotlib.pyplot as plt")
    frontend.client.execute(f"figure, axes = plt.subplots()\nrun(waits, {str(tmp_path)!r}, 1, ranks=1)")
    heard = frontend.hear(is_visible)
    (tmp_path / "go").touch()
    heard += frontend.hear(lambda message: "image/png" in message["content"].get("data", {}))
    kinds = [message["msg_type"] for message in heard]
    assert "update_display_data" in kinds, "the figure came before the job's end"


def test_while_a_job_runs_its_output_has_what_is_seen_if_the_kernel_ends(frontend, tmp_path):
    frontend.client.execute(f"run(waits, {str(tmp_path)!r}, 12, ranks=2)")
    shown = []
    while len(shown) < 2:
        (message,) = frontend.hear(lambda message: True)
        shown += [message["content"]] if message["msg_type"] == "display_data" else []
    live = frontend.hear(lambda message: "12 of 40 steps" in str(message["content"]))[-1]
    (tmp_path / "go").touch()
    frontend.hear(lambda message: message["msg_type"] == "update_display_data")
    panel, below = (content["data"] for content in shown)
    assert set(panel) == {"application/vnd.jupyter.widget-view+json", "text/plain"}
    assert set(below) == {"text/html"} and "display: none" in below["text/html"]
    assert "waits on 2 ranks: its end was not seen here" in below["text/html"]
    row = re.sub("<[^>]*>", " ", live["content"]["data"]["state"]["value"])
    assert re.search(r"rank 0 +12 of 40 steps +loss 0.5 +\d+\.\d s ago", row), row


def states(*steps, total=None, **more):
    return [
        RankState(rank, phase="running", step=step, total=total, step_at=1.0, **more)
        for rank, step in enumerate(steps)
    ]


def test_ranks_in_short():
    def short(ranks):
        return lines.in_short(lines.of_ranks(ranks))

    assert short(states(11, 12, total=40, loss=0.25)) == "12 to 13 of 40 steps, loss 0.25"
    assert short(states(None, None)) == "running" and short([RankState(0)]) == "starting"
    assert short(states(0, 0)) == "1 step" and short(states(1, None)) == "2 steps"
    assert short(states(40, 40, total=40)) == "41 steps"  # more than it has told: so that was wrong
    assert short(states(3, begun_at=10, total=20)) == "14 of 20 steps"
    done = states(3, 3)
    done[0].phase = "finished"
    assert short(done) == "4 steps, 1 of 2 ranks finished"


def test_a_bar_stands_only_where_it_is_known_of_how_many():
    known, unknown = (lines.lines_html(lines.of_ranks(states(11, total=total))) for total in (40, None))
    assert 'max="40" value="12"' in known and "<progress" not in unknown
    many = lines.lines_html(lines.of_ranks(states(*range(20))))
    assert "rank 15<" in many and "rank 16<" not in many and "and 4 more ranks: 17 to 20 steps" in many


def test_a_rank_that_does_not_get_on_says_where_it_is():
    where = {
        "frames": [("train.py", 3, "train")],
        "call": {"op": "all_reduce", "tensor": "float32[1]", "peer": None},
    }
    (state,) = states(4, where=where, where_at=2.0)
    (line,) = lines.of_ranks([state])
    assert line.place == "train.py, line 3, in train: waits in all_reduce of float32[1]"
    state.where_at = 0.5  # it has told of a step since then
    assert lines.of_ranks([state])[0].place == ""
