"""The shipped recipes: what their headers say, and what they share."""

from __future__ import annotations

import csv
import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from noisybsd.compare.sections import PUBLISHED, condition
from noisybsd.config import build_config, load_config, recipe_names
from noisybsd.files import resource_dir
from noisybsd.runs.directory import flatten
from noisybsd.sweep import combinations

NOISE = ("sym20", "sym50", "sym80", "sym90", "asym40")
HUMAN = ("aggre", "random1", "random2", "random3", "random123", "worst")
# one configuration for all of them, whatever the noise
NOISY_CIFAR = [
    *(f"{data}_{noise}" for data in ("cifar10", "cifar100") for noise in NOISE),
    *(f"cifar10n_{labels}" for labels in HUMAN),
    "cifar100n",
]
# the same again with clean labels is their upper reference
REFERENCE = "cifar10_preact_resnet18"
CLEAN_CIFAR = [
    f"{data}_{network}"
    for network in ("resnet50", "densenet121", "vit_small")
    for data in ("cifar10", "cifar100")
]


def header(name: str) -> dict[str, str]:
    """The fields of a recipe's header, each on one line below its title."""
    text = (resource_dir("recipes") / f"{name}.yaml").read_text("utf-8")
    title, *lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    assert re.match("# [^:]", title) and len(lines) < 6
    assert all(len(line) <= 160 for line in (title, *lines))
    found = [re.fullmatch(r"# ([A-Z][a-z]+): +(.+)", line) for line in lines]
    assert all(found), lines
    return {field[1]: field[2] for field in found if field}


def settings(name: str) -> dict[str, Any]:
    return flatten(load_config([f"recipe={name}"]).model_dump(mode="json"))


def differing(names: list[str]) -> set[str]:
    """The keys in which recipes differ."""
    first, *others = map(settings, names)
    return {key for other in others for key in first if other[key] != first[key]} - {"recipe"}


def command(name: str) -> tuple[str, list[str]]:
    """The module that a header's command runs, and its arguments."""
    start, option, module, *arguments = shlex.split(header(name)["Command"])
    assert (start, option) == ("python", "-m")
    return module, arguments


def test_the_comparisons_of_the_paper_are_there() -> None:
    wanted = {*NOISY_CIFAR, REFERENCE, *CLEAN_CIFAR, "clothing1m"}
    assert not wanted - set(recipe_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_header_says_what_is_known(name: str) -> None:
    fields = header(name)
    assert list(fields)[-3:] == ["Measured", "Cost", "Command"]
    if name != "own":
        assert "Published" in fields or fields["Paper"].startswith("none")
    if name not in CLEAN_CIFAR:
        module, arguments = command(name)
        assert module == "noisybsd.train" and load_config(arguments).recipe == name
    known = [fields[field].startswith("not measured") for field in ("Measured", "Cost")]
    assert known[0] == known[1]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_is_flat_and_says_what_is_not_the_default(name: str) -> None:
    recipe = yaml.safe_load((resource_dir("recipes") / f"{name}.yaml").read_text("utf-8"))
    said, defaults = flatten(recipe), flatten(build_config({"recipe": "x"}).model_dump(mode="json"))
    assert "method" not in said and "data.name" in said
    same = {key for key, value in said.items() if value == defaults[key]}
    assert same <= {"data.name"}  # digits


def published(name: str) -> Iterator[str]:
    """The published numbers on a recipe's data; under CIFAR-100's asymmetric noise, all conventions'."""
    config = settings(name)
    wanted = {condition(config)}
    if config["noise.name"] == "superclass_next":
        wanted = {f"{other} {config['noise.rate']:g}" for other in ("block5", "plus_one")}
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        for entry in csv.DictReader(line for line in file if not line.startswith("#")):
            if entry["dataset"] == config["data.name"] and entry["labels_or_noise"] in wanted:
                yield entry["value"]


@pytest.mark.parametrize("name", recipe_names())
def test_published_numbers_are_those_of_the_list(name: str) -> None:
    text = header(name).get("Published", "").replace("arXiv 2512.24162", "")
    numbers = set(re.findall(r"\b\d\d\.\d+\b", text))
    assert not numbers - set(published(name))
    if numbers:
        assert text.endswith("; noisybsd/compare/published.csv")
        assert re.search(r"(best|last) epoch|epoch not stated", text)
        assert re.search(r"ResNet|DenseNet", text)


def test_one_configuration_serves_every_noise() -> None:
    assert differing([*NOISY_CIFAR, REFERENCE]) == {
        "data.name",
        "data.labels",
        "noise.name",
        "noise.rate",
    }


def test_rates_differ_in_the_rate_alone() -> None:
    for data in ("cifar10", "cifar100"):
        names = [f"{data}_{noise}" for noise in NOISE if noise.startswith("sym")]
        assert differing(names) == {"noise.rate"}
        assert [round(100 * settings(name)["noise.rate"]) for name in names] == [20, 50, 80, 90]
    assert differing([f"cifar10n_{labels}" for labels in HUMAN]) == {"data.labels"}


def test_clean_recipes_differ_in_network_and_optimiser_alone() -> None:
    assert {settings(name)["noise.name"] for name in CLEAN_CIFAR} == {"none"}
    for network in ("resnet50", "densenet121", "vit_small"):
        assert differing([f"cifar10_{network}", f"cifar100_{network}"]) == {"data.name"}
    assert differing(["cifar10_resnet50", "cifar10_densenet121"]) == {"network.name"}
    keys = differing(["cifar10_resnet50", "cifar10_vit_small"])
    assert {key.split(".")[0] for key in keys} == {"network", "optimizer"}


@pytest.mark.parametrize("name", CLEAN_CIFAR)
def test_clean_recipes_say_what_to_compare_with(name: str, tmp_path: Path) -> None:
    module, arguments = command(name)
    assert module == "noisybsd.sweep"
    configs = [load_config(run.arguments) for run in combinations(arguments, tmp_path)]
    assert {config.recipe for config in configs} == {name} and len(configs) == 15
    methods = {config.method for config in configs}
    assert methods == {"ce", "label_smoothing", "ps_kd", "bsd", "bsd_plus_one_view"}
