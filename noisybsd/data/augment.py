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
from typing import Any

import torch
import torch.nn.functional as F
from kornia.augmentation import AugmentationBase2D
from torch import Tensor

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
    return torch.addcmul(mean, luminance, grey)


def shift_hue_(images: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue in place, in the HSV hexcone; as `kornia.enhance.adjust_hue(images, 2π turns)`.

    Args:
        images: (B, 3, H, W) in [0, 1].
        turns: (B,) shift in full turns, within ±0.5.
    """
    red, green, blue = images.split(1, dim=1)
    value, least = images.amax(1, keepdim=True), images.amin(1, keepdim=True)
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
    grid = torch.stack(torch.broadcast_tensors(x, y), dim=-1)
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

    Kornia's own way makes the changed batch, then picks each image from it or from the old one; and it
    notes on the host, at every call, what only its containers need. They ask for that by
    `forward_parameters`.
    """

    def forward(self, input: Tensor, params: Params | None = None, **_: Any) -> Tensor:
        """Change images (B, C, H, W) as `params` say, or as is drawn now; `_params` keeps that."""
        if params is None:
            params = {}
            if self.p < 1:
                params["batch_prob"] = torch.rand(len(input), device=self.device) < self.p
            params |= self.generate_parameters(tuple(input.shape))
        if not torch.compiler.is_compiling():
            self._params = params
        return self.transform_inputs(input, params, self.flags)

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

    def gate(self, params: Params) -> Tensor | None:
        """Which images to change, (B,) bool; None: all of them."""
        return None if self.p == 1 else params["batch_prob"].bool()


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
        if self.padding:
            input = F.pad(input, 4 * (self.padding,), mode="reflect")
        batch, channels, _, width = input.shape
        steps = torch.arange(self.size, device=input.device)
        rows, columns = params["top"][:, None] + steps, params["left"][:, None] + steps  # (B, S)
        columns = torch.where(params["flip"][:, None], columns.flip(1), columns)
        places = (rows[:, :, None] * width + columns[:, None, :]).view(batch, 1, -1)
        pixels = input.flatten(2).gather(2, places.expand(-1, channels, -1))
        return pixels.view(batch, channels, self.size, self.size)


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
        sides = torch.stack((area * ratio, area / ratio)).sqrt_().round_()  # (2, B, 10)
        widths, heights = sides
        fits = (widths <= full_width) & (heights <= full_height) & (widths.minimum(heights) >= 1)
        fit, first = fits.byte().max(1, keepdim=True)
        fit, sides = fit[:, 0].bool(), sides.gather(2, first.expand(2, batch, 1))[..., 0]  # (2, B)
        # Where none fits: the largest crop of an allowed aspect ratio.
        width = torch.where(fit, sides[0], min(full_width, round(full_height * high)))
        height = torch.where(fit, sides[1], min(full_height, round(full_width / low)))
        rooms = torch.stack((full_width - width, full_height - height))
        draws = torch.rand(3, batch, device=self.device)
        # The product can round up to the room itself.
        left, top = (draws[:2] * (rooms + 1)).floor_().minimum(rooms)
        flip = draws[2] < self.flip
        return {"left": left, "top": top, "width": width, "height": height, "flip": flip}

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        fractions = (torch.arange(self.size, device=input.device) + 0.5) / self.size
        start, length = (
            torch.stack([params[name] for name in names])[..., None]  # (2, B, 1)
            for names in (("left", "top"), ("width", "height"))
        )
        # Where to read, (2, B, S): within the crop's outer pixels.
        offsets = (fractions * length).sub_(0.5).clamp_min_(0).minimum(length - 1)
        places = (start + offsets).mul_(2).add_(1)
        columns, rows = (
            place / side - 1 for place, side in zip(places, input.shape[:1:-1], strict=True)
        )
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
        gate, turns = self.gate(params), params["hue_factor"]
        order = params["order"]  # (B, 3)
        factors = torch.stack([params[name] for name in list(self.ranges)[:3]], dim=1)  # (B, 3)
        share = 1 - factors.gather(1, order)
        if gate is not None:
            share, turns = share * gate[:, None], turns * gate
        # of each step, whether it is the contrast, and whether the saturation
        two = torch.arange(self.CONTRAST, self.SATURATION + 1, device=input.device)
        kinds = (order[..., None] == two).to(input.dtype)  # (B, 3, 2)
        for step in range(3):
            mean_grey, grey, amount = (
                x[:, None, None, None] for x in (*kinds[:, step].T, share[:, step])
            )
            blend_(input, degenerate(input, mean_grey, grey), amount)
        if input.shape[1] == 3:
            shift_hue_(input, turns)
        return input


class RandomGrayscale(ColourOperator):
    """Grey images with probability `p`; equals `kornia.augmentation.RandomGrayscale`."""

    def apply_transform(
        self, input: Tensor, params: Params, flags: Any = None, transform: Any = None
    ) -> Tensor:
        gate = self.gate(params)
        share = 1.0 if gate is None else gate.to(input.dtype)[:, None, None, None]
        return input.lerp_(luma(input), share)


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
        gate = self.gate(params)
        if gate is not None:
            rows = rows & gate[:, None]
        block = rows[:, :, None] & columns[:, None, :]
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
