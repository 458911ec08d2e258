"""Pairs of sentences that say the same, made by rules: voice, order of clauses, synonyms, numbers, points of view."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, compose, sentence

Pair = tuple[str, str]

_PEOPLE = (
    *("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Karen", "Leo", "Mona"),
    *("Nick", "Olga", "Paul"),
)
_FEMALE = {"Anna", "Clara", "Emma", "Grace", "Ida", "Karen", "Mona", "Olga"}
_AGENTS = (
    *("the gardener", "my neighbor", "the teacher", "a young cook", "the company", "our team", "the old painter"),
    *("the committee", "two students", "the mechanic"),
)
_DEEDS = (  # past tense, participle, and what it can be done to
    ("repaired", "repaired", ("the fence", "the red car", "the kitchen door", "the clock")),
    ("wrote", "written", ("the letter", "a long report", "the song", "the first chapter")),
    ("painted", "painted", ("the wall", "the front door", "a small picture", "the old boat")),
    ("found", "found", ("the lost key", "a better answer", "the missing dog", "the mistake")),
    ("built", "built", ("the bridge", "a wooden house", "the new stage", "the shelf")),
    ("sold", "sold", ("the piano", "the last ticket", "a pair of skis", "the farm")),
    ("broke", "broken", ("the window", "the record", "the blue cup", "the lock")),
    ("chose", "chosen", ("the menu", "a new name", "the winner", "the music")),
)
_TIMES = ("yesterday", "last week", "in May", "on Friday", "two years ago", "this morning")
_ACTIONS = (
    *("closed the window", "fed the cat", "called a friend", "watered the flowers", "packed the bags", "read the news"),
    *("cleaned the kitchen", "locked the door", "bought some bread", "wrote a postcard", "went for a run"),
    *("left the house", "cooked dinner", "turned off the light", "made the bed", "took the train", "paid the bill"),
)
_REASONS = (  # what happened, and why
    ("the match was cancelled", "it rained all day"),
    ("we took the bus", "the car did not start"),
    ("the shop closed early", "there were no customers"),
    ("she wore a coat", "the wind was cold"),
    ("he missed the train", "his alarm did not ring"),
    ("the plants died", "nobody watered them"),
    ("they laughed", "the film was funny"),
    ("the baby cried", "the music was loud"),
    ("I stayed at home", "I had a fever"),
    ("the price rose", "the harvest was poor"),
    ("the road was closed", "a tree had fallen on it"),
    ("the guests left", "it was late"),
)
_SURPRISES = (  # what stood against it, and what happened all the same
    ("the task was hard", "we finished in time"),
    ("he was tired", "he kept on working"),
    ("the hotel was cheap", "the rooms were clean"),
    ("it was raining", "the children played outside"),
    ("she is only ten", "she plays like a master"),
    ("the map was old", "it showed the right way"),
    ("nobody had helped him", "he thanked everybody"),
    ("the soup was cold", "it tasted good"),
    ("they had never met", "they talked for hours"),
    ("the car is small", "four people fit in"),
)
_COMPARED = (
    ("older", "younger"),
    ("taller", "shorter"),
    ("faster", "slower"),
    ("richer", "poorer"),
    ("stronger", "weaker"),
)
_SYNONYMS = (
    ("big", "large"),
    ("quick", "fast"),
    ("begin", "start"),
    ("buy", "purchase"),
    ("help", "assist"),
    ("glad", "happy"),
    ("clever", "smart"),
    ("shut", "close"),
    ("hard", "difficult"),
    ("often", "frequently"),
)
_SAYINGS = (  # sentences with words to exchange
    "{0} is {glad} that the {big} shop will {begin} to sell bread.",
    "{0} wants to {buy} a {big} house near the sea.",
    "It is {hard} for {0} to {help} everybody.",
    "{0} is a {quick} runner and a {clever} player.",
    "{0} will {often} {help} with the {hard} questions.",
    "Please {shut} the {big} gate before {0} can {begin}.",
    "{0} was {glad} about the {quick} answer of the {clever} child.",
    "{0} will {buy} a {quick} computer and {begin} to write.",
)
_AMOUNTS = (
    *(("twelve", "a dozen"), ("twenty-four", "two dozen"), ("100", "one hundred"), ("1,000", "a thousand")),
    *(("seven", "7"), ("fifteen", "15"), ("thirty", "30"), ("fifty", "half a hundred"), ("two", "a pair of")),
)
_SPANS = (
    *(("thirty minutes", "half an hour"), ("sixty minutes", "one hour"), ("fourteen days", "two weeks")),
    *(("twelve months", "a year"), ("seven days", "a week"), ("ten years", "a decade"), ("100 years", "a century")),
    *(("six months", "half a year"), ("ninety minutes", "an hour and a half"), ("forty-eight hours", "two days")),
)
_THINGS = ("books", "chairs", "pictures", "lamps", "old maps", "toys", "bottles", "plants", "green apples", "stamps")
_ROOMS = ("the cellar", "the library", "this room", "the museum", "our garden", "the school", "the attic")
_EVENTS = ("The journey", "The meeting", "The concert", "The course", "The work", "The walk", "The exhibition")
_GIFTS = ("a book", "a bicycle", "the answer", "some flowers", "an old coin", "a ticket", "good advice", "the keys")


def paraphrase_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Pairs as {text, paraphrase}; a pair is on the same side as the same pair the other way round."""
    return compose(_record, draw, train, valid)


