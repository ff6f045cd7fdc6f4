"""Exported networks give the same probabilities elsewhere, on real images."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.own_run import own_run
from PIL import Image, ImageOps
from torch import Tensor, nn

import noisybsd
from noisybsd.engine.classifier import Classifier
from noisybsd.export import main
from noisybsd.train import main as train

TAKES = {
    "class_names": ["cat", "dog"],
    "channels": 3,
    "stored_size": 18,
    "size": 16,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_run(tmp_path_factory.mktemp("own"))


def exported(own: Path, kind: str, out: Path, *more: str) -> Path:
    assert main([f"run={own / 'run'}", f"format={kind}", f"out={out}", *more]) == 0
    return out


def files(own: Path) -> list[Path]:
    """Image files without transparency, which Pillow drops where training shows it as white."""
    return [path for path in sorted((own / "photos/test").rglob("*.png")) if path.stem != "clear"]


def cut(path: Path) -> np.ndarray:
    """An image as docs/predicting.md says, (S,S,C) uint8."""
    picture = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
    side = min(max(min(picture.size), 16), 18)
    square = ImageOps.fit(picture, (side, side), Image.Resampling.BILINEAR)
    edge = (side - 16) // 2
    return np.asarray(square.crop((edge, edge, edge + 16, edge + 16)))


def by_torch(classifier: Classifier, images: np.ndarray) -> np.ndarray:
    """The probabilities (N,K) of images (N,S,S,C), step by step."""
    takes = classifier.transform.takes
    pixels = torch.from_numpy(images).float() / 255
    inputs = (pixels - torch.tensor(takes.mean)) / torch.tensor(takes.std)
    logits, _ = classifier.network(inputs.permute(0, 3, 1, 2))
    return logits.softmax(1).numpy()


def test_onnx_gives_the_probabilities_of_torch(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    path = exported(own, "onnx", tmp_path / "cats.onnx")
    assert "average weights" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    about = json.loads(session.get_modelmeta().custom_metadata_map["noisybsd"])
    assert {key: about[key] for key in TAKES} == TAKES
    assert about["network"]["name"] == "small_cnn" and about["epoch"] == 1
    (given,), (made,) = session.get_inputs(), session.get_outputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["N", 16, 16, 3])
    assert (made.name, made.shape) == ("probabilities", ["N", 2])

    images = np.stack([cut(path) for path in files(own)])
    classifier = noisybsd.load(own / "run", device="cpu")
    for some in (images, images[:1]):
        (found,) = session.run(None, {"images": some})
        np.testing.assert_allclose(found, by_torch(classifier, some), atol=1e-6)
    # Pillow resizes a little otherwise than torch
    (found,) = session.run(None, {"images": images})
    np.testing.assert_allclose(found, classifier.predict(files(own)).probabilities, atol=0.01)
    # no path of this machine is in the file
    assert str(Path(noisybsd.__file__).parent).encode() not in path.read_bytes()


def test_the_documented_program_sees_a_photo_of_a_turned_camera_upright(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    text = (Path(__file__).parents[1] / "docs/predicting.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(import json, numpy, onnxruntime.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exported(own, "onnx", Path("model.onnx"))
    pixels = np.random.default_rng(0).integers(0, 256, (18, 18, 3), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6  # to be shown turned to the right
    Image.fromarray(pixels).save("a.jpg", "PNG", exif=turned)
    found: dict[str, Any] = {}
    exec(program, found)
    np.testing.assert_array_equal(found["images"][0], np.rot90(pixels, -1)[1:-1, 1:-1])
    known = noisybsd.load(own / "run", device="cpu").predict("a.jpg").probabilities
    np.testing.assert_allclose(found["probabilities"], known, atol=1e-5)


def test_a_torch_program_needs_no_noisybsd(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = exported(own, "torch", tmp_path / "cats.pt2", "weights=last")
    images = np.stack([cut(path) for path in files(own)])
    known = by_torch(noisybsd.load(own / "run", weights="last", device="cpu"), images)
    for name in [name for name in sys.modules if name.split(".")[0] == "noisybsd"]:
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    text = {"noisybsd": ""}
    program = torch.export.load(path, extra_files=text).module()
    about = json.loads(text["noisybsd"])
    assert {key: about[key] for key in TAKES} == TAKES and about["weights"] == "last"
    for some in (slice(None), slice(1)):
        found = program(torch.from_numpy(images[some])).numpy()
        np.testing.assert_allclose(found, known[some], atol=1e-6)


def test_safetensors_hold_the_weights(own: Path, tmp_path: Path) -> None:
    safe_open = pytest.importorskip("safetensors").safe_open
    path = exported(own, "safetensors", tmp_path / "cats.safetensors")
    with safe_open(path, "pt") as file:
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["noisybsd"])
    assert {key: about[key] for key in TAKES} == TAKES
    known = noisybsd.load(own / "run", device="cpu").network.state_dict()
    assert weights.keys() == known.keys()
    for name, weight in known.items():
        assert torch.equal(weights[name], weight), name


def test_grey_images_and_the_runs_own_folder(tiny: Callable[..., list[str]]) -> None:
    arguments = tiny("run.dir=run", "epochs=1", "data.limit=64")
    assert train(arguments) == 0
    assert main(["run=run", "format=torch"]) == 0
    program = torch.export.load("run/model.pt2").module()
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), dtype=np.uint8)
    known = by_torch(noisybsd.load("run", device="cpu"), images)
    found = program(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, known, atol=1e-6)
    assert train(arguments) == 0  # and it is still a run's


class Branching(nn.Module):
    """Takes a branch that depends on the pixels, which no graph can hold."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :16] * (2 if x.sum() > 0 else 1)


