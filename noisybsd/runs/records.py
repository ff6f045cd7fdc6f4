"""What runs have written, checked once when it is read back, with the file and the field named.

People edit, cut and mix up these files. Their readers rely on what is checked here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, model_validator

from noisybsd.errors import UserError, brief
from noisybsd.files import read_text

RESULTS_SCHEMA = 1  # version of results.json


def _text(value: Any) -> str:
    """Text with surrogates too, as in the name of a file that is not in UTF-8; pydantic's own has none."""
    if not isinstance(value, str):
        raise ValueError("expected text")
    return value


Text = Annotated[str, PlainValidator(_text)]
Fraction = Annotated[float, Field(ge=0, le=1 + 1e-6)]  # a mean in float32 may exceed 1 a little
Seconds = Annotated[float, Field(ge=0)]


class Record(BaseModel):
    """Fields of their exact types, numbers finite; further fields are let through."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class Reliability(Record):
    """A reliability diagram: by bin of confidence, null where a bin is empty."""

    confidence: list[Fraction | None]
    accuracy: list[Fraction | None]
    count: list[Annotated[int, Field(ge=0)]]

    @model_validator(mode="after")
    def _alike(self) -> Reliability:
        if not len(self.confidence) == len(self.accuracy) == len(self.count):
            raise ValueError("confidence, accuracy and count differ in length")
        return self


class Data(Record):
    pixels_verified: bool | None = None


class Results(Record):
    """What other commands read of results.json."""

    test_accuracy_last: Fraction
    test_accuracy_last10_mean: Fraction
    test_accuracy_best: Fraction
    test_ece_last: Fraction
    network_passes: float = Field(ge=0)
    seconds: Seconds
    data_sha256: str
    test_accuracy_ema_last: Fraction | None = None
    test_ece_ema_last: Fraction | None = None
    label_correction_accuracy: Fraction | None = None
    noise_detection_auroc: Fraction | None = None
    memorised_fraction: Fraction | None = None
    noise_rate: Fraction | None = None
    reliability: Reliability | None = None
    reliability_ema: Reliability | None = None
    device: str | None = None
    hardware: str = ""
    git_commit: str | None = None
    versions: dict[str, str] = {}
    data: Data = Data()


class Epoch(Record):
    """A row of metrics.jsonl: numbers by name, null where one is not known."""

    __pydantic_extra__: dict[str, float | None]

    epoch: int = Field(ge=1)
    step: int | None = Field(None, ge=0)
    test_accuracy: Fraction


class Input(Record):
    """What a network takes and says.

    Args:
        class_names: K, in the order of the network's outputs.
        channels: C, 3 (RGB) or 1 (grey).
        stored_size: the central square of an image is resized to so many pixels a side, or, if it is
            smaller, enlarged to `size` at most;
        size: and the middle of that goes to the network, so many pixels a side.
        mean, std: (C,) of the channels, for pixels in [0, 1].
        backbone_sha256: of the weights of a frozen backbone, which are not in the checkpoint.
    """

    class_names: list[Text] = Field(min_length=1)
    channels: Literal[1, 3]
    stored_size: int
    size: int = Field(ge=1)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]
    backbone_sha256: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Input:
        fits = self.stored_size >= self.size and len(self.mean) == len(self.std) == self.channels
        if not fits:
            raise ValueError("its sizes, or its channels, do not go together")
        return self


def mistakes(model: type[BaseModel], content: Any) -> Iterator[str]:
    """One line for each field of `content` that is not as `model` has it; none if all are."""
    try:
        model.model_validate(content)
    except ValidationError as error:
        for item in error.errors():
            key = ".".join(map(str, item["loc"]))
            if item["type"] == "missing":
                yield f"it has no {key}"
            elif item["type"] == "value_error":
                yield f"{key} is {brief(item['input'])}" if key else str(item["ctx"]["error"])
            else:
                yield f"{key or 'it'} is {brief(item['input'])}: {item['msg']}"


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        UserError: names the file: not there, not readable, not JSON, or no object.
    """
    content = _parsed(read_text(path), f"{path}: damaged")
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged: it holds no JSON object")
    return content


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # a million brackets
        raise UserError(f"{where}: {error}") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def read_results(path: Path) -> dict[str, Any]:
    """The content of a results.json.

    Raises:
        UserError: names the file and the field: not there, damaged, or of another schema version.
    """
    remedy = "Delete it and train in that directory again: it is written anew from the checkpoint"
    try:
        results = read_json(path)
    except UserError as error:
        raise UserError(f"{error}. {remedy}") from None
    if results.get("schema") != RESULTS_SCHEMA:
        raise UserError(
            f"{path}: of schema version {results.get('schema')}; this noisybsd reads version "
            f"{RESULTS_SCHEMA}: use the noisybsd that made it"
        )
    for mistake in mistakes(Results, results):
        raise UserError(f"{path}: damaged: {mistake}. {remedy}")
    return results


HISTORY_REMEDY = (
    "Training writes it anew from the checkpoint: run it in that directory again, of a finished run after "
    "deleting results.json"
)


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, one for each epoch from the first on.

    Raises:
        UserError: names the file and the line: not there, not readable, or damaged.
    """
    rows = []
    try:
        for number, line in enumerate(read_text(path).splitlines(), start=1):
            where = f"{path}: damaged: line {number}"
            row = _parsed(line, where)
            for mistake in mistakes(Epoch, row):
                raise UserError(f"{where}: {mistake}")
            if row["epoch"] != number:
                raise UserError(f"{where}: epoch is {row['epoch']}, expected {number}")
            rows.append(row)
    except UserError as error:
        raise UserError(f"{error}. {HISTORY_REMEDY}") from None
    return rows


def check_config(content: Mapping[str, Any], where: str) -> None:
    """Refuse what is no run's record of its settings.

    Raises:
        UserError: begins with `where`.
    """
    missing = [key for key in ("recipe", "method", "seed", "epochs") if key not in content]
    if missing:
        raise UserError(f"{where}: damaged, or no run's: it has no {missing[0]}")
