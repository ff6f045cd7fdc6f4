"""The configuration: what a recipe may say, how it is read, and what is answered to a mistake.

A configuration is built in layers, later ones over earlier ones:
defaults (this file) < recipe (recipes/NAME.yaml or a path) < `key=value` from the command line.
A layer that names a `method` first applies that method's preset (methods.py), so `method=ce` on the
command line swaps the method and keeps the recipe's data, network, schedule and budget.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from yaml import YAMLError

from noisybsd.errors import UserError, did_you_mean
from noisybsd.methods import AVERAGED, METHODS

PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """`recipes` or `datasets`: inside the package in a wheel, beside it in a checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


class Registry:
    """Marks a field whose choices are the keys of a literal dict elsewhere, imported when asked."""

    def __init__(self, path: str, *more: str):
        self.path, self.more = path, more

    def keys(self) -> list[str]:
        module, attribute = self.path.split(":")
        return [*self.more, *getattr(importlib.import_module(module), attribute)]

    def check(self, value: str) -> str:
        if value not in self.keys():
            raise ValueError(did_you_mean(value, self.keys()))
        return value


def _named(registry: str, *more: str) -> Any:
    """The type of a string field that names an entry of `registry` ("module:DICT"), or one of `more`."""
    entry = Registry(registry, *more)
    return Annotated[str, entry, AfterValidator(entry.check)]


