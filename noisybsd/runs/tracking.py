"""What a run shows of itself: on the console, in log.txt and on Weights & Biases.

metrics.jsonl and results.json are the record and are written by the training loop itself; nothing here
may stop a run.
"""

from __future__ import annotations

import contextlib
import logging
import netrc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Literal
from urllib.parse import urlparse

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from noisybsd.config import Config
from noisybsd.errors import first_line, shown
from noisybsd.files import open_file
from noisybsd.settings import TrackingConfig

log = logging.getLogger("noisybsd")

_INIT_SECONDS = 30  # how long the start of a run waits for W&B
_FINISH_SECONDS = 60  # and its end
LONG = 1800.0  # seconds of a run that is foretold how long it takes
_SILENT_SECONDS = 60  # after which plain progress says how far an epoch is

# what an epoch's line shows: metric, label, format
_COLUMNS = (
    ("loss", "loss", "{:.3f}"),
    ("test_accuracy", "test", "{:.2%}"),
    ("test_accuracy_ema", "ema", "{:.2%}"),
    ("test_ece", "ece", "{:.3f}"),
    ("label_correction_accuracy", "corrected", "{:.2%}"),
    ("noise_detection_auroc", "auroc", "{:.3f}"),
    ("memorised_fraction", "memorised", "{:.1%}"),
    ("memorisation", "memorisation", "{:.2f}"),
    ("images_per_second", "img/s", "{:,.0f}"),
)


def epoch_line(metrics: dict[str, Any], epochs: int) -> str:
    """One line on an epoch, e.g. `epoch 3/60  loss 0.913  test 93.10%  …`; unknown values are left out."""
    width = len(str(epochs))
    parts = [f"epoch {metrics['epoch']:>{width}}/{epochs}"]
    parts += [
        f"{label} {form.format(metrics[name])}"
        for name, label, form in _COLUMNS
        if metrics.get(name) is not None
    ]
    return "  ".join(parts)


def duration(seconds: float) -> str:
    """Some time in words, e.g. `2 h 5 min`."""
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min" if minutes > 1 else f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min"


