"""The command `data`: check, prepare and pack datasets, write noisy labels, apply a review."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from noisybsd.config import Config, build_config, parse_overrides
from noisybsd.data.cards import card_names, load_card
from noisybsd.data.check import check
from noisybsd.data.dataset import before_noise, draw_noise, read_splits, with_labels
from noisybsd.data.download import fetch, without_password
from noisybsd.data.label_files import write_labels
from noisybsd.data.noise import summary
from noisybsd.data.pack import pack
from noisybsd.data.readers.registry import EVALUATIONS
from noisybsd.data.splits import Missing
from noisybsd.errors import UserError, command, did_you_mean, shown
from noisybsd.files import user_path
from noisybsd.settings import DataConfig, NoiseConfig

HELP = """\
usage: python -m noisybsd.data check|prepare|pack|noise NAME key=value …
       python -m noisybsd.data apply-review run=DIR review=FILE out=FILE

NAME is a dataset: {names}; or the path of a card.

  check NAME root=FOLDER       is it there, whole, and in order? Exit code 1 if not, with what to do
  prepare NAME root=FOLDER     download and unpack what may be downloaded
  pack NAME root=FOLDER out=F  decode image files once into F, which trains faster and fits mmap:
                               then data.root=F instead of data.root=FOLDER
  noise NAME root=FOLDER out=F noise.name=symmetric noise.rate=0.4 noise.seed=0
                               write noisy labels to F (.csv, .npy or .txt) for others to use:
                               then data.labels=F
  apply-review                 correct a run's labels by the decisions made on its report's page;
                               `apply-review --help` says more

Keys are those of a recipe's sections data and noise (python -m noisybsd.train --help lists them);
those of data may be written without `data.`: root, labels, manifest, size, verify, on_error, …

examples:
  python -m noisybsd.data check cifar10n root=data
  python -m noisybsd.data pack own root=photos size=128 on_error=skip out=photos_packed
"""


@command
def main(arguments: list[str]) -> int:
    """Carry out `COMMAND NAME key=value …` and return the exit code."""
    if arguments[:1] == ["apply-review"]:
        # here, because a trainer takes seconds to import, and the other commands need none
        from noisybsd.report import review

        return review.main(arguments[1:])
    if not arguments or {"-h", "--help"} & set(arguments):
        print(HELP.format(names=", ".join(card_names())))
        return 0
    chosen, *rest = arguments
    if chosen not in COMMANDS:
        valid = [*COMMANDS, "apply-review"]
        raise UserError(f"command: {did_you_mean(chosen, valid)}; --help explains them")
    if not rest or "=" in rest[0]:
        raise UserError(f"{chosen}: which dataset? valid: {', '.join(card_names())}")
    config, out = _settings(chosen, rest[0], rest[1:])
    return COMMANDS[chosen](config, out)


# what reading a dataset takes, without what only training does; and the settings of noise
_OF_TRAINING = {"limit", "test_limit", "storage", "workers", "balanced"}
_TAKEN = {f"data.{key}" for key in DataConfig.model_fields if key not in _OF_TRAINING}
_TAKEN_BY_NOISE = {"seed", *(f"noise.{key}" for key in NoiseConfig.model_fields)}


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
    for key in (setting.partition("=")[0] for setting in settings):
        if key not in _TAKEN and not (chosen == "noise" and key in _TAKEN_BY_NOISE):
            raise UserError(f"{key}: has no effect on {chosen}; leave it out")
    return config, user_path(out[-1], "out") if out else None


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
    read, _ = read_splits(card, data)
    train, _ = with_labels(card, data, read.train, read.class_names)
    noisy = draw_noise(card, config.noise, config.seed, train, len(read.class_names))
    clean = before_noise(train)
    notes = {
        "dataset": card.name,
        "classes": list(read.class_names),
        **noisy.notes,
        "transition": None if noisy.transition is None else noisy.transition.tolist(),
    }
    write_labels(out, noisy.labels, notes, clean=clean)
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


if __name__ == "__main__":
    sys.exit(main())
