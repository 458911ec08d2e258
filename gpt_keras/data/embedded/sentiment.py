"""Short reviews that are positive or negative; negation and contrast decide where the words alone do not."""

from __future__ import annotations

from collections.abc import Hashable
from functools import partial
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, articles, compose, sentence

_LABELS = ("negative", "positive")
_SUBJECTS: dict[str, tuple[str, ...]] = {
    "restaurant": ("food", "service", "soup", "menu", "atmosphere", "dessert", "waiter", "wine list"),
    "hotel": ("room", "breakfast", "view", "staff", "bed", "location", "pool", "reception"),
    "film": ("plot", "acting", "ending", "music", "dialogue", "camera work", "opening scene", "humour"),
    "book": ("story", "style", "main character", "last chapter", "translation", "cover", "first part", "idea"),
    "phone": ("screen", "battery", "camera", "sound", "keyboard", "design", "software", "price"),
    "concert": ("band", "singer", "sound", "hall", "light show", "choice of songs", "audience", "encore"),
    "museum": ("collection", "guided tour", "shop", "café", "building", "audio guide", "garden", "exhibition"),
}
_ADJECTIVES = {
    "positive": (
        *("wonderful", "excellent", "great", "charming", "impressive", "lovely", "superb", "pleasant", "convincing"),
        *("delightful", "memorable", "clever", "good", "remarkable", "outstanding", "beautiful"),
    ),
    "negative": (
        *("terrible", "awful", "boring", "disappointing", "poor", "dull", "mediocre", "annoying", "careless"),
        *("dreadful", "forgettable", "clumsy", "bad", "weak", "horrible", "unpleasant"),
    ),
}
_INTENSIFIERS = ("", "", "really ", "truly ", "quite ", "absolutely ", "rather ", "surprisingly ")
_FEELINGS = {
    "positive": ("loved", "enjoyed", "admired", "was happy with", "still think fondly of"),
    "negative": ("hated", "disliked", "regretted", "was unhappy with", "still shake my head at"),
}
_EFFECTS = {"positive": "made up for", "negative": "spoiled"}
_VERDICTS = {
    "positive": (
        *("I would come back any time.", "I can only recommend it.", "It was worth every cent.", "Five stars from me."),
        "I will tell all my friends to try it.",
    ),
    "negative": (
        *("I would never come back.", "I can only warn you.", "It was a waste of money.", "One star from me."),
        "I will tell all my friends to avoid it.",
    ),
}
_CONTEXTS = (
    "I had been looking forward to this {subject}.",
    "My sister had chosen this {subject}.",
    "I had read a lot about this {subject}.",
    "It was our second {subject} this month.",
    "A colleague had told me about this {subject}.",
    "This is my first review of a {subject}.",
)


def sentiment_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Reviews as {text, label}, as many of one label as of the other; no word is new in those to validate with."""
    learned: Records = []
    held_out: Records = []
    for label in _LABELS:
        more, rest = compose(partial(_review, label=label), draw, train // 2, 2 * valid)
        learned, held_out = learned + more, held_out + rest
    words = {word for record in learned for word in _words(record)}
    known = [record for record in held_out if words.issuperset(_words(record))]
    chosen = [record for label in _LABELS for record in [r for r in known if r["label"] == label][: valid // 2]]
    draw.shuffle(learned)
    draw.shuffle(chosen)
    return learned, chosen


def _words(record: Record) -> list[str]:
    return record["text"].lower().split()


def _review(draw: Random, label: str) -> tuple[Hashable, Record]:
    other = _LABELS[label == "negative"]
    subject = draw.choice(list(_SUBJECTS))
    first, second = draw.sample(_SUBJECTS[subject], 2)
    adjective, opposite = draw.choice(_ADJECTIVES[label]), draw.choice(_ADJECTIVES[other])
    more = draw.choice(_ADJECTIVES[label])
    intensifier, effect = draw.choice(_INTENSIFIERS), _EFFECTS[label]
    feeling, other_feeling = draw.choice(_FEELINGS[label]), draw.choice(_FEELINGS[other])
    claim = draw.choice(
        (
            f"the {first} was {intensifier}{adjective}",
            f"the {first} of this {subject} was {intensifier}{adjective}",
            f"I {feeling} the {first}",
            f"the {first} was {adjective}, and the {second} was {more}",
            f"what a {adjective} {subject}, I {feeling} the {first}",
            # negation: the words are those of the other label
            f"the {first} was not {opposite} at all",
            f"the {first} was anything but {opposite}",
            f"nobody could call the {first} {opposite}",
            f"I cannot say that I {other_feeling} the {first}",
            f"the {first} was far from {opposite}",
            f"the {first} was never {opposite}, and the {second} was {adjective}",
            # contrast: both kinds of words, of which the main clause has the last say
            f"although the {first} was {opposite}, the {second} was so {adjective} that it {effect} everything",
            f"although I {other_feeling} the {first}, in the end the {subject} was {adjective}",
            f"the {first} was {opposite}, but all in all it was a {intensifier}{adjective} {subject}",
            f"I had expected a {opposite} {subject}, but it was {intensifier}{adjective}",
            f"some say that the {first} is {opposite}, but I found it {intensifier}{adjective}",
            f"despite the {opposite} {first}, this {subject} was {adjective}",
        )
    )
    parts = [sentence(claim) + "."]
    if draw.random() < 0.4:
        parts.insert(0, draw.choice(_CONTEXTS).format(subject=subject))
    if draw.random() < 0.3:
        parts.append(draw.choice(_VERDICTS[label]))
    return claim, {"text": articles(" ".join(parts)), "label": label}
