"""The label report of anybody's probabilities: labels and predictions in, a table and a page out.

A model of any library, and probabilities that it gave to images which it did not learn from: those of
cross-validation are best. A model that has memorised wrong labels finds none of them.

Dimensions: N samples, K classes, D embedding width, H and W pixels.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow
import torch
import torch.nn.functional as F

from noisybsd import __version__
from noisybsd.data.images import ImageFiles
from noisybsd.data.label_files import labels_sha256
from noisybsd.data.names import as_text, labels_of
from noisybsd.data.splits import Split
from noisybsd.errors import UserError, brief
from noisybsd.files import write_text
from noisybsd.methods.beliefs import as_tensor, refuse_masked, whole_number
from noisybsd.models.bank import search, vote
from noisybsd.report import findings
from noisybsd.report.checked import table_mistakes
from noisybsd.report.estimates import estimates, mislabelled, noise_and_transition
from noisybsd.report.findings import Findings, Floats, Ints
from noisybsd.report.page import PICTURE, Run, build_page
from noisybsd.report.pictures import Pictures

SLACK = 0.01  # how far from 1 the probabilities of a sample may sum: float16 rounds
NEIGHBOURS = 10

_ABOUT, _MATRIX = b"noisybsd", b"noisybsd_transition"  # in the metadata of a table


class NoiseRate(NamedTuple):
    """The share of wrong labels, in [0,1], with its 95 % interval.

    Args:
        source: "belief", or "confident joint", of predictions.
    """

    estimate: float
    low: float
    high: float
    source: str


def find_label_issues(
    labels: Any, pred_probs: Any, *, belief: Any = None, ranked: bool = False
) -> npt.NDArray[Any]:
    """Which labels are probably wrong.

    Without a belief, confident learning says how many labels of each class are really of each other class,
    and so many of the least plausible ones are issues: Northcutt et al. 2021, arXiv 1911.00068, pruning by
    noise rate. A belief is pooled with the predictions (docs/report.md), and the labels that both together
    contradict are issues.

    Args:
        labels: (N,) integers from 0 to K-1, the given labels.
        pred_probs: (N,K) probabilities of a model that did not learn from these samples; with a belief, those
            that the trained network gives to the images without augmentation. Rows sum to 1.
        belief: (N,K), of a `BSD`; None: there is none.
        ranked: True: return the indices of the issues, the most suspicious first.

    Returns:
        (N,) bool, True where the label is an issue; or indices, int64.

    Raises:
        ValueError: names the argument, the value and what is valid.

    Example:
        >>> probs = [[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.1, 0.9], [0.1, 0.9], [0.9, 0.1]]
        >>> find_label_issues([0, 0, 1, 1, 0, 1], probs, ranked=True)
        array([4, 5])
    """
    given, probs, believed, _ = _checked(labels, pred_probs, belief, None)
    final = findings.pooled(believed, probs)
    issues = mislabelled(probs, given) if belief is None else final.argmax(axis=1) != given
    if not ranked:
        return issues
    rows = np.flatnonzero(issues)
    # probabilities that are alike, as many zeros are, are told apart by the largest other one
    return rows[np.lexsort((-probs[rows].max(axis=1), final[rows, given[rows]]))]


def label_table(
    labels: Any,
    pred_probs: Any,
    belief: Any = None,
    embeddings: Any = None,
    class_names: Sequence[str] | None = None,
    paths: Iterable[str] | None = None,
) -> pyarrow.Table:
    """What predictions say of each label: one row for each sample, in the order of the samples.

    The columns are those of a run's labels.parquet (docs/report.md), and `issue`, as by `find_label_issues`.
    What only training can know is null. `.to_pandas()` makes a DataFrame, `write_report` a page.

    Args:
        labels: (N,) integers from 0 to K-1; or, with class_names, names.
        pred_probs: (N,K) probabilities as `find_label_issues` takes them; rows sum to 1.
        belief: (N,K), of a `BSD`, to be pooled with the predictions; None: the predictions stand alone.
        embeddings: (N,D), for neighbours and how far these agree with the label; None: no neighbours.
        class_names: K names; None: the numbers.
        paths: N image files.

    Raises:
        ValueError: names the argument, the value and what is valid.

    Example:
        >>> table = label_table(["dog", "cat"], [[0.1, 0.9], [0.2, 0.8]], class_names=["cat", "dog"])
        >>> table.select(["given_name", "suggested_name", "given_prob", "rank"]).to_pylist()[1]
        {'given_name': 'cat', 'suggested_name': 'dog', 'given_prob': 0.20000000298023224, 'rank': 1}
    """
    given, probs, believed, names = _checked(labels, pred_probs, belief, class_names)
    n = len(given)
    files = None if paths is None else list(map(str, paths))
    if files is not None and len(files) != n:
        raise UserError(f"paths: got {len(files)}; valid: {n}, one for each label")
    near, votes = _neighbours(embeddings, given, len(names))
    unknown = np.full(n, np.nan, np.float32)
    final = findings.pooled(believed, probs)
    table = findings.label_table(
        Split(torch.empty(n, 0), given, None, files),
        names,
        final,
        probs,
        votes,
        near,
        network_prob=probs[np.arange(n), given],
        margin=unknown,
        visits=np.ones(n),
        left_epoch=np.full(n, -1),
        strength=None,
    )
    issues = mislabelled(probs, given)
    if belief is not None:
        issues = table["suggested"].to_numpy() != given
    table = table.append_column("issue", pyarrow.array(issues))
    about = {
        "format": findings.FORMAT,
        "run": "",
        "dataset": f"{n:,} labels",
        "class_names": list(names),
        "data_sha256": labels_sha256(given),
        "epoch": 0,
        "method": "given probabilities" if belief is None else "given beliefs",
        "holds_belief": belief is not None,
        "test_labels": "none",
        "noisybsd": __version__,
    }
    arrays: dict[str, npt.NDArray[Any]] = {
        "belief": final,  # as both, for which `pooled` gives it back
        "network": final,
        "neighbours": votes,
        "labels": given,
        "test": np.empty((0, len(names)), np.float32),
        "test_labels": np.empty(0, np.int64),
    }
    said = estimates(Findings(table, arrays, about))
    matrix = said.pop("transition").astype("<f8").tobytes()
    about["estimates"] = said
    return table.replace_schema_metadata({_ABOUT: json.dumps(about), _MATRIX: matrix})


def noise_rate(labels: Any, pred_probs: Any = None, belief: Any = None) -> NoiseRate:
    """The share of labels that are wrong, without knowing any right one.

    From a belief, pooled with the predictions where these are given too, the mean of what it leaves for other
    classes than the given one. From predictions alone, the confident joint. The interval of a belief holds
    the truth if the belief errs at most twice as often as it expects, whichever way its errors point. That of
    predictions is of chance alone, and hardly ever holds the truth where classes overlap, which the confident
    joint takes for noise: see results/labels.md.

    Args:
        labels: (N,) integers from 0 to K-1.
        pred_probs, belief: (N,K), as `find_label_issues` takes them; one of them, or both.

    Raises:
        ValueError: names the argument, the value and what is valid.
    """
    rate, _ = noise_and_transition(*_either(labels, pred_probs, belief))
    return NoiseRate(**rate)


def noise_matrix(labels: Any, pred_probs: Any = None, belief: Any = None) -> Floats:
    """The noise transition matrix, (K,K) float64: row: true class, column: given label; rows sum to one.

    Rows of classes that less than one sample is believed to be of are NaN. Arguments and errors are those of
    `noise_rate`.
    """
    return noise_and_transition(*_either(labels, pred_probs, belief))[1]


def write_report(
    table: pyarrow.Table, path: str | Path, images: Any = None, *, top: int = 2000
) -> None:
    """Write the table as a page: estimates, plots, and the most suspicious samples to go through.

    Args:
        table: of `label_table`, whole, or as Parquet gave it back.
        path: of the HTML file. It needs no other file.
        images: the folder that the table's paths start from; or N pictures, (N,H,W), (N,H,W,C) or
            (N,C,H,W) uint8, C being 1 or 3; None: the page has no pictures.
        top: how many samples to show.

    Raises:
        ValueError: names the argument, the value and what is valid.
    """
    about, said = summary_of(table)
    for mistake in table_mistakes(table, about):
        raise UserError(f"table: {mistake}; valid: all rows and columns that label_table returns")
    whole_number(top, "top", 1)
    found = Findings(table, {"labels": table["given"].to_numpy()}, about)
    page = build_page(Run(found, [], _pictures(images, table), []), said, None, top)
    write_text(Path(path), page)


def summary_of(table: pyarrow.Table) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `label_table` keeps beside the columns: what the labels are, and what `estimates` says of them.

    Raises:
        UserError: the table is none of `label_table`.
    """
    metadata = getattr(getattr(table, "schema", None), "metadata", None) or {}
    if _ABOUT not in metadata or _MATRIX not in metadata:
        raise UserError(
            f"table: got a {type(table).__name__} without what label_table keeps beside the columns; valid: "
            "the pyarrow.Table that label_table returns"
        )
    about = json.loads(metadata[_ABOUT])
    classes = len(about["class_names"])
    matrix = np.frombuffer(metadata[_MATRIX], "<f8").reshape(classes, classes)
    return about, {**about.pop("estimates"), "transition": matrix}


