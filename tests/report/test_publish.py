"""Publishing: what is copied, what the published report shows, and what is put into the README."""

import re
import runpy
import sys
from pathlib import Path

import pytest
import yaml
from fabricate import failed, record, write_run
from fabricate_benchmarks import inference, training, write_benchmarks
from fabricate_predictions import write_whole_run

from lora_study.records.record import read_record

SCRIPT = Path(__file__).parents[2] / "scripts" / "publish.py"
README = """Before
<!-- results: written by make publish from results/published; do not edit -->
old results
<!-- end of results -->
After
"""


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A repository with its pages, a study of one run and benchmarks; it is the current folder."""
    (tmp_path / "README.md").write_text(README)
    write_run(tmp_path / "results" / "embedded", record())
    write_benchmarks(tmp_path / "results" / "benchmarks", training_cpu=training())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def publish(monkeypatch, *arguments):
    """Run the script as from the command line; its exit status."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return ended.value.code


def test_benchmarks_are_copied_and_their_page_is_written_beside_them(root, monkeypatch):
    assert publish(monkeypatch, "results/benchmarks") == 0
    folder = root / "results" / "published" / "benchmarks"
    assert (folder / "training-cpu.json").read_bytes() == (
        root / "results" / "benchmarks" / "training-cpu.json"
    ).read_bytes()
    assert "| LoRA q,v | 25.00 |" in (folder / "speed.md").read_text()
    assert (root / "README.md").read_text() == README


def test_a_benchmark_that_was_not_measured_again_stays_published(root, monkeypatch):
    write_benchmarks(root / "results" / "published" / "benchmarks", inference=inference())
    assert publish(monkeypatch, "results/benchmarks") == 0
    page = (root / "results" / "published" / "benchmarks" / "speed.md").read_text()
    assert "## Training speed" in page and "## Inference speed" in page


def test_a_study_that_is_not_finished_is_not_published(root, monkeypatch, capsys):
    study = root / "results" / "embedded"
    (study / "study.yaml").write_text(yaml.safe_dump({"experiments": ["lora_default", "full"], "seeds": [1]}))
    assert publish(monkeypatch, "results/embedded") == 2
    assert "lacks full seed 1; run the study again" in capsys.readouterr().err
    assert not (root / "results" / "published").exists() and (root / "README.md").read_text() == README
    write_run(study, record("full"))
    assert publish(monkeypatch, "results/embedded") == 0


def test_a_folder_without_benchmarks_is_a_readable_mistake(root, monkeypatch, capsys):
    (root / "results" / "benchmarks" / "training-cpu.json").unlink()
    assert publish(monkeypatch, "results/benchmarks") == 2
    assert "holds no training*.json or inference*.json; run" in capsys.readouterr().err


def test_a_malformed_benchmark_is_not_published(root, monkeypatch, capsys):
    (root / "results" / "benchmarks" / "inference.json").write_text("{}")
    assert publish(monkeypatch, "results/benchmarks") == 2
    said = capsys.readouterr().err
    assert said.startswith("publish: error: ") and "inference.json is left out" in said and said.count("\n") == 1
    assert not (root / "results" / "published").exists()


def test_the_published_report_links_the_published_benchmarks(root, monkeypatch):
    write_benchmarks(root / "results" / "published" / "benchmarks", inference=inference())
    assert publish(monkeypatch, "results/embedded") == 0
    target = root / "results" / "published"
    assert "(../benchmarks/speed.html)" in (target / "embedded" / "report.md").read_text()
    page = (target / "benchmarks" / "speed.md").read_text()
    assert "(inference.json)" in page and "training-cpu" not in page  # measured, but not published
    readme = (root / "README.md").read_text()
    assert "old results" not in readme and readme.count("![") == 1


def test_the_readme_shows_the_articles_protocol_and_then_a_study_of_several_seeds(root, monkeypatch):
    studies = ("embedded", "article-protocol-embedded-encoder", "full-embedded-encoder")
    for place, name in enumerate(studies):
        write_run(root / "results" / name, record(metrics={"test": {"accuracy": 0.71 + place / 10}}))
        (root / "results" / name / "study.yaml").write_text(f"title: Study {name}\n")
        assert publish(monkeypatch, f"results/{name}") == 0
    readme = (root / "README.md").read_text()
    assert re.findall(r"\*\*Study (.*)\*\*", readme) == [studies[1], studies[2]]
    assert re.findall(r"\| lora_default \| 1 \| ([\d.]+)", readme) == ["81.00", "91.00"]
    write_run(root / "results" / "mine", record())
    assert publish(monkeypatch, "results/mine") == 0
    assert (root / "README.md").read_text() == readme


def test_what_is_published_is_what_somebody_reads(root, monkeypatch):
    write_whole_run(root / "results" / "embedded", record("full"))
    (root / "results" / "embedded" / "study.yaml").write_text("title: Mine\n")
    assert publish(monkeypatch, "results/embedded") == 0
    target = root / "results" / "published" / "embedded"
    whole = {"record.json", "predictions.parquet", "curves.csv"}
    assert {path.name for path in (target / "full" / "seed-1").iterdir()} == whole
    assert {path.relative_to(target).as_posix() for path in target.rglob("*") if "seed-1" not in path.parts} - {
        *("full", "lora_default", "figures", "tables")
    } == {
        *(
            "study.yaml",
            "report.md",
            "report.html",
            "summary.csv",
            "parameters.csv",
            "tables/claims.csv",
            "tables/runs.csv",
        ),
        *("figures/seeds.png", "figures/loss.png", "figures/calibration.png"),
    }
    assert (target / "report.md").read_text().startswith("# Mine\n")


