"""Label noise from models whose transition matrix is known exactly.

"40 % asymmetric" means different things in different papers, so a convention is a name here, an
entry of NOISE_MODELS. Row k of a transition matrix T (K,K) is the distribution of the noisy label
of a sample of true class k. Every label is drawn once, from its true class, independently of the
others: no label is flipped twice, and the real rate varies around its expectation as draws do.

Randomness is raw Philox output, made into uniforms here: numpy promises that stream for all
versions and platforms, but not the methods of its Generator. One seed is one set of labels.

Dimensions: N samples, K classes, F features.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from noisybsd.data.cards import card_names, load_card
from noisybsd.data.label_files import IntArray, integers_below, labels_sha256
from noisybsd.data.transition import FloatArray, check_matrix
from noisybsd.errors import UserError, did_you_mean

# --- transition matrices: (rate, num_classes, what else they need) -> (K,K) ---------------------


def symmetric(rate: float, num_classes: int) -> FloatArray:
    """`inclusive`: with probability `rate`, draw from all K classes, the true one among them.

    The real rate is rate·(K-1)/K. The convention of DivideMix, ELR, SOP and CTRR.
    """
    return (1 - rate) * np.eye(num_classes) + rate / num_classes


def symmetric_exclusive(rate: float, num_classes: int) -> FloatArray:
    """With probability `rate`, draw from the K-1 other classes. Co-teaching, MOIT."""
    return _to_another(rate, np.zeros(num_classes, np.int64))


def asymmetric(rate: float, num_classes: int, class_map: Mapping[int, int]) -> FloatArray:
    """With probability `rate`, a class becomes the one it is mapped to; others keep their labels.

    CIFAR-10's map is truck→automobile, bird→airplane, deer→horse, cat↔dog (Patrini et al. 2017), so
    that half of the classes are noisy and the real rate is rate/2. All labels change at once. The code
    of ELR and of SOP changes one class after the other, cat before dog: some dogs that were cats become
    cats again, and the real rate of "40 %" is 0.184 there instead of 0.2.

    Args:
        class_map: {true class: noisy class}.
    """
    target = np.arange(num_classes)
    for source, noisy in class_map.items():
        if not (0 <= source < num_classes and 0 <= noisy < num_classes):
            raise UserError(
                f"asymmetric class map: got {source}: {noisy}, valid: 0 to {num_classes - 1}"
            )
        target[source] = noisy
    return _to_target(rate, target)


def superclass_next(rate: float, num_classes: int, coarse: Sequence[int]) -> FloatArray:
    """With probability `rate`, a class becomes the next of its superclass, the last the first.

    Args:
        coarse: (K,) superclass of each class.
    """
    return _to_target(rate, _next_in_group(_groups(coarse, num_classes)))


def superclass_random(rate: float, num_classes: int, coarse: Sequence[int]) -> FloatArray:
    """With probability `rate`, draw from the other classes of the superclass.

    Args:
        coarse: (K,) superclass of each class.
    """
    return _to_another(rate, _groups(coarse, num_classes))


def block5(rate: float, num_classes: int) -> FloatArray:
    """`superclass_next` with consecutive classes in place of superclasses: 0-4, 5-9, ….

    What ELR and UNICON do to CIFAR-100, whose classes are in alphabetical order: 6 % of the flips
    stay in the real superclass.
    """
    if num_classes % 5:
        raise UserError(
            f"noise.name=block5: got {num_classes} classes, valid: a multiple of 5 classes"
        )
    return _to_target(rate, _next_in_group(np.arange(num_classes) // 5))


def pairflip(rate: float, num_classes: int) -> FloatArray:
    """With probability `rate`, class k becomes k+1, the last 0.

    `pairflip` in Co-teaching; CTRR's asymmetric CIFAR-100 (here also `plus_one`) is the same.
    """
    return _to_target(rate, _next_in_group(np.zeros(num_classes, np.int64)))


def given_matrix(rate: float, num_classes: int, matrix: npt.ArrayLike) -> FloatArray:
    """A transition matrix of the user's, for instance from `read_matrix`."""
    if rate != 0:
        raise UserError(
            f"noise.rate: noise.name=matrix has its rates in noise.file, got {rate}; use noise.rate=0"
        )
    return check_matrix(np.asarray(matrix), num_classes, "transition matrix")


