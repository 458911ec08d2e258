import gzip
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import zstandard

from gpt_keras.data.cleaning import Cleaner, CleaningOptions
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions, prepare
from gpt_keras.data.sources import open_source, parse_weight
from tests.conftest import program
from tests.data.test_shards import contents, decoded

from ..conftest import PATIENCE

WORDS = [f"{a}{b}{c}" for a in ("ka", "to", "mi", "ser", "bo") for b in ("na", "ri", "lu") for c in ("", "t", "sk")]


def sentence(draw: random.Random, count: int = 60) -> str:
    return " ".join(f"{draw.choice(WORDS)}{draw.randint(0, 99)}" for _ in range(count)) + "\n"


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """About 12 MB in some files of different kinds."""
    folder = tmp_path_factory.mktemp("large")
    text = "\n\n".join(program(seed) for seed in range(3000))
    (folder / "a.txt").write_text(text)
    (folder / "b.jsonl").write_text("".join(json.dumps({"text": program(s)}) + "\n" for s in range(3000, 6000)))
    (folder / "c.txt.gz").write_bytes(gzip.compress(text[:3_000_000].encode(), 1))
    (folder / "d.jsonl.zst").write_bytes(zstandard.compress((folder / "b.jsonl").read_bytes(), 1))
    return str(folder)


