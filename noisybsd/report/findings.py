"""The label table: what a run says of every training label, collected once and kept in files.

`collect` asks a trainer what it believes of each label, and what its network and each sample's
neighbours say. The `Findings` go with the run as labels.parquet, labels.csv and pred_probs.npz, and
all else follows from them (estimates.py, report.py) without the network.

Dimensions: N training samples, K classes, M test images.
"""

from __future__ import annotations

import json
import logging
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
import torch.nn.functional as F

from noisybsd import __version__, distributed
from noisybsd.data.images import ImageFiles
from noisybsd.data.loader import ResidentLoader
from noisybsd.data.splits import Split
from noisybsd.errors import UserError
from noisybsd.models.bank import FeatureBank, vote
from noisybsd.runs.checkpoint import write_atomically

if TYPE_CHECKING:
    from noisybsd.engine.trainer import Trainer

log = logging.getLogger("noisybsd")

Floats = npt.NDArray[Any]  # float32 or float64
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ARRAYS = ("belief", "network", "neighbours", "labels", "test", "test_labels")
NEIGHBOURS = 10  # looked at where the run searches none


@dataclass(frozen=True)
class Findings:
    """What a run says about the labels it was given.

    Args:
        table: N rows in the dataset's order; `label_table` says which columns.
        arrays: float32 probabilities. `belief` (N,K), what the run believes of each sample's class;
            `network` (N,K), its network's predictions without augmentation, NaN where an image is
            unreadable; `neighbours` (N,K), the given labels of the nearest others, each an equal
            share, zeros where there are none; `test` (M,K), the predictions on the test set. And the
            given labels, `labels` (N,) and `test_labels` (M,) int64.
        about: JSON-able: run, dataset, class_names, data_sha256, epoch, method, test_labels.
    """

    table: pyarrow.Table
    arrays: dict[str, npt.NDArray[Any]]
    about: dict[str, Any]

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column as an array; missing numbers are NaN."""
        return self.table[name].to_numpy(zero_copy_only=False)

    @property
    def classes(self) -> int:
        return len(self.about["class_names"])

    @property
    def clean(self) -> Ints | None:
        """The clean labels (N,) of a benchmark."""
        return self.column("clean") if "clean" in self.table.column_names else None

    def write(self, directory: Path) -> None:
        """Write labels.parquet, labels.csv (the most suspicious first) and pred_probs.npz."""
        schema = {"noisybsd": json.dumps(self.about)}
        table = self.table.replace_schema_metadata(schema)
        write_atomically(
            directory / "labels.parquet", lambda file: pyarrow.parquet.write_table(table, file)
        )
        ranked = self.table.take(pyarrow.compute.sort_indices(self.table["rank"]))
        near = [" ".join(map(str, row)) for row in ranked["neighbours"].to_pylist()]
        place = ranked.schema.get_field_index("neighbours")
        flat = ranked.set_column(place, "neighbours", pyarrow.array(near, pyarrow.string()))
        write_atomically(directory / "labels.csv", lambda file: pyarrow.csv.write_csv(flat, file))
        write_atomically(
            directory / "pred_probs.npz",
            lambda file: np.savez(file, allow_pickle=False, **self.arrays),
        )

    @classmethod
    def read(cls, directory: Path) -> Findings | None:
        """What `write` wrote, None where it is not there, or was written by an older version.

        Raises:
            UserError: it is there and damaged.
        """
        table_path, arrays_path = directory / "labels.parquet", directory / "pred_probs.npz"
        if not (table_path.is_file() and arrays_path.is_file()):
            return None
        try:
            table = pyarrow.parquet.read_table(table_path)
            if "final_prob" not in table.column_names:
                return None
            about = json.loads(table.schema.metadata[b"noisybsd"])
            with np.load(arrays_path, allow_pickle=False) as content:
                arrays = dict(content)
            missing = set(ARRAYS) - set(arrays)
            if missing or len(arrays["belief"]) != len(table):
                lacks = f"has no {min(missing)}" if missing else "is of other samples"
                raise ValueError(f"pred_probs.npz {lacks}")
        except Exception as error:  # a damaged file can raise anything
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"{table_path}: not readable: {first}; delete it, and it is made anew"
            ) from None
        return cls(table, arrays, about)


# --- the table ----------------------------------------------------------------------------------


def record(trainer: Trainer, directory: Path | None) -> None:
    """Write the findings at the end of a run, whose results must not be lost to a failure here.

    All processes collect; the first one, which has the `directory`, writes.
    """
    try:
        findings = collect(trainer, directory)
        if directory is None:
            return
        findings.write(directory)
        log_to_wandb(findings, trainer.dataset.train)
    except Exception as error:
        log.warning(
            "labels.parquet is not written: %s\nto do it later: python -m noisybsd.report run=%s",
            (str(error).strip() or type(error).__name__).splitlines()[0],
            directory,
        )


@torch.no_grad()
def collect(trainer: Trainer, directory: Path | None) -> Findings:
    """Ask a trainer for its findings: one pass over training and test images, one search.

    A method that holds no belief is taken to believe its network's predictions. Of a sample never
    visited, the belief is its given label.

    Args:
        directory: the run's, for the record.
    """
    config, dataset, monitor = trainer.config, trainer.dataset, trainer.monitor
    train, classes = dataset.train, len(dataset.class_names)
    one_hot = F.one_hot(trainer.labels, classes).float()  # (N,K)

    network, bank = _look_at_training_images(trainer)
    held = trainer.rule.belief()
    belief = network if held is None else held.float().cpu().numpy()
    visits = monitor.visits.cpu().numpy()
    known = (visits > 0) & np.isfinite(belief).all(axis=1)
    belief = np.where(known[:, None], belief, one_hot.cpu().numpy())
    belief /= belief.sum(axis=1, keepdims=True)

    k = min(config.neighbours.k or NEIGHBOURS, len(train) - 1)
    found = bank.search(k, engine=config.neighbours.engine)
    near = [[j for j in row if j >= 0] for row in found.index.tolist()]
    votes = vote(one_hot, found, float("inf")).cpu().numpy()

    strength = trainer.rule.strength()
    logits, _, test_labels = trainer.predict_test(trainer.network)
    margin = np.where(known, monitor.margin_sum.cpu().numpy() / np.maximum(visits, 1), np.nan)
    return Findings(
        label_table(
            train,
            dataset.class_names,
            belief,
            network,
            votes,
            near,
            network_prob=monitor.given_prob.cpu().numpy(),
            margin=margin,
            visits=np.where(known, visits, 0),
            left_epoch=monitor.left_epoch.cpu().numpy(),
            strength=None if strength is None else strength.cpu().numpy(),
        ),
        {
            "belief": belief,
            "network": network,
            "neighbours": votes,
            "labels": train.labels,
            "test": logits.softmax(dim=1).cpu().numpy(),
            "test_labels": test_labels.cpu().numpy(),
        },
        {
            "run": str(directory),
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "data_sha256": dataset.sha256,
            "epoch": trainer.epoch,
            "method": config.method,
            "test_labels": dataset.notes["test_labels"],
            "noisybsd": __version__,
        },
    )


def _look_at_training_images(trainer: Trainer) -> tuple[Floats, FeatureBank]:
    """The network on the training images as they are: each process on its share, for all to know.

    Returns:
        Its predictions (N,K), NaN where an image is unreadable; and the run's bank of embeddings, or, where
        the run keeps none, one of what the network makes of the images now.
    """
    train, loader = trainer.dataset.train, trainer.loader
    own = slice(distributed.rank(), None, distributed.world_size())
    rows = np.arange(len(train))[own]
    images, unreadable = train.images[own], list[int]()
    if isinstance(loader, ResidentLoader):  # decoded; black where unreadable
        images, unreadable = loader.images, list(loader.unreadable)
    # the labels here say which rows could be read
    outputs = trainer.predict(trainer.network, replace(train, images=images, labels=rows))
    logits, kept = distributed.gather_rows(outputs[0]), distributed.gather_rows(outputs[2])
    bank = trainer.bank
    if bank is None:
        z = distributed.gather_rows(outputs[1])
        bank = FeatureBank(len(train), z.shape[1]).to(z.device)
        bank.write(kept, z)
    probabilities = np.full((len(train), trainer.num_classes), np.nan, np.float32)
    probabilities[kept.cpu().numpy()] = logits.softmax(dim=1).cpu().numpy()
    for missing in distributed.each(unreadable):
        probabilities[missing] = np.nan
        if trainer.bank is None and missing:
            bank.filled[missing] = False
    return probabilities, bank


def label_table(
    train: Split,
    class_names: tuple[str, ...],
    belief: Floats,
    network: Floats,
    votes: Floats,
    neighbours: list[list[int]],
    *,
    network_prob: Floats,
    margin: Floats,
    visits: Floats,
    left_epoch: Ints,
    strength: Floats | None,
) -> pyarrow.Table:
    """One row for each training sample, in the dataset's order; what is unknown is null.

    | column | meaning |
    |---|---|
    | index, path | position in the training set; image file, relative to data.root |
    | given, given_name | the given label |
    | suggested, suggested_name | the most probable class by belief |
    | given_prob, suggested_prob | belief in either |
    | entropy | of the belief, in nats |
    | strength | pseudo-count behind the belief, of a Dirichlet posterior |
    | left_epoch | first epoch, from 1, after which the belief favoured another class |
    | neighbour_agreement | share of the nearest neighbours with the same given label |
    | area_under_margin | mean over visits of logit(given) - max logit(other), Pleiss et al. 2020 |
    | network_prob | the network's probability of the given label at the last visit |
    | final_prob | the final network's probability of it, without augmentation |
    | visits | how often training saw the sample; 0: the row says nothing |
    | neighbours | indices of the nearest neighbours, nearest first |
    | rank | 1 is the most suspicious: the least given_prob * final_prob |
    | clean, clean_name, given_right, suggested_right | benchmarks only |

    Args:
        belief: (N,K), rows sum to one.
        network: (N,K), the final network's probabilities; rows of NaN where it could not look.
        votes: (N,K) shares of the neighbours' given labels, zeros where there are none.
        neighbours: N lists of indices.
        network_prob, margin, visits, left_epoch, strength: (N,) each; left_epoch from 0, -1: never.
    """
    labels, rows = train.labels, np.arange(len(train))
    suggested = belief.argmax(axis=1)
    given_prob, final_prob = belief[rows, labels], network[rows, labels]
    # ties, as of samples never visited, by what the network said while it learned
    order = np.lexsort((network_prob, trust(given_prob, final_prob), visits == 0))
    rank = np.empty(len(train), np.int64)
    rank[order] = rows + 1
    positive = np.where(belief > 0, belief, 1).astype(np.float64)
    alone = votes.sum(axis=1) == 0
    paths = None if train.paths is None else [_text(path) for path in train.paths]

    def numbers(values: Floats, unknown: Bools | None = None) -> pyarrow.Array:
        hidden = ~np.isfinite(values) if unknown is None else unknown
        return pyarrow.array(values, mask=hidden)

    def names(classes: Ints) -> pyarrow.Array:
        return pyarrow.array([class_names[c] for c in classes], pyarrow.string())

    columns: dict[str, Any] = {
        "index": rows,
        "path": pyarrow.nulls(len(train), pyarrow.string()) if paths is None else paths,
        "given": labels,
        "given_name": names(labels),
        "suggested": suggested,
        "suggested_name": names(suggested),
        "given_prob": given_prob,
        "suggested_prob": belief.max(axis=1),
        "entropy": -(positive * np.log(positive)).sum(axis=1).astype(np.float32),
        "strength": (
            pyarrow.nulls(len(train), pyarrow.float32()) if strength is None else numbers(strength)
        ),
        "left_epoch": numbers(left_epoch + 1, left_epoch < 0),
        "neighbour_agreement": numbers(votes[rows, labels], alone),
        "area_under_margin": numbers(margin),
        "network_prob": numbers(network_prob),
        "final_prob": numbers(final_prob),
        "visits": visits.astype(np.int64),
        "neighbours": pyarrow.array(neighbours, pyarrow.list_(pyarrow.int64())),
        "rank": rank,
    }
    if (clean := train.clean_labels) is not None:
        columns |= {
            "clean": clean,
            "clean_name": names(clean),
            "given_right": labels == clean,
            "suggested_right": suggested == clean,
        }
    return pyarrow.table(columns)


def trust(given_prob: Floats, final_prob: Floats) -> Floats:
    """How much speaks for each given label (N,), in [0,1]: belief times the final network's probability.

    The belief averages what the network has said since its first epochs; the final network, looking
    at the image as it is, knows more and remembers nothing. A score to rank by, no probability:
    normalised over the classes it found more on digits and less on a subset of CIFAR-10N, where
    beliefs are too sure (docs/LOG.md). Where the network could not look, the belief stands alone.
    """
    return given_prob * np.where(np.isnan(final_prob), 1, final_prob)


def _text(path: str) -> str:
    """A file name that is not Unicode, as text."""
    return path.encode("utf-8", "backslashreplace").decode()


# --- Weights & Biases -------------------------------------------------------------------------------


def log_to_wandb(findings: Findings, train: Split, top: int = 200) -> None:
    """Log a table of the most suspicious samples, with images, to the W&B run of this process."""
    wandb = sys.modules.get("wandb")
    if wandb is None or wandb.run is None:
        return
    columns = [
        "rank",
        "index",
        "path",
        "given_name",
        "suggested_name",
        "given_prob",
        "suggested_prob",
    ]
    order = np.argsort(findings.column("rank"), kind="stable")[:top]
    rows = findings.table.select(columns).take(pyarrow.array(order)).to_pylist()
    table = wandb.Table(columns=["image", *columns])
    for row, image in zip(rows, pictures(train.images, order), strict=True):
        picture = None if image is None else wandb.Image(image.permute(1, 2, 0).numpy())
        table.add_data(picture, *row.values())
    wandb.run.log({"suspicious_labels": table})


def pictures(images: torch.Tensor | ImageFiles, index: Ints) -> list[torch.Tensor | None]:
    """Some training images, (C,S,S) uint8 each; None where the file cannot be read."""
    if isinstance(images, torch.Tensor):
        return list(images[torch.from_numpy(index)].cpu())
    decoded = images.decode_many(index.tolist())
    return [image if isinstance(image, torch.Tensor) else None for image in decoded]
