"""The findings of a run, asked of its trainer.

Dimensions: N training samples, K classes, M test images.
"""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet
import torch
import torch.nn.functional as F
from torch import Tensor

from noisybsd import __version__, distributed
from noisybsd.data.duplicates import LookedAtFiles, Looks, looks_of
from noisybsd.data.images import ImageFiles
from noisybsd.data.loader import ResidentLoader
from noisybsd.data.splits import Split
from noisybsd.engine.trainer import Trainer
from noisybsd.errors import first_line
from noisybsd.models.bank import FeatureBank, vote
from noisybsd.report.findings import FORMAT, Findings, Floats, Ints, label_table, pooled
from noisybsd.report.pictures import Pictures

log = logging.getLogger("noisybsd")

NEIGHBOURS = 10  # if the run itself searches none


def record(trainer: Trainer, directory: Path | None) -> None:
    """Write the findings at the end of a run, whose results must not be lost to a failure here.

    All processes collect; the first one, which has the `directory`, writes.
    """
    try:
        findings = collect(trainer, directory)
        if directory is None:
            return
        findings.write(directory)
        log_to_wandb(findings, Pictures.of(trainer.dataset))
    except Exception as error:
        log.warning(
            "labels.parquet is not written: %s\nto do it later: python -m noisybsd.report run=%s",
            first_line(error),
            directory,
        )


@torch.no_grad()
def collect(trainer: Trainer, directory: Path | None) -> Findings:
    """Ask a trainer for its findings: one pass over training and test images, one search.

    For a method without a belief, its network's predictions take that place. A sample never visited is
    believed to be of its given class. For an image that was held out, to test or to calibrate on, the
    predictions of the network, which never saw its label, are the belief too.

    Args:
        directory: the run's, for the record.
    """
    config, dataset = trainer.config, trainer.dataset
    samples, order = dataset.samples, dataset.order

    network, bank, looks = _look_at_training_images(trainer)
    tests = _look_at(trainer, dataset.test, trainer.test)
    parts, seen = [_of_training(trainer, network, bank)], [looks]
    if dataset.calibration is not None and trainer.calibration is not None:
        apart = _look_at(trainer, dataset.calibration, trainer.calibration)
        parts.append(_of_held_out(trainer, len(dataset.calibration), apart, bank))
        seen.append(apart.looks)
    if dataset.held_out is not None:
        parts.append(_of_held_out(trainer, len(dataset.held_out), tests, bank))
        seen.append(tests.looks)
    scores = _in_order(parts, order)
    hashes = [each for part in seen for each in part.hashes]
    of_test = {*tests.looks.hashes} - {None}
    to_train = len(samples) - len(dataset.held_out or ())  # the samples that are no test images
    identical_to = _identical([hashes[i] for i in order])
    in_test = [i < to_train and hashes[i] in of_test for i in order.tolist()]
    known = np.isfinite(scores.belief).all(axis=1, keepdims=True)
    given = np.eye(trainer.num_classes, dtype=np.float32)[samples.labels]
    belief = np.where(known, scores.belief, given)
    belief /= belief.sum(axis=1, keepdims=True)
    return Findings(
        label_table(
            samples,
            dataset.class_names,
            pooled(belief, scores.network),
            **{name: part for name, part in scores._asdict().items() if name != "belief"},
            identical_to=identical_to,
            in_test=in_test,
            held_out=order >= len(dataset.train),
        ),
        {
            "belief": belief,
            "network": scores.network,
            "neighbours": scores.votes,
            "thumbnails": np.concatenate([each.thumbnails for each in seen])[order],
            "labels": samples.labels,
            "test": tests.probabilities,
            "test_labels": dataset.test.labels[tests.rows],
            **({} if samples.votes is None else {"votes": samples.votes}),
        },
        {
            "format": FORMAT,
            "run": str(directory),
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "data_sha256": dataset.sha256,
            "epoch": trainer.epoch,
            "method": config.method,
            "holds_belief": trainer.rule.belief() is not None,
            "test_labels": dataset.notes["test_labels"],
            "noisybsd": __version__,
        },
    )


class _Scores(NamedTuple):
    """What `label_table` is told of some samples, a row each. A belief that is not known is NaN."""

    belief: Floats
    network: Floats
    votes: Floats
    neighbours: list[list[int]]
    network_prob: Floats
    margin: Floats
    visits: Floats
    left_epoch: Ints
    strength: Floats


def _in_order(parts: list[_Scores], order: Ints) -> _Scores:
    """The rows of several parts, those of training first, as the samples stand in the table."""
    near = [row for part in parts for row in part.neighbours]
    row_of = np.argsort(order).tolist()  # neighbours have the numbers of training, not of the table
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])[order]
        for name in _Scores._fields
        if name != "neighbours"
    }
    return _Scores(**arrays, neighbours=[[row_of[j] for j in near[i]] for i in order])


def _of_training(trainer: Trainer, network: Floats, bank: FeatureBank) -> _Scores:
    """Of the training images (N), with the predictions of the network (N,K)."""
    monitor, belief, strength = trainer.monitor, trainer.rule.belief(), trainer.rule.strength()
    believed = network if belief is None else belief.float().cpu().numpy()
    visits = monitor.visits.cpu().numpy()
    known = (visits > 0) & np.isfinite(believed).all(axis=1)
    votes, neighbours = _nearest(trainer, bank)
    return _Scores(
        np.where(known[:, None], believed, np.nan),
        network,
        votes,
        neighbours,
        monitor.given_prob.cpu().numpy(),
        np.where(known, monitor.margin_sum.cpu().numpy() / np.maximum(visits, 1), np.nan),
        np.where(known, visits, 0),
        monitor.left_epoch.cpu().numpy(),
        np.full(len(visits), np.nan) if strength is None else strength.cpu().numpy(),
    )


