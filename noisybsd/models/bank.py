"""The feature bank: embeddings of all training samples, and their nearest neighbours.

Dimensions: N samples in the bank, D embedding width, Q queries, k neighbours, K classes, B batch.
Similarity is the inner product of unit vectors, which is the cosine.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from noisybsd import distributed
from noisybsd.errors import UserError, brief, did_you_mean

log = logging.getLogger(__name__)

# "auto" searches banks of more rows approximately
EXACT_LIMIT = {"cpu": 200_000, "cuda": 2_000_000}
RECALL_TARGET = 0.98  # share of the true neighbours that "ivf" has to find ...
RECALL_QUERIES = 256  # ... measured on that many random queries
MOST_CELLS = 2048  # that a query of "ivf" visits: faiss's limit on a GPU
BLOCK = {"cpu": 2**24, "cuda": 2**28}  # similarities that "torch" holds at a time


class Neighbours(NamedTuple):
    """The nearest neighbours of Q queries, nearest first.

    Attributes:
        similarity: (Q,k) float32; 0 for a missing neighbour.
        index: (Q,k) int64, rows of the bank; -1 for a missing neighbour.
    """

    similarity: Tensor
    index: Tensor  # type: ignore[assignment]


class FeatureBank(nn.Module):
    """The last embedding seen of every training sample.

    Rows start as zeros and not filled. On many processes each holds the rows of all samples.

    Args:
        num_samples: N.
        embedding_dim: D; of a network without a projection head the width of its features, 512 or more.
        dtype: in which embeddings are kept. After a forward pass in bf16, float16 keeps all that they
            are worth, in half of the memory and of the checkpoint.

    Attributes:
        features: (N,D) buffer of `dtype`.
        filled: (N,) bool buffer, true where an embedding was written.

    Example:
        >>> bank = FeatureBank(num_samples=3, embedding_dim=2)
        >>> bank.write(torch.tensor([2, 0]), torch.eye(2))
        >>> bank.search(k=1).index
        tensor([[ 2],
                [-1],
                [ 0]])
    """

    features: Tensor
    filled: Tensor

    def __init__(
        self, num_samples: int, embedding_dim: int, dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.register_buffer("features", torch.zeros(num_samples, embedding_dim, dtype=dtype))
        self.register_buffer("filled", torch.zeros(num_samples, dtype=torch.bool))

    @torch.no_grad()
    def write(self, index: Tensor, z: Tensor) -> None:
        """Keep the unit-length embeddings z (B,D) of the samples index (B,), which are distinct.

        Made for the training step: it does not wait for the device.

        Raises:
            UserError: index or z of another kind or shape.
        """
        if not isinstance(index, Tensor) or index.dtype != torch.int64 or index.ndim != 1:
            got = (
                f"{index.dtype} of shape {tuple(index.shape)}"
                if isinstance(index, Tensor)
                else brief(index)
            )
            raise UserError(f"index: got {got}; valid: torch.int64 of shape (B,)")
        shape = (len(index), self.features.shape[1])
        if not isinstance(z, Tensor) or z.shape != shape:
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else brief(z)
            raise UserError(f"z: got {got}; valid: {shape}")
        try:
            self.features.index_copy_(0, index, z.to(self.features.dtype))
        except IndexError:  # on a CPU; of a GPU it is CUDA's error
            raise UserError(
                f"index: got {int(index.min())} to {int(index.max())}; valid: 0 to "
                f"{len(self.features) - 1}"
            ) from None
        self.filled.index_fill_(0, index, True)

    def search(self, k: int, *, queries: Tensor | None = None, engine: str = "auto") -> Neighbours:
        """The k nearest filled rows of each query (Q,D), or of each row, itself excluded.

        Early in training, and with drop_last, some rows are not filled. They are nobody's
        neighbours and have none: their index is -1 and their similarity 0, which `vote` gives no
        weight. Where fewer than k others are filled, the last columns are -1 and 0 too.

        Returns:
            Neighbours of shape (Q,k), or (N,k) without queries; indices are rows of the bank.

        Raises:
            UserError: see `search`.
        """
        count, itself = len(self.features), queries is None
        _check_k(k, count - itself, itself)
        _check_queries(queries, self.features.shape[1])
        rows = self.filled.nonzero().squeeze(1)
        found = min(k, max(len(rows) - itself, 0))
        queried = rows if queries is None else torch.arange(len(queries), device=rows.device)
        shape = (count if queries is None else len(queries), k)
        similarity = torch.zeros(shape, device=rows.device)
        index = torch.full(shape, -1, device=rows.device)
        if found:
            features = self.features if len(rows) == count else self.features[rows]
            nearest = search(features, found, queries=queries, engine=engine)
            similarity[queried, :found] = nearest.similarity
            index[queried, :found] = rows[nearest.index]
        return Neighbours(similarity, index)


@torch.no_grad()
def search(
    bank_features: Tensor, k: int, *, queries: Tensor | None = None, engine: str = "auto"
) -> Neighbours:
    """The k rows of the bank with the largest inner product with each query.

    The same input gives the same result.

    Args:
        bank_features: (N,D), unit length.
        k: how many neighbours.
        queries: (Q,D), unit length, on the bank's device; None searches the bank for its own rows,
            each of which is excluded from its own neighbours, also where it has duplicates.
        engine: a key of `ENGINES`. "exact" and "ivf" are faiss's, on the bank's device; where that
            is a GPU that faiss cannot use, a warning says what is used instead. "ivf" is
            approximate: it visits as many cells as the `RECALL_TARGET` needs, by the recall it
            measures and logs. "torch" is exact, on the bank's device. "auto" takes "ivf" above
            `EXACT_LIMIT` rows, else "torch" on a GPU and "exact" on the CPU.

    Returns:
        Neighbours of shape (Q,k), Q = N without queries, on the bank's device.

    Raises:
        UserError: an unknown engine, a k that the bank cannot serve, or features that are not
            finite.
        RuntimeError: faiss in a forked process.
    """
    if engine not in ENGINES:
        raise UserError(f"engine: {did_you_mean(engine, ENGINES)}")
    itself = queries is None
    _check_k(k, len(bank_features) - itself, itself)
    _check_queries(queries, bank_features.shape[1])
    bank = bank_features.float()
    asked = bank if queries is None else queries.float()
    for name, features in {"bank": bank, "queries": asked}.items():
        bad = len(features) - int(features.isfinite().all(dim=1).sum())
        if bad:
            raise UserError(
                f"cannot search for neighbours: {bad} of {len(features)} rows of the {name} have "
                "values that are not finite; the training has probably diverged"
            )
    with torch.autocast(bank.device.type, enabled=False), _no_tf32():
        # on many processes, each searches for its share of the queries
        mine = asked[distributed.share(len(asked))]
        found = ENGINES[engine](bank, mine, k + itself)
        similarity, index = map(distributed.gather_rows, found)
    if itself:
        # Duplicates of a row may rank ahead of it, even all k + 1 of them. Move it last, where it
        # is found at all, and drop the last.
        row = torch.arange(len(bank), device=bank.device).unsqueeze(1)
        order = (index == row).byte().argsort(dim=1, stable=True)[:, :k]
        similarity, index = similarity.gather(1, order), index.gather(1, order)
    return Neighbours(similarity, index)


def _check_queries(queries: Any, width: int) -> None:
    if queries is None or (isinstance(queries, Tensor) and queries.shape[1:] == (width,)):
        return
    got = f"shape {tuple(queries.shape)}" if isinstance(queries, Tensor) else brief(queries)
    raise UserError(f"queries: got {got}; valid: a tensor of shape (Q, {width})")


def _check_k(k: int, largest: int, itself: bool) -> None:
    if not isinstance(k, int | np.integer) or not 1 <= k <= largest:
        raise UserError(
            f"k, neighbours.k: got {k}; valid: 1 to {largest}, the number of samples"
            + (" less the sample itself" if itself else "")
        )


def vote(targets: Tensor, neighbours: Neighbours, temperature: float) -> Tensor:
    """The neighbours' class distributions, averaged with weights proportional to exp(s / t).

    The weighting of Wu et al. 2018, arXiv 1805.01978, section 3.4, over soft targets.

    Args:
        targets: (N,K) class distributions of the bank's rows; or (N,) int64 classes, which need no
            one-hot matrix of N rows: K is then the largest of them plus one.
        neighbours: of Q queries.
        temperature: t; the smaller, the more the nearest count; math.inf for the plain mean.

    Returns:
        (Q,K) float32 distributions; rows without neighbours are zero, all others sum to one.

    Raises:
        UserError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise UserError(f"temperature: got {temperature}; valid: a number above 0")
    none = neighbours.index < 0
    weights = (neighbours.similarity / temperature).masked_fill(none, -math.inf).softmax(dim=1)
    weights, rows = weights.masked_fill(none, 0), neighbours.index.clamp(min=0)
    if targets.ndim == 1:
        votes = weights.new_zeros(len(rows), int(targets.max()) + 1)
        return votes.scatter_add_(1, targets[rows], weights)
    return F.embedding_bag(rows, targets.float(), mode="sum", per_sample_weights=weights)


