"""The label report: what it finds in finished runs, and what a report on many samples costs.

    python benchmarks/report.py runs runs/digits_sym40/* --out results/detection.csv
    python benchmarks/report.py scale --samples 50000 --out results/cost/report_scale.csv

`runs` reads the labels.parquet and pred_probs.npz of runs on data whose clean labels are known: how well
each ranking finds wrong labels, and how near the estimates come to the truth. The estimates for a noisy
test set are made on clean test labels with noise of the training labels' own transition matrix, drawn anew.

`scale` builds the report of a made-up run on random images of CIFAR-10's size and, where Chromium and its
driver are, opens the page.

Columns of `runs`, a row for each quantity of a run:
    recipe … noise          which run
    quantity, value         what was estimated or measured, and how much
    low, high               its 95 % interval
    truth                   what the clean labels say, for an estimate

Columns of `scale`:
    samples, top            of the made-up run; shown on the page
    build_seconds, build_cpu_seconds, peak_memory_gb, page_mb       of building the page
    load_seconds, first_picture_seconds                             of opening it; empty without Chromium
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch
from common import Row, write_csv

from noisybsd.config import load_config, save_config
from noisybsd.data.dataset import Dataset
from noisybsd.data.noise import draw
from noisybsd.data.splits import Split
from noisybsd.report import write
from noisybsd.report.estimates import (
    accuracy_on_clean_labels,
    accuracy_on_noisy_labels,
    estimates,
)
from noisybsd.report.findings import Findings, label_table
from noisybsd.report.rankings import detection_metrics

# --- what is found ------------------------------------------------------------------------------


def run_rows(directory: Path) -> Iterator[Row]:
    """A row for each quantity of a run: name, value, interval, truth."""
    found = Findings.read(directory)
    if found is None or found.clean is None:
        raise SystemExit(f"{directory}: has no labels.parquet with clean labels")
    results = json.loads((directory / "results.json").read_text("utf-8"))
    about: Row = {
        "recipe": results["recipe"],
        "method": results["method"],
        "network": results["network"],
        "epochs": results["epochs"],
        "seed": results["seed"],
        "samples": len(found.table),
    }
    noise = results["data"]["noise"]
    if noise and noise["name"] != "none":
        about["noise"] = f"{noise['name']} {noise['rate']}"
    said = estimates(found)
    yield from ({**about, **row} for row in _label_rows(said))
    if said["noise_rate"]["source"] == "belief":  # what it would say without the final network
        alone = replace(found, arrays={**found.arrays, "network": found.arrays["belief"]})
        for row in _label_rows(estimates(alone)):
            yield {**about, **row, "quantity": f"{row['quantity']}, belief alone"}
    for row in _test_rows(found, said):
        yield {**about, **row}
    for name, row in (detection_metrics(found) or {}).items():
        for metric, value in row.items():
            yield {**about, "quantity": f"{name}: {metric}", "value": value}


def _label_rows(said: Row) -> Iterator[Row]:
    """What is said of the labels as a whole, beside the truth."""
    rate, truth = said["noise_rate"], said["noise_rate_true"]
    interval = {key: rate.get(key) for key in ("low", "high")}  # of a belief
    gap = np.abs(said["transition"] - said["transition_true"])
    yield {"quantity": "noise rate", "value": rate["estimate"], **interval, "truth": truth}
    disputed = said["disputed"] / said["samples_seen"]
    yield {"quantity": "disputed labels", "value": disputed, "truth": truth}
    yield {"quantity": "suggestions right", "value": said["suggested_right"]}
    yield {"quantity": "transition, mean |error|", "value": float(np.nanmean(gap)), "truth": 0}
    yield {"quantity": "transition, max |error|", "value": float(np.nanmax(gap)), "truth": 0}


def _test_rows(found: Findings, said: Row) -> Iterator[Row]:
    """Both estimates for a test set as noisy as the training labels, drawn by their true matrix."""
    if said["test"]["labels"] != "clean":
        return
    predicted, clean = found.arrays["test"].argmax(axis=1), found.arrays["test_labels"]
    noisy = draw(said["transition_true"], clean, np.random.Philox(key=0))
    expected = accuracy_on_noisy_labels(predicted, clean, said["transition"])
    measured = float((predicted == noisy).mean())
    yield {"quantity": "accuracy on noisy test labels", "value": expected, "truth": measured}
    estimate = accuracy_on_clean_labels(predicted, noisy, said["transition"])
    yield {
        "quantity": "accuracy on clean labels, from noisy ones",
        "value": estimate["estimate"],
        "low": estimate["low"],
        "high": estimate["high"],
        "truth": said["test"]["accuracy"],
    }


def summary(rows: list[Row]) -> str:
    """The rankings in one Markdown table: mean AUROC ± standard deviation over seeds, for each recipe and
    method, the largest mean of a column in bold."""
    columns: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        ranking, _, metric = row["quantity"].partition(": ")
        if metric == "auroc":
            columns.setdefault(_title(row), {}).setdefault(ranking, []).append(row["value"])
    rankings = dict.fromkeys(ranking for found in columns.values() for ranking in found)
    best = {title: max(map(fmean, found.values())) for title, found in columns.items()}
    lines = ["| ranking | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for ranking in rankings:
        cells = []
        for title, found in columns.items():
            values = found.get(ranking, [])
            spread = f" ± {stdev(values):.5f}" if len(values) > 1 else ""
            cell = f"{fmean(values):.5f}{spread} (n = {len(values)})" if values else ""
            cells.append(f"**{cell}**" if values and fmean(values) == best[title] else cell)
        lines.append(f"| {ranking} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def pooling(rows: list[Row]) -> str:
    """What the belief alone says, and what it says pooled with the final network, in one Markdown table:
    means over seeds."""
    alone, found = ", belief alone", dict[str, dict[str, list[Row]]]()
    for row in rows:
        found.setdefault(_title(row), {}).setdefault(row["quantity"], []).append(row)

    def error(row: Row) -> float:
        return abs(row["value"] - row["truth"])

    def holds(row: Row) -> float:
        return float(row["low"] <= row["truth"] <= row["high"])

    measured: dict[str, tuple[str, Callable[[Row], float], int]] = {
        "suggestions right %": ("suggestions right", lambda row: 100 * row["value"], 1),
        "error of the noise rate, points": ("noise rate", lambda row: 100 * error(row), 1),
        "its interval holds the truth, %": ("noise rate", lambda row: 100 * holds(row), 0),
        "mean error of the matrix": ("transition, mean |error|", error, 4),
    }
    lines = ["| run | n | " + " | ".join(measured) + " |", "|---|---:|" + "---|" * len(measured)]
    for title, quantities in found.items():
        if f"noise rate{alone}" not in quantities:
            continue
        cells = []
        for quantity, of, digits in measured.values():
            pair = (fmean(map(of, quantities[name])) for name in (quantity + alone, quantity))
            cells.append(" → ".join(f"{value:.{digits}f}" for value in pair))
        lines.append(f"| {title} | {len(quantities['noise rate'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _title(row: Row) -> str:
    noise = f", {row['noise']}" if row.get("noise") else ""
    return f"{row['recipe']}{noise}, {row['method']} ({row['samples']:,} labels)"


# --- what it costs ------------------------------------------------------------------------------


def made_up(directory: Path, samples: int, classes: int = 10) -> Dataset:
    """A run directory with findings on random images, and the dataset that they are about."""
    random = np.random.default_rng(0)
    clean = random.integers(0, classes, samples)
    noise = np.full((classes, classes), 0.4 / classes) + 0.6 * np.eye(classes)
    given = draw(noise, clean, np.random.Philox(key=0))
    belief = random.dirichlet(np.full(classes, 0.2), samples).astype(np.float32)
    belief[np.arange(samples), clean] += 3 * random.random(samples, np.float32)
    belief /= belief.sum(axis=1, keepdims=True)
    near = random.integers(0, samples, (samples, 50))
    votes = (np.eye(classes, dtype=np.float32)[given[near]]).mean(axis=1)
    # smooth, as pictures are, or JPEG would make them larger than real ones
    coarse = torch.rand(samples, 3, 6, 6)
    images = torch.cat(
        [
            torch.nn.functional.interpolate(part, (32, 32), mode="bicubic")
            .clamp(0, 1)
            .mul(255)
            .byte()
            for part in coarse.split(5000)
        ]
    )
    train = Split(images, given, clean)
    names = tuple(f"class {k}" for k in range(classes))
    table = label_table(
        train,
        names,
        belief,
        belief,
        votes,
        near.tolist(),
        network_prob=belief[np.arange(samples), given],
        margin=random.normal(size=samples).astype(np.float32),
        visits=np.full(samples, 300),
        left_epoch=random.integers(-1, 299, samples),
        strength=np.full(samples, 20, np.float32),
    )
    arrays = {
        "belief": belief,
        "network": belief,
        "neighbours": votes,
        "labels": given,
        "test": belief[:10_000],
        "test_labels": clean[:10_000],
    }
    about = {
        "run": str(directory),
        "dataset": "random",
        "class_names": list(names),
        "data_sha256": "0" * 64,
        "epoch": 300,
        "method": "none",
        "test_labels": "clean",
        "noisybsd": "benchmark",
    }
    Findings(table, arrays, about).write(directory)
    save_config(load_config(["recipe=cifar10n_worst"]), directory / "config.yaml", "a benchmark")
    accuracy = {"train_accuracy": 0.6, "test_accuracy": 0.9}
    with (directory / "metrics.jsonl").open("w") as file:
        for epoch in range(1, 301):
            file.write(json.dumps({"epoch": epoch, **accuracy}) + "\n")
    return Dataset(
        "random", names, train, train, 32, 3, (0.5,) * 3, (0.25,) * 3, about["data_sha256"], {}
    )


def scale(samples: int, top: int) -> Row:
    """Time and memory of a report on `samples` images of 32 pixels, with `top` on its page."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        dataset = made_up(directory, samples)
        write.load_dataset = lambda *_: dataset  # type: ignore[attr-defined]
        wall, work = time.perf_counter(), time.process_time()
        write.report(directory, [], top)
        row: Row = {
            "samples": samples,
            "top": top,
            "build_seconds": round(time.perf_counter() - wall, 2),
            "build_cpu_seconds": round(time.process_time() - work, 2),
            "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
            "page_mb": round((directory / "report.html").stat().st_size / 1e6, 2),
        }
        return row | opened(directory / "report.html")


