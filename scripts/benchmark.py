"""Speed beside the tools people use, measured in turn: ours, Hugging Face PEFT + Trainer, and a plain Lightning script.

python scripts/benchmark.py [--device cpu] [--repeats 3] [--steps 20] [--max-length 256] [--profile]

All sides have the same encoder, reviews, batch size, length cap, precision and dropout, and compute the same function.
They differ in how: the Lightning script pads every review to the cap, as the article does; PEFT + Trainer pads a
batch to its longest review. Each side of a row has a process of its own, so that its peak memory is its own and no side
profits from another's settings. Our side's process is set up as the command does it
(lora_study/base/torch_environment.py), the others' as torch does; in row "beside one busy process" another process
keeps a core busy. The sides take turns, and what is printed is the median of the ratios of neighbouring measurements,
which a drifting machine does not distort.
Tokenisation, loading and warm-up are not timed; in row "last two layers" computing the features is.

The share of the limit is counted operations (torch.utils.flop_counter) per second over the rate of the same machine's
matrix products, measured right after the steps.
"""

import argparse
import dataclasses
import json
import os
import statistics
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sides import SIDES, Measured, Task, profile

from lora_study.base import machine as provenance
from lora_study.base.errors import ConfigError
from lora_study.base.files import user_path, write_text
from lora_study.base.interrupts import end, in_child, shielded
from lora_study.base.machine import pick_device, pick_precision
from lora_study.base.text_tables import markdown_table
from lora_study.base.torch_environment import set_torch_environment
from lora_study.config_files import load_experiment
from lora_study.model.encoder import describe

CONFIGS = Path(__file__).parent.parent / "configs" / "embedded"
LENGTH = 256  # tokens per review
FEATURE_REVIEWS = 600  # in row "last two layers"
MOST_STEPS = 2000  # the stand-in has 25,000 reviews, of which each step takes 12
EVALUATED = 240  # reviews per measurement of an evaluation


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: What is measured.
        experiment: Config it is measured on.
        attention_dropout: Dropout on the attention probabilities, for all sides.
        job: "train", "epochs" (three, including the cost of the features) or "evaluate".
        busy: Whether another process keeps a core busy meanwhile.
    """

    name: str
    experiment: str
    attention_dropout: float
    job: str = "train"
    busy: bool = False


ROWS = (
    Row("LoRA q,v", "lora_default", 0.0),
    Row("LoRA q,v,mlp", "lora_best", 0.0),
    Row("full", "full", 0.0),
    Row("LoRA q,v, attention dropout 0.1", "lora_default", 0.1),
    Row("full, attention dropout 0.1", "full", 0.1),
    Row(
        "last two layers, three epochs; ours computes the trunk once, without dropout", "last_two_layers", 0.0, "epochs"
    ),
    Row("evaluation, LoRA q,v", "lora_default", 0.0, "evaluate"),
    Row("LoRA q,v, beside one busy process", "lora_default", 0.0, busy=True),
)


def task(row: Row, options: argparse.Namespace) -> Task:
    """What each side of a row is given."""
    train = {"train": 12 * (Task.WARMUP + options.steps), "epochs": FEATURE_REVIEWS, "evaluate": 24}[row.job]
    overrides = {
        "model": {"attention_dropout": row.attention_dropout},
        "data": {
            "max_length": options.max_length,
            "eval_batch_size": 32,
            "sizes": {"train": train, "val": 2, "test": EVALUATED if row.job == "evaluate" else 2},
        },
        "train": {"accelerator": {"cuda": "gpu"}.get(options.device, options.device)},
    }
    return Task(row.job, load_experiment([CONFIGS / f"{row.experiment}.yaml"], overrides), options.steps)


def measure(row: Row, options: argparse.Namespace) -> dict[str, Any]:
    """All sides of a row in turn, `repeats` times."""
    measured: dict[str, list[Measured]] = {side: [] for side in SIDES}
    with ExitStack() as stack:
        processes = {side: stack.enter_context(process(side == "ours")) for side in SIDES}
        stack.enter_context(busy_process() if row.busy else nullcontext())
        for repeat in range(options.repeats):
            for side, pool in processes.items():
                found = pool.submit(SIDES[side], task(row, options)).result()
                measured[side].append(found)
                line = f"{row.name} {repeat + 1}/{options.repeats} {side}: {found.speed:.1f} reviews/s"
                print(line, file=sys.stderr, flush=True)
    return {
        "row": row.name,
        "experiment": row.experiment,
        "attention_dropout": row.attention_dropout,
        "sides": {side: summary(runs) for side, runs in measured.items()},
        "ratios": {
            peer: spread([mine.speed / other.speed for mine, other in zip(measured["ours"], runs, strict=True)])
            for peer, runs in measured.items()
            if peer != "ours"
        },
    }


@contextmanager
def process(ours: bool = True) -> Iterator[ProcessPoolExecutor]:
    """A process with its own memory, threads and C library settings; ours is set up as the command does it."""
    before = dict(os.environ)
    if ours:
        set_torch_environment()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=in_child) as pool:
        with shielded():
            pool.submit(int).result()  # starts it now, with this environment
        os.environ.clear()
        os.environ.update(before)
        yield pool


@contextmanager
def busy_process() -> Iterator[None]:
    """Another process that keeps one core busy."""
    busy = get_context("spawn").Process(target=spin)
    with shielded():
        busy.start()
    try:
        yield
    finally:
        end([busy])


def spin() -> None:
    """Compute nothing for as long as the process that started this one is there."""
    in_child()
    while True:
        pass


def summary(runs: list[Measured]) -> dict[str, Any]:
    """Medians over the repeats of one side."""
    counted = [(run.operations / run.seconds, run.matrix_rate) for run in runs if run.operations and run.matrix_rate]
    return {
        "reviews_per_second": statistics.median(run.speed for run in runs),
        "tokens_per_second": statistics.median(run.tokens / run.seconds for run in runs),
        "peak_bytes": runs[0].peak_bytes,  # later runs in the process reuse memory it has kept
        "share_of_limit": statistics.median(done / most for done, most in counted) if counted else None,
        "matrix_rate": statistics.median(most for _, most in counted) if counted else None,
        "measurements": [dataclasses.asdict(run) for run in runs],
    }


def spread(values: list[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table for people."""
    lines = []
    for row in rows:
        ours = row["sides"]["ours"]
        line = {"row": row["row"], "reviews/s": ours["reviews_per_second"], "tokens/s": ours["tokens_per_second"]}
        line |= {"share of limit": ours["share_of_limit"], "peak GiB": (ours["peak_bytes"] or 0) / 2**30}
        for peer, ratio in row["ratios"].items():
            line[f"{peer} reviews/s"] = row["sides"][peer]["reviews_per_second"]
            line[f"over {peer}"] = f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"
        lines.append(line)
    return pd.DataFrame(lines).round(2)


