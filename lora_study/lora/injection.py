"""Putting LoRA into a finished model: which layers the targets name, and which of them can have an update beside them.

A model that is refused is left unchanged.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from lora_study.lora.compatibility import is_only_read, weight_of, widths
from lora_study.lora.layers import LinearWithLoRA, LoRALayer, Scaling

# Short names of targets, and what the layers are called in DistilBERT.
ALIASES: dict[str, tuple[str, ...]] = {
    "query": ("attention.q_lin",),
    "key": ("attention.k_lin",),
    "value": ("attention.v_lin",),
    "projection": ("attention.out_lin",),
    "mlp": ("ffn.lin1", "ffn.lin2"),
    "head": ("pre_classifier", "classifier"),
}
# transformers' linear layer with a transposed weight (GPT-2); known by name, so that only torch is needed.
CONV1D = "transformers.pytorch_utils.Conv1D"
PATCHED = "it has forward hooks or a forward of its own, which may change what it computes; remove them first"
# What torch.compile returned keeps calling the layer it was given.
COMPILED = "it is compiled by itself; compile the model it belongs to"
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def inject_lora(
    model: nn.Module,
    targets: Sequence[str] | str,
    r: int = 8,
    alpha: float = 16.0,
    *,
    scaling: Scaling | None = None,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    layer: type[LinearWithLoRA] = LinearWithLoRA,
) -> list[str]:
    """Put a LoRA update beside every linear layer that a target names, in place.

    The model's output does not change, since B is zero. Its other parameters require gradients as before: freeze the
    model first. A layer that stands in several places is adapted in all of them, with one update; layers that share
    only a weight get an update each.

    Args:
        model: Any network; one whose layers are named as DistilBERT's can use the names in `ALIASES`.
        targets: Layer names: an alias, a name or its last parts ("c_attn", "attention.self.query"), or a pattern
            with * and ? ("encoder.*.linear1"). A single string is one name.
        r: Rank.
        alpha: Strength of the update.
        scaling: See `LoRALayer`. If it is left out, the factor is alpha as in the article, and a warning says that
            most other code takes alpha/r.
        dropout: Dropout probability on the input of the updates.
        generator: Source of the random A.
        layer: The module for a layer and its update: `LinearWithLoRA`, or `lora_study.lora.dora.LinearWithDoRA`.

    Returns:
        The names of the adapted layers, in the model's order; a layer in several places has its first name.

    Raises:
        ValueError: a target matches no linear layer, one that is adapted already, or one whose weight is computed,
            quantised or not loaded; r does not fit; or dropout could never act. The model is then unchanged.
    """
    linears = find_linears(model, targets)
    chosen: Scaling = "alpha" if scaling is None else scaling
    adapted: dict[nn.Module, LinearWithLoRA] = {}
    for name, linear in linears.items():
        try:
            lora = LoRALayer(*widths(linear), r, alpha, scaling=chosen, dropout=dropout, generator=generator)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        places = _places(model, linear) if lora.dropout.p > 0 else []
        if places and all(is_only_read(owner, key) for owner, key in places):
            raise ValueError(
                f"{name}: {type(places[0][0]).__name__} reads its weight instead of calling it, so that dropout could "
                "never act; use 0, or leave the layer out of the targets"
            )
        adapted[linear] = layer(linear, lora).train(linear.training)
    replace(model, adapted)
    if scaling is None and r > 1:
        warnings.warn(
            f"no scaling was given, so the factor on the updates is alpha={alpha:g}, as in the article: {r} times the "
            "alpha/r of PEFT and the LoRA paper; pass scaling='alpha/r' for theirs, or scaling='alpha' if you mean it",
            stacklevel=2,
        )
    return list(linears)


def find_linears(model: nn.Module, targets: Sequence[str] | str) -> dict[str, nn.Module]:
    """The linear layers that the targets match, each under its first name, in the model's order.

    Raises:
        ValueError: a target matches none, or one that cannot have an update.
    """
    updates = dict(lora_layers(model))
    wrapped, inside = tuple(f"{name}." for name in updates), {layer.linear for layer in updates.values()}
    modules = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if name and not name.startswith(wrapped)
    }
    linears = {name: module for name, module in modules.items() if _is_like_linear(module)}
    found: set[nn.Module] = set()
    for target in _names(targets, linears):
        patterns = (target, *ALIASES.get(target, ()))
        matches = [
            name for name in modules if any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)
        ]
        for name in matches:
            if isinstance(modules[name], LinearWithLoRA) or modules[name] in inside:
                raise ValueError(f"target {target!r}: {name} already has a LoRA update; merge it first")
            if name in linears and (reason := objection(modules[name])):
                raise ValueError(f"target {target!r}: {name} cannot be adapted: {reason}")
        if not any(name in linears for name in matches):
            reason = f"{matches[0]} is a {type(modules[matches[0]]).__name__}" if matches else "no layer has that name"
            raise ValueError(
                f"target {target!r} matches no linear layer ({reason}); this model has {_listing(linears)}"
            )
        found.update(modules[name] for name in matches if name in linears)
    first: dict[nn.Module, str] = {}
    for name, module in linears.items():
        if module in found:
            first.setdefault(module, name)
    return {name: module for module, name in first.items()}


def objection(layer: nn.Module) -> str | None:
    """Why a layer does not compute just x Wᵀ + b, which an update can stand beside and be merged into.

    Returns:
        The reason and the remedy; None for a plain linear layer.
    """
    weight = layer._parameters.get("weight")
    if not _is_linear(layer):
        return f"a {type(layer).__name__} may compute something else; use a plain linear layer"
    if weight is None or "bias" not in layer._parameters:
        return "its weight or bias is computed (parametrised, normed, pruned); make it a plain parameter first"
    if type(weight) is not nn.Parameter or weight.dtype not in FLOATS or weight.layout != torch.strided:
        kind = f"{type(weight).__name__} of {weight.dtype}"
        return f"its weight is a {kind}, quantised, packed or not loaded yet; load it as plain numbers, such as float32"
    if weight.dim() != 2:
        return f"its weight has the shape {tuple(weight.shape)}; gather the whole matrix first"
    if is_patched(layer):
        return PATCHED
    return None


def is_patched(module: nn.Module) -> bool:
    """Whether a module may compute something other than its class does."""
    return bool("forward" in vars(module) or module._forward_pre_hooks or module._forward_hooks)


def replace(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> None:
    """Replace some modules by others, wherever each of them stands, in place."""
    for owner in list(model.modules()):
        for key, module in list(owner._modules.items()):
            if module is not None and module in new:
                setattr(owner, key, new[module])


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LinearWithLoRA]]:
    """Name and module of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, LinearWithLoRA):
            yield name, module


