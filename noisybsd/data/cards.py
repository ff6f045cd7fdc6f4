"""Dataset cards: what a dataset is, read from datasets/NAME.yaml or from a path.

A card is data, not code: where the files come from, their checksums, the folder layout (a name in
readers.registry.LAYOUTS), classes, input size, normalisation, label sets and published noise rates.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from noisybsd.errors import UserError, brief, did_you_mean
from noisybsd.files import resource, resource_names
from noisybsd.values import read_yaml

_CHECKSUM = r"^(md5:[0-9a-f]{32}|sha256:[0-9a-f]{64})$"


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts:
        raise ValueError(f"must be relative to data.root and inside it, got {path!r}")
    return path


_Relative = Annotated[str, AfterValidator(_inside)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Download(_Part):
    """A file that may be fetched without asking anyone."""

    file: _Relative = Field(description="where it goes, relative to data.root")
    url: str = Field(pattern=r"^https?://")
    checksum: str | None = Field(
        None, pattern=_CHECKSUM, description="null: the publisher gives none"
    )
    bytes: int | None = Field(None, ge=0, description="size; the server's file must have it")
    unpack: _Relative | None = Field(None, description="archive: the folder that unpacking makes")

    @property
    def makes(self) -> str:
        """What is in data.root once this is done."""
        return self.unpack or self.file


class LabelSet(_Part):
    """Training labels that come in a file of their own."""

    file: _Relative = Field(description="relative to data.root")
    key: str | tuple[str, ...] = Field(
        description="entry of the file that holds the given labels; or several, one an annotator's"
    )
    clean_key: str = Field(description="entry that holds the clean labels: it proves the order")
    noise_rate: float | None = Field(None, ge=0, le=1, description="as published")


class Card(_Part):
    name: str = Field(description="the file's name")
    title: str
    source: tuple[str, ...] = Field(min_length=1, description="official pages")
    licence: str
    licence_form: bool = Field(False, description="whether the owners want a signed form first")
    obtain: str = Field(description="how a person gets the data, and what goes where")
    layout: str = Field(description="name of a reader in readers.registry: LAYOUTS or EVALUATIONS")
    classes: tuple[str, ...] = Field((), description="in label order; empty: found in the data")
    superclasses: dict[str, tuple[str, ...]] = Field({}, description="name: its classes")
    train_images: int | None = Field(None, description="how many there should be")
    test_images: int | None = None
    size: int = Field(ge=4, le=8192, description="side of the network's input")
    stored_size: int | None = Field(
        None, ge=4, le=8192, description="image files: side before cropping to size; default: size"
    )
    channels: Literal[1, 3] = 3
    mean: tuple[Annotated[float, Field(ge=0, le=1)], ...] = Field(
        description="per channel, on the 0..1 scale"
    )
    std: tuple[Annotated[float, Field(ge=0.001, le=1000)], ...]
    clean: bool = Field(description="whether the training labels in the files count as clean")
    noise_rate: float | None = Field(None, ge=0, le=1, description="of these, as published")
    labels: dict[str, LabelSet] = Field({}, description="further label sets, by name")
    asymmetric: dict[str, str] = Field({}, description="class map of asymmetric noise")
    downloads: tuple[Download, ...] = ()
    checksums: dict[_Relative, Annotated[str, Field(pattern=_CHECKSUM)]] = Field(
        {}, description="official bytes: file, relative to data.root: `algorithm:hexdigest`"
    )
    corruptions: tuple[str, ...] = Field((), description="layout cifar_c: files to evaluate on")
    folders: tuple[str, ...] = Field((), description="layout test_folders: one per class")

    @model_validator(mode="after")
    def _consistent(self) -> Card:
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} numbers, channels={self.channels}"
                )
        if self.stored_size is not None and self.stored_size < self.size:
            raise ValueError(f"stored_size={self.stored_size} is less than size={self.size}")
        repeated = {name for name in self.classes if self.classes.count(name) > 1}
        if repeated:
            raise ValueError(f"classes: {', '.join(sorted(repeated))} is listed twice")
        for name in (name for pair in self.asymmetric.items() for name in pair):
            if name not in self.classes:
                raise ValueError(f"asymmetric: {did_you_mean(name, self.classes)}")
        grouped = [name for group in self.superclasses.values() for name in group]
        if grouped and sorted(grouped) != sorted(self.classes):
            wrong = sorted(set(grouped) ^ set(self.classes)) or ["a class listed twice"]
            raise ValueError(f"superclasses: must hold every class once; look at {wrong[0]}")
        return self

    @property
    def coarse(self) -> tuple[int, ...] | None:
        """(K,) the number of each class's superclass."""
        number = {name: i for i, group in enumerate(self.superclasses.values()) for name in group}
        return tuple(number[name] for name in self.classes) if number else None

    @property
    def asymmetric_map(self) -> dict[int, int] | None:
        """{class: what asymmetric noise turns it into}, as numbers."""
        number = {name: i for i, name in enumerate(self.classes)}
        return {number[a]: number[b] for a, b in self.asymmetric.items()} or None


def card_names() -> list[str]:
    return resource_names("datasets")


def load_card(name: str) -> Card:
    """Read a card by its name in datasets/, or by the path of a YAML file.

    Raises:
        UserError: for an unknown name, and for every mistake in the file with the file and the key.
    """
    path = resource(name, "datasets", "data.name")
    try:
        return Card.model_validate({"name": path.stem, **read_yaml(path, Card)})
    except ValidationError as error:
        raise UserError("\n".join(_explain(path, error))) from None


_PARTS: dict[str, type[BaseModel]] = {"downloads": Download, "labels": LabelSet}


def _explain(path: Path, error: ValidationError) -> list[str]:
    """One line for each mistake: file, key, value received, what is valid."""
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            part = _PARTS.get(str(item["loc"][0]), Card) if len(item["loc"]) > 1 else Card
            lines.append(
                f"{path}: {key}: unknown key: {did_you_mean(str(item['loc'][-1]), part.model_fields)}"
            )
        elif item["type"] == "missing":
            lines.append(f"{path}: {key}: is required and was not given")
        elif item["type"] == "value_error":
            lines.append(": ".join(filter(None, [str(path), key, str(item["ctx"]["error"])])))
        else:
            lines.append(f"{path}: {key}: {item['msg']}, got {brief(item['input'])}")
    return lines
