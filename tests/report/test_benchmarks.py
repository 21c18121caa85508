"""Speed beside other tools: what the benchmarks' files say, in tables and words, in a report and in a README."""

import json
import shutil

import pandas as pd
import pytest
from fabricate import record, write_run
from fabricate_benchmarks import PROVENANCE, inference, row, training, write_benchmarks

from lora_study.report import write_report
from lora_study.report.benchmarks import METHODS, read_benchmarks


def only(folder):
    """The one benchmark of a folder without problems."""
    (found,), problems = read_benchmarks(folder)
    assert problems == []
    return found


def test_every_file_is_read_and_titled_by_what_it_measured_on_what(tmp_path):
    gpu = {**PROVENANCE["hardware"], "accelerator": "a GPU"}
    write_benchmarks(
        tmp_path,
        training_cpu_384=training(max_length=384),  # any length, precision and name: the content says what it is
        training_cuda_fp32=training(precision="32-true", hardware=gpu),
        training=training(),
        inference_gpu=inference(hardware=gpu),
    )
    benchmarks, problems = read_benchmarks(tmp_path)
    assert problems == []
    assert {found.name: found.title for found in benchmarks} == {
        "training": "Training speed on a CPU, 256 tokens, bf16-mixed",
        "training-cpu-384": "Training speed on a CPU, 384 tokens, bf16-mixed",
        "training-cuda-fp32": "Training speed on a GPU (a CPU), 256 tokens, 32-true",
        "inference-gpu": "Inference speed on a GPU (a CPU)",
    }
    assert [found.title for found in benchmarks[:3]] == sorted(found.title for found in benchmarks[:3])


def test_training_table_has_every_side_and_ours_over_each(tmp_path):
    table = only(write_benchmarks(tmp_path, training_cpu=training())).table
    first = table.iloc[0]
    assert list(table["row"]) == ["LoRA q,v", "full, attention dropout 0.1"]
    assert first["ours, reviews/s"] == 25 and first["ours, tokens/s"] == 5000
    assert first["share of limit (%)"] == 50 and first["ours, peak GiB"] == 1.25
    assert first["PEFT + Trainer, reviews/s"] == 10 and first["PEFT + Trainer, peak GiB"] == 1.5
    assert first["ours over PEFT + Trainer"] == "2.50\u00a0(2.25\u00a0to\u00a03.00)"
    assert first["ours over Lightning script"] == "1.25\u00a0(1.00\u00a0to\u00a01.75)"


def test_what_was_not_measured_is_missing(tmp_path):
    table = only(write_benchmarks(tmp_path, training_cpu=training())).table
    assert table.loc[1, ["share of limit (%)", "ours, peak GiB", "PEFT + Trainer, peak GiB"]].isna().all()
    assert pd.api.types.is_float_dtype(table["ours, peak GiB"])


def test_a_row_may_lack_a_peer(tmp_path):
    alone = row("full", "full", 3.0)
    del alone["sides"]["lightning_script"], alone["ratios"]["lightning_script"]
    found = only(write_benchmarks(tmp_path, training_cpu=training(rows=[row("LoRA", "lora_default", 2.0), alone])))
    assert pd.isna(found.table.loc[1, "ours over Lightning script"])
    assert list(found.ratios["over"]) == ["PEFT + Trainer", "Lightning script", "PEFT + Trainer"]


def test_inference_table_names_both_sides(tmp_path):
    found = only(write_benchmarks(tmp_path, inference=inference()))
    assert found.table.iloc[1].tolist() == [
        *("LoRA unmerged, 32-true", "ours, LoRA not merged", 9.0, "ours without LoRA", 10.0),
        "0.90\u00a0(0.80\u00a0to\u00a01.00)",
    ]
    assert found.ratios.iloc[0].to_dict() == {
        "row": "mixed length, 32-true",
        "over": "transformers' pipeline",
        "ratio": 2.0,
        "low": 1.9,
        "high": 2.1,
    }


def test_words_say_what_how_often_on_what_and_with_which_code(tmp_path):
    found = only(write_benchmarks(tmp_path, training_cpu=training()))
    assert found.source == (
        "Medians of 3 measurements of 20 steps, in batches of 12 reviews cut at 256 tokens, on a CPU, 2 threads, "
        "2026-01-02, with torch 2.13.0 and transformers 5.23.0, at commit 0123456789ab."
    )
    assert found.encoder == "stand-in encoder: all-MiniLM-L6-v2"


def test_words_own_up_to_what_weakens_a_measurement(tmp_path):
    hardware = {**PROVENANCE["hardware"], "accelerator": "a GPU"}
    content = training(repeats=1, dirty=True, hardware=hardware)
    found = only(write_benchmarks(tmp_path, training_cuda=content))
    assert found.source.startswith("One measurement of 20 steps") and "on a GPU (a CPU), 2 threads" in found.source
    assert found.source.endswith("0123456789ab with uncommitted changes. Measured once, the ratios have no range.")
    unknown = only(write_benchmarks(tmp_path, training_cuda=training(commit=None, dirty=None)))
    assert unknown.source.endswith("at an unknown commit.")


