"""What a run's findings say of the labels as a whole.

The estimates need no clean labels. They follow from the final belief (`findings.pooled`), which is called
the belief here. Where a benchmark has clean labels, the truth stands beside the estimates.

Dimensions: N samples (the training ones, unless held-out ones are mentioned), K classes, M test images.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import torch

from noisybsd.data.names import UNKNOWN
from noisybsd.engine.metrics import prediction_metrics, reliability
from noisybsd.report.findings import Bools, Findings, Floats, Ints

Z95 = 1.959964  # of the normal distribution
# how much more often than it expects a belief may err: on digits with labels swapped in pairs, which prove
# each other, it did so two to three times as often (docs/LOG.md, the noise rate's interval)
OVERSURE = 2.0
# the largest ratio of the suggestions that a belief expects to be wrong to the labels that it counts wrong,
# at which the count is shown as an estimate: above it all were far off (docs/LOG.md, a doubt of 0.7)
DOUBT = 0.7


def estimates(findings: Findings) -> dict[str, Any]:
    """What can be said without clean labels; and the truth beside it where these are known.

    Returns:
        noise_rate: {estimate, source}, see `noise_and_transition`, and of a belief {low, high}: an interval
        of predictions hardly ever holds the truth where classes overlap (results/labels.md);
        suggestions_wrong: the share of its own suggestions that the belief expects to be wrong;
        disputed: how many labels the belief contradicts;
        held_out: how many samples were held out of training, held_out_seen: how many of these the network
        could judge, and held_out_disputed: how many it contradicts; all else is of the training samples;
        transition (K,K), see `transition`; test, None without a test set: accuracy on it as it is
        labelled, ece, its reliability diagram, and either expected_on_noisy_labels (clean test
        labels) or on_clean_labels {estimate, low, high} (others). Of data with several labels for an image
        also agreement, see there. Where clean labels are known also verified, how many, and of these
        noise_rate_true, transition_true, and suggested_right, the share of suggestions that are. Samples
        never visited do not count.
    """
    disputed = findings.column("given") != findings.column("suggested")
    apart = findings.held_out & (not findings.held_out.all())
    of_held_out = {
        "held_out": int(apart.sum()),
        "held_out_seen": int((apart & findings.seen).sum()),
        "held_out_disputed": int(disputed[apart].sum()),
    }
    findings = findings.trained
    seen = findings.seen
    belief, labels = findings.final_belief[seen], findings.arrays["labels"][seen]
    rate, matrix = noise_and_transition(belief, labels, findings.about["holds_belief"])
    if origin(rate) == "predictions":
        del rate["low"], rate["high"]
    found: dict[str, Any] = {
        "samples": len(findings.table),
        "samples_seen": int(seen.sum()),
        "noise_rate": rate,
        "suggestions_wrong": float(1 - belief.max(axis=1).mean()) if len(belief) else None,
        "disputed": int((belief.argmax(axis=1) != labels).sum()),
        **of_held_out,
        "transition": matrix,
        "test": _test_estimates(findings, matrix) if len(findings.arrays["test_labels"]) else None,
    }
    if (votes := findings.arrays.get("votes")) is not None:
        found["agreement"] = agreement(votes)
    if findings.clean is not None:
        known = findings.clean[seen] != UNKNOWN
        clean, given = findings.clean[seen][known], labels[known]
        found["verified"] = len(clean)
        found["noise_rate_true"] = float((clean != given).mean()) if len(clean) else None
        found["transition_true"] = transition(np.eye(findings.classes)[clean], given)
        right = belief[known].argmax(axis=1) == clean
        found["suggested_right"] = float(right.mean()) if len(right) else None
    return found


def caution(said: dict[str, Any]) -> str | None:
    """Why the estimates may be far off, if the belief itself says so; else None.

    Without a belief they are the confident joint's, which predictions that are unsure as a whole do not
    spoil.
    """
    wrong, rate = said["suggestions_wrong"], said["noise_rate"]["estimate"]
    if wrong is None or wrong <= DOUBT * rate or origin(said["noise_rate"]) == "predictions":
        return None
    return (
        f"The belief expects {wrong:.0%} of its own suggestions to be wrong, so the estimates are no "
        "measurement. An undecided belief counts as noise, and a belief that has hardly left the given "
        "labels hides noise. A longer run or a better network improves the estimates."
    )


def origin(rate: dict[str, Any]) -> str:
    """What a noise rate was estimated from: "belief" or "predictions"."""
    return "belief" if rate["source"] == "belief" else "predictions"


def noise_and_transition(
    probs: Floats, labels: Ints, is_belief: bool
) -> tuple[dict[str, Any], Floats]:
    """The noise rate {estimate, low, high, source} and the transition matrix (K,K).

    From a belief they are its means (`noise_rate`, `transition`), from predictions the confident joint's.

    Args:
        probs: (N,K).
        labels: (N,) given.
    """
    if is_belief:
        return {**noise_rate(probs, labels), "source": "belief"}, transition(probs, labels)
    counts = confident_counts(probs, labels)
    joint = _calibrated(counts, labels)
    rate = _joint_noise_rate(joint, counts.sum(axis=0))
    return {**rate, "source": "confident joint"}, _row_shares(joint)


def _joint_noise_rate(joint: Floats, counted: Floats) -> dict[str, float | None]:
    """The share of wrong labels by a confident joint (K,K), with a 95 % interval.

    The interval is that of K shares, each counted on `counted` (K,) samples of its given label. It covers
    the chance in these counts. It does not cover that confident predictions are wrong.
    """
    given = joint.sum(axis=0)
    n = float(given.sum())
    if n == 0:
        return {"estimate": None, "low": None, "high": None}
    wrong = 1 - np.divide(joint.diagonal(), given, where=given > 0, out=np.ones(len(given)))
    estimate = float(given @ wrong) / n
    variance = given**2 * wrong * (1 - wrong) / np.maximum(counted, 1)
    half = Z95 * float(np.sqrt(variance.sum())) / n
    return {
        "estimate": estimate,
        "low": max(0.0, estimate - half),
        "high": min(1.0, estimate + half),
    }


def noise_rate(belief: Floats, labels: Ints) -> dict[str, float | None]:
    """The expected share of wrong labels, 1/N Σ_i (1 - y_i[given]), with a 95 % interval.

    A label can be misjudged only where the belief's favourite class is the wrong one. So the true share is
    within D ± E, with D the share of labels that are not the favourite, and E the share of wrong favourites.
    The belief expects 1 - max_k y_i[k] of each favourite to be wrong; E is taken as the 97.5 % point of
    their number, a Poisson-binomial in normal approximation, if each is wrong twice as often (`OVERSURE`).
    The interval holds also where all errors point the same way, as where a network memorises labels. It
    assumes that the belief errs at most twice as often as it expects.

    Args:
        belief: (N,K).
        labels: (N,) given.
    """
    n = len(labels)
    if n == 0:
        return {"estimate": None, "low": None, "high": None}
    estimate = float(1 - belief[np.arange(n), labels].mean(dtype=np.float64))
    disputed = float((belief.argmax(axis=1) != labels).mean())
    doubt = (OVERSURE * (1 - belief.max(axis=1).astype(np.float64))).clip(max=1)
    errors = float(doubt.mean()) + Z95 * float(np.sqrt((doubt * (1 - doubt)).sum())) / n
    return {
        "estimate": estimate,
        "low": max(0.0, disputed - errors),
        "high": min(1.0, disputed + errors),
    }


def transition(belief: Floats, labels: Ints) -> Floats:
    """T (K,K), row: true class, column: given label, from the joint of belief and given labels.

    T[a, b] = Σ_{i: given_i = b} y_i[a] / Σ_i y_i[a].

    Args:
        belief: (N,K).
        labels: (N,) given.

    Returns:
        float64; the row of a class that less than one sample is believed to be of is NaN.
    """
    classes = belief.shape[1]
    joint = np.zeros((classes, classes))
    np.add.at(joint.T, labels, belief.astype(np.float64))
    return _row_shares(joint)


def agreement(votes: Floats) -> dict[str, Any] | None:
    """How far the annotators of an image agree; None where no image has several whole votes.

    Fleiss' kappa is (pairs - chance) / (1 - chance): 1 for annotators who always agree, 0 for those who
    agree as by chance. Source: Fleiss 1971, "Measuring nominal scale agreement among many raters"; pairs
    are averaged over images, so that these may have different numbers of votes.

    Args:
        votes: (N,K).

    Returns:
        images, those with at least two votes; and of these votes, their mean number; pairs, the share of
        pairs of votes on an image that agree, the mean over images; unanimous, the share of images whose
        votes all agree; kappa, None where all votes are of one class.
    """
    votes = votes.astype(np.float64)
    total = votes.sum(axis=1)
    votes, total = votes[total > 1], total[total > 1]
    if not len(votes) or (votes != np.rint(votes)).any():
        return None
    pairs = float(((votes * (votes - 1)).sum(axis=1) / (total * (total - 1))).mean())
    chance = float(np.square(votes.sum(axis=0) / total.sum()).sum())
    return {
        "images": len(votes),
        "votes": float(total.mean()),
        "pairs": pairs,
        "unanimous": float((votes.max(axis=1) == total).mean()),
        "kappa": (pairs - chance) / (1 - chance) if chance < 1 else None,
    }


def confident_joint(probabilities: Floats, labels: Ints) -> Floats:
    """How many samples are of each true class and given label, counted where a network is confident.

    A sample counts for the most probable of the classes whose probability is at least the mean that
    this class has among the samples given it. Each given label's counts are then scaled to the number
    of its samples. A plain mean of 1 - p(given) would count a network's doubt as wrong labels.

    Source: Northcutt et al. 2021, "Confident Learning", arXiv 1911.00068, equations 1 to 3.

    Args:
        probabilities: (N,K), rows sum to one.
        labels: (N,) given.

    Returns:
        (K,K) float64, row: true class, column: given label; sums to N.
    """
    return _calibrated(confident_counts(probabilities, labels), labels)


def confident_counts(probabilities: Floats, labels: Ints) -> Floats:
    """The confident joint (K,K) before it is scaled: only the samples that were counted."""
    classes, rows = probabilities.shape[1], np.arange(len(labels))
    given = np.bincount(labels, minlength=classes)
    total = np.bincount(labels, weights=probabilities[rows, labels], minlength=classes)
    threshold = np.divide(total, given, where=given > 0, out=np.full(classes, np.inf))
    confident = np.where(probabilities >= threshold - 1e-6, probabilities, -1.0)
    counted = confident.max(axis=1, initial=-1.0) >= 0
    joint = np.zeros((classes, classes))
    np.add.at(joint, (confident.argmax(axis=1)[counted], labels[counted]), 1)
    return joint


def _calibrated(counts: Floats, labels: Ints) -> Floats:
    """Counts (K,K), scaled to the number of samples of each given label."""
    joint, empty = counts.copy(), counts.sum(axis=0) == 0
    joint[empty, empty] = 1  # of such a label nothing is known: taken as right
    return joint * (np.bincount(labels, minlength=len(joint)) / joint.sum(axis=0))


def mislabelled(probabilities: Floats, labels: Ints) -> Bools:
    """Which labels (N,) the confident joint takes for wrong, so many of each pair as it counts.

    Of the samples given b, as many as the joint has of true class a are taken: those whose probability of a
    exceeds that of b most. No sample is among them whose label is its most probable class.

    Source: Northcutt et al. 2021, section 3.2, "prune by noise rate"; the last sentence is the authors' code.
    """
    joint = confident_joint(probabilities, labels)
    wrong = np.zeros(len(labels), bool)
    order = np.argsort(labels, kind="stable")
    ends = np.searchsorted(labels[order], np.arange(len(joint) + 1))
    for given, (start, end) in enumerate(pairwise(ends.tolist())):
        members = order[start:end]
        others = np.flatnonzero(np.rint(joint[:, given]) > 0)
        for true in others[others != given].tolist():
            count = min(round(joint[true, given]), len(members))
            margin = probabilities[members, true] - probabilities[members, given]
            wrong[members[np.argpartition(-margin, count - 1)[:count]]] = True
    return wrong & (probabilities.argmax(axis=1) != labels)


def _row_shares(joint: Floats) -> Floats:
    """Rows of `joint` (K,K) divided by their sums; NaN where a sum is less than one sample."""
    total = joint.sum(axis=1, keepdims=True)
    return np.divide(joint, total, where=total >= 1, out=np.full_like(joint, np.nan))


def accuracy_on_noisy_labels(predicted: Ints, labels: Ints, matrix: Floats) -> float:
    """The accuracy to expect if the clean test labels were as noisy as the training ones.

    Σ_{a,b} P(true = a, predicted = b) T[a, b]: noise is taken not to depend on the prediction, once
    the class is given.

    Args:
        predicted: (M,) predicted classes.
        labels: (M,) clean test labels.
        matrix: T (K,K).
    """
    joint = _joint(labels, predicted, len(matrix))
    return float((joint * _complete(matrix)).sum())


def accuracy_on_clean_labels(
    predicted: Ints, labels: Ints, matrix: Floats
) -> dict[str, float | None]:
    """The accuracy to expect on clean labels, from test labels as noisy as the training ones.

    With noise that does not depend on the prediction once the class is given,
    P(predicted, given) = P(predicted, true) T, so the accuracy is the trace of
    P(predicted, given) T^-1: the mean over test images of T^-1[given, predicted]. The 95 % interval
    is that of a mean of M draws, by its normal approximation; it takes T as exact.

    Args:
        predicted: (M,) predicted classes.
        labels: (M,) noisy test labels.
        matrix: T (K,K).

    Returns:
        estimate, low and high in [0,1]; None where T has no inverse, or cannot be right because the
        whole interval lies outside.
    """
    unknown: dict[str, float | None] = {"estimate": None, "low": None, "high": None}
    try:
        inverse = np.linalg.inv(_complete(matrix))
    except np.linalg.LinAlgError:
        return unknown
    shares = inverse[labels, predicted]  # (M,)
    mean, half = shares.mean(), Z95 * shares.std() / len(shares) ** 0.5
    if mean + half < 0 or mean - half > 1:
        return unknown
    values = np.clip([mean, mean - half, mean + half], 0, 1)
    return dict(zip(unknown, values.tolist(), strict=True))


def _joint(rows: Ints, columns: Ints, classes: int) -> Floats:
    """P(row, column) (K,K) of two labellings (M,)."""
    counts = np.bincount(rows * classes + columns, minlength=classes**2)
    return counts.reshape(classes, classes) / len(rows)


def _complete(matrix: Floats) -> Floats:
    """T; unknown rows are taken as free of noise."""
    return np.where(np.isnan(matrix), np.eye(len(matrix)), matrix)


def _test_estimates(findings: Findings, matrix: Floats) -> dict[str, Any]:
    probabilities, labels = findings.arrays["test"], findings.arrays["test_labels"]
    predicted = probabilities.argmax(axis=1)
    log_probs = torch.from_numpy(probabilities).double().clamp_min(1e-30).log()
    measured = prediction_metrics(log_probs, torch.from_numpy(labels))
    found: dict[str, Any] = {
        "labels": findings.about["test_labels"],
        "samples": len(labels),
        **{name: measured[name] for name in ("accuracy", "ece")},
        "reliability": reliability(log_probs, torch.from_numpy(labels)),
    }
    if findings.about["test_labels"] == "clean":
        found["expected_on_noisy_labels"] = accuracy_on_noisy_labels(predicted, labels, matrix)
    else:
        found["on_clean_labels"] = accuracy_on_clean_labels(predicted, labels, matrix)
    return found
