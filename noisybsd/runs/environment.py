"""The device of a run, and what results.json says of machine and versions."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import noisybsd
from noisybsd import distributed
from noisybsd.config import Config
from noisybsd.errors import UserError, first_line
from noisybsd.files import PACKAGE

log = logging.getLogger("noisybsd")

_PACKAGES = ("torch", "torchvision", "kornia", "faiss-gpu", "faiss-cpu", "numpy", "scikit-learn")


def pick_device(config: Config) -> torch.device:
    """The device that `device` names, made ready; on many processes, this one's own GPU.

    Raises:
        UserError: `device=cuda` without a usable GPU, or a GPU that refuses to work.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError(
            f"device=cuda: torch {torch.__version__} finds no usable GPU here ({_why_no_gpu()}); "
            "valid: cpu, auto"
        )
    if config.device == "cpu" or not available:
        if config.precision == "bf16" and _imitates_bf16():
            log.warning(
                "precision=bf16: this CPU has no instructions for bf16 and imitates it, which is slower; "
                "use precision=fp32"
            )
        return torch.device("cpu")
    device = distributed.own_device(torch.device("cuda"))
    _try_out(device)
    torch.backends.cudnn.benchmark = True  # shapes are static
    torch.set_float32_matmul_precision("high")
    return device


def _imitates_bf16() -> bool:
    """Whether this is an x86 CPU without AVX512-BF16 and AMX; False where torch does not tell."""
    if not hasattr(torch.cpu, "get_capabilities"):  # of torch 2.11
        return False
    has = torch.cpu.get_capabilities()
    return has.get("architecture") == "x86_64" and not (has["avx512_bf16"] or has["amx_bf16"])


def _why_no_gpu() -> str:
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a torch without CUDA
        return " ".join(str(error).split())
    return "CUDA starts, but shows no device; see CUDA_VISIBLE_DEVICES"


def _try_out(device: torch.device) -> None:
    """Compute something: a GPU that is listed may be full, held by another process, or too old."""
    try:
        (torch.ones(1, device=device) + 1).item()
    except RuntimeError as error:
        reason = first_line(error)
        raise UserError(
            f"device={device.type}: the GPU refuses to work ({reason}). nvidia-smi shows whether other "
            "processes fill it or hold it for themselves: end them, choose another GPU with "
            "CUDA_VISIBLE_DEVICES, or use device=cpu"
        ) from None


def describe_environment(device: torch.device) -> dict[str, Any]:
    """device, hardware, versions and git_commit, for results.json."""
    return {
        "device": device.type,
        "hardware": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    found = {"noisybsd": noisybsd.__version__, "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout noisybsd runs from, `-dirty` if changed; None without a .git.

    NOISYBSD_COMMIT, if set, names it instead: for a copy of a checkout, which may be without its .git.
    """
    if named := os.environ.get("NOISYBSD_COMMIT"):
        return named
    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None


def _cpu_name() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    return f"{name}, {os.cpu_count()} cores"
