"""Random views of images, on the device, a batch at a time, each image with its own parameters.

The operators are Kornia augmentations: they draw a dictionary of parameters, apply it, replay it
(`operator(images, params=...)`), and stand in Kornia's containers. They replace stock ones that are
slow on a batch (ColorJitter, RandomResizedCrop, RandomCrop, RandomAffine, RandomErasing) or draw
once per batch what papers draw per image (ColorJitter's order, RandAugment), and give the same
images on the same parameters. Three rules make them fast: no loop over images, nothing read back to
the host, and a gate `p` that acts through neutral parameters, not by a blend of two batches.

Random numbers come from torch's global generator of the images' device.

Dimensions: B batch, C channels (1 or 3), H, W input pixels, S output pixels (height and width).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from kornia.augmentation import AugmentationBase2D
from torch import Tensor, nn

from noisybsd.errors import UserError, did_you_mean

Params = dict[str, Tensor]

# ---------------------------------------------------------------------------------------------
# pixels


def luma(images: Tensor) -> Tensor:
    """The grey value of ITU-R BT.601, `(B, C, H, W)` to `(B, 1, H, W)`; of one channel, itself."""
    if images.shape[1] == 1:
        return images
    red, green, blue = images.split(1, dim=1)
    return (red * 0.299).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def blend_(images: Tensor, other: Tensor, share: Tensor) -> Tensor:
    """PIL's ImageEnhance, in place: 1 - `share` of the image, the rest of `other`, clipped to [0, 1].

    Args:
        images: (B, C, H, W) in [0, 1].
        other: broadcastable to `images`, as from `degenerate`.
        share: (B, 1, 1, 1), 1 minus the enhancement factor; less than 0 leads away from `other`.
    """
    return images.lerp_(other, share).clamp_(0, 1)


def degenerate(images: Tensor, mean_grey: Tensor, grey: Tensor) -> Tensor:
    """What an enhancement leads away from, (B, 1, H, W).

    The mean grey for contrast where `mean_grey` is 1, the grey image for saturation where `grey` is
    1, black for brightness where both are 0; (B, 1, 1, 1) each.
    """
    luminance = luma(images)
    mean = luminance.mean((-2, -1), keepdim=True).mul_(mean_grey)
    return (luminance * grey).add_(mean)


def shift_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in place, in the HSV hexcone; as `kornia.enhance.adjust_hue(images, 2π turns)`.

    Args:
        images: (B, 3, H, W) in [0, 1].
        turns: (B,) shift in full turns, within ±0.5.
    """
    red, green, blue = images.split(1, dim=1)
    value = torch.maximum(red, green).maximum(blue)
    least = torch.minimum(red, green).minimum(blue)
    chroma = value - least
    # The hue in sixths of a turn, within ±3. With R, G, B = (image - least) / chroma, one of which
    # is 0 and one 1, its size is 1 - R + G + B in all six sectors, its sign that of G - B.
    hue = (value - red).add_(green).add_(blue).sub_(least, alpha=2)
    hue = hue.div_(chroma.clamp_min(1e-12)).copysign_(green - blue)
    # Back: a channel is least within a sixth of a turn of its opposite (of hue 3 for red, 5 for green,
    # 1 for blue), greatest from two sixths on. `frac` needs positive numbers: two more turns.
    opposite = torch.arange(3, 8, 2, device=images.device).view(1, 3, 1, 1) / 6
    distance = torch.add(turns.view(-1, 1, 1, 1) - opposite + 2.5, hue, alpha=1 / 6, out=images)
    distance.frac_().sub_(0.5).abs_().clamp_(1 / 6, 2 / 6)  # in turns
    return torch.addcmul(least - chroma, distance, chroma.mul_(6), out=images)


def centres(length: int, device: torch.device) -> Tensor:
    """Where the pixels of a side lie between its ends -1 and 1, (length,)."""
    return (2 * torch.arange(length, device=device) + 1) / length - 1


def sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read images bilinearly; outside of an image its border goes on.

    Args:
        images: (B, C, H, W)
        x, y: where, between the ends -1 and 1 of a side, broadcastable to (B, S, S).
    """
    grid = torch.view_as_real(torch.complex(x, y))  # a stack that broadcasts
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def warp_affine(images: Tensor, params: Params) -> Tensor:
    """Shear, scale, rotate, then shift images about their centres; outside, their border goes on.

    Args:
        images: (B, C, H, W)
        params: `shear_x`, `shear_y`, `angle` (B,) in degrees, `scale` (B, 2) and `translations`
            (B, 2) in pixels, with Kornia's signs.
    """
    half_height, half_width = images.shape[-2] / 2, images.shape[-1] / 2
    shear_x, shear_y, angle = (
        torch.deg2rad(params[name])[:, None] for name in ("shear_x", "shear_y", "angle")
    )
    scale_x, scale_y = params["scale"].split(1, dim=1)
    shift_x, shift_y = params["translations"].split(1, dim=1)
    # From a place of the output back to one of the input: x and y in pixels from the centre are
    # affine forms (B, 3) of the output's x, y between ±1 and of 1. The steps are undone in turn.
    zero = torch.zeros_like(angle)
    x = torch.cat((zero + half_width, zero, -shift_x), dim=1)
    y = torch.cat((zero, zero + half_height, -shift_y), dim=1)
    x, y = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    x, y = x / scale_x, y / scale_y
    y = y + shear_y.tan() * x
    x = x + shear_x.tan() * y
    columns = centres(images.shape[-1], images.device)
    rows = centres(images.shape[-2], images.device)[:, None]

    def place(form: Tensor) -> Tensor:  # (B, 3) to (B, H, W)
        of_x, of_y, constant = form.T[..., None, None]
        return of_x * columns + (of_y * rows + constant)

    return sample(images, place(x / half_width), place(y / half_height))


def uniform(low: float, high: float, *shape: int, device: torch.device) -> Tensor:
    return torch.empty(shape, device=device).uniform_(low, high)


# ---------------------------------------------------------------------------------------------
# operators


class Operator(AugmentationBase2D):
    """A Kornia augmentation whose `apply_transform` heeds the gate `batch_prob` by itself.

    Kornia's own way makes the changed batch, then picks each image from it or from the old one.
    """

    def transform_inputs(
        self,
        input: Tensor,
        params: Params,
        flags: dict[str, Any],
        transform: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        return self.apply_transform(input, params, flags, transform)


class ColourOperator(Operator):
    """An operator that changes pixels where they are; on a copy, unless `inplace`."""

    def __init__(self, p: float = 1.0, inplace: bool = False) -> None:
        super().__init__(p=p)
        self.inplace = inplace

    def transform_inputs(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return super().transform_inputs(input if self.inplace else input.clone(), *args, **kwargs)

    def gate(self, params: Params) -> Tensor:
        """Which images to change, (B,) bool."""
        return params["batch_prob"] > 0.5


class RandomCropFlip(Operator):
    """A crop of the reflection-padded image, mirrored half of the time.

    Equals `kornia.augmentation.RandomCrop(padding_mode="reflect")`, then `RandomHorizontalFlip`.

    Args:
        size: S
        padding: pixels added on each side, less than H and W.
        flip: probability to mirror.
    """

    def __init__(self, size: int, padding: int = 0, flip: float = 0.5) -> None:
        super().__init__(p=1.0)
        self.size, self.padding, self.flip = size, padding, flip

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        batch, _, height, width = batch_shape
        rooms = [side + 2 * self.padding - self.size + 1 for side in (height, width)]
        top, left = (torch.randint(room, (batch,), device=self.device) for room in rooms)
        flip = torch.rand(batch, device=self.device) < self.flip
        return {"top": top, "left": left, "flip": flip}

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        batch, channels, height, width = input.shape
        steps = torch.arange(self.size, device=input.device) - self.padding
        rows = reflect(params["top"][:, None] + steps, height)  # (B, S)
        columns = reflect(params["left"][:, None] + steps, width)
        columns = torch.where(params["flip"][:, None], columns.flip(1), columns)
        places = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
        pixels = input.flatten(2).gather(2, places.expand(-1, channels, -1))
        return pixels.view(batch, channels, self.size, self.size)


def reflect(index: Tensor, length: int) -> Tensor:
    """Mirror an index that leaves 0..length-1 at the border pixel, which is not repeated."""
    last = length - 1
    return last - (last - index.abs()).abs()


class RandomResizedCropFlip(Operator):
    """A crop of random area and aspect ratio, resized bilinearly, mirrored half of the time.

    Draws as torchvision's RandomResizedCrop (up to ten tries, in whole pixels) and equals
    `kornia.augmentation.RandomResizedCrop(align_corners=False)`, then `RandomHorizontalFlip`.

    Args:
        size: S
        scale: range of the crop's area, as a fraction of the image's.
        ratio: range of width over height, drawn on a log scale.
        flip: probability to mirror.
    """

    def __init__(
        self,
        size: int,
        scale: tuple[float, float] = (0.2, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        flip: float = 0.5,
    ) -> None:
        super().__init__(p=1.0)
        self.size, self.scale, self.ratio, self.flip = size, scale, ratio, flip

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        batch, _, full_height, full_width = batch_shape
        low, high = self.ratio
        area = uniform(*self.scale, batch, 10, device=self.device).mul_(full_height * full_width)
        ratio = uniform(math.log(low), math.log(high), batch, 10, device=self.device).exp_()
        widths, heights = (area * ratio).sqrt_().round_(), area.div_(ratio).sqrt_().round_()
        # An eleventh try always fits: the largest crop of an allowed aspect ratio.
        widths = F.pad(widths, (0, 1), value=min(full_width, round(full_height * high)))
        heights = F.pad(heights, (0, 1), value=min(full_height, round(full_width / low)))
        fits = (widths <= full_width) & (heights <= full_height) & (widths.minimum(heights) >= 1)
        first = fits.int().argmax(1, keepdim=True)
        width, height = widths.gather(1, first)[:, 0], heights.gather(1, first)[:, 0]
        left, top = (
            # The product can round up to the room itself.
            (torch.rand(batch, device=self.device) * (room + 1)).floor_().minimum(room)
            for room in (full_width - width, full_height - height)
        )
        flip = torch.rand(batch, device=self.device) < self.flip
        return {"left": left, "top": top, "width": width, "height": height, "flip": flip}

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        fractions = (torch.arange(self.size, device=input.device) + 0.5) / self.size

        def places(start: Tensor, length: Tensor, side: int) -> Tensor:
            """Where to read along one side, (B, S): within the crop's outer pixels, in ±1."""
            offsets = (fractions * length[:, None] - 0.5).clamp_min(0).minimum(length[:, None] - 1)
            return (2 * (start[:, None] + offsets) + 1) / side - 1

        rows = places(params["top"], params["height"], input.shape[-2])
        columns = places(params["left"], params["width"], input.shape[-1])
        columns = torch.where(params["flip"][:, None], columns.flip(1), columns)
        return sample(input, columns[:, None, :], rows[:, :, None])


