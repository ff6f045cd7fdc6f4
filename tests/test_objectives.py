import pytest
import torch
import torch.nn.functional as F

from noisybsd.config import build_config
from noisybsd.errors import UserError
from noisybsd.objectives import (
    Alignment,
    Batch,
    CrossEntropy,
    LabelTargets,
    PosteriorTargets,
    Task,
    sharpened,
)
from noisybsd.parts import TargetRule

N, K, B, V = 8, 3, 4, 2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
INDEX = torch.tensor([5, 0, 7, 2])


def task(**settings: object) -> Task:
    return Task(LABELS, K, build_config({"recipe": "test", "method": "bsd", **settings}))


def batch(targets: torch.Tensor, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(V, B, K, generator=generator, requires_grad=True)
    return Batch(INDEX, LABELS[INDEX], logits, torch.zeros(V * B, 2), targets)


def test_cross_entropy_is_the_mean_over_views_and_samples() -> None:
    targets = torch.rand(B, K).softmax(dim=1)
    one = batch(targets)
    slow = 0.0
    for v in range(V):
        for b in range(B):
            log_p = one.logits[v, b].detach().log_softmax(dim=0)
            slow -= sum(float(targets[b, k] * log_p[k]) for k in range(K)) / (V * B)
    assert float(CrossEntropy(task())(one)) == pytest.approx(slow, rel=1e-5)


def test_cross_entropy_to_labels_is_torchs_own() -> None:
    one = batch(LabelTargets(task()).targets(INDEX))
    own = F.cross_entropy(one.logits.flatten(0, 1), LABELS[INDEX].repeat(V))
    torch.testing.assert_close(CrossEntropy(task())(one), own)


def test_label_targets_do_not_move_and_hold_no_belief() -> None:
    rule = LabelTargets(task())
    rule.observe(INDEX, torch.full((1, B, K), 1 / K))
    assert torch.equal(rule.targets(INDEX), F.one_hot(LABELS[INDEX], K).float())
    assert rule.belief() is None and not rule.state_dict()


# neither sharpens nor weighs nor aligns
PAPER = {"temperature": 1, "agreement_temperature": None, "align": False}


def test_posterior_targets_use_the_configured_constants() -> None:
    constants = {"prior_strength": 4, "discount": 0.5, "prior_floor": 0.1, **PAPER}
    rule = PosteriorTargets(task(posterior=constants))
    p = torch.tensor([[0.2, 0.3, 0.5]])
    rule.observe(torch.tensor([0]), p[None])
    alpha = 0.5 * torch.tensor([[4, 0.1, 0.1]]) + p
    torch.testing.assert_close(rule.targets(torch.tensor([0])), alpha / alpha.sum())


@pytest.mark.parametrize("classes", [10, 1000])
def test_the_sharpest_evidence_allowed_is_finite(classes: int) -> None:
    for temperature in (0.1, 0.33, 1):
        nothing_known = torch.full((2, classes), 1 / classes)
        assert torch.equal(sharpened(nothing_known, temperature).isnan().any(), torch.tensor(False))


def test_evidence_is_sharpened_and_sums_to_one() -> None:
    """p_k^(1/T) / sum_j p_j^(1/T): at T = 1/2 the squares, normalised."""
    settings = {**PAPER, "discount": 1.0, "temperature": 0.5}
    rule = PosteriorTargets(task(posterior=settings))
    before = rule.posterior.alpha[0].clone()
    rule.observe(torch.tensor([0]), torch.tensor([[[0.2, 0.3, 0.5]]]))
    squares = torch.tensor([0.04, 0.09, 0.25])
    torch.testing.assert_close(rule.posterior.alpha[0], before + squares / 0.38)


def test_a_visit_counts_as_much_as_the_views_agree() -> None:
    """alpha <- gamma^w alpha + w q, w = <q_weak, q_strong>, both sharpened; a slow loop beside it."""
    settings = {"discount": 0.8, "temperature": 0.5, "agreement_temperature": 0.25, "align": False}
    rule = PosteriorTargets(task(posterior=settings))
    generator = torch.Generator().manual_seed(3)
    probs = torch.randn(2, B, K, generator=generator).mul(2).softmax(dim=-1)
    before = rule.posterior.alpha.clone()
    rule.observe(INDEX, probs)

    def sharp(p: torch.Tensor, temperature: float) -> list[float]:
        powers = [float(x) ** (1 / temperature) for x in p]
        return [x / sum(powers) for x in powers]

    for b, i in enumerate(INDEX.tolist()):
        first, second = sharp(probs[0, b], 0.25), sharp(probs[1, b], 0.25)
        w = sum(x * y for x, y in zip(first, second, strict=True))
        evidence = sharp(probs[0, b], 0.5)
        slow = [0.8**w * float(before[i, k]) + w * evidence[k] for k in range(K)]
        assert rule.posterior.alpha[i].tolist() == pytest.approx(slow, rel=1e-5)


def test_views_that_contradict_each_other_leave_the_belief_as_it_was() -> None:
    rule = PosteriorTargets(task())
    before = rule.posterior.alpha.clone()
    certain = torch.eye(K)[torch.arange(B) % K]
    rule.observe(INDEX, torch.stack([certain, certain.roll(1, dims=1)]))
    assert torch.equal(rule.posterior.alpha, before)
    rule.observe(INDEX, torch.stack([certain, certain]))
    torch.testing.assert_close(rule.posterior.alpha[INDEX], 0.8 * before[INDEX] + certain)


def test_aligned_predictions_against_a_slow_loop() -> None:
    """q_k = p_k h_k / m_k, normalised; m moves to each batch's mean by B / min(320 K, 3 N)."""
    align = Alignment(LABELS, K)  # counts 3, 3, 2
    generator = torch.Generator().manual_seed(0)
    mean = histogram = [3 / 8, 3 / 8, 2 / 8]
    for _ in range(3):
        probs = torch.randn(V, B, K, generator=generator).softmax(dim=-1)
        aligned = align(probs)
        momentum = B / (3 * N)
        batch_mean = [float(probs[0, :, k].mean()) for k in range(K)]
        mean = [m + momentum * (b - m) for m, b in zip(mean, batch_mean, strict=True)]
        for v in range(V):
            for b in range(B):
                scaled = [float(probs[v, b, k]) * histogram[k] / mean[k] for k in range(K)]
                expected = [x / sum(scaled) for x in scaled]
                assert aligned[v, b].tolist() == pytest.approx(expected, rel=1e-5)


def test_alignment_gives_a_crowded_out_class_back_its_share() -> None:
    """A sensor that favours class 0 everywhere is corrected; one that is not biased is left alone."""
    labels = torch.arange(K).repeat(100)
    fair = Alignment(labels, K)
    right = 0.8 * torch.eye(K)[labels] + 0.2 / K
    torch.testing.assert_close(fair(right[None]), right[None])
    align = Alignment(labels, K)
    biased = right * torch.tensor([1.0, 0.5, 0.02])
    biased = biased / biased.sum(dim=1, keepdim=True)
    assert (biased.argmax(dim=1) == labels).float().mean() < 0.7
    for _ in range(50):
        aligned = align(biased[None])[0]
    assert torch.equal(aligned.argmax(dim=1), labels)
    off, before = (abs(p.mean(dim=0) - 1 / K).max() for p in (aligned, biased))
    assert off < before / 2


def test_alignment_has_a_window_and_a_limit() -> None:
    many = torch.arange(K).repeat(1000)
    assert Alignment(many, K).window == 320 * K and Alignment(LABELS, K).window == 3 * N
    align = Alignment(many, K)
    align.mean.copy_(torch.tensor([0.5, 0.5 - 1e-7, 1e-7]))  # nothing is predicted to be of class 2
    unsure = torch.tensor([0.95, 0.045, 0.005]).expand(1, B, K)
    assert align(unsure)[0, 0, 2] < 0.1  # one faint prediction does not become its own proof


def test_alignment_knows_how_often_classes_are_visited() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)
    assert Alignment(labels, 3).histogram.tolist() == pytest.approx([6 / 12, 2 / 12, 4 / 12])
    assert Alignment(labels, 3, balanced=3).histogram.tolist() == pytest.approx(
        [3 / 8, 2 / 8, 3 / 8]
    )
    settings = {"data": {"balanced": 2}}
    rule = PosteriorTargets(task(**settings))
    assert rule.align is not None and rule.align.histogram.tolist() == pytest.approx([1 / 3] * 3)