class Section(BaseModel):
    """A part of the configuration. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class RunConfig(Section):
    dir: str | None = Field(None, description="run directory; default runs/<recipe>/<time>-<seed>")
    resume: str = Field(
        "auto",
        description="auto: continue the unfinished run of the same configuration, if there is one; "
        "none: start anew; or the path of a run directory or checkpoint",
    )
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")


class DataConfig(Section):
    name: str = Field("digits", description="dataset card: a name in datasets/ or a path to a YAML")
    root: str = Field("data", description="folder that holds the data")
    labels: str = Field(
        "default", description="which of the card's label sets to train on, or a label file's path"
    )
    manifest: str | None = Field(
        None, description="own data: CSV or Parquet with columns path, label[, clean_label, split]"
    )
    limit: int | None = Field(
        None,
        ge=1,
        description="use the first n training images only; n of all classes where sorted",
    )
    test_limit: int | None = Field(
        None, ge=1, description="likewise of the test images: cheaper epochs, a coarser estimate"
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
    workers: int = Field(2, ge=0, description="decoding processes when streaming")
    test_fraction: float = Field(
        0.2, gt=0, lt=1, description="own data without a test split: the share held out"
    )
    size: int | None = Field(
        None, ge=4, description="image files: side of the network's input; default: the card's"
    )
    balanced: int | None = Field(
        None, ge=1, description="at most so many images of each given class in an epoch, drawn anew"
    )


class NoiseConfig(Section):
    name: _named("noisybsd.noise:NOISE_MODELS", "none") = Field(  # type: ignore[valid-type]
        "none", description="synthetic label noise to inject into the training labels"
    )
    rate: float = Field(0.0, ge=0, le=1, description="noise rate of the synthetic noise")
    seed: int | None = Field(None, ge=0, description="seed of the noise; default: the run's seed")
    file: str | None = Field(None, description="transition matrix, for noise.name=matrix")


class NetworkConfig(Section):
    name: _named("noisybsd.networks:NETWORKS") = Field(  # type: ignore[valid-type]
        "preact_resnet18", description="architecture"
    )
    width: int | None = Field(None, ge=1, description="base width; default: the architecture's own")
    pretrained: bool = Field(False, description="start from torchvision's ImageNet weights")
    embedding_dim: int = Field(128, ge=2, description="width of the projection head's output")


class AugmentConfig(Section):
    name: _named("noisybsd.augment:VIEWS") = Field(  # type: ignore[valid-type]
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
        0.0, ge=0, description="mix pairs of images, by Beta(mixup, mixup); 0: do not"
    )


class OptimizerConfig(Section):
    name: Literal["sgd", "adamw"] = Field("sgd", description="sgd has Nesterov momentum")
    lr: float = Field(0.05, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "linear"] = Field(
        "cosine", description="how the learning rate falls from lr, after the warm-up, to min_lr"
    )
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the run")
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum (adamw: beta1)")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay")
    warmup_epochs: float = Field(1.0, ge=0, description="epochs of linear warm-up")
    norm_bias_lr: float = Field(
        1.0, gt=0, le=1000, description="batch-norm biases learn so many times as fast as the rest"
    )
    clip_norm: float | None = Field(None, gt=0, description="clip the gradient's norm to this")


class EmaConfig(Section):
    decay: float = Field(
        0.999, ge=0, lt=1, description="weight EMA, evaluated beside the raw weights; 0: none"
    )


class PosteriorConfig(Section):
    prior_strength: float = Field(
        8.0, ge=0, description="c: pseudo-count of the given label in the prior"
    )
    prior_floor: float = Field(
        1e-3, gt=0, description="eps: pseudo-count of every other class in the prior"
    )
    discount: float = Field(0.8, gt=0, le=1, description="gamma: what stays of old evidence")
    top_k: int | None = Field(
        None,
        ge=2,
        description="keep so many classes of each sample apart and the others together, for many "
        "classes; null: all",
    )
    temperature: float = Field(
        0.7,
        ge=0.1,
        le=1,
        description="T sharpens the prediction that is evidence: p^(1/T), normalised; 1: the paper's",
    )
    target_temperature: float = Field(
        0.25,
        ge=0.1,
        le=1,
        description="sharpens the belief likewise where it is the target; 1: the paper's",
    )
    sharp_until: float | None = Field(
        0.5,
        ge=0,
        lt=0.9,
        description="share of the run after which these two temperatures rise, to 1 at nine tenths of it; "
        "null: never",
    )
    agreement_temperature: float | None = Field(
        0.25,
        ge=0.1,
        le=1,
        description="a visit counts as much as two views' predictions, sharpened to this temperature, "
        "agree; null: fully, the paper's",
    )
    align: bool = Field(
        True,
        description="scale predictions so that classes are as frequent in them as in the given labels; "
        "false: the paper's",
    )
    label_evidence: bool = Field(
        True,
        description="at every visit the given label is evidence too, for as much as it has shown "
        "itself to be worth; false: only in the prior, the paper's",
    )
    evidence_share: float = Field(
        0.75,
        ge=0,
        le=1,
        description="what labels are worth is learned from so much evidence, the rest predictions",
    )
    observe: Literal["weak", "mean"] = Field(
        "weak", description="evidence: the first view's prediction, or the mean over all views"
    )


class ContrastiveConfig(Section):
    name: _named("noisybsd.contrastive:CONTRASTIVE", "none") = Field(  # type: ignore[valid-type]
        "none", description="contrastive term; a method's preset chooses it"
    )
    weight: float = Field(1.0, ge=0, description="weight of the contrastive term in the loss")
    temperature: float = Field(0.3, gt=0, description="temperature of the contrastive term")
    warmup_epochs: float = Field(0.0, ge=0, description="epochs over which the weight rises from 0")


class NeighboursConfig(Section):
    k: int = Field(20, ge=0, description="nearest neighbours searched once an epoch; 0: no search")
    weight: float = Field(
        0.0, ge=0, description="kappa: weight of the neighbours' mean belief as evidence; 0: none"
    )
    start_epoch: int = Field(
        5, ge=0, description="epochs before the first whose steps use that evidence; at least 1"
    )
    engine: _named("noisybsd.bank:ENGINES") = Field(  # type: ignore[valid-type]
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


class Config(Section):
    """One run, whole. `load_config` builds it; `config.yaml` in a run directory is its record."""

    recipe: str = Field(description="recipe: a name in recipes/ or a path to a YAML")
    method: _named("noisybsd.methods:METHODS") = Field(  # type: ignore[valid-type]
        "bsd_supcon", description="method: a preset of target rule, loss and contrastive term"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initialisation, order, views, noise")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="forward pass in bf16 autocast or fp32 (on cuda with TF32); auto: bf16 on cuda",
    )
    epochs: int = Field(300, ge=1, description="passes over the training set")
    batch_size: int = Field(
        256, ge=2, description="images per step, of all processes together where there are many"
    )
    compile: bool = Field(False, description="compile the network (torch.compile) for speed")
    targets: _named("noisybsd.objectives:TARGET_RULES") = Field(  # type: ignore[valid-type]
        "labels", description="target rule; a method's preset chooses it"
    )
    loss: _named("noisybsd.objectives:LOSSES") = Field(  # type: ignore[valid-type]
        "cross_entropy", description="classification loss; a method's preset chooses it"
    )
    options: dict[str, float] = Field(
        {}, description="numbers of the method's own, see the list of methods"
    )
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    noise: NoiseConfig = NoiseConfig()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    posterior: PosteriorConfig = PosteriorConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        conflicts = [*self._conflicts(), *self._conflicts_of_parts(), *self._unknown_options()]
        if conflicts:
            raise ValueError("\n".join(conflicts))
        return self

    def _conflicts(self) -> Iterator[str]:
        """Settings that do not go together."""
        views, near, noise = self.augment.views, self.neighbours, self.noise
        if self.contrastive.name != "none" and len(views) != 2:
            yield (
                f"contrastive.name={self.contrastive.name} needs two views; "
                f"augment.views has {len(views)}: use augment.views=[weak,strong]"
            )
        if self.method in AVERAGED and self.ema.decay == 0:
            yield (
                f"method={self.method} is the network's weight average, which ema.decay=0 leaves out; use "
                "ema.decay=0.999 or another in (0,1)"
            )
        if near.weight > 0 and near.k == 0:
            yield f"neighbours.weight={near.weight} needs neighbours.k of at least 1, got 0"
        if near.weight > 0 and self.posterior.top_k is not None:
            yield (
                f"neighbours.weight={near.weight} keeps a vote for every class of every "
                f"sample: use posterior.top_k=null, got {self.posterior.top_k}"
            )
        if noise.name == "none" and noise.rate > 0:
            yield (
                f"noise.rate={noise.rate} needs noise.name (got none), e.g. noise.name=symmetric; for no "
                "synthetic noise use noise.rate=0 too"
            )

    def _conflicts_of_parts(self) -> Iterator[str]:
        """Views, mixup and neighbours that the target rule and the loss cannot do with."""
        from noisybsd.objectives import LOSSES, TARGET_RULES
        from noisybsd.parts import TargetRule

        rule, loss = TARGET_RULES[self.targets], LOSSES[self.loss]
        views, mixup, near = self.augment.views, self.augment.mixup, self.neighbours
        if loss.needs_two_views and len(views) != 2:
            yield (
                f"loss={self.loss} needs two views; augment.views has {len(views)}: "
                "use augment.views=[weak,strong]"
            )
        if loss.mixup == "beside" and mixup == 0:
            yield f"loss={self.loss} needs mixed images: use augment.mixup=1, got 0"
        suits = {"never": False, "beside": True, "instead": rule.mixup == "instead"}
        if mixup > 0 and not suits[loss.mixup]:
            fitting = ", ".join(name for name, each in LOSSES.items() if each.mixup == "instead")
            yield (
                f"augment.mixup={mixup} does not go with targets={self.targets} and loss={self.loss}, "
                f"which tell samples apart: use targets=labels and a loss of {fitting}"
            )
        if near.weight > 0 and rule.observe_neighbours is TargetRule.observe_neighbours:
            yield (
                f"neighbours.weight={near.weight} is evidence for a belief, and "
                f"targets={self.targets} takes none: use targets=posterior"
            )

    def _unknown_options(self) -> Iterator[str]:
        known = set(method_options(self.targets, self.loss))
        for key, value in self.options.items():
            if key not in known:
                valid = did_you_mean(key, known) if known else "no options"
                yield f"options.{key}={value}: method {self.method} takes {valid}"


def method_options(targets: str, loss: str) -> dict[str, float]:
    """What `options.*` a target rule and a loss take together, with the defaults."""
    from noisybsd.objectives import LOSSES, TARGET_RULES, options

    return {p.name: p.default for p in (*options(TARGET_RULES[targets]), *options(LOSSES[loss]))}


def load_config(arguments: Sequence[str]) -> Config:
    """Build the configuration from command-line arguments `key=value`.

    Raises:
        UserError: lists every mistake in names and values at once, or, without any, all settings that do not
            go together; each with its key, value and the valid options.
    """
    overrides = parse_overrides(arguments)
    name = overrides.pop("recipe", None)
    try:
        if name is None:
            raise UserError(f"no recipe given: use recipe=NAME, one of {', '.join(recipe_names())}")
        recipe = _read_recipe(str(name))
    except UserError as error:
        try:  # the other settings may hold mistakes too
            build_config({"recipe": str(name)}, overrides)
        except UserError as more:
            raise UserError(f"{error}\n{more}") from None
        raise
    try:
        return build_config(recipe, overrides)
    except UserError as error:
        in_file = set(_mistakes(recipe))
        raise UserError(
            "\n".join(
                f"{line} (in the recipe {name})" if line in in_file else line
                for line in str(error).splitlines()
            )
        ) from None


def _mistakes(recipe: Mapping[str, Any]) -> list[str]:
    try:
        build_config(recipe)
    except UserError as error:
        return str(error).splitlines()
    return []


def build_config(*layers: Mapping[str, Any]) -> Config:
    """Merge layers of (nested) settings, later ones over earlier ones, and validate the result."""
    merged: Any = OmegaConf.create({})
    for layer in layers:
        preset = METHODS.get(str(layer.get("method")), {})
        if preset:
            merged.pop("options", None)  # another method's
        merged = OmegaConf.merge(merged, OmegaConf.create(preset), OmegaConf.create(dict(layer)))
    try:
        values = OmegaConf.to_container(merged, resolve=True)
        return Config.model_validate(values)
    except OmegaConfBaseException as error:
        raise UserError(f"configuration: {str(error).splitlines()[0]}") from None
    except ValidationError as error:
        raise UserError("\n".join(_explain(error))) from None


def save_config(config: Config, path: Path, header: str) -> None:
    """Write the resolved configuration so that `recipe=PATH` reruns it (in a new run directory)."""
    values = config.model_dump(mode="json", exclude={"run": {"dir", "resume"}})
    text = "".join(f"# {line}\n" for line in header.splitlines())
    path.write_text(text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")


def recipe_names() -> list[str]:
    return sorted(path.stem for path in resource_dir("recipes").glob("*.yaml"))


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` arguments into nested settings.

    Raises:
        UserError: names the arguments that are not of that form, or whose value is not YAML.
    """
    wrong = [a for a in arguments if "=" not in a or a.startswith(("-", "="))]
    if wrong:
        raise UserError(
            "\n".join(
                f"argument {a!r}: settings are written key=value, e.g. epochs=10" for a in wrong
            )
            + "\n--help lists every key"
        )
    merged: Any = OmegaConf.create({})
    unreadable = []
    for argument in arguments:
        try:
            merged = OmegaConf.merge(merged, OmegaConf.from_dotlist([argument]))
        except (OmegaConfBaseException, YAMLError) as error:
            reason = " ".join(str(error).split())
            unreadable.append(f"argument {argument!r}: not readable as YAML: {reason}")
    if unreadable:
        raise UserError("\n".join(unreadable))
    overrides = OmegaConf.to_container(merged)
    assert isinstance(overrides, dict)
    return {str(key): value for key, value in overrides.items()}


