"""Probes: samples that the classifier never learns, which show when the network memorises labels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noisybsd import BSD, cross_entropy
from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.methods.bsd import Memorisation, PosteriorTargets
from noisybsd.runs.tracking import epoch_line


def probes(memorisation: Memorisation) -> Tensor:
    return memorisation.learned == 0


def test_one_in_twenty_of_each_class_is_a_probe_and_no_class_loses_its_few() -> None:
    labels = torch.cat([torch.full((n,), k) for k, n in enumerate((100, 19, 0, 45, 1))])
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    chosen = probes(Memorisation(labels, 5))
    assert torch.bincount(labels[chosen], minlength=5).tolist() == [5, 0, 0, 2, 0]


def test_of_very_many_samples_about_a_thousand_are_probes() -> None:
    labels = torch.arange(50_000) % 10
    chosen = probes(Memorisation(labels, 10))
    assert torch.bincount(labels[chosen]).tolist() == [100] * 10


def test_memorisation_against_a_slow_loop() -> None:
    labels = torch.arange(200) % 4
    memorisation = Memorisation(labels, 4)
    generator = torch.Generator().manual_seed(0)
    sums, counts = [0.0, 0.0], [0.0, 0.0]
    for _ in range(30):
        index = torch.randperm(200, generator=generator)[:16]
        # it knows a sample that it learns better than a probe
        logits = torch.randn(16, 4, generator=generator)
        logits[torch.arange(16), labels[index]] += 3 * memorisation.learned[index]
        probs = logits.softmax(dim=1)
        memorisation.observe(index, probs)
        for j in (0, 1):
            sums[j] *= 1 - 16 / 200
            counts[j] *= 1 - 16 / 200
        for b, i in enumerate(index.tolist()):
            j = int(memorisation.learned[i])
            sums[j] += float(probs[b, labels[i]])
            counts[j] += 1
        of_probes, of_learned = (sums[0] + 1) / (counts[0] + 2), sums[1] / counts[1]
        error = math.sqrt(of_probes * (1 - of_probes) / (counts[0] + 2))
        slow = min(max((of_learned - of_probes - error) / (1 - of_probes), 0.0), 1.0)
        assert memorisation().item() == pytest.approx(slow, abs=1e-5)
    assert slow > 0.2


def test_nothing_is_memorised_before_a_probe_was_seen_nor_by_a_network_that_generalises() -> None:
    labels = torch.arange(400) % 4
    memorisation = Memorisation(labels, 4)
    assert memorisation().item() == 0
    unsure = torch.full((400, 4), 0.1)
    unsure[torch.arange(400), labels] = 0.7  # as sure of probes as of the others
    learned = torch.nonzero(memorisation.learned).squeeze(1)
    memorisation.observe(learned, unsure[learned])
    assert memorisation().item() == 0
    memorisation.observe(torch.arange(400), unsure)
    assert memorisation().item() == 0


def rule(labels: Tensor, **options: Any) -> PosteriorTargets:
    found = BSD(labels, int(labels.max()) + 1, epochs=60, **options).rule
    assert isinstance(found, PosteriorTargets)
    return found


def test_a_probes_target_is_zeros_and_its_belief_is_as_others() -> None:
    labels = torch.arange(100) % 2
    of = rule(labels)
    assert of.probes is not None
    chosen = probes(of.probes)
    assert chosen.sum() == 4
    targets = of.visit(torch.arange(100), torch.zeros(2, 100, 2))
    assert torch.equal(targets.sum(1) == 0, chosen)
    torch.testing.assert_close(targets[~chosen].sum(1), torch.ones(96))
    torch.testing.assert_close(of.posterior.mean().sum(1), torch.ones(100))


def all_memorised(probe: bool = True) -> PosteriorTargets:
    of = rule(torch.arange(80) % 2, align=False, sharpen=False, probe=probe)
    if of.probes is not None:
        of.probes.counts.copy_(torch.tensor([1e6, 1e6]))
        of.probes.sums.copy_(torch.tensor([0.5e6, 1e6]))
        assert of.probes().item() == pytest.approx(1.0, abs=0.01)
    return of


def test_late_in_the_run_labels_are_asked_again() -> None:
    """With r = u min(1, 10 M)^2, u from 1 to 0 between half and nine tenths of the run."""
    few = torch.arange(8)
    probs = torch.tensor([[0.6, 0.4], [0.2, 0.8]])[:, None].expand(2, 8, 2)
    of, without = all_memorised(), all_memorised(probe=False)
    for epoch, r in ((0, 1.0), (30, 1.0), (42, 0.5), (54, 0.0), (59, 0.0)):
        of.start_epoch(epoch)
        found = of._memorised()
        assert found is not None and found.item() == pytest.approx(r, abs=1e-6)
    of.observe(few, probs)
    without.observe(few, probs)
    torch.testing.assert_close(of.posterior.mean(few), without.posterior.mean(few))


def test_with_everything_memorised_a_visit_is_one_of_the_papers() -> None:
    """alpha <- gamma alpha + s: the label is not asked, and the views' agreement does not count."""
    of, few = all_memorised(), torch.arange(8)
    before = (of.posterior.mean(few) * of.posterior.strength()[few, None]).clone()
    probs = torch.tensor([[0.6, 0.4], [0.2, 0.8]])[:, None].expand(2, 8, 2)
    of.observe(few, probs)
    after = of.posterior.mean(few) * of.posterior.strength()[few, None]
    torch.testing.assert_close(after, 0.8 * before + probs[0])


