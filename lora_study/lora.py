"""LoRA from scratch: low-rank adapters beside the linear layers of a finished model.

A linear layer computes y = x Wᵀ + b. LoRA (Hu et al., arXiv 2106.09685, section 4.1) freezes W and learns an
update of rank r beside it:

    y = x Wᵀ + b + scaling · (x A B)        A: (in, r)    B: (r, out)

A starts random and B at zero, so training starts from the unchanged model; r is small, so there are only
r · (in + out) new numbers instead of in · out. After training, scaling · (A B)ᵀ can be added to W, and the
adapted layer costs nothing extra.

    model.requires_grad_(False)
    inject_lora(model, ["query", "value"], r=8, alpha=16)
    ...                                     # train the parameters that require gradients
    merged = merge_lora(model)              # a plain model again
    unmerge_lora(model, merged)             # and back

This file needs torch alone.
"""

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

Scaling = Literal["alpha", "alpha/r", "alpha/sqrt(r)"]

# What a target may be called, and what the layer is named in DistilBERT.
ALIASES: dict[str, tuple[str, ...]] = {
    "query": ("attention.q_lin",),
    "key": ("attention.k_lin",),
    "value": ("attention.v_lin",),
    "projection": ("attention.out_lin",),
    "mlp": ("ffn.lin1", "ffn.lin2"),
    "head": ("pre_classifier", "classifier"),
}


# Types that matrix products take as they are; a weight of another (8 bits, say) is decoded by its layer.
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class LoRALayer(nn.Module):
    """The low-rank update, scaling · (x A B).

    A and B are fp32, whatever the model is: updates of a low learning rate would vanish in bf16.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        r: Rank, 1 up to in_features.
        alpha: Strength of the update.
        scaling: Factor on the update: "alpha" as in the article, "alpha/r" as in the LoRA paper and PEFT,
            "alpha/sqrt(r)" as in rsLoRA (Kalajdzievski, arXiv 2312.03732).
        dropout: Dropout probability on the input of this branch, while training.
        generator: Source of A's random numbers; None takes torch's global one.

    Raises:
        ValueError: r, alpha, scaling or dropout is out of range.
        TypeError: r is no whole number.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        r: int,
        alpha: float,
        *,
        scaling: Scaling = "alpha",
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        r, alpha, dropout = operator.index(r), float(alpha), float(dropout)  # numpy's numbers, too, are numbers
        if not math.isfinite(alpha):
            raise ValueError(f"alpha={alpha} is not a finite number; use one such as 16")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout={dropout} is no probability in [0, 1)")
        # Only the input side bounds r: the article's grid adapts the two-class output layer with r up to 32.
        if not 1 <= r <= in_features:
            raise ValueError(f"rank r={r} does not fit a layer with {in_features} inputs; use 1 to {in_features}")
        factors = {"alpha": alpha, "alpha/r": alpha / r, "alpha/sqrt(r)": alpha / math.sqrt(r)}
        if scaling not in factors:
            raise ValueError(f"scaling {scaling!r} is unknown; use one of {', '.join(factors)}")
        self.scaling = factors[scaling]
        self.lora_A = nn.Parameter(torch.randn(in_features, r, generator=generator) / math.sqrt(r))  # N(0, 1/r)
        self.lora_B = nn.Parameter(torch.zeros(r, out_features))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """The update for x: (..., in_features) -> (..., out_features), in the wider of the types of x and A."""
        A: Tensor = self.lora_A
        B: Tensor = self.lora_B
        if x.dtype != A.dtype and not torch.is_autocast_enabled(x.device.type):  # which would convert by itself
            wider = torch.promote_types(x.dtype, A.dtype)
            x, A, B = x.to(wider), A.to(wider), B.to(wider)
        update: Tensor = self.scaling * (self.dropout(x) @ A @ B)
        return update

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same update as a matrix, scaling · A B: (in_features, out_features)."""
        return self.scaling * (self.lora_A.to(dtype) @ self.lora_B.to(dtype))

    def extra_repr(self) -> str:
        """What printing a model shows of it."""
        (in_features, r), (_, out_features) = self.lora_A.shape, self.lora_B.shape
        return f"in_features={in_features}, out_features={out_features}, r={r}, scaling={self.scaling:g}"


