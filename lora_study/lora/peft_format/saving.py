"""Writing a model's LoRA, and whatever else it trained, as an adapter folder of Hugging Face PEFT.

PEFT stores A as (r, in) and B as (out, r), the transposes of ours, and knows the factor on the update as
lora_alpha / r. So lora_alpha is written as scaling · r, whichever of our three scalings made the factor.

Whatever else is trained is stored too: a module that PEFT can keep whole becomes one of its modules_to_save; any other
parameter is stored under its own name, and PEFT's loading puts it into the base model.
"""

import copy
import json
import logging
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lora_study.base.errors import ConfigError, check
from lora_study.base.files import atomic, user_path, write_text
from lora_study.lora import LinearWithLoRA, LoRALayer, merge_lora
from lora_study.lora.compatibility import is_only_read
from lora_study.lora.dora import LinearWithDoRA
from lora_study.lora.peft_format.config import ADAPTER_CONFIG, matches
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
from lora_study.lora.weights import is_finite

logger = logging.getLogger(__name__)


def save_adapter(
    model: nn.Module,
    folder: Path | str,
    base: Path | str | None = None,
    modules_to_save: Sequence[str] | None = None,
    revision: str | None = None,
) -> None:
    """Write a model's LoRA layers, its whole head and all else that requires gradients, as a PEFT adapter.

    A LoRA update beside a layer that is stored whole is added to the weights that are written: PEFT keeps a module
    either whole or as an update. A base that was not frozen is stored too; freeze it to get a small adapter.

    Args:
        model: Any network with LoRA layers, or what wraps it (torch.compile, DistributedDataParallel).
        folder: Where the two files go; it is created if needed.
        base: Name or folder of the base model, for PEFT to find it.
        modules_to_save: Ends of the names of modules to store whole even if they are not trained. None takes a
            classifier's head: a head that was drawn at random is not part of the base model. Nor are new tokens of a
            frozen embedding; name it here.
        revision: The base's branch, tag or commit on the hub, for PEFT to find; None is its main branch.

    Raises:
        ConfigError: the model has no LoRA layers besides the modules that are stored whole, mixes LoRA with DoRA, has
            no such module, is spread over processes, or has values that are not finite. Nothing is written.
        OSError: the folder cannot be written.
    """
    modules = plain_modules(model)
    own = _without_parts(modules)
    saved = saved_modules(own, head_ends(own) if modules_to_save is None else _ends(modules_to_save, own))
    layers = _updates(modules, saved)
    whole, single = _trained(modules, saved)
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= {f"{name}.{key}": tensor for key, tensor in adapter_tensors(layer).items()}
    for name in (*saved, *whole):
        tensors |= {f"{name}.{key}": tensor for key, tensor in _merged(name, modules[name]).items()}
    copies = {f"{PREFIX}{name}": _copy(name, tensor) for name, tensor in (tensors | single).items()}

    content = {
        **_description(layers, list(modules)),
        **_purpose(type(modules[""]), has_head=modules_to_save is None and bool(saved)),
        "base_model_name_or_path": None if base is None else _base(base),
        "revision": revision,
        "modules_to_save": [*saved, *whole] or None,
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    _warn_of_losses(modules, layers, (*saved, *whole), single)
    _warn_of_peft(modules, layers)
    folder = user_path(folder)
    with atomic(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(copies, {"format": "pt"}))  # save_file has an error of its own for a full disk
    write_text(folder / ADAPTER_CONFIG, text)


def _updates(modules: Mapping[str, nn.Module], saved: Sequence[str]) -> dict[str, LinearWithLoRA]:
    """The adapted layers outside the modules that are stored whole, which must be of one kind."""
    layers = {
        name: module
        for name, module in modules.items()
        if isinstance(module, LinearWithLoRA) and not within(name, saved)
    }
    if not layers:
        outside = f" outside {saved[0]}" if saved else ""
        raise ConfigError(f"{type(modules['']).__name__} has no LoRA layers{outside}; an adapter needs some")
    if "" in layers:
        raise ConfigError("the model is an adapted layer itself; save the model it belongs to")
    if len({isinstance(layer, LinearWithDoRA) for layer in layers.values()}) > 1:
        raise ConfigError("an adapter is LoRA or DoRA as a whole, and this model mixes them; inject one of them")
    return layers


def _purpose(kind: type[nn.Module], has_head: bool) -> dict[str, Any]:
    """What an adapter_config.json says the model is for; PEFT's Auto classes choose the base's class by it."""
    if has_head and kind.__name__.endswith("ForSequenceClassification"):
        return {"task_type": "SEQ_CLS", "auto_mapping": None}
    auto_mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return {"task_type": None, "auto_mapping": auto_mapping}


def _description(layers: Mapping[str, LinearWithLoRA], names: list[str]) -> dict[str, Any]:
    """What an adapter_config.json says about the updates.

    Args:
        layers: The adapted layers by name.
        names: Of all the model's modules.
    """
    ranks = {name: layer.lora.lora_A.shape[1] for name, layer in layers.items()}
    alphas = {name: _number(name, layer.lora.scaling) * ranks[name] for name, layer in layers.items()}
    first = next(iter(layers))
    # PEFT would also take these names for targets: a layer's full name may be the end of another's.
    others = [name for name in names if name not in layers and matches(list(layers), name)]
    return {
        "peft_type": "LORA",
        "r": ranks[first],
        "lora_alpha": _whole(alphas[first]),
        "rank_pattern": {_exactly(name): r for name, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {_exactly(name): _whole(alpha) for name, alpha in alphas.items() if alpha != alphas[first]},
        "target_modules": "|".join(map(re.escape, layers)) if others else list(layers),
        "lora_dropout": _number(first, layers[first].lora.dropout.p),
        "fan_in_fan_out": not isinstance(layers[first].linear, nn.Linear),
        "use_dora": isinstance(layers[first], LinearWithDoRA),
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
    }


def _trained(modules: Mapping[str, nn.Module], saved: Sequence[str]) -> tuple[list[str], dict[str, Tensor]]:
    """What requires gradients besides LoRA and the modules that are stored anyway.

    Returns:
        The modules that PEFT can keep whole, and every other parameter, with the buffers beside it, under the name it
        has in PEFT; one that stands in several places, under each: transformers puts another tensor in every place.
    """
    places = Counter(id(p) for _, p in modules[""].named_parameters(remove_duplicate=False))
    whole: list[str] = []
    single: dict[str, Tensor] = {}
    for name, module in modules.items():
        parent, _, _ = name.rpartition(".")
        own = dict(module.named_parameters(recurse=False))
        trained = {key: p for key, p in own.items() if p.requires_grad}
        if not trained or isinstance(module, LinearWithLoRA | LoRALayer) or within(name, saved):
            continue
        if isinstance(modules[parent], LinearWithLoRA):  # then this is the linear layer inside it
            single |= {base_tensor(parent, key, (parent,)): p for key, p in trained.items()}
        elif (
            len(trained) == len(own) and _can_be_copied(name, modules) and all(places[id(p)] == 1 for p in own.values())
        ):
            whole.append(name)
        else:
            state = {key: tensor for key, tensor in module.state_dict().items() if key not in own and "." not in key}
            single |= {base_tensor(name, key, ()): tensor for key, tensor in (trained | state).items()}
    if base := [name for name in single if ".base_layer." in name]:
        logger.warning(
            "%s requires gradients, so the adapter also holds weights of the base model; with "
            "model.requires_grad_(False) before inject_lora it would be small",
            base[0].replace(".base_layer", ""),
        )
    return whole, single


def _can_be_copied(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether PEFT can put a copy in place of this module, rather than of another whose name ends the same."""
    module = modules[name]
    leaf = not any(True for _ in module.children()) and not isinstance(module, nn.ParameterList | nn.ParameterDict)
    return leaf and not _is_read(name, modules) and sum(other.endswith(name) for other in _without_parts(modules)) == 1


def _without_parts(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """The network's own modules: without the linear layer, the update and its dropout of which an adapted layer is."""
    layers = tuple(f"{name}." for name, module in modules.items() if isinstance(module, LinearWithLoRA))
    return {name: module for name, module in modules.items() if not name.startswith(layers)}


def _merged(name: str, module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors, with the updates inside it added to them."""
    if any(isinstance(inner, LinearWithLoRA) for inner in module.modules()):
        place = copy.deepcopy(nn.ModuleDict({"module": module}))  # a place: the module may itself be an adapted layer
        try:
            merge_lora(place)
        except ValueError as error:
            raise ConfigError(str(error).replace("module", name, 1)) from error
        module = place["module"]
    return adapter_tensors(module)


def _copy(name: str, tensor: Any) -> Tensor:
    """A copy of a tensor for the file: tied tensors share memory, which safetensors refuses."""
    if not isinstance(tensor, Tensor) or tensor.is_meta:
        raise ConfigError(
            f"{name} is {'on the meta device' if isinstance(tensor, Tensor) else 'no tensor'}, and cannot be saved"
        )
    if not is_finite(tensor):
        raise ConfigError(f"{name} has values that are not finite, so this adapter is not saved; train it again")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _warn_of_losses(
    modules: Mapping[str, nn.Module],
    layers: Mapping[str, LinearWithLoRA],
    whole: Sequence[str],
    single: Mapping[str, Tensor],
) -> None:
    """Warn of what training has changed, or was done with, and an adapter's folder does not hold."""
    statistics = [
        name
        for name, module in modules.items()
        if isinstance(module, _BatchNorm) and module.track_running_stats and module.training
        if not within(name, whole) and base_tensor(name, "running_mean", ()) not in single
    ]
    if statistics:
        warnings.warn(
            f"the running statistics of {', '.join(statistics)} change while training and are not saved; name it in "
            "modules_to_save, or have it in eval mode while training",
            stacklevel=3,
        )
    dropouts = {layer.lora.dropout.p for layer in layers.values()}
    if len(dropouts) > 1:
        warnings.warn(
            f"an adapter has one dropout, and these layers have {', '.join(f'{p:g}' for p in sorted(dropouts))}; the "
            "first layer's is saved, with which training would go on in all of them",
            stacklevel=3,
        )


def _warn_of_peft(modules: Mapping[str, nn.Module], layers: Mapping[str, LinearWithLoRA]) -> None:
    """Warn of updates that PEFT would not apply everywhere."""
    if read := [name for name in layers if _is_read(name, modules)]:
        warnings.warn(
            f"PEFT ignores the updates of {', '.join(read)}, because the modules around them read these "
            "weights instead of calling the layers; use load_adapter of lora_study, or merge_lora",
            stacklevel=3,
        )
    places = {(modules[name.rpartition(".")[0]], name.rpartition(".")[2]): layer for name, layer in layers.items()}
    often = Counter(places.values())
    if shared := [name for name, layer in layers.items() if often[layer] > 1]:
        warnings.warn(
            f"PEFT adapts only one of the places {', '.join(shared)}, which are one layer; use load_adapter of "
            "lora_study, or merge_lora",
            stacklevel=3,
        )


def _is_read(name: str, modules: Mapping[str, nn.Module]) -> bool:
    """Whether a layer's weight is read by the layer around it."""
    parent, _, child = name.rpartition(".")
    # torch's encoder layer reads these in its fast path and calls them elsewhere.
    at_times = isinstance(modules[parent], nn.TransformerEncoderLayer) and child in ("linear1", "linear2")
    return at_times or is_only_read(modules[parent], child)


def _ends(names: Sequence[str], modules: Mapping[str, nn.Module]) -> tuple[str, ...]:
    """The given ends of modules' names, each checked to be one."""
    ends = tuple(names) if isinstance(names, Iterable) and not isinstance(names, str | bytes) else (names,)
    check(len(ends) > 0, "modules_to_save", names, "name modules, or leave it out to store the head")
    for end in ends:
        known = isinstance(end, str) and end != "" and any(name.endswith(end) for name in modules)
        check(known, "modules_to_save", end, "no module's name ends like that")
    return ends


def _base(base: Path | str) -> str:
    """A name on the hub unchanged; a folder with `~` expanded, which PEFT would not do."""
    return str(user_path(base)) if str(base).startswith("~") else str(base)


def _exactly(layer: str) -> str:
    """A pattern that matches only this layer, for rank_pattern and alpha_pattern."""
    return f"^{re.escape(layer)}$"


def _number(layer: str, value: Any) -> float:
    """A Python number, whatever library it came from."""
    number = float(value)
    if not math.isfinite(number):
        raise ConfigError(f"{layer} has {number} as a factor or probability, which no adapter can hold")
    return number


def _whole(number: float) -> float:
    return int(number) if number.is_integer() else number
