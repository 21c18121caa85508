"""settings.py: whatever a value comes from, its field holds what it says or refuses it before anything runs."""

import dataclasses
import json
import math
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from lora_study.base.errors import ConfigError
from lora_study.config import DataConfig, ExperimentConfig, LoRAConfig, flatten, to_dict
from lora_study.config_files import experiment_from, nested
from lora_study.config_studies import SweepConfig
from lora_study.evidence.claims.kinds import Fact


def sections(config=None, prefix=""):
    """Every config of an experiment, with the dotted prefix of its fields."""
    config = config or ExperimentConfig()
    yield config, prefix
    for f in dataclasses.fields(config):
        if dataclasses.is_dataclass(value := getattr(config, f.name)):
            yield from sections(value, f"{prefix}{f.name}.")


FIELDS = [(config, f, f"{prefix}{f.name}") for config, prefix in sections() for f in dataclasses.fields(config)]


def fields_of(*kinds):
    found = [case for case in FIELDS if set(get_args(case[1].type) or {case[1].type}) & set(kinds)]
    assert len(found) >= 5
    return pytest.mark.parametrize(("config", "field", "name"), found, ids=[name for *_, name in found])


@fields_of(int, float)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, np.float32("inf"), True, "3", [1], 10**400])
def test_a_number_is_finite_and_a_number(config, field, name, value):
    with pytest.raises(ConfigError, match=f"^{name.replace('.', '[.]')}: ") as error:
        dataclasses.replace(config, **{field.name: value})
    assert "\n" not in str(error.value)


@fields_of(float)
@pytest.mark.parametrize("value", [1e39, -1e39, 1e-46])
def test_a_fraction_is_one_of_single_precision(config, field, name, value):
    with pytest.raises(ConfigError, match=rf"{name}: .* single precision"):
        dataclasses.replace(config, **{field.name: value})


@fields_of(bool)
@pytest.mark.parametrize("value", [1, 0, 1.0, "yes", None, np.int64(1)])
def test_what_is_true_or_false_is_no_number_and_no_text(config, field, name, value):
    with pytest.raises(ConfigError, match=f"{name}: .* true or false"):
        dataclasses.replace(config, **{field.name: value})


@pytest.mark.parametrize(("config", "field", "name"), FIELDS, ids=[name for *_, name in FIELDS])
def test_numbers_of_numpy_and_torch_are_python_s_and_a_record_holds_them(config, field, name):
    value = getattr(config, field.name)
    if not isinstance(value, bool | int | float | str):
        return
    kinds = [np.array, np.bool_ if isinstance(value, bool) else np.str_ if isinstance(value, str) else np.float64]
    kinds = [*kinds[:1], np.int64] if type(value) is int else kinds
    if not isinstance(value, str):
        kinds.append(torch.tensor)
    for kind in kinds:
        changed = dataclasses.replace(config, **{field.name: kind(value)})
        assert type(getattr(changed, field.name)) is type(value)
        assert getattr(changed, field.name) == pytest.approx(value)
        json.dumps(to_dict(changed), allow_nan=False)


def test_types_are_those_that_a_file_gives():
    config = LoRAConfig(alpha=3, targets=["query", np.str_("key")])
    assert (config.alpha, type(config.alpha), config.targets) == (3.0, float, ("query", "key"))
    assert type(config.targets[1]) is str
    assert dataclasses.replace(ExperimentConfig(), seed=np.int64(3)).seed == 3
    assert DataConfig(source=Path("reviews.csv")).source == "reviews.csv"
    for changes in ({"targets": "query"}, {"targets": ("query", 3)}, {"variant": "LORA"}, {"r": np.float64(8)}):
        with pytest.raises(ConfigError, match=rf"lora\.{next(iter(changes))}"):
            LoRAConfig(**changes)
    with pytest.raises(ConfigError, match=r"lora: .* LoRAConfig"):
        ExperimentConfig(lora={"r": 4})


def test_a_name_that_no_record_could_hold_is_refused():
    with pytest.raises(ConfigError, match=r"data\.source: .* UTF-8"):
        DataConfig(source="\udce9.csv")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_every_number_of_a_file_is_checked_alike(value):
    numbers = [name for name, default in flatten(to_dict(ExperimentConfig())).items() if isinstance(default, float)]
    assert len(numbers) >= 6
    for name in numbers:
        with pytest.raises(ConfigError, match=name):
            experiment_from(nested(name, value))


def test_sweeps_and_claims_hold_what_a_file_could():
    sweep = SweepConfig("s", "S", "e.yaml", {"lora.r": (np.int64(2), 4)}, overrides={"train": {"threads": np.int32(2)}})
    assert json.dumps(to_dict(sweep))
    assert (sweep.parameters, sweep.overrides) == ({"lora.r": [2, 4]}, {"train": {"threads": 2}})
    with pytest.raises(ConfigError, match=r"parameters\.lora\.alpha"):
        SweepConfig("s", "S", "e.yaml", {"lora.alpha": [1.0, math.inf]})
    with pytest.raises(ConfigError, match="parameters"):
        SweepConfig("s", "S", "e.yaml", {"lora.alpha": [{1, 2}]})
    with pytest.raises(ConfigError, match="reported"):
        Fact(id="a", sentence="b", source="c", fields=("seed",), reported=math.nan)
