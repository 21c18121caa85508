"""Made-up predictions that agree with made-up records, and a study with everything a report can show."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from fabricate import curves, failed, record, write_run

from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from
from lora_study.records.record import Record, run_dir


def predictions(run: Record, salt: int = 0) -> pd.DataFrame:
    """Predictions with exactly the accuracy of the record; the same reviews are hard for every model."""
    n = run.metrics["test"]["n"]
    rng = np.random.default_rng([run.seed, salt])
    hard = np.random.default_rng(0).random(n) + 0.15 * rng.standard_normal(n)
    right = np.zeros(n, dtype=bool)
    right[np.argsort(hard)[: round(run.metrics["test"]["accuracy"] * n)]] = True
    label = np.arange(n) % 2
    sure = rng.uniform(0.55, 0.99, n)
    return pd.DataFrame(
        {
            "id": [f"review-{i}" for i in range(n)],
            "label": label,
            "probability": np.where(right == (label == 1), sure, 1 - sure),
        }
    )


def variant(name: str, seed: int, test: float, **config: Any) -> Record:
    """A completed run with other settings, and the departures that these are."""
    run = record(name, seed, test, config=config)
    return dataclasses.replace(run, deviations=deviations(experiment_from(run.config)))


def write_whole_run(results_dir: Path, run: Record, curves_text: str | None = None, salt: int = 0) -> None:
    """Put a completed run where a study puts it, with curves and predictions."""
    write_run(results_dir, run, curves_text)
    predictions(run, salt).to_parquet(run_dir(results_dir, run.name, run.seed) / "predictions.parquet", index=False)


def write_whole_study(results_dir: Path) -> None:
    """Four experiments, three seeds of lora_default, a variant of it, and one failed run of full."""
    runs = [record("last_two_layers", 1, 0.69), record("lora_best", 1, 0.802), record("full", 1, 0.808)]
    runs += [record("lora_default", seed, 0.77 + seed / 200) for seed in (1, 2, 3)]
    runs += [variant("lora_default_short", 1, 0.745, data={"max_length": 128})]
    for number, run in enumerate(runs):
        write_whole_run(results_dir, run, curves(0.03 * number), salt=number)
    write_run(results_dir, failed("full", 2))
