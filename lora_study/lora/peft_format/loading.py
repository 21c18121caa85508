"""Reading an adapter folder of Hugging Face PEFT into the base model it was trained on."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path
from lora_study.lora import LinearWithLoRA, inject_lora
from lora_study.lora.dora import LinearWithDoRA
from lora_study.lora.peft_format.config import ADAPTER_CONFIG, PeftConfig, read_peft_config
from lora_study.lora.peft_format.tensors import (
    PREFIX,
    WEIGHTS,
    adapter_tensors,
    base_tensor,
    head_ends,
    saved_modules,
    within,
)
from lora_study.lora.peft_format.wrapped import plain_modules
from lora_study.lora.weights import is_finite, read_weights

REMEDY = (
    "save it again with PEFT's save_pretrained, and load it over the base model it was trained on, with as many tokens"
)


@dataclass(frozen=True)
class Change:
    """One place in a model: what stands there, and what an adapter puts in its place.

    Attributes:
        name: The place's name in the model.
        owner: The module that has the place.
        key: What the owner calls it.
        plain: The model's own module, parameter or buffer.
        adapted: The adapter's part.
    """

    name: str
    owner: nn.Module
    key: str
    plain: nn.Module | Tensor
    adapted: nn.Module | Tensor

    def holds(self, part: nn.Module | Tensor) -> bool:
        """Whether this very part is in the place; of a buffer, which moving a model makes anew, if any is."""
        there = getattr(self.owner, self.key, None)
        is_buffer = isinstance(part, Tensor) and not isinstance(part, nn.Parameter)
        return isinstance(there, Tensor) if is_buffer else there is part

    def put(self, part: nn.Module | Tensor) -> None:
        """Put a part in the place, with the device, mode and type of what is there now.

        The model may have been moved, or put in another mode, while this part was out of it.
        """
        there = getattr(self.owner, self.key)
        if isinstance(part, Tensor):
            part.data = part.data.to(there.device, there.dtype)
        else:
            part.train(there.training)
            # The model's type is that of its own layer: an update beside it stays in fp32.
            layer = there.linear if isinstance(there, LinearWithLoRA) else there
            weight, own = next(layer.parameters(), None), next(part.parameters(), None)
            if weight is not None and own is not None:
                part.to(weight.device)
                # An adapted layer holds the model's own weight.
                if not isinstance(part, LinearWithLoRA) and own.dtype != weight.dtype:
                    part.to(weight.dtype)
        setattr(self.owner, self.key, part)


def load_adapter(model: nn.Module, folder: Path | str) -> list[str]:
    """Put a PEFT adapter into the base model it was trained on, in place.

    The new layers are in the model's mode (training or not) and require gradients, as does whatever else was trained
    with them; a stored head replaces the model's own and requires gradients if that one did. DistributedDataParallel
    does not know new parameters: load before it wraps a model that is to be trained.

    Args:
        model: The base model: any network without LoRA, or what wraps it (torch.compile, DistributedDataParallel).
        folder: What `save_adapter` or PEFT's save_pretrained wrote.

    Returns:
        The names of the adapted layers, in the model's order.

    Raises:
        ConfigError: a file is missing, damaged or for another base model, or the adapter is not plain LoRA or DoRA
            beside linear layers; the model is then unchanged.
    """
    changes = read_adapter(model, user_path(folder))
    for change in changes:
        change.put(change.adapted)
    return [change.name for change in changes if isinstance(change.adapted, LinearWithLoRA)]


def read_adapter(model: nn.Module, folder: Path) -> list[Change]:
    """What an adapter would put in which place of a model; the model is not changed.

    Adapted layers hold the model's own linear layers; modules that are stored whole are new, and so are parameters of
    the base that were trained.

    Raises:
        ConfigError: as `load_adapter`.
    """
    modules = plain_modules(model)
    if adapted := [name for name, module in modules.items() if isinstance(module, LinearWithLoRA)]:
        raise ConfigError(f"{adapted[0]} already has a LoRA update; merge it before loading {folder}")
    config, path = read_peft_config(folder), folder / ADAPTER_CONFIG
    saved = saved_modules(modules, config.stored_whole)
    targets = [name for name in modules if config.adapts(name) and not within(name, saved)]
    if not targets:
        kind = type(modules[""]).__name__
        raise ConfigError(f"{path}: its target_modules are no layers of this {kind}; load its own base")
    made: dict[nn.Module, nn.Module] = {}  # one part per module, in however many places it stands
    for name in (*targets, *saved):
        if modules[name] not in made:
            new = _copy(name, modules) if name in saved else _adapted_layer(name, modules, config, path)
            made[modules[name]] = new
    parts = {name: made[modules[name]] for name in (*targets, *saved)}
    own = {  # of what is not stored whole, any tensor may be there besides: PEFT stores resized embeddings so
        PREFIX + base_tensor(name, key, targets): (name, key, tensor)
        for name, module in modules.items()
        if not within(name, saved)
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    }
    # PEFT stores a block that stands in several places once, but adapts a layer that does so in only one of them.
    stored: dict[Any, str] = {}
    for name, part in parts.items():
        stored.setdefault(_slot(name, modules) if isinstance(part, LinearWithLoRA) else part, name)
    trained = _read(folder / WEIGHTS, parts, stored.values(), {name: tensor for name, (_, _, tensor) in own.items()})
    changes = []
    for place in dict.fromkeys(place for name in parts for place in _places(name, modules)):
        owner, key = _slot(place, modules)
        changes.append(Change(place, owner, key, getattr(owner, key), made[modules[place]]))
    for name, key, tensor in own.values():  # every place of a tied tensor gets the same
        if id(tensor) in trained:
            changes.append(Change(f"{name}.{key}", modules[name], key, tensor, trained[id(tensor)]))
    return changes


def _adapted_layer(name: str, modules: Mapping[str, nn.Module], config: PeftConfig, path: Path) -> nn.Module:
    """A model's linear layer with an update beside it, as the config has it."""
    linear = modules[name]
    places = _places(name, modules)
    if {_slot(place, modules) for place in places} != {_slot(p, modules) for p in places if config.adapts(p)}:
        raise ConfigError(f"{path}: {' and '.join(places)} are one layer, which cannot be adapted in only one place")
    r, factor = config.update(name)
    place = nn.ModuleDict({"linear": linear})
    try:
        inject_lora(
            place,
            ["linear"],
            r,
            factor,
            scaling="alpha",  # which takes the factor as it is
            dropout=config.lora_dropout,
            generator=torch.Generator(),  # A is overwritten; leave the global random state alone
            layer=LinearWithDoRA if config.use_dora else LinearWithLoRA,
        )
    except ValueError as error:
        raise ConfigError(
            f"{path}: {name}, of type {type(linear).__name__}, cannot take an update of rank {r}; only plain linear "
            f"layers can, up to the number of their inputs ({str(error).removeprefix('linear: ')})"
        ) from error
    return place["linear"].train(linear.training)