def test_alignment_survives_classes_without_labels_and_certain_predictions() -> None:
    align = Alignment(torch.zeros(N, dtype=torch.long), K)
    certain = torch.eye(K)[torch.arange(B) % K]
    for _ in range(3):
        aligned = align(certain[None])
        assert torch.equal(aligned, certain[None])  # nothing else has any probability
    rule = PosteriorTargets(Task(torch.zeros(N, dtype=torch.long), K, task().config))
    rule.observe(INDEX, torch.stack([certain, certain]))
    assert rule.posterior.alpha.isfinite().all()


def test_neighbours_are_a_second_sensor() -> None:
    """alpha <- gamma * alpha + p + kappa * votes, for the observed rows alone."""
    kappa = 0.7
    settings = {"posterior": {"discount": 0.9, **PAPER}, "neighbours": {"weight": kappa}}
    rule, without = PosteriorTargets(task(**settings)), PosteriorTargets(task())
    votes = torch.rand(N, K).softmax(dim=1)
    p = torch.rand(B, K).softmax(dim=1)
    before = rule.posterior.alpha.clone()

    rule.observe(INDEX, p[None])  # before any search the neighbours say nothing
    torch.testing.assert_close(rule.posterior.alpha[INDEX], 0.9 * before[INDEX] + p)
    before = rule.posterior.alpha.clone()
    rule.observe_neighbours(votes)
    assert torch.equal(rule.posterior.alpha, before)  # evidence counts at visits only
    rule.observe(INDEX, p[None])
    expected = before.clone()
    expected[INDEX] = 0.9 * before[INDEX] + p + kappa * votes[INDEX]
    torch.testing.assert_close(rule.posterior.alpha, expected)

    without.observe_neighbours(votes)
    assert "votes" in rule.state_dict() and "votes" not in without.state_dict()


