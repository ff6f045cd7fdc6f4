"""Image files to pixels: any file in, uint8 of one static shape out, or an error that names the file.

The central square of a picture, resized to the stored size S. This is the usual "shorter side to S,
then centre crop" with the crop done first, so that a picture of extreme shape costs no memory. The
usual 256→224 pipeline stores S = 256 and crops 224 at random on the device, in the augmentation. A
smaller picture is not enlarged for that: it stays in the middle, and its mirror image fills the margin.

Pillow decodes: torchvision's decoder is 1.2 to 1.3× faster (results/cost/loader.csv), but it is
deprecated and to be removed. Torch resizes, which is faster than Pillow.

Dimensions: N images, C channels (3: RGB, 1: grey), S stored side, H×W pixels of a file.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import math
import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torch.nn.functional import interpolate

from noisybsd.data.names import as_text
from noisybsd.data.progress import with_bar
from noisybsd.errors import UserError

log = logging.getLogger("noisybsd")

MODES = {3: "RGB", 1: "L"}
LARGE = 4096  # pixels a side from which a square is reduced before it is resized
STRIP = 256  # rows that are converted at a time
BLOCK = 512  # images that are decoded ahead at most
T = TypeVar("T")
R = TypeVar("R")

# Formats that the first bytes of a file tell from all else.
_MARKED = (
    "JPEG",
    "PNG",
    "GIF",
    "WEBP",
    "BMP",
    "AVIF",
    "JPEG2000",
    "PPM",
    "QOI",
    "PSD",
    "ICO",
    "DDS",
)
# Formats that Pillow may take a file for. Those it hands to another program (EPS: Ghostscript), opens
# again as any format (IPTC), or has no decoder for (video, weather data, PDF) are not among them.
_FORMATS = (
    *_MARKED,
    *(
        "TIFF",
        "ICNS",
        "FITS",
        "SGI",
        "SUN",
        "DIB",
        "BLP",
        "FTEX",
        "GBR",
        "XBM",
        "XPM",
        "PCX",
        "DCX",
    ),
    *("CUR", "FLI", "IM", "IMT", "MCIDAS", "MSP", "PCD", "PIXAR", "SPIDER", "TGA", "XVTHUMB"),
)
_ARRAYS = ((), (1,), (3,), (4,))  # channels of pictures in arrays
_METADATA = {b"iCCP", b"tEXt", b"zTXt", b"iTXt"}  # PNG chunks that pixels do not need


@functools.cache
def formats() -> tuple[str, ...]:
    """The formats of image files that are read: those of `_FORMATS` that this Pillow knows."""
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@functools.cache
def image_suffixes() -> frozenset[str]:
    """The suffixes, in lower case, that files of these formats have."""
    read = {*formats(), "MPO"}  # a JPEG with several pictures
    known = Image.registered_extensions().items()
    return frozenset(suffix for suffix, name in known if name in read)


def is_image(path: str | Path) -> bool:
    """Whether the first bytes of a file say that it is an image, whatever its name says."""
    try:
        with Image.open(path, formats=[name for name in _MARKED if name in formats()]):
            return True
    except Image.DecompressionBombError:
        return True  # it is one, and decoding refuses it
    except Exception:  # on damaged files Pillow raises nearly every type
        return False


class ImageError(UserError):
    """An image file that cannot be used: which one, and why."""

    def __init__(self, path: str | Path, reason: str):
        super().__init__(str(path), reason)
        self.path = as_text(path)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"

    def stopping(self) -> ImageError:
        """The same, for a run that stops here, as data.on_error=stop has it."""
        return ImageError(self.path, f"{self.reason}; data.on_error=skip leaves such images out")


def note_skipped(skipped: list[str], errors: Iterable[ImageError]) -> None:
    """Add `file: reason` to `skipped`, and to the log, for each that is not there yet."""
    for error in errors:
        if str(error) not in skipped:
            skipped.append(str(error))
            log.warning("skipped an unreadable image: %s", error)


def decode_image(
    path: str | Path, size: int, channels: int = 3, least: int | None = None
) -> Tensor:
    """Decode one file of any format that Pillow knows.

    EXIF orientation is applied. Grey, palette, CMYK and 1-bit pictures become RGB (or grey, with
    channels=1). Transparency is composited onto white, since the colour below it is arbitrary.
    16-bit grey is scaled by its full range, 65535 → 255. Of an animation the first frame is taken.
    JPEGs of at least twice the stored size are shrunk while decoding.

    Args:
        path: the file.
        size: S.
        channels: C, 3 or 1.
        least: pixels of a side up to which a smaller picture is enlarged; default: S.

    Returns:
        (C,S,S) uint8.

    Raises:
        ImageError: the file is missing, empty, truncated, not an image, larger than Pillow's
            `Image.MAX_IMAGE_PIXELS`, or of a kind without a fixed range (float, 32-bit integer).
    """
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:  # a name with NUL
        reason = getattr(error, "strerror", None) or error
        raise ImageError(path, f"cannot be read: {reason}") from None
    return decode_bytes(data, size, channels, path, least)


def decode_bytes(
    data: bytes, size: int, channels: int, name: str | Path, least: int | None = None
) -> Tensor:
    """The same of what an image file holds; `name` is for errors."""
    if not data:
        raise ImageError(name, "is empty (zero bytes)")
    try:
        try:
            pixels = _decoded(data, MODES[channels], size)
        except Exception:  # Pillow refuses a PNG for metadata that are large or damaged, too
            bare = without_metadata(data)
            if bare is None:
                raise
            pixels = _decoded(bare, MODES[channels], size)
    except UnidentifiedImageError:
        raise ImageError(name, f"is not an image of a known format: {data[:12]!r}…") from None
    except Exception as error:  # on damaged files Pillow's decoders raise nearly every type
        raise ImageError(name, f"cannot be decoded: {str(error) or type(error).__name__}") from None
    return _resized(pixels, size, least)


def convert_picture(
    picture: Image.Image | np.ndarray,
    size: int,
    channels: int,
    name: str | Path,
    least: int | None = None,
) -> Tensor:
    """The same of a picture in memory, which stays as it is.

    Args:
        picture: of Pillow; or (H,W), (H,W,1), (H,W,3) or, with transparency, (H,W,4) uint8.
        name: for errors.

    Raises:
        ImageError: the array has another shape or type, or it is none of the pictures that
            `decode_image` takes.
    """
    try:
        if isinstance(picture, np.ndarray):
            shape = picture.shape
            fits = len(shape) in (2, 3) and shape[2:] in _ARRAYS and picture.size > 0
            if picture.dtype != np.uint8 or not fits:
                raise ValueError(
                    f"is an array of {picture.dtype} of shape {shape}; valid: uint8, (H,W), (H,W,1), "
                    "(H,W,3) or (H,W,4)"
                )
            picture = Image.fromarray(picture.reshape(shape[:2]) if shape[2:] == (1,) else picture)
        else:
            picture = picture.copy()
        pixels = _pixels(picture, MODES[channels], size)
        return _resized(pixels, size, least)
    except Exception as error:  # a picture of Pillow may be a file that is not decoded yet
        raise ImageError(name, str(error) or type(error).__name__) from None


def without_metadata(data: bytes) -> bytes | None:
    """A PNG without its colour profile and texts; None if `data` is none, or has none of these."""
    start = 8
    if data[:start] != b"\x89PNG\r\n\x1a\n":
        return None
    kept = [data[:start]]
    while start + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[start : start + 8])
        end = start + 12 + length
        if kind not in _METADATA:
            kept.append(data[start:end])
        start = end
    bare = b"".join(kept)
    return bare if len(bare) < len(data) else None


def _decoded(data: bytes, mode: str, size: int) -> np.ndarray:
    with Image.open(io.BytesIO(data), formats=formats()) as image:
        return _pixels(image, mode, size)


def _pixels(image: Image.Image, mode: str, size: int) -> np.ndarray:
    """Decode the central square, (H,H,C) uint8.

    It is converted in strips, for that takes several times the memory of the picture itself. A square of more
    than LARGE pixels a side is reduced by a whole number at once, if twice `size` remains.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ValueError(f"{image.width}×{image.height} pixels, more than the {limit} accepted")
    image.draft(mode, (size, size))
    image.load()
    with contextlib.suppress(Exception):  # EXIF too damaged to read: the pixels as they are stored
        ImageOps.exif_transpose(image, in_place=True)
    side = min(image.size)
    by = max(1, min(math.ceil(side / LARGE), side // (2 * size)))
    side -= side % by
    left, top = (image.width - side) // 2, (image.height - side) // 2
    strip = by * max(1, STRIP // by)
    rows = []
    for start in range(top, top + side, strip):
        part = image.crop((left, start, left + side, min(start + strip, top + side)))
        rows.append(np.asarray(_converted(part, mode).reduce(by)))
    pixels = np.concatenate(rows)
    return pixels.reshape(*pixels.shape[:2], -1)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """RGB or grey of 8 bits, on white where it is transparent."""
    if image.mode.startswith("I"):
        image = _from_16_bit(image)
    elif image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range")
    if image.has_transparency_data:
        picture = image.convert("RGBA")
        image = Image.new("RGBA", picture.size, "white")
        image.alpha_composite(picture)
    return image if image.mode == mode else image.convert(mode)


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey of 16 bits (which Pillow may hold as 32) to 8 bits by its full range, rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no fixed range")
    return Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))


def _resized(square: np.ndarray, size: int, least: int | None) -> Tensor:
    """A square (H,H,C) uint8, resized (bilinear, antialiased): (C,S,S) uint8.

    One of less than S pixels a side is enlarged up to `least` only, if given, and mirrored at its edges
    beyond.
    """
    side = len(square)
    wanted = min(max(side, size if least is None else least), size)
    if side != wanted:
        batch = torch.from_numpy(square).permute(2, 0, 1)[None]
        resized = interpolate(batch, (wanted, wanted), mode="bilinear", antialias=True)
        square = resized[0].permute(1, 2, 0).numpy()
    if wanted < size:
        before = (size - wanted) // 2  # as views.CentreCrop has it
        margin = (before, size - wanted - before)
        square = np.pad(square, (margin, margin, (0, 0)), mode="reflect")
    # by NumPy: torch would use all cores for this small a copy, in each of many decoding threads
    return torch.from_numpy(np.array(square.transpose(2, 0, 1), order="C"))


PART = 1 << 16  # bytes of a file at its beginning, middle and end that tell it from others


def sample_of_file(file: int, size: int) -> bytes:
    """What tells an open file of `size` bytes from others: a small file whole, of a large one three parts."""
    if size <= 3 * PART:
        return os.pread(file, size, 0)
    return b"".join(os.pread(file, PART, at) for at in (0, (size - PART) // 2, size - PART))


def ahead(work: Callable[[T], R], items: Iterable[T], threads: int | None = None) -> Iterator[R]:
    """`work` of each item, in order, done by threads while the results before it are used.

    Args:
        items: of these, at most `BLOCK` are worked on or wait to be used.
        threads: default: one for each core.
    """
    waiting: deque[Future[R]] = deque()
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) == BLOCK:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class ImageFiles:
    """Images on disk, decoded on demand.

    Millions of paths are one tensor of bytes instead of as many Python objects: it reaches worker
    processes as shared memory, and reading it touches no reference counts.

    Args:
        paths: N files, absolute or relative to `root`.
        root: the folder that relative paths start from.
        size: S, the side of the square that every image becomes.
        channels: C, 3 (RGB) or 1 (grey).
        least: pixels of a side up to which a smaller picture is enlarged; default: S.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        root: str | Path,
        size: int,
        channels: int = 3,
        least: int | None = None,
    ):
        encoded = [os.fsencode(path) for path in paths]
        self.root = Path(root)
        self.size = size
        self.channels = channels
        self.least = least
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy())
        self._ends = torch.from_numpy(np.cumsum([len(path) for path in encoded], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, rows: slice | np.ndarray) -> ImageFiles:
        """Some of the files: `files[1::4]`, or by an array of indices (M,)."""
        chosen, paths = np.arange(len(self))[rows].tolist(), self.paths
        kept = [paths[i] for i in chosen]
        return ImageFiles(kept, self.root, self.size, self.channels, self.least)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N,C,S,S)."""
        return len(self), self.channels, self.size, self.size

    @property
    def paths(self) -> list[str]:
        """The N paths as given."""
        joined, ends = self._bytes.numpy().tobytes(), self._ends.tolist()
        return [os.fsdecode(joined[a:b]) for a, b in zip([0, *ends[:-1]], ends, strict=True)]

    def path(self, i: int) -> str:
        """The path of image i as given."""
        start = int(self._ends[i - 1]) if i else 0
        return os.fsdecode(self._bytes[start : int(self._ends[i])].numpy().tobytes())

    def decode(self, i: int) -> Tensor:
        """Image i as (C,S,S) uint8.

        Raises:
            ImageError: names the file and the reason.
        """
        return decode_image(self.root / self.path(i), self.size, self.channels, self.least)

    def content(self, i: int) -> bytes:
        """Bytes that tell image i from others: all of a small file, parts and the size of a large one.

        Those of a missing file are empty.
        """
        try:
            with (self.root / self.path(i)).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                return b"%d " % size + sample_of_file(file.fileno(), size)
        except (OSError, ValueError):  # decoding it says so, or leaves it out
            return b""

    def decode_many(
        self, indices: Sequence[int], threads: int | None = None
    ) -> Iterator[Tensor | ImageError]:
        """Decode in order and ahead of use: each image (C,S,S) uint8, or what is wrong with it.

        Args:
            indices: M images.
            threads: default: one for each core.
        """

        def attempt(i: int) -> Tensor | ImageError:
            try:
                return self.decode(i)
            except ImageError as error:
                return error

        yield from ahead(attempt, indices, threads)

    def decode_all(self, what: str = "images") -> Iterable[Tensor | ImageError]:
        """The same of all, with a progress bar in a terminal, which calls them `what`."""
        return with_bar(self.decode_many(range(len(self))), f"decoding {what}", len(self))

    def load_all(self, on_error: str = "stop") -> tuple[Tensor, dict[int, ImageError]]:
        """Decode everything once, with a progress bar in a terminal.

        Args:
            on_error: "stop", or "skip" to leave an unreadable image black and name it in the result.

        Returns:
            images (N,C,S,S) uint8, and what is wrong with image i for those that are unreadable.

        Raises:
            ImageError: with on_error="stop", at the first unreadable image.
        """
        images = torch.zeros(self.shape, dtype=torch.uint8)
        unreadable = {}
        for i, result in enumerate(self.decode_all()):
            if isinstance(result, Tensor):
                images[i] = result
            elif on_error == "stop":
                raise result.stopping()
            else:
                unreadable[i] = result
        return images, unreadable
