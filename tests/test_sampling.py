import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras import sampling
from gpt_keras.data.errors import InputError
from gpt_keras.generation import SamplingOptions

LOGITS = np.random.default_rng(0).normal(size=(1, 40)).astype(np.float32) * 2


def distribution(temperature=1.0, top_k=0, top_p=1.0) -> np.ndarray:
    """The exact probabilities, the slow way."""
    logits = LOGITS[0].astype(np.float64) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0.0
        p /= p.sum()
    before = np.concatenate([[0.0], np.cumsum(p[order])[:-1]])
    p[order[before >= top_p]] = 0.0
    return p / p.sum()


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.5, 0, 1.0), (1.5, 7, 1.0), (1.0, 0, 0.6), (0.8, 12, 0.9)]
)
def test_draws_follow_the_exact_probabilities(temperature, top_k, top_p):
    expected = distribution(temperature, top_k, top_p)
    count = 20000
    uniform = np.random.default_rng(1).random(count, dtype=np.float32)
    logits = keras.ops.convert_to_tensor(np.repeat(LOGITS, count, 0))
    drawn = np.asarray(sampling.sample(logits, uniform, np.float32(temperature), np.int32(top_k), np.float32(top_p)))
    observed = np.bincount(drawn, minlength=40)
    assert observed[expected == 0].sum() == 0
    kept = expected * count >= 5
    statistic = ((observed[kept] - expected[kept] * count) ** 2 / (expected[kept] * count)).sum()
    assert statistic < kept.sum() + 5 * np.sqrt(2 * kept.sum())  # five standard deviations of a chi-square


@given(uniform=st.floats(0, 1, exclude_max=True, width=32), top_p=st.floats(0.0078125, 1, width=32))
@settings(max_examples=50, deadline=None)
def test_no_draw_leaves_the_nucleus(uniform, top_p):
    logits, uniform = keras.ops.convert_to_tensor(LOGITS), np.array([uniform], np.float32)
    token = int(np.asarray(sampling.sample(logits, uniform, np.float32(1), np.int32(5), np.float32(top_p)))[0])
    assert distribution(1.0, 5, min(1.0, top_p + 1e-4))[token] > 0


def test_greedy_takes_the_largest():
    assert int(np.asarray(sampling.greedy(LOGITS))[0]) == LOGITS.argmax()


def test_uniforms_depend_on_seed_row_and_position_only():
    assert np.array_equal(sampling.uniforms(3, 5, 7)[:2], sampling.uniforms(3, 2, 7))
    flat = np.concatenate([sampling.uniforms(seed, 50, place) for seed in range(4) for place in range(50)])
    assert len(np.unique(flat)) > 0.99 * len(flat)
    assert abs(flat.mean() - 0.5) < 0.01


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}, {"top_p": 0}, {"top_p": 1.5},
     {"max_new_tokens": 0}, {"seed": -1}],
)  # fmt: skip
def test_senseless_options_are_named(options):
    with pytest.raises(InputError, match=next(iter(options))):
        SamplingOptions(**options)
