"""Scores of continuations against the plain model's logits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_keras.config import GPTConfig
from gpt_keras.data.errors import InputError
from gpt_keras.evaluation.scoring import Scored, Scorer

from ..conftest import build, random_ids

CONTEXT, VOCABULARY = 40, 61


@pytest.fixture(scope="module")
def model():
    config = GPTConfig.from_preset(
        "nano", vocabulary_size=VOCABULARY, context_length=CONTEXT, hidden_dim=32, initializer_range=0.3
    )
    return build(config)


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer(model, padding_id=0, batch_size=4)


def pair(seed: int, context: int, continuation: int) -> tuple[list[int], list[int]]:
    ids = random_ids(context + continuation, VOCABULARY, seed).tolist()
    return ids[:context], ids[context:]


def expected(model, context, continuation) -> Scored:
    """The same from all logits of one row, in float64."""
    if not continuation:
        return Scored(0.0, 0, True)
    ids = np.array([*context, *continuation][-CONTEXT - 1 :], np.int32)
    row = np.zeros((1, CONTEXT), np.int32)  # of one length, so that JAX compiles once
    row[0, : len(ids) - 1] = ids[:-1]
    logits = np.asarray(model(row), np.float64)[0, len(ids) - 1 - len(continuation) : len(ids) - 1]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(continuation)), continuation]
    return Scored(float(losses.sum()), len(continuation), bool((logits.argmax(-1) == continuation).all()))


def check(found: list[Scored], wanted: list[Scored]) -> None:
    assert [(one.tokens, one.greedy) for one in found] == [(one.tokens, one.greedy) for one in wanted]
    np.testing.assert_allclose([one.nats for one in found], [one.nats for one in wanted], atol=1e-4, rtol=1e-5)


@pytest.mark.slow
@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(0, CONTEXT)), max_size=11), seed=st.integers(0, 2**20)
)
@settings(max_examples=25, deadline=None)
def test_scores_are_those_of_the_plain_models_logits_in_the_order_given(model, scorer, lengths, seed):
    pairs = [pair(seed + number, *sizes) for number, sizes in enumerate(lengths)]
    check(scorer.score(pairs), [expected(model, *one) for one in pairs])


def most_probable(model, context: list[int], count: int) -> list[int]:
    ids = list(context)
    for _ in range(count):
        row = np.zeros((1, CONTEXT), np.int32)
        row[0, : len(ids)] = ids
        ids.append(int(np.asarray(model(row))[0, len(ids) - 1].argmax()))
    return ids[len(context) :]


def test_a_continuation_is_greedy_only_if_every_token_is_the_most_probable(model, scorer):
    context, _ = pair(3, 9, 0)
    best = most_probable(model, context, 6)
    pairs = [(context, best)]
    for place in range(6):
        changed = list(best)
        changed[place] = (changed[place] + 1) % VOCABULARY
        pairs.append((context, changed))
    found = scorer.score(pairs)
    assert [one.greedy for one in found] == [True] + [False] * 6
    check(found, [expected(model, *one) for one in pairs])


def test_the_batch_size_changes_no_score(model, scorer):
    pairs = [pair(seed, 1 + 5 * seed % 50, 1 + 3 * seed % 20) for seed in range(13)]
    check(Scorer(model, padding_id=7, batch_size=16).score(pairs), scorer.score(pairs))
    check([Scorer(model, padding_id=7, batch_size=1).score([one])[0] for one in pairs[:2]], scorer.score(pairs[:2]))


def test_long_contexts_lose_tokens_from_the_left(model, scorer):
    context, continuation = pair(5, 3 * CONTEXT, 8)
    kept = context[-(CONTEXT + 1 - 8) :]
    check(scorer.score([(context, continuation)]), [expected(model, kept, continuation)])
    check(scorer.score([(context, continuation)]), scorer.score([(kept, continuation)]))
    whole = pair(6, 1, CONTEXT)
    check(scorer.score([whole]), [expected(model, *whole)])


@pytest.mark.slow
def test_the_number_of_compilations_is_bounded(model):
    scorer = Scorer(model, padding_id=0, batch_size=3)
    for seed in range(60):
        scorer.score([pair(seed + number, 1 + seed * 7 % 55, 1 + (seed + number) * 3 % 39) for number in range(4)])
    # Lengths 16, 24, 32 and 40, and of each at most three widths.
    assert scorer.num_compilations <= 12
    before = scorer.num_compilations
    scorer.score([pair(number, 5 + number, 3) for number in range(10)])
    scorer.score([pair(number, 5 + number, 3) for number in range(7)])
    assert scorer.num_compilations <= before + 1


def test_no_logits_of_a_whole_batch_are_made(model, monkeypatch):
    """The head is asked for the scored places alone, in pieces of the size that it is allowed."""
    from gpt_keras import kernels
    from gpt_keras.kernels import vocabulary_loss

    few, many = [pair(seed, 30, 4) for seed in range(4)], [pair(seed, 5, 35) for seed in range(4)]
    wanted = [expected(model, *one) for one in many]
    sizes: list[int] = []
    project = kernels.project_to_vocabulary

    def watched(x, table):
        sizes.append(x.shape[0] * x.shape[1])
        return project(x, table)

    monkeypatch.setattr(kernels, "project_to_vocabulary", watched)
    Scorer(model, padding_id=0, batch_size=4).score(few)
    assert sum(sizes) <= 4 * 10
    monkeypatch.setattr(vocabulary_loss, "PIECE", 4 * 5 * VOCABULARY)
    sizes.clear()
    check(Scorer(model, padding_id=0, batch_size=4).score(many), wanted)
    assert max(sizes) == 4 * 5


def test_weights_may_change_in_between(model):
    other = build(model.config, seed=1)
    scorer = Scorer(other, padding_id=0, batch_size=2)
    pairs = [pair(seed, 6, 5) for seed in range(3)]
    scorer.score(pairs)
    other.set_weights(model.get_weights())
    check(scorer.score(pairs), [expected(model, *one) for one in pairs])


def test_progress_is_reported_up_to_all_pairs(scorer):
    done: list[int] = []
    scorer.score([pair(seed, 5, seed % 3) for seed in range(9)], done.append)
    assert done == sorted(done)
    assert done[-1] == 9


def test_nothing_to_score_is_no_work(scorer):
    assert scorer.score([]) == []
    assert scorer.score([([1], [])]) == [Scored(0.0, 0, True)]


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (([], [1]), "pair 1 has an empty context"),
        (([1], [2] * (CONTEXT + 1)), "the continuation of pair 1 has 41 tokens"),
        (([1, VOCABULARY], [2]), "pair 1 has a token outside the vocabulary"),
        (([1], [-1]), "pair 1 has a token outside the vocabulary"),
    ],
)
def test_what_cannot_be_scored_is_an_input_error(scorer, bad, words):
    with pytest.raises(InputError, match=words):
        scorer.score([([1], [2]), bad])
    with pytest.raises(InputError, match="batch_size"):
        Scorer(scorer._model, 0, batch_size=0)
