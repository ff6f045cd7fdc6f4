"""The commands check, prepare, pack and noise, as typed."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from helpers import trees
from helpers.local_server import serving
from helpers.trees import load

from noisybsd.data.__main__ import main
from noisybsd.data.label_files import read_description, read_labels
from noisybsd.data.noise import inject
from noisybsd.errors import UserError


def test_help_and_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0 and main([]) == 2
    assert "check|prepare|pack|noise NAME" in capsys.readouterr().out
    for arguments, message in (
        (["chek", "digits"], "command: got 'chek', did you mean check?"),
        (["check"], "check: which dataset? valid: animal10n"),
        (["check", "root=x"], "check: which dataset?"),
        (["check", "digts"], "data.name: got 'digts', did you mean digits?"),
        (["check", "digits", "rot=x"], "rot: unknown key (got 'x'); did you mean data.root?"),
        (["check", "digits", "limit=0"], "data.limit: "),
        (["noise", "digits", "name=symmetric"], "name=symmetric: write noise.name="),
        (["noise", "digits", "out=x.npy"], "noise.name is missing"),
        (["noise", "digits", "noise.name=symmetric"], "out=FILE is missing"),
        (["pack", "own"], "out=FOLDER is missing"),
        (["check", "digits", "calibration=0.1"], "data.calibration: has no effect on check; leave"),
        (["pack", "own", "limit=5", "out=x"], "data.limit: has no effect on pack; leave it out"),
        (["check", "own", "noise.seed=4"], "noise.seed: has no effect on check; leave it out"),
        (["noise", "own", "epochs=3"], "epochs: has no effect on noise; leave it out"),
    ):
        assert main(arguments) == 2, arguments
        assert f"error: {message}" in capsys.readouterr().err.replace(
            "error: noise: ", "error: "
        ).replace("error: pack: ", "error: ")


# --- check --------------------------------------------------------------------------------------


def check(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    code = main(["check", *map(str, arguments)])
    return code, capsys.readouterr().out


def test_check_of_what_is_right(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = check(capsys, "digits")
    assert code == 0 and "ok     1,438 training images" in text
    code, text = check(capsys, "digits", "test_fraction=0.3")
    assert code == 1 and "WRONG  data.test_fraction=0.3: the data have a test split; leave" in text
    trees.folders(tmp_path)
    code, text = check(capsys, "own", f"root={tmp_path}")
    assert code == 0 and "ok     all training images can be read" in text
    assert "no test split: 20% of the training images will be held out" in text
    assert "2 classes, 10 training images: 'cat', 'dog'\n" in text
    _, text = check(capsys, "own", f"root={tmp_path}", "folds=5")
    assert "no test split: one of 5 parts of the training images will be held out" in text
    (tmp_path / "cat/000.png").unlink()
    _, text = check(capsys, "own", f"root={tmp_path}")
    assert "2 classes, from 9 training images (cat) to 10 (dog): 'cat', 'dog'\n" in text


def test_check_names_classes_that_are_wholly_held_out(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trees.folders(tmp_path, n=25)
    trees.folders(tmp_path, ["r0", "r1"], n=1)
    code, text = check(capsys, "own", f"root={tmp_path}")
    assert code == 0 and "NOTE   no image to train on is left of 'r0', since all are held" in text


def test_check_lists_what_cannot_be_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trees.folders(tmp_path)
    (tmp_path / "cat/000.png").write_text("not a picture")
    (tmp_path / "dog/001.jpg").write_bytes((tmp_path / "dog/001.jpg").read_bytes()[:200])
    (tmp_path / "dog/002.png").write_bytes(b"")
    (tmp_path / "dog/loop").symlink_to(tmp_path)
    code, text = check(capsys, "own", f"root={tmp_path}")
    assert code == 1 and "4 things wrong" in text and "What belongs there" not in text
    assert "data.on_error=skip leaves unreadable images out" in text
    for name in (
        "cat/000.png: is not an image",
        "dog/001.jpg: ",
        "dog/002.png: is empty",
        "dog/loop: a symb",
    ):
        assert f"WRONG  {tmp_path}/{name}" in text


def test_check_goes_on_where_a_class_is_empty(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trees.folders(tmp_path)
    (tmp_path / "fish").mkdir()
    (tmp_path / "cat/000.png").write_text("not a picture")
    code, text = check(capsys, "own", f"root={tmp_path}")
    assert code == 1 and "2 things wrong" in text
    assert f"WRONG  {tmp_path}/fish: no image in it" in text
    assert f"WRONG  {tmp_path}/cat/000.png: is not an image" in text


def test_check_names_images_that_are_there_twice(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        trees.folders(tmp_path / split, n=5)
    for path in (tmp_path / "test").rglob("*.*"):
        trees.picture(path, 200 + int(path.stem) + 20 * (path.parent.name == "dog"))
    assert "more than once" not in check(capsys, "own", f"root={tmp_path}", "size=28")[1]
    trees.picture(tmp_path / "train/dog/copy.bmp", 0)  # of train/cat/000.png, in another format
    trees.picture(tmp_path / "test/cat/copy.png", 2)  # of train/cat/002.png
    code, text = check(capsys, "own", f"root={tmp_path}", "size=28")
    assert code == 0 and "NOTE   2 images are there more than once, 4 in all: " in text
    assert "train/cat/000.png (cat) = train/dog/copy.bmp (dog)" in text
    assert (
        "NOTE   1 of these has different labels: train/cat/000.png (cat) = train/dog/copy" in text
    )
    both = "train/cat/002.png (cat) = test/cat/copy.png (cat)"
    assert f"NOTE   1 of these is both a training and a test image: {both}" in text


def test_check_says_how_folders_were_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for split in ("Train", "Test", "val"):
        trees.folders(tmp_path / "ds" / split, n=3)
    trees.picture(tmp_path / "ds/Train/cat/@eaDir/1.png")
    code, text = check(capsys, "own", f"root={tmp_path}", "size=28")
    assert code == 0 and "NOTE   the images are those in ds/" in text
    assert "NOTE   not used: ds/val/ and its 6 images" in text
    assert "NOTE   left out: 1 in @eaDir/ (a system folder)" in text


def test_check_of_what_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, text = check(capsys, "clothing1m", f"root={tmp_path}")
    assert code == 1 and f"WRONG  {tmp_path}/noisy_label_kv.txt: not there" in text
    assert "ask the authors" in text and "https://github.com/Cysu/noisy_label" in text
    code, text = check(capsys, "cifar10c", f"root={tmp_path}")
    assert code == 1 and "CIFAR-10-C: not there" in text and "prepare cifar10c" in text
    code, text = check(capsys, "own", f"root={tmp_path}/photoz")
    assert code == 1 and "What belongs there: the images of each class in a folder" in text
    assert "licence" not in text and "How to get own" not in text
    with pytest.raises(UserError, match=r"photoz: not there; data\.root=FOLDER says where"):
        load("own", tmp_path / "photoz")


def test_a_root_that_is_no_folder_is_named_with_its_key(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    for root, reason in ((tmp_path / "file", "is no folder"), ("x" * 300, "File name too long")):
        code, text = check(capsys, "own", f"root={root}")
        assert code == 1 and f"WRONG  data.root={root}: {reason}" in text
        with pytest.raises(UserError, match=f"^data.root={root}: {reason}"):
            load("own", Path(root))


def test_check_counts_images(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    trees.clothing1m(tmp_path)
    code, text = check(capsys, "clothing1m", f"root={tmp_path}")
    assert code == 1 and "WRONG  28 training images, there should be 1,000,000" in text
    assert "WRONG  14 test images, there should be 10,526" in text
    (tmp_path / "images/5/05/5234,5567.jpg").unlink()
    code, text = check(capsys, "clothing1m", f"root={tmp_path}")
    assert f"WRONG  {tmp_path}/images/5/05/5234,5567.jpg: cannot be read: No such file" in text


def small_cifar10n(folder: Path, root: Path) -> Path:
    """A card of a small CIFAR-10N, and its files in root."""
    clean = trees.cifar10(root)
    trees.human_labels(root / "CIFAR-10_human.pt", clean)
    files = [f"cifar-10-batches-py/data_batch_{k}" for k in range(1, 6)]
    sums = {name: hashlib.sha256((root / name).read_bytes()).hexdigest() for name in files}
    worst = {"file": "CIFAR-10_human.pt", "key": "worse_label", "clean_key": "clean_label"}
    return trees.card(
        folder,
        "cifar10n",
        checksums={name: f"sha256:{digest}" for name, digest in sums.items()},
        labels={"worst": worst | {"noise_rate": 0.25}},
        downloads=[],
        train_images=100,
        test_images=20,
    )


def test_check_of_bytes_and_label_order(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    card, root = small_cifar10n(tmp_path, tmp_path / "data"), tmp_path / "data"
    code, text = check(capsys, card, f"root={root}")
    assert code == 0 and "data_batch_2: the official bytes (sha256)" in text
    assert "labels worst: in the images' order, 25.00% wrong (published: 25.00%)" in text

    batch = root / "cifar-10-batches-py/data_batch_2"
    content = bytearray(batch.read_bytes())
    content[3000] ^= 1  # a pixel
    batch.write_bytes(content)
    code, text = check(capsys, card, f"root={root}")
    assert code == 1 and "WRONG  cifar-10-batches-py/data_batch_2: not the official bytes" in text
    code, text = check(capsys, card, f"root={root}", "verify=false")
    assert code == 0 and "data_batch_2: not the official bytes, accepted by verify=false" in text

    labels = read_labels(root / "CIFAR-10_human.pt", 10, 100, "worse_label").labels
    np.save(tmp_path / "worse.npy", labels)
    arguments = (card, f"root={root}", "verify=false", f"labels={tmp_path / 'worse.npy'}")
    assert (
        "worse.npy: in an order that nothing proves, 25.00% wrong" in check(capsys, *arguments)[1]
    )

    torch.save(
        {"clean_label": np.arange(100) % 10, "worse_label": np.zeros(100, int)},
        root / "CIFAR-10_human.pt",
    )
    code, text = check(capsys, card, f"root={root}", "verify=false")
    assert code == 1 and "labels and images are in different orders" in text
    (root / "CIFAR-10_human.pt").unlink()
    assert check(capsys, card, f"root={root}", "verify=false")[0] == 0  # not asked for
    assert check(capsys, card, f"root={root}", "verify=false", "labels=worst")[0] == 1


# --- prepare ------------------------------------------------------------------------------------


def archive(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        bundle.add(folder, folder.name)
    return buffer.getvalue()


def test_prepare_downloads_unpacks_and_resumes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisybsd.data.download.time.sleep", lambda _: None)
    source, root = tmp_path / "source", tmp_path / "root"
    card = small_cifar10n(tmp_path, source)
    images = archive(source / "cifar-10-batches-py")
    labels = (source / "CIFAR-10_human.pt").read_bytes()
    with serving({"/images": images, "/labels": labels}) as server:
        downloads = [
            {
                "file": "cifar-10-python.tar.gz",
                "url": f"{server.url}/images",
                "checksum": f"sha256:{hashlib.sha256(images).hexdigest()}",
                "unpack": "cifar-10-batches-py",
            },
            {"file": "CIFAR-10_human.pt", "url": f"{server.url}/labels"},
        ]
        text = card.read_text("utf-8").replace(
            "downloads: []\n", f"downloads: {json.dumps(downloads)}\n"
        )
        card.write_text(text, "utf-8")
        server.cut, server.tag = len(images) // 3, '"one"'
        assert main(["prepare", str(card), f"root={root}"]) == 0
        assert len(server.asked) > 3 and any(server.asked)
        assert sorted(path.name for path in root.iterdir()) == [
            "CIFAR-10_human.pt",
            "cifar-10-batches-py",
        ]
        assert "gives no checksum" in capsys.readouterr().out
        server.asked.clear()
        assert main(["prepare", str(card), f"root={root}"]) == 0 and server.asked == []
        assert f"`check {card} root={root}` looks at every file" in capsys.readouterr().out

        # training fetches the images, and labels only if they are asked for
        again = tmp_path / "again"
        load(card, again, download=True)
        assert not (again / "CIFAR-10_human.pt").exists()
        server.cut = None
        data = load(card, again, download=True, labels="worst")
        assert data.notes["noise"]["real_rate"] == 0.25

        # an archive that lies there is unpacked and stays
        by_hand = tmp_path / "by_hand"
        by_hand.mkdir()
        (by_hand / "cifar-10-python.tar.gz").write_bytes(images)
        server.asked.clear()
        load(card, by_hand, download=True)
        assert server.asked == [] and (by_hand / "cifar-10-python.tar.gz").exists()
        (by_hand / "cifar-10-python.tar.gz").write_bytes(images[:-1])
        (by_hand / "cifar-10-batches-py").rename(by_hand / "old")
        with pytest.raises(UserError, match=r"cifar-10-python\.tar\.gz: sha256 is"):
            load(card, by_hand, download=True)


def test_prepare_shows_no_password(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    download = {"file": "x", "url": "http://me:secret@nowhere.invalid/x"}
    card = trees.card(tmp_path, "own", downloads=[download])
    assert main(["prepare", str(card), f"root={tmp_path / 'root'}"]) == 2
    told = "".join(capsys.readouterr())
    assert "http://nowhere.invalid/x" in told and "secret" not in told


def test_prepare_of_what_is_not_whole(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-py").mkdir()
    assert main(["prepare", "cifar10", f"root={tmp_path}"]) == 1
    text = capsys.readouterr().out
    assert f"not there, though {tmp_path}/cifar-10-batches-py is: remove that and" in text
    assert "not to be downloaded" not in text


def test_prepare_says_where_a_form_is_needed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name in ("clothing1m", "animal10n", "webvision_imagenet"):
        assert main(["prepare", name, f"root={tmp_path}"]) == 1
        text = capsys.readouterr().out
        assert "not to be downloaded by a program: its owners want a form filled in" in text
        assert "source: https://" in text and "licence: " in text
    trees.clothing1m(tmp_path)
    assert main(["prepare", "clothing1m", f"root={tmp_path}"]) == 0


# --- pack ---------------------------------------------------------------------------------------


def test_pack_gives_the_same_pixels_labels_and_order(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    trees.clothing1m(tmp_path / "files")
    out = tmp_path / "deep/packed"
    arguments = [f"root={tmp_path / 'files'}", "size=28", f"out={out}"]
    assert main(["pack", "clothing1m", *arguments]) == 0
    assert "28 train, 14 test images" in capsys.readouterr().out
    files, packed = load("clothing1m", tmp_path / "files", size=28), load("clothing1m", out)
    assert packed.train.labels.flags.writeable  # or else torch warns
    for one, other in ((files.train, packed.train), (files.test, packed.test)):
        assert isinstance(other.images, torch.Tensor) and other.images.shape[1:] == (3, 32, 32)
        assert torch.equal(
            torch.stack([one.images.decode(i) for i in range(len(one))]), other.images
        )  # type: ignore[union-attr]
        assert (one.labels == other.labels).all() and one.paths == other.paths
    assert packed.size == 28 and packed.notes["test_labels"] == "clean"
    assert packed.class_names == files.class_names and packed.train.clean_labels is None
    about = json.loads((out / "pack.json").read_text())
    assert (
        about["train"]["images_sha256"] == hashlib.sha256(packed.train.images.numpy()).hexdigest()
    )


def test_pack_holds_out_the_same_test_split(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos", n=12)
    assert (
        main(["pack", "own", f"root={tmp_path / 'photos'}", "size=28", f"out={tmp_path / 'p'}"])
        == 0
    )
    files, packed = load("own", tmp_path / "photos"), load("own", tmp_path / "p")
    assert files.test.paths == packed.test.paths and packed.notes["test_labels"] == "noisy"
    assert load("own", tmp_path / "p", {"name": "symmetric", "rate": 0.5}).sha256 != packed.sha256


def test_pack_leaves_nothing_behind_when_it_fails(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    root, out = tmp_path / "photos", tmp_path / "packed"
    trees.folders(root)
    for name in ("cat/003.jpg", "dog/004.png"):
        (root / name).write_text("not a picture")
    arguments = ["pack", "own", f"root={root}", "size=28", f"out={out}", "test_fraction=0.1"]
    assert main(arguments) == 2
    assert "cat/003.jpg: is not an image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]

    assert main([*arguments, "on_error=skip"]) == 0
    assert "2 left out" in capsys.readouterr().out
    data = load("own", out)
    assert len(data.train) + len(data.test) == 18 and data.notes["skipped_images"] == 2
    assert data.train.paths is not None and "cat/003.jpg" not in data.train.paths
    for path, image, label in zip(
        data.train.paths, data.train.images, data.train.labels, strict=True
    ):
        assert trees.number_of(image) == int(path[4:7]) + 10 * label
    assert main(arguments) == 2 and "is there already" in capsys.readouterr().err
    assert main(["check", "own", f"root={out}"]) == 0  # as it was asked to be
    assert "ok     left out when packed: " in capsys.readouterr().out


def test_pack_with_labels_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trees.folders(tmp_path / "photos")
    files = sorted((tmp_path / "photos").glob("*/*.*"))
    names = [str(file.relative_to(tmp_path / "photos")) for file in files]
    given = {name: ["dog", "cat"][i % 3 == 0] for i, name in enumerate(names)}
    lines = [f"{name},{given[name]}\n" for name in reversed(names)]
    (tmp_path / "l.csv").write_text("path,label\n" + "".join(lines))
    labels = f"labels={tmp_path / 'l.csv'}"
    arguments = ["own", f"root={tmp_path / 'photos'}", labels, f"out={tmp_path / 'packed'}"]
    assert main(["pack", *arguments, "size=8"]) == 0
    dataset = load("own", tmp_path / "packed")
    assert dataset.train.paths is not None
    names = [dataset.class_names[label] for label in dataset.train.labels]
    assert names == [given[path] for path in dataset.train.paths]
    assert dataset.notes["notices"] == [
        f"the training labels are those of data.{labels}, packed with the images"
    ]


def test_pack_with_clean_labels(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos", n=4)
    rows = [f"{'cat' if i < 4 else 'dog'}/00{i % 4}.{'jpg' if i % 2 else 'png'}" for i in range(8)]
    rows = [f"{path},{'cat' if i % 4 else 'dog'},{path[:3]}" for i, path in enumerate(rows)]
    table = trees.lines(tmp_path / "labels.csv", ["path,label,clean_label", *rows])
    arguments = [f"root={tmp_path / 'photos'}", f"manifest={table}", "size=28"]
    assert main(["pack", "own", *arguments, f"out={tmp_path / 'packed'}"]) == 0
    files = load("own", tmp_path / "photos", manifest=str(table))
    packed = load("own", tmp_path / "packed")
    assert (files.train.clean_labels == packed.train.clean_labels).all()
    assert packed.notes["test_labels"] == "clean"


def test_pack_of_what_is_packed_and_wrong_packs(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["pack", "digits", f"out={tmp_path / 'x'}"]) == 2
    assert "are in one array already" in capsys.readouterr().err
    trees.folders(tmp_path / "photos", n=4)
    out = tmp_path / "packed"
    assert main(["pack", "own", f"root={tmp_path / 'photos'}", "size=28", f"out={out}"]) == 0
    with pytest.raises(UserError, match=r"pack\.json: holds own, not data\.name=animal10n"):
        load("animal10n", out)
    with pytest.raises(UserError, match=r"data\.size=64: .* was packed with size 28"):
        load("own", out, size=64)
    assert check(capsys, "own", f"root={out}")[0] == 0
    (out / "train.parquet").write_bytes((out / "test.parquet").read_bytes())
    with pytest.raises(UserError, match=r"pack\.json: damaged: train has 6 images and 2 labels"):
        load("own", out)
    images = out / "train_images.npy"
    images.write_bytes(images.read_bytes()[:-5])
    with pytest.raises(UserError, match=r"pack\.json: damaged: .*pack the images again"):
        load("own", out)


def packed_photos(tmp_path: Path, *arguments: str) -> Path:
    """A pack of 24 images of two classes."""
    trees.folders(tmp_path / "photos", n=12)
    out = tmp_path / "packed"
    root = f"root={tmp_path / 'photos'}"
    assert main(["pack", "own", root, "size=28", f"out={out}", *arguments]) == 0
    return out


@pytest.mark.parametrize("split", ["train", "test"])
def test_changed_pixels_of_a_pack_are_noticed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, split: str
) -> None:
    out = packed_photos(tmp_path)
    first = load("own", out)
    images = out / f"{split}_images.npy"
    content = bytearray(images.read_bytes())
    content[-1000:] = bytes(value ^ 1 for value in content[-1000:])
    images.write_bytes(content)
    with pytest.raises(
        UserError, match=rf"{split}_images\.npy: holds other images than were packed"
    ):
        load("own", out)
    assert check(capsys, "own", f"root={out}")[0] == 1
    assert load("own", out, verify=False).sha256 != first.sha256


def test_of_a_large_pack_some_images_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisybsd.data.fingerprint.WHOLE", 1000)
    monkeypatch.setattr("noisybsd.data.fingerprint.SAMPLED", 4)
    out = packed_photos(tmp_path)
    first = load("own", out)
    images = np.load(out / "train_images.npy", mmap_mode="r+")
    images[1] ^= 1  # not one of those: 0, 6, 12 and 19
    images.flush()
    assert load("own", out).sha256 == first.sha256
    images[6] ^= 1
    images.flush()
    with pytest.raises(UserError, match="holds other images than were packed"):
        load("own", out)


def test_a_fifo_in_a_pack_is_not_waited_for(tmp_path: Path) -> None:
    out = packed_photos(tmp_path)
    (out / "train_images.npy").unlink()
    os.mkfifo(out / "train_images.npy")
    with pytest.raises(UserError, match=r"damaged: train_images\.npy is no file"):
        load("own", out)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("label", 99, r"train\.parquet: label: label 99 of image 0 is out of range, valid: 0 to 1"),
        ("clean_label", 99, r"train\.parquet: clean_label: label 99 of image 0 is out of range"),
        ("clean_label", -2, r"train\.parquet: clean_label: label -2 of image 0 is out of range"),
        ("label", 0.5, r"pack\.json: damaged: train\.parquet: label holds double"),
        ("label", None, r"train\.parquet: label: label -1 of image 0 is out of range"),
        ("path", 7, r"pack\.json: damaged: train\.parquet: path holds int64, expected text"),
    ],
)
def test_labels_of_a_pack_are_looked_at(
    tmp_path: Path, column: str, value: object, message: str
) -> None:
    out = packed_photos(tmp_path)
    table = pyarrow.parquet.read_table(out / "train.parquet")
    values = [value, *table["label"].to_pylist()[1:]]
    if column in table.column_names:
        table = table.drop_columns(column)
    table = table.append_column(column, pyarrow.array(values))
    pyarrow.parquet.write_table(table, out / "train.parquet")
    with pytest.raises(UserError, match=message):
        load("own", out)


@pytest.mark.parametrize(
    "text",
    ["[]", "3", "null", "{", '{"card": "own"}', '{"card": 3, "classes": 4}', "\udcff"],
)
def test_a_description_of_a_pack_that_is_none(tmp_path: Path, text: str) -> None:
    out = packed_photos(tmp_path)
    (out / "pack.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=r"pack\.json: damaged: .*; pack the images again"):
        load("own", out)


def test_a_pack_keeps_what_is_known_and_names_that_are_no_text(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    trees.folders(photos, n=6)
    latin = os.fsdecode(b"caf\xe9.png")
    trees.picture(photos / "cat" / latin, 77)
    paths = sorted(path.relative_to(photos) for path in photos.rglob("*.*"))
    table = pyarrow.table(
        {
            "path": [os.fsencode(path) for path in paths],
            "label": [path.parts[0] for path in paths],
            "clean_label": [path.parts[0] if i % 3 else None for i, path in enumerate(paths)],
        }
    )
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    arguments = [f"root={photos}", f"manifest={tmp_path / 't.parquet'}", f"out={tmp_path / 'p'}"]
    assert main(["pack", "own", "size=28", *arguments]) == 0
    files = load("own", photos, manifest=str(tmp_path / "t.parquet"))
    packed = load("own", tmp_path / "p")
    assert files.train.clean_labels is not None and packed.train.clean_labels is not None
    assert packed.train.clean_labels.tolist() == files.train.clean_labels.tolist()
    assert -1 in packed.train.clean_labels
    assert packed.notes["test_labels"] == files.notes["test_labels"] == "partly verified"
    names = [*(packed.train.paths or []), *(packed.test.paths or [])]
    assert r"cat/caf\udce9.png" in names


KILLED = """
import os, signal, sys
from noisybsd.data import pack
from noisybsd.data.__main__ import main
pack._pack_split = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


