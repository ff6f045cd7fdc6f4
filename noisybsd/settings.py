"""The sections of the configuration as plain data: keys, types, defaults, and what each means."""

from __future__ import annotations

import ast
import importlib
import sys
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationInfo,
    field_validator,
)

from noisybsd.errors import did_you_mean
from noisybsd.files import PACKAGE, expanded


class Registry:
    """Marks a field whose choices are the keys of a literal dict in another module.

    Args:
        path: "module:DICT".
        more: further choices.
        open: a choice that begins so may go on in any way.
    """

    def __init__(self, path: str, *more: str, open: str | None = None):
        self.path, self.more, self.open = path, more, open

    def keys(self) -> list[str]:
        """The choices. A module not imported yet is read as text: torch takes seconds to import."""
        module, attribute = self.path.split(":")
        more = [*self.more] if self.open is None else [*self.more, f"{self.open}NAME"]
        if module in sys.modules:
            return [*more, *getattr(sys.modules[module], attribute)]
        source = PACKAGE.parent / f"{module.replace('.', '/')}.py"
        for statement in ast.parse(source.read_bytes()).body:
            match statement:
                case ast.AnnAssign(target=ast.Name(name), value=ast.Dict(keys)) if (
                    name == attribute
                ):
                    return [*more, *map(ast.literal_eval, filter(None, keys))]
        raise LookupError(f"{source}: no literal dict {attribute}")

    def check(self, value: str) -> str:
        if self.open is not None and value.startswith(self.open):
            return value
        if value not in self.keys():
            importlib.import_module(self.path.split(":")[0])  # it may add to its dict
        if value not in self.keys():
            raise ValueError(did_you_mean(value, self.keys()))
        return value


def named(registry: str, *more: str, open: str | None = None) -> Any:
    """The type of a string field that names an entry of a `Registry`."""
    entry = Registry(registry, *more, open=open)
    return Annotated[str, entry, AfterValidator(entry.check)]


def _at_home(text: str) -> str:
    """A path with `~` and `~user` replaced; other text as it is."""
    return str(expanded(text)) if text.startswith("~") or "\0" in text else text


