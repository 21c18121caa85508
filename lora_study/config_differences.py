"""Which settings may differ in a repetition, an average or a comparison of costs; and departures from the article.

As far as possible, every list here follows from what the settings declare in config.py (see `base.settings.setting`).
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lora_study.base.settings import changing
from lora_study.config import ExperimentConfig, flatten, to_dict

# A run and its repetition may differ in where things lie, and in how much of the result is kept.
NO_OTHER_RUN = changing(ExperimentConfig, "nothing")

# Runs whose accuracies are compared or averaged may also differ in what affects only cost.
NO_OTHER_RESULT = changing(ExperimentConfig, "cost", "nothing")

# Runs whose time or memory is averaged may not differ in these.
COSTS = changing(ExperimentConfig, "cost")

# Nor may experiments whose time or memory is compared; but these may differ in what the comparison is about, and in
# what does not affect the training steps, which are all that is compared. No setting can declare that by itself.
NO_OTHER_WORK = (
    *changing(ExperimentConfig, "nothing"),
    *("name", "mode", "seed", "seeds", "lora", "partial", "train.learning_rate", "train.schedule", "train.warmup"),
    *("train.weight_decay", "score_test", "data.sizes.test", "data.drop_last"),
)

# Where our default is not what the article did: no padding that is masked anyway, and no unscored review.
NOT_FOLLOWED = {"data.padding": "max_length", "data.drop_last": True}

# What the article itself varied, in its rows or from seed to seed, or left open is no departure from its recipe. Which
# settings these are follows from the article, not from what they change.
LEFT_OPEN = (
    *("name", "mode", "seed", "seeds", "lora.r", "lora.alpha", "lora.targets", "partial", "score_test"),
    *("model.revision", "data.revision", "data.split_seed"),
    *("data.text_column", "data.label_column", "data.labels"),  # part of data.source, which counts
)


def without(settings: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Settings by dotted name without some of them, or without whole sections."""
    left_out = tuple(names)
    return {
        key: value
        for key, value in settings.items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }


def deviations(config: ExperimentConfig) -> list[dict[str, Any]]:
    """Where a run departs from the article's recipe: one {field, article, here} per departure.

    A setting that changes no result is no departure, except where this study departs on purpose: that is always listed.
    """
    article, here = flatten(to_dict(ExperimentConfig())) | NOT_FOLLOWED, flatten(to_dict(config))
    other_mode = () if config.mode == "lora" else ("lora",)
    no_departure = {*NO_OTHER_RESULT, *LEFT_OPEN, *other_mode} - NOT_FOLLOWED.keys()
    return [
        {"field": key, "article": article[key], "here": value}
        for key, value in without(here, no_departure).items()
        if value != article[key]
    ]
