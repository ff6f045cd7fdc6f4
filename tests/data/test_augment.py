"""Views: equal to Kornia, torchvision and slow loops on the same parameters; drawn per image."""

from __future__ import annotations

import itertools
from typing import Any

import kornia.augmentation as K
import kornia.enhance
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as TF
from helpers.training import NoReadback
from kornia.geometry.bbox import bbox_generator
from torch import Tensor

from noisybsd.data.augment import (
    Operator,
    RandAugment,
    RandomColorJitter,
    RandomCropFlip,
    RandomErase,
    RandomGrayscale,
    RandomResizedCropFlip,
    RandomWarp,
    shift_hue_,
)
from noisybsd.data.views import VIEWS, Views

OPERATORS = {
    "crop": lambda: RandomCropFlip(16, padding=4),
    "resized crop": lambda: RandomResizedCropFlip(16),
    "warp": lambda: RandomWarp(20, (0.8, 1.2), 10, 0.1),
    "jitter": lambda: RandomColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
    "grayscale": lambda: RandomGrayscale(p=0.5),
    "erase": lambda: RandomErase((0.2, 0.5)),
    "randaugment": RandAugment,
}


def colours(batch: int = 24, channels: int = 3, side: int = 16) -> Tensor:
    """Random images in [0, 1], with grey, black, white and pure ones among them."""
    images = torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))
    images[0], images[1], images[2] = 0.3, 0.0, 1.0
    images[3] = images[3].round()
    images[4, 0] = images[4, -1]
    return images


def photographs(batch: int = 16, channels: int = 3, side: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, channels, side, side)
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def views(name: str, size: int = 16, channels: int = 3) -> Views:
    return Views(name, size, mean=[0.5] * channels, std=[0.25] * channels)


def same(actual: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def kornia_flip(images: Tensor, flip: Tensor) -> Tensor:
    size = torch.tensor(images.shape)
    params = {"batch_prob": flip.float(), "forward_input_shape": size}
    return K.RandomHorizontalFlip(p=0.5)(images, params=params)


# -- equal to a reference on the same parameters ------------------------------------------------


def test_hue_equals_kornia() -> None:
    turns = torch.linspace(-0.5, 0.5, 24)
    expected = kornia.enhance.adjust_hue(colours(), turns * 2 * torch.pi)
    same(shift_hue_(colours(), turns), expected)


@pytest.mark.parametrize(
    ("which", "reference"),
    [
        ("brightness", kornia.enhance.adjust_brightness_accumulative),
        ("contrast", kornia.enhance.adjust_contrast_with_mean_subtraction),
        ("saturation", kornia.enhance.adjust_saturation_with_gray_subtraction),
    ],
)
def test_one_adjustment_equals_kornia(which: str, reference: Any) -> None:
    jitter = RandomColorJitter(**{which: 0.9})
    actual = jitter(colours())
    same(actual, reference(colours(), jitter._params[f"{which}_factor"]))


def test_colour_jitter_equals_kornia_in_every_order() -> None:
    images, jitter = colours(), RandomColorJitter(0.9, 0.9, 0.9, 0.5)
    params = jitter.forward_parameters(images.shape)
    params["order"] = torch.tensor([*itertools.permutations(range(3))] * 4)
    actual = jitter(images, params=params)
    for i, order in enumerate(params["order"].tolist()):
        stock = K.ColorJitter(0.9, 0.9, 0.9, 0.5, order=[*order, 3])
        one = {k: v[i : i + 1] for k, v in params.items() if k.endswith("factor")}
        same(actual[i : i + 1], stock(images[i : i + 1], params=one))


def test_colour_jitter_gate() -> None:
    images, jitter = colours(), RandomColorJitter(0.9, 0.9, 0.9, 0.5, p=0.5)
    params = jitter.forward_parameters(images.shape)
    params["batch_prob"] = torch.arange(24) % 2
    actual = jitter(images, params=params)
    same(actual[::2], images[::2])
    params["batch_prob"] = torch.ones(24)
    torch.testing.assert_close(actual[1::2], jitter(images, params=params)[1::2])


def test_grayscale_equals_kornia() -> None:
    grayscale = RandomGrayscale(p=0.5)
    actual = grayscale(colours())
    same(actual, K.RandomGrayscale(p=0.5)(colours(), params=grayscale._params))


def boxes(left: Tensor, top: Tensor, width: Tensor, height: Tensor, size: int) -> dict[str, Tensor]:
    """The parameters of Kornia's crops."""
    zero, whole = torch.zeros(len(left)), torch.full((len(left),), float(size))
    src = bbox_generator(left.float(), top.float(), width, height)
    dst = bbox_generator(zero, zero, whole, whole)
    return {"src": src, "dst": dst, "forward_input_shape": torch.tensor([len(left), 3, 16, 16])}


def test_crop_equals_kornia() -> None:
    images, crop = colours(), RandomCropFlip(18, padding=4)
    actual, params = crop(images), crop._params
    side = torch.full((24,), 18.0)
    stock = K.RandomCrop((18, 18), padding=4, padding_mode="reflect")
    box = boxes(params["left"], params["top"], side, side, 18)
    box["padding_size"] = torch.full((24, 4), 4)
    same(actual, kornia_flip(stock(images, params=box), params["flip"]))


def test_crop_equals_padding_and_slicing() -> None:
    images, crop = photographs(side=20), RandomCropFlip(18, padding=4)
    actual, params = crop(images / 255), crop._params
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)), mode="reflect")
    for i in range(len(images)):
        top, left = int(params["top"][i]), int(params["left"][i])
        expected = padded[i, :, top : top + 18, left : left + 18]
        if params["flip"][i]:
            expected = expected[..., ::-1]
        assert np.array_equal((actual[i] * 255).round().numpy(), expected)


