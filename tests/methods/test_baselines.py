"""Every baseline against a slow reference: Python loops over the equations of its paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import Tensor

from noisybsd.config import Config, build_config
from noisybsd.engine.trainer import build_task
from noisybsd.errors import UserError
from noisybsd.methods.ill import ImpreciseLabels
from noisybsd.methods.parts import Batch, Loss, Mixup, Part, TargetRule, Task
from noisybsd.methods.plain import CrossEntropy, LabelTargets
from noisybsd.methods.registry import LOSSES, TARGET_RULES, build_loss, build_rule
from noisybsd.methods.sop import SparseOverparameterization
from noisybsd.methods.ssr import ConsistentFeatures, SelectedLabels
from noisybsd.methods.tcl import TwinContrastive
from noisybsd.models.bank import FeatureBank, vote

N, K, B, D = 8, 4, 5, 6
LABELS = torch.tensor([0, 1, 2, 3, 1, 2, 0, 3])
INDEX = torch.tensor([6, 0, 3, 5, 1])
Row = list[float]


def configuration(method: str, **settings: object) -> Config:
    network = {"embedding_dim": D}
    layer = {"recipe": "test", "method": method, "epochs": 20, "network": network, **settings}
    return build_config(layer)


def task(method: str) -> Task:
    return build_task(configuration(method), LABELS, K)


def make_loss(method: str, **options: float) -> Loss:
    torch.manual_seed(0)
    config = configuration(method, options=options)
    return build_loss(config.loss, build_task(config, LABELS, K), config.options)


def make_rule(method: str, **options: float) -> TargetRule:
    config = configuration(method, options=options)
    return build_rule(config.targets, build_task(config, LABELS, K), config.options)


def batch(num_views: int = 1, targets: Tensor | None = None, mixup: Mixup | None = None) -> Batch:
    random = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(num_views, B, K, generator=random)
    z = F.normalize(torch.randn(num_views * B, D, generator=random), dim=1)
    if targets is None:
        targets = F.one_hot(LABELS[INDEX], K).float()
    return Batch(INDEX, LABELS[INDEX], logits.requires_grad_(), z.requires_grad_(), targets, mixup)


def random_probs(seed: int, rows: int = B) -> Tensor:
    return (2 * torch.randn(rows, K, generator=torch.Generator().manual_seed(seed))).softmax(1)


def softmax(row: Sequence[float]) -> Row:
    total = sum(math.exp(x) for x in row)
    return [math.exp(x) / total for x in row]


def one_hot(label: int) -> Row:
    return [float(k == label) for k in range(K)]


def dot(a: Sequence[float], b: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def ce(target: Sequence[float], p: Sequence[float]) -> float:
    return -sum(y * math.log(q) for y, q in zip(target, p, strict=True))


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def samples(one: Batch, view: int = 0) -> Iterator[tuple[int, Row, Row]]:
    """Index, label (one-hot) and prediction of each sample."""
    for b in range(len(one.index)):
        row = one.logits[view, b].tolist()
        yield int(one.index[b]), one_hot(int(one.labels[b])), softmax(row)


def close(got: Tensor | float, expected: object, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(
        torch.as_tensor(got).double(),
        torch.as_tensor(expected).double(),
        rtol=tolerance,
        atol=tolerance,
    )


# -- losses of a target ----------------------------------------------------------------------------


def test_label_smoothing() -> None:
    """Szegedy et al. 2016, section 7: the label distribution (1 - eps) delta + eps / K."""
    one = batch()
    expected = mean([ce([0.7 * y_k + 0.3 / K for y_k in y], p) for _, y, p in samples(one)])
    close(make_loss("label_smoothing", smoothing=0.3)(one), expected)


@pytest.mark.parametrize("q", [0.3, 0.7, 1.0])
def test_generalized_cross_entropy(q: float) -> None:
    """Zhang & Sabuncu 2018: L_q = (1 - f_y^q) / q."""
    one = batch()
    expected = mean([(1 - dot(y, p) ** q) / q for _, y, p in samples(one)])
    close(make_loss("gce", q=q)(one), expected)


def test_generalized_cross_entropy_has_a_gradient_where_the_label_is_impossible() -> None:
    logits = torch.full((1, B, K), -200.0)
    logits[..., 0] = 200.0
    labels = torch.full((B,), 1)
    targets = F.one_hot(labels, K).float()
    one = Batch(INDEX, labels, logits.requires_grad_(), torch.zeros(B, D), targets)
    make_loss("gce")(one).backward()
    assert one.logits.grad is not None and one.logits.grad.isfinite().all()


def test_symmetric_cross_entropy() -> None:
    """Wang et al. 2019: alpha H(q, p) + beta H(p, q), with log 0 = log 1e-4."""
    one = batch()
    expected = mean(
        [
            0.6 * ce(y, p) - 1.3 * sum(p[k] * math.log(max(y[k], 1e-4)) for k in range(K))
            for _, y, p in samples(one)
        ]
    )
    close(make_loss("sce", alpha=0.6, beta=1.3)(one), expected)


def test_losses_of_a_target_have_cross_entropy_as_a_limit() -> None:
    """No smoothing, and alpha = 1 with beta = 0, are cross-entropy; so is GCE as q goes to 0."""
    one = batch()
    expected = CrossEntropy(task("ce"))(one)
    close(make_loss("label_smoothing", smoothing=0)(one), expected)
    close(make_loss("sce", alpha=1, beta=0)(one), expected)
    close(make_loss("gce", q=1e-4)(one), expected, 1e-3)


# -- mixup -------------------------------------------------------------------------------------------


def test_mixup_is_a_convex_combination_of_rows() -> None:
    rows = torch.rand(B, 3, 2)
    mixup = Mixup(torch.tensor(0.8), torch.tensor([2, 0, 1, 4, 3]))
    for i, j in enumerate([2, 0, 1, 4, 3]):
        close(mixup(rows)[i], 0.8 * rows[i] + 0.2 * rows[j])


def test_mixup_draws_a_folded_beta_and_a_permutation() -> None:
    torch.manual_seed(0)
    for alpha, expected in ((1.0, 0.75), (8.0, 0.596), (0.1, 0.936)):  # E max(x, 1 - x)
        draws = [Mixup.draw(6, alpha, torch.device("cpu")) for _ in range(2000)]
        weights = torch.stack([draw.weight for draw in draws])
        assert weights.min() >= 0.5 and weights.max() <= 1
        close(weights.mean(), expected, 0.01)
        partners = torch.stack([draw.partner for draw in draws])
        assert torch.equal(partners.sort(dim=1).values, torch.arange(6).expand(2000, 6))
        close((partners == torch.arange(6)).float().mean(), 1 / 6, 0.02)  # uniform


# -- memories ----------------------------------------------------------------------------------------


def test_early_learning_targets() -> None:
    """Liu et al. 2020: t(k) = beta t(k-1) + (1 - beta) p(k), t(0) = 0."""
    rule = make_rule("elr", beta=0.6)
    reference = [[0.0] * K for _ in range(N)]
    for visit in range(3):
        probs = random_probs(visit)
        rule.observe(INDEX, probs[None])
        for b, i in enumerate(INDEX.tolist()):
            reference[i] = [
                0.6 * t + 0.4 * p for t, p in zip(reference[i], probs[b].tolist(), strict=True)
            ]
    close(rule.targets(INDEX), [reference[i] for i in INDEX.tolist()], 1e-3)  # the code's clamp
    close(rule.targets(INDEX).sum(dim=1), [1 - 0.6**3] * B)
    belief = rule.belief()
    assert belief is not None
    close(belief.sum(dim=1), [1.0] * N)
    unseen = [i for i in range(N) if i not in INDEX.tolist()]
    assert torch.equal(belief[unseen].argmax(dim=1), LABELS[unseen])


def test_early_learning_regularization() -> None:
    """Liu et al. 2020: cross-entropy + lambda log(1 - <p, t>), and the gradient of their lemma:

    p - y + lambda g with g_c = p_c / (1 - <p, t>) sum_k (t_k - t_c) p_k.
    """
    t = 0.7 * random_probs(3)
    one = batch(targets=t)
    loss = make_loss("elr", weight=2.5)(one)
    loss.backward()
    values, gradients = [], []
    for b, (_, y, p) in enumerate(samples(one)):
        memory = t[b].tolist()
        left = 1 - dot(p, memory)
        values.append(ce(y, p) + 2.5 * math.log(left))
        g = [p[c] / left * sum((memory[k] - memory[c]) * p[k] for k in range(K)) for c in range(K)]
        gradients.append([(p[c] - y[c] + 2.5 * g[c]) / B for c in range(K)])
    close(loss, mean(values), 1e-3)
    assert one.logits.grad is not None
    close(one.logits.grad[0], gradients, 1e-3)


def test_self_ensemble_labels() -> None:
    """Lu & He 2022: labels up to the turning point, then y <- alpha y + (1 - alpha) p."""
    rule = make_rule("selc", momentum=0.8, warmup=0.1)  # 2 of 20 epochs
    reference = [one_hot(label) for label in LABELS.tolist()]
    for epoch in range(5):
        rule.start_epoch(epoch)
        probs = random_probs(epoch)
        rule.observe(INDEX, probs[None])
        if epoch >= 2:
            for b, i in enumerate(INDEX.tolist()):
                reference[i] = [
                    0.8 * y + 0.2 * p for y, p in zip(reference[i], probs[b].tolist(), strict=True)
                ]
        close(rule.targets(INDEX), [reference[i] for i in INDEX.tolist()])
    belief = rule.belief()
    assert belief is not None
    close(belief, reference)


def test_temporal_ensemble() -> None:
    """Laine & Aila 2017, algorithm 2: Z <- a Z + (1 - a) z after an epoch, target Z / (1 - a^t)."""
    rule = make_rule("temporal_ensembling", momentum=0.6)
    ensemble = [[0.0] * K for _ in range(N)]
    for epoch in range(4):
        probs = random_probs(epoch)
        rule.observe(INDEX, probs[None])
        if epoch > 0:
            expected = [[z / (1 - 0.6**epoch) for z in ensemble[i]] for i in INDEX.tolist()]
            close(rule.targets(INDEX), expected)
        else:
            close(rule.targets(INDEX), F.one_hot(LABELS[INDEX], K))
        for b, i in enumerate(INDEX.tolist()):
            ensemble[i] = [
                0.6 * z + 0.4 * p for z, p in zip(ensemble[i], probs[b].tolist(), strict=True)
            ]
    belief = rule.belief()
    assert belief is not None
    close(belief[INDEX], [[z / (1 - 0.6**4) for z in ensemble[i]] for i in INDEX.tolist()])
    close(belief.sum(dim=1), [1.0] * N)


def test_temporal_consistency() -> None:
    """Laine & Aila 2017, algorithm 2: CE + w(t) / (C |B|) sum ||z - z~||^2, w a Gaussian ramp from 0."""
    targets = random_probs(3)
    one, loss = batch(targets=targets), make_loss("temporal_ensembling", weight=9.0, ramp_up=0.5)
    for epoch in (0, 3, 10, 19):  # the ramp ends at epoch 10
        loss.start_epoch(epoch)
        weight = 9 * math.exp(-5 * (1 - min(1, epoch / 10)) ** 2) if epoch else 0
        rows = enumerate(samples(one))
        expected = mean(
            [
                ce(y, p) + weight * sum((p[k] - float(targets[b, k])) ** 2 for k in range(K)) / K
                for b, (_, y, p) in rows
            ]
        )
        close(loss(one), expected)


def test_progressive_targets() -> None:
    """Kim et al. 2021: (1 - a_t) y + a_t P_{t-1}(x), a_t = a_T t / T, t from 1; P_0 is y."""
    rule = make_rule("ps_kd", alpha=0.8)
    last = {i: one_hot(int(LABELS[i])) for i in INDEX.tolist()}
    for epoch in range(4):
        rule.start_epoch(epoch)
        probs = random_probs(epoch)
        rule.observe(INDEX, probs[None])
        share = 0.8 * (epoch + 1) / 20
        expected = []
        for i in INDEX.tolist():
            y = one_hot(int(LABELS[i]))
            expected.append([(1 - share) * y[k] + share * last[i][k] for k in range(K)])
        close(rule.targets(INDEX), expected)
        last = dict(zip(INDEX.tolist(), probs.tolist(), strict=True))


@pytest.mark.parametrize("method", ["elr", "selc", "temporal_ensembling", "ps_kd"])
def test_memories_continue_from_their_state(method: str) -> None:
    def visit(rule: TargetRule, epoch: int) -> Tensor:
        rule.start_epoch(epoch)
        rule.observe(INDEX, random_probs(epoch)[None])
        return rule.targets(INDEX)

    rule, again = make_rule(method), make_rule(method)
    for epoch in range(5):
        visit(rule, epoch)
    before = {name: value.clone() for name, value in rule.state_dict().items()}
    again.load_state_dict(before)
    after = visit(rule, 5)
    assert torch.equal(visit(again, 5), after)
    assert any(not torch.equal(rule.state_dict()[name], before[name]) for name in before)


# -- SOP ---------------------------------------------------------------------------------------------


def sop_terms(y: Row, p: Row, u: float, v: Row, frozen: Row) -> tuple[float, float, Row]:
    """The authors' code of Liu et al. 2022: the cross-entropy, the squared error, and p + s.

    s = u^2 y - v^2 (1 - y); v moves the squared error only, the other term holds it `frozen`.
    """
    v0 = frozen
    added = [u * u * y[k] for k in range(K)]
    moved = [max(p[k] + added[k] - v0[k] ** 2 * (1 - y[k]), 1e-4) for k in range(K)]
    moved = [m / sum(moved) for m in moved]
    hard = one_hot(max(range(K), key=p.__getitem__))
    error = [hard[k] + u * u * y[k] - v[k] ** 2 * (1 - y[k]) - y[k] for k in range(K)]
    return ce(y, moved), dot(error, error), moved


def derivative(f: Callable[[float], float], x: float, h: float = 1e-5) -> float:
    return (f(x + h) - f(x - h)) / (2 * h)


def sop_state(loss: Loss) -> tuple[list[float], list[Row]]:
    random = torch.Generator().manual_seed(2)
    assert isinstance(loss, SparseOverparameterization)
    loss.u.copy_(0.5 * torch.rand(N, 1, generator=random))
    loss.v.copy_(0.5 * torch.rand(N, K, generator=random))
    return loss.u.squeeze(1).tolist(), loss.v.tolist()


def test_sparse_overparameterization() -> None:
    """The loss, and what one step does to u and v, against finite differences of the two terms."""
    loss, one = make_loss("sop", rate_u=3.0, rate_v=5.0), batch()
    u, v = sop_state(loss)
    got = loss(one)
    got.backward()
    values = []
    for i, y, p in samples(one):
        fit, error, _ = sop_terms(y, p, u[i], v[i], v[i])
        values.append(fit + error)

        def of_u(x: float, y: Row = y, p: Row = p, i: int = i) -> float:
            return sum(sop_terms(y, p, x, v[i], v[i])[:2])

        du = derivative(of_u, u[i])
        close(loss.u[i, 0], u[i] - 3.0 / 128 * du)
        for k in range(K):

            def of_v(x: float, y: Row = y, p: Row = p, i: int = i, k: int = k) -> float:
                row = [x if j == k else v[i][j] for j in range(K)]
                return sop_terms(y, p, u[i], row, v[i])[1]

            close(loss.v[i, k], v[i][k] - 5.0 / 128 * derivative(of_v, v[i][k]))
    close(got, mean(values))
    for i in set(range(N)) - set(INDEX.tolist()):  # the others stay
        assert loss.u[i, 0] == u[i] and loss.v[i].tolist() == v[i]


def test_sop_plus_adds_balance_and_consistency() -> None:
    """+ lambda_C KL(p_1 || p_2) + lambda_B H(uniform, mean of p + s)."""
    loss = make_loss("sop_plus", consistency=0.9, balance=0.1)
    plain = make_loss("sop")
    u, v = sop_state(loss)
    sop_state(plain)
    one = batch(num_views=2)
    difference = float(loss(one).detach() - plain(one).detach())
    moved, divergence = [], []
    for (i, y, p), (_, _, other) in zip(samples(one), samples(one, view=1), strict=True):
        moved.append(sop_terms(y, p, u[i], v[i], v[i])[2])
        divergence.append(sum(p[k] * math.log(p[k] / other[k]) for k in range(K)))
    average = [mean([row[k] for row in moved]) for k in range(K)]
    close(difference, 0.9 * mean(divergence) + 0.1 * ce([1 / K] * K, average))


def test_sop_takes_a_wrong_label_upon_itself_and_leaves_a_right_one() -> None:
    loss = make_loss("sop")
    labels = torch.tensor([0, 1])
    logits = torch.full((1, 2, K), 0.0)
    logits[0, :, 0] = 4.0  # the network says 0, twice
    for _ in range(150):
        one = Batch(
            torch.tensor([0, 1]), labels, logits.clone().requires_grad_(), batch().z, labels
        )
        loss(one).backward()
    assert loss.u[1] ** 2 > 0.5 and loss.u[0] ** 2 < 1e-6
    assert loss.v[1, 0] ** 2 > 0.5 and loss.v[0].square().max() < 1e-6


def test_what_sop_took_upon_itself_it_gives_back_when_the_network_agrees() -> None:
    """u descends the squared error too, as in the authors' code: by the cross-entropy alone u^2 stays."""
    loss = make_loss("sop", rate_u=10.0, rate_v=10.0)
    assert isinstance(loss, SparseOverparameterization)
    one = batch()
    loss.u.fill_(0.6)
    agreeing = 8.0 * F.one_hot(one.labels, K).float()[None]
    for _ in range(30):
        loss(replace(one, logits=agreeing.clone().requires_grad_())).backward()
    seen = loss.u[INDEX].square()
    assert float(seen.max()) < 0.25 * 0.36
    others = [i for i in range(N) if i not in INDEX.tolist()]
    assert torch.all(loss.u[others] == 0.6)


