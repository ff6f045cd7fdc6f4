"""Run directories: which one a run gets, which one it continues, and that two never share one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import states

from noisybsd.config import Config, load_config, read_record
from noisybsd.errors import UserError
from noisybsd.files import append_jsonl, write_json, write_jsonl
from noisybsd.runs.checkpoint import load_checkpoint, previous, save_checkpoint
from noisybsd.runs.directory import (
    RunDirectory,
    differences,
    load_run_state,
    no_checkpoint,
    open_run,
)

Tiny = Callable[..., list[str]]


@pytest.fixture
def make(tiny: Tiny) -> Callable[..., Config]:
    """A configuration from overrides of the tiny run."""
    return lambda *more: load_config(tiny(*more))


def save(run: RunDirectory, config: Config, epoch: int) -> None:
    recorded = config.model_dump(mode="json")
    save_checkpoint(states.state(config=recorded, step=epoch), run.checkpoint)


def begin(config: Config, epochs: int = 2) -> Path:
    """A run that was interrupted after some epochs; its directory."""
    run = open_run(config)
    for epoch in range(1, epochs + 1):
        save(run, config, epoch)
    run.lock.close()
    return run.path


def epoch_of(run: RunDirectory) -> int | None:
    """The epoch to continue after; lets the run go."""
    run.lock.close()
    return None if run.state is None else run.state["step"]


def content(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.iterdir()}


def refusal(config: Config) -> str:
    with pytest.raises(UserError) as caught:
        open_run(config)
    return str(caught.value)


# --- a new run ------------------------------------------------------------------------------------


def test_the_default_place_says_recipe_time_and_seed(make: Callable[..., Config]) -> None:
    run = open_run(make("seed=7"))
    assert run.path.parent == Path("runs/digits_sym40")
    assert run.path.name.endswith("-7") and run.state is None
    assert load_config([f"recipe={run.path / 'config.yaml'}"]) == make("seed=7")


def test_runs_started_within_a_second_get_their_own(make: Callable[..., Config]) -> None:
    config = make("run.resume=none")
    runs = [open_run(config) for _ in range(3)]
    assert len({run.path for run in runs}) == 3


def test_a_run_dir_that_cannot_be_is_refused(make: Callable[..., Config], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc/nowhere")):
        assert refusal(make(f"run.dir={path}")).startswith(f"run.dir={path}: cannot be a run dir")


# --- run.resume=auto ------------------------------------------------------------------------------


def test_auto_continues_the_unfinished_run_of_the_same_configuration(
    make: Callable[..., Config],
) -> None:
    path = begin(make())
    run = open_run(make())
    assert run.path == path and epoch_of(run) == 2


@pytest.mark.parametrize("change", ["seed=1", "optimizer.lr=0.1", "method=bsd", "noise.rate=0.2"])
def test_auto_leaves_another_configuration_alone(change: str, make: Callable[..., Config]) -> None:
    path = begin(make())
    before = content(path)
    run = open_run(make(change))
    assert run.path != path and run.state is None and content(path) == before


def test_auto_leaves_a_finished_run_alone(make: Callable[..., Config]) -> None:
    path = begin(make())
    write_json(path / "results.json", {})
    assert open_run(make()).path != path


def test_auto_leaves_a_run_in_use_alone(make: Callable[..., Config]) -> None:
    first, second = open_run(make()), open_run(make())
    assert first.path != second.path
    first.lock.close()
    assert open_run(make()).path == first.path


def test_auto_takes_the_newest(make: Callable[..., Config]) -> None:
    config = make()
    older = begin(config)
    newer = older.with_name("29991231-000000-0")
    older.rename(newer)
    begin(make("run.resume=none"))
    run = open_run(config)
    assert run.path == newer


def test_auto_is_not_stopped_by_a_strangers_damaged_record(make: Callable[..., Config]) -> None:
    path = begin(make())
    (path / "config.yaml").write_text("{")
    assert open_run(make()).path != path


def test_where_things_are_may_differ(make: Callable[..., Config]) -> None:
    path = begin(make())
    moved = ("data.root=elsewhere", "data.workers=0", "tracking.wandb=offline", "device=auto")
    assert open_run(make(*moved, "run.checkpoint_seconds=2")).path == path


def test_small_numbers_survive_the_record(make: Callable[..., Config]) -> None:
    changes = ("optimizer.weight_decay=1e-7", "optimizer.lr=0.1", "noise.seed=3")
    assert open_run(make(*changes, f"run.dir={begin(make(*changes))}")).state is not None


def test_auto_is_not_held_up_by_what_is_no_record(make: Callable[..., Config]) -> None:
    path = begin(make("seed=1"))
    for make_wrong in (
        lambda file: file.write_text("epochs: !!int abc"),
        lambda file: file.write_bytes(b"\xff"),
        lambda file: file.write_text("[" * 100000),
        os.mkfifo,
        os.mkdir,
        lambda file: file.symlink_to("config.yaml"),
    ):
        other = path.with_name("29991231-000000-0")
        other.mkdir()
        make_wrong(other / "config.yaml")
        assert open_run(make()).path != other
        shutil.rmtree(other)


# --- run.resume=none and a path ---------------------------------------------------------------------


def test_none_starts_anew(make: Callable[..., Config], tmp_path: Path) -> None:
    path = begin(make())
    assert open_run(make("run.resume=none")).path != path
    assert "is not empty" in refusal(make("run.resume=none", f"run.dir={path}"))
    (tmp_path / "empty").mkdir()
    assert open_run(make("run.resume=none", "run.dir=empty")).state is None


def test_a_directory_or_one_of_its_checkpoints(make: Callable[..., Config]) -> None:
    path = begin(make(), epochs=3)
    assert epoch_of(open_run(make(f"run.resume={path}"))) == 3
    assert epoch_of(open_run(make(f"run.resume={path / 'checkpoint.pt'}"))) == 3
    assert epoch_of(open_run(make(f"run.resume={path / 'checkpoint.previous.pt'}"))) == 2


def test_what_was_continued_from_becomes_the_one_before_the_next(
    make: Callable[..., Config],
) -> None:
    config = make()
    path = begin(config, epochs=3)
    run = open_run(make(f"run.resume={path / 'checkpoint.previous.pt'}"))
    assert not run.checkpoint.exists()  # the later one stands aside
    assert load_checkpoint(path / "checkpoint.aside.pt")["step"] == 3
    save(run, config, 30)
    assert load_checkpoint(previous(run.checkpoint))["step"] == 2
    assert load_checkpoint(run.checkpoint)["step"] == 30


@pytest.mark.parametrize(
    ("resume", "answer"),
    [
        ("nowhere", "run.resume=nowhere: no such file or directory; valid: auto, none"),
        (".", "run.resume=.: . is not a run directory, no config.yaml"),
    ],
)
def test_a_path_that_is_no_run(resume: str, answer: str, make: Callable[..., Config]) -> None:
    assert refusal(make(f"run.resume={resume}")).startswith(answer)


def test_a_path_beside_another_run_dir(make: Callable[..., Config]) -> None:
    path = begin(make())
    assert f"run.resume={path} continues in {path}" in refusal(
        make(f"run.resume={path}", "run.dir=elsewhere")
    )
    assert not Path("elsewhere").exists()


def test_a_file_that_is_no_checkpoint(make: Callable[..., Config]) -> None:
    path = begin(make())
    before = content(path)
    assert refusal(make(f"run.resume={path / 'config.yaml'}")).startswith(f"{path / 'config.yaml'}")
    assert content(path) == before


# --- a directory that holds something else ------------------------------------------------------------


@pytest.mark.parametrize("key", ["run.dir", "run.resume"])
def test_another_configuration_is_refused_with_its_keys(
    key: str, make: Callable[..., Config]
) -> None:
    path = begin(make())
    before = content(path)
    lines = refusal(make(f"{key}={path}", "seed=1", "optimizer.lr=0.125")).splitlines()
    assert lines[0].startswith(f"run.dir={path} holds a run of another configuration")
    assert lines[1:] == ["optimizer.lr: 0.05 there, 0.125 here", "seed: 0 there, 1 here"]
    assert content(path) == before


def test_who_asks_for_more_epochs_in_its_directory_is_told_how(make: Callable[..., Config]) -> None:
    path = begin(make())
    epochs = make().epochs
    assert refusal(make(f"run.dir={path}", f"epochs={epochs + 1}")).splitlines() == [
        f"run.dir={path} holds a run of another configuration; use run.resume={path} to make it longer, "
        "or train in a new directory",
        f"epochs: {epochs} there, {epochs + 1} here",
    ]
    other = begin(make("run.dir=other"))
    assert "; use its settings" in refusal(make(f"run.dir={other}", f"epochs={epochs - 1}"))


def test_settings_of_a_run_that_did_not_begin_may_be_put_right(make: Callable[..., Config]) -> None:
    open_run(make("run.dir=mine", "seed=1")).lock.close()  # and then its data were not there
    open_run(config := make("run.dir=mine")).lock.close()
    assert not list(differences(read_record(Path("mine/config.yaml")), config))
    open_run(make("run.resume=mine", "epochs=9")).lock.close()
    open_run(config).lock.close()
    write_jsonl(Path("mine/metrics.jsonl"), [])  # training begins
    assert "seed: 0 there, 1 here" in refusal(make("run.dir=mine", "seed=1"))


def test_a_checkpoint_of_another_run_is_refused(make: Callable[..., Config]) -> None:
    path, other = begin(make()), begin(make("seed=1"))
    (path / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    lines = refusal(make(f"run.dir={path}")).splitlines()
    assert lines[0].startswith(f"{path / 'checkpoint.pt'} holds a run of another configuration")
    assert lines[1:] == ["seed: 1 there, 0 here"]


def test_a_directory_in_use_is_refused(make: Callable[..., Config]) -> None:
    run = open_run(make("run.dir=mine"))
    for key in ("run.dir", "run.resume"):
        assert refusal(make(f"{key}=mine")) == "run.dir=mine is in use by another process"
    del run


def test_kill_9_frees_the_lock(make: Callable[..., Config]) -> None:
    config = make("run.dir=mine")
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        run = open_run(config)
        (run.path / ".checkpoint.pt.1.noisybsd.tmp").write_text("half a check")
        os.write(send, b"!")
        signal.pause()
    os.read(receive, 1)
    assert "in use by another process" in refusal(config)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    run = open_run(config)
    assert sorted(content(run.path)) == [".lock", "config.yaml"]  # and what it left is gone


def test_a_start_that_was_killed_early_is_no_obstacle(make: Callable[..., Config]) -> None:
    Path("mine").mkdir()
    Path("mine/.lock").write_text("")
    Path("mine/.config.yaml.1.noisybsd.tmp").write_text("epo")
    assert open_run(make("run.dir=mine")).state is None


@pytest.mark.parametrize("more", [(), ("run.resume=none",)])
def test_a_strangers_directory_is_left_as_it_is(
    more: tuple[str, ...], make: Callable[..., Config]
) -> None:
    Path("theirs/.cache.tmp").mkdir(parents=True)
    Path("theirs/.draft.tmp").write_text("a draft")
    answer = refusal(make("run.dir=theirs", *more))
    assert answer.startswith("run.dir=theirs") and ("holds .cache.tmp" in answer or more)
    assert sorted(entry.name for entry in Path("theirs").iterdir()) == [".cache.tmp", ".draft.tmp"]


def test_the_config_of_another_program_is_no_run(make: Callable[..., Config]) -> None:
    Path("theirs").mkdir()
    Path("theirs/config.yaml").write_text("seed: 3\nmodel: {name: x}\n")
    assert "config.yaml: damaged, or no run's: it has no recipe" in refusal(make("run.dir=theirs"))
    assert [entry.name for entry in Path("theirs").iterdir()] == ["config.yaml"]


def test_what_a_stranger_put_into_a_run_stays(make: Callable[..., Config]) -> None:
    path = begin(make())
    (path / ".notes.tmp").write_text("notes")
    run = open_run(make())
    assert run.path == path and (path / ".notes.tmp").read_text() == "notes"


@pytest.mark.parametrize("name", ["x" * 300, "loop", "file/x", "a\nb\x1b[31m/" + "y" * 300])
def test_paths_that_cannot_be_are_answered_with_their_key(
    name: str, make: Callable[..., Config]
) -> None:
    Path("loop").symlink_to("loop")
    Path("file").touch()
    assert refusal(make(f"run.dir={name}")).startswith(f"run.dir={name}: cannot be a run directory")
    assert refusal(make(f"run.resume={name}")).startswith(f"run.resume={name}: ")


def test_a_lock_that_is_no_file_is_not_waited_for(make: Callable[..., Config]) -> None:
    Path("mine").mkdir()
    os.mkfifo("mine/.lock")
    assert "cannot be a run directory" in refusal(make("run.dir=mine"))


# --- damaged checkpoints ----------------------------------------------------------------------------


def damage(file: Path) -> bytes:
    os.truncate(file, file.stat().st_size // 2)
    return file.read_bytes()


def test_the_one_before_a_damaged_checkpoint_is_used_and_never_lost(
    make: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    config = make()
    path = begin(config)
    damaged = damage(path / "checkpoint.pt")
    run = open_run(config)
    assert run.path == path and run.state is not None and run.state["step"] == 1
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert warnings[0].startswith(f"{path / 'checkpoint.pt'}: ")
    assert warnings[1].endswith(str(path / "checkpoint.previous.pt"))
    save(run, config, 2)
    # the damaged file did not take the place of the good one
    assert load_checkpoint(previous(run.checkpoint))["step"] == 1
    assert (path / "checkpoint.aside.pt").read_bytes() == damaged


@pytest.mark.parametrize("key", ["default", "run.dir", "run.resume"])
def test_no_usable_checkpoint_is_said_and_nothing_overwritten(
    key: str, make: Callable[..., Config]
) -> None:
    path = begin(make())
    damage(path / "checkpoint.pt")
    damage(path / "checkpoint.previous.pt")
    before = content(path)
    more = () if key == "default" else (f"{key}={path}",)
    said = refusal(make(*more))
    assert said.startswith(f"{path / 'checkpoint.pt'}: no usable checkpoint")
    assert content(path) == before
    # the way out that it names
    command = said.split("python -m noisybsd.train ")[1].replace("NEW", "new")
    run = open_run(load_config(command.split()))
    assert run.path == Path("new") and run.state is None


def test_a_finished_runs_checkpoint_is_not_needed(make: Callable[..., Config]) -> None:
    path = begin(make())
    damage(path / "checkpoint.pt")
    damage(path / "checkpoint.previous.pt")
    write_json(path / "results.json", {})
    run = open_run(make(f"run.dir={path}"))
    assert run.results.exists() and run.state is None


def test_a_finished_runs_checkpoint_is_gone_and_not_to_come(make: Callable[..., Config]) -> None:
    path = begin(make())
    assert str(no_checkpoint(path)).startswith(
        f"run={path}: has no checkpoint yet; training writes"
    )
    write_json(path / "results.json", {})
    said = str(no_checkpoint(path))
    assert "its checkpoint.pt is gone" in said and "yet" not in said
    assert said.endswith(f"python -m noisybsd.train recipe={path / 'config.yaml'} run.dir=NEW")


def test_load_run_state_moves_nothing(make: Callable[..., Config]) -> None:
    path = begin(make())
    damage(path / "checkpoint.pt")
    before = content(path)
    state = load_run_state(path)
    assert state is not None and state["step"] == 1 and content(path) == before


# --- files -------------------------------------------------------------------------------------------


def test_json_is_strict_and_whole(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_json(file, {"accuracy": 0.1, "note": "größer"})
    with pytest.raises(ValueError, match="JSON"):
        write_json(file, {"accuracy": float("nan")})
    assert json.loads(file.read_text("utf-8")) == {"accuracy": 0.1, "note": "größer"}
    with pytest.raises(ValueError, match="JSON"):
        write_jsonl(file, [{"a": float("inf")}])
    assert list(tmp_path.iterdir()) == [file]


def test_jsonl_has_an_object_a_line(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    write_jsonl(file, [{"epoch": 1}])
    append_jsonl(file, {"epoch": 2})
    with pytest.raises(ValueError, match="JSON"):
        append_jsonl(file, {"epoch": float("nan")})
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"epoch": 1},
        {"epoch": 2},
    ]
    write_jsonl(file, [])
    assert file.read_text() == ""


def test_a_line_that_cannot_be_written_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone/metrics\.jsonl: cannot be written: No such"):
        append_jsonl(tmp_path / "gone" / "metrics.jsonl", {})
