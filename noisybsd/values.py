"""Settings as people write them, in YAML and as `key=value`, read by the type of the setting.

YAML is read as plain data: mappings, lists and scalars, without tags, anchors, aliases or interpolations.
What a scalar without quotes means follows from the setting: 2024, 12:30 and on are text for a setting that
takes text, and a number or an error for one that takes a number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from yaml.error import MarkedYAMLError, YAMLError
from yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    DocumentStartEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceStartEvent,
)

from noisybsd.errors import UserError, brief, did_you_mean
from noisybsd.files import read_text

DEEPEST = 20  # levels of mappings and lists within each other
_LARGEST = 2**20  # bytes of a YAML file

_NULL = ("", "~", "null", "Null", "NULL")
_TRUTH = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Plain(str):
    """A scalar without quotes, as it was written."""


def is_unicode(text: str) -> bool:
    """Whether text holds no surrogates, as the name of a file does that is not in UTF-8."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


class Unreadable(ValueError):
    """Text that is not the plain YAML read here; says why and in which line, and repeats none of it."""


def read_yaml(path: Path, model: type[BaseModel]) -> dict[str, Any]:
    """Read a YAML file that holds a mapping, with scalars as the fields of `model` take them.

    Raises:
        UserError: names the file and, for what is not plain YAML, the line. The text of the file is not
            repeated: it may be a file of secrets, named by mistake.
    """
    text = read_text(path, largest=_LARGEST)
    try:
        content = parse_yaml(text)
    except Unreadable as error:
        raise UserError(f"{path}: {error}") from None
    if content in (None, {}, *_NULL):
        raise UserError(f"{path}: holds nothing, expected a mapping key: value")
    if not isinstance(content, dict):
        kind = "a list" if isinstance(content, list) else "text"
        raise UserError(f"{path}: holds {kind}, expected a mapping key: value")
    values = typed(content, model)
    assert isinstance(values, dict)
    return values


def read_value(text: str, annotation: Any) -> Any:
    """The value of `key=text` for a field of this annotation.

    Raises:
        Unreadable: the field takes a number, a list or the like, and the text is not YAML.
    """
    if text == "":
        return ""  # YAML reads null: but an empty shell variable asks for nothing
    return typed(Plain(text) if _takes_text(annotation) else parse_yaml(text), annotation)


def read_arguments(
    arguments: Sequence[str],
    readers: Mapping[str, Callable[[str], Any]],
    required: Collection[str] = (),
) -> dict[str, Any]:
    """The `key=value` arguments of a command, by their keys.

    Args:
        readers: what makes the value of each key of its text; its ValueError says what was received and
            what is valid.

    Raises:
        UserError: lists every mistake.
    """
    found: dict[str, Any] = {}
    mistakes = []
    for argument in arguments:
        key, equals, text = argument.partition("=")
        if not equals or key not in readers:
            mistakes.append(f"argument {brief(argument)}: {did_you_mean(key, readers)}")
        elif key in found:
            mistakes.append(f"{key}: given twice")
        else:
            try:
                found[key] = readers[key](text)
            except ValueError as error:
                found[key] = None
                mistakes.append(f"{key}: {error}")
    mistakes += [f"{key}=… is missing" for key in required if key not in found]
    if mistakes:
        raise UserError("\n".join([*mistakes, "--help says more"]))
    return found


def one_of(*words: str) -> Callable[[str], str]:
    """A reader of one of some words, for `read_arguments`."""

    def read(text: str) -> str:
        if text not in words:
            raise UserError(did_you_mean(text, words))
        return text

    return read


def number(low: float, high: float, whole: bool = False) -> Callable[[str], float]:
    """A reader of a number from `low` to `high`, for `read_arguments`."""

    def read(text: str) -> float:
        value = _scalar(text)
        if type(value) not in ((int,) if whole else (int, float)) or not low <= value <= high:
            kind = "a whole number" if whole else "a number"
            raise UserError(f"got {brief(text)}; valid: {kind} from {low:g} to {high:g}")
        return value

    return read


def annotation_of(model: type[BaseModel], key: list[str]) -> Any:
    """The annotation of the field that a dotted key, split, names; Any for an unknown key."""
    annotation: Any = model
    for part in key:
        annotation = _inside(annotation, part)
    return annotation