def _record(draw: Random) -> tuple[Hashable, Record]:
    key, pair = draw.choice(_RULES)(draw)
    text, paraphrase = draw.sample([sentence(side) + ("" if side.endswith(".") else ".") for side in pair], 2)
    return key, {"text": text, "paraphrase": paraphrase}


def _voice(draw: Random) -> tuple[Hashable, Pair]:
    agent, (past, participle, things), time = draw.choice(_AGENTS), draw.choice(_DEEDS), draw.choice(_TIMES)
    thing = draw.choice(things)
    were = "were" if thing.startswith("a pair") else "was"
    passive = draw.choice(
        (f"{thing} {were} {participle} by {agent} {time}", f"{time} {thing} {were} {participle} by {agent}")
    )
    return (agent, thing), (f"{agent} {past} {thing} {time}", passive)


def _order(draw: Random) -> tuple[Hashable, Pair]:
    person = draw.choice(_PEOPLE)
    first, second = draw.sample(_ACTIONS, 2)
    they = "she" if person in _FEMALE else "he"
    before = draw.choice((f"{person} {first} before {they} {second}", f"before {person} {second}, {they} {first}"))
    after = draw.choice(
        (
            f"{person} {second} after {they} {first}",
            f"after {person} {first}, {they} {second}",
            f"{person} first {first} and then {second}",
        )
    )
    return (person, first, second), (before, after)


def _cause(draw: Random) -> tuple[Hashable, Pair]:
    happened, reason = draw.choice(_REASONS)
    person = draw.choice(_PEOPLE)
    first = draw.choice((f"{happened} because {reason}", f"because {reason}, {happened}"))
    second = draw.choice((f"{reason}, so {happened}", f"{reason}, and that is why {happened}"))
    said = draw.choice(("says that", "thinks that", "remembers that", "knows that"))
    return (happened, person), (f"{person} {said} {first}", f"{person} {said} {second}")


def _contrast(draw: Random) -> tuple[Hashable, Pair]:
    against, happened = draw.choice(_SURPRISES)
    person = draw.choice(_PEOPLE)
    first = draw.choice((f"although {against}, {happened}", f"{happened} although {against}"))
    second = draw.choice((f"{against}, but {happened}", f"{against}, and still {happened}"))
    return (against, person), (f"as {person} told us, {first}", f"as {person} told us, {second}")


def _comparison(draw: Random) -> tuple[Hashable, Pair]:
    more, less = draw.choice(_COMPARED)
    one, other = draw.sample(_PEOPLE, 2)
    return (*sorted((one, other)), more), (f"{one} is {more} than {other}", f"{other} is {less} than {one}")


def _synonyms(draw: Random) -> tuple[Hashable, Pair]:
    saying, person = draw.choice(_SAYINGS), draw.choice(_PEOPLE)
    one = {pair[0]: draw.choice(pair) for pair in _SYNONYMS}
    other = {pair[0]: pair[one[pair[0]] == pair[0]] for pair in _SYNONYMS}
    return (saying, person), (saying.format(person, **one), saying.format(person, **other))


def _amount(draw: Random) -> tuple[Hashable, Pair]:
    (digits, words), thing, room = draw.choice(_AMOUNTS), draw.choice(_THINGS), draw.choice(_ROOMS)
    first = draw.choice((f"there are {digits} {thing} in {room}", f"in {room} there are {digits} {thing}"))
    second = draw.choice((f"you can find {words} {thing} in {room}", f"{room} holds {words} {thing}"))
    return (digits, thing, room), (first, second)


def _span(draw: Random) -> tuple[Hashable, Pair]:
    event, (one, other), person = draw.choice(_EVENTS), draw.choice(_SPANS), draw.choice(_PEOPLE)
    return (event, one, person), (f"{event} with {person} took {one}", f"{event} with {person} lasted {other}")


def _giving(draw: Random) -> tuple[Hashable, Pair]:
    (giver, taker), gift, time = draw.sample(_PEOPLE, 2), draw.choice(_GIFTS), draw.choice(_TIMES)
    first = draw.choice((f"{giver} gave {taker} {gift} {time}", f"{time} {giver} gave {gift} to {taker}"))
    return (giver, taker, gift), (first, f"{taker} got {gift} from {giver} {time}")


_RULES: tuple[Callable[[Random], tuple[Hashable, Pair]], ...] = (
    *(_voice, _order, _cause, _contrast, _comparison, _synonyms, _amount, _span, _giving),
)