def test_top_k_makes_the_state_sparse_where_there_are_more_classes() -> None:
    sparse = PosteriorTargets(task(posterior={"top_k": 2, "align": False}))
    assert {name: x.shape for name, x in sparse.state_dict().items()} == {
        "posterior.classes": (N, 2),
        "posterior.mass": (N, 2),
        "posterior.rest": (N,),
    }
    dense = PosteriorTargets(task(posterior={"top_k": K, "align": False}))
    assert list(dense.state_dict()) == ["posterior.alpha"]
    probs = torch.eye(K)[LABELS[INDEX]]  # of two classes at most, so that both agree
    for rule in (sparse, dense):
        rule.observe(INDEX, probs.roll(1, dims=1)[None])
    torch.testing.assert_close(sparse.targets(INDEX), dense.targets(INDEX))
    torch.testing.assert_close(sparse.belief(), dense.belief())


@pytest.mark.parametrize("top_k", [None, 2])
def test_suggestion_and_probability_are_of_the_belief(top_k: int | None) -> None:
    rule = PosteriorTargets(task(posterior={"top_k": top_k, "prior_strength": 0.1}))
    p = torch.rand(1, B, K, generator=torch.Generator().manual_seed(1)).softmax(dim=-1)
    rule.observe(INDEX, p)
    belief = rule.belief()
    assert belief is not None
    assert torch.equal(rule.suggested(), belief.argmax(dim=1))  # type: ignore[arg-type]
    torch.testing.assert_close(rule.probability(LABELS), belief[torch.arange(N), LABELS])
    # what every rule can say that holds a belief, and one that holds none cannot
    torch.testing.assert_close(TargetRule.probability(rule, LABELS), rule.probability(LABELS))
    assert torch.equal(TargetRule.suggested(rule), rule.suggested())  # type: ignore[arg-type]
    assert LabelTargets(task()).suggested() is None
    assert LabelTargets(task()).probability(LABELS) is None


def test_neighbours_as_evidence_need_a_dense_belief() -> None:
    with pytest.raises(UserError, match=r"use posterior\.top_k=null, got 5"):
        task(neighbours={"weight": 1.0}, posterior={"top_k": 5})
