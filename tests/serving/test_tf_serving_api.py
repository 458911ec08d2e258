"""TF Serving's REST API, without HTTP around it."""

import json

import pytest

from gpt_keras.serving.errors import RequestError
from gpt_keras.serving.servables import SavedModels, parse_labels
from gpt_keras.serving.tf_serving_api import TFServingAPI

pytestmark = pytest.mark.tensorflow


@pytest.fixture(scope="module")
def models(written):
    models = SavedModels(written, parse_labels(["numbers:stable=2"]))
    models.refresh()
    yield models
    models.close()


@pytest.fixture(scope="module")
def api(models):
    return TFServingAPI(models)


def ask(api, path, body=None, method=None):
    """Status and body of an answer, parsed."""
    content = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    status, answer = api.answer(method or ("GET" if body is None else "POST"), path, content)
    return status, json.loads(answer) if answer else ""


def error(api, path, body=None, method=None) -> tuple[int, str]:
    status, answer = ask(api, path, body, method)
    return status, answer["error"] if answer else ""


def test_rows_and_columns(api):
    path = "/v1/models/numbers:predict"
    assert ask(api, path, {"instances": [1.0, 2]}) == (200, {"predictions": [4.0, 7.0]})
    assert ask(api, path, {"instances": [{"x": 1.0}]}) == (200, {"predictions": [4.0]})
    assert ask(api, path, {"inputs": [1.0, 2.0]}) == (200, {"outputs": [4.0, 7.0]})
    assert ask(api, path, {"inputs": {"x": []}}) == (200, {"outputs": []})
    assert ask(api, path, {"inputs": [[1.0], [2.0]]}) == (
        200,
        {"outputs": [[4.0], [7.0]]},
    )  # the graph decides on shapes


def test_the_newest_version_answers_unless_another_one_is_asked_for(api):
    body = {"instances": [1.0]}
    assert ask(api, "/v1/models/numbers/versions/3:predict", body) == (200, {"predictions": [4.0]})
    assert ask(api, "/v1/models/numbers/labels/stable:predict", body) == (200, {"predictions": [3.0]})
    assert ask(api, "/v1/models/numbers/versions/2:predict", body) == (200, {"predictions": [3.0]})  # has a label
    assert ask(api, "/V1/Models/numbers/Versions/3:PREDICT", body) == (200, {"predictions": [4.0]})
    missing = "Servable not found for request: Specific(numbers, 1)"
    assert error(api, "/v1/models/numbers/versions/1:predict", body) == (404, missing)


def test_inputs_with_defaults(api):
    path = "/v1/models/numbers:predict"
    named = {"signature_name": "several"}
    assert ask(api, path, {**named, "inputs": {"x": [1.0, 2.0]}}) == (
        200,
        {"outputs": {"double": [20], "flag": [True], "sum": [11.0, 12.0]}},
    )
    assert ask(api, path, {**named, "instances": [{"x": 1.0, "n": 5, "flag": True}]}) == (
        200,
        {"predictions": [{"double": 10, "flag": False, "sum": 6.0}]},
    )
    status, message = error(api, path, {**named, "instances": [{"x": 1.0}, {"x": 2.0}]})
    assert status == 400 and "inconsistent batch size" in message


def test_every_type_of_number(api):
    body = {"signature_name": "kinds", "inputs": {"d": [0.1], "l": [2**53 + 1], "u": [255]}}
    assert ask(api, "/v1/models/numbers:predict", body) == (
        200,
        {"outputs": {"d": [0.1], "h": [0.5], "l": [2**53 + 1], "u": [255]}},
    )


def test_strings_and_bytes(api):
    path = "/v1/models/texts:predict"
    assert ask(api, path, {"instances": ["abc", "é🎉", ""]}) == (200, {"predictions": ["ABC", "é🎉", ""]})
    body = {"signature_name": "both", "instances": [{"b64": "/w=="}]}
    assert ask(api, path, body) == (200, {"predictions": [{"out": "\ufffd", "raw_bytes": {"b64": "/w=="}}]})


