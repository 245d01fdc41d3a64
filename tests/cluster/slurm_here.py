"""A real Slurm on this machine, for tests: a controller and two nodes that are processes here, in a folder of
their own, with ports, a key and a socket of their own. Nothing of the machine's own Slurm is touched.

    python tests/cluster/slurm_here.py      starts one, says how to use it, and ends it with Enter

Sources: man pages slurm.conf(5), slurmd(8), munged(8).
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
FOLDERS = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"))
UP_S, DOWN_S = 60.0, 20.0
CPUS, MEMORY_MB = 8, 4000  # of each node, as Slurm is told; no task is bound to any core

CONF = """
ClusterName=course
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
SlurmctldPort={ports[0]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SlurmdParameters=config_overrides
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
OverTimeLimit=0
SlurmdTimeout=4
KillWait=4
ReturnToService=2
SchedulerParameters=batch_sched_delay=0,sched_min_interval=1000,bf_interval=1
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] \\
    CPUs={cpus} RealMemory={memory}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What this machine lacks for it, in one sentence; "" if nothing."""
    lacks = [name for name in PROGRAMS if not shutil.which(name, path=FOLDERS)]
    return f"no {lacks[0]} here (on Debian: apt install slurm-wlm munge)" if lacks else ""


class SlurmHere:
    """The cluster, within a `with`. `environ` is what its commands need: SLURM_CONF."""

    def __enter__(self) -> "SlurmHere":
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-"))
        os.chmod(self.folder, 0o755)  # munged wants everybody to reach its socket; the key is for us alone
        (self.folder / "state").mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        conf = self.folder / "slurm.conf"
        conf.write_text(
            CONF.format(
                host=socket.gethostname().split(".")[0],
                user=getpass.getuser(),
                folder=self.folder,
                ports=_free_ports(),
                cpus=CPUS,
                memory=MEMORY_MB,
            )
        )
        self.environ = {"SLURM_CONF": str(conf)}
        self._processes: dict[str, subprocess.Popen] = {}
        try:
            self._start(
                "munged",
                *("--foreground", f"--key-file={key}", f"--socket={self.folder}/munge.socket"),
                *(f"--{name}-file={self.folder}/munge.{name}" for name in ("pid", "log", "seed")),
            )
            self._wait(lambda: (self.folder / "munge.socket").exists())
            self._start("slurmctld", "-D", "-i")
            for node in ("n1", "n2"):
                self.start_node(node)
            self._wait(lambda: self.ask("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"])
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error) -> None:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.ask("scancel", "--user", getpass.getuser())
            self._wait(lambda: not self.ask("squeue", "-h"), DOWN_S)
        for name in ("slurmctld", "n1", "n2", "munged"):
            if process := self._processes.get(name):
                process.terminate()
        for process in self._processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(DOWN_S)
        for process in self.processes():  # what a node that was killed has left
            with contextlib.suppress(psutil.Error):
                process.kill()
        for process in self._processes.values():
            process.kill()
            process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *command: str) -> str:
        """What a command of Slurm prints."""
        done = subprocess.run(command, env=os.environ | self.environ, capture_output=True, text=True)
        return done.stdout.strip()

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self._start("slurmd", "-D", "-N", node, name=node)

    def kill_node(self, node: str) -> None:
        """As if its power were cut: every process that belongs to a node is killed at once."""
        doomed = [process for process in self.processes() if _environ(process).get("SLURMD_NODENAME") == node]
        doomed += [parent for parent in map(_parent, doomed) if parent and "slurmstepd" in _name(parent)]
        self._processes[node].kill()
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        self._processes[node].wait()

    def revive_node(self, node: str) -> None:
        """Start it again, and wait until jobs can run on all nodes."""
        self.start_node(node)
        self._wait(lambda: self.ask("sinfo", "-h", "-o", "%D %t").split() == ["2", "idle"])

    def processes(self) -> list[psutil.Process]:
        """All that this cluster has started, and that lives."""
        return [
            process
            for process in psutil.process_iter()
            if _environ(process).get("SLURM_CONF") == self.environ["SLURM_CONF"]
            and (_name(process).startswith(("slurm", "munge")) or "SLURM_JOB_ID" in _environ(process))
        ]

    def _start(self, program: str, *arguments: str, name: str = "") -> None:
        with open(self.folder / f"{name or program}.log", "w") as log:
            self._processes[name or program] = subprocess.Popen(
                [shutil.which(program, path=FOLDERS) or program, *arguments],
                env=os.environ | self.environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, done, seconds: float = UP_S) -> None:
        end = time.monotonic() + seconds
        while not done():
            ended = [name for name, process in self._processes.items() if process.poll() is not None]
            if ended or time.monotonic() > end:
                log = (self.folder / f"{ended[0] if ended else 'slurmctld'}.log").read_text()[-2000:]
                raise RuntimeError(f"Slurm does not start here: {ended or 'it takes too long'}\n{log}")
            time.sleep(0.1)


def _free_ports() -> list[int]:
    """One port, and two that follow each other, that nobody uses now."""
    while True:
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for free in sockets[:2]:
                free.bind(("127.0.0.1", 0))
            first = sockets[1].getsockname()[1]
            sockets[2].bind(("127.0.0.1", first + 1))
            return [sockets[0].getsockname()[1], first, first + 1]


def _environ(process: psutil.Process) -> dict[str, str]:
    with contextlib.suppress(psutil.Error):
        return process.environ()
    return {}


def _name(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join([process.name(), *process.cmdline()[:1]])
    return ""


def _parent(process: psutil.Process) -> psutil.Process | None:
    with contextlib.suppress(psutil.Error):
        return process.parent()
    return None


if __name__ == "__main__":
    begin = time.monotonic()
    with SlurmHere() as cluster:
        print(f"up in {time.monotonic() - begin:.1f} s:  export SLURM_CONF={cluster.environ['SLURM_CONF']}")
        input("Enter ends it. ")
