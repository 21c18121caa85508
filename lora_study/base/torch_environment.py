"""What the libraries below torch read from the environment, once, when they are loaded: set here before that.

How long OpenMP's threads wait for one another before they give up their core to another process. At the end of every
parallel section they spin until the last of them is done. While another process holds that one's core, the others spin
for nothing, and a training step takes ten times as long. Spinning briefly and then sleeping costs nothing: on two AMD
cores a LoRA step at batch 12 trained on 2, 8, 14, 19 and 22 reviews/s beside one busy process with 100,000, 10,000,
3,000, 1,000 and 300 spins; alone on 42, 43, 41 and 28 with 10,000, 3,000, 1,000 and 300.

How many prepared matrix products are kept by oneDNN and by its wrapper in torch. Left alone, each keeps the last 1,024,
a quarter of a megabyte apiece, one for every shape it has met. Batches of reviews hardly ever repeat a shape, so most
are never used again: after 250 steps of default LoRA on reviews of up to 512 tokens a process had grown to 4.0 GB, of
which tensors were 0.4; with these numbers it stays at 1.7 GB and is no slower.
"""

import os

# Iterations for GNU's OpenMP (torch on Linux), milliseconds for LLVM's (torch on macOS).
BRIEF = {"GOMP_SPINCOUNT": "3000", "KMP_BLOCKTIME": "1"}
WAITING = (*BRIEF, "OMP_WAIT_POLICY")
# A training step has about a hundred shapes, each of which comes back in every layer. What oneDNN keeps, its wrapper
# need not; but of 0 the wrapper dies.
FEW = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "16"}


def set_torch_environment() -> None:
    """Have threads spin briefly and few matrix products be kept, in this process and those it starts.

    What the user has set stays as it is. Call this before torch is loaded.
    """
    if not any(name in os.environ for name in WAITING):
        os.environ |= BRIEF
    for name, few in FEW.items():
        os.environ.setdefault(name, few)


def torch_environment() -> dict[str, str | None]:
    """These variables as they are, for a record; None for one that is not set."""
    return {name: os.environ.get(name) for name in (*WAITING, *FEW)}