def _copy(name: str, modules: Mapping[str, nn.Module]) -> nn.Module:
    """A copy of a module that is stored whole, for its tensors to be read into."""
    module = copy.deepcopy(modules[name])
    # A head is always saved; anything else must require gradients, or it would be lost when saving the model again.
    return module if name.endswith(head_ends(modules)) else module.requires_grad_(True)


def _read(
    path: Path, parts: Mapping[str, nn.Module], stored: Collection[str], own: Mapping[str, Tensor]
) -> dict[int, Tensor]:
    """Read an adapter's tensors into the parts they belong to.

    Args:
        path: The safetensors file.
        parts: Adapted layers and modules that are stored whole, by name.
        stored: The names under which all tensors of a part must be there.
        own: The base model's parameters and buffers that may be there, by PEFT's name of the tensor.

    Returns:
        New parameters and buffers for those of the base that the file changes, by the id of the model's own.
    """
    slots: dict[str, Tensor] = {}
    needed: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors = {f"{PREFIX}{name}.{key}": slot for key, slot in adapter_tensors(part).items()}
        slots |= tensors
        if name in stored:
            needed |= tensors
    tensors = read_weights(path, _shapes(needed), REMEDY, _shapes({**own, **slots}))
    new: dict[int, Tensor] = {}
    said: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in tensors.items():
        slot = slots[name] if name in slots else own[name].detach()
        if slot.is_meta:
            raise ConfigError(f"{name.removeprefix(PREFIX)} has no weights yet (device meta); load the base's first")
        value = tensor.to(slot.dtype)
        if not is_finite(value):
            raise ConfigError(f"{path} has values in {name} that {slot.dtype} cannot hold; load the base in float32")
        if name in slots:
            slot.copy_(value)  # into the part itself: adapter_tensors returns views
            continue
        if not torch.equal(value, (seen := said.setdefault(id(own[name]), (name, value)))[1]):
            two = f"{seen[0].removeprefix(PREFIX)} and {name.removeprefix(PREFIX)}"
            raise ConfigError(
                f"{path} has different values for {two}, which this model ties; load it over an untied base"
            )
        if not torch.equal(value, slot.cpu()):
            value = value.to(slot.device)
            is_parameter = isinstance(own[name], nn.Parameter)
            new[id(own[name])] = nn.Parameter(value, value.is_floating_point()) if is_parameter else value
    return new


def _places(name: str, modules: Mapping[str, nn.Module]) -> list[str]:
    """All names of the module with that name."""
    return [place for place, module in modules.items() if module is modules[name]]


def _slot(name: str, modules: Mapping[str, nn.Module]) -> tuple[nn.Module, str]:
    """What holds the module with that name, and what it is called there."""
    parent, _, key = name.rpartition(".")
    return modules[parent], key


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in tensors.items()}
