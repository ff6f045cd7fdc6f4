"""Comparisons: run directories made by hand, whose every number is known."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.finished import EPOCHS, make_run
from rich.console import Console
from scipy import stats

from noisybsd import train
from noisybsd.compare import plots, tables
from noisybsd.compare.__main__ import _KEYS, main
from noisybsd.compare.runs import METRICS, Run, find_runs
from noisybsd.compare.sections import (
    MUST_AGREE,
    PUBLISHED,
    Comparison,
    Row,
    Section,
    compare,
    notes,
    paired_difference,
    provenance,
)
from noisybsd.data.cards import load_card
from noisybsd.data.noise import NOISE_MODELS
from noisybsd.errors import UserError
from noisybsd.methods.presets import METHODS

LAST, AUROC = METRICS[0], next(metric for metric in METRICS if metric.key == "auroc")


# accuracies of the last epoch, by seed; seed 3 has no partner
CE = {0: 0.80, 1: 0.82, 2: 0.81}
BSD = {0: 0.90, 1: 0.93, 2: 0.90, 3: 0.95}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of runs: `CE` and `BSD`."""
    monkeypatch.chdir(tmp_path)
    for method, by_seed in (("ce", CE), ("bsd", BSD)):
        for seed, accuracy in by_seed.items():
            path = tmp_path / "runs" / f"{method}-s{seed}"
            make_run(path, f"method={method}", f"seed={seed}", accuracy=accuracy)
    return Path("runs")


def load(*paths: Path, **options: Any) -> tuple[Section, ...]:
    return compare(find_runs([str(path) for path in paths])[0], **options)


def labels(section: Section) -> list[str]:
    return [row.label for row in section.rows]


# finding and reading


def test_runs_are_found_below_folders_once(runs: Path) -> None:
    nested = runs / "ce-s0" / "wandb" / "files"
    nested.mkdir(parents=True)
    (nested / "config.yaml").write_text("wandb_version: 1\n")
    found, unfinished = find_runs([str(runs), str(runs / "ce-s0"), str(runs.resolve())])
    assert (len(found), unfinished) == (7, [])
    assert found[0].path == Path("runs/bsd-s0")


def test_linked_runs_are_found_and_links_may_lead_in_a_circle(runs: Path) -> None:
    folder = Path("mine")
    folder.mkdir()
    (folder / "run").symlink_to(Path("../runs/ce-s0"))
    (folder / "circle").symlink_to(Path("../mine"))
    found, unfinished = find_runs([str(folder), str(runs / "ce-s0")])
    assert [run.path for run in found] == [runs / "ce-s0"] and not unfinished


def test_a_run_without_its_configuration_is_not_passed_over(runs: Path) -> None:
    (runs / "ce-s1" / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"^runs/ce-s1/config\.yaml: cannot be read: No such file"):
        find_runs([str(runs)])


def test_a_sweeps_directories_are_paths_not_options(runs: Path, capsys: Any) -> None:
    make_run(Path("seed=9"), "seed=9")
    make_run(Path("deep/epochs=3-s1"), "seed=1")
    assert main(["seed=9", "deep/epochs=3-s1"]) == 0
    assert re.search(r"^ +ce +2 ", capsys.readouterr().out, re.MULTILINE)


def test_unfinished_runs_are_listed_with_their_epoch_and_not_used(runs: Path, capsys: Any) -> None:
    cut = runs / "ce-s1"
    (cut / "results.json").unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    (cut / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n")
    (runs / "never").mkdir()
    (runs / "never" / "failed.txt").write_text("error: no data\n")
    failed = runs / "bsd-s3"
    (failed / "results.json").unlink()
    (failed / "metrics.jsonl").unlink()
    (failed / "failed.txt").write_text("error: the loss is not finite\n")
    assert main([str(runs), "out=a.csv"]) == 0
    for text in (capsys.readouterr().out, Path("a.csv").read_text()):
        assert "runs/ce-s1: not finished, not used: epoch 5 of 12" in text
        assert "runs/never: not finished, not used: epoch 0 of ?, failed: error: no data" in text
        assert (
            "bsd-s3: not finished, not used: epoch 0 of 12, failed: error: the loss is not finite"
        ) in text
    (section,) = load(runs)
    assert [row.seeds for row in section.rows] == [[0, 2], [0, 1, 2]]


def test_only_unfinished_runs(runs: Path) -> None:
    for path in runs.glob("*/results.json"):
        path.unlink()
    with pytest.raises(UserError, match=r"no finished run to compare\nruns/bsd-s0: not finished"):
        find_runs([str(runs)])


def damage(path: Path, **changes: Any) -> None:
    file = path / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_every_bad_file_is_named_at_once(runs: Path) -> None:
    (runs / "bsd-s0" / "results.json").write_text('{"schema": 1, "test_acc')
    (runs / "bsd-s1" / "results.json").write_text("[]")
    damage(runs / "bsd-s2", test_accuracy_last="0.9")
    damage(runs / "bsd-s3", seconds=None)
    damage(runs / "ce-s0", test_ece_last=float("nan"))
    damage(runs / "ce-s1", schema=2)
    damage(runs / "ce-s2", data_sha256=None)
    make_run(runs / "x").joinpath("config.yaml").write_text("recipe: [")
    make_run(runs / "y").joinpath("config.yaml").write_text("seed: 1\n")
    config = make_run(runs / "z").joinpath("config.yaml")
    config.write_text(config.read_text().replace("\nseed: 0\n", "\nseed: first\n"))
    with pytest.raises(UserError) as caught:
        find_runs([str(runs), "nowhere"])
    lines = {line.split(": ")[0]: line for line in str(caught.value).splitlines()}
    assert "damaged: " in lines["runs/bsd-s0/results.json"]
    assert "Delete it" in lines["runs/bsd-s0/results.json"]
    assert "no JSON object" in lines["runs/bsd-s1/results.json"]
    assert "test_accuracy_last is '0.9'" in lines["runs/bsd-s2/results.json"]
    assert "seconds is None" in lines["runs/bsd-s3/results.json"]
    assert "NaN is not JSON" in lines["runs/ce-s0/results.json"]
    version = lines["runs/ce-s1/results.json"]
    assert (
        "of schema version 2; this noisybsd reads version 1: use the noisybsd that made it"
        in version
    )
    assert "data_sha256 is None" in lines["runs/ce-s2/results.json"]
    assert "not readable as YAML" in lines["runs/x/config.yaml"]
    assert "no recipe" in lines["runs/y/config.yaml"] or "no method" in lines["runs/y/config.yaml"]
    assert "seed: " in lines["runs/z/config.yaml"] and "'first'" in lines["runs/z/config.yaml"]
    assert lines["nowhere"].startswith("nowhere: no such folder")
    assert len(lines) == 11


def test_results_before_there_was_a_version(runs: Path) -> None:
    file = runs / "ce-s0" / "results.json"
    results = json.loads(file.read_text())
    del results["schema"]
    file.write_text(json.dumps(results))
    with pytest.raises(UserError, match="of schema version None"):
        find_runs([str(runs)])


def test_folders_without_runs(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no runs found there"):
        find_runs([str(tmp_path)])


# numbers


def test_means_and_standard_deviations(runs: Path) -> None:
    (section,) = load(runs)
    ce, bsd = section.rows
    assert (ce.label, bsd.label) == ("ce", "bsd")
    for row, by_seed in ((ce, CE), (bsd, BSD)):
        summary = row.summary(LAST)
        assert summary is not None
        assert summary.mean == pytest.approx(np.mean(list(by_seed.values())), abs=1e-12)
        assert summary.std == pytest.approx(np.std(list(by_seed.values()), ddof=1), abs=1e-12)
        assert summary.n == len(by_seed)


def test_differences_are_paired_by_seed(runs: Path) -> None:
    (section,) = load(runs)
    ce, bsd = section.rows
    assert section.baseline_of(bsd) is ce
    assert section.baseline_of(ce) is None
    found = bsd.difference(ce, LAST)
    seeds = [0, 1, 2]
    expected = stats.ttest_rel([BSD[s] for s in seeds], [CE[s] for s in seeds])
    interval = expected.confidence_interval(0.95)
    assert found is not None
    assert found.n == 3
    assert found.mean == pytest.approx((0.10 + 0.11 + 0.09) / 3)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))


