"""Evaluating a run: the numbers of its last epoch again, or a sentence on why not."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import trees
from helpers.compared import rows, strict

from noisybsd.compare.__main__ import main as compare
from noisybsd.config import load_config
from noisybsd.data.__main__ import main as data
from noisybsd.data.corruptions import corrupt
from noisybsd.data.dataset import load_dataset, load_evaluation
from noisybsd.data.images import ImageFiles, decode_image
from noisybsd.engine.evaluation import corrupted_test_set, evaluate_run
from noisybsd.engine.predict import evaluation_batch, predict
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.evaluate import main
from noisybsd.runs.checkpoint import load_checkpoint, previous, save_checkpoint
from noisybsd.train import main as train

Tiny = Callable[..., list[str]]


def files(run: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in run.iterdir() if p.is_file()}


def stop_in_epoch_1(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> None:
    """Train until a signal ends the run after its first epoch."""
    evaluate = Trainer.evaluate

    def stopping(self: Trainer) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "evaluate", stopping)
        assert train(arguments) == 143


@pytest.mark.parametrize("settings", [(), ("ema.decay=0", "neighbours.k=0"), ("method=ce",)])
def test_a_finished_runs_numbers_are_those_of_its_last_epoch(
    settings: tuple[str, ...], tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny("run.dir=run", "epochs=2", *settings)) == 0
    before = files(Path("run"))
    capsys.readouterr()
    assert main(["run=run"]) == 0
    last = rows(Path("run"))[-1]
    found = strict(Path("run/evaluation.json").read_text())
    tested = {key: value for key, value in found.items() if key.startswith("test_")}
    assert tested == {key: value for key, value in last.items() if key.startswith("test_")}
    assert len(tested) == (4 if "ema.decay=0" in settings else 9)
    assert found["epoch"] == 2 and found["device"] == "cpu" and "torch" in found["versions"]
    # it shows them, and leaves the run alone
    out = capsys.readouterr().out
    assert f"{last['test_accuracy']:.4f}" in out and "evaluation.json" in out
    assert {k: v for k, v in files(Path("run")).items() if k != "evaluation.json"} == before


def test_predictions_depend_on_nothing_but_image_and_network(tiny: Tiny) -> None:
    config = load_config(tiny())
    dataset = load_dataset(config.data, config.noise, config.seed)
    trainer = Trainer(config, dataset, torch.device("cpu"))
    network, before = trainer.network.train(), copy.deepcopy(trainer.network.state_dict())
    parts = trainer.views, trainer.device, None
    together = predict(network, dataset.test, *parts)
    apart = predict(network, dataset.test, *parts, batch_size=7)
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)
    assert together[2].tolist() == dataset.test.labels.tolist()
    assert network.training  # and goes on as it was
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("trained", "size", "device", "expected"),
    [
        (256, 32, "cpu", 500),
        (64, 8, "cpu", 256),
        (256, 32, "cuda", 2500),  # of CIFAR's 10,000 test images: four batches, all alike
        (256, 224, "cuda", 500),
        (32, 32, "cuda", 320),  # what was small in training stays small
        (8, 10_000, "cuda", 1),
    ],
)
def test_how_many_images_are_evaluated_at_once(
    trained: int, size: int, device: str, expected: int
) -> None:
    assert evaluation_batch(trained, size, torch.device(device)) == expected


def test_a_run_under_way(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_in_epoch_1(monkeypatch, tiny("run.dir=run"))
    found = evaluate_run(Path("run"), [])
    assert found["epoch"] == 1
    assert found["test_accuracy"] == rows(Path("run"))[0]["test_accuracy"]


def test_a_damaged_checkpoint_is_passed_over_and_left_there(
    tiny: Tiny, caplog: pytest.LogCaptureFixture
) -> None:
    assert train(tiny("run.dir=run", "epochs=2")) == 0
    os.truncate("run/checkpoint.pt", 100)
    before = files(Path("run"))
    found = evaluate_run(Path("run"), [])
    assert found["epoch"] == 1 and "run/checkpoint.pt: truncated" in caplog.text
    assert files(Path("run")) == before
    previous(Path("run/checkpoint.pt")).unlink()
    assert main(["run=run"]) == 2
    Path("run/checkpoint.pt").unlink()
    with pytest.raises(UserError, match=r"is gone; .* recipe=run/config.yaml run.dir=NEW"):
        evaluate_run(Path("run"), [])


def test_where_things_are_may_differ(tiny: Tiny) -> None:
    assert train(tiny("run.dir=run", "epochs=1")) == 0
    plain = evaluate_run(Path("run"), [])
    moved = evaluate_run(Path("run"), ["data.root=elsewhere", "data.workers=0", "device=auto"])
    assert moved["test_accuracy"] == plain["test_accuracy"]
    fewer = evaluate_run(Path("run"), ["neighbours.k=1"])
    assert fewer["test_knn_accuracy"] != plain["test_knn_accuracy"]
    assert fewer["test_nll"] == plain["test_nll"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "usage: "),
        (["rum=run"], "give one run=DIR, got 0 in 'rum=run'"),
        (["run=run", "run=run"], "give one run=DIR, got 2"),
        (["run=nowhere"], "run=nowhere: not a run directory, it has no config.yaml\n"),
        (
            ["run=."],
            "run=.: not a run directory, it has no config.yaml; the newest runs in it: run=run\n",
        ),
        (["run=run", "seed=1"], "seed: cannot differ from the run's; valid: data.root, "),
        (["run=run", "batch_size=8"], "batch_size: cannot differ"),
        (["run=run", "device=gpu"], "device: "),
        (["run=run", "corruptions=fgo"], "corruptions: got 'fgo', did you mean fog? valid: all, b"),
        (["run=run", "corruption=fog"], "corruption: unknown key; did you mean corruptions?"),
        (["run=run", "corruptions=saturate"], "corruptions=saturate: needs colour"),
        (["run=run", "neighbours.k=500"], "k, neighbours.k: got 500; valid: 1 to 128"),
        (["run=run", "seed"], "seed"),
        (["run=young"], "run=young: has no checkpoint yet"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    arguments: list[str], says: str, tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny("run.dir=run", "epochs=1")) == 0
    Path("young").mkdir()
    Path("young/config.yaml").write_bytes(Path("run/config.yaml").read_bytes())
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert says in out + err and "Traceback" not in err
    assert not Path("run/evaluation.json").exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert "data.root=PATH" in capsys.readouterr().out


# other test images


CORRUPTED = ("fog", "snow")


@pytest.fixture
def on_cifar10(tiny: Tiny) -> Callable[..., int]:
    """`evaluate` with these overrides, of a run on 100 images of 10 classes. Its 20 test images are
    also CIFAR-10-C's at every severity of fog; snow is black."""
    trees.cifar10(Path("data"))
    card = trees.card(Path(), "cifar10", checksums=None)
    settings = ("augment.name=cifar", f"data.name={card}", "data.limit=100")
    assert train(tiny("run.dir=run", "epochs=1", "data.root=data", *settings)) == 0

    with Path("data/cifar-10-batches-py/test_batch").open("rb") as file:
        test = pickle.load(file)
    images = np.tile(test["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), (5, 1, 1, 1))
    folder = Path("corrupted/CIFAR-10-C")
    folder.mkdir(parents=True)
    np.save(folder / "labels.npy", np.tile(np.array(test["labels"], np.uint8), 5))
    np.save(folder / "fog.npy", images)
    np.save(folder / "snow.npy", np.zeros_like(images))
    return lambda *more: main(["run=run", *map(str, more)])


def corrupted(**changes: object) -> list[str]:
    """Overrides that name those images by a card of their own."""
    folder = Path(tempfile.mkdtemp(dir="."))
    card = trees.card(folder, "cifar10c", **{"corruptions": CORRUPTED, **changes})
    return [f"data.name={card}", "data.root=corrupted", "data.download=false"]


def test_corruptions(on_cifar10: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert on_cifar10(*corrupted()) == 0
    out = capsys.readouterr().out
    found = strict(Path("run/evaluation.json").read_text())
    other = found["other_data"]
    assert other["name"] == "cifar10c" and other["skipped"] == []
    assert list(other["sets"]) == [f"{c}/{s}" for c in CORRUPTED for s in range(1, 6)]
    metrics = [
        f"{m}{suffix}" for suffix in ("", "_ema") for m in ("accuracy", "ece", "nll", "brier")
    ]
    for severity in range(1, 6):
        assert list(other["sets"][f"fog/{severity}"]) == metrics
        assert other["sets"][f"fog/{severity}"] == {m: found[f"test_{m}"] for m in metrics}
    black = other["sets"]["snow/1"]
    assert black["nll"] != found["test_nll"] and black["nll"] != black["nll_ema"]
    for metric in metrics:
        assert other["mean"][metric] == pytest.approx((found[f"test_{metric}"] + black[metric]) / 2)
    # a row for each corruption, and their mean
    for name, accuracy in (("fog", found["test_accuracy"]), ("snow", black["accuracy"])):
        row = next(line for line in out.splitlines() if f" {name} " in line)
        assert row.count(f"{accuracy:.4f}") == 6
    assert f"{other['mean']['accuracy']:.4f}" in out


def test_the_test_split_of_other_data(on_cifar10: Callable[..., int]) -> None:
    assert on_cifar10("data.name=./cifar10.yaml", "data.root=data") == 0
    found = strict(Path("run/evaluation.json").read_text())
    assert list(found["other_data"]["sets"]) == ["test"]
    assert found["other_data"]["mean"]["nll"] == found["test_nll"]


def test_unreadable_images_of_other_data_are_counted(on_cifar10: Callable[..., int]) -> None:
    names = [
        "airplane",
        "automobile",
        "bird",
        "cat",
        "deer",
        "dog",
        "frog",
        "horse",
        "ship",
        "truck",
    ]
    for split in ("train", "test"):
        trees.folders(Path("photos", split), names, n=2)
    Path("photos/test/dog/000.png").write_text("not a picture")
    arguments = ["data.name=own", "data.root=photos", "data.size=32"]
    assert on_cifar10(*arguments) == 2
    assert on_cifar10(*arguments, "data.on_error=skip") == 0
    (skipped,) = strict(Path("run/evaluation.json").read_text())["other_data"]["skipped"]
    assert "dog/000.png: is not an image" in skipped


def test_images_that_the_network_was_not_made_for(
    on_cifar10: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = {"channels": 1, "mean": [0.5], "std": [0.5]}
    classes = ["plane", *"bcdefghij"]
    for arguments, says in (
        (
            ["data.name=cifar100c"],
            "data.name=cifar100c: has 100 classes, the run was trained on 10",
        ),
        (corrupted(classes=classes), "class 0 is plane, in the run's data it is airplane"),
        (corrupted(size=64), "images of 64 pixels, the run was trained on 32; image files can"),
        (corrupted(**pixels), "images of 1 channels, the run's have 3"),
        (["data.name=cifra10c"], "data.name: got 'cifra10c', did you mean cifar10c?"),
        ([*corrupted(), "data.root=nowhere"], "nowhere/CIFAR-10-C: not there"),
        ([*corrupted(), "data.labels=x"], "data.labels: has no effect here; valid: data.name"),
        ([*corrupted(), "data.size=64"], "data.size=64: cifar10c has images of 32 pixels"),
        ([*corrupted(), "seed=1"], "seed: cannot differ from the run's"),
    ):
        if "data.name=cifar100c" in arguments:
            arguments = [*arguments, "data.download=false"]
        capsys.readouterr()
        assert on_cifar10(*arguments) == 2, arguments
        assert says in capsys.readouterr().err, arguments
    assert not Path("run/evaluation.json").exists()


# new images of the run's own classes


@pytest.fixture
def on_own_images(tiny: Tiny) -> Callable[..., int]:
    """`evaluate` with these overrides, of a run on 24 images of two classes in folders."""
    trees.folders(Path("photos"), n=12)
    own = ("data.name=own", "data.root=photos", "data.size=8", "data.workers=0", "network.width=4")
    settings = (*own, "augment.name=cifar", "noise.name=none", "noise.rate=0", "data.limit=null")
    assert train(tiny("run.dir=run", "epochs=1", "batch_size=8", "neighbours.k=2", *settings)) == 0
    return lambda *more: main(["run=run", *map(str, more)])


def measured(key: str = "other_data") -> Any:
    return strict(Path("run/evaluation.json").read_text()).get(key)


def test_a_new_folder_is_measured_whole(
    on_own_images: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trees.folders(Path("new"), n=7)
    for arguments in (["data.root=new"], ["data.name=own", "data.root=new", "data.size=8"]):
        capsys.readouterr()
        assert on_own_images(*arguments) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert measured()["images"] == 14 and "own, new: 14 images" in out
        assert f"after epoch 1: {measured('images')} test images" in out


def test_a_new_folder_need_not_have_every_class(on_own_images: Callable[..., int]) -> None:
    trees.folders(Path("dogs"), ["dog"], n=7)
    assert on_own_images("data.root=dogs") == 0
    config = load_run_config(Path("run"), [])
    trainer = load_trainer(Path("run"), config)
    assert trainer is not None
    (_, split), *_ = load_evaluation(
        config.data.model_copy(update={"root": "dogs"}), trainer.dataset.class_names
    ).sets
    assert split.labels.tolist() == [1] * 7 and measured()["images"] == 7
    trees.folders(Path("foxes"), ["fox", "dog"], n=2)
    assert on_own_images("data.root=foxes") == 2


def test_of_a_folder_of_images_without_classes_the_ways_out_are_said(
    on_own_images: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trees.picture(Path("new/1.png"))
    assert on_own_images("data.root=new") == 2
    said = capsys.readouterr().err
    assert "data.root=new: has 1 image and no folder of a class" in said
    for way_out in ("expected <class>/", "data.manifest=FILE", "python -m noisybsd.predict"):
        assert way_out in said


def test_a_new_folder_with_a_split_is_measured_on_it(
    on_own_images: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    trees.folders(Path("new/Test"), n=3)
    assert on_own_images("data.root=new") == 0 and measured()["images"] == 6
    trees.folders(Path("new/train"), n=2)
    assert on_own_images("data.root=new") == 0 and measured()["images"] == 6
    assert "not used: train/ and its 4 images" in caplog.text


def test_a_pack_of_new_images_is_measured_on_its_whole_split(
    on_own_images: Callable[..., int],
) -> None:
    """Whatever share of its own images the run held out, or how few of them it looked at."""
    trees.folders(Path("new/train"), n=2)
    trees.folders(Path("new/test"), n=3)
    assert data(["pack", "own", "root=new", "size=8", "out=packed"]) == 0
    share = ("data.test_fraction=0.4", "data.test_limit=2")
    shutil.move("run", "first")
    assert train(["recipe=first/config.yaml", *share, "run.dir=run"]) == 0
    assert on_own_images("data.root=packed") == 0
    assert measured("images") == 2 and measured()["images"] == 6


def test_a_manifest_of_test_rows_alone_is_measured(on_own_images: Callable[..., int]) -> None:
    trees.folders(Path("new"), n=4)
    rows = [
        f"{name}/00{i}.{'jpg' if i % 2 else 'png'},{name}"
        for name in ("cat", "dog")
        for i in range(4)
    ]
    marked = [f"{row},test" for row in rows[:5]]
    Path("all.csv").write_text("\n".join(["path,label", *rows]))
    Path("test.csv").write_text("\n".join(["path,label,split", *marked]))
    assert on_own_images("data.root=new", "data.manifest=all.csv") == 0
    assert measured()["images"] == 8
    assert on_own_images("data.root=new", "data.manifest=test.csv") == 0
    assert measured()["images"] == 5


def test_a_label_file_for_other_images_is_refused(
    on_own_images: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    trees.folders(Path("new"), n=3)
    assert on_own_images("data.root=new", "data.labels=l.csv") == 2
    assert "in data.manifest=FILE; where the run's own" in capsys.readouterr().err


def test_a_run_is_told_where_its_data_are(
    on_own_images: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert on_own_images() == 0
    before = measured("test_nll")
    Path("photos").rename("moved")
    trees.folders(Path("new"), n=3)
    shutil.copytree("moved", "copy")
    capsys.readouterr()
    assert on_own_images("data.root=new") == 2
    assert (
        "photos: not there" in (error := capsys.readouterr().err) and "run.data.root=PATH" in error
    )
    assert on_own_images("data.root=moved") == 0
    assert measured() is None and measured("test_nll") == before
    assert on_own_images("data.root=new", "run.data.root=moved") == 0
    assert measured()["images"] == 6 and measured("test_nll") == before
    assert on_own_images("data.root=copy", "run.data.root=moved") == 0  # all of them, as asked for
    assert measured()["images"] == 24 and "the run's own, most of which it was" in caplog.text
    # and from another working directory
    here = Path.cwd()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert main([f"run={here}/run", "run.data.root=../moved", "data.root=../new"]) == 0


# the run's own test images, corrupted here


def test_generated_corruptions(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tiny("run.dir=run", "epochs=1")) == 0
    capsys.readouterr()
    assert main(["run=run", "corruptions=fog,saturate,pixelate"]) == 0
    out = capsys.readouterr().out
    found = strict(Path("run/evaluation.json").read_text())
    made = found["corruptions"]
    assert made["name"] == "digits, corrupted" and made["skipped"] == []
    names = ("fog", "pixelate")  # digits are grey
    assert list(made["sets"]) == [f"{name}/{s}" for name in names for s in range(1, 6)]
    metrics = list(made["mean"])
    assert len(metrics) == 8 and "other_data" not in found
    for measured in made["sets"].values():
        assert list(measured) == metrics
    for metric in metrics:
        values = [measured[metric] for measured in made["sets"].values()]
        assert made["mean"][metric] == pytest.approx(np.mean(values))
    assert len({measured["nll"] for measured in made["sets"].values()} | {found["test_nll"]}) == 11
    row = next(line for line in out.splitlines() if " pixelate " in line)
    assert f"{made['sets']['pixelate/3']['accuracy']:.4f}" in row

    # the same again, whatever else is asked for; and without, the rest is the same
    again = evaluate_run(Path("run"), ["corruptions=pixelate"])["corruptions"]["sets"]
    assert again == {k: v for k, v in made["sets"].items() if k.startswith("pixelate")}
    plain = evaluate_run(Path("run"), [])
    assert plain == {key: value for key, value in found.items() if key != "corruptions"}


def test_generated_corruptions_are_of_the_images_that_the_network_sees(tiny: Tiny) -> None:
    """Of the middle of image files; these are read once, and unreadable ones are left out."""
    for split in ("train", "test"):
        trees.folders(Path("photos", split), n=32 if split == "train" else 5)
    settings = ("data.name=own", "data.root=photos", "data.size=16", "augment.name=imagenet")
    more = (
        "noise.name=none",
        "noise.rate=0",
        "data.storage=stream",
        "data.workers=0",
        "data.on_error=skip",
    )
    Path("photos/test/dog/000.png").write_text("not a picture")
    assert train(tiny("run.dir=run", "epochs=1", "data.limit=null", *settings, *more)) == 0
    config = load_run_config(Path("run"), [])
    trainer = load_trainer(Path("run"), config)
    assert trainer is not None
    evaluation = corrupted_test_set(trainer, ["contrast"])
    (_, split), *_ = evaluation.sets
    files = trainer.dataset.test
    assert isinstance(files.images, ImageFiles) and isinstance(split.images, torch.Tensor)
    assert split.images.shape == (9, 3, 16, 16) and files.images.size == 18
    first = files.images.decode(0)[None, :, 1:-1, 1:-1]
    assert torch.equal(split.images[:1], corrupt(first, "contrast", 1))

    found = evaluate_run(Path("run"), ["corruptions=contrast"])["corruptions"]
    assert len(found["sets"]) == 5 and len(found["skipped"]) == 1
    assert "dog/000.png: is not an image" in found["skipped"][0]


def test_both_kinds_of_corruptions(on_cifar10: Callable[..., int]) -> None:
    assert on_cifar10(*corrupted(), "corruptions=saturate") == 0
    found = strict(Path("run/evaluation.json").read_text())
    assert next(iter(found["other_data"]["sets"])) == "fog/1"
    assert list(found["corruptions"]["sets"]) == [f"saturate/{s}" for s in range(1, 6)]


def test_a_run_whose_method_meant_another_one_is_refused(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    """Such a record has settings posterior.*; no command reads it as what it is not."""
    arguments = tiny("run.dir=run", "epochs=1", "method=bsd")
    assert train(arguments) == 0
    record = Path("run/config.yaml")
    text = record.read_text()
    record.write_text(f"{text}posterior:\n  prior_strength: 8.0\n")
    says = "run/config.yaml: made by a development version of noisybsd"
    for command, words in ((main, ["run=run"]), (train, arguments), (compare, ["run"])):
        assert command(words) == 2
        assert says in capsys.readouterr().err
    # its checkpoint too, where the record is lost
    record.write_text(text)
    Path("run/results.json").unlink()
    state = load_checkpoint(Path("run/checkpoint.pt"))
    state["config"]["posterior"] = {"prior_strength": 8.0}
    save_checkpoint(state, Path("run/checkpoint.pt"))
    assert train(arguments) == 2
    assert "run/checkpoint.pt: made by a development version" in capsys.readouterr().err


def test_the_test_images_alone_are_read(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    trees.folders(Path("data"), n=12)
    own = ("data.name=own", "data.root=data", "data.size=8", "data.workers=0", "network.width=4")
    assert train(tiny("run.dir=run", "epochs=1", "batch_size=8", "neighbours.k=2", *own)) == 0
    decoded: list[Path] = []

    def noted(path: Path, *arguments: Any) -> torch.Tensor:
        decoded.append(path)
        return decode_image(path, *arguments)

    monkeypatch.setattr("noisybsd.data.images.decode_image", noted)
    assert main(["run=run"]) == 0
    config = load_config(["recipe=run/config.yaml"])
    paths = load_dataset(config.data, config.noise, config.seed).test.paths
    assert paths is not None and {str(path.relative_to("data")) for path in decoded} == {*paths}


def test_neighbours_of_a_run_that_kept_no_embeddings(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny("run.dir=run", "epochs=1", "neighbours.k=0")) == 0
    assert "bank" not in load_checkpoint(Path("run/checkpoint.pt"))["modules"]
    assert main(["run=run", "neighbours.k=5"]) == 2
    assert "neighbours.k=5: this run kept no embeddings" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(tiny: Tiny) -> None:
    assert train(tiny("run.dir=run", "epochs=1", "method=ce")) == 0
    assert train(tiny("run.dir=other", "epochs=1", "method=ce", "seed=1")) == 0
    Path("run/checkpoint.pt").write_bytes(Path("other/checkpoint.pt").read_bytes())
    with pytest.raises(UserError) as caught:
        evaluate_run(Path("run"), [])
    assert str(caught.value).splitlines() == [
        "run/checkpoint.pt: is another run's; config.yaml has other settings",
        "seed: 1 there, 0 here",
    ]


def test_a_checkpoint_with_other_state_is_refused_in_a_sentence(tiny: Tiny) -> None:
    assert train(tiny("run.dir=run", "epochs=1", "method=ce")) == 0
    state = load_checkpoint(Path("run/checkpoint.pt"))
    whole = state["modules"]["network"]
    for name, changed in (
        ("network", {"encoder.nothing": torch.zeros(1), **whole}),
        ("network", {key: value.new_zeros((*value.shape, 1)) for key, value in whole.items()}),
        ("monitor", {"visits": torch.zeros(1)}),
    ):
        modules = {**state["modules"], name: changed}
        save_checkpoint({**state, "modules": modules}, Path("run/checkpoint.pt"))
        with pytest.raises(
            UserError, match=rf"^run/checkpoint.pt: damaged, or of another .* whose {name} was"
        ):
            evaluate_run(Path("run"), [])
    state["modules"]["monitor"]["predicted"][0] = 99
    save_checkpoint(state, Path("run/checkpoint.pt"))
    with pytest.raises(UserError, match=r"monitor\.predicted holds no classes, 0 to 9"):
        evaluate_run(Path("run"), [])


def test_a_gpu_out_of_memory_is_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr("noisybsd.engine.evaluation.evaluate_run", full)
    assert main(["run=anywhere"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: the GPU is out of memory: CUDA out of memory. Tried to")
    assert error.endswith("error: see what else runs on it, or use device=cpu\n")


def test_other_runtime_errors_are_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr("noisybsd.engine.evaluation.evaluate_run", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["run=anywhere"])
