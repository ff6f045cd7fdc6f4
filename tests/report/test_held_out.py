"""Images that are held out of the training images: scored by the network, and on the page like the others."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.reported import NASTY_CLASSES, hide_cleanlab, own_images, run, trainer_of

from noisybsd.data.__main__ import main as data
from noisybsd.data.dataset import load_dataset
from noisybsd.data.splits import Split
from noisybsd.report.estimates import estimates
from noisybsd.report.findings import Findings, label_table
from noisybsd.report.pictures import Pictures
from noisybsd.report.write import load_run, report


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on image files listed with clean labels, of which a fifth is held out, with its report."""
    root = tmp_path_factory.mktemp("held")
    settings = own_images(root / "data")
    path = root / "data" / "list.csv"
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "clean_label"))
        for i, row in enumerate(rows):
            given = NASTY_CLASSES[(i + (i % 4 == 1)) % 3]
            writer.writerow((row["path"], given, NASTY_CLASSES[i % 3]))
    directory = run(root / "run", *settings)
    with pytest.MonkeyPatch.context() as patch:
        hide_cleanlab(patch)
        report(directory, [])
    return directory


def found_in(directory: Path) -> Findings:
    found = Findings.read(directory)
    assert found is not None
    return found


def test_every_image_is_in_the_table_and_on_the_page(directory: Path) -> None:
    found, listed = found_in(directory), directory.parent / "data" / "list.csv"
    with listed.open(encoding="utf-8", newline="") as file:
        rows = {row["path"]: row["label"] for row in csv.DictReader(file)}
    table = found.table.to_pylist()
    assert {
        row["path"]: row["given_name"] for row in table
    } == rows  # given, where a clean one is known
    assert sorted(row["rank"] for row in table) == [*range(1, 91)]
    page = (directory / "report.html").read_text("utf-8")
    columns = json.loads(page.split('id="data">')[1].split("</script>")[0])["rows"]
    assert sorted(columns["index"]) == [*range(90)]
    assert columns["held_out"] == [bool(found.held_out[i]) for i in columns["index"]]
    held = int(found.held_out.sum())
    assert 10 < held < 26 and f"{held} more held out of training" in page
    # the estimates are of the training images
    metrics = json.loads((directory / "labels_metrics.json").read_text("utf-8"))["estimates"]
    assert (
        metrics["samples"] == metrics["samples_seen"] == 90 - held and metrics["held_out"] == held
    )
    disputed = sum(row["given"] != row["suggested"] for row in table if row["held_out"])
    assert metrics["held_out_disputed"] == disputed


