"""Adapter folders in the format of Hugging Face PEFT: writing one, reading one, and several of them over one model.

A folder holds `adapter_config.json` and `adapter_model.safetensors`, a few MB beside a base model of hundreds. PEFT
and transformers load what is written here, and LoRA and DoRA adapters written by PEFT load here, over any network.

PEFT stores A as (r, in) and B as (out, r), the transposes of ours, and knows the factor on the update as
lora_alpha / r. So lora_alpha is written as scaling · r, whichever of our three scalings made the factor.
"""

import copy
import json
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lora_study.config import ConfigError, check
from lora_study.dora import LinearWithDoRA
from lora_study.lora import LinearWithLoRA, inject_lora, lora_layers, merge_lora
from lora_study.modes import HEAD
from lora_study.peft_config import ADAPTER_CONFIG, matches, read_peft_config
from lora_study.records import atomic, write_text
from lora_study.weights import read_weights

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."  # of every tensor's name: PEFT's two wrappers around the network
HEADS = (*HEAD, "score")  # what classification heads are called; PEFT takes "classifier" and "score" for one, too


class Adapters:
    """Several adapters over one base model, of which one at a time, or none, is in use.

    Switching puts other modules in the places of the adapted ones; no tensor is written to, so going back to an
    adapter or to the plain model gives exactly the outputs it gave before. Merging an adapter does write to the base:
    unmerge it before the next switch.

    Args:
        model: Any network without LoRA; it is changed in place.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.active: str | None = None
        # By adapter and name of a module: the model's own module and what takes its place.
        self._adapters: dict[str, dict[str, tuple[nn.Module, nn.Module]]] = {}

    @property
    def names(self) -> list[str]:
        """The loaded adapters, in order of loading."""
        return list(self._adapters)

    def load(self, name: str, folder: Path | str) -> None:
        """Read an adapter folder and keep it under a name; which one is in use does not change.

        Raises:
            ConfigError: the name is taken, or the folder is refused as by `load_adapter`.
        """
        check(name not in self._adapters, "adapter", name, "there is one of that name; remove it first")
        active = self.active
        self.use(None)
        try:
            modules = read_adapter(self.model, Path(folder))
            self._adapters[name] = {place: (self.model.get_submodule(place), new) for place, new in modules.items()}
        finally:
            self.use(active)

    def use(self, name: str | None) -> None:
        """Put an adapter in place of the one in use; None leaves the plain model.

        Raises:
            ConfigError: no adapter has that name.
        """
        if name is not None:
            self._known(name)
        if self.active is not None:
            for place, (plain, _) in self._adapters[self.active].items():
                self.model.set_submodule(place, plain)
        self.active = name
        if name is not None:
            for place, (plain, adapted) in self._adapters[name].items():
                # The model may have been moved, or put in another mode, while this adapter was out of it.
                adapted.to(next(plain.parameters()).device).train(plain.training)
                self.model.set_submodule(place, adapted)

    def remove(self, name: str) -> None:
        """Forget an adapter; if it is in use, the plain model is left.

        Raises:
            ConfigError: no adapter has that name.
        """
        self._known(name)
        if self.active == name:
            self.use(None)
        del self._adapters[name]

    def _known(self, name: str) -> None:
        check(name in self._adapters, "adapter", name, f"the loaded ones are: {', '.join(self.names) or 'none'}")


def save_adapter(
    model: nn.Module, folder: Path | str, base: str | None = None, modules_to_save: Sequence[str] | None = None
) -> None:
    """Write a model's LoRA layers, and its head whole, as a PEFT adapter.

    A LoRA update beside a layer of the head is added to the head's weights that are written: PEFT keeps a module
    either whole or as an update.

    Args:
        model: Any network with LoRA layers.
        folder: Where the two files go; it is made if need be.
        base: Name or folder of the base model, for PEFT to find it.
        modules_to_save: Ends of the names of modules to store whole. None takes a classifier's head, trained or not,
            for a head that was drawn at random is not part of the base model.

    Raises:
        ConfigError: the model has no LoRA layers besides the modules that are stored whole, or mixes LoRA with DoRA.
        OSError: the folder cannot be written.
    """
    saved = _saved_modules(model, HEADS if modules_to_save is None else modules_to_save)
    layers = {name: layer for name, layer in lora_layers(model) if not _within(name, saved)}
    if not layers:
        raise ConfigError(
            f"{type(model).__name__} has no LoRA layers{f' outside {saved[0]}' if saved else ''}; an adapter needs some"
        )
    dora = {isinstance(layer, LinearWithDoRA) for layer in layers.values()}
    if len(dora) > 1:
        raise ConfigError("an adapter is LoRA or DoRA as a whole, and this model mixes them; inject one of them")
    tensors: dict[str, Tensor] = {}
    for name, layer in layers.items():
        tensors |= {f"{PREFIX}{name}.{key}": tensor for key, tensor in _tensors(layer).items()}
    for name in saved:
        merged = nn.ModuleDict({"module": copy.deepcopy(model.get_submodule(name))})
        merge_lora(merged)
        tensors |= {f"{PREFIX}{name}.{key}": tensor for key, tensor in merged["module"].state_dict().items()}

    ranks = {name: layer.lora.lora_A.shape[1] for name, layer in layers.items()}
    alphas = {name: _whole(layer.lora.scaling * ranks[name]) for name, layer in layers.items()}
    first = next(iter(layers))
    # The names PEFT would take for targets, too, where a layer's full name is the end of another's.
    others = [name for name, _ in model.named_modules() if name not in layers and matches(list(layers), name)]
    classifier = type(model).__name__.endswith("ForSequenceClassification") and modules_to_save is None
    content = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if classifier and saved else None,
        "base_model_name_or_path": base,
        "r": ranks[first],
        "lora_alpha": alphas[first],
        "rank_pattern": {_exactly(name): r for name, r in ranks.items() if r != ranks[first]},
        "alpha_pattern": {_exactly(name): alpha for name, alpha in alphas.items() if alpha != alphas[first]},
        "target_modules": "|".join(map(re.escape, layers)) if others else list(layers),
        "modules_to_save": saved or None,
        "lora_dropout": layers[first].lora.dropout.p,
        "fan_in_fan_out": not isinstance(layers[first].linear, nn.Linear),
        "use_dora": dora.pop(),
        "use_rslora": False,
        "bias": "none",
        "inference_mode": True,
    }
    folder = Path(folder)
    with atomic(folder / WEIGHTS) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, {"format": "pt"})
    write_text(folder / ADAPTER_CONFIG, json.dumps(content, indent=2, allow_nan=False) + "\n")


def load_adapter(model: nn.Module, folder: Path | str) -> list[str]:
    """Put a PEFT adapter into the base model it was trained on, in place.

    The new layers are in the model's mode (training or not) and require gradients; what else does is not changed.
    A stored head takes the place of the model's own.

    Args:
        model: The base model: any network without LoRA.
        folder: What `save_adapter` or PEFT's save_pretrained wrote.

    Returns:
        The names of the adapted layers, in the model's order.

    Raises:
        ConfigError: a file is missing, damaged, of another base model, or of a kind of adapter that is not plain
            LoRA or DoRA beside linear layers; the model is then unchanged.
    """
    modules = read_adapter(model, Path(folder))
    for name, module in modules.items():
        model.set_submodule(name, module)
    return [name for name, module in modules.items() if isinstance(module, LinearWithLoRA)]


def read_adapter(model: nn.Module, folder: Path) -> dict[str, nn.Module]:
    """What takes the place of which module of a model when an adapter is put in; the model is not changed.

    Adapted layers hold the model's own linear layers; modules stored whole are new.

    Raises:
        ConfigError: as `load_adapter`.
    """
    if adapted := next(lora_layers(model), None):
        raise ConfigError(f"{adapted[0]} has a LoRA update already; merge it before loading {folder}")
    config, path = read_peft_config(folder), folder / ADAPTER_CONFIG
    saved = _saved_modules(model, config.modules_to_save)
    targets = [
        (name, module)
        for name, module in model.named_modules()
        if matches(config.target_modules, name)
        and not matches(config.exclude_modules, name)
        and not _within(name, saved)
    ]
    if not targets:
        raise ConfigError(f"{path}: its target_modules are no layers of this {type(model).__name__}; load its own base")
    modules: dict[str, nn.Module] = {}
    for name, linear in targets:
        r, factor = config.update(name)
        place = nn.ModuleDict({"linear": linear})
        try:
            inject_lora(
                place,
                ["linear"],
                r,
                factor,
                dropout=config.lora_dropout,
                generator=torch.Generator(),  # A is overwritten; leave the global random state alone
                layer=LinearWithDoRA if config.use_dora else LinearWithLoRA,
            )
        except ValueError as error:
            raise ConfigError(
                f"{path}: {name}, of type {type(linear).__name__}, cannot take an update of rank {r}; only linear "
                "layers can, up to the number of their inputs"
            ) from error
        modules[name] = place["linear"].train(linear.training)
    modules |= {name: copy.deepcopy(model.get_submodule(name)) for name in saved}

    slots = {
        f"{PREFIX}{name}.{key}": tensor for name, module in modules.items() for key, tensor in _tensors(module).items()
    }
    remedy = "save it again with PEFT's save_pretrained, and load it over the base model it was trained on"
    tensors = read_weights(folder / WEIGHTS, {name: slot.shape for name, slot in slots.items()}, remedy)
    for name, slot in slots.items():
        slot.copy_(tensors[name])  # into the module: what _tensors gives are views
    return modules


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's tensors under PEFT's names and in its shapes, as views of the module's own."""
    if not isinstance(module, LinearWithLoRA):
        return module.state_dict()
    tensors = {
        "lora_A.weight": module.lora.lora_A.detach().T,  # (r, in)
        "lora_B.weight": module.lora.lora_B.detach().T,  # (out, r)
    }
    if isinstance(module, LinearWithDoRA):
        tensors["lora_magnitude_vector"] = module.magnitude.detach()  # (out,)
    return tensors


def _saved_modules(model: nn.Module, ends: Sequence[str]) -> list[str]:
    """Modules that are stored whole; as in PEFT, the end of a name suffices ("classifier" is "pre_classifier", too)."""
    saved: list[str] = []
    for name, _ in model.named_modules():
        if ends and name.endswith(tuple(ends)) and not _within(name, saved):
            saved.append(name)
    return saved


def _within(name: str, modules: Sequence[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _exactly(layer: str) -> str:
    """A pattern for this very layer in rank_pattern and alpha_pattern."""
    return f"^{re.escape(layer)}$"


def _whole(number: float) -> float:
    return int(number) if float(number).is_integer() else number
