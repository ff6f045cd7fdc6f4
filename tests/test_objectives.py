import pytest
import torch
import torch.nn.functional as F

from noisybsd.config import build_config
from noisybsd.errors import UserError
from noisybsd.objectives import Batch, CrossEntropy, LabelTargets, PosteriorTargets, Task
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


PAPER = {"temperature": 1, "agreement_temperature": None}  # neither sharpens nor weighs


def test_posterior_targets_use_the_configured_constants() -> None:
    constants = {"prior_strength": 4, "discount": 0.5, "prior_floor": 0.1, **PAPER}
    rule = PosteriorTargets(task(posterior=constants))
    p = torch.tensor([[0.2, 0.3, 0.5]])
    rule.observe(torch.tensor([0]), p[None])
    alpha = 0.5 * torch.tensor([[4, 0.1, 0.1]]) + p
    torch.testing.assert_close(rule.targets(torch.tensor([0])), alpha / alpha.sum())


def test_evidence_is_sharpened_and_sums_to_one() -> None:
    """p_k^(1/T) / sum_j p_j^(1/T): at T = 1/2 the squares, normalised."""
    settings = {"discount": 1.0, "temperature": 0.5, "agreement_temperature": None}
    rule = PosteriorTargets(task(posterior=settings))
    before = rule.posterior.alpha[0].clone()
    rule.observe(torch.tensor([0]), torch.tensor([[[0.2, 0.3, 0.5]]]))
    squares = torch.tensor([0.04, 0.09, 0.25])
    torch.testing.assert_close(rule.posterior.alpha[0], before + squares / 0.38)


def test_a_visit_counts_as_much_as_the_views_agree() -> None:
    """alpha <- gamma^w alpha + w q, w = <q_weak, q_strong>, both sharpened; a slow loop beside it."""
    settings = {"discount": 0.8, "temperature": 0.5, "agreement_temperature": 0.25}
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
    torch.testing.assert_close(rule.posterior.alpha[INDEX], 0.95 * before[INDEX] + certain)


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
    sparse = PosteriorTargets(task(posterior={"top_k": 2}))
    assert {name: x.shape for name, x in sparse.state_dict().items()} == {
        "posterior.classes": (N, 2),
        "posterior.mass": (N, 2),
        "posterior.rest": (N,),
    }
    dense = PosteriorTargets(task(posterior={"top_k": K}))
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
