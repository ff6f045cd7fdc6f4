"""Train many runs: `python -m noisybsd.sweep recipe=a,b method=ce,bsd seed=1,2,3 …`.

Every combination is a process of its own with a run directory of its own, whose name follows from the
combination. So a sweep is resumed by giving the same command again: finished runs are skipped,
interrupted ones continue, failed ones are reported and tried again on request.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from noisybsd.config import Config, load_config, parse_overrides, read_record
from noisybsd.errors import UserError, asks_for_help, brief, command, did_you_mean, shown
from noisybsd.files import kind_of, naming, open_file, read_text, user_path, write_text
from noisybsd.processes import bound_to_me
from noisybsd.runs.directory import InUse, differences, has_begun, lock_run, refuse_foreign
from noisybsd.runs.signals import stop_signals

USAGE = """\
usage: python -m noisybsd.sweep recipe=A[,B…] [key=value[,value…] …] [sweep settings]

Train every combination of the values given, each in a process and a run directory of its own. The same
command again skips what is finished and continues what was interrupted.

  python -m noisybsd.sweep recipe=digits_sym40 method=ce,bsd_plus seed=0,1,2 jobs=2

sweep settings:
  out=runs/sweep     where the run directories go
  jobs=N             runs at a time; default: one for each GPU, or 1; on SLURM: as many as it allows
  retry=false        true: try failed runs again
  launcher=local     or slurm (needs `pip install submitit`): one job for each run
  slurm.KEY=VALUE    submitit's SLURM parameters; slurm.time=MINUTES is required, and most clusters want
                     slurm.partition=NAME and slurm.gpus_per_node=1

Every other key is one of noisybsd.train; its --help lists them. A value that is itself a list keeps its
brackets: augment.views=[weak],[weak,strong].
"""


class _Settings(BaseModel):
    """The sweep's own settings: their types, by which they are read, and their defaults."""

    out: str = "runs/sweep"
    jobs: int | None = None
    retry: bool = False
    launcher: str = "local"
    slurm: dict[str, Any] = {}


_SETTINGS: dict[str, Any] = _Settings().model_dump()
_BESIDE = dict.fromkeys(_SETTINGS, "a setting of the sweep")  # to be named where a key is unknown

# how noisybsd.train ends after a signal: saved, or before there was anything to save
_STOPPED = {n for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) for n in (128 + s, -s)}

# what this command leaves in a run directory, also where the training fails before it writes anything
_MARKS = ("console.txt", "failed.txt", "slurm_job.txt")

LET_END = 10.0  # seconds for runs of a sweep that was killed to save and end

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
        return self._has("results.json")

    @property
    def failed(self) -> bool:
        return self._has(self.failure.name)

    def _has(self, name: str) -> bool:
        return kind_of(self.directory / name, str(self.directory)) is not None

    @property
    def busy(self) -> bool:
        """Whether a process trains it now."""
        if not self._has(".lock"):
            return False
        try:
            lock_run(self.directory).close()
        except InUse:
            return True
        return False

    def command(self) -> list[str]:
        train = [sys.executable, "-m", "noisybsd.train"]
        return [*train, *self.arguments, f"run.dir={self.directory}", "tracking.console=plain"]


def combinations(arguments: Sequence[str], out: Path) -> list[Run]:
    """Every combination of the values in `key=value,value…` arguments, in the order given.

    Raises:
        UserError: lists the mistakes of all combinations, each once; among them run directories in
            `out` that hold runs of another configuration.
    """
    pairs = [argument.partition("=") for argument in arguments]
    keys = [key for key, _, _ in pairs]
    mistakes = [
        f"{key}: a sweep names its run directories itself; use out=DIR"
        for key in ("run.dir", "run.resume")
        if key in keys
    ]
    values = [[key + sign + value for value in split_values(text)] for key, sign, text in pairs]
    named = {"recipe", "method", "seed"}  # in every name, whether they vary or not
    shown = [
        len(choices) > 1 and key not in named for key, choices in zip(keys, values, strict=True)
    ]
    runs: list[Run] = []
    for settings in itertools.product(*values):
        try:
            config = load_config(settings, _BESIDE)
        except UserError as error:
            mistakes += str(error).splitlines()
            continue
        varied = itertools.compress(settings, shown)
        name = "-".join([config.recipe, config.method, *varied, f"s{config.seed}"])
        run = Run(settings, out / re.sub(r"[^\w.=+,-]", "_", name))
        mistakes += another_configuration(run, config, "out=DIR")
        runs.append(run)
    names = [run.name for run in runs]
    mistakes += [
        f"{name}: several combinations would have this run directory; give each value once, and "
        "recipe files of different names"
        for name in names
        if names.count(name) > 1
    ]
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    return runs


