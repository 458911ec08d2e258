"""The sentiment of a text: one of the labels that the records have."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from gpt_keras.data.conversations import Message
from gpt_keras.data.errors import InputError
from gpt_keras.data.records import Fields
from gpt_keras.tasks import metrics
from gpt_keras.tasks.metrics import Metric
from gpt_keras.tasks.task import Outputs, Record, Task, text_of, turns


class Sentiment(Task):
    """{text, label}. Measured by the label of highest probability, and by what the model writes."""

    fields = Fields(("text", "label"))
    max_new_tokens = 8
    watched = "accuracy"
    lower_is_better = False

    def messages(self, record: Record) -> list[Message]:
        label = record["label"]
        if not isinstance(label, str | int) or not str(label).strip():
            raise InputError(f"the field 'label' must hold a label, not {label!r}")
        return turns(f"What is the sentiment of this text?\n\n{text_of(record, 'text').strip()}", _label(record))

    def choices(self, records: Sequence[Record]) -> list[list[str]]:
        return [_labels(records)] * len(records)

    def metrics(self, records: Sequence[Record], outputs: Outputs) -> list[Metric]:
        expected, labels = [_label(record) for record in records], _labels(records)
        found: list[Metric] = []
        if outputs.choice_probabilities is not None:
            best = [labels[i] for i in outputs.choice_probabilities.argmax(1)]
            right = np.array([a == b for a, b in zip(expected, best, strict=True)])
            found += [
                metrics.accuracy("accuracy", expected, best),
                metrics.macro_f1("macro_f1", expected, best),
                metrics.calibration_error("calibration_error", right, outputs.choice_probabilities.max(1)),
            ]
        if outputs.answers is not None:
            written = [_first_label(answer, labels) for answer in outputs.first_answers]
            found += [
                metrics.accuracy("written_accuracy", expected, written),
                metrics.mean("without_label", [not label for label in written]),
            ]
        return found

    def baselines(self, records: Sequence[Record], training: Sequence[Record]) -> dict[str, Outputs]:
        labels = _labels(records)
        ((most, _),) = Counter(_label(record) for record in training or records).most_common(1)
        majority = np.array([[float(label == most) for label in labels]] * len(records))
        found = {"majority": Outputs(choice_probabilities=majority)}
        if training:
            found["TF-IDF, logistic regression"] = Outputs(choice_probabilities=_regression(records, training, labels))
        return found


def _label(record: Record) -> str:
    return str(record["label"]).strip()


def _labels(records: Sequence[Record]) -> list[str]:
    return sorted({_label(record) for record in records})


def _first_label(answer: str, labels: Sequence[str]) -> str:
    """The label that an answer names first; empty where it names none."""
    choices = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    found = re.search(rf"(?<!\w)(?:{choices})(?!\w)", answer, re.IGNORECASE)
    return next((label for label in labels if found and label.lower() == found[0].lower()), "")


def _regression(records: Sequence[Record], training: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
    """Probabilities [records, labels] by logistic regression on the words and pairs of words."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise InputError("the baseline needs scikit-learn: pip install 'gpt_keras[eval]'") from error
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    try:
        model.fit([record["text"] for record in training], [_label(record) for record in training])
    except ValueError as error:  # one label alone, or texts without a word
        raise InputError(f"the baseline learns nothing from the records of --train: {error}") from error
    known = list(model.classes_)
    probabilities = model.predict_proba([record["text"] for record in records])
    columns = [probabilities[:, known.index(label)] if label in known else np.zeros(len(records)) for label in labels]
    return np.stack(columns, axis=1)


TASK = Sentiment()
