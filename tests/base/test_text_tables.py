"""Tables as text: what is in a cell is shown, never interpreted."""

import io

import pandas as pd
from markdown_it import MarkdownIt

from lora_study.base.text_tables import csv_table, markdown_table

NUMBERS = pd.DataFrame({"n": pd.array([1234567, None], dtype="Int64"), "x": [1234.5, None], "s": [None, "ok"]})


def test_markdown_shows_the_text_of_every_cell():
    texts = [
        *("a|b", "<script>alert(1)</script>", "*x* _y_ `z`", "[l](javascript:1)"),
        *("two\nlines", "a_b_c", "&amp; ~~s~~"),
    ]
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(pd.DataFrame({"text": texts})))
    for text in texts:
        shown = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f"<td>{shown}</td>" in html


def test_markdown_numbers():
    assert markdown_table(NUMBERS).splitlines() == [
        "| n | x | s |",
        "| ---: | ---: | --- |",
        "| 1,234,567 | 1,234.50 | — |",
        "| — | — | ok |",
    ]


def test_a_small_number_is_not_shown_as_nothing():
    shown = markdown_table(pd.DataFrame({"p": [0.0, 0.0004, -0.00339, 0.0496]})).splitlines()[2:]
    assert shown == ["| 0.00 |", "| 0.0004 |", "| -0.0034 |", "| 0.05 |"]


def test_markdown_of_a_column_may_be_given():
    frame = pd.DataFrame({"a": ["*x*"], "b": ["*x*"]})
    assert markdown_table(frame, markdown=["b"]).splitlines()[-1] == r"| \*x\* | *x* |"


def test_csv_reads_back():
    frame = pd.DataFrame({"text": ['a,"b"\nc', None], "x": [0.1 + 0.2, None]})
    again = pd.read_csv(io.StringIO(csv_table(frame)))
    assert again["text"][0] == 'a,"b"\nc' and again["text"].isna()[1]
    assert again["x"][0] == 0.3 and again["x"].isna()[1]
