import math

import pytest
import torch

from noisybsd.posterior import Posterior, override_time, reference_targets

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
