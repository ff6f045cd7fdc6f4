"""Sprite sheets: many small pictures in a few files, for a page that holds everything itself.

Dimensions: N training samples, n pictures, C channels, S side of a picture.
"""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from noisybsd.report.findings import Ints
from noisybsd.report.pictures import Pictures

SHEET = 16  # columns and rows


@dataclass(frozen=True)
class Sheets:
    """Pictures side by side in a few files.

    Args:
        side: of a picture, in pixels.
        pitch: from one picture to the next.
        type: MIME type of the sheets.
        missing: pictures that could not be read.
        contents: the sheets, base64.
    """

    side: int
    pitch: int
    type: str
    missing: list[int]
    contents: list[str]

    def layout(self) -> dict[str, Any]:
        return {
            "side": self.side,
            "pitch": self.pitch,
            "type": self.type,
            "columns": SHEET,
            "perSheet": SHEET * SHEET,
            "missing": self.missing,
        }


def sprite_sheets(images: Pictures | None, index: Ints, largest: int) -> Sheets:
    """Pictures of the samples index (n,), no larger than `largest` pixels a side.

    Small ones are kept exactly (PNG); for others JPEG is far smaller. JPEG works in blocks of eight
    pixels, so cells start at multiples of eight and a picture does not colour its neighbour.
    """
    if images is None:
        return Sheets(1, 8, "image/png", list(range(len(index))), [])
    side = min(images.shape[-1], largest)
    exact = side <= 16
    pitch = side if exact else 8 * math.ceil(side / 8)
    missing: list[int] = []
    contents = []
    for first in range(0, len(index), SHEET * SHEET):
        found = images.look_at(index[first : first + SHEET * SHEET], side)
        missing += [first + i for i, picture in enumerate(found) if picture is None]
        blank = torch.zeros(images.shape[0], side, side, dtype=torch.uint8)
        cells = _resized(torch.stack([blank if p is None else p for p in found]), side)
        contents.append(_encoded(_tiled(cells, pitch), exact))
    return Sheets(side, pitch, "image/png" if exact else "image/jpeg", missing, contents)


def thumbnail(picture: torch.Tensor, side: int = 40) -> str:
    """A picture (C,S,S) uint8 as a small PNG, in the form of an address that holds it."""
    small = _resized(picture[None], min(side, picture.shape[-1]))[0]
    return f"data:image/png;base64,{_encoded(small.permute(1, 2, 0).numpy(), exact=True)}"


def _resized(cells: torch.Tensor, side: int) -> torch.Tensor:
    """(n,C,S,S) uint8 to (n,C,side,side)."""
    if cells.shape[-1] == side:
        return cells
    small = interpolate(cells.float(), (side, side), mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte()


def _tiled(cells: torch.Tensor, pitch: int) -> np.ndarray:
    """(n,C,S,S) in rows of SHEET, as (H,W,C); what lies between pictures repeats their edges."""
    n, channels, side, _ = cells.shape
    rows = math.ceil(n / SHEET)
    grid = torch.zeros(rows * SHEET, channels, side, side, dtype=torch.uint8)
    grid[:n] = cells
    padded = np.pad(grid.numpy(), ((0, 0), (0, 0), *[(0, pitch - side)] * 2), mode="edge")
    tiles = padded.reshape(rows, SHEET, channels, pitch, pitch)
    return tiles.transpose(0, 3, 1, 4, 2).reshape(rows * pitch, SHEET * pitch, channels)


def _encoded(pixels: np.ndarray, exact: bool) -> str:
    image = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0])
    buffer = io.BytesIO()
    if exact:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=82, subsampling=0, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()
