"""The systems that `benchmarks.generation` measures, and the model that all of them get.

Each is a function that loads the model folder and returns one that generates; some convert the folder first.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt_keras.architectures import read_config, write_config
from gpt_keras.config import GPTConfig

Generate = Callable[[list[list[int]], int], list[list[int]]]
"""Prompts of one length and a number of new tokens, to the new tokens of each row."""

DEVIATION = 0.08
THREADS = os.cpu_count() or 1
REFERENCE = "transformers torch float32"
PACKAGES = {
    "ai_edge_litert": "ai-edge-litert",
    "tensorflow": "tensorflow",
    "jax": "jax",
    "keras_hub": "keras-hub",
    "torch": "torch",
    "transformers": "transformers",
    "gguf": "gguf",
    "llama_cpp": "llama-cpp-python",
    "ctranslate2": "ctranslate2",
}
"""What is imported to what is installed."""


@dataclass(frozen=True)
class System:
    """One way to generate.

    Attributes:
        load: From the model folder to a function that generates.
        needs: Keys of `PACKAGES`.
        environment: Variables of its process.
        prepare: Converts the model folder, once, in a process of its own.
    """

    load: Callable[[Path], Generate]
    needs: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    prepare: Callable[[Path], Any] | None = None

    @property
    def missing(self) -> list[str]:
        return [PACKAGES[name] for name in self.needs if importlib.util.find_spec(name) is None]


def load_gpt_keras(folder: Path) -> Generate:
    import gpt_keras
    from gpt_keras.generation import Generator

    return _greedy(Generator(gpt_keras.load(folder).model, None))


def load_litert(engine: Any) -> Callable[[Path], Generate]:
    """The model's LiteRT file, which is made where the model is."""

    def load(folder: Path) -> Generate:
        from gpt_keras.generation import Generator
        from gpt_keras.litert import store
        from gpt_keras.litert.engine import load_with

        os.environ[store.CACHE] = str(folder / "cache")
        return _greedy(Generator(None, None, frozenset(), load_with(folder, engine).decoder))

    return load


def _greedy(generator: Any) -> Generate:
    from gpt_keras.sampling_options import SamplingOptions

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        steps = list(generator.tokens(prompts, SamplingOptions(max_new_tokens=new_tokens)))
        return [[token for token in row if token is not None] for row in zip(*steps, strict=True)]

    return generate


def load_keras_hub(folder: Path) -> Generate:
    import keras_hub

    backbone = keras_hub.models.GPT2Backbone.from_preset(str(folder))
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        length = len(prompts[0])
        token_ids = np.pad(np.array(prompts, np.int32), ((0, 0), (0, new_tokens)))
        mask = np.zeros_like(token_ids)
        mask[:, :length] = 1
        output = model.generate({"token_ids": token_ids, "padding_mask": mask}, stop_token_ids=None)
        return np.asarray(output["token_ids"])[:, length:].tolist()

    return generate


def load_transformers(folder: Path) -> Generate:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        token_ids = torch.tensor(prompts)
        with torch.inference_mode():
            output = model.generate(
                token_ids,
                attention_mask=torch.ones_like(token_ids),
                max_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
            )
        return output[:, token_ids.shape[1] :].tolist()

    return generate