def _of_held_out(trainer: Trainer, count: int, seen: _Seen, bank: FeatureBank) -> _Scores:
    """Of `count` (H) held-out images: what the network says that never saw them or their labels."""
    network = np.full((count, trainer.num_classes), np.nan, np.float32)
    votes, neighbours = np.zeros_like(network), [list[int]() for _ in range(count)]
    network[seen.rows] = seen.probabilities
    votes[seen.rows], found = _nearest(trainer, bank, seen.z)
    for row, near in zip(seen.rows, found, strict=True):
        neighbours[row] = near
    unseen = np.full(count, np.nan, np.float32)  # what training alone could know
    never = np.full(count, -1)
    return _Scores(
        network, network, votes, neighbours, unseen, unseen, np.zeros(count), never, unseen
    )


def _nearest(
    trainer: Trainer, bank: FeatureBank, queries: Tensor | None = None
) -> tuple[Floats, list[list[int]]]:
    """Shares of the given labels among the training images nearest to each of Q queries (Q,K), and which
    these are; without queries, of the training images themselves."""
    near = trainer.config.neighbours
    k = min(near.k or NEIGHBOURS, len(trainer.labels) - 1)
    found = bank.search(k, queries=queries, engine=near.engine)
    given = F.one_hot(trainer.labels, trainer.num_classes).float()  # (N,K)
    index = [[j for j in row if j >= 0] for row in found.index.tolist()]
    return vote(given, found, math.inf).cpu().numpy(), index


def _look_at_training_images(trainer: Trainer) -> tuple[Floats, FeatureBank, Looks]:
    """Run the network on the training images without augmentation: each process its share, all get all.

    Returns:
        Its predictions (N,K), NaN for an unreadable image; the run's bank of embeddings (if the run keeps
        none, the bank is filled here); and what the images look like.
    """
    train, loader = trainer.dataset.train, trainer.loader
    own = slice(distributed.rank(), None, distributed.world_size())
    rows = np.arange(len(train))[own]
    images, unreadable = train.images[own], list[int]()
    embeddings = None if train.embeddings is None else train.embeddings[own]
    if isinstance(loader, ResidentLoader) and embeddings is None:  # decoded; black where unreadable
        images, unreadable = loader.images, list(loader.unreadable)
    if isinstance(images, ImageFiles):
        images = LookedAtFiles(images)
    # the labels here say which rows could be read
    split = replace(train, images=images, labels=rows, embeddings=embeddings)
    outputs = trainer.predict(trainer.network, split)
    _look(split)
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
    looks = Looks.unknown(len(train))
    for rank, part in enumerate(distributed.each(looks_of(images))):
        share = slice(rank, None, distributed.world_size())
        looks.hashes[share], looks.thumbnails[share] = part.hashes, part.thumbnails
    for missing in distributed.each(unreadable):
        looks.forget(missing)
    return probabilities, bank, looks


class _Seen(NamedTuple):
    """What the network says of images that were not trained on.

    Args:
        rows: (M,), where those that could be read stand in their split.
        probabilities, z: (M,K) and (M,D), theirs.
        looks: of all images of the split.
    """

    rows: Ints
    probabilities: Floats
    z: Tensor
    looks: Looks


def _look_at(trainer: Trainer, whole: Split, share: Split) -> _Seen:
    """Run the network on the images of a split, of which this process has its `share`."""
    rows = np.arange(len(whole))[distributed.share(len(whole))]
    if len(share) < len(rows):  # the unreadable ones were left out when it was decoded
        assert whole.paths is not None and share.paths is not None
        place = {path: i for i, path in enumerate(whole.paths)}
        rows = np.array([place[path] for path in share.paths], np.int64)
    images = share.images
    if isinstance(images, ImageFiles):  # decoded in every pass: in this one they are looked at too
        images = LookedAtFiles(images)
    split = replace(share, images=images, labels=rows)
    outputs = trainer.predict(trainer.network, split)
    _look(split)
    logits, z, kept = map(distributed.gather_rows, outputs)
    looks = Looks.unknown(len(whole))
    for of_share, part in distributed.each((rows, looks_of(images))):
        looks.thumbnails[of_share] = part.thumbnails
        for i, digest in zip(of_share.tolist(), part.hashes, strict=True):
            looks.hashes[i] = digest
    return _Seen(kept.cpu().numpy(), logits.softmax(dim=1).cpu().numpy(), z, looks)


def _look(split: Split) -> None:
    """Decode the files of a split whose prediction took their features, and so did not."""
    if isinstance(split.images, LookedAtFiles) and split.embeddings is not None:
        for _ in split.images.decode_many(range(len(split))):
            pass


def _identical(hashes: list[bytes | None]) -> list[int | None]:
    """For each image, by the hash of its pixels, the first of the same, if there are several."""
    first: dict[bytes, int] = {}
    count = Counter(hashes)
    return [
        first.setdefault(digest, i) if digest and count[digest] > 1 else None
        for i, digest in enumerate(hashes)
    ]


def log_to_wandb(findings: Findings, images: Pictures, top: int = 200) -> None:
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
    for row, image in zip(rows, images.look_at(order), strict=True):
        picture = None if image is None else wandb.Image(image.permute(1, 2, 0).numpy())
        table.add_data(picture, *row.values())
    wandb.run.log({"suspicious_labels": table})
