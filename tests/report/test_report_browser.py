"""The page in a real browser: its script runs under its own policy, tables sort and filter, it fits a phone."""

import html
import json
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from fabricate_predictions import write_whole_study

from lora_study.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

# Clicks and types as a reader would, and leaves what it saw in the page.
READER = """
<script>
const seen = {}, table = document.querySelector("#runs ~ .table table");
const column = (name) => [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
const shown = (name) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => row.cells[column(name)].textContent);
const click = (name) => table.tHead.rows[0].cells[column(name)].querySelector("button").click();
click("test (%)"); seen.ascending = shown("test (%)");
click("test (%)"); seen.descending = shown("test (%)");
click("experiment"); seen.names = shown("experiment");
const input = document.querySelector("#runs ~ .filter input");
input.value = "FULL failed"; input.dispatchEvent(new Event("input"));
seen.filtered = shown("status"); seen.count = input.nextElementSibling.textContent;
input.value = ""; input.dispatchEvent(new Event("input")); seen.all = shown("status").length;
document.body.style.width = "360px";
seen.phone = [...document.querySelectorAll("main > *")].filter((box) => box.getBoundingClientRect().right > 360)
  .map((box) => box.outerHTML.slice(0, 99));
seen.pictures = [...document.querySelectorAll("svg")].every((svg) => svg.getBoundingClientRect().height > 100);
const result = document.createElement("output");
result.id = "seen"; result.textContent = JSON.stringify(seen); document.body.append(result);
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The report of a made-up study."""
    folder = tmp_path_factory.mktemp("results") / "embedded"
    write_whole_study(folder)
    write_report(folder)
    return folder / "report.html"


def browse(page, profile, *flags):
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reader_can_sort_and_filter_and_a_phone_is_wide_enough(page, tmp_path):
    driven = tmp_path / "driven.html"
    unguarded = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())  # or the reader's script would be refused
    driven.write_text(unguarded.replace("</body>", f"{READER}</body>"))
    found = re.search(r'<output id="seen">(.*?)</output>', browse(driven, tmp_path / "profile", "--dump-dom"))
    assert found, "the page's script failed"
    seen = json.loads(html.unescape(found[1]))
    accuracies = ["69.00", "74.50", "77.50", "78.00", "78.50", "80.20", "80.80"]
    assert seen["ascending"] == [*accuracies, "—"]
    assert seen["descending"] == [*accuracies[::-1], "—"]
    assert seen["names"] == sorted(seen["names"]) and len(seen["names"]) == 8
    assert seen["filtered"] == ["failed"] and seen["count"] == "1 of 8 rows" and seen["all"] == 8
    assert seen["phone"] == [] and seen["pictures"]


def test_the_policy_lets_the_page_s_own_script_run_and_nothing_else(page, tmp_path):
    foreign = tmp_path / "foreign.html"
    attack = '<script>document.body.id = "taken"</script><img src="x" onerror="document.body.id = \'taken\'">'
    foreign.write_text(page.read_text().replace("</body>", f"{attack}</body>"))
    seen = browse(foreign, tmp_path / "profile", "--dump-dom")
    assert seen.count('<input type="search">') == 2
    assert 'id="taken"' not in seen.partition("<body")[2].partition(">")[0]


def test_a_dark_screen_gets_a_dark_page(page, tmp_path):
    picture = tmp_path / "dark.png"
    dark = "--blink-settings=preferredColorScheme=0"
    browse(page, tmp_path / "profile", dark, f"--screenshot={picture}", "--window-size=1000,1400", "--hide-scrollbars")
    brightness = matplotlib.image.imread(picture)[..., :3].mean(axis=2)
    assert brightness.shape == (1400, 1000)
    assert np.median(brightness) < 0.2 and brightness.max() > 0.8  # dark paper, light words
