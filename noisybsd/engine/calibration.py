"""One number that makes a network's probabilities honest, found without clean labels.

Dimensions: N training samples, M images that were held out of training, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOWEST, HIGHEST = 0.25, 10.0  # temperatures that are tried
# Not tuned: with two images log T stays near 0, with some hundreds their labels decide.
PRIOR_DEVIATION = 0.5
ENOUGH = 100  # fewer images than these, and the temperature is mostly chance
# The share of labels that count as drawn at random, so that no single label weighs without bound.
RANDOM = 0.01


def transition(belief: Tensor, labels: Tensor) -> Tensor:
    """P (K,K), row: class, column: given label, from the joint of belief (N,K) and given labels (N,).

    P[k, g] = (1 - r) Σ_{i: given_i = g} y_i[k] / Σ_i y_i[k] + r h[g], with r = `RANDOM` and h the
    given labels' shares. The row of a class that nothing is believed to be of is h.

    Returns:
        float64, rows sum to one.
    """
    classes = belief.shape[1]
    joint = belief.new_zeros(classes, classes, dtype=torch.float64)  # g, k
    joint.index_add_(0, labels, belief.double())
    given = torch.bincount(labels, minlength=classes).double() / len(labels)
    of_class = joint.sum(dim=0)
    shares = torch.where(of_class > 0, joint / of_class.clamp_min(1e-30), given[:, None])
    return shares.lerp(given[:, None], RANDOM).T


def fit_temperature(logits: Tensor, labels: Tensor, noise: Tensor) -> float:
    """The temperature T at which softmax(logits / T) explains noisy labels of images not trained on best.

    It maximises Σ_i log Σ_k softmax(logits_i / T)_k P(g_i | k) - (log T)² / (2 s²), s = `PRIOR_DEVIATION`:
    temperature scaling (Guo et al. 2017, section 4.2) with the likelihood of the given label in the place
    of the right one's (forward correction, Patrini et al. 2017, "Making Deep Neural Networks Robust to
    Label Noise", equation 4). Penso and Goldberger 2024 ("Confidence Calibration of a Medical Imaging
    Classification System That is Robust to Label Noise") match the confidence to an accuracy that takes the
    inverse of P instead; results/calibration.md compares the two. Both assume noise that depends on the
    class alone.

    Args:
        logits: (M,K).
        labels: (M,), the given labels.
        noise: P (K,K), row: class, column: given label, as `transition` has it.

    Returns:
        T in [`LOWEST`, `HIGHEST`], to one part in a hundred.
    """
    logits, likelihood = logits.double(), noise.T[labels].log()  # (M,K): log P(g_i | k)

    def objective(temperature: float) -> float:
        explained = (logits / temperature).log_softmax(dim=1).add_(likelihood).logsumexp(dim=1)
        prior = np.log(temperature) ** 2 / (2 * PRIOR_DEVIATION**2)
        return float(explained.sum()) - prior

    steps = np.geomspace(LOWEST, HIGHEST, 41)
    best = max(steps, key=objective)
    ratio = steps[1] / steps[0]
    near = np.geomspace(best / ratio, best * ratio, 21).clip(LOWEST, HIGHEST)
    return float(max(near, key=objective))


def temperature_of(state: Mapping[str, Any], suffix: str) -> float:
    """The temperature of a checkpoint's network; 1 if it was not calibrated, or was trained on since.

    Args:
        suffix: what the metrics of the network end in, "" or "_ema".
    """
    history = state["history"]
    ended = bool(history) and history[-1]["step"] == state["step"]
    return history[-1].get(f"temperature{suffix}", 1.0) if ended else 1.0
