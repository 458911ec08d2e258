"""Short pieces of writing to a title, an outline, a style, or words that must occur."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, articles, compose, listed, sentence

_HEROES = (
    *("a young sailor", "an old clockmaker", "a shy baker", "a curious girl", "a retired teacher", "a clever fox"),
    *("a tired postman", "a lonely giant", "a brave knight", "a small robot", "a famous cook", "a patient gardener"),
)
_PLACES = (
    *("harbor", "forest", "village", "castle", "desert", "valley", "island", "city", "mill", "lighthouse", "station"),
    *("market", "mountain", "library"),
)
_THINGS = (
    *("map", "lamp", "violin", "letter", "key", "compass", "mirror", "book", "ring", "seed", "coin", "kite", "whistle"),
    *("telescope", "umbrella", "bell"),
)
_QUALITIES = ("golden", "broken", "forgotten", "silver", "strange", "tiny", "blue", "ancient", "wooden", "shining")
_TROUBLES = (
    "storm",
    "flood",
    "drought",
    "fire",
    "thief",
    "long winter",
    "dark night",
    "thick fog",
    "quarrel",
    "hungry wolf",
)
_HELPERS = ("a raven", "a stranger", "a child", "an old friend", "a neighbor", "a stray dog", "a traveler", "a sister")
_LESSONS = ("courage", "patience", "kindness", "honesty", "friendship", "luck", "hope", "trust", "curiosity", "silence")
_STYLES: dict[str, tuple[str, str, str]] = {  # an opening, a remark in the middle, a close
    "a fairy tale": (
        "Once upon a time there was a {place} that nobody could find on a map.",
        "So it went for seven days and seven nights.",
        "And if they have not died, they are living there still.",
    ),
    "a weather report": (
        "Good evening, and here is the outlook for the {place}.",
        "Temperatures remain mild for the time of the year.",
        "That was the outlook; have a pleasant night.",
    ),
    "a diary entry": (
        "Dear diary, today I was at the {place} again.",
        "My hands are still trembling as I write this.",
        "Now I am going to bed, for it is late.",
    ),
    "a news report": (
        "Unusual events kept the {place} busy yesterday.",
        "Several people confirmed what had happened.",
        "The authorities did not want to comment.",
    ),
    "a formal letter": (
        "Dear Sir or Madam, I am writing to you about the {place}.",
        "Allow me to describe the matter in a few words.",
        "I look forward to your reply and remain yours sincerely.",
    ),
    "an advertisement": (
        "Have you been to the {place} yet?",
        "There is nothing like it anywhere else.",
        "Come and see it today, for it will not last forever!",
    ),
}
_TITLES = (
    "The {quality} {thing} of the {place}",
    "The {place} and the {quality} {thing}",
    "{hero} and the {thing} of the {place}",
    "How a {thing} saved the {place}",
    "A {thing}, a {place} and a {trouble}",
)
_ENDINGS = (
    "In the end it was {lesson} that had made the difference.",
    "From that day on everybody spoke of {lesson}.",
    "That is how {hero} learned what {lesson} means.",
)


def content_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Tasks and texts as {instruction, text}; none is on the other side about the same thing in the same place."""
    return compose(_record, draw, train, valid)


def _record(draw: Random) -> tuple[Hashable, Record]:
    story = {
        "hero": draw.choice(_HEROES),
        "place": draw.choice(_PLACES),
        "thing": draw.choice(_THINGS),
        "quality": draw.choice(_QUALITIES),
        "trouble": draw.choice(_TROUBLES),
        "helper": draw.choice(_HELPERS),
        "lesson": draw.choice(_LESSONS),
    }
    story["who"] = "the " + story["hero"].split(" ", 1)[1]
    instruction, text = draw.choice(_FORMS)(draw, story)
    return (story["place"], story["thing"]), {"instruction": instruction, "text": text}


