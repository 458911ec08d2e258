"""A .litertlm bundle: the LiteRT file, the tokenizer and what a conversation looks like, for Google's LiteRT-LM engine.

The engine runs it unchanged, on phones and on a desk: `litert-lm run model.litertlm`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from gpt_keras.data.conversations import turn_ends
from gpt_keras.data.errors import InputError
from gpt_keras.data.files import check_writable, whole_file
from gpt_keras.data.sentencepiece_tokenizer import SentencePieceTokenizer
from gpt_keras.data.tokenizer import Tokenizer
from gpt_keras.exporting.litert import describe, litert_file
from gpt_keras.litert.conversion import Weights
from gpt_keras.model import GPT

_TURNS = (
    "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- if message['content'] is string -%}{%- set text = message['content'] -%}"
    "{%- elif message['content'] -%}{%- set text = message['content'] | map(attribute='text') | join('') -%}"
    "{%- else -%}{%- set text = '' -%}{%- endif -%}"
    "{%- set role = 'assistant' if message['role'] == 'model' else message['role'] -%}"
    "{%- set flat.messages = flat.messages + [{'role': role, 'content': text}] -%}"
    "{%- endfor -%}{%- set messages = flat.messages %}"
)


def export_litertlm(
    model: GPT, tokenizer: Tokenizer, path: str | Path, weights: Weights, context_length: int | None = None
) -> None:
    """Write the bundle, and a card of it beside it.

    Args:
        model: The model.
        tokenizer: Its tokenizer: a SentencePiece model as it is, another one as its tokenizer.json.
        path: The .litertlm file.
        weights: As `export_litert`.
        context_length: As `export_litert`.

    Raises:
        InputError: As `export_litert`; or a package is missing.
    """
    try:
        from litert_lm_builder import litertlm_builder as builder
    except ImportError as error:
        raise InputError(f"a .litertlm bundle needs {error.name}: pip install 'gpt_keras[litert]'") from error
    check_writable(path)
    content, parts, config = litert_file(model, weights, context_length)
    context = config.context_length
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "model.tflite").write_bytes(content)
        (folder / "metadata.pb").write_bytes(_metadata(tokenizer, context).SerializeToString())
        (folder / "tokenizer").mkdir()
        tokenizer.write(folder / "tokenizer", context)
        bundle = builder.LitertLmFileBuilder()
        bundle.add_system_metadata(builder.Metadata("Authors", "gpt_keras", builder.DType.STRING))
        bundle.add_llm_metadata(str(folder / "metadata.pb"))
        if isinstance(tokenizer, SentencePieceTokenizer):  # others may have a tokenizer.model beside their own file
            bundle.add_sentencepiece_tokenizer(str(folder / "tokenizer" / "tokenizer.model"))
        else:
            bundle.add_hf_tokenizer(str(folder / "tokenizer" / "tokenizer.json"))
        bundle.add_tflite_model(str(folder / "model.tflite"), builder.TfLiteModelType.PREFILL_DECODE)
        with whole_file(path) as partial, open(partial, "wb") as stream:
            bundle.build(stream)
        describe(Path(path), folder / "model.tflite", model, weights, config, parts)


def _metadata(tokenizer: Tokenizer, context_length: int) -> Any:
    """What the engine is told of the model."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, sampler_params_pb2

    found = llm_metadata_pb2.LlmMetadata()
    if tokenizer.adds_begin and tokenizer.begin_id is not None:
        found.start_token.token_ids.ids.append(tokenizer.begin_id)
    for token in sorted(tokenizer.end_ids | turn_ends(tokenizer)):
        found.stop_tokens.add().token_ids.ids.append(token)
    # The engine's other kinds of sampling fail; the most probable token alone is what `generate` takes by default.
    found.sampler_params.type = sampler_params_pb2.SamplerParameters.TOP_P
    found.sampler_params.k, found.sampler_params.p, found.sampler_params.temperature = 1, 1.0, 1.0
    found.max_num_tokens = context_length
    found.llm_model_type.generic_model.SetInParent()
    if tokenizer.chat_template is not None:
        found.jinja_prompt_template = engine_template(tokenizer.chat_template, _begin(tokenizer))
    return found


def _begin(tokenizer: Tokenizer) -> str:
    """The text of the begin token that goes before every text; empty without one."""
    if not tokenizer.adds_begin:
        return ""
    return next((piece for piece, token in tokenizer.special.items() if token == tokenizer.begin_id), "")


def engine_template(template: str, begin: str) -> str:
    """A chat template for the engine, which gives the contents of turns as lists of parts, calls the assistant the
    model, and puts the begin token, `begin`, if there is one, before whatever the template writes."""
    template = template.removesuffix("\n")  # which is no part of it, as Jinja has it
    if not begin:
        return _TURNS + template
    quoted = json.dumps(begin)
    cut = f"whole[{len(begin)}:] if whole[:{len(begin)}] == {quoted} else whole"
    return f"{_TURNS}{{% set whole %}}{template}{{% endset %}}{{{{ {cut} }}}}"
