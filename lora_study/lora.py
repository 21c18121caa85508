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
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

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


class LoRALayer(nn.Module):
    """The low-rank update, scaling · (x A B).

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
        ValueError: r or scaling is out of range.
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
        """The update for x: (..., in_features) -> (..., out_features)."""
        update: Tensor = self.scaling * (self.dropout(x) @ self.lora_A @ self.lora_B)
        return update

    def delta(self) -> Tensor:
        """The same update as a matrix, scaling · A B, in fp32: (in_features, out_features)."""
        return self.scaling * (self.lora_A.float() @ self.lora_B.float())


class LinearWithLoRA(nn.Module):
    """A linear layer and the low-rank update beside it.

    Args:
        linear: The layer that is adapted; nn.Linear, or the Conv1D of GPT-2, which stores its weight transposed.
        lora: The update, of the same width.
    """

    def __init__(self, linear: nn.Module, lora: LoRALayer) -> None:
        super().__init__()
        self.linear = linear
        self.lora = lora.to(_weight(linear).device)

    def forward(self, x: Tensor) -> Tensor:
        """The adapted layer's output: (..., in_features) -> (..., out_features)."""
        y: Tensor = self.linear(x) + self.lora(x)
        return y

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

    def _adapted(self) -> Tensor:
        """The adapted weight, W + scaling · (A B)ᵀ, in fp32 and in the linear layer's own layout."""
        delta = self.lora.delta()
        return _weight(self.linear).float() + (delta.T if isinstance(self.linear, nn.Linear) else delta)


def inject_lora(
    model: nn.Module,
    targets: Sequence[str],
    r: int = 8,
    alpha: float = 16.0,
    *,
    scaling: Scaling = "alpha",
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
    layer: type[LinearWithLoRA] = LinearWithLoRA,
) -> list[str]:
    """Put a LoRA update beside every linear layer that a target names, in place.

    The output of the model does not change (B is zero), nor what else requires gradients: freeze the model first.

    Args:
        model: Any network; one whose layers are named as DistilBERT's can use the names in `ALIASES`.
        targets: Layer names: an alias, a name or its last parts ("c_attn", "attention.self.query"), or a pattern
            with * and ? ("encoder.*.linear1").
        r: Rank.
        alpha: Strength of the update.
        scaling: See `LoRALayer`.
        dropout: Dropout probability on the input of the updates.
        generator: Source of the random A.
        layer: What holds a linear layer and its update: `LinearWithLoRA`, or `lora_study.dora.LinearWithDoRA`.

    Returns:
        The names of the adapted layers, in the model's order.

    Raises:
        ValueError: a target matches no linear layer or one that is adapted already, or r does not fit; the model
            is then unchanged.
    """
    names = _find_linears(model, targets)
    adapted: dict[str, LinearWithLoRA] = {}
    for name in names:
        linear = model.get_submodule(name)
        try:
            lora = LoRALayer(*_features(linear), r, alpha, scaling=scaling, dropout=dropout, generator=generator)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        adapted[name] = layer(linear, lora)
    for name, module in adapted.items():
        _replace(model, name, module)
    return names


def merge_lora(model: nn.Module) -> dict[str, tuple[LinearWithLoRA, Tensor]]:
    """Add every update to its weight, W' = W + scaling · (A B)ᵀ, and put the plain linear layer back, in place.

    The sum is formed in fp32 and stored in the weight's own type, so load the base model in fp32 to keep all of
    the update. A model without LoRA is left as it is, so merging twice is harmless.

    Returns:
        The adapted layer and the weight W that it had, by layer name, as `unmerge_lora` takes them. Who does not
        keep them frees the memory of the old weights.
    """
    removed: dict[str, tuple[LinearWithLoRA, Tensor]] = {}
    for name, layer in list(lora_layers(model)):
        base = _weight(layer.linear)
        removed[name] = layer, base
        # A new parameter, not an in-place sum: a weight tied to an embedding must not change the embedding.
        layer.linear.weight = nn.Parameter(layer.weight.detach(), requires_grad=base.requires_grad)
        _replace(model, name, layer.linear)
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
    for name, (layer, base) in removed.items():
        device = _weight(layer.linear).device  # the model may have moved since
        layer.linear.weight = base
        _replace(model, name, layer.to(device))


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
    """Names of the linear layers that the targets match, in the model's order."""
    wrapped = tuple(f"{name}." for name, _ in lora_layers(model))
    modules = {name: module for name, module in model.named_modules() if name and not name.startswith(wrapped)}
    linears = {name: module for name, module in modules.items() if _is_linear(module)}
    found: set[str] = set()
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
        found.update(name for name in matches if name in linears)
    return [name for name in linears if name in found]


def _is_linear(module: nn.Module) -> bool:
    # transformers' Conv1D (GPT-2) is a linear layer with a transposed weight; known by name so that torch suffices.
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def _weight(linear: nn.Module) -> Tensor:
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight


def _features(linear: nn.Module) -> tuple[int, int]:
    """(in_features, out_features) of a linear layer."""
    rows, columns = _weight(linear).shape
    return (columns, rows) if isinstance(linear, nn.Linear) else (rows, columns)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _listing(linears: Mapping[str, nn.Module]) -> str:
    """The linear layers there are, with the blocks of a deep network folded into one pattern."""
    folded = dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in linears)
    return ", ".join(folded) or "no linear layer"