def test_few_pairs() -> None:
    assert paired_difference([]) is None
    one = paired_difference([0.5])
    assert one is not None and (one.mean, one.low, one.high, one.n) == (0.5, None, None, 1)
    same = paired_difference([0.98 - 0.977, 0.979 - 0.976, 0.985 - 0.982])  # but for rounding
    assert same is not None and (same.low, same.high, same.n) == (None, None, 3)
    # t_{0.975, 1} = 12.706, s / sqrt(2) = 1
    two = paired_difference([-1.0, 1.0])
    assert two is not None and two.high == pytest.approx(12.7062, abs=1e-4)


def test_values_that_are_not_known(runs: Path) -> None:
    damage(runs / "ce-s0", noise_detection_auroc=None)
    (section,) = load(runs)
    ce, bsd = section.rows
    summary, difference = ce.summary(AUROC), bsd.difference(ce, AUROC)
    assert summary is not None and summary.n == 2
    assert difference is not None and difference.n == 2
    (table, _) = tables.section_tables(section)
    assert table.rows[0][table.headings.index("AUROC")] == "0.8650 ± 0.0071 (n=2)"


def test_a_column_nobody_knows_is_left_out(tmp_path: Path) -> None:
    make_run(
        tmp_path / "a", results={"label_correction_accuracy": None, "memorised_fraction": None}
    )
    (section,) = load(tmp_path)
    (table,) = tables.section_tables(section)
    assert "corrected %" not in table.headings
    assert "AUROC" in table.headings


