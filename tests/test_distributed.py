"""Many processes train as one does: the same steps, the same state, the same numbers, whatever happens."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.compared import assert_same, outcome, rows, strict
from helpers.ranks import Ended, on_ranks, results
from helpers.training import SOONER, NoTracker
from torch import Tensor

from noisybsd import distributed, train, training
from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.data.loader import epoch_order
from noisybsd.engine import trainer as trainer_module
from noisybsd.engine.evaluation import evaluate_run
from noisybsd.engine.trainer import Trainer, step_seed
from noisybsd.errors import UserError
from noisybsd.methods.parts import Mixup
from noisybsd.methods.presets import METHODS
from noisybsd.runs.checkpoint import load_checkpoint

N, BATCH = 97, 24  # 4 steps an epoch, and a sample that is left over
SMALL = (
    "recipe=digits_sym40",
    f"data.limit={N}",
    f"batch_size={BATCH}",
    "epochs=3",
    "network.width=4",
    "network.embedding_dim=8",
    "neighbours.start_epoch=1",
    "neighbours.engine=torch",
    "neighbours.k=5",
    "device=cpu",
    "tracking.wandb=disabled",
    "run.checkpoint_seconds=0",
)


# --- the same as one process ------------------------------------------------------------------------


def build(settings: tuple[str, ...]) -> Trainer:
    """A trainer whose views are functions of the image alone."""
    config = load_config([*SMALL, *settings])
    trainer = Trainer(
        config, load_dataset(config.data, config.noise, config.seed), torch.device("cpu")
    )
    # Digits have a flat background: one rounding there turns a whole plane of ReLUs on or off.
    uneven = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))

    def plain(images: Tensor) -> Tensor:
        return plain_view(images) + 0.5 * uneven

    def draw_views(images: Tensor, names: tuple[str, ...], mirror: None) -> Tensor:
        made = {"weak": plain(images), "strong": 0.8 * plain(images).roll(1, dims=3)}
        return torch.stack([made[name] for name in names])

    plain_view = trainer.views.plain
    trainer.views = SimpleNamespace(plain=plain)  # type: ignore[assignment]
    trainer.draw_views = draw_views
    return trainer


def train_epochs(trainer: Trainer, epochs: int = 2) -> dict[str, Any]:
    while trainer.epoch < epochs:
        trainer.train_epoch(NoTracker(), SimpleNamespace(received=0))  # type: ignore[arg-type]
        trainer.history.append(trainer.end_epoch())
    return trainer.state()


def train_on_rank(settings: tuple[str, ...]) -> tuple[dict[str, Any], list[Mixup]]:
    torch.set_num_threads(1)
    drawn, draw = [], Mixup.draw

    def remembered(*arguments: Any) -> Mixup:
        drawn.append(draw(*arguments))
        return drawn[-1]

    Mixup.draw = remembered  # type: ignore[method-assign, assignment]
    with distributed.process_group():
        return train_epochs(build(settings)), drawn


def train_alone(
    settings: tuple[str, ...], world_size: int, drawn: list[list[Mixup]], patch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """The same joint batches, mixed alike, in a single process."""
    trainer = build(settings)
    share = BATCH // world_size
    labels, balanced = trainer.dataset.train.labels, trainer.config.data.balanced
    images = trainer.dataset.train.images
    assert isinstance(images, Tensor)

    def joint_batches(epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        shards = [
            epoch_order(
                N, 0, epoch, rank=r, world_size=world_size, labels=labels, balanced=balanced
            )
            for r in range(world_size)
        ]
        for step in range(start, trainer.loader.steps_per_epoch):
            index = torch.cat([shard[step * share : (step + 1) * share] for shard in shards])
            yield index, images[index]

    patch.setattr(trainer.loader, "epoch", joint_batches)

    def joint_mixup(*_: Any) -> Mixup:
        parts = [of_rank[trainer.step_number] for of_rank in drawn]
        partner = torch.cat([part.partner + r * share for r, part in enumerate(parts)])
        return Mixup(parts[0].weight, partner)

    patch.setattr(Mixup, "draw", joint_mixup)
    return train_epochs(trainer)


def assert_close(actual: Any, expected: Any, path: str = "") -> None:
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            assert_close(actual[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list):
        assert len(actual) == len(expected), path
        for i, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_close(one, other, f"{path}/{i}")
    elif isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype and actual.shape == expected.shape, path
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=2e-4, msg=f"{path} differs")
    else:
        assert actual == (
            pytest.approx(expected, rel=1e-3, abs=2e-4) if isinstance(expected, float) else expected
        ), path


def slow(*arguments: Any) -> Any:
    return pytest.param(*arguments, marks=pytest.mark.slow)


# a method for each way to look at a batch: rows alone, pairs, class balance, a mixture, neighbours
TYPICAL = ("ce", "bsd_plus", "ctrr", "sop_plus", "tcl", "bsd_plus_neighbours")


@pytest.mark.parametrize(
    ("settings", "world_size"),
    [
        *((((f"method={m}",), 2) if m in TYPICAL else slow((f"method={m}",), 2)) for m in METHODS),
        (("method=bsd_plus", "optimizer.clip_norm=1"), 3),
        slow(("method=tcl",), 3),
        slow(("method=sop_plus",), 3),
        slow(("method=bsd_plus_neighbours", "data.storage=stream"), 3),
        (("method=bsd_plus", "options.top_k=4", "data.balanced=6"), 2),
        slow(("method=ce", "data.balanced=6"), 2),
    ],
)
def test_joint_steps_are_those_of_a_single_process(
    settings: tuple[str, ...],
    world_size: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Weights, weight average, optimiser, posterior, bank, mixture, metrics: after two epochs."""
    method = settings[0].removeprefix("method=")
    settings = (*settings, *SOONER.get(method, []))
    ended = results(on_ranks(world_size, train_on_rank, settings, folder=tmp_path))
    states = [state for state, _ in ended]
    alone = train_alone(settings, world_size, [drawn for _, drawn in ended], monkeypatch)
    for state in states:
        assert state.pop("world_size") == world_size
        del state["train_seconds"]
    for name in ("world_size", "train_seconds"):
        del alone[name]
    assert_close(states[0], alone)
    for other in states[1:]:  # a rank differs from another in nothing
        assert_close(other, states[0])


