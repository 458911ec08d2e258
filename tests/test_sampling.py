import functools

import keras
import numpy as np
import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from gpt_keras import sampling
from gpt_keras.data.errors import InputError
from gpt_keras.sampling_options import SamplingOptions
from tests.conftest import TENSORFLOW

LOGITS = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32) * 2
F = np.float32


def random_logits(rows: int, vocabulary: int, spread: float = 3.0, seed: int = 0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, vocabulary)) * spread).astype(np.float32)


@functools.cache
def compile_function(function):
    if TENSORFLOW:
        import tensorflow as tf

        return tf.function(function, autograph=False)
    import jax

    return jax.jit(function)


def compiled(function, *arguments):
    """The function's results as arrays, compiled by the backend."""
    arguments = [keras.ops.convert_to_tensor(argument) for argument in arguments]
    return keras.tree.map_structure(np.asarray, compile_function(function)(*arguments))


def columns(rows: int, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> list[np.ndarray]:
    """The same settings for every row."""
    values = (F(temperature), np.int32(top_k), F(top_p), F(min_p))
    return [np.full((rows, 1), value) for value in values]


def theirs(processors, logits: np.ndarray, ids=None) -> np.ndarray:
    """What transformers makes of the logits."""
    ids = torch.zeros((len(logits), 1), dtype=torch.long) if ids is None else torch.tensor(ids, dtype=torch.long)
    scores = torch.tensor(logits)
    for processor in processors:
        scores = processor(ids, scores)
    return scores.numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


CUTS = [
    {},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 300},
    {"top_p": 0.05},
    {"top_p": 0.7},
    {"top_p": 0.99},
    {"min_p": 0.1},
    {"top_k": 30, "top_p": 0.8},
    {"top_k": 400, "top_p": 0.95, "min_p": 0.01},
    {"top_k": 5000},
]


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("spread", [0.3, 3.0])  # flat ones need all of the vocabulary sorted
def test_the_cuts_are_those_of_transformers(cuts, spread):
    logits = random_logits(4, 1000, spread)
    warpers = [TemperatureLogitsWarper(0.8)]
    warpers += [TopKLogitsWarper(cuts["top_k"])] if "top_k" in cuts else []
    warpers += [TopPLogitsWarper(cuts["top_p"])] if "top_p" in cuts else []
    warpers += [MinPLogitsWarper(cuts["min_p"])] if "min_p" in cuts else []
    expected = theirs(warpers, logits)
    ours = compiled(sampling.warp, logits, *columns(4, 0.8, **cuts))
    assert np.array_equal(np.isinf(ours), np.isinf(expected))
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


@pytest.mark.parametrize("names", [(), ("top_k",), ("top_p",), ("min_p",), ("top_k", "min_p")])
def test_leaving_a_cut_out_is_turning_it_off(names):
    logits = random_logits(3, 600)
    values = {"top_k": 9, "top_p": 0.8, "min_p": 0.05}
    given = {name: np.int32(values[name]) if name == "top_k" else F(values[name]) for name in names}
    left_out = compiled(lambda x: sampling.warp(x, F(0.5), **given), logits)
    off = compiled(sampling.warp, logits, *columns(3, 0.5, **{name: values[name] for name in names}))
    np.testing.assert_allclose(left_out, off, rtol=1e-6)
    if not names:
        np.testing.assert_allclose(left_out, logits / 0.5, rtol=1e-6)


def test_rows_have_their_own_settings():
    logits = random_logits(5, 600, 0.5)
    settings = [(1.0, 3, 1.0, 0.0), (0.0, 0, 1.0, 0.0), (0.5, 0, 0.9, 0.0), (2.0, 0, 1.0, 0.3), (0.7, 450, 0.99, 0.1)]
    mixed = [np.concatenate(column) for column in zip(*(columns(1, *values) for values in settings), strict=True)]
    together = compiled(sampling.warp, logits, *mixed)
    for row, values in enumerate(settings):
        same = compiled(sampling.warp, logits, *columns(5, *values))
        np.testing.assert_allclose(together[row], same[row], rtol=1e-6)
    assert np.flatnonzero(np.isfinite(together[1])).tolist() == [logits[1].argmax()]
    drawn = compiled(sampling.sample, logits, np.full(5, 0.999, F), *mixed)
    assert drawn[1] == logits[1].argmax()
    assert np.isfinite(together[np.arange(5), drawn]).all()


