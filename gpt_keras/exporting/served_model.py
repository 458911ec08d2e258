"""The module that a SavedModel is made of: a graph for each signature."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from gpt_keras.data.conversations import turn_ends
from gpt_keras.data.errors import InputError
from gpt_keras.data.graph_tokenizer import GraphTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.graph_chat import GraphChat
from gpt_keras.exporting.graph_generation import OPTION_SPECS, Generated, GraphGenerator, GraphOptions
from gpt_keras.exporting.graph_scoring import GraphScorer
from gpt_keras.exporting.held_weights import HeldWeights, WeightsDtype
from gpt_keras.model import GPT

Tensor = Any


class ServedModel(tf.Module):
    """What is saved: the weights, once, the tokenizer, and a graph for each signature.

    Every input and output has the batch as its first dimension. The options of `generate` and `chat` may be left out in
    a request to TF Serving, whose defaults they have then; one row of an option is that of all rows.

        signature         inputs                                    outputs
        serving_default   text                                      generated_text, greedy
        generate          text, options                             generated_text, prompt_tokens, generated_tokens,
                                                                    finish_reason, truncated
        chat              roles, contents [batch, turns], options   reply, and the rest as generate
        score             text                                      log_probability, tokens, perplexity, truncated,
                                                                    token_ids, token_log_probabilities [batch, tokens]
        classify          text, labels [batch, labels]              label, probabilities, log_probabilities
        embed             text                                      embedding [batch, hidden_dim], truncated
        tokenize          text                                      token_ids [batch, tokens], tokens
        detokenize        token_ids [batch, tokens]                 text

    Options: max_new_tokens, temperature (0 is greedy), top_k, top_p, min_p, repetition_penalty, seed, and stop [batch,
    strings]. Rows of token ids are filled up with -1, of their log-probabilities with 0, of turns, labels and stop
    strings with empty ones.

    Args:
        model: Built on the TensorFlow backend, in float32.
        tokenizer: Its tokenizer.
        max_new_tokens: The default of the option, and what serving_default generates.
        weights: How matrices are stored.

    Attributes:
        functions: By the signature's name.
        chat_missing: Why there is no signature chat; empty where there is.

    Raises:
        InputError: The tokenizer cannot be part of a graph.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_new_tokens: int,
        weights: WeightsDtype = "float32",
    ) -> None:
        super().__init__()
        self.weights = HeldWeights(model, weights)
        self.tokenizer = graph_tokenizer = GraphTokenizer(tokenizer)
        self._context, self._max_new_tokens = model.config.context_length, max_new_tokens
        self._end_ids = tokenizer.end_ids
        parts = (model, self.weights, graph_tokenizer)
        self._generator, self._scorer = GraphGenerator(*parts, max_new_tokens), GraphScorer(*parts)
        self.functions = {
            "serving_default": self._function(self._serve, _TEXT),
            "generate": self._function(self._generate, _TEXT, options=True),
            "score": self._function(self._score, _TEXT),
            "classify": self._function(self._classify, _TEXT, _strings("labels")),
            "embed": self._function(self._embed, _TEXT),
            "tokenize": self._function(self._tokenize, _TEXT),
            "detokenize": self._function(self._detokenize, tf.TensorSpec([None, None], tf.int32, "token_ids")),
        }
        self.chat_missing = ""
        try:
            self._chat_prompts = GraphChat(graph_tokenizer)
        except InputError as error:
            self.chat_missing = str(error)
        else:
            self._turn_ends = self._end_ids | turn_ends(tokenizer)
            self.functions["chat"] = self._function(self._chat, _strings("roles"), _strings("contents"), options=True)

    def _function(self, call: Callable[..., Any], *inputs: tf.TensorSpec, options: bool = False) -> Any:
        """The graph of a signature. The options that it takes have defaults, which the SavedModel keeps."""
        specs = [*inputs, *OPTION_SPECS.values()] if options else inputs
        defaults = self._defaults if options else {}

        def traced(*values: Tensor) -> Any:
            return call(**{spec.name: value for spec, value in zip(specs, values, strict=True)})

        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        names = [inspect.Parameter(spec.name, kind, default=defaults.get(spec.name, empty)) for spec in specs]
        traced.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
        return tf.function(traced, input_signature=specs, autograph=False)

    @property
    def _defaults(self) -> dict[str, Tensor]:
        """The options of a row that asks for nothing."""
        return {
            "max_new_tokens": tf.constant([self._max_new_tokens]),
            "temperature": tf.constant([0.0]),
            "top_k": tf.constant([0]),
            "top_p": tf.constant([1.0]),
            "min_p": tf.constant([0.0]),
            "repetition_penalty": tf.constant([1.0]),
            "seed": tf.constant([0], tf.int64),
            "stop": tf.constant([[""]]),
        }

    def _serve(self, text: Tensor) -> dict[str, Tensor]:
        return {"generated_text": self._continue(text, **self._defaults).text}

    def _generate(self, text: Tensor, **given: Tensor) -> dict[str, Tensor]:
        return _outputs("generated_text", self._continue(text, **given))

    def _continue(self, text: Tensor, **given: Tensor) -> Generated:
        options = GraphOptions.of(tf.shape(text)[0], self._context, **given)
        return self._generator.generate(self.tokenizer.encode_prompt(text), options, self._end_ids)

    def _chat(self, roles: Tensor, contents: Tensor, **given: Tensor) -> dict[str, Tensor]:
        options = GraphOptions.of(tf.shape(roles)[0], self._context, **given)
        prompts = self._chat_prompts.encode(roles, contents)
        return _outputs("reply", self._generator.generate(prompts, options, self._turn_ends))

    def _score(self, text: Tensor) -> dict[str, Tensor]:
        scores = self._scorer.score(text)
        tokens = tf.cast(scores.tokens.row_lengths(), tf.int32)
        total = tf.reduce_sum(scores.log_probabilities, axis=1)
        return {
            "log_probability": total,
            "tokens": tokens,
            "perplexity": tf.exp(-total / tf.cast(tf.maximum(tokens, 1), tf.float32)),
            "token_ids": scores.tokens.to_tensor(-1),
            "token_log_probabilities": scores.log_probabilities.to_tensor(0.0),
            "truncated": scores.truncated,
        }

    def _classify(self, text: Tensor, labels: Tensor) -> dict[str, Tensor]:
        labels = tf.broadcast_to(labels, [tf.shape(text)[0], tf.shape(labels)[1]])
        found = self._scorer.choices(text, labels)
        found = tf.where(tf.strings.length(labels) > 0, found, tf.float32.min)
        best = tf.argmax(found, axis=1)
        return {
            "label": tf.gather(labels, best, batch_dims=1),
            "probabilities": tf.nn.softmax(found, axis=1),
            "log_probabilities": found,
        }

    def _embed(self, text: Tensor) -> dict[str, Tensor]:
        embedding, truncated = self._scorer.embed(text)
        return {"embedding": embedding, "truncated": truncated}

    def _tokenize(self, text: Tensor) -> dict[str, Tensor]:
        ids = self.tokenizer.encode(text)
        return {"token_ids": ids.to_tensor(-1), "tokens": tf.cast(ids.row_lengths(), tf.int32)}

    def _detokenize(self, token_ids: Tensor) -> dict[str, Tensor]:
        known = tf.logical_and(token_ids >= 0, token_ids < self.tokenizer.tokenizer.vocabulary_size)
        return {"text": self.tokenizer.decode(tf.ragged.boolean_mask(token_ids, known))}


_TEXT = tf.TensorSpec([None], tf.string, "text")


def _strings(name: str) -> tf.TensorSpec:
    return tf.TensorSpec([None, None], tf.string, name)


def _outputs(text: str, done: Generated) -> dict[str, Tensor]:
    return {
        text: done.text,
        "prompt_tokens": done.prompt_tokens,
        "generated_tokens": done.generated_tokens,
        "finish_reason": done.finish_reason,
        "truncated": done.truncated,
    }