def _to_target(rate: float, target: IntArray) -> FloatArray:
    """Class k becomes target[k] (K,) with probability `rate`."""
    transition = np.eye(len(target))
    source = np.flatnonzero(target != np.arange(len(target)))
    transition[source, source] = 1 - rate
    transition[source, target[source]] = rate
    return transition


def _next_in_group(group: IntArray) -> IntArray:
    """The cyclically next class with the same entry of group (K,)."""
    target = np.arange(len(group))
    for label in np.unique(group):
        members = np.flatnonzero(group == label)
        target[members] = np.roll(members, -1)
    return target


def _to_another(rate: float, group: IntArray) -> FloatArray:
    """With probability `rate`, draw from the other classes with the same entry of group (K,)."""
    others = (group[:, None] == group) & ~np.eye(len(group), dtype=bool)
    count = others.sum(axis=1, keepdims=True)
    keep = np.where(count[:, 0] > 0, 1 - rate, 1.0)  # a class alone in its group has nowhere to go
    return np.diag(keep) + rate * others / np.maximum(count, 1)


def _groups(coarse: Sequence[int], num_classes: int) -> IntArray:
    group = np.asarray(coarse)
    if group.shape != (num_classes,) or group.dtype.kind not in "iu":
        raise UserError(
            f"superclasses: got shape {group.shape} of {group.dtype}, valid: an integer for each of "
            f"{num_classes} classes"
        )
    return group.astype(np.int64)


# --- instance-dependent noise -------------------------------------------------------------------


def instance_probabilities(
    labels: IntArray,
    features: npt.NDArray[Any],
    rate: float,
    num_classes: int,
    generator: np.random.Philox,
) -> FloatArray:
    """Distribution of every sample's noisy label under instance-dependent noise.

    Xia et al. 2020, "Part-dependent Label Noise", Algorithm 2, with the constants of the public
    code of PES: q_i ~ N(rate, 0.1²) truncated to [0,1]; W_k ~ N(0,1) (F,K) for each class k;
    P_i = q_i · softmax of x_i W_{y_i} over the classes other than y_i; P_i[y_i] = 1 - q_i.
    Truncation raises the mean of q for small rates: 0.129 at rate 0.1, 0.206 at 0.2. A rate of 0
    is taken to mean no noise.

    Args:
        labels: (N,) true classes.
        features: (N,F) real numbers. That code takes pixels as they are, 0..255, flattened: the
            softmax is then all but one-hot, and an image has one class to be mistaken for.
            Features on a smaller scale give softer confusion.
        generator: a stream from `philox`; advanced by the same amount whatever the labels.

    Returns:
        (N,K), rows sum to 1.

    Raises:
        UserError: features of a wrong shape or not finite.
    """
    if features.ndim != 2 or len(features) != len(labels):
        raise UserError(
            f"features: got shape {features.shape}, valid: ({len(labels)}, number of features)"
        )
    if not np.isfinite(features).all():
        raise UserError("features: some are not finite (NaN or infinity)")
    flip = _truncated_normals(rate, 0.1, len(labels), generator)
    probabilities = np.empty((len(labels), num_classes))
    for k in range(num_classes):
        projection = _normals(features.shape[1] * num_classes, generator).reshape(-1, num_classes)
        members = np.flatnonzero(labels == k)
        # float64: in float32, the order of summation, which is the platform's, would move labels
        logits = features[members].astype(np.float64) @ projection
        logits[:, k] = -np.inf
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights *= flip[members, None] / weights.sum(axis=1, keepdims=True)
        weights[:, k] = 1 - flip[members]
        probabilities[members] = weights
    return probabilities


# --- random numbers -----------------------------------------------------------------------------


def philox(seed: int) -> np.random.Philox:
    """The stream of random numbers for label noise with this seed, 0 ≤ seed < 2⁶⁴."""
    return np.random.Philox(key=np.array([seed, int.from_bytes(b"noise", "big")], dtype=np.uint64))


