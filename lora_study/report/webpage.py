"""The report's Markdown as one self-contained HTML page: style, figures and a few lines of script inside.

Nothing is loaded, and the page's own Content-Security-Policy lets a browser load nothing.
"""

import base64
import hashlib
import html
import re
from collections.abc import Mapping
from importlib.resources import files
from itertools import pairwise
from string import Template
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.token import Token

from lora_study.evidence.claims import VERDICTS
from lora_study.report.plots import GREY, GRID, INK, PAPER

# The colours of a drawing that follow the page into the dark; those of the data stay.
THEME = {INK: "currentColor", GREY: "var(--soft)", GRID: "var(--line)", PAPER: "var(--paper)"}
PX_PER_PT = 1.5  # the largest a drawing gets on the page: a little larger than on paper
SHORT, PROSE = 24, 40  # characters up to which a cell is not broken in print, and from which it is given width
# The only HTML that a page's Markdown may hold: a fold's beginning and end. Any other is shown as text.
FOLD = re.compile(r"<details>\n<summary>[^<>]*</summary>\n?|</details>\n?")


def html_page(title: str, markdown: str, svg_images: Mapping[str, bytes]) -> str:
    """Render Markdown as one self-contained HTML page.

    Raw HTML in the Markdown is shown as text, except folds. A table scrolls in a container of its own; on a narrow
    screen its rows are cards, in which every cell says the name of its column.

    Args:
        title: Title of the page, plain text.
        markdown: CommonMark with tables.
        svg_images: For each image address in the Markdown, matplotlib's SVG to put in its place.
    """
    parser = MarkdownIt("commonmark").enable("table")

    def image(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
        token = tokens[index]
        alt = self.renderInlineAsText(token.children, options, env)
        return inline_svg(svg_images[str(token.attrs["src"])].decode(), alt)

    def html_block(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
        content = tokens[index].content
        return content if FOLD.fullmatch(content) else html.escape(content)

    def html_inline(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
        return html.escape(tokens[index].content)

    def table_open(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
        label = html.escape(_label(tokens[:index]))
        return f'<div class="table" role="region" aria-label="{label}" tabindex="0"><table>\n'

    def table_close(self: Any, tokens: list[Token], index: int, options: Any, env: Any) -> str:
        return "</table></div>\n"

    for rule in (image, html_block, html_inline, table_open, table_close):
        parser.add_render_rule(rule.__name__, rule)
    tokens = parser.parse(markdown)
    _describe_cells(tokens)
    template = files("lora_study.report").joinpath("page.html").read_text(encoding="utf-8")
    script = re.findall(r"<script>(.*?)</script>", template, flags=re.DOTALL)
    assert len(script) == 1, "page.html has one script, whose hash is all its policy allows"
    return Template(template).substitute(
        title=html.escape(title),
        script_hash=base64.b64encode(hashlib.sha256(script[0].encode()).digest()).decode(),
        body=parser.renderer.render(tokens, parser.options, {}),
    )


def inline_svg(svg: str, alt: str) -> str:
    """Matplotlib's SVG as an element of a page, described in words and in the page's colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Glyphs, markers and clips are named after their content; figure_1 and the like would be in the page many times.
    svg = re.sub(r' id="[A-Za-z0-9.]+_\d+"', "", svg)
    for colour, themed in THEME.items():
        svg = re.sub(rf"{colour}\b", themed, svg, flags=re.IGNORECASE)
    root, _, drawing = svg.partition(">")
    width = re.search(r'viewBox="0 0 ([0-9.]+) ', root)
    assert width is not None, "matplotlib writes a viewBox"
    attributes = re.sub(r' (?:width|height)="[^"]*"', "", root.removeprefix("<svg"))
    most = f"{float(width[1]) * PX_PER_PT:.0f}px"
    return f'<svg role="img" aria-label="{html.escape(alt)}" style="max-width: {most}"{attributes}>{drawing}'


def _describe_cells(tokens: list[Token]) -> None:
    """Give every cell of every table the name of its column, and a class by what it holds."""
    names: list[str] = []
    column = 0
    for token, after in pairwise(tokens):
        if token.type == "thead_open":
            names = []
        elif token.type == "th_open":
            names.append(_text(after))
        elif token.type == "tr_open":
            column = 0
        elif token.type == "td_open":
            token.attrSet("data-label", names[column])
            column += 1
            if (text := after.content) in VERDICTS:
                token.attrSet("class", f"verdict {text.replace(' ', '-')}")
            elif len(text) <= SHORT or (len(text) > PROSE and " " in text):
                token.attrSet("class", "short" if len(text) <= SHORT else "prose")


def _text(inline: Token) -> str:
    return "".join(child.content for child in inline.children or [])


def _label(before: list[Token]) -> str:
    """What a table is about: the fold or the heading it stands under."""
    for place, token in reversed(list(enumerate(before))):
        if token.type == "html_block" and (found := re.search(r"<summary>(.*)</summary>", token.content)):
            return found[1]
        if token.type == "heading_open":
            return _text(before[place + 1])
    return "table"
