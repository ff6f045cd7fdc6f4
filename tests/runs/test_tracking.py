"""Telling of a run: console, log file, and a W&B that may fail in every way."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.compared import assert_same, outcome, rows
from helpers.reported import own_images
from helpers.training import TINY
from helpers.wandb_server import WandbServer

from noisybsd.config import load_config
from noisybsd.engine.trainer import Trainer
from noisybsd.runs import tracking
from noisybsd.runs.tracking import Tracker, duration, epoch_line, wandb_mode
from noisybsd.train import main

Tiny = Callable[..., list[str]]
KEY = "0" * 40


# --- the console ------------------------------------------------------------------------------------


def test_an_epochs_line_leaves_out_what_is_unknown() -> None:
    metrics = {"epoch": 3, "loss": 0.91349, "test_accuracy": 0.9314, "noise_detection_auroc": None}
    assert epoch_line(metrics, 60) == "epoch  3/60  loss 0.913  test 93.14%"


class Terminal:
    """A pseudo-terminal in the place of standard output."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.outside, inside = os.openpty()
        self.stream = os.fdopen(inside, "w", encoding="utf-8")
        self.shown = io.BytesIO()
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()
        monkeypatch.setattr(sys, "stdout", self.stream)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "80")

    def read(self) -> None:
        while True:
            try:
                self.shown.write(os.read(self.outside, 65536))
            except OSError:  # closed on the other side
                return

    def text(self) -> str:
        """All that was shown; closes the terminal."""
        self.stream.close()
        self.reader.join(timeout=10)
        os.close(self.outside)
        return self.shown.getvalue().decode()


