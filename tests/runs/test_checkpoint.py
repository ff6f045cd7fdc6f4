"""Checkpoints: whole or not at all, whatever happens to the process, the disk or the file."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import states

from noisybsd.errors import UserError
from noisybsd.files import remove_temporaries, write_atomically
from noisybsd.runs import checkpoint
from noisybsd.runs.checkpoint import (
    SCHEMA,
    CheckpointError,
    load_checkpoint,
    load_latest,
    previous,
    save_checkpoint,
)


def state(number: int) -> dict[str, Any]:
    weights = torch.randn(400, generator=torch.Generator().manual_seed(number))
    return states.state(step=number, modules={"network": {"w": weights}}, seconds=number / 10)


def number_of(content: dict[str, Any] | None) -> int | None:
    """Which state(number) this is, or None; anything in between fails."""
    if content is None:
        return None
    wanted = state(content["step"])
    assert torch.equal(content["modules"]["network"]["w"], wanted["modules"]["network"]["w"])
    assert content["seconds"] == wanted["seconds"]
    return content["step"]


def latest(path: Path) -> tuple[Path | None, int | None, list[str]]:
    """File and number of the latest usable state, and the warnings."""
    warnings: list[str] = []
    found = load_latest(path, warnings.append)
    return (*(found[0], number_of(found[1])), warnings) if found else (None, None, warnings)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of state 2; the one before it holds state 1."""
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(state(1), path)
    save_checkpoint(state(2), path)
    return path


def test_the_newest_two_are_kept(path: Path) -> None:
    assert number_of(load_checkpoint(path)) == 2
    assert number_of(load_checkpoint(previous(path))) == 1
    save_checkpoint(state(3), path)
    assert number_of(load_checkpoint(path)) == 3
    assert number_of(load_checkpoint(previous(path))) == 2
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "checkpoint.previous.pt",
        "checkpoint.pt",
    ]


def test_torch_reads_it_too(path: Path) -> None:
    assert torch.load(path, weights_only=True)["step"] == 2


# --- what is not a whole checkpoint of this version -----------------------------------------------


