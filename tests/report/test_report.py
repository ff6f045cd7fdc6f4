from __future__ import annotations

import base64
import csv
import io
import json
import re
import shutil
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from helpers.reported import NASTY_CLASSES, NASTY_FILE, findings, hide_cleanlab, own_images, run
from helpers.trees import picture
from PIL import Image

from noisybsd.data.__main__ import main as data
from noisybsd.data.images import ImageFiles
from noisybsd.report.__main__ import main
from noisybsd.report.estimates import estimates
from noisybsd.report.findings import FORMAT, Findings
from noisybsd.report.page import Run, build_page
from noisybsd.report.pictures import Pictures
from noisybsd.report.plots import curves_plot, reliability_plot, transition_plot
from noisybsd.report.rankings import detection_metrics
from noisybsd.report.sprites import SHEET, Sheets, sprite_sheets
from noisybsd.report.write import load_run, report


class Parsed(HTMLParser):
    """A page as a browser's parser sees it: elements, their attributes, and the text within some."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: dict[str, str] = {}
        self._script = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attributes)))
        if tag in ("script", "style"):
            self._script = dict(attributes).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._script = ""

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        else:
            self.text.append(data)

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])

    @property
    def said(self) -> str:
        return " ".join(" ".join(self.text).split())


def page_of(found: Findings, images: Any = None, top: int = 2000) -> Parsed:
    said, detection = estimates(found), detection_metrics(found)
    return Parsed(build_page(Run(found, [], images, []), said, detection, top))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hide_cleanlab(patch)
        yield


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 300 digits, with its report."""
    directory = run(tmp_path_factory.mktemp("report") / "run")
    report(directory, [])
    return directory


