"""Many runs: which ones, in which directories, and what becomes of each."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from helpers import ROOT
from helpers.finished import make_run

from noisybsd import launch, sweep, train
from noisybsd.compare.__main__ import main as compare
from noisybsd.config import Config, load_config, recipe_names
from noisybsd.errors import UserError
from noisybsd.launch import Run, run_here
from noisybsd.runs.directory import lock_run
from noisybsd.sweep import combinations, main, split_values

DIGITS = "recipe=digits_sym40"

# what a process does instead of training, by its seed; the first argument is the run directory
STUB = """
import os, pathlib, signal, sys, time
path, seed = pathlib.Path(sys.argv[1]), int(sys.argv[2])
with (path / "calls.txt").open("a") as calls:
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ.get("OMP_NUM_THREADS"), file=calls)
def stop(number, frame):
    (path / "saved.txt").write_text(signal.Signals(number).name)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, stop)
(path / "started.txt").touch()
"""
FINISH = '(path / "results.json").write_text("{}")'
FAIL_ONE = f"""
if seed == 1:
    print("error: the loss is not finite at step 7")
    print("last good checkpoint: none yet")
    sys.exit(1)
{FINISH}
"""


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Let processes run `STUB` and then `code` instead of the training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("noisybsd.compare.__main__.main", lambda arguments: 0)

    def install(code: str) -> None:
        def command(run: Run) -> list[str]:
            seed = next((a.split("=")[1] for a in run.arguments if a.startswith("seed=")), "0")
            return [sys.executable, "-S", "-c", STUB + code, str(run.directory), seed]

        monkeypatch.setattr(Run, "command", command)

    return install


def names(runs: list[Run]) -> list[str]:
    return [run.name for run in runs]


def _unlike(arguments: list[str], key: str) -> list[str]:
    return [argument for argument in arguments if not argument.startswith(f"{key}=")]


def calls(out: Path, name: str) -> list[str]:
    return (out / name / "calls.txt").read_text().splitlines()


# which runs


def test_every_combination_in_order(tmp_path: Path) -> None:
    runs = combinations([DIGITS, "method=ce,bsd", "seed=1,2", "optimizer.lr=0.1,0.2"], tmp_path)
    assert names(runs) == [
        f"digits_sym40-{method}-optimizer.lr={lr}-s{seed}"
        for method in ("ce", "bsd")
        for seed in (1, 2)
        for lr in (0.1, 0.2)
    ]
    assert runs[0].arguments == (DIGITS, "method=ce", "seed=1", "optimizer.lr=0.1")
    assert runs[0].directory.parent == tmp_path


def test_several_recipes(tmp_path: Path) -> None:
    runs = combinations(["recipe=digits_sym40,cifar10n_worst", "method=ce"], tmp_path)
    assert names(runs) == ["digits_sym40-ce-s0", "cifar10n_worst-ce-s0"]


def test_defaults_are_named_too(tmp_path: Path) -> None:
    method = load_config([DIGITS]).method
    assert names(combinations([DIGITS], tmp_path)) == [f"digits_sym40-{method}-s0"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("1,2,3", ["1", "2", "3"]),
        ("[weak,strong]", ["[weak,strong]"]),
        ("[weak],[weak,strong]", ["[weak]", "[weak,strong]"]),
        ("{a: 1, b: [1,2]},x", ["{a: 1, b: [1,2]}", "x"]),
        ("", [""]),
        ("1,", ["1", ""]),
    ],
)
def test_split_values(text: str, parts: list[str]) -> None:
    assert split_values(text) == parts


def test_a_list_is_one_value(tmp_path: Path) -> None:
    views = "augment.views=[weak],[weak,strong]"
    runs = combinations([DIGITS, "method=ce", views], tmp_path)
    assert [load_config(run.arguments).augment.views for run in runs] == [
        ("weak",),
        ("weak", "strong"),
    ]
    assert len(set(names(runs))) == 2
    assert all(re.fullmatch(r"[\w.=+,-]+", name) for name in names(runs))


def test_directories_differ_where_values_hold_dots(tmp_path: Path) -> None:
    runs = combinations([DIGITS, "method=ce", "noise.rate=0.2,0.4"], tmp_path)
    assert len({path for run in runs for path in (run.directory, run.log, run.failure)}) == 6


def test_command_is_what_train_takes(tmp_path: Path) -> None:
    (run,) = combinations([DIGITS, "method=ce"], tmp_path)
    python, dash_m, module, *arguments = run.command()
    assert (python, dash_m, module) == (sys.executable, "-m", "noisybsd.train")
    config = load_config(arguments)
    assert config.run.dir == str(run.directory)
    assert config.tracking.console == "plain"


# mistakes


def test_own_settings_are_no_keys_of_train() -> None:
    assert not set(sweep._SETTINGS) & set(Config.model_fields)


def test_all_mistakes_at_once_before_anything_starts(
    stub: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(FINISH)
    wrong = ["method=ce,bsdd", "epochs=0", "seed=1,2", "optimiser.lr=1", "jobs=0", "retry=maybe"]
    assert main([DIGITS, *wrong, "launcher=slrum", "out=o"]) == 2
    error = capsys.readouterr().err
    for part in ("method: got 'bsdd'", "epochs:", "optimiser.lr: unknown key", "jobs: got 0"):
        assert error.count(part) == 1
    assert "retry: got 'maybe'" in error
    assert "did you mean slurm?" in error
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("job=2", "job: unknown key (got 2); did you mean jobs, a setting of the sweep?\n"),
        ("joobs=2", "jobs, a setting of the sweep"),
        ("retri=true", "retry, a setting of the sweep"),
        ("lancher=slurm", "launcher, a setting of the sweep"),
        ("slrum.partition=x", "slurm, a setting of the sweep"),
        ("epocs=2", "did you mean epochs?"),
        ("jobs=two", "jobs: got 'two'; valid: a whole number of at least 1"),
        ("jobs=true", "jobs: got True"),
        ("jobs=1,2", "jobs: got '1,2'"),
        ("slurm=gpu", "slurm: got 'gpu'"),
        ("out=", "out: got ''; valid: one folder"),
        ("out=null", "out: got 'null'; valid: one folder"),
        ("out=[a]", "out: got '[a]'; valid: one folder"),
        ("out=~nobody-of-this-name/x", "out: got '~nobody-of-this-name/x'"),
        ("out=" + "x" * 300, "File name too long"),
        ("jobs=" + "9" * 5000, "jobs: got '999"),
        ("slurm.partition=gpu", "slurm.partition: has no effect without launcher=slurm"),
        ("run.dir=x", "run.dir: a sweep names its run directories itself"),
        ("run.resume=none", "run.resume: a sweep names its run directories itself"),
        ("epochs", "argument 'epochs': settings are written key=value"),
        ("--epochs=3", "argument '--epochs=3'"),
        ("seed=1,1", "digits_sym40-ce-s1: several combinations"),
        ("epochs=3,03", "digits_sym40-ce-epochs=03-s0: is the same run as digits_sym40-ce-epochs"),
        ("seed=1,", "seed: "),
        ("method=bsd", "method: given twice"),
    ],
)
def test_mistakes(argument: str, answer: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([DIGITS, "method=ce", argument]) == 2
    assert answer in capsys.readouterr().err


def test_no_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["seed=1,2"]) == 2
    assert capsys.readouterr().err.count("no recipe given") == 1


def test_a_directory_of_another_configuration(tmp_path: Path) -> None:
    (run,) = combinations([DIGITS, "method=ce"], tmp_path)
    run.directory.mkdir()
    record = load_config([DIGITS, "method=ce", "epochs=7"])
    (run.directory / "config.yaml").write_text(yaml.safe_dump(record.model_dump(mode="json")))
    (run.directory / "results.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"another configuration.*out=DIR\n  epochs: 7 there, 60 here"
    ):
        combinations([DIGITS, "method=ce"], tmp_path)
    (again,) = combinations([DIGITS, "method=ce", "epochs=7"], tmp_path)
    assert again.finished


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{key}=" in text or f"{key}." in text for key in sweep._SETTINGS)
    assert main([]) == 2


# what becomes of them


def test_finished_ones_are_skipped_and_failed_ones_reported_until_retried(
    stub: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [DIGITS, "method=ce", "seed=0,1,2", "out=o", "jobs=3"]
    stub(FAIL_ONE)
    assert main(arguments) == 1
    output = capsys.readouterr().out
    assert "3 runs, 3 to start" in output
    assert "FAILED   digits_sym40-ce-s1: error: the loss is not finite at step 7" in output
    assert "2 of 3 runs done, 1 failed" in output

    assert main(arguments) == 1
    output = capsys.readouterr().out
    assert "3 runs, 0 to start" in output
    assert output.count("(before)") == 2
    assert "(before; retry=true tries again): error: the loss is not finite at step 7" in output

    stub(FINISH)
    assert main([*arguments, "retry=true"]) == 0
    assert "3 runs, 1 to start" in capsys.readouterr().out
    out = tmp_path / "o"
    assert [len(calls(out, f"digits_sym40-ce-s{seed}")) for seed in (0, 1, 2)] == [1, 2, 1]
    assert not (out / "digits_sym40-ce-s1" / "failed.txt").exists()


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("sys.exit(3)", "it printed nothing"),
        ("raise ZeroDivisionError('x')", "ZeroDivisionError: x"),
        ("print('epoch 1'); os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    ],
)
def test_reasons(
    code: str, reason: str, stub: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub(f"sys.stdout.flush(); {code}" if "print" not in code else code)
    assert main([DIGITS, "method=ce"]) == 1
    assert f"FAILED   digits_sym40-ce-s0: {reason}" in capsys.readouterr().out


def test_the_reason_is_of_the_last_attempt(
    stub: Callable[[str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    stub("print('error: first'); sys.exit(1)")
    main([DIGITS, "method=ce"])
    stub("sys.exit(1)")
    capsys.readouterr()
    main([DIGITS, "method=ce", "retry=true"])
    assert "it printed nothing" in capsys.readouterr().out


def test_at_most_so_many_at_a_time_each_on_the_gpu_of_its_slot(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(launch, "_cores", lambda: 8)
    stub(f"time.sleep(0.3); {FINISH}")
    runs = combinations([DIGITS, "method=ce", "seed=0,1,2,3,4"], tmp_path)
    log: list[str] = []
    assert run_here(runs, 3, ["4", "GPU-b"], log.append) is None
    running = most = 0
    for line in log:
        running += 1 if line.startswith("start") else -1
        most = max(most, running)
    assert (most, running, len(log)) == (3, 0, 10)
    found = [calls(tmp_path, run.name)[0].split() for run in runs]
    # slots 0, 1, 2 share two GPUs; then the first free slot
    assert [gpu for gpu, _ in found[:3]] == ["4", "GPU-b", "4"]
    assert {gpu for gpu, _ in found} == {"4", "GPU-b"}
    assert {threads for _, threads in found} == {"2"}


def test_without_gpus_the_environment_stays(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "mine")
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    stub(FINISH)
    (run,) = combinations([DIGITS, "method=ce"], tmp_path)
    run_here([run], 1, [], print)
    assert calls(tmp_path, run.name) == ["mine 5"]


def test_visible_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert launch.visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    assert launch.visible_gpus() == ["3", "5"]
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert launch.visible_gpus() == []


def test_jobs_default_to_the_gpus(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "visible_gpus", lambda: ["6", "7"])
    stub(f"time.sleep(0.3); {FINISH}")
    main([DIGITS, "method=ce", "seed=0,1", "out=o"])
    found = {calls(tmp_path / "o", f"digits_sym40-ce-s{seed}")[0].split()[0] for seed in (0, 1)}
    assert found == {"6", "7"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_passed_on_and_the_same_command_continues(
    number: signal.Signals,
    stub: Callable[[str], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # the processes wait until both run, then the first sends the signal to the sweep
    stub(f"""
