"""The command line: exit statuses, one-line errors, and a miniature study from its command to its report."""

import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import pytest
import yaml
from fabricate import record as made_up
from fabricate import write_run
from in_this_process import InThisProcess
from tiny_experiments import tiny_content

from lora_study.cli import main
from lora_study.commands import COMMANDS
from lora_study.flags import parse
from lora_study.records.record import read_record, read_records

CONFIGS = Path(__file__).parent.parent / "configs"
TOO_LONG = 300 * "x"  # no file can have such a name


@pytest.fixture
def experiment(tiny_backbone, reviews_csv, tmp_path):
    """A file of an experiment that takes a second."""
    path = tmp_path / "experiment.yaml"
    content = tiny_content(tiny_backbone, reviews_csv, tmp_path / "cache", (48, 20, 30))
    path.write_text(yaml.safe_dump({"name": "tiny", **content}))
    return path


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("last_two_layers", {"trainable": 592_130, "total": 66_955_010, "lora": 0, "head": 592_130, "base": 0}),
        ("lora_default", {"trainable": 147_456, "total": 67_102_466, "lora": 147_456, "head": 0, "base": 0}),
        ("lora_best", {"trainable": 516_096, "total": 67_471_106, "lora": 516_096, "head": 0, "base": 0}),
        ("full", {"trainable": 66_955_010, "total": 66_955_010, "lora": 0, "head": 592_130, "base": 66_362_880}),
    ],
)
def test_inspect_prints_the_exact_counts_of_the_reference_without_network(capsys, name, counts):
    assert main(["inspect", "--config", str(CONFIGS / "reference" / f"{name}.yaml"), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["name"] == name
    assert printed["parameters"] == counts
    assert len(printed["lora_modules"]) == {"lora_default": 12, "lora_best": 24}.get(name, 0)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_shipped_file_begins_with_the_command_that_runs_it(path, monkeypatch):
    monkeypatch.chdir(CONFIGS.parent)
    prompt, program, *words = shlex.split(path.read_text().splitlines()[0].partition("   (")[0])
    assert (prompt, program) == ("#", "lora-study")
    kind = {"studies": "reproduce", "sweeps": "sweep"}.get(path.parent.name, "run")
    assert words[0] == kind
    assert parse(COMMANDS[kind], "lora-study", words[1:])
    assert words[1:3] == ["--study" if kind == "reproduce" else "--config", str(path.relative_to(CONFIGS.parent))]


def test_the_articles_example_of_a_changed_hyperparameter(capsys):
    arguments = ["--config", str(CONFIGS / "reference" / "lora_default.yaml"), "--lora.alpha", "32", "--lora.r", "16"]
    assert main(["inspect", *arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["trainable"] == 2 * 147_456


def test_inspect_shows_the_model_and_the_table(capsys):
    assert main(["inspect", "--config", str(CONFIGS / "reference" / "lora_default.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "LinearWithLoRA" in printed
    assert "147,456" in printed


def test_inspect_tells_how_sure_a_frozen_head_lets_it_be(capsys, experiment):
    """For any encoder whose weights are here; a head that is trained has no such limit."""
    arguments = ["inspect", "--config", str(experiment)]
    assert main([*arguments, "--json"]) == 0
    cap = json.loads(capsys.readouterr().out)["confidence_cap"]
    assert cap["low"] < cap["high"] and cap["least_probability"] < 0.5 < cap["most_probability"]
    assert cap["most_probability"] == pytest.approx(1 / (1 + math.exp(-cap["high"])))
    assert main(arguments) == 0
    assert f"below {cap['least_probability']:.3f} or above {cap['most_probability']:.3f}" in capsys.readouterr().out
    assert main([*arguments, "--json", "--seeds.head_init", "5"]) == 0
    assert json.loads(capsys.readouterr().out)["confidence_cap"] != cap
    for trained in (["--lora.train_head", "true"], ["--mode", "full"]):
        assert main([*arguments, "--json", *trained]) == 0
        assert json.loads(capsys.readouterr().out)["confidence_cap"] is None
    assert main(["inspect", "--config", str(CONFIGS / "reference" / "lora_default.yaml")]) == 0
    assert "the encoder's weights tell, which are not here" in capsys.readouterr().out


def test_print_config_shows_what_would_run_and_runs_nothing(capsys, experiment, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--config", str(experiment), "--lora.r", "3", "--print_config"])
    assert stop.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert (printed["name"], printed["lora"]["r"], printed["train"]["epochs"]) == ("tiny", 3, 1)
    assert not (tmp_path / "results").exists()


def test_print_config_prints_a_file_that_runs_the_same_from_any_folder(capsys, experiment, tmp_path, monkeypatch):
    arguments = ["run", "--train.epochs", "7", "--config", str(experiment), "--print_config"]
    with pytest.raises(SystemExit):
        main(arguments)
    printed = capsys.readouterr().out
    (tmp_path / "printed.yaml").write_text(printed)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    with pytest.raises(SystemExit):
        main(["inspect", "--config", "../printed.yaml", "--print_config"])
    assert capsys.readouterr().out == printed
    assert yaml.safe_load(printed)["train"]["epochs"] == 7


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora.r", "0"], "lora.r: 0"),
        (["--lora.alpha", ".inf"], "lora.alpha: inf"),
        (["--lora.alpha", "1e39"], "lora.alpha: 1e+39"),
        (["--train.cache_trunk", "true"], "train.cache_trunk"),
        (["--data.source", "nowhere.csv"], "nowhere.csv"),
        (["--model.backbone", "./nowhere"], "./nowhere"),
    ],
)
def test_print_config_refuses_what_a_run_would(capsys, experiment, flags, words):
    for command in (["run"], ["inspect"]):
        assert main([*command, "--config", str(experiment), "--print_config", *flags]) == 2
        printed = capsys.readouterr()
        assert printed.out == "" and words in printed.err and printed.err.count("\n") == 1


def test_a_home_folder_is_found_in_every_option(capsys, experiment, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["run", f"--config=~/{experiment.name}", "--results-dir=~/out"]) == 0
    assert (tmp_path / "out" / "tiny" / "seed-1" / "record.json").exists()
    (tmp_path / "texts.txt").write_text("good\nbad\n")
    run = "--run=~/out/tiny/seed-1"
    assert main(["predict", run, "--file=~/texts.txt", "--output=~/labels.csv"]) == 0
    assert main(["export", run, "--output=~/adapter"]) == 0
    assert main(["merge", run, "--output=~/merged"]) == 0
    assert {"labels.csv", "adapter", "merged"} <= {path.name for path in tmp_path.iterdir()}
    study = {"name": "mini", "title": "A miniature", "experiments": [experiment.name]}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert main(["reproduce", "--study=~/study.yaml", "--results-dir=~/out"]) == 0
    assert main(["report", "--results-dir=~/out"]) == 0
    assert main(["claims", "--results-dir=~/out"]) == 0
    records, problems = read_records("~/out")
    assert [record.name for record in records] == ["tiny"] and not problems
    assert not [path for path in Path.cwd().iterdir() if path.name.startswith("~")]


def test_run_writes_one_run_and_says_where(capsys, experiment, tmp_path):
    assert main(["run", "--config", str(experiment), "--seed", "5", "--results-dir", str(tmp_path / "out")]) == 0
    folder = tmp_path / "out" / "tiny" / "seed-5"
    assert str(folder) in capsys.readouterr().out
    record = read_record(folder / "record.json")
    assert record.status == "completed"
    assert record.provenance["command"].startswith("lora-study run --config ")
    assert {path.name for path in folder.iterdir()} == {
        *("record.json", "predictions.parquet", "curves.csv", "adapter.safetensors")
    }


def test_a_run_that_fails_ends_with_status_1_and_says_why(capsys, experiment, tmp_path):
    too_much = ["--train.optimizer", "adamw", "--train.weight_decay", "3e38"]
    assert main(["run", "--config", str(experiment), "--results-dir", str(tmp_path / "out"), *too_much]) == 1
    assert "not finite at step 2" in capsys.readouterr().out
    assert read_record(tmp_path / "out" / "tiny" / "seed-1" / "record.json").status == "failed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--lora.r", "0"], ["lora.r", "0", "1 or more"]),
        (["run", "--lora.r", "many"], ["lora.r", "many", "use a whole number"]),
        (["run", "--lora.rank", "3"], ["--lora.rank"]),
        (["run", "--lora.alhpa=3"], ["--lora.alhpa=3", "did you mean --lora.alpha?"]),
        (["run", "--results_dir", "out"], ["did you mean --results-dir?"]),
        (["reproduce", "--study", "s", "--seed", "3"], ["--seed", "did you mean --seeds?"]),
        (["sweep", "--config", "a.yaml", "--config", "b.yaml"], ["--config is given twice"]),
        (["run", "--lora.r", "8", "--lora.r", "16"], ["--lora.r is given twice; leave one out"]),
        (["run", "--train", "{epochs: 1}", "--train", "{threads: 1}"], ["--train is given twice"]),
        (["reproduce", "--study", "s", "--source", "a", "--source", "b"], ["--source is given twice"]),
        (["run", ""], ["an argument is empty"]),
        (["run", "--config", ""], ["--config", "it is empty"]),
        (["run", "--config", "bad.yaml", "--lora.r", "8", "--print_config"], ["bad.yaml: train.epochs", "'two'"]),
        (["run", "--config", "bad.yaml", "--train.epochs", "2", "--lora.r", "x"], ["error: lora.r: 'x'"]),
        (["report", "--results-dir", "."], ["holds studies; name one of them, such as some"]),
        (["claims", "--results-dir", "some/study"], ["one experiment's folder"]),
        (["run", "--data.sizes.train", ""], ["--data.sizes.train", "it is empty"]),
        (["run", "--results-dir", ""], ["--results-dir", "it is empty"]),
        (
            [
                *("run", "--model.backbone", "embedded", "--data.source", "embedded", "--train.precision", "32-true"),
                *("--results-dir", os.fsdecode(b"caf\xe9")),
            ],
            ["results folder", "UTF-8"],
        ),
        (["run", "--train.devices", "[1"], ["--train.devices", "'[1'", "YAML"]),
        (["run", "--train.threads", "two"], ["train.threads", "'two'", "use a whole number"]),
        (["predict", "--run", "nowhere", "--precision", "16-true", "text"], ["--precision", "'16-true'", "bf16-true"]),
        (["run", "--config", "nowhere.yaml"], ["nowhere.yaml"]),
        (
            ["run", "--data.source", "nowhere.csv", "--model.backbone", "embedded", "--train.precision", "32-true"],
            ["nowhere.csv"],
        ),
        (["inspect", "--lora.r", "100000"], ["r=100000", "768"]),
        (["inspect", "--model.backbone", "no/such-model"], ["no/such-model", "embedded"]),
        (["reproduce"], ["--study"]),
        (["reproduce", "--study", "nowhere.yaml", "--seeds", "2.5"], ["--seeds", "2.5", "use a whole number"]),
        (["reproduce", "--study", "nowhere.yaml"], ["nowhere.yaml"]),
        (["report", "--results-dir", "nowhere"], ["nowhere"]),
        (["report", "--results-dir", TOO_LONG], [TOO_LONG, "too long"]),
        (["list", "--results-dir", TOO_LONG], [TOO_LONG, "too long"]),
        (["train"], ["train", "run", "reproduce"]),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_status_2(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("train: {epochs: two}")
    write_run(tmp_path / "some", made_up("study"))
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("lora-study: error: ")
    assert printed.err.count("\n") == 1
    assert all(word in printed.err for word in words), printed.err


def shell(command, **environment):
    """Run a command of bash, in which lora-study is ours."""
    ours = f'lora-study() {{ {shlex.quote(sys.executable)} -m lora_study "$@"; }}; '
    return subprocess.run(
        ["bash", "-c", ours + command], capture_output=True, text=True, env=os.environ | environment, check=False
    )


def test_the_version_is_told():
    done = shell("lora-study --version")
    assert (done.returncode, done.stdout) == (0, f"lora-study {version('lora-study')}\n")


@pytest.mark.parametrize("environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C"}])
def test_output_of_any_encoding_is_no_failure(environment, tmp_path):
    """The name of the file, the message and the printed config hold what ASCII has not."""
    (tmp_path / "é.csv").touch()
    printed = shell(f"cd {tmp_path} && lora-study run --data.source é.csv --print_config", **environment)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert "source:" in printed.stdout and "name: lora_default" in printed.stdout
    refused = shell(f"lora-study run --config {tmp_path}/é.yaml", **environment)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_failure(closed, tmp_path):
    for command, status in (("run --print_config --data.source embedded", 0), ("run --lora.r 0", 2), ("--help", 0)):
        done = shell(f"lora-study {command} {closed}")
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
        assert done.stderr.count("\n") == (status == 2 and "2>&-" not in closed)


def test_a_full_disk_and_a_reader_that_has_seen_enough_are_said_or_taken_before_the_end():
    done = shell("lora-study run --print_config --data.source embedded > /dev/full")
    assert (done.returncode, done.stderr) == (1, "lora-study: error: [Errno 28] No space left on device\n")
    done = shell("lora-study run --print_config --data.source embedded | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, "")


def make(*words):
    """What a target of the Makefile prints, or would run."""
    command = ["make", "--no-print-directory", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIGS.parent)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_setup_installs_with_uv_where_it_is_and_chooses_the_build_of_torch_with_both():
    planned = ("--dry-run", "--always-make", "setup")
    plain, chosen = (make(*planned, "UV=", *more).stdout.splitlines() for more in ((), ("TORCH_BACKEND=cpu",)))
    assert plain[0].endswith(" -m venv .venv") and all(" -m pip install " in line for line in plain[1:4])
    index = "--extra-index-url https://download.pytorch.org/whl/cpu torch"
    assert not any("index-url" in line for line in plain) and [index in line for line in chosen].count(True) == 1
    plain, chosen = (make(*planned, "UV=uv", *more).stdout.splitlines() for more in ((), ("TORCH_BACKEND=auto",)))
    assert plain[0].startswith("uv venv ") and all(line.startswith("uv pip install ") for line in plain[1:4])
    assert not any("torch-backend" in line for line in plain)
    assert all("--torch-backend auto" in line and "index-url" not in line for line in chosen[1:4])
    refused = make(*planned, "UV=", "TORCH_BACKEND=auto")
    assert refused.returncode == 2 and "TORCH_BACKEND=auto needs uv" in refused.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("target", ["reproduce", "sweep"])
def test_make_hands_on_a_path_as_it_is_given(tmp_path, target):
    command = tmp_path / "lora-study"
    command.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    command.chmod(0o755)
    paths = ["a b.csv", 'it\'s "$(date)" for $5.csv']
    flags = ("--silent", "--old-file=setup", f"BIN={tmp_path}", "WORKERS=2")
    printed = make(*flags, target, f"SOURCE={paths[0]}", f"BACKBONE={paths[1]}").stdout.splitlines()
    assert printed[printed.index("--source") :] == ["--source", paths[0], "--backbone", paths[1], "--workers", "2"]


def test_debug_shows_the_traceback():
    with pytest.raises(ValueError, match=r"lora\.r"):
        main(["--debug", "inspect", "--lora.r", "0"])


def test_a_miniature_study_writes_every_file_of_the_design_and_skips_what_is_done(capsys, experiment, tmp_path):
    """Three experiments, one of which cannot run: the others do, and the exit status says so."""
    for name, content in {
        "lora": {"lora": {"r": 2}},
        "full": {"mode": "full"},
        "wrong": {"train": {"logger": "csv"}},
    }.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"extends": "experiment.yaml", "name": name} | content))
    files = ["lora.yaml", "full.yaml", "wrong.yaml"]
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", "experiments": files}))
    results = tmp_path / "out"
    results.mkdir()
    (results / "logs").write_text("a file where the logger's folder should be")

    assert main(["reproduce", "--study", str(study), "--results-dir", str(results)]) == 1
    printed = capsys.readouterr()
    assert "2 of 3 runs completed" in printed.out
    assert f"{results}/logs" in printed.err
    for name in ("lora", "full"):
        assert {path.name for path in (results / name / "seed-1").iterdir()} >= {
            *("record.json", "predictions.parquet", "curves.csv")
        }
    failed = read_record(results / "wrong" / "seed-1" / "record.json")
    assert failed.status == "failed"
    assert f"{results}/logs" in failed.error
    for name in ("summary.csv", "parameters.csv", "study.yaml", "report.md", "report.html"):
        assert (results / name).stat().st_size > 0, name
    assert {path.stem for path in (results / "figures").glob("*.png")} == {"seeds", "loss", "calibration"}
    summary = pd.read_csv(results / "summary.csv")
    assert {"lora", "full"} <= set(summary["experiment"])

    before = {path: path.stat().st_mtime_ns for path in results.glob("*/seed-1/*")}
    study.write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", "experiments": files[:2], "next": "rest"}))
    assert main(["reproduce", "--study", str(study), "--results-dir", str(results)]) == 0
    assert capsys.readouterr().out.endswith("report.md\nnext: rest\n")
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/seed-1/*")} == before

    (tmp_path / "full.yaml").write_text(
        yaml.safe_dump({"extends": "experiment.yaml", "name": "full", "mode": "full", "train": {"epochs": 2}})
    )
    assert main(["reproduce", "--study", str(study), "--results-dir", str(results)]) == 2
    assert "train.epochs: 1 then, 2 now" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/seed-1/*")} == before


@pytest.fixture
def named_runs(experiment, tmp_path, monkeypatch):
    """The results folder of the current one, with a run named tiny of seed 1, then of seed 2 in another study."""
    monkeypatch.chdir(tmp_path)
    for study, seed in (("first", "1"), ("second", "2")):
        assert main(["run", "--config", str(experiment), "--seed", seed, "--results-dir", f"results/{study}"]) == 0
    for seed, study, day in (("1", "first", "02"), ("2", "second", "01")):
        path = Path("results", study, "tiny", f"seed-{seed}", "record.json")
        content = json.loads(path.read_text())
        content["provenance"]["started"] = f"2026-03-{day}T04:05:06+00:00"
        path.write_text(json.dumps(content))


def test_a_run_can_be_named_by_its_experiment_where_no_folder_has_that_name(capsys, named_runs):
    chosen = "tiny: results/first/tiny/seed-1, its newest run with weights\n"
    capsys.readouterr()
    assert main(["predict", "--run", "tiny", "A wonderful film"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("id,label,probability\n1,") and printed.err == chosen
    for command, file in (("export", "adapter_model.safetensors"), ("merge", "model.safetensors")):
        assert main([command, "--run", "tiny", "--output", command]) == 0
        assert Path(command, file).exists() and capsys.readouterr().err == chosen
    Path("results/second/tiny/seed-2").rename("tiny")
    assert main(["predict", "--run", "tiny", "A wonderful film"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["predict", "--run", "large", "A wonderful film"]) == 2
    assert "'large'" in (line := capsys.readouterr().err) and "tiny" in line and line.count("\n") == 1


def test_list_shows_every_experiment_below_a_folder(capsys, named_runs):
    capsys.readouterr()
    assert main(["list"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "| tiny |" in line]
    assert [row.split(" | ")[0] for row in rows] == ["| first", "| second"]
    assert all("| 1 | 0 |" in row and row.endswith("| 1 |") for row in rows)
    assert "2026-03-02 04:05" in rows[0] and "2026-03-01 04:05" in rows[1]
    Path("empty").mkdir()
    assert main(["list", "--results-dir", "empty"]) == 2
    assert "'empty'" in capsys.readouterr().err


@pytest.mark.parametrize("there", [True, False])
def test_a_report_is_opened_in_a_browser_if_there_is_one(capsys, tmp_path, monkeypatch, there):
    opened = []
    monkeypatch.setattr("webbrowser.open", lambda address: opened.append(address) or there)
    write_run(tmp_path / "a study", made_up())
    assert main(["report", "--results-dir", str(tmp_path / "a study")]) == 0
    assert not opened
    assert main(["report", "--results-dir", str(tmp_path / "a study"), "--open"]) == 0
    assert opened == [(tmp_path / "a study" / "report.html").as_uri()]
    assert (opened[0] in capsys.readouterr().err) != there


def test_a_study_s_reviews_and_encoder_can_be_named_on_the_command_line(
    capsys, experiment, reviews_csv, tiny_backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr("lora_study.studies.launchers.make_launcher", lambda name, workers: InThisProcess())
    study, results = tmp_path / "study.yaml", tmp_path / "out"
    hub = {"data": {"source": "hub", "revision": "abc"}, "model": {"backbone": "distilbert", "revision": "def"}}
    (tmp_path / "from_hub.yaml").write_text(yaml.safe_dump({"extends": "experiment.yaml", "name": "a", **hub}))
    study.write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", "experiments": ["from_hub.yaml"]}))
    arguments = ["reproduce", "--study", str(study), "--results-dir", str(results)]

    assert main([*arguments, "--source", "nowhere.csv", "--backbone", str(tiny_backbone)]) == 2
    assert "--source: 'nowhere.csv'" in capsys.readouterr().err
    assert main([*arguments, "--source", str(reviews_csv), "--backbone", "./nowhere"]) == 2
    assert "--backbone: './nowhere'" in capsys.readouterr().err
    assert not results.exists()
    assert main([*arguments, "--source", str(reviews_csv), "--backbone", str(tiny_backbone)]) == 0
    config = read_record(results / "a" / "seed-1" / "record.json").config
    assert (config["data"]["source"], config["data"]["revision"]) == (str(reviews_csv), None)
    assert (config["model"]["backbone"], config["model"]["revision"]) == (str(tiny_backbone), None)


@pytest.mark.parametrize("wrong", [{"data": {"source": "./nowhere"}}, {"model": {"backbone": "./nowhere"}}])
@pytest.mark.parametrize("command", ["reproduce --study", "sweep --config"])
def test_what_the_last_experiment_lacks_is_said_before_the_first_is_run(capsys, experiment, tmp_path, command, wrong):
    (tmp_path / "lacks.yaml").write_text(yaml.safe_dump({"extends": "experiment.yaml", "name": "b", **wrong}))
    runs = {
        "reproduce --study": {"experiments": ["experiment.yaml", "lacks.yaml"]},
        "sweep --config": {"experiment": "lacks.yaml", "parameters": {"train.learning_rate": [0.1, 0.2]}},
    }
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", **runs[command]}))
    arguments = [*command.split(), str(tmp_path / "many.yaml"), "--results-dir", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert re.fullmatch(r"lora-study: error: [a-z.]+: './nowhere' .*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"data": {"source": "hub"}}, "data.source: 'hub'"),
        ({"model": {"backbone": "someone/elses"}}, "model.backbone: 'someone/elses'"),
        ({"model": {"backbone": "."}}, "model.backbone: .* has no config.json"),
        ({"lora": {"r": 33}}, "a: lora: .*q_lin: rank r=33 does not fit a layer with 32 inputs; use 1 to 32"),
        ({"lora": {"targets": ["q_lin", "value", "gate"]}}, "a: lora: target 'gate' matches no linear layer"),
        ({"mode": "partial", "partial": {"blocks": 3}}, "a: partial.blocks: 3 is not valid; the model has 2"),
        ({"data": {"text_column": "words"}}, "a: .* has no column 'words'"),
        ({"data": {"sizes": {"test": 9_999}}}, "a: data.sizes"),
    ],
)
def test_inputs_that_no_run_can_have_are_said_once_and_no_run_fails_for_it(capsys, experiment, tmp_path, wrong, named):
    """The tests are offline, and no folder is an encoder for lying there."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump({"extends": "experiment.yaml", "name": name, **wrong}))
    study, results = tmp_path / "study.yaml", tmp_path / "out"
    study.write_text(yaml.safe_dump({"name": "mini", "title": "A miniature", "experiments": ["a.yaml", "b.yaml"]}))
    assert main(["reproduce", "--study", str(study), "--results-dir", str(results)]) == 2
    said = capsys.readouterr().err
    assert re.fullmatch(f"lora-study: error: {named}.*\n", said)
    assert not [path for path in results.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_study_into_a_folder_that_cannot_be_written_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    study = CONFIGS / "studies" / "embedded.yaml"
    assert main(["reproduce", "--study", str(study), "--results-dir", str(tmp_path / "file" / "out")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_request_to_stop_ends_a_study_at_once_and_leaves_no_half_run(experiment, tmp_path):
    """SIGTERM, as a scheduler sends it, to the study's process alone: those of its runs end with it."""
    content = yaml.safe_load(experiment.read_text())
    content["train"]["epochs"] = 100_000
    experiment.write_text(yaml.safe_dump(content))
    study = tmp_path / "study.yaml"
    mini = {"name": "mini", "title": "A miniature", "experiments": ["experiment.yaml"], "seeds": [1, 2]}
    study.write_text(yaml.safe_dump(mini))
    arguments = ["reproduce", "--study", str(study), "--results-dir", str(tmp_path / "out"), "--workers", "2"]
    process = subprocess.Popen(
        [sys.executable, "-m", "lora_study", *arguments], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    training = 0
    for line in process.stderr:
        training += "parameters trainable" in line
        if training == 2:
            break
    process.terminate()
    _, printed = process.communicate(timeout=30)  # ends only when the runs' processes have let go of stderr, too
    assert process.returncode == 130
    assert "interrupted" in printed
    assert not list((tmp_path / "out").rglob("record.json"))  # the last finished epoch may have been kept
