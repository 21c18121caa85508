"""A checkout in which the commands of the pages take a second: the shipped configs, a tiny encoder and few reviews.

The configs are the shipped ones without what makes them long: their own reviews, encoder, sizes, lengths, epochs and
devices are taken out, so that those of the two base files hold, which are tiny here. Of several seeds one stays, of the
values of a parameter two. The files that the pages name, such as aclImdb_v1.tar.gz, are there, with real reviews.
"""

import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pages import ROOT
from tiny_experiments import tiny_content

from lora_study.config_files import overlay

SIZES = (24, 10, 16)
LONG = {"sizes", "max_length", "epochs", "precision", "accelerator", "threads", "devices"}
ELSEWHERE = {"source", "backbone", "revision"}
TOOLS = ("lora-study", "python", "ruff", "mypy", "lint-imports")  # what the Makefile calls
ECHO = f"#!{sys.executable} -S\nimport json, sys\nprint(json.dumps(sys.argv))\n"


def write_checkout(folder: Path, backbone: Path, reviews_csv: Path) -> Path:
    """Write the configs, the files that a reader would have, and a Makefile whose tools only print their arguments."""
    for path in (ROOT / "configs").rglob("*.yaml"):
        content = shortened(yaml.safe_load(path.read_text()))
        if path.name == "base.yaml":
            content = overlay(content, tiny_content(backbone, reviews_csv, folder / ".cache", SIZES))
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(yaml.safe_dump(content, sort_keys=False))
    for name in ("distilbert", "distilbert-base-uncased"):
        shutil.copytree(backbone, folder / name)
    reviews = pd.read_csv(reviews_csv)[:60]
    reviews.to_csv(folder / "reviews.csv", index=False)
    for row in reviews.itertuples():
        file = folder / "aclImdb" / ("train", "test")[row.Index % 2] / ("neg", "pos")[row.label] / f"{row.Index}_9.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(row.text)
    with tarfile.open(folder / "aclImdb_v1.tar.gz", "w:gz") as archive:
        archive.add(folder / "aclImdb", "aclImdb")
    for name in ("README.md", "Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    (folder / "docs").mkdir()
    for tool in TOOLS:
        (folder / ".venv/bin").mkdir(parents=True, exist_ok=True)
        (folder / ".venv/bin" / tool).write_text(ECHO)
        (folder / ".venv/bin" / tool).chmod(0o755)
    (folder / ".venv/.installed").touch()
    return folder


def shortened(content: Any) -> Any:
    """A config without settings that are `LONG` or `ELSEWHERE`, with one seed and two values of each parameter."""
    if isinstance(content, list):
        return [shortened(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    kept = {name: shortened(value) for name, value in content.items() if name not in LONG | ELSEWHERE}
    if isinstance(kept.get("seeds"), list):  # of a study; an experiment's are a mapping
        kept["seeds"] = kept["seeds"][:1]
    if "parameters" in kept:
        kept["parameters"] = {of: v[:2] if isinstance(v, list) else v for of, v in kept["parameters"].items()}
    return kept
