from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import trees
from helpers.reported import NASTY_CLASSES, own_images, run

from noisybsd.config import Config
from noisybsd.data.__main__ import main as data
from noisybsd.data.dataset import load_dataset
from noisybsd.data.images import ImageFiles
from noisybsd.data.splits import Split
from noisybsd.engine.saved import load_run_config
from noisybsd.errors import UserError
from noisybsd.report.links import link_classes
from noisybsd.report.review import apply_review, read_review

TEN = tuple("0123456789")
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
    path: Path, config: Config, decisions: Mapping[int, tuple[str, Any]], **changes: Any
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
                "path": "" if data.train.paths is None else data.train.paths[index],
                "given": given,
                "given_name": NASTY_CLASSES[2],
                "decision": decision,
                "label": label,
                "label_name": "",
                "data_sha256": data.sha256,
            }
            writer.writerow(row | changes)
    return path


def test_only_what_is_wrong_changes_and_the_next_run_trains_on_it(
    config: Config, tmp_path: Path
) -> None:
    data = dataset_of(config)
    given = data.train.labels
    decisions: dict[int, tuple[str, Any]] = {
        5: ("wrong", (int(given[5]) + 1) % 10),
        17: ("right", int(given[17])),
        18: ("right", ""),
        40: ("unsure", int(given[40])),
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


@pytest.mark.parametrize("label", ["given", ""])
def test_a_wrong_label_without_another_class_is_refused_by_row(
    config: Config, tmp_path: Path, label: str
) -> None:
    given = dataset_of(config).train.labels
    decisions: dict[int, tuple[str, Any]] = {i: ("wrong", int(given[i])) for i in (5, 17)}
    if not label:
        decisions = dict.fromkeys((5, 17), ("wrong", ""))
    decisions |= {6: ("wrong", (int(given[6]) + 1) % 10), 7: ("right", int(given[7]))}
    path = review(tmp_path / "r.csv", config, decisions)
    with pytest.raises(
        ValueError, match=r"r.csv: 2 labels are marked as wrong, .*: line 2 \(.*, line 3"
    ):
        apply_review(config, path, tmp_path / "corrected.csv")
    assert not (tmp_path / "corrected.csv").exists()


@pytest.mark.parametrize("decision", ["right", "unsure"])
@pytest.mark.parametrize("how", ["number", "name"])
def test_a_class_that_was_written_beside_another_decision_is_refused_by_row(
    config: Config, tmp_path: Path, decision: str, how: str
) -> None:
    """It would be lost without a word."""
    other = (int(dataset_of(config).train.labels[5]) + 1) % 10
    label = other if how == "number" else TEN[other]
    path = review(tmp_path / "r.csv", config, {5: (decision, label)})
    with pytest.raises(
        ValueError, match=r"r.csv: 1 labels are marked as right or unsure, .*line 2"
    ):
        apply_review(config, path, tmp_path / "corrected.csv")
    assert not (tmp_path / "corrected.csv").exists()


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on folders of images, two of which are called alike; a fifth is held out."""
    root = tmp_path_factory.mktemp("own")
    for k, name in enumerate(("a", "b", "c")):
        for i in range(10):
            trees.picture(root / "photos" / name / f"{i:02d}.png", 80 * k + i)
    settings = [each for each in own_images(root / "list") if not each.startswith("data.")]
    place = ["data.name=own", f"data.root={root / 'photos'}", "data.size=8", "batch_size=8"]
    return run(root / "run", *settings, *place, "epochs=1", "neighbours.k=2")


def test_decisions_on_held_out_images_count_and_paths_put_labels_in_place(
    own: Path, tmp_path: Path
) -> None:
    config = load_run_config(own, [])
    data = dataset_of(config)
    assert data.held_out is not None and len(data.held_out) == 6
    first, held = 3, len(data.train) + 2
    samples = [*data.train.labels, *data.held_out.labels]
    wrong = {i: ("wrong", (int(samples[i]) + 1) % 3) for i in (first, held)}
    path = review(tmp_path / "r.csv", config, {first: wrong[first]})
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{held},,{samples[held]},,wrong,{wrong[held][1]},,{data.sha256}\n")
    out = tmp_path / "corrected.csv"
    assert apply_review(config, path, out)["changed"] == 2
    lines = out.read_text("utf-8").splitlines()
    assert lines[0] == "index,path,label" and len(lines) == 31
    # the file of paths is what counts, in whatever order
    out.write_text("\n".join([lines[0], *lines[:0:-1]]), "utf-8")
    section = config.data.model_copy(update={"labels": str(out)})
    again = load_dataset(section, config.noise, config.seed)
    assert again.held_out is not None and again.notes["labels_matched_by"] == "name"
    assert again.test.paths == data.test.paths and again.train.paths == data.train.paths
    now = [*again.train.labels, *again.held_out.labels]
    assert [i for i in range(30) if now[i] != samples[i]] == [first, held]
    assert (now[first], now[held]) == (wrong[first][1], wrong[held][1])


def test_corrected_labels_as_a_folder_of_links(own: Path, tmp_path: Path) -> None:
    config = load_run_config(own, [])
    data = dataset_of(config)
    assert data.train.paths is not None
    index = data.train.labels.tolist().index(1)
    path = review(tmp_path / "r.csv", config, {index: ("wrong", 0)})
    links = tmp_path / "new" / "links"
    apply_review(config, path, None, links)
    moved = Path(data.train.paths[index]).name
    assert sorted(p.name for p in links.iterdir()) == ["a", "b", "c"]
    names = [f"{i:02d}.png" for i in range(10)]
    assert sorted(p.name for p in (links / "b").iterdir()) == sorted({*names} - {moved})
    # another image of the class it came to is called alike
    assert sorted(p.name for p in (links / "a").iterdir()) == sorted([*names, f"{moved[:2]}-2.png"])
    target = (links / "a" / f"{moved[:2]}-2.png").resolve()
    assert target == (own.parent / "photos/b" / moved).resolve()
    section = config.data.model_copy(update={"root": str(links)})
    again = load_dataset(section, config.noise, config.seed)
    assert len(again.train) + len(again.test) == 30 and again.class_names == ("a", "b", "c")
    # whole or not at all, and nothing is written over
    with pytest.raises(UserError, match="links: is there already; name a new folder"):
        apply_review(config, path, None, links)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["links"]


def test_what_cannot_be_links_is_said(config: Config, tmp_path: Path) -> None:
    path = review(tmp_path / "r.csv", config, {5: ("unsure", "")})
    with pytest.raises(UserError, match="links: the images of this dataset are in no files"):
        apply_review(config, path, None, tmp_path / "links")
    split = Split(ImageFiles(["a.png"], tmp_path, 8), np.zeros(1, np.int64), None, ["a.png"])
    for name in ("a/b", "..", ".hidden", "__pycache__"):
        with pytest.raises(UserError, match=r"class .* can be no folder's name; use out=FILE"):
            link_classes(tmp_path / "links", tmp_path, {"": split}, [name])
    assert [p.name for p in tmp_path.iterdir()] == ["r.csv"]


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


def test_the_corrected_labels_of_annotated_images_are_trained_on_without_annotators(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    votes, photos = tmp_path / "votes.csv", load_run_config(own, []).data.root
    names = [f"{name}/{i:02d}.png" for name in ("a", "b", "c") for i in range(10)]
    rows = [f"{path},{path[0]},{'abc'[i % 3]}" for i, path in enumerate(names)]
    votes.write_text("\n".join(["path,anna,ben", *rows]), "utf-8")
    settings = ["data.name=own", f"data.root={photos}", "data.size=8", "data.limit=null"]
    settings += ["noise.name=none", "noise.rate=0", "batch_size=8", "epochs=1", "neighbours.k=2"]
    settings += [f"data.labels={votes}", "data.annotators=[anna,ben]"]
    directory = run(tmp_path / "run", *settings)
    log = (directory / "log.txt").read_text()
    assert "several labels for an image: 2.0 votes an image among the 24 to train on" in log
    config, out = load_run_config(directory, []), tmp_path / "out.csv"
    path = review(tmp_path / "r.csv", config, {3: ("wrong", 2)})
    assert data(["apply-review", f"run={directory}", f"review={path}", f"out={out}"]) == 0
    assert "data.annotators=[]" in capsys.readouterr().out
    section = config.data.model_copy(update={"labels": str(out), "annotators": ()})
    assert load_dataset(section, config.noise, config.seed).train.votes is None


def test_a_review_of_another_dataset_is_refused_by_its_hash(config: Config, tmp_path: Path) -> None:
    other = config.model_copy(update={"seed": 1})  # other noise, so other labels
    path = review(tmp_path / "r.csv", other, {5: ("unsure", "")})
    out = tmp_path / "corrected.csv"
    with pytest.raises(ValueError, match=r"belongs to another dataset than .* sha256 "):
        apply_review(config, path, out)
    assert not out.exists()


def test_corrected_labels_do_not_replace_the_review(config: Config, tmp_path: Path) -> None:
    path = review(tmp_path / "r.csv", config, {5: ("unsure", "")})
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"r\.csv: is read as review, and would be overwritten"):
        apply_review(config, path, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"decision": "maybe"}, r"line 2: decision: got 'maybe', valid: wrong, right, unsure"),
        ({"index": "x"}, r"line 2: index: got 'x', valid: an integer"),
        ({"label": 10}, r"line 2: label: got 10, valid: 0 to 9, or a name"),
        ({"label": "ten"}, r"line 2: label: got 'ten'; valid: 0, 1, 2"),
        (
            {"label": 3, "label_name": "4"},
            r"line 2: label is 3 \(3\) and label_name '4': make them",
        ),
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
            "index,given,label,decision,data_sha256\n1,2,3,wrong,a\n2,2,2,right,b\n",
            "line 3: data_sha256: got 'b', but 'a' before",
        ),
        (
            "index,given,label,decision,data_sha256\n1,2,3,right,a\n",
            "marked as right or unsure, and",
        ),
        ("index,given,label,decision,data_sha256\n1,2\n", "line 2: decision: got None"),
        (
            "index,given,label,decision,data_sha256\n1,x,3,wrong,a\n",
            "line 2: given: got 'x', valid:",
        ),
    ],
)
def test_files_that_are_no_review(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=message):
        read_review(path, TEN)
    with pytest.raises(ValueError, match="cannot be read"):
        read_review(tmp_path / "missing.csv", TEN)


@pytest.mark.parametrize(
    ("cell", "name", "expected"),
    [
        ("deer", "", 2),
        ("2", "deer", 2),
        ("2.0", "cat", 2),
        ("dog", "cat", 1),
        (" deer ", "deer", 2),
    ],
)
def test_the_right_class_is_written_as_a_name_or_a_number(
    tmp_path: Path, cell: str, name: str, expected: int
) -> None:
    """Whoever writes into the column label alone leaves the given label's name in the other."""
    path = tmp_path / "r.csv"
    header = "index,given,label,label_name,decision,data_sha256\n"
    path.write_text(f"{header}7,0,{cell},{name},wrong,f00\n", "utf-8")
    assert read_review(path, ("cat", "dog", "deer")).label.tolist() == [expected]


def test_a_spreadsheet_s_mark_and_names_with_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    text = 'index,path,given,label,decision,data_sha256\n7,"a\nb\u2028.png",2,3,wrong,f00\n'
    path.write_text("\ufeff" + text, "utf-8")
    found = read_review(path, TEN)
    assert (found.index.tolist(), found.label.tolist(), found.data_sha256) == ([7], [3], "f00")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_what_a_spreadsheet_saves_is_read(tmp_path: Path, separator: str, encoding: str) -> None:
    path = tmp_path / "r.csv"
    lines = [
        "index,path,given,label,decision,data_sha256",
        '7.0,"a;,\t.png",2.0,3.0,wrong,f00',
        *[",,,,,"] * 2,
    ]
    rows = csv.reader(lines)
    with path.open("w", encoding=encoding, newline="") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    found = read_review(path, TEN)
    assert (found.index.tolist(), found.label.tolist(), found.path) == ([7], [3], ["a;,\t.png"])


@pytest.mark.parametrize(
    ("cell", "name", "expected"), [("2", "3", 2), ("2", "2", 1), ("2", "1", None), ("2", "", None)]
)
def test_numbers_that_are_names_of_other_classes_are_not_guessed(
    tmp_path: Path, cell: str, name: str, expected: int | None
) -> None:
    path = tmp_path / "r.csv"
    header = "index,given,label,label_name,decision,data_sha256\n"
    path.write_text(f"{header}7,0,{cell},{name},wrong,f00\n", "utf-8")
    if expected is None:
        with pytest.raises(
            ValueError, match="line 2: label: '2' is the number of class '3' and the name"
        ):
            read_review(path, ("1", "2", "3"))
    else:
        assert read_review(path, ("1", "2", "3")).label.tolist() == [expected]


def test_the_command_says_how_to_train_on_the_result(
    directory: Path, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = review(tmp_path / "r.csv", config, {5: ("wrong", 1), 6: ("unsure", "")})
    out = tmp_path / "corrected.npy"
    assert data(["apply-review", f"run={directory}", f"review={path}", f"out={out}"]) == 0
    told = capsys.readouterr().out
    assert "1 wrong, 0 right, 1 unsure; 1 labels changed" in told
    assert f"data.labels={out}" in told and "noise.name=none" in told
    assert np.load(out)[5] == 1


def test_the_command_says_where_the_images_are_now(
    own: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_run_config(own, [])
    path = review(tmp_path / "r.csv", config, {0: ("wrong", 1)})
    out, links, moved = tmp_path / "corrected.csv", tmp_path / "links", tmp_path / "moved"
    moved.symlink_to(config.data.root)
    arguments = [f"run={own}", f"review={path}", f"out={out}", f"links={links}"]
    assert data(["apply-review", *arguments, f"data.root={moved}", "data.workers=0"]) == 0
    of_file, of_links = [
        line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  python")
    ]
    assert {f"data.root={moved}", f"data.labels={out}", "data.workers=0"} <= {*of_file}
    assert f"data.root={links}" in of_links and f"data.root={moved}" not in of_links


def test_the_command_is_one_of_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert data(["--help"]) == 0 and "apply-review" in capsys.readouterr().out
    assert data(["apply-review", "--help"]) == 0 and "review=FILE" in capsys.readouterr().out
    assert data(["aply-review"]) == 2
    assert "did you mean apply-review?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("run", "run= is missing"),
        ("review", "review= is missing"),
        ("out", "give out=FILE, links=FOLDER or both"),
    ],
)
def test_the_command_says_what_is_missing(
    missing: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"{key}=x" for key in ("run", "review", "out") if key != missing]
    assert data(["apply-review", *given]) == 2
    assert f"apply-review: {told}" in capsys.readouterr().err
