"""The README and docs/: every command is run, in a checkout in miniature, and does what the page says."""

import contextlib
import io
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import yaml
from in_this_process import InThisProcess
from miniature_checkout import write_checkout
from pages import PAGES, ROOT, commands

from lora_study.cli import main
from lora_study.commands import COMMANDS
from lora_study.config_files import load_study, load_sweep
from lora_study.flags import parse
from lora_study.studies.launchers import make_launcher

PROGRAMS = {"python": [], "torchrun": ["-m", "torch.distributed.run"], "lora-study": ["-m", "lora_study"]}
RUN_FILES = {"record.json", "predictions.parquet", "curves.csv", "adapter.safetensors"}
DEVICES = "--train.devices"  # a run on several of them needs a process for each
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(scope="module")
def finished(tiny_backbone, reviews_csv, tmp_path_factory):
    """A miniature checkout in which `make reproduce` has been typed; what that printed is in printed.txt."""
    folder = write_checkout(tmp_path_factory.mktemp("miniature"), tiny_backbone, reviews_csv)
    with pytest.MonkeyPatch.context() as patch, (folder / "printed.txt").open("w") as printed:
        patch.chdir(folder)
        patch.setattr("lora_study.studies.launchers.make_launcher", in_this_process)
        with contextlib.redirect_stdout(printed):
            assert main(["reproduce", "--study", "configs/studies/embedded.yaml"]) == 0
    return folder


@pytest.fixture
def checkout(finished, tmp_path, monkeypatch):
    """A copy of it as the current folder."""
    folder = shutil.copytree(finished, tmp_path / "checkout")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("lora_study.studies.launchers.make_launcher", in_this_process)
    return folder


def in_this_process(name, workers):
    make_launcher(name, workers)  # which checks them
    return InThisProcess()


def type_in(words, capsys):
    """Run a command of lora-study; what it prints."""
    try:
        status = main(words)
    except SystemExit as stop:  # of --help and --print_config
        status = stop.code
    printed = capsys.readouterr()
    assert status == 0, printed.err
    return printed


def look_at(words, printed):
    """Assert that what a command of lora-study is for has come of it."""
    lines, given = printed.out.splitlines(), dict(itertools.pairwise(words))
    if "--help" in words:
        assert "--lora.r" in printed.out
    elif "--print_config" in words:
        assert yaml.safe_load(printed.out)["name"] == given.get("--name", Path(given["--config"]).stem)
    elif "--json" in words:
        assert json.loads(printed.out)
    elif words[0] == "run":
        assert lines[-2].startswith("test accuracy ") and {path.name for path in Path(lines[-1]).iterdir()} >= RUN_FILES
    elif words[0] in ("reproduce", "sweep"):
        done, total, report = re.search(r"^(\d+) of (\d+) runs completed; report: (.+)$", printed.out, re.M).groups()
        assert done == total and Path(report).exists()
    elif words[0] == "report":
        assert len(lines) > 3 and all(Path(line).exists() for line in lines)
    elif words[0] == "predict":
        said = pd.read_csv(given["--output"] if "--output" in given else io.StringIO(printed.out))
        texts = pd.read_csv(given["--file"]) if "--file" in given else words[-1:]
        assert len(said) == len(texts) and said["probability"].between(0, 1).all()
    elif words[0] in ("export", "merge"):
        weights = "adapter_model.safetensors" if words[0] == "export" else "model.safetensors"
        written = {path.name for path in Path(given["--output"]).iterdir()}
        assert {"README.md", "model.onnx" if "onnx" in words else weights} <= written
    else:
        assert "lora_default" in printed.out


def test_there_is_something_to_run():
    programs = {"lora-study": 35, "make": 15, "python": 4, "torchrun": 1, "srun": 1}
    assert [program for program, least in programs.items() if len(commands(program)) < least] == []


