from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.training import TINY
from torch import Tensor, nn

from noisybsd.config import load_config
from noisybsd.data.views import VIEWS
from noisybsd.engine.data import run_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.methods.bsd import PosteriorTargets
from noisybsd.methods.registry import LOSSES, TARGET_RULES


@pytest.fixture(autouse=True, scope="module")
def benchmarks_are_importable() -> Iterator[None]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    registries = [(registry, dict(registry)) for registry in (TARGET_RULES, LOSSES, VIEWS)]
    yield
    sys.path.remove(str(ROOT / "benchmarks"))
    sys.modules.pop("screen", None)
    for registry, before in registries:  # screen.py adds to them
        for name in registry.keys() - before.keys():
            del registry[name]


def test_candidates_take_turns() -> None:
    from common import take_turns

    calls: list[str] = []
    now = iter(range(100))
    seconds = take_turns(
        {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")},
        rounds=2,
        warmup=1,
        clock=lambda: next(now),
    )
    assert "".join(calls) == "ababab"
    assert seconds == {"a": [1, 1], "b": [1, 1]}  # two turns each, the warm-up not counted


def test_a_csv_says_what_made_it(tmp_path: Path) -> None:
    from common import quartiles, write_csv
    from tables import with_tables

    path = tmp_path / "new" / "step.csv"
    rows = [
        {"method": "ce", **quartiles([1.0, 2.0, 3.0, 4.0, 5.0], "ms"), "n": 5},
        {"method": "bsd", **quartiles([1234.5] * 3, "ms"), "note": "x"},
    ]
    write_csv(path, rows)
    assert path.read_text().splitlines()[0] == (
        "method,ms_median,ms_quartile1,ms_quartile3,n,note,hardware,versions,git_commit"
    )
    text = f"before\n<!-- table {path}: method, ms, n; method=ce -->\nold\n<!-- end -->\nafter"
    lines = with_tables(text).splitlines()
    assert lines[:5] == [
        *text.splitlines()[:2],
        "| method | ms | n |",
        "| --- | --- | --- |",
        "| ce | 3 (1.5–4.5) | 5 |",
    ]
    assert lines[-2:] == ["<!-- end -->", "after"] and "old" not in lines
    assert f"torch={torch.__version__.split('+')[0]}" in lines[6]
    assert with_tables(with_tables(text)) == with_tables(text)


@pytest.mark.parametrize(
    "document",
    ["docs/performance.md", "docs/scaling.md", "results/calibration.md", "results/labels.md"],
)
def test_tables_of_the_documents_are_those_of_the_csvs(document: str) -> None:
    from tables import with_tables

    text = (ROOT / document).read_text("utf-8")
    assert with_tables(text) == text, f"run: python benchmarks/tables.py {document}"
    assert "| --- |" in text


def test_the_accuracy_of_a_bin_is_the_trace_of_the_joint_by_the_inverse_of_the_noise() -> None:
    from calibration import by_accuracy

    rng = np.random.default_rng(0)
    logits, labels = torch.from_numpy(rng.normal(size=(60, 3)) * 4), rng.integers(0, 3, 60)
    noise = np.array([[0.7, 0.2, 0.1], [0.0, 0.8, 0.2], [0.3, 0.1, 0.6]])

    def error(temperature: float) -> float:
        probs = (logits / temperature).softmax(1).numpy()
        order, total = np.argsort(probs.max(1), kind="stable"), 0.0
        for part in np.array_split(order, 4):
            joint = np.zeros((3, 3))
            for i in part:
                joint[probs[i].argmax(), labels[i]] += 1 / len(part)
            gap = np.trace(joint @ np.linalg.inv(noise)) - probs[part].max(1).mean()
            total += len(part) * abs(gap)
        return total

    found = by_accuracy(logits, torch.from_numpy(labels), torch.from_numpy(noise), bins=4)
    assert error(found) == pytest.approx(min(map(error, np.geomspace(0.25, 10, 371))), abs=1e-9)


def test_flops_are_two_for_each_multiplication_forward_and_backward() -> None:
    from step import flops_per_view

    class TwoHeads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 5, 1, bias=False)
            self.first, self.second = nn.Linear(5, 7, bias=False), nn.Linear(5, 2, bias=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            features = self.conv(x).mean((2, 3))
            return self.first(features), self.second(features)

    conv, heads = 2 * 3 * 5 * 4 * 4, 2 * 5 * (7 + 2)
    # backward: to weights and inputs, but the images need no gradient
    assert flops_per_view(TwoHeads(), 4, torch.device("cpu")) == 2 * conv + 3 * heads  # type: ignore[arg-type]


def test_both_ways_of_a_step_take_the_same_step() -> None:
    """What host.py compares differs in time alone; `plain` counts batches too."""
    from host import evaluations, plainly
    from step import random_dataset

    states = []
    for way in (plainly, contextlib.nullcontext):
        config = load_config([*TINY, "method=sop_plus", "augment.name=cifar", "data.limit=null"])
        trainer = Trainer(config, random_dataset(64, 4, 8), torch.device("cpu"))
        trainer.network.train()
        with way(trainer):
            for batch in trainer.loader.epoch(0):
                trainer.step(*batch)
        states.append(trainer.state()["modules"])
        for evaluate in evaluations(trainer):
            evaluate()
    for part, state in states[0].items():
        for name, value in state.items():
            if name.endswith("num_batches_tracked"):
                assert (value, states[1][part][name]) == (0 if part == "ema" else 2, 0)
            else:
                assert torch.equal(value, states[1][part][name]), f"{part}: {name}"


@pytest.mark.slow
def test_the_profile_of_a_step_names_its_parts() -> None:
    from step import PROFILED, build_trainer, profile_step, random_dataset

    args = argparse.Namespace(batch=16, network="small_cnn", width=4, settings=["neighbours.k=5"])
    trainer = build_trainer("bsd_plus", random_dataset(64, 3, 16), args, torch.device("cpu"))
    backward = Tensor.backward
    table = profile_step(trainer, steps=2).split("\n\n")[0].splitlines()
    assert Tensor.backward is backward
    milliseconds = {line[:20].strip(): float(line[20:].split()[0]) for line in table[2:]}
    assert list(milliseconds) == [*PROFILED, "the rest"]
    assert all(value > 0 for value in milliseconds.values())
    whole = milliseconds.pop("whole step")
    assert sum(milliseconds.values()) == pytest.approx(whole, abs=0.02)


def test_made_up_embeddings_are_unit_vectors_in_clusters() -> None:
    from scale import clustered, diffuse

    for make in (clustered, diffuse):
        z = make(2000)
        torch.testing.assert_close(z.norm(dim=1), torch.ones(2000))
    nearest = (clustered(2000) @ clustered(2000).T).fill_diagonal_(-1).amax(1)
    assert (
        nearest.mean() > 0.8 > (diffuse(2000) @ diffuse(2000).T).fill_diagonal_(-1).amax(1).mean()
    )


def test_batches_of_the_scale_benchmark_hold_no_sample_twice() -> None:
    from scale import BATCH, batches

    for samples in (50_000, 1_000_000):
        rows = batches(samples, 20, torch.Generator().manual_seed(0))
        assert all(len(set(row)) == BATCH for row in rows.tolist())
        assert rows.min() >= 0 and rows.max() < samples


def test_a_long_tail_keeps_the_first_samples_of_each_class() -> None:
    from longtail import kept

    labels = np.arange(300) % 3
    chosen = kept(labels, ratio=4)
    assert np.bincount(labels[chosen]).tolist() == [100, 50, 25]
    assert all(
        np.array_equal(chosen[labels[chosen] == k], np.arange(k, 300, 3)[:n])
        for k, n in enumerate((100, 50, 25))
    )


def test_every_variant_of_the_screen_is_a_configuration_of_its_own() -> None:
    from screen import BASE, DATA, VARIANTS, trials

    from noisybsd.config import load_config

    runs = trials(Path(), list(DATA), list(VARIANTS), [0], [])
    made = {load_config(run.arguments).model_dump_json() for run in runs}
    assert len(made) == len({run.directory for run in runs}) == len(runs)
    frozen = {run.variant for run in runs if "recipe=own_quick" in run.arguments}
    assert "whole visits" in frozen and "no contrastive term" not in frozen  # it has none
    cpu = {run.variant for run in runs if run.data == "all of CIFAR-10N worst, 16 epochs, width 16"}
    same = {"contrastive weight 0.1", "randaugment, contrastive weight 0.1"}  # 0.1 is the recipe's
    assert {*VARIANTS} - cpu == same
    base = [load_config(run.arguments) for run in runs if run.variant == BASE]
    assert {config.method for config in base} == {"bsd_plus"}


def test_the_operations_of_autoaugment_are_torchvisions() -> None:
    from screen import AutoAugment
    from torchvision.transforms import InterpolationMode, autoaugment

    ours = AutoAugment()
    policy = autoaugment.AutoAugment(autoaugment.AutoAugmentPolicy.CIFAR10)
    space = policy._augmentation_space(10, (1, 1))
    images = torch.randint(256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    seen = set()
    for pair, drawn in zip(policy.policies, ours.pairs, strict=True):
        for (name, probability, bin), (number, share, *both) in zip(pair, drawn, strict=True):
            kind, (magnitudes, signed) = ours.KINDS[number], space[name]
            assert share == probability
            for sign, magnitude in zip((1, -1), both, strict=True):
                size = 0.0 if bin is None else float(magnitudes[bin])
                size *= sign if signed else 1
                params = {
                    "kind": torch.tensor([[number, 0]] * 4),
                    "magnitude": torch.tensor([[magnitude, 0.0]] * 4),
                }
                seen.add(name)
                if kind in ours.MOVE:  # what is outside of the image differs
                    moved = ours.moves(params, 1, 1)
                    amount = {
                        "rotate": moved["angle"],
                        "shear_x": moved["shear_x"].deg2rad().tan(),
                        "shear_y": moved["shear_y"].deg2rad().tan(),
                        "translate_x": moved["translations"][:, 0],
                        "translate_y": moved["translations"][:, 1],
                    }[kind]
                    assert amount[0].item() == pytest.approx(size, abs=1e-5)
                    continue
                args = (name, size, InterpolationMode.NEAREST, None)
                expected = autoaugment._apply_op(images, *args).float()
                found = ours(images / 255, params=params) * 255
                # torchvision cuts to whole levels, and its grey differs in the fourth decimal
                assert (found - expected).abs().max() < 2.1, (name, size)
    assert {"Invert", "Solarize", "Posterize", "Sharpness", "ShearY", "TranslateX"} <= seen


def test_autoaugment_draws_a_pair_for_each_image() -> None:
    from screen import AutoAugment

    torch.manual_seed(0)
    ours, kinds = AutoAugment(), []
    params = ours.generate_parameters((4000, 3, 32, 32))
    kinds = [tuple(row) for row in params["kind"].tolist()]
    possible = {(a, b) for p in ours.pairs for a in (p[0][0], 0) for b in (p[1][0], 0)}
    assert {*kinds} <= possible and len({*kinds}) > 40
    share = sum(
        kind == (ours.KINDS.index("autocontrast"), ours.KINDS.index("equalize")) for kind in kinds
    )
    assert share / 4000 == pytest.approx(0.5 * 0.9 / 25, abs=0.006)


def test_a_pooled_target_is_the_pool_of_the_label_report() -> None:
    from screen import PooledTarget

    from noisybsd.methods.beliefs import task_of
    from noisybsd.report.findings import pooled

    rule = PooledTarget(task_of([0, 1, 2, 0], 3, epochs=10), align=False)
    probs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(0)).softmax(dim=-1)
    targets = rule.visit(torch.arange(4), probs.log())
    pool = pooled(rule.posterior.mean().numpy(), probs[0].numpy())
    sharp = pool ** (1 / rule.target_temperature)
    np.testing.assert_allclose(targets, sharp / sharp.sum(axis=1, keepdims=True), rtol=1e-4)


def test_negatives_by_disagreement_by_slow_loops() -> None:
    from screen import supcon_by_agreement

    generator = torch.Generator().manual_seed(3)
    z = nn.functional.normalize(torch.randn(8, 5, generator=generator), dim=1)
    y = torch.randn(4, 3, generator=generator).softmax(dim=1)
    total = 0.0
    for a in range(8):
        partition, pull, weights = 0.0, 0.0, 0.0
        for b in range(8):
            if a == b:
                continue
            other_view = a % 4 == b % 4
            agree = 1.0 if other_view else float(y[a % 4] @ y[b % 4])
            cosine = float(z[a] @ z[b]) / 0.2
            partition += math.exp(cosine) * (1.0 if other_view else 1 - agree)
            pull, weights = pull + agree * cosine, weights + agree
        total += math.log(partition) - pull / weights
    assert supcon_by_agreement(z, y, 0.2).item() == pytest.approx(total / 8, rel=1e-5)


def test_a_sample_counts_as_much_as_its_neighbours_agree() -> None:
    from dataclasses import replace

    from screen import BankGate

    from noisybsd.methods.beliefs import task_of
    from noisybsd.settings import NeighboursConfig

    task = replace(task_of([0, 1, 1], 2, 10), neighbours=NeighboursConfig(k=1, weight=1.0))
    gated, plain = BankGate(task), PosteriorTargets(replace(task, neighbours=NeighboursConfig(k=0)))
    index, logits = torch.tensor([0, 1]), torch.randn(2, 2, 2)
    assert torch.equal(gated.visit(index, logits), plain.visit(index, logits))
    gated.observe_neighbours(torch.tensor([[0.2, 0.8], [0.2, 0.8], [0.0, 0.0]]))
    found, believed = gated.visit(index, logits), plain.visit(index, logits)
    expected = [0.25 if row.argmax() == 0 else 1.0 for row in believed]
    assert (found.sum(dim=1) / believed.sum(dim=1)).tolist() == pytest.approx(expected)


def test_rising_classes_are_left_out_by_slow_loops() -> None:
    from screen import RisingMask

    from noisybsd.methods.beliefs import task_of
    from noisybsd.methods.parts import Batch

    loss = RisingMask(task_of([0, 1], 3, 10, views=2))
    targets = torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.95, 0.0]])
    index = torch.tensor([0, 1])
    first, second = torch.randn(2, 2, 2, 3, generator=torch.Generator().manual_seed(1))
    z = torch.zeros(4, 1)
    loss(Batch(index, index, first, z, targets))  # the first visit: nothing rises
    total = 0.0
    for i in range(2):
        mean = [0.3 * p for p in first[0, i].softmax(0).tolist()]
        now = second[0, i].softmax(0).tolist()
        kept = [k for k in range(3) if k == i or i == 1 or now[k] <= mean[k]]
        assert i == 1 or len(kept) < 3
        mass = sum(targets[i, k].item() for k in kept)
        for view in range(2):
            partition = sum(math.exp(second[view, i, k].item()) for k in kept)
            for k in kept:
                log_p = second[view, i, k].item() - math.log(partition)
                total -= targets[i, k].item() / mass * log_p / 4
    assert loss(Batch(index, index, second, z, targets)).item() == pytest.approx(total, rel=1e-5)