def test_a_long_run_of_own_images_without_a_gpu_hears_of_the_quick_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tracking, "LONG", 0.0)
    assert main([*own_images(tmp_path / "photos"), "run.dir=run"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"this run takes about \d+ s here; recipe=own_quick takes minutes", said)
    assert main([*TINY, "run.dir=digits"]) == 0
    said = capsys.readouterr().out
    assert "this run takes about" in said and "own_quick" not in said


def test_a_terminal_shows_progress_and_the_log_stays_plain(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    assert main(tiny("run.dir=run")) == 0
    shown = terminal.text()
    assert "\x1b[" in shown and re.search(r"\d+/12", shown)  # the bar, of 3 epochs of 4 steps
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h")  # hidden cursors come back
    lines = [line for line in shown.splitlines() if "epoch 2/3" in line]
    assert len(lines) == 1 and "img/s" in lines[0]  # one line, however narrow the terminal
    log = Path("run/log.txt").read_text("utf-8")
    assert "\x1b" not in log and "\r" not in log and log.count("epoch ") == 3


def test_plain_lines_may_be_asked_for(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(monkeypatch)
    assert main(tiny("run.dir=run", "tracking.console=plain")) == 0
    assert "\x1b" not in terminal.text()


def test_plain_lines_say_how_long_a_long_epoch_still_takes(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 0.0
    monkeypatch.setattr(tracking, "time", SimpleNamespace(monotonic=lambda: now))
    config = load_config(tiny("epochs=3", "tracking.console=plain"))
    # the second of three epochs of 100 steps goes on after its 20th step; a step takes 10 seconds
    with Tracker(config, tmp_path, wandb_id="1", total_steps=300, first_step=120) as tracker:
        for _ in range(13):
            now += 10
            tracker.step()
        tracker.epoch({"epoch": 2})
        for _ in range(4):
            now += 10
            tracker.step()
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "epoch 2/3  step 26/100  about 12 min left, and 29 min of training in all",
        "epoch 2/3  step 32/100  about 11 min left, and 28 min of training in all",
        "epoch 2/3",
    ]
    assert [duration(s) for s in (7.4, 89, 7260)] == ["7 s", "89 s", "2 h 1 min"]


def test_progress_goes_on_where_it_stopped(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Trainer.evaluate
    with monkeypatch.context() as patch:
        stop = lambda self: [os.kill(os.getpid(), signal.SIGINT), evaluate(self)][1]  # noqa: E731
        patch.setattr(Trainer, "evaluate", stop)
        assert main(tiny("run.dir=run")) == 130
    terminal = Terminal(monkeypatch)
    assert main(tiny("run.dir=run")) == 0
    shown = terminal.text()
    assert "4/12" in shown and not re.search("[ m]0/12", shown)


def test_ctrl_c_gives_the_cursor_back_before_a_second_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal(monkeypatch)
    config = load_config(tiny())
    with Tracker(config, Path(), wandb_id="1", total_steps=3, first_step=0) as tracker:
        tracker.stopping("SIGINT")
        time.sleep(0.3)  # for as long as it goes on, the bar must not hide it again
        terminal.stream.flush()
        shown = terminal.shown.getvalue().decode()
    terminal.text()
    assert "SIGINT" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")


def test_the_log_says_how_it_ended(tmp_path: Path, tiny: Tiny) -> None:
    tracker = Tracker(load_config(tiny()), tmp_path, wandb_id="1", total_steps=1, first_step=0)
    with pytest.raises(ZeroDivisionError), tracker:
        _ = 1 / 0
    last = (tmp_path / "log.txt").read_text().splitlines()[-1]
    assert last.endswith("ERROR ended by ZeroDivisionError: division by zero")


# --- which mode of W&B -------------------------------------------------------------------------------


@pytest.fixture
def no_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    """An `import wandb` that fails."""
    monkeypatch.setitem(sys.modules, "wandb", None)


@pytest.mark.usefixtures("no_wandb")
def test_disabled_does_not_even_import_it(tiny: Tiny, caplog: pytest.LogCaptureFixture) -> None:
    assert main(tiny("run.dir=run", "epochs=1", "tracking.wandb=disabled")) == 0
    assert "W&B" not in caplog.text


@pytest.mark.usefixtures("no_wandb")
def test_auto_without_a_key_says_so_in_one_line(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(tiny("run.dir=run", "epochs=1", "tracking.wandb=auto")) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "W&B" in line]
    assert "wandb login" in line and "tracking.wandb=offline" in line


@pytest.mark.usefixtures("no_wandb")
@pytest.mark.parametrize("mode", ["online", "offline"])
def test_a_run_does_without_it_where_it_is_missing(
    mode: str, tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    assert main(tiny("run.dir=run", "epochs=1", f"tracking.wandb={mode}")) == 0
    assert "W&B is off from here on: import of wandb halted" in caplog.text


def mode(**more: str) -> str:
    settings = [f"tracking.{key}={value}" for key, value in more.items()]
    return wandb_mode(load_config(["recipe=digits_sym40", *settings]).tracking)[0]


def test_auto_takes_a_key_from_where_wandb_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mode() == "disabled"
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine api.wandb.ai\n  login user\n  password {KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")  # a key for another server
    assert mode() == "disabled"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert mode() == "offline"
    assert mode(wandb="online") == "online"


def test_auto_uploads_nothing_where_the_mode_is_another_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "dryrun")  # W&B takes it for offline
    assert mode() == "offline"
    monkeypatch.setenv("WANDB_MODE", "offlin")
    off = ("disabled", "W&B is off: WANDB_MODE=offlin; valid: online, offline, disabled")
    assert wandb_mode(load_config(["recipe=digits_sym40"]).tracking) == off


# --- a W&B that fails, made up -------------------------------------------------------------------------


class Imitation:
    """What tracking uses of the wandb module, and where it is told to fail."""

    def __init__(self, directory: Path, fails: tuple[str, ...] = (), resumed: bool = False):
        self.directory, self.fails, self.resumed = directory, fails, resumed
        self.calls: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.logged: list[dict[str, Any]] = []
        self.summary = self

    def __call__(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fails:
            raise OSError(f"{name}: the network is down\nand more")

    def init(self, **settings: Any) -> Any:
        self.asked.append(settings)
        self(f"init {settings['mode']}")
        folder = self.directory / "wandb" / f"{settings['mode']}-run"
        run = {"resumed": self.resumed, "dir": str(folder / "files"), "summary": self}
        methods = {"log": self.log, "finish": self.finish, "define_metric": lambda *a, **k: None}
        return SimpleNamespace(**run, **methods)

    def log(self, metrics: dict[str, Any]) -> None:
        self("log")
        self.logged.append(metrics)

    def update(self, results: dict[str, Any]) -> None:
        self("summary")
        self.results = results

    def finish(self, exit_code: int) -> None:
        self(f"finish {exit_code}")

    def teardown(self) -> None:
        self("teardown")

    def Settings(self, **settings: Any) -> dict[str, Any]:
        return settings


@pytest.fixture
def imitate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Imitation]:
    def install(*fails: str, **more: Any) -> Imitation:
        wandb = Imitation(tmp_path, fails, **more)
        monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]
        return wandb

    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")  # or else tracking sets it for good
    return install


def test_what_it_is_told(tiny: Tiny, imitate: Callable[..., Imitation]) -> None:
    wandb = imitate()
    assert main(tiny("run.dir=run", "tracking.wandb=online", "tracking.tags=[a,b]")) == 0
    assert wandb.calls == ["init online", "log", "log", "log", "summary", "finish 0"]
    (asked,) = wandb.asked
    assert asked["project"] == "noisybsd" and asked["tags"] == ("a", "b")
    assert asked["name"] == "digits_sym40-bsd_plus-0" and asked["config"]["seed"] == 0
    assert asked["resume"] == "allow" and asked["settings"]["init_timeout"] <= 30
    assert wandb.logged == [
        {key: value for key, value in row.items() if value is not None} for row in rows(Path("run"))
    ]
    assert wandb.results == json.loads(Path("run/results.json").read_text())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_continued_run_is_the_same_one(
    resumed: bool, tiny: Tiny, imitate: Callable[..., Imitation], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = imitate()
    evaluate = Trainer.evaluate
    with monkeypatch.context() as patch:
        stop = lambda self: [os.kill(os.getpid(), signal.SIGTERM), evaluate(self)][1]  # noqa: E731
        patch.setattr(Trainer, "evaluate", stop)
        assert main(tiny("run.dir=run", "tracking.wandb=online")) == 143
    assert first.calls[-1] == "finish 1"
    second = imitate(resumed=resumed)
    assert main(tiny("run.dir=run", "tracking.wandb=online")) == 0
    assert second.asked[0]["id"] == first.asked[0]["id"]
    # where W&B does not have the first epoch, it is told
    assert [m["epoch"] for m in second.logged] == ([2, 3] if resumed else [1, 2, 3])


def test_out_of_reach_it_records_offline(
    tiny: Tiny, imitate: Callable[..., Imitation], caplog: pytest.LogCaptureFixture
) -> None:
    wandb = imitate("init online")
    assert main(tiny("run.dir=run", "tracking.wandb=online")) == 0
    assert wandb.calls[:4] == ["init online", "teardown", "init offline", "log"]
    assert wandb.calls[-1] == "finish 0" and len(wandb.logged) == 3
    assert "W&B cannot be used online: init online: the network is down\n" in caplog.text
    assert f"to upload: wandb sync {wandb.directory / 'wandb' / 'offline-run'}\n" in caplog.text


@pytest.mark.parametrize(
    "fails",
    [("init online", "init offline"), ("init online", "teardown"), ("log",), ("summary",)],
)
def test_its_first_failure_turns_it_off_with_one_line(
    fails: tuple[str, ...],
    tiny: Tiny,
    imitate: Callable[..., Imitation],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wandb = imitate(*fails)
    assert main(tiny("run.dir=run", "tracking.wandb=online")) == 0
    off = [r.getMessage() for r in caplog.records if "W&B is off from here on" in r.getMessage()]
    assert off == [f"W&B is off from here on: {fails[-1]}: the network is down"]
    assert wandb.calls[-1] == fails[-1]  # and nothing is asked of it afterwards
    assert len(rows(Path("run"))) == 3


def test_a_failing_finish_is_nothing(tiny: Tiny, imitate: Callable[..., Imitation]) -> None:
    wandb = imitate("finish 0")
    assert main(tiny("run.dir=run", "tracking.wandb=offline")) == 0
    assert wandb.calls[-1] == "finish 0"


def test_a_finish_without_end_is_left(
    tiny: Tiny,
    imitate: Callable[..., Imitation],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wandb, end = imitate(), threading.Event()
    monkeypatch.setattr(tracking, "_FINISH_SECONDS", 0.05)
    monkeypatch.setattr(wandb, "finish", lambda exit_code: end.wait())
    assert main(tiny("run.dir=run", "epochs=1", "tracking.wandb=online")) == 0
    end.set()
    folder = wandb.directory / "wandb" / "online-run"
    assert f"to upload the rest: wandb sync --include-online {folder}\n" in caplog.text


# --- the real one --------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B's own files in `tmp_path`; its service ended afterwards."""
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    sys.modules["wandb"].teardown()


def sync(server: WandbServer, *arguments: str | Path) -> None:
    environment = os.environ | {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY}
    command = [sys.executable, "-m", "wandb", "sync", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.usefixtures("home")
def test_wandb_sync_reads_an_offline_run_of_two_parts(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    # no network whatever
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    evaluate = Trainer.evaluate
    with monkeypatch.context() as patch:
        stop = lambda self: [os.kill(os.getpid(), signal.SIGTERM), evaluate(self)][1]  # noqa: E731
        patch.setattr(Trainer, "evaluate", stop)
        assert main(tiny("run.dir=run", "tracking.wandb=offline")) == 143
    time.sleep(1)  # W&B names folders by the second
    assert main(tiny("run.dir=run", "tracking.wandb=offline")) == 0
    with WandbServer() as server:
        sync(server, *sorted(Path("run/wandb").glob("offline-run-*")))
    (run,) = server.runs
    for uploaded, row in zip(server.epochs(run), rows(Path("run")), strict=True):
        assert {key: uploaded[key] for key in row if row[key] is not None} == {
            key: value for key, value in row.items() if value is not None
        }
    results = json.loads(Path("run/results.json").read_text())
    assert server.summary[run]["test_accuracy_last"] == results["test_accuracy_last"]
    assert server.config[run]["method"] == "bsd_plus"


COMMAND = """
import sys
from noisybsd.runs import tracking
tracking._INIT_SECONDS = tracking._FINISH_SECONDS = 3
from noisybsd.train import main
sys.exit(main(sys.argv[1:]))
"""


def online(url: str, where: Path, *settings: str) -> subprocess.Popen[str]:
    """A process that trains in `where`/run and reports to `url`, with little patience."""
    environment = os.environ | {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
    for name in ("CACHE", "CONFIG", "DATA"):
        environment[f"WANDB_{name}_DIR"] = str(where / "home")
    settings = (*TINY, "tracking.wandb=online", f"run.dir={where / 'run'}", *settings)
    command = [sys.executable, "-c", COMMAND, *settings]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for_an_epoch(process: subprocess.Popen[str], run: Path) -> None:
    metrics = run / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text()):
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("server", ["closed", "silent"])
def test_without_an_answer_the_run_is_the_same_and_nothing_is_lost(
    server: str, tmp_path: Path
) -> None:
    assert main([*TINY, f"run.dir={tmp_path / 'alone'}"]) == 0
    with WandbServer() as wandb:
        wandb.awake.clear()
        url = wandb.url if server == "silent" else "http://127.0.0.1:9"
        out, err = (process := online(url, tmp_path)).communicate(timeout=180)
        assert process.returncode == 0, err
        assert "W&B cannot be used online" in out and "epoch 3/3" in out
        assert_same(outcome(tmp_path / "run"), outcome(tmp_path / "alone"))
        wandb.awake.set()
        (folder,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
        assert f"wandb sync {folder}" in out
        sync(wandb, folder)
        assert [row["epoch"] for row in wandb.epochs(wandb.runs[-1])] == [1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("end", ["silent", "gone"])
def test_a_server_lost_on_the_way_does_not_hold_the_run(end: str, tmp_path: Path) -> None:
    with WandbServer() as wandb:
        process = online(wandb.url, tmp_path, "epochs=60")
        wait_for_an_epoch(process, tmp_path / "run")
        if end == "silent":
            wandb.awake.clear()
        else:
            wandb.shutdown()
            wandb.server_close()
        out, err = process.communicate(timeout=180)
        wandb.awake.set()
    assert process.returncode == 0, err
    assert "W&B did not finish" in out and "Traceback" not in err
    assert len(rows(tmp_path / "run")) == 60
    with WandbServer() as later:
        sync(later, *re.findall("wandb sync (.*)", out)[0].split())
        assert len(later.epochs(later.runs[0])) == 60


@pytest.mark.slow
def test_online_in_two_parts(tmp_path: Path) -> None:
    with WandbServer() as wandb:
        process = online(wandb.url, tmp_path, "epochs=60")
        wait_for_an_epoch(process, tmp_path / "run")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=180)
        assert process.returncode == 143
        process = online(wandb.url, tmp_path, "epochs=60")
        process.communicate(timeout=180)
        assert process.returncode == 0
    (run,) = wandb.runs
    assert [row["epoch"] for row in wandb.epochs(run)] == list(range(1, 61))
    assert wandb.summary[run]["epochs"] == 60