def seeds_on_rank() -> list[int]:
    torch.set_num_threads(1)
    with distributed.process_group():
        trainer, seeds = build(("method=ce",)), []
        trainer_module.seed_generators = lambda number, device: seeds.append(number)
        train_epochs(trainer, 1)
        return seeds


def test_ranks_draw_their_views_apart(tmp_path: Path) -> None:
    seeds = results(on_ranks(2, seeds_on_rank, folder=tmp_path))
    assert len({*seeds[0], *seeds[1]}) == 2 * 4
    assert seeds[0] == [step_seed(0, 0, step) for step in range(4)]  # those of a single process


# --- exchanges --------------------------------------------------------------------------------------


def exchange() -> dict[str, Any]:
    with distributed.process_group():
        rank, world_size = distributed.rank(), distributed.world_size()
        x = torch.full((2, 3), float(rank), requires_grad=True)
        joint = distributed.gather(x, dim=1)  # (2,3W)
        joint.mul(torch.arange(joint.numel()).view_as(joint)).sum().backward()
        state = {
            "w": torch.arange(5),
            "weight": torch.arange(16.0)
            .view(2, 2, 2, 2)
            .contiguous(memory_format=torch.channels_last),
            "part": torch.arange(12.0).view(3, 4)[:, 1:3],
            "list": [torch.tensor(True), torch.tensor(2.5), None, "text"],
        }
        mine = torch.full((), float(rank))
        distributed.copy_first_(mine)
        return {
            "joint": joint.detach(),
            "gradient": x.grad,
            "rows": distributed.gather_rows(torch.full((rank, 2), rank)),
            "each": distributed.each({"rank": rank}),
            "largest": distributed.largest(rank * 5),
            "share": distributed.share(10),
            "state": distributed.from_first(state if rank == 0 else None),
            "nothing": distributed.from_first(None),
            "first's": float(mine),
            "world_size": world_size,
        }


