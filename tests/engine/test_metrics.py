from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import brier_score_loss
from torch import Tensor

from noisybsd.data.names import UNKNOWN
from noisybsd.engine.metrics import label_metrics, prediction_metrics, reliability

M, K = 400, 5


def predictions(seed: int = 0, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    """(M,K) float32 logits and (M,) labels, of which they get about seven in ten right."""
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(M, K, generator=generator)
    labels = torch.randint(K, (M,), generator=generator)
    agree = torch.rand(M, generator=generator) < 0.6
    return logits, torch.where(agree, logits.argmax(1), labels)


def softmax(logits: Tensor) -> np.ndarray:
    exps = np.exp(logits.double().numpy())
    return exps / exps.sum(1, keepdims=True)


def binned(logits: Tensor, labels: Tensor, bins: int) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, count) of every bin by its definition, one image at a time."""
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, label in zip(softmax(logits), labels.tolist(), strict=True):
        confidence = float(row.max())
        b = min(int(confidence * bins), bins - 1)
        members[b].append((confidence, int(row.argmax()) == label))
    return [
        (sum(c for c, _ in m) / len(m), sum(a for _, a in m) / len(m), len(m)) if m else (0, 0, 0)
        for m in members
    ]


def calibration_error(bins: list[tuple[float, float, int]]) -> float:
    total = sum(count for _, _, count in bins)
    return sum(count / total * abs(acc - conf) for conf, acc, count in bins)


def logits_of(*probs: list[float]) -> Tensor:
    return torch.tensor(probs).log().clamp(min=-200)


class TestPredictionMetrics:
    @pytest.mark.parametrize("scale", [0.1, 1.0, 3.0, 10.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_against_definitions(self, seed: int, scale: float) -> None:
        logits, labels = predictions(seed, scale)
        probs, onehot = softmax(logits), np.eye(K)[labels.numpy()]
        metrics = prediction_metrics(logits, labels)
        assert list(metrics) == ["accuracy", "ece", "nll", "brier"]
        assert all(type(value) is float for value in metrics.values())
        assert metrics["accuracy"] == np.mean(probs.argmax(1) == labels.numpy())
        ece = calibration_error(binned(logits, labels, 15))
        assert metrics["ece"] == pytest.approx(ece, abs=1e-5)
        nll = -np.log(probs[np.arange(M), labels.numpy()]).mean()
        assert metrics["nll"] == pytest.approx(nll, rel=1e-9)
        assert metrics["brier"] == pytest.approx(((probs - onehot) ** 2).sum(1).mean(), rel=1e-9)
        assert metrics["brier"] == pytest.approx(
            brier_score_loss(onehot, probs, scale_by_half=False), rel=1e-9
        )

    def test_samples_whose_right_label_is_unknown_do_not_count(self) -> None:
        arguments = beliefs()
        known = torch.arange(120) % 3 > 0
        part = {name: values[known] for name, values in arguments.items()}
        clean = arguments["clean_labels"].masked_fill(~known, UNKNOWN)
        assert label_metrics(**arguments | {"clean_labels": clean}) == label_metrics(**part)

    def test_hand_example(self) -> None:
        logits = logits_of([0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.8, 0.2])
        metrics = prediction_metrics(logits, torch.tensor([0, 1, 1, 0]))
        assert metrics["accuracy"] == 0.75
        # bins: {0.9, 0.9} half right, {0.6} right, {0.8} right
        ece = 0.5 * abs(0.5 - 0.9) + 0.25 * 0.4 + 0.25 * 0.2
        assert metrics["ece"] == pytest.approx(ece, abs=1e-6)
        nll = -(math.log(0.9) + math.log(0.1) + math.log(0.6) + math.log(0.8)) / 4
        assert metrics["nll"] == pytest.approx(nll, rel=1e-6)
        assert metrics["brier"] == pytest.approx((0.02 + 1.62 + 0.32 + 0.08) / 4, rel=1e-6)

    def test_perfect(self) -> None:
        labels = torch.arange(K)
        metrics = prediction_metrics(1e4 * torch.eye(K), labels)
        assert metrics == {"accuracy": 1.0, "ece": pytest.approx(0, abs=1e-6), "nll": 0, "brier": 0}

    def test_confidently_wrong(self) -> None:
        metrics = prediction_metrics(1e4 * torch.eye(K), (torch.arange(K) + 1) % K)
        assert metrics["accuracy"] == 0
        assert metrics["ece"] == pytest.approx(1, abs=1e-6)
        assert metrics["nll"] == pytest.approx(1e4)
        assert metrics["brier"] == pytest.approx(2)

    def test_uninformed(self) -> None:
        metrics = prediction_metrics(torch.full((M, K), 7.0), torch.arange(M) % K)
        assert metrics["nll"] == pytest.approx(math.log(K))
        assert metrics["brier"] == pytest.approx(1 - 1 / K)
        assert metrics["ece"] == pytest.approx(0, abs=1e-6)

    def test_one_class_only(self) -> None:
        metrics = prediction_metrics(torch.randn(M, 1), torch.zeros(M, dtype=torch.long))
        assert metrics == {"accuracy": 1.0, "ece": pytest.approx(0, abs=1e-6), "nll": 0, "brier": 0}

    def test_certainty_shares_the_last_bin(self) -> None:
        # 0.95 (right) and 1 (wrong) belong to one bin: |0.5 - 0.975|, not (0.05 + 1) / 2
        logits = logits_of([0.95, 0.05], [1.0, 0.0])
        metrics = prediction_metrics(logits, torch.tensor([0, 1]))
        assert metrics["ece"] == pytest.approx(0.475, abs=1e-6)

    def test_logits_that_look_like_probabilities(self) -> None:
        logits, labels = predictions()
        logits = logits.sigmoid()  # all in [0,1], still logits
        ece = calibration_error(binned(logits, labels, 15))
        assert prediction_metrics(logits, labels)["ece"] == pytest.approx(ece, abs=1e-5)

    def test_largest_finite_logits(self) -> None:
        largest = torch.finfo(torch.float32).max
        metrics = prediction_metrics(torch.tensor([[largest, -largest]]), torch.tensor([1]))
        json.dumps(metrics, allow_nan=False)
        assert metrics["nll"] == pytest.approx(2 * largest)

    def test_invariances(self) -> None:
        logits, labels = predictions()
        expected = prediction_metrics(logits, labels)
        order = torch.randperm(M, generator=torch.Generator().manual_seed(0))
        classes = torch.tensor([3, 1, 4, 0, 2])
        for same in (
            prediction_metrics(logits[order], labels[order]),
            prediction_metrics(logits[:, classes], classes.argsort()[labels]),
            prediction_metrics(logits + 3, labels),
        ):
            assert same == pytest.approx(expected, abs=1e-5)

    def test_no_gradient_is_kept(self) -> None:
        logits, labels = predictions()
        expected = prediction_metrics(logits, labels)
        assert prediction_metrics(logits.requires_grad_(), labels) == expected

    @pytest.mark.gpu
    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    def test_cuda_matches_cpu(self) -> None:
        logits, labels = predictions()
        expected = prediction_metrics(logits, labels)
        actual = prediction_metrics(logits.cuda(), labels.cuda())
        assert actual == pytest.approx(expected, abs=1e-6)
        assert (
            reliability(logits.cuda(), labels.cuda())["count"]
            == (reliability(logits, labels)["count"])
        )


class TestReliability:
    @pytest.mark.parametrize("bins", [1, 7, 15])
    @pytest.mark.parametrize("scale", [0.1, 3.0])
    def test_against_definition(self, bins: int, scale: float) -> None:
        logits, labels = predictions(scale=scale)
        diagram = reliability(logits, labels, bins)
        for b, (confidence, accuracy, count) in enumerate(binned(logits, labels, bins)):
            assert diagram["count"][b] == count
            if count:
                assert diagram["confidence"][b] == pytest.approx(confidence)
                assert diagram["accuracy"][b] == pytest.approx(accuracy)
            else:
                assert diagram["confidence"][b] is None and diagram["accuracy"][b] is None
        assert sum(diagram["count"]) == M
        assert all(len(column) == bins for column in diagram.values())
        json.dumps(diagram, allow_nan=False)

    @pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
    @pytest.mark.parametrize("seed", range(3))
    def test_implies_the_calibration_error(self, seed: int, scale: float) -> None:
        logits, labels = predictions(seed, scale)
        columns = reliability(logits, labels).values()
        bins = [row for row in zip(*columns, strict=True) if row[2]]
        ece = prediction_metrics(logits, labels)["ece"]
        assert calibration_error(bins) == pytest.approx(ece, abs=1e-5)

    def test_certainty_shares_the_last_bin(self) -> None:
        diagram = reliability(logits_of([0.95, 0.05], [1.0, 0.0]), torch.tensor([0, 1]))
        assert diagram["count"] == [0] * 14 + [2]
        assert diagram["confidence"][-1] == pytest.approx(0.975)
        assert diagram["accuracy"][-1] == 0.5

    def test_an_edge_belongs_to_the_bin_above(self) -> None:
        assert reliability(torch.zeros(1, 2), torch.tensor([0]), bins=2)["count"] == [0, 1]
        # as in the metric: a wrong 1/3, an edge, and a right 0.36 of the bin above it
        logits = logits_of([1 / 3, 1 / 3, 1 / 3], [0.36, 0.34, 0.3])
        logits[0] = 0.0
        labels = torch.tensor([1, 0])
        columns = reliability(logits, labels).values()
        bins = [row for row in zip(*columns, strict=True) if row[2]]
        assert len(bins) == 1
        ece = prediction_metrics(logits, labels)["ece"]
        assert calibration_error(bins) == pytest.approx(ece, abs=1e-6)

    def test_no_bins(self) -> None:
        with pytest.raises(ValueError, match="bins: expected a number from 1, got 0"):
            reliability(*predictions(), bins=0)


@pytest.mark.parametrize("metric", [prediction_metrics, reliability])
class TestMistakes:
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_not_finite(self, metric: Any, value: float) -> None:
        logits, labels = predictions()
        logits[3, 1] = logits[3, 2] = logits[7, 0] = value
        with pytest.raises(ValueError, match=f"NaN or infinity for 2 of {M} images"):
            metric(logits, labels)

    @pytest.mark.parametrize("label", [-1, -100, K])
    def test_unknown_class(self, metric: Any, label: int) -> None:
        logits, labels = predictions()
        labels[5] = label
        with pytest.raises(ValueError, match=r"labels: expected classes from 0 to 4, got .*"):
            metric(logits, labels)

    @pytest.mark.parametrize("shapes", [((4, K), (3,)), ((0, K), (0,)), ((4,), (4,))])
    def test_shapes(self, metric: Any, shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
        with pytest.raises(ValueError, match=r"expected shapes \(M, K\) and \(M,\)"):
            metric(torch.zeros(shapes[0]), torch.zeros(shapes[1], dtype=torch.long))


def beliefs(seed: int = 0, n: int = 120) -> dict[str, Tensor]:
    """Arguments of label_metrics with 40 % noise, ties among the beliefs, imperfect guesses."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(K, size=n)
    labels = np.where(rng.random(n) < 0.4, (clean + rng.integers(1, K, size=n)) % K, clean)
    belief = np.clip(rng.normal(np.where(labels == clean, 0.6, 0.4), 0.2), 0, 1).round(1)
    suggested = np.where(rng.random(n) < 0.8, clean, rng.integers(K, size=n))
    predicted = np.where(rng.random(n) < 0.5, labels, clean)
    arrays = {
        "belief_of_given": belief.astype(np.float32),
        "suggested": suggested,
        "predicted": predicted,
        "labels": labels,
        "clean_labels": clean,
    }
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive outranks a negative; ties count half."""
    wins = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[positive]
        for n in scores[~positive]
    ]
    return sum(wins) / len(wins)


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Σ over thresholds of (increase of recall) × precision."""
    total, recall_before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        flagged = scores >= threshold
        recall = positive[flagged].sum() / positive.sum()
        total += (recall - recall_before) * positive[flagged].mean()
        recall_before = recall
    return total


