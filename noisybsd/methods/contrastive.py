"""Contrastive terms over two augmented views of each image of a batch.

Legend: B images in the batch, D embedding width, K classes. Row i of `z` (2B,D) is the first view
of image i, row B + i the second. Rows have unit length: a dot product is a cosine similarity.

Both terms average, over the 2B views as anchors, the log-partition over all other views minus the
mean similarity to the anchor's positives. Only the log-partition needs a (2B,2B) matrix.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def simclr(z: Tensor, temperature: float) -> Tensor:
    """NT-Xent: an image's only positive is its own other view.

    Source: Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual
    Representations", equation 1, averaged over both orders of every pair.

    Args:
        z: (2B,D) embeddings of unit length, first views and then second views.
        temperature: τ > 0.

    Returns:
        () loss in nats; float32, or float64 where z is.

    Raises:
        ValueError: z is not of shape (2B,D), or the temperature is not positive.

    Example:
        >>> simclr(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]]), 1.0)
        tensor(0.5514)
    """
    _check(z, temperature)
    with torch.autocast(z.device.type, enabled=False):
        z = _full_precision(z)
        first, second = z.chunk(2)
        positive = (first * second).sum(1) / temperature  # (B,), the same in both orders
        return _log_partition(z, temperature).mean() - positive.mean()


def supcon(z: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """SupCon whose positives weigh as much as the targets agree.

    Views of different images i, j are positives with weight w_ij = <y_i, y_j>, the probability that
    both have the same class if y_i and y_j are independent beliefs. The other view of the same
    image has weight 1 whatever the belief. One-hot targets give SupCon, mutually orthogonal ones
    NT-Xent. Targets that know nothing still agree by 1/K: with a large batch they pull all images
    together.

    Source: Khosla et al. 2020, "Supervised Contrastive Learning", equation 2 (L_out), averaged over
    the 2B anchors, with 1/|P(i)| Σ_p replaced by 1/Σ_p w_ip Σ_p w_ip.

    Args:
        z: (2B,D) embeddings of unit length, first views and then second views.
        targets: (B,K) class probabilities of the B images; no gradient flows to them.
        temperature: τ > 0.

    Returns:
        () loss in nats; float32, or float64 where z is.

    Raises:
        ValueError: z is not of shape (2B,D), targets not of shape (B,K), or the temperature is
            not positive.

    Example:
        >>> z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
        >>> supcon(z, torch.tensor([[1.0, 0.0], [1.0, 0.0]]), 1.0)
        tensor(1.2181)
    """
    _check(z, temperature)
    if not isinstance(targets, Tensor) or targets.ndim != 2 or 2 * len(targets) != len(z):
        got = tuple(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
        raise ValueError(
            f"targets: expected shape ({len(z) // 2}, K) for z of shape {tuple(z.shape)}, got {got}"
        )
    with torch.autocast(z.device.type, enabled=False):
        z = _full_precision(z)
        y = targets.detach().to(z.dtype)
        first, second = z.chunk(2)
        both = first + second  # (B,D)
        # Σ_j w_ij v_j = y_i · Σ_j y_j v_j, so class sums replace the (B,B) matrix of agreements.
        # The image's own term is taken out: its other view has weight 1 instead of w_ii.
        agreement_own = y.square().sum(1, keepdim=True)  # (B,1), w_ii
        agreement_others = y @ y.sum(0) - agreement_own.squeeze(1)  # (B,), Σ_{j≠i} w_ij
        others = y @ (y.T @ both) - agreement_own * both  # (B,D), Σ_{j≠i} w_ij (z_j + z_{B+j})
        # both views of image i as anchors, each against its other view and both views of the others
        attraction = 2 * (first * second).sum(1) + (both * others).sum(1)  # (B,)
        positive = attraction / (2 * temperature * (1 + 2 * agreement_others))
        return _log_partition(z, temperature).mean() - positive.mean()


def _log_partition(z: Tensor, temperature: float) -> Tensor:
    """log Σ_{a≠i} exp(z_i·z_a / τ) for every view i: (2B,D) -> (2B,)."""
    similarity = (z / temperature) @ z.T
    return similarity.fill_diagonal_(-torch.inf).logsumexp(1)


def _full_precision(z: Tensor) -> Tensor:
    """At least float32: at τ = 0.05 the rounding of a bfloat16 similarity is as large as 0.06.

    Products on a GPU are in TF32, with three bits more.
    """
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _check(z: Tensor, temperature: float) -> None:
    if not isinstance(z, Tensor) or not z.is_floating_point():
        got = z.dtype if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(f"z: expected a tensor of floating-point numbers, got {got}")
    if z.ndim != 2 or len(z) == 0 or len(z) % 2:
        raise ValueError(
            f"z: expected shape (2B, D), the first views of B images and then the second, "
            f"got {tuple(z.shape)}"
        )
    if temperature is None or isinstance(temperature, str) or not temperature > 0:
        raise ValueError(f"temperature: expected a number above 0, got {temperature!r}")


# Every entry is called as f(z, targets, temperature).
CONTRASTIVE: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "simclr": lambda z, targets, temperature: simclr(z, temperature),
    "supcon": supcon,
}