def test_equal_logits_are_cut_by_id_in_the_nucleus_and_together_by_top_k():
    logits = np.zeros((1, 8), F)
    nucleus = compiled(sampling.warp, logits, *columns(1, top_p=0.5))
    assert np.flatnonzero(np.isfinite(nucleus[0])).tolist() == [0, 1, 2, 3]
    assert np.isfinite(compiled(sampling.warp, logits, *columns(1, top_k=2))).all()
    assert np.isfinite(compiled(sampling.warp, logits, *columns(1, temperature=0))).sum() == 1
    nucleus = compiled(sampling.warp, np.zeros((1, 1000), F), *columns(1, top_p=0.75))
    assert np.flatnonzero(np.isfinite(nucleus[0])).tolist() == list(range(750))


@pytest.mark.parametrize(
    ("temperature", "cuts"),
    [(1.0, {}), (0.5, {}), (1.5, {"top_k": 7}), (1.0, {"top_p": 0.6}), (0.8, {"top_k": 12, "top_p": 0.9}),
     (1.2, {"top_k": 20, "top_p": 0.95, "min_p": 0.02})],
)  # fmt: skip
@pytest.mark.parametrize("vocabulary", [40, 700])
def test_draws_follow_the_exact_probabilities(temperature, cuts, vocabulary):
    logits = LOGITS if vocabulary == 40 else random_logits(1, vocabulary, 2.0)
    expected = softmax(compiled(sampling.warp, logits, *columns(1, temperature, **cuts)))[0]
    count = 20000 if vocabulary == 40 else 4000
    uniform = np.random.default_rng(1).random(count, dtype=np.float32)
    drawn = compiled(sampling.sample, np.repeat(logits, count, 0), uniform, *columns(count, temperature, **cuts))
    observed = np.bincount(drawn, minlength=vocabulary)
    assert observed[expected == 0].sum() == 0
    kept = expected * count >= 5
    statistic = ((observed[kept] - expected[kept] * count) ** 2 / (expected[kept] * count)).sum()
    assert statistic < kept.sum() + 5 * np.sqrt(2 * kept.sum())  # five standard deviations of a chi-square


def test_no_draw_leaves_what_is_kept():
    draw, rows = np.random.default_rng(2), 300
    logits = random_logits(rows, 600, 2.0)
    uniform = draw.random(rows, dtype=np.float32)
    uniform[::3], uniform[1::9] = np.nextafter(F(1), F(0)), 0.0
    cuts = [
        draw.choice([0.0, 1e-9, 0.3, 1.0, 3.0], (rows, 1)).astype(F),
        draw.choice([0, 1, 5, 50, 300], (rows, 1)).astype(np.int32),
        draw.choice([0.01, 0.3, 0.9, 0.999999, 1.0], (rows, 1)).astype(F),
        draw.choice([0.0, 0.01, 0.5, 1.0], (rows, 1)).astype(F),
    ]
    kept = np.isfinite(compiled(sampling.warp, logits, *cuts))
    drawn = compiled(sampling.sample, logits, uniform, *cuts)
    assert kept[np.arange(rows), drawn].all()


@pytest.mark.tensorflow
def test_a_graph_for_any_batch_size_can_be_built():
    import tensorflow as tf

    @tf.function(input_signature=[tf.TensorSpec([None, 600]), tf.TensorSpec([None]), tf.TensorSpec([None, 1])])
    def graph(logits, uniform, temperature):
        logits = sampling.penalize(logits, tf.ones([tf.shape(logits)[0], 3], tf.int32), tf.zeros([1], tf.int32), 1.2)
        return sampling.sample(logits, uniform, temperature, np.int32(5), F(0.9), F(0.1))

    logits = random_logits(3, 600)
    logits[:, 1] = 0.0
    drawn = graph(logits, np.zeros(3, F), np.zeros((3, 1), F))
    assert np.array_equal(drawn, logits.argmax(-1))


def test_greedy_takes_the_largest_and_the_smallest_id_among_equals():
    assert int(np.asarray(sampling.greedy(LOGITS))[0]) == LOGITS.argmax()
    equal = np.array([[1, 3, 3, 2], [5, 5, 5, 5], [-np.inf, -np.inf, -1, -np.inf]], F)
    assert np.asarray(sampling.greedy(equal)).tolist() == [1, 0, 2]


