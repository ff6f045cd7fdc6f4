"""What --help says of recipes, methods and settings; torch is imported for a method's options alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from noisybsd.config import (
    Config,
    merge_layers,
    method_options,
    read_recipe,
    recipe_names,
    recipe_path,
)
from noisybsd.errors import UserError, did_you_mean
from noisybsd.keys import fields, type_name
from noisybsd.methods.presets import METHODS
from noisybsd.runs.directory import flatten
from noisybsd.values import as_typed


def describe(arguments: Iterable[str]) -> str:
    """All recipes, methods and keys; or, with recipe=NAME or method=NAME among the arguments, these.

    Raises:
        UserError: there is no such recipe or method.
    """
    chosen = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    recipe, method = chosen.get("recipe"), chosen.get("method")
    if method is not None and method not in METHODS:
        raise UserError(f"method: {did_you_mean(method, METHODS)}")
    if recipe is None and method is None:
        return (
            f"recipes; recipe=NAME --help says what one sets:\n{describe_recipes()}\n\n"
            "methods, each a loss to targets + a contrastive term; method=NAME --help lists the options:\n"
            f"{describe_methods()}\n\n"
            f"keys, with their defaults:\n{describe_keys()}"
        )
    parts = [] if recipe is None else [describe_recipe(recipe, method)]
    return "\n\n".join([*parts, *([] if method is None else [describe_method(method)])])


def describe_recipes() -> str:
    """Every shipped recipe with the first line of its header."""
    names = recipe_names()
    width = max(map(len, names), default=0)
    return "\n".join(f"  {name:<{width}}  {_header(name)[0]}" for name in names)


def _header(recipe: str) -> list[str]:
    """The comment at the top of a recipe's file; one empty line if there is none."""
    lines = recipe_path(recipe).read_text("utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return [line.lstrip("# ") for line in lines[:end]] or [""]


def describe_methods() -> str:
    """Every method with its parts."""
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
    return "\n".join(lines)


def describe_keys() -> str:
    """Every key with type, default and meaning."""
    lines = []
    for key, field in fields(Config):
        default = "(required)" if field.is_required() else as_typed(field.default)
        lines.append(f"  {key}={default}")
        lines.append(f"      {field.description} [{type_name(field)}]")
    return "\n".join(lines)


def describe_recipe(name: str, method: str | None = None) -> str:
    """A recipe's header and every setting of its run, by who decides it: recipe, method, or default.

    Args:
        method: in the place of the recipe's.
    """
    content = read_recipe(name)
    settings = flatten(merge_layers(content, {} if method is None else {"method": method}))
    preset = flatten(METHODS[settings["method"]])
    own = {
        key: value
        for key, value in flatten(content).items()
        if key not in ("recipe", "method") and settings.get(key) == value
    }
    defaults = {key: field.default for key, field in fields(Config) if not field.is_required()}
    return "\n".join(
        [
            f"recipe {content['recipe']}",
            *(f"  {line}" for line in _header(name)),
            "\nit sets:",
            *_values(own),
            f"\nmethod={settings['method']} sets:",
            *_values({key: settings[key] for key in preset if key in settings and key not in own}),
            "\nall else has its default (--help says what each key means):",
            *_values({k: v for k, v in defaults.items() if k not in settings and k != "options"}),
        ]
    )


def describe_method(name: str) -> str:
    """The options of a method: their values in its preset, meanings and types. Imports torch."""
    preset = METHODS[name]
    values = preset.get("options", {})
    taken = method_options(preset["targets"], preset["loss"])
    lines = [f"options of method {name}:" if taken else f"method {name} takes no options"]
    for key, option in taken.items():
        lines.append(f"  options.{key}={as_typed(values.get(key, option.default))}")
        lines.append(f"      {option.description or ''} [{type_name(option)}]")
    return "\n".join(lines)


def _values(settings: Mapping[str, Any]) -> list[str]:
    return [f"  {key}={as_typed(value)}" for key, value in settings.items()]
