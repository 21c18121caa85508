"""CITATION.cff: complete, and about this version."""

import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent


def test_names_this_version_and_what_is_reproduced():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert citation["cff-version"] == "1.2.0"
    assert {"message", "title", "authors"} <= citation.keys()
    assert str(citation["version"]) == project["version"] and citation["license"] == project["license"]
    titles = [reference["title"] for reference in citation["references"]]
    assert "Code LoRA from Scratch" in titles and any(title.startswith("LoRA: Low-Rank") for title in titles)
    for reference in citation["references"]:
        assert {"type", "title", "authors", "year"} <= reference.keys()
        assert all({"family-names", "given-names"} <= author.keys() for author in reference["authors"])
