"""What is chosen by what the machine is."""

import subprocess

import pytest
import torch

from lora_study.base import machine
from lora_study.base.errors import ConfigError
from lora_study.base.machine import hardware, pick_device, pick_precision

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("maker", "flags", "chosen"),
    [
        ("GenuineIntel", "fma avx512f avx512_bf16 amx_bf16 amx_tile", "bf16-mixed"),
        ("GenuineIntel", "fma avx512f avx512_bf16 avx512_fp16", "32-true"),  # bf16 products take longer there
        ("GenuineIntel", "fma avx2", "32-true"),
        ("AuthenticAMD", "fma avx512f avx512_bf16", "bf16-mixed"),
        ("AuthenticAMD", "fma avx512f", "32-true"),
    ],
)
def test_auto_is_bf16_only_where_that_is_faster(maker, flags, chosen, monkeypatch, tmp_path):
    described = f"processor\t: 0\nvendor_id\t: {maker}\nmodel name\t: Some: CPU @ 2.30GHz\nflags\t\t: {flags}\n\n"
    other = "processor\t: 1\nvendor_id\t: Other\nmodel name\t: Another\nflags\t\t: none\n"
    (tmp_path / "cpuinfo").write_text(described + other)
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "cpuinfo")
    assert pick_precision("auto", CPU) == chosen
    assert hardware(CPU)["cpu"] == "Some: CPU @ 2.30GHz"


def test_a_checkout_of_which_nothing_is_known_is_not_called_clean(monkeypatch):
    def git(words, **_):
        if "status" in words:
            raise subprocess.TimeoutExpired(words, 10)
        return subprocess.CompletedProcess(words, 0, stdout=b"0123abc \xff\n")

    monkeypatch.setattr(subprocess, "run", git)
    found = machine.code_state()
    assert found["commit"].startswith("0123abc") and found["dirty"] is None


def test_each_process_has_a_gpu_of_its_own_and_none_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(kind, 2, local_rank=1) for kind in ("auto", "gpu")] == 2 * [torch.device("cuda", 1)]
    assert pick_device("cpu", 2, local_rank=1) == CPU
    with pytest.raises(ConfigError, match=r"train\.devices: 3 is not valid; this machine has 2 GPUs"):
        pick_device("gpu", 3)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_precision_that_was_asked_for_stays(precision):
    assert pick_precision(precision, CPU) == precision


def test_a_machine_that_describes_no_processor_computes_in_fp32(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CPUINFO", tmp_path / "missing")
    assert pick_precision("auto", CPU) == "32-true"
    assert hardware(CPU)["cpu"]
