"""Methods by name: each a preset of target rule, classification loss, views and contrastive term.

A preset says all four, so that `method=NAME` over any recipe leaves nothing of the recipe's own
method behind. Numbers that a method's paper prescribes belong here too, with their source.
"""

from __future__ import annotations

from typing import Any

_ONE_VIEW = {"views": ["weak"]}
_TWO_VIEWS = {"views": ["weak", "strong"]}

METHODS: dict[str, dict[str, Any]] = {
    # plain cross-entropy to the given labels
    "ce": {
        "targets": "labels",
        "loss": "cross_entropy",
        "augment": _ONE_VIEW,
        "contrastive": {"name": "none"},
    },
    # Bayesian self-distillation, arXiv 2512.24162: cross-entropy to the posterior mean
    "bsd": {
        "targets": "posterior",
        "loss": "cross_entropy",
        "augment": _ONE_VIEW,
        "contrastive": {"name": "none"},
    },
    # + NT-Xent between a weak and a strong view
    "bsd_simclr": {
        "targets": "posterior",
        "loss": "cross_entropy",
        "augment": _TWO_VIEWS,
        "contrastive": {"name": "simclr"},
    },
    # + SupCon with positives weighted by the agreement of posterior targets
    "bsd_supcon": {
        "targets": "posterior",
        "loss": "cross_entropy",
        "augment": _TWO_VIEWS,
        "contrastive": {"name": "supcon"},
    },
}
