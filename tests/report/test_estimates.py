from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from helpers.reported import findings, hide_cleanlab
from numpy.testing import assert_allclose
from sklearn.metrics import roc_auc_score

from noisybsd.data.names import UNKNOWN
from noisybsd.data.noise import inject
from noisybsd.report.estimates import (
    accuracy_on_clean_labels,
    accuracy_on_noisy_labels,
    agreement,
    caution,
    confident_joint,
    estimates,
    noise_rate,
    transition,
)
from noisybsd.report.rankings import (
    confident_learning,
    detection_metrics,
    precision_at,
    suspicions,
)

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.node.get_closest_marker("slow"):
        hide_cleanlab(monkeypatch)


def dirichlet(n: int, classes: int) -> np.ndarray:
    return RANDOM.dirichlet(np.full(classes, 0.3), n)


# --- without clean labels -------------------------------------------------------------------------


def test_noise_rate_is_the_expected_share_of_wrong_labels() -> None:
    belief = dirichlet(4, 3)
    labels = np.array([0, 1, 2, 0])
    p = belief[range(4), labels]
    # the distribution of the number wrong, outcome by outcome
    outcomes = list(itertools.product((0, 1), repeat=4))
    chances = [
        np.prod([q if right else 1 - q for q, right in zip(p, o, strict=True)]) for o in outcomes
    ]
    wrong = np.array([4 - sum(o) for o in outcomes])
    assert noise_rate(belief, labels)["estimate"] == pytest.approx(np.dot(chances, wrong) / 4)


def test_the_interval_is_twice_as_wide_as_the_belief_expects_to_be_wrong() -> None:
    favourite = np.arange(100) % 4
    doubt = np.where(np.arange(100) < 20, 0.2, 0.01)
    doubt[-1] = 0.6
    belief = (doubt / 3)[:, None] * np.ones(4)
    belief[range(100), favourite] = 1 - doubt
    labels = np.where(np.arange(100) < 30, (favourite + 1) % 4, favourite)
    found = noise_rate(belief, labels)
    doubt = np.minimum(2 * doubt, 1)
    expected = doubt.mean()
    above = 1.959964 * np.sqrt((doubt * (1 - doubt)).sum()) / 100
    assert found["low"] == pytest.approx(0.3 - expected - above)
    assert found["high"] == pytest.approx(0.3 + expected + above)


@pytest.mark.parametrize("errors", ["by chance", "the given label is believed", "never given"])
def test_the_interval_holds_the_truth_wherever_the_errors_point(errors: str) -> None:
    """If the belief is wrong twice as often as it expects; its errors may all be of a kind."""
    random, covered = np.random.default_rng(1), 0
    n, classes = 400, 5
    for _ in range(300):
        sure = random.uniform(0.8, 1, n)
        favourite = random.integers(0, classes, n)
        belief = ((1 - sure) / (classes - 1))[:, None] * np.ones(classes)
        belief[range(n), favourite] = sure
        mistaken = random.random(n) >= 2 * sure - 1
        other = (favourite + random.integers(1, classes, n)) % classes
        clean = np.where(mistaken, other, favourite)
        noisy = np.where(random.random(n) < 0.3, (clean + 1) % classes, clean)
        if errors == "the given label is believed":
            noisy = np.where(mistaken, favourite, noisy)
        elif errors == "never given":
            noisy = np.where(mistaken, clean, noisy)
        found = noise_rate(belief, noisy)
        assert found["low"] is not None and found["high"] is not None
        covered += found["low"] <= (clean != noisy).mean() <= found["high"]
    assert covered / 300 > 0.95


