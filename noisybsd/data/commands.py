"""What `python -m noisybsd.data` does: check, prepare, pack and import datasets, write noisy labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from noisybsd.config import Config, build_config, parse_overrides
from noisybsd.data.cards import card_names, load_card
from noisybsd.data.check import check
from noisybsd.data.download import fetch, without_password
from noisybsd.data.imports import SOURCES, Wanted, import_images
from noisybsd.data.label_files import write_labels
from noisybsd.data.labelling import before_noise, draw_noise, spare_sources, with_labels
from noisybsd.data.noise import summary
from noisybsd.data.pack import pack
from noisybsd.data.readers.registry import EVALUATIONS
from noisybsd.data.reading import read_splits
from noisybsd.data.splits import Missing
from noisybsd.errors import UserError, did_you_mean, shown
from noisybsd.files import spare_inputs, user_path
from noisybsd.settings import DataConfig, NoiseConfig


def carry_out(arguments: list[str]) -> int:
    """`COMMAND NAME key=value …`; returns the exit code."""
    chosen, *rest = arguments
    if chosen == "import":
        return _import(rest)
    if chosen not in COMMANDS:
        valid = [*COMMANDS, "import", "apply-review"]
        raise UserError(f"command: {did_you_mean(chosen, valid)}; --help explains them")
    if not rest or "=" in rest[0]:
        raise UserError(f"{chosen}: which dataset? valid: {', '.join(card_names())}")
    config, out = _settings(chosen, rest[0], rest[1:])
    return COMMANDS[chosen](config, out)


# what reading a dataset takes, without what only training does; and the settings of noise
_OF_TRAINING = {
    "limit",
    "test_limit",
    "storage",
    "workers",
    "balanced",
    "calibration",
    "embeddings",
}
_TAKEN = {f"data.{key}" for key in DataConfig.model_fields if key not in _OF_TRAINING}
_TAKEN_BY_NOISE = {"seed", "data.embeddings", *(f"noise.{key}" for key in NoiseConfig.model_fields)}


def _settings(chosen: str, name: str, arguments: list[str]) -> tuple[Config, Path | None]:
    """The sections data and noise, typed and checked; and out=."""
    keys = [argument.partition("=")[0] for argument in arguments]
    if "name" in keys:
        given = arguments[keys.index("name")]
        raise UserError(f"{given}: write noise.name=…; the dataset is {name}")
    out = [a.removeprefix("out=") for a in arguments if a.startswith("out=")]
    settings = [
        f"data.{argument}" if key.split(".")[0] in DataConfig.model_fields else argument
        for key, argument in zip(keys, arguments, strict=True)
        if key != "out"
    ]
    config = build_config({"recipe": "data"}, parse_overrides([f"data.name={name}", *settings]))
    taken = _TAKEN | {"check": {"data.embeddings"}, "noise": _TAKEN_BY_NOISE}.get(chosen, set())
    for key in (setting.partition("=")[0] for setting in settings):
        if key not in taken:
            raise UserError(f"{key}: has no effect on {chosen}; leave it out")
    return config, user_path(out[-1], "out") if out else None


def _import(arguments: list[str]) -> int:
    given = dict(argument.partition("=")[::2] for argument in arguments)
    known = (*SOURCES, "out", "image", "label", "splits", "config", "on_error")
    for key, value in given.items():
        if key not in known:
            raise UserError(f"import: {did_you_mean(key, known)}")
        if not value:
            raise UserError(f"import: {key}= is empty")
    kinds = [key for key in given if key in SOURCES]
    if len(kinds) != 1 or "out" not in given:
        raise UserError(
            f"import: give one of {', '.join(f'{kind}=' for kind in SOURCES)}, and out=FOLDER"
        )
    if (on_error := given.get("on_error", "stop")) not in ("stop", "skip"):
        raise UserError(f"import: on_error: {did_you_mean(on_error, ('stop', 'skip'))}")
    wanted = Wanted(
        given.get("image"),
        tuple(filter(None, given.get("label", "").split(","))),
        tuple(filter(None, given.get("splits", "").split(","))),
        given.get("config"),
    )
    out = user_path(given["out"], "out")
    source = str(user_path(given[kinds[0]], kinds[0]))
    print(import_images(kinds[0], source, out, wanted, on_error))
    return 0


def prepare(config: Config, out: Path | None) -> int:
    """Download and unpack what may be downloaded; 1 if something remains to be got by hand."""
    card, root = load_card(config.data.name), Path(config.data.root)
    for item in card.downloads:
        if (root / item.makes).exists():
            print(f"{shown(root / item.makes)}: there already")
            continue
        size = "" if item.bytes is None else f" ({item.bytes / 2**20:,.0f} MiB)"
        told = "" if item.checksum else "; its publisher gives no checksum"
        print(shown(f"{without_password(item.url)}{size}{told}"))
        fetch(item, root)
        print(f"{shown(root / item.makes)}: done")
    try:
        if card.layout in EVALUATIONS:
            next(EVALUATIONS[card.layout](card, config.data))
        else:
            read_splits(card, config.data.model_copy(update={"download": False}))
    except Missing as error:
        made = [root / item.makes for item in card.downloads]
        for folder in set(made) & set(error.path.parents):
            print(f"{error.path}: not there, though {folder} is: remove that and run this again")
            return 1
        form = "its owners want a form filled in first; " if card.licence_form else ""
        print(
            f"{error.path}: not there, and not to be downloaded by a program: {form}{card.obtain.strip()}"
        )
        print(f"  source: {card.source[0]}\n  licence: {card.licence.strip()}")
        return 1
    told = shown(f"check {config.data.name} root={root}")
    print(f"{card.name}: complete; `{told}` looks at every file")
    return 0


def noise(config: Config, out: Path | None) -> int:
    """Write noisy labels for all training images, in the order in which they are read."""
    card, data = load_card(config.data.name), config.data
    if out is None:
        raise UserError("noise: out=FILE is missing: a .csv, .npy or .txt file for the labels")
    if config.noise.name == "none":
        raise UserError("noise: noise.name is missing, e.g. noise.name=symmetric noise.rate=0.4")
    spare_sources(out, data)
    spare_inputs(out, [("noise.file", config.noise.file)])
    read, _ = read_splits(card, data)
    train, _ = with_labels(card, data, read.both, read.class_names)
    noisy = draw_noise(card, config.noise, config.seed, train, len(read.class_names))
    clean = before_noise(train)
    notes = {
        "dataset": card.name,
        "classes": list(read.class_names),
        **noisy.notes,
        "transition": None if noisy.transition is None else noisy.transition.tolist(),
    }
    write_labels(out, noisy.labels, notes, clean=clean, paths=train.paths)
    print("\n".join(map(shown, summary(noisy, clean, read.class_names).split("\n"))))
    print(shown(f"{out}: train on these labels with data.name={data.name} data.labels={out}"))
    print("and, where the recipe has noise of its own, noise.name=none noise.rate=0")
    return 0


COMMANDS: dict[str, Callable[[Config, Path | None], int]] = {
    "check": check,
    "prepare": prepare,
    "pack": pack,
    "noise": noise,
}
