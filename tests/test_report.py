"""The report: complete, honest about the encoder, safe to open, and the same for the same records."""

import html.parser
import logging
import subprocess
import sys

import pandas as pd
import pytest
from fabricate import curves, failed, record, write_run, write_study

from lora_study.config import ConfigError
from lora_study.pages import report_page
from lora_study.report import read_study, write_report
from lora_study.tables import parameters_table, summary_table


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reported study: its folder, and every file of the report by its path in it."""
    folder = tmp_path_factory.mktemp("results") / "embedded"
    write_study(folder)
    paths = write_report(folder)
    return folder, {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture
def results(tmp_path):
    """An empty results folder of a study named 'mine'."""
    return tmp_path / "results" / "mine"


class Page(html.parser.HTMLParser):
    """The tags of a page and the addresses it names."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.images, self.links = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append(tag)
        self.images += [values] if tag == "img" else []
        self.links += [value for key, value in attrs if key in ("href", "src")]


def page_of(results, published=None):
    """The report's Markdown alone, without the time it takes to draw."""
    study = read_study(results, published)
    summary = summary_table(study.records, study.reported.rows, study.published)
    return report_page(study, summary, parameters_table(study.records, study.reported.rows), {})


def section(page, title):
    return page.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_writes_tables_figures_and_pages(study):
    _, files = study
    figures = ("ours_and_reported", "accuracy_by_trainable", "validation_accuracy", "training_loss")
    figures += ("training_time", "peak_memory")
    assert set(files) == {"summary.csv", "parameters.csv", "report.md", "report.html"} | {
        f"figures/{name}.{end}" for name in figures for end in ("png", "svg")
    }
    summary = pd.read_csv(study[0] / "summary.csv").set_index("experiment")
    assert list(summary.index) == ["last_two_layers", "lora_default", "lora_best", "full"]
    assert summary.loc["lora_default", "test_accuracy"] == 78.0
    assert summary.loc["full", "failed"] == 1
    assert pd.read_csv(study[0] / "parameters.csv").loc[3, "reported_trainable"] == 66_955_010


def test_the_same_records_give_the_same_bytes_anywhere(study, tmp_path):
    folder, files = study
    write_report(folder)
    assert {name: (folder / name).read_bytes() for name in files} == files
    elsewhere = tmp_path / "embedded"
    write_study(elsewhere)
    assert {path.relative_to(elsewhere).as_posix(): path.read_bytes() for path in write_report(elsewhere)} == files


def test_says_first_that_the_encoder_is_a_stand_in(study):
    opening = study[1]["report.md"].decode().partition("\n## ")[0]
    assert "stand-in encoder: all-MiniLM-L6-v2" in opening
    assert "distilbert-base-uncased itself was not run" in opening
    assert "its numbers are not those of distilbert-base-uncased" in opening
    assert "make reproduce PROFILE=reference" in opening


def test_says_nothing_of_a_stand_in_for_the_article_s_encoder(results):
    encoder = {"name": "distilbert-base-uncased", "stand_in": False}
    write_run(results, record(provenance={"encoder": encoder}))
    page = page_of(results)
    assert "encoder: distilbert-base-uncased" in page
    assert "stand-in" not in page and "was not run" not in page


def test_names_every_run_deviation_and_fact(study):
    page = study[1]["report.md"].decode()
    runs = section(page, "Runs")
    assert runs.count("| completed |") == 6 and "loss is not finite" in runs
    assert "[record.json](lora_default/seed-2/record.json)" in runs
    assert "| data.source | hub | embedded | all |" in section(page, "Deviations from the article")
    assert "| overlap.across.test_in_train | 4 | all |" in section(page, "Data")
    assert "| versions.torch | 2.13.0 | all |" in section(page, "Hardware and versions")
    assert "lora-study report --results-dir" in section(page, "How to regenerate")
    assert "| full | 80.80 | 92.31 | -11.51 |" in section(page, "Comparison with the article")


def test_every_link_and_image_of_the_markdown_exists(study):
    folder, files = study
    page = Page(files["report.html"].decode())
    records = [link for link in page.links if not link.startswith("data:")]
    assert len(records) == 7 and all((folder / link).is_file() for link in records)
    assert files["report.md"].decode().count("](figures/") == 6
    for name in ("ours_and_reported", "peak_memory"):
        assert f"](figures/{name}.png)" in files["report.md"].decode()


def test_html_is_self_contained_and_described(study):
    page = Page(study[1]["report.html"].decode())
    assert len(page.images) == 6
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.images)
    assert all(len(image["alt"]) > 30 for image in page.images)
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert "lora_best 80.20%, reported 92.39%" in page.images[0]["alt"]


def test_published_run_stands_beside_this_one(results):
    write_run(results, record(test=0.8))
    write_run(results.parent / "published" / "mine", record(test=0.77))
    assert "| lora_default | 80.00 | 77.00 | 89.44 |" in page_of(results)
    other = results.parent / "other"
    write_run(other, record(test=0.71))
    assert "| lora_default | 80.00 | 71.00 | 89.44 |" in page_of(results, other)


def test_an_empty_published_copy_is_pointed_out(results, tmp_path):
    write_run(results, record(test=0.8))
    assert "published run: nowhere holds no record" in section(page_of(results, tmp_path / "nowhere"), "Warnings")


def test_a_folder_is_not_its_own_published_copy(results):
    write_run(results, record(test=0.8))
    assert "published" not in page_of(results, results)


def test_what_cannot_be_read_is_named_and_the_rest_reported(results, caplog):
    write_run(results, record("lora_default"))
    write_run(results, record("full"), curves_text="step,epoch\n1,1\n")
    write_run(results, record("lora_best"), curves_text="")
    broken = results / "last_two_layers" / "seed-1" / "record.json"
    broken.parent.mkdir(parents=True)
    broken.write_text("{")
    with caplog.at_level(logging.WARNING):
        write_report(results)
    warnings = section((results / "report.md").read_text(), "Warnings")
    for name in ("last_two_layers/seed-1/record.json", "full/seed-1/curves.csv", "lora_best/seed-1/curves.csv"):
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
    assert page.tags.count("h1") == 1 and len(page.images) == 6
    assert all(link.startswith("data:") or link.endswith("/record.json") for link in page.links)


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


def test_a_report_needs_neither_torch_nor_pyplot():
    code = "import sys, lora_study.report; sys.exit(bool({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