class Earlier(logging.Handler):
    """Prints what is logged before a run's log is open, and keeps it for that log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        if logging.lastResort is not None:
            logging.lastResort.handle(record)

    def __enter__(self) -> Earlier:
        log.addHandler(self)
        return self

    def __exit__(self, *error: object) -> None:
        log.removeHandler(self)


class Tracker:
    """Console, log file and W&B of one run. Use as a context manager."""

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        wandb_id: str,
        total_steps: int,
        first_step: int,
        quicker: str = "",
    ):
        """Get ready to tell of a run.

        Args:
            quicker: what to say of a long run, if there is a quicker way.
        """
        self._quicker = quicker
        self._foretells_at = first_step + 3  # the first steps are not at the pace of the others
        self._epochs, self._steps, self._done = config.epochs, total_steps, first_step
        self._begun: tuple[float, int] | None = (
            None  # when the present epoch's first step ended, and which
        )
        self._said = time.monotonic()  # when there was a line last
        rich = config.tracking.console == "rich" or (
            config.tracking.console == "auto" and sys.stdout.isatty()
        )
        console = Console() if rich else None
        self._console = _AboveTheBar(console) if console else logging.StreamHandler(sys.stdout)
        self._file = _log_file(directory / "log.txt")
        self._file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._progress: Progress | None = None
        if console:
            self._progress = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            self._task = self._progress.add_task("steps", total=total_steps, completed=first_step)
        self._wandb = _Wandb(config, directory, wandb_id)

    def __enter__(self) -> Tracker:
        log.setLevel(logging.INFO)
        log.addHandler(self._console)
        log.addHandler(self._file)
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._progress:
            with contextlib.suppress(OSError):  # a terminal that was closed
                self._progress.stop()
        if error is not None:  # the console is told by the command
            text = shown(f"ended by {type(error).__name__}: {error}")
            self._file.handle(log.makeRecord(log.name, logging.ERROR, "", 0, text, (), None))
        for handler in (self._console, self._file):
            log.removeHandler(handler)
            handler.close()

    def stopping(self, signal_name: str) -> None:
        """Say that a signal has arrived, and leave the terminal as it was, should another one follow."""
        log.info("%s: saving after this step; a second one ends the run at once", signal_name)
        if self._progress:
            with contextlib.suppress(OSError):
                self._progress.console.show_cursor(True)

    def note(self, records: Iterable[logging.LogRecord]) -> None:
        """Write to log.txt alone what the console has shown already."""
        for record in records:
            self._file.handle(record)

    def start_wandb(self, history: list[dict[str, Any]]) -> None:
        """Start the W&B run; `history` holds the metrics of the epochs done before."""
        self._wandb.start(history)

    def step(self) -> None:
        self._done += 1
        now = time.monotonic()
        if self._begun is None:
            self._begun = now, self._done
        elif self._done == self._foretells_at:
            left = self._pace(now) * (self._steps - self._done)
            if left > LONG:
                log.info("this run takes about %s here%s", duration(left), self._quicker)
        if self._progress:
            self._progress.advance(self._task)
        elif now - self._said >= _SILENT_SECONDS and self._done > self._begun[1]:
            self._said = now
            log.info(self._time_left(self._pace(now)))

    def _pace(self, now: float) -> float:
        """Seconds of a step, in the present epoch so far."""
        assert self._begun is not None
        begin, first = self._begun
        return (now - begin) / (self._done - first)

    def _time_left(self, pace: float) -> str:
        """How far the present epoch is, and how long it and the run still take at this pace."""
        in_epoch = self._steps // self._epochs
        epoch, step = divmod(self._done - 1, in_epoch)
        left = duration(pace * (in_epoch - step - 1)), duration(pace * (self._steps - self._done))
        return (
            f"epoch {epoch + 1}/{self._epochs}  step {step + 1:,}/{in_epoch:,}  "
            f"about {left[0]} left, and {left[1]} of training in all"
        )

    def epoch(self, metrics: dict[str, Any]) -> None:
        self._begun, self._said = None, time.monotonic()
        log.info(epoch_line(metrics, self._epochs))
        self._wandb.log(metrics)

    def finish(self, results: dict[str, Any] | None) -> None:
        """Close the W&B run; with `results`, they become its summary."""
        self._wandb.finish(results)


def _log_file(path: Path) -> logging.Handler:
    """A handler that adds to the file `path`; where it cannot be written, one that does nothing."""
    try:
        open_file(path, "ab").close()
        return logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        log.warning("%s is not written: %s", path, error.strerror)
        return logging.NullHandler()


class NoTracker(Tracker):
    """Tells nothing: for the processes of a run that are not the first."""

    def __init__(self) -> None:
        pass

    def __enter__(self) -> NoTracker:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def stopping(self, signal_name: str) -> None:
        pass

    def note(self, records: Iterable[logging.LogRecord]) -> None:
        pass

    def start_wandb(self, history: list[dict[str, Any]]) -> None:
        pass

    def step(self) -> None:
        pass

    def epoch(self, metrics: dict[str, Any]) -> None:
        pass

    def finish(self, results: dict[str, Any] | None) -> None:
        pass


class _AboveTheBar(logging.Handler):
    """Lines above a progress bar. The terminal wraps them, so that they stay whole when copied."""

    def __init__(self, console: Console):
        super().__init__()
        self._to = console

    def emit(self, record: logging.LogRecord) -> None:
        self._to.print(self.format(record), markup=False, highlight=False, soft_wrap=True)


class _Wandb:
    """A W&B run that never stops the training: its first failure turns it off, with one line."""

    def __init__(self, config: Config, directory: Path, run_id: str):
        self._config = config
        self._directory = directory
        self._run_id = run_id
        self._run: Any = None

    def start(self, history: list[dict[str, Any]]) -> None:
        mode, reason = wandb_mode(self._config.tracking)
        if reason:
            log.info(reason)
        if mode == "online":
            self._guard(lambda: self._start_online(history))
        elif mode == "offline":
            self._guard(lambda: self._init("offline", history))

    def _start_online(self, history: list[dict[str, Any]]) -> None:
        """Start online; if that fails, record offline, so that nothing is lost."""
        try:
            self._init("online", history)
        except Exception as error:
            log.warning("W&B cannot be used online: %s", first_line(error)[:300])
            import wandb

            wandb.teardown()  # its service still holds the run's id
            self._init("offline", history)
            log.warning("recording offline; to upload: wandb sync %s", _folder(self._run))

    def _init(self, mode: Literal["online", "offline"], history: list[dict[str, Any]]) -> None:
        # W&B's reports on itself make the exit of the process wait for the network
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        tracking = self._config.tracking
        self._run = wandb.init(
            project=tracking.project,
            entity=tracking.entity,
            group=tracking.group or f"{self._config.recipe}-{self._config.method}",
            tags=tracking.tags or None,
            name=f"{self._config.recipe}-{self._config.method}-{self._config.seed}",
            id=self._run_id,
            resume="allow" if mode == "online" else None,
            mode=mode,
            dir=self._directory,
            config=self._config.model_dump(mode="json"),
            settings=wandb.Settings(
                init_timeout=_INIT_SECONDS, login_timeout=_INIT_SECONDS, console="off", silent=True
            ),
        )
        # a resumed run logs some epochs again, and W&B's own step axis cannot go back
        self._run.define_metric("epoch")
        self._run.define_metric("*", step_metric="epoch")
        if not self._run.resumed:
            # `wandb sync` lets the last offline folder of a run replace those before it
            for metrics in history:
                self.log(metrics)

    def log(self, metrics: dict[str, Any]) -> None:
        known = {key: value for key, value in metrics.items() if value is not None}
        self._guard(lambda: self._run and self._run.log(known))

    def finish(self, results: dict[str, Any] | None) -> None:
        if results:
            self._guard(lambda: self._run and self._run.summary.update(results))
        run, self._run = self._run, None
        if run is None:
            return

        def finish() -> None:
            with contextlib.suppress(Exception):
                run.finish(exit_code=0 if results else 1)

        # it waits for the upload; without network it would wait forever
        thread = threading.Thread(target=finish, daemon=True)
        thread.start()
        thread.join(_FINISH_SECONDS)
        if thread.is_alive():
            log.warning(
                "W&B did not finish within %d s; to upload the rest: wandb sync --include-online %s",
                _FINISH_SECONDS,
                _folder(run),
            )

    def _guard(self, call: Callable[[], object]) -> None:
        try:
            call()
        except Exception as error:  # whatever W&B raises must not end a training run
            self._run = None
            log.warning("W&B is off from here on: %s", first_line(error)[:300])


def _folder(run: Any) -> Path:
    """Where a W&B run is on disk."""
    return Path(run.dir).parent


def wandb_mode(tracking: TrackingConfig) -> tuple[str, str | None]:
    """The mode to use; and, if `auto` became `disabled`, a line for the user."""
    if tracking.wandb != "auto":
        return tracking.wandb, None
    asked = os.environ.get("WANDB_MODE", "")
    asked = {"run": "online", "dryrun": "offline"}.get(asked, asked)  # W&B's older names
    if asked in ("online", "offline", "disabled"):
        return asked, None
    if asked:
        return "disabled", f"W&B is off: WANDB_MODE={asked}; valid: online, offline, disabled"
    if _wandb_key_configured():
        return "online", None
    return "disabled", (
        "W&B is off: no key is configured. `wandb login` turns it on, tracking.wandb=offline records "
        "without network, tracking.wandb=disabled silences this line"
    )


def _wandb_key_configured() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
