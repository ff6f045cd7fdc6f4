"""YAML as plain data, and scalars read by the type of their field."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml
from pydantic import BaseModel, Field

from noisybsd.errors import UserError
from noisybsd.values import (
    DEEPEST,
    Plain,
    Unreadable,
    annotation_of,
    merge,
    parse_yaml,
    read_value,
    read_yaml,
    typed,
)


class Inner(BaseModel):
    text: str
    maybe: Annotated[str, Field(min_length=1)] | None = None
    number: float | None = None


class Outer(BaseModel):
    inner: Inner
    word: Literal["on", "off"] = "on"
    words: tuple[str, ...] = ()
    by_name: dict[str, Annotated[str, Field()]] = {}
    parts: tuple[Inner, ...] = ()
    switch: bool = False
    anything: Any = None


AS_TYPED = [
    "2024",
    "2024_01",
    "on",
    "12:30",
    "1e3",
    "0x10",
    "images #2",
    "null-ish",
    "{a",
    "[b",
    "!c",
]


@pytest.mark.parametrize("text", AS_TYPED)
def test_text_is_taken_as_it_is_typed(text: str) -> None:
    for key in (["inner", "text"], ["inner", "maybe"], ["word"], ["by_name", "x"]):
        assert read_value(text, annotation_of(Outer, key)) == text


@pytest.mark.parametrize("text", [t for t in AS_TYPED if t[0] not in "{[!" and "#" not in t])
def test_text_in_a_file_is_taken_as_it_is_typed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        f"inner: {{text: {text}, maybe: {text}}}\nwords: [{text}, '{text}']\nby_name: {{x: {text}}}\n"
        f"word: {text}\nparts:\n- text: {text}\n- number: 2024\n"
    )
    assert read_yaml(path, Outer) == {
        "inner": {"text": text, "maybe": text},
        "words": [text, text],
        "by_name": {"x": text},
        "word": text,
        "parts": [{"text": text}, {"number": 2024}],
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-3.5e-2", -0.035),
        ("1e-3", 1e-3),
        (".5", 0.5),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("'3'", "3"),
        ("[1, [a, 'b']]", [1, ["a", "b"]]),
        ("{a: 1}", {"a": 1}),
        ("3 # three", 3),
        ("1_000", "1_000"),
        ("???", "???"),
        ("${oc.env:HOME}", "${oc.env:HOME}"),
        ("12:30", "12:30"),
        ("on", "on"),
        ("9" * 5000, "9" * 5000),
        ("1e999", float("inf")),
    ],
)
def test_what_takes_no_text_is_read_as_yaml(text: str, value: object) -> None:
    for key in (["inner", "number"], ["anything"], ["nowhere", "x"]):
        found = read_value(text, annotation_of(Outer, key))
        assert found == value and type(found) is type(value)


def test_null_is_none_where_there_may_be_none() -> None:
    assert read_value("null", annotation_of(Outer, ["inner", "maybe"])) is None
    assert read_value("null", annotation_of(Outer, ["inner", "text"])) == "null"
    assert typed({"inner": {"maybe": Plain("~"), "text": Plain("~")}}, Outer) == {
        "inner": {"maybe": None, "text": "~"}
    }
    assert typed({"inner": {"maybe": "null"}}, Outer) == {"inner": {"maybe": "null"}}  # in quotes


def test_nothing_is_nothing() -> None:
    for key in (["inner", "text"], ["inner", "number"], ["inner", "maybe"]):
        assert read_value("", annotation_of(Outer, key)) == ""


BOMB = "a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\n"
NOT_PLAIN = {
    "a: !!int abc": "line 1: a tag",
    "a: !!python/object/apply:os.system [id]": "line 1: a tag",
    "a: !x y": "line 1: a tag",
    "%TAG ! tag:x,2000:\n---\na: !y z": "a tag",
    BOMB: "line 1: an anchor",
    "a: 1\nb: *c": "line 2: an anchor (&) or alias",
    "a: 1\na: 2": "line 2: a key stands twice",
    "? [a]\n: 1": "a key is a list",
    "? {a: b}\n: 1": "a key is a list",
    "a: 1\n---\nb: 2": "line 2: a second document",
    "[" * 3000: f"more than {DEEPEST} levels",
    "{a: " * 3000: f"more than {DEEPEST} levels",
    "- " * 3000: f"more than {DEEPEST} levels",
    "a: [1": "line 1: ",
    "a: b: c": "line 1: ",
    "a: \x07": "a character that YAML does not take",
    'a: "\\ud800"': "surrogate",
}


@pytest.mark.parametrize("text", NOT_PLAIN)
def test_what_is_more_than_plain_data_is_refused(text: str) -> None:
    with pytest.raises(Unreadable) as caught:
        parse_yaml(text)
    assert str(caught.value).startswith("not readable as YAML: ")
    assert NOT_PLAIN[text] in str(caught.value)


def test_deep_enough() -> None:
    assert parse_yaml("[" * DEEPEST + "]" * DEEPEST) is not None


def test_a_merge_key_is_a_key() -> None:
    assert parse_yaml("<<: {a: 1}") == {"<<": {"a": "1"}}


def test_what_yaml_writes_is_read_back(tmp_path: Path) -> None:
    values = {
        "inner": {"text": "2024", "maybe": "a: b", "number": 1e-7},
        "word": "on",
        "words": ["~", "null", "é\n", "'", "12:30", "", "- x", "#"],
        "switch": True,
        "anything": [None, 3, "3", 1.5, False, "false"],
    }
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True))
    assert read_yaml(path, Outer) == values


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "holds nothing"),
        (b"# a comment\n", "holds nothing"),
        (b"null", "holds nothing"),
        (b"{}", "holds nothing"),
        (b"- 1", "holds a list"),
        (b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/sh\n", "holds text"),
        (b"a: \xff", "no text in UTF-8"),
        (b"a: 1\n" * 2**18, "more than 1,048,576 bytes"),
    ],
)
def test_files_that_hold_no_settings(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_yaml(path, Outer)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and says in text and "root:" not in text


def test_an_error_repeats_nothing_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    for content in ("password: [hunter2", "hunter2: a\nhunter2: b", "a: !hunter2 x", "\thunter2"):
        path.write_text(content)
        with pytest.raises(UserError) as caught:
            read_yaml(path, Outer)
        assert "hunter2" not in str(caught.value)


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.yaml")
    with pytest.raises(UserError, match="is no file"):
        read_yaml(tmp_path / "x.yaml", Outer)


def test_merging_replaces_values_and_joins_sections_without_changing_either() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": [1]}
    layer: dict[str, Any] = {"a": {"y": 3}, "b": {"z": 1}, "c": {"d": 4}}
    merged = merge(base, layer)
    assert merged == {"a": {"x": 1, "y": 3}, "b": {"z": 1}, "c": {"d": 4}}
    merged["c"]["d"] = 5
    assert layer["c"] == {"d": 4} and base["a"] == {"x": 1, "y": 2}
    assert merge({"a": {"x": 1}}, {"a": 3}) == {"a": 3}
