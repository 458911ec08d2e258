"""OpenAI's API, https://platform.openai.com/docs/api-reference, for model folders that the engine runs."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError
from starlette.requests import ClientDisconnect

from gpt_keras.data.conversations import encode_conversation
from gpt_keras.data.errors import InputError
from gpt_keras.generation import Generator
from gpt_keras.language_model import LanguageModel
from gpt_keras.sampling_options import SamplingOptions
from gpt_keras.serving import forms
from gpt_keras.serving.engine import BusyError, ClosedError, Engine, Job, Part
from gpt_keras.serving.openai_schema import MOST_TEXTS, ChatRequest, CompletionRequest

_GRACE_SECONDS = 30.0
_FORMS_AT_A_TIME = 2
_LEAST = -9999.0
"""Instead of the log-probability of what cannot be, which JSON has no number for."""
DEFAULT_COMPLETION_TOKENS = 16
"""Of /v1/completions, as OpenAI's; a chat's answer may take what is left of the context."""


class APIError(Exception):
    """A request that cannot be answered.

    Args:
        status: The HTTP status.
        message: What its sender is told.
        code: What a program is told.
        param: The field that is at fault.
    """

    TYPES = {401: "authentication_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    @property
    def body(self) -> dict[str, Any]:
        kind = self.TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "timeout")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def response(self) -> Response:
        headers = {"Retry-After": "1"} if self.status in (429, 503) else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return Response(_dump(self.body), self.status, headers, "application/json")


@dataclass
class ServedModel:
    """A model folder that is served.

    Attributes:
        name: What clients call it.
        language_model: The model.
        engine: Runs it.
    """

    name: str
    language_model: LanguageModel
    engine: Engine
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def description(self) -> dict[str, Any]:
        return {"id": self.name, "object": "model", "created": self.created, "owned_by": "gpt_keras"}


class OpenAIAPI:
    """Answers requests for the models.

    Args:
        models: By name.
        seconds: What a request may take.
        max_new_tokens: What a text may have, whatever is asked for.
    """

    def __init__(self, models: dict[str, ServedModel], seconds: float = 120.0, max_new_tokens: int = 4096) -> None:
        self.models, self._seconds, self._most = models, seconds, max_new_tokens
        self._forms = asyncio.Semaphore(_FORMS_AT_A_TIME)

    def list_models(self) -> dict[str, Any]:
        return {"object": "list", "data": [model.description for model in self.models.values()]}

    async def chat(self, request: Request, body: bytes) -> Response:
        """Answer a POST to /v1/chat/completions."""
        asked: ChatRequest = await asyncio.to_thread(_parsed, ChatRequest, body)
        model = self._model(asked.model)

        def begin() -> list[Job]:
            try:
                prompt = encode_conversation(lm.text_tokenizer, [message.as_message for message in asked.messages])
            except InputError as error:
                raise APIError(400, str(error), param="messages") from error
            alternatives = (asked.top_logprobs or 0) if asked.logprobs else None
            return self._jobs(asked, model, [prompt], generator, asked.most_tokens, alternatives)

        lm = model.language_model
        try:
            generator = lm.chat_generator
        except InputError as error:  # its template is damaged
            raise APIError(400, str(error), param="model") from error
        jobs = await self._begun(request, begin, generator, asked.schema_of_text)
        style = _Chat(model, jobs, asked.logprobs or False, asked.tells_usage)
        return await self._answer(request, model, jobs, style, asked.stream or False)

    async def complete(self, request: Request, body: bytes) -> Response:
        """Answer a POST to /v1/completions."""
        asked: CompletionRequest = await asyncio.to_thread(_parsed, CompletionRequest, body)
        model = self._model(asked.model)
        if asked.echo and asked.logprobs is not None:
            raise APIError(400, "this server has no log-probabilities of prompts: leave out echo", param="echo")

        def begin() -> list[Job]:
            generator = model.language_model.generator
            try:
                prompts = [generator.encode(p) if isinstance(p, str) else p for p in asked.prompt]
                if asked.echo:
                    decode = model.language_model.text_tokenizer.decode
                    texts = [prompt if isinstance(prompt, str) else decode(prompt) for prompt in asked.prompt]
                    echoed.extend(text for text in texts for _ in range(asked.n or 1))
            except InputError as error:
                raise APIError(400, str(error), param="prompt") from error
            wanted = asked.most_tokens
            if wanted is None and asked.schema_of_text is None:
                wanted = DEFAULT_COMPLETION_TOKENS
            return self._jobs(asked, model, prompts, generator, wanted, asked.logprobs)

        echoed: list[str] = []
        jobs = await self._begun(request, begin, model.language_model.generator, asked.schema_of_text)
        style = _Completion(model, jobs, asked.logprobs is not None, asked.tells_usage, echoed)
        return await self._answer(request, model, jobs, style, asked.stream or False)

    def _model(self, name: str) -> ServedModel:
        if name not in self.models:
            known = ", ".join(self.models)
            raise APIError(404, f"there is no model {name[:100]!r} here, but {known}", "model_not_found", "model")
        return self.models[name]

    async def _begun(
        self, request: Request, begin: Callable[[], list[Job]], generator: Generator, schema: Any = None
    ) -> list[Job]:
        """The jobs of a request; a schema may take longer than there is time, or than anybody waits."""
        came = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                if schema is not None:
                    await _while_there(request, self._prepare(generator, schema))
                jobs = await asyncio.to_thread(begin)
            for job in jobs:
                job.submitted = came
            return jobs
        except InputError as error:
            raise APIError(400, str(error), param="response_format") from error
        except TimeoutError as error:
            hint = "" if schema is None else ": give a simpler schema"
            raise APIError(504, "the answer took too long" + hint) from error

    async def _prepare(self, generator: Generator, schema: Any) -> None:
        vocabulary = await asyncio.to_thread(lambda: generator.vocabulary)
        if vocabulary.remembered(None, schema) is None:  # else it waits for nobody's form
            async with self._forms:
                await forms.prepare(vocabulary, None, schema)

    def _jobs(
        self,
        asked: ChatRequest | CompletionRequest,
        model: ServedModel,
        prompts: Sequence[list[int]],
        generator: Generator,
        wanted: int | None,
        alternatives: int | None,
    ) -> list[Job]:
        """One for every text that is asked for, the same prompt's side by side."""
        number = asked.n or 1
        most = min(MOST_TEXTS, model.engine.most_running + model.engine.queue)
        if number * len(prompts) > most:
            raise APIError(400, f"one request may ask for {most} texts, not {number * len(prompts)}", param="n")
        names = ("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
        given = {name: value for name in names if (value := getattr(asked, name)) is not None}
        if given.get("top_p") == 0.0:
            given["top_p"] = 1e-6  # the most probable token alone
        given["top_k"] = max(0, given.get("top_k", 0))
        given["temperature"] = 1.0 if asked.temperature is None else asked.temperature
        given["seed"] = secrets.randbits(63) if asked.seed is None else asked.seed % 2**64
        given["stop"] = asked.stops
        given["json_schema"] = asked.schema_of_text
        context = generator.config.context_length
        jobs: list[Job] = []
        before: Counter[tuple[int, ...]] = Counter()
        for prompt in prompts:
            room = context - len(prompt) + 1
            if room < 1:
                message = f"the prompt has {len(prompt)} tokens, and the model's context is {context}"
                raise APIError(400, message, "context_length_exceeded", "prompt")
            most = min(room, self._most, wanted or room)
            try:
                options = SamplingOptions(max_new_tokens=most, **given)
                first = before[tuple(prompt)]
                before[tuple(prompt)] += number
                sequences = [generator.begin(prompt, options, first + i) for i in range(number)]
            except InputError as error:
                raise APIError(400, str(error)) from error
            jobs += [Job(s, _nobody, generator.end_ids, self._seconds, alternatives) for s in sequences]
        return jobs

    async def _answer(
        self, request: Request, model: ServedModel, jobs: list[Job], style: _Style, stream: bool
    ) -> Response:
        parts = _Parts(jobs, self._seconds, stream)
        try:
            model.engine.submit(jobs)
        except BusyError as error:
            raise APIError(429, "too many requests are waiting: try again", "rate_limit_exceeded") from error
        except ClosedError as error:
            raise APIError(503, "the server is ending") from error
        if stream:
            return _EventStream(style.stream(parts), parts)
        found = asyncio.ensure_future(style.whole(parts))
        gone = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait({found, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not found.done():
                return Response(status_code=499)  # nobody reads it
            return Response(_dump(found.result()), media_type="application/json")
        finally:
            parts.cancel()
            for task in (found, gone):
                task.cancel()


class _Parts:
    """What the engine tells of some jobs, for this event loop.

    Args:
        jobs: The jobs.
        seconds: What they may take.
        stream: Whether it is told as it comes; else when a job has ended, which wakes the loop less often.
    """

    def __init__(self, jobs: list[Job], seconds: float, stream: bool) -> None:
        self._jobs, self._seconds = jobs, seconds
        self._queue: asyncio.Queue[tuple[int, list[Part]]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listener(number: int) -> Callable[[Part], None]:
            held: list[Part] = []

            def hear(part: Part) -> None:
                held.append(part)
                if stream or part.finish_reason is not None:
                    loop.call_soon_threadsafe(self._queue.put_nowait, (number, held.copy()))
                    held.clear()

            return hear

        for number, job in enumerate(jobs):
            job.listener = listener(number)

    async def __aiter__(self) -> AsyncIterator[tuple[int, Part]]:
        """The number of a job and what is new of it, until all have ended.

        Raises:
            APIError: One took too long, or failed.
        """
        going = len(self._jobs)
        while going:
            # The engine keeps the time; that it does is not taken for granted.
            try:
                number, parts = await asyncio.wait_for(self._queue.get(), self._seconds + _GRACE_SECONDS)
            except TimeoutError as error:
                raise APIError(504, "the answer took too long") from error
            for part in parts:
                if part.finish_reason == "timeout":
                    raise APIError(504, "the answer took too long")
                if part.finish_reason == "error":
                    raise APIError(500, "the server failed on this request; its log says how")
                yield number, part
                going -= part.finish_reason is not None

    def cancel(self) -> None:
        """Whoever asked is gone, or has everything."""
        for job in self._jobs:
            job.cancel()


class _EventStream(StreamingResponse):
    """Server-sent events; when they end, however they do, so does the work for them."""

    def __init__(self, events: AsyncIterator[bytes], parts: _Parts) -> None:
        # The second has nginx pass every event on at once.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, headers=headers, media_type="text/event-stream")
        self._parts = parts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._parts.cancel()


class _Style:
    """How an endpoint writes what the engine says."""

    PREFIX = ""
    OBJECT = ""
    CHUNK = ""

    def __init__(self, model: ServedModel, jobs: list[Job], logprobs: bool, tells_usage: bool) -> None:
        self._jobs, self._logprobs, self._tells_usage = jobs, logprobs, tells_usage
        self._tokenizer = model.language_model.text_tokenizer
        self._special = {token: piece for piece, token in self._tokenizer.special.items()}
        self._head = {"id": self.PREFIX + secrets.token_hex(12), "created": int(time.time()), "model": model.name}
        self._texts = ["" for _ in jobs]

    async def whole(self, parts: _Parts) -> dict[str, Any]:
        """The answer, when all of it is there."""
        reports: list[list[Part]] = [[] for _ in self._jobs]
        reasons = [""] * len(self._jobs)
        async for number, part in parts:
            self._texts[number] += part.text
            reports[number].append(part)
            reasons[number] = part.finish_reason or ""
        choices = [
            {
                "index": i,
                **self._content(i, self._texts[i]),
                "logprobs": self._report(i, reports[i], 0) if self._logprobs else None,
                "finish_reason": reasons[i],
            }
            for i in range(len(self._jobs))
        ]
        return {**self._head, "object": self.OBJECT, "choices": choices, "usage": self._usage}

    async def stream(self, parts: _Parts) -> AsyncIterator[bytes]:
        """The same as server-sent events."""
        try:
            for number in range(len(self._jobs)):
                for opening in self._openings(number):
                    yield self._event(number, opening, [], None)
            async for number, part in parts:
                if part.text or part.finish_reason or (self._logprobs and part.token is not None):
                    yield self._event(number, self._delta(part.text), [part], part.finish_reason)
                self._texts[number] += part.text
            if self._tells_usage:
                yield _sent({**self._head, "object": self.CHUNK, "choices": [], "usage": self._usage})
            yield b"data: [DONE]\n\n"
        except APIError as error:
            yield _sent(error.body)

    def _event(self, number: int, content: dict[str, Any], report: list[Part], reason: str | None) -> bytes:
        logprobs = self._report(number, report, len(self._texts[number])) if self._logprobs and report else None
        choice = {"index": number, **content, "logprobs": logprobs, "finish_reason": reason}
        usage = {"usage": None} if self._tells_usage else {}
        return _sent({**self._head, "object": self.CHUNK, "choices": [choice], **usage})

    @property
    def _usage(self) -> dict[str, int]:
        prompts = {id(job.sequence.prompt): len(job.sequence.prompt) for job in self._jobs}  # `n` texts share one
        read, written = sum(prompts.values()), sum(len(job.sequence.tokens) for job in self._jobs)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}

    def _token(self, token: int) -> str:
        raw = self._tokenizer.token_bytes(token)
        try:
            return raw.decode("utf-8") or self._special.get(token, "")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _openings(self, number: int) -> list[dict[str, Any]]:
        return []

    def _content(self, number: int, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def _report(self, number: int, parts: list[Part], offset: int) -> dict[str, Any]:
        raise NotImplementedError


class _Chat(_Style):
    PREFIX, OBJECT, CHUNK = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def _openings(self, number: int) -> list[dict[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}}]

    def _content(self, number: int, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def _report(self, number: int, parts: list[Part], offset: int) -> dict[str, Any]:
        def one(token: int, value: float) -> dict[str, Any]:
            return {
                "token": self._token(token),
                "logprob": max(value, _LEAST),
                "bytes": list(self._tokenizer.token_bytes(token)),
            }

        content = [
            {**one(part.token, part.log_probability), "top_logprobs": [one(*pair) for pair in part.alternatives]}
            for part in parts
            if part.token is not None
        ]
        return {"content": content, "refusal": None}


class _Completion(_Style):
    PREFIX, OBJECT, CHUNK = "cmpl-", "text_completion", "text_completion"

    def __init__(
        self, model: ServedModel, jobs: list[Job], logprobs: bool, tells_usage: bool, echoed: list[str]
    ) -> None:
        super().__init__(model, jobs, logprobs, tells_usage)
        self._echoed = echoed

    def _openings(self, number: int) -> list[dict[str, Any]]:
        return [{"text": self._echoed[number]}] if self._echoed else []

    def _content(self, number: int, text: str) -> dict[str, Any]:
        return {"text": (self._echoed[number] if self._echoed else "") + text}

    def _delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def _report(self, number: int, parts: list[Part], offset: int) -> dict[str, Any]:
        """A token's offset is that of the text that was certain before it."""
        offset += len(self._echoed[number]) if self._echoed else 0
        report: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for part in parts:
            if part.token is not None:
                report["tokens"].append(self._token(part.token))
                report["token_logprobs"].append(max(part.log_probability, _LEAST))
                top: dict[str, float] = {}
                for token, value in part.alternatives:  # the most probable first, of those with the same text
                    top.setdefault(self._token(token), max(value, _LEAST))
                report["top_logprobs"].append(top)
                report["text_offset"].append(offset)
            offset += len(part.text)
        return report


def _parsed(kind: Any, body: bytes) -> Any:
    """The body as a request.

    Raises:
        APIError: It is none.
    """

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no number")

    try:
        document = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise APIError(400, f"the body is no JSON: {reason}") from error
    try:
        return kind.model_validate(document)
    except (ValidationError, RecursionError) as error:
        if isinstance(error, RecursionError):
            raise APIError(400, "the body is nested too deeply") from error
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])[:100]
        message = first["msg"].removeprefix("Value error, ")
        raise APIError(400, f"{place}: {message}" if place else message, param=place or None) from error


async def _while_there(request: Request, work: Coroutine[Any, Any, None]) -> None:
    """Do the work, unless the client hangs up.

    Raises:
        ClientDisconnect: It did.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        task.result()
    finally:
        for pending in (task, gone):
            pending.cancel()


async def _gone(request: Request) -> None:
    """Returns when the client has hung up."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _nobody(part: Part) -> None:
    """Until somebody listens."""


def _dump(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def _sent(document: Any) -> bytes:
    return b"data: " + _dump(document) + b"\n\n"
