"""`BSD` in a loop of one's own."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.fake_gpu import GPU
from helpers.ranks import on_ranks, results
from helpers.training import TINY, NoReadback, NoTracker
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import noisybsd
from noisybsd import BSD, distributed
from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError

LABELS = torch.arange(12) % 3


def batch(views: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randperm(12)[:6], torch.randn(views, 6, 3)


@pytest.mark.parametrize("method", ["bsd_plus", "bsd_plus_one_view", "bsd"])
def test_a_plain_loop_has_the_trainers_targets_bit_for_bit(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config([*TINY, f"method={method}", "data.limit=64"])
    dataset = load_dataset(config.data, config.noise, config.seed)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    labels, epochs = dataset.train.labels, config.epochs
    paper = method == "bsd"
    beliefs = BSD.paper(labels, 10) if paper else BSD(labels, 10, epochs=epochs)
    pairs: list[tuple[Tensor, Tensor]] = []
    visit = trainer.rule.visit

    def both(index: Tensor, logits: Tensor) -> Tensor:
        theirs = visit(index, logits)
        pairs.append((theirs, beliefs.step(index, logits)))
        return theirs

    monkeypatch.setattr(trainer.rule, "visit", both)
    for epoch in range(epochs):
        beliefs.start_epoch(epoch)
        trainer.train_epoch(NoTracker(), _never())  # type: ignore[arg-type]
        trainer.history.append({})
    assert len(pairs) == 6
    assert all(torch.equal(*pair) for pair in pairs)
    belief = trainer.rule.belief()
    assert belief is not None and torch.equal(beliefs.mean(), belief)
    assert torch.equal(beliefs.suggested(), belief.argmax(1))
    assert torch.equal(beliefs.strength(), trainer.rule.strength())  # type: ignore[arg-type]


def _never() -> Any:
    return type("Never", (), {"received": 0})()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_floating_type_are_made_float32_also_under_autocast(
    dtype: torch.dtype,
) -> None:
    index, logits = batch()
    rounded = logits.to(dtype)
    expected = BSD(LABELS, 3, epochs=4).step(index, rounded.float())
    with torch.autocast("cpu", torch.bfloat16):
        targets = BSD(LABELS, 3, epochs=4).step(index, rounded.requires_grad_())
    assert targets.dtype == torch.float32 and not targets.requires_grad
    assert torch.equal(targets, expected)


def test_what_is_not_a_number_does_not_spoil_the_beliefs() -> None:
    beliefs, index = BSD(LABELS, 3, epochs=4), torch.arange(4)
    targets = beliefs.step(index, torch.tensor([[float("nan")] * 3, [float("inf"), 0, 0]] * 2))
    assert targets.isfinite().all() and beliefs.mean().isfinite().all()
    assert beliefs.step(*batch()).isfinite().all()


def test_one_view_may_come_without_its_dimension() -> None:
    index, logits = batch(views=1)
    one, other = BSD(LABELS, 3, epochs=4), BSD(LABELS, 3, epochs=4)
    assert torch.equal(one.step(index, logits[0]), other.step(index, logits))


def test_the_state_continues_with_the_epoch_and_refuses_other_labels() -> None:
    beliefs, again = BSD(LABELS, 3, epochs=4), BSD(LABELS, 3, epochs=4)
    beliefs.start_epoch(3)
    beliefs.step(*batch())
    file = io.BytesIO()
    torch.save(beliefs.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    following = batch(seed=1)
    assert torch.equal(beliefs.step(*following), again.step(*following))
    with pytest.raises(UserError, match="state_dict: belongs to other labels"):
        BSD(LABELS.flip(0), 3, epochs=4).load_state_dict(beliefs.state_dict())


def test_votes_are_the_prior() -> None:
    votes = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    beliefs = BSD(votes, 3, epochs=4, prior_strength=1.0)
    assert torch.allclose(beliefs.mean()[0], torch.tensor([2 / 3, 1 / 3, 0]), atol=1e-3)
    assert beliefs.suggested().tolist() == [0, 2]
    beliefs.step(torch.tensor([0, 1]), torch.randn(2, 3))


def test_many_classes_may_be_kept_sparsely() -> None:
    beliefs = BSD(LABELS, 3, epochs=4, top_k=2)
    targets = beliefs.step(*batch())
    assert torch.allclose(targets.sum(1), torch.ones(6)) and beliefs.samples == 12


def test_a_step_compiles_whole() -> None:
    torch._dynamo.reset()
    beliefs, compiled = BSD(LABELS, 3, epochs=4), BSD(LABELS, 3, epochs=4)
    step = torch.compile(compiled.step, backend="eager", fullgraph=True)
    for seed in range(2):
        assert torch.equal(step(*batch(seed=seed)), beliefs.step(*batch(seed=seed)))


def test_without_the_check_of_the_index_a_step_reads_nothing_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    beliefs = BSD(LABELS, 3, epochs=4)
    with pytest.raises(AssertionError, match="reads back"), NoReadback():
        beliefs.step(*batch())  # an index on the CPU is checked
    # what leaves the check out, as an index on a GPU does
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with NoReadback():
        beliefs.step(*batch())


def test_a_step_on_a_gpu_stays_there() -> None:
    beliefs = BSD(LABELS, 3, epochs=4)
    with FakeTensorMode(allow_non_fake_inputs=True):  # a GPU that need not be there
        beliefs.to(GPU)
        index, logits = torch.zeros(6, dtype=torch.int64, device=GPU), torch.zeros(6, 3, device=GPU)
        assert beliefs.step(index, logits.half()).device == GPU
        assert beliefs.mean().device == beliefs.suggested().device == GPU


def joint_step(split: bool) -> list[Tensor]:
    with distributed.process_group():
        beliefs = BSD(LABELS, 3, epochs=4)
        index, logits = batch()
        if split:
            mine = slice(3 * distributed.rank(), 3 * distributed.rank() + 3)
            index, logits = index[mine], logits[:, mine]
        targets = beliefs.step(index, logits)
        return [targets, beliefs.mean()]


def test_processes_hold_the_beliefs_of_the_joint_batch(tmp_path: Path) -> None:
    targets, mean = joint_step(split=False)
    ranks = results(on_ranks(2, joint_step, True, folder=tmp_path))
    assert torch.equal(torch.cat([each[0] for each in ranks]), targets)
    assert all(torch.equal(each[1], mean) for each in ranks)


INDEX, LOGITS = torch.arange(2), torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("index", "logits", "says"),
    [
        (INDEX, torch.zeros(2), "logits: got shape (2,); valid: (B, 3), or (V, B, 3) of V views"),
        (INDEX, torch.zeros(1, 1, 2, 3), "logits: got shape (1, 1, 2, 3); valid"),
        (INDEX, torch.zeros(2, 4), "logits: got shape (2, 4); valid: (B, 3)"),
        (torch.arange(0), torch.zeros(0, 3), "logits: got shape (0, 3); valid"),
        (INDEX, torch.zeros(2, 3, dtype=torch.int64), "logits: got torch.int64; valid"),
        (INDEX, [[0.0] * 3] * 2, "logits: got list; valid"),
        (INDEX, torch.zeros(2, 3, device="meta"), "logits: are on meta, the beliefs on cpu"),
        (torch.arange(3), LOGITS, "index: got shape (3,); valid: (2,), one for each row"),
        (
            INDEX,
            torch.zeros(4, 3),
            "valid: (4,), one for each row of the logits. Those of V views are (V,",
        ),
        (torch.tensor([0, 12]), LOGITS, "index: got 12; valid: 0 to 11"),
        (torch.tensor([-1, 0]), LOGITS, "index: got -1; valid: 0 to 11"),
        (torch.tensor([5, 5]), LOGITS, "index: 5 is in the step twice; valid: each sample once"),
        (torch.zeros(2), LOGITS, "index: got torch.float32; valid: a tensor of integers"),
    ],
)
def test_a_wrong_step_is_refused_before_it_changes_anything(
    index: Any, logits: Any, says: str
) -> None:
    beliefs = BSD(LABELS, 3, epochs=4)
    before = beliefs.mean()
    with pytest.raises(ValueError) as caught:
        beliefs.step(index, logits)
    assert says in str(caught.value)
    assert torch.equal(beliefs.mean(), before)


@pytest.mark.parametrize(
    ("labels", "settings", "says"),
    [
        (
            [0, 3],
            {},
            "labels_or_votes: label 3 of sample 1 is out of range; valid: 0 to 2 (1 such)",
        ),
        ([0.5, 1.0], {}, "labels_or_votes: got torch.float32 of shape (2,); valid: integers"),
        ([], {}, "labels_or_votes: got"),
        (["cat"], {}, "labels_or_votes: got ['cat'], which is no array of numbers"),
        ([[1.0, 0.0]], {}, "labels_or_votes: got votes of shape (1, 2); valid: (N, 3)"),
        ([[1.0, -1.0, 0.0]], {}, "labels_or_votes: sample 0 has the votes [1.0, -1.0, 0.0]"),
        ([[0, 0, 0]], {}, "labels_or_votes: sample 0 has the votes"),
        ([0], {"num_classes": 1}, "num_classes: got 1; valid: a whole number from 2"),
        ([0], {"epochs": 0}, "epochs: got 0; valid"),
        ([0], {"epochs": "x"}, "epochs: got 'x'; valid"),
        ([0], {"num_classes": True}, "num_classes: got True; valid"),
        ([0], {"discount": 1.5}, "discount: got 1.5; valid: a number above 0, at most 1"),
        ([0], {"discount": "0.8"}, "discount: got '0.8'; valid: a number above 0, at most 1"),
        ([0], {"prior_strength": -1.0}, "prior_strength: got -1.0; valid"),
        ([0], {"prior_strength": "8"}, "prior_strength: got '8'; valid: a number from 0"),
        ([0], {"prior_strength": float("inf")}, "prior_strength: got inf; valid: a number from 0"),
        ([0], {"align": "no"}, "align: got 'no'; valid: True or False"),
        ([0], {"gather": "no"}, "gather: got 'no'; valid: True or False"),
        ([0], {"discount": True}, "discount: got True; valid: a number above 0, at most 1"),
        ([0], {"top_k": 1}, "top_k: got 1; valid"),
        (
            np.ma.masked_equal([0, 1], 1),
            {},
            "labels_or_votes: got a masked array, in which 1 values are hidden",
        ),
    ],
)
def test_wrong_arguments_are_named(labels: Any, settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        BSD(labels, **{"num_classes": 3, "epochs": 4, **settings})
    assert says in str(caught.value)


def test_beliefs_that_were_made_half_as_precise_are_refused() -> None:
    with pytest.raises(ValueError, match=r"beliefs: are in torch\.float16; keep them in float32"):
        BSD(LABELS, 3, epochs=4).half().step(*batch())


@pytest.mark.parametrize(
    ("index", "says"),
    [
        ([0, 1], "index: got list; valid: a tensor of integers"),
        (torch.tensor([12]), "index: got 12; valid: 0 to 11"),
        (torch.zeros(2, 2, dtype=torch.int64), r"index: got shape \(2, 2\); valid: \(B,\)"),
    ],
)
def test_a_wrong_index_of_the_mean_is_named(index: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        BSD(LABELS, 3, epochs=4).mean(index)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.uint32, torch.uint64])
def test_labels_and_index_may_be_unsigned(dtype: torch.dtype) -> None:
    labels = torch.tensor([0, 1, 2])
    beliefs, same = BSD(labels.to(dtype), 3, epochs=4), BSD(labels, 3, epochs=4)
    targets = beliefs.step(INDEX.to(dtype), LOGITS)
    assert torch.equal(targets, same.step(INDEX, LOGITS))
    assert torch.equal(beliefs.mean(INDEX.to(dtype)), same.mean(INDEX))
    beliefs.load_state_dict(same.state_dict())
    with pytest.raises(ValueError, match="label 9 of sample 0 is out of range"):
        BSD(torch.tensor([9]).to(dtype), 3, epochs=4)


def test_logits_that_are_no_tensor_are_named() -> None:
    with pytest.raises(ValueError, match="logits: got list; valid: a tensor"):
        noisybsd.cross_entropy([[0.0, 1.0]], torch.eye(2)[:1])  # type: ignore[arg-type]


def test_targets_that_are_no_tensor_are_named() -> None:
    with pytest.raises(ValueError, match=r"targets: got ndarray; valid: probabilities of shape"):
        noisybsd.cross_entropy(torch.zeros(2, 2), torch.eye(2).numpy())  # type: ignore[arg-type]


def test_the_losses_are_public() -> None:
    targets = torch.eye(2)
    assert float(noisybsd.cross_entropy(torch.zeros(2, 2), targets)) == pytest.approx(
        0.6931, abs=1e-3
    )
    z = torch.eye(2).repeat(2, 1)
    assert torch.isclose(noisybsd.supcon(z, targets, 1.0), noisybsd.simclr(z, 1.0))
