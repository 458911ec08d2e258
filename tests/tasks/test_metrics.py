"""Metrics beside the libraries that define them, and their confidence intervals."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt_keras.tasks import metrics

WORDS = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "table", "quickly", "again", "and", "but"]


def sentences(count: int, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(count)]


REFERENCES, ANSWERS = sentences(40, 1), sentences(40, 2)


def test_bleu_and_chrf_are_sacrebleus():
    import sacrebleu

    chosen = np.array([3, 3, 17, 0, 39, 21])
    for ours, theirs in ((metrics.bleu, sacrebleu.corpus_bleu), (metrics.chrf, sacrebleu.corpus_chrf)):
        metric = ours("x", REFERENCES, ANSWERS)
        assert metric.value == pytest.approx(theirs(ANSWERS, [REFERENCES]).score)
        some = theirs([ANSWERS[i] for i in chosen], [[REFERENCES[i] for i in chosen]]).score
        assert metric.of(chosen) == pytest.approx(some)
        assert ours("x", REFERENCES, REFERENCES).value == pytest.approx(100.0)


def test_rouge_is_rouge_scores():
    from rouge_score import rouge_scorer, scoring

    aggregator = scoring.BootstrapAggregator()
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    for reference, answer in zip(REFERENCES, ANSWERS, strict=True):
        aggregator.add_scores(scorer.score(reference, answer))
    for metric in metrics.rouge(REFERENCES, ANSWERS):
        theirs = aggregator.aggregate()[metric.name]
        low, high = metric.interval()
        assert low == pytest.approx(100 * theirs.low.fmeasure, abs=1.0)
        assert high == pytest.approx(100 * theirs.high.fmeasure, abs=1.0)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_macro_f1_and_accuracy_are_scikit_learns(pairs):
    from sklearn.metrics import accuracy_score, f1_score

    expected, found = (list(side) for side in zip(*pairs, strict=True))
    theirs = f1_score(expected, found, labels=sorted(set(expected)), average="macro", zero_division=0)
    assert metrics.macro_f1("f1", expected, found).value == pytest.approx(theirs)
    assert metrics.accuracy("accuracy", expected, found).value == pytest.approx(accuracy_score(expected, found))


def test_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.55, 0.55])
    right = np.array([True, True, True, False])
    assert metrics.calibration_error("ece", right, confidence).value == pytest.approx(0.5 * 0.05 + 0.5 * 0.05)
    assert metrics.calibration_error("ece", np.array([False]), np.array([1.0])).value == 1.0


@given(st.integers(1, 12), st.data())
def test_pass_at_k_is_the_share_of_choices_with_one_that_passes(n, data):
    passed = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    k = data.draw(st.integers(1, n))
    missed = math.comb(n - sum(passed), k) / math.comb(n, k)
    assert metrics.pass_at_k(k, [passed]).value == pytest.approx(100 * (1 - missed))


def test_distinct_and_repetition_by_hand():
    assert metrics.distinct("d", ["a b a", "a c"], 1).value == pytest.approx(100 * 3 / 5)
    assert metrics.distinct("d", ["a b a", "a b"], 2).value == pytest.approx(100 * 2 / 3)
    assert metrics.repetition("r", ["a b a b a b", "one two"], 2).value == pytest.approx((100 * 3 / 5 + 0) / 2)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    draw = np.random.default_rng(0)
    covered = 0
    for number in range(200):
        low, high = metrics.mean("m", draw.normal(3.0, 1.0, 60)).interval(300, seed=number)
        covered += low <= 3.0 <= high
    assert 0.90 <= covered / 200 <= 0.98


def test_a_missing_package_is_one_line(monkeypatch):
    import sys

    from gpt_keras.data.errors import InputError

    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(InputError, match=r"needs sacrebleu: pip install 'gpt_keras\[eval\]'"):
        metrics.bleu("x", REFERENCES, ANSWERS)
