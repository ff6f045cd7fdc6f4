"""The label table: what a run says of every training label, collected once and kept in files.

collect.py asks a trainer what it believes of each label, and what its network and each sample's
neighbours say. The `Findings` go with the run as labels.parquet, labels.csv and pred_probs.npz, and
all else follows from them (estimates.py, write.py) without the network.

Dimensions: N samples, the training ones and those held out of them; K classes, M test images.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.compute
import pyarrow.csv
import pyarrow.parquet

from noisybsd.data.names import UNKNOWN, as_text
from noisybsd.data.splits import Split
from noisybsd.errors import UserError, first_line
from noisybsd.files import write_atomically
from noisybsd.report.checked import array_mistakes, table_mistakes

BLOCK = 2**22  # numbers that are looked at together
FORMAT = 2  # of labels.parquet: raised where a column comes to mean another thing

Floats = npt.NDArray[Any]  # float32 or float64
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Findings:
    """What a run says about the labels it was given.

    Args:
        table: N rows in the dataset's order; `label_table` says which columns.
        arrays: float32 probabilities. `belief` (N,K), what training came to believe of each sample's class;
            `network` (N,K), the final network's predictions without augmentation, NaN where an image is
            unreadable; `neighbours` (N,K), the given labels of the nearest others, each an equal
            share, zeros if it has none; `test` (M,K), the predictions on the test set. The given
            labels, `labels` (N,) and `test_labels` (M,) int64. And `thumbnails` (N,64) float16, the grey
            values of 8x8 pixels, NaN where an image is unreadable. And `votes` (N,K), of data with several
            labels for an image.
        about: JSON-able: format (`FORMAT`), run, dataset, class_names, data_sha256, epoch, method,
            holds_belief (false: `belief` is what the network predicts), test_labels.
    """

    table: pyarrow.Table
    arrays: dict[str, npt.NDArray[Any]]
    about: dict[str, Any]

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column as an array; missing numbers are NaN."""
        return self.table[name].to_numpy(zero_copy_only=False)

    @property
    def held_out(self) -> Bools:
        """(N,), which samples training did not see, but held out to test or to calibrate on."""
        return self.table["held_out"].to_numpy()

    @property
    def seen(self) -> Bools:
        """(N,), of which samples the run can say something: trained on, or held out and readable."""
        readable = np.isfinite(self.column("final_prob"))
        return (self.column("visits") > 0) | (self.held_out & readable)

    @property
    def final_belief(self) -> Floats:
        """(N,K), the belief pooled with what the final network predicts: see `pooled`."""
        return pooled(self.arrays["belief"], self.arrays["network"])

    @property
    def trained(self) -> Findings:
        """The same without what was held out; all where every sample was, by one of several runs."""
        if not self.held_out.any() or self.held_out.all():
            return self
        arrays = {
            name: values if name in ("test", "test_labels") else values[~self.held_out]
            for name, values in self.arrays.items()
        }
        return Findings(self.table.filter(~self.held_out), arrays, self.about)

    @property
    def classes(self) -> int:
        return len(self.about["class_names"])

    @property
    def clean(self) -> Ints | None:
        """The clean labels (N,), UNKNOWN where nobody has verified the given one; None: nowhere."""
        if "clean" not in self.table.column_names:
            return None
        return self.table["clean"].fill_null(UNKNOWN).to_numpy()

    def write(self, directory: Path) -> None:
        """Write labels.parquet, labels.csv (the most suspicious first) and pred_probs.npz."""
        schema = {"noisybsd": json.dumps(self.about)}
        write_table(self.table.replace_schema_metadata(schema), directory)
        write_atomically(
            directory / "pred_probs.npz",
            lambda file: np.savez(file, allow_pickle=False, **self.arrays),
        )

    @classmethod
    def read(cls, directory: Path) -> Findings | None:
        """The findings that `write` wrote; None if they are missing, or of a version with another format.

        Raises:
            UserError: it is there and damaged.
        """
        table_path, arrays_path = directory / "labels.parquet", directory / "pred_probs.npz"
        if not (table_path.is_file() and arrays_path.is_file()):
            return None
        try:
            table = pyarrow.parquet.read_table(table_path)
            about = json.loads((table.schema.metadata or {}).get(b"noisybsd", b"null"))
            with np.load(arrays_path, allow_pickle=False) as content:
                arrays = dict(content)
        except Exception as error:  # a damaged file can raise anything
            either = f"it or {arrays_path.name} is not readable"
            raise _damaged(table_path, f"{either}: {first_line(error)}") from None
        if isinstance(about, dict) and about.get("format") != FORMAT:
            return None
        for mistake in table_mistakes(table, about):
            raise _damaged(table_path, mistake)
        for mistake in array_mistakes(arrays, table, about):
            raise _damaged(arrays_path, mistake)
        return cls(table, arrays, about)