def knn_accuracy(
    targets: Tensor, neighbours: Neighbours, labels: Tensor, temperature: float = 0.07
) -> float:
    """Accuracy, in [0,1], of classifying queries by the vote of their neighbours.

    Args:
        targets: (N,K) or (N,) int64, see `vote`.
        neighbours: of Q queries.
        labels: (Q,) int64, the queries' classes. Queries without neighbours do not count.
        temperature: see `vote`.

    Returns:
        The accuracy, NaN where no query has neighbours.
    """
    known = (neighbours.index >= 0).any(dim=1)
    correct = vote(targets, neighbours, temperature).argmax(dim=1) == labels
    return float((correct & known).sum() / known.sum())


@contextmanager
def _no_tf32() -> Iterator[None]:
    """TF32 has three digits: too few to tell the neighbours of a large bank apart."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


# --- engines: (bank (N,D), queries (Q,D), k) -> Neighbours; float32, 1 <= k <= N ---


def _auto(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    if len(bank) > EXACT_LIMIT[bank.device.type]:
        return _ivf(bank, queries, k)
    return (_torch if bank.is_cuda else _exact)(bank, queries, k)


def _torch(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    rows = max(1, BLOCK[bank.device.type] // len(bank))
    blocks = [(block @ bank.T).topk(k, dim=1) for block in queries.split(rows)]
    return Neighbours(torch.cat([b.values for b in blocks]), torch.cat([b.indices for b in blocks]))


def _exact(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    if bank.is_cuda and not _faiss_has_gpus():
        log.warning("neighbours.engine=exact: this faiss cannot use the GPU; torch searches there")
        return _torch(bank, queries, k)
    index = _on_device_of(bank, _faiss().IndexFlatIP(bank.shape[1]))
    index.add(_numpy(bank))
    return _ask(index, queries, k)


def _ivf(bank: Tensor, queries: Tensor, k: int) -> Neighbours:
    """Inverted file: k-means cells, of which each query visits the `nprobe` nearest."""
    if bank.is_cuda and not _faiss_has_gpus():
        log.warning("neighbours: this faiss cannot use the GPU; its ivf searches on the CPU")
    faiss = _faiss()
    count, dim = bank.shape
    # 256 cells for 50,000 rows and 2,048 for a million, of no fewer than the 39 rows that k-means
    # asks for.
    cells = 2 ** max(0, min(round(math.log2(1.5 * count**0.5)), int(math.log2(max(count / 39, 1)))))
    cpu_index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, cells, faiss.METRIC_INNER_PRODUCT)
    cpu_index.cp.max_points_per_centroid = 64
    index = _on_device_of(bank, cpu_index)
    features = _numpy(bank)
    index.train(features)
    index.add(features)

    picked = np.random.default_rng(0).permutation(len(queries))[:RECALL_QUERIES]
    sample = queries[torch.from_numpy(picked).to(queries.device)]
    kth = _torch(bank, sample, k).similarity[:, -1:]
    recall = 0.0
    for visited in [2**power for power in range(int(math.log2(min(cells, MOST_CELLS))) + 1)]:
        index.nprobe = visited
        # By similarity, not by index: which of equal neighbours is found does not matter.
        recall = float((_ask(index, sample, k).similarity >= kth - 1e-6).float().mean())
        if recall >= RECALL_TARGET:
            break
    say = log.info if recall >= RECALL_TARGET else log.warning
    say("ivf: %d of %d cells visited, recall %.4f", index.nprobe, cells, recall)

    similarity, found = _ask(index, queries, k)
    short = (found < 0).any(dim=1)  # the visited cells hold fewer than k rows
    if short.any():
        similarity[short], found[short] = _torch(bank, queries[short], k)
    return Neighbours(similarity, found)


ENGINES: dict[str, Callable[[Tensor, Tensor, int], Neighbours]] = {
    "auto": _auto,
    "exact": _exact,
    "ivf": _ivf,
    "torch": _torch,
}


@functools.cache
def _import_faiss() -> tuple[Any, int]:
    import faiss  # here, since it takes a while

    return faiss, os.getpid()


def _faiss() -> Any:
    faiss, importer = _import_faiss()
    if importer != os.getpid():
        raise RuntimeError(
            "faiss was used before this process was forked and would hang in it: search in the "
            "main process, start workers with 'spawn', or use neighbours.engine=torch"
        )
    return faiss


def _faiss_has_gpus() -> bool:
    faiss = _faiss()
    return hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0


def _on_device_of(bank: Tensor, index: Any) -> Any:
    """The empty faiss index, moved to the bank's GPU if it is on one and faiss can use it."""
    if bank.is_cuda and _faiss_has_gpus():
        faiss = _faiss()
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), bank.device.index, index)
    return index


def _ask(index: Any, queries: Tensor, k: int) -> Neighbours:
    similarity, found = index.search(_numpy(queries), k)
    device = queries.device
    return Neighbours(torch.from_numpy(similarity).to(device), torch.from_numpy(found).to(device))


def _numpy(x: Tensor) -> np.ndarray:
    return np.ascontiguousarray(x.detach().cpu().numpy())