def test_the_result_does_not_depend_on_the_number_of_workers(large, tokenizer, tmp_path):
    for workers in (1, 2, 3):
        prepare(large, tokenizer, tmp_path / str(workers), PreparationOptions(workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")


def test_a_preparation_killed_again_and_again_gives_the_same_bytes(large, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    # Notes behind every block, and a breath behind every note, so that it is not done before it is killed.
    often = textwrap.dedent("""
        import sys, time
        from gpt_keras.data import preparation
        write = preparation.write_note
        preparation.NOTE_SECONDS = 0
        preparation.write_note = lambda *arguments: (write(*arguments), time.sleep(0.1))
        from gpt_keras.corpus import cli
        sys.exit(cli())
    """)

    def start(output, workers):
        arguments = ["prepare", large, "--tokenizer", tmp_path / "t.model", "--output", output, "--workers", workers]
        command = [sys.executable, "-c", often, *map(str, arguments), "--deduplicate", "near", "--normalize"]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def notes():
        names = ("scan.json", "split.json", "encode.json")
        found = (tmp_path / "killed.preparing" / name for name in names)
        return [path.read_bytes() for path in found if path.exists()]

    whole = start(tmp_path / "whole", 2)
    assert whole.wait(timeout=PATIENCE) == 0, whole.stderr.read()
    draw, kills = random.Random(1), 0
    while kills < 8:
        before, process = notes(), start(tmp_path / "killed", 1 + kills % 2)
        while process.poll() is None and notes() == before:  # it has got further
            time.sleep(0.01)
        time.sleep(draw.uniform(0, 0.3))
        process.kill()
        process.wait()
        if process.returncode == 0:
            break
        kills += 1
        assert process.returncode == -signal.SIGKILL, process.stderr.read()
    assert kills > 2
    process = start(tmp_path / "killed", 2)
    assert process.wait(timeout=PATIENCE) == 0, process.stderr.read()
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")
    assert not (tmp_path / "killed.preparing").exists()


def test_workers_end_with_the_process_that_started_them(large, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    arguments = ["prepare", large, "--tokenizer", tmp_path / "t.model", "--output", tmp_path / "c", "--workers", 2]
    process = subprocess.Popen([sys.executable, "-m", "gpt_keras.corpus", *map(str, arguments)])

    def children() -> list[int]:
        found = []
        for entry in os.listdir("/proc"):
            try:
                with open(f"/proc/{entry}/stat") as stat, open(f"/proc/{entry}/cmdline") as line:
                    if "gpt_keras.data.workers" in line.read() and int(stat.read().split()[3]) == process.pid:
                        found.append(int(entry))
            except (OSError, ValueError):
                continue
        return found

    while not (started := children()) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(os.path.exists(f"/proc/{pid}") for pid in started) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert started and not any(os.path.exists(f"/proc/{pid}") for pid in started)


def test_duplicates_are_dropped_and_reported(tokenizer, tmp_path):
    draw = random.Random(0)
    texts = [sentence(draw) for _ in range(200)]
    changed = texts[3].split(" ")
    changed[30] = "changed"
    texts += [texts[0], texts[1], " ".join(changed)]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    documents = {}
    for mode in ("none", "exact", "near"):
        options = PreparationOptions(cleaning=CleaningOptions(deduplicate=mode), workers=1)
        corpus = prepare(str(path), tokenizer, tmp_path / mode, options)
        documents[mode] = sorted(decoded(corpus, "train") + decoded(corpus, "validation"))
    assert documents["none"] == sorted(texts)
    assert documents["exact"] == sorted([*texts[:200], texts[-1]])
    assert documents["near"] == sorted(texts[:200])
    cleaning = corpus.manifest["cleaning"]
    assert {reason: entry["documents"] for reason, entry in cleaning["dropped"].items()} == {
        "exact_duplicate": 2,
        "near_duplicate": 1,
    }
    (example,) = cleaning["examples"]["near_duplicate"]
    assert example["name"] == "texts.jsonl:203" and example["like"] == "texts.jsonl:4"


@pytest.mark.parametrize("mode", ["none", "exact", "near"])
def test_no_validation_document_is_nearly_one_of_training(tokenizer, tmp_path, mode):
    draw = random.Random(1)
    texts = []
    for _ in range(300):
        texts.append(sentence(draw, 200))
        if draw.random() < 0.5:
            words = texts[-1].split(" ")
            for _ in range(3):
                words[draw.randrange(len(words))] = "other"
            texts.append(" ".join(words))
    draw.shuffle(texts)
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    options = PreparationOptions("0.2", cleaning=CleaningOptions(deduplicate=mode), workers=1)
    corpus = prepare(str(path), tokenizer, tmp_path / "corpus", options)
    train, validation = decoded(corpus, "train"), decoded(corpus, "validation")
    assert len(validation) > 20

    def sequences(text):
        words = text.split()
        return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}

    training = [sequences(text) for text in train]
    for text in validation:
        own = sequences(text)
        assert all(len(own & other) / len(own | other) < 0.8 for other in training)


def test_each_cleaning_step_is_counted(tokenizer, tmp_path):
    texts = ["cafe\u0301 au lait", "bell\x07 rings", "short", "long " * 100, "keep me: write to ann@example.org"]
    texts += [f"ordinary text number {i} " * 3 for i in range(30)]
    path = tmp_path / "texts.jsonl"
    path.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*texts, "nul \0 here too", "half a pair \ud83d"])
    )
    cleaning = CleaningOptions(normalize=True, min_characters=8, max_characters=200, pii_scrub="email,phone")
    corpus = prepare(str(path), tokenizer, tmp_path / "corpus", PreparationOptions(cleaning=cleaning, workers=1))
    documents = decoded(corpus, "train") + decoded(corpus, "validation")
    assert {
        "caf\u00e9 au lait",
        "bell rings",
        "keep me: write to <email>",
        "nul  here too",
        "half a pair \ufffd",
    } < set(documents)
    report = corpus.manifest["cleaning"]
    assert report["changed"] == {"control_characters": 2, "pii_email": 1, "unicode_nfc": 1}
    assert report["dropped"]["min_characters"] == {"documents": 1, "bytes": 5}
    assert report["dropped"]["max_characters"] == {"documents": 1, "bytes": 500}
    assert report["examples"]["min_characters"] == [{"name": "texts.jsonl:3", "text": "short"}]


@pytest.mark.parametrize(
    ("text", "scrubbed"),
    [
        ("Mail jo.doe+x@mail.example.co.uk now", "Mail <email> now"),
        ("call +1 (555) 010-9999 or 555-010-9999", "call <phone> or <phone>"),
        ("+44 20 7946 0958, +4915123456789", "<phone>, <phone>"),
        ("on 2024-01-02 version 1.22.333.4444 cost 1,000,000", None),
        ("ids 1234567890 and 192.168.100.200, a@b", None),
    ],
)
def test_personal_data_is_scrubbed(text, scrubbed):
    cleaner = Cleaner(CleaningOptions(pii_scrub="email,phone"))
    assert cleaner.clean(text)[0] == (text if scrubbed is None else scrubbed)


