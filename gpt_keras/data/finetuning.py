"""Fine-tuning batches out of conversations: tokenized, packed into rows, and drawn by number.

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4"}]}

Records of another form are made into conversations first (`gpt_keras.tasks`).

Several conversations share a row, with segment ids so that none sees another, since most are much shorter than the
context. Which ones do is decided once, by best fit; batch number n is then a pure function of (examples, seed, n), as
in `gpt_keras.data.pretraining`.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from gpt_keras.data.conversations import Message, encode_for_training
from gpt_keras.data.errors import InputError
from gpt_keras.data.pipeline import numbered_dataset
from gpt_keras.data.pretraining import keyed, permute
from gpt_keras.data.reading import Part
from gpt_keras.data.records import Fields, fields_of, open_records
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.data.workers import map_in_order

Truncation = Literal["refuse", "drop", "cut_start", "cut_end"]
INPUTS = ("token_ids", "positions", "segment_ids")
_BYTES_FOR_A_WORKER = 1 << 20


class Form(Protocol):
    """How a record becomes conversations; can be pickled."""

    @property
    def fields(self) -> Fields:
        """What a record has."""

    def conversations(self, record: dict[str, Any]) -> Sequence[Sequence[Message]]:
        """Those that a record makes: one, or several that stay together.

        Raises:
            InputError: The record is not of this form.
        """


class Conversations:
    """Records that are conversations, under the field `messages`."""

    fields = Fields(("messages",))

    def conversations(self, record: dict[str, Any]) -> Sequence[Sequence[Message]]:
        messages = record["messages"]
        if not isinstance(messages, list):
            raise InputError(f"messages must be a list of turns, not {type(messages).__name__}")
        return [messages]


@dataclass(frozen=True)
class Examples:
    """Tokenized conversations behind one another, those of a record side by side.

    Attributes:
        tokens: int32 [tokens].
        trained: bool [tokens]; whether the model is trained to say this token.
        ends: int64 [examples]; where each example ends.
        dropped: Examples left out, by reason: `too_long`, `nothing_to_learn`.
        cut: How many examples were cut.
    """

    tokens: np.ndarray
    trained: np.ndarray
    ends: np.ndarray
    dropped: dict[str, int]
    cut: int = 0

    @classmethod
    def of(cls, pairs: Sequence[tuple[Any, Any]], dropped: dict[str, int] | None = None, cut: int = 0) -> Examples:
        """Those whose tokens, and whether each is trained, are given as lists or arrays; at least one."""
        tokens, trained = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
        ends = np.cumsum([len(ids) for ids, _ in pairs], dtype=np.int64)
        return cls(tokens.astype(np.int32), trained.astype(bool), ends, dropped or {}, cut)

    def __len__(self) -> int:
        return len(self.ends)

    @functools.cached_property
    def starts(self) -> np.ndarray:
        """int64 [examples]; where each example begins."""
        return np.append(0, self.ends[:-1])


def read_examples(
    sources: str | Sequence[str],
    tokenizer: Tokenizer,
    context_length: int,
    truncation: Truncation = "refuse",
    template: str | None = None,
    report: Callable[[int], None] = lambda examples: None,
    workers: int | None = None,
    form: Form = Conversations(),
) -> Examples:
    """Read and tokenize conversations.

    Args:
        sources: JSON lines, tables, Parquet, tfds: or hf: (`gpt_keras.data.records`) with the fields of `form`.
        tokenizer: The model's.
        context_length: The longest example that fits has one token more, which is only predicted.
        truncation: What to do with a longer one: refuse the data; drop it; cut_start, keep its last tokens, so that a
            system message is lost and the last answer is kept; or cut_end, keep its first tokens, so that an answer may
            have no end.
        template: Another chat template than the tokenizer's.
        report: Called with the number of examples read so far.
        workers: Processes; by default as many as there are cores, but one for little data. Does not change the result.
        form: How records become conversations. Of a record with several, all are kept or dropped.

    Raises:
        InputError: Naming the file and line: it is no conversation, or one that is too long.
    """
    opened = [open_records(source) for source in ([sources] if isinstance(sources, str) else sources)]
    if workers is None:
        size = sum(source.total_bytes or 0 for source in opened)
        workers = max(1, min(os.cpu_count() or 1, size // _BYTES_FOR_A_WORKER))
    work = _TokenizePart(dict(tokenizer.files), template or tokenizer.chat_template, form)
    parts = (part for source in opened for part in source.parts())
    tokenized = itertools.chain.from_iterable(
        map_in_order(work if workers > 1 else work.here(tokenizer), parts, workers)
    )
    examples = _gather(tokenized, context_length, truncation, report)
    if examples is None:
        raise InputError(f"{', '.join(source.name for source in opened)}: no example to learn from is left")
    return examples


def examples_of(
    records: Sequence[dict[str, Any]],
    tokenizer: Tokenizer,
    context_length: int,
    truncation: Truncation = "refuse",
    template: str | None = None,
    form: Form = Conversations(),
) -> Examples:
    """As `read_examples`, of records that are here.

    Raises:
        InputError: Naming the record's number, from 0.
    """
    part = Part("record", "records", list(records))
    work = _TokenizePart({}, template or tokenizer.chat_template, form, tokenizer)
    examples = _gather(work(part), context_length, truncation, lambda read: None)
    if examples is None:
        raise InputError("no example to learn from is left")
    return examples


def _gather(
    tokenized: Iterable[tuple[str, list[tuple[np.ndarray, np.ndarray]]]],
    context_length: int,
    truncation: Truncation,
    report: Callable[[int], None],
) -> Examples | None:
    """The examples that fit, or are made to."""
    examples: list[tuple[np.ndarray, np.ndarray]] = []
    dropped = {"too_long": 0, "nothing_to_learn": 0}
    cut = 0
    for read, (name, group) in enumerate(tokenized, 1):
        report(read)
        longest = max(len(ids) for ids, _ in group)
        if longest > context_length + 1:
            if truncation == "refuse":
                raise InputError(
                    f"{name}: {longest:,} tokens do not fit a context of {context_length:,}: use a longer one, or "
                    "choose what to do with long examples: drop, cut_start or cut_end"
                )
            if truncation == "drop":
                dropped["too_long"] += 1
                continue
            kept = slice(-context_length - 1, None) if truncation == "cut_start" else slice(context_length + 1)
            group = [(ids[kept], says[kept]) for ids, says in group]
            cut += 1
        if not all(says[1:].any() for _, says in group):
            dropped["nothing_to_learn"] += 1
            continue
        examples += group
    return Examples.of(examples, dropped, cut) if examples else None


class _TokenizePart:
    """Some of the records, in any process: name, and of each conversation the ids int32 and whether each is trained."""

    def __init__(
        self, files: dict[str, bytes], template: str | None, form: Form, tokenizer: Tokenizer | None = None
    ) -> None:
        self._files, self._template, self._form, self._tokenizer = files, template, form, tokenizer

    def here(self, tokenizer: Tokenizer) -> _TokenizePart:
        """The same with a tokenizer that is there already."""
        return _TokenizePart(self._files, self._template, self._form, tokenizer)

    def __call__(self, part: Part) -> list[tuple[str, list[tuple[np.ndarray, np.ndarray]]]]:
        self._tokenizer = self._tokenizer or Tokenizer.from_files(self._files, "the tokenizer")
        assert self._tokenizer is not None
        done = []
        for name, record in fields_of(part, self._form.fields):
            try:
                group = [
                    encode_for_training(self._tokenizer, list(messages), self._template)
                    for messages in self._form.conversations(record)
                ]
            except InputError as error:
                raise InputError(f"{name}: {error}") from error
            done.append((name, [(np.array(ids, np.int32), np.array(says, bool)) for ids, says in group]))
        return done


@dataclass(frozen=True)
class PackedBatches:
    """The endless sequence of fine-tuning batches of one run; every epoch visits every example once.

    Args:
        examples: What to learn from.
        context_length: Tokens of a row.
        batch_size: Rows of a batch, over all hosts.
        padding_id: The token that rows are filled up with.
        seed: Another seed is another order.
        host: This host's number.
        num_hosts: How many hosts share each batch; where they do not divide it, the first ones have a row more.
        group: So many examples behind one another stay in one row, pairs say.

    Raises:
        InputError: A group is longer than a row, or there are more hosts than rows in a batch.
    """

    examples: Examples
    context_length: int
    batch_size: int
    padding_id: int
    seed: int = 0
    host: int = 0
    num_hosts: int = 1
    group: int = 1

    def __post_init__(self) -> None:
        longest = int(self._lengths.max())
        if longest > self.context_length:
            what = "an example" if self.group == 1 else f"a group of {self.group} examples"
            raise InputError(f"{what} of {longest:,} tokens does not fit a context of {self.context_length:,}")
        if not 0 <= self.host < self.num_hosts <= self.batch_size:
            raise InputError(
                f"host {self.host} of {self.num_hosts} has no part of a batch of {self.batch_size}: use a larger batch"
            )

    @functools.cached_property
    def rows(self) -> list[list[int]]:
        """The numbers of the examples in each row."""
        rows = pack(self._lengths, self.context_length)
        return [[self.group * item + i for item in row for i in range(self.group)] for row in rows]

    @property
    def _lengths(self) -> np.ndarray:
        """Of the groups, int64."""
        return (self.examples.ends - self.examples.starts - 1).reshape(-1, self.group).sum(1)

    @property
    def padding_share(self) -> float:
        """What part of the rows is padding."""
        filled = len(self.examples.tokens) - len(self.examples)
        return 1.0 - filled / (len(self.rows) * self.context_length)

    def batch(self, number: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
        """Batch `number`: (inputs, targets, weights), each [rows, context_length]; int32, weights float32.

        The target of a token is the token behind it, so an example's last token is a target only. Weights are 1 where
        the target is trained, 0 elsewhere. Positions begin at 0 in every example; segment ids count the examples of a
        row from 1 on and are 0 for padding.

            example 1    <s> <|user|> Hi </s> <|assistant|> Yes </s>
            example 2    <s> <|user|> Go </s> <|assistant|> No </s>
            token_ids    <s> <|user|> Hi   </s>          <|assistant|> Yes  <s>      <|user|> ... <pad>
            targets      <|user|>  Hi </s> <|assistant|> Yes           </s> <|user|> Go       ... <pad>
            weights      0    0       0    0             1             1    0        0        ... 0
            positions    0    1       2    3             4             5    0        1        ... 0
            segment_ids  1    1       1    1             1             1    2        2        ... 0
        """
        *inputs, targets, weights = self._load(number)
        return dict(zip(INPUTS, inputs, strict=True)), targets, weights.astype(np.float32)

    def dataset(self, start: int = 0, stop: int | None = None) -> Any:
        """The batches from number `start` on as a `tf.data.Dataset` with static shapes, prepared ahead of use."""
        shape = (len(range(self.host, self.batch_size, self.num_hosts)), self.context_length)

        def finish(*parts: Any) -> Any:
            import tensorflow as tf

            *inputs, targets, weights = parts
            return dict(zip(INPUTS, inputs, strict=True)), targets, tf.cast(weights, tf.float32)

        return numbered_dataset(self._load, finish, [shape] * (len(INPUTS) + 2), start, stop)

    def in_order(self) -> Iterator[tuple[list[list[int]], tuple[np.ndarray, ...]]]:
        """Every row once, to measure by: the numbers of the examples in each row of a batch, and the batch's token ids,
        positions, segment ids, targets and weights, all int32; the last batch is filled up with empty rows."""
        for start in range(0, len(self.rows), self.batch_size):
            rows = self.rows[start : start + self.batch_size]
            yield rows, self.fill([*rows, *[[]] * (self.batch_size - len(rows))])

    def most_trained(self, rows: int) -> int:
        """How many trained tokens so many rows of a batch have at most."""
        trained = np.add.reduceat(self.examples.trained, self.examples.starts, dtype=np.int64)
        counts = sorted((int(trained[row].sum()) for row in self.rows), reverse=True)
        times = 1 + -(-self.batch_size // len(counts))  # that a row may be in a batch, in epochs behind one another
        return sum(counts[i // times] for i in range(rows))

    def _load(self, number: int) -> tuple[np.ndarray, ...]:
        return self.fill(self.rows_of(number))

    def rows_of(self, number: int) -> list[list[int]]:
        """The numbers of the examples in each row of batch `number`."""
        draws = np.arange(number * self.batch_size, (number + 1) * self.batch_size)[self.host :: self.num_hosts]
        epochs = draws // len(self.rows)
        index = np.empty(len(draws), np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            index[here] = permute(draws[here] % len(self.rows), len(self.rows), keyed(self.seed, epoch))
        return [self.rows[place] for place in index.tolist()]

    def fill(self, rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, ...]:
        """Rows of these examples: token ids, positions, segment ids, targets and weights."""
        token_ids, positions, segment_ids, targets, weights = np.zeros((5, len(rows), self.context_length), np.int32)
        token_ids[:] = targets[:] = self.padding_id
        starts, ends = self.examples.starts, self.examples.ends
        for row, examples in enumerate(rows):
            filled = 0
            for segment, example in enumerate(examples, 1):
                start, end = starts[example], ends[example]
                to = slice(filled, filled + end - start - 1)
                token_ids[row, to] = self.examples.tokens[start : end - 1]
                targets[row, to] = self.examples.tokens[start + 1 : end]
                weights[row, to] = self.examples.trained[start + 1 : end]
                positions[row, to] = np.arange(end - start - 1)
                segment_ids[row, to] = segment
                filled = to.stop
        return token_ids, positions, segment_ids, targets, weights


def pack(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Put items into rows of `capacity` by best fit, longest first: each goes where the least room is left behind it.

    Args:
        lengths: int [items], each at most `capacity`.
        capacity: Of a row.

    Returns:
        The items of each row, in ascending order; rows in the order of their first items.

    Source: Johnson 1974, "Fast algorithms for bin packing"; for sequences, Ding et al. 2024,
    https://arxiv.org/abs/2404.10830.
    """
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(capacity + 1)]  # by the room left
    rooms: list[int] = []  # those that a row has, ascending
    for item in np.argsort(-np.asarray(lengths), kind="stable").tolist():
        length = int(lengths[item])
        found = bisect.bisect_left(rooms, length)
        if found == len(rooms):
            row, room = len(rows), capacity
            rows.append([])
        else:
            room = rooms[found]
            row = open_rows[room].pop()
            if not open_rows[room]:
                del rooms[found]
        rows[row].append(item)
        left = room - length
        if left:
            if not open_rows[left]:
                bisect.insort(rooms, left)
            open_rows[left].append(row)
    return sorted((sorted(row) for row in rows), key=lambda row: row[0])