mine = sorted(path.parent.iterdir()).index(path)
while len(list(path.parent.glob("*/started.txt"))) < 2: time.sleep(0.02)
if mine == 0: os.kill(os.getppid(), {int(number)})
time.sleep(60)
""")
    arguments = [DIGITS, "method=ce", "seed=0,1,2", "out=o", "jobs=2"]
    assert main(arguments) == 128 + number
    output = capsys.readouterr().out
    assert output.count("stopped  ") == 2
    assert output.count("start    ") == 2
    assert "the same command again continues" in output
    saved = sorted((tmp_path / "o").glob("*/saved.txt"))
    assert [path.read_text() for path in saved] == ["SIGTERM", "SIGTERM"]
    assert not list((tmp_path / "o").glob("*/failed.txt"))
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL

    stub(FINISH)
    assert main(arguments) == 0
    assert "3 runs, 3 to start" in capsys.readouterr().out


def test_a_second_signal_ends_them_at_once(stub: Callable[[str], None], tmp_path: Path) -> None:
    # on the first signal, as noisybsd.train does, saving; it would take a minute
    stub("""
def save(number, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getppid(), signal.SIGTERM)
    time.sleep(60)
signal.signal(signal.SIGTERM, save)
os.kill(os.getppid(), signal.SIGTERM)
time.sleep(60)
""")
    begin = time.monotonic()
    assert main([DIGITS, "method=ce", "out=o"]) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 30
    assert not list((tmp_path / "o").glob("*/failed.txt"))


def test_a_run_that_another_process_trains_is_left_alone(
    stub: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub(FINISH)
    monkeypatch.setattr(sweep, "LET_END", 0.1)
    arguments = [DIGITS, "method=ce", "seed=0,1", "out=o"]
    other = tmp_path / "o" / "digits_sym40-ce-s0"
    with lock_run(other):
        assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "busy     digits_sym40-ce-s0" in output
    assert "1 of 2 runs done, 0 failed" in output
    assert not (other / "calls.txt").exists()


@pytest.mark.parametrize("locked", ["before", "while it starts"])
def test_a_run_that_another_sweep_comes_to_first_is_left_alone(
    locked: str, stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub('print("error: in use by another process"); sys.exit(2)')
    run, lines = Run(("seed=0",), tmp_path / "o" / "run"), []
    (tmp_path / "o" / "run").mkdir(parents=True)
    (run.directory / "console.txt").write_text("epoch 1")
    locks = [lock_run(run.directory)] if locked == "before" else []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("start"):
            locks.append(lock_run(run.directory))

    assert run_here([run], 1, [], say) is None
    locks[0].close()
    assert lines[-1] == "busy     run (another process trains it)"
    assert not run.failed and len(lines) == (1 if locked == "before" else 2)
    assert (run.log.read_text() == "epoch 1") == (locked == "before")


def test_the_command_for_the_table_is_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for value in ("epochs=3", "epochs=4"):  # which cannot be compared
        make_run(Path("o") / f"digits_sym40-ce-{value}-s0", "method=ce", value)
    assert main([DIGITS, "method=ce", "epochs=3,4", "out=o"]) == 2
    said = capsys.readouterr()
    assert "epochs differs: 3 in o/digits_sym40-ce-epochs=3-s0; 4 in " in said.err
    (line,) = (line for line in said.out.splitlines() if "python -m" in line)
    assert compare(line.split("python -m noisybsd.compare ")[1].split()) == 0


def test_a_folder_is_taken_as_it_is_typed(stub: Callable[[str], None], tmp_path: Path) -> None:
    stub(FINISH)
    assert main([DIGITS, "method=ce", "out=run #1"]) == 0
    assert (tmp_path / "run #1" / "digits_sym40-ce-s0" / "results.json").exists()


def test_strangers_folders_are_refused(
    stub: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(FINISH)
    run = tmp_path / "o" / "digits_sym40-ce-s0"
    run.mkdir(parents=True)
    (run / "thesis.tex").touch()
    arguments = [DIGITS, "method=ce", "out=o"]
    assert main(arguments) == 2
    assert "out=o: holds 'digits_sym40-ce-s0', and no runs" in capsys.readouterr().err
    (tmp_path / "o" / "another").mkdir()
    (tmp_path / "o" / "another" / "console.txt").touch()  # a sweep's
    assert main(arguments) == 2
    assert "o/digits_sym40-ce-s0: holds thesis.tex, and no run" in capsys.readouterr().err
    assert [entry.name for entry in run.iterdir()] == ["thesis.tex"]


SWEEP = """
import sys
from noisybsd import launch, sweep
sweep.visible_gpus = list
launch.Run.command = lambda run: [sys.executable, "-c", sys.argv[1], str(run.directory), "0"]
sys.exit(sweep.main(sys.argv[2:]))
"""
# takes the lock as a run does, without the import of torch; saves when somebody waits for that
FOLLOWS = """
import fcntl
from noisybsd.processes import follow_parent
lock = (path / ".lock").open("ab")
fcntl.flock(lock, fcntl.LOCK_EX)
follow_parent()
(path / "locked.txt").touch()
time.sleep(600)
"""
SAVE = '(path / "saved.txt")'
WAIT = f"""
    while not pathlib.Path("waited.txt").exists():
        time.sleep(0.02)
    {SAVE}"""


def test_runs_end_with_a_sweep_that_is_killed_and_the_next_one_waits_for_them(
    stub: Callable[[str], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub(FINISH)
    slow = STUB.replace(f"    {SAVE}", WAIT) + FOLLOWS
    monkeypatch.setattr(sweep, "LET_END", 600)
    arguments = [DIGITS, "method=ce", "seed=0,1", "jobs=2", "out=o"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    sweeping = subprocess.Popen(
        [sys.executable, "-c", SWEEP, slow, *arguments], env=environment, stdout=subprocess.PIPE
    )
    end = time.monotonic() + 600  # on a machine that does much else
    while len(list(tmp_path.glob("o/*/locked.txt"))) < 2:
        assert sweeping.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    sweeping.kill()
    sweeping.communicate()
    sleep = time.sleep
    waited = tmp_path / "waited.txt"
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: (waited.touch(), sleep(seconds)))
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "waiting for 2 runs that another process trains" in output
    assert "2 runs, 2 to start" in output and "2 of 2 runs done" in output
    assert len(list(tmp_path.glob("o/*/saved.txt"))) == 2


def test_what_is_done_is_compared(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[str] = []
    monkeypatch.setattr("noisybsd.compare.__main__.main", compared.extend)
    stub(FAIL_ONE)
    main([DIGITS, "method=ce", "seed=0,1,2", "out=o", "jobs=3"])
    assert compared == ["o/digits_sym40-ce-s0", "o/digits_sym40-ce-s2"]


def test_what_cannot_be_compared_is_no_success(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a damaged results.json
    monkeypatch.setattr("noisybsd.compare.__main__.main", lambda arguments: 2)
    stub(FINISH)
    assert main([DIGITS, "method=ce", "out=o"]) == 2


def test_a_place_that_cannot_be_written(
    stub: Callable[[str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stub(FINISH)
    (tmp_path / "file").touch()
    for out, answer in (
        ("file", "out=file: is no folder"),
        ("file/below", "file/below/digits_sym40-ce-s0: cannot be a run directory: Not a directory"),
    ):
        assert main([DIGITS, "method=ce", f"out={out}"]) == 2
        assert answer in capsys.readouterr().err


@pytest.mark.slow
def test_interrupted_training_continues_and_ends_as_without_interruption(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    arguments = [*_unlike(tiny(), "method"), "method=ce,bsd", "jobs=2"]
    for method in ("ce", "bsd"):
        assert train.main(tiny(f"method={method}", f"run.dir=whole/digits_sym40-{method}-s0")) == 0

    command = [sys.executable, "-m", "noisybsd.sweep", *arguments, "out=cut"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not list((tmp_path / "cut").glob("*/metrics.jsonl")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    if process.returncode != 0:  # it was not yet done
        assert process.returncode == 128 + signal.SIGTERM, output
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "of last % to ce [95 % confidence interval]" in done.stdout
    for run in (tmp_path / "whole").iterdir():
        rows, cut_rows = (
            [
                re.sub(r'"((waited_)?seconds|images_per_second)": [^,}]+', "", line)
                for line in file.open()
            ]
            for file in (run / "metrics.jsonl", tmp_path / "cut" / run.name / "metrics.jsonl")
        )
        assert rows == cut_rows
        results, cut_results = (
            json.loads((tmp_path / place / run.name / "results.json").read_text())
            for place in ("whole", "cut")
        )
        for key in ("network_passes", "reliability", "reliability_ema", "data_sha256"):
            assert results[key] == cut_results[key]


# SLURM


def test_slurm_without_submitit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([DIGITS, "launcher=slurm", "slurm.time=10"]) == 2
    assert "launcher=slurm needs submitit: pip install submitit" in capsys.readouterr().err


def test_slurm_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([DIGITS, "launcher=slurm", "slurm.time=10"]) == 2
    assert "SLURM is not there" in capsys.readouterr().err


DOCS = ROOT / "docs" / "sweeps.md"

FAKE_SLURM = {
    # runs the tasks of a job array one after the other, in the background
    "sbatch": """\
        #!/bin/bash
        script="${@: -1}"; echo "$@" >> "$FAKE/sbatch.txt"; cp "$script" "$FAKE/script.sh"
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        export SLURM_JOB_NUM_NODES=1 SLURM_NTASKS=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
        (for i in $(seq 0 $last); do
            SLURM_JOB_ID=$((77 + i)) SLURM_ARRAY_JOB_ID=77 SLURM_ARRAY_TASK_ID=$i \
                bash "$script" > "$FAKE/77_$i.txt" 2>&1
        done) > "$FAKE/array.txt" 2>&1 &  # or submitit would wait for its output
        echo "Submitted batch job 77"
        """,
    "srun": """\
        #!/bin/bash
        while [[ "$1" == --* ]]; do if [[ "$1" == *put || "$1" == --error ]]; then shift; fi; shift; done
        exec "$@"
        """,
    "sacct": """\
        #!/bin/bash
        echo "JobID|State|NodeList"; cat "$FAKE/states.txt" 2>/dev/null || true
        """,
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands that behave as SLURM's as far as submitit looks."""
    pytest.importorskip("submitit")
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in FAKE_SLURM.items():
        (folder / name).write_text(textwrap.dedent(text))
        (folder / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_slurm_wants_a_time(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([DIGITS, "launcher=slurm"]) == 2
    assert "slurm.time: is required" in capsys.readouterr().err


def test_slurm_parameters_are_checked(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [DIGITS, "launcher=slurm", "slurm.time=10", "slurm.partitoin=gpu"]
    assert main(arguments) == 2
    assert "partitoin" in capsys.readouterr().err
    assert not (slurm / "sbatch.txt").exists()


@pytest.mark.parametrize("time", ["10:00:00", "1-12", "0", "ten", ""])
def test_slurm_times_are_minutes(
    time: str, slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SLURM's own notation would be read as YAML: 10:00:00 is the number 36000 there."""
    assert main([DIGITS, "launcher=slurm", f"slurm.time={time}"]) == 2
    assert f"slurm.time: got {time!r}; valid: minutes" in capsys.readouterr().err
    assert not (slurm / "sbatch.txt").exists()


SUBMITTED = """\
#SBATCH --array=0-5%4
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --job-name=noisybsd
#SBATCH --mem=32G
#SBATCH --nodes=1
#SBATCH --partition=gpu
#SBATCH --signal=USR2@90
#SBATCH --time=600
module load cuda
"""


def test_what_is_submitted_to_slurm(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command of docs/sweeps.md, up to the commands that only a cluster has."""
    submission = pytest.importorskip("submitit.core.utils")
    (slurm / "srun").write_text("#!/bin/bash\n")  # nothing is run
    (text,) = re.findall(r"```bash\npip install submitit\n(.*?)```", DOCS.read_text(), re.DOTALL)
    start, *arguments = text.replace("\\\n", " ").split("noisybsd.sweep")
    assert start.split() == ["python", "-m"]
    arguments = arguments[0].split()
    more = ["slurm.mem=32G", "slurm.setup=[module load cuda]", "out=o"]
    assert main([*arguments, *more]) == 0
    output = capsys.readouterr().out
    assert "6 jobs submitted; what they print is in o/slurm" in output
    lines = (slurm / "script.sh").read_text().splitlines()
    assert not [line for line in SUBMITTED.splitlines() if line not in lines]
    assert any(f"{sys.executable} -u -m submitit.core._submit" in line for line in lines)

    sweep_alone = [a for a in arguments if a.split("=")[0].split(".")[0] not in sweep._SETTINGS]
    for number, run in enumerate(combinations(sweep_alone, Path("o"))):
        assert run.job.read_text() == f"77_{number}\n"
        assert f"job 77_{number} {run.name}" in output
        job = submission.DelayedSubmission.load(f"o/slurm/77_{number}_submitted.pkl")
        assert (job.function, job.args) == (launch.run_one, (run,))


def test_jobs_of_one_run(slurm: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (slurm / "srun").write_text("#!/bin/bash\n")
    own = ["launcher=slurm", "slurm.time=10", "slurm.job_name=mine", "out=o"]
    assert main([DIGITS, "method=ce", *own]) == 0
    output = capsys.readouterr().out
    assert "1 run, 1 to start" in output and "1 job submitted" in output
    assert "0 of 1 run done, 0 failed\n" in output and "noisybsd.compare" not in output
    script = (slurm / "script.sh").read_text()
    assert "--job-name=mine" in script and "--array" not in script


@pytest.mark.slow
def test_slurm_from_submission_to_results(
    slurm: Path,
    tiny: Callable[..., list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = ["launcher=slurm", "slurm.time=10", "slurm.partition=gpu", "jobs=1", "out=o"]
    arguments = [*_unlike(tiny(), "epochs"), "epochs=1", "seed=0,1", *own]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "2 jobs submitted" in output
    script = (slurm / "script.sh").read_text()
    for line in ("--array=0-1%1", "--partition=gpu", "--time=10"):
        assert line in script

    (slurm / "states.txt").write_text("77_0|RUNNING|n1\n77_1|PENDING|\n")
    main(arguments)
    output = capsys.readouterr().out
    assert "0 to start" in output or "done" in output
    assert "pending  digits_sym40-bsd_plus-s1 (job 77_1)" in output

    deadline = time.monotonic() + 300
    while len(list((tmp_path / "o").glob("*/results.json"))) < 2:
        assert time.monotonic() < deadline, [p.read_text() for p in slurm.glob("77_*.txt")]
        time.sleep(0.2)
    assert main(arguments) == 0
    assert "2 of 2 runs done" in capsys.readouterr().out


def test_before_the_time_is_up_the_training_is_told_to_save(
    stub: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # submitit's handler of SIGUSR2 raises; SLURM sends the signal to every process of the job
    stub("""
os.kill(os.getpid(), signal.SIGUSR2)
os.kill(os.getppid(), signal.SIGUSR2)
time.sleep(60)
""")

    def time_is_up(number: int, frame: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGUSR2, time_is_up)
    try:
        (run,) = combinations([DIGITS, "method=ce"], tmp_path)
        with pytest.raises(TimeoutError):
            launch.run_one(run)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert (run.directory / "saved.txt").read_text() == "SIGTERM"
    assert not run.failure.exists()


# W&B sweep agents


AGENT = DOCS.parent / "wandb_sweep.yaml"


def agents_commands(
    config: dict[str, Any], pick: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[str], dict[str, str], dict[str, Any]]:
    """What W&B's own agent would start for one choice of parameters: command, environment, choice."""
    wandb_agent = pytest.importorskip("wandb.wandb_agent")  # not of W&B's public interface
    started: list[tuple[list[str], dict[str, str]]] = []

    def start(command: list[str], env: dict[str, str], **_: Any) -> Any:
        started.append((command, env))
        return SimpleNamespace()

    monkeypatch.setattr(wandb_agent, "AgentProcess", start)
    for name in ("WANDB_RUN_ID", "WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):
        monkeypatch.setenv(name, "a1b2c3d4")  # the agent sets them for good
    agent = wandb_agent.Agent(api=None, queue=None)
    agent._sweep_command = list(config["command"])
    chosen = {
        name: {"value": choice["value"] if "value" in choice else choice["values"][pick]}
        for name, choice in config["parameters"].items()
    }
    agent._command_run({"run_id": "r1", "program": config.get("program"), "args": chosen})
    ((command, environment),) = started
    return command, environment, {name: each["value"] for name, each in chosen.items()}


@pytest.mark.parametrize("pick", [0, -1])
def test_wandb_agents_command_is_what_train_takes(
    pick: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    agent = yaml.safe_load(AGENT.read_text("utf-8"))
    # what a sweep may hold too
    agent["parameters"] |= {
        "augment.views": {"values": [["weak"], ["weak", "strong"]]},
        "optimizer.weight_decay": {"value": 1e-5},
        "data.verify": {"value": False},
    }
    command, _, chosen = agents_commands(agent, pick, monkeypatch)
    assert command[:4] == ["/usr/bin/env", "python", "-m", "noisybsd.train"]
    config = load_config(command[4:]).model_dump(mode="json")
    for name, value in chosen.items():
        found = config
        for part in name.split("."):
            found = found[part]
        assert found == value, name


@pytest.mark.slow
def test_a_run_that_wandbs_agent_starts_is_the_sweeps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: Callable[..., list[str]]
) -> None:
    agent = yaml.safe_load(AGENT.read_text("utf-8"))
    small = [a.split("=", 1) for a in tiny("epochs=1", "tracking.wandb=offline", "run.dir=here")]
    agent["parameters"] |= {key: {"value": value} for key, value in small}
    command, environment, _ = agents_commands(agent, 0, monkeypatch)
    python = f"{Path(sys.executable).parent}:{environment['PATH']}"  # as in a venv's shell
    done = subprocess.run(
        command, env={**environment, "PATH": python}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "here" / "results.json").exists()
    (folder,) = (tmp_path / "here" / "wandb").glob("offline-run-*")
    assert folder.name.endswith("-r1")  # the id that the sweep knows


def test_the_agents_file_is_the_one_the_docs_name() -> None:
    text = DOCS.read_text("utf-8")
    assert f"]({AGENT.name})" in text and f"wandb sweep docs/{AGENT.name}" in text
    assert AGENT.name not in {f"{name}.yaml" for name in recipe_names()}
