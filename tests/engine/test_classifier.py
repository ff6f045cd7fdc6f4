"""A network read back from its run alone gives what the run's own evaluation gives."""

from __future__ import annotations

import io
import logging
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.own_run import own_run, paint
from PIL import Image

import noisybsd
from noisybsd.data.images import ImageError, ImageFiles
from noisybsd.data.loader import eval_batches
from noisybsd.engine.classifier import Classifier, load
from noisybsd.engine.predict import predict
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import UserError
from noisybsd.runs.checkpoint import load_checkpoint, save_checkpoint
from noisybsd.train import main as train


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_run(tmp_path_factory.mktemp("own"))


def copied(run: Path, to: Path) -> Path:
    shutil.copytree(run, to)
    return to


def trained(run: Path) -> Trainer:
    trainer = load_trainer(run, load_run_config(run, ["device=cpu"]))
    assert trainer is not None
    return trainer


@pytest.mark.parametrize(("weights", "suffix"), [("average", "_ema"), ("last", "")])
def test_probabilities_are_those_of_the_evaluation_bit_for_bit(
    own: Path, weights: str, suffix: str
) -> None:
    trainer = trained(own / "run")
    split = trainer.dataset.test
    assert isinstance(split.images, ImageFiles) and len(split) == 11
    logits, _, _ = predict(
        trainer.networks()[suffix], split, trainer.views, trainer.device, None, batch_size=4
    )
    (whole,) = [images for images, _ in eval_batches(split, 11, "cpu")]

    classifier = load(own / "run", weights=weights, device="cpu")  # type: ignore[arg-type]
    paths = [split.images.root / path for path in split.images.paths]
    inputs = torch.stack([classifier.transform(path) for path in paths])
    assert torch.equal(inputs, trainer.views.plain(whole))
    found = classifier.predict(paths, batch_size=4)
    assert torch.equal(torch.from_numpy(found.probabilities), logits.softmax(1))
    assert found.class_names == classifier.class_names == ("cat", "dog")


def test_neither_data_nor_dataset_are_needed(own: Path, tmp_path: Path) -> None:
    run = copied(own / "run", tmp_path / "run")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(own), "/nowhere"))
    state = load_checkpoint(run / "checkpoint.pt")
    state["config"]["data"]["root"] = "/nowhere/photos"
    save_checkpoint(state, run / "checkpoint.pt")
    image = own / "photos/test/cat/large.jpg"
    before, after = (load(each, device="cpu").predict(image) for each in (own / "run", run))
    assert np.array_equal(before.probabilities, after.probabilities) and after.probabilities.any()


def test_an_image_may_come_in_every_form(own: Path) -> None:
    classifier = load(own / "run", device="cpu")
    path = own / "photos/test/dog/000.png"
    picture = Image.open(path)
    array = np.array(picture)
    assert array.shape == (10, 12, 3)
    expected = classifier.predict(path).probabilities
    assert expected.shape == (1, 2)
    for image in (str(path), path.read_bytes(), picture, array):
        assert np.array_equal(classifier.predict(image).probabilities, expected)
    mixed = classifier.predict([path, picture, array, path.read_bytes()], batch_size=3)
    np.testing.assert_allclose(mixed.probabilities, expected.repeat(4, 0), rtol=1e-5)
    batch = classifier.predict(np.stack([array] * 5))
    np.testing.assert_allclose(batch.probabilities, expected.repeat(5, 0), rtol=1e-5)
    assert classifier.predict([]).probabilities.shape == (0, 2)
    assert classifier.embed([]).shape == (0, classifier.network.feature_dim)


def test_a_picture_stays_as_it_is_and_is_turned_as_its_file_is(own: Path, tmp_path: Path) -> None:
    path = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(10, 6)).save(path, exif=exif)
    transform = load(own / "run", device="cpu").transform
    picture = Image.open(path)
    assert torch.equal(transform(picture), transform(path))
    assert picture.size == (6, 10) and picture.getexif()[0x0112] == 6


def test_arrays_are_converted_as_files_are(own: Path, tmp_path: Path) -> None:
    transform = load(own / "run", device="cpu").transform
    for mode, shape in (("L", (20, 30)), ("RGB", (20, 30, 3)), ("RGBA", (20, 30, 4))):
        array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array, mode).save(tmp_path / "file.png")
        assert torch.equal(transform(array), transform(tmp_path / "file.png"))
        if mode == "L":
            assert torch.equal(transform(array[..., None]), transform(array))