class LinearWithLoRA(nn.Module):
    """A linear layer and the low-rank update beside it.

    Args:
        linear: The layer that is adapted; nn.Linear, or the Conv1D of GPT-2, which stores its weight transposed.
        lora: The update, of the same width.

    Attributes:
        in_features: Width of the input.
        out_features: Width of the output.
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer) -> None:
        super().__init__()
        self.linear = linear
        self.lora = lora.to(_weight(linear).device)
        self.in_features, self.out_features = _features(linear)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output: (..., in_features) -> (..., out_features)."""
        y: Tensor = self.linear(x)
        update: Tensor = self.lora(x)
        return y + update.to(y.dtype)

    @property
    def weight(self) -> Tensor:
        """The adapted weight, for networks that reach into a layer instead of calling it.

        torch's own TransformerEncoderLayer and MultiheadAttention do; without this they would pass LoRA by.
        """
        return self._adapted().to(_weight(self.linear).dtype)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the linear layer; LoRA has none."""
        return self.linear.bias  # type: ignore[return-value]

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Hand on what is assigned as weight or bias, to tie it to an embedding say, to the linear layer."""
        if name in ("weight", "bias"):
            self.linear.register_parameter(name, param)
        else:
            super().register_parameter(name, param)

    def _adapted(self) -> Tensor:
        """The adapted weight, W + scaling · (A B)ᵀ, in fp32 (fp64 if W is) and in the linear layer's own layout."""
        weight = _weight(self.linear)
        wider = torch.promote_types(weight.dtype, torch.float32)
        delta = self.lora.delta(wider)
        return weight.to(wider) + (delta.T if isinstance(self.linear, nn.Linear) else delta)


def inject_lora(
    model: nn.Module,
    targets: str | Sequence[str],
    r: int = 8,
    alpha: float = 16.0,
    *,
    scaling: Scaling = "alpha",
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    layer: type[LinearWithLoRA] = LinearWithLoRA,
) -> list[str]:
    """Put a LoRA update beside every linear layer that a target names, in place.

    The output of the model does not change (B is zero), nor what else requires gradients: freeze the model first. A
    layer that stands in several places is adapted in all of them, under its first name, by the same update.

    Args:
        model: Any network; one whose layers are named as DistilBERT's can use the names in `ALIASES`.
        targets: Layer names: an alias, a name or its last parts ("c_attn", "attention.self.query"), or a pattern
            with * and ? ("encoder.*.linear1"). A string is one of them.
        r: Rank.
        alpha: Strength of the update.
        scaling: See `LoRALayer`.
        dropout: Dropout probability on the input of the updates.
        generator: Source of the random A.
        layer: What holds a linear layer and its update: `LinearWithLoRA`, or `lora_study.dora.LinearWithDoRA`.

    Returns:
        The names of the adapted layers, in the model's order.

    Raises:
        ValueError: a target matches no linear layer, one that is adapted already or one that is no plain linear layer
            (its weight is computed or quantised, or it computes something else); r does not fit; or dropout could
            never act. The model is then unchanged.
    """
    names = _find_linears(model, [targets] if isinstance(targets, str) else targets)
    adapted: list[tuple[nn.Module, nn.Module]] = []
    for name in names:
        linear = model.get_submodule(name)
        try:
            if dropout and isinstance(linear, NonDynamicallyQuantizableLinear):
                raise ValueError("torch's MultiheadAttention reads its weight, so that dropout could never act; use 0")
            lora = LoRALayer(*_features(linear), r, alpha, scaling=scaling, dropout=dropout, generator=generator)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        adapted.append((linear, layer(linear, lora)))
    _replace(model, adapted)
    return names


def merge_lora(model: nn.Module) -> dict[str, tuple[LinearWithLoRA, Tensor]]:
    """Add every update to its weight, W' = W + scaling · (A B)ᵀ, and put the plain linear layer back, in place.

    The sum is formed in fp32 (fp64 for a weight of fp64) and stored in the weight's own type, so load the base model in
    fp32 to keep all of the update. A model without LoRA is left as it is, so merging twice is harmless.

    Returns:
        The adapted layer and the weight W that it had, by layer name, as `unmerge_lora` takes them. Drop it to free
        the memory of the old weights.

    Raises:
        ValueError: a merged weight has numbers that are not finite, or a layer is no plain linear layer any more;
            nothing is merged then.
    """
    layers = dict(lora_layers(model))
    merged: dict[str, Tensor] = {}
    for name, layer in layers.items():
        if reason := _why_not_plain(layer.linear):
            raise ValueError(f"{name} cannot be merged: {reason}")
        if layer.linear._forward_hooks or layer.linear._forward_pre_hooks:
            raise ValueError(f"{name} cannot be merged: it has forward hooks, which would see the update; remove them")
        merged[name] = layer.weight.detach()
        if not merged[name].is_meta and not merged[name].isfinite().all():
            kind = str(merged[name].dtype).removeprefix("torch.")
            raise ValueError(f"{name} cannot be merged: its sum with the update has numbers that are not finite {kind}")
    removed: dict[str, tuple[LinearWithLoRA, Tensor]] = {}
    for name, layer in layers.items():
        base = _weight(layer.linear)
        removed[name] = layer, base
        # A new parameter, not an in-place sum: a weight tied to an embedding must not change the embedding.
        layer.linear.weight = nn.Parameter(merged[name], requires_grad=base.requires_grad)
    _replace(model, [(layer, layer.linear) for layer in layers.values()])
    return removed


