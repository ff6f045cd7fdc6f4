"""Corruptions of test images, generated on the device with Kornia: how robust is a network?

The kinds of Hendrycks and Dietterich 2019 ("Benchmarking Neural Network Robustness to Common
Corruptions and Perturbations", arXiv 1903.12261) that Kornia's operations can do, under their names;
not glass blur, snow, frost and spatter. Five severities each, and these are ours, for images of any
size from 8 to 224 pixels and above: accuracies are not comparable with those on CIFAR-10-C or
ImageNet-C. Changes of a pixel's value (noise, brightness, contrast, saturation, JPEG's quality) are the
same at every size. Lengths (blurs, displacements, the blocks of pixelate) are given for images of 32
pixels and grow with the size, more slowly for small images, where a blur well below a pixel would do
nothing: see `length`.

Reproducible: an image's corruption is a function of the corruption, the severity, the image and its
position in the test set. Random numbers come from a generator of their own for each block of `BLOCK`
positions, never from torch's global one, and all severities of a corruption have the same, so that they
differ in strength alone. As everywhere in torch, CPU and CUDA draw different ones.

Dimensions: N images of a split, B of a block, C channels (3: RGB, 1: grey), H, W pixels, k kernel side.
"""

from __future__ import annotations

import logging
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from kornia.contrib import diamond_square
from kornia.enhance import (
    adjust_brightness,
    adjust_contrast_with_mean_subtraction,
    adjust_saturation,
    jpeg_codec_differentiable,
)
from kornia.filters import filter2d, gaussian_blur2d
from kornia.geometry.transform import elastic_transform2d, scale
from torch import Generator, Tensor

from noisybsd.data.splits import Split
from noisybsd.errors import UserError, did_you_mean

log = logging.getLogger("noisybsd")

BLOCK = 64  # images that are corrupted together
SEVERITIES = (1, 2, 3, 4, 5)

Corruption = Callable[[Tensor, int, Generator], Tensor]


def length(images: Tensor) -> float:
    """The unit of lengths, in pixels: 0.57 for images of 8 pixels, 1 for 32, 4.4 for 224."""
    return (min(images.shape[-2:]) + 24) / 56


def drawn(draw: Callable[..., Tensor], images: Tensor, generator: Generator, *shape: int) -> Tensor:
    """Numbers (B, *shape) for the images (B, C, H, W), the same whether or not the block is full."""
    return draw((BLOCK, *shape), generator=generator, device=images.device)[: len(images)]


# ---------------------------------------------------------------------------------------------
# noise


def gaussian_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    deviation = (0.04, 0.08, 0.12, 0.18, 0.26)[severity - 1]
    return images + deviation * drawn(torch.randn, images, generator, *images.shape[1:])


def shot_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """That of counting photons, in its normal limit: a pixel x counts `photons` x of them.

    Poisson numbers themselves would make an image's noise depend on the images before it.
    """
    photons = (200, 100, 50, 25, 12)[severity - 1]
    normal = drawn(torch.randn, images, generator, *images.shape[1:])
    return images + (images / photons).sqrt() * normal


def impulse_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Salt and pepper, in each channel on its own."""
    share = (0.02, 0.04, 0.08, 0.14, 0.22)[severity - 1]
    place = drawn(torch.rand, images, generator, *images.shape[1:])
    return images.masked_fill(place < share / 2, 0).masked_fill(place > 1 - share / 2, 1)


def speckle_noise(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Noise in proportion to the pixel's value."""
    deviation = (0.1, 0.2, 0.3, 0.4, 0.55)[severity - 1]
    return images + images * deviation * drawn(torch.randn, images, generator, *images.shape[1:])


# ---------------------------------------------------------------------------------------------
# blur


