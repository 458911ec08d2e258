"""Ask a model behind TF Serving's gRPC API.

    python pipelines/clients/grpc_client.py "Once upon a time" --model default --temperature 0.8

Every option is sent for every text, so that TF Serving may batch the request with others.
"""

import argparse
import sys

import grpc
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def generate(address: str, model: str, texts: list[str], **options: float) -> list[str]:
    """The continuation of each text; options as in the signature `generate`."""
    neutral = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0}
    types = {"max_new_tokens": tf.int32, "top_k": tf.int32, "seed": tf.int64}
    request = predict_pb2.PredictRequest()
    request.model_spec.name, request.model_spec.signature_name = model, "generate"
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(texts))
    request.inputs["stop"].CopyFrom(tf.make_tensor_proto([[""]] * len(texts)))
    for name, value in {**neutral, **options}.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto([value] * len(texts), types.get(name, tf.float32)))
    with grpc.insecure_channel(address) as channel:
        answer = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=120)
    return [text.decode() for text in tf.make_ndarray(answer.outputs["generated_text"])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+")
    parser.add_argument("--address", default="127.0.0.1:8500")
    parser.add_argument("--model", default="default")
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = {"max_new_tokens": given.max_new_tokens, "temperature": given.temperature, "seed": given.seed}
    for text, found in zip(given.texts, generate(given.address, given.model, given.texts, **options), strict=True):
        sys.stdout.write(f"{text}{found}\n")


if __name__ == "__main__":
    main()