def typed(tree: Any, annotation: Any) -> Any:
    """Give scalars without quotes the types that a field of this annotation takes.

    A field's own check follows, by pydantic: what fits no type that the field takes stays as YAML has it.
    """
    if isinstance(tree, dict):
        return {key: typed(value, _inside(annotation, key)) for key, value in tree.items()}
    if isinstance(tree, list):
        element = next(
            (a for a in _alternatives(annotation) if get_origin(a) in (tuple, list)), Any
        )
        return [typed(value, next(iter(get_args(element)), Any)) for value in tree]
    if not isinstance(tree, Plain):
        return tree
    if tree in _NULL and (NoneType in _alternatives(annotation) or not _takes_text(annotation)):
        return None
    return str(tree) if _takes_text(annotation) else _scalar(tree)


def as_typed(value: Any) -> str:
    """A value as one would type it."""
    if value is None:
        return "null"
    if isinstance(value, list | tuple):
        return f"[{','.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def merge(base: Mapping[str, Any], layer: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the settings of `layer` over it, section by section."""
    merged = dict(base)
    for key, value in layer.items():
        if isinstance(value, Mapping):  # a copy, also where nothing is below
            below = merged.get(key)
            value = merge(below if isinstance(below, Mapping) else {}, value)
        merged[key] = value
    return merged


def _scalar(text: str) -> Any:
    """A scalar as YAML 1.2 has it: null, truth value, number or text."""
    if text in _TRUTH:
        return _TRUTH[text]
    if len(text) > 1000:  # Python reads no number of some thousand digits
        return str(text)
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else str(text)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """X and None of `X | None`; the annotation itself where it is no union."""
    if get_origin(annotation) is Annotated:
        yield from _alternatives(get_args(annotation)[0])
    elif isinstance(annotation, type) or get_origin(annotation) in (Literal, tuple, list, dict):
        yield annotation
    elif get_args(annotation):
        for each in get_args(annotation):
            yield from _alternatives(each)


def _takes_text(annotation: Any) -> bool:
    kinds = list(_alternatives(annotation))
    words = [a for a in kinds if get_origin(a) is Literal]
    return str in kinds or any(isinstance(w, str) for a in words for w in get_args(a))


def _inside(annotation: Any, key: str) -> Any:
    """The annotation of what stands under `key` in a mapping of this annotation."""
    for each in _alternatives(annotation):
        if get_origin(each) is dict:
            return get_args(each)[1]
        if isinstance(each, type) and issubclass(each, BaseModel) and key in each.model_fields:
            return each.model_fields[key].annotation
    return Any


def parse_yaml(text: str) -> Any:
    """Mappings, lists and strings; those without quotes are `Plain`. None where the text holds nothing.

    Raises:
        Unreadable: see there.
    """
    found: list[Any] = []
    open_: list[_Open] = []
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, CollectionEndEvent):
                open_.pop()
            elif isinstance(event, DocumentStartEvent) and found:
                raise _bad("a second document begins; expected one", event)
            elif isinstance(event, NodeEvent):
                node = _node(event)
                if open_:
                    open_[-1].add(node, event)
                else:
                    found.append(node)
                if not isinstance(node, str):
                    open_.append(_Open(node))
                if len(open_) > DEEPEST:
                    raise _bad(f"more than {DEEPEST} levels", event)
    except YAMLError as error:
        raise Unreadable(f"not readable as YAML: {_reason(error)}") from None
    return found[0] if found else None


class _Open:
    """A mapping or list whose end has not come yet."""

    def __init__(self, content: dict[str, Any] | list[Any]):
        self.content = content
        self.key: str | None = None  # of a mapping, while its value has not come yet

    def add(self, node: Any, event: NodeEvent) -> None:
        if isinstance(self.content, list):
            self.content.append(node)
        elif self.key is not None:
            self.content[self.key], self.key = node, None
        elif not isinstance(node, str):
            raise _bad("a key is a list or a mapping; expected text", event)
        elif node in self.content:
            raise _bad("a key stands twice in one mapping", event)
        else:
            self.key = str(node)


def _node(event: NodeEvent) -> Any:
    if isinstance(event, AliasEvent) or event.anchor is not None:
        raise _bad("an anchor (&) or alias (*); write the value itself, or in quotes", event)
    if getattr(event, "tag", None) is not None:
        raise _bad("a tag (!); write the value itself, or in quotes", event)
    if isinstance(event, ScalarEvent):
        if not is_unicode(event.value):
            raise _bad("half of a surrogate pair, which is no text", event)
        return event.value if event.style else Plain(event.value)
    assert isinstance(event, MappingStartEvent | SequenceStartEvent)
    return {} if isinstance(event, MappingStartEvent) else []


def _bad(reason: str, event: Any) -> Unreadable:
    return Unreadable(f"not readable as YAML: line {event.start_mark.line + 1}: {reason}")


def _reason(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}: {error.problem}"
    return "a character that YAML does not take"
