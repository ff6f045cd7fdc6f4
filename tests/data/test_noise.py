"""Noise models against their matrices, and pinned draws."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from noisybsd.data import noise
from noisybsd.data.label_files import labels_sha256, read_labels
from noisybsd.data.noise import (
    NOISE_MODELS,
    draw,
    inject,
    instance_probabilities,
    philox,
    summary,
    uniforms,
)
from noisybsd.errors import UserError

CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
CIFAR10_MAP = {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
DIGITS_MAP = {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
# superclass of each of CIFAR-100's classes, which are in alphabetical order
CIFAR100_COARSE = [
    *(4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7),
    *(6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10),
    *(16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16),
    *(12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13),
]
MATRIX = [[0.7, 0.3, 0.0], [0.0, 1.0, 0.0], [0.25, 0.25, 0.5]]


def features_of(n: int, width: int = 16) -> np.ndarray:
    """(n, width) numbers in [-0.5, 0.5] that need no random numbers."""
    i, j = np.arange(n)[:, None], np.arange(width)
    return (i * 7919 + j * 104729 + i * j * 31) % 257 / 256 - 0.5


def facts(name: str, n: int) -> dict:
    """What a model needs to know about a dataset of ten classes (`matrix`: three)."""
    coarse = [0, 1, 0, 1, 2, 2, 0, 1, 3, 0]  # groups of 4, 3, 2 and 1, not consecutive
    return {
        "asymmetric": {"class_map": CIFAR10_MAP},
        "superclass_next": {"superclasses": coarse},
        "superclass_random": {"superclasses": coarse},
        "instance": {"features": features_of(n)},
        "matrix": {"matrix": np.array(MATRIX)},
    }.get(name, {})


def noisy_labels(
    name: str, n: int, seed: int, rate: float = 0.4
) -> tuple[np.ndarray, noise.NoisyLabels]:
    num_classes = 3 if name == "matrix" else 10
    clean = np.arange(n) % num_classes
    rate = 0.0 if name == "matrix" else rate
    return clean, inject(clean, name, rate, num_classes, seed, **facts(name, n))


def chi_square(rows: np.ndarray, drawn: np.ndarray, probabilities: np.ndarray) -> float:
    """p-value of the drawn labels under the matrix; cells that expect less than 5 are joined."""
    statistic, freedom = 0.0, 0
    for k, expected in enumerate(probabilities):
        observed = np.bincount(drawn[rows == k], minlength=len(expected))
        expected = expected * observed.sum()
        assert (observed[expected == 0] == 0).all()
        common = expected >= 5
        rest = (observed[~common].sum(), expected[~common].sum())
        cells = [*zip(observed[common], expected[common], strict=True)]
        cells += [rest] if rest[1] > 1e-9 else []
        statistic += sum((o - e) ** 2 / e for o, e in cells)
        freedom += len(cells) - 1
    return float(stats.chi2.sf(statistic, freedom))


# --- models against their matrices --------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.8])
@pytest.mark.parametrize("name", [name for name in NOISE_MODELS if name != "instance"])
def test_transition_counts_fit_the_matrix(name: str, rate: float) -> None:
    draws = [noisy_labels(name, 6000, seed, rate) for seed in range(5)]
    transition = draws[0][1].transition
    rows = np.concatenate([clean for clean, _ in draws])
    drawn = np.concatenate([noisy.labels for _, noisy in draws])
    # both tails: draws of fixed counts per class would fit too well
    assert 1e-3 < chi_square(rows, drawn, transition) < 1 - 1e-3


def test_chi_square_sees_a_small_error() -> None:
    clean, noisy = noisy_labels("symmetric", 30_000, 0, 0.4)
    assert chi_square(clean, noisy.labels, noise.symmetric(0.43, 10)) < 1e-3
    assert chi_square(clean, noisy.labels, noise.symmetric_exclusive(0.4, 10)) < 1e-3


def test_instance_counts_fit_the_per_sample_probabilities() -> None:
    true = np.arange(8) % 4
    probabilities = instance_probabilities(true, features_of(8), 0.4, 4, philox(0))
    rows = np.repeat(np.arange(8), 4000)
    p_values = [
        chi_square(rows, draw(probabilities, rows, philox(s)), probabilities) for s in (1, 2)
    ]
    assert all(1e-3 < p < 1 - 1e-3 for p in p_values)


@pytest.mark.parametrize(
    ("transition", "expected"),
    [
        (noise.symmetric(0.3, 3), [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]),
        (noise.symmetric_exclusive(0.4, 3), [[0.6, 0.2, 0.2], [0.2, 0.6, 0.2], [0.2, 0.2, 0.6]]),
        (noise.asymmetric(0.4, 3, {2: 0}), [[1, 0, 0], [0, 1, 0], [0.4, 0, 0.6]]),
        (noise.asymmetric(0.4, 3, {2: 0, 0: 2}), [[0.6, 0, 0.4], [0, 1, 0], [0.4, 0, 0.6]]),
        (noise.pairflip(0.4, 3), [[0.6, 0.4, 0], [0, 0.6, 0.4], [0.4, 0, 0.6]]),
        (
            noise.superclass_next(0.4, 5, [0, 1, 0, 0, 2]),
            [
                [0.6, 0, 0.4, 0, 0],
                [0, 1, 0, 0, 0],
                [0, 0, 0.6, 0.4, 0],
                [0.4, 0, 0, 0.6, 0],
                [0, 0, 0, 0, 1],
            ],
        ),
        (
            noise.superclass_random(0.4, 5, [0, 1, 0, 0, 2]),
            [
                [0.6, 0, 0.2, 0.2, 0],
                [0, 1, 0, 0, 0],
                [0.2, 0, 0.6, 0.2, 0],
                [0.2, 0, 0.2, 0.6, 0],
                [0, 0, 0, 0, 1],
            ],
        ),
    ],
)
def test_matrices_entry_by_entry(transition: np.ndarray, expected: list) -> None:
    np.testing.assert_allclose(transition, expected, atol=1e-15)


def test_cifar10_class_map() -> None:
    clean, noisy = noisy_labels("asymmetric", 20_000, 0)
    changes = {(CIFAR10[a], CIFAR10[b]) for a, b in zip(clean, noisy.labels, strict=True) if a != b}
    assert changes == {
        ("truck", "automobile"),
        ("bird", "airplane"),
        ("deer", "horse"),
        ("cat", "dog"),
        ("dog", "cat"),
    }
    assert noisy.real_rate == pytest.approx(0.2, abs=0.01)


def test_cats_and_dogs_are_exchanged_at_once() -> None:
    """Drawn in sequence, the cats that became dogs would be dogs among dogs and turn back."""
    clean, noisy = noisy_labels("asymmetric", 1000, 0, rate=1.0)
    assert (noisy.labels[clean == 3] == 5).all()
    assert (noisy.labels[clean == 5] == 3).all()


def test_a_class_map_of_any_dataset() -> None:
    clean = np.arange(100) % 10
    noisy = inject(clean, "asymmetric", 1.0, 10, 0, class_map=DIGITS_MAP)
    np.testing.assert_array_equal(noisy.labels, [DIGITS_MAP.get(k, k) for k in clean])


def test_cifar100_conventions_differ_as_stated() -> None:
    clean, coarse = np.arange(20_000) % 100, np.array(CIFAR100_COARSE)

    def share_within_superclass(name: str) -> float:
        extra = {"superclasses": CIFAR100_COARSE} if name.startswith("superclass") else {}
        noisy = inject(clean, name, 0.4, 100, 0, **extra).labels
        changed = noisy != clean
        return float((coarse[noisy[changed]] == coarse[clean[changed]]).mean())

    assert share_within_superclass("superclass_next") == 1
    assert share_within_superclass("superclass_random") == 1
    assert share_within_superclass("block5") == pytest.approx(0.06, abs=0.01)
    nearest = noise.block5(1.0, 100).argmax(axis=1)
    np.testing.assert_array_equal(nearest[:10], [1, 2, 3, 4, 0, 6, 7, 8, 9, 5])
    np.testing.assert_array_equal(
        noise.pairflip(1.0, 100).argmax(axis=1), (np.arange(100) + 1) % 100
    )


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_invariants(name: str) -> None:
    num_classes = 3 if name == "matrix" else 10
    clean = np.arange(3000) % num_classes
    before = clean.copy()
    rate = 0.0 if name == "matrix" else 0.4
    noisy = inject(clean, name, rate, num_classes, 7, **facts(name, 3000))
    np.testing.assert_array_equal(clean, before)
    assert noisy.labels.shape == clean.shape and noisy.labels.dtype == np.int64
    assert noisy.labels.min() >= 0 and noisy.labels.max() < num_classes
    assert noisy.real_rate == (noisy.labels != clean).mean() > 0
    assert noisy.sha256 == labels_sha256(noisy.labels)
    assert noisy.notes["rate"] == (None if name == "matrix" else 0.4)
    assert json.loads(json.dumps(noisy.notes)) == noisy.notes
    if name == "instance":
        assert noisy.transition is None
    else:
        np.testing.assert_allclose(noisy.transition.sum(axis=1), 1, rtol=0, atol=1e-15)
        assert (noisy.transition >= 0).all()
    again = inject(clean, name, rate, num_classes, 7, **facts(name, 3000))
    other = inject(clean, name, rate, num_classes, 8, **facts(name, 3000))
    np.testing.assert_array_equal(noisy.labels, again.labels)
    assert (noisy.labels != other.labels).any()


@pytest.mark.parametrize("name", [name for name in NOISE_MODELS if name != "matrix"])
def test_rate_zero_changes_nothing(name: str) -> None:
    clean, noisy = noisy_labels(name, 1000, 0, rate=0.0)
    np.testing.assert_array_equal(noisy.labels, clean)


def test_real_rates() -> None:
    n = 100_000
    assert noisy_labels("symmetric", n, 0, 0.5)[1].real_rate == pytest.approx(0.45, abs=0.005)
    assert noisy_labels("symmetric_exclusive", n, 0, 0.5)[1].real_rate == pytest.approx(
        0.5, abs=0.005
    )
    assert noisy_labels("pairflip", n, 0, 0.45)[1].real_rate == pytest.approx(0.45, abs=0.005)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_empty_class(name: str) -> None:
    """A class without samples changes neither the shape of anything nor the other classes' draws."""
    num_classes = 3 if name == "matrix" else 10
    clean = np.ones(500, np.int64)
    rate = 0.0 if name == "matrix" else 0.3
    noisy = inject(clean, name, rate, num_classes, 0, **facts(name, 500))
    assert noisy.labels.shape == (500,)
    mixed = np.where(np.arange(500) < 400, 1, 0)
    noisy_mixed = inject(mixed, name, rate, num_classes, 0, **facts(name, 500))
    np.testing.assert_array_equal(noisy.labels[:400], noisy_mixed.labels[:400])


