"""Adding LoRA to the weights of a model, and taking it out again.

Either all layers are merged or none, and the model computes the same as before, up to rounding in the weights' type.
"""

from collections import Counter
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lora_study.lora.compatibility import weight_of
from lora_study.lora.injection import COMPILED, PATCHED, is_patched, lora_layers, objection, replace
from lora_study.lora.layers import LinearWithLoRA


def merge_lora(model: nn.Module) -> dict[str, tuple[LinearWithLoRA, Tensor]]:
    """Add every update to its weight, W' = W + scaling · (A B)ᵀ, and put the plain linear layer back, in place.

    The sum is formed in fp32, or fp64 beside fp64, and stored in the weight's own type, so load the base model in fp32
    to keep all of the update. A model without LoRA is left as it is, so merging twice is harmless. A weight that was
    tied to another, as GPT-2's lm_head is to its embedding, no longer is: what was merged survives saving and loading,
    but transformers' tie_weights(), which resize_token_embeddings() calls, would undo it. A part of a network may be
    merged by itself unless an adapted layer of it also stands elsewhere, where the update would be added once more.

    Returns:
        The adapted layer and its old weight W by layer name, for `unmerge_lora`. Drop them to free the memory of the
        old weights.

    Raises:
        ValueError: a layer cannot be merged, because a number in it or in the sum is not finite or because the layer
            is no longer plain (pruned, quantised, hooked); the model is then unchanged.
    """
    layers = dict(lora_layers(model))
    places = Counter(child for owner in model.modules() for child in owner._modules.values())
    compiled = {owner._modules.get("_orig_mod") for owner in model.modules()}
    merged: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if reason := COMPILED if layer in compiled else _objection(model, layer, places):
            raise ValueError(f"{name or 'the model'} cannot be merged: {reason}; nothing was changed")
        merged[name] = _merged(name, layer)
    removed: dict[str, tuple[LinearWithLoRA, Tensor]] = {}
    for name, layer in layers.items():
        base = weight_of(layer.linear)
        removed[name] = layer, base
        # A new parameter, not an in-place sum: a weight tied to an embedding must not change the embedding.
        layer.linear.weight = nn.Parameter(merged[name], requires_grad=base.requires_grad)
    replace(model, {layer: layer.linear for layer in layers.values()})
    return removed


def unmerge_lora(model: nn.Module, removed: Mapping[str, tuple[LinearWithLoRA, Tensor]]) -> None:
    """Undo `merge_lora` exactly: adapted layers and old weights return to their places.

    If the model was moved, converted or put in another mode since, they follow.

    Raises:
        ValueError: a layer is not the one that was merged; the model is then unchanged.
    """
    modules = dict(model.named_modules())
    for name, (layer, _) in removed.items():
        if modules.get(name) is not layer.linear:
            raise ValueError(f"{name!r} is not the layer that was merged; unmerge the very model merge_lora was given")
    for layer, base in removed.values():
        merged = weight_of(layer.linear)
        layer.linear.weight = base
        layer.to(merged.device).train(layer.linear.training)
        layer.linear.to(merged.dtype)
    replace(model, {layer.linear: layer for layer, _ in removed.values()})


def _objection(model: nn.Module, layer: LinearWithLoRA, places: Mapping[nn.Module | None, int]) -> str | None:
    """Why a plain layer with a new weight would not compute what an adapted layer computes; None if it would."""
    if layer is model:
        return "it is an adapted layer itself, and has no place to put a plain one in; merge the model it belongs to"
    if reason := objection(layer.linear):
        return reason
    if any(is_patched(module) for module in layer.modules()):
        return PATCHED
    if places[layer.linear] > 1:
        return "its linear layer also stands in another place, where it has no update; give one of them a copy"
    if any(parameter.is_meta for parameter in layer.parameters()):
        return "it has no numbers yet (device meta); load its weights first"
    return None


def _merged(name: str, layer: LinearWithLoRA) -> Tensor:
    """The adapted weight, checked to be finite."""
    base = weight_of(layer.linear)
    with torch.no_grad(), torch.autocast(base.device.type, enabled=False):
        weight = layer.weight
    if not weight.isfinite().all():
        odd = [part for part, parameter in layer.named_parameters() if not parameter.isfinite().all()]
        reason = f"{odd[0]} holds" if odd else f"as {base.dtype} the sum would hold"
        raise ValueError(f"{name} cannot be merged: {reason} numbers that are not finite; nothing was changed")
    return weight
