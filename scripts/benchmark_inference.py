"""Inference speed beside Hugging Face's pipeline, and what LoRA costs when it is not merged, in turn in one process.

python scripts/benchmark_inference.py [--repeats 3] [--reviews 96] [--max-length 512]

Both sides classify the same reviews, from text to label, in batches of 32, with the same weights and precision. They
take turns, and what is printed is the median of the ratios of neighbouring measurements, which a machine whose speed
drifts does not distort. Loading is not timed. The weights are not trained, which does not affect speed.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import pipeline

from lora_study.base import machine as provenance
from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path, write_text
from lora_study.base.machine import pick_device
from lora_study.base.text_tables import markdown_table
from lora_study.config import ExperimentConfig
from lora_study.config_files import experiment_from
from lora_study.data.sources import load_reviews
from lora_study.lora import lora_layers, merge_lora
from lora_study.model.encoder import build_model, build_tokenizer, describe
from lora_study.model.modes import apply_mode
from lora_study.sharing.merge import write_merged
from lora_study.sharing.predict import Precision, predict, prepare
from lora_study.sharing.trained import TrainedModel
from lora_study.training.recording import new_record

BATCH_SIZE = 32
SAMPLE = 2000  # reviews from which those that are classified are taken
PRECISIONS: tuple[Precision, ...] = ("32-true", "bf16-true")
EQUAL_LENGTH = 200  # tokens, about
Side = Callable[[Sequence[str]], list[str]]  # texts to labels


def untrained(config: ExperimentConfig) -> TrainedModel:
    """A model in its mode, with random updates where LoRA has zeros, as a finished run would give it."""
    model = build_model(config.model, head_seed=config.seed)
    apply_mode(model, config)
    torch.manual_seed(config.seed)
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora.lora_B, std=1e-3)
    return TrainedModel(model, build_tokenizer(config.model), config, new_record(config, ""), Path("untrained"))


def ours(trained: TrainedModel) -> Side:
    """This package's `predict`."""
    return lambda texts: [said.label for said in predict(trained, texts, BATCH_SIZE)]


def theirs(folder: Path, device: torch.device, precision: Precision) -> Side:
    """The pipeline of transformers on the merged model's folder."""
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    classify = pipeline("text-classification", str(folder), device=device, dtype=dtype, batch_size=BATCH_SIZE)
    return lambda texts: [said["label"] for said in classify(list(texts), truncation=True)]


def measure(row: str, sides: dict[str, Side], texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Two sides in turn, `repeats` times after a warm-up; the first side's speed over the second's."""
    for classify in sides.values():
        classify(texts[:BATCH_SIZE])
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side, classify in sides.items():
            start = time.perf_counter()
            classify(texts)
            speeds[side].append(len(texts) / (time.perf_counter() - start))
            print(f"{row} {repeat + 1}/{repeats} {side}: {speeds[side][-1]:.1f} reviews/s", file=sys.stderr)
    (first, mine), (second, peer) = speeds.items()
    ratios = [a / b for a, b in zip(mine, peer, strict=True)]
    return {
        "row": row,
        "first": first,
        "second": second,
        "first_per_second": statistics.median(mine),
        "second_per_second": statistics.median(peer),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def choose(reviews: int, config: ExperimentConfig) -> dict[str, list[str]]:
    """Reviews of nearly equal length, and reviews as they come."""
    texts = load_reviews(config.data).sample(SAMPLE, random_state=0)["text"].tolist()
    lengths = np.array([len(ids) for ids in build_tokenizer(config.model)(texts)["input_ids"]])
    nearest = np.argsort(abs(lengths - EQUAL_LENGTH), kind="stable")[:reviews]
    equal = [texts[row] for row in np.random.default_rng(0).permutation(nearest)]
    return {"equal length": equal, "mixed length": texts[:reviews]}


def main() -> int:
    """Measure every row, print the table and write it to results/benchmarks/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--reviews", type=int, default=96, help="reviews per measurement")
    parser.add_argument("--max-length", type=int, default=512, help="tokens per review")
    parser.add_argument("--output", type=user_path, default=Path("results/benchmarks/inference.json"))
    options = parser.parse_args()
    if not (options.repeats >= 1 and 1 <= options.reviews <= SAMPLE):
        parser.error(f"--repeats, --reviews: use 1 or more, and no more than {SAMPLE} reviews")
    content = {"model": {"backbone": "embedded"}, "data": {"source": "embedded", "max_length": options.max_length}}
    try:
        config = experiment_from(content)
    except ConfigError as error:
        parser.error(str(error))
    device = pick_device(config.train.accelerator)
    texts = choose(options.reviews, config)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "merged"
        write_merged(untrained(config), folder)
        for precision in PRECISIONS:
            trained = untrained(config)
            prepare(trained, precision)
            sides = {"ours": ours(trained), "pipeline": theirs(folder, device, precision)}
            for lengths, chosen in texts.items():
                rows.append(measure(f"{lengths}, {precision}", sides, chosen, options.repeats))
    plain, unmerged, merged = untrained(config), untrained(config), untrained(config)
    for _, layer in lora_layers(plain.model):
        torch.nn.init.zeros_(layer.lora.lora_B)
    for trained in (plain, merged):
        merge_lora(trained.model)
    for name, trained in {"merged": merged, "unmerged": unmerged}.items():
        trained.model.to(device)  # type: ignore[arg-type]
        plain.model.to(device)  # type: ignore[arg-type]
        sides = {name: ours(trained), "plain": ours(plain)}
        rows.append(measure(f"LoRA {name}, 32-true", sides, texts["equal length"], options.repeats))
    result = {
        "rows": rows,
        "repeats": options.repeats,
        "reviews": options.reviews,
        "batch_size": BATCH_SIZE,
        "max_length": options.max_length,
        "equal_length": EQUAL_LENGTH,
        "encoder": describe(config.model),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        **provenance.code_state(),
    }
    write_text(options.output, json.dumps(result, indent=2) + "\n")
    print(markdown_table(pd.DataFrame(rows)))
    print(f"\nreviews per second, medians of {options.repeats}; {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