def offsets(reach: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """The pixels of a kernel that reaches `reach` pixels: their x (1, 1, k) and y (1, k, 1)."""
    radius = math.ceil(reach)
    steps = torch.arange(-radius, radius + 1, dtype=torch.float, device=device)
    return steps.view(1, 1, -1), steps.view(1, -1, 1)


def defocus_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """A disc with a soft edge."""
    radius = (1.0, 1.25, 1.5, 2.0, 2.5)[severity - 1] * length(images)
    x, y = offsets(radius, images.device)
    disc = (radius + 0.5 - torch.hypot(x, y)).clamp(0, 1)
    return filter2d(images, disc, normalized=True)


def motion_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """A line in a direction drawn for each image.

    Kornia's own motion kernel has whole odd lengths only: too few for small images.
    """
    half = (0.8, 1.3, 1.9, 2.6, 3.5)[severity - 1] * length(images)
    angle = math.pi * drawn(torch.rand, images, generator, 1, 1)
    x, y = offsets(half, images.device)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    line = (1 - torch.hypot(along - along.clamp(-half, half), across)).clamp_min(0)  # (B, k, k)
    return filter2d(images, line, normalized=True)


def zoom_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """The mean of the image and of enlarged ones, about a pixel apart at the border."""
    most = (1.08, 1.14, 1.2, 1.26, 1.33)[severity - 1]
    steps = 2 + min(images.shape[-2:]) // 8
    total = torch.zeros_like(images)
    for factor in torch.linspace(1, most, steps, device=images.device).split(1):
        total += scale(images, factor, padding_mode="border")
    return total / steps


def gaussian_blur(images: Tensor, severity: int, generator: Generator) -> Tensor:
    sigma = (0.7, 0.85, 1.0, 1.2, 1.5)[severity - 1] * length(images)
    side = 2 * math.ceil(3 * sigma) + 1
    return gaussian_blur2d(images, (side, side), (sigma, sigma))


# ---------------------------------------------------------------------------------------------
# weather and light


def fog(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """A bright plasma fractal over the image; the brightest pixel remains as bright as it was."""
    density = (0.3, 0.6, 0.9, 1.3, 1.8)[severity - 1]
    plasma = diamond_square(
        (BLOCK, 1, *images.shape[-2:]),
        roughness=0.5,
        random_fn=partial(torch.rand, generator=generator),
        normalize_range=(0.0, 1.0),
        device=images.device,
    )[: len(images)]
    brightest = images.amax((1, 2, 3), keepdim=True)
    return (images + density * plasma) * (brightest / (brightest + density))


def brightness(images: Tensor, severity: int, generator: Generator) -> Tensor:
    return adjust_brightness(images, (0.1, 0.2, 0.3, 0.4, 0.5)[severity - 1])


def contrast(images: Tensor, severity: int, generator: Generator) -> Tensor:
    factor = (0.7, 0.5, 0.35, 0.22, 0.12)[severity - 1]
    return adjust_contrast_with_mean_subtraction(images, factor)


def saturate(images: Tensor, severity: int, generator: Generator) -> Tensor:
    return adjust_saturation(images, (1.5, 2.0, 3.0, 6.0, 20.0)[severity - 1])


# ---------------------------------------------------------------------------------------------
# digital


def elastic_transform(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Smooth random displacements, of a standard deviation given in pixels along each axis."""
    height, width = images.shape[-2:]
    deviation = (0.5, 0.8, 1.1, 1.5, 2.0)[severity - 1] * length(images)
    sigma = 3 * length(images)
    side = 2 * math.ceil(2 * sigma) + 1
    # smoothing divides the deviation by 2 √π sigma; Kornia counts sides as 2, and x before y
    amount = deviation * 2 * math.sqrt(math.pi) * sigma
    return elastic_transform2d(
        images,
        drawn(torch.randn, images, generator, 2, height, width),
        (side, side),
        (sigma, sigma),
        (2 * amount / width, 2 * amount / height),
        padding_mode="border",
    )


def pixelate(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """Means over blocks, whose side need not be whole: a pixel on an edge has a share in two.

    Kornia's resize takes whole pixels, which at small sizes makes some finer blocks do more harm.
    """
    block = 1 + (0.25, 0.5, 1.0, 1.75, 2.75)[severity - 1] * length(images)
    rows, columns = (
        block_means(side, round(side / block), images.device) for side in images.shape[-2:]
    )
    return rows @ images @ columns


def block_means(side: int, blocks: int, device: torch.device) -> Tensor:
    """Takes `side` pixels to the means over the blocks that they lie in, (side, side), symmetric."""
    pixels = torch.arange(side, device=device)
    edges = torch.arange(blocks + 1, device=device)[:, None] * (side / blocks)
    shares = torch.minimum(edges[1:], pixels + 1) - torch.maximum(edges[:-1], pixels)
    shares = shares.clamp_min(0)  # of each pixel in each block, (blocks, side)
    return shares.T @ shares * (blocks / side)


def jpeg_compression(images: Tensor, severity: int, generator: Generator) -> Tensor:
    """JPEG with its colours at half the resolution; grey images are coded as grey colour ones."""
    quality = torch.tensor([(60.0, 40.0, 25.0, 15.0, 8.0)[severity - 1]])
    channels = images.shape[1]
    return jpeg_codec_differentiable(images.expand(-1, 3, -1, -1), quality)[:, :channels]


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
    "defocus_blur": defocus_blur,
    "motion_blur": motion_blur,
    "zoom_blur": zoom_blur,
    "gaussian_blur": gaussian_blur,
    "fog": fog,
    "brightness": brightness,
    "contrast": contrast,
    "saturate": saturate,
    "elastic_transform": elastic_transform,
    "pixelate": pixelate,
    "jpeg_compression": jpeg_compression,
}
NEED_COLOUR = ("saturate",)


# ---------------------------------------------------------------------------------------------
# a test set, corrupted


def choose(value: str) -> list[str]:
    """The corruptions that `all`, or a list with commas, names.

    Raises:
        UserError: an unknown name.
    """
    if value == "all":
        return list(CORRUPTIONS)
    names = [name.strip() for name in value.split(",")]
    for name in names:
        if name not in CORRUPTIONS:
            raise UserError(f"corruptions: {did_you_mean(name, ['all', *CORRUPTIONS])}")
    return list(dict.fromkeys(names))


def possible(names: Sequence[str], channels: int) -> list[str]:
    """Those of the corruptions that images of C channels can have; the log names the others.

    Raises:
        UserError: none of them.
    """
    if channels == 3:
        return list(names)
    found = [name for name in names if name not in NEED_COLOUR]
    left_out = ", ".join(name for name in names if name in NEED_COLOUR)
    if not found:
        raise UserError(f"corruptions={left_out}: needs colour, the run's images are grey")
    if left_out:
        log.warning("corruptions: %s left out, the images are grey", left_out)
    return found


def corrupt(images: Tensor, name: str, severity: int, block: int = 0) -> Tensor:
    """Corrupt images of one block.

    Args:
        images: (B, C, H, W) uint8, at most `BLOCK` images.
        name: a key of `CORRUPTIONS`.
        severity: 1 to 5.
        block: the first image is number `block * BLOCK` of its test set.

    Returns:
        (B, C, H, W) uint8.

    Example:
        >>> images = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
        >>> corrupt(images, "fog", severity=3).shape
        torch.Size([8, 3, 32, 32])
    """
    assert len(images) <= BLOCK and severity in SEVERITIES
    generator = Generator(images.device).manual_seed(zlib.crc32(f"{name} {block}".encode()))
    corrupted = CORRUPTIONS[name](images.float() / 255, severity, generator)
    return corrupted.clamp(0, 1).mul(255).round().byte()


@torch.no_grad()
def corrupted_sets(
    split: Split, names: Sequence[str], device: torch.device
) -> Iterator[tuple[str, Split]]:
    """A test split at every severity of every corruption.

    Args:
        split: its images (N, C, H, W) uint8, on any device.
        names: keys of `CORRUPTIONS`.
        device: where to compute.

    Yields:
        `corruption/severity`, and the split with images where they were before.
    """
    assert isinstance(split.images, Tensor)
    for name in names:
        for severity in SEVERITIES:
            blocks = [
                corrupt(images.to(device), name, severity, block).to(images.device)
                for block, images in enumerate(split.images.split(BLOCK))
            ]
            yield f"{name}/{severity}", replace(split, images=torch.cat(blocks))
