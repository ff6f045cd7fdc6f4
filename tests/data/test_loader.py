"""The order of samples, and that both loaders deliver it, whole, from any point, and say what ails."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from PIL import Image
from torch import Tensor

from noisybsd.data import loader as loader_module
from noisybsd.data import residence
from noisybsd.data.dataset import Split
from noisybsd.data.images import ImageError, ImageFiles
from noisybsd.data.loader import (
    ResidentLoader,
    StreamingLoader,
    build_loader,
    candidates,
    epoch_order,
    eval_batches,
)
from noisybsd.data.residence import free_memory, keep_resident
from noisybsd.errors import UserError

SIZE = 8


def make_split(folder: Path, count: int) -> Split:
    """Image files, each of one colour that tells its index."""
    names = [f"{i}.png" for i in range(count)]
    for i, name in enumerate(names):
        Image.new("RGB", (SIZE, SIZE), (i % 256, i // 256, 7)).save(folder / name)
    return Split(ImageFiles(names, folder, SIZE), np.arange(count) % 3, None)


def indices_shown(images: Tensor) -> list[int]:
    """The indices (B,) that the colours of images (B,3,H,W) tell."""
    assert (images == images[:, :, :1, :1]).all()
    return (images[:, 0, 0, 0].int() + 256 * images[:, 1, 0, 0].int()).tolist()


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return make_split(tmp_path, 50)


# the order


def test_order_is_a_shuffled_permutation() -> None:
    order = epoch_order(1000, seed=0, epoch=0)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(1000))
    assert (order == torch.arange(1000)).sum() < 10


def test_order_is_a_pure_function_of_seed_epoch_and_rank() -> None:
    state = torch.get_rng_state()
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**63, 0, 0), (0, 2**31, 0)]
    orders = [epoch_order(100, s, e, rank=r, world_size=2).tolist() for s, e, r in keys]
    again = [epoch_order(100, s, e, rank=r, world_size=2).tolist() for s, e, r in keys]
    assert orders == again
    assert len({tuple(i // 2 for i in order) for order in orders}) == len(keys)
    assert torch.equal(torch.get_rng_state(), state)


def test_order_never_changes_between_versions() -> None:
    """A resumed run, and a repeated one, must see the same batches whatever is installed."""
    order = epoch_order(10_000, seed=3, epoch=7).numpy().astype("<i8")
    assert hashlib.sha256(order.tobytes()).hexdigest() == PINNED


PINNED = "d4d5943d8de0145c6d5001825a181c968f6f5877174f48510ce5556458170345"


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 7])
def test_no_sample_is_visited_twice_and_none_is_left_out_for_good(world_size: int) -> None:
    n = 103
    visited = set()
    for epoch in range(60):
        orders = [
            epoch_order(n, 0, epoch, rank=r, world_size=world_size) for r in range(world_size)
        ]
        for rank, order in enumerate(orders):
            assert len(order) == n // world_size
            assert (order % world_size == rank).all()  # a rank keeps its shard
        together = torch.cat(orders).tolist()
        assert len(set(together)) == len(together) > n - world_size
        visited.update(together)
    assert visited == set(range(n))


@pytest.mark.parametrize("world_size", [1, 3])
def test_balanced_epochs(world_size: int) -> None:
    labels = np.repeat([0, 1, 2, 3], [500, 60, 30, 4])
    np.random.default_rng(0).shuffle(labels)

    def draw(epoch: int) -> list[list[int]]:
        options = {"world_size": world_size, "labels": labels, "balanced": 30}
        orders = [epoch_order(594, 0, epoch, rank=r, **options) for r in range(world_size)]
        return [order.tolist() for order in orders]

    orders = draw(0)
    chosen = np.concatenate(orders)
    assert len({len(order) for order in orders}) == 1
    assert len(np.unique(chosen)) == len(chosen)
    counts = np.bincount(labels[chosen])
    assert counts.max() == 30 and counts.min() >= 1
    assert len(chosen) == 94 or world_size > 1  # of each class 30, or as many as there are
    assert draw(0) == orders
    assert len(np.concatenate(draw(1))) == len(chosen)
    assert set(np.concatenate(draw(1))) != set(chosen)


def test_balanced_epochs_mix_classes_from_begin_to_end() -> None:
    labels = np.repeat([0, 1], [9000, 1000])
    order = epoch_order(10_000, 0, 0, labels=labels, balanced=1000)
    plain = epoch_order(10_000, 0, 0).tolist()
    first = [[i for i in plain if labels[i] == label][:1000] for label in (0, 1)]
    assert sorted(order.tolist()) == sorted(first[0] + first[1])
    halves = labels[order.numpy()].reshape(2, 1000).mean(axis=1)
    assert np.abs(halves - 0.5).max() < 0.06  # 4 standard deviations


def test_candidates_never_repeat_a_sample_of_the_batch() -> None:
    order = epoch_order(23, 0, 0)
    for step in range(5):
        batch = order[step * 4 : step * 4 + 4].tolist()
        for slot in range(4):
            own, *others = candidates(order, 4, step, slot)
            assert own == batch[slot] and sorted([*batch, *others]) == list(range(23))
            column = order[slot::4].tolist()
            assert sorted([own, *others[: len(column) - 1]]) == sorted(column)  # these come first


# both loaders


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_an_epoch_is_the_order_with_its_images(split: Split, storage: str) -> None:
    loader = build_loader(split, 8, 5, "cpu", storage=storage, workers=0)
    assert isinstance(loader, ResidentLoader if storage == "resident" else StreamingLoader)
    assert loader.steps_per_epoch == 6
    for epoch in (0, 1):
        batches = list(loader.epoch(epoch))
        index = torch.cat([index for index, _ in batches])
        assert torch.equal(index, epoch_order(50, 5, epoch)[:48])
        for index, images in batches:
            assert images.shape == (8, 3, SIZE, SIZE) and images.dtype == torch.uint8
            assert indices_shown(images) == index.tolist()


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_loaders_agree_on_every_rank(split: Split, rank: int) -> None:
    in_memory = Split(split.images.load_all()[0], split.labels, None)
    options = {"rank": rank, "world_size": 3, "balanced": 12, "workers": 0}
    loaders = [
        build_loader(part, 4, 1, "cpu", storage=storage, **options)
        for part in (split, in_memory)
        for storage in ("resident", "stream")
    ]
    for batches in zip(*(loader.epoch(2) for loader in loaders), strict=True):
        for index, images in batches:
            assert torch.equal(index, batches[0][0]) and torch.equal(images, batches[0][1])
            assert indices_shown(images) == index.tolist()
            assert (index % 3 == rank).all()


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_resume_within_an_epoch(
    split: Split, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = build_loader(split, 8, 5, "cpu", storage=storage, workers=0)
    whole = [index.tolist() for index, _ in loader.epoch(3)]
    decoded: list[int] = []
    decode = ImageFiles.decode
    monkeypatch.setattr(ImageFiles, "decode", lambda self, i: decoded.append(i) or decode(self, i))
    fresh = build_loader(split, 8, 5, "cpu", storage=storage, workers=0)
    decoded.clear()
    assert [index.tolist() for index, _ in fresh.epoch(3, start=4)] == whole[4:]
    if storage == "stream":  # nothing of the batches before
        assert decoded == [i for batch in whole[4:] for i in batch]
    assert list(fresh.epoch(3, start=6)) == []
    assert next(fresh.epoch(4))[0].tolist() == epoch_order(50, 5, 4)[:8].tolist()


def test_workers_keep_the_order_over_epochs_and_jumps(
    split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: list[int] = []
    begin = loader_module._NumbersFrom.__iter__
    monkeypatch.setattr(
        loader_module._NumbersFrom,
        "__iter__",
        lambda self: starts.append(self.first) or begin(self),
    )
    loader = build_loader(split, 8, 5, "cpu", storage="stream", workers=2)
    state = torch.get_rng_state()
    try:
        for epoch, start in [(0, 0), (1, 0), (0, 2), (0, 3), (7, 5)]:
            for step, (index, images) in enumerate(loader.epoch(epoch, start), start):
                assert torch.equal(index, epoch_order(50, 5, epoch)[8 * step : 8 * step + 8])
                assert indices_shown(images) == index.tolist()
                if start == 3:  # leave an epoch early
                    break
        assert list(dict.fromkeys(starts)) == [
            0,
            2,
            3,
            47,
        ]  # epoch 1 came without a new start, so without a pause
        assert loader.waited_seconds > 0
        assert torch.equal(torch.get_rng_state(), state)
        workers = children()
        for worker in workers:  # Ctrl-C in a terminal, which the program may handle
            os.kill(worker, signal.SIGINT)
        assert len(list(loader.epoch(8))) == len(list(loader.epoch(9))) == 6
    finally:
        loader.close()
    assert workers and not alive(workers)


def children() -> list[int]:
    """The workers of this process: children of its fork server."""
    own = [p.pid for p in torch.multiprocessing.active_children()]
    return [pid for pid in own if pid is not None]


def alive(pids: list[int]) -> list[int]:
    deadline = time.monotonic() + 20
    while (
        left := [p for p in pids if Path(f"/proc/{p}").exists()]
    ) and time.monotonic() < deadline:
        time.sleep(0.05)
    return left


def test_too_large_a_batch(split: Split) -> None:
    with pytest.raises(UserError, match="batch_size=64: more than the 50 images"):
        build_loader(split, 64, 0, "cpu")


# unreadable images


@pytest.fixture
def damaged_split(split: Split, tmp_path: Path) -> Split:
    for i in (3, 17, 18, 40):
        (tmp_path / f"{i}.png").write_bytes(b"")
    return split


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_an_unreadable_image_stops_the_run(damaged_split: Split, storage: str) -> None:
    with pytest.raises(ImageError, match=r"/(3|17|18|40)\.png: is empty"):
        list(build_loader(damaged_split, 8, 0, "cpu", storage=storage, workers=0).epoch(0))


@pytest.mark.parametrize(("rank", "world_size"), [(0, 1), (1, 2)])
def test_skipped_images_are_replaced_alike_by_both_loaders(
    damaged_split: Split,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    rank: int,
    world_size: int,
) -> None:
    shard = {"rank": rank, "world_size": world_size}
    options = {"on_error": "skip", "workers": 0, **shard}
    bad = [i for i in (3, 17, 18, 40) if i % world_size == rank]
    resident = build_loader(damaged_split, 8, 0, "cpu", storage="resident", **options)
    stream = build_loader(damaged_split, 8, 0, "cpu", storage="stream", **options)
    for epoch in range(3):
        order = epoch_order(50, 0, epoch, **shard)
        pairs = zip(resident.epoch(epoch), stream.epoch(epoch), strict=True)
        for step, ((index, images), (index2, images2)) in enumerate(pairs):
            assert torch.equal(index, index2) and torch.equal(images, images2)
            assert indices_shown(images) == index.tolist()
            assert len(set(index.tolist())) == 8
            expected = order[8 * step : 8 * step + 8]
            readable = ~torch.isin(expected, torch.tensor(bad))
            assert torch.equal(index[readable], expected[readable])
    named = {f"{tmp_path / f'{i}.png'}: is empty (zero bytes)" for i in bad}
    for loader in (resident, stream):
        assert len(loader.skipped) == len(bad) and set(loader.skipped) == named
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 2 * len(bad) and all(
        "skipped an unreadable image: " in w for w in warnings
    )


def test_a_file_that_disappears_during_training(split: Split, tmp_path: Path) -> None:
    loaders = {
        mode: build_loader(split, 8, 0, "cpu", storage="stream", workers=0, on_error=mode)
        for mode in ("skip", "stop")
    }
    for loader in loaders.values():
        assert len(list(loader.epoch(0))) == 6 and loader.skipped == []
    victim = int(epoch_order(50, 0, 1)[20])
    (tmp_path / f"{victim}.png").unlink()
    seen = torch.cat([index for index, _ in loaders["skip"].epoch(1)])
    assert len(seen) == 48 and victim not in seen
    reason = "cannot be read: No such file or directory"
    assert loaders["skip"].skipped == [f"{tmp_path / f'{victim}.png'}: {reason}"]
    with pytest.raises(ImageError, match=rf"/{victim}\.png: cannot be read: No such file"):
        list(loaders["stop"].epoch(1))


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_nothing_readable_is_an_error_even_when_skipping(
    split: Split, tmp_path: Path, storage: str
) -> None:
    for i in range(45):
        (tmp_path / f"{i}.png").write_bytes(b"")
    with pytest.raises(
        UserError, match=r"no readable image can take the place of .*\.png: is empty"
    ):
        loader = build_loader(split, 8, 0, "cpu", storage=storage, workers=0, on_error="skip")
        list(loader.epoch(0))


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_one_batch_is_filled_as_long_as_enough_images_can_be_read(
    split: Split, tmp_path: Path, storage: str
) -> None:
    bad = [int(i) for i in epoch_order(50, 0, 0)[:15]]
    for i in bad:
        (tmp_path / f"{i}.png").write_bytes(b"")
    loader = build_loader(split, 32, 0, "cpu", storage=storage, workers=0, on_error="skip")
    for epoch in range(3):
        ((index, images),) = loader.epoch(epoch)
        assert len({*index.tolist()} - {*bad}) == 32 and indices_shown(images) == index.tolist()


def test_more_workers_than_cores_are_logged_without_a_warning(
    split: Split, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0}, raising=False)
    caplog.set_level(logging.INFO, "noisybsd")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = build_loader(split, 8, 0, "cpu", storage="stream", workers=2)
        next(iter(loader.epoch(0)))
        loader.close()
    assert "data.workers=2 is more than the 1 cores here" in caplog.text


def test_a_workers_error_is_the_users_message_not_a_traceback(damaged_split: Split) -> None:
    loader = build_loader(damaged_split, 8, 0, "cpu", storage="stream", workers=1)
    with pytest.raises(ImageError) as caught:
        list(loader.epoch(0))
    assert "Traceback" not in str(caught.value) and "is empty" in str(caught.value)
    assert children() == []


class BrokenFiles(ImageFiles):
    def decode(self, i: int) -> Tensor:
        raise FileNotFoundError("a bug")


def test_a_bug_in_a_worker_keeps_its_traceback(split: Split) -> None:
    broken = Split(BrokenFiles(["a"] * 50, "", SIZE), split.labels, None)
    loader = build_loader(broken, 8, 0, "cpu", storage="stream", workers=1)
    with pytest.raises(FileNotFoundError, match=r"Traceback(.|\n)*in decode(.|\n)*a bug"):
        list(loader.epoch(0))
    loader.close()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_cleaned_up(split: Split) -> None:
    loader = build_loader(split, 8, 0, "cpu", storage="stream", workers=2)
    with pytest.raises(UserError, match=r"decoding process was killed.*data.workers \(got 2\)"):
        for epoch in range(10_000):
            for _ in loader.epoch(epoch):
                if epoch == 2 and children():
                    os.kill(children()[0], signal.SIGKILL)
    assert children() == []
    assert len(list(loader.epoch(0))) == 6  # and it can start again
    loader.close()


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from torch.multiprocessing import active_children
from noisybsd.data.images import ImageFiles
from noisybsd.data.loader import StreamingLoader, epoch_order
# no `if __name__ == "__main__"` on purpose: workers must not run this file again
names = sorted(path.name for path in Path(sys.argv[1]).glob("*.png"))
order = partial(epoch_order, len(names), 0)
loader = StreamingLoader(ImageFiles(names, sys.argv[1], 8), order, 8, "cpu", workers=2)
for epoch in range(10**6):
    for batch in loader.epoch(epoch):
        if epoch == 0:
            print(*[p.pid for p in active_children()], flush=True)
        time.sleep(0.01)
"""


