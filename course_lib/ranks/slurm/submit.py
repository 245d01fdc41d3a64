"""What Slurm is told of a job, by submitit.

Of submitit we use the batch script, the hand-over and the pickled call that each node opens. Ours is the
rest, because a notebook wants it at once: results and output as they come (submitit looks for a file once a
second, and for a whole result), the job's state (it asks sacct, which small clusters have not), and ranks
that are explained.

Sources: submitit 1.5, `submitit.SlurmExecutor`; man page sbatch(1), --export, --no-requeue, --signal.
"""

import os
import re
from collections.abc import Callable

__all__ = ["hand_over", "names_to_send"]

# What nodes get of the notebook's environment: where programs are, languages, and what steers torch. Tokens
# and passwords have other names. Names alone stand in the script; Slurm carries the values.
_SENT = re.compile(
    r"(PATH|HOME|USER|LOGNAME|SHELL|LANG|LANGUAGE|TZ|VIRTUAL_ENV|LD_LIBRARY_PATH|SLURM_CONF"
    r"|PYTHON(PATH|HOME|HASHSEED|UNBUFFERED|WARNINGS)|CONDA_(PREFIX|DEFAULT_ENV)|LC_\w+"
    r"|(OMP|MKL|OPENBLAS|NCCL|GLOO|TORCH|TORCHELASTIC|KINETO|CUDA|FI|UCX)_\w+)"
)
_NOT_SENT = ("CUDA_VISIBLE_DEVICES",)  # Slurm's to say, on each node
_OF_ANOTHER_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI_", "PMIX_")


def names_to_send(environ: dict[str, str], more: list[str]) -> list[str]:
    """The names of the variables that nodes get."""
    return sorted(name for name in environ if name in more or _SENT.fullmatch(name) and name not in _NOT_SENT)


def hand_over(request: dict, function: Callable) -> tuple[str, Callable[[], None]]:
    """Hand a job to Slurm: `function(directory)` once on each node. This process's environment is changed.

    Args:
        request: what the kernel asked for: directory, ranks, threads, hosts, and in slurm nodes, minutes,
            name, partition, account, gpus, environment, more.

    Returns:
        The number of the job, and what cancels it.

    Errors: RuntimeError with what Slurm says.
    """
    import submitit  # here: it is installed for clusters alone

    plan = request["slurm"]
    for name in [name for name in os.environ if name.startswith(_OF_ANOTHER_JOB) and name != "SLURM_CONF"]:
        del os.environ[name]  # a notebook may run in a job itself, whose size is not this one's
    on_one_node = -(-request["ranks"] // plan["nodes"])
    cores = on_one_node * request["threads"]
    parameters = {
        "job_name": plan["name"],
        "nodes": plan["nodes"],
        "ntasks_per_node": 1,
        "cpus_per_task": cores,
        "time": plan["minutes"],
        "partition": plan["partition"],
        "account": plan["account"],
        "gpus_per_node": plan["gpus"] or None,
    }
    parameters = {name: value for name, value in parameters.items() if value is not None}
    executor = submitit.SlurmExecutor(request["directory"])
    executor.update_parameters(
        **parameters,
        srun_args=["--export=ALL", "--kill-on-bad-exit=0", f"--cpus-per-task={cores}"],
        additional_parameters={
            "export": ",".join(names_to_send(dict(os.environ), plan["environment"])),
            "no-requeue": True,  # a job that begins again would find nobody who waits for it
            "signal": "CONT@1",  # in the place of submitit's, by which jobs are saved and begin again
            **plan["more"],
        },
    )
    try:
        job = executor.submit(function, request["directory"])
    except (submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedSubmissionError) as error:
        said = re.findall(r"(?:sbatch|error): (?:error: )?(.+)", str(error)) or [str(error).splitlines()[-1]]
        raise RuntimeError(" ".join(dict.fromkeys(line.strip().rstrip(".") for line in said))) from None
    return job.job_id, lambda: job.cancel(check=False)
