"""Metrics of some records, with confidence intervals; the standard implementations where there are such."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from gpt_keras.data.errors import InputError

Statistic = Callable[[np.ndarray], float]
RESAMPLES = 1000


@dataclass(frozen=True)
class Metric:
    """A figure that can be computed of any choice of the records.

    Attributes:
        name: Of the figure.
        of: The figure of the records with these numbers, int [any], some of them perhaps several times.
        count: How many records there are.
    """

    name: str
    of: Statistic
    count: int

    @functools.cached_property
    def value(self) -> float:
        """Of all records."""
        return self.of(np.arange(self.count))

    def interval(self, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float, float]:
        """The 95 % confidence interval, by resampling the records (Efron 1979, "Bootstrap methods")."""
        draw = np.random.default_rng(seed)
        values = [self.of(draw.integers(0, self.count, self.count)) for _ in range(resamples)]
        low, high = np.nanpercentile(values, [2.5, 97.5])
        return float(low), float(high)


def mean(name: str, values: Sequence[float] | np.ndarray) -> Metric:
    """The mean of a figure of each record; NaN is of a record that has none."""
    array = np.asarray(values, float)

    def of(chosen: np.ndarray) -> float:
        found = array[chosen]
        found = found[~np.isnan(found)]
        return float(found.mean()) if len(found) else math.nan

    return Metric(name, of, len(array))


def perplexity(name: str, nats: np.ndarray, tokens: np.ndarray) -> Metric:
    """`exp` of the nats of a token."""

    def of(chosen: np.ndarray) -> float:
        return math.exp(min(700.0, float(nats[chosen].sum() / max(1, tokens[chosen].sum()))))

    return Metric(name, of, len(nats))


def accuracy(name: str, expected: Sequence[str], found: Sequence[str]) -> Metric:
    """The share of records that are answered as expected."""
    return mean(name, [a == b for a, b in zip(expected, found, strict=True)])


def macro_f1(name: str, expected: Sequence[str], found: Sequence[str]) -> Metric:
    """The mean over the labels of the harmonic mean of precision and recall, as scikit-learn's `f1_score`."""
    labels = sorted(set(expected))
    truth, guess = (np.array([labels.index(x) if x in labels else -1 for x in side]) for side in (expected, found))

    def of(chosen: np.ndarray) -> float:
        scores = []
        for label in range(len(labels)):
            is_truth, is_guess = truth[chosen] == label, guess[chosen] == label
            total = is_truth.sum() + is_guess.sum()
            scores.append(2 * (is_truth & is_guess).sum() / total if total else 0.0)
        return float(np.mean(scores))

    return Metric(name, of, len(truth))


def calibration_error(name: str, right: np.ndarray, confidence: np.ndarray, bins: int = 10) -> Metric:
    """How far confidence and accuracy are apart, on average over records in bins of equal confidence: the expected
    calibration error (Guo et al. 2017, https://arxiv.org/abs/1706.04599).

    Args:
        name: Of the metric.
        right: bool [records].
        confidence: float [records], the probability of the label chosen.
        bins: How many.
    """
    places = np.minimum((confidence * bins).astype(int), bins - 1)

    def of(chosen: np.ndarray) -> float:
        gaps = np.bincount(places[chosen], confidence[chosen] - right[chosen], bins)
        return float(np.abs(gaps).sum() / len(chosen))

    return Metric(name, of, len(right))


def rouge(references: Sequence[str], answers: Sequence[str]) -> list[Metric]:
    """The mean F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with stemming (Lin 2004), by rouge-score."""
    _needed("rouge_score", "rouge-score")
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ("rouge1", "rouge2", "rougeL")
    scorer = RougeScorer(kinds, use_stemmer=True)
    scores = [scorer.score(reference, answer) for reference, answer in zip(references, answers, strict=True)]
    return [mean(kind, [100 * score[kind].fmeasure for score in scores]) for kind in kinds]


def bleu(name: str, references: Sequence[str], answers: Sequence[str]) -> Metric:
    """BLEU of all records together (Papineni et al. 2002), by sacrebleu."""
    return _of_corpus(name, _needed("sacrebleu").BLEU(), references, answers)


def chrf(name: str, references: Sequence[str], answers: Sequence[str]) -> Metric:
    """chrF of all records together (Popović 2015), by sacrebleu."""
    return _of_corpus(name, _needed("sacrebleu").CHRF(), references, answers)


def likeness(text: str, others: Sequence[str]) -> list[tuple[float, float]]:
    """For each of the others its chrF and its BLEU to one text: how much of the letters, and of the order of the words,
    it keeps."""
    library = _needed("sacrebleu")
    letters, words = library.CHRF(), library.BLEU(effective_order=True)
    return [(letters.sentence_score(o, [text]).score, words.sentence_score(o, [text]).score) for o in others]


def _of_corpus(name: str, scorer: object, references: Sequence[str], answers: Sequence[str]) -> Metric:
    """What sacrebleu makes of the sums of the records' counts, which it counts only once."""
    counts = np.array(scorer._extract_corpus_statistics(list(answers), [list(references)]))  # type: ignore[attr-defined]

    def of(chosen: np.ndarray) -> float:
        total = counts[chosen].sum(0).tolist()
        return float(scorer._compute_score_from_stats(total).score)  # type: ignore[attr-defined]

    return Metric(name, of, len(counts))


def distinct(name: str, answers: Sequence[str], n: int) -> Metric:
    """How many of all n-grams of words are different ones, in percent (Li et al. 2016,
    https://arxiv.org/abs/1510.03055)."""
    grams = [Counter(ngrams(answer, n)) for answer in answers]

    def of(chosen: np.ndarray) -> float:
        together: Counter[tuple[str, ...]] = Counter()
        for number in chosen:
            together.update(grams[number])
        return 100 * len(together) / max(1, together.total())

    return Metric(name, of, len(grams))


def repetition(name: str, answers: Sequence[str], n: int = 4) -> Metric:
    """The share of n-grams that their own answer had before, in percent (Welleck et al. 2020,
    https://arxiv.org/abs/1908.04319)."""
    shares = []
    for answer in answers:
        grams = ngrams(answer, n)
        shares.append(100 * (1 - len(set(grams)) / len(grams)) if grams else 0.0)
    return mean(name, shares)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The runs of n words."""
    words = text.lower().split()
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def pass_at_k(k: int, passed: Sequence[Sequence[bool]]) -> Metric:
    """The probability that of k samples at least one passes, estimated without bias from n of them (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374, section 2.1).

    Args:
        k: At most the number of samples.
        passed: For each record whether each of its samples passes.
    """

    def of_one(samples: Sequence[bool]) -> float:
        n, c = len(samples), sum(samples)
        return 1.0 if n - c < k else 1.0 - math.prod((n - c - i) / (n - i) for i in range(k))

    return mean(f"pass@{k}", [100 * of_one(samples) for samples in passed])


def _needed(module: str, package: str = "") -> ModuleType:
    try:
        return __import__(module)
    except ImportError as error:
        raise InputError(f"this metric needs {package or module}: pip install 'gpt_keras[eval]'") from error