def _neighbours(embeddings: Any, given: Ints, classes: int) -> tuple[list[list[int]], Floats]:
    """Each sample's nearest others, nearest first, and the shares (N,K) of their given labels."""
    n = len(given)
    if embeddings is None or n == 1:
        return [[]] * n, np.broadcast_to(np.float32(0), (n, classes))
    z = as_tensor(embeddings, "embeddings")
    if z.ndim != 2 or len(z) != n or z.is_complex():
        raise UserError(
            f"embeddings: got {z.dtype} of shape {tuple(z.shape)}; valid: numbers of shape ({n}, D)"
        )
    if not bool(z.isfinite().all()):
        raise UserError("embeddings: some are not finite (NaN or infinity)")
    found = search(F.normalize(z.float().cpu()), min(NEIGHBOURS, n - 1))
    of_given = vote(F.one_hot(torch.from_numpy(given), classes).float(), found, float("inf"))
    return found.index.tolist(), of_given.numpy()


def _pictures(images: Any, table: pyarrow.Table) -> Pictures | None:
    """Pictures (N,C,S,S) uint8, or files that decode to that; smaller sides are filled with black."""
    if images is None:
        return None
    if isinstance(images, str | Path):
        paths = table["path"].to_pylist()
        if None in paths:
            raise UserError(
                f"images: got the folder {images}, but the table has no paths; valid: pictures, or a table "
                "made with paths"
            )
        if not Path(images).is_dir():
            raise UserError(f"images: got {str(images)!r}; valid: a folder that is there")
        if not any(os.path.exists(Path(images, path)) for path in paths):  # noqa: PTH110 (that one may raise)
            raise UserError(
                f"images: the folder {images} has none of the table's images, such as {brief(paths[0], 80)}; "
                "valid: the folder from which the table's paths lead to them"
            )
        return Pictures([ImageFiles(paths, images, PICTURE)])
    pixels = as_tensor(images, "images").cpu()
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim == 4 and pixels.shape[1] not in (1, 3):
        pixels = pixels.permute(0, 3, 1, 2)
    if pixels.ndim != 4 or pixels.dtype != torch.uint8 or pixels.shape[1] not in (1, 3):
        raise UserError(
            f"images: got {pixels.dtype} of shape {tuple(pixels.shape)}; valid: uint8 of shape (N, H, W), "
            "(N, H, W, 3) or (N, 3, H, W), or a folder"
        )
    if len(pixels) != len(table):
        raise UserError(f"images: got {len(pixels)}; valid: {len(table)}, one for each row")
    height, width = pixels.shape[2:]
    side = max(height, width)
    return Pictures([F.pad(pixels, (0, side - width, 0, side - height))])


