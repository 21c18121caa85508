"""The adapter_config.json of Hugging Face PEFT: the part that plain LoRA and DoRA need; the rest is refused."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError, check, one_line
from lora_study.base.files import read_json

ADAPTER_CONFIG = "adapter_config.json"
# Modules that PEFT's adapters for a task store whole, whether or not their modules_to_save says so.
IMPLIED = {
    **dict.fromkeys(("SEQ_CLS", "TOKEN_CLS"), ("classifier", "score")),
    "QUESTION_ANS": ("qa_outputs",),
}
# Fields of an adapter_config.json that say nothing about what the adapter computes.
INERT = {
    *("peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
    *("inference_mode", "fan_in_fan_out", "megatron_core", "qalora_group_size"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),  # for the start, which init_lora_weights tells
}


@dataclass(frozen=True)
class PeftConfig:
    """The part of an adapter_config.json that is read; the names are PEFT's.

    Attributes:
        r: Rank.
        lora_alpha: Strength of the update; the factor on it is lora_alpha / r.
        target_modules: Adapted layers: full names or their last parts, or a regular expression for full names.
        exclude_modules: Layers that are not adapted even if they are targets.
        modules_to_save: Ends of the names of modules that are stored whole, such as the head.
        task_type: What the model is for; adapters of classifiers store the head, see `IMPLIED`.
        layers_to_transform: Numbers of the blocks that are adapted, or the one number; all if None or empty.
        layers_pattern: What the list of blocks may be called.
        rank_pattern: Regular expression for a layer's name (or its last parts) -> its own rank.
        alpha_pattern: The same for lora_alpha.
        use_rslora: Whether the factor is lora_alpha / sqrt(r) instead.
        use_dora: Whether the layers are DoRA's.
        lora_dropout: Dropout probability on the input of the updates.
        init_lora_weights: How the weights were initialised; some ways change the base weights too.
    """

    r: int
    lora_alpha: float
    target_modules: str | list[str]
    exclude_modules: str | list[str] = field(default_factory=list)
    modules_to_save: list[str] = field(default_factory=list)
    task_type: str | None = None
    layers_to_transform: int | list[int] = field(default_factory=list)
    layers_pattern: str | list[str] = field(default_factory=list)
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_dropout: float = 0.0
    init_lora_weights: bool | str = True

    @property
    def stored_whole(self) -> list[str]:
        """Ends of the names of modules that are stored whole, including those that the task implies."""
        return [*self.modules_to_save, *IMPLIED.get(self.task_type or "", ())]

    def adapts(self, layer: str) -> bool:
        """Whether a layer with that name gets an update."""
        if matches(self.exclude_modules, layer) or not matches(self.target_modules, layer):
            return False
        blocks = [self.layers_to_transform] if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        if not blocks or layer in self.target_modules:  # PEFT takes a full name as it stands
            return True
        lists = [self.layers_pattern] if isinstance(self.layers_pattern, str) else self.layers_pattern
        # The block's number is the first one in the name that follows a name in layers_pattern; without a pattern, the
        # first that follows any part of the name but the very first.
        patterns = [_block_below(name) for name in lists if name] or [r".*?\.[^.]*\.(?P<block>\d+)\."]
        found = next((match for pattern in patterns if (match := re.match(pattern, layer))), None)
        return found is not None and int(found["block"]) in blocks

    def update(self, layer: str) -> tuple[int, float]:
        """Rank of a layer's update and the factor on it."""
        r = int(_pattern(self.rank_pattern, layer, self.r))
        alpha = _pattern(self.alpha_pattern, layer, self.lora_alpha)
        return r, alpha / (math.sqrt(r) if self.use_rslora else r)


