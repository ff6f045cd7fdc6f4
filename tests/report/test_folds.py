"""Runs that hold out one part each: every image is judged by the network that never saw it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.reported import hide_cleanlab, own_images, run

from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.data.splits import holdout_by_path
from noisybsd.engine.saved import load_run_config
from noisybsd.errors import UserError
from noisybsd.report.findings import Findings
from noisybsd.report.folds import out_of_fold, siblings
from noisybsd.report.review import apply_review
from noisybsd.report.write import report

FOLDS = 3


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run for each of three parts, and one of another seed, in one folder."""
    root = tmp_path_factory.mktemp("folds")
    settings = [*own_images(root / "data"), f"data.folds={FOLDS}", "epochs=1"]
    made = [run(root / f"fold{k}", *settings, f"data.fold={k}") for k in range(FOLDS)]
    run(root / "other", *settings, "data.fold=1", "seed=1")
    return made


def found_in(directory: Path) -> Findings:
    found = Findings.read(directory)
    assert found is not None
    return found


def test_folds_take_every_image_once() -> None:
    paths = [f"{i % 7}/{i // 7}.jpg" for i in range(100)] + [f"alone{i}/0.jpg" for i in range(40)]
    parts = [holdout_by_path(paths, (k + 1) / 5, k / 5) for k in range(5)]
    assert (np.sum(parts, axis=0) == 1).all()
    assert all(20 <= part.sum() <= 36 for part in parts)


def test_each_image_is_judged_by_the_run_that_held_it_out(runs: list[Path]) -> None:
    alone = [found_in(each) for each in runs]
    assert sum(int(found.held_out.sum()) for found in alone) == 90
    config = load_run_config(runs[1], [])
    assert siblings(runs[1], config) == {0: runs[0], 2: runs[2]}
    found, told = out_of_fold(alone[1], runs[1], config)
    assert told == "90 images are judged by a network that never saw them."
    assert found.held_out.all() and not found.about["holds_belief"]
    place = {path: i for i, path in enumerate(found.table["path"].to_pylist())}
    assert list(place) == alone[1].table["path"].to_pylist()  # in the run's own order
    for one in alone:
        paths = one.table["path"].to_pylist()
        for j in np.flatnonzero(one.held_out).tolist():
            i = place[paths[j]]
            for name in ("belief", "network", "neighbours"):
                np.testing.assert_array_equal(found.arrays[name][i], one.arrays[name][j])
            near = [paths[k] for k in one.table["neighbours"][j].as_py()]
            assert [place[path] for path in near] == found.table["neighbours"][i].as_py()
            assert found.table["visits"][i].as_py() == 0
    assert len(found.arrays["test"]) == len(found.arrays["test_labels"]) == 90


def test_the_report_of_one_is_of_all(runs: list[Path], tmp_path: Path) -> None:
    before = (runs[0] / "labels.parquet").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        hide_cleanlab(patch)
        metrics = report(runs[0], [])
    assert metrics["out_of_fold"].startswith("90 images are judged by a network")
    assert metrics["estimates"]["samples"] == metrics["estimates"]["samples_seen"] == 90
    assert metrics["estimates"]["noise_rate"]["source"] == "confident joint"
    assert metrics["estimates"]["test"]["samples"] == 90
    page = (runs[0] / "report.html").read_text("utf-8")
    assert metrics["out_of_fold"] in page
    assert (runs[0] / "labels.parquet").read_bytes() == before  # the run's own, which siblings read
    merged = found_in(runs[0] / "out_of_fold")
    rows = json.loads(page.split('id="data">')[1].split("</script>")[0])["rows"]
    assert rows["index"] == np.argsort(merged.column("rank")).tolist()
    # and a review of it fits the run
    line = merged.table.to_pylist()[80]
    review = tmp_path / "review.csv"
    label = (line["given"] + 1) % 3
    review.write_text(
        "index,given,label,decision,data_sha256\n"
        f"80,{line['given']},{label},wrong,{merged.about['data_sha256']}\n"
    )
    assert apply_review(load_run_config(runs[0], []), review, tmp_path / "out.csv")["changed"] == 1


def test_a_fold_that_is_not_trained_is_said(runs: list[Path], tmp_path: Path) -> None:
    for each in runs[:2]:
        shutil.copytree(each, tmp_path / each.name)
    directory = tmp_path / runs[0].name
    found, told = out_of_fold(found_in(directory), directory, load_run_config(directory, []))
    assert "folds not trained yet: 1 of 3, whose images this run judges" in told
    trained = found.column("visits") > 0
    assert not (trained & found.held_out).any() and 20 < (~found.held_out).sum() < 40
    assert found.about["holds_belief"]


def test_siblings_of_other_labels_are_refused(runs: list[Path], tmp_path: Path) -> None:
    for each in runs[:2]:
        shutil.copytree(each, tmp_path / each.name)
    own, other = (found_in(tmp_path / each.name) for each in runs[:2])
    arrays = {**other.arrays, "labels": (other.arrays["labels"] + 1) % 3}
    given = other.table.schema.get_field_index("given")
    table = other.table.set_column(given, "given", [arrays["labels"]])
    Findings(table, arrays, other.about).write(tmp_path / runs[1].name)
    with pytest.raises(UserError, match="fold1 has other images or labels"):
        out_of_fold(own, tmp_path / runs[0].name, load_run_config(tmp_path / runs[0].name, []))


def test_a_share_to_hold_out_is_refused_where_a_test_split_is_there() -> None:
    config = load_config(["recipe=digits_sym40", "data.test_fraction=0.3"])
    with pytest.raises(UserError, match=r"data.test_fraction=0.3: the data have a test split"):
        load_dataset(config.data, config.noise, config.seed)


def test_folds_that_cannot_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data.fold=3 counts from 0 and needs a larger data.folds"):
        load_config(["recipe=own", "data.folds=3", "data.fold=3"])
    with pytest.raises(UserError, match=r"data.fold=1 counts from 0 .* got none"):
        load_config(["recipe=own", "data.fold=1"])
    config = load_config(["recipe=digits_sym40", "data.folds=3"])
    with pytest.raises(UserError, match=r"data.folds=3: the data have a test split"):
        load_dataset(config.data, config.noise, config.seed)
