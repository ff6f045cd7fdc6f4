"""The configuration: what a recipe may say, and how it is read.

A configuration is built in layers, later ones over earlier ones:
defaults (here and in settings.py) < recipe (recipes/NAME.yaml or a path) < `key=value` from the command line.
The defaults include the preset of the default method (methods/presets.py). A layer with a `method` first
applies that method's preset, so `method=ce` on the command line swaps the method and keeps the recipe's data,
network, schedule and budget.
"""

from __future__ import annotations

import difflib
import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    Field,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from noisybsd.errors import UserError, brief
from noisybsd.files import resource, resource_names
from noisybsd.keys import answers, type_name
from noisybsd.methods.presets import AVERAGED, METHODS
from noisybsd.settings import (
    AugmentConfig,
    ContrastiveConfig,
    DataConfig,
    EmaConfig,
    NeighboursConfig,
    NetworkConfig,
    NoiseConfig,
    OptimizerConfig,
    RunConfig,
    Section,
    TrackingConfig,
    named,
)
from noisybsd.values import (
    DEEPEST,
    Unreadable,
    annotation_of,
    is_unicode,
    merge,
    read_value,
    read_yaml,
)


class Config(Section):
    """One run, whole. `load_config` builds it; `config.yaml` in a run directory is its record."""

    recipe: str = Field(description="recipe: a name in recipes/ or a path to a YAML")
    method: named("noisybsd.methods.presets:METHODS") = Field(  # type: ignore[valid-type]
        "bsd_plus", description="method: a preset of target rule, loss and contrastive term"
    )
    seed: int = Field(0, ge=0, lt=2**31, description="seed of initialisation, order, views, noise")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: cuda if there is one")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto",
        description="forward pass in bf16 autocast or fp32 (on cuda with TF32); auto: bf16 on cuda",
    )
    epochs: int = Field(300, ge=1, le=10**6, description="passes over the training set")
    batch_size: int = Field(256, ge=2, description="images per step, of all processes together")
    compile: bool = Field(False, description="compile network and views (torch.compile) for speed")
    targets: named("noisybsd.methods.registry:TARGET_RULES") = Field(  # type: ignore[valid-type]
        "labels", description="target rule; a method's preset chooses it"
    )
    loss: named("noisybsd.methods.registry:LOSSES") = Field(  # type: ignore[valid-type]
        "cross_entropy", description="classification loss; a method's preset chooses it"
    )
    options: dict[str, Any] = Field(  # each as its part says, see _typed_options
        {}, description="the method's own options, see the list of methods"
    )
    run: RunConfig = RunConfig()
    data: DataConfig = DataConfig()
    noise: NoiseConfig = NoiseConfig()
    network: NetworkConfig = NetworkConfig()
    augment: AugmentConfig = AugmentConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    ema: EmaConfig = EmaConfig()
    contrastive: ContrastiveConfig = ContrastiveConfig()
    neighbours: NeighboursConfig = NeighboursConfig()
    tracking: TrackingConfig = TrackingConfig()

    @field_validator("options", mode="before")
    @classmethod
    def _typed_options(cls, given: Any, info: ValidationInfo) -> Any:
        """Every option as its part's annotation says; lists all mistakes."""
        if not isinstance(given, dict) or not info.data.keys() >= {"method", "targets", "loss"}:
            return given  # other mistakes come first
        known = method_options(info.data["targets"], info.data["loss"])
        typed, mistakes = {}, []
        for name, value in given.items():
            try:
                if name not in known:
                    raise ValueError(_unknown_option(name, value, known, info.data["method"]))
                typed[name] = _option_value(name, value, known[name])
            except ValueError as error:
                mistakes.append(str(error))
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return typed

    @field_validator("recipe")
    @classmethod
    def _is_a_name(cls, value: str) -> str:
        """Refuse a name that leads elsewhere: run directories are made below runs/<recipe>/."""
        if value in (".", "..") or {"/", "\0"} & set(value):
            raise ValueError(f"got {brief(value)}; valid: a name without / in it")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        conflicts = [*self._conflicts(), *self._conflicts_of_parts()]
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
        if near.weight > 0 and self.options.get("top_k") is not None:
            yield (
                f"neighbours.weight={near.weight} keeps a vote for every class of every "
                f"sample: use options.top_k=null, got {self.options['top_k']}"
            )
        net = self.network
        if net.frozen and not (net.pretrained or net.weights or self.data.embeddings):
            yield (
                f"network.frozen=true keeps {net.name} as it is, with random weights; use "
                "network.pretrained=true or network.weights=FILE"
            )
        if net.frozen and (self.augment.flip == "alternating" or self.compile):
            yield (
                "network.frozen=true goes with augment.flip=random and compile=false: views are embedded once"
            )
        if self.augment.flip == "alternating" and "weak" not in views:
            yield (
                f"augment.flip=alternating mirrors the weak view, and augment.views=[{','.join(views)}] has "
                "none: use augment.flip=random"
            )
        if self.data.fold >= (self.data.folds or 1):
            yield (
                f"data.fold={self.data.fold} counts from 0 and needs a larger data.folds, got "
                f"{'none' if self.data.folds is None else self.data.folds}"
            )
        share = DataConfig.model_fields["test_fraction"].default
        if self.data.folds is not None and self.data.test_fraction != share:
            yield (
                f"data.folds={self.data.folds} says what is held out, and not data.test_fraction="
                f"{self.data.test_fraction}: leave one of them out"
            )
        if noise.name == "none" and noise.rate > 0:
            yield (
                f"noise.rate={noise.rate} needs noise.name (got none), e.g. noise.name=symmetric; for no "
                "synthetic noise use noise.rate=0 too"
            )

    def _conflicts_of_parts(self) -> Iterator[str]:
        """Views, mixup and neighbours that the target rule and the loss cannot do with."""
        from noisybsd.methods.parts import TargetRule
        from noisybsd.methods.plain import LabelTargets
        from noisybsd.methods.registry import LOSSES, TARGET_RULES

        rule, loss = TARGET_RULES[self.targets], LOSSES[self.loss]
        views, mixup, near = self.augment.views, self.augment.mixup, self.neighbours
        if loss.needs_two_views and len(views) != 2:
            yield (
                f"loss={self.loss} needs two views; augment.views has {len(views)}: "
                "use augment.views=[weak,strong]"
            )
        if rule.only_predictions and not loss.learns_labels:
            yield (
                f"targets={self.targets} is a memory of predictions, and loss={self.loss} learns nothing "
                f"else, no given label: use loss={self.targets}"
            )
        if rule is not LabelTargets and not loss.learns_targets:
            yield (
                f"loss={self.loss} learns the given labels, and nothing of targets={self.targets}: use "
                "targets=labels"
            )
        if rule.weighted and loss.learns_targets and not loss.takes_weights:
            fitting = ", ".join(name for name, each in LOSSES.items() if each.takes_weights)
            yield (
                f"targets={self.targets} gives samples weights, some of them 0, and loss={self.loss} takes "
                f"none: use a loss of {fitting}"
            )
        if self.options.get("probe") and loss.learns_targets and not loss.takes_weights:
            yield (
                f"options.probe=true leaves some samples out of the loss, and loss={self.loss} leaves out "
                "none: use options.probe=false"
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
        if near.weight == 0 and rule.needs_neighbours:
            yield (
                f"targets={self.targets} selects by the votes of neighbours: use neighbours.weight=1, got 0"
            )
        if self.data.calibration > 0 and rule.belief is TargetRule.belief:
            yield (
                f"data.calibration={self.data.calibration} learns how labels err from a belief, and "
                f"{self._chosen_targets()} keeps none: use {_methods_with('belief')}, or data.calibration=0"
            )
        if near.weight > 0 and rule.observe_neighbours is TargetRule.observe_neighbours:
            yield (
                f"neighbours.weight={near.weight} is evidence for a belief, and {self._chosen_targets()} "
                f"takes none: use {_methods_with('observe_neighbours')}, or neighbours.weight=0"
            )

    def _chosen_targets(self) -> str:
        """The setting that chose the target rule: the method, or targets beside it."""
        method = f"method={self.method}"
        preset = METHODS[self.method]["targets"]
        return method if self.targets == preset else f"{method} with targets={self.targets}"


def _methods_with(ability: str) -> str:
    """The methods, as one would type them, whose target rule does what the base of all rules does not."""
    from noisybsd.methods.parts import TargetRule
    from noisybsd.methods.registry import TARGET_RULES

    able = [
        name
        for name, preset in METHODS.items()
        if getattr(TARGET_RULES[preset["targets"]], ability) is not getattr(TargetRule, ability)
    ]
    able.sort(key=lambda name: name != Config.model_fields["method"].default)  # that one first
    return f"method={able[0]} or one of {', '.join(able[1:])}"


def method_options(targets: str, loss: str) -> dict[str, FieldInfo]:
    """What `options.*` a target rule and a loss take together: types and defaults."""
    # here and elsewhere below, since torch takes seconds to import and --help needs none of it
    from noisybsd.methods.registry import LOSSES, TARGET_RULES, options

    return options(TARGET_RULES[targets]) | options(LOSSES[loss])


def _unknown_option(name: str, value: Any, known: Collection[str], method: str) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    valid = f"did you mean options.{close[0]}? " if close else ""
    takes = ", ".join(f"options.{each}" for each in known) or "no options"
    return (
        f"options.{name}: unknown option (got {brief(value)}); {valid}method {method} takes {takes}"
    )


def _option_value(name: str, value: Any, option: FieldInfo) -> Any:
    """The value, of the option's type; raises ValueError. A switch is no number, nor the other way round."""
    annotation: Any = Annotated[option.annotation, option]
    of_type = TypeAdapter(annotation, config={"strict": True, "allow_inf_nan": False})
    try:
        text = isinstance(value, str)
        return of_type.validate_strings(value) if text else of_type.validate_python(value)
    except ValidationError:
        raise ValueError(
            f"options.{name}: got {brief(value)} (valid: {type_name(option)})"
        ) from None


def load_config(arguments: Sequence[str], beside: Mapping[str, str] | None = None) -> Config:
    """Build the configuration from command-line arguments `key=value`.

    Args:
        beside: keys that the command takes beside these and what each is, for the answer to an unknown key.

    Raises:
        UserError: lists every mistake in names and values at once, or, without any, all settings that do not
            go together; each with its key, value and the valid options.
    """
    overrides = parse_overrides(arguments)
    name = overrides.pop("recipe", None)
    try:
        if name is None:
            raise UserError(f"no recipe given: use recipe=NAME, one of {', '.join(recipe_names())}")
        recipe = read_recipe(str(name))
    except UserError as error:
        try:  # the other settings may hold mistakes too
            build_config({"recipe": "unread"}, overrides, beside=beside)
        except UserError as more:
            raise UserError(f"{error}\n{more}") from None
        raise
    try:
        return build_config(recipe, overrides, beside=beside)
    except UserError as error:
        in_file = set(_mistakes(recipe, beside))
        raise UserError(
            "\n".join(
                f"{line} (in the recipe {name})" if line in in_file else line
                for line in str(error).splitlines()
            )
        ) from None


def _mistakes(recipe: Mapping[str, Any], beside: Mapping[str, str] | None) -> list[str]:
    try:
        build_config(recipe, beside=beside)
    except UserError as error:
        return str(error).splitlines()
    return []


def build_config(*layers: Mapping[str, Any], beside: Mapping[str, str] | None = None) -> Config:
    """Merge layers of (nested) settings, later ones over earlier ones, and validate the result.

    Args:
        beside: see `load_config`.
    """
    try:
        return Config.model_validate(merge_layers(*layers))
    except ValidationError as error:
        raise UserError("\n".join(answers(error.errors(), Config, beside or {}))) from None


def merge_layers(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Layers of (nested) settings, later ones over earlier ones, each over the preset of its method."""
    merged: dict[str, Any] = {}
    for layer in ({"method": Config.model_fields["method"].default}, *layers):
        preset = METHODS.get(str(layer.get("method")), {})
        if preset:
            merged.pop("options", None)  # another method's
        merged = merge(merged, preset)
        _drop_options_of_replaced_parts(merged, layer)
        merged = merge(merged, layer)
    return merged


def _drop_options_of_replaced_parts(merged: Any, layer: Mapping[str, Any]) -> None:
    """Where a layer names another target rule or loss, the options that only the one before took go."""
    before = {key: merged.get(key, Config.model_fields[key].default) for key in ("targets", "loss")}
    after = {key: str(layer.get(key, name)) for key, name in before.items()}
    if before == after or not merged.get("options"):
        return
    from noisybsd.methods.registry import LOSSES, TARGET_RULES

    if all(
        parts["targets"] in TARGET_RULES and parts["loss"] in LOSSES for parts in (before, after)
    ):
        for name in method_options(**before).keys() - method_options(**after).keys():
            merged["options"].pop(name, None)


def save_config(config: Config, path: Path, header: str) -> None:
    """Write the resolved configuration so that `recipe=PATH` reruns it (in a new run directory)."""
    values = config.model_dump(mode="json", exclude={"run": {"dir", "resume"}})
    text = "".join(f"# {line}\n" for line in header.splitlines())
    path.write_text(text + yaml.safe_dump(values, sort_keys=False, allow_unicode=True), "utf-8")


def recipe_names() -> list[str]:
    return resource_names("recipes")


def parse_overrides(arguments: Sequence[str], model: type[BaseModel] = Config) -> dict[str, Any]:
    """Read `key=value` arguments into nested settings of `model`.

    Text is taken as it is typed; what a number, a truth value, a list or a section is given is read as YAML.

    Raises:
        UserError: names the arguments that are not of that form, or whose value is not YAML.
    """
    wrong = [a for a in arguments if "=" not in a or a.startswith(("-", "="))]
    if wrong:
        raise UserError(
            "\n".join(
                f"argument {brief(a)}: settings are written key=value, e.g. epochs=10"
                for a in wrong
            )
            + "\n--help lists every key"
        )
    merged: dict[str, Any] = {}
    unreadable = []
    for argument in arguments:
        key, _, text = argument.partition("=")
        parts = key.split(".")
        try:
            if not is_unicode(argument):
                raise Unreadable(
                    "is no text in UTF-8; rename the file or folder, or make a link to it"
                )
            if len(parts) > DEEPEST:
                raise Unreadable(f"a key of {len(parts)} parts")
            value = read_value(text, annotation_of(model, parts))
        except Unreadable as error:
            unreadable.append(f"argument {brief(argument)}: {error}")
        else:
            merged = merge(merged, functools.reduce(lambda v, part: {part: v}, parts[::-1], value))
    if unreadable:
        raise UserError("\n".join(unreadable))
    return merged


def recipe_path(name: str) -> Path:
    """The file recipes/NAME.yaml, or a YAML file by its path; see `resource`."""
    return resource(name, "recipes", "recipe")


def read_recipe(name: str) -> dict[str, Any]:
    """The settings of a recipe, by its name or path, with its name under `recipe`."""
    path = recipe_path(name)
    content = read_yaml(path, Config)
    if not content.keys() & Config.model_fields.keys():
        raise UserError(f"{path}: is no recipe: it has none of the keys that --help lists")
    if is_record(content):  # what a run recorded reruns it as it was
        refuse_earlier(content, name)
        return {"recipe": path.stem, **content}
    own = [f"run.{key}" for key in ("dir", "resume") if key in _section(content, "run")]
    for key in [*own, *(["recipe"] if "recipe" in content else [])]:
        raise UserError(f"{path}: {key}: a recipe cannot say this; give {key}=… with the command")
    return {"recipe": path.stem, **content}


def is_record(content: Mapping[str, Any]) -> bool:
    """Whether settings are a run's record, which names every key, and not a recipe."""
    return content.keys() >= {"recipe", "run", "targets"}


def _section(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = content.get(name)
    return section if isinstance(section, Mapping) else {}


def read_record(path: Path) -> dict[str, Any]:
    """The settings that a run recorded in its config.yaml.

    Raises:
        UserError: names the file and, for values of a wrong type, the keys; or the record is of an earlier
            version. Keys and names of parts that this version does not know are no mistake.
    """
    record = read_yaml(path, Config)
    refuse_earlier(record, str(path))
    try:
        Config.model_validate(record)
    except ValidationError as error:
        other = ("extra_forbidden", "value_error", "missing")
        wrong = [item for item in error.errors() if item["loc"] and item["type"] not in other]
        if wrong:
            raise UserError(
                "\n".join(f"{path}: {line}" for line in answers(wrong, Config, {}))
            ) from None
    return record


def refuse_earlier(record: Mapping[str, Any], place: str) -> None:
    """Refuse a run's record in which the method's name meant another method.

    Raises:
        UserError: begins with `place`.
    """
    if "posterior" in record:
        raise UserError(
            f"{place}: made by a development version of noisybsd (before release 0.1.0) in which "
            f"method={record.get('method')} meant another method than it does now, and which had settings "
            "posterior.*. Use the version that results.json names under git_commit, or train again: "
            "bsd_supcon of then is bsd_plus now, bsd is bsd_plus_one_view"
        )
