from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.reported import NASTY_CLASSES, NASTY_FILE, own_images, run

from noisybsd.config import Config
from noisybsd.data.__main__ import main as data
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.saved import load_run_config
from noisybsd.report.review import apply_review, main, read_review

COLUMNS = ("index", "path", "given", "given_name", "decision", "label", "label_name", "data_sha256")


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(tmp_path_factory.mktemp("review") / "run", "epochs=1")


@pytest.fixture
def config(directory: Path) -> Config:
    return load_run_config(directory, [])


def dataset_of(config: Config) -> Any:
    return load_dataset(config.data, config.noise, config.seed)


def review(
    path: Path, config: Config, decisions: dict[int, tuple[str, int]], **changes: Any
) -> Path:
    """A CSV as the page downloads it, of {index: (decision, label)}."""
    data = dataset_of(config)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for index, (decision, label) in decisions.items():
            given = int(data.train.labels[index])
            row = {
                "index": index,
                "path": NASTY_FILE,
                "given": given,
                "given_name": NASTY_CLASSES[2],
                "decision": decision,
                "label": label,
                "label_name": NASTY_CLASSES[0],
                "data_sha256": data.sha256,
            }
            writer.writerow(row | changes)
    return path


def test_only_what_is_wrong_changes_and_the_next_run_trains_on_it(
    config: Config, tmp_path: Path
) -> None:
    data = dataset_of(config)
    given = data.train.labels
    decisions = {
        5: ("wrong", (int(given[5]) + 1) % 10),
        17: ("right", int(given[17])),
        18: ("right", (int(given[18]) + 1) % 10),  # edited by hand: right is right
        40: ("unsure", (int(given[40]) + 1) % 10),
        299: ("wrong", (int(given[299]) + 3) % 10),
    }
    out = tmp_path / "corrected.csv"
    counts = apply_review(config, review(tmp_path / "r.csv", config, decisions), out)
    assert counts == {"wrong": 2, "right": 2, "unsure": 1, "changed": 2}

    # all images of the dataset, in the order in which it is read, whatever data.limit was
    everything = load_dataset(
        config.data.model_copy(update={"limit": None}), config.noise, config.seed
    )
    expected = everything.train.labels.copy()
    expected[[5, 299]] = decisions[5][1], decisions[299][1]
    section = config.data.model_copy(update={"labels": str(out), "limit": None})
    again = load_dataset(section, type(config.noise)(), config.seed)
    np.testing.assert_array_equal(again.train.labels, expected)
    assert again.notes["noise"]["real_rate"] == pytest.approx(
        (expected != everything.train.clean_labels).mean()
    )


@pytest.mark.parametrize("noise", [(), ("noise.name=symmetric", "noise.rate=0.5")])
def test_labels_of_held_out_images_stay_in_place(tmp_path: Path, noise: tuple[str, ...]) -> None:
    settings = [*own_images(tmp_path / "data"), *noise]
    config = load_run_config(run(tmp_path / "run", *settings, "epochs=1"), [])
    data = dataset_of(config)
    assert data.train.paths is not None and len(data.train) < 90
    index = 11
    label = (int(data.train.labels[index]) + 1) % 3
    out = tmp_path / "corrected.csv"
    apply_review(config, review(tmp_path / "r.csv", config, {index: ("wrong", label)}), out)
    with out.open() as file:
        written = {int(row["index"]): int(row["label"]) for row in csv.DictReader(file)}
    with (tmp_path / "data" / "list.csv").open(encoding="utf-8", newline="") as file:
        listed = list(csv.DictReader(file))
    names = list(data.class_names)
    trained = dict(zip(data.train.paths, data.train.labels.tolist(), strict=True))
    trained[data.train.paths[index]] = label
    # as they were trained on and corrected; of the held out, as they were read
    expected = [trained.get(row["path"], names.index(row["label"])) for row in listed]
    assert [written[i] for i in range(90)] == expected
    changed = [i for i, row in enumerate(listed) if names.index(row["label"]) != written[i]]
    assert changed if noise else len(changed) == 1


def test_a_review_of_another_dataset_is_refused_by_its_hash(config: Config, tmp_path: Path) -> None:
    other = config.model_copy(update={"seed": 1})  # other noise, so other labels
    path = review(tmp_path / "r.csv", other, {5: ("unsure", 0)})
    out = tmp_path / "corrected.csv"
    with pytest.raises(ValueError, match=r"belongs to another dataset: .* sha256 "):
        apply_review(config, path, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision": "maybe"}, r"line 2: decision: got 'maybe', valid: wrong, right, unsure"),
        ({"index": "x"}, r"line 2: index, given and label must be integers"),
        ({"label": 10}, r"label: got 10, valid: 0 to 9"),
        ({"index": 300}, r"index: got -?\d+, valid: 0 to 299"),
        ({"index": -1}, r"index: got -?\d+, valid: 0 to 299"),
        ({"given": 11}, r"given: got 11 for index \d+, whose given label is \d in the run"),
    ],
)
def test_damage_is_answered_with_its_place(
    config: Config, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = review(tmp_path / "r.csv", config, {5: ("wrong", 1)}, **changes)
    with pytest.raises(ValueError, match=message):
        apply_review(config, path, tmp_path / "corrected.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no column index"),
        ("index,given,label,data_sha256\n", "has no column decision"),
        ("index,given,label,decision,data_sha256\n", "holds no decisions"),
        (
            "index,given,label,decision,data_sha256\n1,2,3,wrong,a\n1,2,3,right,a\n",
            "line 3: index 1 is in",
        ),
        (
            "index,given,label,decision,data_sha256\n1,2,3,wrong,a\n2,2,3,right,b\n",
            "2 different datasets",
        ),
        ("index,given,label,decision,data_sha256\n1,2\n", "must be integers"),
    ],
)
def test_files_that_are_no_review(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_review(path)
    with pytest.raises(ValueError, match="cannot be read"):
        read_review(tmp_path / "missing.csv")


def test_a_spreadsheet_s_mark_and_names_with_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    text = 'index,path,given,label,decision,data_sha256\n7,"a\nb\u2028.png",2,3,wrong,f00\n'
    path.write_text("\ufeff" + text, "utf-8")
    found = read_review(path)
    assert (found.index.tolist(), found.label.tolist(), found.data_sha256) == ([7], [3], "f00")


def test_the_command_says_how_to_train_on_the_result(
    directory: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = review(tmp_path / "r.csv", config, {5: ("wrong", 1), 6: ("unsure", 1)})
    out = tmp_path / "corrected.npy"
    assert data(["apply-review", f"run={directory}", f"review={path}", f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert "1 wrong, 0 right, 1 unsure; 1 labels changed" in told
    assert f"data.labels={out}" in told and "noise.name=none" in told
    assert np.load(out)[5] == 1


def test_the_command_is_one_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert data(["--help"]) == 0 and "apply-review" in capsys.readouterr().out
    assert data(["apply-review", "--help"]) == 0 and "review=FILE" in capsys.readouterr().out
    assert data(["aply-review"]) == 2
    assert "did you mean apply-review?" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["run", "review", "out"])
def test_the_command_says_what_is_missing(missing: str, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"{key}=x" for key in ("run", "review", "out") if key != missing]
    assert main(given) == 2
    assert f"apply-review: {missing}= is missing" in capsys.readouterr().err
