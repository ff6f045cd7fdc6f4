from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import normalize, one_hot

from noisybsd.methods.contrastive import CONTRASTIVE, simclr, supcon

B, D, K = 6, 5, 4


def embeddings(seed: int = 0, batch: int = B, dim: int = D) -> Tensor:
    """(2B,D) float64, rows of unit length."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(2 * batch, dim, generator=generator, dtype=torch.float64)
    return normalize(z, dim=1)


def soft_targets(seed: int = 0, batch: int = B, classes: int = K) -> Tensor:
    """(B,K) float64, rows sum to one."""
    generator = torch.Generator().manual_seed(100 + seed)
    logits = 2 * torch.randn(batch, classes, generator=generator, dtype=torch.float64)
    return logits.softmax(1)


def hard_targets(*labels: int, classes: int = K) -> Tensor:
    return one_hot(torch.tensor(labels), classes).double()


def similarity(z: Tensor, i: int, j: int) -> float:
    return sum(float(a) * float(b) for a, b in zip(z[i], z[j], strict=True))


def log_softmax_of_pair(z: Tensor, i: int, p: int, temperature: float) -> float:
    """log of exp(z_i·z_p/τ) / Σ_{a≠i} exp(z_i·z_a/τ), the fraction in both papers' equations."""
    others = [a for a in range(len(z)) if a != i]
    denominator = sum(math.exp(similarity(z, i, a) / temperature) for a in others)
    return similarity(z, i, p) / temperature - math.log(denominator)


def simclr_loop(z: Tensor, temperature: float) -> float:
    """Chen et al. 2020, equation 1 and the mean of algorithm 1 over both orders of every pair."""
    batch = len(z) // 2
    pairs = [(i, i + batch) for i in range(batch)]
    losses = [-log_softmax_of_pair(z, i, j, temperature) for i, j in pairs]
    losses += [-log_softmax_of_pair(z, j, i, temperature) for i, j in pairs]
    return sum(losses) / (2 * batch)


def supcon_loop(z: Tensor, labels: list[int], temperature: float) -> float:
    """Khosla et al. 2020, equation 2, as a mean over the anchors."""
    two_views = labels + labels
    total = 0.0
    for i in range(len(z)):
        positives = [p for p in range(len(z)) if p != i and two_views[p] == two_views[i]]
        terms = [log_softmax_of_pair(z, i, p, temperature) for p in positives]
        total += -sum(terms) / len(positives)
    return total / len(z)


def weighted_supcon_loop(z: Tensor, targets: Tensor, temperature: float) -> float:
    batch = len(targets)
    total = 0.0
    for i in range(2 * batch):
        numerator = weights = 0.0
        for p in range(2 * batch):
            if p == i:
                continue
            same_image = p % batch == i % batch
            weight = 1.0 if same_image else similarity(targets, i % batch, p % batch)
            numerator += weight * log_softmax_of_pair(z, i, p, temperature)
            weights += weight
        total += -numerator / weights
    return total / (2 * batch)


@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
@pytest.mark.parametrize("seed", range(3))
class TestAgainstLoops:
    def test_simclr(self, seed: int, temperature: float) -> None:
        z = embeddings(seed)
        expected = simclr_loop(z, temperature)
        assert simclr(z, temperature).item() == pytest.approx(expected, rel=1e-12)

    def test_supcon_of_one_hot_targets_is_the_papers(self, seed: int, temperature: float) -> None:
        z, labels = embeddings(seed), [2, 0, 2, 2, 1, 0]
        expected = supcon_loop(z, labels, temperature)
        actual = supcon(z, hard_targets(*labels), temperature).item()
        assert actual == pytest.approx(expected, rel=1e-12)

    def test_supcon_of_soft_targets(self, seed: int, temperature: float) -> None:
        z, targets = embeddings(seed), soft_targets(seed)
        expected = weighted_supcon_loop(z, targets, temperature)
        assert supcon(z, targets, temperature).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_supcon_of_orthogonal_targets_is_simclr(temperature: float) -> None:
    z, targets = embeddings(), hard_targets(*range(B), classes=B)
    torch.testing.assert_close(supcon(z, targets, temperature), simclr(z, temperature))


def test_hand_example() -> None:
    # Image 0 is (1,0) and image 1 (0,1) in both views. At τ=1 every anchor sees e^1 + 2e^0, and has
    # similarity 1 to its other view and 0 to the two views of the other image.
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    log_partition = math.log(math.e + 2)
    assert simclr(z, 1.0).item() == pytest.approx(log_partition - 1, rel=1e-6)

    same_class = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert supcon(z, same_class, 1.0).item() == pytest.approx(log_partition - 1 / 3, rel=1e-6)

    agree_a_quarter = torch.tensor([[1.0, 0.0], [0.25, 0.75]])  # weights 1, 1/4, 1/4
    assert supcon(z, agree_a_quarter, 1.0).item() == pytest.approx(log_partition - 2 / 3, rel=1e-6)


