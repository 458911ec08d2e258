"""JSON and tensors."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.serving import answer_json, request_json
from gpt_keras.serving.errors import RequestError
from gpt_keras.serving.request_json import TensorSpec

FLOAT, STRING = {"x": TensorSpec("float")}, {"text": TensorSpec("string")}


def inputs(body, specs):
    return request_json.predict_request(request_json.parse(body.encode()), specs)


@given(st.floats(width=32))
@settings(max_examples=500, deadline=None)
def test_a_float_comes_back_as_it_was_and_is_seen_to_be_one(value):
    text = answer_json.decimal(value, np.float32)
    assert (math.isnan(value) and text == "NaN") or np.float32(float(text)) == np.float32(value)
    assert text in ("NaN", "Infinity", "-Infinity") or "." in text or "e" in text


@given(st.floats())
@settings(max_examples=500, deadline=None)
def test_a_double_comes_back_as_it_was(value):
    text = answer_json.decimal(value, np.float64)
    assert (math.isnan(value) and text == "NaN") or float(text) == value


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2, "0.2"), (2.0, "2.0"), (9000000.0, "9e+06"), (3e-05, "3e-05"), (16777217.0, "16777216.0"), (-0.0, "-0.0"),
     (0.1 + 0.2, "0.3"), (123456.7, "123456.703")],
)  # fmt: skip
def test_floats_are_written_in_six_digits_if_those_say_it_all(value, text):
    assert answer_json.decimal(float(np.float32(value)), np.float32) == text


SHAPES = st.lists(st.integers(0, 3), min_size=0, max_size=4)


@given(SHAPES, st.sampled_from(["float32", "float64", "int32", "int64", "bool", "object"]), st.randoms())
@settings(max_examples=300, deadline=None)
def test_tensors_are_written_as_the_lists_that_they_are(shape, dtype, draw):
    count = math.prod(shape)
    values = [draw.choice([0, 1, 5]) for _ in range(count)]
    flat = [f"é{value}".encode() for value in values] if dtype == "object" else values
    tensor = np.array(flat, dtype).reshape(shape)
    if dtype == "object":
        expected = np.array([text.decode() for text in flat], object).reshape(shape).tolist()
    else:
        expected = tensor.tolist()
    assert json.loads(answer_json.predictions({"y": tensor}, rows=False)) == {"outputs": expected}
    if shape:
        assert json.loads(answer_json.predictions({"y": tensor}, rows=True)) == {"predictions": expected}
        two = json.loads(answer_json.predictions({"y": tensor, "z": tensor}, rows=True))["predictions"]
        assert two == [{"y": entry, "z": entry} for entry in expected]


@given(st.lists(st.lists(st.floats(width=32, allow_nan=False), min_size=2, max_size=2), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_rows_and_columns_say_the_same(rows):
    by_rows, by_columns = (inputs(json.dumps({key: rows}), FLOAT) for key in ("instances", "inputs"))
    np.testing.assert_array_equal(by_rows.inputs["x"], np.array(rows, np.float32))
    np.testing.assert_array_equal(by_columns.inputs["x"], by_rows.inputs["x"])
    assert by_rows.rows and not by_columns.rows


@given(st.lists(st.text(), min_size=1))
@settings(max_examples=200, deadline=None)
def test_strings_arrive_as_their_utf_8(texts):
    texts = [text.encode("utf-8", "replace").decode() for text in texts]
    for ascii_only in (True, False):
        found = inputs(json.dumps({"instances": texts}, ensure_ascii=ascii_only), STRING)
        assert found.inputs["text"].tolist() == [text.encode() for text in texts]


def test_bytes_arrive_by_base64_or_raw():
    assert inputs('{"inputs": [{"b64": "/wD+"}, {"b64": "/w"}]}', STRING).inputs["text"].tolist() == [
        b"\xff\0\xfe",
        b"\xff",
    ]
    found = request_json.predict_request(request_json.parse(b'{"inputs": ["a\xff"]}'), STRING)
    assert found.inputs["text"].tolist() == [b"a\xff"]


def test_of_equal_keys_the_first_counts_and_what_follows_the_document_does_not():
    assert inputs('{"inputs": [1.0], "inputs": [2.0]} {', FLOAT).inputs["x"].tolist() == [1.0]


SEVERAL = {"x": TensorSpec("float"), "n": TensorSpec("int32", True), "s": TensorSpec("string", True)}


def test_inputs_with_defaults_may_be_left_out_in_all_rows_or_in_none():
    found = inputs('{"instances": [{"x": 1, "n": 2}, {"n": 3, "x": 4}]}', SEVERAL).inputs
    assert {name: value.tolist() for name, value in found.items()} == {"x": [1.0, 4.0], "n": [2, 3]}
    assert set(inputs('{"inputs": {"x": [1]}}', SEVERAL).inputs) == {"x"}
    for body in ('{"instances": [{"x": 1, "n": 2}, {"x": 4}]}', '{"instances": [{"x": 1}, {"x": 4, "n": 1}]}'):
        with pytest.raises(RequestError, match=r"(?s)element: 1 of 'instances' list.*only have keys: n,s,x"):
            inputs(body, SEVERAL)


@pytest.mark.parametrize(
    ("body", "specs", "message"),
    [
        ("", FLOAT, "JSON Parse error: The document is empty"),
        ("  ", FLOAT, "JSON Parse error: The document is empty"),
        ("{", FLOAT, "JSON Parse error.* at offset: 1"),
        ("[" * 100_000, FLOAT, "JSON Parse error: Nested too deeply"),
        ('{"instances": [1e999]}', FLOAT, "JSON Parse error: Number too big"),
        ('{"instances": [' + "9" * 5000 + "]}", FLOAT, "JSON Parse error: Number too big"),
        ('{"instances": ["\\ud800"]}', STRING, "JSON Parse error: The surrogate pair"),
        ("[1]", FLOAT, "Is not object"),
        ('{"signature_name": 3, "instances": [1]}', FLOAT, "'signature_name' key must be a string value"),
        ('{"instances": []}', FLOAT, "No values in 'instances' array"),
        ('{"instances": [1]}', {}, "Failed to get input map for signature: DEFAULT"),
        ('{"instances": [1]}', SEVERAL, "instances is a plain list, but expecting list of objects"),
        ('{"inputs": [1]}', SEVERAL, "inputs is a plain value/list, but expecting an object"),
        ('{"inputs": {"n": [1]}}', SEVERAL, "Missing named input: x in 'inputs' object"),
        ('{"instances": [16777216]}', FLOAT, "Cannot convert JSON value: 16777216 to float without loss"),
        ('{"instances": [1e39]}', FLOAT, "to float without loss of precision"),
        ('{"instances": [9007199254740992]}', {"d": TensorSpec("double")}, "to double without loss of precision"),
        ('{"instances": [2147483648]}', {"n": TensorSpec("int32")}, "Type: Number is not of expected type: int32"),
        ('{"instances": [1.0]}', {"n": TensorSpec("int64")}, "Type: Number is not of expected type: int64"),
        ('{"instances": [300]}', {"n": TensorSpec("uint8")}, "does not fit the type uint8"),
        ('{"instances": [-1]}', {"n": TensorSpec("uint32")}, "is not of expected type: uint32"),
        ('{"instances": [1]}', {"b": TensorSpec("bool")}, "is not of expected type: bool"),
        ('{"instances": [1]}', {"c": TensorSpec("complex64")}, "Conversion of JSON Value: 1 to type: complex64"),
        ('{"instances": [{"b64": "x!"}]}', STRING, "Unable to base64 decode"),
        ('{"inputs": {"text": [{"b65": ""}]}}', STRING, "not formatted correctly for base64 data"),
        ('{"instances": [' + "[" * 70 + "1" + "]" * 70 + "]}", FLOAT, "nested more than 32 deep"),
        ('{"instances": [' + "[" * 900 + "1" + "]" * 900 + "]}", FLOAT, "nested more than 32 deep"),
        ('{"inputs": [[1, 2], [[3], 4]]}', FLOAT, "Encountered list at unexpected level: 2 expected < 2"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(body, specs, message):
    with pytest.raises(RequestError, match=message):
        inputs(body, specs)


def test_a_message_quotes_no_more_than_the_beginning_of_a_large_request():
    with pytest.raises(RequestError) as found:
        inputs(json.dumps({"instances": 1, "more": ["x" * 100] * 10_000}), FLOAT)
    assert len(found.value.message) < 1200


@given(
    st.binary(max_size=200)
    | st.text(max_size=200).map(lambda text: f'{{"instances": [{text}]}}'.encode("utf-8", "replace"))
)
@settings(max_examples=1000, deadline=None)
def test_whatever_comes_is_read_or_refused(body):
    try:
        request_json.predict_request(request_json.parse(body), STRING)
    except RequestError as error:
        assert (
            json.loads(answer_json.error(error.message))["error"] == error.message.encode("utf-8", "replace").decode()
        )


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(st.sampled_from(["instances", "inputs", "examples", "context", "signature_name"]), VALUES,
       st.sampled_from(["float", "double", "int32", "int64", "uint8", "uint64", "string", "bool", "half"]))  # fmt: skip
@settings(max_examples=1000, deadline=None)
def test_any_json_in_any_field_is_read_or_refused(key, value, dtype):
    document = request_json.parse(json.dumps({key: value}).encode()) if _plain(value) else {key: value}
    for read in (
        lambda: request_json.predict_request(document, {"x": TensorSpec(dtype)}),
        lambda: request_json.examples(document),
    ):
        try:
            read()
        except RequestError as error:
            answer_json.error(error.message)


def _plain(value) -> bool:
    try:
        request_json.parse(json.dumps({"x": value}).encode())
    except RequestError:
        return False
    return True


def test_a_lone_surrogate_beside_bytes_that_are_no_utf_8_is_refused():
    with pytest.raises(RequestError, match="surrogate pair"):
        request_json.parse(b'{"instances": ["\xff \\ud800"]}')
    assert request_json.predict_request(request_json.parse(b'{"instances": ["\xff"]}'), STRING)
