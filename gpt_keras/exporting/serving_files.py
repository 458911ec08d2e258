"""What TF Serving reads beside the graph: requests to warm up with, and how to batch and to be watched."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

from gpt_keras.config import GPTConfig
from gpt_keras.data.files import whole_file

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_INPUTS: dict[str, dict[str, Any]] = {
    "generate": {"text": ["Hello"], "max_new_tokens": [2]},
    "chat": {"roles": [["user"]], "contents": [["Hello"]], "max_new_tokens": [2]},
    "classify": {"text": ["Hello"], "labels": [["a", "b"]]},
    "detokenize": {"token_ids": [[0]]},
}


def write_warmup(folder: Path, name: str, signatures: Iterable[str]) -> None:
    """A request to each signature, which TF Serving runs before it calls a version ready: otherwise the first users
    would wait while graphs are optimized.

    Args:
        folder: The version's.
        name: The model's.
        signatures: Those that it has; `_INPUTS` has what they take, by default a text.
    """
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    path = folder / WARMUP
    path.parent.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature in signatures:
            request = predict_pb2.PredictRequest()
            request.model_spec.name, request.model_spec.signature_name = name, signature
            for key, value in _INPUTS.get(signature, {"text": ["Hello"]}).items():
                request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
            log = prediction_log_pb2.PredictLog(request=request)
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())


BATCHING, MONITORING = "batching.config", "monitoring.config"
_CACHE_BYTES = 1 << 29
"""What the keys and values of a batch may take; as many batches run at a time as there are threads."""
_THREADS, _LARGEST = 2, 64


def write_server_files(base: Path, config: GPTConfig) -> None:
    """`batching.config` and `monitoring.config` beside the versions of a model, unless they are there: for TF Serving's
    `--batching_parameters_file` and `--monitoring_config_file`.

    Args:
        base: The model's folder.
        config: Its sizes say how large a batch may be.
    """
    files = {BATCHING: batching_config(config), MONITORING: _MONITORING}
    for name, content in files.items():
        if not (base / name).exists():
            with whole_file(base / name) as partial:
                partial.write_text(content, "utf-8")


def batching_config(config: GPTConfig) -> str:
    """The text of a `BatchingParameters`: the largest power of two of rows, each as long as the context, whose keys and
    values take half a gigabyte at most."""
    row = 2 * config.num_layers * config.num_key_value_heads * config.head_dim * config.context_length * 4
    largest = max(1, min(_LARGEST, 1 << ((_CACHE_BYTES // row).bit_length() - 1) if row <= _CACHE_BYTES else 1))
    sizes = [1 << power for power in range(largest.bit_length())]
    lines = [
        f"# A row of {config.context_length} tokens takes {row / 2**20:.1f} MiB of keys and values.",
        f"max_batch_size {{ value: {largest} }}",
        "batch_timeout_micros { value: 5000 }",
        "max_enqueued_batches { value: 16 }",
        f"num_batch_threads {{ value: {_THREADS} }}",
        *(f"allowed_batch_sizes: {size}" for size in sizes),
        "# Padding would repeat a request's first value: clients send inputs of equal widths instead.",
        "pad_variable_length_inputs: false",
    ]
    return "\n".join(lines) + "\n"


_MONITORING = """prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""
