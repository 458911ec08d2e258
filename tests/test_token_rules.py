"""The rules of sets, against transformers' processors of the same names."""

import numpy as np
import pytest
import torch
from transformers import (
    MinNewTokensLengthLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from gpt_keras.data.errors import InputError
from gpt_keras.structured import Form, Vocabulary
from gpt_keras.token_rules import All, AllowedTokens, BannedTokens, MinNewTokens, NoRepeatNgrams


def theirs(processor, ids) -> np.ndarray:
    scores = processor(torch.tensor([ids], dtype=torch.long), torch.zeros((1, 20)))
    return np.isfinite(scores.numpy()[0])


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_n_grams_do_not_repeat_as_in_transformers(size):
    rule, history = NoRepeatNgrams(size, 20), []
    for token in np.random.default_rng(size).integers(0, 4 if size > 1 else 19, 40):
        history.append(int(token))
        ours = rule.allowed(history, 3, 9)
        expected = theirs(NoRepeatNGramLogitsProcessor(size), history)
        assert np.array_equal(np.ones(20, bool) if ours is None else ours, expected)
    other = [1, 2, 3, 1, 2]
    ours = rule.allowed(other, 0, 9)  # another history is read from its start
    assert np.array_equal(
        np.ones(20, bool) if ours is None else ours, theirs(NoRepeatNGramLogitsProcessor(size), other)
    )


def test_the_end_waits_for_the_least_number_of_new_tokens_as_in_transformers():
    rule = MinNewTokens(3, [4, 5], 20)
    for new in range(6):
        ids = [7] * (2 + new)
        expected = theirs(MinNewTokensLengthLogitsProcessor(2, 3, [4, 5], device="cpu"), ids)
        ours = rule.allowed(ids, 2, 9)
        assert np.array_equal(np.ones(20, bool) if ours is None else ours, expected)


def test_banned_and_allowed_tokens():
    assert np.array_equal(
        BannedTokens([1, 19], 20).allowed([0], 1, 9), theirs(SuppressTokensLogitsProcessor([1, 19]), [0])
    )
    assert np.flatnonzero(AllowedTokens([3, 4], 20).allowed([0], 1, 9)).tolist() == [3, 4]
    for wrong in (lambda: BannedTokens([20], 20), lambda: AllowedTokens([], 20), lambda: NoRepeatNgrams(0, 20)):
        with pytest.raises(InputError):
            wrong()


def test_a_rule_that_would_leave_nothing_gives_way_to_those_before_it():
    a, end = 0, 2
    form = Form(Vocabulary([b"a", b"b", b""], [end]).automaton(regex="aaaa"), 4)
    rule = All([form, NoRepeatNgrams(1, 3), MinNewTokens(9, [end], 3)])
    assert np.flatnonzero(rule.allowed([1, a], 1, 3)).tolist() == [a]
    assert np.flatnonzero(rule.allowed([1, a, a, a, a], 1, 0)).tolist() == [end]
    assert All([]).allowed([1], 1, 1) is None
