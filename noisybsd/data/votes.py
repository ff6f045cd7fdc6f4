"""Votes: several labels for an image, of annotators, as counts, or as probabilities.

Votes are an array (N,K) float32: how many times image i was called class k. Probabilities are one vote
that is shared out. Where one label is needed, it is the majority's.

Dimensions: N images, M annotators, K classes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from noisybsd.data.names import UNKNOWN
from noisybsd.errors import UserError

Labels = npt.NDArray[np.int64]
Votes = npt.NDArray[np.float32]
Wrong = Callable[[int, str], UserError]  # row, reason -> the error that the row is wrong

SLACK = 0.01  # how far from 1 rounded probabilities of an image may sum

_NO_VOTE = "has no vote; leave out the image, or give it a label"


def of_annotators(given: Labels, num_classes: int, wrong: Wrong) -> tuple[Labels, Votes | None]:
    """The majority's labels (N,) and the votes; no votes where all images have one label.

    Of classes with equally many votes, the label is that of the first annotator who chose one of them.

    Args:
        given: (N,M), the labels of each annotator, UNKNOWN where one gave none.

    Raises:
        UserError: an image that nobody labelled.
    """
    known = given != UNKNOWN
    if given.shape[1] == 1 and known.all():
        return given[:, 0], None
    votes = np.zeros((len(given), num_classes), np.float32)
    rows, columns = np.nonzero(known)
    np.add.at(votes, (rows, given[rows, columns]), 1)
    _refuse_without_vote(votes, wrong)
    most, labels = votes.max(axis=1), np.empty(len(given), np.int64)
    for column in reversed(range(given.shape[1])):  # the first annotator's is put last
        label = given[:, column]
        chosen = known[:, column] & (votes[np.arange(len(given)), label] == most)
        labels[chosen] = label[chosen]
    return labels, _if_several(votes)


def of_matrix(
    values: npt.NDArray[Any], num_classes: int, source: object, wrong: Wrong
) -> tuple[Labels, Votes | None]:
    """The majority's labels (N,) and the votes, from counts or probabilities (N,K).

    Whole numbers are counts. Other numbers are probabilities, and each row must sum to 1. Of classes with
    equally many votes, the label is the first class.

    Raises:
        UserError: another shape; a number that is negative or not finite; a row without a vote; or a row
            of probabilities with another sum than 1.
    """
    if values.dtype.kind not in "fiub" or values.ndim != 2 or values.shape[1] != num_classes:
        raise UserError(
            f"{source}: got {values.dtype} of shape {values.shape}, valid: votes or probabilities of "
            f"shape (N, {num_classes}), a column for each class"
        )
    matrix = values.astype(np.float64)
    bad = ~np.isfinite(matrix) | (matrix < 0)
    if bad.any():
        i, k = np.argwhere(bad)[0].tolist()
        raise wrong(i, f"class {k} has {matrix[i, k]:g} votes, valid: a number from 0")
    _refuse_without_vote(matrix, wrong)
    if (matrix != np.rint(matrix)).any():
        sums = matrix.sum(axis=1)
        off = np.flatnonzero(abs(sums - 1) > SLACK)
        if len(off):
            raise wrong(
                int(off[0]),
                f"sums to {sums[off[0]]:.6g}; valid: whole numbers of votes in all rows, or "
                f"probabilities that sum to 1 ({len(off)} such rows)",
            )
        matrix /= sums[:, None]
    return matrix.argmax(axis=1), _if_several(matrix.astype(np.float32))


def _refuse_without_vote(votes: npt.NDArray[Any], wrong: Wrong) -> None:
    without = np.flatnonzero(votes.sum(axis=1) == 0)
    if len(without):
        more = f" ({len(without)} such images)" if len(without) > 1 else ""
        raise wrong(int(without[0]), _NO_VOTE + more)


def _if_several(votes: Votes) -> Votes | None:
    """Votes, or None where every image has a single one: labels alone say the same."""
    return None if ((votes == 0) | (votes == 1)).all() and (votes.sum(1) == 1).all() else votes


def votes_told(votes: Votes) -> str:
    """How many votes there are, in words."""
    return f"{votes.sum(axis=1).mean():.1f} votes an image"


def votes_sha256(votes: Votes) -> str:
    """SHA-256 of votes (N,K), whatever machine they come from."""
    return hashlib.sha256(votes.astype("<f4").tobytes()).hexdigest()