def test_the_rate_of_sop_does_not_depend_on_the_batch_size() -> None:
    whole, single = make_loss("sop"), make_loss("sop")
    sop_state(whole)
    sop_state(single)
    one = batch()
    whole(one).backward()
    for b in range(B):
        part = slice(b, b + 1)
        logits = one.logits[:, part].detach().requires_grad_()
        alone = Batch(INDEX[part], LABELS[INDEX[part]], logits, one.z[part], one.targets[part])
        single(alone).backward()
    close(whole.u, single.u)
    close(whole.v, single.v)


# -- contrastive methods -------------------------------------------------------------------------------


def inside(row: Sequence[float]) -> Row:
    return [min(max(x, 1e-4), 1 - 1e-4) for x in row]


def test_contrastive_regularization() -> None:
    """Yi et al. 2022, as the authors' code has it: see the class."""
    loss, one = make_loss("ctrr", weight=7.0, threshold=0.35), batch(num_views=2)
    got = loss(one)
    with torch.no_grad():
        q = F.normalize(loss.predictor(one.z[B:]), dim=1).tolist()
    k = one.z[:B].tolist()
    p = [p for _, _, p in samples(one)]
    rows, kept = [], 0
    for i in range(B):
        weights, terms = [], []
        for j in range(B):
            similarity = dot(inside(q[i]), inside(k[j]))
            agreement = 1.0 if i == j else dot(p[i], p[j])
            kept += agreement >= 0.35
            weights.append(agreement if agreement >= 0.35 else 0.0)
            terms.append(-similarity if i == j else math.log(1 - similarity))
        rows.append(dot(weights, terms) / sum(weights))
    assert B < kept < B * B  # the threshold divides
    expected = mean([ce(y, p) for _, y, p in samples(one)]) + 7.0 * mean(rows)
    close(got, expected)


