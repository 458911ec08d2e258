"""Documents to a prepared corpus: split, train a tokenizer where none is given, tokenize, write shards."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gpt_keras.data.errors import InputError
from gpt_keras.data.files import sweep, whole_folder
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer, train_tokenizer
from gpt_keras.data.shards import FORMAT, SPLITS, Corpus, ShardWriter
from gpt_keras.data.sources import Document, open_source
from gpt_keras.data.split import Split, plan_split
from gpt_keras.data.tokenizer import Tokenizer

Report = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) while text is tokenized."""

_BATCH_DOCUMENTS = 64
_Item = TypeVar("_Item")


def split_and_train_tokenizer(
    source: str, vocabulary_size: int, validation: str = "auto", text_key: str = "text"
) -> SentencePieceTokenizer:
    """A tokenizer that has seen the training part of `source` and nothing of the held-out part."""
    documents = open_source(source, text_key)
    split = plan_split(documents(), validation)
    return train_tokenizer((d.text for held_out, d in split.divide(documents()) if not held_out), vocabulary_size)


def prepare(
    source: str,
    tokenizer: Tokenizer,
    output: str | Path,
    validation: str = "auto",
    text_key: str = "text",
    report: Report = lambda done, total: None,
) -> Corpus:
    """Tokenize `source` into the folder `output`, which appears whole or not at all.

    Args:
        source: As `open_source` takes it.
        tokenizer: Must be the one that training will use.
        output: The corpus folder; an old one is replaced.
        validation: What to hold out (`gpt_keras.data.split`).
        text_key: Field of JSON records that holds the text.
        report: Called as bytes are done.

    Raises:
        InputError: The source cannot be read, is empty, or the disk is full.
    """
    if tokenizer.begin_id is None or tokenizer.end_id is None:
        raise InputError("the tokenizer has no begin or no end token, which mark where documents begin and end")
    output = Path(output)
    documents = open_source(source, text_key)
    split = plan_split(documents(), validation)
    if output.parent.is_dir():
        sweep(output.parent)
    with whole_folder(output) as folder:
        manifest = _write(folder, source, documents(), split, tokenizer, report)
        (folder / "corpus.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return Corpus(output)


def _write(
    folder: Path, source: str, documents: Iterable[Document], split: Split, tokenizer: Tokenizer, report: Report
) -> dict[str, Any]:
    for name, content in tokenizer.files.items():
        (folder / name).write_bytes(content)
    writers = {name: ShardWriter(folder, name, tokenizer) for name in SPLITS}
    done = 0
    with open(folder / "validation.jsonl", "w", encoding="utf-8", newline="\n") as held_out_text:
        for batch in _batches(split.divide(documents), _BATCH_DOCUMENTS):
            ids = tokenizer.encode_batch([document.text for _, document in batch], os.cpu_count() or 1)
            for (held_out, document), tokens in zip(batch, ids, strict=True):
                writers["validation" if held_out else "train"].add(document, tokens)
                done += len(document.text.encode())
                if held_out:
                    record = {"name": document.name, "text": document.text}
                    held_out_text.write(json.dumps(record, ensure_ascii=False) + "\n")
            report(done, split.total_bytes)
    for name, writer in writers.items():
        if writer.documents == 0:
            raise InputError(f"{source}: nothing is left for {name}; change what is held out with --validation")
    return {
        "format": FORMAT,
        "source": source,
        "validation": split.rule,
        "tokenizer": tokenizer.fingerprint,
        "vocabulary_size": tokenizer.vocabulary_size,
        "splits": {name: writer.finish() for name, writer in writers.items()},
    }


def _batches(items: Iterable[_Item], size: int) -> Iterator[list[_Item]]:
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
