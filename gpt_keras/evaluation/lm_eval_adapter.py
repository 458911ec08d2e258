"""A model of ours in lm-evaluation-harness (the extra `eval`), with the numbers that its own `hf` model gives.

    python -m gpt_keras.evaluation.lm_eval_adapter --model gpt_keras --model_args path=MODEL --tasks TASK

is the harness's own command `lm_eval`, which looks for models nowhere but in itself, with this one added; in Python:

    lm_eval.simple_evaluate(GPTKerasLM(gpt_keras.load(MODEL)), tasks=[TASK])

Source: https://github.com/EleutherAI/lm-evaluation-harness, version 0.4.13: `lm_eval/models/huggingface.py`.
"""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from gpt_keras import command
from gpt_keras.data.conversations import Message, render
from gpt_keras.data.errors import InputError
from gpt_keras.data.hub_tokenizer import HubTokenizer
from gpt_keras.data.tokenizer import Tokenizer, TokenizerSettings
from gpt_keras.evaluation.scoring import Scorer
from gpt_keras.language_model import LanguageModel, load
from gpt_keras.sampling_options import SamplingOptions

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models import utils as model_utils  # makes the harness's own models known too
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    problem = InputError(
        f"lm-evaluation-harness cannot be imported ({error}): pip install 'gpt_keras[eval]', which brings lm-eval"
    )
    if __name__ == "__main__":
        sys.exit(command.failed(problem))
    raise problem from error

DEFAULT_BATCH_SIZE = 16
_OPTIONS = (
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "num_beams",
    "length_penalty",
    "min_new_tokens",
    "seed",
)
"""Fields of `SamplingOptions` that a task's `generation_kwargs` may name, as they do for transformers."""
_CUT = "\ufdd3 "
"""A noncharacter that marks where a conversation's last message ends, and a space to see if the template strips it."""


