"""The page about speed: written beside the benchmarks it shows, linked from every study's report."""

from collections.abc import Sequence
from pathlib import Path

from lora_study.base.files import write_files
from lora_study.base.text_tables import escape, markdown_table
from lora_study.report.benchmarks import METHODS, Benchmark
from lora_study.report.figures import draw_speed
from lora_study.report.webpage import html_page

TITLE = "Speed beside other tools"


def write_speed(benchmarks: Sequence[Benchmark], folder: Path) -> list[Path]:
    """Write speed.md, speed.html and their figures into the folder of benchmarks; nothing where there are none.

    Raises:
        OSError: the folder cannot be written.
    """
    if not benchmarks:
        return []
    pictures = {benchmark.exhibit: draw_speed(benchmark) for benchmark in benchmarks}
    measured = {benchmark.kind: None for benchmark in benchmarks}  # a dict keeps their order
    blocks = [f"# {TITLE}", *(f"**{kind.capitalize()}.** {METHODS[kind]}" for kind in measured)]
    for benchmark in benchmarks:
        picture = pictures[benchmark.exhibit]
        blocks += [
            f"## {escape(benchmark.title)}",
            f"{escape(benchmark.source)} With the {escape(benchmark.encoder.replace('encoder: ', 'encoder '))}. "
            f"All measurements are in [the record]({benchmark.name}.json).",
            f"![{escape(picture.alt)}]({benchmark.exhibit}.png)",
            markdown_table(benchmark.table),
        ]
    page = "\n\n".join(blocks) + "\n"
    images = {f"{name}.png": picture.formats["svg"] for name, picture in pictures.items()}
    contents = {"speed.md": page.encode(), "speed.html": html_page(TITLE, page, images).encode()}
    contents |= {f"{name}.png": picture.formats["png"] for name, picture in pictures.items()}
    return write_files(folder, contents)