# --- instance-dependent noise -------------------------------------------------------------------


def test_instance_probabilities_against_a_loop_over_samples() -> None:
    n, width, num_classes, rate = 40, 16, 5, 0.3
    true, features = np.arange(n) % num_classes, features_of(n, width)
    fast = instance_probabilities(true, features, rate, num_classes, philox(3))

    stream = philox(3)
    flip = noise._truncated_normals(rate, 0.1, n, stream)
    weight = [noise._normals(width * num_classes, stream) for _ in range(num_classes)]
    weight = torch.from_numpy(np.stack(weight).reshape(num_classes, width, num_classes))
    for i in range(n):
        scores = torch.from_numpy(features[i]) @ weight[true[i]]
        scores[true[i]] = -torch.inf
        slow = flip[i] * torch.softmax(scores, dim=0)
        slow[true[i]] = 1 - flip[i]
        np.testing.assert_allclose(fast[i], slow, rtol=1e-10)
    np.testing.assert_allclose(fast.sum(axis=1), 1)


def test_instance_noise_depends_on_the_image() -> None:
    """On pixels 0..255, an image has one class to be mistaken for, whatever the seed of the draw."""
    features = (features_of(200) + 0.5) * 255
    probabilities = instance_probabilities(np.zeros(200, np.int64), features, 0.4, 10, philox(0))
    confused_with = probabilities[:, 1:]
    share = confused_with.max(axis=1) / confused_with.sum(axis=1)
    assert np.median(share) > 0.999
    assert len(np.unique(confused_with.argmax(axis=1))) > 1