def test_classify_and_regress(api):
    up, down = pytest.approx(0.880797), pytest.approx(0.119203)
    found = ask(api, "/v1/models/classifier:classify", {"examples": [{"x": 0.0}, {"x": [2.0]}]})
    assert found == (200, {"results": [[["up", 0.5], ["down", 0.5]], [["up", up], ["down", down]]]})
    body = {"signature_name": "regress", "context": {"bias": 2.0}, "examples": [{"x": 0.0}, {"x": 0.0, "bias": 0.0}]}
    assert ask(api, "/v1/models/classifier:regress", body) == (200, {"results": [up, 0.5]})


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("numbers:classify", {"examples": [{"x": 1.0}]}, 400, "No classification inputs found in SignatureDef"),
        ("numbers:regress", {"examples": [{"x": 1.0}]}, 400, "No regression inputs found in SignatureDef"),
        ("classifier:classify", {"examples": []}, 400, "'examples' value is an empty array"),
        ("classifier:classify", {"examples": {"x": 1}}, 400, "Expecting 'examples' value to be an list/array"),
        ("classifier:classify", {}, 400, "key 'examples' is expected and was not found"),
        ("classifier:classify", {"examples": [1]}, 400, "Example must be JSON object but got JSON Number"),
        ("classifier:classify", {"examples": [{"x": [1.0, "a"]}]}, 400, "Unexpected element type in feature: x"),
        ("classifier:classify", {"examples": [{"x": [[1.0]]}]}, 400, "unexpected JSON type: Array"),
        ("classifier:classify", {"examples": [{"x": 2**63}]}, 400, "uint64 element. Only int64 is supported"),
        (
            "classifier:classify",
            {"signature_name": "no", "examples": [{}]},
            400,
            "No signature was found with the name",
        ),
        ("classifier:regress", {"examples": [{"x": 1.0}]}, 400, "Expected one output Tensor."),
        ("nope:classify", {"examples": [{"x": 1.0}]}, 404, "Servable not found for request: Latest(nope)"),
        ("nope:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(nope)"),
        ("nope:predict", b"no JSON", 400, "JSON Parse error"),
        ("numbers:predict", {"signature_name": "no", "instances": [1]}, 400, 'name: "no" not found in signature def'),
        ("numbers:predict", {"signature_name": "total", "instances": [1.0]}, 400, "total has no shape information"),
        ("numbers/labels/new:predict", {"instances": [1]}, 400, "Unrecognized servable version label: new"),
        (
            "numbers/versions/x:predict",
            {"instances": [1]},
            400,
            "Malformed request: POST /v1/models/numbers/versions/x",
        ),
        ("numbers/versions/2/labels/stable:predict", {"instances": [1]}, 400, "Malformed request"),
        ("numbers:explain", {"instances": [1]}, 400, "Malformed request"),
        ("numbers/metadata", {}, 400, "Malformed request: POST /v1/models/numbers/metadata"),
        ("..%2F..%2Fetc:predict", {"instances": [1]}, 404, "Servable not found for request: Latest(../../etc)"),
        ("%ff%00:predict", {"instances": [1]}, 404, "Servable not found"),
    ],
)
def test_what_is_wrong_is_said_as_tf_serving_says_it(api, path, body, status, message):
    found = error(api, f"/v1/models/{path}", body)
    assert found[0] == status and message in found[1]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "HEAD", "GET"])
def test_other_methods_are_malformed(api, method):
    path = "/v1/models/numbers:predict"
    assert error(api, path, b"{}", method) == (400, f"Malformed request: {method} {path}")


def test_options_and_versions_of_more_than_64_bits_are_refused_without_a_word(api):
    assert ask(api, "/v1/models/numbers:predict", b"", "OPTIONS") == (400, "")
    for version in (2**63, "1" * 5000):
        assert ask(api, f"/v1/models/numbers/versions/{version}:predict", {"instances": [1]}) == (400, "")
    assert ask(api, f"/v1/models/texts/versions/{'0' * 5000}7")[0] == 200


def test_states_and_metadata(api):
    good = {"state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert ask(api, "/v1/models/numbers") == (
        200,
        {"model_version_status": [{"version": "3", **good}, {"version": "2", **good}]},
    )
    assert ask(api, "/v1/models/texts/versions/7")[1]["model_version_status"] == [{"version": "7", **good}]
    assert error(api, "/v1/models/texts/versions/8") == (404, "Could not find version 8 of model texts")
    assert error(api, "/v1/models/nope") == (404, "Could not find any versions of model nope")
    assert error(api, "/v1/models") == (400, "Missing model name in request.")
    assert error(api, "/v1/other") == (400, "Malformed request: GET /v1/other")
    status, found = ask(api, "/v1/models/numbers/labels/stable/metadata")
    assert status == 200 and found["model_spec"] == {"name": "numbers", "signature_name": "", "version": "2"}
    default = found["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert default["inputs"]["x"]["dtype"] == "DT_FLOAT"
    assert default["inputs"]["x"]["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert default["method_name"] == "tensorflow/serving/predict"
    assert error(api, "/v1/models/nope/metadata")[0] == 404


def test_a_graph_that_fails_says_what_and_nothing_of_this_machine(api):
    status, message = error(api, "/v1/models/numbers:predict", {"signature_name": "checked", "instances": [-1.0]})
    assert status == 400 and "x must be positive" in message
    assert "File " not in message and "/" not in message.replace("serving_default", "").split("[[")[0]


def test_what_is_no_label_is_an_error():
    from gpt_keras.data.errors import InputError

    for text in ("numbers", "numbers:stable", "numbers:stable=x", "a/b:stable=1"):
        with pytest.raises(InputError, match="expected MODEL:LABEL=VERSION"):
            parse_labels([text])


def test_an_unloaded_version_is_unavailable(written):
    models = SavedModels(written)
    models.refresh()
    _, servable = models.get("texts")
    models.close()
    with pytest.raises(RequestError):
        servable.run("", {})
    with pytest.raises(RequestError, match="Latest"):
        models.get("texts")
