from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from noisybsd.config import build_config
from noisybsd.engine.trainer import build_task
from noisybsd.errors import UserError
from noisybsd.methods.bsd import Alignment, LabelNoise, PosteriorTargets, class_shares, sharpened
from noisybsd.methods.parts import Batch, TargetRule, Task, cross_entropy
from noisybsd.methods.plain import CrossEntropy, LabelTargets
from noisybsd.methods.registry import build_rule

N, K, B, V = 8, 3, 4, 2
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])
INDEX = torch.tensor([5, 0, 7, 2])


def task(**settings: object) -> Task:
    config = build_config({"recipe": "test", "method": "bsd_plus_one_view", **settings})
    return build_task(config, LABELS, K)


def posterior_rule(
    of: Task | None = None, constants: dict[str, Any] | None = None, **options: Any
) -> PosteriorTargets:
    """The rule with other options, and with other values of its class's constants."""
    variant = type("Variant", (PosteriorTargets,), constants or {})
    return variant(of or task(), **options)


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
    assert CrossEntropy(task())(one).item() == pytest.approx(slow, rel=1e-5)


def test_cross_entropy_refuses_labels_and_targets_of_another_shape() -> None:
    logits = torch.randn(2, 4, 4)
    for targets in (torch.tensor([0, 1, 2, 0]), torch.ones(4, 3), torch.ones(3, 4)):
        with pytest.raises(
            ValueError, match=r"targets: got .* valid: probabilities of shape \(4, 4\)"
        ):
            cross_entropy(logits, targets)


def test_cross_entropy_to_labels_is_torchs_own() -> None:
    one = batch(LabelTargets(task()).targets(INDEX))
    own = F.cross_entropy(one.logits.flatten(0, 1), LABELS[INDEX].repeat(V))
    torch.testing.assert_close(CrossEntropy(task())(one), own)


def test_label_targets_do_not_move_and_hold_no_belief() -> None:
    rule = LabelTargets(task())
    rule.observe(INDEX, torch.full((1, B, K), 1 / K))
    assert torch.equal(rule.targets(INDEX), F.one_hot(LABELS[INDEX], K).float())
    assert rule.belief() is None and not rule.state_dict()


# no step but the recursion itself
PAPER = {"align": False, "sharpen": False, "label_evidence": False, "weigh_visits": False}


def test_posterior_targets_use_their_options() -> None:
    rule = posterior_rule(constants={"PRIOR_FLOOR": 0.1}, prior_strength=4, discount=0.5, **PAPER)
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
    sharp = PAPER | {"sharpen": True}
    rule = posterior_rule(constants={"EVIDENCE_TEMPERATURE": 0.5}, discount=1.0, **sharp)
    before = rule.posterior.alpha[0].clone()
    rule.observe(torch.tensor([0]), torch.tensor([[[0.2, 0.3, 0.5]]]))
    squares = torch.tensor([0.04, 0.09, 0.25])
    torch.testing.assert_close(rule.posterior.alpha[0], before + squares / 0.38)


def test_a_visit_counts_as_much_as_the_views_agree() -> None:
    """alpha <- gamma^w alpha + w q, w = <q_weak, q_strong>, both sharpened; a slow loop beside it."""
    steps = PAPER | {"sharpen": True, "weigh_visits": True}
    constants = {"EVIDENCE_TEMPERATURE": 0.5, "AGREEMENT_TEMPERATURE": 0.25}
    rule = posterior_rule(constants=constants, discount=0.8, **steps)
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


