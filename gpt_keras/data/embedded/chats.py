"""Small conversations: a greeting, a few questions that may follow from one another, a farewell."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, compose
from gpt_keras.data.embedded.facts import CAPITALS, DAYS, MONTHS, OPPOSITES, PLURALS, UNITS


@dataclass(frozen=True)
class _Turn:
    """A question and its answer.

    Attributes:
        subject: What it is about; conversations about the same are on one side.
        question: In full.
        again: The question as it is asked behind another one of its kind.
        answer: In a sentence.
        bare: The answer alone.
    """

    subject: str
    question: str
    again: str
    answer: str
    bare: str


_BRIEF = ("Answer with as few words as possible.", "Give the answer alone.", "Be brief.")
_SYSTEMS = ("You are a helpful assistant.", "You are a friendly assistant that answers in one sentence.", "Be polite.")
_GREETINGS = (
    ("Hello!", "Hello! How can I help you?"),
    ("Hi there", "Hi! What can I do for you?"),
    ("Good morning!", "Good morning! What would you like to know?"),
    ("Good evening.", "Good evening! How may I help?"),
    ("Hey, are you there?", "Yes, I am here. What can I do for you?"),
    ("Hello, my name is {name}.", "Hello {name}, nice to meet you! How can I help?"),
)
_NAMES = (
    "Ann",
    "Ben",
    "Carla",
    "Dan",
    "Eva",
    "Finn",
    "Gina",
    "Hugo",
    "Iris",
    "Jon",
    "Kim",
    "Lena",
    "Max",
    "Nora",
    "Otto",
)
_FAREWELLS = (
    ("Thank you!", "You are welcome!"),
    ("Thanks, that was all.", "You are welcome. Have a nice day!"),
    ("Great, thanks for your help.", "I am glad that I could help. Goodbye!"),
    ("Goodbye!", "Goodbye, and see you soon!"),
    ("That helps, bye.", "I am glad to hear it. Bye!"),
    ("See you tomorrow!", "See you tomorrow! I will be here."),
)
_ABOUT_ITSELF = (
    ("Who are you?", "I am a small language model that answers short questions."),
    ("Are you a human?", "No, I am a computer program."),
    ("What can you do?", "I can do small sums, convert units, and tell you days, capitals and opposites."),
    ("Do you get tired?", "No, a program does not get tired."),
    ("Do you have a name?", "I have no name of my own; you may call me Assistant."),
    ("Where do you live?", "I do not live anywhere; I run on a computer."),
    ("How did you learn to talk?", "I learned from examples of texts and conversations."),
    ("Do you ever make mistakes?", "Yes, I am small and may be wrong, so please check what matters."),
    ("Can you see me?", "No, I can only read what you write."),
    ("Which languages do you speak?", "I speak English."),
)


def chat_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Conversations as {messages}."""
    return compose(_conversation, draw, train, valid)


def _conversation(draw: Random) -> tuple[Hashable, Record]:
    said: list[tuple[str, str]] = []
    name = draw.choice(_NAMES)
    brief = draw.random() < 0.15
    turns = _questions(draw)
    if not brief and draw.random() < 0.5:
        said.append(draw.choice(_GREETINGS))
    for number, turn in enumerate(turns):
        asked_before = number > 0 and turns[number - 1].subject.split()[0] == turn.subject.split()[0]
        said.append((turn.again if asked_before else turn.question, turn.bare if brief else turn.answer))
    if not brief and draw.random() < 0.5:
        said.append(draw.choice(_FAREWELLS))
    messages = []
    if brief or draw.random() < 0.3:
        messages.append({"role": "system", "content": draw.choice(_BRIEF if brief else _SYSTEMS)})
    for question, answer in said:
        messages.append({"role": "user", "content": question.format(name=name)})
        messages.append({"role": "assistant", "content": answer.format(name=name)})
    return tuple(sorted(turn.subject for turn in turns)), {"messages": messages}


def _questions(draw: Random) -> list[_Turn]:
    """One to three, of which some follow another one of their kind."""
    kind = draw.choice(_KINDS)
    turns = [kind(draw)]
    for _ in range(draw.randint(0, 2)):
        if draw.random() < 0.5:
            kind = draw.choice(_KINDS)
        turn = kind(draw)
        if turn.subject not in [other.subject for other in turns]:
            turns.append(turn)
    return turns


def _itself(draw: Random) -> _Turn:
    question, answer = draw.choice(_ABOUT_ITSELF)
    return _Turn(f"itself {question}", question, question, answer, answer)


def _sum(draw: Random) -> _Turn:
    word, sign, first, second = draw.choice(
        (
            ("plus", "+", draw.randint(1, 50), draw.randint(1, 50)),
            ("times", "*", draw.randint(2, 12), draw.randint(2, 12)),
        )
    )
    if draw.random() < 0.3:
        word, sign, (second, first) = "minus", "-", sorted((first, second))
    result = {"+": first + second, "*": first * second, "-": first - second}[sign]
    question = draw.choice((f"What is {first} {word} {second}?", f"How much is {first} {sign} {second}?"))
    return _Turn(
        f"sum {first}{sign}{second}", question, f"And {first} {word} {second}?",
        f"{first} {word} {second} is {result}.", str(result),
    )  # fmt: skip


def _unit(draw: Random) -> _Turn:
    (one, many, factor), count = draw.choice(UNITS), draw.randint(1, 12)
    units = one if count == 1 else PLURALS.get(one, f"{one}s")
    if one == "dozen":
        units = "dozen"
    return _Turn(
        f"unit {one} {count}",
        draw.choice((f"How many {many} are {count} {units}?", f"Convert {count} {units} to {many}, please.")),
        f"And how many {many} are {count} {units}?",
        f"{count} {units} {'is' if count == 1 else 'are'} {count * factor} {many}.",
        f"{count * factor} {many}",
    )


def _day(draw: Random) -> _Turn:
    index, days = draw.randrange(7), draw.randint(1, 6)
    today, later = DAYS[index], DAYS[(index + days) % 7]
    if days == 1:
        question, answer = f"Which day comes after {today}?", f"The day after {today} is {later}."
    else:
        question, answer = f"If today is {today}, which day is it in {days} days?", f"In {days} days it is {later}."
    return _Turn(f"day {today} {days}", question, f"And what about {days} days after {today}?", answer, later)


def _month(draw: Random) -> _Turn:
    index = draw.randrange(12)
    month, previous = MONTHS[index], MONTHS[index - 1]
    return _Turn(
        f"month {month}", f"Which month comes before {month}?", f"And before {month}?",
        f"{previous} comes before {month}.", previous,
    )  # fmt: skip


def _capital(draw: Random) -> _Turn:
    country = draw.choice(list(CAPITALS))
    capital = CAPITALS[country]
    question = draw.choice((f"What is the capital of {country}?", f"Which city is the capital of {country}?"))
    return _Turn(
        f"capital {country}", question, f"And of {country}?", f"The capital of {country} is {capital}.", capital
    )


def _opposite(draw: Random) -> _Turn:
    word = draw.choice(list(OPPOSITES))
    other = OPPOSITES[word]
    question = draw.choice((f"What is the opposite of {word}?", f'Tell me the opposite of "{word}", please.'))
    return _Turn(f"opposite {word}", question, f"And of {word}?", f"The opposite of {word} is {other}.", other)


_KINDS: tuple[Callable[[Random], _Turn], ...] = (_itself, _sum, _unit, _day, _month, _capital, _opposite)
