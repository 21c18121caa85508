"""The README and the pages of docs/, and the commands that they show."""

import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "docs").glob("*.md")}
PAGES["README.md"] = (ROOT / "README.md").read_text()

FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
REAL = {
    "FILE": "configs/embedded/lora_default.yaml",
    "RUN": "results/embedded/lora_default/seed-1",
    "DIR": "written",
    "PROFILE=NAME": "PROFILE=embedded",
    "SWEEP=NAME": "SWEEP=embedded_ranks",
}
NAMED = ("lora-study claims", "lora-study report")  # in prose, without what they need


def commands(*programs: str, having: str = "", lacking: str | None = None) -> list:
    """The words of the commands that the pages show: in backticks, indented, or in a block of bash.

    Args:
        programs: What they begin with.
        having: What they have in them.
        lacking: What they do not have in them.

    Returns:
        Parameters of a test, each command once, with something real for what a page has in capitals.
    """
    found: dict[str, str] = {}
    for page, text in PAGES.items():
        lines = re.findall(r"`([^`\n]+)`", text) + [line[4:] for line in text.splitlines() if line[:4] == "    "]
        lines += [line for language, code in FENCED.findall(text) if language == "bash" for line in code.splitlines()]
        for line in lines:
            words = line.split("  #")[0].split()
            typed = " ".join(words)
            wanted = having in typed and (lacking is None or lacking not in typed)
            if words[:1] and words[0] in programs and typed not in (*programs, *NAMED) and wanted:
                found.setdefault(typed, page)
    return [
        pytest.param([REAL.get(word, word) for word in shlex.split(typed)], id=f"{page}: {typed}")
        for typed, page in sorted(found.items())
    ]