class RandomWarp(Operator):
    """A small rotation, scaling and shear about the image's centre, and a shift.

    Equals `kornia.augmentation.RandomAffine(align_corners=True, padding_mode="border")`, whose
    names and units the parameters have (degrees, pixels).

    Args:
        degrees: rotate by up to ±degrees.
        scale: range of the scaling.
        shear: shear by up to ±shear degrees along each axis.
        translate: shift by up to this fraction of the side.
    """

    def __init__(
        self,
        degrees: float = 0.0,
        scale: tuple[float, float] = (1.0, 1.0),
        shear: float = 0.0,
        translate: float = 0.0,
    ) -> None:
        super().__init__(p=1.0)
        self.degrees, self.scale, self.shear, self.translate = degrees, scale, shear, translate

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        batch, _, height, width = batch_shape
        angle, shear_x, shear_y, right, down = uniform(-1, 1, 5, batch, device=self.device)
        shift = torch.stack((right * width, down * height), dim=1) * self.translate
        return {
            "angle": angle * self.degrees,
            "scale": uniform(*self.scale, batch, 1, device=self.device).expand(-1, 2),
            "shear_x": shear_x * self.shear,
            "shear_y": shear_y * self.shear,
            "translations": shift,
        }

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        return warp_affine(input, params)