def test_instance_accepts_pixels_as_they_are_stored() -> None:
    pixels = ((features_of(50) + 0.5) * 255).astype(np.uint8)
    true = np.arange(50) % 10
    from_bytes = instance_probabilities(true, pixels, 0.4, 10, philox(0))
    from_floats = instance_probabilities(true, pixels.astype(np.float32), 0.4, 10, philox(0))
    np.testing.assert_array_equal(from_bytes, from_floats)


@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5, 1.0])
def test_flip_rates_are_truncated_normal(rate: float) -> None:
    sample = noise._truncated_normals(rate, 0.1, 20_000, philox(0))
    expected = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, loc=rate, scale=0.1)
    assert sample.min() >= 0 and sample.max() <= 1
    assert stats.kstest(sample, expected.cdf).pvalue > 1e-3


def test_normals_and_uniforms() -> None:
    assert stats.kstest(noise._normals(20_001, philox(0)), stats.norm.cdf).pvalue > 1e-3
    assert stats.kstest(uniforms(20_000, philox(1)), stats.uniform.cdf).pvalue > 1e-3


# --- determinism --------------------------------------------------------------------------------

# SHA-256, first 16 digits, of the labels of seed 2024. They are part of the interface: a change
# here changes the labels of everybody's published seeds.
PINNED = {
    "symmetric": "b566ef6881ce473f",
    "symmetric_exclusive": "8f7b84665d1127d7",
    "asymmetric": "fed18d198779e885",
    "superclass_next": "0f6f3edbc6537aaf",
    "superclass_random": "921945bd8171535a",
    "block5": "e0ec3599b0dcc345",
    "plus_one": "7273f2221b2f6ed1",
    "pairflip": "7273f2221b2f6ed1",
    "instance": "99f14d0ce3303ee1",
    "matrix": "567c2118b5354181",
}


