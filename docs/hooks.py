"""Formulas as MathML, which browsers show by themselves; and the README's beginning as the first page's."""

import html
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
_README = "<!-- the beginning of README.md -->"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Called by mkdocs with the text of each page."""
    if _README not in markdown:
        return markdown
    text = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
    beginning = text[: text.index("\n## What it does")]
    return markdown.replace(_README, beginning.replace("](docs/", "]("))


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page as HTML."""

    def mathml(match: re.Match[str]) -> str:
        display = "inline" if match[1] == "span" else "block"
        return convert(html.unescape(match[2]).strip(), display=display)

    return _FORMULA.sub(mathml, content)