class RandomColorJitter(ColourOperator):
    """Brightness, contrast and saturation, in an order drawn for each image, then hue.

    Equals `kornia.augmentation.ColorJitter(order=(*order, 3))`, hence torchvision's steps, on each
    image. The hue, the costly step, has no turn of its own in the order: it would commute with the
    others but for clipping and for its small effect on the grey values. Of one channel only
    brightness and contrast change.

    Args:
        brightness, contrast, saturation: factors are drawn from 1 ± this.
        hue: shifts are drawn from ± this, in full turns.
        p: probability to change an image.
    """

    BRIGHTNESS, CONTRAST, SATURATION = range(3)

    def __init__(
        self,
        brightness: float = 0.0,
        contrast: float = 0.0,
        saturation: float = 0.0,
        hue: float = 0.0,
        p: float = 1.0,
        inplace: bool = False,
    ) -> None:
        super().__init__(p, inplace)
        self.ranges = {
            "brightness_factor": (max(0.0, 1 - brightness), 1 + brightness),
            "contrast_factor": (max(0.0, 1 - contrast), 1 + contrast),
            "saturation_factor": (max(0.0, 1 - saturation), 1 + saturation),
            "hue_factor": (-hue, hue),
        }

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        batch = batch_shape[0]
        factors = {
            name: uniform(*limits, batch, device=self.device)
            for name, limits in self.ranges.items()
        }
        return {**factors, "order": torch.rand(batch, 3, device=self.device).argsort(1)}

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        gate = self.gate(params)
        order = params["order"]  # (B, 3)
        factors = torch.stack([params[name] for name in list(self.ranges)[:3]], dim=1)  # (B, 3)
        share = (1 - factors.gather(1, order)) * gate[:, None]
        steps = torch.stack((share, order == self.CONTRAST, order == self.SATURATION))
        for share, mean_grey, grey in steps.permute(2, 0, 1)[..., None, None, None]:
            blend_(input, degenerate(input, mean_grey, grey), share)
        if input.shape[1] == 3:
            shift_hue_(input, params["hue_factor"] * gate)
        return input


class RandomGrayscale(ColourOperator):
    """Grey images with probability `p`; equals `kornia.augmentation.RandomGrayscale`."""

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        grey = self.gate(params).to(input.dtype)[:, None, None, None]
        return input.lerp_(luma(input), grey)


class RandomErase(ColourOperator):
    """A square block of each image set to `value`; equals `kornia.augmentation.RandomErasing`.

    Args:
        side: range of the block's side, as a fraction of S. The block's centre may lie anywhere, so
            that a part of the block can fall outside (DeVries and Taylor 2017, Cutout).
        value: in [0, 1].
        p: probability to change an image.
    """

    def __init__(
        self,
        side: tuple[float, float],
        value: float = 0.0,
        p: float = 0.5,
        inplace: bool = False,
    ) -> None:
        super().__init__(p, inplace)
        self.side, self.value = side, value

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        batch, _, height, width = batch_shape
        sides = (uniform(*self.side, batch, device=self.device) * height).round_()
        xs, ys = (
            (torch.rand(batch, device=self.device) * length - sides / 2).round_()
            for length in (width, height)
        )
        return {"xs": xs, "ys": ys, "widths": sides, "heights": sides}

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        def inside(start: Tensor, length: Tensor, pixels: int) -> Tensor:
            offset = torch.arange(pixels, device=input.device) - start[:, None]
            return (offset >= 0) & (offset < length[:, None])  # (B, pixels)

        rows = inside(params["ys"], params["heights"], input.shape[-2])
        columns = inside(params["xs"], params["widths"], input.shape[-1])
        block = rows[:, :, None] & columns[:, None, :] & self.gate(params)[:, None, None]
        return input.masked_fill_(block[:, None], self.value)


