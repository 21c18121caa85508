"""docs/tutorial.ipynb: its cells run one after the other, and what it shows is what they print.

To make its outputs again: run all cells in Jupyter, delete what went to stderr (the progress), and save.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parent.parent / "docs" / "tutorial.ipynb"
REVIEWS = "REVIEWS = 1_200"  # the notebook's own number, which its first cell sets


def code_cells() -> list[dict]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def execute(reviews: int, and_then: str = "") -> str:
    """What the cells print in a fresh process that stands where Jupyter would be."""
    program = "\n".join("".join(cell["source"]) for cell in code_cells())
    assert REVIEWS in program
    program = program.replace(REVIEWS, f"REVIEWS = {reviews}") + f"\n{and_then}"
    environment = os.environ | {"MPLBACKEND": "Agg", "PYTHONPATH": str(NOTEBOOK.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def shown() -> str:
    """What the committed notebook has as printed."""
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    return "".join("".join(output["text"]) for output in outputs if output["output_type"] == "stream")


def test_it_runs_with_few_reviews():
    printed = execute(reviews=24)
    counts = {"LoRA": "147,456", "last two layers": "592,130", "all of it": "66,955,010"}
    for name, count in counts.items():
        assert re.search(rf"^{name} +{count}$", printed, re.MULTILINE)
        assert re.search(rf"^{name} +{count}$", shown(), re.MULTILINE)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # two minutes on two idle cores
def test_as_it_stands_lora_gets_further_than_the_last_two_layers():
    accuracy = "round(record.metrics['test']['accuracy'], 3)"
    printed = execute(1_200, f"print(*({accuracy} for record in (lora_record, head_record)))")
    lora, last_two = map(float, printed.split()[-2:])
    assert lora > last_two + 0.05


def test_its_outputs_are_there_and_say_nothing_of_the_machine():
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1)), "run in order, all of them"
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}
    assert {output.get("name", "stdout") for output in outputs} == {"stdout"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    text = json.dumps([output for output in outputs if "image/png" not in output.get("data", {})])
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", text)
    assert NOTEBOOK.stat().st_size < 200_000