def test_contrastive_regularization_moves_the_strong_view_and_the_predictor_only() -> None:
    loss, one = make_loss("ctrr"), batch(num_views=2)
    loss(one).backward()
    assert one.z.grad is not None
    assert not one.z.grad[:B].any() and one.z.grad[B:].any()
    assert all(p.grad is not None and p.grad.any() for p in loss.predictor[-1].parameters())


def test_contrastive_regularization_is_finite_when_embeddings_collapse() -> None:
    loss, one = make_loss("ctrr", threshold=0.0), batch(num_views=2)
    one.z.data[:] = D**-0.5  # <q, k> is 1 but for rounding
    for p in loss.predictor.parameters():
        torch.nn.init.zeros_(p)
    loss.predictor[-1].bias.data[:] = 1.0
    value = loss(one)
    value.backward()
    assert value.isfinite() and one.z.grad is not None and one.z.grad.isfinite().all()


def mixed_batch() -> Batch:
    mixup = Mixup(torch.tensor(0.7), torch.tensor([3, 0, 4, 1, 2]))
    return batch(num_views=4, mixup=mixup)


def ntxent(z: list[Row], temperature: float) -> float:
    total = 0.0
    for i in range(2 * B):
        other = (i + B) % (2 * B)
        scores = [math.exp(dot(z[i], z[j]) / temperature) for j in range(2 * B) if j != i]
        total -= math.log(math.exp(dot(z[i], z[other]) / temperature) / sum(scores))
    return total / (2 * B)