class TestLabelMetrics:
    @pytest.mark.parametrize("seed", range(3))
    def test_against_definitions(self, seed: int) -> None:
        arguments = beliefs(seed)
        metrics = label_metrics(**arguments)
        belief, suggested, predicted, labels, clean = (a.numpy() for a in arguments.values())
        wrong = labels != clean
        n, n_wrong = len(labels), int(wrong.sum())
        memorised = sum(
            bool(w and p == g) for w, p, g in zip(wrong, predicted, labels, strict=True)
        )
        right = sum(bool(s == c) for s, c in zip(suggested, clean, strict=True))
        right_wrong = sum(
            bool(w and s == c) for w, s, c in zip(wrong, suggested, clean, strict=True)
        )
        assert metrics == pytest.approx(
            {
                "noise_rate": n_wrong / n,
                "label_correction_accuracy": right / n,
                "label_correction_accuracy_wrong": right_wrong / n_wrong,
                "noise_detection_auroc": auroc(1 - belief, wrong),
                "noise_detection_average_precision": average_precision(1 - belief, wrong),
                "memorised_fraction": memorised / n_wrong,
            }
        )
        assert all(type(value) is float for value in metrics.values())

    def test_hand_example(self) -> None:
        metrics = label_metrics(
            belief_of_given=torch.tensor([0.9, 0.2, 0.4, 0.3]),
            suggested=torch.tensor([0, 1, 1, 0]),
            predicted=torch.tensor([0, 1, 0, 0]),
            labels=torch.tensor([0, 2, 0, 1]),
            clean_labels=torch.tensor([0, 1, 1, 1]),
        )
        assert metrics == {
            "noise_rate": 0.5,  # the second and the third
            "label_correction_accuracy": 0.75,
            "label_correction_accuracy_wrong": 1.0,
            "noise_detection_auroc": 0.75,  # 0.2 outranks both right ones, 0.4 one of two
            "noise_detection_average_precision": pytest.approx((1 + 2 / 3) / 2),
            "memorised_fraction": 0.5,
        }

    def test_perfect(self) -> None:
        arguments = beliefs()
        clean = arguments["clean_labels"]
        right = (arguments["labels"] == clean).float()
        metrics = label_metrics(right, clean, clean, arguments["labels"], clean)
        assert metrics["label_correction_accuracy"] == 1
        assert metrics["label_correction_accuracy_wrong"] == 1
        assert metrics["noise_detection_auroc"] == 1
        assert metrics["noise_detection_average_precision"] == 1
        assert metrics["memorised_fraction"] == 0

    def test_everything_memorised(self) -> None:
        arguments = beliefs()
        labels, clean = arguments["labels"], arguments["clean_labels"]
        metrics = label_metrics(torch.ones(len(labels)), labels, labels, labels, clean)
        assert metrics["memorised_fraction"] == 1
        assert metrics["label_correction_accuracy_wrong"] == 0
        kept = (labels == clean).double().mean().item()
        assert metrics["label_correction_accuracy"] == pytest.approx(kept)
        assert metrics["noise_detection_auroc"] == 0.5
        assert metrics["noise_detection_average_precision"] == metrics["noise_rate"]

    @pytest.mark.filterwarnings("error")
    def test_no_noise(self) -> None:
        arguments = beliefs()
        arguments["labels"] = arguments["clean_labels"]
        metrics = label_metrics(**arguments)
        assert metrics["noise_rate"] == 0
        assert metrics["label_correction_accuracy"] is not None
        assert metrics["label_correction_accuracy_wrong"] is None
        assert metrics["noise_detection_auroc"] is None
        assert metrics["noise_detection_average_precision"] is None
        assert metrics["memorised_fraction"] is None

    @pytest.mark.filterwarnings("error")
    def test_all_wrong(self) -> None:
        arguments = beliefs()
        arguments["labels"] = (arguments["clean_labels"] + 1) % K
        metrics = label_metrics(**arguments)
        assert metrics["noise_rate"] == 1
        assert metrics["noise_detection_auroc"] is None
        assert metrics["noise_detection_average_precision"] is None
        assert metrics["label_correction_accuracy_wrong"] == metrics["label_correction_accuracy"]

    def test_tiny_beliefs_are_still_ranked(self) -> None:
        # in float32 1 - 1e-9 and 1 - 1e-10 are both 1
        metrics = label_metrics(
            belief_of_given=torch.tensor([1e-9, 1e-10]),
            suggested=torch.tensor([0, 0]),
            predicted=torch.tensor([0, 0]),
            labels=torch.tensor([0, 1]),
            clean_labels=torch.tensor([0, 0]),
        )
        assert metrics["noise_detection_auroc"] == 1

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtype_of_beliefs(self, dtype: torch.dtype) -> None:
        arguments = beliefs()
        expected = label_metrics(**arguments)
        arguments["belief_of_given"] = arguments["belief_of_given"].to(dtype)
        assert label_metrics(**arguments) == expected

    def test_order_of_samples_does_not_matter(self) -> None:
        arguments = beliefs()
        order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
        permuted = {name: argument[order] for name, argument in arguments.items()}
        assert label_metrics(**permuted) == pytest.approx(label_metrics(**arguments))

    def test_unvisited_samples_keep_their_labels(self) -> None:
        arguments = beliefs()
        unvisited = torch.arange(120) % 3 == 0
        for name in ("suggested", "predicted"):  # whatever they hold
            arguments[name][unvisited] = -1
        arguments["belief_of_given"][unvisited] = torch.nan
        metrics = label_metrics(**arguments)
        json.dumps(metrics, allow_nan=False)

        trusted = {name: argument.clone() for name, argument in arguments.items()}
        trusted["belief_of_given"][unvisited] = 1.0
        trusted["suggested"][unvisited] = trusted["labels"][unvisited]
        expected = label_metrics(**trusted)
        visited = {name: argument[~unvisited] for name, argument in arguments.items()}
        expected["memorised_fraction"] = label_metrics(**visited)["memorised_fraction"]
        assert metrics == expected

    def test_nothing_visited(self) -> None:
        arguments = beliefs()
        arguments["belief_of_given"] = torch.full((120,), torch.nan)
        metrics = label_metrics(**arguments)
        assert metrics["memorised_fraction"] is None
        assert metrics["noise_detection_auroc"] == 0.5
        kept = (arguments["labels"] == arguments["clean_labels"]).double().mean().item()
        assert metrics["label_correction_accuracy"] == pytest.approx(kept)

    @pytest.mark.parametrize("name", ["suggested", "clean_labels"])
    def test_shapes(self, name: str) -> None:
        arguments = beliefs()
        arguments[name] = arguments[name][:-1]
        with pytest.raises(ValueError, match="five tensors of one shape"):
            label_metrics(**arguments)

    def test_no_samples(self) -> None:
        with pytest.raises(ValueError, match="N > 0"):
            label_metrics(*[torch.zeros(0)] * 5)
