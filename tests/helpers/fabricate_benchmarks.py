"""Made-up benchmarks, as the two benchmark scripts write them."""

import json
from pathlib import Path
from typing import Any

PROVENANCE: dict[str, Any] = {
    "encoder": {"name": "all-MiniLM-L6-v2", "backbone": "embedded", "stand_in": True},
    "measured": "2026-01-02T03:04:05+00:00",
    "hardware": {"cpu": "a CPU", "cores": 4, "threads": 2, "accelerator": "cpu"},
    "versions": {"python": "3.12.1", "torch": "2.13.0", "transformers": "5.23.0"},
    "commit": "0123456789abcdef",
    "dirty": False,
}


def training(**changes: Any) -> dict[str, Any]:
    """Two rows with both peers; the second has no share of the limit and no peak memory."""
    content = {
        "repeats": 3,
        "steps": 20,
        "batch_size": 12,
        "max_length": 256,
        "precision": "bf16-mixed",
        "rows": [
            row("LoRA q,v", "lora_default", 2.5),
            row("full, attention dropout 0.1", "full", 4.0, share_of_limit=None, peak_bytes=None),
        ],
    }
    return {**content, **PROVENANCE, **changes}


def row(name: str, experiment: str, ratio: float, **changes: Any) -> dict[str, Any]:
    """Ours ``ratio`` times as fast as PEFT + Trainer, and half that beside the script; ``changes`` are to the sides."""
    sides = {
        side: {
            "reviews_per_second": speed,
            "tokens_per_second": 200 * speed,
            "peak_bytes": peak * 2**28,
            "share_of_limit": 0.5 if side == "ours" else None,
            **changes,
        }
        for side, speed, peak in (("ours", 10 * ratio, 5), ("peft_trainer", 10.0, 6), ("lightning_script", 20.0, 7))
    }
    ratios = {
        peer: {"median": r, "min": r - 0.25, "max": r + 0.5}
        for peer, r in (("peft_trainer", ratio), ("lightning_script", ratio / 2))
    }
    return {"row": name, "experiment": experiment, "sides": sides, "ratios": ratios}


def inference(**changes: Any) -> dict[str, Any]:
    """Beside the pipeline, and a model with LoRA beside one without."""
    rows = [("mixed length, 32-true", "ours", "pipeline", 2.0), ("LoRA unmerged, 32-true", "unmerged", "plain", 0.9)]
    content = {
        "rows": [
            {
                "row": name,
                "first": first,
                "second": second,
                "first_per_second": 10 * ratio,
                "second_per_second": 10.0,
                "ratio": ratio,
                "ratio_min": ratio - 0.1,
                "ratio_max": ratio + 0.1,
            }
            for name, first, second, ratio in rows
        ],
        **{"repeats": 3, "reviews": 96, "batch_size": 32, "max_length": 512, "equal_length": 200},
    }
    return {**content, **PROVENANCE, **changes}


def write_benchmarks(folder: Path, **contents: dict[str, Any]) -> Path:
    """Write contents by file name, with '_' for '-', into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (folder / f"{name.replace('_', '-')}.json").write_text(json.dumps(content))
    return folder
