import inspect
import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers.posterior import reference_targets

from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.posterior import Posterior, SparsePosterior, override_time
from noisybsd.methods.registry import options

N, K = 5, 4
LABELS = torch.tensor([0, 1, 2, 3, 0])


def predictions(visits: int, n: int = N, seed: int = 0) -> torch.Tensor:
    """(T,N,K) random class distributions."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(visits, n, K, generator=generator).softmax(dim=-1)


def visited(posterior: Posterior, p: torch.Tensor) -> list[torch.Tensor]:
    """The targets (N,K) after each visit of all samples."""
    index = torch.arange(p.shape[1])
    targets = []
    for row in p:
        posterior.observe(index, row)
        targets.append(posterior.mean(index))
    return targets


@pytest.mark.parametrize("state", [Posterior, SparsePosterior])
def test_defaults_are_those_of_the_target_rule(state: type) -> None:
    rule = {name: option.default for name, option in options(PosteriorTargets).items()}
    rule["prior_floor"] = PosteriorTargets.PRIOR_FLOOR
    for name, parameter in inspect.signature(state).parameters.items():
        if name != "votes" and parameter.default is not inspect.Parameter.empty:
            assert rule[name] == parameter.default, name


@pytest.mark.parametrize("c", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("gamma", [0.5, 0.95, 1.0])
def test_equals_the_slow_reference_at_every_visit(c: float, gamma: float) -> None:
    p = predictions(12)
    fast = visited(Posterior(LABELS, K, prior_strength=c, prior_floor=1e-3, discount=gamma), p)
    for i in range(N):
        slow = reference_targets(
            int(LABELS[i]),
            p[:, i].double().tolist(),
            # the prior of a label weaker than the floor is flat
            prior_strength=max(c, 1e-3),
            prior_floor=1e-3,
            discount=gamma,
        )
        torch.testing.assert_close(torch.stack(fast)[:, i].double(), torch.tensor(slow).double())


def votes_of(*rows: list[float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize("c", [0.0, 1e-4, 3.0, 8.0])
@pytest.mark.parametrize("state", [Posterior, partial(SparsePosterior, top_k=3)])
def test_one_vote_is_the_given_label_bit_for_bit(state: Any, c: float) -> None:
    votes = torch.nn.functional.one_hot(LABELS, K).float()
    pair = state(LABELS, K, prior_strength=c), state(LABELS, K, prior_strength=c, votes=votes)
    for p in predictions(6):
        for posterior in pair:
            posterior.observe(torch.arange(N), p)
        assert torch.equal(pair[0].mean(), pair[1].mean())
        assert torch.equal(pair[0].strength(), pair[1].strength())


def test_every_vote_is_worth_c_in_the_prior() -> None:
    votes = votes_of([3, 0, 0, 0], [1, 2, 0, 0], [0, 0.25, 0.75, 0])
    posterior = Posterior(torch.tensor([0, 1, 2]), K, votes=votes, prior_strength=4, prior_floor=1)
    assert posterior.alpha.tolist() == [[12, 1, 1, 1], [4, 8, 1, 1], [1, 1, 3, 1]]
    assert posterior.suggested().tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_votes_that_agree_are_overridden_as_late_as_a_prior_of_their_sum(count: int) -> None:
    c, gamma = 8.0, 0.8
    prior = {"prior_strength": c, "prior_floor": 1e-9, "discount": gamma}
    posterior = Posterior(torch.tensor([0]), 2, votes=votes_of([count, 0]), **prior)
    against = torch.tensor([[0.0, 1.0]])
    visits = 0
    while posterior.suggested().item() == 0:
        posterior.observe(torch.tensor([0]), against)
        visits += 1
    assert visits == override_time(count * c, gamma)  # 5, 7, 8, 13
    if count == 3:
        assert visits == 8


@pytest.mark.parametrize("top_k", [2, 3, K])
def test_sparse_votes_are_the_dense_ones(top_k: int) -> None:
    """The given label first, then the classes with the most votes; the sum is the same."""
    votes = votes_of([3, 0, 2, 1], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 2], [1, 0, 0, 1])
    dense = Posterior(LABELS, K, votes=votes)
    sparse = SparsePosterior(LABELS, K, top_k=top_k, votes=votes)
    torch.testing.assert_close(sparse.strength(), dense.strength())
    assert torch.equal(sparse.suggested(), LABELS) and torch.equal(
        sparse.classes[:, 0], LABELS.int()
    )
    assert sparse.classes[0, :2].tolist() == [0, 2]
    torch.testing.assert_close(sparse.mass[0, :2], dense.alpha[0, [0, 2]])
    if top_k == K:
        torch.testing.assert_close(sparse.mean(), dense.mean())


def test_reference_by_hand() -> None:
    # alpha0 = (2, 1); gamma 1/2; p = (0, 1): alpha1 = (1, 1.5)
    targets = reference_targets(0, [[0.0, 1.0]], prior_strength=2.0, prior_floor=1.0, discount=0.5)
    assert targets == [[0.4, 0.6]]


def test_the_prior_is_the_label() -> None:
    posterior = Posterior(LABELS, K, prior_strength=3.0, prior_floor=1e-9)
    one_hot = torch.nn.functional.one_hot(LABELS, K).float()
    torch.testing.assert_close(posterior.mean(), one_hot)
    torch.testing.assert_close(posterior.strength(), torch.full((N,), 3.0))


def test_moves_towards_the_prediction_by_one_over_strength() -> None:
    """y^t = y^{t-1} + (p^t - y^{t-1}) / S_t."""
    posterior = Posterior(LABELS, K, prior_strength=7.0, discount=0.9)
    index = torch.arange(N)
    for p in predictions(10):
        before = posterior.mean()
        posterior.observe(index, p)
        expected = before + (p - before) / posterior.strength()[:, None]
        torch.testing.assert_close(posterior.mean(), expected)


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_strength_has_its_closed_form(gamma: float) -> None:
    c, t = 6.0, 9
    posterior = Posterior(LABELS, K, prior_strength=c, prior_floor=1e-12, discount=gamma)
    visited(posterior, predictions(t))
    expected = c + t if gamma == 1 else gamma**t * c + (1 - gamma**t) / (1 - gamma)
    torch.testing.assert_close(posterior.strength(), torch.full((N,), expected))


def test_is_selcs_moving_average_at_c_equal_one_over_one_minus_gamma() -> None:
    gamma = 0.9
    p = predictions(15)
    posterior = Posterior(
        LABELS, K, prior_strength=1 / (1 - gamma), prior_floor=1e-12, discount=gamma
    )
    average = torch.nn.functional.one_hot(LABELS, K).float()
    for row, target in zip(p, visited(posterior, p), strict=True):
        average = gamma * average + (1 - gamma) * row  # SELC, eq. for the ensemble prediction
        torch.testing.assert_close(target, average)


def test_is_bias_corrected_temporal_ensembling_at_c_zero() -> None:
    gamma = 0.7
    p = predictions(8)
    posterior = Posterior(LABELS, K, prior_strength=0.0, prior_floor=1e-12, discount=gamma)
    ensemble = torch.zeros(N, K)
    for t, (row, target) in enumerate(zip(p, visited(posterior, p), strict=True), start=1):
        ensemble = gamma * ensemble + (1 - gamma) * row  # Laine & Aila 2017, algorithm 1
        torch.testing.assert_close(target, ensemble / (1 - gamma**t))


@pytest.mark.parametrize("c", [0.5, 4.0, 10.0, 30.5])
@pytest.mark.parametrize("gamma", [0.8, 0.95, 0.99, 1.0])
def test_override_time_is_when_the_target_flips(c: float, gamma: float) -> None:
    posterior = Posterior(torch.tensor([0]), 2, prior_strength=c, prior_floor=1e-9, discount=gamma)
    contrary = torch.tensor([[0.0, 1.0]])
    visits = 0
    while posterior.mean().argmax() == 0:
        posterior.observe(torch.tensor([0]), contrary)
        visits += 1
    assert visits == override_time(c, gamma)


def test_override_time_at_a_tie_needs_one_more_visit() -> None:
    assert override_time(4.0, 1.0) == 5  # t > c


def test_rows_sum_to_one_and_stay_positive() -> None:
    posterior = Posterior(LABELS, K, prior_strength=10, discount=0.5)
    targets = visited(posterior, predictions(300))[-1]
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(N))
    assert (targets > 0).all()


def test_only_the_observed_rows_change() -> None:
    posterior = Posterior(LABELS, K)
    before = posterior.alpha.clone()
    posterior.observe(torch.tensor([3, 1]), predictions(1, 2)[0])
    changed = (posterior.alpha != before).any(dim=1)
    assert changed.tolist() == [False, True, False, True, False]


def test_is_symmetric_under_a_renaming_of_classes() -> None:
    renamed = torch.tensor([2, 0, 3, 1])  # old class k is called renamed[k]
    old_name = renamed.argsort()
    p = predictions(6)
    plain = visited(Posterior(LABELS, K), p)[-1]
    other = visited(Posterior(renamed[LABELS], K), p[..., old_name])[-1]
    torch.testing.assert_close(other, plain[:, old_name])


def test_takes_no_gradient_and_counts_bf16_evidence_in_float32() -> None:
    posterior = Posterior(LABELS, K)
    logits = torch.randn(N, K, requires_grad=True)
    posterior.observe(torch.arange(N), logits.softmax(dim=1).bfloat16())
    assert posterior.alpha.dtype == torch.float32
    assert not posterior.mean().requires_grad


def test_state_is_in_the_checkpoint() -> None:
    posterior = Posterior(LABELS, K)
    visited(posterior, predictions(3))
    other = Posterior(LABELS.flip(0), K)
    other.load_state_dict(posterior.state_dict())
    assert torch.equal(other.mean(), posterior.mean())
    assert math.isclose(float(other.strength()[0]), float(posterior.strength()[0]))


def test_dense_suggestion_and_probability_are_of_the_mean() -> None:
    posterior = Posterior(LABELS, K)
    mean = visited(posterior, predictions(20))[-1]
    assert torch.equal(posterior.suggested(), mean.argmax(dim=1))
    torch.testing.assert_close(posterior.probability(LABELS), mean[torch.arange(N), LABELS])


# --- few classes of many ---

MANY = 50


def realistic(
    visits: int, n: int = 64, seed: int = 0, noise: float = 0.4
) -> tuple[torch.Tensor, ...]:
    """Labels (n,), 40 % wrong, and predictions (T,n,MANY) that grow confident of the clean class.

    Each sample has a few classes that look alike, and each visit noise of its own.
    """
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randint(MANY, (n,), generator=generator)
    wrong = torch.rand(n, generator=generator) < noise
    labels = torch.where(wrong, torch.randint(MANY, (n,), generator=generator), clean)
    alike = 2 * torch.randn(n, MANY, generator=generator)
    alike[torch.arange(n), clean] += 3
    growth = torch.linspace(0.2, 2.5, visits)[:, None, None]
    logits = growth * (alike + 0.7 * torch.randn(visits, n, MANY, generator=generator))
    return labels, logits.softmax(dim=-1)


def both(
    labels: torch.Tensor, num_classes: int, top_k: int, **prior: float
) -> tuple[Posterior, SparsePosterior]:
    return Posterior(labels, num_classes, **prior), SparsePosterior(
        labels, num_classes, top_k=top_k, **prior
    )


@pytest.mark.parametrize("gamma", [0.8, 1.0])
def test_sparse_with_all_classes_is_the_dense_one(gamma: float) -> None:
    dense, sparse = both(LABELS, K, K, prior_strength=3.0, discount=gamma)
    assert torch.equal(sparse.mean(), dense.mean())
    p = predictions(12)
    for a, b in zip(visited(dense, p), visited(sparse, p), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(sparse.suggested(), dense.suggested())


@pytest.mark.parametrize("top_k", [2, K])
def test_a_part_of_a_visit_keeps_more_and_adds_less(top_k: int) -> None:
    """alpha <- gamma^w alpha + w e, dense and sparse; w = 1 is a whole visit, w = 0 none."""
    p, w = predictions(1)[0], torch.tensor([0.0, 0.3, 0.5, 0.9, 1.0])
    dense, sparse = both(LABELS, K, top_k, prior_strength=3.0, discount=0.8)
    before, whole = dense.alpha.clone(), Posterior(LABELS, K, prior_strength=3.0, discount=0.8)
    for posterior in (dense, sparse):
        posterior.observe(torch.arange(N), p, w)
    whole.observe(torch.arange(N), p)
    torch.testing.assert_close(dense.alpha, 0.8 ** w[:, None] * before + w[:, None] * p)
    assert torch.equal(dense.alpha[0], before[0])
    torch.testing.assert_close(dense.alpha[-1], whole.alpha[-1])
    torch.testing.assert_close(sparse.strength(), dense.strength())
    torch.testing.assert_close(sparse.mass[:, 0], dense.alpha[torch.arange(N), LABELS])
    if top_k == K:
        assert torch.equal(sparse.mean(), dense.mean())


@pytest.mark.parametrize("top_k", [2, 5, 16, 49])
def test_sparse_loses_no_mass_and_nothing_of_the_given_label(top_k: int) -> None:
    labels, p = realistic(60)
    dense, sparse = both(labels, MANY, top_k, discount=0.9)
    index = torch.arange(len(labels))
    for row in p:
        dense.observe(index, row)
        sparse.observe(index, row)
        torch.testing.assert_close(sparse.strength(), dense.strength())
        torch.testing.assert_close(sparse.mass[:, 0], dense.alpha[index, labels])
        assert torch.equal(sparse.classes[:, 0].long(), labels)
        assert (sparse.rest >= 0).all() and (sparse.mass > 0).all()
        assert all(len(set(classes)) == top_k for classes in sparse.classes.tolist())


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize("top_k", [2, 5, 16])
def test_sparse_keeps_within_its_bound(top_k: int, gamma: float) -> None:
    labels, p = realistic(60)
    dense, sparse = both(labels, MANY, top_k, discount=gamma)
    index, left_by_prior = torch.arange(len(labels)), sparse.rest.clone()
    for row in p:
        dense.observe(index, row)
        sparse.observe(index, row)
        left_by_prior *= gamma
        distance = (sparse.mean(index) - dense.mean(index)).abs().sum(dim=1) / 2
        bound = (sparse.rest - left_by_prior) / sparse.strength()
        assert (distance <= bound + 1e-5).all()
        assert torch.equal(sparse.suggested(), sparse.mean(index).argmax(dim=1))


def test_sparse_error_is_small_on_predictions_as_they_come() -> None:
    labels, p = realistic(100, n=256)
    dense, sparse = both(labels, MANY, 10, discount=0.95)
    last, exact = visited(sparse, p)[-1], visited(dense, p)[-1]
    assert ((last - exact).abs().sum(dim=1) / 2).mean() < 0.03
    assert (last.argmax(dim=1) == exact.argmax(dim=1)).float().mean() > 0.97


def test_sparse_is_exact_while_few_classes_are_predicted() -> None:
    """At most k-1 classes beside the given label, whichever they are and whenever they come."""
    labels, top_k = torch.tensor([7, 30, 0, 49]), 4
    dense, sparse = both(labels, MANY, top_k, prior_floor=0.01, discount=0.9)
    generator = torch.Generator().manual_seed(0)
    predicted = torch.tensor([[40, 8, 20], [1, 2, 3], [44, 33, 1], [0, 11, 5]])
    index = torch.arange(4)
    for visit in range(30):
        some = torch.rand(4, 3, generator=generator).softmax(dim=1)
        if visit < 10:
            some[:, 1:] = 0  # the others come later
        p = torch.zeros(4, MANY).scatter(1, predicted, some / some.sum(dim=1, keepdim=True))
        dense.observe(index, p)
        sparse.observe(index, p)
        torch.testing.assert_close(sparse.mean(), dense.mean())


@pytest.mark.parametrize("c", [0.5, 10.0, 30.5])
@pytest.mark.parametrize("gamma", [0.8, 0.95, 1.0])
def test_sparse_override_time_is_the_dense_one(c: float, gamma: float) -> None:
    prior = {"prior_strength": c, "prior_floor": 1e-9, "discount": gamma}
    sparse = SparsePosterior(torch.tensor([3]), MANY, top_k=2, **prior)
    contrary = torch.zeros(1, MANY)
    contrary[0, 40] = 1  # not among the first classes kept
    visits = 0
    while sparse.suggested() == 3:
        sparse.observe(torch.tensor([0]), contrary)
        visits += 1
    assert visits == override_time(c, gamma)
    assert sparse.suggested() == 40


def test_sparse_probability_is_of_the_mean_for_classes_kept_and_not() -> None:
    labels, p = realistic(20)
    sparse = SparsePosterior(labels, MANY, top_k=3)
    mean = visited(sparse, p)[-1]
    for asked in (labels, (labels + 1) % MANY, sparse.suggested()):
        torch.testing.assert_close(
            sparse.probability(asked), mean[torch.arange(len(labels)), asked]
        )


def test_sparse_state_is_in_the_checkpoint_and_only_observed_rows_change() -> None:
    labels, p = realistic(5)
    sparse = SparsePosterior(labels, MANY, top_k=4)
    visited(sparse, p)
    other = SparsePosterior(labels.flip(0), MANY, top_k=4)
    other.load_state_dict(sparse.state_dict())
    assert torch.equal(other.mean(), sparse.mean())
    other.observe(torch.tensor([3, 1]), p[0, :2])
    changed = (other.mean() != sparse.mean()).any(dim=1).nonzero().squeeze(1)
    assert changed.tolist() == [1, 3]
    assert sum(x.nbytes for x in sparse.state_dict().values()) == len(labels) * (8 * 4 + 4)
