import io
import json
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console

from gpt_keras.corpus_view import row_text, show_lengths
from gpt_keras.data.finetuning import PackedBatches, read_examples
from gpt_keras.data.pretraining import Batches
from tests.conftest import program

from ..conftest import PATIENCE

NAMES = ("find", "take", "give", "hold", "turn")


def inspect(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gpt_keras.corpus", "inspect", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.fixture
def chat(tmp_path):
    """Conversations, two of which fit a row of 96 tokens."""
    talks = [
        [{"role": "user", "content": f"Say {name}."}, {"role": "assistant", "content": f"{name.title()}, and é 🎉!"}]
        for name in NAMES
    ]
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    return path


def test_a_row_of_conversations_shows_what_is_read_and_what_is_learned(chat, tokenizer):
    examples = read_examples(str(chat), tokenizer, 96)
    inputs, targets, weights = PackedBatches(examples, 96, 1, tokenizer.padding_id).batch(0)
    text = row_text(inputs["token_ids"][0], inputs["segment_ids"][0], targets[0], weights[0], tokenizer)
    documents = text.plain.split("▌")[1:]
    names = [document.partition("Say ")[2].partition(".")[0] for document in documents]
    assert len(names) > 1 and set(names) < set(NAMES)
    assert documents == [f"‹<s><|user|>Say {name}.</s><|assistant|>›{name.title()}, and é 🎉!</s>" for name in names]
    colors = {str(span.style).split()[-1] for span in text.spans}
    assert len(colors) == len(names)


def test_a_row_of_a_corpus_shows_all_its_text_and_its_documents(corpus):
    tokenizer = corpus.tokenizer
    batches = Batches(corpus.streams["train"], 400, 2, begin_id=tokenizer.begin_id)
    for number in range(8):
        inputs, targets, weights = batches.batch(number)
        for row in range(2):
            tokens = inputs["token_ids"][row]
            text = row_text(tokens, inputs["segment_ids"][row], targets[row], weights[row], tokenizer).plain
            begins = int((tokens == tokenizer.begin_id).sum())
            assert text.count("▌") == begins + (tokens[0] != tokenizer.begin_id)
            assert text.count("‹<s>›") == begins
            shown = text.replace("▌", "").replace("‹", "").replace("›", "")
            last = [] if weights[row, -1] == 0 else [targets[row, -1]]
            assert shown.replace("<s>", "").replace("</s>", "") == tokenizer.decode([*tokens, *last])


def test_bars_are_as_long_as_their_share():
    console = Console(file=io.StringIO(), width=100)
    show_lengths([0, 0, 10, 0, 5, 1, 0], "document", console)
    lines = [line.split() for line in console.file.getvalue().splitlines()[1:]]
    assert [line[:3] for line in lines] == [["4", "to", "7"], ["8", "to", "15"], ["16", "to", "31"], ["32", "to", "63"]]
    assert [line[-1] for line in lines] == ["10", "0", "5", "1"]
    assert [line[3].count("█") if len(line) == 5 else 0 for line in lines] == [40, 0, 20, 4]


def test_inspect_a_corpus(corpus):
    done = inspect(corpus.folder, "--batch", 10_000_000, "--context-length", 64, "--batch-size", 2, "--seed", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert "tokens of a train document" in done.stdout and "tokens of a validation document" in done.stdout
    batches = Batches(corpus.streams["train"], 64, 2, seed=3)
    for row in batches.batch(10_000_000)[0]:
        run = max(np.split(row, np.flatnonzero(np.isin(row, list(corpus.tokenizer.special.values())))), key=len)
        assert corpus.tokenizer.decode(run[2:]) in done.stdout
    manifest = json.loads(inspect(corpus.folder, "--json").stdout)
    assert sum(manifest["splits"]["train"]["lengths"]) == manifest["splits"]["train"]["documents"]


def test_inspect_conversations(chat, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    done = inspect(chat, "--tokenizer", tmp_path / "t.model", "--batch", 0, "--context-length", 96)
    assert (done.returncode, done.stderr) == (0, "")
    assert "5 examples" in done.stdout and "% padding" in done.stdout
    assert "‹<s><|user|>Say find.</s><|assistant|>›Find, and é 🎉!</s>" in done.stdout


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--batch", "-1"], "--batch must be 0 or above"),
        (["--batch-size", "0"], "must be 1 or above"),
        (["--context-length", "99999999", "--batch", "0"], "too few for a context"),
    ],
)
def test_absurd_flags_are_told(corpus, flags, message):
    done = inspect(corpus.folder, *flags)
    assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1


def test_conversations_need_a_tokenizer_and_be_conversations(chat, tokenizer, tmp_path):
    assert "--tokenizer" in inspect(chat).stderr
    tokenizer.save(tmp_path / "t.model")
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": program(1)}) + "\n")
    done = inspect(tmp_path / "text.jsonl", "--tokenizer", tmp_path / "t.model")
    assert done.returncode == 2 and "no field 'messages'" in done.stderr