def test_a_held_out_image_is_judged_by_the_network_that_never_saw_it(directory: Path) -> None:
    found, trainer = found_in(directory), trainer_of(directory)
    held = found.held_out
    assert trainer.dataset.held_out is not None
    n = len(trainer.dataset.train)
    assert held.tolist() == [False] * n + [True] * (90 - n)
    assert found.table["path"].to_pylist()[n:] == trainer.dataset.held_out.paths
    logits, _, labels = trainer.predict_test(trainer.network)
    expected = logits.softmax(dim=1).numpy()
    for name in ("belief", "network"):
        np.testing.assert_allclose(found.arrays[name][n:], expected, atol=1e-6)
    np.testing.assert_array_equal(found.arrays["test_labels"], labels.numpy())
    assert (found.arrays["test_labels"] == found.clean[n:]).all()  # type: ignore[index]
    assert (found.arrays["labels"][n:] != found.arrays["test_labels"]).any()
    for row in found.table.to_pylist()[n:]:
        assert row["visits"] == 0 and row["area_under_margin"] is row["left_epoch"] is None
        assert len(row["neighbours"]) == 5 and max(row["neighbours"]) < n
    shares = found.arrays["neighbours"][n:]
    np.testing.assert_allclose(shares.sum(axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("storage", ["resident", "stream"])
def test_a_held_out_image_that_cannot_be_read_ranks_last(
    directory: Path, tmp_path: Path, storage: str
) -> None:
    settings = own_images(tmp_path / "data")
    dataset = trainer_of(directory).dataset
    assert dataset.held_out is not None and dataset.held_out.paths is not None
    broken = dataset.held_out.paths[1]
    (tmp_path / "data" / broken).write_text("no image")
    more = (f"data.storage={storage}", "data.on_error=skip", "epochs=1", "data.workers=0")
    found = found_in(run(tmp_path / "run", *settings, *more))
    (row,) = [each for each in found.table.to_pylist() if each["path"] == broken]
    assert row["final_prob"] is row["given_prob"] is row["entropy"] is None and row["held_out"]
    said = estimates(found)
    assert said["held_out_seen"] == said["held_out"] - 1 == len(dataset.held_out) - 1
    assert row["neighbours"] == []
    known = (found.column("visits") > 0) | (found.held_out & (found.column("path") != broken))
    assert row["rank"] > known.sum() > 80
    assert len(found.arrays["test"]) == len(dataset.held_out) - 1
    others = found.held_out & (found.column("path") != broken)
    assert np.isfinite(found.column("final_prob")[others]).all()


def test_packed_images_are_held_out_alike_and_take_the_same_label_file(
    directory: Path, tmp_path: Path
) -> None:
    root, packed = directory.parent / "data", tmp_path / "packed"
    listed = (f"manifest={root / 'list.csv'}", "size=16", f"out={packed}")
    assert data(["pack", "own", f"root={root}", *listed]) == 0
    before, rows = found_in(directory), found_in(directory).table.to_pylist()
    labels = tmp_path / "labels.csv"
    with labels.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label"))
        writer.writerows((row["path"], (row["given"] + 1) % 3) for row in rows)
    settings = own_images(tmp_path / "unused")
    place = [f"data.root={packed}", f"data.labels={labels}", "data.manifest=null", "epochs=1"]
    found = found_in(run(tmp_path / "run", *settings, *place))
    assert found.table["path"].to_pylist() == before.table["path"].to_pylist()
    assert (found.held_out == before.held_out).all()
    assert (found.arrays["labels"] == (before.arrays["labels"] + 1) % 3).all()
    pictures = load_run(tmp_path / "run", []).images
    assert pictures is not None
    looked = pictures.look_at(np.array([89, 0]))
    expected = load_run(directory, []).images.look_at(np.array([89, 0]))  # type: ignore[union-attr]
    for one, other in zip(looked, expected, strict=True):
        assert one is not None and other is not None and one.shape == (3, 18, 18)
        assert abs(one.float() - other.float()).mean() < 8  # its margin is a mirror image


# --- the images that probabilities are calibrated on -----------------------------------------------


def test_images_to_calibrate_on_stand_in_their_places_and_are_judged_by_the_network(
    tmp_path: Path,
) -> None:
    """Of images that are no files, so that a row of the table is a row of the dataset."""
    settings = ("neighbours.k=5", "data.calibration=0.2")
    found, trainer = found_in(run(tmp_path / "run", *settings)), trainer_of(tmp_path / "run")
    data, config = trainer.dataset, trainer.config
    whole = load_dataset(
        config.data.model_copy(update={"calibration": 0.0}), config.noise, config.seed
    ).train
    assert found.arrays["labels"].tolist() == whole.labels.tolist()
    assert found.clean is not None and whole.clean_labels is not None
    assert found.clean.tolist() == whole.clean_labels.tolist()
    held = np.flatnonzero(found.held_out)
    assert data.calibration is not None and len(held) == len(data.calibration) > 40
    assert held[0] < 30 and (np.diff(held) > 1).any()  # in between, not at the end
    # the pictures are those of the rows
    pictures = Pictures.of(data).look_at(np.arange(len(whole)))
    for picture, image in zip(pictures, whole.images, strict=True):
        assert picture is not None and torch.equal(picture, image)
    # what the network says, at its temperature, which is not 1
    assert trainer.network.temperature != 1
    for images, rows, name in ((data.calibration, held, "belief"), (whole, slice(None), "network")):
        expected = trainer.predict(trainer.network, images)[0].softmax(dim=1).numpy()
        np.testing.assert_allclose(found.arrays[name][rows], expected, atol=1e-5)
    visits = found.column("visits")
    assert (visits[held] == 0).all() and (np.delete(visits, held) > 0).all()
    # the neighbours of each are of the training images, with the labels that the table counts
    for i, row in enumerate(found.table.to_pylist()):
        assert len(row["neighbours"]) == 5 and not found.held_out[row["neighbours"]].any()
        share = (found.arrays["labels"][row["neighbours"]] == row["given"]).mean()
        assert row["neighbour_agreement"] == pytest.approx(share, abs=1e-6), i
    assert sorted(found.table["rank"].to_pylist()) == [*range(1, len(whole) + 1)]
    with pytest.MonkeyPatch.context() as patch:
        hide_cleanlab(patch)
        said = report(tmp_path / "run", [])["estimates"]
    assert (said["samples"], said["held_out"]) == (len(whole) - len(held), len(held))


def test_files_to_test_and_to_calibrate_on_are_both_in_the_table(tmp_path: Path) -> None:
    settings = own_images(tmp_path / "data")
    more = ("data.calibration=0.2", "data.on_error=skip", "data.workers=0")
    data = trainer_of(run(tmp_path / "first", *settings, *more)).dataset
    assert data.calibration is not None and data.held_out is not None
    assert data.calibration.paths is not None and data.held_out.paths is not None
    broken = data.calibration.paths[2]
    (tmp_path / "data" / broken).write_text("no image")
    found = found_in(run(tmp_path / "second", *settings, *more))
    rows = {row["path"]: row for row in found.table.to_pylist()}
    assert len(rows) == len(found.table) == 90
    apart = {path for path, row in rows.items() if row["held_out"]}
    assert apart == {*data.calibration.paths, *data.held_out.paths}
    last = found.table["path"].to_pylist()[-len(data.held_out) :]
    assert last == data.held_out.paths
    assert rows[broken]["final_prob"] is None and rows[broken]["neighbours"] == []
    assert rows[broken]["rank"] == 90
    others = found.held_out & (found.column("path") != broken)
    assert np.isfinite(found.column("final_prob")[others]).all()
    pictures = load_run(tmp_path / "second", []).images
    assert pictures is not None
    for i, picture in enumerate(pictures.look_at(np.arange(90))):
        path = found.table["path"][i].as_py()
        assert (picture is None) == (path == broken)
        if picture is not None:  # the colour of the true class, the number in the name
            true = int(path.split("/")[1][:3]) % 3
            assert picture.float().mean(dim=(1, 2)).argmax() == true


def test_held_out_samples_are_ranked_among_themselves_and_merged_by_shares() -> None:
    """Their probabilities lean on no label, so that they are not to be compared with a belief that does."""
    given = np.array([0.9, 0.8, 0.99, 0.7, 0.3, 0.2])
    belief = np.stack([given, 1 - given], axis=1).astype(np.float32)
    held = np.array([False] * 4 + [True] * 2)
    table = label_table(
        Split(torch.empty(0), np.zeros(6, np.int64), None),
        ("a", "b"),
        belief,
        belief,
        np.zeros_like(belief),
        [[]] * 6,
        network_prob=np.full(6, np.nan),
        margin=np.full(6, np.nan),
        visits=np.where(held, 0, 3),
        left_epoch=np.full(6, -1),
        strength=None,
        held_out=held,
    )
    assert table["rank"].to_pylist() == [4, 3, 6, 1, 5, 2]
