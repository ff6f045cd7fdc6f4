"""Settings by their dotted keys: their types in words, and what is answered to a mistake."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from noisybsd.errors import brief
from noisybsd.settings import Registry

# Keys that are gone or that people expect, and what to use instead.
_GONE = {
    "run.checkpoint_every": "it counted epochs; use run.checkpoint_seconds, which counts seconds",
    "data.hf": "copy the dataset into a folder first: python -m noisybsd.data import hf=… out=FOLDER",
}


def fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key with its field, in order, sections expanded."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def answers(
    mistakes: Iterable[Any], model: type[BaseModel], beside: Mapping[str, str]
) -> Iterator[str]:
    """One line for each of pydantic's mistakes in settings of `model`: key, value received, what is valid.

    Args:
        beside: keys that the command takes beside these, and what each is.
    """
    from noisybsd.methods.registry import LOSSES, TARGET_RULES, options

    keys = dict(fields(model))
    parts = (*TARGET_RULES.values(), *LOSSES.values())
    names = [*keys, *(f"options.{name}" for part in parts for name in options(part))]
    for item in mistakes:
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            for part, value in _settings(key, item["input"]):
                instead = _instead(part, names, beside)
                yield f"{part}: unknown key (got {brief(value)}); {instead}"
        elif item["type"] == "missing":
            yield f"{key}: is required and was not given"
        elif item["type"] == "model_type":
            inside = ", ".join(each for each in keys if each.startswith(f"{key}."))
            yield f"{key}: is a section, got {brief(item['input'])}; its keys: {inside}"
        elif item["type"] == "value_error" and not key:
            yield str(item["ctx"]["error"])
        elif item["type"] == "value_error" and key == "options":
            lines = str(item["ctx"]["error"]).splitlines()
            yield from (line if line.startswith(key) else f"{key}: {line}" for line in lines)
        elif item["type"] == "value_error":
            yield f"{key}: {item['ctx']['error']}"
        else:
            known = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
            valid = f" (valid: {type_name(keys[known])})" if known in keys else ""
            says = "Input should be a list" if item["type"] == "tuple_type" else item["msg"]
            yield f"{key}: {says}, got {brief(item['input'])}{valid}"


def _settings(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Every dotted key from `key` on, and its value."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _settings(f"{key}.{name}", inner)
    else:
        yield key, value


def _instead(key: str, keys: list[str], beside: Mapping[str, str]) -> str:
    """What to use in the place of an unknown key."""
    known = _GONE.get(key) or _nearest_key(key, keys)
    close = difflib.get_close_matches(key.split(".")[0], beside, n=1)
    if not close:
        return known or "--help lists every key"
    begin = f"{known} Or" if known else "did you mean"
    return f"{begin} {close[0]}, {beside[close[0]]}?"


def _nearest_key(key: str, keys: list[str]) -> str | None:
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
    # a misspelt section name is compared as a whole key; a key without its section by its last part
    close = close or [k for k in keys if k.split(".")[-1] == key.split(".")[-1]]
    section = {k.split(".")[0] for k in keys if "." in k}
    close = close or difflib.get_close_matches(key.split(".")[0], section, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None


def type_name(field: FieldInfo) -> str:
    for entry in field.metadata:
        if isinstance(entry, Registry):
            return "|".join(entry.keys())
    return _annotation_name(field.annotation) + "".join(_bounds(field.metadata))


def _annotation_name(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _annotation_name(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return "|".join(str(value) for value in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"[{_annotation_name(get_args(annotation)[0])},…]"
    if get_origin(annotation) is dict:
        return "name=value"
    if get_args(annotation):  # X | None
        return " or ".join(_annotation_name(part) for part in get_args(annotation))
    return "null" if annotation is type(None) else annotation.__name__


def _bounds(metadata: Iterable[Any]) -> Iterator[str]:
    for entry in metadata:
        for attribute, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (bound := getattr(entry, attribute, None)) is not None:
                yield f" {sign} {bound}"
