"""The queue of a GPU day: its lists, its deadline, its records, and what comes of them."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from helpers import ROOT
from helpers.benchmarks import benchmark
from helpers.finished import make_run
from helpers.training import TINY

from noisybsd.config import load_config
from noisybsd.errors import UserError

DAY = ROOT / "benchmarks" / "gpu_day"

# A run that is no training: an epoch is `pace` seconds. It saves at SIGINT, or does not listen to it.
STUB = """
import json, os, signal, sys, time
from pathlib import Path
given = dict(argument.split("=", 1) for argument in sys.argv[1:])
run = Path(given["run.dir"])
if "fail" in given:
    sys.exit("error: it failed")
def save(*_):
    (run / "saved").write_text(str(epoch))
    sys.exit(130)
signal.signal(signal.SIGINT, signal.SIG_IGN if "deaf" in given else save)
epoch, epochs = int((run / "saved").read_text()) if (run / "saved").exists() else 0, int(given["epochs"])
print("beginning after epoch", epoch, "pid", os.getpid(), flush=True)
(run / "config.yaml").write_text(f"epochs: {epochs}\\n")
while epoch < epochs:
    time.sleep(float(given.get("pace", 0.1)))
    epoch += 1
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps({"epoch": epoch, "test_accuracy": epoch / 1000, "seconds": 1.5}) + "\\n")
(run / "labels.parquet").write_text(f"labels of seed {given['seed']}")
(run / "results.json").write_text("{}")
"""


@pytest.fixture
def runs() -> ModuleType:
    return benchmark("gpu_day.runs")


@pytest.fixture
def queue(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Work through lines until a deadline: the exit code, and the rows of status.csv by seed."""
    stub = tmp_path / "stub.py"
    stub.write_text(STUB)
    monkeypatch.setattr(runs, "TRAIN", [sys.executable, str(stub)])

    def work(lines: list[str], seconds: float, *more: str) -> tuple[int, dict[str, dict[str, str]]]:
        (tmp_path / "list").write_text("\n".join(lines))
        code = runs.main([str(tmp_path / "list"), str(tmp_path / "state"), str(seconds), *more])
        with (tmp_path / "state/out/status.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        return code, {re.findall(r"-s(\d+)", row["run"])[0]: row for row in rows}

    return work


def archived(state: Path) -> dict[str, bytes]:
    """What records.tar.gz holds, by `SEED/FILE`."""
    with tarfile.open(state / "out/records.tar.gz") as archive:
        files = {name: archive.extractfile(name) for name in archive.getnames()}
        return {
            re.sub(r".*-s(\d+).*/", r"\1/", name): file.read()
            for name, file in files.items()
            if file
        }


# --- the lists ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke.txt", "list.txt", "goals.txt"])
def test_every_line_of_a_list_is_a_run(runs: ModuleType, name: str) -> None:
    """Recipe and method exist, and the settings are valid."""
    listed = runs.read_list(DAY / name)
    assert len(listed) >= 2
    configs = [
        load_config([each.replace("epochs=fit", "epochs=300") for each in arguments])
        for arguments in listed.values()
    ]
    if name == "list.txt":  # one run takes what time there is, the others are short
        assert sum(config.epochs > 50 for config in configs) == 1
    if name == "smoke.txt":
        assert {config.method for config in configs} == {"bsd_plus", "ce"}
        assert all(config.epochs == 2 for config in configs)


def test_the_screen_of_the_day_has_variants_and_data_of_the_screen() -> None:
    screen = benchmark("screen")
    assert screen.VARIANTS.keys() >= set((DAY / "screen.txt").read_text("utf-8").splitlines())
    (data,) = re.findall(r'name="(all of [^"]+)"', (DAY / "first.sh").read_text("utf-8"))
    assert data in screen.DATA


STEP = "method,seconds_per_epoch\nbare,1\nce,1.5\nbsd_plus,{}\n"


@pytest.mark.parametrize(
    ("plain", "compiled", "settings"),
    [
        (2.0, None, "epochs=185"),  # (560 - 60) / (1.1 * 2 + 0.5)
        (2.0, 1.9, "epochs=185"),  # hardly faster
        (2.0, 1.0, "epochs=275 compile=true"),  # a minute less
        (2.0, 0.5, "epochs=300 compile=true"),  # 419, and the recipe has 300
        (None, 2.0, "epochs=162 compile=true"),
        (None, None, "epochs=100"),  # nothing was measured
        (1000.0, None, "epochs=1"),
    ],
)
def test_a_run_takes_the_epochs_that_there_is_time_for(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    plain: float | None,
    compiled: float | None,
    settings: str,
) -> None:
    files = [tmp_path / "step.csv", tmp_path / "compiled.csv"]
    for file, seconds in zip(files, (plain, compiled), strict=True):
        if seconds is not None:
            file.write_text(STEP.format(seconds))
    listed = tmp_path / "list"
    listed.write_text("# epochs=fit\nr1 bsd_plus 0 epochs=fit\nr1 ce 0 epochs=2\n")
    benchmark("gpu_day.fit").main([str(listed), "560", *map(str, files)])
    assert capsys.readouterr().out == f"# epochs=fit\nr1 bsd_plus 0 {settings}\nr1 ce 0 epochs=2\n"


def test_a_list_is_comments_runs_and_settings(runs: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "list"
    file.write_text("# a comment\n\nr1 ce 0\nr1 ce 0 augment.views=[weak,strong] epochs=3 # so\n")
    assert runs.read_list(file) == {
        "r1-ce-s0": ["recipe=r1", "method=ce", "seed=0"],
        "r1-ce-s0-augment.views=-weak-strong--epochs=3": [
            *("recipe=r1", "method=ce", "seed=0", "augment.views=[weak,strong]", "epochs=3")
        ],
    }


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("r1 ce", "line 2: got 'r1 ce'; expected: recipe method seed"),
        ("r1 ce zero", "line 2: got 'r1 ce zero'"),
        ("r1 ce 1 epochs 3", "line 2: got 'r1 ce 1 epochs 3'"),
        ("r1 ce 0", "line 2: got 'r1 ce 0', which is there twice"),
    ],
)
def test_a_line_that_is_no_run(runs: ModuleType, tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "list"
    file.write_text(f"r1 ce 0\n{line}\n")
    with pytest.raises(UserError, match=re.escape(says)):
        runs.read_list(file)


def test_the_packages_to_carry_are_the_tested_ones() -> None:
    """pack.sh pins what constraints.txt pins, to the same version."""
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", (ROOT / "constraints.txt").read_text(), re.M))
    pins["faiss-cpu"] = pins["faiss-gpu"]
    carried = dict(re.findall(r"([\w-]+)==(\d[\w.]*)", (DAY / "pack.sh").read_text()))
    common = carried.keys() & pins.keys()
    assert common == {"kornia", "faiss-cpu", "pydantic"}
    assert {name: carried[name] for name in common} == {name: pins[name] for name in common}


def test_packing_without_the_data_says_so(tmp_path: Path) -> None:
    asked = subprocess.run(
        ["bash", str(DAY / "pack.sh"), str(tmp_path)], capture_output=True, text=True
    )
    assert asked.returncode == 2
    assert f"DATA={tmp_path}: there is no file {tmp_path}/make_cifar10.py" in asked.stderr
    assert "pack.sh DATA" in asked.stderr


# --- the deadline ---------------------------------------------------------------------------------


def test_runs_start_in_order_so_many_at_a_time(
    queue: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = queue([f"r ce {seed} epochs=3" for seed in range(5)], 60, "--workers", "2")
    assert code == 0 and {row["state"] for row in rows.values()} == {"finished"}
    told = re.findall(r"-s(\d).*: (started|finished)", capsys.readouterr().out)
    assert [seed for seed, event in told if event == "started"] == list("01234")
    going = most = 0
    for _, event in told:
        going += 1 if event == "started" else -1
        most = max(most, going)
    assert most == 2


def test_at_the_deadline_runs_are_saved_and_called_partial(
    queue: Callable[..., Any], tmp_path: Path
) -> None:
    lines = ["r ce 0 epochs=2", "r ce 1 epochs=9000", "r ce 2 epochs=2"]
    code, rows = queue(lines, 5, "--workers", "1")
    assert code == 0
    assert [rows[seed]["state"] for seed in "012"] == ["finished", "partial", "waiting"]
    assert rows["0"]["epoch"] == rows["0"]["epochs"] == "2"
    assert 0 < int(rows["1"]["epoch"]) < 9000 and rows["1"]["epochs"] == "9000"
    saved = int((tmp_path / "state/runs/r-ce-s1-epochs=9000/saved").read_text())
    assert saved == int(rows["1"]["epoch"])
    assert float(rows["1"]["test_accuracy"]) == saved / 1000


def test_a_run_that_does_not_listen_is_killed_after_the_grace(
    queue: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, rows = queue(["r ce 0 epochs=9000 deaf=true"], 4, "--grace", "0.5")
    assert rows["0"]["state"] == "partial"
    console = next(tmp_path.glob("state/runs/*/console.txt")).read_text()
    pid = int(re.findall(r"pid (\d+)", console)[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert f"stopped, exit code {-signal.SIGKILL}" in capsys.readouterr().out


def test_again_skips_what_is_finished_and_goes_on_with_the_rest(
    queue: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["r ce 0 epochs=2", "r ce 1 epochs=1000"]
    _, rows = queue(lines, 4, "--workers", "2")
    assert [rows[seed]["state"] for seed in "01"] == ["finished", "partial"]
    capsys.readouterr()
    code, rows = queue(lines, 60, "--workers", "2", "pace=0.001")
    assert code == 0 and [rows[seed]["state"] for seed in "01"] == ["finished", "finished"]
    out = capsys.readouterr().out
    assert "2 runs, 1 to do" in out and "-s0" not in out
    console = next(tmp_path.glob("state/runs/r-ce-s1*/console.txt")).read_text()
    first, again = map(int, re.findall(r"beginning after epoch (\d+)", console))
    assert first == 0 and again > 0
    epochs = [
        json.loads(line)["epoch"]
        for line in next(tmp_path.glob("state/runs/r-ce-s1*/metrics.jsonl")).open()
    ]
    assert epochs == list(range(1, 1001))  # none twice


def test_a_failed_run_is_told_of_and_the_others_go_on(
    queue: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    code, rows = queue(["r ce 0 epochs=2 fail=true", "r ce 1 epochs=2"], 60, "--workers", "1")
    assert code == 1 and [rows[seed]["state"] for seed in "01"] == ["failed", "finished"]
    assert re.search(
        r"failed, exit code 1; its last lines:\n +error: it failed", capsys.readouterr().out
    )


def test_a_strict_queue_ends_at_the_first_failure(queue: Callable[..., Any]) -> None:
    lines = ["r ce 0 epochs=9000", "r ce 1 epochs=2 fail=true", "r ce 2 epochs=2"]
    code, rows = queue(lines, 600, "--workers", "2", "--strict")
    assert code == 1
    assert rows["1"]["state"] == "failed" and rows["2"]["state"] == "waiting"
    code, rows = queue(["r ce 3 epochs=9000"], 0.5, "--strict")  # not finished is failed, too
    assert code == 1 and rows["3"]["state"] != "finished"


def test_two_queues_do_not_share_a_folder(
    runs: ModuleType, queue: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with runs.lock(tmp_path / "state"):
        (tmp_path / "list").write_text("r ce 0 epochs=1")
        assert runs.main([str(tmp_path / "list"), str(tmp_path / "state"), "9"]) == 2
    assert "another queue works there" in capsys.readouterr().err
    assert queue(["r ce 0 epochs=1"], 60)[0] == 0


# --- the records ----------------------------------------------------------------------------------


def test_records_hold_what_is_small_and_one_label_table(
    queue: Callable[..., Any], tmp_path: Path
) -> None:
    queue(["r ce 7 epochs=9000", "r ce 8 epochs=2", "r ce 9 epochs=2"], 5)
    files = archived(tmp_path / "state")
    assert files.keys() == {
        *("7/config.yaml", "7/metrics.jsonl", "7/console.txt"),
        *("8/config.yaml", "8/metrics.jsonl", "8/console.txt", "8/results.json"),
        *("9/config.yaml", "9/metrics.jsonl", "9/console.txt", "9/results.json"),
        "8/labels.parquet",  # of the first one that finished
    }
    assert files["8/labels.parquet"] == b"labels of seed 8"
    assert not list(tmp_path.glob("state/*.tmp"))


def test_records_are_written_while_the_runs_go_on(
    runs: ModuleType, queue: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "EVERY", 0.2)
    worker = threading.Thread(target=queue, args=(["r ce 0 epochs=9000"], 6))
    worker.start()
    seen = None
    while worker.is_alive() and not seen:
        time.sleep(0.1)
        if (tmp_path / "state/out/records.tar.gz").exists():
            seen = archived(tmp_path / "state").get("0/metrics.jsonl")
    still_going = worker.is_alive()
    worker.join()
    assert seen and still_going


def test_the_write_up_names_partial_runs_and_compares_finished_ones(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, listed = tmp_path / "state", {}
    for seed, method in ((0, "bsd_plus"), (1, "ce"), (2, "ce"), (3, "ce")):
        name = f"digits_sym40-{method}-s{seed}"
        listed[name] = ["recipe=digits_sym40", f"method={method}", f"seed={seed}"]
        if seed < 3:
            make_run(state / "runs" / name, f"method={method}", f"seed={seed}", "epochs=60")
    (state / "runs/digits_sym40-ce-s2/results.json").unlink()
    metrics = state / "runs/digits_sym40-ce-s2/metrics.jsonl"
    metrics.write_text(
        '{"epoch": 12, "test_accuracy": 0.4321, "test_ece": 0.1, "images_per_second": 9000.4, "seconds": 7}\n'
        '{"epoch": 13, "test_acc'  # a line that is being written
    )
    runs.Queue(listed, state, []).write_records()
    (state / "out/step.csv").write_text(
        "method,ms_median,views_per_second,seconds_per_epoch,tflops,share_of_peak,peak_memory_mb,network,"
        "batch,settings,hardware,versions,git_commit\n"
        "ce,9.99,51251,1.951,171.2,0.2167,6000,small,512,compile=true,a GPU,torch=2.11,abc\n"
    )
    (state / "out/fast_network.csv").write_text(
        "variant,seed,accuracy,mirrored,shifted,train_accuracy,epochs,width,n_train,hardware,versions,git_commit\n"
        "as the source,0,90,91,92,95,9.9,64,50000,a GPU,torch=2.11,abc\n"
        "as the source,1,91,92,93,96,9.9,64,50000,a GPU,torch=2.11,abc\n"
    )
    (state / "out/gpu_tests.txt").write_text(
        "FAILED tests/test_x.py::test_y - boom\n=== 1 failed, 80 passed, 3 skipped in 41.2s ===\n"
    )
    out = tmp_path / "gpu.md"
    monkeypatch.setattr(sys, "argv", ["write_up.py", str(state / "out"), str(out)])
    benchmark("gpu_day.write_up").main()
    text = out.read_text()
    assert "a GPU; torch=2.11; commit abc" in text
    assert "| small | ce | 512 | compile=true | 9.99 | 51,251 | 1.95 | 171 | 21.67 | 6000 |" in text
    assert "| as the source | 2 | 90.50 | 91.50 | 92.50 | 95.50 |" in text
    assert "`1 failed, 80 passed, 3 skipped in 41.2s`\n- `FAILED tests/test_x.py::test_y" in text
    assert "| `digits_sym40-bsd_plus-s0` | finished, 60 epochs |" in text
    assert (
        "| `digits_sym40-ce-s2` | partial, epoch 12 of 60 | 43.21 |  | 0.1000 |  | 9,000 | 7 |"
        in text
    )
    assert "Not trained: `digits_sym40-ce-s3`." in text
    compared = text[text.index("# Finished runs") :]
    assert re.search(r"\| bsd_plus \| 1 \|", compared) and re.search(r"\| ce \| 1 \|", compared)
    assert str(tmp_path) not in text


# --- for real -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_training_is_cut_off_and_goes_on(runs: ModuleType, tmp_path: Path) -> None:
    """With real runs: Ctrl-C for the queue saves them, and the next start finishes them."""
    (tmp_path / "list").write_text("digits_sym40 bsd 0\n")
    settings = [s for s in TINY if not s.startswith(("recipe", "method", "epochs"))]
    arguments = [*settings, "epochs=20", "neighbours.k=0"]
    program = [
        sys.executable,
        str(DAY / "runs.py"),
        str(tmp_path / "list"),
        str(tmp_path / "state"),
    ]
    first = subprocess.Popen([*program, "600", *arguments], stdout=subprocess.PIPE, text=True)
    run = tmp_path / "state/runs/digits_sym40-bsd-s0"
    until = time.monotonic() + 300
    while not (run / "metrics.jsonl").exists() or (run / "metrics.jsonl").stat().st_size == 0:
        assert first.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert first.returncode == 130 and "1 partial" not in out  # the count is of a queue's own end
    assert "stopped, exit code 130" in out and (run / "checkpoint.pt").exists()
    with (tmp_path / "state/out/status.csv").open(newline="") as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["partial"]

    assert runs.main([str(tmp_path / "list"), str(tmp_path / "state"), "600", *arguments]) == 0
    assert (run / "results.json").exists()
    console = (run / "console.txt").read_text()
    assert "stopped by SIGINT, saved" in console and "continuing after epoch" in console
