"""In which settings runs may differ and still be one run, one experiment or the same work; departures from the article.

Every list here follows from what the settings declare in config.py (see `base.settings.setting`), as far as it can.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lora_study.base.settings import changing
from lora_study.config import ExperimentConfig, flatten, to_dict

# A run and its repetition may differ in where things lie, and in what of the result is kept.
NO_OTHER_RUN = changing(ExperimentConfig, "nothing")

# Runs whose accuracies are compared or averaged may also differ in what only costs.
NO_OTHER_RESULT = changing(ExperimentConfig, "cost", "nothing")

# Runs whose time or memory is averaged may not.
COSTS = changing(ExperimentConfig, "cost")

# Nor may experiments whose time or memory is compared, which may differ in what the comparison is about instead, and in
# what the steps of training, which alone are compared, do not meet. No setting can declare that for every comparison.
NO_OTHER_WORK = (
    *changing(ExperimentConfig, "nothing"),
    *("name", "mode", "seed", "seeds", "lora", "partial", "train.learning_rate", "train.weight_decay"),
    *("score_test", "data.sizes.test", "data.drop_last"),
)

# Where this study's default is not what the article did: no padding that is masked anyway, no unscored review.
NOT_FOLLOWED = {"data.padding": "max_length", "data.drop_last": True}

# What the article varied itself, in its rows or from seed to seed, or left open: no departure from its recipe. Which
# settings these are follows from the article, not from what they change.
LEFT_OPEN = (
    *("name", "mode", "seed", "seeds", "lora.r", "lora.alpha", "lora.targets", "partial", "score_test"),
    *("model.revision", "data.revision", "data.split_seed"),
    *("data.text_column", "data.label_column", "data.labels"),  # of data.source, which is one
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

    What changes no result is none, but for what this study does not follow on purpose, which is always said.
    """
    article, here = flatten(to_dict(ExperimentConfig())) | NOT_FOLLOWED, flatten(to_dict(config))
    other_mode = () if config.mode == "lora" else ("lora",)
    no_departure = {*NO_OTHER_RESULT, *LEFT_OPEN, *other_mode} - NOT_FOLLOWED.keys()
    return [
        {"field": key, "article": article[key], "here": value}
        for key, value in without(here, no_departure).items()
        if value != article[key]
    ]