def main() -> int:
    """Measure every row, print the table and write it to results/benchmarks/."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20, help="timed optimizer steps per measurement")
    parser.add_argument("--max-length", type=int, default=LENGTH, help="tokens per review")
    parser.add_argument("--rows", nargs="+", choices=[row.name for row in ROWS], help="only these")
    parser.add_argument("--profile", action="store_true", help="also where our training's time goes (torch.profiler)")
    parser.add_argument(
        "--output",
        type=user_path,
        help="default results/benchmarks/training-DEVICE.json, with -LENGTH where that is not 256, -fp32 in fp32",
    )
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no GPU here; use cpu")
    if options.device == "cuda" and options.profile:
        parser.error("--profile: it tells operations of a CPU apart; leave it out with --device cuda")
    if not (options.repeats >= 1 and 1 <= options.steps <= MOST_STEPS):
        parser.error(f"--repeats, --steps: use 1 or more, and no more than {MOST_STEPS:,} steps")
    chosen = [row for row in ROWS if not options.rows or row.name in options.rows]
    try:
        example = task(chosen[0], options).config
    except ConfigError as error:
        parser.error(str(error))
    device = pick_device(example.train.accelerator)
    result: dict[str, Any] = {
        "repeats": options.repeats,
        "steps": options.steps,
        "batch_size": example.data.batch_size,
        "max_length": options.max_length,
        "precision": pick_precision(example.train.precision, device),
        "encoder": describe(example.model),
        "measured": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": provenance.hardware(device),
        "versions": provenance.versions(),
        **provenance.code_state(),
        "rows": [],
    }
    length = "" if options.max_length == LENGTH else f"-{options.max_length}"
    kind = f"{options.device}{length}{'-fp32' if result['precision'] == '32-true' else ''}"
    output = options.output or Path(f"results/benchmarks/training-{kind}.json")
    for row in chosen:
        result["rows"].append(measure(row, options))
        write_text(output, json.dumps(result, indent=2) + "\n")  # after every row: a cut-off loses one at most
    if options.profile:
        trained = [row for row in chosen if row.job == "train"]
        with process() as pool:
            result["profile"] = {row.name: pool.submit(profile, task(row, options)).result() for row in trained}
        write_text(output, json.dumps(result, indent=2) + "\n")
        print(
            markdown_table(pd.DataFrame(result["profile"]).rename_axis("share of time in").round(3).reset_index()), "\n"
        )
    print(markdown_table(table(result["rows"])))
    print(f"\nmedians of {options.repeats} ({result['precision']}, {result['encoder']['name']}); {output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
