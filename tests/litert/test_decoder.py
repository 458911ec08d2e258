"""What LiteRT computes is what Keras computes: every architecture, mixed lengths, long prompts, many rows."""

import numpy as np
import pytest

from gpt_keras.config import GPTConfig
from gpt_keras.decoding import Decoder
from gpt_keras.generation import Generator
from gpt_keras.litert.decoder import LiteRTDecoder
from gpt_keras.litert.runtime import LiteRTFile
from gpt_keras.sampling_options import SamplingOptions

from ..conftest import build, random_ids, slow_but

pytestmark = pytest.mark.tensorflow
CONTEXT = 400
SHAPE = {"vocabulary_size": 96, "num_layers": 2, "hidden_dim": 32, "num_heads": 4, "context_length": CONTEXT}
LLAMA = {
    "position": "rotary",
    "num_key_value_heads": 2,
    "normalization": "rms_norm",
    "feed_forward": "swiglu",
    "use_bias": False,
}
STYLES = {
    "gpt2": {},
    "openai-gpt": {"norm_order": "post", "feed_forward": "gelu"},
    "llama": LLAMA,
    "qwen3": {**LLAMA, "qk_norm": True, "head_dim": 16},
    "untied": {**LLAMA, "tie_embeddings": False},
    "sinusoidal": {"position": "sinusoidal", "feed_forward": "relu"},
    "short": {"context_length": 50},
}


def make(model, weights, folder):
    from gpt_keras.litert.conversion import row_file

    (folder / "model.tflite").write_bytes(row_file(model, weights))
    return LiteRTDecoder(LiteRTFile(folder / "model.tflite", folder / "packed"), model.config)


@pytest.fixture(scope="module", params=slow_but(STYLES, "qwen3"))
def pair(request, tmp_path_factory):
    model = build(GPTConfig(**{**SHAPE, **STYLES[request.param]}))
    return model, make(model, "float32", tmp_path_factory.mktemp(request.param))


def prompts(lengths):
    return [random_ids((1, length), 96, seed=i)[0].tolist() for i, length in enumerate(lengths)]


def lengths_for(config):
    return [1, 2, 7, 16, 17, 31, 33, 40] + [70, 130, 257, 258, 390] * (config.context_length == CONTEXT)


def test_texts_of_mixed_lengths_are_kerass(pair):
    model, decoder = pair
    given = prompts(lengths_for(model.config))
    options = SamplingOptions(max_new_tokens=9)
    ours = Generator(None, None, frozenset(), decoder).complete(given, options)
    for prompt, (completion,) in zip(given, ours, strict=True):
        (theirs,) = Generator(model, None).complete([prompt], options)[0]
        assert completion.token_ids == theirs.token_ids


def test_logits_are_kerass(pair):
    model, decoder = pair
    given = prompts([5, 20, 12])
    ours, theirs = decoder.start(given, 8), Decoder(model).start(given, 8)
    for step in range(4):
        np.testing.assert_allclose(np.asarray(ours.logits)[:3], np.asarray(theirs.logits)[:3], atol=2e-4)
        tokens = np.array([step, 5, 60], np.int32)
        for rows in (ours, theirs):
            rows.advance(np.resize(tokens, rows.batch_size))
        if step == 1:
            for rows in (ours, theirs):
                rows.take([2, 0, 2])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    model = build(GPTConfig(**{**SHAPE, **LLAMA}))
    return model, make(model, "float32", tmp_path_factory.mktemp("llama"))


def test_more_rows_than_one_function_takes(llama):
    model, decoder = llama
    given = prompts([3 + i % 29 for i in range(37)])
    options = SamplingOptions(max_new_tokens=5, temperature=0.8, seed=3, num_sequences=2)
    ours = Generator(None, None, frozenset(), decoder).complete(given, options)
    theirs = Generator(model, None).complete(given, options)
    assert [[c.token_ids for c in row] for row in ours] == [[c.token_ids for c in row] for row in theirs]


def test_beam_search_and_a_context_that_slides(llama):
    model, decoder = llama
    for options in (
        SamplingOptions(max_new_tokens=6, num_beams=3),
        SamplingOptions(max_new_tokens=30, sliding=True),
    ):
        given = prompts([9, 395 if options.sliding else 20])
        ours = Generator(None, None, frozenset(), decoder).complete(given, options)
        theirs = Generator(model, None).complete(given, options)
        assert [row[0].token_ids for row in ours] == [row[0].token_ids for row in theirs]


@pytest.mark.parametrize(
    ("weights", "error", "size"), [("int8", 0.03, 1.0), pytest.param("int4", 0.3, 0.5, marks=pytest.mark.slow)]
)
def test_quantized_weights_stay_close_and_small(weights, error, size, tmp_path):
    model = build(GPTConfig(**{**SHAPE, **LLAMA, "hidden_dim": 128, "vocabulary_size": 2048, "num_layers": 3}))
    decoder = make(model, weights, tmp_path)
    given = [random_ids((1, 24), 2048)[0].tolist()]
    ours, theirs = (np.asarray(d.start(given, 8).logits)[0] for d in (decoder, Decoder(model)))
    assert np.linalg.norm(ours - theirs) < error * np.linalg.norm(theirs)
    matrices = sum(int(np.prod(v.shape)) for v in model.weights if len(v.shape) > 1)
    table = int(np.prod(model.embedding.token_embedding.shape))  # what it loses takes 4 bits
    others = (tmp_path / "model.tflite").stat().st_size - size * matrices - table // 2
    functions = len(LiteRTFile(tmp_path / "model.tflite").functions)
    assert others < 150_000 * functions  # each is a graph of a few hundred operations, around the one set of weights


@pytest.mark.parametrize("vocabulary", [10_008, 10_020])
def test_sizes_that_stand_for_others_are_none_of_the_models(vocabulary, tmp_path):
    model = build(GPTConfig(**{**SHAPE, "vocabulary_size": vocabulary, "num_layers": 1}))
    options = SamplingOptions(max_new_tokens=3)
    ours = Generator(None, None, frozenset(), make(model, "float32", tmp_path)).complete(prompts([3, 300]), options)
    assert [row[0].token_ids for row in ours] == [
        Generator(model, None).complete([prompt], options)[0][0].token_ids for prompt in prompts([3, 300])
    ]


def test_a_damaged_file_is_told(tmp_path):
    from gpt_keras.data.errors import InputError

    (tmp_path / "model.tflite").write_bytes(b"TFL3" * 100)
    with pytest.raises(InputError, match="not a whole LiteRT file"):
        LiteRTFile(tmp_path / "model.tflite")
    with pytest.raises(InputError, match="no such file"):
        LiteRTFile(tmp_path / "none.tflite")