def test_one_image_has_nothing_to_contrast_with() -> None:
    z = embeddings(batch=1)
    assert simclr(z, 0.1).item() == pytest.approx(0.0, abs=1e-12)
    assert supcon(z, soft_targets(batch=1), 0.1).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_order_of_images_does_not_matter(name: str) -> None:
    z, targets = embeddings(), soft_targets()
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    permuted = z[torch.cat([order, order + B])]
    loss = CONTRASTIVE[name]
    torch.testing.assert_close(loss(permuted, targets[order], 0.1), loss(z, targets, 0.1))
    # the order within both views is one and the same: breaking it must show
    broken = z[torch.cat([order, torch.arange(B, 2 * B)])]
    assert abs(loss(broken, targets[order], 0.1) - loss(z, targets, 0.1)) > 1e-3


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_order_of_views_does_not_matter(name: str) -> None:
    z, targets = embeddings(), soft_targets()
    loss = CONTRASTIVE[name]
    swapped = z.roll(B, dims=0)
    torch.testing.assert_close(loss(swapped, targets, 0.1), loss(z, targets, 0.1))
    # and may differ from image to image
    one_swapped = z.clone()
    one_swapped[[2, B + 2]] = z[[B + 2, 2]]
    torch.testing.assert_close(loss(one_swapped, targets, 0.1), loss(z, targets, 0.1))


def test_order_of_classes_does_not_matter() -> None:
    z, targets = embeddings(), soft_targets()
    torch.testing.assert_close(supcon(z, targets[:, [2, 0, 3, 1]], 0.1), supcon(z, targets, 0.1))


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_gradient(name: str, temperature: float) -> None:
    z, targets = embeddings().requires_grad_(), soft_targets()
    loss = CONTRASTIVE[name]
    assert torch.autograd.gradcheck(lambda z: loss(z, targets, temperature), z)


def test_targets_receive_no_gradient() -> None:
    z, targets = embeddings().requires_grad_(), soft_targets().requires_grad_()
    supcon(z, targets, 0.1).backward()
    assert targets.grad is None
    assert z.grad is not None


def pull_of_other_images(z: Tensor, targets: Tensor, temperature: float = 0.1) -> Tensor:
    """(2B,D) descent direction that supcon adds to simclr: both share the log-partition."""
    z = z.clone().requires_grad_()
    difference = supcon(z, targets, temperature) - simclr(z, temperature)
    return -torch.autograd.grad(difference, z)[0]