# --- what callers give --------------------------------------------------------------------------------


def _checked(
    labels: Any, pred_probs: Any, belief: Any, class_names: Sequence[str] | None
) -> tuple[Ints, Floats, Floats, tuple[str, ...]]:
    """Labels (N,), predictions and beliefs (N,K), names. Without beliefs, the predictions are both."""
    probs = probabilities(pred_probs, "pred_probs")
    names = _names(class_names, probs.shape[1])
    given = _labels(labels, probs, "pred_probs", None if class_names is None else names)
    if belief is None:
        return given, probs, probs, names
    believed = probabilities(belief, "belief")
    if believed.shape != probs.shape:
        raise UserError(
            f"belief: got shape {believed.shape}; valid: {probs.shape}, that of pred_probs"
        )
    return given, probs, believed, names


def _either(labels: Any, pred_probs: Any, belief: Any) -> tuple[Floats, Ints, bool]:
    """Predictions, a belief, or both pooled, (N,K); the labels (N,); and whether a belief is among them."""
    if pred_probs is None and belief is None:
        raise UserError("pred_probs: got None; valid: probabilities (N, K), or give belief")
    if pred_probs is None:
        believed = probabilities(belief, "belief")
        return believed, _labels(labels, believed, "belief", None), True
    given, probs, believed, _ = _checked(labels, pred_probs, belief, None)
    return findings.pooled(believed, probs), given, belief is not None


