"""What comes back from a job: results, output, and one ledger of bytes, memory and time."""

import html
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pandas as pd

from course_lib.record import printed
from course_lib.record.attempts import Attempt, lost_in_words, read_attempts
from course_lib.record.tables import COLUMNS
from course_lib.roles import rank_name

__all__ = ["Job"]

FORMAT = "course_lib.Job"
VERSION = 1
_OPTIONAL = ("roles", "attempts")


@dataclass(frozen=True)
class Job:
    """A finished job.

    Attributes:
        label: name of the job; the function's name if none was given.
        ranks: number of ranks.
        backend: "gloo" or "nccl".
        device: "cpu" or "cuda".
        hardware: the processor or the GPUs, in words.
        seconds: from the call of `run` to the last rank's answer, wall clock.
        results: what each rank's function returned, in rank order.
        output: what each rank printed, in rank order.
        absent: layers that could not be measured here, each with the reason.
        records: the rows of the five tables below, as plain lists of dicts.
        roles: the name of each rank's function, in rank order; empty where all ranks ran one function.
        attempts: of a job that could start again (`run(..., restarts=2)`), one record for each attempt, the
            one that went well last: number, ranks, reason of its failure, seconds, steps, output, and the
            records of what was measured in it. All else is of the last attempt, but for `seconds`, which are
            of all. Else empty.

    Each table is a copy: change it as you like, the job stays as it was measured.
    """

    label: str
    ranks: int
    backend: str
    device: str
    hardware: str
    seconds: float
    results: list
    output: list[str]
    absent: dict[str, str] = field(default_factory=dict)
    records: dict[str, list] = field(default_factory=dict, repr=False)
    roles: list[str] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)

    @property
    def steps(self) -> pd.DataFrame:
        """One row per rank and step: rank, step, phase, seconds, samples, wire_bytes.

        `phase` is "warm-up" (step 0), "traced" (step 1) or "timed". `seconds` is given for timed steps only:
        the others carry first-time costs or instruments. `wire_bytes`: bytes that the operating system
        counted this rank sending to others over TCP during the step: by gloo, by a plain socket, by a
        `dist.TCPStore`. Absent is what goes another way: by a UNIX socket, by UDP, or by a file that ranks
        share, such as a `dist.FileStore`; and what a socket has sent that was closed before the step's end.
        What a rank prints, logs or saves is no traffic.
        """
        return self._table("steps")

    @property
    def comm(self) -> pd.DataFrame:
        """One row per rank and collective of the traced step: rank, op, dtype, payload_bytes,
        algorithm_bytes, group_size, group, start_s, seconds.

        `payload_bytes`: the full tensor S. `algorithm_bytes`: S times the factor of the textbook algorithm
        (`theory.collective_bytes`). `group`: the ranks that took part, as text. `start_s`: since the first
        rank began its step.
        """
        return self._table("comm")

    @property
    def links(self) -> pd.DataFrame:
        """One row per linked host and step: host, step, phase, sent_bytes. Empty for a job on this machine as
        it is.

        `sent_bytes`: what the system counted on the interface that joins the host to the others, from the
        step's beginning to the next one's: whole frames, with headers and acknowledgements. What its ranks
        sent to each other is not in it. Around the traced step all ranks wait for each other, so that its
        bytes are exact; between timed steps some may count for the step before or after.
        """
        return self._table("links")

    @property
    def memory(self) -> pd.DataFrame:
        """One row per rank and category: rank, category, bytes.

        params, grads, optimizer_states, buffers: storages alive right after `optimizer.step()` of the traced
            step.
        activations: the most that was saved for backward at any moment.
        peak: the highest total that the allocator (GPU) or the operating system (CPU: growth of the resident
            memory since the function began) has seen. Categories overlap in time with peak: don't add it to
            the others.
        """
        return self._table("memory")

    @property
    def timeline(self) -> pd.DataFrame:
        """One row per piece of the traced step: rank, kind, name, start_s, seconds.

        `kind`: forward, backward, optimizer (computing), communication, or span (named by `measure.span`).
        After the step's last backward nothing is forward: work on gradients before the update counts as
        backward, and what comes from then on as optimizer.
        """
        return self._table("timeline")

    @property
    def where(self) -> str:
        """Backend, ranks and hardware in words, as the figures state it:
        "4 ranks, gloo on CPU (2 cores, AMD EPYC)".
        """
        return (
            f"{_ranks(self.ranks)}, {self.backend} on {'GPU' if self.device == 'cuda' else 'CPU'}"
            f" ({self.hardware})"
        )

    def save(self, path: str | Path) -> None:
        """Write this job as JSON. A result that JSON cannot hold, such as a tensor, is kept as its text: for
        `parity` of a job that was loaded, return numbers.
        """
        content = {"format": FORMAT, "version": VERSION, **asdict(self)}
        for name in _OPTIONAL:  # a job without them is saved as it was before there were any
            if not content[name]:
                del content[name]
        content["results"] = [_plain(result) for result in self.results]
        Path(path).write_text(json.dumps(_without_nan(content), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> "Job":
        """Read a job that `save` wrote. Nothing in the file is ever executed.

        Errors: ValueError if the file is damaged or is not a saved job; FileNotFoundError if there is none.
        """
        try:
            content = json.loads(Path(path).read_text())
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path} is damaged or not a saved job: it is not JSON ({error}).") from None
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a saved job.")
        if (version := content.pop("version", None)) != VERSION:
            raise ValueError(
                f"{path} was saved in version {version!r} of the format; this library reads version"
                f" {VERSION}."
            )
        return cls._checked(content, path)

    @classmethod
    def _checked(cls, content: dict, path) -> "Job":
        wanted: dict[str, type | tuple[type, ...]] = {
            "label": str,
            "ranks": int,
            "backend": str,
            "device": str,
            "hardware": str,
            "seconds": (int, float),
            "results": list,
            "output": list,
            "absent": dict,
            "records": dict,
        }
        for name, kind in wanted.items():
            if not isinstance(content.get(name), kind):
                raise ValueError(f"{path} is damaged: {name!r} is missing or of the wrong kind.")
        for name in ("output", "roles"):
            texts = content.get(name, [])
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{path} is damaged: {name!r} holds something that is no text.")
        counted = ("roles", "output", "results") if content.get("roles") else ()
        if any(len(content[name]) != content["ranks"] for name in counted):
            raise ValueError(f"{path} is damaged: 'roles' has not one name for each rank.")
        if extra := set(content) - set(wanted) - set(_OPTIONAL):
            raise ValueError(f"{path} is damaged: it holds the unknown field {sorted(extra)[0]!r}.")
        try:
            content["attempts"] = read_attempts(content.get("attempts", []))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged: 'attempts' cannot be read ({error}).") from None
        job = cls(**content)
        for name in COLUMNS:
            try:
                if not all(isinstance(row, dict) for row in job.records.get(name, [])):
                    raise TypeError("a row is not an object")
                job._table(name)
            except (TypeError, ValueError, OverflowError, AttributeError, KeyError) as error:
                raise ValueError(f"{path} is damaged: the table {name!r} cannot be read ({error}).") from None
        return job

    def _table(self, name: str) -> pd.DataFrame:
        made = self.__dict__.setdefault("_tables", {})
        if name not in made:
            columns = COLUMNS[name]
            made[name] = pd.DataFrame(self.records.get(name, []), columns=list(columns)).astype(columns)
        return made[name].copy()

    def __repr__(self) -> str:
        said = printed.in_words(self.output, "job.output[{rank}]", self.roles)
        return "\n  ".join(["\n".join(self._lines()), *said])

    def _repr_html_(self) -> str:
        head, *rest = self._lines()
        lines = "".join(f"<div>{html.escape(line)}</div>" for line in rest)
        said = printed.folds_html(self.output, "job.output[{rank}]", self.roles)
        return f'<div style="{printed.CODE}"><b>{html.escape(head)}</b>{lines}{said}</div>'

    def _lines(self) -> list[str]:
        """What there is to say of this job, but for what its ranks have printed."""
        from course_lib.record.readings import step_seconds  # here: it takes a Job

        parts = [f"Job {self.label}: {self.where}, {self.seconds:.2f} s"]
        if lost := lost_in_words(self.attempts):
            parts.append(f"  {lost}")
            parts += [f"  {attempt}" for attempt in self.attempts if attempt.reason]
        if self.steps["seconds"].notna().any():
            timed = step_seconds(self)
            parts.append(
                f"  {timed.median() * 1e3:.2f} ms per step (median of {len(timed)} timed steps, slowest rank)"
            )
        if len(self.comm):
            parts.append(f"  {len(self.comm[self.comm['rank'] == 0])} collectives per step on rank 0")
        if len(self.links):
            sent = self.links.groupby("host")["sent_bytes"].median() / 1e6
            told = ", ".join(f"host {host} {megabytes:.2f} MB" for host, megabytes in sent.items())
            parts.append(f"  sent over its link in a step: {told} (median)")
        parts += [f"  no {layer}: {reason}" for layer, reason in self.absent.items()]
        parts += [
            f"  {rank_name(rank, self.roles)}: {_short(result)}" for rank, result in enumerate(self.results)
        ]
        return parts


def _ranks(count: int) -> str:
    return f"{count} rank{'' if count == 1 else 's'}"


def _short(value, limit: int = 80) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _plain(value):
    """A JSON value as it is, anything else as its text."""
    try:
        if json.loads(json.dumps(value)) == value:
            return value
    except (TypeError, ValueError, RuntimeError):
        pass
    return repr(value)


def _without_nan(value):
    """JSON has no NaN: a number that is absent becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nan(inner) for inner in value]
    return value