@pytest.mark.parametrize("warming_up", [True, False])
def test_twin_contrastive(warming_up: bool) -> None:
    """Huang et al. 2023: cross-supervision, mixup, alignment, contrast and entropy; see the class."""
    temperature = 0.4
    loss, one = make_loss("tcl", temperature=temperature, warmup=0.1), mixed_batch()
    assert isinstance(loss, TwinContrastive) and one.mixup is not None
    random = torch.Generator().manual_seed(5)
    loss.clean.copy_(torch.rand(N, 1, generator=random))
    loss.clean_share.fill_(0.6)
    loss.prototypes.copy_(F.normalize(torch.randn(K, D, generator=random), dim=1))
    loss.warming_up = warming_up

    views = [[p for _, _, p in samples(one, view)] for view in range(4)]
    y = [one_hot(int(label)) for label in one.labels]
    trust = [1.0 if warming_up else 0.6 * float(loss.clean[i]) for i in one.index]

    def blend(b: int, other: Row) -> Row:
        return [trust[b] * y[b][k] + (1 - trust[b]) * other[k] for k in range(K)]

    average = [[(views[0][b][k] + views[1][b][k]) / 2 for k in range(K)] for b in range(B)]
    target = [blend(b, average[b]) for b in range(B)]
    partner = one.mixup.partner.tolist()
    mixed = [[0.7 * target[b][k] + 0.3 * target[partner[b]][k] for k in range(K)] for b in range(B)]
    cross = mean([ce(blend(b, views[1][b]), views[0][b]) for b in range(B)])
    cross += mean([ce(blend(b, views[0][b]), views[1][b]) for b in range(B)])
    cross_mixed = mean([ce(mixed[b], views[2 + v][b]) for v in (0, 1) for b in range(B)])
    z = one.z.tolist()
    aligned = []
    for v in (2, 3):
        for b in range(B):
            scores = [dot(z[v * B + b], mu) / temperature for mu in loss.prototypes.tolist()]
            aligned.append(ce(mixed[b], softmax(scores)))
    everything = [p for view in views for p in view]
    entropy = mean([ce(p, p) for p in everything])
    overall = [mean([p[k] for p in everything]) for k in range(K)]
    expected = ntxent(z[: 2 * B], temperature) + cross + cross_mixed + mean(aligned)
    expected += entropy - ce(overall, overall)
    close(loss(one), expected)