def test_what_a_killed_pack_left_is_removed_by_the_next(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos", n=4)
    (tmp_path / ".noisybsd-pack-mine").write_text("a file that is not ours")
    arguments = ["pack", "own", f"root={tmp_path / 'photos'}", "size=28", f"out={tmp_path / 'p'}"]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list(tmp_path.glob(".noisybsd-pack-*"))) == 2
    assert main(arguments) == 0
    assert [path.name for path in tmp_path.glob(".noisybsd-pack-*")] == [".noisybsd-pack-mine"]


def test_a_place_where_nothing_can_be_packed_is_named(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees.folders(tmp_path / "photos", n=4)
    (tmp_path / "file").write_text("x")
    arguments = ["pack", "own", f"root={tmp_path / 'photos'}", "size=28"]
    assert main([*arguments, f"out={tmp_path / 'file/packed'}"]) == 2
    assert "file/packed: cannot be written: File exists" in capsys.readouterr().err

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("noisybsd.data.pack.os.fsync", full)
    assert main([*arguments, f"out={tmp_path / 'packed'}"]) == 2
    assert "packed: cannot be written: No space left on device" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


# --- noise --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["csv", "npy", "txt"])
def test_noise_writes_labels_that_training_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"labels.{suffix}"
    noise = ["noise.name=symmetric", "noise.rate=0.3", "noise.seed=4"]
    assert main(["noise", "digits", *noise, f"out={out}"]) == 0
    assert "symmetric, rate 0.3, seed 4: " in capsys.readouterr().out
    clean = load("digits", Path()).train.labels
    expected = inject(clean, "symmetric", 0.3, 10, seed=4)
    data = load("digits", Path(), labels=str(out))
    assert (data.train.labels == expected.labels).all() and (data.train.clean_labels == clean).all()
    assert data.notes["label_file"] == {"name": "symmetric", "rate": 0.3, "seed": 4}
    assert data.notes["noise"]["real_rate"] == expected.real_rate
    description = read_description(out)
    assert description is not None
    np.testing.assert_array_equal(description["transition"], expected.transition)
    assert load("digits", Path(), {"name": "symmetric", "rate": 0.3}, seed=4).sha256 == data.sha256


def test_noise_for_own_data_covers_what_will_be_held_out(tmp_path: Path) -> None:
    trees.folders(tmp_path / "photos")
    out = tmp_path / "labels.csv"
    arguments = [f"root={tmp_path / 'photos'}", "noise.name=pairflip", "noise.rate=1", f"out={out}"]
    assert main(["noise", "own", *arguments]) == 0
    data = load("own", tmp_path / "photos", labels=str(out))
    assert data.train.clean_labels is not None
    assert (data.train.labels == 1 - data.train.clean_labels).all()
    assert data.notes["test_labels"] == "clean" and (np.bincount(data.test.labels) == 2).all()


@pytest.mark.parametrize("key", ["manifest", "labels"])
def test_noise_does_not_write_over_the_labels_that_it_reads(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trees.folders(tmp_path)
    files = sorted(map(str, Path().rglob("*.png")))
    Path("list.csv").write_text("path,label\n" + "".join(f"{f},{Path(f).parent}\n" for f in files))
    arguments = ["root=.", f"{key}=list.csv", "noise.name=symmetric", "noise.rate=0.2"]
    assert main(["noise", "own", *arguments, "out=./list.csv"]) == 2
    says = f"error: list.csv: is read as data.{key}, and would be overwritten; use another out"
    assert says in capsys.readouterr().err
