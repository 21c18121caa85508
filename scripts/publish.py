"""Copy a finished study to results/published/ for committing, write its report there and its table into the README.

python scripts/publish.py results/embedded
"""

import shutil
import sys
import tempfile
from pathlib import Path

from lora_study.config import ConfigError
from lora_study.records import read_records, run_dir, write_text
from lora_study.report import readme_results, write_report

IN_README = "embedded"  # the study whose results the README shows
BEGIN = "<!-- results: written by make publish from results/published; do not edit -->"
END = "<!-- end of results -->"
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
        write_report(staged, address=f"results/published/{target.name}")
        if target.exists():
            shutil.rmtree(target)
        staged.replace(target)
    return target


def update_readme(readme: Path, results: str) -> None:
    """Replace what stands between the README's markers.

    Raises:
        ConfigError: the markers are not there.
    """
    before, begin, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ConfigError(f"{readme} has no lines {BEGIN!r} and {END!r} to put the results between")
    write_text(readme, f"{before}{begin}\n\n{results.strip()}\n\n{end}{after}")


def main() -> int:
    """Publish the study named on the command line."""
    if len(sys.argv) != 2:
        print("usage: python scripts/publish.py results/STUDY", file=sys.stderr)
        return 2
    try:
        target = publish(Path(sys.argv[1]), Path("results/published"))
        if target.name == IN_README:
            update_readme(Path("README.md"), readme_results(target))
        print(target)
    except ConfigError as error:
        print(f"publish: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
