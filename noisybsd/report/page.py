"""The report's page: one HTML file that needs nothing else.

Summary, plots and a gallery of the most suspicious samples, whose pictures are cells of sprite sheets.
Its parts lie in templates/: HTML, style and script are put into each other here.

Dimensions: N training samples, K classes, n samples on the page.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import pyarrow
from jinja2 import Environment, PackageLoader
from markupsafe import Markup

from noisybsd.data.names import UNKNOWN
from noisybsd.report.duplicates import Duplicates, differ, summary, told
from noisybsd.report.estimates import caution, origin
from noisybsd.report.findings import Findings, Ints
from noisybsd.report.pictures import Pictures
from noisybsd.report.plots import (
    GIVEN,
    MUTED,
    SUGGESTED,
    THIRD,
    curves_plot,
    reliability_plot,
    transition_plot,
)
from noisybsd.report.sprites import sprite_sheets, thumbnail

PICTURE = 96  # pixels of a sample's side at most
NEIGHBOUR = 48  # pixels of a neighbour's side at most
NEIGHBOURS = 5  # shown of each sample
DOUBLED = 50  # rows of each kind of images that are there more than once


@dataclass(frozen=True)
class Run:
    """What the page is made of.

    Args:
        history: one entry of metrics.jsonl for each epoch.
        images: of the N samples; None if they are gone.
        notices: sentences for the top of the page.
        files: the address of data.root as seen from the page, where the images are files.
    """

    findings: Findings
    history: list[dict[str, Any]]
    images: Pictures | None
    notices: list[str]
    files: str | None = None


def build_page(
    run: Run,
    said: dict[str, Any],
    detection: Any,
    top: int,
    duplicates: Duplicates | None = None,
) -> str:
    """The page as HTML.

    Args:
        said: what `estimates` returns.
        detection: what `detection_metrics` returns.
        top: how many of the most suspicious samples to show.
        duplicates: images that are there more than once; None: nobody has looked.
    """
    findings, about, doubt = run.findings, run.findings.about, caution(said)
    order = np.argsort(findings.column("rank"), kind="stable")[:top]
    samples, neighbours = _samples(findings, order)
    sheets = {
        "pictures": sprite_sheets(run.images, order, PICTURE),
        "neighbours": sprite_sheets(run.images, neighbours, NEIGHBOUR),
    }
    environment = Environment(loader=PackageLoader("noisybsd.report"), autoescape=True)
    environment.filters |= {"percent": _percent, "thousands": "{:,}".format}
    measured = [row for row in (detection or {}).values() if "auroc" in row]
    keys = ("auroc", "average_precision", "precision")
    return environment.get_template("report.html").render(
        about=about,
        notices=[*run.notices, *([doubt] if doubt else [])],
        said=said,
        doubt=doubt,
        source=origin(said["noise_rate"]),
        ema=run.history[-1].get("test_accuracy_ema") if run.history else None,
        shown=len(order),
        plots=list(_plots(findings, said, run.history)),
        detection=detection,
        best={key: max((row[key] for row in measured), default=0) for key in keys},
        doubled=None if duplicates is None else _doubled(run, duplicates),
        wrong=None if findings.clean is None else f"{_wrong(findings):,}",
        data={
            "classes": about["class_names"],
            "sha256": about["data_sha256"],
            "files": run.files,
            "rows": samples,
            "sheets": {kind: each.layout() for kind, each in sheets.items()},
        },
        sheets=[
            {"id": f"{kind}-{number}", "content": content}
            for kind, each in sheets.items()
            for number, content in enumerate(each.contents)
        ],
        style=_asset("report.css"),
        script=_asset("report.js"),
    )


def _asset(name: str) -> Markup:
    return Markup((files("noisybsd.report") / "templates" / name).read_text("utf-8"))


def _wrong(findings: Findings) -> int:
    findings = findings.trained
    assert findings.clean is not None
    known = findings.clean != UNKNOWN
    return int((findings.clean != findings.arrays["labels"])[known].sum())


def _doubled(run: Run, found: Duplicates) -> dict[str, Any] | None:
    """The images that are there more than once: a sentence, and rows of what is the same as what."""
    findings, labels = run.findings, run.findings.arrays["labels"]
    text = told(summary(found, labels))
    if text is None:
        return None
    names, paths = findings.about["class_names"], findings.table["path"].to_pylist()

    def row(index: list[int], kind: str) -> dict[str, Any]:
        shown = [] if run.images is None else run.images.look_at(np.array(index[:2]))
        kind += ", different labels" * differ(index, labels)
        kind += ", also a test image" * bool(found.in_test[index].any())
        return {
            "kind": kind,
            "images": [thumbnail(each) for each in shown if each is not None],
            "members": [
                f"{i} {paths[i] or ''} ({names[labels[i]]})".replace("  ", " ") for i in index[:4]
            ],
            "more": max(0, len(index) - 4),
        }

    first = sorted(found.identical, key=lambda group: not differ(group, labels))
    grouped = {i for group in found.identical for i in group}
    alone = [i for i in np.flatnonzero(found.in_test).tolist() if i not in grouped]
    rows = [row(group, "identical") for group in first[:DOUBLED]]
    rows += [row([i], "one image") for i in alone[:DOUBLED]]
    rows += [row([i, j], f"nearly, cosine {cosine:.3f}") for i, j, cosine in found.near[:DOUBLED]]
    left = sum(max(0, len(each) - DOUBLED) for each in (first, alone, found.near))
    return {"text": text, "rows": rows, "left": left}


def _samples(findings: Findings, order: Ints) -> tuple[dict[str, Any], Ints]:
    """The page's columns for the samples `order` (n,), and the neighbours (m,) that it shows.

    A neighbour is [cell of the sheets, given label].
    """
    table = findings.table.take(pyarrow.array(order))
    near = [row[:NEIGHBOURS] for row in table["neighbours"].to_pylist()]
    shown = np.unique(np.concatenate([np.array(row, np.int64) for row in near]))
    cell = {int(sample): number for number, sample in enumerate(shown)}
    labels = findings.arrays["labels"]
    columns = {
        "index": "index",
        "path": "path",
        "held_out": "held_out",
        "given": "given",
        "suggested": "suggested",
        "given_prob": "given_prob",
        "suggested_prob": "suggested_prob",
        "entropy": "entropy",
        "strength": "strength",
        "left": "left_epoch",
        "agreement": "neighbour_agreement",
        "margin": "area_under_margin",
        "rank": "rank",
        "clean": "clean",
    }
    samples: dict[str, Any] = {
        name: [round(v, 4) if isinstance(v, float) else v for v in table[column].to_pylist()]
        for name, column in columns.items()
        if column in table.column_names
    }
    samples["near"] = [[[cell[j], int(labels[j])] for j in row] for row in near]
    return samples, shown


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.1%}"


def _plots(
    findings: Findings, said: dict[str, Any], history: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    matrix = said["transition"]
    text = (
        "For each class by belief (row), the share of its samples with each given label (column). Shades "
        "follow the square root, so that rare errors show. Click a cell off the diagonal for its samples."
    )
    if "transition_true" in said:
        gaps = np.abs(matrix - said["transition_true"])
        known = gaps[np.isfinite(gaps)]
        if len(known):
            text += f" Mean distance of an entry from the true matrix: {known.mean():.4f}."
    if caution(said) is not None:
        text += " The belief is no measurement yet, and this is none."
    yield {
        "title": "Who is mistaken for whom",
        "text": text,
        "svg": Markup(transition_plot(matrix, findings.about["class_names"])),
    }
    if history:
        yield from _curves(findings, said, history)
    if said["test"] is None:
        return
    yield {
        "title": "Is confidence honest?",
        "text": f"Test images by confidence: bars on the line are honest. Labels: {said['test']['labels']}.",
        "svg": Markup(reliability_plot(said["test"]["reliability"])),
    }


def _curves(
    findings: Findings, said: dict[str, Any], history: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    epochs = [row["epoch"] for row in history]

    def line(label: str, key: str, colour: str, style: str = "-") -> list[Any]:
        values = [row.get(key) for row in history]
        return [] if all(v is None for v in values) else [(label, values, colour, style)]

    rate = None if caution(said) is not None else said["noise_rate"]["estimate"]
    yield {
        "title": "Learning",
        "text": "Training accuracy counts given labels."
        + " Above the dotted line, the share of labels estimated right, the network memorises wrong ones."
        * (rate is not None),
        "svg": Markup(
            curves_plot(
                epochs,
                [
                    *line("test", "test_accuracy", SUGGESTED),
                    *line("test, weight average", "test_accuracy_ema", SUGGESTED, ":"),
                    *line("training, given labels", "train_accuracy", GIVEN),
                    *line("test, k-NN", "test_knn_accuracy", MUTED, "--"),
                ],
                None if rate is None else ("labels estimated right", 1 - rate),
            )
        ),
    }
    left = findings.trained.column("left_epoch")
    share = [None if findings.held_out.all() else float((left <= e).mean()) for e in epochs]
    yield {
        "title": "Memorising and correcting",
        "text": "The share of labels that the belief has left at some time. If clean labels are known: the "
        "share of wrong labels that the network predicts (memorised), and of suggestions that are right."
        + " Memorisation: how far the network learns labels by heart, measured on images it never learns."
        * any(row.get("memorisation") is not None for row in history),
        "svg": Markup(
            curves_plot(
                epochs,
                [
                    ("belief has left the given label", share, SUGGESTED, "-"),
                    *line("wrong labels memorised", "memorised_fraction", GIVEN),
                    *line("suggestions right", "label_correction_accuracy", THIRD),
                    *line("memorisation", "memorisation", MUTED, "--"),
                ],
                None if rate is None else ("labels estimated wrong", rate),
            )
        ),
    }