def unmerge_lora(model: nn.Module, removed: Mapping[str, tuple[LinearWithLoRA, Tensor]]) -> None:
    """Undo `merge_lora` exactly: the adapted layers take their places again, and the old weights theirs.

    Raises:
        ValueError: a layer is not the one that was merged; the model is then unchanged.
    """
    modules = dict(model.named_modules())
    for name, (layer, _) in removed.items():
        if modules.get(name) is not layer.linear:
            raise ValueError(f"{name!r} is not the layer that was merged; unmerge the very model merge_lora was given")
    for layer, base in removed.values():
        device = _weight(layer.linear).device  # the model may have moved since
        layer.linear.weight = base
        layer.to(device)
    _replace(model, [(layer.linear, layer) for layer, _ in removed.values()])


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LinearWithLoRA]]:
    """Name and module of every adapted layer."""
    for name, module in model.named_modules():
        if isinstance(module, LinearWithLoRA):
            yield name, module


def lora_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every A and B in the model, and DoRA's magnitudes: chosen by the type of what holds them, not by name."""
    for module in model.modules():
        if isinstance(module, (LoRALayer, LinearWithLoRA)):
            yield from module.parameters(recurse=False)


def parameter_groups(model: nn.Module, learning_rate: float, lr_ratio: float = 1.0) -> list[dict[str, Any]]:
    """The parameters that require gradients, as an optimizer takes them; every B at learning_rate · lr_ratio.

    That is LoRA+ (Hayou et al., arXiv 2402.12354): in a wide model B, which starts at zero, learns too slowly at the
    rate that suits A. Its authors suggest a ratio of 16. With a ratio of 1, or without LoRA, there is one group.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    faster = {id(module.lora_B) for module in model.modules() if isinstance(module, LoRALayer) and lr_ratio != 1}
    groups = [
        {"params": [parameter for parameter in trained if id(parameter) not in faster], "lr": learning_rate},
        {"params": [parameter for parameter in trained if id(parameter) in faster], "lr": learning_rate * lr_ratio},
    ]
    return [group for group in groups if group["params"]]


def _find_linears(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """First names of the linear layers that the targets match, in the model's order."""
    everywhere = dict(model.named_modules(remove_duplicate=False))
    wrapped = tuple(f"{name}." for name, module in everywhere.items() if isinstance(module, LinearWithLoRA))
    modules = {name: module for name, module in everywhere.items() if name and not name.startswith(wrapped)}
    linears = {name: module for name, module in modules.items() if _is_linear(module)}
    found: set[int] = set()
    if not targets:
        raise ValueError(f"targets is empty; this model has {_listing(linears)}")
    for target in targets:
        patterns = (target, *ALIASES.get(target, ()))
        matches = [
            name for name in modules if any(fnmatchcase(name, p) or fnmatchcase(name, f"*.{p}") for p in patterns)
        ]
        if twice := [name for name in matches if isinstance(modules[name], LinearWithLoRA)]:
            raise ValueError(f"target {target!r}: {twice[0]} has a LoRA update already; merge it first")
        if not any(name in linears for name in matches):
            reason = f"{matches[0]} is a {type(modules[matches[0]]).__name__}" if matches else "no layer has that name"
            raise ValueError(
                f"target {target!r} matches no linear layer ({reason}); this model has {_listing(linears)}"
            )
        for name in matches:
            if name in linears and (special := _why_not_plain(linears[name])):
                raise ValueError(f"target {target!r}: {name} cannot be adapted: {special}")
        found.update(id(linears[name]) for name in matches if name in linears)
    first = {id(module): name for name, module in reversed(linears.items())}
    return [name for name, module in linears.items() if id(module) in found and first[id(module)] == name]


def _is_linear(module: nn.Module) -> bool:
    # transformers' Conv1D (GPT-2) is a linear layer with a transposed weight; known by name so that torch suffices.
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def _why_not_plain(linear: nn.Module) -> str | None:
    """Why a linear layer is not y = x Wᵀ + b with a W that is stored as it is; None if it is."""
    kind = type(linear)
    if is_parametrized(linear) or "weight" not in linear._parameters:  # pruning and norms store parts of it instead
        return "its weight is computed from others (parametrised, normed or pruned); make that permanent first"
    inherited = kind.__name__ == "Conv1D" or getattr(kind, "forward", None) is nn.Linear.forward
    if not inherited or "forward" in vars(linear):
        return f"a {kind.__name__} with a forward of its own may compute something else; use a plain linear layer"
    weight = linear._parameters["weight"]
    if type(weight) is not nn.Parameter or weight.dtype not in PLAIN_DTYPES:
        dtype = str(getattr(weight, "dtype", "no")).removeprefix("torch.")
        return f"its weight is a {type(weight).__name__} of {dtype} numbers; load the model in fp32, bf16 or fp16"
    return None


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight


def _features(linear: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    rows, columns = _weight(linear).shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def _replace(model: nn.Module, pairs: Sequence[tuple[nn.Module, nn.Module]]) -> None:
    """Put modules in the places of others, in every place that those have."""
    new = {id(old): module for old, module in pairs}
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would pass over a second place
            if id(child) in new and new[id(child)] is not parent:
                setattr(parent, name, new[id(child)])


def _listing(linears: Mapping[str, nn.Module]) -> str:
    """The linear layers there are, with the blocks of a deep network folded into one pattern."""
    folded = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in linears)
    return ", ".join(folded) or "no linear layer"
