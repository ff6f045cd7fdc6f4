"""A trained network with its class names and the transform it needs, read back without its data.

Dimensions: N images, B batch, C channels, H×W pixels of an image, T side that it is stored at, S side of
the network's input, K classes, F features.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from noisybsd import __version__
from noisybsd.config import Config
from noisybsd.data.images import ImageError, ahead, convert_picture, decode_bytes, decode_image
from noisybsd.data.views import Views
from noisybsd.engine.calibration import temperature_of
from noisybsd.engine.frozen import check_weights, frozen_encoder
from noisybsd.engine.predictions import Floats, Predictions
from noisybsd.engine.saved import load_run_config, load_state
from noisybsd.engine.trainer import autocast_dtype, build_run_network
from noisybsd.errors import UserError, did_you_mean
from noisybsd.files import user_path
from noisybsd.models.networks import Network, uncounted
from noisybsd.models.optim import WeightEma
from noisybsd.runs.directory import no_checkpoint
from noisybsd.runs.environment import pick_device
from noisybsd.runs.records import Input

log = logging.getLogger("noisybsd")

WEIGHTS = ("average", "last")

# a file's path, what an image file holds, a picture of Pillow, or uint8 (H,W) or (H,W,C)
AnyImage = str | os.PathLike[str] | bytes | Image.Image | np.ndarray


class Transform:
    """From an image to what the network takes, as in training, without augmentation.

    The central square of the image is resized to T pixels a side, or a smaller one to S, and the middle S of
    these are taken and normalised, on the CPU. Colours become grey for a network of one channel, and grey
    becomes RGB for one of three.

    Example:
        >>> takes = Input(
        ...     class_names=["a", "b"], channels=1, stored_size=8, size=6, mean=[0.5], std=[0.5]
        ... )
        >>> Transform(takes)(np.zeros((20, 30, 3), np.uint8)).shape
        torch.Size([1, 6, 6])
    """

    def __init__(self, takes: Input):
        self.takes = takes
        self.views = Views("none", takes.size, takes.mean, takes.std)

    def __call__(self, image: AnyImage) -> Tensor:
        """(C,S,S) float32.

        Raises:
            ImageError: the image cannot be used; names the file and the reason.
            UserError: it is no image.
        """
        return self.views.plain(self.pixels(image)[None])[0]

    def pixels(self, image: AnyImage, name: str = "the image") -> Tensor:
        """Before the crop and the normalisation: (C,T,T) uint8.

        Args:
            name: for errors about an image that is no file.
        """
        size, channels, least = self.takes.stored_size, self.takes.channels, self.takes.size
        if isinstance(image, str | os.PathLike):
            return decode_image(os.fspath(image), size, channels, least)
        if isinstance(image, bytes):
            return decode_bytes(image, size, channels, name, least)
        if isinstance(image, Image.Image | np.ndarray):
            return convert_picture(image, size, channels, name, least)
        raise UserError(
            f"{name}: is a {type(image).__name__}; valid: a path, the bytes of an image file, an image of "
            "Pillow, or an array (H,W,C) of uint8"
        )


class Classifier:
    """A trained network that takes images of any size and kind. `load` reads it from a run.

    Args:
        network: on `device`.
        takes: what it takes and says.
        device: where it computes.
        amp: dtype of its forward pass under autocast; None: float32.
        about: where it comes from, plain values for the metadata of an export.

    Attributes:
        class_names: K, in the order of the probabilities.
        transform: from an image to the network's input; can be pickled and used without the network.
    """

    def __init__(
        self,
        network: Network,
        takes: Input,
        device: torch.device,
        amp: torch.dtype | None = None,
        about: dict[str, Any] | None = None,
    ):
        self.network = network.eval().requires_grad_(False)
        self.class_names = tuple(takes.class_names)
        self.transform = Transform(takes)
        self._views = Transform(takes).views.to(device)
        self.device, self.amp, self.about = device, amp, about or {}

    def predict(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 64,
        threads: int | None = None,
    ) -> Predictions:
        """The probabilities of the classes for images.

        Args:
            images: one image or many: paths, bytes of image files, images of Pillow and arrays (H,W,C) of
                uint8, mixed as you like; or one array (N,H,W,C).
            batch_size: images that the network takes at once.
            threads: that decode ahead; default: one for each core.

        Raises:
            ImageError: an image cannot be used; names it and the reason. `stream` goes on.
        """
        parts = []
        for part in self.stream(images, batch_size=batch_size, threads=threads):
            _raise_first(part.errors.values())
            parts.append(part.probabilities)
        none = np.empty((0, len(self.class_names)), np.float32)
        return Predictions(np.concatenate([none, *parts]), self.class_names)

    def stream(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 64,
        threads: int | None = None,
    ) -> Iterator[Predictions]:
        """The same batch by batch, for images that do not fit into memory together.

        Goes on at an image that cannot be used: its row is NaN, and `errors` has the reason.
        """
        for batch in self._batches(images, batch_size, threads):
            found = np.full((len(batch), len(self.class_names)), np.nan, np.float32)
            errors = {i: each for i, each in enumerate(batch) if isinstance(each, ImageError)}
            if usable := [each for each in batch if isinstance(each, Tensor)]:
                rows = [i for i in range(len(batch)) if i not in errors]
                found[rows] = self._logits(usable).softmax(dim=1).cpu().numpy()
            yield Predictions(found, self.class_names, errors)

    def embed(
        self,
        images: AnyImage | Iterable[AnyImage],
        *,
        batch_size: int = 64,
        threads: int | None = None,
    ) -> Floats:
        """The features from which the network tells the classes, (N,F) float32.

        Args: and errors as of `predict`.
        """
        parts = [np.empty((0, self.network.feature_dim), np.float32)]
        for batch in self._batches(images, batch_size, threads):
            _raise_first(each for each in batch if isinstance(each, ImageError))
            features = self._features([each for each in batch if isinstance(each, Tensor)])
            parts.append(features.cpu().numpy())
        return np.concatenate(parts)

    def _batches(
        self, images: AnyImage | Iterable[AnyImage], size: int, threads: int | None
    ) -> Iterator[list[Tensor | ImageError]]:
        """Each image as (C,T,T) uint8, or what is wrong with it, in order; the last batch is short."""
        transform = self.transform

        def attempt(numbered: tuple[int, AnyImage]) -> Tensor | ImageError:
            number, image = numbered
            try:
                return transform.pixels(image, f"image {number}")
            except ImageError as error:
                return error

        decoded = ahead(attempt, enumerate(_each(images)), threads)
        while batch := list(itertools.islice(decoded, size)):
            yield batch

    @torch.inference_mode()
    def _logits(self, pixels: list[Tensor]) -> Tensor:
        """(B,K) float32."""
        return self.network.classifier(self._features(pixels)) / self.network.temperature

    @torch.inference_mode()
    def _features(self, pixels: list[Tensor]) -> Tensor:
        """(B,F) float32."""
        images = torch.stack(pixels).to(self.device)
        inputs = self._views.plain(images).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            return self.network.encoder(inputs).float()


def _each(images: AnyImage | Iterable[AnyImage]) -> Iterable[AnyImage]:
    """The images one by one."""
    if isinstance(images, str | os.PathLike | bytes | Image.Image):
        return [images]
    if isinstance(images, np.ndarray) and images.ndim != 4 and images.dtype.kind not in "OU":
        return [images]
    # an open file would give its lines, and a dictionary its keys
    if isinstance(images, Iterable) and not (
        hasattr(images, "read") or isinstance(images, Mapping)
    ):
        return images
    raise UserError(
        f"images: got a {type(images).__name__}; valid: a path, the bytes of an image file, an image of "
        "Pillow, an array (H,W,C) of uint8, or a list of such"
    )


def _raise_first(errors: Iterable[ImageError]) -> None:
    for error in errors:
        raise error


def load(
    run: str | os.PathLike[str],
    *,
    weights: Literal["average", "last"] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
) -> Classifier:
    """The network of a run, finished or not, as its latest checkpoint has it. Its data are not needed.

    Args:
        run: the run's directory.
        weights: "average", the moving average of the weights, or "last", the weights themselves; default:
            the average, if the run has one.
        device: "auto" takes a GPU if there is one.

    Raises:
        UserError: not a run directory, no checkpoint, or weights that the run has not.

    Example:
        classifier = noisybsd.load("runs/own/20260101-120000-0")
        classifier.predict(["a.jpg", "b.png"]).classes
    """
    directory = user_path(os.fspath(run), "run")
    if weights not in (None, *WEIGHTS):
        raise UserError(f"weights: {did_you_mean(str(weights), WEIGHTS)}")
    config = load_run_config(directory, [f"device={device}"])
    state = load_state(directory, config)
    if state is None:
        raise no_checkpoint(directory)
    epoch = len(state["history"])
    if epoch < config.epochs:
        log.warning(
            "run=%s: is not finished: this is its network after %d of %d epochs",
            directory,
            epoch,
            config.epochs,
        )
    takes = Input(**state["input"])
    if weights is None:
        weights = "average" if "ema" in state["modules"] else "last"
    network = _network(config, takes, state["modules"], weights, directory)
    network.temperature = temperature_of(state, "_ema" if weights == "average" else "")
    place = pick_device(config)
    about = {
        "recipe": config.recipe,
        "method": config.method,
        "seed": config.seed,
        "epoch": epoch,
        "weights": weights,
        "temperature": network.temperature,
        "network": config.network.model_dump(mode="json"),
        "noisybsd": __version__,
    }
    network = uncounted(network.to(place).to(memory_format=torch.channels_last))
    return Classifier(network, takes, place, autocast_dtype(config, place), about)


def _network(
    config: Config, takes: Input, modules: dict[str, Any], weights: str, directory: Path
) -> Network:
    """The run's network with its `weights`."""
    if weights == "average" and "ema" not in modules:
        raise UserError(
            f"weights=average: run={directory} keeps no average, its ema.decay is 0; valid: last"
        )
    features, backbone = None, None
    if config.network.frozen:
        features, backbone = _backbone(config, takes, directory)
    fresh = {"pretrained": False, "weights": None}  # nothing is downloaded
    network = build_run_network(
        config.model_copy(update={"network": config.network.model_copy(update=fresh)}),
        len(takes.class_names),
        takes.channels,
        features,
    )
    part = WeightEma(network, config.ema.decay) if weights == "average" else network
    try:
        part.load_state_dict(modules["ema" if weights == "average" else "network"])
    except (KeyError, RuntimeError) as error:
        raise UserError(
            f"{directory / 'checkpoint.pt'}: damaged, or of another version of noisybsd, whose network was "
            f"another: {' '.join(str(error).split())[:200]}"
        ) from None
    found = part.network if isinstance(part, WeightEma) else part
    if backbone is not None:
        found.encoder = torch.nn.Sequential(backbone, found.encoder)
    return found


def _backbone(config: Config, takes: Input, directory: Path) -> tuple[int, torch.nn.Module]:
    """The frozen encoder that a run's heads were trained on, and the width of its features."""
    if config.data.embeddings is not None:
        raise UserError(
            f"run={directory}: was trained on data.embeddings={config.data.embeddings}, so it takes "
            "embeddings and no images"
        )
    encoder, width, sha256 = frozen_encoder(config, takes.channels)
    check_weights(config, sha256, takes.backbone_sha256, f"run={directory}")
    return width, encoder