def test_a_wrong_label_that_is_no_longer_believed_does_not_pull() -> None:
    # Image 0 looks like class 0 and was labelled 1, as images 3, 4, 5 are.
    z = embeddings()
    class_one = z[[3, 4, 5, B + 3, B + 4, B + 5]].mean(0)

    def toward_class_one(belief_in_label: float) -> float:
        targets = hard_targets(2, 0, 0, 1, 1, 1)
        targets[0] = torch.tensor([0.0, belief_in_label, 1 - belief_in_label, 0.0])
        return float(pull_of_other_images(z, targets)[0] @ class_one)

    pulls = [toward_class_one(belief) for belief in (0.0, 0.1, 0.5, 1.0)]
    assert pulls[0] == pytest.approx(0.0, abs=1e-12)
    assert pulls == sorted(pulls)
    assert pulls[1] > 0.01

    # nothing at all acts on either view when no target agrees with the image's
    alone = pull_of_other_images(z, hard_targets(2, 0, 0, 1, 1, 1))
    torch.testing.assert_close(alone[[0, B]], torch.zeros(2, D, dtype=torch.float64))
    assert alone[1].norm() > 0.01

    # believed again to be of class 0, it is pulled there
    class_zero = z[[1, 2, B + 1, B + 2]].mean(0)
    corrected = pull_of_other_images(z, hard_targets(0, 0, 0, 1, 1, 1))
    assert corrected[0] @ class_zero > 0.01


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_autocast_leaves_full_precision(name: str, temperature: float) -> None:
    z, targets = embeddings(batch=64, dim=32).float(), soft_targets(batch=64).float()
    loss = CONTRASTIVE[name]
    expected = loss(z, targets, temperature)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(z, targets, temperature)
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.05, 0.5])
def test_bfloat16_embeddings_cost_only_their_own_rounding(name: str, temperature: float) -> None:
    exact, targets = embeddings(batch=64, dim=32).float(), soft_targets(batch=64).float()
    z = exact.bfloat16().requires_grad_()
    loss = CONTRASTIVE[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = loss(z, targets.bfloat16(), temperature)
    actual.backward()
    assert actual.dtype == torch.float32
    assert z.grad is not None and z.grad.dtype == torch.bfloat16
    torch.testing.assert_close(actual, loss(z.detach().float(), targets.bfloat16(), temperature))
    torch.testing.assert_close(actual, loss(exact, targets, temperature), rtol=5e-3, atol=0.0)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_float32_matches_float64(name: str) -> None:
    # sums per class add and then subtract the image's own term: its rounding must stay small
    z, targets = embeddings(batch=128, dim=32), hard_targets(*[i % K for i in range(128)])
    loss = CONTRASTIVE[name]
    gradients = []
    for dtype in (torch.float32, torch.float64):
        leaf = z.to(dtype).requires_grad_()
        value = loss(leaf, targets.to(dtype), 0.05)
        gradients.append((value.double(), torch.autograd.grad(value, leaf)[0].double()))
    torch.testing.assert_close(gradients[0][0], gradients[1][0], rtol=1e-6, atol=0.0)
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.001, 0.05])
@pytest.mark.parametrize("case", ["collapsed", "opposite views", "long"])
def test_extreme_similarities_stay_finite(name: str, temperature: float, case: str) -> None:
    z = {
        "collapsed": torch.ones(2 * B, D) / math.sqrt(D),
        "opposite views": torch.cat([embeddings()[:B], -embeddings()[:B]]).float(),
        "long": 1e3 * embeddings().float(),
    }[case].requires_grad_()
    loss = CONTRASTIVE[name](z, soft_targets().float(), temperature)
    loss.backward()
    assert z.grad is not None
    assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    if case == "collapsed":  # all 2B - 1 candidates are alike
        assert loss.item() == pytest.approx(math.log(2 * B - 1), rel=1e-3)


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_descent_separates_classes(name: str) -> None:
    """simclr tells images apart; supcon brings the images of a class together as well."""
    targets = hard_targets(0, 0, 0, 1, 1, 1)
    raw = embeddings().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        CONTRASTIVE[name](normalize(raw, dim=1), targets, 0.5).backward()
        optimizer.step()
    z = normalize(raw.detach(), dim=1)
    cosine = z[:B] @ z[B:].T  # (B,B) between the views
    assert cosine.diagonal().min() > 0.9
    within = cosine[:3, :3].mean() + cosine[3:, 3:].mean()
    between = cosine[:3, 3:].mean() + cosine[3:, :3].mean()
    assert (within - between > 1.9) == (name == "supcon")


@pytest.mark.parametrize("name", CONTRASTIVE)
def test_nothing_depends_on_values_on_the_host(name: str) -> None:
    # fake tensors hold no values: .item(), nonzero or a boolean index would raise
    with FakeTensorMode(), torch.autocast("cpu", dtype=torch.bfloat16):
        z = torch.randn(2 * B, D, requires_grad=True)
        loss = CONTRASTIVE[name](z, torch.rand(B, K), 0.1)
        loss.backward()
        assert loss.shape == () and loss.dtype == torch.float32
        assert z.grad is not None and z.grad.shape == (2 * B, D)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CONTRASTIVE)
def test_cuda_matches_cpu_without_a_sync(name: str) -> None:
    z, targets = embeddings(batch=64, dim=32).float(), soft_targets(batch=64).float()
    loss = CONTRASTIVE[name]
    on_gpu = z.cuda().requires_grad_()
    targets_on_gpu = targets.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            actual = loss(on_gpu, targets_on_gpu, 0.05)
        actual.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.testing.assert_close(actual.cpu(), loss(z, targets, 0.05), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("shape", [(3, D), (0, D), (4,)])
def test_wrong_shape_of_z(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"z: expected shape \(2B, D\)"):
        CONTRASTIVE[name](torch.zeros(shape), torch.zeros(1, K), 0.1)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("z", [torch.ones(4, D).numpy(), torch.ones(4, D, dtype=torch.long)])
def test_wrong_kind_of_z(name: str, z: Any) -> None:
    with pytest.raises(ValueError, match="z: expected a tensor of floating-point numbers, got "):
        CONTRASTIVE[name](z, torch.ones(2, K), 0.1)


@pytest.mark.parametrize("name", CONTRASTIVE)
@pytest.mark.parametrize("temperature", [0.0, -0.1, math.nan, "0.3", None])
def test_wrong_temperature(name: str, temperature: Any) -> None:
    with pytest.raises(ValueError, match="temperature: expected a number above 0"):
        CONTRASTIVE[name](embeddings(), soft_targets(), temperature)


@pytest.mark.parametrize(
    "targets", [torch.zeros(2 * B, K), torch.zeros(B, dtype=torch.long), [[1.0]]]
)
def test_wrong_shape_of_targets(targets: Any) -> None:
    with pytest.raises(ValueError, match=r"targets: expected shape \(6, K\)"):
        supcon(embeddings(), targets, 0.1)
