"""Methods by name: each a preset of target rule, classification loss, views and contrastive term.

A preset says all that makes a method, so that `method=NAME` over any recipe leaves nothing of the
recipe's own method behind. Its `options` are the values its paper prescribes, for CIFAR-10 where they
differ by dataset; schedules are shares of the run. Optimiser, schedule and budget stay
the recipe's.

Beside each preset stands where its numbers were read. Where papers tune by dataset or noise rate, the
others are named: a method here has one setting for all rates.
"""

from __future__ import annotations

from typing import Any

_ONE_VIEW: dict[str, Any] = {
    "augment": {"views": ["weak"], "mixup": 0.0},
    "contrastive": {"name": "none"},
    "neighbours": {"weight": 0.0, "start_epoch": 5},
}
_TWO_VIEWS: dict[str, Any] = {**_ONE_VIEW, "augment": {"views": ["weak", "strong"], "mixup": 0.0}}

_BSD: dict[str, Any] = {"targets": "posterior", "loss": "cross_entropy"}
_PAPER: dict[str, Any] = {
    "prior_strength": 8.0,
    "discount": 0.8,
    "align": False,
    "sharpen": False,
    "label_evidence": False,
    "weigh_visits": False,
    "probe": False,
    "top_k": None,
}
_OURS: dict[str, Any] = {
    **_PAPER,
    "align": True,
    "sharpen": True,
    "label_evidence": True,
    "weigh_visits": True,
    "probe": True,
}

_SSR: dict[str, Any] = {
    "targets": "ssr",
    "augment": {"views": ["weak", "strong"], "mixup": 4.0},
    "contrastive": {"name": "none"},
    "neighbours": {"k": 200, "weight": 1.0, "start_epoch": 1},
}

# Methods whose network is the weight average: their test numbers are its.
AVERAGED = ("ce_ema",)

