"""The data of a run, as its network takes them."""

from __future__ import annotations

from dataclasses import replace

from noisybsd.config import Config
from noisybsd.data.cards import load_card
from noisybsd.data.dataset import Dataset, load_dataset
from noisybsd.data.readers.packed import is_packed
from noisybsd.data.reading import ARRAYS
from noisybsd.errors import UserError
from noisybsd.models.backbones import backbone_input, is_backbone


def run_dataset(config: Config) -> Dataset:
    """Read the data of a run; see `load_dataset`.

    A backbone brings its own normalisation, and its own size for image files where data.size leaves that
    open.
    """
    data, net = config.data, config.network
    if data.embeddings is not None and not net.frozen:
        raise UserError(
            f"data.embeddings={data.embeddings} goes with network.frozen=true, got false"
        )
    if data.embeddings is not None or not is_backbone(net.name):  # embeddings need no timm
        return load_dataset(data, config.noise, config.seed)
    card = load_card(data.name)
    takes = backbone_input(net.name, card.channels)
    of_files = card.layout not in ARRAYS and not is_packed(data)
    if of_files and data.size is None:
        data = data.model_copy(update={"size": net.size or takes.size})
    dataset = load_dataset(data, config.noise, config.seed)
    return replace(dataset, mean=takes.mean, std=takes.std)