def test_twin_contrastive_remembers_the_weak_view() -> None:
    loss, one = make_loss("tcl"), mixed_batch()
    loss(one).backward()
    assert isinstance(loss, TwinContrastive)
    close(loss.features[INDEX], one.z[:B])
    close(loss.probs[INDEX], one.logits[0].softmax(dim=1))
    assert not loss.features[[2, 4, 7]].any()


def clusters(n: int = 300, wrong: int = 60) -> tuple[Loss, Tensor]:
    """TCL that has seen n samples in K clusters; the labels of the first `wrong` are wrong."""
    random = torch.Generator().manual_seed(0)
    true = torch.arange(n) % K
    labels = torch.where(torch.arange(n) < wrong, (true + 1) % K, true)
    loss = build_loss("tcl", replace(task("tcl"), labels=labels), {})
    assert isinstance(loss, TwinContrastive)
    centres = F.one_hot(true, D).float()
    loss.features.copy_(F.normalize(centres + 0.3 * torch.randn(n, D, generator=random), dim=1))
    loss.probs.copy_((3 * F.one_hot(true, K) + torch.rand(n, K, generator=random)).softmax(dim=1))
    return loss, labels


def test_twin_contrastive_fits_prototypes_and_mixture() -> None:
    loss, labels = clusters()
    assert isinstance(loss, TwinContrastive)
    loss.features[-3:], loss.probs[-3:] = 0, 0  # never seen
    loss.start_epoch(1)
    n = len(labels) - 3
    features, probs = loss.features[:n].tolist(), loss.probs[:n].tolist()
    prototypes = []
    for k in range(K):
        centre = [sum(probs[i][k] * features[i][d] for i in range(n)) for d in range(D)]
        prototypes.append([x / math.sqrt(dot(centre, centre)) for x in centre])
    close(loss.prototypes, prototypes, 1e-4)
    scores = []
    for i in range(n):
        assigned = softmax([dot(features[i], mu) / 0.25 for mu in prototypes])
        scores.append(assigned[int(labels[i])])
    scaled = [[(s - min(scores)) / (max(scores) - min(scores))] for s in scores]
    mixture = GaussianMixture(n_components=2, random_state=0).fit(scaled)
    expected = mixture.predict_proba(scaled)[:, mixture.means_.argmax()]
    close(loss.clean[:n, 0], expected, 1e-3)
    assert not loss.clean[n:].any()
    close(loss.clean_share, float((expected > 0.5).mean()))
    is_right = torch.arange(n) >= 60
    assert ((loss.clean[:n, 0] > 0.5) == is_right).float().mean() > 0.9