def _names(class_names: Sequence[str] | None, classes: int) -> tuple[str, ...]:
    given = range(classes) if class_names is None else class_names
    # of a dictionary these would be the keys, and a set has no order
    ordered = isinstance(given, Iterable) and not isinstance(given, Mapping | Set)
    names = tuple(map(str, given)) if ordered else ()
    if len(names) != classes or len({*names}) != classes:
        raise UserError(
            f"class_names: got {brief(list(names) if ordered else given, 60)}; valid: a list of {classes} "
            "different names, one for each column of pred_probs"
        )
    return tuple(map(as_text, names))


def _labels(labels: Any, probs: Floats, beside: str, names: Sequence[str] | None) -> Ints:
    refuse_masked(labels, "labels")
    values = np.asarray(as_tensor(labels, "labels").cpu() if torch.is_tensor(labels) else labels)
    n, classes = probs.shape
    if values.dtype.kind in "UO" and names is not None:
        values = labels_of(
            [as_text(each) for each in values.tolist()],
            names,
            lambda i, reason: UserError(f"labels: sample {i}: {reason}"),
        )
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(
            f"labels: got {values.dtype} of shape {values.shape}; valid: integers of shape ({n},)"
            + (", or names with the class_names of label_table" if names is None else ", or names")
        )
    if len(values) != n:
        raise UserError(f"labels: got {len(values)}; valid: {n}, one for each row of {beside}")
    wrong = np.flatnonzero((values < 0) | (values >= classes))
    if len(wrong):
        raise UserError(
            f"labels: label {values[wrong[0]]} of sample {wrong[0]} is out of range; valid: 0 to "
            f"{classes - 1} ({len(wrong)} such)"
        )
    return values.astype(np.int64)


def probabilities(values: Any, argument: str) -> Floats:
    """Probabilities (N,K) as float32 whose rows sum to one."""
    refuse_masked(values, argument)
    if torch.is_tensor(values):  # numpy knows no bfloat16
        values = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32))
    try:
        array = np.asarray(values)
    except ValueError:
        raise UserError(f"{argument}: got rows of several lengths; valid: shape (N, K)") from None
    except (TypeError, RuntimeError):  # a list of tensors that have a gradient or are on a GPU
        raise UserError(
            f"{argument}: got {brief(values, 60)}, which NumPy cannot read; valid: one array or tensor of "
            "shape (N, K), as torch.cat makes of batches"
        ) from None
    if array.ndim != 2 or array.dtype.kind != "f" or not len(array):
        raise UserError(
            f"{argument}: got {array.dtype} of shape {array.shape}; valid: probabilities of shape (N, K)"
        )
    if array.shape[1] < 2:
        raise UserError(f"{argument}: got {array.shape[1]} class; valid: 2 classes or more")
    probs = np.empty(array.shape, np.float32)
    for rows in findings.blocks(*array.shape):
        block = array[rows].astype(np.float32)
        sums = block.sum(axis=1, keepdims=True)
        # NaN fails all comparisons
        right = (block >= -SLACK).all(axis=1) & (np.abs(sums[:, 0] - 1) <= SLACK)
        if not right.all():
            i = int(right.argmin())
            raise UserError(
                f"{argument}: {_fault(array[rows][i], sums[i, 0])}, in row {rows.start + i} (from 0); valid: "
                "numbers from 0 to 1 that sum to 1 in each row"
            )
        np.divide(np.maximum(block, 0, out=block), sums, out=probs[rows])
    return probs


def _fault(row: Floats, total: float) -> str:
    if not np.isfinite(row).all():
        return f"got {row[~np.isfinite(row)][0]}"
    if (row < -SLACK).any():
        return f"got {row.min():.4g}, a logit perhaps: use softmax"
    return f"got numbers that sum to {total:.4g}"
