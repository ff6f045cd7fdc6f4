"""Dataset cards: what a dataset is, read from datasets/NAME.yaml or from a path.

A card is data, not code: where the files come from, their checksums, the folder layout (a name in
layouts.LAYOUTS), classes, input size, normalisation, label sets and published noise rates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisybsd.config import read_yaml, resource_dir
from noisybsd.errors import UserError, did_you_mean


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Download(_Part):
    """A file that may be fetched without asking anyone."""

    file: str = Field(description="where it goes, relative to data.root")
    url: str
    sha256: str | None = None
    md5: str | None = None
    bytes: int | None = Field(None, description="size, for the progress display")
    unpack: str | None = Field(None, description="archive: the folder or file that unpacking makes")


class LabelSet(_Part):
    """Training labels that come in a file of their own."""

    file: str = Field(description="relative to data.root")
    key: str = Field(description="entry of the file that holds the given labels")
    clean_key: str = Field(description="entry that holds the clean labels: it proves the order")
    noise_rate: float | None = Field(None, description="as published")


class Card(_Part):
    name: str
    title: str
    source: list[str] = Field(description="official pages")
    licence: str
    obtain: str = Field(description="how a person gets the data, and what goes where")
    layout: str = Field(description="name of a reader in layouts.LAYOUTS")
    options: dict[str, Any] = Field({}, description="arguments of the layout's reader")
    classes: tuple[str, ...] = Field((), description="in label order; empty: found in the data")
    superclasses: dict[str, tuple[str, ...]] = {}
    size: int = Field(ge=4, description="side of the network's input")
    stored_size: int | None = Field(
        None, ge=4, description="shorter side to which image files are decoded; default: size"
    )
    channels: int = Field(3, ge=1, le=4)
    mean: tuple[float, ...] = Field(description="per channel, on the 0..1 scale")
    std: tuple[float, ...]
    clean: bool = Field(description="whether the labels in the files count as clean")
    noise_rate: float | None = Field(None, description="of the labels in the files, as published")
    labels: dict[str, LabelSet] = Field({}, description="further label sets, by name")
    default_labels: str = Field("default", description="the label set that `default` stands for")
    asymmetric: dict[str, str] = Field({}, description="class map of asymmetric noise")
    downloads: tuple[Download, ...] = ()
    checksums: dict[str, str] = Field({}, description="file: `md5:…` or `sha256:…` of its bytes")

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} numbers, channels={self.channels}"
                )
        duplicates = {name for name in self.classes if self.classes.count(name) > 1}
        if duplicates:
            raise ValueError(f"classes lists {', '.join(sorted(duplicates))} twice")
        for pair in self.asymmetric.items():
            for name in pair:
                if name not in self.classes:
                    raise ValueError(f"asymmetric: {did_you_mean(name, self.classes)}")
        if self.default_labels not in ("default", *self.labels):
            raise ValueError(f"default_labels: {did_you_mean(self.default_labels, self.labels)}")
        return self


def card_names() -> list[str]:
    return sorted(path.stem for path in resource_dir("datasets").glob("*.yaml"))


def load_card(name: str) -> Card:
    """Read a card by its name in datasets/, or by the path of a YAML file.

    Raises:
        UserError: for an unknown name, and for every mistake in the file with the file and the key.
    """
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_path else resource_dir("datasets") / f"{name}.yaml"
    if not path.is_file():
        if is_path:
            raise UserError(f"data.name={name}: there is no such file")
        raise UserError(f"data.name: {did_you_mean(name, card_names())}")
    try:
        return Card.model_validate({"name": path.stem, **read_yaml(path)})
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, error))) from None


def _explain(path: Path, error: ValidationError) -> list[str]:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            parts = {"downloads": Download, "labels": LabelSet}
            model = parts.get(str(item["loc"][0]), Card) if len(item["loc"]) > 1 else Card
            hint = did_you_mean(str(item["loc"][-1]), model.model_fields)
            lines.append(f"{path}: {key}: unknown key: {hint}")
        elif item["type"] == "missing":
            lines.append(f"{path}: {key}: is required and was not given")
        elif item["type"] == "value_error":
            lines.append(f"{path}: {item['ctx']['error']}")
        else:
            lines.append(f"{path}: {key}: {item['msg']}, got {item['input']!r}")
    return lines