def opened(page: Path) -> Row:
    """Seconds until the browser has loaded the page, and until the first picture is drawn."""
    driver_path = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if driver_path is None or binary is None:
        return {"load_seconds": None, "first_picture_seconds": None}
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = binary
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    try:
        driver.get("about:blank")
        begin = time.perf_counter()
        driver.get(page.as_uri())
        loaded = time.perf_counter() - begin
        drawn = (
            "const c = document.querySelector('canvas.picture');"
            "return c && c.getContext('2d').getImageData(0, 0, 1, 1).data[3] > 0"
        )
        while not driver.execute_script(drawn):
            time.sleep(0.02)
        picture = time.perf_counter() - begin
    finally:
        driver.quit()
    return {"load_seconds": round(loaded, 2), "first_picture_seconds": round(picture, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("runs")
    runs.add_argument("directories", nargs="+", type=Path)
    runs.add_argument("--quantity", help="only this one, and no table of rankings")
    size = commands.add_parser("scale")
    size.add_argument("--samples", type=int, default=50_000)
    size.add_argument("--top", type=int, nargs="+", default=[2000])
    for each in (runs, size):
        each.add_argument("--out", type=Path, help="CSV to write; default: only print")
    args = parser.parse_args()
    if args.command == "runs":
        rows = [row for directory in args.directories for row in run_rows(directory)]
        rows = [row for row in rows if args.quantity in (None, row["quantity"])]
    else:
        rows = [scale(args.samples, top) for top in args.top]
    short = [
        {k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()} for row in rows
    ]
    write_csv(args.out, short)
    if args.command == "runs" and args.out is not None and args.quantity is None:
        text = (
            f"AUROC of finding wrong labels, last epoch; from {args.out.name}, which has all else.\n\n"
            f"{summary(short)}\n"
            "What the label report says of the labels: by the belief of training alone → by the final "
            f"belief, which pools it with the final network's prediction.\n\n{pooling(short)}"
        )
        args.out.with_suffix(".md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
