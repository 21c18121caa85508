"""LoRA from scratch: low-rank adapters beside the linear layers of a finished model.

    model.requires_grad_(False)
    inject_lora(model, ["query", "value"], r=8, alpha=16, scaling="alpha/r")
    ...                                     # train the parameters that require gradients
    merged = merge_lora(model)              # a plain model again
    unmerge_lora(model, merged)             # and back

`layers` has the mathematics, `injection` puts it into a model, `merging` adds it to the weights. They need only torch.
"""

from lora_study.lora.injection import (
    ALIASES,
    inject_lora,
    lora_disabled,
    lora_layers,
    lora_parameters,
    parameter_groups,
)
from lora_study.lora.layers import LinearWithLoRA, LoRALayer, Scaling
from lora_study.lora.merging import merge_lora, unmerge_lora

__all__ = [
    "ALIASES",
    "LinearWithLoRA",
    "LoRALayer",
    "Scaling",
    "inject_lora",
    "lora_disabled",
    "lora_layers",
    "lora_parameters",
    "merge_lora",
    "parameter_groups",
    "unmerge_lora",
]
