"""Check, pack and import datasets, write noisy labels, apply a review: `python -m noisybsd.data --help`."""

from __future__ import annotations

import sys

from noisybsd.data.cards import card_names
from noisybsd.errors import asks_for_help, command
from noisybsd.runs.directory import MAY_DIFFER

HELP = """\
usage: python -m noisybsd.data check|prepare|pack|noise NAME key=value …
       python -m noisybsd.data import hf|parquet|webdataset|npz=SOURCE out=FOLDER
       python -m noisybsd.data apply-review run=DIR review=FILE out=FILE|links=FOLDER

NAME is a dataset: {names}; or the path of a card.

  check NAME root=FOLDER       is it there, whole, and in order? Exit code 1 if not, with what to do
  prepare NAME root=FOLDER     download and unpack what may be downloaded
  pack NAME root=FOLDER out=F  decode image files once into F, which trains faster and fits mmap:
                               then data.root=F instead of data.root=FOLDER
  noise NAME root=FOLDER out=F noise.name=symmetric noise.rate=0.4 noise.seed=0
                               write noisy labels to F (.csv, .npy or .txt) for others to use:
                               then data.labels=F
  import KIND=SOURCE out=F     copy images in another format into F, as image files and a list of labels:
                               then data.root=F data.manifest=manifest.csv. KIND is
                               hf          a Hugging Face dataset: a folder of save_to_disk, or a name
                               parquet     files with a column of the bytes of images
                               webdataset  tar shards, such as train-{{000..009}}.tar
                               npz         arrays of images and labels
                               image=COLUMN, label=COLUMN (label=A,B: of annotators), splits=train,test,
                               config=NAME (hf), on_error=skip
  apply-review                 correct a run's labels by the decisions made on its report's page;
                               `apply-review --help` says more

Keys are those of a recipe's sections data and noise (python -m noisybsd.train --help lists them);
those of data may be written without `data.`: root, labels, manifest, size, verify, on_error, …

examples:
  python -m noisybsd.data check cifar10n root=data
  python -m noisybsd.data pack own root=photos size=128 on_error=skip out=photos_packed
  python -m noisybsd.data import parquet=downloads/ label=breed out=photos
"""


REVIEW_HELP = f"""\
usage: python -m noisybsd.data apply-review run=DIR review=FILE [out=FILE] [links=FOLDER] [key=value …]

Correct the labels that the run in DIR was trained on by the decisions FILE, downloaded from the run's
report.html. Give one of these, or both:
  out=FILE      a label file (.csv with the images' paths, .npy or .txt), to train on with data.labels=FILE;
                the same images are held out for testing then
  links=FOLDER  a new folder with a folder of each class, in which its images are links, as other programs
                read them, and data.root=FOLDER too

`wrong` takes the decision's label; `right` and `unsure` leave the given one. A `wrong` label without another
class is refused, and so are a `right` or `unsure` one with another, and a review of other images or labels
than the run's.

keys that may differ from the run's own: {", ".join(MAY_DIFFER)}
"""


@command
def main(arguments: list[str]) -> int:
    """Carry out `COMMAND NAME key=value …` and return the exit code."""
    # imported here, since torch takes seconds
    if arguments[:1] == ["apply-review"]:
        if asks_for_help(arguments[1:]):
            print(REVIEW_HELP, end="")
            return 0 if arguments[1:] else 2
        from noisybsd.report import review

        return review.run(arguments[1:])
    if asks_for_help(arguments):
        print(HELP.format(names=", ".join(card_names())))
        return 0 if arguments else 2
    from noisybsd.data.commands import carry_out

    return carry_out(arguments)


if __name__ == "__main__":
    sys.exit(main())
