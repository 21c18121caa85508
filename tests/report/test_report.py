"""The report: complete, honest about the encoder, safe to open, and the same for the same records."""

import html.parser
import logging
import re
import shutil

import pandas as pd
import pytest
import yaml
from fabricate import curves, failed, record, write_run
from fabricate_predictions import predictions, write_whole_run, write_whole_study

from lora_study.base.errors import ConfigError
from lora_study.config_files import load_experiment
from lora_study.evidence.reported import load_reported
from lora_study.evidence.summary import summary_table
from lora_study.records.record import run_dir
from lora_study.report import readme_results, write_report
from lora_study.report.exhibits import draw_up
from lora_study.report.inputs import read_study
from lora_study.report.pages import report_page
from lora_study.report.variants import find_variants
from lora_study.report.webpage import html_page

ENCODER = "stand-in encoder: all-MiniLM-L6-v2"
NAMES = ("last_two_layers", "lora_default", "lora_best", "full", "lora_default_short")
FIGURES = {"ours_and_reported", "accuracy_by_trainable", "validation_accuracy", "training_loss", "calibration"}
TABLES = {
    "verdict_counts",
    "verdicts",
    "comparison",
    "parts",
    "parameters",
    "cost",
    "claims",
    "deviations",
    "variants",
    "errors",
}
TABLES |= {"variants", "errors", "contamination", "data", "machine", "runs"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reported study: its folder, and every file of the report by its path in it."""
    folder = tmp_path_factory.mktemp("results") / "embedded"
    write_whole_study(folder)
    paths = write_report(folder)
    return folder, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def results(tmp_path):
    """An empty results folder of a study named 'mine'."""
    return tmp_path / "results" / "mine"


class Page(html.parser.HTMLParser):
    """The tags of a page, its pictures and the addresses it names."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.links, self.ids = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.images += [values] if values.get("role") == "img" or tag == "img" else []
        self.links += [value for key, value in attrs if key in ("href", "src")]
        self.ids += [values["id"]] if "id" in values and tag not in ("path", "clippath") else []


def page_of(results, published=None):
    """The report's Markdown alone, without the time it takes to draw."""
    study = read_study(results, published)
    summary = summary_table(study.records, study.reported.rows, study.published)
    variants = find_variants(study.records, study.predictions, study.reported.rows)
    return report_page(study, draw_up(study, summary, variants), {})


def section(page, title):
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_writes_tables_figures_and_pages(study):
    folder, files = study
    assert set(files) == {
        *("summary.csv", "parameters.csv", "report.md", "report.html"),
        *(f"figures/{name}.png" for name in FIGURES),
        *(f"tables/{name}.csv" for name in TABLES),
        "tables/comparison.tex",
        *(path.relative_to(folder).with_name("config.yaml").as_posix() for path in folder.glob("*/*/record.json")),
    }
    summary = pd.read_csv(folder / "summary.csv").set_index("experiment")
    assert list(summary.index) == list(NAMES)
    assert summary.loc["lora_default", "test_accuracy"] == 78.0
    assert summary.loc["full", "failed"] == 1
    assert pd.read_csv(folder / "parameters.csv").loc[3, "reported_trainable"] == 66_955_010


def test_the_same_records_give_the_same_bytes_anywhere(study, tmp_path):
    _, files = study
    elsewhere = tmp_path / "embedded"
    write_whole_study(elsewhere)
    assert {path.relative_to(elsewhere).as_posix(): path.read_bytes() for path in write_report(elsewhere)} == files


def test_every_table_and_figure_names_the_encoder(study):
    _, files = study
    titles = [line for line in files["report.md"].decode().splitlines() if "](tables/" in line]
    assert len(titles) == len(TABLES) and all(f"{ENCODER}** (" in title for title in titles)
    assert files["tables/comparison.tex"].decode().splitlines()[0].endswith(ENCODER)
    page = Page(files["report.html"].decode())
    assert all(ENCODER in image["aria-label"] for image in page.images)


def test_tables_are_the_same_in_every_format(study):
    folder, files = study
    for text in files["report.md"].decode().split("([CSV](tables/")[1:]:
        name, table = text.partition(".csv)")[0], text.partition("\n\n")[2].partition("\n\n")[0]
        assert table.count("\n|") == len(pd.read_csv(folder / f"tables/{name}.csv")) + 1, name
    latex = files["tables/comparison.tex"].decode()
    assert latex.count(r" \\") == len(pd.read_csv(folder / "tables/comparison.csv")) + 1
    assert r"lora\_best & 80.20 &" in latex


def test_verdicts_come_first_with_evidence_and_links_to_the_runs(study):
    page = study[1]["report.md"].decode()
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert headings[0] == "## Verdicts"
    claims = pd.read_csv(study[0] / "tables" / "claims.csv")
    counted = section(page, "Verdicts").partition("**")[2].partition("**")[0]
    assert counted.startswith("Accuracies: 0 of 20 measured on distilbert-base-uncased. Orderings: 0 of 6 ")
    assert re.search(r"Arithmetic: (\d+) of \1 agree\.$", counted)
    assert pd.read_csv(study[0] / "tables" / "verdict_counts.csv")["claims"].sum() == len(claims)
    assert claims["evidence"].notna().all()
    assert "| no verdict | Default LoRA beats training the last two layers. |" in section(page, "Verdicts")
    assert "](lora_default/seed-1)" in section(page, "Evidence for the claims")


def test_the_stand_in_never_reproduces_what_was_measured(study):
    counts = pd.read_csv(study[0] / "tables" / "verdict_counts.csv").set_index("kind of claim")
    assert "reproduced" not in counts and "not reproduced" not in counts
    measured = counts.loc[["accuracies", "which is more accurate", "by how many points", "time and memory"]]
    assert measured["no verdict"].sum() > 0  # one seed each, for most


def test_a_variant_is_compared_and_measures_a_departure(study):
    page = study[1]["report.md"].decode()
    departures = section(page, "Departures from the article")
    assert "| lora_default_short | lora_default | data.max_length: 512 to 128 | -3.00 |" in departures
    assert "| data.max_length | 512 | 128 | lora_default_short | -3.00 (" in departures
    assert "| data.source | hub | embedded | all | not measured |" in departures


def test_compute_counts_failed_runs(study):
    page = section(study[1]["report.md"].decode(), "Time, memory and compute spent")
    assert "All 8 runs together took 0.27 hours of wall time, 0.00 of them in 1 failed run; 1 of them ended" in page


def test_compute_is_the_sum_of_what_was_timed(results):
    late = failed("full", 2)
    late.timing = {"total_seconds": 1800.0}
    write_run(results, failed("full", 3))
    assert "No run has recorded its time." in page_of(results)
    for run in (record("full", 1, timing={"total_seconds": 3600.0}), late, record("lora_default")):
        write_run(results, run)
    words = "All 4 runs together took 1.54 hours of wall time, 0.50 of them in 2 failed runs; 1 of them ended without"
    assert words in page_of(results)


def test_the_checklist_counts_what_the_records_hold(results):
    write_whole_run(results, record(seed=1, provenance={"seeds": {"head_init": 1}, "dirty": True}))
    write_run(results, record(seed=2, provenance={"versions": None}, memory={"peak_bytes": None}))
    write_run(results, failed("full", 1))
    held = section(page_of(results), "What the records hold")
    assert "Completed seeds per experiment: 0 to 2. Of 3 records hold" in held
    counted = {what: int(count) for count, what in re.findall(r"^- (\d+): (.*)$", held, re.MULTILINE)}
    expected = {"commit": 2, "versions": 2, "checksum": 3, "resolved config": 3, "seed of each": 1, "predictions": 1}
    expected |= {"validation chose": 2, "peak memory": 1, "have a copy": 3, "command": 3}
    for what, count in expected.items():
        assert [counted[line] for line in counted if what in line] == [count], what


def test_the_config_of_a_run_runs_it_again(study):
    folder, files = study
    path = "lora_default/seed-2/config.yaml"
    assert "    lora-study run --config results/embedded/EXPERIMENT/seed-N/config.yaml\n" in files["report.md"].decode()
    config = load_experiment([folder / path])
    assert (config.name, config.seed) == ("lora_default", 2)
    assert yaml.safe_load(files[path]) == record(seed=2).config


def test_the_readme_block_is_the_comparison_and_the_verdicts(study):
    block = readme_results(study[0])
    assert f"beside the article's, {ENCODER}" in block and "| lora_best | 80.20 |" in block
    assert f"({study[0].as_posix()}/report.md)" in block and "Orderings: " in block
    assert not any(line.startswith("#") for line in block.splitlines())


def test_the_budget_is_said_where_the_runs_share_one(results):
    words = "Each run trains on 2,000 reviews of at most 512 tokens for 3 epochs and is tested on 1,000."
    write_whole_run(results, record("full"))
    write_run(results, failed("lora_default"))
    write_report(results)
    assert words in (results / "report.md").read_text() and words in readme_results(results)
    write_whole_run(results, record("lora_best", config={"train": {"epochs": 4}}))
    write_report(results)
    assert "Each run trains on" not in (results / "report.md").read_text()


def test_figures_and_tables_that_no_longer_apply_are_removed_and_nothing_else(results):
    layer = next(name for name, row in load_reported().layerwise.items() if row.mode == "partial")
    write_whole_run(results, record("full"))
    write_whole_run(results, record(layer, mode="partial", config={"mode": "partial"}))
    write_report(results)
    assert (results / "figures" / "layerwise.png").exists()
    (results / "figures" / "layerwise.svg").write_text("of a report of an earlier version")
    mine = [results / "figures" / "mine.png", results / "tables" / "mine.csv"]
    for path in mine:
        path.write_text("a file the report did not write")
    shutil.rmtree(results / layer)
    write_report(results)
    assert (results / "figures" / "calibration.png").exists()
    assert not list(results.glob("figures/layerwise.*")) and all(path.exists() for path in mine)


def test_names_every_run_and_fact(study):
    page = study[1]["report.md"].decode()
    runs = section(page, "Runs")
    assert runs.count("| completed |") == 7 and "loss is not finite" in runs
    assert "[lora_default/seed-2/record.json](lora_default/seed-2/record.json)" in runs
    assert "| sizes.train | 2,000 | all |" in section(page, "Data")
    assert "| test reviews with a copy in train | 4 | 1,000 | 0.40 | all |" in section(page, "Contamination")
    assert "| versions.torch | 2.13.0 | all |" in section(page, "Hardware and versions")
    assert "lora-study report --results-dir results/embedded" in section(page, "How to regenerate")
    comparison = section(page, "Comparison with the article")
    assert "| full | 80.80 | 78.24\u00a0to\u00a083.12 | 92.31 | -11.51 |" in comparison


def test_every_link_and_image_exists(study):
    folder, files = study
    page = Page(files["report.html"].decode())
    sections = [link.removeprefix("#") for link in page.links if link.startswith("#") and link[1:] in page.ids]
    assert len(set(sections)) == sum(line.startswith("## ") for line in files["report.md"].decode().splitlines())
    paths = [link for link in page.links if not link.startswith("#")]
    assert len(paths) > 30 and all((folder / path).exists() for path in paths)
    markdown = files["report.md"].decode()
    assert all(f"](figures/{name}.png)" in markdown for name in FIGURES)
    assert markdown.count("](figures/") == len(FIGURES)


def test_html_is_self_contained_and_described(study):
    page = Page(study[1]["report.html"].decode())
    assert len(page.images) == len(FIGURES)
    assert all(len(image["aria-label"]) > 80 for image in page.images)
    assert "lora_best 80.20%, reported 92.39%" in page.images[0]["aria-label"]
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert page.tags.count("script") == 1 and len(set(page.ids)) == len(page.ids)
    assert not any("//" in link for link in page.links)


def test_drawings_take_the_page_s_colours():
    svg = b'<?xml version="1.0"?>\n<svg width="10pt" height="5pt" viewBox="0 0 10 5"><metadata>x</metadata>'
    svg += (
        b'<g id="axes_1"><path id="m12" style="fill: #262626; stroke: #0072b2"/><path style="fill: #ffffff"/></g></svg>'
    )
    page = html_page("t", "![a <b> c](x.png)", {"x.png": svg})
    assert '<svg role="img" aria-label="a &lt;b&gt; c" style="max-width: 15px"' in page
    assert '<path id="m12" style="fill: currentColor; stroke: #0072b2"/><path style="fill: var(--paper)"/>' in page
    assert not re.search("<metadata|axes_1|10pt|5pt", page)


def test_published_run_stands_beside_this_one(results):
    write_run(results, record(test=0.8))
    write_run(results.parent / "published" / "mine", record(test=0.77))
    assert "| 77.00 | 89.44 |" in page_of(results)
    other = results.parent / "other"
    write_run(other, record(test=0.71))
    assert "| 71.00 | 89.44 |" in page_of(results, other)


def test_an_empty_published_copy_is_pointed_out(results, tmp_path):
    write_run(results, record(test=0.8))
    assert "published run: nowhere holds no record" in section(page_of(results, tmp_path / "nowhere"), "Warnings")


def test_a_folder_is_not_its_own_published_copy(results):
    write_run(results, record(test=0.8))
    assert "published" not in page_of(results, results)


def test_what_cannot_be_read_is_named_and_the_rest_reported(results, caplog):
    write_whole_run(results, record("lora_default"))
    write_whole_run(results, record("full"), curves_text="step,epoch\n1,1\n")
    write_run(results, record("lora_best"), curves_text="")
    wrong = predictions(record("full", test=0.1))
    wrong.to_parquet(run_dir(results, "full", 1) / "predictions.parquet")
    (results / "full" / "seed-7").mkdir()
    broken = results / "last_two_layers" / "seed-1" / "record.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    with caplog.at_level(logging.WARNING):
        write_report(results)
    warnings = section((results / "report.md").read_text(), "Warnings")
    unusable = ("last_two_layers/seed-1/record.json", "full/seed-1/curves.csv", "lora_best/seed-1/curves.csv")
    unusable += ("full/seed-1/predictions.parquet", "lora_best/seed-1/predictions.parquet", "full/seed-7 has no record")
    for name in unusable:
        assert name in warnings and name in caplog.text
    assert str(results) not in warnings
    assert (results / "figures" / "training_loss.png").exists()  # of lora_default


def test_runs_on_other_reviews_are_left_out_by_name(results):
    write_run(results, record(seed=1, test=0.8))
    write_run(results, record(seed=2, test=0.8))
    write_run(results, record(seed=3, test=0.2, data={"fingerprint": {"test": "other"}}))
    page = page_of(results)
    assert "lora_default seed 3 is left out" in section(page, "Warnings")
    assert "| lora_default | 80.00 |" in page


def test_experiments_on_different_reviews_are_pointed_out(results):
    write_run(results, record("lora_default"))
    write_run(results, record("full", data={"fingerprint": {"test": "other"}}))
    page = page_of(results)
    assert "not all tested on the same reviews" in section(page, "Warnings")
    assert "| fingerprint.test | other | full |" in section(page, "Data")


def test_a_study_of_failures_is_reported_too(results):
    write_run(results, failed("full", error="out of memory"))
    write_report(results)
    page = (results / "report.md").read_text()
    assert "out of memory" in section(page, "Runs") and "0 completed runs of 1 experiment " in page
    assert not (results / "figures").exists()


def test_text_from_records_cannot_become_markup(results):
    evil = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://example.com/b.png) | `\n# c"
    write_run(results, record(data={"source": evil}, provenance={"command": f"{evil}\n```\n{evil}"}))
    write_run(results, failed("full", error=evil))
    write_report(results)
    page = Page((results / "report.html").read_text())
    assert page.tags.count("h1") == 1 and page.tags.count("script") == 1 and "img" not in page.tags
    endings = (".json", ".csv", ".md", ".tex", "/seed-1")
    assert all(link.startswith("#") or link.endswith(endings) for link in page.links)


def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(ConfigError, match="holds no record; run `make reproduce`") as error:
        write_report(tmp_path / "nothing")
    assert "\n" not in str(error.value)
    results = tmp_path / "blocked"
    write_run(results, record(), curves())
    (results / "figures").write_text("a file where the folder of figures should be")
    with pytest.raises(ConfigError, match="cannot be written") as error:
        write_report(results)
    assert "\n" not in str(error.value)