def test_of_a_sweep_the_trials_records_and_the_tested_run_are_published(root, monkeypatch):
    folder = root / "results" / "rates"
    for name, rate, accuracy in (("slow", 1e-5, 0.7), ("fast", 1e-3, 0.8), ("best", 1e-3, 0.8)):
        config = {"score_test": name == "best", "train": {"learning_rate": rate}}
        write_whole_run(folder, record(name, config=config, metrics={"val": {"accuracy": accuracy}}))
    sweep = {"name": "rates", "title": "Rates", "experiment": "x.yaml", "parameters": {"train.learning_rate": [1, 2]}}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    assert publish(monkeypatch, "results/rates") == 0
    target = root / "results" / "published" / "rates"
    assert {path.name for path in (target / "slow" / "seed-1").iterdir()} == {"record.json"}
    assert {"record.json", "predictions.parquet"} <= {path.name for path in (target / "best" / "seed-1").iterdir()}
    assert "**fast** has the best mean validation accuracy" in (target / "sweep.md").read_text()
    assert not (target / "report.md").exists() and (root / "README.md").read_text() == README


def test_the_readme_shows_no_study_of_my_own(root, monkeypatch):
    for name in ("embedded", "medium-embedded-encoder", "of_my_own"):
        write_run(root / "results" / name, record())
        assert publish(monkeypatch, f"results/{name}") == 0
    readme = (root / "README.md").read_text()
    assert "(results/published/embedded/report.md)" in readme
    assert "published/medium" not in readme and "of_my_own" not in readme


def test_a_readme_without_markers_is_a_readable_mistake(root, monkeypatch, capsys):
    (root / "README.md").write_text("nothing here")
    assert publish(monkeypatch, "results/embedded") == 2
    assert "README.md has no lines '<!-- results:" in capsys.readouterr().err
    assert (root / "README.md").read_text() == "nothing here"


@pytest.mark.parametrize("arguments", [[], ["one", "two"]])
def test_usage(root, monkeypatch, capsys, arguments):
    assert publish(monkeypatch, *arguments) == 2
    assert "usage: python scripts/publish.py results/STUDY" in capsys.readouterr().err


def test_no_folder_of_the_machine_is_published(root, monkeypatch):
    typed = "lora-study run --data.source '/home/me/d/all.csv' --results-dir=/home/me/results --model.backbone embedded"
    changes = {"config": {"data": {"source": "/home/me/my reviews/all.csv"}}, "provenance": {"command": typed}}
    write_run(root / "results" / "embedded", failed(error="no space ([/home/me/x.csv], source:/home/me/y.csv)"))
    write_run(root / "results" / "embedded", record(**changes))
    assert publish(monkeypatch, "results/embedded") == 0
    folder = root / "results" / "published" / "embedded"
    for path in folder.rglob("*"):
        if path.suffix in (".json", ".yaml", ".md", ".html", ".csv"):
            assert "/home/me" not in path.read_text(), path
    kept = read_record(folder / "lora_default" / "seed-1" / "record.json")
    assert kept.config["data"]["source"] == "all.csv"
    assert kept.provenance["command"] == (
        "lora-study run --data.source 'all.csv' --results-dir=results --model.backbone embedded"
    )


def test_a_folder_called_hub_is_not_published_as_the_hub(root, monkeypatch):
    command = {"command": "lora-study run --data.source /home/me/hub --model.backbone=/home/me/embedded"}
    write_run(root / "results" / "embedded", record(config={"data": {"source": "/home/me/hub/"}}, provenance=command))
    assert publish(monkeypatch, "results/embedded") == 0
    kept = read_record(root / "results" / "published" / "embedded" / "lora_default" / "seed-1" / "record.json")
    assert kept.config["data"]["source"] == "./hub"
    assert kept.provenance["command"] == "lora-study run --data.source ./hub --model.backbone=./embedded"


def test_a_folder_that_cannot_be_written_is_said_in_a_line(root, monkeypatch, capsys):
    write_run(root / "results" / "embedded", record())
    (root / "results" / "published").write_text("a file")
    assert publish(monkeypatch, "results/embedded") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("publish: error: ") and printed.count("\n") == 1


def test_weights_that_are_as_large_as_the_model_stay_at_home(root, monkeypatch):
    results = root / "results" / "many"
    for mode in ("lora", "last_two_layers", "partial", "full"):
        write_run(results, record(mode, config={"mode": mode}))
        (results / mode / "seed-1" / "adapter.safetensors").write_bytes(mode.encode())
    assert publish(monkeypatch, "results/many") == 0
    published = root / "results" / "published" / "many"
    copied = {path.parts[-3]: path.read_bytes() for path in published.glob("*/seed-1/adapter.safetensors")}
    assert copied == {"lora": b"lora", "last_two_layers": b"last_two_layers"}
    assert len(list(published.glob("*/seed-1/record.json"))) == 4