def test_the_weight_average_is_the_network_of_ce_ema(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ce_ema", accuracy=0.8)
    make_run(tmp_path / "b", "method=ce", accuracy=0.8)
    (section,) = load(tmp_path)
    (ema,) = (row.runs[0] for row in section.rows if row.method == "ce_ema")
    (ce,) = (row.runs[0] for row in section.rows if row.method == "ce")
    for name in ("last", "last10_mean", "best"):
        mine, its = (run.results[f"test_accuracy_{name}"] for run in (ema, ce))
        assert mine == pytest.approx(its + 0.005)
    assert (ema.results["test_ece_last"], ema.results["reliability"]["count"]) == (0.04, [50, 50])
    assert ema.curve("test_accuracy")[-1] == pytest.approx(0.805)
    assert ema.curve("memorised_fraction") == ce.curve("memorised_fraction")
    assert any(n.startswith("ce_ema: accuracies and ECE") for n in notes([section], []))


def test_ce_ema_without_an_average(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a", "method=ce_ema")
    text = (path / "metrics.jsonl").read_text()
    (path / "metrics.jsonl").write_text(text.replace("test_accuracy_ema", "other"))
    with pytest.raises(UserError, match="ce_ema without a weight average"):
        find_runs([str(tmp_path)])


# rows and sections


def test_rows_name_the_settings_that_differ(tmp_path: Path) -> None:
    for lr in ("0.05", "0.1"):
        for seed in ("0", "1"):
            make_run(tmp_path / f"{lr}-{seed}", f"optimizer.lr={lr}", f"seed={seed}")
    (section,) = load(tmp_path)
    assert labels(section) == ["ce optimizer.lr=0.05", "ce optimizer.lr=0.1"]
    assert [row.seeds for row in section.rows] == [[0, 1], [0, 1]]


def test_what_a_method_makes_is_not_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ce")
    make_run(tmp_path / "b", "method=bsd_plus_neighbours")
    make_run(tmp_path / "c", "method=elr")
    (section,) = load(tmp_path)
    assert labels(section) == ["ce", "elr", "bsd_plus_neighbours"]


def test_settings_of_a_part_that_a_run_does_without_are_not_named(tmp_path: Path) -> None:
    for method in ("ce", "bsd_plus"):
        for weight in ("0.1", "1"):
            seed = f"seed={int(weight == '1')}"
            run = tmp_path / f"{method}{weight}"
            make_run(run, f"method={method}", f"contrastive.weight={weight}", seed)
    (section,) = load(tmp_path)
    assert labels(section) == [
        "ce",
        "bsd_plus contrastive.weight=0.1",
        "bsd_plus contrastive.weight=1.0",
    ]


def test_options_are_named_beside_the_methods_that_take_them(tmp_path: Path) -> None:
    for method, *options in (["ce"], ["bsd_plus"], ["bsd_plus", "options.prior_strength=3"]):
        make_run(tmp_path / f"{method}{len(options)}", f"method={method}", *options)
    (section,) = load(tmp_path)
    assert labels(section) == ["ce", "bsd_plus", "bsd_plus options.prior_strength=3.0"]


def test_runs_of_another_precision_are_another_row(tmp_path: Path) -> None:
    for seed, device in ((0, "cpu"), (1, "cpu"), (2, "cuda")):
        make_run(tmp_path / str(seed), f"seed={seed}", results={"device": device})
    (section,) = load(tmp_path)
    assert {row.label: row.seeds for row in section.rows} == {
        "ce precision=auto: fp32": [0, 1],
        "ce precision=auto: bf16": [2],
    }


def test_departures_from_a_methods_preset_are_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=ce", "augment.views=[weak,strong]")
    make_run(tmp_path / "b", "method=gce", "options.q=0.5")
    make_run(tmp_path / "c", "method=bsd")
    (section,) = load(tmp_path)
    assert labels(section) == ["ce augment.views=[weak,strong]", "gce options.q=0.5", "bsd"]


def test_what_the_recipe_sets_for_all_of_its_runs_is_not_named(tmp_path: Path) -> None:
    quick = ("recipe=own_quick", "method=bsd_plus")
    make_run(tmp_path / "a", *quick, "contrastive.name=none")
    make_run(tmp_path / "b", "recipe=own_quick", "method=ce")
    (section,) = load(tmp_path)
    assert labels(section) == ["ce", "bsd_plus"]
    make_run(tmp_path / "c", *quick)  # naming the method brings its contrastive term back
    (section,) = load(tmp_path)
    assert labels(section) == ["ce", "bsd_plus", "bsd_plus contrastive.name=none"]
    make_run(tmp_path / "d", "recipe=own_small", "method=bsd_plus", "contrastive.name=none")
    assert labels(load(tmp_path / "d")[0]) == ["bsd_plus contrastive.name=none"]  # not the recipe's


@pytest.mark.parametrize(
    "setting", ["device=cpu", "data.root=elsewhere", "tracking.wandb=disabled", "data.workers=0"]
)
def test_where_a_run_was_made_is_no_setting(setting: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0")
    make_run(tmp_path / "b", "seed=1", setting)
    (section,) = load(tmp_path)
    assert labels(section) == ["ce"]


def test_noise_rates_are_sections(tmp_path: Path) -> None:
    for rate in ("0.4", "0.2"):
        for method in ("ce", "bsd"):
            digest = {"data_sha256": rate[-1] * 64}
            arguments = (f"noise.rate={rate}", f"method={method}")
            make_run(tmp_path / f"{method}{rate}", *arguments, results=digest)
    first, second = load(tmp_path)
    assert first.title == "digits_sym40, noise.rate=0.2"
    assert second.title == "digits_sym40, noise.rate=0.4"
    assert labels(first) == labels(second) == ["ce", "bsd"]


def test_recipes_are_sections_and_may_differ(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    other = "recipe=cifar10n_worst"
    make_run(tmp_path / "b", other, "method=ce", "epochs=5", results={"data_sha256": "f" * 64})
    assert [section.title for section in load(tmp_path)] == ["cifar10n_worst", "digits_sym40"]


def test_one_run_twice_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b")
    with pytest.raises(UserError, match=r"ce, seed 0: the same run twice, name one: .*a, .*b"):
        load(tmp_path)


# what must not be mixed

# another valid value of each
OTHER = {
    "data.name": "cifar10",
    "data.labels": "labels.npz",
    "data.manifest": "own.csv",
    "data.test_fraction": "0.3",
    "noise.name": "symmetric_exclusive",
    "noise.seed": "5",
    "noise.file": "matrix.csv",
    "epochs": "13",
    "batch_size": "32",
    "data.limit": "100",
    "data.test_limit": "50",
    "data.balanced": "10",
    "data.size": "16",
    "network.name": "preact_resnet18",
    "network.width": "4",
    "network.pretrained": "true",
    "network.embedding_dim": "16",
}


@pytest.mark.parametrize("key", MUST_AGREE)
def test_other_data_noise_or_budget_is_refused_and_said_where_asked_for(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", "seed=0")
    make_run(tmp_path / "b", "seed=1")
    make_run(tmp_path / "c", "seed=0", f"{key}={OTHER[key]}", "method=bsd")
    assert main(["."]) == 2
    error = capsys.readouterr().err
    assert f"digits_sym40: {key} differs: " in error
    assert "in a and 1 more; " in error
    assert "in c" in error
    assert "mix=true" in error

    assert main([".", "mix=true", "out=t.csv,t.md"]) == 0
    texts = [capsys.readouterr().out, *(Path(f"t.{s}").read_text() for s in ("csv", "md"))]
    for text in texts:
        plain = text.replace("\n", " ").replace("\\_", "_")
        assert f"MIXED: digits_sym40: {key} differs" in plain
    assert any(f"{key}=" in label for label in labels(load(tmp_path, mix=True)[0]))


def test_other_hashes_of_one_seed_are_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0", "method=ce")
    make_run(tmp_path / "b", "seed=0", "method=bsd", results={"data_sha256": "ab" * 32})
    with pytest.raises(
        UserError, match=r"seed 0: data_sha256 differs: 0{12} in .*a; (ab){6} in .*b"
    ):
        load(tmp_path)
    (section,) = load(tmp_path, mix=True)
    assert section.notes[0].startswith("MIXED: digits_sym40, seed 0: data_sha256 differs")


def test_hashes_of_different_seeds_differ_by_right(runs: Path) -> None:
    assert load(runs)[0].notes == ()


@pytest.mark.parametrize(
    "labels", [["recipe=cifar10n_worst"], ["recipe=cifar10_sym50", "noise.seed=3"]]
)
def test_labels_that_no_seed_draws_have_one_hash(labels: list[str], tmp_path: Path) -> None:
    for seed, digest in ((0, "ab"), (1, "ab"), (2, "cd")):
        make_run(
            tmp_path / f"s{seed}", *labels, f"seed={seed}", results={"data_sha256": digest * 32}
        )
    recipe = labels[0].removeprefix("recipe=")
    text = rf"^{recipe}: data_sha256 differs: (ab){{6}} in .*s0 and 1 more; (cd){{6}} in .*s2\n"
    with pytest.raises(UserError, match=text):
        load(tmp_path)
    assert load(tmp_path, mix=True)[0].notes[0].startswith(f"MIXED: {recipe}: data_sha256 differs")


def test_official_and_other_pixels_are_not_mixed(tmp_path: Path) -> None:
    """Not even where seeds differ and with them the labels, so that no hash can tell."""
    for seed, verified in ((0, True), (1, False)):
        data = {"data": {"pixels_verified": verified}}
        make_run(tmp_path / f"s{seed}", "recipe=cifar10_sym50", f"seed={seed}", results=data)
    with pytest.raises(UserError, match=r"pixels_verified differs: true in .*s0; false in .*s1"):
        load(tmp_path)
    (section,) = load(tmp_path, mix=True)
    (note,) = section.notes
    assert note.startswith("MIXED: cifar10_sym50: data.pixels_verified differs")


def test_runs_that_were_made_longer_are_not_mixed_with_others(tmp_path: Path) -> None:
    """Their learning rate rose again."""
    make_run(tmp_path / "s0", "seed=0", results={"extended_after": [6]})
    make_run(tmp_path / "s1", "seed=1", results={"extended_after": []})
    make_run(tmp_path / "s2", "seed=2")  # of a version that could not
    text = r"digits_sym40: extended_after differs: \[6\] in .*s0; \[\] in .*s1 and 1 more"
    with pytest.raises(UserError, match=text):
        load(tmp_path)


# the baseline


def test_the_baseline_may_be_any_method_or_row(runs: Path) -> None:
    (section,) = load(runs, baseline="bsd")
    ce, bsd = section.rows
    assert section.baseline_of(ce) is bsd
    difference = ce.difference(bsd, LAST)
    assert difference is not None and difference.mean == pytest.approx(-0.1)


def test_a_row_is_compared_to_the_baseline_of_the_same_settings(tmp_path: Path) -> None:
    for lr in ("0.05", "0.1"):
        for method in ("ce", "bsd"):
            make_run(tmp_path / f"{method}{lr}", f"optimizer.lr={lr}", f"method={method}")
    (section,) = load(tmp_path)
    pairs = [(row.label, base.label) for row in section.rows if (base := section.baseline_of(row))]
    assert pairs == [
        ("bsd optimizer.lr=0.05", "ce optimizer.lr=0.05"),
        ("bsd optimizer.lr=0.1", "ce optimizer.lr=0.1"),
    ]
    (section,) = load(tmp_path, baseline="ce optimizer.lr=0.1")
    bases = {base.label for row in section.rows if (base := section.baseline_of(row))}
    assert bases == {"ce optimizer.lr=0.1"}


def test_a_baseline_that_is_not_there(runs: Path, capsys: Any) -> None:
    assert main([str(runs), "baseline=bds"]) == 2
    assert "baseline: got 'bds', did you mean bsd?" in capsys.readouterr().err


def test_without_ce_there_are_no_differences(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "method=bsd")
    make_run(tmp_path / "b", "method=elr")
    (section,) = load(tmp_path)
    assert len(list(tables.section_tables(section))) == 1


# every number in every format

# what CE and BSD come to, by hand (and numpy): in the order of the columns
EXPECTED = {
    "ce": [
        "3",
        "81.00 ± 1.00",
        # the last ten of twelve epochs: -0.09 … 0 below the last, the best one 0.02 above it
        f"{81 - 4.5 + (2 + 9) / 10:.2f} ± 1.00",
        "83.00 ± 1.00",
        "81.50 ± 1.00",
        "0.0690 ± 0.0010",
        "71.00 ± 1.00",
        "0.8600 ± 0.0100",
        "22.00 ± 0.00",
        "3.0",
        "101 ± 1",
    ],
    "bsd": [
        "4",
        "92.00 ± 2.45",
        f"{92 - 4.5 + (2 + 9) / 10:.2f} ± 2.45",
        "94.00 ± 2.45",
        "92.50 ± 2.45",
        "0.0580 ± 0.0024",
        "82.00 ± 2.45",
        "0.9700 ± 0.0245",
        "22.00 ± 0.00",
        "3.0",
        "102 ± 1",
    ],
}
# 0.10, 0.11, 0.09: mean 0.1, s 0.01, half width 4.3027 * 0.01 / sqrt(3) = 0.02484
DIFFERENCES = [
    "3",
    "+10.00 [+7.52, +12.48]",
    "+10.00 [+7.52, +12.48]",
    "−0.0100 [−0.0125, −0.0075]",
    "+10.00 [+7.52, +12.48]",
    "+0.1000 [+0.0752, +0.1248]",
]


def expected_rows() -> list[list[str]]:
    return [["ce", *EXPECTED["ce"]], ["bsd", *EXPECTED["bsd"]], ["bsd", *DIFFERENCES]]


# the main columns, with the headline's difference
MAIN = {
    "ce": ["3", "81.00 ± 1.00", "baseline", *(EXPECTED["ce"][i] for i in (5, 6, 7))],
    "bsd": [
        *("4", "92.00 ± 2.45", "+10.00 [+7.52, +12.48] (pairs=3)"),
        *(EXPECTED["bsd"][i] for i in (5, 6, 7)),
    ],
}


def test_the_terminal_shows_the_main_columns(runs: Path, capsys: Any) -> None:
    assert main([str(runs), "out=t.md"]) == 0
    output = capsys.readouterr().out
    rows = [re.split(r" {2,}", line.strip()) for line in output.splitlines()]
    assert [row for row in rows if row[0] in MAIN] == [[k, *cells] for k, cells in MAIN.items()]
    assert ["method", "n", "last %", "difference", "ECE", "corrected %", "AUROC"] in rows
    assert "difference: of last % to ce [95 % confidence interval]." in output
    meanings = {m.heading: m.meaning for m in METRICS}
    for heading in ("last %", "ECE", "corrected %", "AUROC"):
        assert [heading, meanings[heading]] in rows
    assert (
        "not shown: last 10 epochs %, best (oracle) %, weight average %, memorised %, passes, seconds; "
        "columns=all or out=FILE has them"
    ) in output
    assert all(f"; {m.heading}: {m.meaning}" in Path("t.md").read_text() for m in METRICS[1:])


def test_main_columns_without_a_baseline_or_with_several(tmp_path: Path) -> None:
    for lr in ("0.05", "0.1"):
        for method in ("ce", "bsd"):
            make_run(tmp_path / f"{method}{lr}", f"optimizer.lr={lr}", f"method={method}")
    make_run(tmp_path / "odd", "method=elr", "optimizer.lr=0.2")
    (table,) = tables.main_tables(load(tmp_path)[0])
    found = {row[0]: row[table.headings.index("difference")] for row in table.rows}
    assert found["ce optimizer.lr=0.1"] == "baseline"
    assert found["bsd optimizer.lr=0.1"] == "+0.00"
    assert found["elr optimizer.lr=0.2"] == "–"
    (section,) = load(tmp_path / "odd")
    (table,) = tables.main_tables(section)
    assert "difference" not in table.headings and "difference" not in table.caption


def test_terminal(runs: Path, capsys: Any) -> None:
    assert main([str(runs), "columns=all"]) == 0
    output = capsys.readouterr().out
    rows = [re.split(r" {2,}", line.strip()) for line in output.splitlines()]
    assert [row for row in rows if row[0] in ("ce", "bsd")] == expected_rows()
    assert "difference to ce [95 % confidence interval]" in output
    assert "commit: 0123abc-dirty" in output


def test_a_narrow_terminal_loses_nothing(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr(
        tables,
        "Console",
        lambda **_: Console(width=60, force_terminal=True, color_system=None),
    )
    assert main([str(runs), "columns=all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 60
    rows = [re.split(r" {2,}", line.strip()) for line in lines]
    assert not any("…" in line for line in lines)
    for method, cells in EXPECTED.items():
        shown = [cell for row in rows if row[0] == method for cell in row[1:]]
        assert [cell for cell in shown if cell in cells][: len(cells)] == cells


@pytest.mark.parametrize("width", [80, 100, 120])
def test_all_methods_fit_a_terminal(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Every method over three seeds: at most two blocks of rows, in lines of the terminal's width."""
    make_run(tmp_path / "run")
    (section,) = load(tmp_path)
    (run,) = section.runs
    by_seed = tuple(replace(run, settings=run.settings | {"seed": s}) for s in range(3))
    rows = tuple(Row(method, (), by_seed) for method in METHODS)
    monkeypatch.setattr(
        tables,
        "Console",
        lambda **_: Console(width=width, force_terminal=True, color_system=None),
    )
    sections = (replace(section, rows=rows),)
    tables.show(Comparison(sections, tuple(notes(sections, []))))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    shown = [line.split()[0] for line in lines if line.startswith(" ") and " ± " in line]
    assert shown == [*METHODS] * (1 if width == 120 else 2)
    assert len(lines) < 80


def test_parts_of_a_wide_table_are_about_as_wide_as_each_other() -> None:
    cells = ("x" * 8,) * 7
    table = tables.Table("", ("m", *cells), (("method", *cells),))
    # 9 + 11 each: six fit into 75, seven do not
    assert [len(part) for part in tables._parts(table, 86)] == [8]
    assert [len(part) for part in tables._parts(table, 75)] == [5, 4]
    assert [len(part) for part in tables._parts(table, 5)] == [2] * 7


def test_markdown(runs: Path) -> None:
    assert main([str(runs), "out=deep/t.md"]) == 0
    text = Path("deep/t.md").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    assert [row for row in rows if row[0] in ("ce", "bsd")] == expected_rows()
    assert rows[0][:3] == ["method", "n", "last %"]
    assert lines[1].count("---") == len(rows[0])
    assert "- commit: 0123abc-dirty\n" in text
    assert "made by: `python -m noisybsd.compare runs out=deep/t.md`" in text


def read_csv(text: str) -> tuple[list[str], list[dict[str, str]]]:
    lines = text.splitlines(keepends=True)
    comments = [line for line in lines if line.startswith("#")]
    assert lines[: len(comments)] == comments
    return comments, list(csv.DictReader(io.StringIO("".join(lines[len(comments) :]))))


def test_csv(runs: Path) -> None:
    assert main([str(runs), "out=t.csv"]) == 0
    comments, (ce, bsd) = read_csv(Path("t.csv").read_text("utf-8"))
    head = "".join(comments)
    for part in (
        "made by: python -m noisybsd.compare runs out=t.csv",
        "commit: 0123abc-dirty",
        "hardware: a machine, 2 cores",
        "versions: noisybsd 0.1.0, torch 2.15.0",
        "12 epochs, batch size 64",
        "n: ce 3, bsd 4",
        "data: digits: no official checksum",
    ):
        assert part in head
    for record, by_seed in ((ce, CE), (bsd, BSD)):
        values = np.array(list(by_seed.values()))
        n = len(values)
        seconds = 100 + np.arange(n)
        expected = {
            "accuracy_last": values,
            "accuracy_last10": values - 0.045 + 0.011,
            "accuracy_best_oracle": values + 0.02,
            "accuracy_ema": values + 0.005,
            "ece": 0.05 + (1 - values) / 10,
            "label_correction": values - 0.1,
            "auroc": values + 0.05,
            "memorised": np.full(n, 0.22),
            "network_passes": np.full(n, 3.0),
            "seconds": seconds,
        }
        for key, numbers in expected.items():
            assert float(record[key]) == pytest.approx(numbers.mean(), abs=1e-9), key
            assert float(record[f"{key}_std"]) == pytest.approx(numbers.std(ddof=1), abs=1e-9), key
        assert record["n"] == str(n)
        assert record["seeds"] == " ".join(map(str, by_seed))
        assert float(record["noise_rate"]) == pytest.approx(
            np.mean([0.36 + 0.01 * s for s in by_seed])
        )
        assert (record["kind"], record["epochs"], record["batch_size"]) == ("measured", "12", "64")
    assert (bsd["baseline"], bsd["pairs"], ce["baseline"], ce["pairs"]) == ("ce", "3", "", "")
    interval = stats.ttest_1samp([0.10, 0.11, 0.09], 0).confidence_interval(0.95)
    for key in ("accuracy_last", "accuracy_ema", "label_correction", "auroc"):
        found = [float(bsd[f"{key}_difference{end}"]) for end in ("", "_low", "_high")]
        assert found == pytest.approx([0.1, interval.low, interval.high])
        assert ce[f"{key}_difference"] == ""


def test_one_seed_has_no_deviation(tmp_path: Path) -> None:
    make_run(tmp_path / "a", accuracy=0.5)
    make_run(tmp_path / "b", "method=bsd", accuracy=0.6)
    (section,) = load(tmp_path)
    means, differences = tables.section_tables(section)
    assert means.rows[0][2] == "50.00"
    assert differences.rows[0][:3] == ("bsd", "1", "+10.00")
    _, (ce, bsd) = read_csv(tables.csv_text(Comparison((section,), ())))
    assert (ce["accuracy_last_std"], bsd["accuracy_last_difference_low"]) == ("", "")


def test_labels_survive_every_format(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "augment.views=[weak,strong]")
    comparison = Comparison(load(tmp_path), ())
    assert "| ce augment.views=[weak,strong] |" in tables.markdown(comparison)
    with (console := Console(width=200)).capture() as captured:
        tables.Console = lambda **_: console  # type: ignore[misc,assignment]
        try:
            tables.show(comparison)
        finally:
            tables.Console = Console  # type: ignore[misc]
    assert "ce augment.views=[weak,strong]" in captured.get()


@pytest.mark.parametrize(
    ("verified", "text"),
    [
        (True, "the official files"),
        (False, "NOT the official files"),
        (None, "no official checksum"),
    ],
)
def test_what_is_known_of_the_pixels(verified: bool | None, text: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", results={"data": {"pixels_verified": verified}})
    assert any(text in line for line in provenance(load(tmp_path)))


@pytest.mark.parametrize("kind", ["clean", "noisy", "unverified"])
def test_test_labels_that_may_be_wrong_are_told(kind: str, tmp_path: Path) -> None:
    make_run(tmp_path / "a", results={"data": {"test_labels": kind}})
    told = [line for line in provenance(load(tmp_path)) if "test labels are" in line]
    assert len(told) == (kind != "clean")
    assert all(f"test labels are {kind}: accuracies" in line for line in told)


def test_several_machines_and_commits_are_all_named(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "seed=0")
    make_run(tmp_path / "b", "seed=1", results={"git_commit": "fff", "hardware": "another"})
    lines = list(provenance(load(tmp_path)))
    assert "commit: 0123abc-dirty; fff" in lines
    assert "hardware: a machine, 2 cores; another" in lines


def test_rows_of_different_numbers_of_seeds_are_noted(runs: Path) -> None:
    assert any("different numbers of seeds, 3 to 4" in n for n in notes(load(runs), []))


# published numbers


def published_entries() -> list[dict[str, str]]:
    lines = PUBLISHED.read_text("utf-8").splitlines()
    return list(csv.DictReader(line for line in lines if not line.startswith("#")))


def test_published_numbers_are_whole() -> None:
    entries = published_entries()
    columns = [
        "dataset",
        "labels_or_noise",
        "method",
        "value",
        "kind",
        "network",
        "networks",
        "source",
    ]
    assert len(entries) > 150
    cards = {name: load_card(name) for name in {entry["dataset"] for entry in entries}}
    for entry in entries:
        assert list(entry) == columns
        assert 0 < Decimal(entry["value"]) < 100
        assert entry["kind"] in ("last", "best", "unknown")
        assert entry["method"] and entry["source"]
        name, _, rate = entry["labels_or_noise"].partition(" ")
        if rate:
            assert name in NOISE_MODELS
            assert 0 < float(rate) < 1
        else:
            assert name == "default" or name in cards[entry["dataset"]].labels
    keys = [tuple(entry[k] for k in columns if k != "value") for entry in entries]
    assert len(set(keys)) == len(keys)


def test_published_numbers_stand_beside_ours_marked_as_such(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "a", "recipe=cifar10n_worst", "method=ce", f"epochs={EPOCHS}")
    assert main(["runs", "published=true", "out=t.md,t.csv"]) == 0
    text = Path("t.md").read_text("utf-8")
    assert "| SOP+ (published) | 93.24 | unknown | – | 1 | CIFAR-N leaderboard |" in text
    assert "| CE (published) | 77.69 | best | ResNet-34 | 1 | CIFAR-N leaderboard |" in text
    assert "| ce | 90.00 | last | preact_resnet18 | 1 | measured here, n=1 |" in text
    assert r"| CORES\* (published) |" in text
    order = [
        float(cell) for cell in re.findall(r"^\| [^|]+ \| (\d\d\.\d\d) \| \w+ \| ", text, re.M)
    ]
    assert order == sorted(order, reverse=True)
    _, records = read_csv(Path("t.csv").read_text("utf-8"))
    published = [record for record in records if record["kind"] == "published"]
    expected = [e for e in published_entries() if e["labels_or_noise"] == "worst"]
    assert len(published) == len(expected) > 10
    assert {r["method"]: r["published_accuracy"] for r in published}["GCE"] == "0.8066"
    assert all(r["accuracy_last"] == "" and r["source"] for r in published)


def test_published_numbers_stay_in_one_table_where_it_is_narrow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """A method has several: split, nobody could tell which network belongs to which number."""
    make_run(tmp_path / "a", "recipe=cifar10n_worst", "method=ce")
    monkeypatch.setattr(
        tables,
        "Console",
        lambda **_: Console(width=80, force_terminal=True, color_system=None),
    )
    assert main([str(tmp_path), "published=true"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    # one line says number, epoch and where it is from; a long name goes on below
    found = re.findall(
        r"^ (\S.*?) {2,}(\d\d\.\d+) {3}(\w+) +(.+?) *$", "\n".join(lines), re.MULTILINE
    )
    wanted = [e for e in published_entries() if e["labels_or_noise"] == "worst"]
    assert len(found) == len(wanted) + 1 > 10  # and ours
    for entry in wanted:
        words = "; ".join(entry[key] or "–" for key in ("network", "networks", "source"))
        assert any(
            f"{entry['method']} (published)".startswith(method)
            and (value, kind) == (entry["value"], entry["kind"])
            and words.startswith(start)
            for method, value, kind, start in found
        ), entry


def test_published_numbers_only_of_the_same_data_and_noise(tmp_path: Path) -> None:
    for name, more in (
        ("sym", ["noise.rate=0.5"]),
        ("sym2", ["noise.rate=0.2"]),
        ("excl", ["noise.rate=0.5", "noise.name=symmetric_exclusive"]),
    ):
        make_run(tmp_path / name, "recipe=cifar10_sym50", "method=ce", *more)

    def found(name: str) -> dict[str, str]:
        (section,) = load(tmp_path / name, published=True)
        return {entry["method"]: entry["value"] for entry in section.published}

    assert found("sym")["BSD"] == "96.2"
    assert found("sym2")["SELC"] == "95.0"
    assert found("excl") == {}
    (section,) = load(tmp_path / "sym")
    assert section.published == ()
    (section,) = load(tmp_path / "excl", published=True)
    assert any("no published numbers" in note for note in notes([section], [], True))


def test_what_makes_ours_differ_from_published_numbers_is_said(tmp_path: Path) -> None:
    make_run(
        tmp_path / "a",
        "recipe=cifar10n_worst",
        "method=ce",
        "data.limit=5000",
        results={"data": {"pixels_verified": False}},
    )
    (section,) = load(tmp_path, published=True)
    *_, table = tables.section_tables(section)
    (ours,) = (row for row in table.rows if row[0] == "ce")
    assert ours[-1] == (
        "measured here, n=1, on the first 5000 training images, not the official pixels"
    )


# the command


@pytest.mark.parametrize(
    ("argument", "answer"),
    [
        ("basline=ce", "basline: unknown key, got 'basline', did you mean baseline?"),
        ("out=t.xlsx", "out: got 't.xlsx'; valid: a file name that ends in .csv or .md"),
        ("mix=yes", "mix: got 'yes'; valid: true, false"),
        ("columns=al", "columns: got 'al', did you mean all?"),
        ("published=1", "published: got '1'"),
    ],
)
def test_options(argument: str, answer: str, runs: Path, capsys: Any) -> None:
    assert main([str(runs), argument]) == 2
    assert answer in capsys.readouterr().err


def test_options_mistakes_at_once(capsys: Any) -> None:
    assert main(["mix=2", "plot=x"]) == 2
    error = capsys.readouterr().err
    assert "mix: got '2'" in error
    assert "did you mean plots?" in error
    assert "give run directories" in error


def test_help(capsys: Any) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"{key}=" in text for key in _KEYS)
    assert main([]) == 2


@pytest.mark.parametrize("option", ["out=file/t.csv", "plots=file"])
def test_places_that_cannot_be_written(option: str, runs: Path, capsys: Any) -> None:
    Path("file").touch()
    assert main([str(runs), option]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_table_is_replaced_whole_or_not_at_all(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Path("t.md").write_text("the table before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert main([str(runs), "out=t.md"]) == 2
    assert "t.md: cannot be written: No space left on device" in capsys.readouterr().err
    assert Path("t.md").read_text() == "the table before"


# pictures


def test_curves(runs: Path) -> None:
    (section,) = load(runs)
    line = plots._curve(section.rows[1], "test_accuracy", section)
    assert line is not None
    values = 100 * np.array([run.curve("test_accuracy") for run in section.rows[1].runs])
    assert values.shape == (4, EPOCHS)
    np.testing.assert_allclose(line.mean, values.mean(0))
    assert line.std is not None
    np.testing.assert_allclose(line.std, values.std(0, ddof=1))
    np.testing.assert_array_equal(line.x, np.arange(1, EPOCHS + 1))
    assert line.mean[-1] == pytest.approx(92.0)
    assert not line.is_baseline


def test_curves_that_are_not_known(tmp_path: Path) -> None:
    path = make_run(tmp_path / "a")
    text = re.sub(r'"memorised_fraction": [\d.]+', '"memorised_fraction": null', _history(path))
    (path / "metrics.jsonl").write_text(text)
    (section,) = load(tmp_path)
    assert plots._curve(section.rows[0], "memorised_fraction", section) is None
    names = [name for name, _ in plots._figures([section])]
    assert names == ["digits_sym40-accuracy", "digits_sym40-reliability"]


def _history(path: Path) -> str:
    return (path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("damaged", ["{", '{"epoch": 1}\n', ""])
def test_a_damaged_history_is_named(damaged: str, runs: Path, capsys: Any) -> None:
    (runs / "ce-s1" / "metrics.jsonl").write_text(damaged)
    assert main([str(runs), "plots=p"]) == 2
    said = capsys.readouterr().err
    assert "runs/ce-s1/metrics.jsonl: damaged" in said
    assert "Training writes it anew from the checkpoint" in said


def test_reliability_is_pooled_by_count() -> None:
    diagrams = [
        {"confidence": [None, 0.6, 0.9], "accuracy": [None, 0.5, 1.0], "count": [0, 10, 90]},
        {"confidence": [None, 0.7, 0.8], "accuracy": [None, 0.8, 0.7], "count": [0, 30, 10]},
    ]
    runs = tuple(Run(Path(str(i)), {}, {"reliability": d}) for i, d in enumerate(diagrams))
    count, confidence, accuracy = plots.pooled_reliability(Row("ce", (), runs))
    np.testing.assert_array_equal(count, [0, 40, 100])
    np.testing.assert_allclose(confidence, [np.nan, (6 + 21) / 40, (81 + 8) / 100])
    np.testing.assert_allclose(accuracy, [np.nan, (5 + 24) / 40, (90 + 7) / 100])


def at_rates(folder: Path, *more: str) -> None:
    for rate, accuracy in ((0.2, 0.9), (0.4, 0.8), (0.6, 0.6)):
        for seed in (0, 1):
            make_run(
                folder / f"{rate}-{seed}",
                f"noise.rate={rate}",
                f"seed={seed}",
                *more,
                accuracy=accuracy + 0.02 * seed,
                results={"data_sha256": f"{rate}{seed}"},
            )


def test_accuracy_against_noise_rate(tmp_path: Path) -> None:
    at_rates(tmp_path)
    (family,) = plots._families(load(tmp_path))
    (line,) = plots._rate_lines(family)
    np.testing.assert_allclose(line.x, [20, 40, 60])
    np.testing.assert_allclose(line.mean, [91, 81, 61])
    assert line.std is not None
    np.testing.assert_allclose(line.std, np.std([0, 2], ddof=1))


def test_one_seed_has_no_bar(tmp_path: Path) -> None:
    """A bar of length 0 would say that seeds do not differ."""
    for rate, seeds in ((0.2, (0, 1)), (0.4, (0,))):
        for seed in seeds:
            settings = ("method=ce", f"noise.rate={rate}", f"seed={seed}")
            make_run(tmp_path / f"{rate}-{seed}", *settings, accuracy=0.9 + seed / 100)
    (family,) = plots._families(load(tmp_path))
    (line,) = plots._rate_lines(family)
    assert line.std is not None
    np.testing.assert_allclose(line.std, np.array([0.5**0.5, np.nan]))


def test_recipes_that_differ_in_the_noise_rate_alone_are_one_line(tmp_path: Path) -> None:
    names = ("cifar10_sym50", "cifar10_asym40", "cifar10n_worst")
    for name in names:
        make_run(tmp_path / name, f"recipe={name}", "method=ce")
    for name, setting in (
        ("sym80", ()),
        ("sym20", ("network.width=4",)),
        ("sym90", ("optimizer.lr=1",)),
    ):
        rate = int(name[-2:]) / 100
        make_run(
            tmp_path / name, "recipe=cifar10_sym50", "method=ce", f"noise.rate={rate}", *setting
        )
        config = tmp_path / name / "config.yaml"
        text = config.read_text().replace("recipe: cifar10_sym50", f"recipe: cifar10_{name}")
        config.write_text(text)
    (family,) = plots._families(load(tmp_path))
    assert [section.recipe for section in family] == ["cifar10_sym50", "cifar10_sym80"]


def test_pictures_are_written_as_png_and_svg(runs: Path) -> None:
    assert main([str(runs), "plots=p"]) == 0
    names = {path.name for path in Path("p").iterdir()}
    kinds = ("accuracy", "memorised", "reliability")
    assert names == {f"digits_sym40-{kind}{s}" for kind in kinds for s in (".png", ".svg")}
    for path in Path("p").iterdir():
        start = path.read_bytes()[:5]
        assert start == (b"\x89PNG\r" if path.suffix == ".png" else b"<?xml")


def test_there_is_a_picture_of_the_noise_rates(tmp_path: Path) -> None:
    at_rates(tmp_path)
    names = [name for name, _ in plots._figures(load(tmp_path))]
    assert names[-1] == "digits_sym40-noise_rate"
    assert len(names) == 3 * 3 + 1


@pytest.mark.slow
def test_the_same_picture_is_the_same_file(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a")
    sections = load(tmp_path / "runs")
    first, second = (plots.draw(sections, tmp_path / name) for name in ("p", "q"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize(("count", "panels"), [(7, 1), (8, 8), (18, 18)])
def test_many_rows_get_a_panel_each(count: int, panels: int) -> None:
    x = np.arange(3.0)
    lines = [plots.Line(f"method{i}", x, x + i, None, is_baseline=i == 0) for i in range(count)]
    figure = plots._line_figure(lines, "x", "y", "")
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == panels
    # each line is drawn somewhere other than as grey background
    coloured = [line for axes in shown for line in axes.lines if line.get_color() != plots.GREY]
    assert len({line.get_label() for line in coloured}) == count
    styles = {line.get_label(): line.get_linestyle() for line in coloured}
    assert styles["method0"] == "--"
    colours = {line.get_color() for line in coloured}
    assert len(colours) == (count if panels == 1 else 2)


# against a run as it is


def test_a_real_run_is_read(tiny: Callable[..., list[str]], tmp_path: Path) -> None:
    assert train.main(tiny("epochs=2", "run.dir=run")) == 0
    (section,) = load(tmp_path / "run")
    (run,) = section.runs
    results = run.results
    # two views, each forward (1) and backward (2)
    assert results["network_passes"] == 6
    assert sum(results["reliability"]["count"]) == results["test_samples"]
    gaps = [
        n * abs(accuracy - confidence)
        for confidence, accuracy, n in zip(*results["reliability"].values(), strict=True)
        if n
    ]
    ece = sum(gaps) / results["test_samples"]
    assert ece == pytest.approx(results["test_ece_last"], abs=1e-6)
    assert [len(run.curve(name)) for name in ("test_accuracy", "memorised_fraction")] == [2, 2]


def test_files_are_written_though_nobody_reads_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "a", "seed=0")

    def closed(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("noisybsd.compare.tables.show", closed)
    with contextlib.suppress(SystemExit):
        main([".", "out=t.csv"])
    assert "measured,digits_sym40" in Path("t.csv").read_text()