def test_the_stream_of_uniforms_is_pinned() -> None:
    # dyadic fractions, so equality is exact
    expected = ["0x1.3526f3608ffd4p-1", "0x1.dbdf6b1442732p-1", "0x1.1824dc23bea0ap-2"]
    assert [u.hex() for u in uniforms(3, philox(2024))] == expected


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_draws_are_pinned(name: str) -> None:
    _, noisy = noisy_labels(name, 2000, 2024)
    assert noisy.sha256[:16] == PINNED[name]


def test_the_hash_is_of_little_endian_int64() -> None:
    expected = hashlib.sha256(bytes([1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])).hexdigest()
    for dtype in ("<i8", ">i8", "uint8", "int32"):
        assert labels_sha256(np.array([1, 2], dtype=dtype)) == expected


def test_no_other_generator_is_touched() -> None:
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    noisy_labels("instance", 100, 0)
    assert (np.random.get_state()[1] == before[0]).all()  # noqa: NPY002
    assert (torch.get_rng_state() == before[1]).all()


@pytest.mark.parametrize(("raw", "expected"), [(2**64 - 1, [9, 2]), (0, [0, 1])])
def test_draw_at_both_ends_of_the_uniforms(raw: int, expected: list[int]) -> None:
    """Rows that sum to a little less than 1, and classes of probability 0, which are never drawn."""

    class Constant:
        def random_raw(self, n: int) -> np.ndarray:
            return np.full(n, raw, np.uint64)

    probabilities = np.array([[0.1] * 10, [0, 1 / 3, 2 / 3] + [0] * 7])
    drawn = draw(probabilities, np.array([0, 1]), Constant())  # type: ignore[arg-type]
    assert drawn.tolist() == expected


def test_draw_in_parts_is_the_draw_in_one() -> None:
    rows = np.arange(100) % 10
    whole = draw(noise.symmetric(0.4, 10), rows, philox(0))
    wide = np.pad(noise.symmetric(0.4, 10), ((0, 0), (0, 2**17)))  # makes parts of 31 samples
    np.testing.assert_array_equal(draw(wide, rows, philox(0)), whole)


