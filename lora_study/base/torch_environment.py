"""How long OpenMP's threads wait for one another before they give up their core to another process.

At the end of every parallel section, OpenMP's threads spin until the last of them is done. While another process holds
that one's core, the others spin for nothing, and a training step takes ten times as long. Spinning briefly and then
sleeping costs little: on two cores, a LoRA step at batch 12 went from 51 to 50 reviews/s alone, and from 4 to 17 beside
one busy process.
"""

import os

# Iterations for GNU's OpenMP (torch on Linux), milliseconds for LLVM's (torch on macOS).
BRIEF = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
CHOICES = (*BRIEF, "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Have threads spin briefly, in this process and those it starts, unless the user has chosen how they wait.

    OpenMP reads the setting once, when torch is loaded, so call this first.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ |= BRIEF


def waiting() -> dict[str, str | None]:
    """The environment variables that decide how long threads wait, for a record."""
    return {name: os.environ.get(name) for name in CHOICES}