@pytest.fixture(scope="module")
def nasty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on image files whose names and classes are hostile, with its report."""
    root = tmp_path_factory.mktemp("nasty")
    directory = run(root / "run", *own_images(root / "data"), "options.probe=false")
    report(directory, [])
    return directory


def parsed(directory: Path) -> Parsed:
    return Parsed((directory / "report.html").read_text("utf-8"))


# --- the page -------------------------------------------------------------------------------------


def test_page_asks_for_nothing_from_elsewhere(digits: Path, nasty: Path) -> None:
    for directory in (digits, nasty):
        page = parsed(directory)
        for tag, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "action", "data"):
                target = attributes.get(name) or "#"
                assert target.startswith(("#", "data:")), (tag, name, target)
        style = page.scripts["style"]
        assert "@import" not in style and "url(" not in style
        assert not re.search(r"https?:", page.scripts["script"])
        policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
        assert policy is not None and policy.startswith("default-src 'none';")


def test_names_are_text_wherever_they_stand(nasty: Path) -> None:
    page = parsed(nasty)
    assert page.data["classes"] == sorted(NASTY_CLASSES)
    assert all(NASTY_FILE in path for path in page.data["rows"]["path"])
    tags = Counter(tag for tag, _ in page.elements)
    assert tags["b"] == tags["i"] == 0
    assert all("onclick" not in attributes for _, attributes in page.elements)
    sheets = {name for name in page.scripts if re.fullmatch(r"(pictures|neighbours)-\d+", name)}
    assert set(page.scripts) == {"style", "data", "script"} | sheets
    assert tags["script"] == 2 + len(sheets)
    assert "alert" not in page.scripts["script"] and "猫" in page.said  # in the heat map


def test_paths_and_reasons_are_text_too() -> None:
    found = findings(np.eye(2), [0, 1])
    for key in ("run", "dataset", "method"):
        found.about[key] = f"<b>{key}</b> &amp;"
    said, notice = estimates(found), "<b>notice</b> &lt;"
    page = Parsed(build_page(Run(found, [], None, [notice]), said, None, 5))
    assert all(tag != "b" for tag, _ in page.elements)
    for text in ("<b>run</b> &amp;", "<b>dataset</b> &amp;", "<b>method</b> &amp;", notice):
        assert text in page.said


def test_rows_are_the_table_s_most_suspicious(digits: Path) -> None:
    found = Findings.read(digits)
    assert found is not None
    page = page_of(found, top=40)
    table = found.table.to_pandas().sort_values("rank").head(40)
    rows = page.data["rows"]
    for name, column in {
        "index": "index",
        "given": "given",
        "suggested": "suggested",
        "rank": "rank",
    }.items():
        assert rows[name] == table[column].tolist()
    np.testing.assert_allclose(rows["given_prob"], table["given_prob"], atol=1e-4)
    labels = found.arrays["labels"]
    cells: dict[int, int] = {}
    for near, expected in zip(rows["near"], table["neighbours"], strict=True):
        assert [label for _, label in near] == [labels[j] for j in expected[:5]]
        for (cell, _), sample in zip(near, expected, strict=False):
            assert cells.setdefault(cell, sample) == sample  # one cell, one sample
    assert "The other 260 are in labels.csv" in page.said


def test_page_says_what_was_estimated(digits: Path) -> None:
    metrics = json.loads((digits / "labels_metrics.json").read_text("utf-8"))
    said = parsed(digits).said
    rate = metrics["estimates"]["noise_rate"]
    # a belief that is undecided measures nothing, and its numbers are not shown as if it did
    assert (
        f"Labels estimated wrong unknown {rate['estimate']:.1%} by the belief, which is no" in said
    )
    assert f"{rate['low']:.1%} to {rate['high']:.1%}" not in said
    assert "The belief is no measurement yet, and this is none." in said
    assert f"in truth {metrics['estimates']['noise_rate_true']:.1%}" in said
    for name, row in metrics["detection"].items():
        assert name in said
        told = f"{row['auroc']:.4f}" if "auroc" in row else row["unavailable"]
        assert told in said


def test_the_page_shows_memorisation_where_it_is_measured(digits: Path, nasty: Path) -> None:
    for directory, shown in ((digits, True), (nasty, False)):
        text = (directory / "report.html").read_text("utf-8")
        assert ("measured on images it never learns" in text) == shown
        assert ("memorisation over epochs" in text) == shown  # the last line of the plot
    assert json.loads((digits / "results.json").read_text("utf-8"))["memorisation"] is not None


def test_an_estimate_that_is_one_is_shown_with_its_interval() -> None:
    belief = np.eye(2)[[0, 1] * 20] * 0.98 + 0.01
    found = findings(belief, [0, 1] * 15 + [1, 0] * 5)
    rate = estimates(found)["noise_rate"]
    said = page_of(found).said
    assert (
        f"Labels estimated wrong {rate['estimate']:.1%} 95% interval {rate['low']:.1%} to" in said
    )
    assert "no measurement" not in said


def test_every_plot_is_well_formed_and_every_id_unique(digits: Path, nasty: Path) -> None:
    for directory in (digits, nasty):
        text = (directory / "report.html").read_text("utf-8")
        figures = re.findall(r"<svg.*?</svg>", text, flags=re.S)
        assert len(figures) == 4
        for figure in figures:
            ElementTree.fromstring(figure)
            assert not re.search("#0[1-6]0[1-6]0[1-6]", figure)  # every colour is the page's
    cells = [a["id"] for _, a in parsed(digits).elements if (a.get("id") or "").startswith("cell-")]
    assert len(cells) == len(set(cells)) == 100
    drawn = (
        "g",
        "path",
        "clipPath",
        "rect",
        "use",
    )  # matplotlib names its own alike in every figure
    ids = Counter(a["id"] for t, a in parsed(digits).elements if "id" in a and t not in drawn)
    assert max(ids.values()) == 1


def test_controls_have_names(digits: Path) -> None:
    text = (digits / "report.html").read_text("utf-8")
    for select in re.findall(r"<select[^>]*>", text) + re.findall(r"<input[^>]*>", text):
        before = text[: text.index(select)]
        assert before.rindex("<label") > max(before.rfind("</label>"), 0), select
    assert '<html lang="en">' in text


def test_a_heat_map_of_many_classes_is_one_picture() -> None:
    figure = transition_plot(np.full((40, 40), 1 / 40), [f"$class_{k}$\n<b>" for k in range(40)])
    root = ElementTree.fromstring(figure)
    assert figure.count('id="cell-') == 0
    images = root.findall(".//{http://www.w3.org/2000/svg}image")
    assert len(images) == 1
    assert images[0].attrib["{http://www.w3.org/1999/xlink}href"].startswith("data:image/png")
    assert "$class_0$ &lt;b&gt;" in figure


def test_plots_take_what_is_unknown() -> None:
    matrix = np.eye(3)
    matrix[2] = np.nan
    ElementTree.fromstring(transition_plot(matrix, list("abc")))
    ElementTree.fromstring(curves_plot([1], [("a", [None], "#010101", "-")]))
    diagram = {"accuracy": [None, 0.5], "confidence": [None, 0.7], "count": [0, 4]}
    ElementTree.fromstring(reliability_plot(diagram))


# --- sprite sheets --------------------------------------------------------------------------------


def cells(sheets: Sheets, count: int) -> list[np.ndarray]:
    """The pictures, cut out as the page's script does."""
    found = []
    layout = sheets.layout()
    for number in range(count):
        content = sheets.contents[number // layout["perSheet"]]
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
        place = number % layout["perSheet"]
        x, y = place % layout["columns"] * sheets.pitch, place // layout["columns"] * sheets.pitch
        found.append(pixels[y : y + sheets.side, x : x + sheets.side])
    return found


def test_small_pictures_are_kept_exactly() -> None:
    images = torch.randint(0, 256, (400, 1, 8, 8), dtype=torch.uint8)
    index = np.random.default_rng(0).permutation(400)[:300]
    sheets = sprite_sheets(Pictures([images]), index, 96)
    assert sheets.side == 8 and sheets.type == "image/png" and len(sheets.contents) == 2
    for cell, i in zip(cells(sheets, 300), index, strict=True):
        np.testing.assert_array_equal(cell, images[i, 0])


def test_pictures_do_not_colour_their_neighbours() -> None:
    images = torch.zeros(SHEET + 3, 3, 30, 30, dtype=torch.uint8)
    images[::2] = 255
    for i, cell in enumerate(
        cells(sprite_sheets(Pictures([images]), np.arange(SHEET + 3), 96), SHEET + 3)
    ):
        assert cell.shape == (30, 30, 3)
        assert abs(cell.astype(int) - int(images[i, 0, 0, 0])).max() <= 2


def test_large_pictures_are_made_smaller() -> None:
    images = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    images[1, 0] = 200
    sheets = sprite_sheets(Pictures([images]), np.array([1, 0]), 48)
    assert sheets.side == 48
    assert abs(cells(sheets, 1)[0].astype(int) - [200, 0, 0]).max() <= 3


def test_files_that_are_gone_are_listed_as_missing(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 40)
    picture(tmp_path / "c.png", 90)
    files = ImageFiles(["a.png", "b.png", "c.png"], tmp_path, 64)
    sheets = sprite_sheets(Pictures([files]), np.array([2, 1, 0]), 24)
    assert sheets.missing == [1]
    assert [int(cell.mean().round()) for cell in cells(sheets, 3)] == [90, 0, 40]
    (tmp_path / "c.png").unlink()
    many = ImageFiles(["a.png"] * 270 + ["c.png"], tmp_path, 64)
    assert sprite_sheets(Pictures([many]), np.arange(271), 8).missing == [
        270
    ]  # in the second sheet
    nothing = sprite_sheets(None, np.array([2, 1, 0]), 24)
    assert nothing.missing == [0, 1, 2] and nothing.contents == []


# --- what a run may look like ---------------------------------------------------------------------


def test_the_page_says_how_far_annotators_agree() -> None:
    found = findings([[0.9, 0.1], [0.2, 0.8]], [0, 1])
    assert "Annotators agree" not in page_of(found).said
    found.arrays["votes"] = np.array([[3, 0], [1, 2]], np.float32)
    said = page_of(found).said
    assert "Annotators agree 66.7% of pairs of votes on an image, Fleiss' kappa 0.25" in said
    assert "50.0% of 2 images unanimous, 3.0 votes each" in said


def test_no_disputed_label() -> None:
    page = page_of(findings(np.eye(3) * 0.7 + 0.1, [0, 1, 2], clean=[0, 1, 2]))
    assert "No label is disputed" in page.said and "all 3 samples that the run saw" in page.said
    assert "Which ranking to trust" not in page.said


def test_the_page_says_by_what_it_ranks() -> None:
    page = page_of(findings([[0.9, 0.1], [0.2, 0.8]], [0, 0], clean=[0, 1]))
    assert "Ordered by the run's final belief in the given label" in page.said
    assert "in the order of the first ranking, “final belief”" in page.said


def test_no_sample_visited() -> None:
    page = page_of(findings(np.eye(2), [0, 1], visits=[0, 0], clean=[0, 0]))
    assert "2 never seen" in page.said and "nan" not in page.said


def test_one_class_only() -> None:
    page = page_of(findings(np.ones((3, 1)), [0, 0, 0], clean=[0, 0, 0]))
    assert page.data["rows"]["suggested"] == [0, 0, 0]
    two = page_of(findings([[0.9, 0.1], [0.8, 0.2]], [0, 0]))  # the other class has no sample
    assert two.data["classes"] == ["0", "1"]


def test_noisy_test_labels_are_said_to_be() -> None:
    test = np.array([[0.9, 0.1]] * 8 + [[0.1, 0.9]] * 2)
    given, kind = [0, 1] * 7 + [1, 0] * 2, {"test_labels": [0] * 10, "test_kind": "noisy"}
    found = findings([[0.99, 0.01], [0.01, 0.99]] * 9, given, test=test, **kind)  # type: ignore[arg-type]
    said = page_of(found).said
    assert "Test accuracy on clean labels, estimated" in said
    assert "measured 80.0% on noisy labels" in said
    undecided = findings([[0.7, 0.3], [0.3, 0.7]] * 9, given, test=test, **kind)  # type: ignore[arg-type]
    said = page_of(undecided).said
    assert "Test accuracy on noisy labels 80.0% 10 images, whose labels are not known" in said
    assert "clean labels, estimated" not in said


def test_images_that_are_gone_leave_the_rest(nasty: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(nasty, directory)
    config = (directory / "config.yaml").read_text("utf-8")
    root = Path(re.search(r"root: (.*)", config)[1])  # type: ignore[index]
    moved = tmp_path / "data"
    shutil.copytree(root, moved)
    gone = sorted((moved / "images").iterdir())[:40]
    for path in gone:
        path.unlink()
    report(directory, [f"data.root={moved}"])
    page = parsed(directory)
    assert "pictures are shown if their files exist" in page.said
    rows, missing = page.data["rows"], page.data["sheets"]["pictures"]["missing"]
    names = {f"images/{path.name}" for path in gone}
    assert {rows["path"][cell] for cell in missing} == names & set(rows["path"])
    assert 0 < len(missing) < len(rows["path"])

    shutil.rmtree(moved)
    report(directory, [f"data.root={moved}"])
    page = parsed(directory)
    assert len(page.data["sheets"]["pictures"]["missing"]) == len(rows["path"])


def test_other_images_than_the_run_s_are_not_shown(digits: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    found = Findings.read(directory)
    assert found is not None
    Findings(found.table, found.arrays, {**found.about, "data_sha256": "1" * 64}).write(directory)
    report(directory, [])
    page = parsed(directory)
    assert "The images: those in data.root=" in page.said
    assert "no longer those that the run was trained on; no pictures are shown" in page.said
    assert len(page.data["sheets"]["pictures"]["missing"]) == 300


def test_a_table_of_another_version_is_made_anew(digits: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    found = Findings.read(directory)
    assert found is not None
    name, column = "given_prob", pyarrow.array(np.full(300, 0.5, np.float32))
    place = found.table.schema.get_field_index(name)
    older = found.table.set_column(place, name, column)
    Findings(older, found.arrays, {**found.about, "format": FORMAT - 1}).write(directory)
    assert Findings.read(directory) is None
    report(directory, [])
    again = Findings.read(directory)
    assert again is not None and again.table["given_prob"] == found.table["given_prob"]


def test_the_terminal_says_what_the_page_notes(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    lines = (directory / "metrics.jsonl").read_text().splitlines(keepends=True)
    config = (directory / "config.yaml").read_text()
    (directory / "config.yaml").write_text(config.replace("epochs: 3", "epochs: 5", 1))
    assert len(lines) == 3
    assert main([f"run={directory}"]) == 0
    notice = "The run is not finished: 3 of 5 epochs."
    assert notice in capsys.readouterr().out and notice in parsed(directory).said


def test_a_run_without_checkpoint_has_what_training_wrote(digits: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    for path in directory.glob("checkpoint*"):
        path.unlink()
    before = (directory / "labels.parquet").read_bytes()
    report(directory, [])
    assert (directory / "labels.parquet").read_bytes() == before
    (directory / "pred_probs.npz").unlink()
    with pytest.raises(ValueError, match=r"is finished, but its checkpoint\.pt is gone"):
        report(directory, [])


def test_findings_of_an_earlier_epoch_are_made_anew(digits: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    found = Findings.read(directory)
    assert found is not None
    Findings(found.table, found.arrays, {**found.about, "epoch": 1}).write(directory)
    metrics = report(directory, [])
    assert metrics["about"]["epoch"] == 3
    again = Findings.read(directory)
    assert again is not None and again.table.equals(found.table)


def test_a_run_that_is_past_its_checkpoint_says_so(digits: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    metrics = directory / "metrics.jsonl"
    *_, last = metrics.read_text("utf-8").splitlines()
    with metrics.open("a", encoding="utf-8") as file:
        file.write(last.replace('"epoch": 3', '"epoch": 4') + "\n")
    (notice,) = load_run(directory, []).notices
    assert "went on to epoch 4, but it has no later checkpoint" in notice
    assert "after epoch 3" in notice
    for path in directory.glob("checkpoint*"):
        path.unlink()
    (notice,) = load_run(directory, []).notices
    assert "has no checkpoint any more" in notice


def test_metrics_are_strict_json_without_clean_labels_too(nasty: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = (nasty / "labels_metrics.json").read_text("utf-8")
    metrics = json.loads(text, parse_constant=refuse)
    assert metrics["detection"] is None and "noise_rate_true" not in metrics["estimates"]
    assert len(metrics["estimates"]["transition"]) == 3


# --- the command ----------------------------------------------------------------------------------


def test_command_writes_all_files(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = tmp_path / "run"
    shutil.copytree(digits, directory)
    for name in ("report.html", "labels.csv", "labels.parquet", "pred_probs.npz"):
        (directory / name).unlink()
    assert main([f"run={directory}", "top=12"]) == 0
    assert len(parsed(directory).data["rows"]["index"]) == 12
    assert (directory / "labels.csv").exists() and (directory / "pred_probs.npz").exists()
    told = capsys.readouterr().out
    assert "of 300 labels are disputed" in told
    assert "estimated wrong: unknown (" in told and "are no measurement" in " ".join(told.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run=missing"], "run=missing: not a run directory"),
        (["top=3"], "give one run=DIR, got 0; "),
        (["rum=a"], "give one run=DIR, got 0 in 'rum=a'; "),
        (["run=a", "run=b"], "give one run=DIR, got 2"),
        (["run={digits}", "top=0"], "top=0: expected how many"),
        (["run={digits}", "top=all"], "top=all: expected how many"),
        (["run={digits}", "epochs=4"], "epochs: cannot differ from the run's"),
    ],
)
def test_mistakes_are_answered(
    arguments: list[str], message: str, digits: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([a.format(digits=digits) for a in arguments]) == 2
    assert message in capsys.readouterr().err


# --- in a browser ---------------------------------------------------------------------------------

QUIET = (  # nothing but the page is loaded
    *("disable-gpu", "disable-quic", "no-first-run", "disable-background-networking"),
    *("disable-component-update", "disable-sync"),
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium; its downloads go to `browser.downloads`."""
    pytest.importorskip("selenium", reason="needs selenium: pip install selenium")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver_path = shutil.which("chromedriver")
    if binary is None or driver_path is None:
        pytest.skip("needs Chromium and its driver, e.g. apt-get install chromium chromium-driver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = Options()
    options.binary_location = binary
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", *QUIET):
        options.add_argument(f"--{argument}")
    options.add_argument("--window-size=1280,900")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(driver_path))
    driver.downloads = downloads  # type: ignore[attr-defined]
    yield driver
    driver.quit()


class Shown:
    """A report in the browser."""

    def __init__(self, browser: Any, directory: Path):
        self.browser = browser
        browser.get((directory / "report.html").as_uri())
        self.script("localStorage.clear()")
        browser.refresh()
        self.script("document.getElementById('gallery').scrollIntoView()")
        self.data = parsed(directory).data
        self.wait(lambda: len(self.cards()) > 8)

    def script(self, code: str, *arguments: Any) -> Any:
        return self.browser.execute_script(code, *arguments)

    def all(self, selector: str) -> list[Any]:
        return self.browser.find_elements("css selector", selector)  # type: ignore[no-any-return]

    def cards(self) -> list[Any]:
        """The cards in the document, in reading order."""
        places = "[...document.querySelectorAll('.card')].sort((a, b) => a.ariaPosInSet - b.ariaPosInSet)"
        return self.script(f"return {places}")  # type: ignore[no-any-return]

    def set_class(self, label: int) -> None:
        """Choose a class in the list that has the focus."""
        select = self.script("return document.activeElement")
        assert select.tag_name == "select"
        self.script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('change'))",
            select,
            str(label),
        )

    def choose(self, control: str, value: object) -> None:
        self.script(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('change'))",
            control,
            str(value),
        )

    def press(self, *keys: str) -> None:
        from selenium.webdriver import ActionChains

        for key in keys:
            ActionChains(self.browser).send_keys(key).perform()

    def marks(self) -> dict[str, list[Any]]:
        store = f"noisybsd-review-{self.data['sha256']}"
        return json.loads(self.script("return localStorage.getItem(arguments[0])", store) or "{}")  # type: ignore[no-any-return]

    def wait(self, condition: Callable[[], Any]) -> Any:
        for _ in range(100):
            if found := condition():
                return found
            time.sleep(0.05)
        raise AssertionError("waited in vain")

    def download(self) -> Path:
        for path in self.browser.downloads.iterdir():
            path.unlink()
        self.browser.find_element("id", "download").click()
        return self.wait(lambda: next(self.browser.downloads.glob("*.csv"), None))  # type: ignore[no-any-return]


@pytest.mark.slow
def test_filter_mark_download_apply(browser: Any, digits: Path, tmp_path: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    shown = Shown(browser, digits)
    rows = shown.data["rows"]
    # by class
    given = Counter(rows["given"]).most_common(1)[0][0]
    expected = [i for i, label in zip(rows["index"], rows["given"], strict=True) if label == given]
    shown.choose("given", given)
    assert f"{len(expected)} of 300" in browser.find_element("id", "count").text
    assert {card.find_element("css selector", ".given").text for card in shown.cards()} == {
        shown.data["classes"][given]
    }
    # one with the mouse, two with the keys; the second gets a label of its own
    shown.cards()[0].find_element("css selector", ".marks .right").click()
    shown.cards()[1].click()
    shown.press("r")
    third = shown.script("return document.activeElement.getAttribute('aria-posinset')")
    assert third == "3"  # marking goes on to the next
    shown.press("u", Keys.ARROW_LEFT, Keys.ARROW_LEFT, "l")
    other = (given + 5) % 10
    shown.set_class(other)
    first, second, third = expected[:3]
    marks = {
        str(first): ["right", given],
        str(second): ["wrong", other],
        str(third): ["unsure", given],
    }
    assert shown.marks() == marks
    assert browser.find_element("id", "marked").text == "3 decided"
    # they outlast the page
    browser.refresh()
    assert browser.find_element("id", "marked").text == "3 decided"
    shown.choose("decision", "wrong")
    assert [card.get_attribute("data-mark") for card in shown.cards()] == ["wrong"]
    # download and apply
    path = shown.download()
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    found = {int(line["index"]): (line["decision"], int(line["label"])) for line in lines}
    assert found == {first: ("right", given), second: ("wrong", other), third: ("unsure", given)}
    out = tmp_path / "corrected.csv"
    assert data(["apply-review", f"run={digits}", f"review={path}", f"out={out}"]) == 0
    with out.open() as file:
        corrected = {int(line["index"]): int(line["label"]) for line in csv.DictReader(file)}
    labels = Findings.read(digits).arrays["labels"]  # type: ignore[union-attr]
    assert {i: corrected[i] for i in range(300) if corrected[i] != labels[i]} == {second: other}


@pytest.mark.slow
def test_page_is_silent_and_offline(browser: Any, digits: Path) -> None:
    browser.get_log("browser")
    shown = Shown(browser, digits)
    for control in ("given", "suggested"):
        shown.choose(control, 1)
    shown.choose("sort", "margin")
    browser.find_element("id", "all").click()
    browser.find_element("id", "theme").click()
    assert shown.script("return performance.getEntriesByType('resource').length") == 0
    assert browser.get_log("browser") == []
    assert "300 of 300" in browser.find_element("id", "count").text


@pytest.mark.slow
def test_sorting_follows_the_column(browser: Any, digits: Path) -> None:
    shown = Shown(browser, digits)
    rows = shown.data["rows"]
    for order, column, sign in (
        ("confidence", "suggested_prob", -1),
        ("margin", "margin", 1),
        ("index", "index", 1),
    ):
        shown.choose("sort", order)
        best = sorted(range(300), key=lambda i: sign * rows[column][i])  # stable, as by suspicion
        for card, row in zip(shown.cards()[:6], best, strict=False):
            assert f"rank {rows['rank'][row]}:" in card.get_attribute("aria-label")


@pytest.mark.slow
def test_only_cards_in_view_exist_and_pictures_are_right(browser: Any, digits: Path) -> None:
    shown = Shown(browser, digits)
    shown.script("scrollTo(0, document.getElementById('cards').getBoundingClientRect().top + 3000)")
    pixels = (
        "const c = arguments[0].querySelector('canvas.picture');"
        "return [...c.getContext('2d').getImageData(0, 0, 8, 8).data].filter((_, i) => i % 4 == 0)"
    )
    from noisybsd.data.dataset import load_dataset
    from noisybsd.engine.saved import load_run_config

    config = load_run_config(digits, [])
    images = load_dataset(config.data, config.noise, config.seed).train.images
    assert isinstance(images, torch.Tensor)
    last = "return Math.max(...[...document.querySelectorAll('.card')].map((c) => c.ariaPosInSet))"
    shown.wait(lambda: shown.script(last) > 30)
    assert len(shown.cards()) < 60
    for card in shown.cards()[-4:]:
        rank = int(re.match(r"rank (\d+):", card.get_attribute("aria-label"))[1])  # type: ignore[index]
        index = shown.data["rows"]["index"][rank - 1]
        expected = images[index].flatten().tolist()
        shown.wait(lambda card=card, expected=expected: shown.script(pixels, card) == expected)


@pytest.mark.slow
def test_hostile_names_are_only_read(browser: Any, nasty: Path) -> None:
    shown = Shown(browser, nasty)
    assert not shown.all("#cards b[onclick], #cards i[näme], .card script")
    classes = sorted(NASTY_CLASSES)
    names = {
        element.get_property("textContent") for element in shown.all(".labels b:first-of-type")
    }
    assert names and names <= set(classes)
    chosen = []
    for row, card in enumerate(shown.cards()[:8]):
        card.find_element("css selector", ".marks .wrong").click()
        chosen.append(shown.data["rows"]["suggested"][row])
        if chosen[-1] == shown.data["rows"]["given"][row]:  # then the class is asked for
            chosen[-1] = (chosen[-1] + 1) % 3
            shown.set_class(chosen[-1])
    lines = list(csv.DictReader(io.StringIO(shown.download().read_text("utf-8"), newline="")))
    rows = shown.data["rows"]
    assert len(lines) == 8
    for row, line in enumerate(lines):
        assert line["path"] == rows["path"][row] and NASTY_FILE in line["path"]
        assert line["given_name"] == classes[rows["given"][row]]
        assert line["label_name"] == classes[chosen[row]]
    quoted = NASTY_CLASSES[0]
    assert any(quoted in (line["given_name"], line["label_name"]) for line in lines)


@pytest.mark.slow
def test_a_cell_of_the_heat_map_shows_its_samples(browser: Any, digits: Path) -> None:
    shown = Shown(browser, digits)
    rows = shown.data["rows"]
    pairs = Counter(zip(rows["suggested"], rows["given"], strict=True))
    (believed, given), count = pairs.most_common(1)[0]
    cell = shown.all(f"#cell-{believed}-{given}.link")[0]
    shown.script("arguments[0].dispatchEvent(new Event('click'))", cell)
    assert f"{count} of 300" in browser.find_element("id", "count").text


def row_of(shown: Shown, disputed: bool) -> Any:
    """A card in view whose label the run disputes, or does not."""
    rows = shown.data["rows"]
    for card in shown.cards():
        rank = int(re.match(r"rank (\d+):", card.get_attribute("aria-label"))[1])  # type: ignore[index]
        row = rows["rank"].index(rank)
        if (rows["given"][row] != rows["suggested"][row]) == disputed:
            return row, card
    raise AssertionError("no such card in view")


@pytest.mark.slow
def test_a_wrong_label_without_a_suggestion_asks_for_its_class(
    browser: Any, digits: Path, tmp_path: Path
) -> None:
    shown = Shown(browser, digits)
    rows = shown.data["rows"]
    shown.choose("sort", "agreement")  # most agree last
    shown.script("scrollTo(0, document.body.scrollHeight)")
    time.sleep(0.3)
    row, card = row_of(shown, disputed=False)
    index, given = rows["index"][row], rows["given"][row]
    shown.script("arguments[0].scrollIntoView({block: 'center'})", card)
    card.find_element("css selector", ".marks .wrong").click()
    assert shown.marks() == {str(index): ["wrong", None]}
    assert browser.find_element("id", "marked").text == "1 decided, 1 without a class"
    # it is asked for at once, and the given class is none of the choices
    select = shown.script("return document.activeElement")
    assert select.tag_name == "select" and select.get_property("value") == ""
    values = [option.get_property("value") for option in shown.all(f"#label-{row} option")]
    assert sorted(values) == sorted({"", *map(str, range(10))} - {str(given)})
    # and before anything is downloaded
    for path in browser.downloads.iterdir():
        path.unlink()
    browser.find_element("id", "download").click()
    assert browser.find_element("id", "asked").is_displayed()
    assert "1 of 300" in browser.find_element("id", "count").text
    assert not list(browser.downloads.glob("*.csv"))
    shown.set_class((given + 2) % 10)
    assert shown.marks() == {str(index): ["wrong", (given + 2) % 10]}
    line = next(csv.DictReader(io.StringIO(shown.download().read_text("utf-8"), newline="")))
    assert (int(line["index"]), int(line["label"])) == (index, (given + 2) % 10)


@pytest.mark.slow
def test_decisions_of_earlier_pages_that_lack_a_class_are_asked_for(
    browser: Any, digits: Path
) -> None:
    shown = Shown(browser, digits)
    index, given = (shown.data["rows"][name][3] for name in ("index", "given"))
    store = f"noisybsd-review-{shown.data['sha256']}"
    marks = json.dumps({str(index): ["wrong", given]})
    shown.script("localStorage.setItem(arguments[0], arguments[1])", store, marks)
    browser.refresh()
    assert browser.find_element("id", "marked").text == "1 decided, 1 without a class"
    shown.choose("decision", "open")
    assert len(shown.cards()) == 1 and "its class is to be chosen" in shown.cards()[
        0
    ].get_attribute("aria-label")


@pytest.mark.slow
def test_a_picture_is_enlarged_from_its_file_which_is_linked(browser: Any, nasty: Path) -> None:
    shown = Shown(browser, nasty)
    card = shown.cards()[0]
    row = shown.data["rows"]["rank"].index(1)
    card.find_element("css selector", ".picture").click()
    image = shown.wait(lambda: next(iter(shown.all("#large img")), None))
    config = (nasty / "config.yaml").read_text("utf-8")
    root = Path(re.search(r"root: (.*)", config)[1])  # type: ignore[index]
    file = root / shown.data["rows"]["path"][row]
    assert (
        shown.script("return arguments[0].naturalWidth", image) == 24
    )  # the file's, not the page's
    for link in shown.all("#large a"):
        address = urllib.parse.unquote(link.get_property("href"))
        assert Path(address.removeprefix("file://")) == file and file.exists()
    shown.press("\ue00c")  # Escape
    assert not shown.script("return document.getElementById('large').open")
    # by the keyboard
    shown.press("\ue007")
    assert shown.script("return document.getElementById('large').open")
    shown.press("\ue00c")


@pytest.mark.slow
def test_a_picture_without_a_file_is_enlarged_too(browser: Any, digits: Path) -> None:
    shown = Shown(browser, digits)
    shown.cards()[0].find_element("css selector", ".picture").click()
    canvas = shown.all("#large canvas")[0]
    assert canvas.size["width"] > 400 and not shown.all("#large a") and not shown.all("#large img")


@pytest.mark.slow
def test_held_out_images_can_be_looked_at_alone(browser: Any, nasty: Path) -> None:
    shown = Shown(browser, nasty)
    held = sum(shown.data["rows"]["held_out"])
    assert 0 < held < 90 and browser.find_element("id", "part").is_displayed()
    shown.choose("part", "held")
    assert f"{held} of 90" in browser.find_element("id", "count").text
    assert all(
        "held out" in card.find_element("css selector", ".facts").text for card in shown.cards()
    )
