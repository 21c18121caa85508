"""Copy a finished study to results/published/ for committing, and write its report there.

python scripts/publish.py results/embedded
"""

import shutil
import sys
import tempfile
from pathlib import Path

from lora_study.config import ConfigError
from lora_study.records import read_records, run_dir
from lora_study.report import write_report

RUN_FILES = ("record.json", "predictions.parquet", "curves.csv", "adapter.safetensors")


def publish(results_dir: Path, published: Path) -> Path:
    """Copy the runs of a study and write its report beside them; replaces what was published of it before.

    Raises:
        ConfigError: there is no run, or a record cannot be read.
    """
    records, problems = read_records(results_dir)
    if problems:
        raise ConfigError(problems[0])
    if not records:
        raise ConfigError(f"{results_dir} holds no records; run the study first")
    published.mkdir(parents=True, exist_ok=True)
    target = published / results_dir.resolve().name
    with tempfile.TemporaryDirectory(dir=published, prefix=".new-") as folder:
        staged = Path(folder) / target.name
        for record in records:
            source, copy = (run_dir(place, record.name, record.seed) for place in (results_dir, staged))
            copy.mkdir(parents=True)
            for file in RUN_FILES:
                if (source / file).exists():
                    shutil.copyfile(source / file, copy / file)
        write_report(staged)
        if target.exists():
            shutil.rmtree(target)
        staged.replace(target)
    return target


def main() -> int:
    """Publish the study named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python scripts/publish.py results/STUDY", file=sys.stderr)
        return 2
    try:
        print(publish(Path(sys.argv[1]), Path("results/published")))
    except ConfigError as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