# --- mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"name": "symetric"},
            r"noise\.name: got 'symetric', did you mean symmetric\? valid: asym",
        ),
        ({"rate": 1.5}, r"noise\.rate: got 1\.5, valid: 0 to 1"),
        ({"rate": float("nan")}, r"noise\.rate: got nan"),
        ({"seed": -1}, r"noise\.seed: got -1"),
        ({"num_classes": 1, "labels": np.zeros(3, int)}, r"noise\.name=symmetric: got 1 class"),
        (
            {"labels": np.array([0, 10, 2])},
            r"labels: index 1: label 10 is out of range, valid: 0 to 9",
        ),
        ({"labels": np.array([0, -1])}, r"labels: index 1: label -1 is out of range"),
        ({"labels": np.array([0.0, 1.0])}, r"labels: got float64 of shape \(2,\), valid: integers"),
        ({"labels": np.zeros((2, 2), int)}, r"labels: got int64 of shape \(2, 2\)"),
        ({"name": "asymmetric"}, r"noise\.name=asymmetric: .* no class map .*cifar10"),
        (
            {"name": "asymmetric", "class_map": {3: 12}},
            r"asymmetric class map: got 3: 12, valid: 0 to 9",
        ),
        ({"name": "superclass_next"}, r"noise\.name=superclass_next: .* no superclasses.*block5"),
        ({"name": "superclass_random"}, r"noise\.name=superclass_random: .* no superclasses"),
        (
            {"name": "superclass_next", "superclasses": [0, 1]},
            r"superclasses: got shape \(2,\).*10 classes",
        ),
        (
            {"name": "block5", "num_classes": 12},
            r"noise\.name=block5: got 12 classes, valid: a multi",
        ),
        ({"name": "instance"}, r"noise\.name=instance: needs the images' pixels"),
        ({"name": "instance", "features": np.zeros((4, 2))}, r"features: got shape \(4, 2\)"),
        ({"name": "instance", "features": np.full((3, 2), np.nan)}, r"features: .* not finite"),
        ({"name": "matrix", "rate": 0.0}, r"noise\.file: noise\.name=matrix needs .*\.npy"),
        ({"name": "matrix", "matrix": np.eye(10)}, r"got 0\.4; use noise\.rate=0"),
        ({"matrix": np.eye(10)}, r"noise\.file: goes with noise\.name=matrix only, .*=symmetric"),
    ],
)
def test_mistakes_are_named(change: dict, message: str) -> None:
    settings = {
        "labels": np.array([0, 1, 2]),
        "name": "symmetric",
        "rate": 0.4,
        "num_classes": 10,
        "seed": 0,
        **change,
    }
    with pytest.raises(UserError, match=message):
        inject(**settings)


def test_summary() -> None:
    clean = np.array([0, 0, 1, 1, 2])
    transition = np.array([[0.0, 1, 0], [0, 1, 0], [0, 0, 1]])
    text = summary(
        inject(clean, "matrix", 0, 3, 5, matrix=transition), clean, ["cat", "dog", "eel"]
    )
    assert "2 of 5 labels differ from the true ones, a real rate of 40.00%" in text
    assert "most frequent: cat → dog 2\n" in text
    assert "seed 5" in text


TEST_DATA = Path(os.environ.get("NOISYBSD_TEST_DATA", "nowhere"))


@pytest.mark.skipif(
    not (TEST_DATA / "CIFAR-100_human.pt").is_file(), reason="NOISYBSD_TEST_DATA: no CIFAR-N files"
)
def test_cifar100_superclasses_are_the_real_ones() -> None:
    path = TEST_DATA / "CIFAR-100_human.pt"
    fine, *_ = read_labels(path, 100, 50_000, key="clean_label")
    coarse, *_ = read_labels(path, 20, 50_000, key="clean_coarse_label", clean_key="")
    np.testing.assert_array_equal(np.array(CIFAR100_COARSE)[fine], coarse)
