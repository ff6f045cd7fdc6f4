from __future__ import annotations

import json
import logging
import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers.reported import NASTY_FILE, findings, run, trainer_of
from numpy.testing import assert_allclose

from noisybsd.engine.trainer import Trainer
from noisybsd.report.collect import collect, log_to_wandb, record
from noisybsd.report.findings import Findings, pooled
from noisybsd.report.pictures import Pictures


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return trainer_of(run(tmp_path_factory.mktemp("labels") / "run"))


@pytest.fixture(scope="module")
def found(trainer: Trainer) -> Findings:
    return collect(trainer, Path("runs/tiny"))


def test_each_row_is_what_the_run_knows_of_the_sample(trainer: Trainer, found: Findings) -> None:
    train, monitor = trainer.dataset.train, trainer.monitor
    alpha = trainer.rule.posterior.alpha.double()  # type: ignore[union-attr]
    features = trainer.bank.features.double()
    rows = found.table.to_pylist()
    assert [row["index"] for row in rows] == list(range(300))
    for i, row in enumerate(rows):
        given = int(train.labels[i])
        total = sum(alpha[i].tolist())
        y = [a / total for a in alpha[i].tolist()]
        assert found.arrays["belief"][i].tolist() == pytest.approx(y, rel=1e-4)
        p = found.arrays["network"][i].tolist()
        pool = [math.sqrt(a * b) for a, b in zip(y, p, strict=True)]
        y = [a / sum(pool) for a in pool]
        suggested = y.index(max(y))
        assert row["given"] == given and row["suggested"] == suggested
        assert row["given_name"] == trainer.dataset.class_names[given]
        assert row["suggested_name"] == trainer.dataset.class_names[suggested]
        assert row["given_prob"] == pytest.approx(y[given], rel=1e-4)
        assert row["suggested_prob"] == pytest.approx(y[suggested], rel=1e-4)
        assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in y), rel=1e-3)
        assert row["strength"] == pytest.approx(total, rel=1e-4)
        visits = int(monitor.visits[i])
        assert row["visits"] == visits > 0
        assert row["area_under_margin"] == pytest.approx(
            float(monitor.margin_sum[i]) / visits, rel=1e-4
        )
        assert row["network_prob"] == pytest.approx(float(monitor.given_prob[i]), rel=1e-4)
        left = int(monitor.left_epoch[i])
        assert row["left_epoch"] == (None if left < 0 else left + 1)
        assert row["clean"] == train.clean_labels[i]  # type: ignore[index]
        assert row["given_right"] == (row["clean"] == given)
        assert row["suggested_right"] == (row["clean"] == suggested)
        # neighbours, by the definition
        similarity = (features @ features[i]).tolist()
        similarity[i] = -math.inf
        near = row["neighbours"]
        assert len(set(near)) == 7
        # two that are as near up to rounding may change places
        assert sorted(similarity[j] for j in near) == pytest.approx(
            sorted(similarity)[-7:], abs=1e-5
        )
        agreeing = sum(int(train.labels[j]) == given for j in near)
        assert row["neighbour_agreement"] == pytest.approx(agreeing / 7)
        assert row["path"] is None


def test_rank_one_is_what_belief_and_final_network_trust_least(found: Findings) -> None:
    rank, final = found.column("rank"), found.column("final_prob")
    assert sorted(rank) == list(range(1, 301))
    order = np.argsort(rank)
    assert (np.diff(found.column("given_prob")[order]) >= 0).all()
    assert final.tolist() == found.arrays["network"][range(300), found.column("given")].tolist()


def test_where_the_network_could_not_look_the_belief_ranks_alone() -> None:
    belief = [[0.5, 0.5], [0.6, 0.4], [0.9, 0.1]]
    network = [[np.nan, np.nan], [0.5, 0.5], [0.7, 0.3]]
    found = findings(belief, [0, 0, 0], network=network, network_prob=[1, 1, 1])
    assert found.column("given_prob") == pytest.approx([0.5, 0.5505, 0.8209], abs=1e-4)
    assert found.column("rank").tolist() == [1, 2, 3]


def test_a_belief_and_a_network_that_exclude_each_other_leave_the_belief() -> None:
    found = findings([[1, 0, 0], [0.5, 0.5, 0]], [0, 0], network=[[0, 0, 1], [0, 0.5, 0.5]])
    assert found.column("given_prob").tolist() == [1, 0]
    assert found.final_belief.tolist() == [[1, 0, 0], [0, 1, 0]]