def write_table(table: pyarrow.Table, directory: Path) -> None:
    """Write a label table as labels.parquet, and as labels.csv, the most suspicious first."""
    write_atomically(
        directory / "labels.parquet", lambda file: pyarrow.parquet.write_table(table, file)
    )
    ranked = table.take(pyarrow.compute.sort_indices(table["rank"]))
    near = [" ".join(map(str, row)) for row in ranked["neighbours"].to_pylist()]
    place = ranked.schema.get_field_index("neighbours")
    flat = ranked.set_column(place, "neighbours", pyarrow.array(near, pyarrow.string()))
    write_atomically(directory / "labels.csv", lambda file: pyarrow.csv.write_csv(flat, file))


def _damaged(path: Path, mistake: str) -> UserError:
    return UserError(f"{path}: damaged: {mistake}; delete it, and the report makes it again")


def label_table(
    train: Split,
    class_names: tuple[str, ...],
    final_belief: Floats,
    network: Floats,
    votes: Floats,
    neighbours: list[list[int]],
    *,
    network_prob: Floats,
    margin: Floats,
    visits: Floats,
    left_epoch: Ints,
    strength: Floats | None,
    identical_to: list[int | None] | None = None,
    in_test: list[bool] | None = None,
    held_out: Bools | None = None,
) -> pyarrow.Table:
    """One row for each sample, in the dataset's order, the held-out ones last; unknown values are null.

    | column | meaning |
    |---|---|
    | index, path | position in this table; image file, relative to data.root |
    | held_out | whether training did not see the sample: its belief is what the network predicts |
    | given, given_name | the given label |
    | suggested, suggested_name | the most probable class by the final belief, see `pooled` |
    | given_prob, suggested_prob | the final belief in either; null if nothing is known |
    | entropy | of the final belief, in nats; null if nothing is known |
    | strength | pseudo-count behind the belief, of a Dirichlet posterior |
    | left_epoch | first epoch, from 1, after which the belief favoured another class |
    | neighbour_agreement | share of the nearest neighbours with the same given label |
    | area_under_margin | mean over visits of logit(given) - max logit(other), Pleiss et al. 2020 |
    | network_prob | the network's probability of the given label at the last visit |
    | final_prob | the final network's probability of it, without augmentation |
    | visits | how often training saw the sample; 0: the row says nothing |
    | neighbours | indices of the nearest neighbours, nearest first |
    | identical_to | the first sample with the same pixels; null without a duplicate |
    | in_test | of a training image: whether a test image has the same pixels |
    | rank | 1 is the most suspicious: the least given_prob. Held-out samples, whose belief leans on no label,
      are ranked among themselves, and the two rankings are merged by their shares |
    | clean, clean_name, given_right, suggested_right | where the right label is known |

    Args:
        final_belief: (N,K), see `pooled`; rows sum to one.
        network: (N,K), the final network's probabilities; rows of NaN where it could not look.
        votes: (N,K) shares of the neighbours' given labels, zeros without neighbours.
        neighbours: N lists of indices.
        network_prob, margin, visits, left_epoch, strength: (N,) each; left_epoch from 0, -1: never.
        identical_to, in_test, held_out: (N,) each; default: none, no, no.
    """
    labels, rows = train.labels, np.arange(len(train))
    suggested = final_belief.argmax(axis=1)
    given_prob, final_prob = final_belief[rows, labels], network[rows, labels]
    # ties, such as samples never visited, are broken by the last prediction during training
    held_out = np.zeros(len(train), bool) if held_out is None else held_out
    unknown = (visits == 0) & ~(held_out & np.isfinite(final_prob))
    order = np.lexsort((network_prob, given_prob, unknown))
    place = np.empty(len(train))
    for part in (held_out, ~held_out):
        place[order[part[order]]] = (np.arange(part.sum()) + 0.5) / part.sum()
    order = np.lexsort((place, unknown))
    rank = np.empty(len(train), np.int64)
    rank[order] = rows + 1
    # in float64, so not of all rows at once
    entropy = np.concatenate([_entropy(final_belief[b]) for b in blocks(*final_belief.shape)])
    alone = votes.sum(axis=1) == 0
    paths = None if train.paths is None else [as_text(path) for path in train.paths]

    def numbers(values: Floats, unknown: Bools | None = None) -> pyarrow.Array:
        hidden = ~np.isfinite(values) if unknown is None else unknown
        return pyarrow.array(values, mask=hidden)

    def names(classes: Ints) -> pyarrow.Array:
        return pyarrow.array([class_names[c] for c in classes], pyarrow.string())

    columns: dict[str, Any] = {
        "index": rows,
        "path": pyarrow.nulls(len(train), pyarrow.string()) if paths is None else paths,
        "held_out": held_out,
        "given": labels,
        "given_name": names(labels),
        "suggested": suggested,
        "suggested_name": names(suggested),
        "given_prob": numbers(given_prob, unknown),
        "suggested_prob": numbers(final_belief.max(axis=1), unknown),
        "entropy": numbers(entropy.astype(np.float32), unknown),
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
        "identical_to": pyarrow.array(identical_to or [None] * len(train), pyarrow.int64()),
        "in_test": pyarrow.array(in_test or [False] * len(train), pyarrow.bool_()),
        "rank": rank,
    }
    if (clean := train.clean_labels) is not None:
        unknown = clean == UNKNOWN
        columns |= {
            "clean": pyarrow.array(clean, mask=unknown),
            "clean_name": pyarrow.compute.if_else(pyarrow.array(unknown), None, names(clean)),
            "given_right": pyarrow.array(labels == clean, mask=unknown),
            "suggested_right": pyarrow.array(suggested == clean, mask=unknown),
        }
    return pyarrow.table(columns)


