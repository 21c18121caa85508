"""The report: complete, honest about the encoder, safe to open, and the same for the same records."""

import dataclasses
import html.parser
import logging
import re

import pandas as pd
import pytest
import yaml
from fabricate import curves, failed, record, write_run
from fabricate_predictions import predictions, write_whole_run, write_whole_study
from markdown_it import MarkdownIt

from lora_study.base.errors import ConfigError
from lora_study.config_studies import STUDY_FILE
from lora_study.evidence.summary import summary_table
from lora_study.records.record import run_dir
from lora_study.report import plots, readme_results, write_report
from lora_study.report.exhibits import draw_up
from lora_study.report.material import read_study
from lora_study.report.pages import report_page
from lora_study.report.variants import find_variants
from lora_study.report.webpage import html_page

ENCODER = "stand-in encoder: all-MiniLM-L6-v2"
NAMES = ("last_two_layers", "lora_default", "lora_best", "full", "lora_default_short")
FIGURES = {"seeds", "loss", "calibration"}
TABLES = {"claims", "runs"}
WORDS = {"question": "Is it *so*?", "limits": "Nothing about <others>."}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A reported study: its folder, and every file of the report by its path in it."""
    folder = tmp_path_factory.mktemp("results") / "embedded"
    write_whole_study(folder)
    (folder / STUDY_FILE).write_text(yaml.safe_dump(WORDS))
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


def test_each_part_stands_under_its_own_name(results):
    write_run(results, record("full", test=0.8))
    lines = fold(page_of(results), "Accuracies beside the article's").splitlines()
    header, _, row = next(lines[at : at + 3] for at, line in enumerate(lines) if "validation, here" in line)
    cells = dict(zip(*([cell.strip() for cell in line.split("|")] for line in (header, row)), strict=True))
    assert cells["validation, here (%)"] == "81.00" and cells["validation, article (%)"] == "92.80"
    assert cells["training, here (%)"] == "83.00" and cells["training, article (%)"] == "96.41"


def fold(page, title):
    return page.partition(f"<summary>{title}</summary>\n")[2].partition("\n</details>")[0]


def unfolded(page):
    """What of a Markdown page a reader sees who opens nothing; descriptions are for those who see no figure."""
    return re.sub(r"!\[[^\]]*\]\([^)]*\)", "", re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL))


def test_writes_few_files(study):
    folder, files = study
    assert set(files) == {
        *("summary.csv", "parameters.csv", "report.md", "report.html"),
        *(f"figures/{name}.png" for name in FIGURES),
        *(f"tables/{name}.csv" for name in TABLES),
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
    (elsewhere / STUDY_FILE).write_text(yaml.safe_dump(WORDS))
    assert {path.relative_to(elsewhere).as_posix(): path.read_bytes() for path in write_report(elsewhere)} == files


def test_the_stand_in_is_named_in_the_head_and_in_every_figure(study):
    _, files = study
    page = files["report.md"].decode()
    head = page.partition("\n|")[0]
    assert "stand-in encoder all-MiniLM-L6-v2" in head and "distilbert-base-uncased, the article's, was not run" in head
    assert "all-MiniLM" not in unfolded(page.removeprefix(head))
    assert all(ENCODER in image["aria-label"] for image in Page(files["report.html"].decode()).images)


def test_both_pages_say_the_same(study):
    _, files = study
    markdown = MarkdownIt("commonmark").enable("table").render(files["report.md"].decode())
    shown = re.sub(r"<svg.*?</svg>", "", files["report.html"].decode().partition("<main>")[2], flags=re.DOTALL)
    texts = [" ".join(re.sub(r"<[^>]*>", " ", page.partition("</main>")[0]).split()) for page in (markdown, shown)]
    assert texts[0] == texts[1]
    claims = pd.read_csv(study[0] / "tables" / "claims.csv")
    assert fold(files["report.md"].decode(), "Evidence for each claim").count("\n|") == len(claims) + 2


def test_the_first_screen_is_scope_headline_one_table_and_one_figure(study):
    first = study[1]["report.md"].decode().partition("\n## ")[0]
    assert "5 experiments, 1 to 3 seeds each (7 completed runs and 1 failed run)" in first
    assert "**Accuracies: 0 of 20 measured on distilbert-base-uncased. Orderings: 0 of 6 " in first
    assert "| claim | article | here | 95% interval | verdict | rule |" in first
    assert first.count("\n| ---") == 1 and first.count("](figures/") == 1
    assert re.search(r"Arithmetic: (\d+) of \1 agree\.", first)
    assert "| Default LoRA beats training the last two layers. | +3.22 points | +8.50 points |" in first
    assert "difference" not in first


def test_a_page_is_read_in_minutes(study):
    assert len(unfolded(study[1]["report.md"].decode()).split()) < 2000


def test_the_stand_in_never_reproduces_what_was_measured(study):
    claims = pd.read_csv(study[0] / "tables" / "claims.csv")
    assert not set(claims["verdict"]) & {"reproduced", "not reproduced"}
    assert (claims["verdict"] == "no verdict").sum() > 0  # one seed each, for most


def test_a_study_says_in_plain_words_what_was_asked_seen_and_cannot_be_said(study):
    words = study[1]["report.md"].decode().partition("## In plain words")[2].partition("\n## ")[0]
    assert r"**Asked.** Is it \*so\*?" in words and r"**What it cannot say.** Nothing about \<others\>." in words
    assert "**Seen.** 7 comparisons have a number and no verdict." in words
    assert "neither for nor against the article" in words


def test_what_was_seen_follows_from_the_verdicts(results):
    for seed in (1, 2, 3):
        for name, test in (("last_two_layers", 0.5), ("lora_default", 0.9), ("full", 0.6)):
            write_whole_run(results, record(name, seed, test))
    seen = page_of(results).partition("**Seen.** ")[2].partition("\n## ")[0]
    holds, _, rest = seen.partition(" The other way round here: ")
    assert holds.startswith("Holds here: ") and "Default LoRA beats training the last two layers" in holds
    assert "Full fine-tuning is above default LoRA" in rest.partition("**What it means.**")[0]
    assert "neither confirmed nor refuted" in rest


def test_words_of_a_study_that_cannot_be_read_are_a_warning(results):
    write_run(results, record())
    (results / STUDY_FILE).write_text("question: [")
    assert "study.yaml is not YAML" in page_of(results)


def test_gaps_stand_beside_the_article_s_gaps_between_the_same_rows(study):
    rows = fold(study[1]["report.md"].decode(), "Accuracies beside the article's")
    assert "| here less full (points) | article less full (points) |" in rows
    assert re.search(r"\| lora_best \| 1 \| 80\.20 \| [^|]* \| 92\.39 \| -0\.60[^|]*to[^|]* \| \+0\.08 \|", rows)
    assert re.search(r"\| full \| 1 \| 80\.80 \| 78\.24\u00a0to\u00a083\.12 \| 92\.31 \| — \| — \|", rows)


def test_time_and_memory_have_units_and_intervals(results):
    for seed, seconds in ((1, 90.0), (2, 110.0)):
        write_run(results, record("lora_default", seed, timing={"train_seconds": seconds}))
        write_run(results, record("full", seed, timing={"train_seconds": 2 * seconds}, memory={"peak_bytes": 2**30}))
    rows = fold(page_of(results), "Parameters, time and memory").replace("\u00a0", " ")
    assert "of full's training time" in rows and "of full's peak memory" in rows
    assert "| lora_default | 100.0 s (0.0 to 227.1) | 0.50 (0.50 to 0.50) | 900.0 MiB (900.0 to 900.0) | 0.88" in rows
    assert "| full | 200.0 s (" in rows


def test_costs_stand_beside_those_of_full_on_the_same_machine_only(results):
    for seed, cpu in ((1, "one"), (2, "another")):
        run = record("lora_default", seed, timing={"train_seconds": 30.0 * seed})
        run.provenance["hardware"] = {"cpu": cpu}
        other = record("full", seed, timing={"train_seconds": 100.0})
        other.provenance["hardware"] = {"cpu": "one"}
        for each in (run, other):
            write_run(results, each)
    for name, cpu in (("lora_best", "one"), ("last_two_layers", "another")):
        run = record(name, 1, timing={"train_seconds": 40.0})
        run.provenance["hardware"] = {"cpu": cpu}
        write_run(results, run)
    rows = fold(page_of(results), "Parameters, time and memory").replace("\u00a0", " ")
    assert "| lora_best | 40.0 s | 0.40, 1 shared seed |" in rows
    assert "| last_two_layers | 40.0 s | — |" in rows
    assert "| lora_default | — | — |" in rows  # of two machines, so without a mean


def test_costs_of_other_work_have_no_ratio_and_a_shared_run_says_whose_memory_it_is(results):
    changes = {
        "full": {},
        "lora_default": {"config": {"train": {"devices": 2}}},
        "lora_best": {"config": {"train": {"fast": False}}},
        "last_two_layers": {"config": {"train": {"cache_trunk": True, "epochs": 20}}},
    }
    for name, change in changes.items():
        write_run(results, record(name, timing={"train_seconds": 40.0}, **change))
    rows = fold(page_of(results), "Parameters, time and memory").replace("\u00a0", " ")
    for name in ("lora_default", "lora_best", "last_two_layers"):
        assert f"| {name} | 40.0 s | — |" in rows
    assert "resident set, of one of 2 processes" in rows


def test_times_of_runs_with_unlike_shares_of_the_processor_have_no_ratio(results):
    for seed in (1, 2, 3):
        for name, passed, spent in (("full", 200.0 + seed, 200.0), ("lora_default", 100.0, 190.0 + seed)):
            timing = {"train_seconds": passed, "train_cpu_seconds": spent}  # on two threads
            write_run(results, record(name, seed, timing=timing, config={"train": {"fast": False}}))
        write_run(results, record("lora_best", seed, timing={"train_seconds": 150.0, "train_cpu_seconds": 149.0}))
    page = page_of(results).replace("\u00a0", " ")
    rows = fold(page, "Parameters, time and memory")
    assert re.search(r"\| lora_default \| 100\.0 s \([^|]*\) \| — \| 900\.0 MiB \([^|]*\) \| 1\.00", rows)
    assert "did different work: shares of the processor, beside other work" in page


def test_a_ratio_over_fewer_seeds_than_the_means_beside_it_says_so(results):
    for seed, seconds in ((1, 100.0), (2, 100.0), (3, 200.0)):
        write_run(results, record("lora_default", seed, timing={"train_seconds": seconds}))
    write_run(results, record("full", 1, timing={"train_seconds": 200.0}))
    rows = fold(page_of(results).replace("\u00a0", " "), "Parameters, time and memory")
    assert re.search(r"\| lora_default \| 133\.3 s \([^|]*\) \| 0\.50, 1 shared seed \|", rows)


def test_a_run_of_its_own_row_is_not_compared_with_it(results):
    write_run(results, record("full"))
    assert "its row" not in page_of_training(results)


def test_where_a_loss_ends_is_no_single_batch(results):
    rows = [f"{20 * i},1,{0.3 if i < 30 else 0.74},,,0.1,1" for i in range(1, 31)]
    header = "step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds"
    write_run(results, record("full"), "\n".join([header, *rows]) + "\n")
    write_report(results)
    assert "full seed 1 from 0.30 to 0.30" in (results / "report.md").read_text()


def test_runs_whose_test_reviews_were_left_alone_are_not_said_to_be_tested(results):
    write_run(results, record("full", config={"score_test": False}, metrics={"test": None}))
    write_whole_run(results, record("lora_default"))
    page = page_of(results)
    assert "full seed 1 did not score its test reviews" in page and "is missing" not in page
    alone = results / "alone"
    write_run(alone, record("full", config={"score_test": False}, metrics={"test": None}))
    page = page_of(alone)
    assert "leaves its test reviews alone" in page and "is tested on" not in page


def test_seeds_of_different_arithmetic_are_pointed_out(results):
    for seed, precision in ((1, "bf16-mixed"), (2, "32-true")):
        write_run(results, record("full", seed, provenance={"hardware": {"precision": precision}}))
    assert "runs were computed in 32-true and in bf16-mixed, which changes some predictions" in page_of(results)


def test_another_encoder_is_another_model_be_it_a_stand_in_or_not(results):
    write_run(results, record("full", provenance={"encoder": {"name": "my-distilbert", "stand_in": False}}))
    assert "are of different models" in page_of(results)
    gone = failed("full", 2)
    gone.provenance["encoder"] |= {"name": "distilbert-base-uncased", "stand_in": False}
    write_run(results, gone)
    assert "Run with the **encoder my-distilbert**." in page_of(results)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, ["None of the 1,000 test reviews has a copy in the training part"]),
        (1, ["1 of the 1,000 test reviews (0.10%) has a copy in the training part", "and so tests nothing."]),
        (4, ["4 of the 1,000 test reviews (0.40%) have a copy in the training part", "and so test nothing."]),
    ],
)
def test_copies_are_counted_in_words(results, number, words):
    write_run(results, record("full", data={"overlap": {"across": {"test_in_train": number}}}))
    page = page_of(results)
    assert all(word in page for word in words)


def test_what_one_seed_shows_is_said_to_be_of_two_models(results):
    for name, test in (("full", 0.82), ("lora_best", 0.8)):
        write_whole_run(results, record(name, test=test))
    page = page_of(results)
    assert "points (these two models) |" in unfolded(page)
    absent = int(re.search(r"For (\d+) other claims there is no evidence", page)[1])
    assert absent == page.count("| not run |")
    assert "how often its rule would give" not in page


def test_sentences_that_cannot_be_told_are_not_said_to_be_judged(results):
    for seed in (1, 2, 3):
        for name in ("full", "lora_default"):
            write_whole_run(results, record(name, seed, 0.8), salt=seed)
    page = page_of(results)
    assert re.search(
        r"With another model or recipe, 0 of (\d) sentences point [^;]*, and of \1 these runs cannot", page
    )
    assert "could be judged" not in page


def test_one_more_run_may_end_where_one_did_and_nothing_more_is_said(results):
    """The best LoRA is worse than full fine-tuning, beyond chance; one more run of each may still end as near."""
    encoder = {"name": "distilbert-base-uncased", "backbone": "distilbert-base-uncased", "stand_in": False}
    for seed, less in enumerate((0.0055, 0.01, 0.013, 0.016, 0.0205), start=1):
        for name, test in (("full", 0.9231), ("lora_best", 0.9231 - less)):
            run = record(name, seed, test, metrics={"test": {"n": 10000}}, provenance={"encoder": encoder})
            run.deviations.clear()
            write_whole_run(results, run, salt=seed)
    page = page_of(results)
    seen = page.partition("**Seen.**")[2].partition("**What it means.**")[0]
    holds, _, ends = seen.partition("One more run may end as the article's did:")
    assert "as good as full" in ends and "as good as full" not in holds


def test_a_run_that_guesses_for_long_is_named(results):
    def losses(first):
        rows = [f"{20 * i},1,{0.69 if i < first else 0.3},,,0.1,1" for i in range(1, 51)]
        return "\n".join(["step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds", *rows]) + "\n"

    for seed, start in ((1, 3), (2, 3), (3, 4)):
        write_run(results, record(seed=seed), losses(start))
    assert "by step 60, and none took more than twice as long as its row" in page_of_training(results)
    write_run(results, record(seed=4), losses(30))
    write_run(results, record("full"), losses(99))
    for seed in (1, 2):  # a row that is slow as a whole hides no seed of another
        write_run(results, record("last_two_layers", seed), losses(40))
    said = page_of_training(results)
    assert (
        "much later than the rest of its row: lora_default seed 4 at step 600; never: full seed 1 (0.69 at its end)."
        in said
    )


def test_labels_that_are_not_even_have_another_loss_of_guessing(results):
    """Four reviews in five are positive: who always says so has a loss of 0.50."""
    rows = [f"{20 * i},1,{0.51 if i < 5 else 0.45},,,0.1,1" for i in range(1, 51)]
    text = "\n".join(["step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds", *rows]) + "\n"
    labels = {"labels": {"train": {"0": 400, "1": 1600}}}
    write_run(results, record(data=labels), text)
    said = page_of_training(results)
    assert re.search(r"below 0\.48 for good \(running mean; guessing gives 0\.50\) by step 1[46]0", said)


def test_a_gap_is_over_shared_seeds_of_one_encoder_or_is_none(results):
    for seed, test in ((1, 0.80), (2, 0.70), (3, 0.70)):
        write_run(results, record("lora_default", seed, test))
    write_run(results, record("full", 1, 0.78))
    write_run(results, record("last_two_layers", 5, 0.7))
    run = record("lora_best", 1, 0.79)
    run.provenance["encoder"] |= {"name": "another", "sha256": "77ab" * 16}
    write_run(results, run)
    page = page_of(results).replace("\u00a0", " ")
    lines = fold(page, "Accuracies beside the article's").splitlines()
    rows = {line.split(" | ")[0].strip("| "): line for line in reversed(lines)}  # of the first table
    assert "| 73.33 |" in rows["lora_default"] and "| +2.00, 1 shared seed |" in rows["lora_default"]
    for name in ("last_two_layers", "lora_best"):  # no seed, and no encoder, in common
        assert "| +" not in rows[name].rpartition(" | ")[0] and "| -" not in rows[name].rpartition(" | ")[0]
    assert "only those of one can be compared" in page


def test_what_has_no_other_way_round_is_said_not_to_hold(results):
    run = record("full", data={"overlap": {"repeats": 420}, "split": "pooled", "deduplicate": False})
    run.data["sizes"] = {"train": 35_000, "val": 5_000, "test": 10_000}
    write_run(results, run)
    page = page_of(results)
    assert "Does not hold here: 418 of the 50,000 reviews" in page and "other way round" not in page


def test_a_run_that_counts_otherwise_than_its_shape_is_seen_without_unfolding(results):
    run = record("full", parameters={"trainable": 5})
    run.provenance["encoder"]["name"] = "all-MiniLM-L6-v2 rewritten as DistilBERT"
    write_run(results, run)
    assert "full seed 1 counts 5 where its shape gives" in page_of(results).partition("<details>")[0]


def test_a_run_that_falls_back_to_guessing_begins_anew(results):
    def losses(*values):
        rows = [f"{20 * i},1,{value},,,0.1,1" for i, value in enumerate(values, start=1)]
        return "\n".join(["step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds", *rows]) + "\n"

    for seed in (1, 2, 3):  # noise between guessing and learning is no relapse
        write_run(results, record(seed=seed), losses(*[0.71] * 2, *[0.3] * 9, *[0.68] * 9, *[0.3] * 30))
    write_run(results, record(seed=4), losses(*[0.71] * 2, *[0.4] * 12, *[0.7] * 20, *[0.3] * 16))
    write_run(results, record("full"), losses(*[0.71] * 2, *[0.4] * 12, *[0.7] * 36))
    said = page_of_training(results)
    begun = r" by step 60; .*lora_default seed 4 at step [67]\d\d; never: full seed 1 \(0\.70 at its end\)\."
    assert re.search(begun, said)


@pytest.mark.parametrize(("steps", "shared"), [((100, 290), True), ((100, 300), False)])
def test_losses_of_very_different_lengths_have_a_scale_of_steps_each(results, monkeypatch, steps, shared):
    for name, last in zip(("lora_default", "full"), steps, strict=True):
        rows = [f"{step},1,0.6,,,0.1,1" for step in range(10, last + 1, 10)]
        history = "\n".join(["step,epoch,train_loss,val_loss,val_accuracy,learning_rate,seconds", *rows]) + "\n"
        write_run(results, record(name), history)
    drawn, draw = [], plots.draw
    monkeypatch.setattr(plots, "draw", lambda *given, **how: drawn.append(how.get("sharex")) or draw(*given, **how))
    write_report(results)
    assert shared in drawn and (not shared) not in drawn


def page_of_training(results):
    write_report(results)
    return (results / "report.md").read_text().partition("## Training")[2].partition("\n## ")[0]


def test_a_frozen_head_s_reach_is_told_from_the_predictions(results):
    for name, low, high in (("lora_best", 0.25, 0.75), ("full", 0.01, 0.98)):
        run = record(name, test=0.5, metrics={"lora": {"least_probability": low / 2, "most_probability": 0.8}})
        write_run(results, run)
        rows = predictions(run)
        rows["probability"] = [high if p > 0.5 else low for p in rows["probability"]]
        rows.to_parquet(run_dir(results, name, 1) / "predictions.parquet")
    write_report(results)
    said = (results / "report.md").read_text().partition("## How sure the models are")[2]
    assert (
        "(lora_best), probabilities lie between 0.25 and 0.75; with a trained head (full) between 0.01 and 0.98" in said
    )
    assert "as computed for these heads, none can be below 0.12 or above 0.80" in said


def test_a_variant_is_compared_and_measures_a_departure(study):
    departures = fold(study[1]["report.md"].decode(), "Departures from the article's recipe")
    assert "| lora_default_short | lora_default | data.max_length: 512 to 128 | -3.00 |" in departures
    assert "| data.max_length | 512 | 128 | lora_default_short | -3.00 (" in departures
    assert "| data.source | hub | embedded | all | not measured |" in departures


def test_compute_is_the_sum_of_what_was_timed(results):
    late = failed("full", 2)
    late.timing = {"total_seconds": 1800.0}
    write_run(results, failed("full", 3))
    assert "No run has recorded its time." in page_of(results)
    for run in (record("full", 1, timing={"total_seconds": 3600.0}), late, record("lora_default")):
        write_run(results, run)
    assert "4 runs, 1.54 hours when added up; 1 of them ended without" in page_of(results)


def test_the_checklist_counts_what_the_records_hold(results):
    write_whole_run(results, record(seed=1, provenance={"seeds": {"head_init": 1}, "dirty": True}))
    write_run(results, record(seed=2, provenance={"versions": None}, memory={"peak_bytes": None}))
    write_run(results, failed("full", 1))
    held = fold(page_of(results), "How to repeat it, and what the records hold")
    counted = {what: int(number) for number, what in re.findall(r"^- (\d+) of 3: (.*)$", held, re.MULTILINE)}
    expected = {
        "commit": 2,
        "versions": 2,
        "seed of each": 1,
        "predictions": 1,
        "validation chose": 2,
        "peak memory": 1,
    }
    for what, number in expected.items():
        assert [counted[line] for line in counted if what in line] == [number], what
    complete = held.partition("Of 3 records, all hold: ")[2].partition(".")[0]
    assert all(what in complete for what in ("checksum", "resolved config", "have a copy", "the command"))


def test_the_readme_block_is_one_table_and_one_figure(study):
    block = readme_results([study[0]])
    assert block.count("\n| ---") == 1 and block.count("![") == 1
    assert "stand-in encoder all-MiniLM-L6-v2" in block and "| lora_best | 1 | 80.20 |" in block
    assert f"({study[0].as_posix()}/report.md)" in block and f"({study[0].as_posix()}/figures/seeds.png)" in block
    assert "Orderings: " in block and not any(line.startswith("#") for line in block.splitlines())


def test_the_readme_says_once_what_holds_for_the_numbers_of_all_its_studies(tmp_path):
    for name, stand_in in {"a": True, "b": True, "c": False}.items():
        write_whole_run(
            tmp_path / name, record("full", provenance={"encoder": {"name": "some-encoder", "stand_in": stand_in}})
        )
    block = readme_results([tmp_path / "a", tmp_path / "b"])
    assert block.count("\n| ---") == 2 and block.count("some-encoder") == 1
    assert block.index("was not run") < block.index("| full |")
    assert readme_results([tmp_path / "a", tmp_path / "c"]).count("some-encoder") == 2, "what differs is said of each"


def test_the_budget_is_said_where_the_runs_share_one(results):
    words = "Each run trains on 2,000 reviews of at most 512 tokens for 3 epochs and is tested on 1,000."
    write_whole_run(results, record("full"))
    write_run(results, failed("lora_default"))
    assert words in page_of(results) and words in readme_results([results])
    write_whole_run(results, record("lora_best", config={"train": {"epochs": 4}}))
    assert words.replace(" for 3 epochs", "") in page_of(results)
    write_whole_run(results, record("last_two_layers", config={"data": {"max_length": 128}}))
    assert "Each run trains on" not in page_of(results)


def test_figures_and_tables_that_no_longer_apply_are_removed_and_nothing_else(results):
    write_whole_run(results, record("full"))
    write_report(results)
    page = results / "report.md"
    page.write_text(
        page.read_text() + "\n![x](figures/layerwise.png) ([CSV](tables/parts.csv))\n"
    )  # an earlier version's
    old = [results / path for path in ("figures/layerwise.png", "figures/layerwise.svg", "tables/parts.csv")]
    mine = [results / "figures" / "mine.png", results / "tables" / "mine.csv"]
    for path in (*old, *mine):
        path.write_text("not of this report")
    write_report(results)
    assert (results / "figures" / "calibration.png").exists()
    assert not any(path.exists() for path in old) and all(path.exists() for path in mine)


@pytest.mark.parametrize(("experiments", "drawn"), [(10, True), (11, False)])
def test_more_calibration_curves_than_can_be_told_apart_are_not_drawn(experiments, drawn, tmp_path):
    for number in range(experiments):
        write_whole_run(tmp_path, record(f"variant_{number}"))
    write_report(tmp_path)
    page = (tmp_path / "report.md").read_text()
    assert "## How sure the models are" in page
    assert ("figures/calibration.png" in page) is (tmp_path / "figures" / "calibration.png").exists() is drawn


def test_names_every_run_and_fact(study):
    page = study[1]["report.md"].decode()
    runs = fold(page, "Runs")
    assert runs.count("| completed |") == 7 and "loss is not finite" in runs
    assert "[lora_default/seed-2/record.json](lora_default/seed-2/record.json)" in runs
    assert "](lora_default/seed-1)" in fold(page, "Evidence for each claim")
    data = fold(page, "Data")
    assert "| sizes.train | 2,000 | all |" in data
    assert "4 of the 1,000 test reviews (0.40%) have a copy in the training part" in data
    assert "| versions.torch | 2.13.0 | all |" in fold(page, "Machine and versions")
    assert "lora-study report --results-dir results/embedded" in page


def test_every_link_and_image_exists(study):
    folder, files = study
    page = Page(files["report.html"].decode())
    assert len(page.links) > 30 and all((folder / path).exists() for path in page.links)
    markdown = files["report.md"].decode()
    assert all(f"](figures/{name}.png)" in markdown for name in FIGURES)
    assert markdown.count("](figures/") == len(FIGURES)


def test_html_is_self_contained_and_described(study):
    page = Page(study[1]["report.html"].decode())
    assert len(page.images) == len(FIGURES)
    assert all(len(image["aria-label"]) > 80 for image in page.images)
    assert "lora_best 80.20%, article 92.39%" in page.images[0]["aria-label"]
    assert not {"link", "iframe", "img", "object"} & set(page.tags)
    assert page.tags.count("script") == 1 and len(set(page.ids)) == len(page.ids)
    assert not any("//" in link for link in page.links)


def test_only_a_page_s_own_folds_are_html():
    page = html_page("t", "<details>\n<summary>A</summary>\n\n<b>x</b> y\n\n<p onclick=x>\n\n</details>\n", {})
    body = page.partition("<main>")[2].partition("</main>")[0]
    assert "<details>\n<summary>A</summary>" in body and "</details>" in body
    assert "<b>" not in body and "<p onclick" not in body and "&lt;b&gt;" in body


def test_a_cell_knows_its_column():
    page = html_page("t", "| a b | c |\n| --- | ---: |\n| x | 1 |\n\n| d |\n| --- |\n| y |\n", {})
    assert re.findall(r'data-label="([^"]*)"', page) == ["a b", "c", "d"]


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
    assert "| 77.00 | 89.44 |" in page_of(results)  # the published run and the article
    other = results.parent / "other"
    write_run(other, record(test=0.71))
    assert "| 71.00 | 89.44 |" in page_of(results, other)


def test_the_published_mean_is_of_the_seeds_that_are_here(results):
    write_run(results, record("full", 1, 0.8))
    for seed, test in ((1, 0.8), (2, 0.7), (3, 0.7)):
        write_run(results.parent / "published" / "mine", record("full", seed, test))
    assert "| 80.00 | 92.31 |" in page_of(results)
    write_run(results, record("full", 9, 0.5))
    (results / "full" / "seed-1" / "record.json").unlink()
    assert "| 73.33 | 92.31 |" in page_of(results)


def test_a_published_run_with_other_settings_is_named_and_not_shown(results):
    for name in ("lora_default", "full"):
        write_run(results, record(name, test=0.8))
    copy = results.parent / "published" / "mine"
    write_run(copy, record(test=0.77, config={"train": {"learning_rate": 0.3}}))
    # Published, a file of reviews has lost its folder; a run that failed early knows no encoder.
    here, there = ({"config": {"data": {"source": f"{place}a.csv"}}} for place in ("/my/", ""))
    for folder, content, test in ((results, here, 0.8), (copy, there, 0.66)):
        run = record("full", test=test, **content)
        write_run(folder, dataclasses.replace(run, data=run.data | {"fingerprint": "2e" * 32}))
    write_run(results, dataclasses.replace(failed("full"), provenance={}))
    page = page_of(results)
    assert "published run: lora_default is left out: it differs from the runs here in train.learning_rate" in page
    assert "| 77.00 |" not in page and "| 66.00 | 92.31 |" in page


def test_an_empty_published_copy_is_pointed_out(results, tmp_path):
    write_run(results, record(test=0.8))
    assert "published run: nowhere holds no record" in page_of(results, tmp_path / "nowhere")


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
    warnings = (results / "report.md").read_text().partition("> **Warnings**")[2].partition("\n\n")[0]
    unusable = ("last_two_layers/seed-1/record.json", "full/seed-1/curves.csv", "lora_best/seed-1/curves.csv")
    unusable += (
        "full/seed-1/predictions.parquet",
        "lora_best/seed-1/predictions.parquet",
        "not every run is here: full seed 7 (begun)",
    )
    for name in unusable:
        assert name in warnings and name in caplog.text
    assert str(results) not in warnings
    assert (results / "figures" / "loss.png").exists()  # of lora_default


def test_runs_on_other_reviews_are_left_out_by_name(results):
    write_run(results, record(seed=1, test=0.8))
    write_run(results, record(seed=2, test=0.8))
    write_run(results, record(seed=3, test=0.2, data={"fingerprint": {"test": "other"}}))
    page = page_of(results)
    assert "> - lora_default seed 3 is left out" in page
    assert "| lora_default | 2 | 80.00 |" in page


def test_experiments_on_different_reviews_are_pointed_out(results):
    write_run(results, record("lora_default"))
    write_run(results, record("full", data={"fingerprint": {"test": "other"}}))
    page = page_of(results)
    assert "not all tested on the same reviews" in page.partition("> **Warnings**")[2]
    assert "| fingerprint.test | other | full |" in fold(page, "Data")


def test_more_training_reviews_make_no_other_test_reviews(results):
    for name, whole, train in (("lora_default", "one", "few"), ("full", "other", "many")):
        data = {"fingerprint": whole, "fingerprints": {"train": train, "test": "same"}}
        run = record(name)
        write_run(results, dataclasses.replace(run, data=run.data | data))
    assert "not all tested on the same reviews" not in page_of(results)


def test_a_run_that_failed_before_it_had_an_encoder_is_of_no_other(results):
    write_run(results, record("lora_default"))
    write_run(results, dataclasses.replace(failed("full"), provenance={}))
    assert "the article's, was not run**" in page_of(results)


def test_another_run_of_a_rows_name_stands_beside_no_number_of_the_article(results):
    write_run(results, record("full"))
    write_run(results, record("lora_default", config={"lora": {"scaling": "alpha/r"}}))
    page = page_of(results)
    assert "lora_default seed 1 serves no claim" in page and "lora.scaling alpha/r in place of alpha" in page
    assert "| 92.31 |" in page and "| 89.44 |" not in page.partition("<details>")[0]


def test_experiments_that_scored_other_numbers_of_test_reviews_are_pointed_out(results):
    write_run(results, record("lora_default"))
    write_run(results, record("full", metrics={"test": {"n": 996}}))
    page = page_of(results)
    assert "not all tested on the same reviews" in page and "is tested on" not in page


def test_the_report_says_what_to_type_for_a_folder_elsewhere(results, tmp_path, monkeypatch):
    write_run(tmp_path / "elsewhere" / "mine", record())
    monkeypatch.chdir(tmp_path)
    assert "lora-study report --results-dir elsewhere/mine" in page_of("elsewhere/mine")


def test_runs_of_two_encoders_are_not_said_to_be_of_the_stand_in_alone(results):
    write_run(results, record("lora_default"))
    run = record("full")
    run.provenance["encoder"] |= {"name": "distilbert-base-uncased", "stand_in": False}
    write_run(results, run)
    write_run(results, dataclasses.replace(failed("lora_best"), provenance={}))
    page = page_of(results)
    assert "was not run" not in page and "only those of one can be compared" in page


def test_a_study_of_failures_is_reported_too(results):
    write_run(results, failed("full", error="out of memory"))
    write_report(results)
    page = (results / "report.md").read_text()
    assert "out of memory" in fold(page, "Runs")
    assert "1 experiment, 0 seeds each (0 completed runs and 1 failed run)" in page
    assert not (results / "figures").exists()


def test_text_from_records_cannot_become_markup(results):
    evil = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) ![b](http://example.com/b.png) | `\n# c"
    write_run(results, record(data={"source": evil}, provenance={"command": f"{evil}\n```\n{evil}"}))
    write_run(results, failed("full", error=evil))
    write_report(results)
    page = Page((results / "report.html").read_text())
    assert page.tags.count("h1") == 1 and page.tags.count("script") == 1 and "img" not in page.tags
    assert all(link.endswith((".json", ".csv", ".md", "/seed-1")) for link in page.links)


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
