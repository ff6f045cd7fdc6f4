"""The paper's recursion as its equations read: what the fast one is held against."""

from __future__ import annotations


def reference_targets(
    label: int,
    predictions: list[list[float]],
    *,
    prior_strength: float,
    prior_floor: float,
    discount: float,
) -> list[list[float]]:
    """The targets of one sample after each of its visits, as the equations read: the slow reference.

    Args:
        label: the given label.
        predictions: T predictions of K probabilities each, in the order of the visits.

    Returns:
        T targets of K probabilities each.
    """
    classes = range(len(predictions[0]))
    alpha = [prior_strength if k == label else prior_floor for k in classes]
    targets = []
    for p in predictions:
        alpha = [discount * alpha[k] + p[k] for k in classes]
        total = sum(alpha)
        targets.append([alpha[k] / total for k in classes])
    return targets
