"""Text from a model: choose a token, append it, ask the model for the next, until a row ends.

Decoder (decoding)   logits of every row, the cache behind them
sampling             logits to a token, compiled
token_rules          which tokens a row may take next, on the host
continuation         one row: its text in parts, what ends it
this module          the loop
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from keras import ops

from gpt_keras import sampling, structured, token_rules
from gpt_keras.compilation import compile_function
from gpt_keras.continuation import Completion, Continuation, StoppingStream
from gpt_keras.data.errors import InputError
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.decoding import Decoder, bucket
from gpt_keras.model import GPT
from gpt_keras.rows import RowDecoder, Rows
from gpt_keras.sampling_options import DEFAULT_NEW_TOKENS, SamplingOptions


class Generator:
    """Generates from one model; keeps its compiled functions between calls.

    Args:
        model: Reads and continues token ids; `None` with a decoder.
        tokenizer: Its tokenizer; `None` for token ids alone, where no token ends a row.
        end_ids: What ends a row, instead of the tokenizer's end tokens.
        decoder: What runs the model instead, and may have compiled its steps already.
    """

    def __init__(
        self,
        model: GPT | None,
        tokenizer: Tokenizer | None,
        end_ids: frozenset[int] | None = None,
        decoder: RowDecoder | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        ends = end_ids if end_ids is not None else tokenizer.end_ids if tokenizer else frozenset()
        found: Any = Decoder(model) if model is not None else decoder  # also a `SlotDecoder` where slots are used
        self.decoder = found
        self.config = self.decoder.config
        self.end_ids = frozenset(i for i in ends if 0 <= i < self.config.vocabulary_size)  # others never come
        self._choosers: dict[tuple[str, ...], Callable[..., Any]] = {}
        self._vocabulary: structured.Vocabulary | None = None
        self._making = threading.Lock()

    @property
    def num_compilations(self) -> int:
        """How many different shapes of the model's step have been compiled so far."""
        return self.decoder.num_compilations

    def generate(self, prompts: Sequence[str], options: SamplingOptions = SamplingOptions()) -> list[str]:
        """The first continuation of each prompt, without the prompt itself.

        Raises:
            InputError: A prompt does not fit the context, or not with so many new tokens.
        """
        return [found[0].text for found in self.complete([self.encode(prompt) for prompt in prompts], options)]

    def complete(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions = SamplingOptions(),
        before: Counter[tuple[int, ...]] | None = None,
    ) -> list[list[Completion]]:
        """All continuations of each prompt, `num_sequences` of them, the best first with beams.

        Args:
            prompts: Token ids of each prompt, at least one each.
            options: For all of them.
            before: How often each prompt came before, where these are some of many; these are counted too. Equal
                prompts get different texts by their number.

        Raises:
            InputError: A prompt does not fit the context, or not with so many new tokens.
        """
        if options.num_beams > 1:
            from gpt_keras.beam_search import search

            return search(self, prompts, options)
        sequences: list[Continuation] = []
        for step in self.run(prompts, options, before):
            sequences = step
        done = [
            Completion(
                s.text, s.tokens, s.finish_reason or "", s.log_probabilities if options.log_probabilities else None
            )
            for s in sequences
        ]
        number = options.num_sequences
        return [done[i : i + number] for i in range(0, len(done), number)]

    def stream(self, prompt: str, options: SamplingOptions = SamplingOptions()) -> Iterator[str]:
        """The continuation of `prompt`, in parts as they come; none splits a character."""
        return self.stream_tokens(self.encode(prompt), options)

    def stream_tokens(self, prompt: Sequence[int], options: SamplingOptions = SamplingOptions()) -> Iterator[str]:
        """As `stream`, for a prompt given as token ids."""
        if options.num_beams > 1 or options.num_sequences > 1:
            raise InputError("only a single sequence without beams can be streamed")
        yield from (sequence.delta for (sequence,) in self.run([prompt], options) if sequence.delta)

    def tokens(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions = SamplingOptions()
    ) -> Iterator[list[int | None]]:
        """One step after another, the next token of every sequence; `None` once it has ended."""
        lengths = [0] * len(prompts) * options.num_sequences
        for sequences in self.run(prompts, options):
            new = [s.tokens[-1] if len(s.tokens) > n else None for s, n in zip(sequences, lengths, strict=True)]
            lengths = [len(s.tokens) for s in sequences]
            if any(token is not None for token in new):
                yield new

    def encode(self, prompt: str) -> list[int]:
        """Token ids of a prompt.

        Raises:
            InputError: The model came without a tokenizer.
        """
        if self.tokenizer is None:
            raise InputError("this model has no tokenizer: give it token ids instead of text")
        return self.tokenizer.encode_prompt(prompt)

    def run(
        self,
        prompts: Sequence[Sequence[int]],
        options: SamplingOptions,
        before: Counter[tuple[int, ...]] | None = None,
    ) -> Iterator[list[Continuation]]:
        """The loop: all sequences, `num_sequences` of each prompt side by side, after every step; see `complete`."""
        if not prompts:
            return
        sequences = self._begin(prompts, options, Counter() if before is None else before)
        room = max(sequence.limit for sequence in sequences)
        self._slide(sequences)
        rows = self.decoder.start([self._window(s) for s in sequences[:: options.num_sequences]], room)
        if options.num_sequences > 1:
            rows.take([i for i in range(len(prompts)) for _ in range(options.num_sequences)])
        while True:
            chosen = self._choose(rows, sequences, options)
            ahead = self._may_run_ahead(rows, sequences, options)
            if ahead:
                rows.advance(chosen[0])  # the device is at work while the tokens are looked at here
            tokens, log_probabilities = (np.asarray(x) for x in chosen)
            for sequence, token, value in zip(sequences, tokens, log_probabilities, strict=False):
                if sequence.finish_reason is None:
                    if options.log_probabilities and token not in self.end_ids:
                        sequence.log_probabilities.append(float(value))
                    sequence.accept(int(token), self.end_ids)
                else:
                    sequence.delta = ""
            yield sequences
            going = [sequence for sequence in sequences if sequence.finish_reason is None]
            if not going:
                return
            if ahead:
                continue
            if any(rows.lengths[i] >= self.config.context_length for i in self._going(sequences)):
                self._slide(sequences)
                rows = self.decoder.start([self._window(s) for s in sequences], room)
            else:
                rows.advance(tokens)

    def _may_run_ahead(self, rows: Rows, sequences: list[Continuation], options: SamplingOptions) -> bool:
        """Whether the next step depends on nothing that the host has to look at first, and will come at all."""
        if not self.decoder.in_background:
            return False
        going = self._going(sequences)
        free = not options.penalties and all(sequences[i].rule is None for i in going)
        fits = all(rows.lengths[i] < self.config.context_length for i in going)
        return free and fits and any(len(sequences[i].tokens) + 1 < sequences[i].limit for i in going)

    @staticmethod
    def _going(sequences: list[Continuation]) -> list[int]:
        return [i for i, sequence in enumerate(sequences) if sequence.finish_reason is None]

    def _begin(
        self, prompts: Sequence[Sequence[int]], options: SamplingOptions, before: Counter[tuple[int, ...]]
    ) -> list[Continuation]:
        sequences: list[Continuation] = []
        for row, prompt in enumerate(prompts):
            ids = [int(i) for i in prompt]
            for _ in range(options.num_sequences):
                number = before[tuple(ids)]
                before[tuple(ids)] += 1
                sequences.append(self.begin(ids, options, number, row))
        return sequences

    def begin(self, prompt: list[int], options: SamplingOptions, number: int = 0, row: int = 0) -> Continuation:
        """A row before its first step.

        Args:
            prompt: Its token ids.
            options: What is asked for; how many sequences is the caller's business.
            number: How many times the prompt came before.
            row: What the prompt is called in a message.

        Raises:
            InputError: It does not fit, or the form that is asked for cannot be kept.
        """
        limit = self.limit(row, prompt, options)
        stream = StoppingStream(self.tokenizer, options.stop) if self.tokenizer else None
        key = (options.seed, sampling.prompt_hash(prompt), number)
        return Continuation(prompt, options, key, limit, self.rule(options, limit), stream)

    def rule(self, options: SamplingOptions, limit: int) -> token_rules.TokenRule | None:
        """What restricts the tokens of one row of up to `limit` new ones, `None` where nothing does.

        Raises:
            InputError: A token is outside the vocabulary, or the form cannot be kept in so few tokens.
        """
        size, banned = self.config.vocabulary_size, set(options.banned_tokens)
        rules: list[token_rules.TokenRule] = []
        if options.regex is not None or options.json_schema is not None:
            automaton = self.vocabulary.automaton(options.regex, options.json_schema, banned)
            rules.append(structured.Form(automaton, limit))
        if options.allowed_tokens is not None:
            rules.append(token_rules.AllowedTokens(set(options.allowed_tokens) - banned, size))
        if banned:
            rules.append(token_rules.BannedTokens(banned, size))
        if options.min_new_tokens > 0 and self.end_ids:
            rules.append(token_rules.MinNewTokens(options.min_new_tokens, self.end_ids, size))
        if options.no_repeat_ngram_size > 0:
            rules.append(token_rules.NoRepeatNgrams(options.no_repeat_ngram_size, size))
        return token_rules.All(rules) if rules else None

    @property
    def vocabulary(self) -> structured.Vocabulary:
        """What tokens spell, for output in a form; made once, since automata are remembered there."""
        if self.tokenizer is None:
            raise InputError("output in a given form needs a tokenizer, and this model came without one")
        with self._making:  # threads of a server ask for it
            if self._vocabulary is None:
                texts = [self.tokenizer.token_bytes(i) for i in range(self.config.vocabulary_size)]
                self._vocabulary = structured.Vocabulary(texts, self.end_ids)
            return self._vocabulary

    def limit(self, row: int, prompt: list[int], options: SamplingOptions) -> int:
        """Most new tokens for this prompt.

        Raises:
            InputError: It does not fit.
        """
        config = self.config
        if not prompt:
            raise InputError(f"prompt {row} has no token; begin with the begin token")
        for token in prompt:
            if not 0 <= token < config.vocabulary_size:
                raise InputError(
                    f"prompt {row} has token id {token}; the model knows 0 to {config.vocabulary_size - 1}"
                )
        wanted = options.max_new_tokens
        default = max(DEFAULT_NEW_TOKENS, options.min_new_tokens)
        if options.sliding:
            return wanted or default
        room = config.context_length - len(prompt) + 1  # the last token is never read
        if room < 1:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens, which leaves no room in the model's context of "
                f"{config.context_length}: shorten it, or set sliding"
            )
        if wanted is not None and wanted > room:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens and leaves room for {room} in the model's context of "
                f"{config.context_length}, not for max_new_tokens={wanted}: lower it, or set sliding"
            )
        if options.min_new_tokens > room:
            raise InputError(
                f"prompt {row} has {len(prompt)} tokens and leaves room for {room} in the model's context of "
                f"{config.context_length}, not for min_new_tokens={options.min_new_tokens}: lower it, or set sliding"
            )
        return wanted or min(default, room)

    def _slide(self, sequences: Sequence[Continuation]) -> None:
        """Have the model see only the newer half of its context of a text that does not fit it any more."""
        context = self.config.context_length
        for sequence in sequences:
            length = len(sequence.prompt) + len(sequence.tokens)
            if length - sequence.skipped > context:
                sequence.skipped = length - max(1, context // 2)

    def _window(self, sequence: Continuation) -> list[int]:
        """What the model sees of a text; a begin token stays where others are skipped."""
        ids = [*sequence.prompt, *sequence.tokens]
        kept = ids[sequence.skipped :]
        begin = self.tokenizer.begin_id if self.tokenizer else None
        keeps_begin = sequence.skipped and begin is not None and ids[0] == begin and len(kept) > 1
        return [ids[0], *kept[1:]] if keeps_begin else kept

    def _choose(self, rows: Rows, sequences: list[Continuation], options: SamplingOptions) -> tuple[Any, Any]:
        """The next token of every row, int32 [batch], and where asked for its log-probability; both on the device."""
        inputs = self.rules(rows.batch_size, sequences, options)
        nothing = np.zeros(rows.batch_size, np.float32)
        if not inputs and options.temperature == 0.0 and not options.log_probabilities:
            return rows.best, nothing
        if options.temperature > 0.0:
            uniform = np.zeros(rows.batch_size, np.float32)
            positions = [len(s.tokens) for s in sequences]
            uniform[: len(sequences)] = sampling.uniforms([s.key for s in sequences], positions)
            inputs |= {"uniform": uniform, "temperature": np.float32(options.temperature)}
            cuts = {
                "top_k": (np.int32(options.top_k), 0),
                "top_p": (np.float32(options.top_p), 1.0),
                "min_p": (np.float32(options.min_p), 0.0),
            }
            inputs |= {name: value for name, (value, off) in cuts.items() if value != off}
        kind = "log_probability" if options.log_probabilities else "token"
        chosen = self.chooser(kind, inputs)(rows.logits, inputs)
        return (chosen, nothing) if kind == "token" else chosen

    def rules(self, batch_size: int, sequences: Sequence[Any], options: SamplingOptions) -> dict[str, Any]:
        """Inputs of the penalties and masks that are in force."""
        inputs: dict[str, Any] = {}
        if options.penalties:
            longest = max(len(s.prompt) + len(s.tokens) for s in sequences)
            history = np.full((batch_size, bucket(longest, 64)), -1, np.int32)
            num_prompt = np.zeros(batch_size, np.int32)
            for row, s in enumerate(sequences):
                ids = [*s.prompt, *s.tokens]
                history[row, : len(ids)] = ids
                num_prompt[row] = len(s.prompt)
            inputs |= {"history": history, "num_prompt": num_prompt}
            inputs |= {name: np.float32(value) for name, value in options.penalties.items()}
        if any(s.rule is not None for s in sequences):
            allowed = np.ones((batch_size, self.config.vocabulary_size), bool)
            for row, s in enumerate(sequences):
                if s.rule is not None and s.finish_reason is None:
                    remaining = s.limit - len(s.tokens)
                    mask = s.rule.allowed([*s.prompt, *s.tokens], len(s.prompt), remaining)
                    if mask is not None:
                        allowed[row] = mask
            inputs["allowed"] = allowed
        return inputs

    def chooser(self, kind: str, inputs: dict[str, Any], count: int = 0) -> Callable[..., Any]:
        """The compiled function from logits and these inputs to `token`, `log_probability` (with the token) or the
        `count` best tokens (`best`): their log-probabilities under the rules, the tokens, and their log-probabilities
        under the model alone."""
        name = (kind, str(count), *sorted(inputs))
        if name not in self._choosers:

            def choose(logits: Any, inputs: dict[str, Any]) -> Any:
                given = dict(inputs)
                if kind == "best":  # as in transformers, the rules act on log-probabilities here
                    logits = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
                raw = logits
                if "history" in given:
                    names = ("repetition_penalty", "presence_penalty", "frequency_penalty")
                    penalties = {name: given.pop(name, None) for name in names}
                    logits = sampling.penalize(logits, given.pop("history"), given.pop("num_prompt"), **penalties)
                if "allowed" in given:
                    logits = sampling.apply_mask(logits, given.pop("allowed"))
                if kind == "best":
                    values, tokens = ops.top_k(logits, count)
                    return values, tokens, ops.take_along_axis(raw, tokens, axis=-1)
                token = sampling.sample(logits, **given) if "uniform" in given else sampling.greedy(logits)
                return token if kind == "token" else (token, sampling.log_probabilities(raw, token))

            self._choosers[name] = compile_function(choose)
        return self._choosers[name]
