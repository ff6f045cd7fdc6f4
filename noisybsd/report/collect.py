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
from typing import Any, NamedTuple

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
from noisybsd.data.splits import Split, labels_of_both
from noisybsd.engine.trainer import Trainer
from noisybsd.models.bank import FeatureBank, vote
from noisybsd.report.findings import Findings, Floats, Ints, Pictures, label_table

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
            (str(error).strip() or type(error).__name__).splitlines()[0],
            directory,
        )


@torch.no_grad()
def collect(trainer: Trainer, directory: Path | None) -> Findings:
    """Ask a trainer for its findings: one pass over training and test images, one search.

    For a method without a belief, its network's predictions take that place. A sample never visited is
    believed to be of its given class. For an image that was held out, the predictions of the network,
    which never saw its label, are the belief too.

    Args:
        directory: the run's, for the record.
    """
    config, dataset = trainer.config, trainer.dataset
    train, held_out = labels_of_both(dataset.train, dataset.held_out), dataset.held_out

    network, bank, looks = _look_at_training_images(trainer)
    tested, logits, z, test_looks = _look_at_test_images(trainer)
    test = logits.softmax(dim=1).cpu().numpy()
    scores, thumbnails = _of_training(trainer, network, bank), looks.thumbnails
    if held_out is not None:
        also = _of_held_out(trainer, len(held_out), tested, test, z, bank)
        scores = _Scores(*map(_followed_by, scores, also))
        thumbnails = np.concatenate([thumbnails, test_looks.thumbnails])
    identical_to, in_test = _identical(looks.hashes, test_looks.hashes, held_out is not None)
    known = np.isfinite(scores.belief).all(axis=1, keepdims=True)
    given = np.eye(trainer.num_classes, dtype=np.float32)[train.labels]
    belief = np.where(known, scores.belief, given)
    belief /= belief.sum(axis=1, keepdims=True)
    return Findings(
        label_table(
            train,
            dataset.class_names,
            **{**scores._asdict(), "belief": belief},
            identical_to=identical_to,
            in_test=in_test,
            held_out=np.arange(len(train)) >= len(dataset.train),
        ),
        {
            "belief": belief,
            "network": scores.network,
            "neighbours": scores.votes,
            "thumbnails": thumbnails,
            "labels": train.labels,
            "test": test,
            "test_labels": dataset.test.labels[tested],
            **({} if train.votes is None else {"votes": train.votes}),
        },
        {
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


def _followed_by(one: Any, other: Any) -> Any:
    return one + other if isinstance(one, list) else np.concatenate([one, other])


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


def _of_held_out(
    trainer: Trainer, count: int, rows: Ints, predicted: Floats, z: Tensor, bank: FeatureBank
) -> _Scores:
    """Of the held-out images (H): what the network says that never saw them or their labels.

    Args:
        count: H.
        rows: (M,), those that could be read.
        predicted, z: (M,K) and (M,D), theirs.
    """
    network = np.full((count, trainer.num_classes), np.nan, np.float32)
    votes, neighbours = np.zeros_like(network), [list[int]() for _ in range(count)]
    network[rows] = predicted
    votes[rows], found = _nearest(trainer, bank, z)
    for row, near in zip(rows, found, strict=True):
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


Hashes = list[bytes | None]  # of the pixels of images; None where one is unreadable


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


def _look_at_test_images(trainer: Trainer) -> tuple[Ints, Tensor, Tensor, Looks]:
    """Which test images can be read (M,), by their place in the test split; logits (M,K) and embeddings
    (M,D) of these; and what all of the split look like."""
    whole, test = trainer.dataset.test, trainer.test
    rows = np.arange(len(whole))[distributed.share(len(whole))]
    if len(test) < len(rows):  # the unreadable ones were left out when it was decoded
        assert whole.paths is not None and test.paths is not None
        place = {path: i for i, path in enumerate(whole.paths)}
        rows = np.array([place[path] for path in test.paths], np.int64)
    images = test.images
    if isinstance(images, ImageFiles):  # decoded in every pass: in this one they are looked at too
        images = LookedAtFiles(images)
    split = replace(test, images=images, labels=rows)
    outputs = trainer.predict(trainer.network, split)
    _look(split)
    logits, z, kept = map(distributed.gather_rows, outputs)
    looks = Looks.unknown(len(whole))
    for share, part in distributed.each((rows, looks_of(images))):
        looks.thumbnails[share] = part.thumbnails
        for i, digest in zip(share.tolist(), part.hashes, strict=True):
            looks.hashes[i] = digest
    return kept.cpu().numpy(), logits, z, looks


def _look(split: Split) -> None:
    """Decode the files of a split whose prediction took their features, and so did not."""
    if isinstance(split.images, LookedAtFiles) and split.embeddings is not None:
        for _ in split.images.decode_many(range(len(split))):
            pass


def _identical(
    hashes: Hashes, test_hashes: Hashes, held_out: bool
) -> tuple[list[int | None], list[bool]]:
    """For each image the first of the same pixels, if there are several; and which training images are
    test images too.

    Args:
        held_out: whether the test images are among the samples.
    """
    samples = hashes + test_hashes * held_out
    first: dict[bytes, int] = {}
    count = Counter(samples)
    identical_to: list[int | None] = []
    for i, digest in enumerate(samples):
        several = digest is not None and count[digest] > 1
        identical_to.append(first.setdefault(digest, i) if digest and several else None)
    tested = {*test_hashes} - {None}
    return identical_to, [digest in tested for digest in hashes] + [False] * (
        len(samples) - len(hashes)
    )


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
