"""Every way to rank labels by suspicion, and, where clean labels are known, which one finds the wrong ones.

Dimensions: N samples (the training ones, unless held-out ones are mentioned), K classes.
"""

from __future__ import annotations

import importlib
import warnings

import numpy as np

from noisybsd.data.names import UNKNOWN
from noisybsd.engine.metrics import detection
from noisybsd.errors import first_line
from noisybsd.report.findings import Bools, Findings, Floats, Ints


def suspicions(findings: Findings) -> dict[str, Floats | str]:
    """Every ranking: a score (N,), larger is more suspicious; or a sentence on why it is not available.

    - `final belief`: the report's own ranking, see `findings.pooled`.
    - `belief`: little belief in the given label, before it is pooled with the final network.
    - `confident learning`: what cleanlab flags from the network's predictions without augmentation,
      and within flagged and others by normalised margin. Northcutt et al. 2021, arXiv 1911.00068.
      The paper asks for predictions of a network that never saw the label; these are the run's own.
    - `area under the margin`: Pleiss et al. 2020, arXiv 2001.10528, without its threshold samples.
    - `loss`: little probability of the given label at the network's last visit.
    - `network`: little probability of the given label by the final network, without augmentation.
    - `k-NN disagreement`: neighbours with another given label.
    - `annotators' disagreement`: votes for another class; only of data with several labels for an image.
    """
    labels, network = findings.arrays["labels"], _readable(findings)
    rows, votes = np.arange(len(labels)), findings.arrays.get("votes")

    def quiet(values: Floats) -> Floats:
        """Samples without a value are the least suspicious."""
        return np.where(np.isnan(values), -np.inf, values)

    found: dict[str, Floats | str] = {
        "final belief": -findings.column("rank"),
        "belief": -findings.arrays["belief"][rows, labels],
        "confident learning": confident_learning(labels, network),
        "area under the margin": quiet(-findings.column("area_under_margin")),
        "loss": quiet(-findings.column("network_prob")),
        "network": -network[rows, labels],
        "k-NN disagreement": quiet(-findings.column("neighbour_agreement")),
    }
    if votes is not None:
        found["annotators' disagreement"] = -votes[rows, labels] / votes.sum(axis=1)
    return found


def _readable(findings: Findings) -> Floats:
    """The network's probabilities (N,K); an unreadable image has probability 1 for its given label."""
    network, labels = findings.arrays["network"], findings.arrays["labels"]
    return np.where(np.isnan(network), np.eye(findings.classes, dtype=np.float32)[labels], network)


def confident_learning(labels: Ints, probabilities: Floats) -> Floats | str:
    """cleanlab's ranking of labels (N,) by probabilities (N,K), or why there is none."""
    try:
        find = importlib.import_module("cleanlab.filter").find_label_issues
        score = importlib.import_module("cleanlab.rank").get_label_quality_scores
    except ImportError:
        return "cleanlab is not installed"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # on rare classes
            flagged = find(labels, probabilities, n_jobs=1)
            quality = score(labels, probabilities, method="normalized_margin")
    except Exception as error:  # some of its checks are bare assertions
        return f"cleanlab refuses: {first_line(error)}"
    return flagged + 1 - quality  # quality is in [0,1]


def detection_metrics(findings: Findings) -> dict[str, dict[str, float | str]] | None:
    """For every ranking: auroc, average_precision, precision (among as many as are wrong).

    Samples that were held out, or whose clean labels are not known, do not count.

    Returns:
        {ranking: metrics, or {unavailable: reason}}; None without clean labels, or if all labels
        are right or all are wrong.
    """
    findings = findings.trained
    if findings.clean is None:
        return None
    known = findings.clean != UNKNOWN
    wrong = (findings.clean != findings.arrays["labels"])[known]
    count = int(wrong.sum())
    if not 0 < count < len(wrong):
        return None
    found: dict[str, dict[str, float | str]] = {}
    for name, score in suspicions(findings).items():
        if isinstance(score, str):
            found[name] = {"unavailable": score}
            continue
        if np.isneginf(score).all():
            found[name] = {"unavailable": "of held-out samples it is not known"}
            continue
        finite = np.maximum(score[known], np.finfo(np.float32).min)
        auroc, precision = detection(wrong, finite)
        found[name] = {
            "auroc": auroc,
            "average_precision": precision,
            "precision": precision_at(wrong, finite, count),
        }
    return found


def precision_at(wrong: Bools, score: Floats, count: int) -> float:
    """The share of wrong ones among the `count` largest scores (N,); of ties, the expected share."""
    threshold = np.sort(score)[-count]
    above, level = score > threshold, score == threshold
    return float((wrong[above].sum() + (count - above.sum()) * wrong[level].mean()) / count)
