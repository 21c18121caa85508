"""Made-up records and studies, so that tests of tables, plots and pages need no training."""

import dataclasses
from pathlib import Path
from typing import Any

from lora_study.base.files import write_text
from lora_study.config import to_dict
from lora_study.config_differences import deviations
from lora_study.config_files import experiment_from, overlay
from lora_study.evidence.reported import PLAIN, load_reported
from lora_study.records.record import Record, run_dir, write_record

PARAMETERS = {
    "last_two_layers": {"trainable": 148_610, "total": 22_711_682, "lora": 0, "head": 148_610, "base": 0},
    "lora_default": {"trainable": 73_728, "total": 22_785_410, "lora": 73_728, "head": 0, "base": 0},
    "lora_best": {"trainable": 258_048, "total": 22_969_730, "lora": 258_048, "head": 0, "base": 0},
    "full": {"trainable": 22_711_682, "total": 22_711_682, "lora": 0, "head": 148_610, "base": 22_563_072},
}


def record(name: str = "lora_default", seed: int = 1, test: float = 0.8, **changes: Any) -> Record:
    """A completed run on 1,000 test reviews; ``changes`` are laid over the record's nested fields."""
    row = load_reported().by_name.get(name.removesuffix(PLAIN))
    mode = row.mode if row else "lora"
    base: dict[str, Any] = {"data": {"source": "embedded"}, "model": {"backbone": "embedded"}}
    for field, value in row.settings.items() if row else ():
        section, _, key = field.partition(".")
        base.setdefault(section, {})[key] = value
    config = experiment_from({"name": name, "mode": mode, "seed": seed} | base)
    content: dict[str, Any] = {
        "name": name,
        "mode": mode,
        "seed": seed,
        "status": "completed",
        "config": to_dict(config),
        "deviations": deviations(config),
        "parameters": PARAMETERS.get(name, PARAMETERS["lora_default"]),
        "metrics": {
            "train": {"accuracy": test + 0.03, "n": 2000, "loss": 0.3},
            "val": {"accuracy": test + 0.01, "n": 500, "loss": 0.4},
            "test": {"accuracy": test, "n": 1000, "loss": 0.42, "f1": test - 0.02, "auroc": test + 0.05},
            "best_epoch": 3,
        },
        "timing": {"train_seconds": 100.0 + seed, "fit_seconds": 120.0, "test_seconds": 8.0, "total_seconds": 140.0},
        "memory": {"peak_bytes": 900 * 2**20, "peak_bytes_with_scoring": 1100 * 2**20, "kind": "resident set"},
        "data": {
            "source": "embedded",
            "fingerprint": {"train": "1f" * 32, "val": "2e" * 32, "test": "3d" * 32},
            "sizes": {"train": 2000, "val": 500, "test": 1000},
            "overlap": {"within": {"train": 3, "val": 0, "test": 1}, "across": {"test_in_train": 4}},
        },
        "provenance": {
            "commit": "0123456789abcdef",
            "dirty": False,
            "command": f"lora-study run --config configs/embedded/{name}.yaml --seed {seed}",
            "encoder": {
                "name": "all-MiniLM-L6-v2",
                "backbone": "embedded",
                "revision": None,
                "sha256": "53aa" * 16,
                "stand_in": True,
            },
            "hardware": {"cpu": "a CPU", "threads": 2, "accelerator": "cpu", "memory_bytes": 16 * 2**30},
            "versions": {"python": "3.12.1", "torch": "2.13.0"},
        },
    }
    return Record(**overlay(content, changes))


def failed(name: str = "lora_default", seed: int = 9, error: str = "loss is not finite") -> Record:
    """A run that failed before it measured anything."""
    return dataclasses.replace(record(name, seed), status="failed", error=error, metrics={}, timing={}, memory={})


def curves(shift: float = 0.0, epochs: int = 3) -> str:
    """The text of a curves.csv: two logged losses and one validation per epoch."""
    lines = ["step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds"]
    for epoch in range(1, epochs + 1):
        lines += [
            f"{epoch * 20 - 10},{epoch},{0.8 / epoch + shift},,,0.0005,{epoch}.2",
            f"{epoch * 20},{epoch},{0.6 / epoch + shift},,,0.0005,{epoch}.6",
            f"{epoch * 20},{epoch},,{0.7 / epoch},{0.6 + 0.06 * epoch - shift},0.0005,{epoch}.9",
        ]
    return "\n".join(lines) + "\n"


def write_run(results_dir: Path, run: Record, curves_text: str | None = None) -> None:
    """Put a run where a study puts it, with its curves if it completed."""
    folder = run_dir(results_dir, run.name, run.seed)
    if run.status == "completed":
        write_text(folder / "curves.csv", curves() if curves_text is None else curves_text)
    write_record(run, folder)
