"""What the per-sample state costs as samples N and classes K grow: belief, feature bank, neighbours.

    python benchmarks/scale.py --out results/cost/scale.csv              # some minutes
    python benchmarks/scale.py --full --out results/cost/scale_full.csv  # + a million neighbours, 14M beliefs

Sizes are those of CIFAR-10 (50k x 10), Clothing1M (1M x 14) and 14M x 1,000. What does not fit here is
extrapolated, and the column `how` says so and from what:
- memory is a sum over buffers, exact at any size;
- an update touches the rows of its batch alone, so its time is that of a smaller N;
- exact search is quadratic in N; ivf visits a share of N/C rows in C ~ sqrt(N) cells: N^1.5.

Embeddings (N,128) are made up, clustered as those of a trained network are: a unit vector for each of 14
classes, plus half a unit vector for each of 50 modes of a class, plus noise of length 1/2 within 24
directions of each mode's own and of length 1/10 in all, normalised. `diffuse` ones are the harder case: no
clusters, Gaussian in 128 directions with variances falling as 1/rank, normalised.

Columns:
    part                belief: observe + mean of a batch; bank: write of a batch; search: of all rows
    variant             dense, sparse; the engine; with its embeddings
    samples, classes, dim, k    N, K, D, and the classes or neighbours kept
    memory_mb           of the buffers; of a search, of the bank (an index holds another copy)
    ms_*                of a batch of 256: median and quartiles of n updates
    seconds, cpu_seconds        of one search of all rows, wall clock and CPU time of all threads
    recall              of a search, against exact search of 2,000 random rows
    error_mean, error_99        sparse: total variation from the dense target, mean and 99th percentile
    argmax_agreement    sparse: share of targets with the dense one's argmax
    n                   updates timed; or searches
    how                 measured, or extrapolated from what
    threads             of torch and faiss
    load_average        of the machine: others used it too

The sparse belief's error is that after 60 visits of 1,000 samples with 40 % wrong labels and predictions
that grow confident: `predictions` says how they are made up.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import faiss
import torch
import torch.nn.functional as F
from common import Row, quartiles, rounded, take_turns, write_csv
from torch import Tensor, nn

from noisybsd.methods.bsd import PosteriorTargets, sharpened
from noisybsd.methods.posterior import Posterior, SparsePosterior
from noisybsd.models.bank import FeatureBank, Neighbours, search

BATCH, DIM, NEIGHBOURS, KEPT = 256, 128, 50, 16
SIZES = ((50_000, 10), (1_000_000, 14), (100_000, 1000))
LARGE = (14_000_000, 1000)
COLUMNS = [
    *("part", "variant", "samples", "classes", "dim", "k", "memory_mb"),
    *("ms_median", "ms_quartile1", "ms_quartile3", "seconds", "cpu_seconds"),
    *("recall", "error_mean", "error_99", "argmax_agreement"),
    *("n", "how", "threads", "load_average"),
]


def memory_mb(module: nn.Module) -> float:
    return rounded(sum(x.nbytes for x in module.state_dict().values()) / 2**20)


def batches(samples: int, count: int, generator: torch.Generator) -> Tensor:
    """(count,B) random indices, each batch's distinct."""
    start = torch.randint(samples, (count, 1), generator=generator)
    # steps of a large odd number leave no two of a batch alike, and no two near each other
    return (start + torch.arange(BATCH) * 7919) % samples


# --- belief -------------------------------------------------------------------------------------


def belief_rows(full: bool, updates: int) -> Iterator[Row]:
    for samples, classes in (*SIZES, *([LARGE] if full else [])):
        yield from belief_pair(samples, classes, updates)
    samples, classes = LARGE
    memory = {"dense": 4 * classes, "sparse": 8 * KEPT + 4}  # bytes a sample
    for variant, size in memory.items():
        if variant == "dense" or not full:
            yield {
                "part": "belief",
                "variant": variant,
                "samples": samples,
                "classes": classes,
                "k": KEPT if variant == "sparse" else None,
                "memory_mb": rounded(samples * size / 2**20),
                "how": "extrapolated: bytes a sample times samples",
            }


