"""TF Serving's REST API, https://www.tensorflow.org/tfx/serving/api_rest: its paths, answers, messages and codes."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np

from gpt_keras.serving import answer_json, request_json
from gpt_keras.serving.errors import RequestError
from gpt_keras.serving.servables import SavedModels, Servable

_WHICH = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_POST = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_GET = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<part>metadata))?", re.IGNORECASE | re.ASCII)


class TFServingAPI:
    """Answers requests for the models of a folder.

    Args:
        models: The models.
    """

    def __init__(self, models: SavedModels) -> None:
        self._models = models

    def answer(self, http_method: str, path: str, body: bytes) -> tuple[int, bytes]:
        """The HTTP status and the body, JSON, of the answer to a request below /v1/.

        Args:
            http_method: GET, POST, ...
            path: As it came, with its percent signs.
            body: Of the request.
        """
        if http_method == "OPTIONS":
            return 400, b""
        try:
            try:
                return 200, self._answer(http_method, path, body)
            except RequestError as error:
                if error.code != "UNAVAILABLE":
                    raise
                return 200, self._answer(http_method, path, body)  # the version was unloaded in between: the next one
        except RequestError as error:
            return error.http_status, answer_json.error(error.message) if error.message else b""

    def _answer(self, http_method: str, path: str, body: bytes) -> bytes:
        pattern = {"POST": _POST, "GET": _GET}.get(http_method)
        found = pattern.fullmatch(path) if pattern else None
        if found is None:
            raise RequestError(f"Malformed request: {http_method} {path}")
        name, label, version = _text(found["name"]), _text(found["label"]), found["version"]
        number = None
        if version is not None:
            digits = version.lstrip("0")  # Python reads no numbers of thousands of digits
            if len(digits) > 19 or int(digits or "0") >= 2**63:
                raise RequestError("")  # whose body is empty there
            number = int(digits or "0")
        if http_method == "POST":
            assert name is not None
            answers = {"predict": self._predict, "classify": self._classify, "regress": self._regress}
            document = request_json.parse(body)
            return answers[found["method"].lower()](document, name, number, label)
        if name is None:
            raise RequestError("Missing model name in request.")
        return self._metadata(name, number, label) if found["part"] else self._status(name, number)

    def _predict(self, document: dict[str, Any], name: str, version: int | None, label: str | None) -> bytes:
        signature = request_json.signature_name(document)
        _, servable = self._models.get(name, version, label)
        request = request_json.predict_request(document, servable.specs(signature))
        outputs = servable.run(signature, request.inputs)
        return answer_json.predictions(outputs, request.rows)

    def _classify(self, document: dict[str, Any], name: str, version: int | None, label: str | None) -> bytes:
        examples, (_, servable) = request_json.examples(document), self._models.get(name, version, label)
        signature = request_json.signature_name(document)
        found = _signature(servable, signature)
        if len(found.inputs) != 1:
            raise RequestError("Expected one input Tensor.")
        if len(found.outputs) not in (1, 2):
            raise RequestError(f"Expected one or two output Tensors, found {len(found.outputs)}")
        if "inputs" not in found.inputs:
            raise RequestError(f"No classification inputs found in SignatureDef: {found}", "FAILED_PRECONDITION")
        if not {"classes", "scores"} & set(found.outputs):
            raise RequestError(
                'Expected classification signature outputs to contain at least one of "classes" or "scores". Signature '
                f"was: {found}",
                "FAILED_PRECONDITION",
            )
        outputs = servable.run(signature, {"inputs": np.array(examples, object)})
        return answer_json.classifications(outputs.get("classes"), outputs.get("scores"), len(examples))

    def _regress(self, document: dict[str, Any], name: str, version: int | None, label: str | None) -> bytes:
        examples, (_, servable) = request_json.examples(document), self._models.get(name, version, label)
        signature = request_json.signature_name(document)
        found = _signature(servable, signature)
        if len(found.inputs) != 1:
            raise RequestError("Expected one input Tensor.")
        if len(found.outputs) != 1:
            raise RequestError("Expected one output Tensor.")
        for side, names in (("inputs", found.inputs), ("outputs", found.outputs)):
            if side not in names:
                raise RequestError(f"No regression {side} found in SignatureDef: {found}", "FAILED_PRECONDITION")
        outputs = servable.run(signature, {"inputs": np.array(examples, object)})
        return answer_json.regressions(outputs["outputs"], len(examples))

    def _status(self, name: str, version: int | None) -> bytes:
        from tensorflow_serving.apis import get_model_status_pb2

        response = get_model_status_pb2.GetModelStatusResponse()
        for number, known in self._models.states(name, version):
            status = response.model_version_status.add(version=number, state=known.state)
            status.status.error_code, status.status.error_message = known.code, known.message
        return _json(response).encode()

    def _metadata(self, name: str, version: int | None, label: str | None) -> bytes:
        from tensorflow_serving.apis import get_model_metadata_pb2, model_pb2

        number, servable = self._models.get(name, version, label)
        spec = model_pb2.ModelSpec(name=name)
        spec.version.value = number
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for key, value in servable.signatures.items():
            signatures.signature_def[key].CopyFrom(value)
        return f'{{"model_spec": {_json(spec)}, "metadata": {{"signature_def": {_json(signatures)}}}}}'.encode()


def _signature(servable: Servable, name: str) -> Any:
    found = servable.signature(name)
    if found is None:
        raise RequestError(f"No signature was found with the name: {name or 'serving_default'}")
    return found


def _json(message: Any) -> str:
    from google.protobuf import json_format

    return json_format.MessageToJson(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True, ensure_ascii=False
    )


def _text(part: str | None) -> str | None:
    """A part of a path without its percent signs."""
    return None if part is None else unquote_to_bytes(part).decode("utf-8", "replace")
