"""Build, train, fine-tune and ship a GPT with Keras.

    lm = gpt_keras.load("runs/default/model")       a trained model: lm.model, lm.tokenizer, lm.generate(...)
    gpt_keras.GPT(gpt_keras.GPTConfig.from_preset("gpt2"))      a fresh one

Names are imported on first use, so importing the package costs nothing; but it sets variables of the environment that
TensorFlow reads when it starts, and so belongs before `import tensorflow`.
"""

from __future__ import annotations

import importlib
import os
import platform
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Completion": "gpt_keras.continuation",
    "GPT": "gpt_keras.model",
    "GPTConfig": "gpt_keras.config",
    "PRESETS": "gpt_keras.config",
    "InputError": "gpt_keras.data.errors",
    "LanguageModel": "gpt_keras.language_model",
    "SamplingOptions": "gpt_keras.sampling_options",
    "Tokenizer": "gpt_keras.data.tokenizer",
    "draw_attention": "gpt_keras.attention_maps",
    "load": "gpt_keras.language_model",
}
__all__ = sorted(_PUBLIC)

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from gpt_keras.attention_maps import draw_attention as draw_attention
    from gpt_keras.config import PRESETS as PRESETS
    from gpt_keras.config import GPTConfig as GPTConfig
    from gpt_keras.continuation import Completion as Completion
    from gpt_keras.data.errors import InputError as InputError
    from gpt_keras.data.tokenizer import Tokenizer as Tokenizer
    from gpt_keras.language_model import LanguageModel as LanguageModel
    from gpt_keras.language_model import load as load
    from gpt_keras.model import GPT as GPT
    from gpt_keras.sampling_options import SamplingOptions as SamplingOptions


# TensorFlow reuses memory between steps instead of returning it to the system: 6 to 10 % of a training step on a CPU.
os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")
# oneDNN's products also on processors without AVX-512, where TensorFlow leaves them out: a fifth of a step there.
if platform.machine() in ("x86_64", "AMD64"):
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# XLA makes plain sums, not trees of them: 8 %.
if "xla_disable_hlo_passes" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_disable_hlo_passes=tree_reduction_rewriter".strip()
    )


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'gpt_keras' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