def belief_pair(samples: int, classes: int, updates: int) -> Iterator[Row]:
    """Dense and sparse of one size in turns; of the largest size and of few classes one of them."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (samples,), generator=generator)
    states: dict[str, Posterior | SparsePosterior] = {}
    if (samples, classes) != LARGE:
        states["dense"] = Posterior(labels, classes)
    if classes > KEPT:
        states["sparse"] = SparsePosterior(labels, classes, top_k=KEPT)
    evidence = torch.randn(BATCH, classes, generator=generator).mul_(3).softmax(dim=1)
    order = iter(batches(samples, len(states) * (updates + 2), generator))

    def update(state: Posterior | SparsePosterior) -> None:
        index = next(order)
        state.observe(index, evidence)
        state.mean(index)

    times = take_turns({name: partial(update, state) for name, state in states.items()}, updates)
    for name, state in states.items():
        row: Row = {
            "part": "belief",
            "variant": name,
            "samples": samples,
            "classes": classes,
            "k": KEPT if name == "sparse" else None,
            "memory_mb": memory_mb(state),
            **quartiles([1000 * seconds for seconds in times[name]], "ms"),
            "n": updates,
            "how": "measured",
        }
        if len(states) == 2:
            row |= sparse_error(classes) if name == "sparse" else {}
        yield row


def predictions(
    classes: int, samples: int, visits: int, noise: float = 0.4
) -> tuple[Tensor, Iterator[Tensor]]:
    """Labels (N,), some wrong, and at each visit evidence (N,K) as the posterior gets it, sharpened.

    Each sample's logits are Gaussian with standard deviation 2 over the classes, those it looks like,
    and 10 higher at its clean class; each visit adds Gaussian noise of 1.4, and over the visits the
    whole is scaled from 0.1 to 1: of 1,000 classes the clean one is predicted 80 times in a hundred,
    at last with a mean confidence of 0.55 before it is sharpened.
    """
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(classes, (samples,), generator=generator)
    wrong = torch.rand(samples, generator=generator) < noise
    labels = torch.where(wrong, torch.randint(classes, (samples,), generator=generator), clean)
    alike = 2 * torch.randn(samples, classes, generator=generator)
    alike[torch.arange(samples), clean] += 10

    temperature = PosteriorTargets.EVIDENCE_TEMPERATURE

    def evidence() -> Iterator[Tensor]:
        for scale in torch.linspace(0.1, 1, visits):
            own = torch.randn(samples, classes, generator=generator)
            yield sharpened((scale * (alike + 1.4 * own)).softmax(dim=1), temperature)

    return labels, evidence()


def sparse_error(classes: int) -> Row:
    samples = 1000
    labels, evidence = predictions(classes, samples, visits=60)
    dense = Posterior(labels, classes)
    sparse = SparsePosterior(labels, classes, top_k=KEPT)
    index = torch.arange(samples)
    for row in evidence:
        dense.observe(index, row)
        sparse.observe(index, row)
    distance = (dense.mean() - sparse.mean()).abs().sum(dim=1) / 2
    agree = (dense.suggested() == sparse.suggested()).float().mean()
    return {
        "error_mean": rounded(float(distance.mean())),
        "error_99": rounded(float(distance.quantile(0.99))),
        "argmax_agreement": rounded(float(agree)),
    }


# --- bank and neighbours ------------------------------------------------------------------------


def clustered(count: int, groups: int = 14, modes: int = 50, directions: int = 24) -> Tensor:
    generator = torch.Generator().manual_seed(0)

    def units(*shape: int) -> Tensor:
        return F.normalize(torch.randn(*shape, DIM, generator=generator), dim=-1)

    centres = (units(groups, 1) + 0.5 * units(groups, modes)).flatten(0, 1)
    of_mode = torch.randn(len(centres), directions, DIM, generator=generator)
    of_mode /= (directions * DIM) ** 0.5
    embeddings = torch.empty(count, DIM)
    mode = torch.randint(len(centres), (count,), generator=generator)
    for number, rows in enumerate(
        mode.argsort().split(mode.bincount(minlength=len(centres)).tolist())
    ):
        within = torch.randn(len(rows), directions, generator=generator) @ of_mode[number]
        noise = torch.randn(len(rows), DIM, generator=generator) / DIM**0.5
        embeddings[rows] = F.normalize(centres[number] + 0.5 * within + 0.1 * noise, dim=1)
    return embeddings


def diffuse(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.arange(1, DIM + 1).float().rsqrt()
    return F.normalize(torch.randn(count, DIM, generator=generator).mul_(scale), dim=1)


def bank_rows(updates: int) -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    z = F.normalize(torch.randn(BATCH, DIM, generator=generator), dim=1)
    for samples, _ in SIZES[:2]:
        bank = FeatureBank(samples, DIM)
        order = iter(batches(samples, updates + 2, generator))

        def write(bank: FeatureBank, order: Iterator[Tensor]) -> None:
            bank.write(next(order), z)

        times = take_turns({"write": partial(write, bank, order)}, updates)
        yield {
            "part": "bank",
            "samples": samples,
            "dim": DIM,
            "memory_mb": memory_mb(bank),
            **quartiles([1000 * seconds for seconds in times["write"]], "ms"),
            "n": updates,
            "how": "measured",
        }
    yield {
        "part": "bank",
        "samples": LARGE[0],
        "dim": DIM,
        "memory_mb": rounded(LARGE[0] * (4 * DIM + 1) / 2**20),
        "how": "extrapolated: bytes a sample times samples",
    }


def search_row(variant: str, bank: Tensor, engine: str) -> Row:
    """One search of all rows, each for its neighbours."""
    wall, work = time.perf_counter(), time.process_time()
    found = search(bank, NEIGHBOURS, engine=engine)
    wall, work = time.perf_counter() - wall, time.process_time() - work
    return {
        "part": "search",
        "variant": f"{engine}, {variant}",
        "samples": len(bank),
        "dim": DIM,
        "k": NEIGHBOURS,
        "memory_mb": rounded(bank.nbytes / 2**20),
        "seconds": rounded(wall),
        "cpu_seconds": rounded(work),
        "recall": rounded(recall(bank, found)),
        "n": 1,
        "how": "measured",
    }


def recall(bank: Tensor, found: Neighbours, queries: int = 2000) -> float:
    """By similarity: which of equal neighbours is found does not matter."""
    rows = torch.randperm(len(bank), generator=torch.Generator().manual_seed(1))[:queries]
    exact = search(bank, NEIGHBOURS + 1, queries=bank[rows], engine="torch")  # the first is itself
    return float((found.similarity[rows] >= exact.similarity[:, -1:] - 1e-6).float().mean())


def extrapolated(row: Row, samples: int, power: float) -> Row:
    factor = (samples / row["samples"]) ** power
    return {
        **row,
        "samples": samples,
        "memory_mb": rounded(samples * DIM * 4 / 2**20),
        "seconds": rounded(row["seconds"] * factor, 2),
        "cpu_seconds": rounded(row["cpu_seconds"] * factor, 2),
        "recall": None,
        "n": None,
        "how": f"extrapolated from {row['samples']:,} samples, as N^{power:g}",
    }


def search_rows(full: bool) -> Iterator[Row]:
    small = clustered(50_000)
    search(small[:5000], NEIGHBOURS, engine="ivf")  # faiss loads, threads start
    exact = search_row("clustered", small, "exact")
    yield exact
    yield search_row("clustered", small, "ivf")
    yield search_row("diffuse", diffuse(50_000), "ivf")
    largest = search_row("clustered", clustered(1_000_000 if full else 200_000), "ivf")
    yield largest
    if not full:
        yield extrapolated(largest, 1_000_000, 1.5)
    yield extrapolated(exact, 1_000_000, 2)
    yield extrapolated(largest, LARGE[0], 1.5)
    yield extrapolated(exact, LARGE[0], 2)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="CSV to write; default: only print")
    parser.add_argument(
        "--full", action="store_true", help="the large sizes too: 10 GB, many minutes"
    )
    parser.add_argument("--parts", default="belief,bank,search", help="with commas")
    parser.add_argument("--updates", type=int, default=200, help="updates timed")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)

    parts = {
        "belief": lambda: belief_rows(args.full, args.updates),
        "bank": lambda: bank_rows(args.updates),
        "search": lambda: search_rows(args.full),
    }
    rows = []
    for part in args.parts.split(","):
        for row in parts[part]():
            load = f"{os.getloadavg()[0]:.1f}"
            measured = row["how"] == "measured"
            rows.append(
                {**row, "threads": args.threads, "load_average": load if measured else None}
            )
            print(row, flush=True)
    write_csv(args.out, [{name: row.get(name) for name in COLUMNS} for row in rows])


if __name__ == "__main__":
    main()