@pytest.mark.parametrize("size", [12, 16, 40])
def test_resized_crop_equals_kornia_and_a_loop(size: int) -> None:
    images, crop = colours(), RandomResizedCropFlip(size, scale=(0.05, 1.0))
    actual, params = crop(images), crop._params
    left, top, width, height = (params[k] for k in ("left", "top", "width", "height"))
    stock = K.RandomResizedCrop((size, size), align_corners=False)
    box = boxes(left, top, width, height, size)
    same(actual, kornia_flip(stock(images, params=box), params["flip"]))
    for i in range(24):
        x, y, w, h = (int(value[i]) for value in (left, top, width, height))
        piece = F.interpolate(images[i : i + 1, :, y : y + h, x : x + w], size, mode="bilinear")
        same(actual[i], piece[0].flip(-1) if params["flip"][i] else piece[0])


def test_warp_equals_kornia() -> None:
    images, warp = colours(side=15)[..., :12], RandomWarp(30, (0.7, 1.3), 20, 0.2)
    actual = warp(images)
    centre = torch.tensor([(12 - 1) / 2, (15 - 1) / 2]).expand(24, 2)
    stock = K.RandomAffine(30, align_corners=True, padding_mode="border", p=1.0)
    same(actual, stock(images, params={**warp._params, "center": centre}), atol=1e-4)


def test_erase_equals_kornia() -> None:
    images, erase = colours(), RandomErase((0.2, 0.5), value=0.7, p=0.5)
    actual = erase(images)
    # Kornia takes no block that begins outside; ours is the part that lies inside.
    params = dict(erase._params)
    for start, length in (("xs", "widths"), ("ys", "heights")):
        end = params[start] + params[length]
        params[start] = params[start].clamp_min(0)
        params[length] = end.clamp_max(16) - params[start]
    params["values"] = torch.full((24,), 0.7)
    expected = K.RandomErasing(value=0.7, p=0.5)(images, params=params)
    inside = (params["widths"] > 0) & (params["heights"] > 0)
    assert inside.sum() > 12
    same(actual[inside], expected[inside])


def fixed(kind: str, magnitude: float, batch: int) -> dict[str, Tensor]:
    numbers = torch.tensor([[RandAugment.KINDS.index(kind), 0]])
    return {
        "kind": numbers.expand(batch, 2),
        "magnitude": torch.full((batch, 2), magnitude),
    }


@pytest.mark.parametrize("magnitude", [0.0, 0.3, 0.9])
@pytest.mark.parametrize("kind", [*RandAugment.ENHANCE, *RandAugment.POINT, "identity"])
def test_randaugment_equals_torchvision(kind: str, magnitude: float) -> None:
    images = photographs(side=40)
    images[0] = 77
    images[1] = images[1] // 8 + 100
    images[2, :, :30] = 255
    factor = 0.05 + 0.9 * magnitude
    reference = {
        "identity": lambda x: x,
        "autocontrast": TF.autocontrast,
        "equalize": TF.equalize,
        "posterize": lambda x: TF.posterize(x, 4 + round(4 * magnitude)),
        "solarize": lambda x: TF.solarize(x, 256 * magnitude),
        "brightness": lambda x: TF.adjust_brightness(x / 255, factor) * 255,
        "contrast": lambda x: TF.adjust_contrast(x / 255, factor) * 255,
        "color": lambda x: TF.adjust_saturation(x / 255, factor) * 255,
        "sharpness": lambda x: TF.adjust_sharpness(x / 255, factor) * 255,
    }[kind]
    actual = RandAugment()(images / 255, params=fixed(kind, magnitude, len(images))) * 255
    # The second slot rounds to whole levels, as PIL does after each operation. torchvision's grey is
    # 0.2989 R + ..., and its autocontrast can miss a whole level by rounding.
    atol = {"autocontrast": 1.001}.get(kind, 0.53 if kind in RandAugment.ENHANCE else 1e-3)
    same(actual, reference(images).float(), atol)


