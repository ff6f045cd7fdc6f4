"""Every kind of file that turns up in a folder of images: pixels, or an error that names it."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from noisybsd.config import build_config
from noisybsd.data import images
from noisybsd.data.cards import load_card
from noisybsd.data.images import ImageError, ImageFiles, decode_image, is_image
from noisybsd.data.splits import file_split
from noisybsd.data.views import Views


def picture(width: int = 48, height: int = 48, seed: int = 0) -> Image.Image:
    """A smooth random picture, which JPEG keeps nearly as it is."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def flat(color: tuple[int, ...] | int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (32, 32), color)


@pytest.mark.parametrize("suffix", ["png", "bmp", "webp", "tif", "gif", "ppm"])
def test_lossless_formats_give_the_stored_pixels(tmp_path: Path, suffix: str) -> None:
    image = picture().quantize(64).convert("RGB")  # 64 colours, so that GIF is lossless too
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"lossless": True} if suffix == "webp" else {}))
    decoded = decode_image(path, 48)
    assert decoded.dtype == torch.uint8 and decoded.is_contiguous()
    assert torch.equal(decoded, pixels(image))


def test_jpeg_is_close_and_its_suffix_does_not_matter(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png", format="JPEG", quality=95)
    difference = decode_image(tmp_path / "a.png", 48).int() - pixels(picture()).int()
    assert difference.abs().float().mean() < 2


@pytest.mark.parametrize("mode", ["RGB", "P", "LA", "I;16", "1"])
def test_a_large_picture_is_converted_in_strips_and_reduced(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    converted = images._converted
    rows = []
    monkeypatch.setattr(images, "STRIP", 50)
    monkeypatch.setattr(
        images, "_converted", lambda part, m: (rows.append(part.height), converted(part, m))[1]
    )
    image = picture(430, 601)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    image.save(tmp_path / "a.png")
    whole = decode_image(tmp_path / "a.png", 64)
    assert max(rows) == 50 and sum(rows) == 430
    monkeypatch.setattr(images, "LARGE", 100)
    reduced = decode_image(tmp_path / "a.png", 64)  # by 3 at most, that twice the size remains
    assert reduced.shape == whole.shape
    assert (reduced.int() - whole.int()).abs().float().mean() < (8 if mode == "1" else 2)


@pytest.mark.parametrize("quality", [90, 40])
@pytest.mark.parametrize("size", [(48, 48), (600, 400), (401, 599)])
def test_resize_then_crop_as_pillow_does(
    tmp_path: Path, size: tuple[int, int], quality: int
) -> None:
    picture(*size).save(tmp_path / "a.jpg", quality=quality)
    with Image.open(tmp_path / "a.jpg") as image:
        scale = 64 / min(image.size)
        width, height = round(image.width * scale), round(image.height * scale)
        small = image.resize((width, height), Image.Resampling.BILINEAR)
        left, top = (width - 64) // 2, (height - 64) // 2
        expected = pixels(small.crop((left, top, left + 64, top + 64)))
    difference = decode_image(tmp_path / "a.jpg", 64).int() - expected.int()
    assert difference.shape == (3, 64, 64)
    assert difference.abs().float().mean() < 2


def test_resize_is_antialiased(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    expected = pixels(Image.fromarray(noise).resize((64, 64), Image.Resampling.BILINEAR))
    assert (decode_image(tmp_path / "a.png", 64).int() - expected.int()).abs().max() <= 1


def test_crop_is_central(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste((0, 255, 0), (32, 0, 64, 32))
    wide.save(tmp_path / "wide.png")
    wide.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "tall.png")
    for name in ("wide.png", "tall.png"):
        decoded = decode_image(tmp_path / name, 16)
        assert decoded.flatten(1).unique(dim=1).tolist() == [[0], [255], [0]]


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (flat(100, "L"), "jpg", (100, 100, 100)),
        (flat(100, "L"), "png", (100, 100, 100)),
        (flat(1, "1"), "png", (255, 255, 255)),
        (flat((200, 50), "LA"), "png", (244, 244, 244)),
        (flat((255, 0, 0, 0), "RGBA"), "png", (255, 255, 255)),
        (flat((255, 0, 0, 255), "RGBA"), "png", (255, 0, 0)),
        (flat((10, 20, 30)).quantize(2), "png", (10, 20, 30)),
        (flat((0, 255, 255, 0), "CMYK"), "jpg", (254, 0, 0)),
        (flat((0, 255, 255, 0), "CMYK"), "tif", (255, 0, 0)),
    ],
)
def test_other_modes_become_rgb(
    tmp_path: Path, image: Image.Image, suffix: str, expected: tuple[int, int, int]
) -> None:
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    decoded = decode_image(path, 32).int()
    assert (decoded - torch.tensor(expected)[:, None, None]).abs().max() <= 1


def test_transparent_palette_is_composited_onto_white(tmp_path: Path) -> None:
    image = flat((10, 20, 30)).quantize(2)
    image.save(tmp_path / "a.png", transparency=image.getpixel((0, 0)))
    assert decode_image(tmp_path / "a.png", 8).unique().tolist() == [255]


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "<u2"), ("tif", "<u2"), ("tif", ">u2")])
def test_16_bit_grey_is_scaled_by_its_full_range(tmp_path: Path, suffix: str, dtype: str) -> None:
    values = np.zeros((2, 2), dtype="<u2")
    values[:] = [[0, 200], [32896, 65535]]
    path = tmp_path / f"a.{suffix}"
    mode = "I;16" if dtype == "<u2" else "I;16B"
    Image.frombytes(mode, (2, 2), values.astype(dtype).tobytes()).save(path)
    assert decode_image(path, 2).tolist() == [[[0, 1], [128, 255]]] * 3


