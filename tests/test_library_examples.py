"""The programs in examples/ that use the library, run for a few epochs."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

EXAMPLES = ROOT / "examples"


def program(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def in_a_process(name: str, call: str, folder: Path) -> str:
    """What `print(call)` says: frameworks change the process that imports them."""
    code = f"import sys; sys.path.insert(0, {str(EXAMPLES)!r}); import {name}; print({name}.{call})"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 80
    assert f"python examples/{path.name}" in text


def test_the_plain_loop_learns_from_wrong_labels(tmp_path: Path) -> None:
    found = program("plain_loop").main(epochs=4, out=str(tmp_path / "report.html"))
    assert found["test accuracy"] > 0.8 > 0.7 > found["labels right before"]
    assert 'id="pictures-0"' in (tmp_path / "report.html").read_text("utf-8")


def test_scikit_learns_probabilities_find_wrong_labels(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    found = program("scikit_learn").main(str(tmp_path / "report.html"))
    assert found["of the issues, wrong"] > 0.8 and found["of the wrong labels, found"] > 0.8
    first = (tmp_path / "report.csv").read_text("utf-8").splitlines()[0]
    assert first.startswith("index,path,")


def test_a_lightning_module_holds_beliefs(tmp_path: Path) -> None:
    pytest.importorskip("lightning")
    options = "epochs=8, accelerator='cpu', enable_progress_bar=False, enable_checkpointing=False"
    found = in_a_process("lightning_module", f"main({options})", tmp_path)
    assert _after(found) > 0.65  # 0.63 before


def test_hugging_faces_trainer_learns_beliefs(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    found = in_a_process("hugging_face", "main(epochs=1)", tmp_path)
    assert "'after': " in found


def test_weights_and_biases_keeps_a_run_offline(tmp_path: Path) -> None:
    pytest.importorskip("pandas")
    found = in_a_process("weights_and_biases", "main(epochs=2)", tmp_path)
    assert "'test accuracy': " in found
    assert list((tmp_path / "wandb").glob("offline-run-*"))


def _after(line: str) -> float:
    return float(line.rsplit(":", 1)[1].strip(" }"))


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("pandas")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(EXAMPLES / "label_report.ipynb", as_version=4)
    for cell in notebook.cells:
        assert not cell.get("outputs"), "the notebook is kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert (tmp_path / "report.html").is_file()
    kinds = [
        out.get("data", {}).keys() for cell in notebook.cells for out in cell.get("outputs", [])
    ]
    assert any("image/png" in each for each in kinds)
