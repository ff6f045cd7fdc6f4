"""Datasets as training sees them: labels, noise, limits, notes; the real CIFAR-N files if there."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trees
from helpers.trees import load

from noisybsd.data import fingerprint, images
from noisybsd.data.cards import load_card
from noisybsd.data.dataset import load_evaluation
from noisybsd.data.noise import inject, labels_sha256
from noisybsd.errors import UserError
from noisybsd.settings import DataConfig

SYMMETRIC = {"name": "symmetric", "rate": 0.4}


# --- synthetic noise ----------------------------------------------------------------------------


def test_noise_goes_into_the_training_labels_only() -> None:
    clean, noisy = load("digits", Path(), seed=3), load("digits", Path(), SYMMETRIC, seed=3)
    expected = inject(clean.train.labels, "symmetric", 0.4, 10, seed=3)
    assert (noisy.train.labels == expected.labels).all()
    assert (noisy.train.clean_labels == clean.train.labels).all()
    assert (noisy.test.labels == clean.test.labels).all()
    assert noisy.notes["noise"] == {
        "name": "symmetric",
        "rate": 0.4,
        "real_rate": float((expected.labels != clean.train.labels).mean()),
        "seed": 3,
        "labels_sha256": labels_sha256(expected.labels),
    }


def test_the_noise_has_its_own_seed_where_one_is_set() -> None:
    by_run = load("digits", Path(), SYMMETRIC, seed=5)
    own = load("digits", Path(), {**SYMMETRIC, "seed": 5}, seed=0)
    assert (by_run.train.labels == own.train.labels).all() and own.notes["noise"]["seed"] == 5
    assert (load("digits", Path(), SYMMETRIC, seed=0).train.labels != own.train.labels).any()


def test_class_maps_come_from_the_card(tmp_path: Path) -> None:
    trees.cifar10(tmp_path / "10", per_batch=200)
    data = load("cifar10", tmp_path / "10", {"name": "asymmetric", "rate": 1.0}, verify=False)
    truck, automobile = data.class_names.index("truck"), data.class_names.index("automobile")
    assert data.train.clean_labels is not None
    assert set(data.train.labels[data.train.clean_labels == truck]) == {automobile}
    trees.cifar100(tmp_path / "100")
    data = load(
        "cifar100", tmp_path / "100", {"name": "superclass_next", "rate": 1.0}, verify=False
    )
    coarse = np.array(load_card("cifar100").coarse)
    assert (coarse[data.train.labels] == coarse[data.train.clean_labels]).all()
    assert data.notes["noise"]["real_rate"] == 1.0


def test_instance_noise_sees_pixels() -> None:
    data = load("digits", Path(), {"name": "instance", "rate": 0.3})
    clean = load("digits", Path()).train
    assert isinstance(clean.images, torch.Tensor)
    features = clean.images.flatten(1).numpy()
    expected = inject(clean.labels, "instance", 0.3, 10, seed=0, features=features)
    assert (data.train.labels == expected.labels).all()


def test_instance_noise_needs_decoded_images(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    with pytest.raises(UserError, match=r"noise\.name=instance: needs decoded images"):
        load("own", tmp_path, {"name": "instance", "rate": 0.3})


def test_noise_on_labels_that_nobody_checked_is_measured_against_them(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    given, noisy = load("own", tmp_path), load("own", tmp_path, {"name": "pairflip", "rate": 1.0})
    assert given.train.clean_labels is None and noisy.train.clean_labels is not None
    assert (noisy.train.clean_labels == given.train.labels).all()
    assert (noisy.train.labels == 1 - given.train.labels).all()
    assert given.notes["clean_labels"] is None
    assert noisy.notes["clean_labels"] == "the given ones, before noise"
    assert (noisy.test.labels == given.test.labels).all()


# --- limits and fingerprints --------------------------------------------------------------------


def test_limit_takes_the_first_and_changes_no_label(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    whole = load("cifar10", tmp_path, SYMMETRIC, verify=False)
    part = load("cifar10", tmp_path, SYMMETRIC, verify=False, limit=30)
    assert isinstance(whole.train.images, torch.Tensor)
    assert torch.equal(torch.as_tensor(part.train.images), whole.train.images[:30])
    assert (part.train.labels == whole.train.labels[:30]).all() and len(part.test) == 20
    assert part.notes["noise"]["real_rate"] == float(
        (part.train.labels != part.train.clean_labels).mean()
    )
    assert len(load("cifar10", tmp_path, verify=False, limit=10**6).train) == 100


def test_test_limit_takes_the_first_test_images_and_leaves_training_alone(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    whole = load("cifar10", tmp_path, verify=False)
    part = load("cifar10", tmp_path, verify=False, test_limit=7)
    assert (part.test.labels == whole.test.labels[:7]).all() and len(part.test) == 7
    assert torch.equal(torch.as_tensor(part.test.images), torch.as_tensor(whole.test.images)[:7])
    assert part.sha256 == whole.sha256


def test_limit_of_sorted_folders_takes_some_of_every_class(tmp_path: Path) -> None:
    trees.folders(tmp_path, ["a", "b", "c", "d"])
    assert np.bincount(load("own", tmp_path, limit=8).train.labels).tolist() == [2, 2, 2, 2]
    noisy = load("own", tmp_path, SYMMETRIC, limit=8).train
    assert np.bincount(noisy.clean_labels).tolist() == [2, 2, 2, 2]
    labels = tmp_path / "noisy.csv"
    labels.write_text("label\n" + "0\n1\n2\n3\n" * 10)  # no longer in order: the images are
    other = load("own", tmp_path, limit=8, labels=str(labels)).train
    assert other.paths is not None
    assert [path[0] for path in other.paths] == [*"aabbccdd"]


def test_clean_labels_have_no_part_in_the_limit(tmp_path: Path) -> None:
    """Images sorted by what they show, labels that are not: with the truth known and without."""
    trees.folders(tmp_path, ["a", "b"])
    paths = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.*"))
    rows = [(path, "ab"[i % 2], path[0]) for i, path in enumerate(paths)]
    chosen = []
    for columns in (2, 3):
        lines = [",".join(("path", "label", "clean_label")[:columns])]
        lines += [",".join(row[:columns]) for row in rows]
        (tmp_path / "m.csv").write_text("\n".join(lines) + "\n")
        train = load("own", tmp_path, manifest=str(tmp_path / "m.csv"), limit=6).train
        assert (train.clean_labels is not None) == (columns == 3)
        chosen.append(train.paths)
    assert chosen[0] == chosen[1]


def test_the_fingerprint_follows_pixels_labels_and_order(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)

    def fingerprint(noise: dict[str, object] | None = None, seed: int = 0, **data: object) -> str:
        return load("cifar10", tmp_path, noise, seed, verify=False, **data).sha256

    first = fingerprint()
    assert fingerprint(seed=1) == first
    seen = {first, fingerprint(SYMMETRIC), fingerprint(SYMMETRIC, seed=1), fingerprint(limit=50)}
    folder = tmp_path / "cifar-10-batches-py"
    one, two = (folder / f"data_batch_{k}" for k in (1, 2))
    one.rename(folder / "x")
    two.rename(one)
    (folder / "x").rename(two)
    seen.add(fingerprint())
    assert len(seen) == 5


def other_pixels(path: Path) -> None:
    """Replace a picture by another whose file has as many bytes."""
    content = path.read_bytes()
    path.write_bytes(content[:-20] + bytes(20))
    assert path.stat().st_size == len(content)


def test_other_pixels_in_a_file_of_the_same_size_are_noticed(tmp_path: Path) -> None:
    for split in ("train", "test"):
        trees.folders(tmp_path / split, n=4)
    seen = {load("own", tmp_path).sha256}
    for name in ("train/cat/000.png", "train/dog/003.jpg", "test/cat/002.png"):
        other_pixels(tmp_path / name)
        seen.add(load("own", tmp_path).sha256)
    data = load("own", tmp_path)
    assert len(seen) == 4
    assert data.notes["sha256_covers"] == (
        "paths and sizes of all image files, the content of up to 2,000 of them, of training and test "
        "images; the training labels"
    )


def test_of_many_files_some_are_looked_into(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "SAMPLED", 5)
    monkeypatch.setattr(images, "PART", 100)
    large = tmp_path / "large"
    large.write_bytes(bytes(range(256)) * 20)
    paths, sizes = ["large"] * 9, [5120] * 9
    whole = fingerprint.files_sha256(tmp_path, paths, sizes)
    for at, noticed in ((0, True), (2560, True), (5119, True), (1000, False)):
        content = bytearray(large.read_bytes())
        content[at] ^= 1
        (tmp_path / "other").write_bytes(content)
        for i in range(9):
            names = [*paths[:i], "../" + tmp_path.name + "/large", *paths[i + 1 :]]
            assert fingerprint.files_sha256(tmp_path, names, sizes) != whole  # all names count
        swapped = large.read_bytes()
        large.write_bytes(content)
        assert (fingerprint.files_sha256(tmp_path, paths, sizes) != whole) == noticed
        large.write_bytes(swapped)
    assert fingerprint.sampled(9).tolist() == [0, 2, 4, 6, 8]
    assert len(fingerprint.sampled(3)) == 3


def test_the_fingerprint_follows_test_pixels_too(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    first = load("cifar10", tmp_path, verify=False)
    path = tmp_path / "cifar-10-batches-py/test_batch"
    content = bytearray(path.read_bytes())
    content[content.index(bytes([100]) * 50) + 9] ^= 1
    path.write_bytes(content)
    second = load("cifar10", tmp_path, verify=False)
    assert second.sha256 != first.sha256 and not second.is_of(first.sha256)
    assert first.notes["sha256_covers"].startswith("the pixels of all images")


def test_the_fingerprint_of_files_is_of_paths_and_sizes(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    first = load("own", tmp_path).sha256
    assert load("own", tmp_path).sha256 == first
    trees.picture(tmp_path / "cat/000.png", 0, size=(50, 60))
    second = load("own", tmp_path).sha256
    (tmp_path / "cat/001.jpg").rename(tmp_path / "cat/0015.jpg")
    assert len({first, second, load("own", tmp_path).sha256}) == 3


def test_notes_are_json(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    for data in (load("digits", Path(), SYMMETRIC), load("own", tmp_path)):
        assert json.loads(json.dumps(data.notes)) == data.notes


def test_size_of_image_files_can_be_chosen(tmp_path: Path) -> None:
    trees.folders(tmp_path)
    data = load("own", tmp_path, size=28)
    assert data.size == 28 and data.train.images.shape[2:] == (32, 32)  # 256 to 224, in the small


def test_settings_without_effect_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.size=64: digits has images of 8 pixels"):
        load("digits", tmp_path, size=64)
    with pytest.raises(UserError, match=r"data\.manifest=x\.csv: goes with data\.name=own"):
        load("digits", tmp_path, manifest="x.csv")
    with pytest.raises(UserError, match=r"noise\.file=x\.csv: goes with noise\.name=matrix"):
        load("digits", tmp_path, {"name": "none", "file": "x.csv"})


# --- label sets ---------------------------------------------------------------------------------


@pytest.fixture
def cifar10n(tmp_path: Path) -> tuple[Path, Path, np.ndarray, np.ndarray]:
    """Root, card, clean labels and the wrong ones of a small CIFAR-10N."""
    clean = trees.cifar10(tmp_path)
    worse = trees.human_labels(tmp_path / "CIFAR-10_human.pt", clean)
    worst = {"file": "CIFAR-10_human.pt", "key": "worse_label", "clean_key": "clean_label"}
    card = trees.card(tmp_path, "cifar10n", checksums=None, labels={"worst": worst})
    return tmp_path, card, clean, worse


def test_a_label_set_replaces_the_labels(
    cifar10n: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    root, card, clean, worse = cifar10n
    data = load(card, root, labels="worst")
    assert (data.train.labels == worse).all() and (data.train.clean_labels == clean).all()
    assert data.notes["clean_labels"] == "known"
    assert data.notes["label_set"] == "worst" and data.notes["noise"]["real_rate"] == 0.25
    assert (load(card, root).train.labels == clean).all()


def test_labels_in_tensorflows_order_are_refused(
    cifar10n: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    root, card, clean, _ = cifar10n
    order = np.random.default_rng(0).permutation(len(clean))
    trees.human_labels(root / "CIFAR-10_human.pt", clean[order])
    with pytest.raises(UserError, match=r"agree with the images' own for \d+\.\d% of 100.*orders"):
        load(card, root, labels="worst")
    one_off = clean.copy()
    one_off[[3, 5]] = one_off[[5, 3]] if one_off[3] != one_off[5] else (one_off[[5, 3]] + 1) % 10
    trees.human_labels(root / "CIFAR-10_human.pt", one_off)
    with pytest.raises(UserError, match=r"98\.0% of 100"):
        load(card, root, labels="worst")


def test_label_sets_that_do_not_exist_or_are_not_whole(
    cifar10n: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    root, card, clean, _ = cifar10n
    with pytest.raises(UserError, match=r"data\.labels: got 'wrost', did you mean worst"):
        load(card, root, labels="wrost")
    (root / "CIFAR-10_human.pt").unlink()
    with pytest.raises(UserError, match=r"CIFAR-10_human\.pt: not there"):
        load(card, root, labels="worst")
    trees.human_labels(root / "CIFAR-10_human.pt", clean[:90])
    with pytest.raises(UserError, match="got 90 labels, valid: 100"):
        load(card, root, labels="worst")
    torch.save({"worse_label": clean}, root / "CIFAR-10_human.pt")
    with pytest.raises(UserError, match="has no entry clean_label, which proves the order"):
        load(card, root, labels="worst")
    torch.save({"worse_label": clean + 1, "clean_label": clean}, root / "CIFAR-10_human.pt")
    with pytest.raises(UserError, match="label 10 is out of range"):
        load(card, root, labels="worst")


def test_the_official_label_file_is_told_by_its_checksum(tmp_path: Path) -> None:
    clean = trees.cifar10(tmp_path)
    trees.human_labels(tmp_path / "CIFAR-10_human.pt", clean)
    with pytest.raises(UserError, match=r"CIFAR-10_human\.pt: not the official file"):
        load("cifar10n", tmp_path, labels="worst", verify=False)


def test_synthetic_noise_on_noisy_labels_is_refused(
    cifar10n: tuple[Path, Path, np.ndarray, np.ndarray],
) -> None:
    root, card, _, _ = cifar10n
    with pytest.raises(UserError, match=r"noise\.name=symmetric: the training labels are noisy"):
        load(card, root, SYMMETRIC, labels="worst")


def test_labels_from_a_file(cifar10n: tuple[Path, Path, np.ndarray, np.ndarray]) -> None:
    root, card, clean, worse = cifar10n
    path = root / "mine.npy"
    np.save(path, worse)
    data = load(card, root, labels=str(path))
    assert (data.train.labels == worse).all() and (data.train.clean_labels == clean).all()
    trees.lines(root / "mine.csv", ["label,clean_label", *(f"{a},{a}" for a in np.roll(clean, 1))])
    with pytest.raises(UserError, match="different orders"):
        load(card, root, labels=str(root / "mine.csv"))


def test_labels_in_another_order_are_noticed_without_clean_ones(tmp_path: Path) -> None:
    own = load("digits", Path()).train.labels
    order = np.random.default_rng(0).permutation(len(own))
    np.save(tmp_path / "other.npy", own[order])
    with pytest.raises(UserError, match=r"other\.npy: agree with .* for \d+\.\d% of 1438 .*chance"):
        load("digits", Path(), labels=str(tmp_path / "other.npy"))
    noisy = inject(own, "symmetric", 0.8, 10, seed=0).labels
    np.save(tmp_path / "noisy.npy", noisy)
    data = load("digits", Path(), labels=str(tmp_path / "noisy.npy"))
    assert (data.train.labels == noisy).all() and data.notes["order_proven"] is False
    rows = [f"{a},{b}" for a, b in zip(own[order], own, strict=True)]
    path = trees.lines(tmp_path / "proven.csv", ["label,clean_label", *rows])
    assert load("digits", Path(), labels=str(path)).notes["order_proven"] is True


def test_a_file_of_clean_labels_makes_a_clean_test_split(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos")
    rows = [f"{i // 10},{(i // 10 + (i == 3)) % 2}" for i in range(20)]
    path = trees.lines(tmp_path / "labels.csv", ["label,clean_label", *rows])
    data = load("own", tmp_path / "photos", labels=str(path))
    assert data.train.clean_labels is not None and data.test.clean_labels is not None
    assert (data.test.labels == data.test.clean_labels).all()
    assert data.notes["test_labels"] == "clean"


# --- cards that disagree with the data ----------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"classes": ["a", "b", "c"], "asymmetric": None},
            "digits: its card has 3 classes, but among the training images: label [3-9] of image",
        ),
        ({"size": 32}, "digits: the card has size=32, the training images 8"),
        (
            {"channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3},
            "the card has channels=3, .* images 1",
        ),
    ],
)
def test_a_card_that_disagrees_with_the_data_is_refused_before_training(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load(trees.card(tmp_path, "digits", **changes), tmp_path)


# --- official bytes -----------------------------------------------------------------------------


def test_pixels_that_are_not_official(tmp_path: Path) -> None:
    trees.cifar10(tmp_path)
    names = [f"cifar-10-batches-py/data_batch_{k}" for k in range(1, 6)]
    sums = {n: "sha256:" + hashlib.sha256((tmp_path / n).read_bytes()).hexdigest() for n in names}
    card = trees.card(tmp_path, "cifar10", checksums=sums)
    assert load(card, tmp_path).notes["pixels_verified"] is True
    wrong = trees.card(tmp_path, "cifar10", checksums=sums | {names[2]: "md5:" + "0" * 32})
    with pytest.raises(
        UserError, match=r"data_batch_3: not the official bytes \(1 of 5.*verify=false"
    ):
        load(wrong, tmp_path)
    assert load(wrong, tmp_path, verify=False).notes["pixels_verified"] is False
    assert load("digits", tmp_path).notes["pixels_verified"] is None


def test_no_download_where_it_is_not_wanted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data_batch_1: not there"):
        load("cifar10n", tmp_path, labels="worst")
    assert list(tmp_path.iterdir()) == []


def test_the_test_split_of_any_dataset_can_be_evaluated() -> None:
    found = load_evaluation(DataConfig(name="digits"))
    assert (found.name, found.size, found.channels) == ("digits", 8, 1)
    assert found.class_names == tuple("0123456789")
    [(name, split)] = found.sets
    assert name == "test" and len(split) == 359


# --- the real files -----------------------------------------------------------------------------

REAL = os.environ.get("NOISYBSD_TEST_DATA", "")
needs_real = pytest.mark.skipif(
    not (Path(REAL) / "cifar-10-batches-py").is_dir(),
    reason="NOISYBSD_TEST_DATA: no folder with CIFAR-10 and the CIFAR-N files",
)


@needs_real
@pytest.mark.slow
@pytest.mark.parametrize(
    ("labels", "rate"),
    [
        ("default", 0.0),
        ("aggre", 0.0901),
        ("random1", 0.1723),
        ("random2", 0.1812),
        ("random3", 0.1764),
        ("worst", 0.4021),
    ],
)
def test_real_cifar10n(labels: str, rate: float) -> None:
    data = load("cifar10n", Path(REAL), labels=labels, verify=False)
    assert data.notes["noise"]["real_rate"] == pytest.approx(rate, abs=5e-5)
    assert data.train.images.shape == (50000, 3, 32, 32)
    assert np.bincount(data.train.clean_labels).tolist() == [5000] * 10
    mean = torch.as_tensor(data.train.images).double().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx(data.mean, abs=3e-3)
