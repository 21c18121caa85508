"""How long threads wait for one another: set before torch is loaded, unless the user has chosen."""

import json
import os
import subprocess
import sys

import pytest

from lora_study.base.threads import BRIEF, CHOICES, waiting

SHOW = (
    "import json, sys; from lora_study import cli; cli.main([]); loaded = 'torch' in sys.modules;"
    "from lora_study.base.threads import waiting; print(json.dumps([loaded, waiting()]))"
)


def said(**chosen):
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    done = subprocess.run(
        [sys.executable, "-c", SHOW], env=environment | chosen, capture_output=True, text=True, check=True, timeout=60
    )
    return json.loads(done.stdout.splitlines()[-1])


def test_the_command_has_threads_wait_briefly_before_torch_is_loaded():
    assert said() == [False, {**BRIEF, "OMP_WAIT_POLICY": None}]


@pytest.mark.parametrize("name", CHOICES)
def test_what_the_user_chose_stays(name):
    value = "passive" if name == "OMP_WAIT_POLICY" else "7"
    assert said(**{name: value}) == [False, dict.fromkeys(CHOICES) | {name: value}]


def test_a_record_says_how_they_waited(monkeypatch):
    monkeypatch.setenv("GOMP_SPINCOUNT", "123")
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert waiting()["GOMP_SPINCOUNT"] == "123"
    assert waiting()["OMP_WAIT_POLICY"] is None