def ratios(median, low, high):
    return {"peft_trainer": {"median": median, "min": low, "max": high}}


def changed(**changes):
    return training(rows=[{**row("LoRA q,v", "lora_default", 2.0), **changes}])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "Expecting property name"),
        ("[]", "rows is None"),
        ('{"rows": []}', "no rows"),
        (json.dumps(training(rows=[3])), "row is None"),
        (json.dumps({**training(), "rows": inference()["rows"]}), "sides is None"),
        (json.dumps(training(repeats="three")), "repeats is 'three'"),
        (json.dumps(training(steps=True)), "steps is True"),
        (json.dumps(training(encoder=None)), "encoder is None"),
        (json.dumps(training(commit=7)), "commit is 7.0"),
        (json.dumps(training(max_length=0)), "max_length is 0.0"),
        (json.dumps(training(batch_size=10**400)), "batch_size is inf"),
        (json.dumps(changed(ratios={})), "compares nothing"),
        (json.dumps(changed(ratios={"nobody": ratios(2, 1, 3)["peft_trainer"]})), "nobody is None"),
        (json.dumps(changed(ratios=ratios(float("nan"), 1, 3))), "median is nan"),
        (json.dumps(changed(ratios=ratios(2, 2.5, 3))), "not between min and max"),
    ],
)
def test_a_malformed_file_is_one_line_that_names_it_and_the_value(tmp_path, text, why):
    (tmp_path / "training-cpu.json").write_text(text)
    write_benchmarks(tmp_path, inference=inference())
    benchmarks, (line,) = read_benchmarks(tmp_path)
    assert line.startswith(f"{tmp_path / 'training-cpu.json'} is left out: ") and why in line and "\n" not in line
    assert [found.name for found in benchmarks] == ["inference"]


def test_an_unknown_side_is_named(tmp_path):
    content = inference()
    content["rows"][0]["second"] = "someone"
    _, (line,) = read_benchmarks(write_benchmarks(tmp_path, inference=content))
    assert "side 'someone' is none of ours, peft_trainer" in line


def test_other_files_and_an_absent_folder_are_no_benchmarks(tmp_path):
    assert read_benchmarks(tmp_path / "nowhere") == ([], [])
    assert read_benchmarks(write_benchmarks(tmp_path, my_training={"rows": []})) == ([], [])


@pytest.fixture
def results(tmp_path):
    """A study of one run, with benchmarks beside it."""
    folder = tmp_path / "results" / "mine"
    write_run(folder, record())
    write_benchmarks(folder.parent / "benchmarks", training_cpu=training(), inference=inference())
    return folder


def test_speed_has_a_page_beside_the_benchmarks_that_the_report_links(results):
    written = write_report(results)
    folder = results.parent / "benchmarks"
    files = {"speed.md", "speed.html", "speed_training_cpu.png", "speed_inference.png"}
    assert files <= {path.name for path in written} and all((folder / name).exists() for name in files)
    report = (results / "report.md").read_text()
    assert "](../benchmarks/speed.html)" in report and "](../benchmarks/speed.md)" in report
    assert "reviews/s" not in report and not list(results.glob("*/speed_*"))
    page = (folder / "speed.md").read_text()
    for name in ("training-cpu", "inference"):
        assert f"]({name}.json)" in page and f"](speed_{name.replace('-', '_')}.png)" in page
    assert "LoRA q,v, 2.50\u00a0(2.25\u00a0to\u00a03.00) times that of PEFT + Trainer" in page
    assert "Training speed on a CPU" in page and "stand-in encoder all-MiniLM-L6-v2" in page
    assert "equal settings" in METHODS["training"] and all(page.count(words) == 1 for words in METHODS.values())
    assert "Speed beside other tools" in (folder / "speed.html").read_text()


def test_without_benchmarks_there_is_no_page_about_speed(results):
    shutil.rmtree(results.parent / "benchmarks")
    write_report(results)
    assert "speed.html" not in (results / "report.md").read_text()
    assert not (results.parent / "benchmarks").exists()


def test_a_malformed_benchmark_is_a_warning_of_the_report(results):
    folder = results.parent / "benchmarks"
    (folder / "inference.json").write_text("no JSON")
    write_report(results)
    page = (results / "report.md").read_text()
    assert "> - ../benchmarks/inference.json is left out: " in page
    assert (folder / "speed_training_cpu.png").exists() and not (folder / "speed_inference.png").exists()


def test_text_of_a_benchmark_cannot_become_markup_or_mathematics(results):
    evil = "<script>x</script> | [a](http://b) $\\frac{1}$"
    write_benchmarks(
        results.parent / "benchmarks",
        training_cpu=training(
            precision=evil, encoder={"name": evil}, measured="<b>", rows=[row(evil, "lora_default", 2.0)]
        ),
    )
    write_report(results)
    page = (results.parent / "benchmarks" / "speed.html").read_text()
    assert page.count("<script") == 1 and "<b>" not in page and 'href="http' not in page