def split_values(text: str) -> list[str]:
    """Split at commas that stand outside brackets: `a,[b,c]` is a and [b,c]."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts


def another_configuration(run: Run, config: Config, place: str) -> Iterator[str]:
    """Lines that say that the run directory holds a run with other settings than `config`.

    Args:
        place: the setting that puts the runs elsewhere.
    """
    record = run.directory / "config.yaml"
    try:
        if not any(map(run._has, _MARKS)):
            refuse_foreign(run.directory, f"{run.directory}")
        begun = run._has(record.name) and has_begun(run.directory)
        recorded = read_record(record) if begun else None
    except UserError as error:
        yield f"{error}; use another {place}"
        return
    if recorded is not None:
        changed = list(differences(recorded, config))
        if changed:
            yield f"{run.directory}: holds a run of another configuration; use another {place}"
            yield from (f"  {line}" for line in changed)


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
    executor = _slurm_executor({"job_name": "noisybsd", **parameters, **parallelism}, out)
    with executor.batch():
        submitted = [executor.submit(run_one, run) for run in runs]
    for run, job in zip(runs, submitted, strict=True):
        run.directory.mkdir(parents=True, exist_ok=True)
        run.failure.unlink(missing_ok=True)
        run.job.write_text(f"{job.job_id}\n", "utf-8")
    return [job.job_id for job in submitted]


def _slurm_executor(parameters: dict[str, Any], out: Path) -> Any:
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


def _slurm_state(run: Run, out: Path) -> str | None:
    """The state of the SLURM job submitted for `run`, if it runs or will run."""
    if not run.job.exists():
        return None
    import submitit

    job: Any = submitit.SlurmJob(folder=out / "slurm", job_id=run.job.read_text("utf-8").strip())
    state: str = job.watcher.get_state(job.job_id, mode="force")
    return state if state in _PENDING else None


def _settings(arguments: Sequence[str]) -> dict[str, Any]:
    """The sweep's own settings.

    Raises:
        UserError: lists every mistake.
    """
    settings = {**_SETTINGS, **parse_overrides(arguments, _Settings)}
    out = settings["out"]
    jobs, launcher, slurm = (settings[key] for key in ("jobs", "launcher", "slurm"))
    mistakes = []
    if not isinstance(out, str) or out in ("", "null") or out[0] in "[{":
        mistakes.append(f"out: got {brief(out)}; valid: one folder (./NAME if that is its name)")
    if jobs is not None and (type(jobs) is not int or jobs < 1):
        mistakes.append(f"jobs: got {brief(jobs)}; valid: a whole number of at least 1")
    if launcher not in ("local", "slurm"):
        mistakes.append(f"launcher: {did_you_mean(launcher, ['local', 'slurm'])}")
    if not isinstance(settings["retry"], bool):
        mistakes.append(f"retry: got {brief(settings['retry'])}; valid: true, false")
    if not isinstance(slurm, dict):
        mistakes.append(f"slurm: got {brief(slurm)}; valid: slurm.KEY=VALUE, e.g. slurm.time=600")
    elif slurm and launcher == "local":
        mistakes.append(f"slurm.{min(slurm)}: has no effect without launcher=slurm")
    # as typed: YAML reads 10:00:00 as 36000
    times = [
        value for key, _, value in (a.partition("=") for a in arguments) if key == "slurm.time"
    ]
    mistakes += [
        f"slurm.time: got {brief(value)}; valid: minutes, a whole number of at least 1"
        for value in times
        if not re.fullmatch("0*[1-9][0-9]*", value)
    ]
    if mistakes:
        raise UserError("\n".join(mistakes))
    return settings


def _plan(arguments: Sequence[str]) -> tuple[list[Run], dict[str, Any]]:
    """The runs and the sweep's own settings.

    Raises:
        UserError: lists every mistake in both.
    """
    keys = [argument.partition("=")[0] for argument in arguments]
    mistakes = [f"{key}: given twice; use key=a,b" for key in keys if keys.count(key) > 1]
    own = [a for a in arguments if re.split(r"[.=]", a, maxsplit=1)[0] in _SETTINGS]
    settings, runs = dict(_SETTINGS), []
    try:
        settings = _settings(own)
    except UserError as error:
        mistakes += str(error).splitlines()
    try:
        out = user_path(str(settings["out"]), "out")
        unusable = list(_unusable(out))
        mistakes += unusable
        runs = [] if unusable else combinations([a for a in arguments if a not in own], out)
    except UserError as error:
        mistakes += str(error).splitlines()
    if mistakes:
        raise UserError("\n".join(dict.fromkeys(mistakes)))
    return runs, settings | {"out": out}


def _unusable(out: Path) -> Iterator[str]:
    """A line to refuse what is no folder, or a folder of files and no runs, made for something else."""
    kind = kind_of(out, f"out={out}")
    if kind != "folder":
        if kind is not None:
            yield f"out={out}: is no folder, but a file; use another"
        return
    with naming(f"out={out}"):
        others = [entry.name for entry in out.iterdir() if not entry.name.startswith(".")]
        ours = (".lock", "config.yaml", *_MARKS)
        found = (out / "slurm").is_dir() or any(
            next(out.glob(f"{depth}/{name}"), None) for depth in ("*", "*/*") for name in ours
        )
    if others and not found:
        more = f" and {len(others) - 1} more" * (len(others) > 1)
        yield (
            f"out={out}: holds {brief(min(others))}{more}, and no runs; use a new or an empty folder, or one "
            "of an earlier sweep"
        )


def _let_end(runs: Sequence[Run]) -> None:
    """Wait a little for runs whose sweep was killed: they save and end by themselves."""
    busy = [run for run in runs if not run.finished and run.busy]
    if busy:
        print(f"waiting for {_count(len(busy), 'run')} that another process trains", flush=True)
    end = time.monotonic() + LET_END
    while time.monotonic() < end and any(run.busy for run in busy):
        time.sleep(0.2)


def _to_do(runs: Sequence[Run], settings: dict[str, Any]) -> Iterator[Run]:
    """The runs to start; says of every other one why not."""
    _let_end(runs)
    for run in runs:
        if run.finished:
            print(f"done     {run.name} (before)")
        elif run.busy:
            print(f"busy     {run.name} (another process trains it)")
        elif run.failed and not settings["retry"]:
            reason = shown(read_text(run.failure).strip())
            print(f"FAILED   {run.name} (before; retry=true tries again): {reason}")
        elif settings["launcher"] == "slurm" and (state := _slurm_state(run, settings["out"])):
            print(f"{state.lower():<8} {run.name} (job {run.job.read_text('utf-8').strip()})")
        else:
            yield run


def visible_gpus() -> list[str]:
    """The GPUs this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    runs, settings = _plan(arguments)
    out = settings["out"]
    if settings["launcher"] == "slurm":
        _slurm_executor(settings["slurm"], out)  # or say at once what is missing
    todo = list(_to_do(runs, settings))
    print(f"{_count(len(runs), 'run')}, {len(todo)} to start, in {shown(out)}", flush=True)
    if settings["launcher"] == "slurm":
        if todo:
            ids = run_on_slurm(todo, settings["slurm"], settings["jobs"], out)
            print("\n".join(f"job {id} {run.name}" for id, run in zip(ids, todo, strict=True)))
            print(f"{_count(len(ids), 'job')} submitted; what they print is in {out / 'slurm'}")
        print("the same command again says what is done, and submits what is missing")
    elif todo:
        gpus = visible_gpus()
        jobs = min(settings["jobs"] or max(1, len(gpus)), len(todo))
        stopped_by = run_here(todo, jobs, gpus, _say)
        if stopped_by is not None:
            _say("the same command again continues")
            return 128 + stopped_by
    return _conclude(runs, settings)


def _say(line: str) -> None:
    """Print; a terminal that was closed must not keep the sweep from seeing its runs to their end."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _conclude(runs: Sequence[Run], settings: dict[str, Any]) -> int:
    """Compare what is done; exit code 1 if a run failed, 2 if what is done cannot be compared."""
    done = [run for run in runs if run.finished]
    failed = [run for run in runs if not run.finished and run.failed]
    compared = 0
    if done:
        from noisybsd.compare.__main__ import main as compare

        compared = compare([str(run.directory) for run in done])
    print(f"{len(done)} of {_count(len(runs), 'run')} done, {len(failed)} failed")
    if done:
        more = f"python -m noisybsd.compare {settings['out']} out=table.md plots=plots"
        print(f"the table as a file, with plots: {shown(more)}")
    return 1 if failed else compared


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    # as a module by its own name, which a cluster's job can import
    from noisybsd import sweep

    sys.exit(sweep.main())
