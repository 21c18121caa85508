"""Reading a safetensors file against the tensors it must hold, or refusing it in one line."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lora_study.base.errors import ConfigError, one_line


def read_weights(
    path: Path, expected: Mapping[str, torch.Size], remedy: str, optional: Mapping[str, torch.Size] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file, which must be exactly the expected ones and finite.

    Args:
        path: A safetensors file. No other format is read: nothing is unpickled.
        expected: Shape of each tensor the file must hold.
        remedy: What the user can do about a file that is refused.
        optional: Shape of each further tensor it may hold.

    Raises:
        ConfigError: the file is missing, damaged or in another format, or a tensor is missing, unexpected, of
            another shape or not finite.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; {remedy}") from None
    except (OSError, SafetensorError) as error:
        reason = f"it is {foreign}" if (foreign := _foreign_format(path)) else one_line(error)
        raise ConfigError(f"{path} is not a whole safetensors file ({reason}); {remedy}") from error
    if missing := [name for name in expected if name not in tensors]:
        raise ConfigError(f"{path} lacks {_first(missing)}; {remedy}")
    shapes = {**(optional or {}), **expected}
    if unknown := [name for name in tensors if name not in shapes]:
        raise ConfigError(f"{path} has the unexpected tensor {_first(unknown)}; {remedy}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            both = f"{tuple(tensor.shape)}, where the model needs {tuple(shapes[name])}"
            raise ConfigError(f"{path} has {name} of shape {both}; {remedy}")
        if not is_finite(tensor):
            raise ConfigError(f"{path} has values in {name} that are not finite; {remedy}")
    return tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers in a tensor are finite."""
    if tensor.is_floating_point() and tensor.element_size() == 1:
        tensor = tensor.float()  # torch cannot tell for 8-bit types
    return bool(tensor.isfinite().all())


def _foreign_format(path: Path) -> str | None:
    """What a file that is often mistaken for weights really is, or None."""
    if not path.is_file():
        return None
    if zipfile.is_zipfile(path):
        return "a zip archive, such as torch.save writes"
    with path.open("rb") as file:
        return "a pickle" if file.read(1) == b"\x80" else None


def _first(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "")
