"""The public functions around data and runs: `inject_noise`, `load_dataset`, `train`, and its `Run`.

Dimensions: N samples, K classes, F features.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow
import pyarrow.parquet
import torch

from noisybsd.config import build_config, read_recipe
from noisybsd.data import dataset, noise
from noisybsd.errors import UserError, brief, did_you_mean
from noisybsd.methods.beliefs import as_tensor, is_number, refuse_masked, whole_number
from noisybsd.runs.records import read_results
from noisybsd.settings import DataConfig

if TYPE_CHECKING:
    from noisybsd.engine.classifier import Classifier

Labels = npt.NDArray[np.int64]


def inject_noise(
    labels: Any,
    kind: str,
    rate: float,
    seed: int = 0,
    *,
    num_classes: int | None = None,
    class_map: Mapping[int, int] | None = None,
    superclasses: Sequence[int] | None = None,
    features: Any = None,
    matrix: Any = None,
) -> Labels:
    """Labels with synthetic noise, (N,) int64. One seed is one set of labels, on every machine.

    Args:
        labels: (N,) integers from 0 to K-1, the true classes; not changed.
        kind: "symmetric", "symmetric_exclusive", "asymmetric", "superclass_next", "superclass_random",
            "block5", "pairflip", "plus_one", "instance" or "matrix"; noisybsd/data/noise.py has their papers.
        rate: of the noise in the sense of its kind, in [0,1]. Of symmetric noise, as many papers count it, a
            share of 1/K keeps the true class. For "matrix" 0, for the matrix has its rates.
        num_classes: K; None: the largest label plus one.
        class_map: {true class: noisy class}, for "asymmetric".
        superclasses: (K,), for "superclass_next" and "superclass_random".
        features: (N,F), for "instance".
        matrix: (K,K), row: true class, for "matrix".

    Raises:
        ValueError: names the argument, the value and what is valid.

    Example:
        >>> inject_noise([0, 0, 0, 0, 0], "pairflip", 1.0, num_classes=3)
        array([1, 1, 1, 1, 1])
    """
    given = _numbers(labels, "labels")
    if num_classes is not None:
        num_classes = whole_number(num_classes, "num_classes", 2)
    elif given.dtype.kind in "iu" and given.min(initial=0) == 0:
        num_classes = int(given.max(initial=0)) + 1
    else:
        num_classes = 2  # the labels are wrong, and the answer says so
    if not isinstance(kind, str):
        raise UserError(f"kind: {did_you_mean(kind, noise.NOISE_MODELS)}")
    if not is_number(rate):
        raise UserError(f"rate: got {brief(rate)}, valid: 0 to 1")
    seed = whole_number(seed, "seed", 0)
    if class_map is not None:
        class_map = _class_map(class_map)
    if features is not None:
        features = _numbers(features, "features")
    if matrix is not None:
        matrix = _numbers(matrix, "matrix")
    names = {
        "asymmetric class map": "class_map",
        "noise.file": "matrix",
        "noise.name": "kind",
        "noise.rate": "rate",
        "noise.seed": "seed",
        "transition matrix": "matrix",
    }
    facts: dict[str, Any] = {
        "class_map": class_map,
        "superclasses": superclasses,
        "features": features,
        "matrix": matrix,
    }
    model = noise.NOISE_MODELS.get(kind)
    for fact, value in facts.items():
        kinds = [name for name, each in noise.NOISE_MODELS.items() if each.needs == fact]
        if value is not None and model is not None and kind not in kinds:
            raise UserError(f"{fact}: goes with kind={' or '.join(kinds)} only, got kind={kind}")
    if model is not None and model.needs is not None and facts[model.needs] is None:
        raise UserError(f"{model.needs}: got None, but kind={kind!r} needs {model.needs}")
    with _arguments(names):
        return noise.inject(given, kind, rate, num_classes, seed, **facts).labels


def load_dataset(name: str, root: str | Path = "data", **settings: Any) -> dataset.Dataset:
    """One of the datasets that noisybsd knows, as training has it: images and labels, without further noise.

    `dataset.train` and `dataset.test` have `images`, uint8 (N,C,S,S) or files that decode to that, `labels`
    and, where they are known, `clean_labels`, for measuring alone.

    Args:
        name: such as "cifar10n", "digits" or "own"; `python -m noisybsd.data` lists them.
        root: the folder that holds the data, or shall: what may be downloaded is.
        settings: the settings data.* of training, such as `labels="worst"`, `limit=1000`, `download=False`.

    Raises:
        ValueError: a setting that is wrong; or data that are missing or damaged, and how to get them.

    Example:
        >>> load_dataset("digits").train.images.shape
        torch.Size([1438, 1, 8, 8])
    """
    chosen = {"name": name, "root": str(root), **settings}
    keys = {f"data.{key}": key for key in (*DataConfig.model_fields, *settings)}
    with _arguments(keys):
        config = build_config({"recipe": "data"}, {"data": chosen})
        return dataset.load_dataset(config.data, config.noise, seed=0)


def _class_map(given: Any) -> dict[int, int]:
    if not isinstance(given, Mapping):
        raise UserError(f"class_map: got {brief(given)}; valid: {{true class: noisy class}}")
    return {
        whole_number(true, "class_map", 0): whole_number(noisy, "class_map", 0)
        for true, noisy in given.items()
    }


def _numbers(values: Any, argument: str) -> npt.NDArray[Any]:
    """An array of real numbers from a list, an array or a tensor; an array is not copied."""
    refuse_masked(values, argument)
    array = values
    if not isinstance(values, np.ndarray):
        tensor = as_tensor(values, argument).cpu()
        # NumPy knows no bfloat16
        array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    if array.dtype.kind not in "biuf":
        raise UserError(f"{argument}: got {array.dtype}; valid: numbers")
    return array


class Run:
    """A finished run, in the directory `path`."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not (self.path / "results.json").is_file():
            raise UserError(f"path: {self.path} holds no finished run; it has no results.json")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @property
    def results(self) -> dict[str, Any]:
        """results.json: metrics, settings, versions."""
        return read_results(self.path / "results.json")

    @property
    def labels(self) -> pyarrow.Table:
        """What the run says of each training label: one row for each, see docs/report.md."""
        file = self.path / "labels.parquet"
        if not file.is_file():
            self.report()
        return pyarrow.parquet.read_table(file)

    def report(self, *, top: int = 2000) -> Path:
        """Write the label report of the run, and return the path of its page.

        Args:
            top: how many samples to show.
        """
        from noisybsd.report.write import report  # here, as below: both import all of training

        whole_number(top, "top", 1)
        report(self.path, [], top)
        return self.path / "report.html"

    def corrected(self) -> Labels:
        """The most probable class of each training image, (N,) int64, by belief or prediction."""
        found: Labels = self.labels["suggested"].to_numpy()
        return found

    @property
    def classifier(self) -> Classifier:
        """The network of the run as a classifier of new images: `noisybsd.load(path)`."""
        from noisybsd.engine.classifier import load

        return load(self.path)


