"""Write a run's network for use elsewhere: `python -m noisybsd.export run=DIR format=onnx`."""

from __future__ import annotations

import sys

from noisybsd.errors import UserError, asks_for_help, command, shown
from noisybsd.files import expanded, output_file
from noisybsd.values import one_of, read_arguments

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "safetensors": ".safetensors"}

USAGE = """\
usage: python -m noisybsd.export run=DIR format=onnx|torch|safetensors [out=FILE] [weights=average|last]

Write the network of a run, finished or not, into one file. The run's data are not needed.

  format=onnx         for ONNX Runtime and others; needs `pip install onnx onnxscript onnxruntime`
  format=torch        a program of torch.export, which torch.export.load reads; noisybsd is not needed then
  format=safetensors  the weights alone, by their names in noisybsd; needs `pip install safetensors`
  out=FILE            default: model.onnx, model.pt2 or model.safetensors in DIR
  weights=average     the moving average of the weights, the default if the run has one; or last

ONNX and torch take images uint8 (N,S,S,C) and give probabilities (N,K); the normalisation and the
temperature of a run with data.calibration are inside. The metadata of the file name the classes, S (size) and
the temperature, by which a user of the safetensors divides the logits. docs/predicting.md has examples.
"""


@command
def main(arguments: list[str]) -> int:
    if asks_for_help(arguments):
        print(USAGE, end="")
        return 0 if arguments else 2
    readers = {
        "run": expanded,
        "format": one_of(*SUFFIXES),
        "out": lambda text: output_file(text, SUFFIXES.values()),
        "weights": one_of("average", "last"),
    }
    given = read_arguments(arguments, readers, required=("run", "format"))
    suffix = SUFFIXES[given["format"]]
    out = given.get("out", given["run"] / f"model{suffix}")
    if out.suffix.lower() != suffix:
        raise UserError(f"out={out}: a file of format={given['format']} ends in {suffix}")

    # here, because torch takes seconds to import
    from noisybsd.engine.classifier import load
    from noisybsd.engine.export import export

    classifier = load(given["run"], weights=given.get("weights"), device="cpu")
    export(classifier, given["format"], out)
    print(
        f"{shown(out)}: {out.stat().st_size / 2**20:,.1f} MiB, {classifier.about['weights']} weights"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