@pytest.mark.parametrize("words", commands("lora-study", lacking=DEVICES))
def test_a_command_does_what_the_page_says(checkout, capsys, monkeypatch, words):
    words = words[1:]
    if "tensorboard" in words:
        pytest.importorskip("tensorboard")
    for folder in (word for word in words if word.startswith("results/published/")):
        shutil.copytree(ROOT / folder, folder)
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or True)
    if again := {"--resume", "--overwrite"}.intersection(words):
        type_in([word for word in words if word not in again], capsys)
    look_at(words, type_in(words, capsys))
    assert len(opened) == words.count("--open")


def test_the_readme_shows_how_make_reproduce_ends(finished):
    *_, report, following = (finished / "printed.txt").read_text().splitlines()
    assert f"    {report}\n    {following}\n" in PAGES["README.md"]


def called_by_make(words):
    """The commands that a target of make gives; what its variables were set to is in them."""
    done = subprocess.run([*words, "--silent"], capture_output=True, text=True, check=True)
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    given = [word.partition("=")[2] for word in words[2:]]
    assert [value for value in given if not any(value in word for call in found for word in call)] == []
    return found


@needs_make
@pytest.mark.parametrize("words", commands("make"))
def test_make_calls_what_is_there_with_flags_that_it_has(checkout, words):
    if words[1] in ("setup", "audit"):  # they install
        dry = subprocess.run([*words, "--dry-run", "--always-make"], capture_output=True, text=True, check=True)
        assert all(text in dry.stdout for text in ("constraints.txt", *(word.partition("=")[2] for word in words[2:])))
        return
    found = called_by_make(words)
    assert found or words[1] == "help"
    for program, *given in found:
        if program.endswith("lora-study"):
            assert parse(COMMANDS[given[0]], program, given[1:])
            assert {"reproduce": load_study, "sweep": load_sweep}.get(given[0], Path)(given[2])
        elif given and given[0].endswith(".py"):
            flags = [word for word in given if word.startswith("--")]
            assert [flag for flag in flags if f'"{flag}"' not in (ROOT / given[0]).read_text()] == []


@needs_make
@pytest.mark.slow
@pytest.mark.parametrize("words", [*commands("make", having="make reproduce"), *commands("make", having="make sweep")])
def test_what_make_calls_is_done(checkout, capsys, words):
    ((_, *given),) = called_by_make(words)
    look_at(given, type_in(given, capsys))


def in_own_process(words):
    """Exit status, output and errors of a program in a process of its own, as a user starts it."""
    program = [sys.executable, *PROGRAMS[words[0]], *words[1:]]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("lora-study", "torchrun", having=DEVICES))
def test_a_run_on_several_devices_does_what_the_page_says(checkout, words):
    status, printed, errors = in_own_process(words)
    assert status == 0, errors
    look_at(["run"], SimpleNamespace(out=printed))


@pytest.mark.parametrize("words", commands("srun"))
def test_srun_is_given_a_valid_run(checkout, capsys, words):
    words = [*words[words.index("lora-study") + 1 :], "--print_config"]
    look_at(words, type_in(words, capsys))


@pytest.mark.slow
@pytest.mark.parametrize("words", commands("python", having="scripts/benchmark"))
def test_a_benchmark_measures_what_the_page_says(checkout, words):
    status, printed, errors = in_own_process(words)
    if "cuda" in words and not torch.cuda.is_available():
        assert status == 2 and "there is no GPU here" in errors
    else:
        assert status == 0, errors
        assert json.loads(next((checkout / "results/benchmarks").iterdir()).read_text())["rows"] and "| row" in printed


@pytest.mark.parametrize("words", commands("python", having="> docs/rules.md"))
def test_the_page_of_the_rules_is_what_its_script_writes(checkout, words):
    """Apart from the figures, which come from a thousand draws."""
    status, printed, errors = in_own_process([*words[:-2], "1"])
    assert status == 0, errors
    first_columns = [
        [line.split("|")[:2] for line in text.splitlines() if "replications" not in line]
        for text in (printed, PAGES["docs/rules.md"])
    ]
    assert first_columns[0] == first_columns[1]


@needs_make
def test_make_clean_removes_results_and_nothing_beside_them(tmp_path):
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name in ("results/mine old", "results/published/embedded", "results/.locks", "old", ".cache"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert left == {"Makefile", "results", "results/published", "results/published/embedded", "old"}
