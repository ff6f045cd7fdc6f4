"""`python -m noisybsd.report labels=… probs=…`."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from noisybsd.report.__main__ import main

NAMES = ["cat", "dog", "emu"]
LABELS = np.array([0, 1, 2, 0, 1, 2])
PROBS = np.eye(3)[[0, 1, 2, 2, 1, 0]] * 0.7 + 0.1
PATHS = [f"{kind}/{i}.png" for i, kind in enumerate(("a", "b", "a", "b", "a", "b"))]


def text(columns: dict[str, Any], separator: str = ",") -> str:
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return "".join(separator.join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, path in enumerate(PATHS):
        (tmp_path / "photos" / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 6), (40 * i, 0, 0)).save(tmp_path / "photos" / path)
    np.save("labels.npy", LABELS)
    np.save("probs.npy", PROBS)
    np.savez("probs.npz", pred_probs=PROBS, other=LABELS)
    named = [NAMES[label] for label in LABELS]
    Path("names.csv").write_text(text({"label": named}))
    Path("list.csv").write_text(text({"path": PATHS, "label": named}))
    classes = {name: PROBS[:, k] for k, name in enumerate(NAMES)}
    Path("classes.csv").write_text(text(classes))
    Path("semicolons.csv").write_text(text(classes, ";"))
    Path("numbers.csv").write_text(text({str(k): PROBS[:, k] for k in range(3)}))
    np.savetxt("bare.csv", PROBS, delimiter=",")
    turned = {"path": PATHS[::-1], **{k: v[::-1] for k, v in classes.items()}}
    Path("turned.csv").write_text(text(turned))
    Path("index.csv").write_text(
        text({"": range(5, -1, -1), **{k: v[::-1] for k, v in classes.items()}})
    )
    pyarrow.parquet.write_table(pyarrow.table(classes), "classes.parquet")
    return tmp_path


@pytest.mark.parametrize("key", ["labels", "probs"])
def test_the_report_does_not_write_over_what_it_reads(
    key: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"labels": "names.csv", "probs": "classes.csv"}
    before = Path(files[key]).rename("labels.csv").read_bytes()
    given = [f"{name}={file}" for name, file in (files | {key: "labels.csv"}).items()]
    assert main([*given, "out=."]) == 2
    assert f"error: labels.csv: is read as {key}, and would be" in capsys.readouterr().err
    assert Path("labels.csv").read_bytes() == before and not Path("report.html").exists()


@pytest.mark.parametrize(
    ("labels", "probs", "names"),
    [
        ("labels.npy", "probs.npy", ["0", "1", "2"]),
        ("labels.npy", "probs.npz", ["0", "1", "2"]),
        ("labels.npy", "bare.csv", ["0", "1", "2"]),
        ("labels.npy", "numbers.csv", ["0", "1", "2"]),
        ("names.csv", "probs.npy", NAMES),
        ("names.csv", "classes.csv", NAMES),
        ("names.csv", "semicolons.csv", NAMES),
        ("names.csv", "classes.parquet", NAMES),
        ("list.csv", "turned.csv", NAMES),
        ("list.csv", "probs.npy", NAMES),
        ("names.csv", "index.csv", NAMES),
    ],
)
def test_every_form_of_labels_and_probabilities_says_the_same(
    labels: str, probs: str, names: list[str], here: Path
) -> None:
    assert main([f"labels={labels}", f"probs={probs}", "out=out"]) == 0
    rows = pyarrow.parquet.read_table("out/labels.parquet").to_pylist()
    assert [row["given"] for row in rows] == LABELS.tolist()
    assert [row["suggested_name"] for row in rows] == [names[k] for k in PROBS.argmax(1)]
    assert np.allclose([row["given_prob"] for row in rows], PROBS[range(6), LABELS])


def test_of_several_annotators_the_report_takes_the_majority(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [NAMES[label] for label in LABELS]
    other = [NAMES[0]] * 6
    Path("columns.csv").write_text(
        text({"path": PATHS, "label_1": named, "label_2": other, "label_3": [*named[:5], ""]})
    )
    votes = [(path, who, label) for who in "ab" for path, label in zip(PATHS, named, strict=True)]
    votes += [(path, "c", NAMES[0]) for path in PATHS[::-1]]
    paths, who, labels = zip(*votes, strict=True)
    Path("rows.csv").write_text(text({"image": paths, "worker": who, "label": labels}))
    for file in ("columns.csv", "rows.csv"):
        assert main([f"labels={file}", "probs=turned.csv", "out=out"]) == 0
        rows = pyarrow.parquet.read_table("out/labels.parquet").to_pylist()
        assert [row["path"] for row in rows] == PATHS
        assert [row["given_name"] for row in rows] == named
        assert [row["suggested_name"] for row in rows] == [NAMES[k] for k in PROBS.argmax(1)]
        assert "that of most annotators (" in capsys.readouterr().out


def test_the_report_is_complete_and_the_console_says_so(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("z.npy", np.eye(6) + 0.1)
    arguments = ["labels=list.csv", "probs=probs.npy", "images=photos", "embeddings=z.npy"]
    assert main([*arguments, "top=4"]) == 0
    said = capsys.readouterr().out
    assert "2 of 6 labels are not the most probable class" in said
    assert "estimated wrong: " in said and "interval" not in said
    assert sorted(path.name for path in Path("label_report").iterdir()) == [
        *("labels.csv", "labels.parquet", "labels_metrics.json", "report.html"),
    ]
    page = Path("label_report/report.html").read_text("utf-8")
    assert 'id="pictures-0"' in page and "The 4 most suspicious labels" in page
    for of_a_run in ("· after epoch", "apply-review", "pred_probs.npz", "95% interval", "The run"):
        assert of_a_run not in page
    metrics = json.loads(Path("label_report/labels_metrics.json").read_text("utf-8"))
    assert metrics["estimates"]["samples"] == 6
    assert metrics["estimates"]["noise_rate"].keys() == {"estimate", "source"}
    first = Path("label_report/labels.csv").read_text("utf-8").splitlines()[1]
    assert PATHS[3] in first or PATHS[5] in first


def test_labels_without_names_of_images_take_them_in_alphabetical_order(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["labels=labels.npy", "probs=probs.npy", "images=photos", "out=out"]) == 0
    table = pyarrow.parquet.read_table("out/labels.parquet")
    assert table["path"].to_pylist() == sorted(PATHS)
    assert (
        "Image i is the one whose path is number i in alphabetical order."
        in capsys.readouterr().out
    )


def test_images_that_are_not_there_are_told_and_backslashes_lead_to_files(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = {name: PROBS[:, k] for k, name in enumerate(NAMES)}
    Path("probs.csv").write_text(text({"path": PATHS, **classes}))
    windows = [path.replace("/", "\\") for path in PATHS]
    Path("windows.csv").write_text(text({"path": windows, "label": LABELS}))
    arguments = ["labels=windows.csv", "probs=probs.csv", "images=photos"]
    assert main(arguments) == 0
    assert pyarrow.parquet.read_table("label_report/labels.parquet")["path"].to_pylist() == PATHS
    assert "not in photos" not in capsys.readouterr().out
    (here / "photos" / PATHS[1]).unlink()
    assert main(arguments) == 0
    told = f"1 of the images are not in photos and have no picture: '{PATHS[1]}'"
    assert told in capsys.readouterr().out
    Path("elsewhere").mkdir()
    assert main([*arguments[:2], "images=elsewhere"]) == 2
    assert "images=elsewhere: has none of the images that windows.csv" in capsys.readouterr().err


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_names_of_classes_may_hold_separators(here: Path, separator: str) -> None:
    """As a CSV of pandas quotes them."""
    classes = ["a, old", 'a; "new"', "b\tc"]
    with Path("probs.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["path", *classes])
        writer.writerows([path, *row] for path, row in zip(PATHS, PROBS, strict=True))
    Path("labels.csv").write_text("path,label\n" + "".join(f"{path},2\n" for path in PATHS))
    assert main(["labels=labels.csv", "probs=probs.csv"]) == 0
    table = pyarrow.parquet.read_table("label_report/labels.parquet")
    assert table["given_name"].to_pylist() == [classes[2]] * 6
    np.testing.assert_allclose(table["given_prob"].to_numpy(), PROBS[:, 2], rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["labels=labels.npy"], "probs=FILE is missing"),
        (["probs=probs.npy"], "labels=FILE is missing"),
        (["labels=none.npy", "probs=probs.npy"], "labels=none.npy: there is no such file"),
        (["labels=labels.npy", "probs=none.npy"], "probs=none.npy: there is no such file"),
        (["labels=labels.npy", "probs=photos"], "probs=photos: there is no such file"),
        (["labels=x.doc", "probs=probs.npy"], "labels=x.doc: valid: a file that ends in .npy"),
        (
            ["labels=labels.npy", "probs=probs.npy", "image=photos"],
            "image: got 'image', did you mean",
        ),
        (
            ["labels=labels.npy", "probs=probs.npy", "images=none"],
            "images=none: there is no such folder",
        ),
        (
            ["labels=labels.npy", "probs=probs.npy", "nonsense"],
            "argument 'nonsense': arguments are",
        ),
        (
            ["labels=labels.npy", "probs=labels.npy"],
            "probs=labels.npy: got shape (6,); valid: (N, K)",
        ),
        (["labels=labels.npy", "probs=text.csv"], "text.csv: column b holds string, such as 'x'"),
        (
            ["labels=labels.npy", "probs=short.npy"],
            "6 labels, valid: 5, one for each row of short.npy",
        ),
        (
            ["labels=names.csv", "probs=turned.npy"],
            "turned.npy: it has 6 columns, so it is probably",
        ),
        (
            ["labels=labels.npy", "probs=short.npy", "images=photos"],
            "images=photos: holds 6 images, valid: 5",
        ),
        (
            ["labels=names.csv", "probs=two.npy"],
            "has 3 classes, probs has 2 columns: say with classes=",
        ),
        (["labels=names.csv", "probs=probs.npy", "classes=a,b,c"], "names.csv"),
        (["labels=labels.npy", "probs=wrong.npy"], "probs=wrong.npy: got numbers that sum to 2"),
        (["labels=list.csv", "probs=nan.csv"], "probs=nan.csv: got nan, in row 1 (from 0); valid:"),
        (
            ["labels=labels.npy", "probs=probs.npy", "out=labels.npy"],
            "out=labels.npy: cannot be made",
        ),
        (["labels=labels.npy", "probs=probs.npy", "top=0"], "top=0: expected how many"),
        (["labels=labels.npy", "probs=gaps.csv"], "column index: valid: each of 0 to 5, once"),
    ],
)
def test_mistakes_are_named(
    arguments: list[str], says: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("short.npy", PROBS[:5])
    np.save("two.npy", np.full((6, 2), 0.5))
    np.save("wrong.npy", PROBS * 2)
    lines = Path("turned.csv").read_text().splitlines()
    lines[2] = f"{PATHS[4]},nan,0.5,0.5"  # of the last but one label
    Path("nan.csv").write_text("\n".join(lines))
    np.save("turned.npy", PROBS.T)
    Path("text.csv").write_text(text({"a": PROBS[:, 0], "b": ["x"] * 6}))
    classes = {name: PROBS[:, k] for k, name in enumerate(NAMES)}
    Path("gaps.csv").write_text(text({"index": range(1, 7), **classes}))
    assert main(arguments) == 2
    assert says in capsys.readouterr().err
    assert not Path("label_report").exists()
