"""Numbers that follow from the shape of a network, or from the reported numbers, without running anything."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from scipy.stats import norm

from lora_study.evidence.statistics import CONFIDENCE
from lora_study.records.record import Record


@dataclass(frozen=True)
class Shape:
    """The sizes of a DistilBertForSequenceClassification that decide how many parameters it has.

    Attributes:
        dim: Width of the hidden states.
        hidden: Width of the feed-forward layers.
        blocks: Transformer blocks.
        vocabulary: Word pieces.
        positions: Position embeddings.
        labels: Classes.
    """

    dim: int
    hidden: int
    blocks: int = 6
    vocabulary: int = 30_522
    positions: int = 512
    labels: int = 2

    @property
    def block(self) -> int:
        """Parameters of one block: four attention linears, two feed-forward linears, two layer norms."""
        attention = 4 * (self.dim**2 + self.dim)
        feed_forward = 2 * self.dim * self.hidden + self.hidden + self.dim
        return attention + feed_forward + 4 * self.dim

    @property
    def head(self) -> int:
        """Parameters of pre_classifier and classifier."""
        return self.dim**2 + self.dim + self.classifier

    @property
    def classifier(self) -> int:
        """Parameters of the last layer."""
        return self.dim * self.labels + self.labels

    @property
    def total(self) -> int:
        """All parameters: word and position embeddings with their layer norm, the blocks, the head."""
        return (self.vocabulary + self.positions + 2) * self.dim + self.blocks * self.block + self.head

    def linears(self, target: str) -> list[tuple[int, int]]:
        """Inputs and outputs of the linears that a LoRA target names, over all blocks.

        Raises:
            ValueError: the target is not one of the six names (it may be a pattern).
        """
        square, wide = (self.dim, self.dim), (self.dim, self.hidden)
        if target == "head":
            return [square, (self.dim, self.labels)]
        per_block = {"mlp": [wide, wide[::-1]]} | {name: [square] for name in ("query", "key", "value", "projection")}
        if target not in per_block:
            raise ValueError(f"{target!r} is none of {', '.join(per_block)}, head")
        return per_block[target] * self.blocks


REFERENCE = "distilbert-base-uncased"
# By the encoder's name in a record. The sizes are those of each model's config.json.
SHAPES = {
    REFERENCE: Shape(dim=768, hidden=3072),
    "all-MiniLM-L6-v2 rewritten as DistilBERT": Shape(dim=384, hidden=1536),
}


def trainable(
    mode: str,
    r: int = 8,
    targets: Sequence[str] = ("query", "value"),
    train_head: bool = False,
    pre_classifier: bool = True,
    blocks: int = 0,
    shape: Shape = SHAPES[REFERENCE],
) -> int:
    """Trainable parameters of a fine-tuning mode; the arguments are the fields of the config with these names."""
    if mode == "full":
        return shape.total
    if mode == "last_two_layers":
        return shape.head
    if mode == "partial":
        return (shape.head if pre_classifier else shape.classifier) + blocks * shape.block
    if mode != "lora":
        raise ValueError(f"mode {mode!r} is none of lora, last_two_layers, partial, full")
    updates = sum(lora_update(*sizes, r) for target in targets for sizes in shape.linears(target))
    return updates + (shape.head if train_head else 0)


def linear(inputs: int, outputs: int) -> int:
    """Weights of a linear layer, without bias."""
    return inputs * outputs


def lora_update(inputs: int, outputs: int, r: int) -> int:
    """Parameters of a LoRA update: A of shape (inputs, r) and B of shape (r, outputs)."""
    return r * (inputs + outputs)


def half_width(accuracy: float, n: int) -> float:
    """Half the width, in points, of the normal 95% interval of an accuracy in percent on n reviews."""
    z = float(norm.ppf((1 + CONFIDENCE) / 2))
    return z * math.sqrt(accuracy * (100 - accuracy) / n)


def reviews_apart(first: float, second: float, n: int) -> float:
    """How many of n reviews lie between two accuracies in percent."""
    return (first - second) * n / 100


def left_over(n: int, batch: int) -> int:
    """How many of n reviews an incomplete last batch holds."""
    return n % batch


def product(factors: Sequence[float]) -> float:
    """The product of some numbers."""
    return math.prod(factors)


FORMULAS: Mapping[str, Callable[..., float]] = {
    formula.__name__: formula
    for formula in (trainable, linear, lora_update, half_width, reviews_apart, left_over, product)
}


def evaluate_formula(content: Mapping[str, Any] | float) -> float:
    """A number, or the value of ``{formula: NAME, argument: value, ...}``.

    Raises:
        ValueError: the formula is unknown or its arguments do not fit.
    """
    if not isinstance(content, Mapping):
        return content
    arguments = dict(content)
    name = arguments.pop("formula", None)
    if name not in FORMULAS:
        raise ValueError(f"formula {name!r} is none of {', '.join(FORMULAS)}")
    try:
        return FORMULAS[name](**arguments)
    except TypeError as error:
        raise ValueError(str(error)) from error


def expected_trainable(record: Record) -> int | None:
    """The trainable parameters a record should have counted; None where its encoder's shape is not known here."""
    shape, values = SHAPES.get(record.encoder.name or ""), record.flat
    fields = ("lora.r", "lora.targets", "lora.train_head", "partial.pre_classifier", "partial.blocks")
    recipe = {field.split(".")[1]: values[f"config.{field}"] for field in fields if f"config.{field}" in values}
    if record.mode == "lora" and values.get("config.lora.variant") == "dora":
        return None  # which trains magnitudes too, and is no experiment of the article
    try:
        return trainable(record.mode, **recipe, shape=shape) if shape else None
    except ValueError:  # a target given as a pattern: only the model itself knows what it matches
        return None
