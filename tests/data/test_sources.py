import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.reading import PIECE_BYTES, Document
from gpt_keras.data.sources import open_source


def read(source, **kwargs) -> list[Document]:
    return list(open_source(str(source), **kwargs)())


def test_python_stdlib_has_the_library_and_not_its_tests():
    names = {document.name.split("#")[0] for document in read("python-stdlib")}
    assert {"json/decoder.py", "asyncio/events.py"} <= names
    assert not any(name.startswith(("test/", "site-packages/")) for name in names)


def test_a_folder_gives_its_text_files_in_order(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/two.md", "a.txt", "c.py", "picture.png"):
        (tmp_path / name).write_text(f"text of {name}")
    assert [(d.name, d.text) for d in read(tmp_path)] == [
        ("a.txt", "text of a.txt"),
        ("b/two.md", "text of b/two.md"),
        ("c.py", "text of c.py"),
    ]


def test_a_glob_and_gzip(tmp_path):
    (tmp_path / "one.txt.gz").write_bytes(gzip.compress("één".encode()))
    (tmp_path / "two.txt").write_text("two")
    assert [d.text for d in read(f"{tmp_path}/*.txt*")] == ["één", "two"]


def test_json_lines_with_a_text_key(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps({"body": f"text {i}"}) + "\n" for i in range(3)))
    assert [d.text for d in read(path, text_key="body")] == ["text 0", "text 1", "text 2"]
    with pytest.raises(InputError, match=r":1: no field 'text'; there are body: choose one with --text-key"):
        read(path)


def test_a_file_name_that_is_not_utf8_is_spelled_out(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9.txt")).write_text("text")
    assert [(d.name, d.text) for d in read(tmp_path)] == [("caf\\xe9.txt", "text")]


def test_line_ends_are_kept(tmp_path):
    (tmp_path / "windows.txt").write_bytes(b"one\r\ntwo\r\n")
    assert read(tmp_path)[0].text == "one\r\ntwo\r\n"


PARAGRAPHS = st.lists(st.sampled_from(["word " * 3000, "é" * 9000, "x" * 70000, "short", ""]), max_size=40)


@given(paragraphs=PARAGRAPHS, end=st.sampled_from(["\n", "\n\n", "\r\n\r\n"]))
@settings(max_examples=30, deadline=None)
def test_large_files_are_cut_without_loss(tmp_path_factory, paragraphs, end):
    text = end.join(paragraphs) + "tail"
    path = tmp_path_factory.mktemp("large") / "large.txt"
    path.write_bytes(text.encode())
    pieces = read(path)
    kept = "".join(piece.text for piece in pieces)
    assert kept.strip() == text.strip()
    assert all(len(piece.text.encode()) <= PIECE_BYTES for piece in pieces)
    assert len({piece.name for piece in pieces}) == len(pieces)


def test_large_files_are_cut_at_blank_lines(tmp_path):
    paragraph = "a line\n" * 1000 + "\n"
    (tmp_path / "large.txt").write_text(paragraph * 50)
    pieces = read(tmp_path)
    assert len(pieces) > 3
    assert all(piece.text.endswith("\n\n") for piece in pieces)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("latin.txt", "café".encode("latin-1"), r"latin\.txt: not UTF-8 text \(byte 0xe9 at offset 3\)"),
        ("utf16.txt", "hello".encode("utf-16-le"), r"utf16\.txt: binary data \(a NUL byte at offset 1\)"),
        ("cut.txt.gz", gzip.compress(b"text" * 100, mtime=0)[:-9], "damaged gzip"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad\.jsonl, line 2: not JSON"),
        ("list.jsonl", b"[1, 2]\n", r"list\.jsonl:1: expected an object"),
        ("half.jsonl", b'{"text": "cut \\ud83d"}\n', r"half\.jsonl:1: half a character"),
        ("number.jsonl", b'{"text": 3}\n', r"number\.jsonl:1: the field 'text' is int, not text"),
    ],
)
def test_unreadable_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("source", ["no/such/file.txt", "nothing/*.txt", ""])
def test_missing_sources_are_named(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such file|no file"):
        open_source(source)


def test_a_bucket_is_to_be_copied_first():
    for source, words in (("gs://b/*.jsonl", r"first \(gcloud .*--runner$"), ("https://a.b/c.txt", "copy it first$")):
        with pytest.raises(InputError, match=words):
            open_source(source)


def test_tensorflow_datasets_on_local_files(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    class TinyTexts(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

        def _split_generators(self, manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"text": f"text number {i}"}) for i in range(5))

    TinyTexts(data_dir=tmp_path).download_and_prepare()
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path), raising=False)
    texts = {document.text for document in read("tfds:tiny_texts/train")}
    assert texts == {f"text number {i}" for i in range(5)}
    with pytest.raises(InputError, match=r"tfds:no_such_set: cannot be loaded"):
        read("tfds:no_such_set")


def test_hugging_face_dataset_folder(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n')
    assert [document.text for document in read(f"hf:{tmp_path}")] == ["one", "two"]
