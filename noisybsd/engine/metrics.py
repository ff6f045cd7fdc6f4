"""What is measured at the end of an epoch: predictions on a test set, and beliefs about labels.

Legend: M test images, N training images, K classes. Values are Python numbers, or None where a
quantity is undefined: never NaN, so that they can be written as JSON. Rates are fractions in [0,1].
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from noisybsd.data.names import UNKNOWN

BINS = 15  # as in Guo et al. 2017


@torch.no_grad()
def prediction_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """How good predictions are, and how honest their probabilities.

    - `accuracy`: fraction of images whose most probable class is the label.
    - `ece`: expected calibration error, Σ_b n_b/M |accuracy_b - confidence_b| over 15 bins of equal
      width of the largest probability. Guo et al. 2017, "On Calibration of Modern Neural Networks",
      equation 3; a confidence on the edge between two bins counts in the upper one, theirs in the
      lower.
    - `nll`: mean negative log-likelihood of the label, in nats.
    - `brier`: mean over images of Σ_k (p_k - [k = label])², in [0,2]. Brier 1950, "Verification of
      forecasts expressed in terms of probability", equation 2.

    Args:
        logits: (M,K) before the softmax, on any device.
        labels: (M,) class indices on the same device.

    Raises:
        ValueError: no images, shapes that do not match, logits that are not finite, or a label that
            is none of the K classes.

    Example:
        >>> prediction_metrics(torch.tensor([[0.0, 0.0]]), torch.tensor([0]))["brier"]
        0.5
    """
    log_probs = _log_probabilities(logits, labels)
    probs = log_probs.exp()
    at_label = labels[:, None]
    confidence, correct, _ = _bin_sums(probs, labels, BINS)
    metrics = {
        "accuracy": (probs.argmax(1) == labels).double().mean(),
        "ece": (confidence - correct).abs().sum() / len(labels),
        "nll": -log_probs.gather(1, at_label).mean(),
        # Σ_k (p_k - [k = label])² = Σ_k p_k² - 2 p_label + 1
        "brier": (probs.square().sum(1, keepdim=True) - 2 * probs.gather(1, at_label) + 1).mean(),
    }
    return dict(zip(metrics, torch.stack(list(metrics.values())).tolist(), strict=True))


@torch.no_grad()
def reliability(logits: Tensor, labels: Tensor, bins: int = BINS) -> dict[str, list[Any]]:
    """The reliability diagram behind the calibration error, bin b being [b/bins, (b+1)/bins).

    Source: Guo et al. 2017, equations 1 and 2, with the edges of `prediction_metrics`.

    Args:
        logits: (M,K) before the softmax, on any device.
        labels: (M,) class indices on the same device.
        bins: number of bins of equal width; the last includes 1.

    Returns:
        Three lists of length `bins`: `confidence` and `accuracy`, the means over the images of the
        bin (None in an empty one), and `count`, their number.

    Raises:
        ValueError: as `prediction_metrics`, or no bins.
    """
    if bins < 1:
        raise ValueError(f"bins: expected a number from 1, got {bins}")
    sums = _bin_sums(_log_probabilities(logits, labels).exp(), labels, bins).tolist()
    counts = [int(count) for count in sums[2]]
    confidences, accuracies = (
        [value / count if count else None for value, count in zip(row, counts, strict=True)]
        for row in sums[:2]
    )
    return {"confidence": confidences, "accuracy": accuracies, "count": counts}


def _bin_sums(probs: Tensor, labels: Tensor, bins: int) -> Tensor:
    """Sums over the images of each bin, (3,bins) float64: confidence, right predictions, images."""
    confidence, predicted = probs.max(1)
    inner_edges = torch.linspace(0, 1, bins + 1, device=probs.device)[1:-1]
    index = torch.bucketize(confidence.float(), inner_edges, right=True)  # (M,)
    correct = (predicted == labels).double()
    rows = torch.stack([confidence, correct, torch.ones_like(correct)])  # (3,M)
    return rows.new_zeros(3, bins).index_add_(1, index, rows)


def label_metrics(
    belief_of_given: Tensor,
    suggested: Tensor,
    predicted: Tensor,
    labels: Tensor,
    clean_labels: Tensor,
) -> dict[str, float | None]:
    """How well wrong labels are found and corrected, among the samples whose right labels are known.

    - `noise_rate`: fraction of labels that differ from the clean ones.
    - `label_correction_accuracy`: fraction of all samples whose suggested class is the clean label.
    - `label_correction_accuracy_wrong`: the same among the mislabelled; None when there are none.
    - `noise_detection_auroc`, `noise_detection_average_precision`: of "mislabelled" as the class to
      detect, ranked by 1 - belief; None when all labels are right or all are wrong.
    - `memorised_fraction`: fraction of the mislabelled for which the network predicts the wrong
      given label. Liu et al. 2020, "Early-Learning Regularization Prevents Memorization of Noisy
      Labels" (ELR), figure 1, right column. None when there are no mislabelled samples.

    A belief of NaN marks a sample that was not visited yet. Nothing speaks against its label: it
    ranks among the least suspicious and its suggestion is its given label, whatever `suggested`
    holds. It is left out of `memorised_fraction`, since nothing was predicted.

    Args:
        belief_of_given: (N,) probability that the given label is right, or NaN.
        suggested: (N,) most probable class under the belief.
        predicted: (N,) the network's own most probable class.
        labels: (N,) given labels.
        clean_labels: (N,) right labels, UNKNOWN where nobody has verified the given one.

    Raises:
        ValueError: no samples whose right labels are known, or shapes that do not match.
    """
    arguments = (belief_of_given, suggested, predicted, labels, clean_labels)
    shapes = [tuple(argument.shape) for argument in arguments]
    if shapes != [(belief_of_given.numel(),)] * 5 or belief_of_given.numel() == 0:
        raise ValueError(
            "belief_of_given, suggested, predicted, labels, clean_labels: expected five tensors "
            f"of one shape (N,) with N > 0, got {shapes}"
        )
    known = (clean_labels != UNKNOWN).cpu().numpy()
    if not known.any():
        raise ValueError("clean_labels: none of them is known")
    belief = belief_of_given.detach().double().cpu().numpy()[known]
    suggestion, prediction, given, clean = (
        argument.cpu().numpy()[known] for argument in arguments[1:]
    )

    visited = ~np.isnan(belief)
    belief = np.where(visited, belief, 1.0)
    corrected = np.where(visited, suggestion, given) == clean
    wrong = given != clean
    memorised = (prediction == given)[wrong & visited]
    detectable = 0 < wrong.sum() < wrong.size
    # -belief ranks as 1 - belief does, which would round small beliefs into ties
    auroc, precision = detection(wrong, -belief) if detectable else (None, None)
    return {
        "noise_rate": _mean(wrong),
        "label_correction_accuracy": _mean(corrected),
        "label_correction_accuracy_wrong": _mean(corrected[wrong]),
        "noise_detection_auroc": auroc,
        "noise_detection_average_precision": precision,
        "memorised_fraction": _mean(memorised),
    }


def detection(wrong: np.ndarray, suspicion: np.ndarray) -> tuple[float, float]:
    """AUROC and average precision of finding the `wrong` (N,), some but not all, by `suspicion` (N,)."""
    # here, since it takes a second to import
    from sklearn.metrics import average_precision_score, roc_auc_score

    return float(roc_auc_score(wrong, suspicion)), float(average_precision_score(wrong, suspicion))


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if values.size else None


def _log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """(M,K) float64, in which the likelihood of no finite float32 logits overflows."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or logits.numel() == 0:
        raise ValueError(
            "logits, labels: expected shapes (M, K) and (M,) with M, K > 0, "
            f"got {tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    classes = logits.shape[1]
    checks = [torch.isfinite(logits).all(), ((labels >= 0) & (labels < classes)).all()]
    finite, known = torch.stack(checks).tolist()
    if not finite:
        images = int((~torch.isfinite(logits)).any(1).sum())
        raise ValueError(
            f"logits: expected finite numbers, got NaN or infinity for {images} of {len(logits)} "
            "images"
        )
    if not known:
        raise ValueError(
            f"labels: expected classes from 0 to {classes - 1}, "
            f"got {int(labels.min())} to {int(labels.max())}"
        )
    return logits.double().log_softmax(1)