def convert_ctranslate2(folder: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    TransformersConverter(str(folder)).convert(str(folder / "ctranslate2"), quantization="float32")


def load_ctranslate2(folder: Path) -> Generate:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(folder / "ctranslate2"),
        device="cpu",
        compute_type="float32",
        inter_threads=1,
        intra_threads=THREADS,
    )
    pieces = vocabulary(config_of(folder))

    def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        results = generator.generate_batch(
            [[pieces[token] for token in prompt] for prompt in prompts],
            max_length=new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [result.sequences_ids[0] for result in results]

    return generate


def convert_llama(precision: str) -> Callable[[Path], None]:
    def convert(folder: Path) -> None:
        import gpt_keras
        from gpt_keras.exporting.gguf import export_gguf

        lm = gpt_keras.load(folder, dtype="float32")
        names: dict[str, Any] = {"float32": "f32", "float16": "f16", "q8_0": "q8_0"}
        export_gguf(lm.model, lm.tokenizer, folder / f"{precision}.gguf", names[precision])

    return convert


def load_llama(precision: str) -> Callable[[Path], Generate]:
    """llama.cpp through its C interface, which takes all rows at once."""

    def load(folder: Path) -> Generate:
        import llama_cpp as llama

        llama.llama_backend_init()
        file = str(folder / f"{precision}.gguf").encode()
        model = llama.llama_model_load_from_file(file, llama.llama_model_default_params())
        vocabulary_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        contexts: dict[tuple[int, int], Any] = {}

        def make_context(rows: int, length: int) -> Any:
            settings = llama.llama_context_default_params()
            settings.n_seq_max, settings.n_ctx, settings.n_batch = rows, rows * length, rows * length
            settings.n_threads = settings.n_threads_batch = THREADS
            if precision == "float32":  # keys and values are float16 by default
                settings.type_k = settings.type_v = llama.GGML_TYPE_F32
            return llama.llama_init_from_model(model, settings)

        def generate(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
            shape = (len(prompts), len(prompts[0]) + new_tokens)
            if shape not in contexts:
                contexts[shape] = make_context(*shape)
            context = contexts[shape]
            llama.llama_memory_clear(llama.llama_get_memory(context), True)
            batch = llama.llama_batch_init(len(prompts) * len(prompts[0]), 0, 1)
            chosen, position, steps = prompts, 0, []
            while True:
                ends = fill(batch, chosen, position)
                if llama.llama_decode(context, batch):
                    raise RuntimeError("llama_decode failed")
                logits = [llama.llama_get_logits_ith(context, end) for end in ends]
                steps.append([int(np.ctypeslib.as_array(row, (vocabulary_size,)).argmax()) for row in logits])
                if len(steps) == new_tokens:
                    break
                position += len(chosen[0])
                chosen = [[token] for token in steps[-1]]
            llama.llama_batch_free(batch)
            return [list(row) for row in zip(*steps, strict=True)]

        return generate

    def fill(batch: Any, rows: list[list[int]], position: int) -> list[int]:
        """Put each row's tokens into the batch, from `position` on; returns the places of the last ones."""
        ends, place = [], 0
        for number, row in enumerate(rows):
            for offset, token in enumerate(row):
                batch.token[place], batch.pos[place] = token, position + offset
                batch.n_seq_id[place], batch.seq_id[place][0] = 1, number
                batch.logits[place] = offset == len(row) - 1
                place += 1
            ends.append(place - 1)
        batch.n_tokens = place
        return ends

    return load


# === The model, the same for all ===

# Part of a block to its name in GGUF and its matrix's size in widths; norms have no matrix.
_BLOCK: dict[str, tuple[str, tuple[int, int] | None]] = {
    "ln_1": ("attn_norm", None),
    "attn.c_attn": ("attn_qkv", (1, 3)),
    "attn.c_proj": ("attn_output", (1, 1)),
    "ln_2": ("ffn_norm", None),
    "mlp.c_fc": ("ffn_up", (1, 4)),
    "mlp.c_proj": ("ffn_down", (4, 1)),
}


def end_id(config: GPTConfig) -> int:
    """The end token, which is no prompt's and which the model never chooses."""
    return config.vocabulary_size - 1


def random_tensors(config: GPTConfig) -> dict[str, np.ndarray]:
    """Weights of a GPT-2 under Hugging Face's names.

    They are larger than those that training begins with: the largest logit stands out, and rounding, which differs
    between systems, seldom changes a token.
    """
    random, width = np.random.default_rng(0), config.hidden_dim

    def normal(*shape: int, scale: float = DEVIATION) -> np.ndarray:
        return random.standard_normal(shape, np.float32) * np.float32(scale)

    tensors = {
        "wte.weight": normal(config.vocabulary_size, width),
        "wpe.weight": normal(config.context_length, width),
    }
    tensors["wte.weight"][end_id(config)] = 0.0  # its logit is 0, far below the largest
    norms = ["ln_f"]
    for i in range(config.num_layers):
        for part, (_, size) in _BLOCK.items():
            name = f"h.{i}.{part}"
            if size is None:
                norms.append(name)
                continue
            scale = DEVIATION / (2 * config.num_layers) ** 0.5 if part.endswith("c_proj") else DEVIATION
            tensors[f"{name}.weight"] = normal(width * size[0], width * size[1], scale=scale)
            tensors[f"{name}.bias"] = normal(width * size[1])
    for name in norms:
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = 1 + normal(width), normal(width)
    return {f"transformer.{name}": value for name, value in tensors.items()}


def vocabulary(config: GPTConfig) -> list[str]:
    """Pieces that look like byte-level BPE's: the bytes, one merged pair, made-up words, the end token."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    words = [f"word{i}" for i in range(len(letters), end_id(config))]
    return [*letters, "ab", *words[1:], "<|endoftext|>"]


def write_model_folder(config: GPTConfig, folder: Path) -> None:
    """A Hugging Face folder with random weights and a tokenizer that no text meets."""
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    save_file(random_tensors(config), folder / "model.safetensors", metadata={"format": "pt"})
    pieces = vocabulary(config)
    tokenizer = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, [("a", "b")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([pieces[-1]])
    tokenizer.save(str(folder / "tokenizer.json"))
    ends = {"bos_token_id": end_id(config), "eos_token_id": end_id(config), "pad_token_id": end_id(config)}
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), pieces[-1])
    for name, content in {
        "config.json": {**write_config(config), **ends},
        "generation_config.json": ends,
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **special},
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2), "utf-8")


def config_of(folder: Path) -> GPTConfig:
    return read_config(json.loads((folder / "config.json").read_text("utf-8")))[0]


SYSTEMS = {
    "gpt_keras tensorflow float32": System(load_gpt_keras, ("tensorflow",), {"KERAS_BACKEND": "tensorflow"}),
    "gpt_keras jax float32": System(load_gpt_keras, ("jax",), {"KERAS_BACKEND": "jax"}),
    **{
        f"gpt_keras {name}": System(load_litert(engine), ("ai_edge_litert", "tensorflow"), prepare=load_litert(engine))
        for name, engine in (("litert float32", "litert"), ("litert int8", "litert-int8"))
    },
    "keras-hub tensorflow float32": System(
        load_keras_hub, ("keras_hub", "tensorflow"), {"KERAS_BACKEND": "tensorflow"}
    ),
    "keras-hub jax float32": System(load_keras_hub, ("keras_hub", "jax"), {"KERAS_BACKEND": "jax"}),
    REFERENCE: System(load_transformers, ("torch", "transformers")),
    "CTranslate2 float32": System(
        load_ctranslate2, ("ctranslate2", "torch", "transformers"), prepare=convert_ctranslate2
    ),
    **{
        f"llama.cpp {precision}": System(
            load_llama(precision), ("llama_cpp", "tensorflow"), prepare=convert_llama(precision)
        )
        for precision in ("float32", "float16", "q8_0")
    },
}
