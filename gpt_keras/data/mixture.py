"""Several prepared corpora as one: mixed by weight to train on, behind one another to be measured by."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from gpt_keras.data.errors import InputError
from gpt_keras.data.reading import Document
from gpt_keras.data.shards import SPLITS, Corpus, TokenStream
from gpt_keras.data.sources import parse_weight


class Mixture:
    """Corpora with one tokenizer, each with its weight.

    Args:
        corpora: Each with its weight, or `None` for all, which makes one window as likely as another.

    Attributes:
        corpora: The same.
        tokenizer: Of all of them.
        streams: Each split as one sequence, of one corpus behind another.
        splits: Documents, tokens and bytes of each split.

    Raises:
        InputError: The tokenizers differ, or only some have weights.
    """

    def __init__(self, corpora: Sequence[tuple[Corpus, float | None]]) -> None:
        first = corpora[0][0]
        for corpus, weight in corpora:
            if corpus.tokenizer.fingerprint != first.tokenizer.fingerprint:
                raise InputError(f"{corpus.folder} and {first.folder} have different tokenizers: they cannot be mixed")
            if (weight is None) != (corpora[0][1] is None):
                raise InputError("give every corpus a weight, as CORPUS=WEIGHT, or none")
        self.corpora = tuple(corpora)
        self.tokenizer = first.tokenizer
        self.streams = {split: TokenStream.joined([corpus.streams[split] for corpus, _ in corpora]) for split in SPLITS}
        self.splits: dict[str, dict[str, Any]] = {
            split: {
                name: sum(corpus.splits[split][name] for corpus, _ in corpora)
                for name in ("documents", "tokens", "bytes")
            }
            for split in SPLITS
        }

    @classmethod
    def open(cls, folders: Sequence[str]) -> Mixture:
        """The corpora of these folders, each also as FOLDER=WEIGHT.

        Raises:
            InputError: As for `Corpus`, or as above.
        """
        given = map(parse_weight, folders)
        return cls([(Corpus(folder), weight) for folder, weight in given])

    @property
    def name(self) -> str:
        """The folders."""
        return ", ".join(str(corpus.folder) for corpus, _ in self.corpora)

    @property
    def fingerprint(self) -> str:
        """As `Corpus.fingerprint`, of all in their order."""
        return hashlib.sha256("".join(corpus.fingerprint for corpus, _ in self.corpora).encode()).hexdigest()

    def verify(self, report: Callable[[int, int], None] = lambda done, total: None) -> None:
        """As `Corpus.verify`, one corpus after another."""
        for corpus, _ in self.corpora:
            corpus.verify(report)

    def check_model(self, vocabulary_size: int) -> None:
        """As `Corpus.check_model`."""
        for corpus, _ in self.corpora:
            corpus.check_model(vocabulary_size)

    def held_out_documents(self) -> Iterator[Document]:
        """The validation documents' text."""
        for corpus, _ in self.corpora:
            yield from corpus.held_out_documents()
