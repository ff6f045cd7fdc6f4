"""Features on disk: found again by their image, whole after a killed process, and embeddings of others."""

import numpy as np
import pytest
import torch
from PIL import Image

from noisybsd.data.features import FeatureStore, image_keys, read_embeddings
from noisybsd.data.images import ImageFiles
from noisybsd.errors import UserError


def test_rows_are_found_by_their_keys_in_any_order(tmp_path):
    keys = image_keys(torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 2, 2))
    rows = torch.randn(5, 2, 3).half()
    store = FeatureStore(tmp_path / "store", (2, 3))
    store.append(keys[:3], rows[:3])
    store.append(keys[3:], rows[3:])
    again = FeatureStore(tmp_path / "store", (2, 3))
    assert torch.equal(again.rows([keys[4], keys[0], keys[4]]), rows[[4, 0, 4]])


@pytest.mark.parametrize("left", ["row without its key", "half a row"])
def test_what_a_killed_process_left_is_written_over(tmp_path, left):
    store = FeatureStore(tmp_path, (1, 4))
    rows = torch.randn(2, 1, 4).half()
    store.append([b"a" * 16], rows[:1])
    with (tmp_path / "rows.f16").open("ab") as file:
        file.write(b"\1" * (8 if left == "row without its key" else 3))
    assert store.known() == {b"a" * 16: 0}
    store.append([b"b" * 16], rows[1:])
    assert torch.equal(store.rows([b"b" * 16, b"a" * 16]), rows[[1, 0]])


def test_keys_follow_the_content_of_a_file_and_not_its_name(tmp_path):
    for name, shade in {"a.png": 10, "b.png": 10, "c.png": 20}.items():
        Image.new("RGB", (8, 8), (shade,) * 3).save(tmp_path / name)
    a, b, c = image_keys(ImageFiles(["a.png", "b.png", "c.png"], tmp_path, 8))
    assert a == b != c


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"network\.cache: .*file.*network\.cache=FOLDER"):
        FeatureStore(tmp_path / "file" / "store", (1, 2))


def test_embeddings_of_others_become_one_view_each(tmp_path):
    array = np.random.default_rng(0).normal(size=(4, 3))
    np.save(tmp_path / "e.npy", array)
    found = read_embeddings(str(tmp_path / "e.npy"), 4, "labels.csv")
    assert found.shape == (4, 1, 3)
    np.testing.assert_allclose(found[:, 0].float(), array, atol=2e-3)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros((3, 2)), r"has 3 rows, labels\.csv has 4"),
        (np.array([[0.0], [1.0], [np.nan], [0.0]]), "row 2 holds NaN"),
        (np.array([[0.0], [1e9], [0.0], [0.0]]), "row 1 holds NaN, or numbers beyond"),
        (np.zeros(4), r"holds \(4,\)"),
        (np.array([["a"]] * 4), r"holds \(4, 1\)"),
    ],
)
def test_embeddings_that_do_not_fit_are_refused(tmp_path, array, told):
    np.save(tmp_path / "e.npy", array)
    with pytest.raises(UserError, match=told):
        read_embeddings(str(tmp_path / "e.npy"), 4, "labels.csv")


def test_a_file_that_is_no_array_is_refused(tmp_path):
    (tmp_path / "e.npy").write_text("0,1")
    with pytest.raises(UserError, match="cannot be read"):
        read_embeddings(str(tmp_path / "e.npy"), 4, "labels.csv")
