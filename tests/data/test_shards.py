import errno
import json
import shutil

import numpy as np
import pytest

from gpt_keras.data import shards
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder
from gpt_keras.data.preparation import prepare
from gpt_keras.data.shards import Corpus
from gpt_keras.data.sources import open_source


def decoded(corpus: Corpus, split: str) -> list[str]:
    """The documents of a split, from its tokens."""
    stream, tokenizer = corpus.streams[split], corpus.tokenizer
    ids = stream.read(0, len(stream))
    begins = np.flatnonzero(ids == tokenizer.begin_id)
    documents = np.split(ids, begins[1:])
    assert all(part[0] == tokenizer.begin_id and part[-1] == tokenizer.end_id for part in documents)
    return [tokenizer.decode(part[1:-1]) for part in documents]


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if not path.name.startswith(".")}


def test_shards_hold_every_document_once_on_its_side(source, corpus):
    train, validation = decoded(corpus, "train"), decoded(corpus, "validation")
    texts = [document.text for document in open_source(source)()]
    assert sorted(train + validation) == sorted(texts)
    assert train == [text for text in texts if text not in set(validation)]


def test_held_out_text_and_bytes_are_recorded(corpus):
    texts = [document.text for document in corpus.held_out_documents()]
    assert texts == decoded(corpus, "validation")
    assert corpus.splits["validation"]["bytes"] == sum(len(text.encode()) for text in texts)


def test_many_shards_read_as_one_stream(source, corpus, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    many = prepare(source, tokenizer, tmp_path / "many")
    files = [entry["file"] for entry in many.manifest["splits"]["train"]["shards"]]
    assert len(files) > 3
    assert files[0] == f"train-00000-of-{len(files):05d}.npy"
    one, other = corpus.streams["train"], many.streams["train"]
    assert len(one) == len(other)
    for start, length in ((0, len(one)), (995, 10), (1000, 1000), (999, 2001), (len(one) - 1, 1), (7, 0)):
        assert np.array_equal(one.read(start, length), other.read(start, length))
    with pytest.raises(IndexError):
        other.read(len(one) - 1, 2)


def test_another_tokenizer_is_noticed(corpus, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / "copy")
    (tmp_path / "copy" / "tokenizer.model").write_bytes(b"something else")
    with pytest.raises(InputError, match="tokenizer"):
        Corpus(tmp_path / "copy")


@pytest.mark.parametrize("damage", ["cut", "gone", "longer"])
def test_damaged_shards_are_named(corpus, tmp_path, damage):
    shutil.copytree(corpus.folder, tmp_path / "copy")
    shard = next((tmp_path / "copy").glob("train-*.npy"))
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "gone":
        shard.unlink()
    else:
        np.save(shard, np.zeros(12345, np.uint16))
    with pytest.raises(InputError, match=shard.name):
        Corpus(tmp_path / "copy")


def test_a_changed_byte_and_a_swapped_shard_are_found(source, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_TOKENS", 1000)
    corpus = prepare(source, tokenizer, tmp_path / "corpus")
    corpus.verify()
    first, second = (corpus.folder / entry["file"] for entry in corpus.manifest["splits"]["train"]["shards"][:2])
    held = first.read_bytes()
    first.write_bytes(held[:500] + bytes([held[500] ^ 1]) + held[501:])
    with pytest.raises(InputError, match=f"{first.name}: damaged"):
        Corpus(corpus.folder).verify()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)
    with pytest.raises(InputError, match=f"{first.name}: damaged, or not this corpus's shard"):
        Corpus(corpus.folder).verify()


def test_a_model_without_enough_vocabulary_is_told(corpus):
    corpus.check_model(corpus.tokenizer.vocabulary_size)
    with pytest.raises(InputError, match="the model's vocabulary is 100"):
        corpus.check_model(100)


def test_remote_shards_are_told_how_to_be_staged():
    with pytest.raises(InputError, match="gcloud storage cp -r gs://bucket/corpus"):
        Corpus("gs://bucket/corpus")


def test_a_damaged_manifest_is_named(corpus, tmp_path):
    shutil.copytree(corpus.folder, tmp_path / "copy")
    (tmp_path / "copy" / "corpus.json").write_text(json.dumps(corpus.manifest)[:-20])
    with pytest.raises(InputError, match=r"corpus\.json: damaged"):
        Corpus(tmp_path / "copy")


def test_a_full_disk_is_told_and_nothing_is_lost(source, corpus, tokenizer, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shards.ShardWriter, "add", full)
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 0))
        with pytest.raises(InputError, match="no space left on the disk"):
            prepare(source, tokenizer, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.preparing"]
    prepare(source, tokenizer, tmp_path / "corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert contents(tmp_path / "corpus") == contents(corpus.folder)


def test_an_interrupt_leaves_nothing_behind_and_keeps_what_was_there(tmp_path):
    with whole_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("first")
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "made") as folder:
        (folder / "file").write_text("second")
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.iterdir()] == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "first"


def test_what_a_killed_writer_left_is_swept(tmp_path):
    (tmp_path / "corpus.partial-999999999-abc").mkdir()
    (tmp_path / "kept").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_kill_between_putting_away_and_replacing_loses_nothing(tmp_path):
    old = tmp_path / "corpus.partial-999999999-abc-old"
    old.mkdir()
    (old / "file").write_text("first")
    (tmp_path / "corpus.partial-999999999-abc").mkdir()
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]
    assert (tmp_path / "corpus" / "file").read_text() == "first"
