"""How to make a study's report and runs again, and whether its records hold what that takes."""

import shlex
from collections.abc import Callable, Iterator

from lora_study.base.text_tables import count
from lora_study.records.record import Record
from lora_study.report.material import Study

# What a record has to hold for others to repeat its run, and how to tell; a failed run measured nothing.
HELD: dict[str, Callable[[Record], object]] = {
    "the commit, with no change to it": lambda r: r.provenance.get("commit") and r.provenance.get("dirty") is False,
    "versions of the libraries": lambda r: r.provenance.get("versions"),
    "the encoder's revision or checksum": lambda r: r.encoder.revision or r.encoder.sha256,
    "the resolved config": lambda r: r.config,
    "the command": lambda r: r.provenance.get("command"),
    "the seed of each random choice": lambda r: r.provenance.get("seeds"),
    "source and fingerprint of the data": lambda r: r.data.get("source") and r.data.get("fingerprint"),
    "how many reviews have a copy among the others": lambda r: r.data.get("overlap"),
    "the epoch that validation chose": lambda r: r.metrics.get("best_epoch"),
    "time and peak memory": lambda r: r.timing.get("total_seconds") and r.memory.get("peak_bytes"),
}


def commands(study: Study) -> Iterator[str]:
    """What to type for the report and for the runs again."""
    yield "The report again, from the records alone:"
    yield _code(f"lora-study report --results-dir {shlex.quote(study.address)}")
    typed = [record.provenance.get("command") for record in study.records]
    lines = dict.fromkeys(shlex.join(command) if isinstance(command, list) else command for command in typed)
    yield "The runs again, with the commands in their records (a study skips runs that are done):"
    yield _code("\n".join(str(line) for line in lines if line) or "make reproduce")


def checklist(study: Study) -> Iterator[str]:
    """What checklists of reproducibility ask for (Pineau et al., JMLR 22, 2021), counted over the records."""
    held = {what: sum(map(bool, map(holds, study.records))) for what, holds in HELD.items()}
    held["predictions that can be read and agree with it"] = sum(len(runs) for runs in study.predictions.values())
    everything = len(study.records)
    complete = [what for what, number in held.items() if number == everything]
    yield f"Of {count(everything, 'record')}, all hold: {', '.join(complete) or 'nothing of what is looked for'}."
    if lacking := {what: number for what, number in held.items() if number < everything}:
        yield "\n".join(f"- {number} of {everything}: {what}" for what, number in lacking.items())
    yield "No record can tell how settings were chosen and how many were tried; the comments in the configs do."


def _code(text: str) -> str:
    """An indented code block: no text can end it early, as a fence inside it could."""
    return "\n".join(f"    {line}" for line in text.splitlines())
