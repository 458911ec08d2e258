"""What README and docs tell to type works.

A block of shell or Python is run in a folder that has what such a reader has by then (a small model, some text), one
after the other, unless the line before it says why not: <!-- not run: REASON -->. Options are checked in all of them.
"""

import functools
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.data.preparation import prepare
from gpt_keras.folder import save_folder
from gpt_keras.tasks import find_task, task_names

from .conftest import build, program

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]*?) -->\n+)?```(?P<language>sh|python)\n(?P<code>.*?)```", re.DOTALL
)
SHORTER = {
    "--minutes 3 ": "--minutes 0.05 ",
    "--vocabulary-size 32768": "--vocabulary-size 400",
    "--run-dir runs/mine": "--run-dir runs/mine --vocabulary-size 400",
}
pytestmark = pytest.mark.tensorflow


@dataclass(frozen=True)
class Block:
    place: str
    language: str
    code: str
    reason: str | None


def blocks() -> list[Block]:
    """All of them, equal ones once."""
    found: dict[str, Block] = {}
    for page in PAGES:
        text = page.read_text("utf-8")
        for match in BLOCK.finditer(text):
            place = f"{page.relative_to(ROOT)}:{text.count(chr(10), 0, match.start('language')) + 1}"
            found.setdefault(match["code"], Block(place, match["language"], match["code"], match["reason"]))
    return list(found.values())


@pytest.fixture(scope="module")
def folder(tokenizer, tmp_path_factory):
    """What a reader has."""
    place = tmp_path_factory.mktemp("reader")
    config = GPTConfig.from_preset("nano", vocabulary_size=tokenizer.vocabulary_size, context_length=256)
    save_folder(build(config), tokenizer, place / "runs" / "default" / "model")
    (place / "tokenizer.model").write_bytes(tokenizer.files["tokenizer.model"])
    for number, name in enumerate(("my_texts", "books", "web")):
        (place / name).mkdir()
        texts = [program(100 * number + i) for i in range(100)]
        (place / name / "one.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (place / "corpora").mkdir()
    for name, source in {"code": "books", "prose": "web"}.items():
        prepare(str(place / source), tokenizer, place / "corpora" / name)
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "def main"}]
    (place / "chat.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 40)
    (place / "prompts.txt").write_text("def one\ndef two\n")
    return place


def run(command: list[str], folder: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("block", [b for b in blocks() if b.reason is None], ids=lambda block: block.place)
def test_it_works(block, folder):
    code = functools.reduce(lambda text, pair: text.replace(*pair), SHORTER.items(), block.code)
    if block.language == "python":
        run([sys.executable, "-c", code], folder)
    else:
        run(["bash", "-euo", "pipefail", "-c", code], folder)


def inline() -> list[tuple[str, str]]:
    """Commands of ours within a sentence or a table, each with its page."""
    return [
        (str(page.relative_to(ROOT)), command)
        for page in PAGES
        for command in re.findall(r"`(python -m gpt_keras\.[^`]*)`", page.read_text("utf-8"))
    ]


@functools.cache
def options_of(module: str) -> set[str]:
    command = [sys.executable, "-m", *module.split(), "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    return set(re.findall(r"--[a-z][\w-]*", done.stdout))


def test_all_options_exist():
    """Also where nothing is run, and in tables."""
    wrong = []
    for place, code in [(b.place, b.code) for b in blocks() if b.language == "sh"] + inline():
        for command in re.findall(r"python -m ((?:\\\n|[^\n#])*)", code):
            words = command.replace("\\\n", " ").split()
            module = " ".join(words[:2]) if words[0] in ("gpt_keras.corpus", "gpt_keras.tokenizer") else words[0]
            if module.startswith("gpt_keras.corpus prepare"):  # Beam's own options are passed on
                continue
            options = {word.split("=")[0] for word in words[1:] if re.match(r"--[a-z]", word)}
            wrong += [f"{place}: {module} has no {o}" for o in sorted(options) if o not in options_of(module)]
    assert not wrong


def test_records_that_are_shown_are_some_that_tasks_take():
    shown = re.findall(r"```json\n(.*?)```", (ROOT / "docs" / "fine-tuning.md").read_text("utf-8"), re.DOTALL)
    names = {name: find_task(name).fields for name in task_names()}
    taken = set()
    for line in "".join(shown).splitlines():
        record = json.loads(line)
        fitting = [n for n, f in names.items() if {*f.names} <= record.keys() <= {*f.names, *f.optional}]
        assert fitting, line
        for name in fitting:
            find_task(name).messages(names[name].take(record, "record"))
        taken.update(fitting)
    assert sorted(taken) == task_names()


def test_commands_stand_in_blocks_that_are_run():
    """An indented line would be shown as code, and not be found."""
    for page in PAGES:
        text = without_blocks(page.read_text("utf-8"))
        indented = re.findall(r"^(?: {4}|\t)(?:\$ )?(?:pip|python|make|curl|gpt-keras|import) .*", text, re.MULTILINE)
        assert not indented, page


def without_blocks(text: str) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)


def test_links_lead_somewhere():
    """Of the pages that the site's own strict build does not see."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "benchmarks").glob("*.md")]
    texts = {page: page.read_text("utf-8") for page in pages}
    for page in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(page.read_text("utf-8"))["cells"]
        texts[page] = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for page, text in texts.items():
        for path, heading in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", text):
            target = page.parent / path if path else page
            assert target.exists(), f"{page}: {path}"
            if heading:
                headings = re.findall(r"^#+ (.*)", without_blocks(target.read_text("utf-8")), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", found.lower()).replace(" ", "-") for found in headings}
                assert heading in slugs, f"{page}: {path}#{heading}"


def test_the_first_page_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) < 200


def test_why_something_is_not_run_is_said():
    for page in PAGES:
        text = page.read_text("utf-8")
        for comment in re.findall(r"<!-- not run:(.*?)-->(.{0,8})", text, re.DOTALL):
            assert len(comment[0].strip()) > 8 and comment[1].lstrip().startswith("```"), page