def doubtful_network(n: int = 3000, classes: int = 4) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean labels, given ones of which 30 % are wrong, and a network that is right but never sure."""
    random = np.random.default_rng(3)
    clean = random.integers(0, classes, n)
    shift = np.where(random.random(n) < 0.3, random.integers(1, classes, n), 0)
    labels = (clean + shift) % classes
    probabilities = 0.25 * np.eye(classes)[clean] + 0.75 * random.dirichlet(np.ones(classes) * 9, n)
    return clean, labels, probabilities


def test_a_network_in_doubt_is_counted_by_its_confident_predictions() -> None:
    clean, labels, probabilities = doubtful_network()
    truth = float((clean != labels).mean())
    joint = confident_joint(probabilities, labels)
    assert joint.sum(axis=0) == pytest.approx(np.bincount(labels))
    assert 1 - joint.trace() / len(labels) == pytest.approx(truth, abs=0.03)
    plain = noise_rate(probabilities, labels)["estimate"]
    assert plain is not None and plain > truth + 0.2  # doubt taken for noise


def test_the_confident_joint_by_slow_loops() -> None:
    _, labels, probabilities = doubtful_network(200)
    classes = range(4)
    threshold = [probabilities[labels == k, k].mean() for k in classes]
    counts = np.zeros((4, 4))
    for p, given in zip(probabilities, labels, strict=True):
        confident = [k for k in classes if p[k] >= threshold[k]]
        if confident:
            counts[max(confident, key=lambda k: p[k]), given] += 1
    for given in classes:
        counts[:, given] *= (labels == given).sum() / counts[:, given].sum()
    assert_allclose(confident_joint(probabilities, labels), counts)


def test_a_method_without_a_belief_is_judged_by_the_confident_joint() -> None:
    clean, labels, probabilities = doubtful_network(600)
    one = findings(probabilities, labels, clean=clean)
    without = replace(one, about=one.about | {"holds_belief": False})
    of_belief, of_network = estimates(one), estimates(without)
    truth = of_network["noise_rate_true"]
    assert of_belief["noise_rate"]["source"] == "belief"
    assert of_network["noise_rate"]["source"] == "confident joint"
    assert "low" in of_belief["noise_rate"] and "low" not in of_network["noise_rate"]
    assert abs(of_network["noise_rate"]["estimate"] - truth) < 0.06
    assert of_belief["noise_rate"]["estimate"] > truth + 0.2
    assert_allclose(of_network["transition"].sum(axis=1), 1)
    assert np.abs(of_network["transition"] - of_network["transition_true"]).max() < 0.12


@pytest.mark.slow
def test_the_confident_joint_is_cleanlabs() -> None:
    count = pytest.importorskip("cleanlab.count")
    _, labels, probabilities = doubtful_network()
    theirs = count.compute_confident_joint(labels, probabilities, calibrate=True).T
    assert_allclose(confident_joint(probabilities, labels), theirs, atol=1)  # theirs is rounded


def test_transition_is_the_joint_of_belief_and_given_labels() -> None:
    belief, labels = dirichlet(60, 4), RANDOM.integers(0, 4, 60)
    found = transition(belief, labels)
    for a in range(4):
        total = sum(belief[i][a] for i in range(60))
        for b in range(4):
            assert found[a, b] == pytest.approx(
                sum(belief[i][a] for i in range(60) if labels[i] == b) / total
            )
    assert_allclose(found.sum(axis=1), 1)


def test_a_class_that_nothing_is_believed_to_be_has_no_row() -> None:
    found = transition(np.eye(3)[[0, 0, 1]], np.array([0, 1, 1]))
    assert_allclose(found[0], [0.5, 0.5, 0])
    assert np.isnan(found[2]).all()
    hardly = np.array([[0.6, 0.4], [0.9, 0.1]])
    assert np.isnan(transition(hardly, np.array([0, 1]))[1]).all()  # half a sample says too little


def test_both_accuracies_are_exact_where_noise_ignores_the_prediction() -> None:
    """Counts in which given labels are independent of predictions, class by class."""
    matrix = np.array([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.0, 0.5, 0.5]])
    predicts = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9]])  # row: true class
    cells = [(a, p, g) for a in range(3) for p in range(3) for g in range(3)]
    counts = [round(1000 * predicts[a, p] * matrix[a, g]) for a, p, g in cells]
    true, predicted, given = (np.repeat([c[i] for c in cells], counts) for i in range(3))
    clean, noisy = (predicted == true).mean(), (predicted == given).mean()
    assert clean == pytest.approx(0.8)
    assert accuracy_on_noisy_labels(predicted, true, matrix) == pytest.approx(noisy)
    found = accuracy_on_clean_labels(predicted, given, matrix)
    assert found["estimate"] == pytest.approx(clean)
    assert found["low"] is not None and found["high"] is not None
    assert found["low"] < clean < found["high"] < found["low"] + 0.1


def test_clean_accuracy_is_found_under_drawn_noise() -> None:
    random = np.random.default_rng(2)
    true = random.integers(0, 5, 4000)
    predicted = np.where(random.random(4000) < 0.9, true, random.integers(0, 5, 4000))
    noisy = inject(true, "pairflip", 0.3, 5, 0)
    assert noisy.transition is not None
    found = accuracy_on_clean_labels(predicted, noisy.labels, noisy.transition)
    accuracy = (predicted == true).mean()
    assert found["low"] is not None and found["high"] is not None
    assert found["low"] < accuracy < found["high"]
    assert abs((predicted == noisy.labels).mean() - accuracy) > 0.2
    expected = accuracy_on_noisy_labels(predicted, true, noisy.transition)
    assert expected == pytest.approx((predicted == noisy.labels).mean(), abs=0.02)


def test_a_matrix_without_inverse_gives_no_estimate() -> None:
    nothing = {"estimate": None, "low": None, "high": None}
    singular = np.full((2, 2), 0.5)
    assert accuracy_on_clean_labels(np.array([0, 1]), np.array([0, 1]), singular) == nothing
    # 5 % of 400 labels agree with the prediction: fewer than that matrix lets any classifier have
    predicted, labels = np.zeros(400, np.int64), np.repeat([0, 1], [20, 380])
    assert accuracy_on_clean_labels(predicted, labels, np.eye(2) * 0.4 + 0.3) == nothing


def test_samples_never_visited_do_not_count() -> None:
    belief = [[0.5, 0.5], [0.1, 0.9], [1, 0], [1, 0]]
    found = estimates(findings(belief, [0, 0, 0, 0], visits=[3, 3, 0, 0], clean=[0, 1, 1, 1]))
    assert found["samples"] == 4 and found["samples_seen"] == 2
    assert found["noise_rate"]["estimate"] == pytest.approx(0.7)
    assert found["noise_rate_true"] == 0.5
    assert found["disputed"] == 1


def test_a_belief_that_is_not_sure_of_itself_is_told_from_one_that_is() -> None:
    labels = [0] * 10
    sure = estimates(findings([[0.98, 0.02]] * 7 + [[0.02, 0.98]] * 3, labels))
    assert sure["suggestions_wrong"] == pytest.approx(0.02, abs=1e-6)
    assert caution(sure) is None
    doubtful = findings([[0.7, 0.3]] * 7 + [[0.4, 0.6]] * 3, labels)
    unsure = estimates(doubtful)
    # of predictions alone: doubt does not spoil the confident joint
    doubtful.about["holds_belief"] = False
    assert caution(estimates(doubtful)) is None
    told = caution(unsure)  # 33 % of the suggestions against 39 % of the labels
    assert told is not None and "The belief expects 33% of its own suggestions" in told


def test_a_belief_that_is_still_the_given_label_is_no_measurement() -> None:
    """After too few epochs: an estimate near 0 that says nothing of the noise."""
    young = estimates(findings([[0.97, 0.03]] * 10, [0] * 10, clean=[0] * 6 + [1] * 4))
    assert young["disputed"] == 0 and young["noise_rate"]["estimate"] == pytest.approx(0.03)
    told = caution(young)
    assert told is not None and "no measurement" in told and "upper bound" not in told


def test_without_a_visited_sample_nothing_is_estimated() -> None:
    found = estimates(findings(np.eye(2), [0, 1], visits=[0, 0], clean=[0, 0]))
    assert found["noise_rate"]["estimate"] is found["noise_rate_true"] is None
    assert found["suggested_right"] is None and caution(found) is None


def test_clean_test_labels_and_others_are_told_apart() -> None:
    belief, labels = np.array([[0.8, 0.2], [0.3, 0.7]] * 10), [0, 1] * 10
    test = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    arguments = {"test": test, "test_labels": [0, 1, 1]}
    clean = estimates(findings(belief, labels, **arguments))["test"]  # type: ignore[arg-type]
    noisy = estimates(findings(belief, labels, test_kind="noisy", **arguments))["test"]  # type: ignore[arg-type]
    assert clean["accuracy"] == noisy["accuracy"] == pytest.approx(2 / 3)
    assert "on_clean_labels" not in clean and "expected_on_noisy_labels" not in noisy
    matrix = transition(belief, np.array(labels))
    expected = (matrix[0, 0] + matrix[1, 1] + matrix[1, 0]) / 3
    assert clean["expected_on_noisy_labels"] == pytest.approx(expected)
    # confidences .6, .8, .9 in bins of their own, right 0, 1, 1
    assert clean["ece"] == pytest.approx((0.6 + 0.2 + 0.1) / 3, abs=1e-6)
    assert sum(clean["reliability"]["count"]) == 3


# --- rankings -------------------------------------------------------------------------------------


def test_precision_at_the_true_count_by_slow_loops() -> None:
    random = np.random.default_rng(3)
    wrong = random.random(7) < 0.5
    score = random.integers(0, 3, 7).astype(float)  # ties
    count = int(wrong.sum())
    values = []
    for order in itertools.permutations(range(7)):
        ranked = sorted(order, key=lambda i: -score[i])  # stable: ties in every order
        values.append(wrong[ranked[:count]].mean())
    assert precision_at(wrong, score, count) == pytest.approx(np.mean(values))
    tied = precision_at(np.array([True, True, False, False]), np.array([2.0, 1, 1, 0]), 2)
    assert tied == pytest.approx(0.75)


def test_every_ranking_is_measured_on_the_same_labels() -> None:
    random = np.random.default_rng(4)
    belief, labels = dirichlet(80, 3), random.integers(0, 3, 80)
    clean = np.where(random.random(80) < 0.3, (labels + 1) % 3, labels)
    votes, network = dirichlet(80, 3), dirichlet(80, 3)
    margin, seen_prob = random.normal(size=80), random.random(80)
    found = detection_metrics(
        findings(
            belief,
            labels.tolist(),
            clean=clean.tolist(),
            votes=votes,
            network=network,
            margin=margin,
            network_prob=seen_prob,
        )
    )
    assert found is not None
    wrong, rows, pool = clean != labels, np.arange(80), np.sqrt(belief * network)
    by_hand = {
        "final belief": pool[rows, labels] / pool.sum(axis=1),
        "belief": belief[rows, labels],
        "area under the margin": margin,
        "loss": seen_prob,
        "network": network[rows, labels],
        "k-NN disagreement": votes[rows, labels],
    }
    for name, trust in by_hand.items():
        pairs = [(trust[i], trust[j]) for i in rows[wrong] for j in rows[~wrong]]
        auroc = np.mean([1.0 if a < b else 0.5 if a == b else 0.0 for a, b in pairs])
        assert found[name]["auroc"] == pytest.approx(auroc), name
        count = int(wrong.sum())
        top = np.argsort(trust)[:count]
        assert found[name]["precision"] == pytest.approx(wrong[top].mean()), name


def test_only_verified_samples_count_as_truth() -> None:
    random = np.random.default_rng(8)
    belief, labels = dirichlet(90, 3), random.integers(0, 3, 90)
    clean = np.where(random.random(90) < 0.3, (labels + 1) % 3, labels)
    known = np.arange(90) % 2 == 0
    some = findings(belief, labels.tolist(), clean=np.where(known, clean, UNKNOWN).tolist())
    alone = findings(belief[known], labels[known].tolist(), clean=clean[known].tolist())
    said, of_known = estimates(some), estimates(alone)
    assert said["verified"] == 45 and said["samples"] == 90
    for key in ("noise_rate_true", "suggested_right"):
        assert said[key] == of_known[key]
    assert_allclose(said["transition_true"], of_known["transition_true"])
    assert (
        said["noise_rate"]["estimate"]
        == estimates(findings(belief, labels.tolist()))["noise_rate"]["estimate"]
    )
    assert detection_metrics(some) == detection_metrics(alone)
    table = some.table.to_pylist()
    assert table[1]["clean"] is table[1]["clean_name"] is table[1]["given_right"] is None
    assert table[2]["clean"] == clean[2] and table[2]["given_right"] == (clean[2] == labels[2])


def test_a_perfect_belief_finds_all() -> None:
    belief = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3], [0.1, 0.9]]
    found = detection_metrics(findings(belief, [0, 0, 0, 0], clean=[0, 1, 0, 1]))
    assert found is not None
    assert found["belief"] == {"auroc": 1, "average_precision": 1, "precision": 1}


def test_samples_nothing_is_known_of_are_the_least_suspicious() -> None:
    found = findings(
        [[0.5, 0.5]] * 3,
        [0, 0, 0],
        margin=[np.nan, 1, 2],
        network=[[np.nan] * 2, [0.9, 0.1], [0.8, 0.2]],
    )
    scores = suspicions(found)
    for name in ("area under the margin", "network", "k-NN disagreement"):
        score = scores[name]
        assert not isinstance(score, str)
        assert score.argmin() == 0, name


def test_the_ranking_measured_is_the_reports() -> None:
    """A sample never visited has the last rank, whatever the network says of it."""
    belief = [[1.0, 0.0], [0.9, 0.1], [0.2, 0.8]]
    network = [[0.01, 0.99], [0.9, 0.1], [0.2, 0.8]]
    found = findings(belief, [0, 0, 0], network=network, visits=[0, 1, 1])
    score = suspicions(found)["final belief"]
    assert not isinstance(score, str)
    assert np.argsort(-score).tolist() == np.argsort(found.column("rank")).tolist() == [2, 1, 0]


def test_agreement_counts_pairs_of_votes() -> None:
    votes = np.array([[3, 0, 0], [1, 2, 0], [0, 1, 1], [0, 1, 0], [1, 1, 2]])
    agree, pairs = [], [(i, j) for i in range(4) for j in range(i)]
    for row in votes:
        labels = np.repeat(np.arange(3), row)
        if len(labels) > 1:
            same = [labels[i] == labels[j] for i, j in pairs if i < len(labels)]
            agree.append(np.mean(same))
    shares = votes[[0, 1, 2, 4]].sum(axis=0) / 12
    chance = (shares**2).sum()
    assert agreement(votes) == {
        "images": 4,  # one vote agrees with none
        "votes": 3,
        "pairs": pytest.approx(np.mean(agree)),
        "unanimous": 0.25,
        "kappa": pytest.approx((np.mean(agree) - chance) / (1 - chance)),
    }


def test_what_agreement_is_not_known() -> None:
    assert agreement(np.eye(3)) is None
    assert agreement(np.full((4, 2), 0.5)) is None
    one_class = agreement(np.array([[2, 0], [3, 0]]))
    assert one_class is not None and one_class["kappa"] is None and one_class["pairs"] == 1


def test_annotators_who_disagree_are_a_ranking() -> None:
    belief = [[0.9, 0.1], [0.2, 0.8], [0.7, 0.3]]
    found = findings(belief, [0, 0, 0], clean=[0, 1, 0])
    assert "annotators' disagreement" not in suspicions(found)
    found.arrays["votes"] = np.array([[3, 0], [2, 1], [2, 0]], np.float32)
    measured = detection_metrics(found)
    assert measured is not None and measured["annotators' disagreement"]["auroc"] == 1
    assert estimates(found)["agreement"]["images"] == 3


@pytest.mark.parametrize("clean", [None, [0, 1], [1, 0]])
def test_nothing_to_detect(clean: list[int] | None) -> None:
    assert detection_metrics(findings(np.eye(2), [0, 1], clean=clean)) is None


def test_without_cleanlab_its_row_says_so() -> None:
    found = detection_metrics(findings([[0.9, 0.1], [0.2, 0.8]], [0, 0], clean=[0, 1]))
    assert found is not None
    assert found["confident learning"] == {"unavailable": "cleanlab is not installed"}


@pytest.mark.slow
def test_confident_learning_puts_what_cleanlab_flags_first() -> None:
    filter_module = pytest.importorskip("cleanlab.filter")
    rank_module = pytest.importorskip("cleanlab.rank")
    random = np.random.default_rng(5)
    clean = random.integers(0, 4, 400)
    labels = np.where(random.random(400) < 0.3, random.integers(0, 4, 400), clean)
    sure = np.where(clean < 2, 0.3, 0.8)[:, None]  # the network is less sure of some classes
    probabilities = sure * np.eye(4)[clean] + (1 - sure) * random.dirichlet(np.ones(4), 400)
    flagged = filter_module.find_label_issues(labels, probabilities, n_jobs=1)
    margin = rank_module.get_label_quality_scores(labels, probabilities, method="normalized_margin")
    assert margin[flagged].max() > margin[~flagged].min()  # the margin alone says otherwise
    score = confident_learning(labels, probabilities)
    assert not isinstance(score, str)
    assert score[flagged].min() > score[~flagged].max()
    for part in (flagged, ~flagged):
        assert (score[part].argsort() == (-margin[part]).argsort()).all()
    assert roc_auc_score(clean != labels, score) > 0.9


@pytest.mark.slow
def test_confident_learning_says_why_it_cannot() -> None:
    pytest.importorskip("cleanlab")
    answer = confident_learning(np.zeros(5, np.int64), np.full((4, 2), 0.5))
    assert isinstance(answer, str) and answer.startswith("cleanlab refuses: ")
