"""What a model makes of a task's records: its answers, the probabilities of labels and of the reference answers."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from gpt_keras.data.conversations import PLAIN_TEMPLATE, Message, encode_conversation, encode_for_training, turn_ends
from gpt_keras.data.errors import InputError
from gpt_keras.data.finetuning import Examples
from gpt_keras.decoding import bucket
from gpt_keras.evaluation.example_scoring import ExampleScorer
from gpt_keras.evaluation.scoring import Scored, Scorer
from gpt_keras.generation import Generator
from gpt_keras.language_model import LanguageModel
from gpt_keras.sampling_options import SamplingOptions
from gpt_keras.tasks.task import Outputs, Record, Task

PACKED_ROW = 256
"""Tokens of a row that short records are packed into."""

Report = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


@dataclass
class Answerer:
    """Answers a task's records with one model.

    Attributes:
        lm: The model.
        task: The task.
        batch_size: Records at a time.
        cut: How many conversations lost tokens from the left, because they did not fit the model's context.
    """

    lm: LanguageModel
    task: Task
    batch_size: int = 16
    cut: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.tokenizer = self.lm.text_tokenizer
        self.template = self.tokenizer.chat_template or PLAIN_TEMPLATE
        ends = self.tokenizer.end_ids | turn_ends(self.tokenizer, self.template)
        self._generator = Generator(None, self.tokenizer, ends, self.lm.decoder)
        self._scorer = Scorer(self.lm.model, self.lm.padding_id, self.batch_size)

    def outputs(
        self,
        records: Sequence[Record],
        options: SamplingOptions = SamplingOptions(),
        generate: bool = True,
        likelihoods: bool = True,
        report: Report = lambda words, done, total: None,
    ) -> Outputs:
        """All that the task can be measured by.

        Args:
            records: With the task's fields.
            options: For the answers: temperature, number of sequences, ... By default up to the task's own length.
            generate: Whether answers are wanted, which take the most time.
            likelihoods: Whether those of the reference answers are.
            report: Told how far it is.

        Raises:
            InputError: A record is not what the task expects, or the model cannot read it.
        """
        nats, tokens = self._likelihoods(records, report) if likelihoods else (None, None)
        choices = self.task.choices(records)
        return Outputs(
            answers=self._answers(records, options, report) if generate else None,
            choice_probabilities=self._choice_probabilities(records, choices, report) if choices else None,
            nats=nats,
            tokens=tokens,
        )

    def _likelihoods(self, records: Sequence[Record], report: Report) -> tuple[np.ndarray, np.ndarray]:
        """Nats and number of the tokens that the assistant says in each record: all turns in one pass, several records
        in a row; of a conversation that does not fit the context, each turn with what fits in front of it."""
        encoded = [self._encoded(self.task.messages(record)) for record in records]
        room = self.lm.config.context_length + 1
        fits = np.array([len(ids) <= room and any(trained) and not trained[0] for ids, trained in encoded], bool)
        nats, tokens = np.zeros(len(records)), np.zeros(len(records), np.int64)
        widths = np.array([min(bucket(len(ids) - 1, PACKED_ROW), room - 1) for ids, _ in encoded])
        for width in sorted(set(widths[fits].tolist())):  # one long record does not make all rows long
            numbers = np.flatnonzero(fits & (widths == width))
            examples, rows = Examples.of([encoded[number] for number in numbers]), min(self.batch_size, len(numbers))
            scorer = ExampleScorer(self.lm.model, examples, width, rows, self.lm.padding_id)
            nats[numbers] = scorer.nats(functools.partial(report, f"answers, up to {width} tokens"))
            tokens[numbers] = scorer.trained
        others = [number for number, whole in enumerate(fits) if not whole]
        pairs = [(number, pair) for number in others for pair in _turns(*encoded[number])]
        scores = self._score([pair for _, pair in pairs], "longer conversations", report)
        for (number, _), score in zip(pairs, scores, strict=True):
            nats[number] += score.nats
            tokens[number] += score.tokens
        return nats, tokens

    def _choice_probabilities(
        self, records: Sequence[Record], choices: Sequence[Sequence[str]], report: Report
    ) -> np.ndarray:
        """The probability of each choice as the whole answer, [records, choices]; every row adds up to 1."""
        pairs = []
        for record, answers in zip(records, choices, strict=True):
            prompt = self.task.prompt(record)
            for answer in answers:
                *_, last = _turns(*self._encoded([*prompt, {"role": "assistant", "content": answer}]))
                pairs.append(last)
        nats = np.array([score.nats for score in self._score(pairs, "choices", report)]).reshape(len(records), -1)
        odds = np.exp(nats.min(1, keepdims=True) - nats)
        return odds / odds.sum(1, keepdims=True)

    def _encoded(self, messages: Sequence[Message]) -> tuple[list[int], list[bool]]:
        return encode_for_training(self.tokenizer, messages, self.template)

    def _score(self, pairs: Iterable[tuple[list[int], list[int]]], words: str, report: Report) -> list[Scored]:
        """The scores of turns; what does not fit the context loses tokens from the left."""
        fitting = []
        room = self.lm.config.context_length
        for context, answer in pairs:
            self.cut += len(context) + len(answer) > room + 1
            fitting.append((context or [self.lm.padding_id], answer[-room:]))
        return self._scorer.score(fitting, lambda done: report(words, done, len(fitting)))

    def _answers(self, records: Sequence[Record], options: SamplingOptions, report: Report) -> list[list[str]]:
        context = self.lm.config.context_length
        length = min(options.max_new_tokens or self.task.max_new_tokens, context // 2)
        options = SamplingOptions(**{**vars(options), "max_new_tokens": length})
        prompts = []
        for record in records:
            ids = encode_conversation(self.tokenizer, self.task.prompt(record), self.template)
            self.cut += len(ids) + length - 1 > context
            prompts.append(ids[-(context - length + 1) :])
        order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
        answers: list[list[str]] = [[] for _ in prompts]
        before: Counter[tuple[int, ...]] = Counter()
        for start in range(0, len(order), self.batch_size):
            numbers = order[start : start + self.batch_size]
            found = self._generator.complete([prompts[number] for number in numbers], options, before)
            for number, completions in zip(numbers, found, strict=True):
                texts = [completion.text.strip() for completion in completions]
                answers[number] = self.task.best_first(records[number], texts) if len(texts) > 1 else texts
            report("answers", start + len(numbers), len(order))
        return answers


def _turns(ids: list[int], trained: list[bool]) -> Iterator[tuple[list[int], list[int]]]:
    """Each of the assistant's turns: the tokens before it, and its own, with the one that ends it."""
    edges = np.flatnonzero(np.diff([False, *trained, False])).tolist()
    for start, stop in zip(edges[0::2], edges[1::2], strict=True):
        yield ids[:start], ids[start:stop]


def text_likelihoods(
    lm: LanguageModel, texts: Sequence[str], batch_size: int = 16, report: Report = lambda words, done, total: None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Nats, tokens and UTF-8 bytes of each text: from its begin token on, in windows of the context's length that do
    not overlap, every token scored once.

    Raises:
        InputError: The model has no tokenizer.
    """
    tokenizer, length = lm.text_tokenizer, lm.config.context_length
    first = next((i for i in (tokenizer.begin_id, tokenizer.end_id) if i is not None), lm.padding_id)
    pairs, owners = [], []
    for number, text in enumerate(texts):
        ids = [first, *tokenizer.encode(text)]
        for start in range(1, len(ids), length):
            pairs.append(([ids[start - 1]], ids[start : start + length]))
            owners.append(number)
    if not pairs:
        raise InputError("there is no text to score")
    scorer = Scorer(lm.model, lm.padding_id, batch_size)
    scores = scorer.score(pairs, lambda done: report("texts", done, len(pairs)))
    nats = np.bincount(owners, [score.nats for score in scores], len(texts))
    tokens = np.bincount(owners, [score.tokens for score in scores], len(texts))
    return nats, tokens, np.array([len(text.encode()) for text in texts])