def test_twin_contrastive_fits_once_an_epoch() -> None:
    """Starting an epoch again, after an interruption, leaves what was fitted at its beginning."""
    loss, labels = clusters()
    assert isinstance(loss, TwinContrastive)
    loss.start_epoch(1)
    clean = loss.clean.clone()
    loss.features.copy_(loss.features.roll(1, dims=0))
    again = build_loss("tcl", replace(task("tcl"), labels=labels), {})
    again.load_state_dict(loss.state_dict())
    again.start_epoch(1)
    assert torch.equal(again.clean, clean)
    again.start_epoch(2)
    assert not torch.equal(again.clean, clean)


def test_twin_contrastive_survives_embeddings_that_are_all_alike() -> None:
    loss, _ = clusters()
    assert isinstance(loss, TwinContrastive)
    loss.features.copy_(F.one_hot(torch.tensor(0), D).expand_as(loss.features))
    loss.probs.fill_(1 / K)
    loss.start_epoch(1)
    assert loss.clean.isfinite().all() and loss.prototypes.isfinite().all()


# -- SSR ---------------------------------------------------------------------------------------------


def selection(
    probs: list[Row], features: list[Row], k: int, theta_r: float, theta_s: float
) -> tuple[list[int], list[float]]:
    """Feng et al. 2022 and the authors' code: the labels after relabelling, and what a sample weighs."""
    labels = []
    for i, p in enumerate(probs):
        best = max(range(K), key=p.__getitem__)
        labels.append(best if p[best] > theta_r else int(LABELS[i]))
    selected = []
    for i in range(N):
        others = sorted(
            (j for j in range(N) if j != i), key=lambda j: -dot(features[i], features[j])
        )
        near = [labels[j] for j in others[:k]]
        votes = [near.count(c) / max(labels.count(c), 1) for c in range(K)]
        selected.append(votes[labels[i]] / max(votes) >= theta_s)
    kept = [label for label, chosen in zip(labels, selected, strict=True) if chosen]
    weights = [
        1 / kept.count(label) if chosen else 0.0
        for label, chosen in zip(labels, selected, strict=True)
    ]
    return labels, [w / max(mean(weights), 1e-12) for w in weights]