def read_peft_config(folder: Path) -> PeftConfig:
    """Read and check an adapter_config.json.

    Raises:
        ConfigError: it is missing, malformed, or describes what is not plain LoRA or DoRA.
    """
    path = folder / ADAPTER_CONFIG
    try:
        content = read_json(path)
    except FileNotFoundError:
        run = (folder / "record.json").exists()
        hint = "lora-study export makes an adapter of a run" if run else "name an adapter's folder"
        raise ConfigError(f"{folder} has no {ADAPTER_CONFIG}; {hint}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({one_line(error)}); save the adapter again") from error
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        found = content.get("peft_type") if isinstance(content, dict) else None
        raise ConfigError(f"{path} is of peft_type {found!r}; only 'LORA' adapters are read")
    known = {f.name for f in dataclasses.fields(PeftConfig)}
    for name, value in content.items():
        # PEFT writes every field of every variant; what is off is null, false, empty or "none".
        if name not in known | INERT and not _is_off(value):
            raise ConfigError(f"{path} sets {name} to {value!r}, which is not supported; only plain LoRA and DoRA are")
    for f in dataclasses.fields(PeftConfig):
        value = content.get(f.name)
        optional = f.default is not dataclasses.MISSING or f.default_factory is not dataclasses.MISSING
        if value is not None or not optional:
            valid, words = CHECKS[f.name]
            check(valid(value), f"{path}: {f.name}", value, f"it must be {words}")
    config = PeftConfig(**{name: value for name, value in content.items() if name in known and value is not None})
    for name in ("layers_to_transform", "layers_pattern"):
        value = getattr(config, name)
        check(
            _is_off(value) or not isinstance(config.target_modules, str),
            f"{path}: {name}",
            value,
            "it needs a list of target_modules",
        )
    check(
        _is_off(config.layers_pattern) or not _is_off(config.layers_to_transform),
        f"{path}: layers_pattern",
        config.layers_pattern,
        "it needs layers_to_transform",
    )
    return config


def matches(names: str | list[str], layer: str) -> bool:
    """Whether a layer is one of those named: by a regular expression, or by full names or their last parts."""
    if isinstance(names, str):
        return re.fullmatch(names, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in names)


def _pattern(patterns: Mapping[str, float], layer: str, default: float) -> float:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", layer)), default)


def _block_below(blocks: Any) -> str:
    """A pattern for layers in the numbered blocks of a list with that name."""
    return rf"(?:^|.*?\.){blocks}\.(?P<block>\d+)\."


def _is_off(value: Any) -> bool:
    return value is None or value is False or value in ("", "none", [], {})  # 0 is a number and counts as set


# JSON gives plain numbers, so their exact type tells true from 1.


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e38  # as fp32


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value < 2**31


def _is_expression(value: Any) -> bool:
    try:
        re.compile(value)
    except (re.error, TypeError):
        return False
    return isinstance(value, str)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_patterns(value: Any, is_valid: Callable[[Any], bool]) -> bool:
    return isinstance(value, dict) and all(map(_is_expression, value)) and all(map(is_valid, value.values()))


# What each field's value must be, as JSON gives it.
CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "r": (_is_rank, "a whole number of 1 or more"),
    "lora_alpha": (_is_number, "a finite number"),
    "target_modules": (
        lambda v: bool(v) and (_are_names(v) or _is_expression(v)),
        "a list of layers or a regular expression",
    ),
    "exclude_modules": (lambda v: _are_names(v) or _is_expression(v), "a list of layers or a regular expression"),
    "modules_to_save": (_are_names, "a list of modules"),
    "task_type": (lambda v: isinstance(v, str), "a name"),
    "layers_to_transform": (
        lambda v: all(type(block) is int for block in (v if isinstance(v, list) else [v])),
        "a number or numbers of blocks",
    ),
    "layers_pattern": (
        lambda v: all(
            isinstance(name, str) and _is_expression(_block_below(name)) for name in (v if isinstance(v, list) else [v])
        ),
        "names of lists of blocks",
    ),
    "rank_pattern": (lambda v: _are_patterns(v, _is_rank), "ranks of 1 or more by regular expression"),
    "alpha_pattern": (lambda v: _are_patterns(v, _is_number), "finite numbers by regular expression"),
    "use_rslora": (lambda v: isinstance(v, bool), "true or false"),
    "use_dora": (lambda v: isinstance(v, bool), "true or false"),
    "lora_dropout": (lambda v: _is_number(v) and 0 <= v < 1, "a probability in [0, 1)"),
    "init_lora_weights": (
        lambda v: isinstance(v, bool) or v in ("gaussian", "eva", "orthogonal", "mica"),
        "a way that leaves the base weights alone; have PEFT convert the adapter to plain LoRA when it saves it",
    ),
}
