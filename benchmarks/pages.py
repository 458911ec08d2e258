"""The figures in README and docs: between two marks stands what a file in benchmarks/results says.

    <!-- figures: NAME -->
    ...
    <!-- end of figures -->

NAME is a path there without its suffix: `training`, or `avx2/training`, which another kind of machine has measured.
`python -m benchmarks` writes them, and the pictures of them; a test compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURE = ROOT / "docs" / "images" / "speed.svg"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
REGION = re.compile(r"(<!-- figures: ([\w/]+) -->\n).*?(<!-- end of figures -->)", re.DOTALL)


def write() -> None:
    """Write tables and pictures anew wherever there are figures for them."""
    for page in PAGES:
        text = page.read_text("utf-8")
        if (after := filled(text)) != text:
            page.write_text(after, "utf-8")
    draw(PICTURE)


def filled(text: str) -> str:
    """A page with the tables that belong into it."""

    def table(match: re.Match[str]) -> str:
        file = RESULTS / f"{match[2]}.json"
        if not file.is_file():
            return match[0]
        return f"{match[1]}{rendered(json.loads(file.read_text('utf-8')))}\n{match[3]}"

    return REGION.sub(table, text)


def rendered(record: Mapping[str, Any]) -> str:
    """Tables in Markdown, and where and when they were measured."""
    parts = [_table(rows) for rows in record["tables"]]
    machine = record["machine"]
    where = " and ".join(machine.get("gpus", ())) or "{cores} cores of {processor}{has}, {memory_gb:.0f} GB".format(
        **machine, has=" with " + " and ".join(words) if (words := machine["instructions"][-2:]) else ""
    )
    versions = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    note = f"`{record['command']}` on {record['date']}: {where}; {versions}."
    return "\n\n".join([*parts, note])


def _table(rows: list[list[str]]) -> str:
    width = max(map(len, rows))
    lines = []
    for number, row in enumerate(rows):
        cells = [cell.replace("|", "\\|") for cell in row] + [""] * (width - len(row))
        if number and cells[0].startswith("gpt_keras"):
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
        if not number:
            lines.append("|---|" + "---:|" * (width - 1))
    return "\n".join(lines)


def draw(path: Path) -> None:
    """A bar for every system of the comparisons in `CHARTS`, those of this project in colour."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    charts = [found for picked in CHARTS if (found := chart(*picked))]
    if not charts:
        return
    most = max(len(bars) for _, bars in charts)
    with rc_context({"font.size": 8, "svg.hashsalt": "speed", "svg.fonttype": "none"}):
        figure = Figure(figsize=(10, 0.5 + 0.22 * most), layout="constrained")
        for axes, (title, bars) in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
            names, values = zip(*bars, strict=True)
            ours = ["#1f6feb" if name.startswith("gpt_keras") else "#b8bcc4" for name in names]
            drawn = axes.barh(range(len(names)), values, color=ours)
            axes.bar_label(drawn, [f"{value:,.0f}" for value in values], padding=2)
            axes.set_yticks(range(len(names)), names)
            axes.set_title(title, fontsize=8, loc="left")
            axes.set_xticks([])
            axes.margins(x=0.2)
            axes.spines[:].set_visible(False)
            axes.tick_params(left=False)
            axes.set_ylim(most - 0.5, -0.5)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, metadata={"Date": None})


CHARTS = [
    ("training", "a training step, ms (less is better)", r"training step, small, batch of \d+"),
    ("serving", "16 clients, tokens/s", "serving, 16 clients"),
    ("edge", "one text, 8 bits, tokens/s", "smollm2, decode at 64"),
]
"""Results, a title, and a regular expression that the case shown begins with."""


def chart(name: str, title: str, case: str) -> tuple[str, list[tuple[str, float]]] | None:
    """The title and the bars, the best first; `None` where the results have no such case."""
    file = RESULTS / f"{name}.json"
    if not file.is_file():
        return None
    found = [result for result in json.loads(file.read_text("utf-8"))["results"] if re.match(case, result["case"])]
    if not found:
        return None
    bars = [(f"{r['system']} {re.sub(case, '', r['case'], count=1).lstrip(', ')}".strip(), r["value"]) for r in found]
    return title, sorted(bars, key=lambda bar: bar[1], reverse=found[0]["unit"] != "ms")
