"""A classifier as one file for other programs: ONNX, torch.export, or its weights as safetensors.

Dimensions: N images, C channels, S side of the network's input, K classes.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from noisybsd.engine.classifier import Classifier
from noisybsd.errors import UserError, first_line
from noisybsd.files import write_atomically


class Deployed(nn.Module):
    """Images uint8 (N,S,S,C) to probabilities (N,K); the normalisation is inside."""

    def __init__(self, classifier: Classifier):
        super().__init__()
        self.views = classifier.transform.views
        self.encoder, self.classifier = classifier.network.encoder, classifier.network.classifier
        self.temperature = classifier.network.temperature

    def forward(self, images: Tensor) -> Tensor:
        features = self.encoder(self.views.plain(images.permute(0, 3, 1, 2)))
        logits = self.classifier(features.float())
        if self.temperature != 1:
            logits = logits / self.temperature
        probabilities: Tensor = logits.softmax(dim=1)
        return probabilities


def metadata(classifier: Classifier) -> dict[str, str]:
    """What a file says of its network: a JSON object under the key `noisybsd`."""
    return {"noisybsd": json.dumps(classifier.transform.takes.model_dump() | classifier.about)}


def export(classifier: Classifier, kind: str, out: Path) -> None:
    """Write the classifier, which is on the CPU, to the file `out`.

    Args:
        kind: a key of `FORMATS`.

    Raises:
        UserError: a package is missing, the network cannot be expressed, or the file cannot be written.
    """
    content = FORMATS[kind](classifier)
    write_atomically(out, lambda file: file.write(content))


def _onnx(classifier: Classifier) -> bytes:
    for name in ("onnx", "onnxscript"):
        _need(name, "onnx", "pip install onnx onnxscript onnxruntime")
    with _expressing("onnx", classifier):
        program: Any = torch.onnx.export(
            Deployed(classifier).eval(),
            (_example(classifier),),
            dynamic_shapes={"images": {0: "N"}},
            input_names=["images"],
            output_names=["probabilities"],
            verbose=False,
        )
        for node in program.model.graph.all_nodes():
            node.metadata_props.clear()  # lines of the source files of this machine
        program.model.metadata_props.update(metadata(classifier))
        content: bytes = program.model_proto.SerializeToString()
        return content


def _torch(classifier: Classifier) -> bytes:
    with _expressing("torch", classifier):
        number = torch.export.Dim("N")
        program = torch.export.export(
            Deployed(classifier).eval(), (_example(classifier),), dynamic_shapes=({0: number},)
        )
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)  # lines of the source files of this machine
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=metadata(classifier))
        return file.getvalue()


def _safetensors(classifier: Classifier) -> bytes:
    save = _need("safetensors.torch", "safetensors", "pip install safetensors").save
    weights = {
        name: part.clone(memory_format=torch.contiguous_format)
        for name, part in classifier.network.state_dict().items()
    }
    content: bytes = save(weights, metadata=metadata(classifier))
    return content


FORMATS = {"onnx": _onnx, "torch": _torch, "safetensors": _safetensors}


def _example(classifier: Classifier) -> Tensor:
    """Two black images (2,S,S,C): with one, torch would take 1 as the only number of images."""
    takes = classifier.transform.takes
    return torch.zeros(2, takes.size, takes.size, takes.channels, dtype=torch.uint8)


def _need(module: str, kind: str, how: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise UserError(
            f"format={kind} needs {package}, which cannot be imported ({error}): {how}"
        ) from None


@contextlib.contextmanager
def _expressing(kind: str, classifier: Classifier) -> Iterator[None]:
    """Answer what torch cannot express in a format with a sentence, and keep its notes to itself."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # torch's exporters raise many types
        first: BaseException = error
        while first.__cause__ is not None:  # the outermost one says which step it was
            first = first.__cause__
        reason = first_line(first)[:300]
        name = classifier.about.get("network", {}).get("name", "?")
        raise UserError(
            f"format={kind}: cannot express network.name={name}: {reason}; another format may, or use "
            "noisybsd.load in Python"
        ) from error
    finally:
        logging.disable(before)
