"""Runs whose backbone stays as it is: the features of every image are computed once and kept on disk.

Dimensions: N images, A views of each, F width of the backbone's features.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from noisybsd.config import Config
from noisybsd.data.dataset import Dataset
from noisybsd.data.features import FeatureStore, image_keys
from noisybsd.data.images import ImageError, ImageFiles, note_skipped
from noisybsd.data.progress import with_progress
from noisybsd.data.splits import Split
from noisybsd.data.views import Views
from noisybsd.errors import UserError
from noisybsd.files import user_path
from noisybsd.models.backbones import is_backbone
from noisybsd.models.networks import build_encoder

STRONG = 1  # views of each training image that are embedded beside the image itself; docs/LOG.md
CHUNK = 64  # images that are embedded, and then written, together


class FrozenBackbone:
    """A pretrained encoder, the views it is given, and the features it has computed so far.

    Args:
        config: the run's.
        dataset: says what the images are.
        views: of the images.
        device: computes the features.
    """

    def __init__(self, config: Config, dataset: Dataset, views: Views, device: torch.device):
        self.config, self.views, self.device = config, views, device
        encoder, self.features, self.weights_sha256 = frozen_encoder(config, dataset.channels)
        self.encoder = encoder.to(device)
        self.bf16 = device.type == "cuda" and config.precision != "fp32"
        self.about = {
            "network": config.network.name,
            "weights_sha256": self.weights_sha256,
            "images": list(dataset.mean + dataset.std),
            "size": [dataset.size, encoder_size(config)],
            "stored": list(dataset.train.images.shape[1:]),
            "views": views.name,
        }
        if self.bf16:
            self.about["precision"] = "bf16"

    def embedded(self, dataset: Dataset) -> Dataset:
        """The dataset with the features of its images, without those that cannot be read.

        Raises:
            UserError: an image cannot be read, with data.on_error=stop; the features cannot be written.
        """
        train = self.with_embeddings(dataset.train, "training images", views=True)
        test, held_out = self.with_embeddings(dataset.test, "test images"), dataset.held_out
        if held_out is not None and len(test) < len(held_out):
            assert held_out.paths is not None
            held_out = held_out.take(np.isin(held_out.paths, test.paths or []))
        if (calibration := dataset.calibration) is not None:
            calibration = self.with_embeddings(calibration, "images to calibrate on")
        return replace(dataset, train=train, test=test, held_out=held_out, calibration=calibration)

    def with_embeddings(self, split: Split, what: str, *, views: bool = False) -> Split:
        """A split with the features of its images; see `embedded`.

        Args:
            what: the split, in words, for the progress.
            views: embed the views to train on too; without them, A is 1.
        """
        names = ["plain", *["strong"] * STRONG] if views else ["plain"]
        about = json.dumps({**self.about, "embedded": names}, sort_keys=True)
        folder = user_path(self.config.network.cache or "~/.cache/noisybsd", "network.cache")
        folder /= hashlib.sha256(about.encode()).hexdigest()[:16]
        store = FeatureStore(folder, (len(names), self.features))
        keys = image_keys(split.images)
        with store.locked():
            known = store.known()
            rows = {key: i for i, key in reversed([*enumerate(keys)]) if key not in known}
            unreadable = self._embed(split.images, keys, sorted(rows.values()), names, store, what)
            readable = np.array([key not in unreadable for key in keys], dtype=bool)
            if not readable.any():
                raise UserError(f"{what}: none can be read: {next(iter(unreadable.values()))}")
            kept = split if readable.all() else split.take(readable)
            skipped = [*split.skipped]
            if isinstance(files := split.images, ImageFiles):
                for path, key in zip(files.paths, keys, strict=True):
                    if key in unreadable:  # several files may hold the same bytes
                        error = ImageError(files.root / path, unreadable[key].reason)
                        note_skipped(skipped, [error])
            embeddings = store.rows([key for key in keys if key not in unreadable])
        return replace(kept, embeddings=embeddings, skipped=skipped)

    @torch.no_grad()
    def _embed(
        self,
        images: Tensor | ImageFiles,
        keys: list[bytes],
        rows: list[int],
        names: list[str],
        store: FeatureStore,
        what: str,
    ) -> dict[bytes, ImageError]:
        """Compute the features of images `rows` and store them; and say what is wrong with the unreadable."""
        unreadable: dict[bytes, ImageError] = {}
        on_error, workers = self.config.data.on_error, max(self.config.data.workers, 1)
        chunks = (rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK))
        for chunk in with_progress(chunks, len(rows), f"features of {what}"):
            decoded = []
            each = (
                images.decode_many(chunk, workers)
                if isinstance(images, ImageFiles)
                else images[chunk]
            )
            for i, image in zip(chunk, each, strict=True):
                if isinstance(image, Tensor):
                    decoded.append((keys[i], image))
                elif on_error == "stop":
                    raise image.stopping()
                else:
                    unreadable[keys[i]] = image
            if decoded:
                found = self._features(torch.stack([image for _, image in decoded]), names)
                store.append([key for key, _ in decoded], found)
        return unreadable

    def _features(self, images: Tensor, names: list[str]) -> Tensor:
        """Of views `names` of images (b,C,H,W) uint8: (b,A,F). The same for the same images."""
        images = images.to(self.device)
        with torch.random.fork_rng():
            torch.manual_seed(int(images.long().sum()))
            views = [
                self.views.plain(images) if name == "plain" else self.views(images, [name])[0]
                for name in names
            ]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return torch.stack([self.encoder(view).float() for view in views], dim=1)


def frozen_encoder(config: Config, channels: int) -> tuple[nn.Module, int, str]:
    """The pretrained encoder of a run, the width of its features, and the hash of its weights.

    Raises:
        UserError: the weights cannot be had.
    """
    net = config.network
    encoder, features = build_encoder(
        net.name,
        channels,
        pretrained=net.pretrained,
        weights=net.weights,
        size=encoder_size(config),
    )
    return encoder.eval().requires_grad_(False), features, _weights_sha256(encoder)


def check_weights(config: Config, here: str, there: str | None, what: object) -> None:
    """Refuse heads that were trained on the features of other weights.

    Args:
        here, there: the hashes of the frozen encoder now and in the run's training; None: not recorded.
        what: the run, for the error.

    Raises:
        UserError: they differ.
    """
    if there not in (None, here):
        raise UserError(
            f"{what}: the weights of network.name={config.network.name} are not those that the run was "
            f"trained on (sha256 {here[:12]}… now, {there[:12]}… then)"
        )


def encoder_size(config: Config) -> int | None:
    """Side of the images that the run's network works on; None: what it is given, or its own."""
    net = config.network
    return net.size or (config.data.size if is_backbone(net.name) else None)


def _weights_sha256(encoder: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, value in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
