"""Corruptions: in range, reproducible, stronger with every severity, at every size."""

from __future__ import annotations

import io
import logging

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from noisybsd.data.corruptions import (
    BLOCK,
    CORRUPTIONS,
    NEED_COLOUR,
    SEVERITIES,
    block_means,
    choose,
    corrupt,
    corrupted_sets,
    possible,
)
from noisybsd.data.splits import Split
from noisybsd.errors import UserError


def pictures(size: int, count: int = 16) -> Tensor:
    """Digits, enlarged, in pale and strong colours, (count, 3, size, size) uint8."""
    digits = torch.tensor(load_digits().images[:count], dtype=torch.float)[:, None] / 16
    if size > 8:
        digits = F.interpolate(digits, (size, size), mode="bilinear")
    paleness = torch.linspace(0.4, 0.97, count).view(-1, 1, 1, 1)
    strength = 0.8 * paleness ** torch.tensor([0.0, 0.5, 1.0]).view(1, 3, 1, 1)
    return ((0.1 + digits * strength) * 255).round().byte()


def distance(images: Tensor, other: Tensor) -> Tensor:
    """Root mean square over each image, (B,)."""
    return ((images.float() - other.float()) / 255).square().mean((1, 2, 3)).sqrt()


def as_split(images: Tensor) -> Split:
    labels = np.arange(len(images))
    return Split(images, labels, labels)


@pytest.mark.parametrize("size", [8, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_severity_is_further_from_the_image(name: str, size: int) -> None:
    images = pictures(size)
    before = images.clone()
    previous = torch.zeros(())
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity)
        assert corrupted.shape == images.shape and corrupted.dtype == torch.uint8
        assert torch.equal(images, before)
        found = distance(corrupted, images)
        assert found.mean() > 1.03 * previous, severity
        previous = found.mean()
    assert (found > 0.01).all()
    assert previous < 0.6  # of two unrelated images at most


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_image_leaves_the_range_before_it_is_rounded(name: str) -> None:
    """Up to what clipping removes on purpose: a mean of pixels, or a code of them, adds nothing."""
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    images[0], images[1] = 0, 1
    for severity in (1, 5):
        corrupted = CORRUPTIONS[name](images, severity, torch.Generator().manual_seed(0))
        assert corrupted.isfinite().all() and corrupted.shape == images.shape
        if "noise" not in name:
            assert corrupted.min() >= -1e-5 and corrupted.max() <= 1 + 1e-5


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_images_corruption_is_its_own(name: str) -> None:
    """Whatever images surround it, how many they are, and what has been drawn before."""
    images = pictures(9, BLOCK + 6)  # numbers are drawn by sixteens: a size that is no multiple
    torch.manual_seed(1)
    together = dict(corrupted_sets(as_split(images), [name], torch.device("cpu")))[f"{name}/3"]
    state = torch.get_rng_state()
    for count in (5, BLOCK + 2):
        torch.manual_seed(2)
        some = dict(corrupted_sets(as_split(images[:count]), [name], torch.device("cpu")))
        part = some[f"{name}/3"].images
        assert isinstance(part, Tensor) and isinstance(together.images, Tensor)
        # one level: a convolution may add in another order
        assert (part.int() - together.images[:count].int()).abs().max() <= 1
    others = images.clone()
    others[:3], others[4:] = 255 - others[:3], 255 - others[4:]
    alone, among = corrupt(images[:BLOCK], name, 3), corrupt(others[:BLOCK], name, 3)
    assert (alone[3].int() - among[3].int()).abs().max() <= 1
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # none of it was used


DRAWN = {
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise"),
    *("motion_blur", "fog", "elastic_transform"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_each_position_has_numbers_of_its_own(name: str) -> None:
    same = pictures(8, 1).expand(2, -1, -1, -1)
    here, there = corrupt(same, name, 3), corrupt(same, name, 3, block=1)
    assert torch.equal(here[0], here[1]) == (name not in DRAWN)
    assert torch.equal(here, there) == (name not in DRAWN)


def test_sets_are_the_split_at_each_severity() -> None:
    split = as_split(pictures(8, BLOCK + 6))
    assert isinstance(split.images, Tensor)
    sets = dict(corrupted_sets(split, ["fog", "contrast"], torch.device("cpu")))
    assert list(sets) == [f"{name}/{s}" for name in ("fog", "contrast") for s in range(1, 6)]
    found = sets["fog/2"]
    assert found.labels is split.labels and isinstance(found.images, Tensor)
    assert torch.equal(found.images[:BLOCK], corrupt(split.images[:BLOCK], "fog", 2))
    assert torch.equal(found.images[BLOCK:], corrupt(split.images[BLOCK:], "fog", 2, block=1))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in NEED_COLOUR])
def test_grey_images(name: str) -> None:
    images = pictures(8)[:, 1:2]
    found = [distance(corrupt(images, name, severity), images).mean() for severity in SEVERITIES]
    assert found[0] > 0 and found == sorted(found)


def test_grey_images_have_no_colour_to_change(caplog: pytest.LogCaptureFixture) -> None:
    assert possible(choose("all"), 3) == list(CORRUPTIONS) and not caplog.text
    with caplog.at_level(logging.WARNING, "noisybsd"):
        assert "saturate" not in possible(choose("all"), 1)
    assert "saturate left out, the images are grey" in caplog.text
    with pytest.raises(UserError, match="corruptions=saturate: needs colour"):
        possible(["saturate"], 1)


def test_choosing() -> None:
    assert choose("all") == list(CORRUPTIONS)
    assert choose("fog, contrast,fog") == ["fog", "contrast"]
    for value in ("fog,motion_blurr", "", "fog,,contrast"):
        with pytest.raises(UserError, match=r"corruptions: got ''|corruptions: got 'motion_blurr'"):
            choose(value)
    with pytest.raises(UserError, match=r"did you mean motion_blur\? valid: all, brightness, con"):
        choose("motion_blurr")


# against what the name says


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gaussian_noise", 0.04),
        ("shot_noise", (0.5 / 200) ** 0.5),
        ("speckle_noise", 0.5 * 0.1),
    ],
)
def test_noise_has_the_deviation_asked_for(name: str, expected: float) -> None:
    grey = torch.full((BLOCK, 3, 32, 32), 0.5)
    noise = CORRUPTIONS[name](grey, 1, torch.Generator().manual_seed(0)) - grey
    assert noise.std().item() == pytest.approx(expected, rel=0.02)
    assert abs(noise.mean().item()) < 1e-3


