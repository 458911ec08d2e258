import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.data.errors import InputError
from gpt_keras.data.pretraining import Batches, permute, validation_windows


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
@settings(max_examples=50, deadline=None)
def test_permute_is_a_permutation(size, key):
    assert sorted(permute(i, size, key) for i in range(size)) == list(range(size))


def test_permute_looks_random():
    size = 5000
    order = np.array([permute(i, size, 1) for i in range(size)])
    assert abs(np.corrcoef(np.arange(size), order)[0, 1]) < 0.05
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.05


def test_batch_n_is_the_same_wherever_one_starts(corpus):
    batches = Batches(corpus.streams["train"], 32, 4, seed=5)
    sequential = [tuple(part.numpy() for part in batch) for batch in batches.dataset(0, 40)]
    for start in (0, 1, 7, 39):
        first = next(iter(batches.dataset(start)))
        assert all(np.array_equal(a, b) for a, b in zip(first, sequential[start], strict=True))
    assert not np.array_equal(sequential[0][0], Batches(corpus.streams["train"], 32, 4, seed=6).batch(0)[0])


def test_targets_are_the_tokens_one_further(corpus):
    tokens, targets = Batches(corpus.streams["train"], 32, 4).batch(3)
    assert np.array_equal(tokens[:, 1:], targets[:, :-1])


def test_an_epoch_visits_every_window_once(corpus):
    stream = corpus.streams["train"]
    batches = Batches(stream, 32, 1, seed=2)
    for epoch in (0, 1):
        draws = range(epoch * batches.num_windows, (epoch + 1) * batches.num_windows)
        starts = sorted(batches._start(draw) for draw in draws)
        assert np.all(np.diff(starts) == 32)
        assert starts[0] < 32
        assert starts[-1] + 33 <= len(stream)


def test_hosts_share_the_same_sequence(corpus):
    stream = corpus.streams["train"]
    whole = Batches(stream, 32, 6, seed=1).batch(4)[0]
    parts = [Batches(stream, 32, 6, seed=1, host=host, num_hosts=3).batch(4)[0] for host in range(3)]
    assert np.array_equal(whole, np.stack(parts, axis=1).reshape(6, 32))


def test_a_context_longer_than_the_corpus_says_how_long_it_may_be(corpus):
    stream = corpus.streams["train"]
    with pytest.raises(InputError, match=r"--context-length \d+ or less") as error:
        Batches(stream, len(stream), 1)
    possible = int(str(error.value).split("--context-length ")[1].split(" ")[0])
    Batches(stream, possible, 1).batch(0)


def test_validation_windows_score_every_token_once(corpus):
    stream = corpus.streams["validation"]
    ids = stream.read(0, len(stream))
    scored = []
    for tokens, targets, weights in validation_windows(corpus, 48, 4):
        assert tokens.shape == targets.shape == weights.shape == (4, 48)
        for row in range(4):
            count = int(weights[row].sum())
            assert np.all(weights[row, :count] == 1)
            scored.append(targets[row, :count])
    assert np.array_equal(np.concatenate(scored), ids[ids != corpus.tokenizer.begin_id])