def test_in_a_short_run_a_visit_is_as_many_as_a_long_one_would_have() -> None:
    """With 20 epochs alpha <- gamma^(2w) alpha + 2w q; from 40 on nothing changes, nor below 16."""
    probs = torch.randn(2, B, K, generator=torch.Generator().manual_seed(3)).softmax(dim=-1)
    steps = PAPER | {"weigh_visits": True}
    for epochs, pace in ((1, 2.5), (16, 2.5), (20, 2.0), (40, 1.0), (300, 1.0)):
        rule = posterior_rule(task(epochs=epochs), **steps)
        before = rule.posterior.alpha[INDEX].clone()
        rule.observe(INDEX, probs)
        views = sharpened(probs, 0.25)
        w = pace * (views[0] * views[1]).sum(dim=1, keepdim=True)
        torch.testing.assert_close(rule.posterior.alpha[INDEX], 0.8**w * before + w * probs[0])
    plain = posterior_rule(task(epochs=10), **PAPER)
    before = plain.posterior.alpha[INDEX].clone()
    plain.observe(INDEX, probs)
    torch.testing.assert_close(plain.posterior.alpha[INDEX], 0.8 * before + probs[0])


def test_views_that_contradict_each_other_leave_the_belief_as_it_was() -> None:
    rule = PosteriorTargets(task())
    before = rule.posterior.alpha.clone()
    certain = torch.eye(K)[torch.arange(B) % K]
    rule.observe(INDEX, torch.stack([certain, certain.roll(1, dims=1)]))
    assert torch.equal(rule.posterior.alpha, before)
    rule.observe(INDEX, torch.stack([certain, certain]))
    torch.testing.assert_close(rule.posterior.alpha[INDEX], 0.8 * before[INDEX] + certain)


def alignment_to(labels: torch.Tensor) -> Alignment:
    return Alignment(*class_shares(labels, K, None))


def noise_of(labels: torch.Tensor) -> LabelNoise:
    return LabelNoise(labels, *class_shares(labels, K, None))


def observed_and_aligned(alignment: Alignment, p: torch.Tensor) -> torch.Tensor:
    alignment.observe(p)
    return alignment(p)


def test_running_means_against_a_slow_loop() -> None:
    """A batch of B moves both means by B / min(320 K, 3 N) of the way.

    Alignment: p_k h_k / m_k, normalised, m the mean prediction. Label noise: 0.9 P(g | k) + 0.1 h_g, from the
    mean of p_k [label = g].
    """
    alignment, noise = alignment_to(LABELS), noise_of(LABELS)  # counts 3, 3, 2
    generator = torch.Generator().manual_seed(0)
    h = [3 / 8, 3 / 8, 2 / 8]
    m = list(h)
    joint = [[h[k] * h[g] for g in range(K)] for k in range(K)]
    for _ in range(3):
        probs = torch.randn(B, K, generator=generator).softmax(dim=-1)
        alignment.observe(probs)
        noise.observe(INDEX, probs)
        for k in range(K):
            m[k] += B / (3 * N) * (sum(float(probs[b, k]) for b in range(B)) / B - m[k])
            for g in range(K):
                here = [float(probs[b, k]) for b in range(B) if LABELS[INDEX[b]] == g]
                joint[k][g] += B / (3 * N) * (sum(here) / B - joint[k][g])
        aligned, likelihood = alignment(probs), noise.likelihood(INDEX)
        for b, g in enumerate(LABELS[INDEX].tolist()):
            scaled = [float(probs[b, k]) * h[k] / m[k] for k in range(K)]
            assert aligned[b].tolist() == pytest.approx([x / sum(scaled) for x in scaled], rel=1e-5)
            expected = [0.9 * joint[k][g] / sum(joint[k]) + 0.1 * h[g] for k in range(K)]
            assert likelihood[b].tolist() == pytest.approx(expected, rel=1e-5)


VOTES = torch.tensor([[1, 0, 2], [0, 0, 1], [0.5, 0.25, 0.25]])  # of the samples 0, 1 and 2


def test_several_votes_are_evidence_as_one_label_is() -> None:
    """P(votes | k) = prod_g P(g | k)^(share of g); a sample's mean label counts once in the joint."""
    histogram, index = torch.tensor([0.5, 0.3, 0.2]), torch.arange(3)
    noise = LabelNoise(torch.tensor([2, 2, 0]), histogram, 10, VOTES)
    probs = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    noise.observe(index, probs)
    shares = VOTES / VOTES.sum(dim=1, keepdim=True)
    joint = 0.7 * histogram[:, None] * histogram + 0.3 * (shares.T @ probs) / 3
    torch.testing.assert_close(noise.joint, joint)
    of_vote = 0.9 * joint / joint.sum(dim=0) + 0.1 * histogram[:, None]  # g, k
    for i, share in enumerate(shares):
        slow = (of_vote ** share[:, None]).prod(dim=0)
        torch.testing.assert_close(noise.likelihood(index)[i], slow)