@pytest.mark.parametrize(
    ("image", "says"),
    [
        (np.zeros((4, 4)), r"image 1: is an array of float64 of shape \(4, 4\); valid: uint8"),
        (np.zeros((4, 4, 2), np.uint8), r"image 1: .* of shape \(4, 4, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"image 1: .* of shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"image 1: .* of shape \(4,\)"),
        (Image.new("F", (4, 4)), "image 1: floating-point pixels have no fixed range"),
        (b"", "image 1: is empty"),
        (b"GIF89a", "image 1: cannot be decoded|image 1: is not an image"),
        (Path("nowhere.png"), "nowhere.png: cannot be read: No such file"),
        ("a\0.png", "cannot be read: embedded null"),
        (torch.zeros(3, 4, 4), "image 1: is a Tensor; valid: a path, the bytes"),
        (7, "image 1: is a int; valid: a path"),
    ],
)
def test_what_is_no_image_is_named(own: Path, image: object, says: str) -> None:
    classifier = load(own / "run", device="cpu")
    good = own / "photos/test/dog/000.png"
    for ask in (classifier.predict, classifier.embed):
        with pytest.raises(UserError, match=says):
            ask([good, image])  # type: ignore[list-item]
    for wrong in (7, {"a": good}, io.BytesIO(good.read_bytes())):
        name = type(wrong).__name__
        with pytest.raises(UserError, match=f"images: got a {name}; valid: a path, the bytes"):
            classifier.predict(wrong)  # type: ignore[arg-type]


def test_paths_may_be_in_an_array(own: Path) -> None:
    classifier = load(own / "run", device="cpu")
    files = sorted(map(str, (own / "photos/test/dog").iterdir()))
    for dtype in (str, object):  # as NumPy and pandas have them
        found = classifier.predict(np.array(files, dtype))  # type: ignore[arg-type]
        assert found.classes == classifier.predict(files).classes


def test_a_stream_goes_on_after_an_image_that_cannot_be_used(own: Path) -> None:
    classifier = load(own / "run", device="cpu")
    good = own / "photos/test/dog/000.png"
    images = [good, b"broken", good, b"", "nowhere.png", b"broken", good]
    parts = list(classifier.stream((image for image in images), batch_size=2))
    assert [len(part) for part in parts] == [2, 2, 2, 1]
    assert [list(part.errors) for part in parts] == [[1], [1], [0, 1], []]
    assert all(isinstance(error, ImageError) for error in parts[2].errors.values())
    known = classifier.predict(good).probabilities[0]
    rows = np.concatenate([part.probabilities for part in parts])
    usable = [0, 2, 6]
    np.testing.assert_allclose(rows[usable], np.stack([known] * 3), rtol=1e-5)
    assert np.isnan(np.delete(rows, usable, axis=0)).all()