class RandAugment(Operator):
    """A few operations, drawn with their magnitudes for each image.

    The operations and ranges are FixMatch's (Sohn et al. 2020, appendix), after RandAugment (Cubuk
    et al. 2020). Two things differ: what moves pixels comes first, as one affine map, and outside
    of the image it reads the border. The rest equals torchvision's functions of these names.

    Args:
        count: operations an image.
    """

    ENHANCE = ("brightness", "contrast", "color", "sharpness")  # factor 0.05 to 0.95
    POINT = ("autocontrast", "equalize", "posterize", "solarize")  # to 4..8 bits; above 0..1
    MOVE = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")  # ±30°, ±0.3, ±0.3
    KINDS = ("identity", *ENHANCE, *POINT, *MOVE)

    def __init__(self, count: int = 2) -> None:
        super().__init__(p=1.0)
        self.count = count

    def generate_parameters(self, batch_shape: tuple[int, ...]) -> Params:
        shape = (batch_shape[0], self.count)
        return {
            "kind": torch.randint(len(self.KINDS), shape, device=self.device),
            "magnitude": torch.rand(shape, device=self.device),
        }

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        images = warp_affine(input, self.moves(params, *input.shape[-2:]))
        for kind, magnitude in zip(params["kind"].T, params["magnitude"].T, strict=True):
            drawn = {name: kind == number for number, name in enumerate(self.KINDS)}
            images = self.enhance_(self.point(images, drawn, magnitude), drawn, magnitude)
        return images

    def moves(self, params: Params, height: int, width: int) -> Params:
        """The parameters of `warp_affine`; what is drawn twice adds up."""
        kind, signed = params["kind"], params["magnitude"] * 2 - 1

        def amount(name: str, largest: float) -> Tensor:
            return ((kind == self.KINDS.index(name)) * signed).sum(1) * largest

        shear = math.degrees(math.atan(0.3))
        right, down = amount("translate_x", 0.3 * width), amount("translate_y", 0.3 * height)
        return {
            "angle": amount("rotate", 30.0),
            "scale": signed.new_ones(signed.shape[0], 2),
            "shear_x": amount("shear_x", shear),
            "shear_y": amount("shear_y", shear),
            "translations": torch.stack((right, down), dim=1),
        }

    @staticmethod
    def point(images: Tensor, drawn: dict[str, Tensor], magnitude: Tensor) -> Tensor:
        """What maps each channel's 256 levels to others, through a table for each image."""
        levels = (images * 255).round_().long().flatten(2)  # (B, C, HW)
        batch, channels, pixels = levels.shape
        tables = torch.arange(256.0, device=images.device).expand(batch, channels, 256)
        on = {name: chosen[:, None, None] for name, chosen in drawn.items()}
        u = magnitude[:, None, None]

        step = torch.exp2(4 - (4 * u).round())
        posterized = (tables / step).floor() * step
        solarized = torch.where(tables >= u * 256, 255 - tables, tables)

        low, high = (x.to(images.dtype) for x in levels.aminmax(dim=2, keepdim=True))
        stretched = ((tables - low) * 255 / (high - low).clamp_min(1)).floor().clamp(0, 255)
        stretched = torch.where(high > low, stretched, tables)

        ones = images.new_ones(()).expand_as(levels)
        counts = torch.zeros_like(stretched).scatter_add_(2, levels, ones)
        below = counts.cumsum(2) - counts
        step_count = ((pixels - counts.gather(2, levels.amax(2, keepdim=True))) / 255).floor()
        equal = ((below + (step_count / 2).floor()) / step_count.clamp_min(1)).floor().clamp(0, 255)
        equal = torch.where(step_count > 0, equal, tables)

        for name, table in zip(
            RandAugment.POINT, (stretched, equal, posterized, solarized), strict=True
        ):
            tables = torch.where(on[name], table, tables)
        return (tables / 255).gather(2, levels).view_as(images)

    @staticmethod
    def enhance_(images: Tensor, drawn: dict[str, Tensor], magnitude: Tensor) -> Tensor:
        """What blends an image with black, its mean grey, its grey image or a smoothed one."""
        on = {name: chosen[:, None, None, None] for name, chosen in drawn.items()}
        # Smooth is a mean of 3 × 3 pixels in which the middle counts five times; the border stays.
        smooth = images.clone()
        sums = images[..., :-2, :] + images[..., 1:-1, :] + images[..., 2:, :]
        sums = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:]
        smooth[..., 1:-1, 1:-1].mul_(4 / 13).add_(sums, alpha=1 / 13)
        other = degenerate(images, on["contrast"], on["color"].to(images.dtype))
        other = smooth.mul_(on["sharpness"]).add_(other)
        chosen = on["brightness"] | on["contrast"] | on["color"] | on["sharpness"]
        return blend_(images, other, chosen * (0.95 - 0.9 * magnitude[:, None, None, None]))


# ---------------------------------------------------------------------------------------------
# views


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
        UserError: for an unknown `name`, for `mean` and `std` that are no pair, or for alternating
            flips of views that never mirror.

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
            raise UserError(f"augment.name: {did_you_mean(name, VIEWS)}")
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
        if mirror is not None:
            images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
        return self.render(images, self.weak_view)

    def strong(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, S, S), heavily changed."""
        return self.render(images, self.strong_view)

    def plain(self, images: Tensor) -> Tensor:
        """uint8 (B, C, H, W) to float32 (B, C, S, S), the middle of the image; nothing is drawn."""
        return self.render(images, self.plain_view)

    def render(self, images: Tensor, view: nn.Module) -> Tensor:
        """Apply `view` to the pixels in [0, 1], then normalise."""
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
        return view(images.float().div_(255)).sub_(self.mean).div_(self.std)