@contextmanager
def lora_disabled(model: nn.Module) -> Iterator[None]:
    """The model without its updates, while a block runs; the reference of preference training (DPO) is an example.

        with lora_disabled(model), torch.no_grad():
            reference = model(tokens).logits

    Inside, the plain linear layers stand in their places, so the output is exactly that of a model without LoRA.
    Afterwards, and after an exception, the updates are back, their gradients with them; if the model was moved or put
    in another mode meanwhile, they follow. Blocks may be nested. Whatever else was trained, such as a head, stays as
    it is; `Adapters.disabled` has the model's own head instead.

    Raises:
        ValueError: the model is nothing but an adapted layer, which has no place to put a plain one in, or one was
            compiled by itself.
    """
    if isinstance(model, LinearWithLoRA):
        raise ValueError("the model is an adapted layer itself; disable LoRA in the model it belongs to")
    places = [
        (owner, key, layer)
        for owner in model.modules()
        for key, layer in owner._modules.items()
        if isinstance(layer, LinearWithLoRA)
    ]
    if compiled := [layer for _, key, layer in places if key == "_orig_mod"]:
        raise ValueError(f"a {type(compiled[0]).__name__} cannot be disabled: {COMPILED}")
    for owner, key, layer in places:
        setattr(owner, key, layer.linear)
    try:
        yield
    finally:
        for owner, key, layer in places:
            setattr(owner, key, layer.to(weight_of(layer.linear).device).train(layer.linear.training))


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every A and B in the model, and DoRA's magnitudes: chosen by the type of their module, not by name."""
    for module in model.modules():
        if isinstance(module, (LoRALayer, LinearWithLoRA)):
            yield from module.parameters(recurse=False)


def parameter_groups(model: nn.Module, learning_rate: float, lr_ratio: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that require gradients, in groups for an optimizer; every B learns at learning_rate · lr_ratio.

    This is LoRA+ (Hayou et al., arXiv 2402.12354): in a wide model B, which starts at zero, learns too slowly at the
    rate that suits A. The authors suggest a ratio of 16. With a ratio of 1, or without LoRA, there is one group.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    faster = {id(module.lora_B) for module in model.modules() if isinstance(module, LoRALayer) and lr_ratio != 1}
    groups = [
        {"params": [parameter for parameter in trained if id(parameter) not in faster], "lr": learning_rate},
        {"params": [parameter for parameter in trained if id(parameter) in faster], "lr": learning_rate * lr_ratio},
    ]
    return [group for group in groups if group["params"]]


def _names(targets: Any, linears: Mapping[str, nn.Module]) -> list[str]:
    names = list(targets) if isinstance(targets, Iterable) and not isinstance(targets, str | bytes) else [targets]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ValueError(f"targets: {targets!r} is not valid; name layers; this model has {_listing(linears)}")
    return names


def _is_linear(module: nn.Module) -> bool:
    kind = type(module)
    if isinstance(module, nn.Linear):
        return kind.forward is nn.Linear.forward
    return f"{kind.__module__}.{kind.__qualname__}" == CONV1D


def _is_like_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer or looks like one, as quantised layers do, so that no target skips it."""
    conv1d = hasattr(module, "nf") and any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)
    return (
        isinstance(module, nn.Linear) or conv1d or (hasattr(module, "in_features") and hasattr(module, "out_features"))
    )


def _places(model: nn.Module, module: nn.Module) -> list[tuple[nn.Module, str]]:
    """Every place where a module stands: what holds it, and under which key."""
    return [(owner, key) for owner in model.modules() for key, child in owner._modules.items() if child is module]


def _listing(linears: Mapping[str, nn.Module]) -> str:
    """The linear layers of a model, with the blocks of a deep network folded into one pattern."""
    folded = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in linears)
    return ", ".join(folded) or "no linear layer"