def test_one_vote_has_the_likelihood_of_a_label() -> None:
    votes = F.one_hot(LABELS, K).float()
    shares = class_shares(LABELS, K, None)
    label, vote = LabelNoise(LABELS, *shares), LabelNoise(LABELS, *shares, votes)
    for noise in (label, vote):
        noise.observe(INDEX, torch.rand(B, K, generator=torch.manual_seed(0)).softmax(dim=1))
    assert torch.equal(label.joint, vote.joint)
    torch.testing.assert_close(label.likelihood(INDEX), vote.likelihood(INDEX))


def test_very_many_votes_leave_evidence_finite() -> None:
    votes = torch.tensor([[1e4, 0, 0], [5e3, 5e3, 0]] * 4)
    rule = posterior_rule(replace(task(), votes=votes))
    surely_another = torch.eye(K)[[2] * N]
    for _ in range(5):
        rule.observe(torch.arange(N), surely_another[None])
    assert rule.targets(torch.arange(N)).isfinite().all()


@pytest.mark.parametrize("name", ["labels", "selc", "ps_kd", "temporal_ensemble"])
def test_other_methods_learn_the_mean_of_the_votes(name: str) -> None:
    votes = torch.tensor([[1, 0, 2.0], [0, 1, 0]] * 4)
    rule = build_rule(name, replace(task(), votes=votes), {})
    rule.start_epoch(0)
    targets = rule.targets(torch.tensor([0, 3]))
    torch.testing.assert_close(targets, torch.tensor([[1 / 3, 0, 2 / 3], [0, 1, 0]]))
    assert not [name for name in rule.state_dict() if name.startswith("given")]


def test_the_likelihood_of_labels_finds_the_noise_transition_matrix() -> None:
    """A network that is right in spite of the labels shows how these came to be."""
    generator = torch.Generator().manual_seed(0)
    transition = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]])
    clean = torch.arange(K).repeat(2000)
    labels = torch.multinomial(transition[clean], 1, generator=generator)[:, 0]
    noise = noise_of(labels)
    for index in torch.randperm(len(labels), generator=generator).repeat(2).split(100):
        noise.observe(index, torch.eye(K)[clean[index]])
    of_each_label = torch.stack([labels.eq(g).nonzero()[0, 0] for g in range(K)])
    found = (noise.likelihood(of_each_label).T - 0.1 * noise.histogram) / 0.9
    torch.testing.assert_close(found, transition, atol=0.05, rtol=0)


def test_a_network_that_errs_does_not_take_all_its_errors_for_the_labels() -> None:
    """70 % right and as sure as that, on labels of which 60 % are: by prediction, evidence, or both."""
    generator = torch.Generator().manual_seed(0)

    def drawn(right: float) -> torch.Tensor:
        chances = (right - (1 - right) / (K - 1)) * torch.eye(K) + (1 - right) / (K - 1)
        return torch.multinomial(chances[clean], 1, generator=generator)[:, 0]

    clean = torch.arange(K).repeat(2000)
    labels, guesses = drawn(0.6), drawn(0.7)
    predictions = 0.55 * torch.eye(K)[guesses] + 0.15
    steps = PAPER | {"label_evidence": True}
    found = []
    for share in ({"EVIDENCE_SHARE": 0.0}, {}, {"EVIDENCE_SHARE": 1.0}):
        rule = posterior_rule(replace(task(), labels=labels), share, **steps)
        for index in torch.randperm(len(labels), generator=generator).repeat(8).split(100):
            rule.observe(index, predictions[index][None])
        assert rule.label_noise is not None
        found.append(float(rule.label_noise.joint.trace()))
    by_predictions, ours, by_evidence = found
    # predictions: the labels' 60 % by the network's own; evidence: right, but for the tenth at random
    assert by_predictions == pytest.approx(0.41, abs=0.01)
    assert by_evidence == pytest.approx(0.57, abs=0.02)
    assert by_predictions + 0.02 < ours < by_evidence