def blobs(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points (N,D), their classes (N,), and labels of which two fifths are drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.arange(3000) % 5
    centres = torch.randn(5, 64, generator=generator)
    points = centres[classes] + 2 * torch.randn(3000, 64, generator=generator)
    drawn = torch.randint(5, (3000,), generator=generator)
    wrong = torch.rand(3000, generator=generator) < 0.4
    return points, classes, torch.where(wrong, drawn, classes)


def labels_right_after(probe: bool, seed: int) -> float:
    """The share of right labels by belief, beside a wide network that memorises all labels in ten epochs."""
    points, classes, labels = blobs(seed)
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 5))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    beliefs = BSD(labels, 5, epochs=40, probe=probe)
    for epoch in range(15):
        beliefs.start_epoch(epoch)
        for index in torch.randperm(3000).split(50):
            logits = network(points[index])
            loss = cross_entropy(logits, beliefs.step(index, logits))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return float((beliefs.suggested() == classes).float().mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_labels_do_not_confirm_themselves_in_a_network_that_memorises(seed: int) -> None:
    """Without probes hardly more labels are right than those that are given, 68 %."""
    assert labels_right_after(True, seed) > labels_right_after(False, seed) + 0.04


def test_a_run_says_how_far_it_memorises() -> None:
    settings = ["recipe=digits_sym40", "epochs=1", "data.limit=400", "device=cpu", "neighbours.k=0"]
    for method, known in (("bsd_plus", True), ("bsd", False), ("ce", False)):
        config = load_config([*settings, f"method={method}"])
        dataset = load_dataset(config.data, config.noise, config.seed)
        trainer = Trainer(config, dataset, torch.device("cpu"))
        metrics = trainer.end_epoch()
        assert metrics.get("memorisation") == (0.0 if known else None)
    assert "memorisation 0.25" in epoch_line({"epoch": 1, "memorisation": 0.25}, 2)


def test_a_loss_that_leaves_no_sample_out_takes_no_probes() -> None:
    with pytest.raises(
        UserError, match=r"options\.probe=true .* loss=sce .* use options\.probe=false"
    ):
        load_config(["recipe=digits_sym40", "loss=sce"])
    assert load_config(["recipe=digits_sym40", "loss=sce", "options.probe=false"]).loss == "sce"
    assert load_config(["recipe=digits_sym40", "loss=gce"]).options["probe"] is True