def test_autocontrast_equals_integer_arithmetic() -> None:
    images = photographs() // 3 + 40
    low, high = (x.long()[..., None, None] for x in (images.amin((2, 3)), images.amax((2, 3))))
    actual = RandAugment()(images / 255, params=fixed("autocontrast", 0.5, 16)) * 255
    same(actual, ((images.long() - low) * 255 // (high - low)).float(), atol=1e-3)


@pytest.mark.parametrize(
    ("kind", "angle", "shift"), [("rotate", 15.0, (0, 0)), ("translate_y", 0.0, (0, 0.15 * 16))]
)
def test_randaugment_moves_as_warp(kind: str, angle: float, shift: tuple[float, float]) -> None:
    images = photographs()
    one = torch.ones(16)
    params = {
        "angle": one * angle,
        "scale": torch.ones(16, 2),
        "shear_x": one * 0,
        "shear_y": one * 0,
        "translations": torch.tensor([shift]).expand(16, 2),
    }
    expected = RandomWarp()(images / 255, params=params)
    actual = RandAugment()(images / 255, params=fixed(kind, 0.75, 16))
    same(actual, expected, atol=1.01 / 255)


# -- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_every_image_has_its_own_parameters(name: str) -> None:
    images = colours()[-1:].expand(64, -1, -1, -1)
    torch.manual_seed(0)
    different = torch.unique(OPERATORS[name]()(images).flatten(1), dim=0)
    assert len(different) > (1 if name == "grayscale" else 20)


def test_resized_crop_draws_areas_and_ratios_in_range() -> None:
    torch.manual_seed(0)
    p = RandomResizedCropFlip(32).generate_parameters((20000, 3, 256, 256))
    area, ratio = p["width"] * p["height"] / 256**2, p["width"] / p["height"]
    assert area.min() > 0.198 and area.max() <= 1  # the sides are whole pixels
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert abs(ratio.log().mean()) < 0.01
    assert (p["left"] >= 0).all() and (p["left"] + p["width"] <= 256).all()
    assert (p["top"] >= 0).all() and (p["top"] + p["height"] <= 256).all()
    # Either end is reached, hence the whole image is used.
    assert (p["left"] == 0).any() and (p["left"] + p["width"] == 256).any()
    assert abs(p["flip"].float().mean() - 0.5) < 0.02


def test_resized_crop_draws_as_torchvision() -> None:
    from torchvision.transforms import RandomResizedCrop

    torch.manual_seed(0)
    ours = RandomResizedCropFlip(32).generate_parameters((4000, 3, 32, 32))
    theirs = torch.tensor(
        [
            RandomResizedCrop.get_params(torch.empty(3, 32, 32), [0.2, 1.0], [3 / 4, 4 / 3])
            for _ in range(4000)
        ]
    ).float()
    for column, key in enumerate(("top", "left", "height", "width")):
        a, b = ours[key].sort().values, theirs[:, column].sort().values
        assert (a - b).abs().mean() < 0.5, key  # the distance between the distributions, in pixels


def test_resized_crop_falls_back_to_the_whole_image() -> None:
    crop = RandomResizedCropFlip(8, scale=(1.5, 2.0))
    p = crop.generate_parameters((5, 3, 16, 16))
    assert p["width"].tolist() == p["height"].tolist() == [16.0] * 5
    p = crop.generate_parameters((5, 3, 16, 64))
    assert p["height"].tolist() == [16.0] * 5 and p["width"].tolist() == [21.0] * 5
    p = RandomResizedCropFlip(8, scale=(0.0, 0.01)).generate_parameters((500, 3, 8, 8))
    assert p["width"].min() == p["height"].min() == 1


def test_crop_draws_every_place() -> None:
    torch.manual_seed(0)
    p = RandomCropFlip(32, padding=4).generate_parameters((5000, 3, 32, 32))
    assert p["top"].unique().tolist() == p["left"].unique().tolist() == list(range(9))
    assert abs(p["flip"].float().mean() - 0.5) < 0.03


def test_jitter_draws_orders_and_factors() -> None:
    torch.manual_seed(0)
    jitter = RandomColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    p = jitter.forward_parameters(torch.Size((5000, 3, 8, 8)))
    assert len(p["order"].unique(dim=0)) == 6
    assert 0.6 <= p["contrast_factor"].min() < 0.61 and 1.39 < p["contrast_factor"].max() <= 1.4
    assert -0.1 <= p["hue_factor"].min() < -0.099 and 0.099 < p["hue_factor"].max() <= 0.1
    assert abs(p["batch_prob"].mean() - 0.8) < 0.02


@pytest.mark.parametrize("kind", ["weak", "strong"])
@pytest.mark.parametrize("name", [name for name in VIEWS if name != "none"])
def test_views_are_a_function_of_the_seed(name: str, kind: str) -> None:
    images, view = photographs(), getattr(views(name), kind)
    torch.manual_seed(3)
    first = view(images)
    assert not torch.equal(first, view(images))
    torch.manual_seed(3)
    assert torch.equal(first, view(images))
    torch.manual_seed(4)
    assert not torch.equal(first, view(images))


# -- views ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VIEWS)
def test_views_together_are_those_one_after_the_other(name: str) -> None:
    images, module = photographs(side=20), views(name)
    torch.manual_seed(3)
    expected = torch.stack((module.weak(images), module.strong(images)))
    torch.manual_seed(3)
    assert torch.equal(module(images, ("weak", "strong")), expected)
    torch.manual_seed(3)
    assert torch.equal(module(images, ("weak",)), expected[:1])


def test_the_weak_view_alone_is_mirrored_first() -> None:
    images, mirror = photographs(), torch.arange(16) % 2 == 0
    module = Views("imagenet", 16, [0.5] * 3, [0.25] * 3, flip="alternating")
    torch.manual_seed(3)
    weak, strong = module(images, ("weak", "strong"), mirror)
    torch.manual_seed(3)
    straight, same_strong = module(images, ("weak", "strong"))
    assert torch.equal(weak[mirror], straight[mirror].flip(-1))
    assert torch.equal(weak[~mirror], straight[~mirror]) and torch.equal(strong, same_strong)


@pytest.mark.parametrize("name", VIEWS)
def test_views_compile_to_one_graph(name: str) -> None:
    """Without a break, whatever the compiler makes of the graph; the views are the same.

    But for roundings, after which one of RandAugment's 256 levels can become its neighbour.
    """
    images, module = photographs(), views(name)
    atol = 4.04 / 255 if name == "cifar_randaugment" else 1e-4
    compiled = torch.compile(module, fullgraph=True, dynamic=False, backend="eager")
    for mirror in (None, torch.arange(16) % 2 == 0)[: 2 if name == "cifar" else 1]:
        for seed in (3, 4):
            torch.manual_seed(seed)
            expected = module(images, ("weak", "strong"), mirror)
            torch.manual_seed(seed)
            same(compiled(images, ("weak", "strong"), mirror), expected, atol=atol)
    torch.compiler.reset()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [16, 20])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_normalised_floats_of_the_size(name: str, side: int, channels: int) -> None:
    images = photographs(channels=channels, side=side)
    before = images.clone()
    module = views(name, 16, channels)
    for view in (module.weak, module.strong, module.plain):
        out = view(images)
        assert out.shape == (16, channels, 16, 16) and out.dtype == torch.float32
        assert out.min() >= -2 - 1e-5 and out.max() <= 2 + 1e-5  # (0 - .5) / .25, (1 - .5) / .25
        assert not out.requires_grad
    assert torch.equal(images, before)


def test_normalisation_is_exact() -> None:
    images, mean, std = photographs(), [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
    expected = TF.normalize(images / 255, mean, std)
    module = Views("none", 16, mean, std)
    for view in (module.weak, module.strong, module.plain):
        torch.testing.assert_close(view(images), expected, atol=1e-6, rtol=0)


def test_plain_is_the_centre() -> None:
    images = photographs(side=20)
    expected = (TF.center_crop(images, [16, 16]) / 255 - 0.5) / 0.25
    torch.testing.assert_close(views("imagenet").plain(images), expected)


@pytest.mark.parametrize("name", ["crop", "resized crop", "warp"])
def test_geometry_keeps_a_constant_image(name: str) -> None:
    levels = torch.linspace(0, 1, 8)[:, None, None, None]
    out = OPERATORS[name]()(levels.expand(8, 3, 16, 16))
    same(out, levels.expand(8, 3, 16, 16), atol=1e-6)


def test_digits_are_not_mirrored() -> None:
    images = torch.zeros(200, 1, 16, 16, dtype=torch.uint8)
    images[..., :8] = 255  # bright on the left
    module = views("digits", 16, 1)
    for view in (module.weak, module.strong):
        out = view(images)
        assert (out[..., :6].mean((1, 2, 3)) > out[..., 10:].mean((1, 2, 3))).all()


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_leave_their_input_alone(name: str) -> None:
    images = colours()
    OPERATORS[name]()(images)
    assert torch.equal(images, colours())


def test_operators_work_in_place_when_asked() -> None:
    images, jitter = colours(), RandomColorJitter(0.4, 0.4, 0.4, 0.1, inplace=True)
    out = jitter(images)
    assert out.data_ptr() == images.data_ptr()
    torch.testing.assert_close(out, RandomColorJitter()(colours(), params=jitter._params))


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_replay_and_stand_in_kornias_container(name: str) -> None:
    container = K.ImageSequential(OPERATORS[name](), K.RandomInvert(p=0.5))
    first = container(colours())
    assert torch.equal(first, container(colours(), params=container._params))


@pytest.mark.parametrize("name", VIEWS)
def test_bfloat16_autocast_changes_nothing(name: str) -> None:
    module = views(name)
    torch.manual_seed(0)
    expected = module.strong(photographs())
    torch.manual_seed(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.strong(photographs()), expected)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VIEWS)
def test_no_host_sync(name: str, channels: int) -> None:
    module, images = views(name, 16, channels), photographs(channels=channels)
    with NoReadback():
        module.weak(images)
        module.strong(images)
        module.plain(images)


def test_the_sync_guard_catches_syncs() -> None:
    for sync in (lambda x: x.sum().item(), lambda x: x[x > 0.5], lambda x: x.nonzero()):
        with pytest.raises(AssertionError, match="reads back"), NoReadback():
            sync(torch.rand(4))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", VIEWS)
def test_cuda_views_do_not_sync(name: str) -> None:
    module, images = views(name), photographs().cuda()
    module.strong(images)  # moves the module
    torch.cuda.set_sync_debug_mode("error")
    try:
        outs = [module.weak(images), module.strong(images), module.plain(images)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(out.is_cuda and out.shape == (16, 3, 16, 16) for out in outs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", OPERATORS)
def test_cuda_equals_cpu(name: str) -> None:
    operator: Operator = OPERATORS[name]()
    expected = operator(colours())
    params = {k: v.cuda() for k, v in operator._params.items()}
    # A level on the edge between two may round either way.
    atol = 1.01 / 255 if name == "randaugment" else 1e-4
    same(operator(colours().cuda(), params=params).cpu(), expected, atol=atol)


# -- errors ---------------------------------------------------------------------------------------


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"name: got 'cifr', .*cifar.*digits"):
        views("cifr")


@pytest.mark.parametrize("names", ["weak", ("weak", "strng"), ()])
def test_names_of_views_that_are_none(names: Any) -> None:
    """A name alone was four views, one for each letter; a typo was the weak view."""
    with pytest.raises(ValueError, match=r"names: got .*; valid: a tuple such as \(\"weak\", "):
        views("cifar")(photographs(), names)


def test_unknown_flip() -> None:
    with pytest.raises(ValueError, match="flip: got 'alternate', did you mean alternating"):
        Views("cifar", 16, [0.5] * 3, [0.25] * 3, flip="alternate")


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.2, 0.2]), ([0.5], [0.0])])
def test_bad_statistics(mean: list[float], std: list[float]) -> None:
    with pytest.raises(ValueError, match="mean, std"):
        Views("none", 16, mean, std)


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.rand(2, 3, 16, 16), "float32.*uint8"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), "1 channels.*3"),
        (torch.zeros(2, 3, 8, 16, dtype=torch.uint8), "8 × 16.*too small.*16"),
        (
            torch.zeros(3, 16, 16, dtype=torch.uint8),
            r"got shape \(3, 16, 16\); valid: a torch.uint8",
        ),
        (
            torch.zeros(2, 3, 16, 16, dtype=torch.uint8).numpy(),
            r"got ndarray; valid: .*\(B, 3, H, W\)",
        ),
    ],
)
def test_wrong_images(images: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        views("cifar").weak(images)