def test_ideas_that_change_one_term_by_slow_loops() -> None:
    from screen import MixupBeside, StrongView, UniformAlignment, WeakView, no_negatives

    from noisybsd.methods.beliefs import task_of
    from noisybsd.methods.parts import Batch, Mixup

    generator = torch.Generator().manual_seed(5)
    logits = torch.randn(4, 2, 3, generator=generator)  # weak and strong view, and both mixed
    targets = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.4, 0.6]])
    index, z = torch.tensor([0, 1]), torch.randn(4, 5, generator=generator)
    task = task_of([0, 1], 3, 10, views=2)

    def slow(view: int, wanted: Tensor) -> float:
        """Cross-entropy of one view."""
        total = 0.0
        for i in range(2):
            partition = sum(math.exp(x) for x in logits[view, i].tolist())
            for k in range(3):
                log_p = logits[view, i, k].item() - math.log(partition)
                total -= wanted[i, k].item() * log_p / 2
        return total

    batch = Batch(index, index, logits[:2], z, targets)
    assert WeakView(task)(batch).item() == pytest.approx(slow(0, targets), rel=1e-5)
    assert StrongView(task)(batch).item() == pytest.approx(slow(1, targets), rel=1e-5)
    mixup = Mixup(torch.tensor(0.75), torch.tensor([1, 0]))
    mixed = 0.75 * targets + 0.25 * targets.flip(0)
    expected = (slow(0, targets) + slow(1, targets) + slow(2, mixed) + slow(3, mixed)) / 2
    beside = MixupBeside(task)(Batch(index, index, logits, z, targets, mixup))
    assert beside.item() == pytest.approx(expected, rel=1e-5)
    unit = nn.functional.normalize(z, dim=1)
    cosines = [sum((unit[i] * unit[i + 2]).tolist()) for i in range(2)]
    assert no_negatives(unit, targets, 0.1).item() == pytest.approx(-sum(cosines) / 2, rel=1e-5)
    rule = UniformAlignment(task_of([0, 0, 0, 1], 3, 10))
    rule.start_epoch(0)
    assert rule.alignment is not None
    assert rule.alignment.histogram.tolist() == pytest.approx([1 / 3] * 3)