def test_a_stream_takes_no_more_than_it_needs(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisybsd.data.images.BLOCK", 5)
    classifier, taken = load(own / "run", device="cpu"), []

    def images() -> object:
        for number in range(1000):
            taken.append(number)
            yield np.zeros((4, 4), np.uint8)

    stream = classifier.stream(images(), batch_size=3)  # type: ignore[arg-type]
    next(stream)
    assert len(taken) <= 3 + 5
    stream.close()
    assert len(taken) <= 3 + 5


def test_embeddings_are_what_the_classifier_reads(own: Path) -> None:
    classifier = load(own / "run", device="cpu")
    paths = sorted((own / "photos/test/cat").iterdir())
    features = classifier.embed(paths, batch_size=4)
    assert features.shape == (8, classifier.network.feature_dim) and features.dtype == np.float32
    logits = classifier.network.classifier(torch.from_numpy(features))
    probabilities = classifier.predict(paths, batch_size=4).probabilities
    np.testing.assert_allclose(logits.softmax(1).numpy(), probabilities, rtol=1e-5)


def test_the_transform_goes_to_other_processes_without_the_network(own: Path) -> None:
    transform = load(own / "run", device="cpu").transform
    sent = pickle.dumps(transform)
    path = own / "photos/test/dog/000.png"
    assert torch.equal(pickle.loads(sent)(path), transform(path)) and len(sent) < 10_000


def test_columns_are_those_of_a_table(own: Path) -> None:
    classifier = load(own / "run", device="cpu")
    found = classifier.predict(sorted((own / "photos/test/dog").iterdir()))
    columns = found.columns(threshold=1.0, probabilities=True)
    assert list(columns) == ["class", "confidence", "unsure", "p_cat", "p_dog"]
    assert {len(column) for column in columns.values()} == {3}
    np.testing.assert_allclose(columns["p_cat"] + columns["p_dog"], 1, rtol=1e-6)
    np.testing.assert_array_equal(columns["confidence"], found.probabilities.max(1))
    assert columns["class"] == [("cat", "dog")[label] for label in found.labels]
    assert columns["unsure"].all() and not found.unsure(0.0).any()
    halfway = found.confidence < 0.75  # of two classes
    np.testing.assert_array_equal(found.unsure(), halfway)
    with pytest.raises(UserError, match="threshold: got 75; valid: a number from 0 to 1"):
        found.unsure(75)


# which run, and which weights


def test_a_run_on_arrays_takes_images_of_any_size_and_colour(
    tiny: Callable[..., list[str]], tmp_path: Path
) -> None:
    assert train(tiny("run.dir=run", "epochs=1", "ema.decay=0")) == 0
    classifier = noisybsd.load("run")
    assert isinstance(classifier, Classifier) and classifier.class_names == tuple("0123456789")
    trainer = trained(Path("run"))
    logits, _, _ = predict(
        trainer.network, trainer.dataset.test, trainer.views, trainer.device, None, batch_size=64
    )
    pixels = trainer.dataset.test.images
    assert isinstance(pixels, torch.Tensor)
    found = classifier.predict(pixels.permute(0, 2, 3, 1).numpy())
    assert torch.equal(torch.from_numpy(found.probabilities), logits.softmax(1))

    paint(tmp_path / "large.png", "RGB", (100, 60))
    assert classifier.transform(tmp_path / "large.png").shape == (1, 8, 8)
    assert classifier.about["weights"] == "last"
    with pytest.raises(UserError, match="weights=average: run=run keeps no average"):
        load("run", weights="average")
    with pytest.raises(UserError, match="weights: got 'avrage', did you mean average"):
        load("run", weights="avrage")  # type: ignore[arg-type]


def test_an_unfinished_run_is_used_as_it_is_and_said_to_be(
    own: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = copied(own / "run", tmp_path / "run")
    load(run, device="cpu")
    assert caplog.text == ""
    (run / "checkpoint.pt").rename(run / "elsewhere.pt")
    with pytest.raises(UserError, match=r"is finished, but its checkpoint\.pt is gone"):
        load(run)
    (run / "elsewhere.pt").rename(run / "checkpoint.pt")
    (run / "results.json").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("epochs: 1\n", "epochs: 9\n"))
    state = load_checkpoint(run / "checkpoint.pt")
    state["config"]["epochs"] = 9
    save_checkpoint(state, run / "checkpoint.pt")
    assert load(run, device="cpu").about["epoch"] == 1
    assert f"run={run}: is not finished: this is its network after 1 of 9 epochs" in caplog.text
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (run / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="has no checkpoint yet"):
        load(run)


def test_what_is_no_run_is_refused(own: Path, tmp_path: Path) -> None:
    for path in (own / "photos", tmp_path / "nowhere", own / "run/checkpoint.pt"):
        with pytest.raises(UserError, match=r"not a run directory, it has no config.yaml"):
            load(path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("model: resnet\nlr: 0.1\n")
    with pytest.raises(UserError, match=r"other/config.yaml: .* it has no recipe"):
        load(tmp_path / "other")
    with pytest.raises(UserError, match=r"device: .*got 'gpu'"):
        load(own / "run", device="gpu")  # type: ignore[arg-type]


def test_of_a_folder_of_runs_the_newest_are_named(tmp_path: Path) -> None:
    for number, name in enumerate(["own/c", "own/a", "b", "own/d", "not_begun"]):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").touch()
        os.utime(tmp_path / name / "config.yaml", (number, number))
        if name != "not_begun":
            (tmp_path / name / "metrics.jsonl").touch()
    named = ", ".join(f"run={tmp_path / name}" for name in ("own/d", "b", "own/a"))
    with pytest.raises(UserError, match=rf"no config\.yaml; the newest runs in it: {named}$"):
        load(tmp_path)


def test_weights_of_another_network_are_refused_in_a_sentence(own: Path, tmp_path: Path) -> None:
    run = copied(own / "run", tmp_path / "run")
    state = load_checkpoint(run / "checkpoint.pt")
    weights = state["modules"]["ema"]
    weights["network.classifier.bias"] = torch.zeros(3)
    save_checkpoint(state, run / "checkpoint.pt")
    with pytest.raises(UserError, match=r"whose network was another: .*classifier.bias"):
        load(run)


def test_importing_the_package_imports_no_library() -> None:
    code = (
        "import sys, noisybsd\n"
        "assert not {'torch', 'numpy', 'PIL'} & sys.modules.keys()\n"
        "try: noisybsd.laod\n"
        "except AttributeError as error: assert 'laod' in str(error)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_logging_is_left_to_the_program(own: Path) -> None:
    handlers = list(logging.getLogger().handlers), list(logging.getLogger("noisybsd").handlers)
    threads = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
    load(own / "run", device="cpu").predict(own / "photos/test/dog/000.png")
    assert (
        list(logging.getLogger().handlers),
        list(logging.getLogger("noisybsd").handlers),
    ) == handlers
    assert (torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()) == threads
