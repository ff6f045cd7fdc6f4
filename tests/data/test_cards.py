"""Dataset cards: the shipped ones, and what is answered to a wrong one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers import trees

from noisybsd.data.cards import card_names, load_card
from noisybsd.data.readers.registry import EVALUATIONS, LAYOUTS
from noisybsd.errors import UserError


@pytest.mark.parametrize("name", card_names())
def test_shipped_cards_are_whole(name: str) -> None:
    card = load_card(name)
    assert card.layout in {**LAYOUTS, **EVALUATIONS}
    assert card.name == name and all(url.startswith("https://") for url in card.source[:-1])
    for item in card.downloads:
        assert item.url.startswith("https://")
    for entry in card.labels.values():
        assert entry.file in card.checksums
    assert "https://" in card.obtain or not card.licence_form  # an error shows no other address
    assert card.licence_form == (name in ("clothing1m", "animal10n", "webvision_imagenet"))


def test_every_dataset_has_a_card() -> None:
    assert set(card_names()) >= {
        *("cifar10", "cifar100", "cifar10n", "cifar100n", "cifar10c", "cifar100c"),
        *("clothing1m", "webvision", "animal10n", "food101n", "digits", "own"),
    }


def test_published_noise_rates() -> None:
    rates = {name: entry.noise_rate for name, entry in load_card("cifar10n").labels.items()}
    assert rates == {
        "aggre": 0.0901,
        "random1": 0.1723,
        "random2": 0.1812,
        "random3": 0.1764,
        "random123": None,
        "worst": 0.4021,
    }
    assert load_card("cifar100n").labels["noisy"].noise_rate == 0.402


def test_class_maps_are_numbers_in_label_order() -> None:
    assert load_card("cifar10").asymmetric_map == {9: 1, 2: 0, 4: 7, 3: 5, 5: 3}
    coarse = load_card("cifar100").coarse
    assert coarse is not None and coarse[:4] == (4, 1, 14, 8)  # apple, aquarium fish, baby, bear
    assert all(coarse.count(k) == 5 for k in range(20))
    digits = load_card("digits")
    assert digits.coarse is None and digits.asymmetric_map == {2: 7, 3: 8, 5: 6, 6: 5, 7: 1}


def test_variants_of_a_dataset_agree() -> None:
    for first, *others in (
        ("cifar10", "cifar10n", "cifar10c"),
        ("cifar100", "cifar100n", "cifar100c"),
    ):
        for other in others:
            for key in ("classes", "size", "mean", "std"):
                assert getattr(load_card(first), key) == getattr(load_card(other), key)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clases": ["a"]}, "clases: unknown key: got 'clases', did you mean classes"),
        ({"size": None}, "size: is required"),
        ({"size": "big"}, "size: Input should be a valid integer.* got 'big'"),
        ({"mean": [0.5]}, "mean has 1 numbers, channels=3"),
        ({"mean": [0.5, float("nan"), 0.5]}, "mean.1: Input should be a .* number"),
        (
            {"std": [0.5, 0.0, 0.5]},
            "std.1: Input should be greater than or equal to 0.001, got 0.0",
        ),
        ({"mean": [0.5, 1e300, 0.5]}, "mean.1: Input should be less than or equal to 1, got 1e"),
        ({"stored_size": 16}, "stored_size=16 is less than size=32"),
        ({"classes": ["a", "b", "a"], "asymmetric": {}}, "classes: a is listed twice"),
        ({"asymmetric": {"trukc": "dog"}}, "asymmetric: got 'trukc', did you mean truck"),
        ({"superclasses": {"x": ["dog", "cat"]}}, "superclasses: must hold every class once"),
        ({"checksums": {"x": "md5:123"}}, "checksums.x: String should match"),
        ({"downloads": [{"file": "x", "url": "u"}]}, "downloads.0.url: String should match"),
        (
            {"downloads": [{"file": "../x", "url": "http://u"}]},
            r"downloads.0.file: must be relative to data.root and inside it, got '../x'",
        ),
        ({"checksums": {"/etc/x": "md5:" + "0" * 32}}, "checksums.*: must be relative"),
        (
            {"downloads": [{"file": "x", "url": "http://u", "chekcsum": "y"}]},
            "downloads.0.chekcsum: unknown key: got 'chekcsum', did you mean checksum",
        ),
    ],
)
def test_a_wrong_card_names_file_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = trees.card(tmp_path, "cifar10", **changes)
    with pytest.raises(UserError, match=rf"cifar10\.yaml: {message}"):
        load_card(str(path))


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = trees.card(tmp_path, "cifar10", size="big", clases=[], title=None)
    with pytest.raises(UserError) as error:
        load_card(str(path))
    assert len(str(error.value).splitlines()) == 3


def test_a_name_that_is_none() -> None:
    with pytest.raises(
        UserError, match=r"data\.name: got 'cifra10n', did you mean cifar10n\? valid: "
    ):
        load_card("cifra10n")
    with pytest.raises(UserError, match=r"data\.name=\./my\.yaml: there is no such file"):
        load_card("./my.yaml")