def test_a_fading_label_is_forgotten_for_what_prediction_and_label_say() -> None:
    from screen import FadingLabel

    from noisybsd.methods.beliefs import task_of

    rule = FadingLabel(task_of([0, 1, 1, 0], 2, epochs=10))
    index, logits = torch.tensor([0]), torch.tensor([[[0.0, 4.0]]])
    assert rule.visit(index, logits).tolist() == [[1.0, 0.0]]
    rule.start_epoch(4)  # half of the way to the eighth epoch, from which no label is a target
    halfway = rule.visit(index, logits)
    assert halfway[0, 0] == pytest.approx(0.5 + rule.posterior.mean(index)[0, 0].item() / 2)
    rule.start_epoch(8)
    assert rule.visit(index, logits)[0, 1] > 0.9


@pytest.mark.parametrize(
    "name",
    [
        *("aligned to equal classes", "targets as they are believed", "sharp to the end"),
        *("the label fades", "the weight average observes", "neighbours gate"),
        "the label fades, the weight average observes",
        *("negatives by disagreement", "no negatives", "rising classes are no negatives", "mixup"),
        *("classified: weak view only", "classified: strong view only"),
    ],
)
def test_ideas_that_are_not_in_the_product_differ_from_it(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each replaced part is in use: the run's belief or weights are not those of the recipe."""
    from screen import BASE, EmaSensorTrainer, trial

    from noisybsd import train, training
    from noisybsd.runs.checkpoint import load_checkpoint

    monkeypatch.setattr(training, "Trainer", EmaSensorTrainer)
    short = ["data.limit=64", "batch_size=32", "epochs=5", "network.width=4", "neighbours.k=5"]
    found = []
    for variant in (BASE, name):
        run = trial(tmp_path, "digits, symmetric 80 %", variant, 0, [*short, "device=cpu"])
        assert train.main([*run.arguments, f"run.dir={run.directory}"]) == 0
        modules = load_checkpoint(run.directory / "checkpoint.pt")["modules"]
        found.append((modules["rule"]["posterior.alpha"], modules["network"]["classifier.weight"]))
    assert not all(torch.equal(*pair) for pair in zip(*found, strict=True))


@pytest.mark.parametrize("method", ["bsd_plus", "ce"])
def test_what_a_graph_of_a_step_is_told_from_outside_is_all_that_changes(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a graph repeats what was captured, with the host's values of that moment."""
    from cuda_graph import GraphTrainer

    class Repeats:
        def __init__(self, trainer: GraphTrainer):
            self.trainer = trainer

        def replay(self) -> None:
            self.trainer.learn(self.trainer.index, self.trainer.images, 0)

    def capture(self: GraphTrainer, index: Tensor, images: Tensor) -> None:
        self.index, self.images = index.clone(), images.clone()
        self.graph, self.captured_epoch = Repeats(self), self.epoch  # type: ignore[assignment]

    monkeypatch.setattr(GraphTrainer, "capture", capture)
    config = load_config([*TINY, f"method={method}", "optimizer.warmup_epochs=1", "epochs=2"])
    dataset = run_dataset(config)
    trained = []
    for kind in (Trainer, GraphTrainer):
        trainer = kind(config, dataset, torch.device("cpu"))
        trainer.network.train()
        for index, images in trainer.loader.epoch(0):
            trainer.step(index, images)
        assert trainer.ema is not None
        trained.append((trainer, [*trainer.network.parameters(), *trainer.ema.parameters()]))
    (plain, expected), (graph, found) = trained
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert plain.step_number == graph.step_number == 4
    assert plain.images_seen == graph.images_seen
    torch.testing.assert_close(plain.sums.sums, graph.sums.sums)
    graph.sums.step.fill_(7)  # type: ignore[operator]
    graph.sums.add(0, *torch.tensor([torch.nan, 0.0, 0.0, 0.0]))
    assert graph.sums.first_bad_step() == 7


def test_a_screen_keeps_the_rows_of_runs_that_are_elsewhere(tmp_path: Path) -> None:
    from common import save_csv
    from screen import BASE, COLUMNS, rows_of_others, write_markdown

    def row(
        data: str,
        variant: str,
        seed: int,
        accuracy: float,
        hardware: str = "a GPU",
        settings: str = "",
    ) -> dict[str, object]:
        numbers = dict.fromkeys(COLUMNS, accuracy) | {"network_passes": 6.0}
        made = {"run_hardware": hardware, "run_commit": "abc", "run_torch": "2.11"}
        about = {"data": data, "variant": variant, "seed": seed, "settings": settings}
        return {**about, **numbers, **made}

    digits = "digits, symmetric 50 %"
    save_csv(
        tmp_path / "screen.csv",
        [row(digits, "mixup", 0, 0.9), row(digits, BASE, 0, 0.8), row("gone", BASE, 1, 0.5)],
    )
    found = rows_of_others(tmp_path / "screen.csv", [row(digits, BASE, 0, 0.85)])
    assert found == [
        row(digits, BASE, 0, 0.85),
        row(digits, "mixup", 0, 0.9),
        row("gone", BASE, 1, 0.5),
    ]
    write_markdown(tmp_path / "screen.md", found[:2])
    text = (tmp_path / "screen.md").read_text()
    assert "| mixup | 0 | 90.00 (+5.0) |" in text and text.endswith("| 6 |\n")
    assert rows_of_others(tmp_path / "none.csv", found) == found
    # pairs of two seeds have an interval; runs on other hardware or with other settings are no pairs
    alike = [row(digits, BASE, s, 0.8 + s / 100) for s in (0, 1)]
    better = [row(digits, "mixup", s, 0.81 + 3 * s / 100) for s in (0, 1)]
    elsewhere = row(digits, "simclr", 0, 0.9, hardware="a CPU")
    longer = row(digits, "one view", 0, 0.9, settings="epochs=9")
    write_markdown(tmp_path / "screen.md", [*alike, *better, elsewhere, longer])
    text = (tmp_path / "screen.md").read_text()
    assert "| mixup | 0, 1 | 82.50 ± 2.12 (+2.0 [-10.7, +14.7]) |" in text
    assert "| simclr | 0 | 90.00 | 90.00 |" in text and "| one view | 0 | 90.00 | 90.00 |" in text
    assert " epochs=9`; a GPU, torch 2.11, commit abc; a CPU" in text
