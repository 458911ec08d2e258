"""The figures in README and docs are those of benchmarks/results, and stand nowhere else."""

import json
import os
import re
import subprocess
import sys

import pytest

from benchmarks import pages
from benchmarks.__main__ import KNOWN, ON_GPU
from gpt_keras.__main__ import COMMANDS

pytestmark = pytest.mark.tensorflow
MARK = re.compile(r"<!-- figures: ([\w/]+) -->")
MEASURED = re.compile(r"[0-9] ?(tokens/s|MB/s|tokens a second|TFLOP/s|GFLOP/s)")


@pytest.mark.parametrize("page", pages.PAGES, ids=lambda page: page.name)
def test_pages_show_what_was_measured(page):
    text = page.read_text("utf-8")
    assert pages.filled(text) == text, f"{page}: stale; python -m benchmarks --write-pages writes it anew"
    assert all((pages.RESULTS / f"{name}.json").is_file() for name in MARK.findall(text) if name not in ON_GPU)
    outside = pages.REGION.sub("", text)
    assert not MEASURED.search(outside), f"{page}: {MEASURED.search(outside)} is in no file of results"


def test_every_result_says_where_and_when():
    shown = {name for page in pages.PAGES for name in MARK.findall(page.read_text("utf-8"))}
    for file in pages.RESULTS.rglob("*.json"):
        record = json.loads(file.read_text("utf-8"))
        assert {"command", "date", "machine", "versions", "results", "tables"} <= set(record)
        name = file.relative_to(pages.RESULTS).with_suffix("").as_posix()
        assert name in shown, f"{name} is on no page"
    assert {name.split("/")[-1] for name in shown} <= set(KNOWN)


def test_the_picture_has_all_its_charts():
    assert all(pages.chart(*picked) for picked in pages.CHARTS)


def test_one_command_runs_a_benchmark_and_writes_its_page(tmp_path):
    script = (
        "import sys; from pathlib import Path; from benchmarks import __main__, pages\n"
        "page = Path('page.md'); page.write_text('<!-- figures: sizing -->\\n<!-- end of figures -->\\n')\n"
        "pages.RESULTS, pages.PAGES, pages.PICTURE = Path('results'), [page], Path('images/speed.svg')\n"
        "sys.argv[1:] = ['sizing']; __main__.main()"
    )
    here = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(pages.ROOT)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", script], check=False, **here)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "results" / "sizing.json").read_text("utf-8"))
    page = (tmp_path / "page.md").read_text("utf-8")
    assert record["date"] in page and "| gpt2 | 124.4M |" in page
    done = subprocess.run([sys.executable, "-m", "benchmarks", "none"], check=False, **here)
    assert done.returncode == 2 and "no benchmark none" in done.stderr


def test_every_command_is_in_the_reference():
    headings = re.findall(r"^## (\w+)$", (pages.ROOT / "docs/reference/commands.md").read_text("utf-8"), re.MULTILINE)
    assert sorted(headings) == sorted({*COMMANDS} - {"completion"})


def test_importing_the_package_imports_no_framework():
    script = "import sys, gpt_keras; print([m for m in ('keras', 'tensorflow', 'jax', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
