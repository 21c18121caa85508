"""The page in a real browser: its script runs under its own policy, tables sort and filter, it fits every screen."""

import html
import json
import re
import shutil
import subprocess

import matplotlib.image
import numpy as np
import pytest
from fabricate import failed, write_run
from fabricate_benchmarks import inference, training, write_benchmarks
from fabricate_predictions import write_whole_study

from lora_study.report import write_report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run")
FLAGS += ("--disable-background-networking", "--disable-component-update", "--disable-sync")
FLAGS += ("--allow-file-access-from-files",)  # for a page in a frame
DARK = "--blink-settings=preferredColorScheme=0"
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on the PATH")

# Clicks and types as a reader would, and leaves what it saw in the page.
READER = """
<script>
const seen = {}, folds = [...document.querySelectorAll("details")];
const fold = folds.find((each) => each.querySelector("summary").textContent === "Runs");
const table = fold.querySelector("table");
const column = (name) => [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === name);
const shown = (name) => [...table.tBodies[0].rows].filter((row) => !row.hidden)
  .map((row) => row.cells[column(name)].textContent);
const click = (name) => table.tHead.rows[0].cells[column(name)].querySelector("button").click();
seen.folded = folds.every((each) => !each.open);
click("test (%)"); seen.ascending = shown("test (%)");
click("test (%)"); seen.descending = shown("test (%)");
click("experiment"); seen.names = shown("experiment");
const input = fold.querySelector(".filter input");
input.value = "FULL failed"; input.dispatchEvent(new Event("input"));
seen.filtered = shown("status"); seen.count = input.nextElementSibling.textContent;
input.value = ""; input.dispatchEvent(new Event("input")); seen.all = shown("status").length;
seen.pictures = [...document.querySelectorAll("svg")].every((svg) => svg.getBoundingClientRect().height > 100);
window.dispatchEvent(new Event("beforeprint")); seen.printed = folds.every((each) => each.open);
const result = document.createElement("output");
result.id = "seen"; result.textContent = JSON.stringify(seen); document.body.append(result);
</script>
"""
# A window can be no narrower than some 500 pixels, a frame in it can. Folds are looked at closed and open.
FRAME = """
<body style="margin: 0"><iframe src="PAGE" style="border: 0; width: WIDTHpx; height: 900px"></iframe>
<output id="seen"></output>
<script>
const light = (colour) => {
  const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((part) => part / 255);
  const [r, g, b] = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
  }
};
const contained = (element) => {
  for (let each = element.parentElement; each && each.tagName !== "BODY"; each = each.parentElement) {
    if (["auto", "scroll"].includes(getComputedStyle(each).overflowX)) return true;
  }
  return false;
};
document.querySelector("iframe").addEventListener("load", (event) => {
  const frame = event.target.contentWindow, page = frame.document, seen = { over: [], pale: [] };
  const shown = (element) => element.outerHTML.slice(0, 99);
  seen.width = frame.innerWidth;
  for (const open of [false, true]) {
    page.querySelectorAll("details").forEach((fold) => { fold.open = open; });
    if (page.scrollingElement.scrollWidth > frame.innerWidth) seen.over.push("the page");
    for (const element of page.querySelectorAll("main *:not(svg *)")) {
      const box = element.getBoundingClientRect(), beyond = box.width && box.right > frame.innerWidth + 0.5;
      if (beyond && !contained(element)) seen.over.push(shown(element));
    }
  }
  for (const element of page.querySelectorAll("p, td, th, summary, h1, h2, a, code, blockquote, li")) {
    const [one, other] = [light(getComputedStyle(element).color), light(behind(element))].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) seen.pale.push(shown(element));
  }
  const cell = page.querySelector("td");
  seen.cards = getComputedStyle(cell).display === "grid";
  seen.label = cell.dataset.label;
  seen.dark = light(getComputedStyle(page.body).backgroundColor) < 0.1;
  document.querySelector("output").textContent = JSON.stringify(seen);
});
</script>
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Every page of a made-up study with benchmarks, by name."""
    folder = tmp_path_factory.mktemp("results") / "embedded"
    write_whole_study(folder)
    for seed in range(3, 20):
        write_run(folder, failed("full", seed, "the file /data/" + "a_long_name_without_a_space/" * 9 + " is gone"))
    (folder / "lora_best" / "seed-7").mkdir()  # a warning
    write_benchmarks(folder.parent / "benchmarks", training_cpu=training(), inference=inference())
    write_report(folder)
    return {"report": folder / "report.html", "speed": folder.parent / "benchmarks" / "speed.html"}


def browse(page, profile, *flags):
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=2000", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def seen_in(page, profile, *flags):
    """What a page's script left in it."""
    found = re.search(r'<output id="seen">(.+?)</output>', browse(page, profile, "--dump-dom", *flags))
    assert found, "the page's script failed"
    return json.loads(html.unescape(found[1]))


def test_a_reader_can_open_sort_filter_and_print(pages, tmp_path):
    driven = tmp_path / "driven.html"
    unguarded = re.sub(r"<meta http-equiv[^>]*>", "", pages["report"].read_text())  # or the script would be refused
    driven.write_text(unguarded.replace("</body>", f"{READER}</body>"))
    seen = seen_in(driven, tmp_path / "profile")
    accuracies, missing = ["69.00", "74.50", "77.50", "78.00", "78.50", "80.20", "80.80"], ["—"] * 18
    assert seen["ascending"] == [*accuracies, *missing]
    assert seen["descending"] == [*accuracies[::-1], *missing]
    assert seen["names"] == sorted(seen["names"]) and len(seen["names"]) == 25
    assert set(seen["filtered"]) == {"failed"} and seen["count"] == "18 of 25 rows" and seen["all"] == 25
    assert seen["folded"] and seen["printed"] and seen["pictures"]


@pytest.mark.parametrize("name", ["report", "speed"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, False), (400, True)])
def test_a_page_fits_the_screen_and_can_be_read(pages, name, width, dark, tmp_path):
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("PAGE", pages[name].as_uri()).replace("WIDTH", str(width)))
    seen = seen_in(frame, tmp_path / "profile", "--window-size=1300,1000", *([DARK] if dark else []))
    assert seen["width"] == width and seen["dark"] == dark
    assert seen["over"] == [] and seen["pale"] == []
    assert seen["cards"] == (width == 400) and seen["label"] == {"report": "claim", "speed": "row"}[name]


def test_the_policy_lets_the_page_s_own_script_run_and_nothing_else(pages, tmp_path):
    foreign = tmp_path / "foreign.html"
    attack = '<script>document.body.id = "taken"</script><img src="x" onerror="document.body.id = \'taken\'">'
    foreign.write_text(pages["report"].read_text().replace("</body>", f"{attack}</body>"))
    seen = browse(foreign, tmp_path / "profile", "--dump-dom")
    assert seen.count('<input type="search">') >= 2
    assert 'id="taken"' not in seen.partition("<body")[2].partition(">")[0]


def test_a_dark_screen_gets_a_dark_page(pages, tmp_path):
    picture = tmp_path / "dark.png"
    size = ("--window-size=1000,1400", "--hide-scrollbars")
    browse(pages["report"], tmp_path / "profile", DARK, f"--screenshot={picture}", *size)
    brightness = matplotlib.image.imread(picture)[..., :3].mean(axis=2)
    assert brightness.shape == (1400, 1000)
    assert np.median(brightness) < 0.2 and brightness.max() > 0.8  # dark paper, light words