def test_16_bit_colour_keeps_the_high_byte(tmp_path: Path) -> None:
    row = b"\0" + struct.pack(">3H", 0x1234, 0x8000, 0xFFFF)  # filter byte, one RGB pixel
    header = struct.pack(">2I5B", 1, 1, 16, 2, 0, 0, 0)
    path = tmp_path / "a.png"
    path.write_bytes(png(header, zlib.compress(row)))
    assert decode_image(path, 1).flatten().tolist() == [0x12, 0x80, 0xFF]


def png(header: bytes, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int) -> None:
    # what a viewer shows, stored as each camera position stores it
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = picture() if undo is None else picture().transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(decode_image(tmp_path / "a.png", 48), pixels(picture()))


def test_damaged_exif_does_not_cost_the_picture(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + b"garbage!" * 4)
    picture().save(tmp_path / "b.jpg")
    assert torch.equal(decode_image(tmp_path / "a.jpg", 48), decode_image(tmp_path / "b.jpg", 48))


def test_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [flat((255, 255, 255)), flat((0, 0, 0))]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert decode_image(tmp_path / "a.gif", 8).unique().tolist() == [255]


def test_metadata_of_any_size_do_not_cost_the_picture(tmp_path: Path) -> None:
    """Pillow itself refuses a PNG whose profile or texts unpack to more than a megabyte."""
    picture().save(tmp_path / "plain.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("long", "x" * 3_000_000, zip=True)
    text.add_itxt("longer", "y" * 3_000_000, zip=True)
    picture().save(tmp_path / "profile.png", icc_profile=bytes(2_000_000))
    picture().save(tmp_path / "text.png", pnginfo=text)
    picture().save(tmp_path / "profile.jpg", icc_profile=bytes(2_000_000), quality=95)
    picture().save(tmp_path / "plain.jpg", quality=95)
    damaged = (tmp_path / "text.png").read_bytes().replace(b"zTXtlong", b"zTXtl\0\xff\xff", 1)
    (tmp_path / "damaged.png").write_bytes(damaged)
    for name in ("profile.png", "text.png", "damaged.png"):
        assert torch.equal(decode_image(tmp_path / name, 48), pixels(picture())), name
    assert torch.equal(
        decode_image(tmp_path / "profile.jpg", 48), decode_image(tmp_path / "plain.jpg", 48)
    )


def test_no_program_is_started_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EPS file, whatever it is called, makes Pillow start Ghostscript."""

    def started(*_: object, **__: object) -> None:
        raise AssertionError("a program was started")

    for name in ("Popen", "call", "check_call", "run"):
        monkeypatch.setattr(subprocess, name, started)
    buffer = io.BytesIO()
    picture().save(buffer, "EPS")
    for name in ("a.eps", "a.png", "a.jpg"):
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert not is_image(tmp_path / name)
        with pytest.raises(ImageError, match="is not an image of a known format"):
            decode_image(tmp_path / name, 8)


def test_one_channel_output(tmp_path: Path) -> None:
    flat((255, 0, 0)).save(tmp_path / "a.png")
    decoded = decode_image(tmp_path / "a.png", 8, channels=1)
    assert decoded.shape == (1, 8, 8)
    assert decoded.unique().tolist() == [76]  # ITU-R 601 luma of red


@pytest.mark.parametrize(
    ("side", "seen"),
    [
        (24, 32),  # below the network's input: enlarged to that
        (32, 32),  # the network's input: as it is
        (34, 34),  # between: as it is
        (37, 37),  # what is stored
    ],
)
def test_what_is_smaller_than_the_stored_size_is_not_enlarged_for_the_crop(
    tmp_path: Path, side: int, seen: int
) -> None:
    image = picture(side, side)
    image.save(tmp_path / "a.png")
    stored = decode_image(tmp_path / "a.png", 37, least=32)
    assert stored.shape == (3, 37, 37)
    first = (37 - seen) // 2
    middle = stored[:, first : first + seen, first : first + seen]
    expected = image.resize((seen, seen), Image.Resampling.BILINEAR)
    assert (middle.int() - pixels(expected).int()).abs().max() <= (seen != side)
    # around it, its mirror image
    mirrored = np.pad(middle.numpy(), ((0, 0), *2 * [(first, 37 - seen - first)]), mode="reflect")
    assert torch.equal(stored, torch.from_numpy(mirrored))


@pytest.mark.parametrize(("size", "side"), [(32, 32), (33, 33), (32, 36)])
def test_the_network_sees_a_picture_of_its_input_s_size_whole(
    tmp_path: Path, size: int, side: int
) -> None:
    """Own images are stored larger than the input, for crops."""
    image = picture(side, side)
    image.save(tmp_path / "a.png")
    data = build_config(
        {"recipe": "x", "data": {"name": "own", "root": str(tmp_path), "size": size}}
    ).data
    split = file_split(load_card("own"), data, ["a.png", "a.png"], [0, 1])
    assert isinstance(split.images, ImageFiles) and split.images.size > size
    decoded = split.images[np.array([1])].decode(0)
    views = Views("imagenet", size, (0.0,) * 3, (1.0,) * 3)
    seen = (views.plain(decoded[None])[0] * 255).round().byte()
    first = (side - size) // 2
    assert torch.equal(seen, pixels(image)[:, first : first + size, first : first + size])
    assert views.weak(decoded[None]).shape == (1, 3, size, size)


def test_extreme_shapes_cost_no_memory(tmp_path: Path) -> None:
    Image.new("RGB", (60_000, 1), "red").save(tmp_path / "a.png")
    assert decode_image(tmp_path / "a.png", 64).shape == (3, 64, 64)


def damaged(folder: Path, kind: str) -> Path:
    """A file of one kind that cannot be used."""
    path = folder / "bad.jpg"
    data = io.BytesIO()
    picture(200, 200).save(data, "JPEG", quality=90)
    jpeg = data.getvalue()
    if kind == "missing":
        pass
    elif kind == "folder":
        path.mkdir()
    elif kind == "link loop":
        path.symlink_to(path)
    elif kind == "float":
        path = path.with_suffix(".tif")
        Image.new("F", (8, 8), 0.5).save(path)
    elif kind == "32-bit":
        path = path.with_suffix(".tif")
        Image.new("I", (8, 8), 70_000).save(path)
    else:
        side = 30_000
        header = struct.pack(">2I5B", side, side, 8, 2, 0, 0, 0)
        content = {
            "empty": b"",
            "text": b"this is not an image\n",
            "truncated": jpeg[: len(jpeg) // 2],
            "without its end": jpeg[:-2],
            "header only": jpeg[:20],
            "truncated png": png(struct.pack(">2I5B", 64, 64, 8, 2, 0, 0, 0), b"")[:-8],
            "decompression bomb": png(header, zlib.compress(bytes(1000))),
        }
        path.write_bytes(content[kind])
    return path


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("missing", "No such file"),
        ("folder", "Is a directory"),
        ("link loop", "Too many levels of symbolic links"),
        ("empty", "is empty"),
        ("text", "not an image of a known format: b'this is not '"),
        ("truncated", "cannot be decoded"),
        ("without its end", "cannot be decoded"),
        ("header only", "not an image|cannot be decoded"),
        ("truncated png", "cannot be decoded"),
        ("decompression bomb", "cannot be decoded.*(limit|accepted|decompression bomb)"),
        ("float", "floating-point"),
        ("32-bit", "32-bit"),
    ],
)
def test_unusable_files_are_named(tmp_path: Path, kind: str, reason: str) -> None:
    path = damaged(tmp_path, kind)
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(path, 32)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: embedded null byte"):
        decode_image(tmp_path / "a\0.png", 32)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_pillows_limit_holds_from_once_not_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(10, 10).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 99)
    with pytest.raises(ImageError, match="10×10 pixels, more than the 99 accepted"):
        decode_image(tmp_path / "a.png", 8)


def files(folder: Path, count: int, size: int = 16) -> ImageFiles:
    names = [f"{i} ü,é.png" for i in range(count)]
    for i, name in enumerate(names):
        picture(20, 20, seed=i).save(folder / name)
    return ImageFiles(names, folder, size)


def test_image_files_keep_paths_and_decode(tmp_path: Path) -> None:
    images = files(tmp_path, 5)
    assert len(images) == 5 and images.shape == (5, 3, 16, 16)
    assert images.paths == [f"{i} ü,é.png" for i in range(5)]
    assert torch.equal(images.decode(3), decode_image(tmp_path / "3 ü,é.png", 16))
    assert images[1::2].paths == [images.path(1), images.path(3)]
    assert images[np.array([4, 0])].paths == [images.path(4), images.path(0)]


def test_load_all_is_every_image_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("noisybsd.data.images.BLOCK", 3)
    images = files(tmp_path, 8)
    loaded, unreadable = images.load_all()
    assert torch.equal(loaded, torch.stack([images.decode(i) for i in range(8)]))
    assert unreadable == {}


def test_load_all_stops_or_skips(tmp_path: Path) -> None:
    images = files(tmp_path, 6)
    (tmp_path / images.path(4)).write_bytes(b"")
    (tmp_path / images.path(2)).unlink()
    with pytest.raises(ImageError, match=r"2 ü,é\.png: cannot be read"):
        images.load_all()
    loaded, unreadable = images.load_all(on_error="skip")
    assert sorted(unreadable) == [2, 4]
    assert unreadable[4].reason == "is empty (zero bytes)"
    assert torch.equal(loaded[5], images.decode(5)) and not loaded[2].any()
