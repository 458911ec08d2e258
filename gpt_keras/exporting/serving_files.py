"""What TF Serving reads beside the graph: requests to warm up with."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow as tf

WARMUP = Path("assets.extra") / "tf_serving_warmup_requests"
_INPUTS: dict[str, dict[str, Any]] = {
    "chat": {"roles": [["user"]], "contents": [["Hello"]]},
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
