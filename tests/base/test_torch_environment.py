"""What torch reads from the environment: set before torch is loaded, unless the user has chosen."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lora_study.base.machine import CPUINFO
from lora_study.base.torch_environment import BRIEF, FEW, WAITING, torch_environment

GROW = """
import torch
from pathlib import Path
torch.set_num_threads(1)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
square = torch.ones(384, 384, dtype=torch.bfloat16)
torch.ones(300, 384, dtype=torch.bfloat16) @ square
before = resident()
for rows in range(1, 300):
    torch.ones(rows, 384, dtype=torch.bfloat16) @ square
print(resident() - before)
"""
SHOW = (
    "import json, sys; from lora_study import cli; cli.main([]); loaded = 'torch' in sys.modules;"
    "from lora_study.base.torch_environment import torch_environment; print(json.dumps([loaded, torch_environment()]))"
)


def said(script=SHOW, **chosen):
    environment = {name: value for name, value in os.environ.items() if name not in (*WAITING, *FEW)}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment | chosen, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_sets_everything_before_torch_is_loaded():
    assert said() == [False, {**BRIEF, "OMP_WAIT_POLICY": None, **FEW}]


@pytest.mark.parametrize("name", WAITING)
def test_how_the_user_has_threads_wait_stays(name):
    value = "passive" if name == "OMP_WAIT_POLICY" else "7"
    assert said(**{name: value}) == [False, dict.fromkeys(WAITING) | {name: value} | FEW]


@pytest.mark.parametrize("name", FEW)
def test_how_many_products_the_user_has_kept_stays(name):
    assert said(**{name: "7"}) == [False, {**BRIEF, "OMP_WAIT_POLICY": None, **FEW, name: "7"}]


@pytest.mark.skipif(
    not (Path(CPUINFO).exists() and "_bf16" in Path(CPUINFO).read_text()),
    reason="needs Linux and a processor with bf16, whose matrix products torch leaves to oneDNN",
)
def test_products_of_many_shapes_take_less_memory():
    """With torch's own settings each shape's product is kept, with its buffers."""
    fewer = {**FEW, "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}  # so that 300 shapes suffice to tell
    assert said(GROW, **fewer) < said(GROW) / 3


def test_a_record_says_what_was_set(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "123")
    monkeypatch.delenv("LRU_CACHE_CAPACITY", raising=False)
    found = torch_environment()
    assert found["GOMP_SPINCOUNT"] == "123"
    assert found["LRU_CACHE_CAPACITY"] is None
