"""How the results of runs get into the headers of the recipes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml
from helpers.benchmarks import benchmark
from helpers.finished import make_run

from noisybsd.files import resource_dir


@pytest.fixture
def recipes(tmp_path: Path) -> Path:
    """Copies of recipes, to be written to."""
    folder = tmp_path / "recipes"
    folder.mkdir()
    for name in ("digits_sym40", "cifar10_sym50"):
        shutil.copy(resource_dir("recipes") / f"{name}.yaml", folder)
    return folder


def test_headers_say_what_was_measured_and_nothing_else_changes(
    tmp_path: Path, recipes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in (0, 1):
        for method, accuracy in (("bsd_plus", 0.9), ("ce", 0.8)):
            arguments = [f"method={method}", f"seed={seed}", "epochs=60"]
            make_run(tmp_path / f"runs/{method}{seed}", *arguments, accuracy=accuracy + 0.01 * seed)
    file = recipes / "digits_sym40.yaml"
    before, other = file.read_text(), (recipes / "cifar10_sym50.yaml").read_text()
    main = benchmark("headers").main
    assert main([str(tmp_path / "runs"), "results/accuracy.csv", str(recipes)]) == 0

    after = file.read_text()
    ours, ce = "bsd_plus accuracy 0.905 ± 0.007, ECE 0.059", "ce accuracy 0.805 ± 0.007, ECE 0.070"
    assert f"# Measured:  {ours}; {ce}; n = 2; results/accuracy.csv\n" in after
    assert "# Cost:      100 s a run of bsd_plus; a machine, 2 cores\n" in after
    assert yaml.safe_load(after) == yaml.safe_load(before)
    unchanged = ("# Paper:", "# Command:", "# scikit-learn")
    for line in before.splitlines():
        assert not line.startswith(unchanged) or line in after.splitlines()
    assert (recipes / "cifar10_sym50.yaml").read_text() == other

    assert main([str(tmp_path / "runs"), "results/accuracy.csv", str(recipes)]) == 0
    assert file.read_text() == after


def test_runs_of_another_budget_do_not_get_into_a_header(tmp_path: Path, recipes: Path) -> None:
    make_run(tmp_path / "runs/a", "epochs=59", "method=bsd_plus")
    before = (recipes / "digits_sym40.yaml").read_text()
    assert benchmark("headers").main([str(tmp_path / "runs"), "t.csv", str(recipes)]) == 0
    assert (recipes / "digits_sym40.yaml").read_text() == before