def _beginning(draw: Random, story: dict[str, str]) -> str:
    return draw.choice(
        (
            "{hero} lived near the {place} and owned nothing but a {quality} {thing}.",
            "every morning {hero} walked to the {place}, and one day a {quality} {thing} lay there.",
            "at the {place} {hero} found a {quality} {thing} that belonged to nobody.",
        )
    ).format(**story)


def _middle(draw: Random, story: dict[str, str]) -> str:
    return draw.choice(
        (
            "then a {trouble} came over the {place}, and people were afraid.",
            "soon there was a {trouble}, and nobody at the {place} knew what to do.",
            "but a {trouble} changed everything.",
        )
    ).format(**story)


def _help(draw: Random, story: dict[str, str]) -> str:
    return draw.choice(
        (
            "{helper} told {who} how to use the {thing}.",
            "with the help of {helper} and the {thing}, {who} found a way out.",
            "{who} gave the {thing} to {helper}, who knew what it was good for.",
        )
    ).format(**story)


def _close(draw: Random, story: dict[str, str]) -> str:
    return draw.choice(_ENDINGS).format(**{**story, "hero": story["who"]})


def _told(*sentences: str) -> str:
    return " ".join(map(sentence, sentences))


def _from_title(draw: Random, story: dict[str, str]) -> tuple[str, str]:
    title = _titled(draw.choice(_TITLES).format(**story))
    instruction = draw.choice(
        (f'Write a short story titled "{title}".', f"Title: {title}\nWrite the story that belongs to it.")
    )
    parts = [_beginning(draw, story), _middle(draw, story), _help(draw, story), _close(draw, story)]
    return instruction, articles(_told(*parts))


def _from_words(draw: Random, story: dict[str, str]) -> tuple[str, str]:
    text = articles(_told(_beginning(draw, story), _middle(draw, story), _help(draw, story), _close(draw, story)))
    others = [story["quality"], story["trouble"], story["lesson"]]
    chosen = [story["place"], story["thing"], *draw.sample(others, draw.randint(1, 3))]
    draw.shuffle(chosen)
    instruction = draw.choice(
        (
            f"Write a paragraph that uses the words: {', '.join(chosen)}.",
            f"Write a few sentences in which these words occur: {', '.join(chosen)}.",
            f"Use the words {listed(chosen)} in a short text.",
        )
    )
    return instruction, text


def _from_outline(draw: Random, story: dict[str, str]) -> tuple[str, str]:
    points = {
        "{hero}, a {thing} and the {place}": _beginning(draw, story),
        "the {trouble}": _middle(draw, story),
        "help from {helper}": _help(draw, story),
        "what {lesson} means": _close(draw, story),
    }
    chosen = [point for point in points if point.startswith("{hero}") or draw.random() < 0.75]
    if len(chosen) < 3:
        chosen = list(points)
    outline = "\n".join(f"{number}. {articles(point.format(**story))}" for number, point in enumerate(chosen, 1))
    instruction = (
        draw.choice(("Turn this outline into a text:\n", "Write a text that follows this outline:\n")) + outline
    )
    return instruction, articles(_told(*[points[point] for point in chosen]))


def _in_style(draw: Random, story: dict[str, str]) -> tuple[str, str]:
    style = draw.choice(list(_STYLES))
    opening, remark, close = (part.format(**story) for part in _STYLES[style])
    subject = articles("a {quality} {thing} and a {trouble} at the {place}".format(**story))
    instruction = draw.choice((f"Write {style} about {subject}.", f"In the style of {style}, write about {subject}."))
    thing = "there was {hero} with a {quality} {thing}.".format(**story)
    return instruction, articles(_told(opening, thing, remark, _middle(draw, story), _help(draw, story), close))


def _titled(text: str) -> str:
    small = ("a", "an", "the", "of", "and")
    first, *others = articles(text).split()
    return " ".join([first.capitalize(), *(word if word in small else word.capitalize() for word in others)])


_FORMS: tuple[Callable[[Random, dict[str, str]], tuple[str, str]], ...] = (
    _from_title,
    _from_words,
    _from_outline,
    _in_style,
)