def test_labels_say_nothing_of_a_network_that_knows_nothing() -> None:
    likelihood = noise_of(LABELS).likelihood(INDEX)
    torch.testing.assert_close(likelihood, likelihood[:, :1].expand(B, K))


def test_the_label_is_evidence_for_as_much_as_it_is_worth() -> None:
    """q_k ~ p_k P(g | k): an undecided prediction follows the label, a decided one does not."""
    steps = PAPER | {"label_evidence": True}
    labels = torch.arange(K).repeat(100)
    rule = PosteriorTargets(replace(task(), labels=labels), prior_strength=0.01, **steps)
    assert rule.label_noise is not None
    mostly = 0.7 * torch.eye(K) + 0.1  # 80 % of the labels are right
    rule.label_noise.joint.copy_(mostly / K)
    undecided, decided = torch.tensor([0.3, 0.4, 0.3]), torch.tensor([0.01, 0.98, 0.01])
    index = torch.tensor([0, 3])  # both labelled 0
    likelihood = rule.label_noise.likelihood(index)[0]  # as it is before the visit
    rule.observe(index, torch.stack([undecided, decided])[None])
    assert rule.suggested()[index].tolist() == [0, 1]
    expected = undecided * likelihood / (undecided * likelihood).sum()
    alpha = rule.posterior.alpha[0] - 0.8 * torch.tensor([0.01, 1e-3, 1e-3])
    torch.testing.assert_close(alpha, expected, atol=1e-6, rtol=0)


def test_targets_are_sharper_than_the_belief() -> None:
    """y_k^(1/T), normalised: at T = 1/2 the squares; the belief itself stays as it is."""
    rule = posterior_rule(constants={"TARGET_TEMPERATURE": 0.5}, **PAPER | {"sharpen": True})
    rule.posterior.alpha[0] = torch.tensor([3.0, 1.0, 0.0])
    targets = rule.targets(torch.tensor([0]))
    torch.testing.assert_close(targets, torch.tensor([[0.9, 0.1, 0.0]]))
    belief = rule.belief()
    assert belief is not None
    torch.testing.assert_close(belief[0], torch.tensor([0.75, 0.25, 0.0]))


def test_sharp_first_and_as_believed_in_the_end() -> None:
    """Both temperatures rise to 1, in equal ratios, from a half to nine tenths of the run."""
    sharp = {"EVIDENCE_TEMPERATURE": 0.64, "TARGET_TEMPERATURE": 0.16}
    rule = posterior_rule(task(epochs=20), sharp, **PAPER | {"sharpen": True})
    found = []
    for epoch in range(20):
        rule.start_epoch(epoch)
        found.append((rule.temperature, rule.target_temperature))
    assert found[:11] == [(0.64, 0.16)] * 11 and found[18:] == [(1, 1)] * 2
    assert found[14] == pytest.approx((0.8, 0.4))  # half of the way
    assert found == sorted(found)

    rule.start_epoch(14)
    rule.posterior.alpha[0] = torch.tensor([3.0, 1.0, 0.0])
    target = torch.tensor([[3**2.5, 1, 0]]) / (3**2.5 + 1)
    torch.testing.assert_close(rule.targets(torch.tensor([0])), target)
    never = posterior_rule(task(epochs=20), sharp, **PAPER)
    assert (never.temperature, never.target_temperature) == (1, 1)


def test_alignment_gives_a_crowded_out_class_back_its_share() -> None:
    """A sensor that favours class 0 everywhere is corrected; one that is not biased is left alone."""
    labels = torch.arange(K).repeat(100)
    right = 0.8 * torch.eye(K)[labels] + 0.2 / K
    torch.testing.assert_close(observed_and_aligned(alignment_to(labels), right), right)
    alignment = alignment_to(labels)
    biased = right * torch.tensor([1.0, 0.5, 0.02])
    biased = biased / biased.sum(dim=1, keepdim=True)
    assert (biased.argmax(dim=1) == labels).float().mean() < 0.7
    for _ in range(50):
        aligned = observed_and_aligned(alignment, biased)
    assert torch.equal(aligned.argmax(dim=1), labels)
    off, before = (abs(p.mean(dim=0) - 1 / K).max() for p in (aligned, biased))
    assert off < before / 2


