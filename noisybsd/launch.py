"""The runs of a sweep as processes: on this machine, or as jobs of a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from noisybsd.errors import UserError, shown
from noisybsd.files import kind_of, naming, open_file, write_text
from noisybsd.processes import bound_to_me
from noisybsd.runs.directory import InUse, lock_run
from noisybsd.runs.signals import stop_signals

# how noisybsd.train ends after a signal: saved, or before there was anything to save
_STOPPED = {n for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for n in (128 + s, -s)}

# states of a SLURM job that will still run, or runs
_PENDING = {"PENDING", "RUNNING", "REQUEUED", "CONFIGURING", "COMPLETING", "SUSPENDED"}


@dataclass(frozen=True)
class Run:
    """One combination."""

    arguments: tuple[str, ...]  # of noisybsd.train, without run.dir
    directory: Path

    @property
    def name(self) -> str:
        return self.directory.name

    @property
    def log(self) -> Path:
        """What the process printed."""
        return self.directory / "console.txt"

    @property
    def failure(self) -> Path:
        """Says why the process failed; removed when the run is tried again."""
        return self.directory / "failed.txt"

    @property
    def job(self) -> Path:
        """The id of the SLURM job that was submitted last for this run."""
        return self.directory / "slurm_job.txt"

    @property
    def finished(self) -> bool:
        return self.has("results.json")

    @property
    def failed(self) -> bool:
        return self.has(self.failure.name)

    def has(self, name: str) -> bool:
        return kind_of(self.directory / name, str(self.directory)) is not None

    @property
    def busy(self) -> bool:
        """Whether a process trains it now."""
        if not self.has(".lock"):
            return False
        try:
            lock_run(self.directory).close()
        except InUse:
            return True
        return False

    def command(self) -> list[str]:
        train = [sys.executable, "-m", "noisybsd.train"]
        return [*train, *self.arguments, f"run.dir={self.directory}", "tracking.console=plain"]


# --- on this machine ----------------------------------------------------------------------------------


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


def run_here(
    runs: Sequence[Run], jobs: int, gpus: Sequence[str], say: Callable[[str], None]
) -> int | None:
    """Work through `runs`, `jobs` at a time, each on the GPU of its slot.

    A SIGINT, SIGTERM or SIGHUP is passed on, so that all of them save and stop; a second one ends them at
    once. They save and stop, too, when this process is killed.

    Args:
        gpus: as CUDA_VISIBLE_DEVICES names them; empty: leave that variable alone.

    Returns:
        The first signal that came, or None.
    """
    waiting = list(runs)
    working: dict[int, tuple[Run, subprocess.Popen[bytes]]] = {}  # by slot
    received: list[int] = []
    passed_on = 0
    before = {
        number: signal.signal(number, lambda number, frame: received.append(number))
        for number in stop_signals()
    }
    try:
        while working or (waiting and not received):
            while waiting and not received and len(working) < jobs:
                slot = min(set(range(jobs)) - set(working))
                run = waiting.pop(0)
                if run.finished or run.busy:  # another sweep has come to it meanwhile
                    say(_ended(run, 0))
                    continue
                working[slot] = (run, _start(run, jobs, gpus[slot % len(gpus)] if gpus else None))
                say(f"start    {run.name}")
            if len(received) > passed_on:
                passed_on = len(received)
                for _, process in working.values():
                    process.send_signal(signal.SIGTERM)
            for slot, (run, process) in list(working.items()):
                if process.poll() is not None:
                    del working[slot]
                    say(_ended(run, process.returncode))
            time.sleep(0.05)
    finally:
        for _, process in working.values():  # after an error of our own
            process.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
    return received[0] if received else None


def _start(run: Run, jobs: int = 1, gpu: str | None = None) -> subprocess.Popen[bytes]:
    # processes that share the cores each take their part; more threads than cores stall each other
    threads = max(1, _cores() // jobs)
    bound = bound_to_me()
    bound["env"].setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        bound["env"]["CUDA_VISIBLE_DEVICES"] = gpu
    with naming(f"{run.directory}: cannot be written"):
        run.directory.mkdir(parents=True, exist_ok=True)
        run.failure.unlink(missing_ok=True)
        log = open_file(run.log, "wb")
    with log, naming(f"{run.name}: its process cannot be started"):
        return subprocess.Popen(
            run.command(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
            **bound,
        )


def _cores() -> int:
    """Cores this process may use; a cluster's job has fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ended(run: Run, code: int) -> str:
    """What to say about a run whose process ended with `code`; a failure is recorded."""
    if run.finished:
        return f"done     {run.name}"
    if run.busy:  # another process was a little faster
        return f"busy     {run.name} (another process trains it)"
    if code in _STOPPED:
        return f"stopped  {run.name}"
    with naming(f"{run.log}: cannot be read"):
        lines = run.log.read_text("utf-8", "replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if code < 0:
        reason = f"killed by {signal.Signals(-code).name}"
    else:
        reason = (errors or lines or ["it printed nothing"])[-1]
    write_text(run.failure, f"{reason}\n")
    return f"FAILED   {run.name}: {shown(reason)} (more in {shown(run.log)})"


# --- on SLURM -----------------------------------------------------------------------------------------


def run_on_slurm(
    runs: Sequence[Run], parameters: dict[str, Any], jobs: int | None, out: Path
) -> list[str]:
    """Submit one job for each run, at most `jobs` of them at a time; they go on without this process.

    Returns:
        The ids of the jobs.

    Raises:
        UserError: submitit or SLURM is not there, or has no such parameter.
    """
    parallelism = {"array_parallelism": jobs} if jobs else {}
    executor = slurm_executor({"job_name": "noisybsd", **parameters, **parallelism}, out)
    with executor.batch():
        submitted = [executor.submit(run_one, run) for run in runs]
    for run, job in zip(runs, submitted, strict=True):
        run.directory.mkdir(parents=True, exist_ok=True)
        run.failure.unlink(missing_ok=True)
        run.job.write_text(f"{job.job_id}\n", "utf-8")
    return [job.job_id for job in submitted]


def slurm_executor(parameters: dict[str, Any], out: Path) -> Any:
    try:
        import submitit
    except ImportError:
        raise UserError("launcher=slurm needs submitit: pip install submitit") from None
    if "time" not in parameters:
        raise UserError("slurm.time: is required, in minutes; submitit's own default is 5")
    try:
        executor = submitit.SlurmExecutor(folder=out / "slurm")
        executor.update_parameters(**parameters)
    except RuntimeError:  # submitit finds no srun
        raise UserError(
            "launcher=slurm: SLURM is not there (no srun command); valid here: launcher=local"
        ) from None
    except (ValueError, NameError) as error:
        raise UserError(f"slurm: {' '.join(str(error).split())}") from None
    return executor


def run_one(run: Run) -> None:
    """Train one run in a process of its own; for a job of a cluster.

    submitit raises here shortly before the job's time is up: the process is then told to save.
    """
    if run.finished or run.busy:
        return
    # SLURM announces the end by a signal to every process of the job; the training inherits to ignore
    # it, and is told by this one
    handler = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    process = _start(run)
    signal.signal(signal.SIGUSR2, handler)
    try:
        process.wait()
    finally:
        process.terminate()
        print(_ended(run, process.wait()))


def slurm_state(run: Run, out: Path) -> str | None:
    """The state of the SLURM job submitted for `run`, if it runs or will run."""
    if not run.job.exists():
        return None
    import submitit

    job: Any = submitit.SlurmJob(folder=out / "slurm", job_id=run.job.read_text("utf-8").strip())
    state: str = job.watcher.get_state(job.job_id, mode="force")
    return state if state in _PENDING else None