def blocks(n: int, width: int) -> Iterator[slice]:
    """All n rows, in parts of about `BLOCK` numbers."""
    size = max(1, BLOCK // width)
    yield from (slice(start, min(n, start + size)) for start in range(0, n, size))


def _entropy(probabilities: Floats) -> Floats:
    """(n,K) to (n,) in nats."""
    positive = np.where(probabilities > 0, probabilities, 1).astype(np.float64)
    return (positive * np.log(1 / positive)).sum(axis=1)


def pooled(belief: Floats, network: Floats) -> Floats:
    """The final belief (N,K): what training came to believe, and what the final network predicts, as one.

    z[k] ∝ sqrt(y[k] p[k]), the logarithmic opinion pool of both with equal weights (Genest and Zidek 1986,
    "Combining Probability Distributions", section 3). The belief y averages predictions since the first
    epochs; the final network's prediction p for the image without augmentation knows more and remembers
    nothing. Where the image is unreadable (p is NaN), or both exclude each other, the belief stands alone.
    docs/LOG.md tells what the pool gains.

    Args:
        belief, network: (N,K), rows sum to one.
    """
    if belief is network:
        return belief
    both = np.sqrt(belief) * np.sqrt(network)
    total = both.sum(axis=1, keepdims=True)
    return np.where(total > 0, both / np.where(total > 0, total, 1), belief)
