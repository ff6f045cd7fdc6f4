"""The findings of a run, asked of its trainer.

Dimensions: N training samples, K classes, M test images.
"""

from __future__ import annotations

import itertools
import logging
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

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
from noisybsd.models.bank import FeatureBank, vote
from noisybsd.report.findings import Findings, Floats, label_table, pictures

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

    For a method without a belief, its network's predictions take that place. A sample never visited is
    believed to be of its given class.

    Args:
        directory: the run's, for the record.
    """
    config, dataset, monitor = trainer.config, trainer.dataset, trainer.monitor
    train, classes = dataset.train, len(dataset.class_names)
    one_hot = F.one_hot(trainer.labels, classes).float()  # (N,K)

    network, bank, looks = _look_at_training_images(trainer)
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
    logits, _, test_labels, test_hashes = _look_at_test_images(trainer)
    identical_to, in_test = _identical(looks.hashes, test_hashes)
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
            identical_to=identical_to,
            in_test=in_test,
        ),
        {
            "belief": belief,
            "network": network,
            "neighbours": votes,
            "thumbnails": looks.thumbnails,
            "labels": train.labels,
            "test": logits.softmax(dim=1).cpu().numpy(),
            "test_labels": test_labels.cpu().numpy(),
            **({} if train.votes is None else {"votes": train.votes}),
        },
        {
            "run": str(directory),
            "dataset": dataset.name,
            "class_names": list(dataset.class_names),
            "data_sha256": dataset.sha256,
            "epoch": trainer.epoch,
            "method": config.method,
            "holds_belief": held is not None,
            "test_labels": dataset.notes["test_labels"],
            "noisybsd": __version__,
        },
    )


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


def _look_at_test_images(trainer: Trainer) -> tuple[Tensor, Tensor, Tensor, Hashes]:
    """What `Trainer.predict_test` gives, and the hashes of the test images."""
    images = trainer.test.images
    if isinstance(images, ImageFiles):  # decoded in every pass: in this one they are looked at too
        images = LookedAtFiles(images)
        trainer.test = replace(trainer.test, images=images)
    outputs = trainer.predict_test(trainer.network)
    _look(trainer.test)
    return *outputs, list(itertools.chain(*distributed.each(looks_of(images).hashes)))


def _look(split: Split) -> None:
    """Decode the files of a split whose prediction took their features, and so did not."""
    if isinstance(split.images, LookedAtFiles) and split.embeddings is not None:
        for _ in split.images.decode_many(range(len(split))):
            pass


def _identical(hashes: Hashes, test_hashes: Hashes) -> tuple[list[int | None], list[bool]]:
    """For each training image the first of the same pixels, if there are several, and whether a test
    image has them too."""
    first: dict[bytes, int] = {}
    count = Counter(hashes)
    identical_to: list[int | None] = []
    for i, digest in enumerate(hashes):
        several = digest is not None and count[digest] > 1
        identical_to.append(first.setdefault(digest, i) if digest and several else None)
    tested = {*test_hashes} - {None}
    return identical_to, [digest in tested for digest in hashes]


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
