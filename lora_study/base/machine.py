"""The machine: its device and precision, and where a result came from: code, versions, hardware, memory."""

import contextlib
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lora_study.base.errors import ConfigError, check
from lora_study.base.torch_environment import torch_environment

PACKAGES = ("lora-study", "torch", "transformers", "lightning", "datasets", "torchmetrics", "pandas", "numpy")
CPUINFO = "/proc/cpuinfo"  # Linux's description of each processor


def code_state() -> dict[str, Any]:
    """The commit of this package's checkout and whether files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return os.fsdecode(done.stdout).strip() if done.returncode == 0 else None

    # An installed copy may lie inside some other project's checkout, whose commit would say nothing about it.
    if git("ls-files", "--error-unmatch", "lora_study/base/machine.py") is None:
        return {"commit": None, "dirty": None}
    # Results are written while a study runs; they are not part of the code.
    changes = git("status", "--porcelain", "--", ".", ":!results")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def versions() -> dict[str, str | None]:
    """Versions of Python and of each package that affects results."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def hardware(device: torch.device) -> dict[str, Any]:
    """The processor, the accelerator and the memory a run had."""
    on_gpu = device.type == "cuda"
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_environment": torch_environment(),
        "memory_bytes": _total_memory(),
        "accelerator": torch.cuda.get_device_name(device) if on_gpu else device.type,
        "accelerator_memory_bytes": torch.cuda.get_device_properties(device).total_memory if on_gpu else None,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def faster_in_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than fp32 ones.

    A processor may have instructions for bf16 and gain nothing by them. Measured with torch's matrix products: Intel's
    matrix units (AMX) make them five times as fast as in fp32 and AMD's AVX-512 two and a half times, while Intel's
    AVX-512 takes 1.6 times as long for them.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    flags = _cpu_field("flags").split()
    return "amx_bf16" in flags or ("avx512_bf16" in flags and _cpu_field("vendor_id") == "AuthenticAMD")


def pick_device(accelerator: str, devices: int = 1, local_rank: int = 0) -> torch.device:
    """The device to compute on.

    Args:
        accelerator: As train.accelerator.
        devices: How many a run uses.
        local_rank: Which of them this process uses.

    Raises:
        ConfigError: there is none, or there are too few.
    """
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        there = torch.cuda.device_count()
        check(devices <= there, "train.devices", devices, f"this machine has {there} GPUs")
        return torch.device("cuda", local_rank)
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available() and devices == 1:
        return torch.device("mps")
    if accelerator in ("gpu", "mps"):
        raise ConfigError(f"train.accelerator: {accelerator!r} is not available on this machine; use auto or cpu")
    return torch.device("cpu")


def pick_precision(precision: str, device: torch.device) -> str:
    """Lightning's name of a precision, as train.precision; "auto" is bf16 where the device is faster in it.

    Raises:
        ConfigError: the device does not compute in it.
    """
    if precision == "auto":
        return "bf16-mixed" if faster_in_bf16(device) else "32-true"
    if precision == "16-mixed" and device.type == "cpu":
        raise ConfigError("train.precision: '16-mixed' needs a GPU and there is none; use auto, bf16-mixed or 32-true")
    return precision


class PeakMemory:
    """The peak of the memory in use since construction: on a GPU what torch allocated, else resident memory."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.kind = "cuda allocated" if device.type == "cuda" else "resident set"
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5")  # Linux: forget the peak so far

    def read(self) -> dict[str, Any]:
        """peak_bytes (None if the system does not report it) and what they count."""
        if self.device.type == "cuda":
            peak: int | None = torch.cuda.max_memory_allocated(self.device)
        else:
            peak = _status_bytes("VmHWM")
        return {"peak_bytes": peak, "kind": self.kind}


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _cpu_field(name: str) -> str:
    """What Linux says of the first processor; empty where it says nothing."""
    for line in _lines(CPUINFO):
        field, _, value = line.partition(":")
        if field.strip() == name:
            return value.strip()
    return ""


def _total_memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def _status_bytes(field: str) -> int | None:
    for line in _lines("/proc/self/status"):
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return None


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