def test_the_pool_leans_neither_way() -> None:
    random = np.random.default_rng(0)
    one, other = (random.dirichlet(np.ones(5), 50).astype(np.float32) for _ in range(2))
    found = pooled(one, other)
    assert found.dtype == np.float32
    assert_allclose(found.sum(axis=1), 1, rtol=1e-5)
    assert_allclose(found, pooled(other, one), rtol=1e-5)
    assert_allclose(pooled(one, one.copy()), one, rtol=1e-5)
    # odds are the geometric mean of both odds
    odds = np.sqrt(one[:, 0] / one[:, 1] * other[:, 0] / other[:, 1])
    assert_allclose(found[:, 0] / found[:, 1], odds, rtol=1e-4)


def test_the_network_is_asked_without_augmentation(trainer: Trainer, found: Findings) -> None:
    images = trainer.dataset.train.images
    assert isinstance(images, torch.Tensor)
    trainer.network.eval()
    with torch.no_grad():
        expected = trainer.network(trainer.views.plain(images[40:50]))[0].softmax(dim=1)
    assert_allclose(found.arrays["network"][40:50], expected.numpy(), rtol=1e-4, atol=1e-6)


def test_probabilities_are_in_the_form_cleanlab_takes(found: Findings) -> None:
    for name in ("belief", "network", "neighbours"):
        array = found.arrays[name]
        assert array.shape == (300, 10) and array.dtype == np.float32
        assert_allclose(array.sum(axis=1), 1, atol=1e-5)
        assert (array >= 0).all()
    assert found.arrays["labels"].tolist() == found.column("given").tolist()


def test_a_sample_never_visited_is_not_suspicious(trainer: Trainer) -> None:
    before = trainer.monitor.visits.clone()
    try:
        trainer.monitor.visits[[3, 5]] = 0
        table = collect(trainer, Path("x")).table.to_pylist()
    finally:
        trainer.monitor.visits.copy_(before)
    assert {table[3]["rank"], table[5]["rank"]} == {299, 300}
    for i in (3, 5):
        assert table[i]["suggested"] == table[i]["given"]
        assert table[i]["given_prob"] is table[i]["suggested_prob"] is table[i]["entropy"] is None
        assert table[i]["area_under_margin"] is None and table[i]["visits"] == 0


def test_what_is_believed_outright_ranks_before_what_is_unknown() -> None:
    found = findings(np.eye(2)[[0, 0, 1]], [0, 0, 1], visits=[0, 9, 9])
    assert found.column("rank").tolist() == [3, 1, 2]


def test_a_method_without_belief_believes_its_network(tmp_path: Path) -> None:
    trainer = trainer_of(run(tmp_path / "run", "method=ce", "epochs=1"))
    found = collect(trainer, tmp_path)
    seen = found.column("visits") > 0
    assert 280 < seen.sum() < 300  # the last, incomplete batch is dropped
    assert_allclose(found.arrays["belief"][seen], found.arrays["network"][seen], rtol=1e-5)
    assert (found.column("suggested") == found.arrays["network"].argmax(axis=1))[seen].all()
    assert found.table["strength"].null_count == 300


def test_a_run_that_searches_no_neighbours_still_has_them_in_the_table(tmp_path: Path) -> None:
    trainer = trainer_of(run(tmp_path / "run", "method=ce", "epochs=1", "neighbours.k=0"))
    found = collect(trainer, tmp_path)
    _, z, _ = trainer.predict(trainer.network, trainer.dataset.train)
    similarity = (z.double() @ z.double().T).fill_diagonal_(-2)
    near = found.table["neighbours"].to_pylist()
    assert [len(row) for row in near] == [10] * 300
    for i in range(0, 300, 30):
        expected = similarity[i].topk(10).values
        torch.testing.assert_close(similarity[i][near[i]], expected, atol=1e-6, rtol=0)


def test_unreadable_images_keep_the_others_in_their_rows(
    trainer: Trainer, found: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer.loader, "unreadable", {7: OSError("gone")})
    again = collect(trainer, Path("x"))
    assert np.isnan(again.arrays["network"][7]).all()
    keep = np.arange(300) != 7
    assert_allclose(again.arrays["network"][keep], found.arrays["network"][keep], rtol=1e-5)


def test_one_class_only_leaves_no_number_that_is_not_one() -> None:
    found = findings(np.ones((4, 1)), [0] * 4, margin=[math.inf] * 4)
    rows = found.table.to_pylist()
    assert all(row["area_under_margin"] is None and row["entropy"] == 0 for row in rows)
    assert sorted(row["rank"] for row in rows) == [1, 2, 3, 4]


# --- files --------------------------------------------------------------------------------------