def train(recipe: str | Path, **settings: Any) -> Run:
    """Train as `python -m noisybsd.train` does, and return the run.

    The run has a directory, by default runs/<recipe>/<time>-<seed>; an unfinished run of the same settings is
    continued. Ctrl-C saves and raises KeyboardInterrupt.

    Args:
        recipe: the name of a recipe, or the path of a YAML file.
        settings: what to change of the recipe: `epochs=3`, a section as a dictionary, `noise={"rate": 0.2}`,
            or a dotted key, `**{"run.dir": "runs/mine"}`.

    Raises:
        ValueError: lists every mistake in the settings; or data that are missing or damaged.
        RuntimeError: the loss became NaN or infinite.
    """
    from noisybsd.training import trained

    config = build_config(read_recipe(str(recipe)), *map(_nested, settings.items()))
    return Run(trained(config))


def _nested(setting: tuple[str, Any]) -> dict[str, Any]:
    key, value = setting
    nested: Any = _as_settings(value)
    for part in reversed(key.split(".")):
        nested = {part: nested}
    return dict(nested)


def _as_settings(value: Any) -> Any:
    """Paths as text, in sections too."""
    if isinstance(value, Mapping):
        return {key: _as_settings(inner) for key, inner in value.items()}
    return str(value) if isinstance(value, Path) else value


@contextlib.contextmanager
def _arguments(names: Mapping[str, str]) -> Iterator[None]:
    """Let errors about settings speak of the arguments that these came from."""
    try:
        yield
    except UserError as error:
        text = str(error)
        for key, argument in names.items():  # but not what a path holds
            text = re.sub(rf"(?<![\w./\\-]){re.escape(key)}(?![\w/\\-])", argument, text)
        raise UserError(text) from None
