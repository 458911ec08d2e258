"""Products of few rows, and copies of kernels that must never be old."""

import keras
import numpy as np
import pytest
from keras import ops

from gpt_keras import compilation, kernels
from gpt_keras.config import GPTConfig
from gpt_keras.decoding import Decoder
from gpt_keras.lora import add_lora, hold_frozen
from gpt_keras.model import GPT

from .conftest import TENSORFLOW, build

CONFIG = GPTConfig(
    num_layers=1, num_heads=2, hidden_dim=16, vocabulary_size=32, context_length=16, initializer_range=0.3
)
PROMPT = [[3, 1, 4, 1, 5]]


@pytest.fixture
def model():
    return build(CONFIG)


def two_steps(decoder: Decoder) -> np.ndarray:
    rows = decoder.start(PROMPT, 4)
    rows.advance(np.array([9], np.int32))
    rows.advance(np.array([2], np.int32))
    return np.asarray(rows.logits)


def set_one(kernel):
    value = np.array(kernel)
    value[3, 5] += 0.5
    kernel.assign(value)


def swap_rows(kernel):
    kernel.assign(np.array(kernel)[[1, 0, *range(2, kernel.shape[0])]])


def swap_columns(kernel):
    kernel.assign(np.array(kernel)[:, [1, 0, *range(2, kernel.shape[1])]])


def in_a_graph(kernel):
    """Where nothing but the variable itself can know of it."""
    import tensorflow as tf

    tf.function(lambda: kernel.value.assign(2 * kernel.value))()


CHANGES = [set_one, swap_rows, swap_columns, pytest.param(in_a_graph, marks=pytest.mark.tensorflow)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("part", ["attention.value", "feed_forward.down"])
def test_a_generation_sees_every_change_of_a_kernel_before_it(model, change, part):
    decoder = Decoder(model)
    before = two_steps(decoder)
    layer = model.blocks[0]
    for name in part.split("."):
        layer = getattr(layer, name)
    change(layer.kernel)
    after = two_steps(decoder)
    np.testing.assert_allclose(after, two_steps(Decoder(model)), atol=1e-5)
    assert abs(after - before).max() > 1e-3


def test_what_has_not_changed_is_not_copied_again(model):
    copied = compilation.TransposedKernels(model)
    copied.refresh()
    first = {key: value if not TENSORFLOW else value.numpy().tobytes() for key, value in copied.copies.items()}
    assert len(first) == 6  # query, key, value, output; up, down
    if TENSORFLOW:
        for copy in copied.copies.values():
            copy.assign(copy * 0)  # would be made good by another copy
    copied.refresh()
    for key, value in copied.copies.items():
        assert (not np.asarray(value).any()) if TENSORFLOW else value is first[key]


@pytest.mark.parametrize("frozen", [False, True])
def test_on_a_cpu_a_bfloat16_model_generates_in_float32(model, frozen):
    """And goes on to compute in its own dtype elsewhere; kernels that are held in bfloat16 stay so."""
    narrow = GPT(CONFIG, dtype="mixed_bfloat16")
    if frozen:
        for each in (model, narrow):
            add_lora(each, 2)
        hold_frozen(narrow, "bfloat16")
        for variable in model.variables:
            if variable.path.endswith("/kernel"):
                variable.assign(ops.cast(ops.cast(variable, "bfloat16"), "float32"))
    weights = {variable.path: variable for variable in model.variables}
    for variable in narrow.variables:
        variable.assign(weights[variable.path])
    np.testing.assert_allclose(two_steps(Decoder(narrow)), two_steps(Decoder(model)), atol=1e-5)
    assert narrow.compute_dtype == "bfloat16"
    assert keras.backend.standardize_dtype(narrow(np.array(PROMPT)).dtype) == "bfloat16"


def test_a_model_too_large_for_copies_gives_the_same(model, monkeypatch):
    expected = two_steps(Decoder(model))
    monkeypatch.setattr(compilation, "physical_memory", lambda: 1000)
    decoder = Decoder(model)
    np.testing.assert_allclose(two_steps(decoder), expected, atol=1e-5)
    assert not compilation.TransposedKernels(model).copies


@pytest.mark.parametrize("shape", [(16,), (1, 16), (5, 16), (2, 3, 16)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_products_of_few_rows_are_products(shape, dtype):
    random = np.random.default_rng(0)
    x, matrix = random.standard_normal(shape), random.standard_normal((24, 16))
    variable, copy = keras.Variable(matrix.T, dtype="float32"), ops.convert_to_tensor(matrix, dtype="float32")

    def products(x):
        with kernels.few_rows({id(variable): copy}):
            return kernels.linear(x, variable), kernels.project_to_vocabulary(x, ops.cast(copy, dtype))

    if TENSORFLOW:
        import tensorflow as tf

        products = tf.function(products, jit_compile=True)
    for product in products(ops.convert_to_tensor(x, dtype=dtype)):
        found = np.asarray(ops.cast(product, "float32"))
        np.testing.assert_allclose(found, x @ matrix.T, atol=1e-4 if dtype == "float32" else 0.2)