def test_alignment_has_a_window_and_a_limit() -> None:
    many = torch.arange(K).repeat(1000)
    assert class_shares(many, K, None)[1] == 320 * K
    assert class_shares(LABELS, K, None)[1] == 3 * N
    alignment = alignment_to(many)
    # nothing is predicted to be of class 2
    alignment.predicted.copy_(torch.tensor([0.5, 0.5 - 1e-7, 1e-7]))
    unsure = torch.tensor([0.95, 0.045, 0.005]).expand(B, K)
    # one faint prediction does not become its own proof
    assert observed_and_aligned(alignment, unsure)[0, 2] < 0.1


def test_means_know_how_often_classes_are_visited() -> None:
    labels = torch.tensor([0] * 6 + [1] * 2 + [2] * 4)
    assert class_shares(labels, 3, None)[0].tolist() == pytest.approx([6 / 12, 2 / 12, 4 / 12])
    assert class_shares(labels, 3, 3)[0].tolist() == pytest.approx([3 / 8, 2 / 8, 3 / 8])
    rule = PosteriorTargets(task(data={"balanced": 2}))
    for part in (rule.alignment, rule.label_noise):
        assert part is not None and part.histogram.tolist() == pytest.approx([1 / 3] * 3)


def test_means_survive_classes_that_are_not_labelled_and_not_predicted() -> None:
    labels = torch.zeros(N, dtype=torch.long)
    certain = torch.eye(K)[torch.arange(B) % K]
    alignment = alignment_to(labels)
    for _ in range(3):
        aligned = observed_and_aligned(alignment, certain)
        assert torch.equal(aligned, certain)  # nothing else has any probability
    # a batch as large as the window leaves nothing of what was before
    everything = torch.arange(K).repeat(1000)
    rule = PosteriorTargets(replace(task(), labels=everything))
    index = torch.arange(len(everything))
    never_of_class_2 = torch.eye(K)[index % 2]
    for _ in range(2):
        rule.observe(index, torch.stack([never_of_class_2] * 2))
        rule.observe(index[:B], torch.full((2, B, K), 1 / K))
    assert rule.label_noise is not None and rule.label_noise.likelihood(index).isfinite().all()
    assert rule.posterior.alpha.isfinite().all() and rule.targets(index).isfinite().all()


def test_the_default_posterior_against_a_slow_loop() -> None:
    """Align, then sharpen, then multiply by the likelihood, learned from evidence and prediction, 9 : 1."""
    rule = PosteriorTargets(task())
    generator = torch.Generator().manual_seed(5)
    h = [3 / 8, 3 / 8, 2 / 8]
    m = list(h)
    joint = [[h[g] * h[k] for k in range(K)] for g in range(K)]
    alpha = rule.posterior.alpha.tolist()

    def normalised(values: list[float]) -> list[float]:
        return [x / sum(values) for x in values]

    for _ in range(4):
        probs = torch.randn(V, B, K, generator=generator).mul(2).add(torch.tensor([1.0, 0, 0]))
        probs = probs.softmax(dim=-1)
        rule.observe(INDEX, probs)
        share = [sum(joint[g][k] for g in range(K)) for k in range(K)]
        likelihood = [
            [0.9 * joint[g][k] / share[k] + 0.1 * h[g] for k in range(K)] for g in range(K)
        ]
        m = [m[k] + B / (3 * N) * (float(probs[0, :, k].mean()) - m[k]) for k in range(K)]
        seen = [[0.0] * K for _ in range(K)]  # by label and class
        for b, i in enumerate(INDEX.tolist()):
            views = [
                normalised([float(probs[v, b, k]) * h[k] / m[k] for k in range(K)])
                for v in range(V)
            ]
            sharp = normalised([x ** (1 / 0.7) for x in views[0]])
            label = int(LABELS[i])
            q = normalised([sharp[k] * likelihood[label][k] for k in range(K)])
            for k in range(K):
                seen[label][k] += 0.25 * float(probs[0, b, k]) + 0.75 * q[k]
            power = 1 / 0.25
            first, second = (normalised([x**power for x in view]) for view in views)
            w = sum(x * y for x, y in zip(first, second, strict=True))
            alpha[i] = [0.8**w * alpha[i][k] + w * q[k] for k in range(K)]
        for g in range(K):
            for k in range(K):
                joint[g][k] += B / (3 * N) * (seen[g][k] / B - joint[g][k])
    assert rule.posterior.alpha.tolist() == [pytest.approx(row, rel=1e-4) for row in alpha]
    for i, target in zip(INDEX.tolist(), rule.targets(INDEX).tolist(), strict=True):
        belief = normalised(alpha[i])
        power = 1 / 0.25
        assert target == pytest.approx(normalised([x**power for x in belief]), rel=1e-3)