def test_impulse_noise_replaces_a_share() -> None:
    grey = torch.full((BLOCK, 3, 32, 32), 0.5)
    found = CORRUPTIONS["impulse_noise"](grey, 5, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 0.5, 1.0}
    for value in (0, 1):
        assert (found == value).float().mean().item() == pytest.approx(0.11, abs=3e-3)


@pytest.mark.parametrize("name", ["defocus_blur", "motion_blur", "gaussian_blur", "zoom_blur"])
def test_a_blur_leaves_an_even_image_alone_and_grows_with_its_size(name: str) -> None:
    even = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    assert torch.equal(corrupt(even, name, 5), even)
    spread = []
    for size in (33, 225):
        point = torch.zeros(1, 1, size, size)
        point[..., 3 * size // 4, size // 2] = 1
        blurred = CORRUPTIONS[name](point, 3, torch.Generator().manual_seed(0))[0, 0]
        spread.append(1 / blurred.square().sum().sqrt())
    assert spread[1] > 1.5 * spread[0]


def test_elastic_displacements_have_the_deviation_asked_for() -> None:
    ramp = (torch.arange(64) / 64).expand(BLOCK, 1, 64, 64)
    moved = CORRUPTIONS["elastic_transform"](ramp, 1, torch.Generator().manual_seed(0)) - ramp
    inside = moved[..., 16:-16, 16:-16] * 64  # pixels along x
    assert inside.std().item() == pytest.approx(0.5 * 88 / 56, rel=0.1)


def test_what_leaves_the_range_is_clipped() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 32, 32)
    black, white = corrupt(images, "gaussian_noise", 1).float()
    assert 0.4 < (black == 0).float().mean() < 0.6 < black.max() < 80
    assert 0.4 < (white == 255).float().mean() < 0.6 < 175 < white.min()
    assert (corrupt(images, "brightness", 5)[1] == 255).all()


def test_light_and_colour() -> None:
    images = pictures(8)
    bright = corrupt(images, "brightness", 1).int()
    assert ((bright - images.int() - 25.5).abs()[bright < 255] == 0.5).all()
    pale = corrupt(images, "contrast", 2).float()
    assert torch.allclose(pale.std((2, 3)), images.float().std((2, 3)) / 2, atol=1)
    grey = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    means = [(x * grey).sum(1).mean((1, 2)) for x in (pale, images.float())]
    assert torch.allclose(*means, atol=0.5)
    vivid = corrupt(images, "saturate", 3)
    assert torch.equal(vivid.amax(1), images.amax(1))  # the value in HSV
    assert (vivid.amin(1) <= images.amin(1)).all()


def test_pixelate_shows_blocks() -> None:
    images = pictures(8)
    blocks = F.avg_pool2d(images.float(), 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert (corrupt(images, "pixelate", 4) - blocks).abs().max() < 0.51


def test_block_means() -> None:
    means = block_means(8, 3, torch.device("cpu"))
    assert torch.allclose(means.sum(1), torch.ones(8))
    values = torch.rand(8)
    fine = values.repeat_interleave(3).view(3, 8).mean(1).repeat_interleave(8)  # thirds of pixels
    assert torch.allclose(means @ values, fine.view(8, 3).mean(1))


@pytest.mark.parametrize(("severity", "quality"), [*enumerate((60, 40, 25, 15, 8), start=1)])
def test_jpeg_is_near_pillows(severity: int, quality: int) -> None:
    """Kornia's rounding is a differentiable one, hence not equal."""
    images = pictures(32, 8)
    expected = []
    for image in images:
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(
            file := io.BytesIO(), "JPEG", quality=quality
        )
        expected.append(torch.tensor(np.array(Image.open(file))).permute(2, 0, 1))
    found = corrupt(images, "jpeg_compression", severity)
    pillows = torch.stack(expected)
    assert distance(found, pillows).mean() < 0.5 * distance(images, pillows).mean()
