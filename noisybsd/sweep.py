"""Train many runs: `python -m noisybsd.sweep recipe=a,b method=ce,bsd seed=1,2,3 …`.

Every combination is a process of its own with a run directory of its own, whose name follows from the
combination. So a sweep is resumed by giving the same command again: finished runs are skipped,
interrupted ones continue, failed ones are reported and tried again on request.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from noisybsd.config import Config, load_config, parse_overrides, read_record
from noisybsd.errors import UserError, asks_for_help, brief, command, did_you_mean, shown
from noisybsd.files import kind_of, naming, read_text, user_path
from noisybsd.launch import (
    Run,
    run_here,
    run_on_slurm,
    slurm_executor,
    slurm_state,
    visible_gpus,
)
from noisybsd.runs.directory import differences, has_begun, refuse_foreign

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

# what this command leaves in a run directory, also where the training fails before it writes anything
_MARKS = ("console.txt", "failed.txt", "slurm_job.txt")

LET_END = 10.0  # seconds for runs of a sweep that was killed to save and end


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
    first: dict[str, Run] = {}  # by its settings, as they were read: 0.1 is 1e-1
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
        same = first.setdefault(config.model_dump_json(), run)
        if same.name != run.name:
            mistakes.append(f"{run.name}: is the same run as {same.name}; give each value once")
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
        if not any(map(run.has, _MARKS)):
            refuse_foreign(run.directory, f"{run.directory}")
        begun = run.has(record.name) and has_begun(run.directory)
        recorded = read_record(record) if begun else None
    except UserError as error:
        yield f"{error}; use another {place}"
        return
    if recorded is not None:
        changed = list(differences(recorded, config))
        if changed:
            yield f"{run.directory}: holds a run of another configuration; use another {place}"
            yield from (f"  {line}" for line in changed)


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
        elif settings["launcher"] == "slurm" and (state := slurm_state(run, settings["out"])):
            print(f"{state.lower():<8} {run.name} (job {run.job.read_text('utf-8').strip()})")
        else:
            yield run


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    runs, settings = _plan(arguments)
    out = settings["out"]
    if settings["launcher"] == "slurm":
        slurm_executor(settings["slurm"], out)  # or say at once what is missing
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
        more += " mix=true" * bool(compared)  # what was refused, it would refuse again
        print(f"the table as a file, with plots: {shown(more)}")
    return 1 if failed else compared


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


if __name__ == "__main__":
    sys.exit(main())