def start_program(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A process that loads the images in `folder` without end, and its two workers."""
    (folder / "program.py").write_text(SCRIPT)
    program = subprocess.Popen(
        [sys.executable, str(folder / "program.py"), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert program.stdout is not None
    return program, [int(pid) for pid in program.stdout.readline().split()]


def test_workers_end_when_the_main_process_is_killed(split: Split, tmp_path: Path) -> None:
    program, workers = start_program(tmp_path)
    assert len(workers) == 2 and all(Path(f"/proc/{pid}").exists() for pid in workers)
    program.kill()
    program.communicate()
    assert not alive(workers)


@pytest.mark.slow
def test_ctrl_c_stops_the_workers_without_a_word_from_them(split: Split, tmp_path: Path) -> None:
    program, workers = start_program(tmp_path)
    os.killpg(program.pid, signal.SIGINT)  # as a terminal does: to every process of the group
    _, errors = program.communicate(timeout=300)
    assert len(workers) == 2 and not alive(workers)
    assert errors.count("Traceback") == 1 and errors.rstrip().endswith("KeyboardInterrupt")


# where images are kept


def test_storage_is_chosen_by_size_and_logged(
    split: Split, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="noisybsd")
    size = 50 * 3 * SIZE * SIZE
    for free, kind in [(2 * size, ResidentLoader), (2 * size - 1, StreamingLoader)]:
        monkeypatch.setattr(residence, "free_memory", lambda device, free=free: free)
        assert type(build_loader(split, 8, 0, "cpu")) is kind
        assert type(build_loader(split, 8, 0, "cpu", storage="resident")) is ResidentLoader
        assert type(build_loader(split, 8, 0, "cpu", storage="stream")) is StreamingLoader
    first = caplog.records[0].getMessage()
    assert "50 of 3×8×8" in first and "resident on cpu (data.storage=auto" in first
    assert "streamed" in caplog.records[3].getMessage()


@pytest.mark.parametrize("put", [build_loader, keep_resident])
def test_no_room_for_the_images_is_a_sentence(
    split: Split, monkeypatch: pytest.MonkeyPatch, put: Callable[..., object]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.60 GiB.")

    monkeypatch.setattr(torch.Tensor, "to", full)
    monkeypatch.setattr(residence, "free_memory", lambda device: 5e6)
    arguments = (split, 8, 0, "cpu") if put is build_loader else (split, "cpu")
    with pytest.raises(
        UserError, match=r"no room on cpu for 50 images of 3×8×8, 9.6e-06 GB; 0.005 GB"
    ) as e:
        put(*arguments, storage="resident")
    assert "data.storage=stream" in str(e.value)


def test_free_memory_is_plausible() -> None:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 0 < free_memory(torch.device("cpu")) <= total


# evaluation


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_evaluation_is_in_order_and_complete(split: Split, storage: str) -> None:
    kept = keep_resident(split, "cpu", storage)
    assert isinstance(kept.images, Tensor) == (storage == "resident")
    for _ in range(2):
        batches = list(eval_batches(kept, 16, "cpu"))
        assert [len(labels) for _, labels in batches] == [16, 16, 16, 2]
        assert indices_shown(torch.cat([images for images, _ in batches])) == list(range(50))
        assert torch.cat([labels for _, labels in batches]).tolist() == split.labels.tolist()


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_evaluation_leaves_unreadable_images_out(
    damaged_split: Split, tmp_path: Path, storage: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "49.png").unlink()
    with pytest.raises(ImageError, match=r"/3\.png: is empty"):
        list(eval_batches(keep_resident(damaged_split, "cpu", storage), 16, "cpu"))
    kept = keep_resident(damaged_split, "cpu", storage, on_error="skip")
    for _ in range(2):  # epochs
        batches = list(eval_batches(kept, 16, "cpu", on_error="skip"))
    left = [i for i in range(50) if i not in (3, 17, 18, 40, 49)]
    assert indices_shown(torch.cat([images for images, _ in batches])) == left
    assert torch.cat([labels for _, labels in batches]).tolist() == [i % 3 for i in left]
    assert len([r for r in caplog.records if r.levelno == logging.WARNING]) == 5
    assert kept.skipped is damaged_split.skipped and len(kept.skipped) == 5
    assert kept.skipped[0] == f"{tmp_path / '3.png'}: is empty (zero bytes)"


# memory


def rss(pids: list[int]) -> int:
    """Bytes that the processes hold for themselves alone, their shares of shared memory included."""
    total = 0
    for pid in pids:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024
    return total


@pytest.fixture(scope="module")
def large_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20,000 JPEGs in Clothing1M's folders."""
    root = tmp_path_factory.mktemp("clothing")
    generator = np.random.default_rng(0)
    jpegs = []
    for i in range(100):
        pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).resize((64, 48 + i), Image.Resampling.BICUBIC)
        image.save(root / "one.jpg")
        jpegs.append((root / "one.jpg").read_bytes())
    for i in range(20_000):
        path = root / f"images/{i % 10}/{i // 10 % 100:02d}/{i},{i * 7919}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpegs[i % 100])
    return root


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_over_epochs(large_tree: Path) -> None:
    paths = sorted(large_tree.glob("images/*/*/*.jpg"))
    assert len(paths) == 20_000
    split = Split(ImageFiles(paths, "", 32), np.arange(20_000) % 14, None)
    loader = build_loader(split, 256, 0, "cpu", storage="stream", workers=2, balanced=1000)
    assert loader.steps_per_epoch == 14 * 1000 // 256

    def memory_after_each_epoch() -> Iterator[int]:
        for epoch in range(6):
            for _, images in loader.epoch(epoch):
                assert images.shape == (256, 3, 32, 32)
            yield rss(children())  # not this process, which other tests have left fragmented

    try:
        used = list(memory_after_each_epoch())
    finally:
        loader.close()
    # 84,000 images decoded in all; copying the paths alone into each worker would cost over 10 MB
    assert max(used[2:]) - used[1] < 8 * 2**20, used


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_batches_on_cuda_equal_those_on_cpu(split: Split, storage: str) -> None:
    on_cpu = build_loader(split, 8, 0, "cpu", storage="resident")
    on_cuda = build_loader(split, 8, 0, "cuda", storage=storage, workers=2)
    for epoch in range(3):
        for (i, a), (j, b) in zip(on_cpu.epoch(epoch), on_cuda.epoch(epoch), strict=True):
            assert j.is_cuda and b.is_cuda
            assert torch.equal(i, j.cpu()) and torch.equal(a, b.cpu())
    assert (on_cuda.waited_seconds > 0) == (storage == "stream")
    on_cuda.close()