def test_the_repetition_penalty_is_that_of_transformers():
    logits, ids = random_logits(3, 50), np.random.default_rng(1).integers(0, 50, (3, 12))
    expected = theirs([RepetitionPenaltyLogitsProcessor(1.7)], logits, ids)
    padded = np.concatenate([ids, np.full((3, 4), -1)], 1).astype(np.int32)
    ours = compiled(
        lambda *a: sampling.penalize(*a, repetition_penalty=F(1.7)), logits, padded, np.full(3, 5, np.int32)
    )
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_presence_and_frequency_penalties_count_new_tokens_alone():
    logits = random_logits(2, 10)
    history = np.array([[1, 2, 3, 3, 3, -1], [1, 1, 2, 5, -1, -1]], np.int32)
    ours = compiled(
        lambda *a: sampling.penalize(*a, presence_penalty=F(0.5), frequency_penalty=np.array([[0.25], [0.0]], F)),
        logits, history, np.array([2, 3], np.int32),
    )  # fmt: skip
    expected = logits.copy()
    expected[0, 3] -= 0.5 + 3 * 0.25
    expected[1, 5] -= 0.5
    np.testing.assert_allclose(ours, expected, rtol=1e-6)


def test_forbidden_tokens_are_never_drawn_as_in_transformers():
    logits, banned = random_logits(2, 30), [3, 4, 29]
    allowed = np.ones((2, 30), bool)
    allowed[:, banned] = False
    ours = compiled(sampling.apply_mask, logits, allowed)
    assert np.array_equal(ours, theirs([SuppressTokensLogitsProcessor(banned)], logits))
    only = np.zeros((2, 30), bool)
    only[:, 7] = True
    masked = compiled(sampling.apply_mask, logits, only)
    cuts = columns(2, 0.7, 5, 0.9, 0.1)
    assert np.isfinite(sampling.log_probabilities(masked, np.array([7, 7]))).all()
    assert compiled(sampling.sample, masked, np.array([0.0, 0.99], F), *cuts).tolist() == [7, 7]


def test_log_probabilities_are_those_of_the_softmax():
    logits = random_logits(3, 60)
    expected = np.log(softmax(logits))
    tokens = np.array([5, 0, 59], np.int32)
    ours = compiled(sampling.log_probabilities, logits, tokens)
    np.testing.assert_allclose(ours, expected[np.arange(3), tokens], rtol=1e-5)


def test_philox_gives_the_published_numbers():
    """The test vectors of the authors' library, Random123."""
    counters = np.array([[0] * 4, [0xFFFFFFFF] * 4, [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344]], np.uint64)
    keys = np.array([[0] * 2, [0xFFFFFFFF] * 2, [0xA4093822, 0x299F31D0]], np.uint64)
    expected = [
        [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8],
        [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ]
    assert np.array_equal(np.stack(sampling.philox(counters.T, keys.T), 1), np.array(expected, np.uint64))


def test_a_rows_draws_depend_on_its_own_key_and_position_only():
    keys = [(3, sampling.prompt_hash([1, 2]), 0), (3, sampling.prompt_hash([1, 2]), 1), (2**64 - 1, 2**64 - 1, 7)]
    together = sampling.uniforms(keys, 7)
    assert together.dtype == np.float32
    assert np.array_equal(together[1:2], sampling.uniforms(keys[1:2], 7))
    assert sampling.uniforms(keys, [7, 8, 7])[[0, 2]].tolist() == together[[0, 2]].tolist()
    assert sampling.uniforms([], 0).shape == (0,)
    assert (
        sampling.prompt_hash([1, 2]) == sampling.prompt_hash(np.array([1, 2], np.int32)) != sampling.prompt_hash([2, 1])
    )


@pytest.mark.parametrize("part", ["seed", "prompt", "number", "position"])
def test_draws_are_uniform_and_independent_along_every_part_of_the_key(part):
    count = 20000
    spots = range(count)
    if part == "position":
        draws = sampling.uniforms([(5, 6, 7)] * count, spots)
    else:
        makes = {"seed": lambda i: (i, 6, 7), "prompt": lambda i: (5, i << 20, 7), "number": lambda i: (5, 6, i)}
        draws = sampling.uniforms([makes[part](i) for i in spots], 9)
    assert draws.min() >= 0 and draws.max() < 1
    # 16 bins of a draw, times 16 of the next: chi-square with 255 degrees of freedom, five standard deviations.
    pairs = np.histogram2d(draws[:-1], draws[1:], bins=16, range=[[0, 1], [0, 1]])[0]
    expected = (count - 1) / 256
    assert ((pairs - expected) ** 2 / expected).sum() < 255 + 5 * np.sqrt(2 * 255)


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5},
     {"max_new_tokens": 0}, {"seed": -1}],
)  # fmt: skip
def test_senseless_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SamplingOptions(**options)