class Code:
    """Unpickling it makes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("code-was-run",)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def lose_the_last_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def zero_the_end(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:-512] + bytes(512))


def another_schema(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "SCHEMA", SCHEMA + 1)
        save_checkpoint(state(2), path)


def another_mark(path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "_MARK", "another-program")
        save_checkpoint(state(2), path)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "truncated": truncate,
    "one byte short": lose_the_last_byte,
    "zeros at the end": zero_the_end,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("epoch 3"),
    "a plain torch.save": lambda path: torch.save(state(2), path),
    "an old torch.save": lambda path: torch.save(
        state(2), path, _use_new_zipfile_serialization=False
    ),
    "a pickle with code": lambda path: path.write_bytes(pickle.dumps(Code())),
    "a torch.save with code": lambda path: torch.save(Code(), path),
    "code in a checkpoint's clothes": lambda path: save_checkpoint({"step": Code()}, path),
    "another schema": another_schema,
    "another program's": another_mark,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_what_is_no_checkpoint_is_refused_by_name_and_the_one_before_it_used(
    kind: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    older = previous(path).read_bytes()
    DAMAGE[kind](path)
    previous(path).write_bytes(older)  # some of the above save
    with pytest.raises(CheckpointError, match=f"^{path}: "):
        load_checkpoint(path)
    source, number, warnings = latest(path)
    assert (source, number) == (previous(path), 1)
    assert len(warnings) == 1 and warnings[0].startswith(f"{path}: ")
    assert not Path("code-was-run").exists()


def test_the_schema_is_named(path: Path) -> None:
    another_schema(path)
    with pytest.raises(CheckpointError, match=f"schema version {SCHEMA + 1}.*reads {SCHEMA}"):
        load_checkpoint(path)


def test_no_flipped_bit_passes(path: Path) -> None:
    content = path.read_bytes()
    places = torch.randint(8 * len(content), (200,), generator=torch.Generator().manual_seed(0))
    # every field of the zip format's directory too: its attributes decide how torch reads a record
    directory = content.rindex(b"PK\x01\x02")
    for bit in [*places.tolist(), *range(8 * directory, 8 * (directory + 46))]:
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_neither_usable(path: Path) -> None:
    truncate(path)
    truncate(previous(path))
    source, number, warnings = latest(path)
    assert (source, number) == (None, None)
    assert [w.split(": ")[0] for w in warnings] == [str(path), str(previous(path))]


def test_none_at_all(tmp_path: Path) -> None:
    assert latest(tmp_path / "checkpoint.pt") == (None, None, [])


# --- the process ends while it writes -------------------------------------------------------------

STEPS = ((torch, "save"), (os, "fsync"), (os, "link"), (Path, "replace"), (Path, "unlink"))


def at_each_step(act: Callable[[int], None]) -> None:
    """Call `act` with the running number before and after each step of what follows, for good."""
    count = 0

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            act(count := count + 1)
            result = original(*args, **kwargs)
            act(count := count + 1)
            return result

        setattr(owner, name, watched)

    for owner, name in STEPS:
        watch(owner, name)


def killed_while_saving(path: Path, moment: int) -> bool:
    """Save state 3 in a process that kill -9 ends at `moment`; false if there is no such moment."""
    child = os.fork()
    if child == 0:
        try:
            at_each_step(lambda n: os.kill(os.getpid(), signal.SIGKILL) if n == moment else None)
            save_checkpoint(state(3), path)
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_a_kill_at_any_step_leaves_whole_checkpoints(tmp_path: Path) -> None:
    outcomes = []
    for moment in range(1, 100):
        path = tmp_path / str(moment) / "checkpoint.pt"
        path.parent.mkdir()
        save_checkpoint(state(1), path)
        save_checkpoint(state(2), path)
        killed = killed_while_saving(path, moment)
        now = number_of(load_checkpoint(path)), number_of(load_checkpoint(previous(path)))
        outcomes.append(now)
        remove_temporaries(path.parent)
        assert not list(path.parent.glob(".*"))
        if not killed:
            break
        save_checkpoint(state(4), path)  # and the next one works
        assert number_of(load_checkpoint(path)) == 4
    assert moment > 10  # the steps were watched
    assert set(outcomes) == {(2, 1), (2, 2), (3, 2)} and outcomes[-1] == (3, 2)


def test_a_kill_while_the_first_one_is_written_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert killed_while_saving(path, 2)  # after torch.save
    assert [p.name.endswith(".tmp") for p in tmp_path.iterdir()] == [True]
    remove_temporaries(tmp_path)
    assert latest(path) == (None, None, []) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["save", "fsync", "replace"])
def test_an_interrupt_at_any_step_leaves_whole_checkpoints_and_nothing_else(
    name: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    owner = next(owner for owner, step in STEPS if step == name)
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(state(3), path)
    assert number_of(load_checkpoint(path)) == 2
    assert not [p for p in path.parent.iterdir() if p.suffix == ".tmp" and "old" not in p.name]


def test_a_file_system_without_hard_links(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    save_checkpoint(state(3), path)
    assert number_of(load_checkpoint(path)) == 3
    assert number_of(load_checkpoint(previous(path))) == 2
    assert len(list(path.parent.iterdir())) == 2


# --- the disk ------------------------------------------------------------------------------------


def assert_untouched(path: Path) -> None:
    assert number_of(load_checkpoint(path)) == 2
    assert number_of(load_checkpoint(previous(path))) == 1
    assert len(list(path.parent.iterdir())) == 2


def test_a_disk_that_fills_up_is_named_and_the_old_checkpoint_kept(path: Path) -> None:
    # a real failing write, since torch.save turns it into an error of its own
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(UserError, match=f"^{path}: cannot be written: File too large"):
            save_checkpoint(state(3), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert_untouched(path)


@pytest.mark.parametrize("step", [(os, "fsync"), (Path, "replace")])
def test_no_space_left_at_a_later_step(
    step: tuple[Any, str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(*step, full)
        with pytest.raises(UserError, match=f"^{path}: cannot be written: No space left on device"):
            save_checkpoint(state(3), path)
    remove_temporaries(path.parent)
    assert_untouched(path)


def test_a_bug_in_torch_is_not_blamed_on_the_disk(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(RuntimeError, match="CUDA error"):
        save_checkpoint(state(3), path)
    assert_untouched(path)


def test_write_atomically_is_all_or_nothing(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    write_atomically(file, lambda out: out.write(b"old"))

    def half(out: Any) -> None:
        out.write(b"ne")
        raise ValueError("NaN is not JSON")

    with pytest.raises(ValueError, match="NaN"):
        write_atomically(file, half)
    assert file.read_bytes() == b"old" and list(tmp_path.iterdir()) == [file]


def test_the_content_is_on_the_disk_before_it_gets_its_name(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []

    def note(owner: Any, name: str) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a: [order.append(name), original(*a)][1])

    note(os, "fsync")
    note(os, "replace")
    note(Path, "replace")
    save_checkpoint(state(3), path)
    assert order[0] == order[-1] == "fsync" and "replace" in order  # the file, …, the directory