def test_hooks_are_named_functions_and_run_in_every_worker(tokenizer, tmp_path, monkeypatch):
    (tmp_path / "my_hooks.py").write_text(
        "def lower(text):\n    print('hello')\n    return text.islower()\n"
        "def hide(text):\n    return text.replace('secret', '***')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    texts = ["UPPER", "a secret text", *(f"lower case text {i}" for i in range(40))]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    cleaning = CleaningOptions(language_filter="my_hooks:lower", pii_scrub="my_hooks:hide")
    options = PreparationOptions(cleaning=cleaning, workers=2)
    corpus = prepare(str(tmp_path / "texts.jsonl"), tokenizer, tmp_path / "corpus", options)
    documents = decoded(corpus, "train") + decoded(corpus, "validation")
    assert "UPPER" not in documents and "a *** text" in documents
    assert corpus.manifest["cleaning"]["dropped"]["language_filter"]["documents"] == 1
    with pytest.raises(InputError, match="--language-filter my_hooks:upper: no such MODULE:FUNCTION"):
        CleaningOptions(language_filter="my_hooks:upper")


def test_an_unfinished_preparation_of_something_else_is_kept(large, tokenizer, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(progress):
        if progress.stage == "tokenizing":
            raise StoppedError

    with pytest.raises(StoppedError):
        prepare(large, tokenizer, tmp_path / "c", PreparationOptions(workers=1), stop)
    with pytest.raises(InputError, match=r"unfinished preparation that is not this one .*--validation"):
        prepare(large, tokenizer, tmp_path / "c", PreparationOptions("0.1"))
    corpus = prepare(large, tokenizer, tmp_path / "c", PreparationOptions("0.1", workers=2), restart=True)
    assert corpus.manifest["validation"] == "0.1"


def test_sources_of_every_kind_give_the_same_documents(tokenizer, tmp_path):
    import datasets
    import pyarrow
    import pyarrow.parquet

    texts = [program(seed) for seed in range(60)]
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
    (tmp_path / "plain.jsonl").write_bytes(lines)
    (tmp_path / "gzip.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "zstandard.jsonl.zst").write_bytes(zstandard.compress(lines[:999]) + zstandard.compress(lines[999:]))
    pyarrow.parquet.write_table(pyarrow.table({"text": texts, "n": range(60)}), tmp_path / "table.parquet")
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(str(tmp_path / "saved"))
    for name in ("plain.jsonl", "gzip.jsonl.gz", "zstandard.jsonl.zst", "table.parquet"):
        assert [document.text for document in open_source(str(tmp_path / name))()] == texts, name
    assert [document.text for document in open_source(f"hf:{tmp_path / 'saved'}")()] == texts


@pytest.mark.parametrize("cut", [10, 100])
def test_a_cut_zstandard_file_is_named(tmp_path, cut):
    (tmp_path / "cut.txt.zst").write_bytes(zstandard.compress(os.urandom(1000).hex().encode())[:-cut])
    with pytest.raises(InputError, match=r"cut\.txt\.zst: damaged Zstandard file"):
        list(open_source(str(tmp_path / "cut.txt.zst"))())


def test_weights_are_read_and_kept(large, tokenizer, tmp_path):
    assert parse_weight("a=b.txt=0.5") == ("a=b.txt", 0.5)
    assert parse_weight("a=b.txt") == ("a=b.txt", None)
    with pytest.raises(InputError, match="number above 0"):
        parse_weight("a=0")
    with pytest.raises(InputError, match="every source a weight"):
        prepare([f"{large}/a.txt=1", f"{large}/b.jsonl"], tokenizer, tmp_path / "c")
    corpus = prepare([f"{large}/a.txt=3", f"{large}/b.jsonl=1"], tokenizer, tmp_path / "c")
    assert [entry["weight"] for entry in corpus.manifest["sources"]] == [3.0, 1.0]
    streams = corpus.source_streams()
    assert sum(map(len, streams)) == len(corpus.streams["train"])
    assert np.array_equal(streams[0].read(0, 1000), corpus.streams["train"].read(0, 1000))


def test_an_old_corpus_is_put_back_if_its_replacement_was_killed_in_the_act(source, tokenizer, tmp_path, monkeypatch):
    output = tmp_path / "corpus"
    prepare(source, tokenizer, output)
    old = contents(output)

    def killed(partial, path, replaced):
        os.replace(path, replaced)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("gpt_keras.data.preparation.put_in_place", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(source, tokenizer, output)
    assert not output.exists()
    (tmp_path / "bad.jsonl").write_text("no JSON\n")
    with pytest.raises(InputError, match="not JSON"):
        prepare(str(tmp_path / "bad.jsonl"), tokenizer, output, restart=True)
    assert contents(output) == old
