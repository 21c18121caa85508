"""Training speed beside Hugging Face's PEFT + Trainer, measured in turn in one process.

python scripts/benchmark.py [--repeats 3] [--steps 30] [--max-length 256]

Both sides train the same encoder on the same reviews with the same batch size, length cap and precision. They
take turns, and what is printed is the median of the ratios of neighbouring measurements, which a machine whose
speed drifts does not distort. Tokenisation and setup are not timed; in row last_two_layers computing the features is.
"""

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from peers import peft_trainer_examples_per_second

from lora_study import provenance
from lora_study.backbones import build_model, build_tokenizer, describe
from lora_study.config import ExperimentConfig
from lora_study.config_files import load_experiment
from lora_study.data.datamodule import ReviewDataModule
from lora_study.data.sources import load_reviews
from lora_study.data.splits import split_reviews
from lora_study.experiment import make_fast, pick_device, pick_precision
from lora_study.features import FeatureDataModule, HeadOnFeatures
from lora_study.formats import markdown_table
from lora_study.modes import apply_mode
from lora_study.module import ReviewClassifier
from lora_study.records import write_text

CONFIGS = Path(__file__).parent.parent / "configs" / "embedded"
WARMUP = 5  # steps
EPOCHS = 3
FEATURE_REVIEWS = 600  # in row last_two_layers


@dataclass(frozen=True)
class Row:
    """One comparison: an experiment of ours and the dropout of both sides' attention probabilities."""

    experiment: str
    ours: float
    theirs: float
    reach: float  # the ratio to reach

    @property
    def setting(self) -> str:
        """What is compared, in words."""
        return "same dropout, none on attention" if self.theirs == self.ours else "against the peer's default dropout"


ROWS = (
    Row("lora_default", 0.0, 0.0, 1.3),
    Row("full", 0.0, 0.0, 1.3),
    Row("lora_default", 0.0, 0.1, 2.0),
    Row("full", 0.0, 0.1, 2.0),
    Row("last_two_layers", 0.0, 0.0, 4.0),
)


class Stopwatch(Callback):
    """Times the steps after the warm-up.

    Attributes:
        seconds: From the end of the last warm-up step to the end of training.
    """

    def __init__(self) -> None:
        self.seconds = self._start = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        """Start after the warm-up; note the time at every step after it."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if trainer.global_step == WARMUP:
            self._start = time.perf_counter()
        self.seconds = time.perf_counter() - self._start


def ours(config: ExperimentConfig, steps: int) -> float:
    """Reviews per second of our training, over `steps` steps after the warm-up; for row last_two_layers see below."""
    device = pick_device(config)
    precision = pick_precision(config, device)
    L.seed_everything(config.seed, verbose=False)
    data = ReviewDataModule(config.data, build_tokenizer(config.model), order_seed=config.seed)
    data.setup()
    model = build_model(config.model, head_seed=config.seed)
    apply_mode(model, config)
    dtype = make_fast(model, device, precision)
    stopwatch = Stopwatch()
    options: dict[str, Any] = {
        "accelerator": {"cuda": "gpu"}.get(device.type, device.type),
        "devices": 1,
        "precision": precision,
        "logger": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "callbacks": [stopwatch],
    }
    if config.train.cache_trunk:  # three epochs, with the features' cost in
        model.to(device)  # type: ignore[arg-type]
        start = time.perf_counter()
        features = FeatureDataModule(data, model, dtype)
        unused = features.seconds["val"] + features.seconds["test"]
        L.Trainer(max_epochs=EPOCHS, **options).fit(
            ReviewClassifier(HeadOnFeatures(model), config.train), features.train_dataloader()
        )
        return EPOCHS * len(data.parts["train"]) / (time.perf_counter() - start - unused)
    L.Trainer(max_epochs=-1, max_steps=WARMUP + steps, **options).fit(
        ReviewClassifier(model, config.train), data.train_dataloader()
    )
    return steps * config.data.batch_size / stopwatch.seconds


def theirs(config: ExperimentConfig, steps: int) -> float:
    """Reviews per second of PEFT + Trainer on the same reviews."""
    train = split_reviews(load_reviews(config.data), config.data)["train"]
    return peft_trainer_examples_per_second(
        config.model,
        config.mode,
        train["text"].tolist(),
        train["label"].tolist(),
        max_length=config.data.max_length,
        steps=steps,
        warmup=WARMUP,
        precision=pick_precision(config, pick_device(config)),
        batch_size=config.data.batch_size,
    )


def measure(row: Row, repeats: int, steps: int, max_length: int) -> dict[str, Any]:
    """Both sides of a row in turn, `repeats` times."""
    # A whole number of batches, so that every timed step trains as many reviews on both sides.
    reviews = FEATURE_REVIEWS if row.experiment == "last_two_layers" else 12 * (WARMUP + steps)

    def config(attention_dropout: float) -> ExperimentConfig:
        overrides = {
            "model": {"attention_dropout": attention_dropout},
            "data": {"max_length": max_length, "eval_batch_size": 16, "sizes": {"train": reviews, "val": 2, "test": 2}},
        }
        return load_experiment([CONFIGS / f"{row.experiment}.yaml"], overrides)

    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: ours(config(row.ours), steps),
        "peft_trainer": lambda: theirs(config(row.theirs), steps),
    }
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, run in sides.items():
            speeds[side].append(run())
            print(
                f"{row.experiment} ({row.setting}) {repeat + 1}/{repeats} {side}: {speeds[side][-1]:.1f} reviews/s",
                file=sys.stderr,
            )
    ratios = [mine / peer for mine, peer in zip(speeds["ours"], speeds["peft_trainer"], strict=True)]
    return {
        "experiment": row.experiment,
        "setting": row.setting,
        **{f"{side}_per_second": statistics.median(values) for side, values in speeds.items()},
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "reach": row.reach,
    }


def main() -> int:
    """Measure every row, print the table and write it to results/benchmarks/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="timed optimizer steps per measurement")
    parser.add_argument("--max-length", type=int, default=256, help="tokens per review")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/training.json"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    config = load_experiment([CONFIGS / "lora_default.yaml"])
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    rows = [measure(row, options.repeats, options.steps, options.max_length) for row in ROWS]
    device = pick_device(config)
    result = {
        "rows": rows,
        "repeats": options.repeats,
        "steps": options.steps,
        "batch_size": config.data.batch_size,
        "max_length": options.max_length,
        "precision": pick_precision(config, device),
        "encoder": describe(config.model),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        **provenance.code_state(),
    }
    write_text(options.output, json.dumps(result, indent=2) + "\n")
    print(markdown_table(pd.DataFrame(rows)))
    print(f"\nreviews per second, medians of {options.repeats}; {result['encoder']['name']}; {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
