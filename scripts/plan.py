"""What the article's grid of 576 settings with five seeds would cost, from measured runs.

    .venv/bin/python scripts/plan.py [--results-dir results/published/embedded] [--output results/published/plan.md]

A run takes what the LoRA runs in a study's records took; on a GPU it takes the article's own minutes on one A100,
which is said, since they were not measured here. How well many workers share the runs out is simulated with the
launcher's own dispatch (simulate_scheduler.py), 5% of the runs losing their worker. Reading the records is timed.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import pandas as pd
from simulate_scheduler import Scenario, simulate

from lora_study.formats import markdown_table
from lora_study.records import Record, read_records, write_text
from lora_study.reported import load_reported
from lora_study.small_files import user_path

RUNS, SEEDS = 576, 5
FAILURES = 0.05
WORKERS = (1, 8, 64)


def hours(seconds_per_run: float, workers: int) -> float:
    """Hours until every run of the grid is completed, by simulation."""
    alike = Scenario(spread=0.2, slowest=0.9, failures=FAILURES)
    found = simulate(alike, RUNS * SEEDS, workers, seed=1)
    runs_in_a_row = found.minutes / 7.0  # the simulation's runs take 7 minutes in the middle
    return runs_in_a_row * seconds_per_run / 3600


def beside_training(record: Record) -> float:
    """Seconds of a run that are neither training nor scoring: starting, reading reviews, loading the model, writing."""
    spent = [record.timing[name] or 0.0 for name in ("fit_seconds", "test_seconds", "score_train_seconds")]
    return (record.timing["total_seconds"] or 0.0) - sum(spent)


def page(results_dir: Path) -> str:
    """The plan, as Markdown."""
    start = time.perf_counter()
    records, _ = read_records(results_dir)
    reading = (time.perf_counter() - start) / max(1, len(records))
    runs = [record for record in records if record.status == "completed" and record.mode == "lora"]
    if not runs:
        raise SystemExit(f"plan.py: error: {results_dir} has no completed LoRA run; name a finished study's folder")
    seconds = statistics.mean(record.timing["total_seconds"] or 0.0 for record in runs)
    fixed = statistics.mean(beside_training(record) for record in runs)
    sizes, hardware = runs[0].data["sizes"], runs[0].provenance["hardware"]
    a100 = 60 * (load_reported().layerwise["layerwise_all"].minutes or 0.0)
    cores = f"{hardware['threads']} cores of {hardware['cpu']}"
    places = {
        f"{cores}, the study's budget ({sizes['train']:,} reviews a run)": seconds,
        "one A100, the article's budget, its minutes for training every layer": a100,
    }
    rows = [
        {"a worker is": place, "seconds a run": each} | {f"{n} workers (hours)": hours(each, n) for n in WORKERS}
        for place, each in places.items()
    ]
    return f"""# What the article's grid would cost

576 settings with 5 seeds are {RUNS * SEEDS:,} runs. Runs are shared out by the launcher's own dispatch, simulated with
lengths that vary by a fifth, workers up to a tenth slower than the best, and 5% of the runs losing their worker on the
way and run again.

{markdown_table(pd.DataFrame(rows).round(1))}

The first line is measured: the mean over {len(runs)} LoRA runs of {results_dir.name}, everything in. The second is the
article's: no GPU was at hand, so neither an A100 nor an H100 was measured here.

**Where the first bottleneck lies.** Of a measured run {fixed:.1f} s ({fixed / seconds:.0%}) are neither training nor
scoring: reading and splitting reviews, loading the model, writing; a process's start comes on top. They do not shrink
with a faster device: beside the A100's {a100:.0f} s they would be {fixed / a100:.1%}. The results folder is not in the
way: reading a record takes {1000 * reading:.1f} ms, {RUNS * SEEDS * reading:.0f} s for all of them.
"""


def main() -> int:
    """Print the plan, or write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results-dir", type=user_path, default=Path("results/published/embedded"))
    parser.add_argument("--output", type=user_path, help="a .md file; default: print")
    options = parser.parse_args()
    text = page(options.results_dir)
    if options.output:
        write_text(options.output, text)
    else:
        print(text, end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
