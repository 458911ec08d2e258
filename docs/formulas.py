"""Formulas as MathML, which browsers show by themselves."""

import html
import re
from typing import Any

from latex2mathml.converter import convert

_FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Called by mkdocs with each page."""

    def mathml(match: re.Match[str]) -> str:
        display = "inline" if match[1] == "span" else "block"
        return convert(html.unescape(match[2]).strip(), display=display)

    return _FORMULA.sub(mathml, content)