PathText = Annotated[str, AfterValidator(_at_home)]  # a path, or a word in the place of one


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _as_meant(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `epochs=true`, which pydantic takes as 1, and `data.root=`, an empty shell variable."""
        assert info.field_name is not None
        annotation = cls.model_fields[info.field_name].annotation
        kinds = {annotation, *get_args(annotation)}
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError(f"got {str(value).lower()}; valid: a number")
        if value == "":
            raise ValueError("got nothing; leave the key out, or write a value")
        return value


class RunConfig(Section):
    dir: PathText | None = Field(
        None, description="run directory; default runs/<recipe>/<time>-<seed>"
    )
    resume: PathText = Field(
        "auto",
        description="auto: continue the unfinished run of the same configuration, if there is one; "
        "none: start anew; or the path of a run directory or checkpoint, also to train it longer, "
        "with larger epochs",
    )
    init: PathText | None = Field(
        None,
        description="start a new run from the weights of a run directory or checkpoint, and from its "
        "beliefs if images and labels are the same",
    )
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        description="save after an epoch once so many seconds have gone by since the last time, and always "
        "after the last epoch and at a signal; 0: after every epoch",
    )


class DataConfig(Section):
    name: PathText = Field(
        "digits", description="dataset card: a name in datasets/ or a path to a YAML"
    )
    root: PathText = Field("data", description="folder that holds the data")
    labels: PathText = Field(
        "default", description="which of the card's label sets to train on, or a label file's path"
    )
    manifest: PathText | None = Field(
        None, description="own data: CSV or Parquet with columns path, label[, clean_label, split]"
    )
    embeddings: PathText | None = Field(
        None,
        description="own data: a .npy whose row i is the embedding of row i of data.manifest, which training "
        "then needs in place of the images",
    )
    annotators: tuple[str, ...] = Field(
        (),
        description="columns of the label file or manifest, each with one annotator's labels; default: "
        "label_1, label_2, …, if no column is called label",
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="use the first n training images only; n of all classes where sorted",
    )
    test_limit: int | None = Field(
        None,
        ge=1,
        description="use the first n test images only: cheaper epochs, a coarser estimate",
    )
    verify: bool = Field(
        True, description="require the official bytes; false accepts others and says so in results"
    )
    download: bool = Field(True, description="download what is missing and may be downloaded")
    on_error: Literal["stop", "skip"] = Field(
        "stop", description="what to do about an unreadable image: stop, or skip and count it"
    )
    storage: Literal["auto", "resident", "stream"] = Field(
        "auto", description="keep images on the device, or stream them; auto: resident if they fit"
    )
    workers: int = Field(2, ge=0, le=1024, description="decoding processes when streaming")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="own data without a test split: the share held out"
    )
    folds: int | None = Field(
        None,
        ge=2,
        le=1000,
        description="own data without a test split: hold out one of so many parts, and not test_fraction",
    )
    fold: int = Field(0, ge=0, description="which of data.folds parts is held out, from 0")
    calibration: float = Field(
        0.0,
        ge=0,
        le=0.5,
        description="share of the training images held out to calibrate probabilities on, by their given "
        "labels; 0: only on the probes of bsd_plus, if there are 100 or more",
    )
    size: int | None = Field(
        None,
        ge=4,
        le=8192,
        description="image files: side of the network's input; default: the card's",
    )
    balanced: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="at most so many images of each given class in an epoch, drawn anew",
    )


class NoiseConfig(Section):
    name: named("noisybsd.data.noise:NOISE_MODELS", "none") = Field(  # type: ignore[valid-type]
        "none", description="synthetic label noise to inject into the training labels"
    )
    rate: float = Field(0.0, ge=0, le=1, description="noise rate of the synthetic noise")
    seed: int | None = Field(None, ge=0, description="seed of the noise; default: the run's seed")
    file: PathText | None = Field(None, description="transition matrix, for noise.name=matrix")


class NetworkConfig(Section):
    name: named("noisybsd.models.networks:NETWORKS", open="timm:") = Field(  # type: ignore[valid-type]
        "preact_resnet18", description="architecture; timm:NAME is any of timm's"
    )
    width: int | None = Field(
        None,
        ge=1,
        le=4096,
        description="base width; default: the architecture's own; frozen: of a further layer, default: none",
    )
    pretrained: bool = Field(
        False,
        description="start from the weights that others have trained, most of them on ImageNet",
    )
    weights: PathText | None = Field(
        None,
        description="start a backbone (timm:NAME, efficientnet_lite0) from this file of weights",
    )
    size: int | None = Field(
        None,
        ge=16,
        le=8192,
        description="side of the images that a backbone works on; default: data.size, or else its own",
    )
    frozen: bool = Field(
        False,
        description="keep the pretrained network as it is: features are computed once, and only heads learn",
    )
    cache: PathText | None = Field(
        None,
        description="folder that keeps the features of frozen networks; default: ~/.cache/noisybsd",
    )
    embedding_dim: int = Field(
        128, ge=2, le=16384, description="width of the projection head's output"
    )


class AugmentConfig(Section):
    name: named("noisybsd.data.views:VIEWS") = Field(  # type: ignore[valid-type]
        "cifar", description="family of weak and strong views"
    )
    views: tuple[Literal["weak", "strong"], ...] = Field(
        ("weak",),
        min_length=1,
        max_length=2,
        description="the views of an image in a step; beliefs and neighbours see the first",
    )
    flip: Literal["random", "alternating"] = Field(
        "random",
        description="mirror the weak view at random, or in every second epoch; the strong view at random",
    )
    mixup: float = Field(
        0.0, ge=0, le=1000, description="mix pairs of images, by Beta(mixup, mixup); 0: do not"
    )


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum")
    lr: float = Field(0.05, gt=0, le=1e9, description="peak learning rate")
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="how the learning rate falls from lr, after the warm-up, to min_lr"
    )
    min_lr: float = Field(0.0, ge=0, le=1e9, description="learning rate at the end of the run")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (adamw: beta1)")
    weight_decay: float = Field(5e-4, ge=0, le=1000, description="weight decay")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    norm_bias_lr: float = Field(
        1.0, gt=0, le=1000, description="batch-norm biases learn so many times as fast as the rest"
    )
    clip_norm: float | None = Field(None, gt=0, description="clip the gradient's norm to this")


class EmaConfig(Section):
    decay: float = Field(
        0.999, ge=0, lt=1, description="weight EMA, evaluated beside the raw weights; 0: none"
    )


class ContrastiveConfig(Section):
    name: named("noisybsd.methods.contrastive:CONTRASTIVE", "none") = Field(  # type: ignore[valid-type]
        "none", description="contrastive term; a method's preset chooses it"
    )
    weight: float = Field(
        1.0, ge=0, le=1000, description="weight of the contrastive term in the loss"
    )
    temperature: float = Field(
        0.3, gt=0, le=1000, description="temperature of the contrastive term"
    )


class NeighboursConfig(Section):
    k: int = Field(20, ge=0, description="nearest neighbours searched once an epoch; 0: no search")
    weight: float = Field(
        0.0,
        ge=0,
        le=1000,
        description="kappa: weight of the neighbours' mean belief as evidence; 0: none; of ssr a switch",
    )
    start_epoch: int = Field(
        5,
        ge=0,
        description="epochs before the first whose steps use what neighbours say; at least 1",
    )
    engine: named("noisybsd.models.bank:ENGINES") = Field(  # type: ignore[valid-type]
        "auto", description="how neighbours are searched"
    )


class TrackingConfig(Section):
    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="Weights & Biases; auto: online where a key is configured, else off"
    )
    project: str = Field("noisybsd", description="W&B project")
    entity: str | None = Field(None, description="W&B entity")
    group: str | None = Field(None, description="W&B group; default: recipe and method")
    tags: tuple[str, ...] = Field((), description="W&B tags")
    console: Literal["auto", "rich", "plain"] = Field(
        "auto", description="progress display; auto: rich in a terminal, plain lines elsewhere"
    )
