"""Copy a finished study or sweep to results/published/ for committing, and write its report there.

python scripts/publish.py results/embedded         and into the README, which shows two studies (IN_README)
python scripts/publish.py results/embedded_ranks   of a sweep's trials only the records
python scripts/publish.py results/benchmarks    the benchmarks instead, before the study whose report is to show them
"""

import dataclasses
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from lora_study.base.errors import ConfigError, one_line
from lora_study.base.files import user_path, write_text
from lora_study.config import last_part
from lora_study.config_studies import STUDY_FILE
from lora_study.evidence.trials import BEST, SWEEP_FILE
from lora_study.records.record import ADAPTER, Record, read_records, run_dir, write_record
from lora_study.report import readme_results, write_report
from lora_study.report.benchmarks import read_benchmarks, usable_benchmarks
from lora_study.report.material import missing_runs
from lora_study.report.speed import write_speed
from lora_study.report.sweep_report import write_sweep_report

# The README shows the article's own protocol, then several seeds: of all reviews, else of what `make reproduce` runs.
IN_README = (("article-protocol-embedded-encoder",), ("full-embedded-encoder", "embedded"))
BENCHMARKS = "benchmarks"  # the folder beside the studies that holds no study
RUN_FILES = ("predictions.parquet", "curves.csv", ADAPTER)
SMALL = ("lora", "last_two_layers")  # modes whose weights are small; others' would swell every clone
ABSOLUTE_PATH = re.compile(r"(?<![^\s='\"(\[:,])/(?:[^\s'\"/]+/)*[^\s'\"/]+")


def publish(results_dir: Path, published: Path) -> Path:
    """Copy the runs of a study or a sweep and write its report beside them; replaces what was published before.

    Raises:
        ConfigError: there is no run, a record cannot be read, or the study is not finished.
    """
    records, problems = read_records(results_dir)
    if problems:
        raise ConfigError(problems[0])
    if not records:
        raise ConfigError(f"{results_dir} holds no records; run the study first")
    sweep = (results_dir / SWEEP_FILE).exists()
    if not sweep and (missing := missing_runs(results_dir, records)):
        raise ConfigError(f"{results_dir} lacks {missing}; run the study again, which goes on, before you publish it")
    published.mkdir(parents=True, exist_ok=True)
    target = published / results_dir.resolve().name
    with tempfile.TemporaryDirectory(dir=published, prefix=".new-") as folder:
        staged = Path(folder) / target.name
        for record in records:
            source, copy = (run_dir(place, record.name, record.seed) for place in (results_dir, staged))
            copy.mkdir(parents=True)
            for file in RUN_FILES if not sweep or record.name == BEST else ():
                if (source / file).exists() and (file != ADAPTER or record.config.get("mode") in SMALL):
                    shutil.copyfile(source / file, copy / file)
            write_record(without_folders(record), copy)
        for file in (STUDY_FILE, SWEEP_FILE):
            if (results_dir / file).exists():
                shutil.copyfile(results_dir / file, staged / file)
        if sweep:
            write_sweep_report(staged)
        else:
            write_report(staged, address=f"results/published/{target.name}", benchmarks_dir=published / BENCHMARKS)
        if target.exists():
            shutil.rmtree(target)
        staged.replace(target)
    return target


def without_folders(record: Record) -> Record:
    """A record in which files of the machine it was made on are named without the folders they lay in."""

    def shortened(content: Any, name: str) -> Any:
        if isinstance(content, dict):
            return {key: shortened(value, key) for key, value in content.items()}
        if isinstance(content, list):
            return [shortened(value, name) for value in content]
        if not isinstance(content, str):
            return content
        whole = content.startswith("/") and name not in ("command", "error")  # which quote a path or several
        return last_part(content) if whole else ABSOLUTE_PATH.sub(lambda path: last_part(path[0]), content)

    parts = ("config", "deviations", "data", "provenance", "error")
    return dataclasses.replace(record, **{part: shortened(getattr(record, part), part) for part in parts})


def publish_benchmarks(folder: Path, published: Path) -> Path:
    """Copy the benchmarks of a folder; one that was published before and is not in the folder stays.

    Raises:
        ConfigError: there is no benchmark, or one cannot be used.
    """
    target = published / BENCHMARKS
    for benchmark in usable_benchmarks(folder):
        source = folder / f"{benchmark.name}.json"
        write_text(target / source.name, source.read_text(encoding="utf-8"))
    write_speed(read_benchmarks(target)[0], target)
    return target


def update_readme(readme: Path, results: str) -> None:
    """Replace what stands between the README's markers of the results.

    Raises:
        ConfigError: the markers are not there.
    """
    first = "<!-- results: written by make publish from results/published; do not edit -->"
    last = "<!-- end of results -->"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(first)
    _, end, after = rest.partition(last)
    if not (begin and end):
        raise ConfigError(f"{readme} has no lines {first!r} and {last!r} to put the results between")
    write_text(readme, f"{before}{begin}\n\n{results.strip()}\n\n{end}{after}")


def main() -> int:
    """Publish the study, or the benchmarks, named on the command line."""
    if len(sys.argv) != 2:
        print(
            f"usage: python scripts/publish.py results/STUDY (or results/SWEEP, results/{BENCHMARKS})", file=sys.stderr
        )
        return 2
    published, readme = Path("results/published"), Path("README.md")
    try:
        source = user_path(sys.argv[1])
        if source.resolve().name == BENCHMARKS:
            target = publish_benchmarks(source, published)
        else:
            target = publish(source, published)
            if any(target.name in names for names in IN_README):
                there = [[published / name for name in names if (published / name).exists()] for names in IN_README]
                update_readme(readme, readme_results([studies[0] for studies in there if studies]))
        print(target)
    except (ConfigError, OSError) as error:
        print(f"publish: error: {one_line(error)}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
