"""Calibration on noisy labels: the fit against slow loops and known truth, and in a run from end to end."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.compared import assert_same, modules, outcome, rows, strict
from helpers.disturbed import interrupt, send
from torch import Tensor

import noisybsd
from noisybsd.config import load_config
from noisybsd.data.dataset import load_dataset
from noisybsd.engine.calibration import (
    PRIOR_DEVIATION,
    RANDOM,
    fit_temperature,
    temperature_of,
    transition,
)
from noisybsd.engine.export import Deployed, metadata
from noisybsd.engine.metrics import prediction_metrics
from noisybsd.engine.saved import load_run_config, load_trainer
from noisybsd.errors import UserError
from noisybsd.evaluate import main as evaluate
from noisybsd.report.review import apply_review
from noisybsd.runs.checkpoint import load_checkpoint
from noisybsd.train import main as train

Tiny = Callable[..., list[str]]
CALIBRATED = "data.calibration=0.25"

# --- the fit --------------------------------------------------------------------------------------


def problem(images: int, truth: float, noise: Tensor, seed: int = 0) -> tuple[Tensor, ...]:
    """Logits (M,K) that temperature `truth` makes exactly right, clean and noisy labels (M,)."""
    rng = torch.Generator().manual_seed(seed)
    honest = 4 * torch.randn(images, len(noise), generator=rng)
    clean = torch.multinomial(honest.softmax(dim=1), 1, generator=rng)[:, 0]
    noisy = torch.multinomial(noise[clean].float(), 1, generator=rng)[:, 0]
    return honest * truth, clean, noisy


def symmetric(rate: float, classes: int = 10) -> Tensor:
    return torch.eye(classes).double() * (1 - rate) + rate / classes


def pairflip(rate: float, classes: int = 10) -> Tensor:
    right = torch.eye(classes).double()
    return (1 - rate) * right + rate * right.roll(1, dims=1)


def test_the_noise_matrix_is_that_of_a_loop() -> None:
    rng = np.random.default_rng(0)
    belief, labels = rng.dirichlet(np.ones(4), 50), rng.integers(0, 3, 50)  # nothing is labelled 3
    belief[:, 2] = 0  # and nothing believed to be 2
    belief /= belief.sum(1, keepdims=True)
    expected = np.zeros((4, 4))
    for k in range(4):
        for g in range(4):
            share = np.mean([label == g for label in labels])
            total = sum(belief[i, k] for i in range(50))
            given = sum(belief[i, k] for i in range(50) if labels[i] == g)
            learned = given / total if total else share
            expected[k, g] = (1 - RANDOM) * learned + RANDOM * share
    found = transition(torch.from_numpy(belief), torch.from_numpy(labels))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1).numpy(), 1)


@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_temperature_is_that_of_a_loop(truth: float) -> None:
    noise = pairflip(0.3, classes=3)
    logits, _, noisy = problem(40, truth, noise)

    def objective(temperature: float) -> float:
        total = -(math.log(temperature) ** 2) / (2 * PRIOR_DEVIATION**2)
        for row, given in zip(logits.tolist(), noisy.tolist(), strict=True):
            powers = [math.exp(value / temperature) for value in row]
            explained = [
                power / sum(powers) * float(noise[k, given]) for k, power in enumerate(powers)
            ]
            total += math.log(sum(explained))
        return total

    best = max(np.geomspace(0.25, 10, 2000), key=objective)
    found = fit_temperature(logits, noisy, noise)
    assert abs(math.log(found / best)) < 0.01
    assert objective(found) == pytest.approx(objective(best), abs=1e-3)


@pytest.mark.parametrize("noise", [symmetric(0.4), symmetric(0.6), pairflip(0.4)])
@pytest.mark.parametrize("truth", [0.6, 2.0])
def test_noisy_labels_calibrate_like_clean_ones_where_plain_scaling_harms(
    noise: Tensor, truth: float
) -> None:
    logits, clean, noisy = problem(2000, truth, noise)
    tested, right, _ = problem(10_000, truth, noise, seed=1)

    def ece(temperature: float) -> float:
        return prediction_metrics(tested / temperature, right)["ece"]

    plain = fit_temperature(logits, noisy, torch.eye(10))
    ours, best = (
        fit_temperature(logits, noisy, noise),
        fit_temperature(logits, clean, torch.eye(10)),
    )
    assert ece(plain) > ece(1.0) + 0.1
    assert ece(ours) < ece(best) + 0.03 < ece(1.0)
    assert abs(math.log(ours / truth)) < 0.25


def test_labels_that_say_nothing_leave_the_temperature_at_one() -> None:
    logits, _, noisy = problem(500, 3.0, symmetric(1.0))
    assert fit_temperature(logits, noisy, symmetric(1.0)) == pytest.approx(1, abs=0.01)
    assert fit_temperature(logits[:0], noisy[:0], symmetric(0.2)) == pytest.approx(1, abs=0.01)
    one = fit_temperature(logits[:1], noisy[:1], symmetric(0.2))
    assert 0.5 < one < 2  # a single label moves it a little at most


def test_the_temperature_stays_in_its_bounds() -> None:
    logits = torch.tensor([[20.0, 0.0]]).repeat(200, 1)
    wrong = torch.ones(200, dtype=torch.long)
    assert fit_temperature(logits, wrong, symmetric(0.1, classes=2)) == 10
    right = torch.tensor([[0.1, 0.0]]).repeat(20_000, 1)
    assert fit_temperature(right, wrong.repeat(100) * 0, torch.eye(2)) == 0.25


# --- the images held out --------------------------------------------------------------------------


def test_the_images_to_calibrate_on_are_not_trained_on(tiny: Tiny) -> None:
    whole, some = (
        load_dataset(config.data, config.noise, config.seed)
        for config in (load_config(tiny()), load_config(tiny(CALIBRATED)))
    )
    assert whole.calibration is None and some.calibration is not None
    assert len(some.train) + len(some.calibration) == 128 and 24 <= len(some.calibration) <= 40
    both = [*zip(some.train.images, some.train.labels, strict=True)]
    both += zip(some.calibration.images, some.calibration.labels, strict=True)

    def key(images: object) -> list[bytes]:
        return sorted(image.numpy().tobytes() + bytes([label]) for image, label in images)  # type: ignore[attr-defined]

    assert key(both) == key(zip(whole.train.images, whole.train.labels, strict=True))
    assert (some.calibration.labels != some.calibration.clean_labels).any()  # the noisy ones
    assert whole.sha256 != some.sha256


def test_a_rule_without_a_belief_is_refused(tiny: Tiny) -> None:
    refused = (
        r"data\.calibration=0\.25 .* and method=ce keeps none: use method=bsd_plus or one of elr, "
    )
    with pytest.raises(UserError, match=refused) as caught:
        load_config(tiny("method=ce", CALIBRATED))
    able = (
        str(caught.value)
        .split("method=")[-1]
        .split(", or ")[0]
        .replace(" or one of", ",")
        .split(", ")
    )
    assert {load_config(tiny(f"method={name}", CALIBRATED)).method for name in able} == {*able}
    with pytest.raises(UserError, match=r"and method=bsd with targets=labels keeps none"):
        load_config(tiny("method=bsd", "targets=labels", CALIBRATED))


@pytest.mark.parametrize("of", ["train", "calibration"])
def test_a_review_goes_to_the_image_that_was_reviewed(tiny: Tiny, of: str) -> None:
    assert train(tiny(CALIBRATED, "epochs=1", "run.dir=run")) == 0
    config = load_run_config(Path("run"), [])
    data = load_dataset(config.data, config.noise, config.seed)
    split = getattr(data, of)
    wrong = int(np.flatnonzero(split.labels != split.clean_labels)[-1])
    given, clean = int(split.labels[wrong]), int(split.clean_labels[wrong])
    row = int(split.rows[wrong])
    assert data.samples.labels[row] == given
    Path("review.csv").write_text(
        "index,path,given,given_name,decision,label,label_name,data_sha256\n"
        f"{row},,{given},{given},wrong,{clean},{clean},{data.sha256}\n"
    )
    apply_review(config, Path("review.csv"), Path("labels.npy"))
    plain = load_config(tiny("data.limit=null"))
    before = load_dataset(plain.data, plain.noise, plain.seed).train
    after = np.load("labels.npy")
    (changed,) = np.flatnonzero(after != before.labels)
    assert torch.equal(before.images[changed], split.images[wrong]) and after[changed] == clean


# --- a run ----------------------------------------------------------------------------------------


def test_a_run_without_it_says_so_and_no_more(tiny: Tiny) -> None:
    assert train(tiny("run.dir=run")) == 0
    results = strict(Path("run/results.json").read_text())
    assert results["calibration_samples"] == 0 and results["temperature"] is None
    assert not any("temperature" in row or "uncalibrated_ece" in row for row in rows(Path("run")))


def test_all_that_tells_probabilities_tells_the_calibrated_ones(
    tiny: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path("run")
    assert train(tiny(CALIBRATED, "run.dir=run")) == 0
    results, (*earlier, last) = strict((run / "results.json").read_text()), rows(run)
    assert f"before calibration (T={last['temperature']:.2f}) " in capsys.readouterr().out
    log, count = (run / "log.txt").read_text(), results["calibration_samples"]
    assert log.count(f"data.calibration=0.25: holds out {count} images; with fewer than") == 1
    assert "evaluation images" not in log  # the test images are read before it begins
    assert f" calibration images: {count} of " in log
    assert not any("temperature" in row for row in earlier)
    assert results["calibration_samples"] + results["train_samples"] == 128
    trainer = load_trainer(run, load_run_config(run, []))
    assert trainer is not None
    for suffix, weights in (("", "last"), ("_ema", "average")):
        temperature = last[f"temperature{suffix}"]
        assert results[f"temperature{suffix}"] == temperature != 1
        network = trainer.networks()[suffix]
        assert network.temperature == temperature
        scaled, _, labels = trainer.predict_test(network)
        with torch.no_grad():
            raw = network.eval()(trainer.views.plain(trainer.test.images))[0]
        torch.testing.assert_close(raw / temperature, scaled)
        assert prediction_metrics(scaled, labels)["ece"] == last[f"test_ece{suffix}"]
        assert results[f"uncalibrated_ece{suffix}_last"] == pytest.approx(
            prediction_metrics(raw, labels)["ece"], abs=1e-6
        )
        # read back alone, and as the graph that is exported
        classifier = noisybsd.load(run, weights=weights, device="cpu")  # type: ignore[arg-type]
        images = trainer.test.images.permute(0, 2, 3, 1)
        found = classifier.predict(images.numpy()).probabilities
        np.testing.assert_allclose(found, scaled.softmax(1).numpy(), atol=1e-6)
        graph = Deployed(classifier).eval()(images)
        np.testing.assert_allclose(graph.numpy(), found, atol=1e-6)
        assert json.loads(metadata(classifier)["noisybsd"])["temperature"] == temperature
    assert evaluate(["run=run"]) == 0
    evaluation = strict((run / "evaluation.json").read_text())
    tested = {key: value for key, value in last.items() if key.startswith("test_")}
    assert tested == {key: value for key, value in evaluation.items() if key.startswith("test_")}


def test_an_interrupted_run_is_calibrated_alike(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tiny(CALIBRATED, "run.dir=whole")) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 8, send(signal.SIGTERM))
        assert train(tiny(CALIBRATED, "run.dir=parts")) == 143
    assert train(tiny(CALIBRATED, "run.dir=parts")) == 0
    assert_same(outcome(Path("parts")), outcome(Path("whole")))
    # and once more where all but the results was written
    Path("parts/results.json").unlink()
    assert train(tiny(CALIBRATED, "run.dir=parts")) == 0
    assert_same(outcome(Path("parts")), outcome(Path("whole")))


def test_a_run_made_longer_trains_on_uncalibrated_and_is_calibrated_anew(tiny: Tiny) -> None:
    assert train(tiny(CALIBRATED, "epochs=2", "run.dir=run")) == 0
    assert train(tiny(CALIBRATED, "epochs=4", "run.resume=run")) == 0
    calibrated = ["temperature" in row for row in rows(Path("run"))]
    assert calibrated == [False, True, False, True]
    # in between, no temperature holds
    state = load_checkpoint(Path("run/checkpoint.pt"))
    assert temperature_of(state, "_ema") == rows(Path("run"))[-1]["temperature_ema"]
    assert temperature_of({**state, "step": state["step"] + 1}, "_ema") == 1
    assert temperature_of({**state, "history": state["history"][:3]}, "_ema") == 1


def test_calibration_changes_nothing_of_the_training(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train(tiny(CALIBRATED, "run.dir=one")) == 0
    with monkeypatch.context() as patch:
        patch.setattr("noisybsd.engine.trainer.fit_temperature", lambda *_: 1.0)
        assert train(tiny(CALIBRATED, "run.dir=other")) == 0
    assert_same(modules(Path("one")), modules(Path("other")))


def test_probes_calibrate_where_there_are_enough(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("noisybsd.methods.bsd.Memorisation.EVERY", 3)
    monkeypatch.setattr("noisybsd.engine.trainer.ENOUGH", 20)
    assert train(tiny("run.dir=run")) == 0
    results, last = strict(Path("run/results.json").read_text()), rows(Path("run"))[-1]
    assert results["train_samples"] == 128 and 20 <= results["calibration_samples"] < 128 / 3
    assert results["temperature"] == last["temperature"] != 1
    trainer = load_trainer(Path("run"), load_run_config(Path("run"), []))
    assert trainer is not None and trainer.never_learned is not None
    probes = trainer.rule.never_learned()
    assert probes is not None
    assert trainer.never_learned.labels.tolist() == trainer.labels[probes].tolist()
    assert torch.equal(trainer.never_learned.images, trainer.dataset.train.images[probes])  # type: ignore[arg-type, index]
    assert train(tiny("options.probe=false", "run.dir=without")) == 0
    without = strict(Path("without/results.json").read_text())
    assert without["calibration_samples"] == 0 and without["temperature"] is None