def _read_recipe(name: str) -> dict[str, Any]:
    """Read recipes/NAME.yaml, or a YAML file by its path."""
    is_path = name.endswith((".yaml", ".yml")) or "/" in name
    path = Path(name).expanduser() if is_path else resource_dir("recipes") / f"{name}.yaml"
    if not path.is_file():
        if is_path:
            raise UserError(f"recipe={name}: there is no such file")
        raise UserError(f"recipe: {did_you_mean(name, recipe_names())}")
    content = read_yaml(path)
    if content.keys() >= {"recipe", "run", "targets"}:
        # what a run recorded reruns it as it was, also if it was made by an older version
        content = completed(content)
    return {"recipe": path.stem, **content}


# Settings that came later: what runs did before them, where their default does something else.
_BEFORE: dict[str, dict[str, Any]] = {
    "posterior": {
        "agreement_temperature": None,
        "align": False,
        "label_evidence": False,
        "evidence_share": 0.0,  # 0.9 in the last runs before, which cannot be told from the others
        "target_temperature": 1.0,
        "sharp_until": None,
    }
}


def read_record(path: Path) -> dict[str, Any]:
    """The settings that a run recorded, of an older version too."""
    return completed(read_yaml(path))


def completed(record: dict[str, Any]) -> dict[str, Any]:
    """A run's record with the settings that came later, as the run had them."""
    filled = {
        section: before | record[section]
        for section, before in _BEFORE.items()
        if isinstance(record.get(section), dict)
    }
    return record | filled


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        UserError: names the file and, for a syntax error, the line.
    """
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds {type(content).__name__}, expected a mapping key: value")
    return {str(key): value for key, value in content.items()}


def _fields(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, in order, sections expanded."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _explain(error: ValidationError) -> Iterator[str]:
    """One line for each mistake: key, value received, what is valid."""
    keys = dict(_fields())
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            for part, value in _settings(key, item["input"]):
                yield f"{part}: unknown key (got {value!r}); {_nearest_key(part, list(keys))}"
        elif item["type"] == "missing":
            yield f"{key}: is required and was not given"
        elif item["type"] == "model_type":
            inside = ", ".join(each for each in keys if each.startswith(f"{key}."))
            yield f"{key}: is a section, got {item['input']!r}; its keys: {inside}"
        elif item["type"] == "value_error" and not key:
            yield str(item["ctx"]["error"])
        elif item["type"] == "value_error":
            yield f"{key}: {item['ctx']['error']}"
        else:
            known = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
            valid = f" (valid: {_type_name(keys[known])})" if known in keys else ""
            yield f"{key}: {item['msg']}, got {item['input']!r}{valid}"


def _settings(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every dotted key from `key` on, and its value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _settings(f"{key}.{name}", inner)
    else:
        yield key, value


def _nearest_key(key: str, keys: list[str]) -> str:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    # a misspelt section name is compared as a whole key; a key without its section by its last part
    close = close or [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    section = {k.split(".")[0] for k in keys if "." in k}
    close = close or difflib.get_close_matches(key.split(".")[0], section, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else "--help lists every key"


def _type_name(field: FieldInfo) -> str:
    for entry in field.metadata:
        if isinstance(entry, Registry):
            return "|".join(entry.keys())
    return _annotation_name(field.annotation) + "".join(_bounds(field.metadata))


def _annotation_name(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"[{_annotation_name(get_args(annotation)[0])},…]"
    if get_origin(annotation) is dict:
        return "name=number"
    if get_args(annotation):  # X | None
        return " or ".join(_annotation_name(part) for part in get_args(annotation))
    return "null" if annotation is type(None) else annotation.__name__


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for entry in metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (bound := getattr(entry, attribute, None)) is not None:
                yield f" {sign} {bound}"


def _plain(value: Any) -> str:
    """A default as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def describe_keys() -> str:
    """Every key with type, default and meaning, for --help."""
    lines = []
    for key, field in _fields():
        default = "(required)" if field.is_required() else _plain(field.default)
        lines.append(f"  {key}={default}")
        lines.append(f"      {field.description} [{_type_name(field)}]")
    return "\n".join(lines)


def describe_methods() -> str:
    """Every method with its parts and options, for --help."""
    lines = []
    for name, preset in METHODS.items():
        parts = [f"{preset['loss']} to {preset['targets']}"]
        if preset["augment"]["mixup"] > 0:
            parts.append("mixup")
        if preset["contrastive"]["name"] != "none":
            parts.append(preset["contrastive"]["name"])
        if preset["neighbours"]["weight"] > 0:
            parts.append("neighbours")
        lines.append(f"  {name:<20}{' + '.join(parts)}")
        taken = method_options(preset["targets"], preset["loss"]) | preset.get("options", {})
        lines += [f"      options.{key}={_plain(value)}" for key, value in taken.items()]
    return "\n".join(lines)


def describe_recipes() -> str:
    """Every shipped recipe with the first line of its header, for --help."""
    names = recipe_names()
    width = max(map(len, names), default=0)
    lines = []
    for name in names:
        first = (resource_dir("recipes") / f"{name}.yaml").read_text("utf-8").split("\n", 1)[0]
        lines.append(f"  {name:<{width}}  {first.lstrip('# ')}")
    return "\n".join(lines)
