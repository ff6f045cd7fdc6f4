"""Runs on a frozen backbone: its features are computed once, and all else works as in other runs."""

from __future__ import annotations

import csv
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
import torch
from helpers import trees
from helpers.compared import assert_same, outcome, strict
from helpers.reported import NASTY_CLASSES, own_images

import noisybsd
from noisybsd.config import load_config
from noisybsd.data.__main__ import main as data
from noisybsd.data.images import ImageFiles
from noisybsd.data.views import Views
from noisybsd.engine.data import run_dataset
from noisybsd.engine.frozen import FrozenBackbone
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.evaluate import main as evaluate
from noisybsd.report.__main__ import main as report
from noisybsd.report.links import link_classes
from noisybsd.report.review import apply_review
from noisybsd.report.write import load_run
from noisybsd.runs.checkpoint import load_checkpoint
from noisybsd.train import main as train

timm = pytest.importorskip("timm")

FROZEN = (
    "data.size=32",
    "network.name=timm:test_resnet",
    "network.weights=weights.pth",
    "network.width=null",
    "network.frozen=true",
    "network.cache=cache",
    "neighbours.engine=torch",
    "run.checkpoint_seconds=0",
)
IMAGES = 90


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Settings of a run on a folder of images and a file of weights, beside which it works."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet").state_dict(), "weights.pth")
    settings = own_images(Path("photos"), IMAGES)
    return lambda run, *more: [*settings, *FROZEN, f"run.dir={run}", *more]


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the backbone was given, batch by batch."""
    counts: list[int] = []
    features = FrozenBackbone._features

    def counting(self: FrozenBackbone, images: torch.Tensor, names: list[str]) -> torch.Tensor:
        counts.append(len(images))
        return features(self, images, names)

    monkeypatch.setattr(FrozenBackbone, "_features", counting)
    return counts


def trained(arguments: list[str]) -> dict[str, Any]:
    """The results of a run."""
    assert train(arguments) == 0
    run = next(a for a in arguments[::-1] if a.startswith("run.dir=")).removeprefix("run.dir=")
    return strict((Path(run) / "results.json").read_text())


def test_a_second_run_finds_the_features_of_the_first(photos, embedded):
    trained(photos("first"))
    assert sum(embedded) == IMAGES
    embedded.clear()
    trained(photos("second", "seed=1", "method=ce"))
    assert embedded == []
    trained(photos("third"))
    assert_same(outcome(Path("third")), outcome(Path("first")))


def test_features_in_bf16_are_kept_apart(photos, monkeypatch):
    monkeypatch.setattr(torch.nn.Module, "to", lambda module, device: module)  # there is no GPU

    def about(device: str, precision: str) -> dict[str, Any]:
        config = load_config(photos("run", f"precision={precision}"))
        dataset = run_dataset(config)
        views = Views("cifar", dataset.size, dataset.mean, dataset.std)
        return FrozenBackbone(config, dataset, views, torch.device(device)).about

    gpu, cpu = about("cuda", "auto"), about("cpu", "auto")
    assert gpu != cpu
    assert about("cuda", "fp32") == about("cpu", "bf16") == cpu  # on a CPU features are in fp32


def test_it_is_calibrated_on_features_of_images_that_are_not_trained_on(photos, embedded):
    results = trained(photos("run", "data.calibration=0.2"))
    assert sum(embedded) == IMAGES
    assert results["calibration_samples"] > 0 and results["temperature"] != 1


def test_only_new_images_are_embedded(photos, embedded):
    trained(photos("first"))
    embedded.clear()
    trees.picture(Path("photos/new.png"), 77)
    with Path("photos/list.csv").open("a", encoding="utf-8", newline="") as file:
        csv.writer(file).writerow(("new.png", NASTY_CLASSES[0]))
    trained(photos("second", "epochs=1"))
    assert sum(embedded) <= 3  # the new one; and those that the split moved between its sides


def test_it_learns_and_only_the_heads_are_in_the_checkpoint(photos):
    results = trained(photos("run", "epochs=30", "optimizer.lr=0.1"))
    assert results["test_accuracy_last"] > 0.8  # a tenth of the test labels is wrong
    names = load_checkpoint(Path("run/checkpoint.pt"))["modules"]["network"]
    assert {name.split(".")[0] for name in names} == {"encoder", "classifier", "projection"}
    assert names["encoder.mean"].shape == (names["classifier.weight"].shape[1],)


def test_it_says_where_no_comparison_of_embeddings_reaches_the_classifier(photos, capsys):
    said = "what compares embeddings trains the projection head alone"
    accuracies = []
    for method, weight in (("bsd_supcon", "contrastive.weight"), ("ctrr", "options.weight")):
        for value in (0, 9):
            settings = (f"method={method}", f"{weight}={value}")
            results = trained(photos(f"{method}-{value}", *settings))
            accuracies.append((results["test_accuracy_last"], results["test_ece_last"]))
            assert said in capsys.readouterr().out
    assert accuracies[0] == accuracies[1] and accuracies[2] == accuracies[3]
    for settings in (("method=bsd_supcon", "network.width=16"), ("method=bsd",)):
        trained(photos(f"{settings[-1]}-run", *settings))
        assert said not in capsys.readouterr().out


def test_a_run_interrupted_within_an_epoch_continues_exactly(photos, monkeypatch):
    trained(photos("whole"))
    step = Trainer.step

    def killing(self: Trainer, *batch: torch.Tensor) -> None:
        if self.step_number == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", killing)
        assert train(photos("parts")) == 143
    trained(photos("parts"))
    assert_same(outcome(Path("parts")), outcome(Path("whole")))


def test_features_are_kept_when_the_process_ends_within_them(photos, embedded, monkeypatch):
    features = FrozenBackbone._features

    def ending(self: FrozenBackbone, images: torch.Tensor, names: list[str]) -> torch.Tensor:
        if embedded:
            raise KeyboardInterrupt
        return features(self, images, names)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FrozenBackbone, "_features", ending)
        Trainer(
            load_config(photos("run")), run_dataset(load_config(photos("run"))), torch.device("cpu")
        )
    before = sum(embedded)
    trained(photos("run"))
    assert before > 0 and sum(embedded) == IMAGES


def test_evaluate_and_report_work_as_on_other_runs(photos, capsys):
    results = trained(photos("run"))
    assert evaluate(["run=run", "corruptions=gaussian_noise"]) == 0
    found = strict(Path("run/evaluation.json").read_text())
    assert found["test_accuracy"] == results["test_accuracy_last"]
    assert found["corruptions"]["images"] == 5 * results["test_samples"]
    assert (
        evaluate(
            [
                "run=run",
                "data.root=photos",
                "data.manifest=list.csv",
                "data.name=own",
                "data.size=32",
            ]
        )
        == 0
    )
    assert strict(Path("run/evaluation.json").read_text())["other_data"]["images"] == IMAGES
    assert report(["run=run"]) == 0
    page = Path("run/report.html").read_text()
    assert "url(data:image/" in page or "pictures" in page
    table = pyarrow.parquet.read_table("run/labels.parquet")
    assert table.num_rows == IMAGES  # the held-out images too


def test_a_network_read_back_takes_images(photos):
    trained(photos("run"))
    trainer = load_trainer(Path("run"), load_run_config(Path("run"), []))
    assert trainer is not None and trainer.dataset.test.paths is not None
    logits, _, _ = trainer.predict_test(trainer.networks()["_ema"])
    found = noisybsd.load("run").predict([Path("photos", p) for p in trainer.dataset.test.paths])
    # the run's features were kept in half precision
    np.testing.assert_allclose(found.probabilities, logits.softmax(1).numpy(), atol=0.01)


def test_a_network_is_not_read_back_on_another_backbone(photos):
    trained(photos("run"))
    weights = torch.load("weights.pth", weights_only=True)
    torch.save({name: value + 1 for name, value in weights.items()}, "weights.pth")
    with pytest.raises(UserError, match=r"of network.name=timm:test_resnet are not those that"):
        noisybsd.load("run")
    Path("weights.pth").unlink()
    with pytest.raises(UserError, match=r"network.weights=weights.pth: there is no such file"):
        noisybsd.load("run")


def test_an_unreadable_image_stops_the_run_or_is_left_out(photos):
    broken = sorted(Path("photos/images").iterdir())[4:9]
    content = broken[0].read_bytes()[:60]
    for path in broken:  # several files of the same bytes, as downloads that failed alike
        path.write_bytes(content)
    assert train(photos("run")) == 2
    results = trained(photos("skipping", "data.on_error=skip"))
    assert results["train_samples"] + results["test_samples"] == IMAGES - 5
    assert results["data"]["skipped_images"] == 5
    assert Path("skipping/log.txt").read_text("utf-8").count("skipped an unreadable image: ") == 5
    for path in broken:
        assert path.name in json.dumps(results["data"], ensure_ascii=False)


def test_pictures_and_reviews_are_of_the_images_that_a_run_has_not_left_out(photos):
    broken = sorted(Path("photos/images").iterdir())[4]
    broken.write_bytes(broken.read_bytes()[:60])
    trained(photos("run", "data.on_error=skip"))
    judged = load_run(Path("run"), [])
    rows = judged.findings.table.to_pylist()
    assert len(rows) == IMAGES - 1
    pictures = judged.images.look_at(np.arange(len(rows)), 32)
    for row, picture in zip(rows, pictures, strict=True):
        file = ImageFiles([row["path"]], "photos", 32)
        assert torch.equal(picture, next(iter(file.decode_many([0]))))
    columns = ("index", "path", "given", "label", "decision", "data_sha256")
    last = rows[-1]  # held out, behind all that could be read
    last |= {"label": (last["given"] + 1) % 3, "decision": "wrong"}
    last |= {"data_sha256": judged.findings.about["data_sha256"]}
    with Path("review.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([columns, [last[name] for name in columns]])
    apply_review(load_run_config(Path("run"), []), Path("review.csv"), Path("out.csv"))
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        labels = {row["path"]: int(row["label"]) for row in csv.DictReader(file)}
    changed = [row["path"] for row in rows if labels[row["path"]] != row["given"]]
    assert changed == [last["path"]]


def test_a_run_does_not_start_from_the_heads_of_another_backbone(photos, capsys):
    trained(photos("run"))
    trained(photos("same", "run.init=run"))
    weights = torch.load("weights.pth", weights_only=True)
    torch.save({name: value * 1.1 for name, value in weights.items()}, "other.pth")
    assert train(photos("other", "run.init=run", "network.weights=other.pth")) == 2
    assert "are not those that the run was trained on" in capsys.readouterr().err
    assert evaluate(["run=run"]) == 0
    assert evaluate(["run=run", "network.weights=other.pth"]) == 2
    assert "are not those that the run was trained on" in capsys.readouterr().err


def test_embeddings_of_others_stand_in_the_place_of_the_images(photos, capsys):
    random = np.random.default_rng(0)
    vectors = np.eye(3)[[i % 3 for i in range(IMAGES)]] + random.normal(0, 0.2, (IMAGES, 3))
    np.save("vectors.npy", vectors)
    Path("photos/images").rename("elsewhere")
    given = ("data.embeddings=vectors.npy", "epochs=30", "optimizer.lr=0.1", "network.weights=null")
    results = trained(photos("run", *given))
    assert results["test_accuracy_last"] > 0.8
    assert report(["run=run"]) == 0
    assert (
        evaluate(
            [
                "run=run",
                "data.root=photos",
                "data.embeddings=vectors.npy",
                "data.manifest=photos/list.csv",
                "data.name=own",
            ]
        )
        == 0
    )
    assert strict(Path("run/evaluation.json").read_text())["other_data"]["images"] == IMAGES
    assert evaluate(["run=run", "corruptions=contrast"]) == 2
    assert "so it takes no images" in capsys.readouterr().err
    own = ("own", "root=photos", "manifest=photos/list.csv", "embeddings=vectors.npy")
    assert data(["check", *own]) == 0
    assert "embeddings of 3 numbers" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"no image file of the dataset is in photos"):
        dataset = run_dataset(load_run_config(Path("run"), []))
        link_classes(Path("links"), Path("photos"), {"": dataset.train}, ("a", "b", "c"))
    assert not Path("links").exists()
    assert (
        evaluate(
            [
                "run=run",
                "data.name=own",
                "data.root=photos",
                "data.manifest=photos/list.csv",
                "data.size=32",
            ]
        )
        == 2
    )


def test_embeddings_of_others_need_no_timm(photos, monkeypatch):
    np.save("vectors.npy", np.random.default_rng(0).normal(size=(IMAGES, 3)))
    monkeypatch.setitem(sys.modules, "timm", None)
    trained(photos("run", "data.embeddings=vectors.npy", "network.weights=null", "epochs=1"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            ["network.weights=null"],
            "network.frozen=true keeps timm:test_resnet as it is, with random",
        ),
        (["network.frozen=false", "data.embeddings=e.npy"], "goes with network.frozen=true"),
        (["data.manifest=null", "data.embeddings=e.npy"], "goes with data.manifest=FILE"),
        (["compile=true"], "views are embedded once"),
        (["network.weights=none.pth"], "there is no such file"),
    ],
)
def test_what_does_not_go_with_a_frozen_backbone_is_said(photos, changes, told, capsys):
    assert train(photos("run", *changes)) == 2
    assert told in capsys.readouterr().err