def test_files_hold_the_findings(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    again = Findings.read(tmp_path)
    assert again is not None
    assert again.table.to_pylist() == found.table.to_pylist() and again.about == found.about
    assert again.arrays.keys() == found.arrays.keys()
    for name, array in found.arrays.items():
        np.testing.assert_array_equal(again.arrays[name], array)


def test_csv_starts_with_the_most_suspicious(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    pandas = pytest.importorskip("pandas")
    table = pandas.read_csv(tmp_path / "labels.csv")
    assert table["rank"].tolist() == list(range(1, 301))
    parquet = pandas.read_parquet(tmp_path / "labels.parquet").sort_values("rank")
    assert table["index"].tolist() == parquet["index"].tolist()
    assert table["given_right"].tolist() == parquet["given_right"].tolist()
    near = [[int(j) for j in str(cell).split()] for cell in table["neighbours"]]
    assert near == [list(row) for row in parquet["neighbours"]]


def test_parquet_says_what_it_is_about(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    metadata = pyarrow.parquet.read_schema(tmp_path / "labels.parquet").metadata
    about = json.loads(metadata[b"noisybsd"])
    assert about["data_sha256"] == found.about["data_sha256"] and len(about["class_names"]) == 10


def test_names_of_any_kind_survive(tmp_path: Path) -> None:
    paths = [NASTY_FILE, b"not \xff utf-8.png".decode("utf-8", "surrogateescape")]
    findings(np.eye(2), [0, 1], class_names=["<a>", 'b"\n,'], paths=paths).write(tmp_path)
    again = Findings.read(tmp_path)
    assert again is not None
    assert again.table["path"].to_pylist() == [NASTY_FILE, "not \\udcff utf-8.png"]
    assert again.table["given_name"].to_pylist() == ["<a>", 'b"\n,']


def test_damaged_files_are_named(found: Findings, tmp_path: Path) -> None:
    assert Findings.read(tmp_path) is None
    found.write(tmp_path)
    (tmp_path / "labels.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match=r"labels\.parquet: damaged: .* not readable"):
        Findings.read(tmp_path)


def test_probabilities_that_lack_an_array_are_named(found: Findings, tmp_path: Path) -> None:
    found.write(tmp_path)
    whole = {name: array for name, array in found.arrays.items() if name != "test"}
    np.savez(tmp_path / "pred_probs.npz", allow_pickle=False, **whole)
    with pytest.raises(ValueError, match=r"pred_probs\.npz: damaged: it has no array test"):
        Findings.read(tmp_path)


def test_record_never_raises(
    trainer: Trainer,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record(trainer, tmp_path)
    assert Findings.read(tmp_path) is not None
    logging.getLogger("noisybsd").propagate = True
    record(trainer, tmp_path / "missing")
    assert "labels.parquet is not written" in caplog.text and "noisybsd.report run=" in caplog.text


# --- cleanlab and W&B -----------------------------------------------------------------------------


@pytest.mark.slow
def test_cleanlab_takes_the_file(found: Findings, tmp_path: Path) -> None:
    pytest.importorskip("cleanlab")
    found.write(tmp_path)
    # in a process of its own: importing it takes seconds and half of what is installed
    code = (
        "import sys, numpy as np; from cleanlab.filter import find_label_issues\n"
        "p = np.load(sys.argv[1])\n"
        "for name in ('belief', 'network', 'neighbours'):\n"
        "    assert find_label_issues(p['labels'], p[name], n_jobs=1).shape == (300,)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "pred_probs.npz")], check=True)


class FakeWandb(types.ModuleType):
    """As much of wandb as is used, and what was logged."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.run = self
        self.logged: dict[str, Any] = {}

    class Table:
        def __init__(self, columns: list[str]):
            self.columns, self.rows = columns, []  # type: ignore[var-annotated]

        def add_data(self, *row: Any) -> None:
            assert len(row) == len(self.columns)
            self.rows.append(row)

    Image = staticmethod(lambda pixels: pixels.shape)

    def log(self, values: dict[str, Any]) -> None:
        self.logged |= values


def test_wandb_gets_the_most_suspicious_with_images(
    trainer: Trainer, found: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_to_wandb(found, Pictures.of(trainer.dataset))
    table = wandb.logged["suspicious_labels"]
    assert len(table.rows) == 200
    assert [row[1] for row in table.rows] == list(range(1, 201))
    assert table.rows[0][0] == (8, 8, 1)


def test_without_a_wandb_run_nothing_is_logged(
    trainer: Trainer, found: Findings, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    wandb.run = None  # type: ignore[assignment]
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    log_to_wandb(found, Pictures.of(trainer.dataset))
    assert not wandb.logged


def test_pictures_of_files_that_are_gone_are_none(tmp_path: Path) -> None:
    from helpers.trees import picture

    from noisybsd.data.images import ImageFiles

    picture(tmp_path / "a.png", 9)
    files = ImageFiles(["a.png", "b.png"], tmp_path, 4)
    found = Pictures([files]).look_at(np.array([1, 0]))
    assert found[0] is None
    assert found[1] is not None and (found[1] == 9).all() and found[1].shape == (3, 4, 4)
