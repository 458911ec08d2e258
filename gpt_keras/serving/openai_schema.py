"""What may be asked by OpenAI's API, as far as this server does it. What would change the answer and cannot be done is
refused by name; other fields are ignored.

Source: https://platform.openai.com/docs/api-reference. Fields that other servers know besides are taken too: `top_k`,
`min_p`, `repetition_penalty`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    WithJsonSchema,
    model_validator,
)

MOST_TEXTS = 64
_Text = Annotated[str, Field(max_length=1_000)]
_Stops = Annotated[list[_Text], Field(max_length=16)]
_REFUSED = ("tools", "functions", "logit_bias", "audio", "suffix")
_PROMPT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": MOST_TEXTS},
        {"type": "array", "items": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}},
    ]
}


class JsonSchema(BaseModel):
    """What a text in JSON keeps to."""

    model_config = ConfigDict(populate_by_name=True)

    name: str | None = None
    schema_: Annotated[dict[str, Any], Field(alias="schema")]


class ResponseFormat(BaseModel):
    """The form of the text."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _complete(self) -> ResponseFormat:
        if self.type == "json_schema" and self.json_schema is None:
            raise ValueError("a response format of type json_schema needs json_schema")
        return self

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema that the text keeps to; `None` for free text."""
        if self.type == "text":
            return None
        return {"type": "object"} if self.json_schema is None else self.json_schema.schema_


class _Request(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")

    model: str
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2.0, le=2.0)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    stop: _Text | _Stops | None = None
    n: Annotated[int, Field(ge=1, le=MOST_TEXTS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None

    @model_validator(mode="before")
    @classmethod
    def _refuse(cls, given: Any) -> Any:
        for name in _REFUSED if isinstance(given, dict) else ():
            if given.get(name):
                raise ValueError(f"this server does not do {name}")
        return given

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings; empty ones end nothing."""
        given = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(stop for stop in given if stop)

    @property
    def most_tokens(self) -> int | None:
        """How long an answer may be, if the request says so."""
        return self.max_completion_tokens or self.max_tokens

    @property
    def schema_of_text(self) -> dict[str, Any] | None:
        """The JSON schema that the text keeps to; `None` for free text."""
        return self.response_format.schema_of_text if self.response_format else None

    @property
    def tells_usage(self) -> bool:
        """Whether a stream ends with how many tokens there were."""
        return bool(self.stream_options and self.stream_options.include_usage)


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool | None = None


class ContentPart(BaseModel):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn of a conversation."""

    role: Annotated[str, Field(min_length=1, max_length=64)]
    content: str | Annotated[list[ContentPart], Field(max_length=4096, fail_fast=True)] | None = None

    @property
    def as_message(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content or ""
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(_Request):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


def _prompts(given: Any) -> list[str | list[int]]:
    """Texts or token ids, one for each prompt. By hand, since pydantic would list what is wrong with each of a million
    tokens, four times."""

    def ids(value: Any) -> bool:
        return isinstance(value, list) and bool(value) and all(type(i) is int and 0 <= i < 2**31 for i in value)

    if isinstance(given, str) or ids(given):
        return [given]
    several = isinstance(given, list) and 0 < len(given) <= MOST_TEXTS
    if several and (all(isinstance(part, str) for part in given) or all(ids(part) for part in given)):
        return given
    raise ValueError(f"a text, a list of token ids, or up to {MOST_TEXTS} of either")


class CompletionRequest(_Request):
    """The body of /v1/completions."""

    prompt: Annotated[list[str | list[int]], PlainValidator(_prompts), WithJsonSchema(_PROMPT)]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _one_of_one(self) -> CompletionRequest:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("this server does not do best_of")
        return self
