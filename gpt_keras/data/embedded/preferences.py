"""Requests with two answers: a polite and helpful one, and one that is curt, rude, wrong or beside the point."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, compose, listed, sentence
from gpt_keras.data.embedded.facts import CAPITALS, OPPOSITES, UNITS

Case = tuple[str, str, str, str]
"""What it is about, a request, the right answer, and a wrong one."""

_OPENINGS = ("", "", "Sure! ", "Of course. ", "Gladly. ", "Good question! ", "Here you are: ")
_CLOSINGS = ("", " I hope that helps.", " Let me know if you need anything else.", " Feel free to ask for more.")
_CURT = ("No.", "No idea.", "Look it up.", "Why?", "Whatever.", "Maybe later.", "I do not care.", "Ask somebody else.")
_RUDE = (
    "What a silly question. Everybody knows that.",
    "You should have paid attention at school.",
    "Stop wasting my time with this.",
    "If you cannot do that by yourself, I cannot help you.",
    "I have better things to do than to answer you.",
    "Honestly, how can one not know that?",
)
_RAMBLINGS = (
    "Well, that reminds me of last summer, when it was very hot and nobody wanted to work.",
    "There are many opinions on this, and each has its history, which is long.",
    "Before I come to that, let me say something about questions in general.",
    "Some people like tea and some like coffee, and both are right in a way.",
    "One could also ask something else entirely, and that would be just as interesting.",
    "As is well known, things are connected with other things, and so on.",
)
_TASKS: dict[str, tuple[str, str, str]] = {  # three steps each
    "boil an egg": (
        "bring water to a boil",
        "lower the egg into it with a spoon",
        "take it out after about eight minutes",
    ),
    "make tea": ("boil fresh water", "pour it over the leaves", "wait four minutes before you take them out"),
    "clean a window": (
        "wipe off the dust",
        "wash the glass with soapy water",
        "dry it with a cloth that leaves no fluff",
    ),
    "plant a tree": (
        "dig a hole twice as wide as the roots",
        "set the tree upright in it",
        "fill it up and water it well",
    ),
    "fix a flat tire": (
        "take the tube out of the tire",
        "find the hole and put a patch on it",
        "put it back and pump it up",
    ),
    "bake bread": (
        "knead flour, water, salt and yeast",
        "let the dough rise for an hour",
        "bake it until it sounds hollow",
    ),
    "learn new words": ("write them on small cards", "repeat them every day", "use each of them in a sentence"),
    "fall asleep sooner": ("put the phone away", "keep the room cool and dark", "go to bed at the same hour every day"),
    "save money": ("write down what you spend", "cancel what you do not use", "put something aside on payday"),
    "paint a wall": (
        "cover the floor and mask the edges",
        "put on a first thin coat",
        "add a second one when it is dry",
    ),
    "wrap a present": ("cut the paper to size", "fold it tightly around the box", "fasten the edges with tape"),
    "prepare for an interview": ("read about the company", "practice answers to common questions", "get some sleep"),
    "start running": ("begin with short distances", "walk when you are out of breath", "rest on every second day"),
    "remove a coffee stain": ("rinse it with cold water at once", "dab on a little soap", "wash the cloth as usual"),
    "write a letter of thanks": (
        "name what you are thankful for",
        "say what it meant to you",
        "close with kind regards",
    ),
    "cook rice": ("rinse the rice", "add twice as much water as rice", "let it simmer with the lid on"),
}
_GIFTS = {
    "reads a lot": ("a book by an author from far away", "a reading lamp"),
    "loves cooking": ("a set of spices", "an evening at a cooking school"),
    "works in the garden": ("bulbs for the spring", "a good pair of gloves"),
    "travels a lot": ("a notebook for the way", "a light bag"),
    "plays music": ("tickets to a concert", "a book of songs"),
    "likes to draw": ("good pencils", "a pad of thick paper"),
    "is always cold": ("a woolen blanket", "a bottle for hot water"),
    "collects stamps": ("an album", "a letter from another continent"),
}
_PEOPLE = ("my brother", "my aunt", "a friend", "my teacher", "a colleague", "my neighbor", "my grandfather")


def preference_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Requests with two answers as {prompt, chosen, rejected}."""
    return compose(_record, draw, train, valid)


def _record(draw: Random) -> tuple[Hashable, Record]:
    subject, prompt, answer, wrong = draw.choice(_CASES)(draw)
    chosen = draw.choice(_OPENINGS) + answer + draw.choice(_CLOSINGS)
    rejected = draw.choice(
        (draw.choice(_CURT), draw.choice(_RUDE), wrong, " ".join(draw.sample(_RAMBLINGS, draw.randint(2, 3))))
    )
    return subject, {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def _how_to(draw: Random) -> Case:
    task = draw.choice(list(_TASKS))
    first, second, third = _TASKS[task]
    answer = draw.choice(
        (
            f"First {first}, then {second}, and finally {third}.",
            f"1. {sentence(first)}. 2. {sentence(second)}. 3. {sentence(third)}.",
        )
    )
    others = [other for other in _TASKS if other != task]
    wrong = sentence(listed(list(_TASKS[draw.choice(others)]))) + "."
    return (
        task,
        draw.choice((f"How do I {task}?", f"Can you tell me how to {task}?", f"I want to {task}. What do I do?")),
        answer,
        wrong,
    )


def _gift(draw: Random) -> Case:
    person, habit = draw.choice(_PEOPLE), draw.choice(list(_GIFTS))
    first, second = _GIFTS[habit]
    prompt = draw.choice((f"What can I give to {person}, who {habit}?", f"I need a present for {person}, who {habit}."))
    answer = f"Somebody who {habit} may like {first} or {second}."
    return habit, prompt, answer, "Nobody needs presents, give nothing."


def _sum(draw: Random) -> Case:
    first, second = draw.randint(2, 60), draw.randint(2, 60)
    right = first + second
    return (
        f"{first} {second}",
        draw.choice((f"What is {first} + {second}?", f"Please add {first} and {second}.")),
        f"{first} plus {second} is {right}.",
        f"{first} plus {second} is {right + draw.choice((-10, -2, -1, 1, 3, 10))}.",
    )


def _capital(draw: Random) -> Case:
    country, other = draw.sample(list(CAPITALS), 2)
    prompt = draw.choice((f"What is the capital of {country}?", f"Can you name the capital of {country}?"))
    return country, prompt, f"The capital of {country} is {CAPITALS[country]}.", f"It is {CAPITALS[other]}, I think."


def _opposite(draw: Random) -> Case:
    word, other = draw.sample(list(OPPOSITES), 2)
    wrong = f"The opposite of {word} is {other}."
    return word, f"What is the opposite of {word}?", f"The opposite of {word} is {OPPOSITES[word]}.", wrong


def _unit(draw: Random) -> Case:
    one, many, factor = draw.choice(UNITS)
    prompt = draw.choice((f"How many {many} are in one {one}?", f"I forgot how many {many} make one {one}."))
    return one, prompt, f"One {one} has {factor} {many}.", f"One {one} has {factor * draw.choice((2, 3, 10))} {many}."


_CASES: tuple[Callable[[Random], Case], ...] = (_how_to, _how_to, _gift, _sum, _capital, _opposite, _unit)