@pytest.mark.parametrize("theta_s", [1.0, 0.6])
def test_selected_labels(theta_s: float) -> None:
    """From a sample's last prediction and its neighbours in the bank, as the trainer asks for them."""
    rule = make_rule("ssr", theta_r=0.6, theta_s=theta_s)
    assert isinstance(rule, SelectedLabels)
    everyone = torch.arange(N)
    close(rule.targets(everyone), F.one_hot(LABELS, K).float())  # before the first vote
    bank = FeatureBank(N, D)
    outcomes = set()
    for seed in range(6):
        probs = random_probs(seed, N)
        random = torch.Generator().manual_seed(seed)
        z = torch.randn(N, D, generator=random) + 2 * F.one_hot(probs.argmax(dim=1), D)
        bank.write(everyone, F.normalize(z, dim=1))
        before = rule.targets(everyone)
        for half in everyone.split(N // 2):
            rule.observe(half, torch.stack([probs[half], random_probs(9, N)[half]]))
        assert torch.equal(rule.targets(everyone), before)  # fixed within an epoch
        rule.observe_neighbours(vote(rule.ballots(), bank.search(3, engine="torch"), math.inf))
        labels, weights = selection(probs.tolist(), bank.features.tolist(), 3, 0.6, theta_s)
        assert rule.suggested().tolist() == labels
        expected = [[w * y for y in one_hot(c)] for c, w in zip(labels, weights, strict=True)]
        close(rule.targets(everyone), expected)
        relabelled = [c != int(given) for c, given in zip(labels, LABELS, strict=True)]
        outcomes |= {(new, w > 0) for new, w in zip(relabelled, weights, strict=True)}
    assert len(outcomes) == 4  # both kinds of labels are selected, and both are not


def test_samples_without_neighbours_are_not_selected() -> None:
    rule = make_rule("ssr")
    votes = F.one_hot(LABELS, K).float()
    votes[2] = 0
    rule.observe_neighbours(votes)
    assert rule.targets(torch.arange(N)).sum(dim=1).gt(0).tolist() == [i != 2 for i in range(N)]
    rule.observe_neighbours(torch.zeros(N, K))
    assert not rule.targets(torch.arange(N)).any()


def test_selected_cross_entropy_and_consistent_features() -> None:
    """The mean over what is selected, a class counting as much as another; SSR+ draws the views together."""
    weight, partner = 0.7, [3, 0, 4, 1, 2]
    weights = [0.0, 2.0, 0.5, 0.0, 1.0]
    targets = torch.tensor(weights)[:, None] * F.one_hot(LABELS[INDEX], K)
    one = replace(mixed_batch(), targets=targets)
    total = 0.0
    for view in (2, 3):
        for b, (_, y, p) in enumerate(samples(one, view)):
            other = one_hot(int(LABELS[INDEX[partner[b]]]))
            total += weight * weights[b] * ce(y, p)
            total += (1 - weight) * weights[partner[b]] * ce(other, p)
    expected = total / (2 * sum(weights))
    close(make_loss("ssr")(one), expected)

    loss = make_loss("ssr_plus", consistency=3.0)
    assert isinstance(loss, ConsistentFeatures)
    got = loss(one)
    with torch.no_grad():
        guesses = F.normalize(loss.predictor(one.z[B : 2 * B]), dim=1).tolist()
    agreement = mean([dot(guesses[b], one.z[b].tolist()) for b in range(B)])
    close(got, expected - 3 * agreement)
    got.backward()
    assert one.z.grad is not None and one.z.grad[B : 2 * B].any()
    assert not one.z.grad[:B].any() and not one.z.grad[2 * B :].any()


def test_a_batch_without_a_selected_sample_teaches_nothing() -> None:
    one = replace(mixed_batch(), targets=torch.zeros(B, K))
    loss = make_loss("ssr")(one)
    loss.backward()
    assert loss == 0 and one.logits.grad is not None and not one.logits.grad.any()


# -- ILL ---------------------------------------------------------------------------------------------


def unit(row: Sequence[float]) -> Row:
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


def columns(rows: Sequence[Sequence[float]]) -> list[Row]:
    return [list(column) for column in zip(*rows, strict=True)]


def ill_terms(matrix: list[Row], one: Batch, scale: float) -> tuple[float, float, float, float]:
    """The authors' code of Chen et al. 2024: label likelihood, EM, consistency, balance."""
    by_column = columns([unit(column) for column in columns(matrix)])
    scaled = [[scale * x for x in unit(row)] for row in by_column]
    of_class = [softmax(row) for row in scaled]  # (K,K): k, g
    of_label = columns([softmax(column) for column in columns(scaled)])
    noise, em, consistency, predictions = [], [], [], []
    for (_, y, p), (_, _, strong) in zip(samples(one), samples(one, view=1), strict=True):
        g = y.index(1.0)
        q, q_strong = ([x[k] * of_class[k][g] for k in range(K)] for x in (p, strong))
        em.append(ce([x / sum(q) for x in q], [x / sum(q_strong) for x in q_strong]))
        seen = [sum(p[k] * of_label[k][c] for k in range(K)) for c in range(K)]
        noise.append(-math.log(seen[g] / sum(seen)))
        consistency.append(ce(p, strong))
        predictions.append(p)
    average = [mean(column) for column in columns(predictions)]
    return mean(noise), mean(em), mean(consistency), ce([1 / K] * K, average)


def test_imprecise_labels() -> None:
    """The loss; and the matrix descends the likelihood of the labels, against finite differences."""
    loss, one = make_loss("ill", scale=1.7, rate=0.3, balance=0.4), batch(num_views=2)
    assert isinstance(loss, ImpreciseLabels)
    assert torch.equal(loss.matrix, torch.eye(K))
    loss.matrix.add_(0.3 * torch.rand(K, K, generator=torch.Generator().manual_seed(3)))
    matrix = loss.matrix.tolist()
    noise, em, consistency, balance = ill_terms(matrix, one, 1.7)
    got = loss(one)
    close(got, noise + em + consistency + 0.4 * balance)
    got.backward()
    for k in range(K):
        for c in range(K):

            def of_entry(x: float, k: int = k, c: int = c) -> float:
                moved = [
                    [x if (i, j) == (k, c) else matrix[i][j] for j in range(K)] for i in range(K)
                ]
                return ill_terms(moved, one, 1.7)[0]

            close(loss.matrix[k, c], matrix[k][c] - 0.3 * derivative(of_entry, matrix[k][c]))


def test_the_targets_of_imprecise_labels_have_no_gradient() -> None:
    """The weak view learns the label's likelihood and the balance alone; the strong view the rest."""
    one, same = batch(num_views=2), batch(num_views=2)
    make_loss("ill", balance=0.0)(one).backward()
    seen = same.logits[0].softmax(dim=1) @ torch.eye(K).softmax(dim=0)
    F.nll_loss(seen.log(), same.labels).backward()  # columns of the identity have equal sums
    assert one.logits.grad is not None and same.logits.grad is not None
    close(one.logits.grad[0], same.logits.grad[0])
    assert one.logits.grad[1].any()


def test_imprecise_labels_are_finite_where_predictions_are_extreme() -> None:
    logits = torch.full((2, B, K), -200.0)
    logits[..., 0] = 200.0
    one = replace(batch(num_views=2), logits=logits.requires_grad_())
    loss = make_loss("ill")
    value = loss(one)
    value.backward()
    assert value.isfinite() and one.logits.grad is not None and one.logits.grad.isfinite().all()
    assert isinstance(loss, ImpreciseLabels) and loss.matrix.isfinite().all()


# -- state and mistakes --------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [TARGET_RULES, LOSSES])
def test_all_state_is_in_registered_buffers(parts: dict[str, type[Part]]) -> None:
    """A tensor that is a plain attribute would be neither in the checkpoint nor moved to the device."""
    for part in parts.values():
        made = part(task("tcl"))  # type: ignore[call-arg]
        assert not [name for name, value in vars(made).items() if isinstance(value, Tensor)]


def test_what_a_rule_remembers_of_the_labels_is_not_in_the_state() -> None:
    assert set(make_rule("elr").state_dict()) == {"memory"}
    assert "labels" not in make_loss("tcl").state_dict()
    assert not LabelTargets(task("ce")).state_dict()


@pytest.mark.parametrize(
    ("method", "option", "value"),
    [
        ("label_smoothing", "smoothing", 1.0),
        ("gce", "q", 0.0),
        ("sce", "alpha", -1.0),
        ("elr", "beta", 1.0),
        ("elr", "weight", -1.0),
        ("selc", "momentum", 1.5),
        ("selc", "warmup", 30.0),
        ("temporal_ensembling", "momentum", 1.0),
        ("temporal_ensembling", "ramp_up", 0.0),
        ("ps_kd", "alpha", 2.0),
        ("sop", "rate_u", -1.0),
        ("ctrr", "threshold", 2.0),
        ("tcl", "temperature", 0.0),
        ("ssr", "theta_r", 1.5),
        ("ssr_plus", "consistency", -1.0),
        ("ill", "scale", 0.0),
    ],
)
def test_an_option_out_of_range(method: str, option: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"options\.{option}: got {value} \(valid: float [≥>] 0"):
        configuration(method, options={option: value})


def test_consistency_needs_two_views() -> None:
    with pytest.raises(UserError, match=r"options\.consistency=0\.9 compares two views"):
        make_loss("sop", consistency=0.9)