def test_exchanges(tmp_path: Path) -> None:
    found = results(on_ranks(3, exchange, folder=tmp_path))
    weights = torch.arange(18.0).view(2, 9)
    for rank, of_rank in enumerate(found):
        assert of_rank["joint"].tolist() == [[0.0] * 3 + [1.0] * 3 + [2.0] * 3] * 2
        # all ranks compute the same loss: the gradient of their sum is W times that of one
        assert torch.equal(of_rank["gradient"], 3 * weights[:, 3 * rank : 3 * rank + 3])
        assert of_rank["rows"].tolist() == [[1, 1], [2, 2], [2, 2]]
        assert of_rank["each"] == [{"rank": r} for r in range(3)]
        assert of_rank["largest"] == 10 and of_rank["first's"] == 0 and of_rank["nothing"] is None
        w, (flag, number, *plain) = of_rank["state"]["w"], of_rank["state"]["list"]
        assert w.tolist() == [0, 1, 2, 3, 4] and w.dtype == torch.int64
        weight, part = of_rank["state"]["weight"], of_rank["state"]["part"]
        assert torch.equal(weight, torch.arange(16.0).view(2, 2, 2, 2))
        assert weight.is_contiguous(memory_format=torch.channels_last)  # as fused optimisers want
        assert torch.equal(part, torch.arange(12.0).view(3, 4)[:, 1:3])
        assert flag.dtype == torch.bool and bool(flag) and float(number) == 2.5
        assert plain == [None, "text"]
    shares = [range(10)[of_rank["share"]] for of_rank in found]
    assert [i for part in shares for i in part] == list(range(10))


def test_alone_there_is_no_group_and_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc-per-node 1
    with distributed.process_group():
        assert not torch.distributed.is_initialized()
        x, network = torch.ones(2), torch.nn.BatchNorm1d(2)
        assert distributed.gather(x) is x and distributed.gather_rows(x) is x
        assert distributed.parallel(network) is network
        distributed.joint_batch_norm(network)
        assert type(network) is torch.nn.BatchNorm1d
        assert distributed.each(1) == [1] and distributed.from_first(x) is x
        assert range(10)[distributed.share(10)] == range(10)


def go_through(log: Path, fails: bool) -> None:
    with distributed.process_group():
        if distributed.rank() == 0:
            time.sleep(0.3)
        with distributed.one_first("test"):
            with log.open("a") as file:
                file.write(f"{distributed.rank()}\n")
            if fails:
                raise UserError("there is no network")


@pytest.mark.parametrize("fails", [False, True])
def test_one_process_downloads_and_the_others_find_it_there(fails: bool, tmp_path: Path) -> None:
    ended = on_ranks(3, go_through, tmp_path / "log", fails, folder=tmp_path / "ranks")
    first, *others = (tmp_path / "log").read_text().split()
    assert first == "0" and sorted(others) == ["1", "2"]
    if fails:  # one of them raises the error, for `command` to print; the others are silent
        assert sorted(each.code for each in ended) == [1, 2, 2]


# --- whole runs -------------------------------------------------------------------------------------


Sabotage = Callable[[], None]


def run_main(arguments: list[str], sabotage: Sabotage | None = None) -> None:
    torch.set_num_threads(1)
    if sabotage is not None:
        sabotage()
    raise SystemExit(train.main(arguments))


def strike(rank: int, at_step: int, number: int) -> None:
    """Send a signal to one rank, at the end of its step of this number."""
    step = Trainer.step

    def watched(self: Trainer, *batch: Tensor) -> None:
        step(self, *batch)
        if distributed.rank() == rank and self.step_number == at_step:
            os.kill(os.getpid(), number)

    Trainer.step = watched  # type: ignore[method-assign]


def run(
    world_size: int, folder: Path, *settings: str, sabotage: Sabotage | None = None
) -> list[Ended]:
    arguments = [*SMALL, f"run.dir={folder / 'run'}", *settings]
    return on_ranks(world_size, run_main, arguments, sabotage, folder=folder / "ranks")