class Eigenvalues(nn.Module):
    """Computes what ONNX has no operation for."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x[:, 0] @ x[:, 0].mT)


@pytest.mark.parametrize(
    ("kind", "encoder", "reason"),
    [
        ("torch", Branching, "Could not guard on data-dependent expression"),
        ("onnx", Eigenvalues, "No ONNX function found for"),
    ],
)
def test_a_network_that_a_format_cannot_express_is_a_sentence(
    kind: str,
    encoder: type[nn.Module],
    reason: str,
    own: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    load = noisybsd.load

    def other(*arguments: Any, **options: Any) -> Any:
        classifier = load(*arguments, **options)
        classifier.network.encoder = encoder()
        return classifier

    monkeypatch.setattr("noisybsd.engine.classifier.load", other)
    out = tmp_path / f"model.{'onnx' if kind == 'onnx' else 'pt2'}"
    assert main([f"run={own / 'run'}", f"format={kind}", f"out={out}"]) == 2
    said = capfd.readouterr()
    assert said.out == "" and len(said.err.splitlines()) == 1
    assert said.err.startswith(f"error: format={kind}: cannot express network.name=small_cnn: ")
    assert reason in said.err, said.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("package", "kind", "how"),
    [
        ("onnx", "onnx", "pip install onnx onnxscript onnxruntime"),
        ("onnxscript", "onnx", "pip install onnx onnxscript onnxruntime"),
        ("safetensors", "safetensors", "pip install safetensors"),
    ],
)
def test_a_missing_package_is_named_with_the_way_to_get_it(
    package: str,
    kind: str,
    how: str,
    own: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    assert main([f"run={own / 'run'}", f"format={kind}"]) == 2
    error = capsys.readouterr().err
    assert f"error: format={kind} needs {package}" in error and how in error


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run=nowhere", "format=onnx"], "run=nowhere: not a run directory"),
        (["run=x", "format=tflite"], "format: got 'tflite'; valid: onnx, safetensors, torch"),
        (["run=x", "format=onnx", "out=x.pt2"], "out=x.pt2: a file of format=onnx ends in .onnx"),
        (["run=x", "format=onnx", "out=no/x.onnx"], "there is no folder no; make it first"),
        (["format=onnx"], "run=… is missing"),
        (["run=x"], "format=… is missing"),
    ],
)
def test_what_cannot_be_is_a_sentence(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
