"""A GPU that cannot be used is told of in a sentence, and the commit is known without a .git."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from noisybsd.config import load_config
from noisybsd.runs import environment
from noisybsd.train import main

TOO_OLD = (
    "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by "
    "downloading and installing a new version from the URL: … Alternatively, install a PyTorch version "
    "that has been compiled with your version of the CUDA driver."
)


def raises(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            RuntimeError(TOO_OLD),
            "driver on your system is too old (found version 11040). Please update",
        ),
        (
            RuntimeError("Found no NVIDIA driver on your system.\nInstall one"),
            "Found no NVIDIA driver",
        ),
        (AssertionError("Torch not compiled with CUDA enabled"), "Torch not compiled with CUDA"),
    ],
)
def test_no_usable_gpu_says_why(
    tiny: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    reason: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", raises(error))
    assert main(tiny("device=cuda", "run.dir=run")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("error: device=cuda: torch ")
    assert reason in said and said.endswith("valid: cpu, auto\n")


@pytest.mark.parametrize("device", ["cuda", "auto"])
@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError(
            "CUDA error: out of memory\nCUDA kernel errors might be reported later"
        ),
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 MiB. Process 7 has 79 GiB"
        ),
        torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
    ],
)
def test_a_gpu_that_another_process_fills(
    tiny: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    device: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", raises(error))
    assert main(tiny(f"device={device}", "run.dir=run")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert str(error).split("\n", 1)[0] in said and "other processes fill it" in said
    assert "CUDA_VISIBLE_DEVICES" in said and "device=cpu" in said


def test_the_cpu_is_used_without_a_look_at_the_gpu(
    tiny: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", raises(torch.OutOfMemoryError("full")))
    assert environment.pick_device(load_config(tiny("device=cpu"))) == torch.device("cpu")


def test_the_commit_of_a_copy_is_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "noisybsd")
    monkeypatch.delenv("NOISYBSD_COMMIT", raising=False)
    assert environment.git_commit() is None
    monkeypatch.setenv("NOISYBSD_COMMIT", "a" * 40)
    assert environment.git_commit() == "a" * 40

    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        person = ["-c", "user.name=n", "-c", "user.email=n@example.org"]
        subprocess.run(["git", *person, *arguments], cwd=tmp_path, check=True)
    assert environment.git_commit() == "a" * 40  # that .git may be of another tree
    monkeypatch.delenv("NOISYBSD_COMMIT")
    said = environment.git_commit()
    assert said is not None and said != "a" * 40


@pytest.mark.parametrize(
    ("has", "warns"),
    [
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, False),
        ({"architecture": "aarch64", "bf16": True}, False),
        (None, False),  # a torch that does not tell
    ],
)
def test_a_cpu_that_imitates_bf16_is_told_of(
    has: dict[str, Any] | None,
    warns: bool,
    tiny: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if has is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    monkeypatch.setattr(logging.getLogger("noisybsd"), "propagate", True)
    environment.pick_device(load_config(tiny("device=cpu", "precision=fp32")))
    assert not caplog.records
    environment.pick_device(load_config(tiny("device=cpu", "precision=bf16")))
    assert any("precision=fp32" in record.message for record in caplog.records) == warns
