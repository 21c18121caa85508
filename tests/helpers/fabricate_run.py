"""Real runs of about a second, on the tiny encoder, for tests of what is done with a finished run."""

from pathlib import Path

from lora_study.config_files import experiment_from, overlay
from lora_study.records.record import run_dir
from lora_study.training.experiment import run_experiment

MAX_LENGTH = 24  # shorter than many of the reviews


def finished_run(results: Path, backbone: Path, reviews: Path, **changes) -> Path:
    """Train in fp32 on 120 reviews and return the run's folder; ``changes`` are laid over the config."""
    base = {
        "name": "tiny",
        "model": {"backbone": str(backbone)},
        "lora": {"r": 4, "alpha": 1, "targets": ["query", "value", "mlp"]},
        "data": {
            "source": str(reviews),
            "sizes": {"train": 120, "val": 40, "test": 60},
            "max_length": MAX_LENGTH,
            "cache_dir": str(results / "cache"),
        },
        "train": {"learning_rate": 0.01, "epochs": 1, "precision": "32-true", "accelerator": "cpu", "threads": 1},
    }
    config = experiment_from(overlay(base, changes))
    record = run_experiment(config, results)
    assert record.status == "completed", record.error
    return run_dir(results, config.name, config.seed)
