"""Label noise from models whose transition matrix is known exactly, and files of labels.

"40 % asymmetric" means different things in different papers, so a convention is a name here, an
entry of NOISE_MODELS. Row k of a transition matrix T (K,K) is the distribution of the noisy label
of a sample of true class k. Every label is drawn once, from its true class, independently of the
others: no label is flipped twice, and the real rate varies around its expectation as draws do.

Randomness is raw Philox output, made into uniforms here: numpy promises that stream for all
versions and platforms, but not the methods of its Generator. One seed is one set of labels.

Dimensions: N samples, K classes, F features.
"""

from __future__ import annotations

import _codecs
import csv
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from noisybsd import __version__
from noisybsd.cards import card_names, load_card
from noisybsd.checkpoint import write_atomically
from noisybsd.errors import UserError, did_you_mean

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

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
    that half of the classes are noisy and the real rate is rate/2.

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
            f"noise.rate: noise.name=matrix has its rates in noise.file, got {rate}; leave it out"
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
    group = np.asarray(coarse, dtype=np.int64)
    if group.shape != (num_classes,):
        raise UserError(
            f"superclasses: got shape {group.shape}, valid: one for each of {num_classes} classes"
        )
    return group


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
    "asymmetric": NoiseModel(asymmetric, "asymmetric_map"),
    "superclass_next": NoiseModel(superclass_next, "coarse"),
    "superclass_random": NoiseModel(superclass_random, "coarse"),
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


def labels_sha256(labels: npt.NDArray[Any]) -> str:
    """SHA-256 of labels (N,) as little-endian int64, whatever file or machine they come from."""
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()