def codes(ended: list[Ended]) -> list[int]:
    return [each.code for each in ended]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The directory of a run of so many processes, without interruption."""
    runs: dict[int, Path] = {}

    def get(world_size: int) -> Path:
        if world_size not in runs:
            folder = tmp_path_factory.mktemp("undisturbed")
            if world_size == 1:
                assert train.main([*SMALL, f"run.dir={folder / 'run'}"]) == 0
            else:
                results(run(world_size, folder))
            runs[world_size] = folder / "run"
        return runs[world_size]

    return get


def test_the_first_process_writes_and_speaks_for_all(
    undisturbed: Callable[[int], Path],
) -> None:
    alone, many = undisturbed(1), undisturbed(2)
    first, other = ((many.parent / "ranks" / f"{r}.out").read_text() for r in range(2))
    assert "of 2 processes" in first and "test accuracy, last epoch" in first
    assert other == "" and not any((many.parent / "ranks" / f"{r}.err").read_text() for r in (0, 1))
    assert sorted(p.name for p in many.iterdir()) == sorted(p.name for p in alone.iterdir())
    found = strict((many / "results.json").read_text())
    assert found["world_size"] == 2
    assert found["images_per_second"] > 0 and len(rows(many)) == 3
    assert found["test_samples"] == sum(found["reliability"]["count"]) == 359
    labels = [pyarrow.parquet.read_table(each / "labels.parquet") for each in (alone, many)]
    assert labels[0].schema.equals(labels[1].schema) and len(labels[1]) == N
    assert np.isfinite(np.load(many / "pred_probs.npz")["network"]).all()


def test_a_checkpoint_says_nothing_of_ranks(undisturbed: Callable[[int], Path]) -> None:
    """Of the same names and shapes as that of one process; `evaluate` finds the same accuracy in it."""
    alone, many = (load_checkpoint(undisturbed(w) / "checkpoint.pt") for w in (1, 2))
    assert many.pop("world_size") == 2 and alone.pop("world_size") == 1

    def outline(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: outline(each) for key, each in value.items()}
        return (value.dtype, value.shape) if isinstance(value, Tensor) else type(value)

    assert outline(many) == outline(alone)
    found = evaluate_run(undisturbed(2), [])
    assert found["test_accuracy"] == pytest.approx(rows(undisturbed(2))[-1]["test_accuracy"])


@pytest.mark.parametrize("victim", [slow(0), 2])
def test_a_killed_process_ends_all_and_the_run_goes_on(
    victim: int, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    begin = time.monotonic()
    ended = run(3, tmp_path, sabotage=partial(strike, victim, 6, signal.SIGKILL))
    assert time.monotonic() - begin < 60
    assert codes(ended) == [-9 if rank == victim else 1 for rank in range(3)], ended
    assert sum(each.err.count("another process of this run is gone") for each in ended) == 1
    assert "Traceback" not in "".join(each.err for each in ended)
    assert load_checkpoint(tmp_path / "run" / "checkpoint.pt")["step"] == 4

    results(run(3, tmp_path))
    # torch adds up the gradients of three in another order in the first step of a process
    again, expected = (
        load_checkpoint(each / "checkpoint.pt") for each in (tmp_path / "run", undisturbed(3))
    )
    assert_close(again["modules"], expected["modules"])
    assert rows(tmp_path / "run")[0]["loss"] == rows(undisturbed(3))[0]["loss"]


def hang(rank: int, at_step: int) -> None:
    """One rank sleeps for longer than the others wait."""
    distributed.TIMEOUT = timedelta(seconds=3)
    step = Trainer.step

    def watched(self: Trainer, *batch: Tensor) -> None:
        if distributed.rank() == rank and self.step_number == at_step:
            time.sleep(12)
        step(self, *batch)

    Trainer.step = watched  # type: ignore[method-assign]


@pytest.mark.slow
def test_nobody_waits_for_ever(tmp_path: Path) -> None:
    ended = run(2, tmp_path, sabotage=partial(hang, 1, 5))
    assert codes(ended) == [1, 1], ended
    assert "has not answered for 3 s" in ended[0].err and ended[1].err == ""


@pytest.mark.parametrize("later", [slow(1), 2, slow(3)])
def test_a_signal_to_one_process_stops_all_saved(
    later: int, undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    ended = run(2, tmp_path, sabotage=partial(strike, 1, 6, signal.SIGTERM))
    assert codes(ended) == [143, 143], ended
    assert ended[1].out == "" and ended[0].out.count("stopped by SIGTERM, saved") == 1
    command = ended[0].out.splitlines()[-1]
    assert command.startswith("  torchrun --nproc-per-node 2 -m noisybsd.train recipe=")
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["step"] == 6 and len(saved["history"]) == 1

    arguments = shlex.split(command)[5:]
    if later == 1:
        assert train.main(arguments) == 0
    else:
        ended = on_ranks(later, run_main, arguments, folder=tmp_path / "again")
        results(ended)
    finished = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert [row["epoch"] for row in rows(tmp_path / "run")] == [1, 2, 3]
    visits = finished["modules"]["monitor"]["visits"]
    if later == 2:
        assert_same(outcome(tmp_path / "run"), outcome(undisturbed(2)))
        assert visits.sum() == 3 * 4 * BATCH
    else:  # the second epoch began anew: its two first steps were taken twice, and nothing is left out
        assert visits.sum() == (3 * 4 + 2) * BATCH
        assert visits.min() >= 1
        text = (tmp_path / "run" / "log.txt").read_text()
        assert f"epoch 2 on 2 processes, now there are {later}: it begins anew, 2 steps" in text


def start_otherwise(rank: int, *settings: str) -> None:
    """This rank has other arguments."""
    if int(os.environ["RANK"]) == rank:
        load = training.load_config
        training.load_config = lambda arguments: load([*arguments, *settings])  # type: ignore[assignment]


def see_other_data(rank: int) -> None:
    load = training.load_dataset

    def other(*arguments: Any) -> Any:
        found = load(*arguments)
        return replace(found, sha256="0" * 64) if distributed.rank() == rank else found

    training.load_dataset = other


def run_out_of_memory() -> None:
    def step(self: Trainer, *batch: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    Trainer.step = step  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("settings", "sabotage", "code", "message"),
    [
        (
            ["batch_size=25"],
            None,
            2,
            "batch_size=25 is that of all processes together, and 2 of them",
        ),
        (["optimizer.lr=-1"], None, 2, "optimizer.lr"),
        (["network.name=vit_small"], None, 2, "network.width=4 does not apply"),
        (["run.resume=nowhere"], None, 2, "run.resume=nowhere: no such file"),
        ([], partial(start_otherwise, 1, "seed=7"), 2, "seed: 7 there, 0 here"),
        ([], partial(see_other_data, 1), 2, "that process 1 of 2 sees are not those of process 0"),
        ([], run_out_of_memory, 2, "Lower batch_size (got 24)"),
        (["optimizer.lr=1e9"], None, 1, "is not finite"),
    ],
)
def test_a_mistake_is_told_once_and_ends_all(
    settings: list[str], sabotage: Sabotage | None, code: int, message: str, tmp_path: Path
) -> None:
    ended = run(2, tmp_path, *settings, sabotage=sabotage)
    errors = "".join(each.err for each in ended)
    assert errors.count(message) == 1, errors
    assert "Traceback" not in errors
    # one that was waiting for the other finds it gone
    assert {code} <= set(codes(ended)) <= {code, 1}, ended


def test_processes_that_nobody_has_introduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with (
        pytest.raises(UserError, match=r"not LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR.*torchrun"),
        distributed.process_group(),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORLD_SIZE", "abc"),
        ("WORLD_SIZE", "0"),
        ("RANK", "2"),
        ("MASTER_PORT", "abc"),
        ("LOCAL_RANK", "-1"),
    ],
)
def test_an_environment_that_torchrun_did_not_set(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for key, text in (
        whole | {"MASTER_ADDR": "localhost", "MASTER_PORT": "1", name: value}
    ).items():
        monkeypatch.setenv(key, text)
    with (
        pytest.raises(
            UserError, match=f"^environment variable {name}: got '{value}'; valid: a number"
        ),
        distributed.process_group(),
    ):
        pass


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert distributed.own_device(torch.device("cpu")) == torch.device("cpu")
    with pytest.raises(UserError, match=r"--nproc-per-node=4: more processes than GPUs .* has 2"):
        distributed.own_device(torch.device("cuda"))


# --- torchrun itself --------------------------------------------------------------------------------


def torchrun(world_size: int, *arguments: str) -> subprocess.Popen[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(world_size)]
    return subprocess.Popen(
        [*launcher, "-m", "noisybsd.train", *SMALL, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_trains_stops_and_continues(
    undisturbed: Callable[[int], Path], tmp_path: Path
) -> None:
    place = f"run.dir={tmp_path / 'run'}"
    process = torchrun(2, place)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch 1/3"):
            process.send_signal(signal.SIGTERM)
    assert process.wait(60) != 0
    assert (tmp_path / "run" / "checkpoint.pt").exists()
    assert not (tmp_path / "run" / "results.json").exists()

    process = torchrun(2, place)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "continuing after epoch 1" in out
    assert_same(outcome(tmp_path / "run"), outcome(undisturbed(2)))


@pytest.mark.slow
def test_torchrun_tells_of_a_mistake(tmp_path: Path) -> None:
    process = torchrun(2, "batch_size=25", f"run.dir={tmp_path / 'run'}")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and out == ""
    assert "error: batch_size=25 is that of all processes" in err
