"""Matrices in few bits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.config import GPTConfig

from ..conftest import build, random_ids
from .test_decoder import LLAMA, SHAPE

pytestmark = pytest.mark.tensorflow


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 99), width=st.sampled_from([40, 64, 200]), bits=st.sampled_from([8, 4]))
def test_what_is_compensated_multiplies_better_than_the_nearest(seed, width, bits):
    from gpt_keras.litert.rounding import compensated, nearest

    random = np.random.default_rng(seed)
    matrix = random.standard_normal((30, width)).astype(np.float32)
    mixing = random.standard_normal((width, width)).astype(np.float32) * np.linspace(2, 0.01, width, dtype=np.float32)
    x = random.standard_normal((4 * width, width)).astype(np.float32) @ mixing.T
    found, plain = compensated(matrix, x.T @ x, bits), nearest(matrix, bits)
    most = 2 ** (bits - 1) - 1
    for quantized in (found, plain):
        assert quantized.values.shape == matrix.shape and np.abs(quantized.values).max() <= most
    assert np.abs(plain.dequantized - matrix).max() <= 0.501 * plain.scales.max()
    errors = [np.linalg.norm(x @ (quantized.dequantized - matrix).T) for quantized in (found, plain)]
    assert errors[0] < 0.7 * errors[1]


def test_second_moments_are_of_what_the_matrices_read():
    from gpt_keras.litert import graph

    model = build(GPTConfig(**{**SHAPE, **LLAMA}))
    values = [np.asarray(v, np.float32) for v in model.weights]
    values = {graph.weight_name(i): v.T if graph.is_kernel(model.weights[i]) else v for i, v in enumerate(values)}
    ids = random_ids((9, 9), model.config.vocabulary_size)  # more than are read at a time
    readers = [names[0] for names in graph.readers(model)]
    found = graph.second_moments(model, values, ids, set(readers))
    assert set(found) == set(readers)
    states = np.concatenate([np.asarray(model.hidden_states(row[None])[0])[0] for row in ids])
    head = found[readers[-1]]  # the final norm's output is what the head reads
    np.testing.assert_allclose(head, states.T @ states, rtol=1e-3, atol=1e-3)


def test_a_file_says_it_as_googles_quantizer_does(tmp_path):
    """Types, scales and bytes of all matrices, rounded to nearest."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_quantizer import qtyping, quantizer
    from ai_edge_quantizer.recipe_manager import RecipeManager

    from gpt_keras.litert import graph
    from gpt_keras.litert.assembly import Template, assemble, prime_sizes
    from gpt_keras.litert.rounding import nearest
    from gpt_keras.litert.sizes import Sizes

    model = build(GPTConfig(**{**SHAPE, "num_layers": 1}))
    primes = prime_sizes(model.config, rows=False)
    template = Template(graph.convert(model, graph.EngineForm, primes, True), primes)
    functions = [("prefill_8", template, Sizes(1, 64, 8))]
    values = {
        graph.weight_name(i): np.ascontiguousarray(np.asarray(v).T if graph.is_kernel(v) else np.asarray(v))
        for i, v in enumerate(model.weights)
    }
    matrices = {name for names in graph.readers(model) for name in names} | {graph.table_name(model)}
    (tmp_path / "float32.tflite").write_bytes(assemble(functions, values))
    for bits in (8, 4):
        recipe = RecipeManager()
        for operation in (qtyping.TFLOperationName.FULLY_CONNECTED, qtyping.TFLOperationName.EMBEDDING_LOOKUP):
            recipe.add_dynamic_config(regex=".*", operation_name=operation, num_bits=bits)
        done = quantizer.Quantizer(str(tmp_path / "float32.tflite"), recipe.get_quantization_recipe()).quantize()
        file_of_ours = assemble(functions, {n: nearest(v, bits) if n in matrices else v for n, v in values.items()})
        found = []
        for content in (file_of_ours, bytes(done.quantized_model)):
            file = schema.ModelT.InitFromObj(schema.Model.GetRootAs(content, 0))
            for buffer in file.buffers:
                if buffer.offset > 1:
                    buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
            kept = (schema.TensorType.INT8, schema.TensorType.INT4)
            found.append(
                {t.name: (t, file.buffers[t.buffer].data) for t in file.subgraphs[0].tensors if t.type in kept}
            )
        assert set(found[0]) == set(found[1]) and len(found[0]) == len(matrices)
        for name, (tensor, data) in found[0].items():
            other, bytes_of_it = found[1][name]
            assert tensor.type == other.type and (tensor.shape == other.shape).all()
            np.testing.assert_allclose(tensor.quantization.scale, other.quantization.scale, rtol=1e-6)
            assert (
                np.asarray(tensor.quantization.zeroPoint) == 0
            ).all() and tensor.quantization.quantizedDimension == 0
            assert (np.asarray(data) == np.asarray(bytes_of_it)).all()