METHODS: dict[str, dict[str, Any]] = {
    # plain cross-entropy to the given labels
    "ce": {**_ONE_VIEW, "targets": "labels", "loss": "cross_entropy"},
    # Szegedy et al. 2016, section 7
    "label_smoothing": {
        **_ONE_VIEW,
        "targets": "labels",
        "loss": "label_smoothing",
        "options": {"smoothing": 0.1},
    },
    # Zhang et al. 2018, corrupted CIFAR-10 labels: alpha 8 at 20 %, 32 at 50 and 80 % (read in a public
    # reprint of the paper's table; the authors' code has only its default, 1)
    "mixup": {
        **_ONE_VIEW,
        "targets": "labels",
        "loss": "cross_entropy",
        "augment": {"views": ["weak"], "mixup": 8.0},
    },
    # cross-entropy again: the network to look at is the weight average, `test_accuracy_ema_last`.
    # Morales-Brotons et al. 2024, arXiv 2411.18704; `ema.decay` is the recipe's
    "ce_ema": {**_ONE_VIEW, "targets": "labels", "loss": "cross_entropy"},
    # Zhang & Sabuncu 2018: q = 0.7 throughout; so too where Wang et al. 2019 compare with it, in their code
    "gce": {**_ONE_VIEW, "targets": "labels", "loss": "gce", "options": {"q": 0.7}},
    # Wang et al. 2019, the authors' code: CIFAR-10; CIFAR-100 has alpha 6, beta 0.1
    "sce": {
        **_ONE_VIEW,
        "targets": "labels",
        "loss": "sce",
        "options": {"alpha": 0.1, "beta": 1.0},
    },
    # Liu et al. 2020, configuration files of the authors' code: CIFAR-10; asymmetric noise there has
    # beta 0.9, weight 1, and CIFAR-100 beta 0.9, weight 7
    "elr": {
        **_ONE_VIEW,
        "targets": "elr",
        "loss": "elr",
        "options": {"beta": 0.7, "weight": 3.0},
    },
    # Liu et al. 2022, as its reproduction on CIFAR-10N runs it (KlemenVovk/noisy-labels). CIFAR-100, the
    # authors' configuration file: rate_u 1, rate_v 10; under asymmetric noise rate_v 100, with rate_u 1 in
    # one state of their README and 0.1 in a later one
    "sop": {
        **_ONE_VIEW,
        "targets": "labels",
        "loss": "sop",
        "options": {"rate_u": 10.0, "rate_v": 10.0, "consistency": 0.0, "balance": 0.0},
    },
    # the same with both regularisers, weighted as in the configuration file of the authors' code
    "sop_plus": {
        **_TWO_VIEWS,
        "targets": "labels",
        "loss": "sop",
        "options": {"rate_u": 10.0, "rate_v": 10.0, "consistency": 0.9, "balance": 0.1},
    },
    # Lu & He 2022, the authors' code: momentum 0.9; correction after epoch 30 or 40 of 200 on CIFAR-10, 20
    # to 40 on CIFAR-100, by noise rate
    "selc": {
        **_ONE_VIEW,
        "targets": "selc",
        "loss": "cross_entropy",
        "options": {"momentum": 0.9, "warmup": 0.15},
    },
    # Laine & Aila 2017, the authors' code: decay 0.6, ramp-up over 80 of 300 epochs; on CIFAR-10 its weight
    # is 30, times the share of labelled images. The weight under incorrect labels, 300 (3000 from 50 % on),
    # is the paper's appendix A from memory: the code has no such run, the text could not be read again
    "temporal_ensembling": {
        **_ONE_VIEW,
        "targets": "temporal_ensemble",
        "loss": "temporal_ensemble",
        "options": {"momentum": 0.6, "weight": 300.0, "ramp_up": 0.27},
    },
    # Kim et al. 2021, the authors' code and its README: alpha_T 0.8, on CIFAR-100 and ImageNet
    "ps_kd": {
        **_ONE_VIEW,
        "targets": "ps_kd",
        "loss": "cross_entropy",
        "options": {"alpha": 0.8},
    },
    # Yi et al. 2022, run.sh of the authors' code: CIFAR-10 at 20 % symmetric and 40 % asymmetric noise. At 0,
    # 40, 60, 80, 90 % the weight is 50, 90, 170, 130, 170 and the threshold 0.8, 0.4, 0.8, 0.4, 0.4;
    # CIFAR-100 has weight 130 (50 without noise, 170 under asymmetric noise), threshold 0.05
    "ctrr": {
        **_TWO_VIEWS,
        "targets": "labels",
        "loss": "ctrr",
        "options": {"weight": 50.0, "threshold": 0.4},
    },
    # cross-entropy of both views + NT-Xent between them
    "simclr_ce": {
        **_TWO_VIEWS,
        "targets": "labels",
        "loss": "cross_entropy",
        "contrastive": {"name": "simclr"},
    },
    # Huang et al. 2023, configuration files of the authors' code: temperature 0.25, warm-up 20 of 200
    # epochs, mixup alpha 1, every term's weight 1; CIFAR-100 at 90 % has a mixture for each class
    # and scale2 = 1 (no s in the mixed targets), which are not here
    "tcl": {
        **_TWO_VIEWS,
        "targets": "labels",
        "loss": "tcl",
        "augment": {"views": ["weak", "strong"], "mixup": 1.0},
        "options": {"temperature": 0.25, "warmup": 0.1},
    },
    # Feng et al. 2022, the authors' code: k 200, theta_s 1, theta_r 0.9, mixup alpha 4; README: theta_r
    # 0.8 for CIFAR-100 at 50, 80 and 90 % symmetric noise
    "ssr": {**_SSR, "loss": "ssr", "options": {"theta_r": 0.9, "theta_s": 1.0}},
    # the same with the feature consistency, of weight 1
    "ssr_plus": {
        **_SSR,
        "loss": "ssr_plus",
        "options": {"theta_r": 0.9, "theta_s": 1.0, "consistency": 1.0},
    },
    # Chen et al. 2024, the settings of CIFAR-10 and CIFAR-10N in Hhhhhhao/General-Framework-Weak-Supervision;
    # the rate is the network's first one there. CIFAR-100 (N) has scale 2, and 2.25 to 2.5 at 50 % noise or
    # more; Clothing1M 0.5
    "ill": {
        **_TWO_VIEWS,
        "targets": "labels",
        "loss": "ill",
        "options": {"scale": 1.0, "rate": 0.02, "balance": 0.1},
    },
    # Bayesian self-distillation as in the paper, arXiv 2512.24162: the label is in the prior alone and each
    # prediction is evidence as it is. The values of c (prior_strength) and gamma (discount) are not known:
    # these are those of bsd_plus
    "bsd": {**_ONE_VIEW, **_BSD, "options": _PAPER},
    # + NT-Xent between a weak and a strong view; which contrastive term the paper uses is not known
    "bsd_simclr": {**_TWO_VIEWS, **_BSD, "options": _PAPER, "contrastive": {"name": "simclr"}},
    # + SupCon with positives weighted by the agreement of targets
    "bsd_supcon": {**_TWO_VIEWS, **_BSD, "options": _PAPER, "contrastive": {"name": "supcon"}},
    # ours, see docs/method.md
    "bsd_plus": {**_TWO_VIEWS, **_BSD, "options": _OURS, "contrastive": {"name": "supcon"}},
    "bsd_plus_one_view": {**_ONE_VIEW, **_BSD, "options": _OURS},
    # bsd_plus + the neighbours' mean belief as further evidence
    "bsd_plus_neighbours": {
        **_TWO_VIEWS,
        **_BSD,
        "options": _OURS,
        "contrastive": {"name": "supcon"},
        "neighbours": {"k": 20, "weight": 1.0, "start_epoch": 5},
    },
}
