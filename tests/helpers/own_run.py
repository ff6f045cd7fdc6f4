"""A finished run on images in folders, for what uses trained networks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from helpers import trees
from helpers.training import TINY
from noisybsd.train import main as train

PICTURES = {  # all that training converts, and a JPEG that is shrunk while it is decoded
    "grey.png": ("L", (30, 21)),
    "clear.png": ("RGBA", (19, 40)),
    "print.jpg": ("CMYK", (25, 25)),
    "large.jpg": ("RGB", (200, 150)),
    "small.png": ("RGB", (9, 7)),
}


def paint(path: Path, mode: str, size: tuple[int, int]) -> None:
    """An image file of noise."""
    shape = (size[1], size[0], len(mode)) if len(mode) > 1 else size[::-1]
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels, mode).save(path)


def own_run(folder: Path) -> Path:
    """Train one epoch on cats and dogs, in `folder`: the run, `run`, and its data, `photos`."""
    for split, n in (("train", 8), ("test", 3)):
        trees.folders(folder / "photos" / split, n=n)
    for name, picture in PICTURES.items():
        paint(folder / "photos/test/cat" / name, *picture)
    data = ("data.name=own", f"data.root={folder / 'photos'}", "data.size=16", "data.limit=null")
    more = ("noise.name=none", "noise.rate=0", "augment.name=imagenet", "batch_size=8")
    assert train([*TINY, *data, *more, "epochs=1", f"run.dir={folder / 'run'}"]) == 0
    return folder
