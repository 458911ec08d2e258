import dataclasses
import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from apache_beam.io.filesystem import FileMetadata
from apache_beam.io.localfilesystem import LocalFileSystem

from gpt_keras.corpus import CorpusOptions
from gpt_keras.data import beam_stages
from gpt_keras.data.beam import prepare_on_beam, split_flags
from gpt_keras.data.cleaning import CleaningOptions
from gpt_keras.data.errors import InputError
from gpt_keras.data.preparation import PreparationOptions, prepare
from gpt_keras.data.shards import SPLITS, Corpus
from tests.conftest import program, slow_but
from tests.data.test_preparation import sentence
from tests.data.test_shards import contents, decoded

from ..conftest import PATIENCE


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Files of several kinds and blocks, with equal and nearly equal documents in and across them."""
    folder = tmp_path_factory.mktemp("mixed")
    draw = random.Random(0)
    pages = [sentence(draw, 120) for _ in range(60)]
    near = [" ".join(page.split()[:-3]) + " other words here\n" for page in pages[:20]]
    lines = [program(seed) for seed in range(2500)] + pages + pages[5:15] + near
    draw.shuffle(lines)
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("\n\n".join(program(seed) for seed in range(2500, 3500)))
    (folder / "deep" / "c.txt.gz").write_bytes(gzip.compress((folder / "deep" / "b.txt").read_bytes()[:300_000]))
    (folder / "d.txt").write_text("\n \n")
    for i, page in enumerate(pages[:10]):
        (folder / f"page{i}.md").write_text(page)
    (folder / "short.jsonl").write_text('{"text": "x"}\n' * 7 + '{"text": "me@example.org wrote ten words to us"}\n')
    return folder


def comparable(manifest: dict) -> dict:
    """corpus.json without what is said of shards."""
    splits = {split: {**manifest["splits"][split], "shards": None} for split in SPLITS}
    return {**manifest, "splits": splits}


@pytest.mark.parametrize("mode", slow_but(["none", "exact", "near"], "near"))
def test_beam_prepares_the_same_corpus_as_one_machine(folder, tokenizer, tmp_path, mode):
    cleaning = CleaningOptions(deduplicate=mode, min_characters=5, normalize=True, pii_scrub="email")
    options = PreparationOptions("0.1", cleaning=cleaning)
    sources = [f"{folder / 'a.jsonl'}=2", f"{folder / 'deep'}=1", f"{folder}/*.md=1", f"{folder / 'short.jsonl'}=1"]
    on_beam = prepare_on_beam(
        sources, tokenizer, str(tmp_path / "beam"), PreparationOptions("0.1", "text", cleaning, 3)
    )
    here = prepare(sources, tokenizer, tmp_path / "here", options)
    assert comparable(on_beam) == comparable(here.manifest)
    if mode == "near":
        assert set(on_beam["cleaning"]["dropped"]) == {"min_characters", "exact_duplicate", "near_duplicate"}
        assert all(len(shown) == 3 for shown in on_beam["cleaning"]["examples"].values())
    corpus = Corpus(tmp_path / "beam")
    corpus.verify()
    for split in SPLITS:
        assert sorted(decoded(corpus, split)) == sorted(decoded(here, split))
    for ours, theirs in zip(corpus.source_streams(), here.source_streams(), strict=True):
        assert np.array_equal(np.sort(ours.read(0, len(ours))), np.sort(theirs.read(0, len(theirs))))
    assert [document.text for document in corpus.held_out_documents()] == decoded(corpus, "validation")
    assert set(contents(tmp_path / "beam")) == {
        "corpus.json", "tokenizer.model", "validation.jsonl",
        *(entry["file"] for split in SPLITS for entry in on_beam["splits"][split]["shards"]),
    }  # fmt: skip


@pytest.mark.slow
def test_many_shards_each_of_one_source(folder, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(beam_stages, "SHARD_BYTES", 300_000)
    sources = [str(folder / "a.jsonl"), str(folder / "deep")]
    for name in ("first", "again"):
        manifest = prepare_on_beam(sources, tokenizer, str(tmp_path / name), PreparationOptions(workers=1))
    shards = manifest["splits"]["train"]["shards"]
    assert len(shards) > 3 and [entry["source"] for entry in shards] == sorted(entry["source"] for entry in shards)
    assert contents(tmp_path / "first") == contents(tmp_path / "again")
    here = prepare(sources, tokenizer, tmp_path / "here")
    for split in SPLITS:
        assert sorted(decoded(Corpus(tmp_path / "first"), split)) == sorted(decoded(here, split))


class SharedDisk(LocalFileSystem):
    """Local files under another name, as a bucket would be."""

    @classmethod
    def scheme(cls):
        return "shared"

    def _local(self, path):
        return path.removeprefix("shared://")

    def join(self, base, *paths):
        return "shared://" + super().join(self._local(base), *paths)

    def _list(self, place):
        files = (path for path in Path(self._local(place)).rglob("*") if path.is_file())
        return (FileMetadata(f"shared://{path}", path.stat().st_size) for path in files)

    def split(self, path):
        head, tail = super().split(self._local(path))
        return "shared://" + head, tail

    def exists(self, path):
        return super().exists(self._local(path))

    def metadata(self, path):
        return super().metadata(self._local(path))

    def mkdirs(self, path):
        return super().mkdirs(self._local(path))

    def create(self, path, *options, **more):
        return super().create(self._local(path), *options, **more)

    def open(self, path, *options, **more):
        return super().open(self._local(path), *options, **more)

    def delete(self, paths):
        return super().delete([self._local(path) for path in paths])


@pytest.mark.slow
def test_text_and_corpus_in_a_bucket(folder, tokenizer, tmp_path):
    (tmp_path / "corpus").mkdir()
    options = PreparationOptions(workers=1)
    for source in (f"shared://{folder}", f"shared://{folder}/**"):
        manifest = prepare_on_beam(source, tokenizer, f"shared://{tmp_path}/corpus/{len(source)}", options)
        here = prepare(str(folder), tokenizer, tmp_path / "here")
        assert {**comparable(manifest), "sources": 0} == {**comparable(here.manifest), "sources": 0}
        corpus = Corpus(tmp_path / "corpus" / str(len(source)))
        assert sorted(decoded(corpus, "train")) == sorted(decoded(here, "train"))
    with pytest.raises(InputError, match="no file ending in"):
        prepare_on_beam(f"shared://{tmp_path}/nothing", tokenizer, str(tmp_path / "new"), options)
    with pytest.raises(InputError, match=r"nowhere://x: cannot be listed .*apache-beam\[gcp\]"):
        prepare_on_beam("nowhere://x", tokenizer, str(tmp_path / "new"), options)
    with pytest.raises(InputError, match=r"nowhere://x: cannot be written .*apache-beam\[gcp\]"):
        prepare_on_beam(str(folder), tokenizer, "nowhere://x", options)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_bad_text_in_a_worker_is_one_clear_line_and_nothing_stays(folder, tokenizer, tmp_path, capfd, workers):
    (tmp_path / "bad.txt").write_bytes(b"good \xff bad")
    with pytest.raises(InputError) as error:
        sources = [str(folder), str(tmp_path / "bad.txt")]
        prepare_on_beam(sources, tokenizer, str(tmp_path / "out"), PreparationOptions(workers=workers))
    assert str(error.value).startswith("bad.txt: not UTF-8 text (byte 0xff at offset 5)")
    assert "while running" not in str(error.value)
    assert capfd.readouterr().err == ""
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_kept_and_what_was_unfinished_is_not(source, tokenizer, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("precious")
    with pytest.raises(InputError, match="is there already"):
        prepare_on_beam(source, tokenizer, str(tmp_path / "mine"), PreparationOptions(workers=1))
    assert (tmp_path / "mine" / "file").read_text() == "precious"
    (tmp_path / "cut").mkdir()
    for name in ("UNFINISHED", "train-00000-of-00009.npy"):
        (tmp_path / "cut" / name).write_text("")
    prepare_on_beam(source, tokenizer, str(tmp_path / "cut"), PreparationOptions(workers=1))
    assert not (tmp_path / "cut" / "train-00000-of-00009.npy").exists()
    Corpus(tmp_path / "cut").verify()


def test_what_beam_cannot_do_is_told(source, tokenizer, tmp_path):
    def attempt(message, runner="DirectRunner", flags=(), **options):
        with pytest.raises(InputError, match=message):
            prepare_on_beam(source, tokenizer, str(tmp_path / "x"), PreparationOptions(**options), runner, flags)
        assert not (tmp_path / "x").exists()

    attempt("text has no order", validation="tail:0.1")
    attempt("DirectRunner has no such option", flags=["--no_such=1"])
    attempt("--workers is for one machine", "FlinkRunner", workers=2)
    attempt("where Dataflow's workers do not see it", "DataflowRunner")
    attempt("FlinkRunner: ", "FlinkRunner", ["--job_endpoint=localhost:1", "--job_server_timeout=1"])
    (tmp_path / "empty.jsonl").write_text('{"text": " "}\n')
    with pytest.raises(InputError, match="empty"):
        prepare_on_beam(str(tmp_path / "empty.jsonl"), tokenizer, str(tmp_path / "x"), PreparationOptions(workers=1))


def test_flags_of_beam_are_told_from_others():
    line = (
        "prepare a --runner FlinkRunner --flink_master host:1 b --parallelism=9 --output out --save_main_session c --no"
    )
    ours, theirs = split_flags([*line.split(), "--", "--fires", "3"], ["--runner", "--output"])
    assert " ".join(ours) == "prepare a --runner FlinkRunner b --output out c --no"
    assert " ".join(theirs) == "--flink_master host:1 --parallelism=9 --save_main_session --fires 3"


def test_the_commands_in_the_documentation_are_known_to_beam():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text().replace("\\\n", " ")
    commands = [line.split() for line in page.splitlines() if "gpt_keras.corpus prepare" in line and "--runner" in line]
    assert {line[line.index("--runner") + 1] for line in commands} == {"DirectRunner", "FlinkRunner", "DataflowRunner"}
    own = {f"--{field.name.replace('_', '-')}" for field in dataclasses.fields(CorpusOptions)}
    for line in commands:
        ours, theirs = split_flags(line, own)
        assert {argument for argument in ours if argument.startswith("--")} <= own
        assert all(argument.startswith("--") and "=" in argument for argument in theirs)


def run(*arguments) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "gpt_keras.corpus", "prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


@pytest.mark.slow
def test_the_command_line(folder, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "t.model")
    common = (folder, "--tokenizer", tmp_path / "t.model", "--output", tmp_path / "corpus", "--json")
    done = run(*common, "--runner", "DirectRunner", "--direct_num_workers", "2")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == Corpus(tmp_path / "corpus").manifest
    again = run(*common, "--runner", "DirectRunner")
    assert again.returncode == 2 and again.stderr.startswith("error: ") and again.stderr.count("\n") == 1
    wrong = run(*common, "--runner", "DirectRunner", "--direct_num_wrokers", "2")
    assert wrong.returncode == 2 and "unknown flag --direct_num_wrokers" in wrong.stderr


def test_a_job_server_such_as_flinks_runs_it(folder, tokenizer, tmp_path):
    """The protocol by which Flink and Spark get their work, with Beam's own job server in their place."""
    tokenizer.save(tmp_path / "t.model")
    port, log = tmp_path / "port", (tmp_path / "log").open("w")
    module = "apache_beam.runners.portability.local_job_service_main"
    command = [sys.executable, "-m", module, "-p", "0", "--port_file", str(port)]
    with subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            deadline = time.monotonic() + PATIENCE
            while not (port.exists() and port.read_text()) and time.monotonic() < deadline:
                time.sleep(0.1)
            flags = ("--runner", "FlinkRunner", f"--job_endpoint=localhost:{port.read_text()}")
            common = (folder, "--tokenizer", tmp_path / "t.model", "--output", tmp_path / "corpus")
            done = run(*common, *flags, "--environment_type", "LOOPBACK")
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr
    here = prepare(str(folder), tokenizer, tmp_path / "here")
    corpus = Corpus(tmp_path / "corpus")
    assert comparable(corpus.manifest) == comparable(here.manifest)
    assert sorted(decoded(corpus, "validation")) == sorted(decoded(here, "validation"))
