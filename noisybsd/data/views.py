"""The weak and strong views of each kind of images, normalised.

Dimensions: B batch, C channels (1 or 3), H, W input pixels, S output pixels (height and width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd.data.augment import (
    RandAugment,
    RandomColorJitter,
    RandomCropFlip,
    RandomErase,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomWarp,
)
from noisybsd.errors import UserError, did_you_mean


class CentreCrop(nn.Module):
    """The middle of the images, (B, C, H, W) to (B, C, S, S)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, images: Tensor) -> Tensor:
        top, left = ((side - self.size) // 2 for side in images.shape[-2:])
        return images[..., top : top + self.size, left : left + self.size].contiguous()


def simclr(size: int) -> nn.Module:
    """SimCLR's view of CIFAR (Chen et al. 2020a), jitter strength 0.5, crops of at least 0.2.

    MoCo v2's view of ImageNet (Chen et al. 2020b) is the same but for a blur, which is left out.
    """
    return nn.Sequential(
        RandomResizedCropFlip(size, scale=(0.2, 1.0)),
        RandomColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8, inplace=True),
        RandomGrayscale(p=0.2, inplace=True),
    )


def digits(size: int) -> nn.Module:
    """Digits moved a little, as another hand and pen would write them; never mirrored."""
    return nn.Sequential(
        RandomCropFlip(size, padding=max(1, size // 8), flip=0.0),
        RandomWarp(degrees=12.0, scale=(0.85, 1.15), shear=10.0),
        RandomColorJitter(brightness=0.4, contrast=0.4, inplace=True),
        RandomErase(side=(0.125, 0.25), p=0.5, inplace=True),
    )


def randaugment(size: int) -> nn.Module:
    """FixMatch's strong view: the weak one, RandAugment, and Cutout of half the side."""
    return nn.Sequential(
        RandomCropFlip(size, padding=4),
        RandAugment(),
        RandomErase(side=(0.5, 0.5), value=0.5, p=1.0, inplace=True),
    )


# name: (weak, strong), each given the size S. Plain Sequentials: Kornia's ImageSequential draws all
# parameters before it sees an image, so that what follows a crop would not know the crop's size.
VIEWS: dict[str, tuple[Callable[[int], nn.Module], Callable[[int], nn.Module]]] = {
    "cifar": (lambda size: RandomCropFlip(size, padding=4), simclr),
    "cifar_randaugment": (lambda size: RandomCropFlip(size, padding=4), randaugment),
    "digits": (lambda size: RandomCropFlip(size, padding=max(1, size // 8), flip=0.0), digits),
    "imagenet": (RandomCropFlip, simclr),
    "none": (CentreCrop, CentreCrop),
}


class Views(nn.Module):
    """The views of one kind of data, normalised.

    Follows the images to their device. Reproducible: the same images after the same
    `torch.manual_seed` give the same views.

    Args:
        name: a key of `VIEWS`.
        size: S, the height and width of a view in pixels.
        mean, std: (C,) of the channels, for pixels in [0, 1].
        flip: "random", or "alternating": the caller says which images the weak view mirrors.

    Raises:
        UserError: for an unknown `name` or `flip`, for `mean` and `std` that are no pair, or for
            alternating flips of views that never mirror.

    Example:
        >>> views = Views("cifar", 32, mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> views.strong(images).shape
        torch.Size([8, 3, 32, 32])
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
        flip: str = "random",
    ) -> None:
        super().__init__()
        if name not in VIEWS:
            raise UserError(f"name: {did_you_mean(name, VIEWS)}")
        if flip not in ("random", "alternating"):
            raise UserError(f"flip: {did_you_mean(flip, ('random', 'alternating'))}")
        if len(mean) != len(std) or min(std) <= 0:
            raise UserError(
                f"mean, std: {list(mean)}, {list(std)}; need one value a channel in each, "
                "and std above zero"
            )
        self.name, self.size = name, size
        self.weak_view, self.strong_view = (view(size) for view in VIEWS[name])
        self.plain_view = CentreCrop(size)
        if flip == "alternating":
            if not isinstance(self.weak_view, RandomCropFlip) or self.weak_view.flip == 0:
                raise UserError(
                    f"augment.flip=alternating: the views {name!r} never mirror an image; use "
                    "augment.flip=random"
                )
            self.weak_view.flip = 0.0
        self.register_buffer(
            "mean", torch.tensor(mean, dtype=torch.float).view(1, -1, 1, 1), persistent=False
        )
        self.register_buffer(
            "std", torch.tensor(std, dtype=torch.float).view(1, -1, 1, 1), persistent=False
        )

    def weak(self, images: Tensor, mirror: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, S, S), lightly changed; first mirrored where `mirror` (B,)."""
        return self(images, ("weak",), mirror)[0]

    def strong(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, S, S), heavily changed."""
        return self(images, ("strong",))[0]

    def plain(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, S, S), the middle of the image; nothing is drawn."""
        return self.normalise_(self.plain_view(self.pixels(images)))

    def forward(self, images: Tensor, names: Sequence[str], mirror: Tensor | None = None) -> Tensor:
        """The views `names`, "weak" or "strong", of the same images, (V, B, C, S, S) float32.

        Those of all names together launch fewer kernels than one after the other, and are the same.

        Args:
            images: (B, C, H, W) uint8.
            mirror: (B,) bool, which images to mirror before the weak view; None: none.

        Raises:
            UserError: another name; or images as of `pixels`.
        """
        if isinstance(names, str) or not names or any(n not in ("weak", "strong") for n in names):
            raise UserError(f'names: got {names!r}; valid: a tuple such as ("weak", "strong")')
        pixels = self.pixels(images)
        views = []
        for name in names:
            if name == "strong":
                views.append(self.strong_view(pixels))
            elif mirror is None:
                views.append(self.weak_view(pixels))
            else:
                turned = torch.where(mirror[:, None, None, None], pixels.flip(-1), pixels)
                views.append(self.weak_view(turned))
        return self.normalise_(views[0][None] if len(views) == 1 else torch.stack(views))

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to new float32 in [0, 1].

        Raises:
            UserError: the images are of another type, number of channels, or too small.
        """
        if not isinstance(images, Tensor) or images.ndim != 4:
            got = (
                f"shape {tuple(images.shape)}"
                if isinstance(images, Tensor)
                else type(images).__name__
            )
            raise UserError(
                f"images: got {got}; valid: a torch.uint8 tensor of shape (B, {self.mean.shape[1]}, H, W)"
            )
        _, channels, height, width = images.shape
        if images.dtype != torch.uint8 or channels != self.mean.shape[1]:
            raise UserError(
                f"images: {images.dtype} with {channels} channels; views of {self.name!r} need "
                f"torch.uint8 with {self.mean.shape[1]}, as many as the mean has values"
            )
        if min(height, width) < self.size:
            raise UserError(
                f"images: {height} × {width} pixels are too small for views of {self.size}; "
                "choose a smaller size or store larger images"
            )
        if images.device != self.mean.device:
            self.to(images.device)
        return images / 255

    def normalise_(self, views: Tensor) -> Tensor:
        """Pixels in [0, 1] (..., C, S, S) to those of mean 0 and standard deviation 1, in place."""
        return views.sub_(self.mean).div_(self.std)


class EmbeddedViews(nn.Module):
    """The views of images that a frozen backbone has embedded: one of the embeddings of each, with dropout.

    The weak view is the embedding of the image itself, the strong one that of one of its strong views. An
    image has A embeddings: its own, then those of its strong views, if there are any.
    """

    # not tuned: the two that a first table on frozen features had; docs/LOG.md, frozen features
    DROPOUT: ClassVar[dict[str, float]] = {"weak": 0.2, "strong": 0.5}

    def forward(
        self, embeddings: Tensor, names: Sequence[str], mirror: Tensor | None = None
    ) -> Tensor:
        """The views `names` of the same images, (V,B,F) float32.

        Args:
            embeddings: (B,A,F) float16.
            mirror: must be None: an embedding cannot be mirrored.
        """
        assert mirror is None
        count, device = embeddings.shape[1], embeddings.device
        batch = torch.arange(len(embeddings), device=device)
        views = []
        for name in names:
            chosen = embeddings[:, 0]
            if name == "strong" and count > 1:
                chosen = embeddings[batch, torch.randint(1, count, (len(batch),), device=device)]
            views.append(F.dropout(chosen.float(), self.DROPOUT[name]))
        return torch.stack(views)

    def plain(self, embeddings: Tensor) -> Tensor:
        """The embeddings of the images themselves, (B,F) float32."""
        return embeddings[:, 0].float()
