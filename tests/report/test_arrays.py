"""The label report of anybody's probabilities."""

from __future__ import annotations

import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import noisybsd
from noisybsd import find_label_issues, label_table, noise_matrix, noise_rate, write_report
from noisybsd.report.estimates import confident_joint

N, K = 400, 4


def example(
    seed: int = 0, n: int = N, classes: int = K
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clean and given labels (n,), a quarter of them wrong, and honest predictions (n,K)."""
    random = np.random.default_rng(seed)
    probs = random.dirichlet(np.full(classes, 0.2), n)
    clean = (probs.cumsum(1) > random.random((n, 1))).argmax(1)
    wrong = random.random(n) < 0.25
    given = np.where(wrong, (clean + random.integers(1, classes, n)) % classes, clean)
    return clean, given, probs


CLEAN, GIVEN, PROBS = example()


def test_issues_are_those_of_pruning_by_noise_rate() -> None:
    """A slow reference: the rule, class by class."""
    joint = confident_joint(PROBS.astype(np.float32), GIVEN)
    expected = np.zeros(N, bool)
    for given in range(K):
        for true in set(range(K)) - {given}:
            members = np.flatnonzero(given == GIVEN)
            margin = PROBS[members, true] - PROBS[members, given]
            expected[members[np.argsort(-margin)[: round(joint[true, given])]]] = True
    expected &= PROBS.argmax(1) != GIVEN
    assert find_label_issues(GIVEN, PROBS).tolist() == expected.tolist()
    assert (CLEAN != GIVEN)[expected].mean() > 0.5


def test_issues_are_nearly_cleanlabs() -> None:
    cleanlab = pytest.importorskip("cleanlab.filter")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = cleanlab.find_label_issues(GIVEN, PROBS, n_jobs=1)
    ours = find_label_issues(GIVEN, PROBS)
    assert (ours & theirs).sum() > 0.9 * (ours | theirs).sum()


def test_ranked_issues_begin_with_the_least_probable_label() -> None:
    ranked = find_label_issues(GIVEN, PROBS, ranked=True)
    assert sorted(ranked) == np.flatnonzero(find_label_issues(GIVEN, PROBS)).tolist()
    assert (np.diff(PROBS[ranked, GIVEN[ranked]]) >= -1e-6).all()


def test_with_a_belief_the_labels_that_both_together_contradict_are_issues() -> None:
    belief = example(seed=1)[2]
    final = np.sqrt(belief * PROBS)
    issues = find_label_issues(GIVEN, PROBS, belief=belief)
    assert issues.tolist() == (final.argmax(1) != GIVEN).tolist()
    assert issues.tolist() != (belief.argmax(1) != GIVEN).tolist()
    of_given = final[range(N), GIVEN] / final.sum(axis=1)
    ranked = find_label_issues(GIVEN, PROBS, belief=belief, ranked=True)
    assert sorted(ranked) == np.flatnonzero(issues).tolist()
    assert (np.diff(of_given[ranked]) > -1e-6).all()
    table = label_table(GIVEN, PROBS, belief=belief)
    assert table["issue"].to_pylist() == issues.tolist()
    assert noise_rate(GIVEN, PROBS, belief).estimate == pytest.approx(1 - of_given.mean(), abs=1e-5)
    joint = np.zeros((K, K))
    np.add.at(joint.T, GIVEN, final / final.sum(axis=1, keepdims=True))
    expected = joint / joint.sum(axis=1, keepdims=True)
    assert np.allclose(noise_matrix(GIVEN, PROBS, belief), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["float64", "float32", "float16", "bfloat16", "pandas"])
def test_probabilities_come_in_many_forms(kind: str) -> None:
    labels: Any = GIVEN
    probs: Any = torch.from_numpy(PROBS)
    if kind == "pandas":
        pandas = pytest.importorskip("pandas")
        labels, probs = pandas.Series(GIVEN), pandas.DataFrame(PROBS)
    else:
        probs = probs.to(getattr(torch, kind)).requires_grad_()
    expected = find_label_issues(GIVEN, PROBS)
    assert (find_label_issues(labels, probs) == expected).mean() > 0.98
    table = label_table(labels, probs)
    assert np.allclose(table["given_prob"].to_numpy(), PROBS[range(N), GIVEN], atol=0.01)


def test_the_table_says_of_each_label_what_the_predictions_do(tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog"]
    paths = [f"{i}.png" for i in range(N)]
    given = [names[label] for label in GIVEN]
    table = label_table(given, PROBS, class_names=names, paths=paths)
    rows = table.to_pylist()
    assert [row["given_name"] for row in rows] == given
    assert [row["suggested"] for row in rows] == PROBS.argmax(1).tolist()
    assert [row["path"] for row in rows] == paths
    assert [row["issue"] for row in rows] == find_label_issues(GIVEN, PROBS).tolist()
    assert np.allclose([row["given_prob"] for row in rows], PROBS[range(N), GIVEN])
    entropy = -(PROBS * np.log(PROBS)).sum(1)
    assert np.allclose([row["entropy"] for row in rows], entropy, atol=1e-5)
    ranked = sorted(range(N), key=lambda i: PROBS[i, GIVEN[i]])
    assert [rows[i]["rank"] for i in ranked] == list(range(1, N + 1))
    assert {row["strength"] for row in rows} == {row["left_epoch"] for row in rows} == {None}
    frame = table.to_pandas()
    assert frame.loc[0, "given_name"] == given[0]


def test_embeddings_give_neighbours() -> None:
    clusters = np.eye(3)[np.arange(33) % 3] + 0.01
    labels = np.arange(33) % 3
    labels[0] = 1
    probs = np.full((33, 3), 1 / 3)
    rows = label_table(labels, probs, embeddings=clusters).to_pylist()
    assert rows[0]["neighbour_agreement"] == 0 and {i % 3 for i in rows[0]["neighbours"]} == {0}
    assert rows[1]["neighbour_agreement"] > 0.999 and len(rows[1]["neighbours"]) == 10


def test_a_single_sample_and_a_single_class_among_the_labels() -> None:
    probs = np.full((5, 3), 1 / 3)
    assert label_table([1], probs[:1], embeddings=[[1.0, 2.0]])["neighbours"].to_pylist() == [[]]
    assert not find_label_issues([1] * 5, probs).any()
    assert np.isnan(noise_matrix([1] * 5, probs)).any(axis=1).tolist() == [True, False, True]


def test_the_rate_and_the_matrix_are_near_the_truth() -> None:
    clean, given, _ = example(n=4000)
    sharp = np.eye(K)[clean] * 0.96 + 0.01
    truth = float((clean != given).mean())
    found = noise_rate(given, sharp)
    assert found.source == "confident joint"
    assert found.low < found.estimate < found.high
    assert found.estimate == pytest.approx(truth, abs=0.01)
    matrix = noise_matrix(given, sharp)
    true_matrix = np.array([[(given[clean == a] == b).mean() for b in range(K)] for a in range(K)])
    assert np.allclose(matrix, true_matrix, atol=0.02) and np.allclose(matrix.sum(1), 1)
    of_belief = noise_rate(given, belief=sharp)
    assert of_belief.source == "belief" and of_belief.low < of_belief.estimate < of_belief.high
    assert of_belief.estimate == pytest.approx(
        float(1 - sharp[range(4000), given].mean()), abs=1e-6
    )


def pictures(kind: str) -> Any:
    pixels = np.random.default_rng(0).integers(0, 255, (N, 9, 7, 3), dtype=np.uint8)
    return {
        "colour": pixels,
        "grey": pixels[..., 0],
        "tensor": torch.from_numpy(pixels).permute(0, 3, 1, 2),
    }[kind]


@pytest.mark.parametrize("kind", ["colour", "grey", "tensor"])
def test_a_page_shows_the_pictures(kind: str, tmp_path: Path) -> None:
    table = label_table(GIVEN, PROBS)
    write_report(table, tmp_path / "report.html", images=pictures(kind), top=50)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "The 50 most suspicious labels" in page and 'id="pictures-0"' in page
    assert "Who is mistaken for whom" in page and "Is confidence honest?" not in page
    assert "Ordered by the probability of the given label, the smallest first." in page


def test_a_page_of_files_and_of_a_table_that_was_stored(tmp_path: Path) -> None:
    paths = [f"{i}.png" for i in range(N)]
    Image.new("RGB", (12, 8), (255, 0, 0)).save(tmp_path / "0.png")
    table = label_table(GIVEN, PROBS, paths=paths)
    pyarrow.parquet.write_table(table, tmp_path / "labels.parquet")
    stored = pyarrow.parquet.read_table(tmp_path / "labels.parquet")
    for number, each in enumerate((table, stored)):
        write_report(each, tmp_path / f"{number}.html", images=tmp_path)
    pages = [(tmp_path / f"{number}.html").read_text("utf-8") for number in range(2)]
    data = [page[page.index('id="data"') :] for page in pages]
    assert data[0] == data[1] and 'id="pictures-0"' in data[0]


def test_a_page_may_be_without_pictures(tmp_path: Path) -> None:
    write_report(label_table(GIVEN, PROBS), tmp_path / "report.html")
    assert 'id="pictures-0"' not in (tmp_path / "report.html").read_text("utf-8")


BAD = PROBS.copy()
BAD[7, 2] = np.nan


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"pred_probs": PROBS * 0.9}, "pred_probs: got numbers that sum to 0.9, in row 0 (from 0)"),
        ({"pred_probs": BAD}, "pred_probs: got nan, in row 7 (from 0); valid: numbers"),
        ({"pred_probs": PROBS - 1}, "a logit perhaps: use softmax, in row 0"),
        ({"pred_probs": PROBS[:, 0]}, "pred_probs: got float64 of shape (400,); valid"),
        ({"pred_probs": np.ones((N, 1))}, "pred_probs: got 1 class; valid: 2 classes or more"),
        ({"pred_probs": np.eye(K, dtype=int)}, "pred_probs: got int64 of shape (4, 4); valid"),
        ({"pred_probs": np.empty((0, K))}, "pred_probs: got float64 of shape (0, 4); valid"),
        ({"pred_probs": PROBS[:10]}, "labels: got 400; valid: 10, one for each row of pred_probs"),
        ({"pred_probs": [[0.5, 0.5], [1.0]]}, "pred_probs: got rows of several lengths; valid"),
        (
            {"pred_probs": [*torch.from_numpy(PROBS).requires_grad_()]},
            "which NumPy cannot read; valid: one array or tensor of shape (N, K)",
        ),
        ({"labels": GIVEN + 1}, "labels: label 4 of sample"),
        ({"labels": GIVEN - 1}, "labels: label -1 of sample"),
        ({"labels": GIVEN * 1.0}, "labels: got float64 of shape (400,); valid: integers"),
        (
            {"labels": ["cat"] * N},
            "valid: integers of shape (400,), or names with the class_names of label_table",
        ),
        ({"labels": [b"a"] * N, "class_names": "abcd"}, "integers of shape (400,), or names"),
        ({"labels": np.ma.masked_equal(GIVEN, 0)}, "labels: got a masked array, in which "),
        (
            {"pred_probs": np.ma.masked_less(PROBS, 0.1)},
            "pred_probs: got a masked array, in which ",
        ),
        ({"belief": np.ma.masked_less(PROBS, 0.1)}, "belief: got a masked array, in which "),
        ({"labels": ["x"] * N, "class_names": "abcd"}, "labels: sample 0: class got 'x'"),
        ({"belief": PROBS[:, :2] * 0 + 0.5}, "belief: got shape (400, 2); valid: (400, 4)"),
        ({"belief": BAD}, "belief: got nan, in row 7"),
        ({"class_names": ["a"]}, "class_names: got ['a']; valid: a list of 4 different names"),
        ({"class_names": "aabc"}, "class_names: got ['a', 'a', 'b', 'c']; valid: a list of 4"),
        ({"class_names": {0: "a", 1: "b", 2: "c", 3: "d"}}, "class_names: got {0: 'a', 1:"),
        ({"class_names": {*"abcd"}}, "class_names: got {'"),
        ({"class_names": 4}, "class_names: got 4; valid: a list of 4 different names"),
        ({"paths": ["a"]}, "paths: got 1; valid: 400, one for each label"),
        ({"embeddings": np.ones(N)}, "embeddings: got torch.float64 of shape (400,); valid"),
        ({"embeddings": np.full((N, 2), np.inf)}, "embeddings: some are not finite"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as caught:
        label_table(**{"labels": GIVEN, "pred_probs": PROBS, **arguments})
    assert says in str(caught.value)


def test_wrong_arguments_of_the_other_functions_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pred_probs: got None; valid: probabilities"):
        noise_rate(GIVEN)
    with pytest.raises(ValueError, match="belief: got numbers that sum to"):
        noise_matrix(GIVEN, belief=PROBS * 2)
    page, table = tmp_path / "report.html", label_table(GIVEN, PROBS)
    for wrong, says in (
        ({"table": table.to_pandas()}, "table: got a DataFrame without what label_table keeps"),
        ({"images": "photos"}, "images: got the folder photos, but the table has no paths"),
        ({"images": np.zeros((N, 8, 8))}, "images: got torch.float64 of shape"),
        ({"images": np.zeros((3, 8, 8), np.uint8)}, "images: got 3; valid: 400, one for each row"),
        ({"top": 0}, "top: got 0; valid"),
    ):
        with pytest.raises(ValueError, match=says):
            write_report(**{"table": table, "path": page, **wrong})  # type: ignore[arg-type]
    assert not page.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda table: table.drop_columns("neighbours"),
            "table: it has no column neighbours; valid",
        ),
        (lambda table: table.drop_columns("given"), "table: it has no column given; valid"),
        (lambda table: table.slice(0, 50), "table: column neighbours holds"),
    ],
)
def test_a_part_of_the_table_makes_no_page(change: Any, says: str, tmp_path: Path) -> None:
    z = np.random.default_rng(0).normal(size=(N, 3))
    with pytest.raises(ValueError, match=says):
        write_report(change(label_table(GIVEN, PROBS, embeddings=z)), tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_a_folder_of_images_that_is_not_there_is_refused(tmp_path: Path) -> None:
    table = label_table(GIVEN, PROBS, paths=[f"{i}.png" for i in range(N)])
    with pytest.raises(ValueError, match=r"images: got 'nofolder'; valid: a folder that is there"):
        write_report(table, tmp_path / "page.html", images="nofolder")
    with pytest.raises(
        ValueError, match=r"has none of the table's images, such as '0\.png'; valid:"
    ):
        write_report(table, tmp_path / "page.html", images=tmp_path)


def test_names_may_be_an_array_and_paths_an_iterator() -> None:
    names, paths = np.array(["a", "b", "c", "d"]), (f"{i}.png" for i in range(N))
    table = label_table(names[GIVEN], PROBS, class_names=names, paths=paths)
    assert table["given"].to_pylist() == GIVEN.tolist() and table["path"][1].as_py() == "1.png"


def test_a_table_of_many_classes_takes_little_more_than_its_probabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("noisybsd.report.findings.BLOCK", 2**16)
    random = np.random.default_rng(0)
    probs = random.random((4000, 500), np.float32)
    probs /= probs.sum(axis=1, keepdims=True)
    given = random.integers(0, 500, 4000)
    tracemalloc.start()
    table = label_table(given, probs)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * probs.nbytes
    wide = probs.astype(np.float64)
    np.testing.assert_allclose(table["entropy"], -(wide * np.log(wide)).sum(axis=1), rtol=1e-5)


def test_a_belief_goes_into_the_table() -> None:
    beliefs = noisybsd.BSD(GIVEN, K, epochs=2)
    table = label_table(GIVEN, PROBS, belief=beliefs.mean())
    pool = np.sqrt(beliefs.mean().double().numpy() * PROBS)
    expected = pool[range(N), GIVEN] / pool.sum(axis=1)
    assert np.allclose(table["given_prob"].to_numpy(), expected, atol=1e-5)
    assert np.allclose(table["final_prob"].to_numpy(), PROBS[range(N), GIVEN])