@register_model("gpt_keras")
class GPTKerasLM(TemplateLM):
    """A `LanguageModel` behind the harness's interface.

    Texts are tokenized as the harness's `hf` model does: the text of a special token is that token.

    Args:
        lm: The model; or give `path`.
        path: Where `gpt_keras.load` finds it.
        dtype: As for `gpt_keras.load`.
        batch_size: Rows at a time; `auto` is 16.
        add_bos_token: Whether texts begin with the begin token. By default as transformers reads the model's folder,
            which for a `tokenizer.model` of this project's is no, although its models are trained with it.
        max_gen_toks: Most new tokens where a task says nothing.
        device: Given by the harness, and not used: the backend chooses it.
        max_batch_size: Not used either.

    Raises:
        InputError: Neither or both of `lm` and `path` are given, the model has no tokenizer, or an option is wrong.
    """

    def __init__(
        self,
        lm: LanguageModel | None = None,
        path: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = DEFAULT_BATCH_SIZE,
        add_bos_token: bool | None = None,
        max_gen_toks: int = 256,
        device: str | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if (lm is None) == (path is None):
            raise InputError("give the model, or path=MODEL to load it from")
        self.lm = lm if lm is not None else load(str(path), dtype)
        self.tokenizer = self.lm.text_tokenizer
        self.batch_size = _batch_size(batch_size)
        self.max_gen_toks = max_gen_toks
        self._adds_begin = _transformers_adds_begin(self.tokenizer) if add_bos_token is None else add_bos_token
        self._scorer = Scorer(self.lm.model, self.lm.padding_id, self.batch_size)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness notes down about the model."""
        return {"model_num_parameters": self.lm.model.count_params(), "model_dtype": self.lm.model.compute_dtype}

    # === Tokens ===

    @property
    def max_length(self) -> int:
        return self.lm.config.context_length

    @property
    def eot_token_id(self) -> int | None:
        return self.tokenizer.end_id

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text that has nothing before it: the begin token, or else the end token.

        Raises:
            InputError: The tokenizer has neither.
        """
        for token in (self.tokenizer.begin_id, self.tokenizer.end_id):
            if token is not None:
                return token
        raise InputError("the tokenizer has neither a begin nor an end token to put before a text")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text.

        Args:
            string: The text.
            add_special_tokens: Whether the begin token comes first, where this model's texts have one; by default
                unless the text has it already.
        """
        ids = self.tokenizer.encode(string, special=True) if string else []
        begin = self.tokenizer.begin_id
        if not self._adds_begin or begin is None or add_special_tokens is False:
            return ids
        if add_special_tokens is None and string.startswith(self.tokenizer.piece(begin)):
            return ids
        return [begin, *ids]

    # === Likelihoods ===

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        pairs = [(context or [self.prefix_token_id], continuation) for _, context, continuation in requests]
        scored = self._scores(pairs, disable_tqdm)
        answers = [(-found.nats, found.greedy) for found in scored]
        for (texts, _, _), answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of whole texts, in windows that overlap in one token.

        As with the `hf` model, a tokenizer that begins texts with the begin token is asked for that token too: it is
        scored behind the prefix token, which is the same one.
        """
        pairs: list[tuple[list[int], list[int]]] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            for window in map(make_disjoint_window, windows):
                pairs.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, found in zip(owners, self._scores(pairs, disable_tqdm), strict=True):
            totals[owner] -= found.nats
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _scores(self, pairs: Sequence[tuple[list[int], list[int]]], quiet: bool) -> list[Any]:
        with tqdm(total=len(pairs), disable=quiet, desc="Scoring") as bar:
            return self._scorer.score(pairs, lambda done: bar.update(done - bar.n))

    # === Texts ===

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop string, the end token or the most tokens; the stop string is cut off.

        A context loses tokens from the left where it leaves no room for so many new ones. What a task does not say is
        off; transformers, by contrast, samples from the 50 most probable tokens unless it is told otherwise. A context
        that comes several times is sampled with another seed each time.

        Args:
            requests: Of contexts and `generation_kwargs`: `until`, `max_gen_toks`, `do_sample`, `temperature` and the
                fields of `SamplingOptions` that transformers has too.
            disable_tqdm: Whether to show no progress.

        Raises:
            InputError: More new tokens than fit the context are asked for, or an option that is unknown or wrong.
        """
        texts = [""] * len(requests)
        before: Counter[tuple[SamplingOptions, str]] = Counter()
        groups: dict[tuple[SamplingOptions, tuple[str, ...]], list[tuple[int, list[int]]]] = {}
        for number, request in enumerate(requests):
            context, asked = request.args
            options, stop = self._options(asked)
            if options.temperature > 0.0:
                before[options, context] += 1
                options = replace(options, seed=options.seed + before[options, context] - 1)
            room = self.max_length - (options.max_new_tokens or 0)
            if room < 1:
                raise InputError(
                    f"{options.max_new_tokens} new tokens leave no room for a prompt in the model's context of "
                    f"{self.max_length}: lower max_gen_toks"
                )
            ids = (self.tok_encode(context) or [self.prefix_token_id])[-room:]
            groups.setdefault((options, stop), []).append((number, ids))
        with tqdm(total=len(requests), disable=disable_tqdm, desc="Generating") as bar:
            for (options, stop), rows in groups.items():
                rows.sort(key=lambda row: len(row[1]), reverse=True)
                for start in range(0, len(rows), self.batch_size):
                    batch = rows[start : start + self.batch_size]
                    found = self.lm.generator.complete([ids for _, ids in batch], options)
                    for (number, _), (completion, *_) in zip(batch, found, strict=True):
                        text = self.tokenizer.decode(completion.token_ids)
                        texts[number] = model_utils.postprocess_generated_text(text, list(stop), None)
                        self.cache_hook.add_partial("generate_until", requests[number].args, texts[number])
                    bar.update(len(batch))
        return texts

    def _options(self, asked: Mapping[str, Any]) -> tuple[SamplingOptions, tuple[str, ...]]:
        """A task's `generation_kwargs` as options, and the strings that end a text."""
        given: dict[str, Any] = {**model_utils.normalize_gen_kwargs(dict(asked), self.max_gen_toks)}
        end = self.tokenizer.end_id
        until = given.pop("until") + ([] if end is None else [self.tokenizer.piece(end)])
        stop = tuple(text for text in until if text)
        temperature = float(given.pop("temperature", 0.0))
        options = {
            "temperature": temperature if given.pop("do_sample") else 0.0,
            "max_new_tokens": given.pop("max_gen_toks"),
            # Beams end at an end token or the most tokens alone; what follows a stop string is cut off afterwards.
            "stop": () if given.get("num_beams", 1) > 1 else stop,
        }
        unknown = sorted(given.keys() - set(_OPTIONS))
        if unknown:
            raise InputError(f"generation_kwargs has {unknown[0]}, which is not one of {', '.join(_OPTIONS)}")
        return SamplingOptions(**options, **given), stop

    # === Conversations ===

    @property
    def tokenizer_name(self) -> str:
        """Part of the key under which the harness keeps the prompts that it made with the chat template."""
        said = f"{self.tokenizer.fingerprint}{self.tokenizer.chat_template}"
        return f"gpt_keras-{hashlib.sha256(said.encode()).hexdigest()[:16]}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's chat template; `None` where none is wanted.

        Raises:
            InputError: It has none, or it is asked for by name.
        """
        if not chat_template:
            return None
        if isinstance(chat_template, str):
            raise InputError(f"only the model's one chat template can be used, not one named {chat_template!r}")
        return self._template()

    def apply_chat_template(self, chat_history: list[Message], add_generation_prompt: bool = True) -> str:
        """A conversation as a prompt.

        Args:
            chat_history: The messages.
            add_generation_prompt: Whether the assistant's turn is opened; else the last message stays open, to be
                continued.

        Raises:
            InputError: The model has no chat template, or it does not take the conversation, not even without what the
                system says.
        """
        try:
            return self._render(chat_history, add_generation_prompt)
        except InputError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            return self._render(rest, add_generation_prompt)

    def _render(self, messages: Sequence[Message], reply: bool) -> str:
        template = self._template()
        if reply:
            return render(template, messages, self.tokenizer)
        last = {**messages[-1], "content": messages[-1]["content"] + _CUT}
        text = render(template, [*messages[:-1], last], self.tokenizer, reply=False)
        before, mark, behind = text.rpartition(_CUT.strip())
        if not mark:
            raise InputError("the chat template does not show the last message, so it cannot be continued")
        return before if behind.startswith(_CUT[1:]) else before.rstrip()

    def _template(self) -> str:
        if not self.tokenizer.chat_template:
            raise InputError("this model has no chat template: leave --apply_chat_template away")
        return self.tokenizer.chat_template


def _transformers_adds_begin(tokenizer: Tokenizer) -> bool:
    """Whether texts begin with the begin token by what the tokenizer's folder, or the tokenizer.json in it, says."""
    settings: TokenizerSettings = getattr(tokenizer, "settings", TokenizerSettings({}))
    content = settings.files.get("tokenizer.json")
    if settings.adds_begin or content is None:
        return bool(settings.adds_begin)
    return HubTokenizer(content, settings=replace(settings, adds_begin=None)).adds_begin


def _batch_size(value: int | str) -> int:
    if str(value).startswith("auto"):
        return DEFAULT_BATCH_SIZE
    try:
        return int(value)
    except ValueError as error:
        raise InputError(f"batch_size must be a number or auto, not {value}") from error


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        sys.exit(command.failed(error))