def test_neighbours_are_a_second_sensor() -> None:
    """alpha <- gamma * alpha + p + kappa * votes, for the observed rows alone."""
    kappa = 0.7
    near = task(neighbours={"weight": kappa})
    rule, without = PosteriorTargets(near, discount=0.9, **PAPER), PosteriorTargets(task())
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


def test_what_labels_are_worth_is_not_learned_from_neighbours() -> None:
    alone, beside = (PosteriorTargets(task(neighbours={"weight": kappa})) for kappa in (0, 1))
    beside.observe_neighbours(torch.rand(N, K).softmax(dim=1))
    p = torch.randn(V, B, K, generator=torch.Generator().manual_seed(2)).softmax(dim=-1)
    for rule in (alone, beside):
        rule.observe(INDEX, p)
    assert alone.label_noise is not None and beside.label_noise is not None
    assert torch.equal(alone.label_noise.joint, beside.label_noise.joint)
    assert not torch.equal(alone.posterior.alpha, beside.posterior.alpha)


def test_a_sparse_belief_weighs_the_label_as_a_dense_one_does() -> None:
    """The given label's concentration and what labels are worth are exact, whatever is not kept."""
    dense, sparse = (PosteriorTargets(task(), top_k=k) for k in (None, 2))
    generator = torch.Generator().manual_seed(4)
    for _ in range(3):
        p = torch.randn(V, B, K, generator=generator).mul(2).softmax(dim=-1)
        for rule in (dense, sparse):
            rule.observe(INDEX, p)
    assert dense.label_noise is not None and sparse.label_noise is not None
    assert torch.equal(dense.label_noise.joint, sparse.label_noise.joint)
    torch.testing.assert_close(sparse.probability(LABELS), dense.probability(LABELS))


def test_top_k_makes_the_state_sparse_where_there_are_more_classes() -> None:
    sparse = PosteriorTargets(task(), top_k=2, **PAPER)
    assert {name: x.shape for name, x in sparse.state_dict().items()} == {
        "posterior.classes": (N, 2),
        "posterior.mass": (N, 2),
        "posterior.rest": (N,),
    }
    dense = PosteriorTargets(task(), top_k=K, **PAPER)
    assert list(dense.state_dict()) == ["posterior.alpha"]
    probs = torch.eye(K)[LABELS[INDEX]]  # of two classes at most, so that both agree
    for rule in (sparse, dense):
        rule.observe(INDEX, probs.roll(1, dims=1)[None])
    torch.testing.assert_close(sparse.targets(INDEX), dense.targets(INDEX))
    torch.testing.assert_close(sparse.belief(), dense.belief())


@pytest.mark.parametrize("top_k", [None, 2])
def test_suggestion_and_probability_are_of_the_belief(top_k: int | None) -> None:
    rule = PosteriorTargets(task(), top_k=top_k, prior_strength=0.1)
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
    with pytest.raises(UserError, match=r"use options\.top_k=null, got 5"):
        task(neighbours={"weight": 1.0}, options={"top_k": 5})