def uniforms(n: int, generator: np.random.Philox) -> FloatArray:
    """(n,) uniform on [0,1), multiples of 2⁻⁵³."""
    return (generator.random_raw(n) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normals(n: int, generator: np.random.Philox) -> FloatArray:
    """(n,) standard normal, by Box and Muller."""
    radius = np.sqrt(-2 * np.log1p(-uniforms((n + 1) // 2, generator)))
    angle = 2 * math.pi * uniforms((n + 1) // 2, generator)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:n]


def _truncated_normals(mean: float, std: float, n: int, generator: np.random.Philox) -> FloatArray:
    """(n,) normal truncated to [0,1], by the inverse of its distribution; zeros at mean 0."""
    u = uniforms(n, generator)
    if mean == 0:
        return np.zeros(n)
    normal = NormalDist(mean, std)
    lowest, highest = normal.cdf(0.0), normal.cdf(1.0)
    quantile = np.clip(lowest + u * (highest - lowest), 2.0**-53, 1 - 2.0**-53)
    return np.clip([normal.inv_cdf(q) for q in quantile.tolist()], 0.0, 1.0)


def draw(probabilities: FloatArray, rows: IntArray, generator: np.random.Philox) -> IntArray:
    """Draw a label for each sample from its row: T and labels, or one row per sample and arange(N).

    Args:
        probabilities: (R,K), rows sum to 1.
        rows: (N,) in 0..R-1.

    Returns:
        (N,) noisy labels.
    """
    cumulative = np.cumsum(probabilities, axis=1)
    cumulative /= cumulative[:, -1:]  # ends in exactly 1, which no uniform reaches
    u = uniforms(len(rows), generator)
    noisy = np.empty(len(rows), np.int64)
    chunk = max(1, 2**22 // probabilities.shape[1])  # 32 MiB at a time
    for start in range(0, len(rows), chunk):
        part = slice(start, start + chunk)
        noisy[part] = (cumulative[rows[part]] <= u[part, None]).sum(axis=1)
    return noisy


# --- the one entry point ------------------------------------------------------------------------


class NoiseModel(NamedTuple):
    """How to get the distribution of noisy labels, and which fact about the dataset that takes."""

    probabilities: Callable[..., FloatArray]
    needs: str | None = None


NOISE_MODELS: dict[str, NoiseModel] = {
    "symmetric": NoiseModel(symmetric),
    "symmetric_exclusive": NoiseModel(symmetric_exclusive),
    "asymmetric": NoiseModel(asymmetric, "class_map"),
    "superclass_next": NoiseModel(superclass_next, "superclasses"),
    "superclass_random": NoiseModel(superclass_random, "superclasses"),
    "block5": NoiseModel(block5),
    "plus_one": NoiseModel(pairflip),
    "pairflip": NoiseModel(pairflip),
    "instance": NoiseModel(instance_probabilities, "features"),
    "matrix": NoiseModel(given_matrix, "matrix"),
}


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Noisy labels and how they came about.

    Args:
        labels: (N,) int64.
        transition: (K,K) float64, the exact matrix; None for instance-dependent noise.
        name: the convention, a key of NOISE_MODELS.
        rate: the rate asked for, in the sense of the convention; None where a matrix sets it.
        real_rate: the share of labels that differ from the true ones.
        sha256: of the labels, see `labels_sha256`.
    """

    labels: IntArray
    transition: FloatArray | None
    name: str
    rate: float | None
    real_rate: float
    seed: int
    sha256: str

    @property
    def notes(self) -> dict[str, Any]:
        """What a run's results say about the noise."""
        return {
            "name": self.name,
            "rate": self.rate,
            "real_rate": self.real_rate,
            "seed": self.seed,
            "labels_sha256": self.sha256,
        }


def inject(
    labels: npt.NDArray[Any],
    name: str,
    rate: float,
    num_classes: int,
    seed: int,
    *,
    class_map: Mapping[int, int] | None = None,
    superclasses: Sequence[int] | None = None,
    features: npt.NDArray[Any] | None = None,
    matrix: npt.ArrayLike | None = None,
) -> NoisyLabels:
    """Draw noisy labels for samples whose true classes are known.

    Args:
        labels: (N,) integers, the true classes; not changed.
        name: a key of NOISE_MODELS.
        rate: noise rate in the sense of that model; 0 for `matrix`, which has its own.
        class_map: {true class: noisy class}, for `asymmetric`.
        superclasses: (K,) superclass of each class, for `superclass_next` and `superclass_random`.
        features: (N,F), for `instance`; see `instance_probabilities`.
        matrix: (K,K), for `matrix`; see `read_matrix`.

    Raises:
        UserError: names the key, the value received and what is valid.

    Example:
        >>> inject(np.zeros(5, np.int64), "pairflip", 1.0, num_classes=3, seed=0).labels
        array([1, 1, 1, 1, 1])
    """
    if name not in NOISE_MODELS:
        raise UserError(f"noise.name: {did_you_mean(name, NOISE_MODELS)}")
    if not 0 <= rate <= 1:
        raise UserError(f"noise.rate: got {rate}, valid: 0 to 1")
    if not 0 <= seed < 2**64:
        raise UserError(f"noise.seed: got {seed}, valid: 0 to 2**64 - 1")
    if num_classes < 2:
        raise UserError(f"noise.name={name}: got {num_classes} class, valid: 2 classes or more")
    if matrix is not None and name != "matrix":
        raise UserError(f"noise.file: goes with noise.name=matrix only, got noise.name={name}")
    true = integers_below(num_classes, labels, "labels", "index {}".format)
    model = NOISE_MODELS[name]
    facts = {
        "class_map": class_map,
        "superclasses": superclasses,
        "features": features,
        "matrix": matrix,
    }
    if model.needs and facts[model.needs] is None:
        raise UserError(_missing(name, model.needs))
    generator = philox(seed)
    transition = None
    if name == "instance":
        assert features is not None
        rows = np.arange(len(true))
        probabilities = instance_probabilities(true, features, rate, num_classes, generator)
    else:
        rows = true
        extra = [facts[model.needs]] if model.needs else []
        probabilities = transition = model.probabilities(rate, num_classes, *extra)
    noisy = draw(probabilities, rows, generator)
    return NoisyLabels(
        labels=noisy,
        transition=transition,
        name=name,
        rate=None if name == "matrix" else rate,
        real_rate=float((noisy != true).mean()),
        seed=seed,
        sha256=labels_sha256(noisy),
    )


def _missing(name: str, need: str) -> str:
    if need == "class_map":
        cards = [card for card in card_names() if load_card(card).asymmetric]
        return (
            f"noise.name={name}: this dataset's card has no class map (asymmetric: {{class: "
            f"class}}); cards that have one: {', '.join(cards)}"
        )
    if need == "superclasses":
        cards = [card for card in card_names() if load_card(card).superclasses]
        return (
            f"noise.name={name}: this dataset's card has no superclasses; cards that have them: "
            f"{', '.join(cards) or 'none'}; needing none: block5, plus_one, pairflip"
        )
    if need == "features":
        return f"noise.name={name}: needs the images' pixels or other features, got none"
    return f"noise.file: noise.name={name} needs a transition matrix (.npy, .csv, .txt), got null"


def summary(noisy: NoisyLabels, clean: IntArray, class_names: Sequence[str], top: int = 5) -> str:
    """A few lines for a person: rates, seed, hash and the most frequent changes."""
    changed = noisy.labels != clean
    pairs = clean[changed] * len(class_names) + noisy.labels[changed]
    counts = np.bincount(pairs, minlength=len(class_names) ** 2)
    largest = [pair for pair in np.argsort(-counts, kind="stable")[:top] if counts[pair]]
    changes = ", ".join(
        f"{class_names[pair // len(class_names)]} → {class_names[pair % len(class_names)]} "
        f"{counts[pair]}"
        for pair in largest
    )
    asked = "" if noisy.rate is None else f", rate {noisy.rate:g}"
    return (
        f"{noisy.name}{asked}, seed {noisy.seed}: {changed.sum()} of {len(clean)} labels "
        f"differ from the true ones, a real rate of {noisy.real_rate:.2%}\n"
        f"most frequent: {changes or 'no change'}\n"
        f"sha256 of the labels: {noisy.sha256}"
    )