def inject(
    labels: npt.NDArray[Any],
    name: str,
    rate: float,
    num_classes: int,
    seed: int,
    *,
    asymmetric_map: Mapping[int, int] | None = None,
    coarse: Sequence[int] | None = None,
    features: npt.NDArray[Any] | None = None,
    matrix: npt.ArrayLike | None = None,
) -> NoisyLabels:
    """Draw noisy labels for samples whose true classes are known.

    Args:
        labels: (N,) integers, the true classes; not changed.
        name: a key of NOISE_MODELS.
        rate: noise rate in the sense of that model; 0 for `matrix`, which has its own.
        asymmetric_map: {true class: noisy class}, for `asymmetric`.
        coarse: (K,) superclass of each class, for `superclass_next` and `superclass_random`.
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
    true = _integers_below(num_classes, labels, "labels", _index)
    model = NOISE_MODELS[name]
    facts = {
        "asymmetric_map": asymmetric_map,
        "coarse": coarse,
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
    if need == "asymmetric_map":
        cards = [card for card in card_names() if load_card(card).asymmetric]
        return (
            f"noise.name={name}: this dataset's card has no class map (asymmetric: {{class: "
            f"class}}); cards that have one: {', '.join(cards)}"
        )
    if need == "coarse":
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


# --- transition matrices in files ---------------------------------------------------------------


def read_matrix(path: str | Path, num_classes: int) -> FloatArray:
    """Read a transition matrix (K,K), row = true class, from .npy, .csv or .txt.

    Text has a row per line, numbers apart by commas or white space; # starts a comment.

    Raises:
        UserError: names the file and the row that is wrong.
    """
    path = _existing(path, (".npy", ".csv", ".txt"), "transition matrices")
    if path.suffix == ".npy":
        return check_matrix(_load_numpy(path), num_classes, str(path))
    rows = []
    for number, line in enumerate(_lines(path), start=1):
        cells = line.split("#")[0].replace(",", " ").split()
        if not cells:
            continue
        try:
            rows.append([float(cell) for cell in cells])
        except ValueError as error:
            raise UserError(f"{path}: line {number}: {error}") from None
        if len(cells) != num_classes:
            raise UserError(
                f"{path}: line {number}: got {len(cells)} numbers, valid: {num_classes}, one for "
                "each class"
            )
    return check_matrix(np.array(rows), num_classes, str(path))


def check_matrix(matrix: npt.NDArray[Any], num_classes: int, source: str) -> FloatArray:
    """Check a transition matrix (K,K) and scale away the rounding of its rows.

    Raises:
        UserError: wrong shape; negative or not finite; a row whose sum is off by more than 1e-4.
    """
    if matrix.shape != (num_classes, num_classes) or matrix.dtype.kind not in "fiu":
        raise UserError(
            f"{source}: got {matrix.dtype} of shape {matrix.shape}, valid: numbers of shape "
            f"({num_classes}, {num_classes})"
        )
    for k, row in enumerate(matrix.astype(np.float64)):
        if not np.isfinite(row).all() or (row < 0).any():
            bad = row[~np.isfinite(row) | (row < 0)][0]
            raise UserError(f"{source}: row {k} (true class {k}): got {bad}, valid: 0 to 1")
        if abs(row.sum() - 1) > 1e-4:
            raise UserError(
                f"{source}: row {k} (true class {k}): sums to {row.sum():.6g}, valid: 1"
            )
    return matrix / matrix.sum(axis=1, keepdims=True, dtype=np.float64)


# --- label files --------------------------------------------------------------------------------

_Place = Callable[[int], str]  # position in an array -> where that is in its file


def _index(i: int) -> str:
    return f"index {i}"


def read_labels(
    path: str | Path,
    num_classes: int,
    n: int,
    key: str | None = None,
    clean_key: str = "clean_label",
) -> tuple[IntArray, IntArray | None]:
    """Read the given labels of n samples, and the clean ones where the file has them.

    | suffix | content |
    |---|---|
    | .npy | integers (N,) |
    | .npz, .pt | the same, or several by name; a .pt is read without running code from it |
    | .csv | a column `label`, or one column only; optional: `index`, `clean_label` |
    | .csv without a header | `label` or `index,label` |
    | .txt | one label per line |

    Where there is an `index` (from 0), the labels are put in its order. A description beside the
    file, as `write_labels` makes it, must fit the labels.

    Args:
        key: which array or column holds the labels, if there are several.
        clean_key: the one that holds the clean labels, if any does.

    Returns:
        labels (N,), clean labels (N,) or None.

    Raises:
        UserError: names the file, the line or index, the value and what is valid.
    """
    path = _existing(path, LABEL_READERS, "label files")
    columns, place = LABEL_READERS[path.suffix](path)
    name = _label_column(path, columns, key, clean_key)
    labels = _integers_below(num_classes, columns[name], str(path), place)
    if len(labels) != n:
        raise UserError(f"{path}: got {len(labels)} labels, valid: {n}, one for each image")
    clean = None
    if clean_key in columns:
        clean = _integers_below(num_classes, columns[clean_key], f"{path}: {clean_key}", place)
        if len(clean) != n:
            raise UserError(f"{path}: {clean_key}: got {len(clean)} labels, valid: {n}")
    if "index" in columns:
        order = _positions(columns["index"], n, path, place)
        labels = labels[order]
        clean = None if clean is None else clean[order]
    _check_description(path, labels)
    return labels, clean


def _label_column(path: Path, columns: Mapping[str, Any], key: str | None, clean_key: str) -> str:
    if key is not None:
        if key not in columns:
            raise UserError(f"{path}: {did_you_mean(key, columns)}")
        return key
    if "label" in columns:
        return "label"
    candidates = [name for name in columns if name not in ("index", clean_key)]
    if len(candidates) != 1:
        raise UserError(
            f"{path}: which labels to use is not clear: none is named label, got "
            f"{', '.join(map(repr, columns))}; name one"
        )
    return candidates[0]


def _integers_below(
    limit: int, values: Any, source: str, place: _Place, what: str = "label"
) -> IntArray:
    """Integers in 0..limit-1 from an array, a tensor, or a list of numbers or of strings."""
    if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
        array = np.array([_integer(v, source, place(i)) for i, v in enumerate(values)], object)
    else:
        try:
            array = np.asarray(values)
        except (ValueError, TypeError):  # a ragged list, a tensor that numpy has no type for
            raise UserError(
                f"{source}: got a {type(values).__name__} that is no array of integers"
            ) from None
        if array.ndim != 1 or len(array) == 0 or array.dtype.kind not in "iu":
            raise UserError(
                f"{source}: got {array.dtype} of shape {array.shape}, valid: integers of shape (N,)"
            )
    wrong = np.flatnonzero((array < 0) | (array >= limit))
    if len(wrong):
        raise UserError(
            f"{source}: {place(int(wrong[0]))}: {what} {array[wrong[0]]} is out of range, "
            f"valid: 0 to {limit - 1} ({len(wrong)} such)"
        )
    return array.astype(np.int64)


def _integer(text: str, source: str, place: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{source}: {place}: got {text!r}, valid: an integer") from None


def _positions(values: Any, n: int, path: Path, place: _Place) -> IntArray:
    """The order (N,) that puts rows with these indices in place."""
    index = _integers_below(n, values, str(path), place, "index")
    order = np.argsort(index, kind="stable")
    repeated = np.flatnonzero(np.diff(index[order]) == 0)
    if len(repeated):
        first, second = order[repeated[0]], order[repeated[0] + 1]
        raise UserError(
            f"{path}: {place(int(second))}: index {index[second]} is already on {place(int(first))}"
        )
    return order


def _read_numpy(path: Path) -> tuple[dict[str, Any], _Place]:
    content = _load_numpy(path)
    return content if isinstance(content, dict) else {"label": content}, _index


def _read_torch(path: Path) -> tuple[dict[str, Any], _Place]:
    # what CIFAR-N's files hold, which numpy 1 wrote: the constructor has another name in numpy 2
    reconstruct = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
    allowed: list[Any] = [
        reconstruct,
        (reconstruct, "numpy.core.multiarray._reconstruct"),
        np.ndarray,
        np.dtype,
        np.dtypes.Int64DType,
        _codecs.encode,
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged pickle can raise anything
        raise UserError(
            f"{path}: damaged, or holds more than tensors, lists and int64 arrays; other objects "
            "are not loaded, because they could run code"
        ) from None
    if isinstance(content, dict):
        return {str(name): value for name, value in content.items()}, _index
    return {"label": content}, _index


def _read_csv(path: Path) -> tuple[dict[str, Any], _Place]:
    reader = csv.reader(_lines(path))
    try:
        rows = [(reader.line_num, [cell.strip() for cell in row]) for row in reader if row]
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: {error}") from None
    if not rows:
        raise UserError(f"{path}: is empty")
    header = rows[0][1]
    if all(cell.lstrip("+-").isdecimal() for cell in header):
        if len(header) > 2:
            raise UserError(
                f"{path}: has {len(header)} columns and no header; give it one with a column label"
            )
        header = ["index", "label"][-len(header) :]
    else:
        rows = rows[1:]
        # pandas writes its index without a name
        header = [name or "index" for name in header]
    if len(set(header)) < len(header):
        raise UserError(f"{path}: line 1: two columns have one name: {', '.join(header)}")
    for line, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"{path}: line {line}: got {len(row)} columns, valid: {len(header)} "
                f"({', '.join(header)})"
            )
    columns = {name: [row[i] for _, row in rows] for i, name in enumerate(header)}
    return columns, lambda i: f"line {rows[i][0]}"


def _read_text(path: Path) -> tuple[dict[str, Any], _Place]:
    lines = _lines(path)
    while lines and not lines[-1].strip():
        lines.pop()
    return {"label": lines}, lambda i: f"line {i + 1}"


LABEL_READERS: dict[str, Callable[[Path], tuple[dict[str, Any], _Place]]] = {
    ".npy": _read_numpy,
    ".npz": _read_numpy,
    ".pt": _read_torch,
    ".csv": _read_csv,
    ".txt": _read_text,
}


def _existing(path: str | Path, suffixes: Sequence[str] | Mapping[str, Any], what: str) -> Path:
    path = Path(path).expanduser()
    if path.suffix not in suffixes:
        raise UserError(f"{path}: got suffix {path.suffix!r}, {what} end in {', '.join(suffixes)}")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file")
    return path


def _load_numpy(path: Path) -> Any:
    """An array, or a dict of arrays; never a pickled object."""
    try:
        content = np.load(path, allow_pickle=False)
        if not isinstance(content, np.lib.npyio.NpzFile):
            return content
        with content:
            return dict(content)
    except Exception as error:  # a damaged file can raise anything
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{path}: not readable as numpy arrays: {first}") from None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as text: {error}") from None


def write_labels(
    path: str | Path,
    noisy: NoisyLabels,
    *,
    clean: IntArray | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write noisy labels for others to use, and beside them `PATH.json`, which says what they are.

    Each of the two files is written whole or not at all.

    Args:
        path: .csv (columns index, label and, if given, clean_label), .npy or .txt (labels only).
        clean: (N,) true classes.
        about: further entries of the description, such as dataset and class names.

    Raises:
        UserError: another suffix, or a place that cannot be written.
    """
    path = Path(path).expanduser()
    if path.suffix not in LABEL_WRITERS:
        raise UserError(f"{path}: got suffix {path.suffix!r}, valid: {', '.join(LABEL_WRITERS)}")
    description = {
        **(about or {}),
        **noisy.notes,
        "count": len(noisy.labels),
        "transition": None if noisy.transition is None else noisy.transition.tolist(),
        "noisybsd": __version__,
    }
    # a line per entry, so that the matrix does not take K² of them
    entries = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in description.items()]
    text = "{\n" + ",\n".join(entries) + "\n}\n"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            LABEL_WRITERS[path.suffix](file, noisy.labels, clean)

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, write)
        write_atomically(_description(path), lambda temporary: _write_utf8(temporary, text))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def _write_csv(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    columns = [np.arange(len(labels)), labels] + ([] if clean is None else [clean])
    header = "index,label" + ("" if clean is None else ",clean_label")
    np.savetxt(file, np.stack(columns, axis=1), "%d", ",", header=header, comments="")


def _write_npy(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    np.save(file, labels, allow_pickle=False)


def _write_text(file: BinaryIO, labels: IntArray, clean: IntArray | None) -> None:
    np.savetxt(file, labels, "%d")


LABEL_WRITERS: dict[str, Callable[[BinaryIO, IntArray, IntArray | None], None]] = {
    ".csv": _write_csv,
    ".npy": _write_npy,
    ".txt": _write_text,
}


def _write_utf8(path: Path, text: str) -> None:
    path.write_text(text, "utf-8")


def _description(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def read_description(path: str | Path) -> dict[str, Any] | None:
    """What `write_labels` wrote beside a label file, or None where there is nothing.

    Raises:
        UserError: it is there and not readable.
    """
    description = _description(Path(path).expanduser())
    if not description.is_file():
        return None
    try:
        content = json.loads(description.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{description}: not readable as JSON: {error}") from None
    if not isinstance(content, dict) or "labels_sha256" not in content:
        raise UserError(f"{description}: has no entry labels_sha256, so it describes no labels")
    return content


def _check_description(path: Path, labels: IntArray) -> None:
    description = read_description(path)
    if description and description["labels_sha256"] != labels_sha256(labels):
        raise UserError(
            f"{path}: the labels are not those that {_description(path).name} describes (SHA-256 "
            "differs); if they were changed on purpose, delete that description"
        )
