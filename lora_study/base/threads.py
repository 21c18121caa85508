"""How long the processor's threads wait for one another before they let another process have the core.

At the end of every parallel part of a product, OpenMP's threads turn in a loop until the last is done. While another
process holds that one's core, all the others turn for nothing, and a training step takes ten times as long. Waiting
briefly and then sleeping costs little alone: on two cores, a LoRA step at batch 12, 51 reviews/s before and 50 after
alone, 4 before and 17 after beside one busy process.
"""

import os

# Turns of the loop for GNU's OpenMP (torch on Linux), milliseconds for LLVM's (torch on macOS).
BRIEF = {"GOMP_SPINCOUNT": "10000", "KMP_BLOCKTIME": "1"}
CHOICES = (*BRIEF, "OMP_WAIT_POLICY")


def wait_briefly() -> None:
    """Have threads wait briefly, in this process and those it starts, unless the user has said how they wait.

    OpenMP reads it once, when torch is loaded: call this before.
    """
    if not any(name in os.environ for name in CHOICES):
        os.environ |= BRIEF


def waiting() -> dict[str, str | None]:
    """The environment variables that say how long threads wait, for a record."""
    return {name: os.environ.get(name) for name in CHOICES}
