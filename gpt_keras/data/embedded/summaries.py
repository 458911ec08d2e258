"""Short reports of an event with a summary of one sentence, which is about the facts wherever they stand."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from random import Random

from gpt_keras.data.embedded.composing import Record, Records, compose


@dataclass(frozen=True)
class _Event:
    """One kind of event; in the texts stand {place}, {day}, {number}, {cause} and {result}.

    Attributes:
        news: What happened.
        numbers: From where to where {number} is drawn, and its step.
        count: A sentence with {number}.
        causes: Clauses for {cause}.
        cause: A sentence with {cause}.
        results: Clauses for {result}.
        result: A sentence with {result}.
        quotes: What somebody said.
        background: What is not about the event itself.
        summaries: The facts in one sentence.
    """

    news: tuple[str, ...]
    numbers: tuple[int, int, int]
    count: str
    causes: tuple[str, ...]
    cause: str
    results: tuple[str, ...]
    result: str
    quotes: tuple[str, ...]
    background: tuple[str, ...]
    summaries: tuple[str, ...]


_PLACES = (
    *("Milford", "Ashby", "Norwick", "Elmstead", "Carrow", "Brindle", "Halden", "Stoneham", "Wexcombe", "Tarnley"),
    *("Port Lise", "Upper Dale", "Grayford", "Linden", "Oakhurst", "Severing", "Dunmore", "Kestrel Bay", "Ravensby"),
    *("Merton Hill", "Fairwater", "Thorne", "Bellmouth", "Colby", "Easterly", "Hartwell", "Moss End", "Pinewood"),
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NAMES = ("Maria Holt", "Jonas Reed", "Amira Khan", "Peter Lang", "Lucy Obi", "Tom Varga", "Elena Ruiz", "Sam Whitby")
_ROLES = ("the mayor", "a spokeswoman of the town", "a neighbor", "a member of the council", "a teacher of the town")
_EVENTS = {
    "flood": _Event(
        ("On {day} the river left its bed in {place}.", "The streets of {place} were under water on {day}."),
        (20, 400, 10),
        "{number} people had to leave their homes for the night.",
        ("two days of heavy rain", "a broken dam upstream", "the sudden melting of the snow"),
        "The fire brigade named {cause} as the reason.",
        (
            "the main bridge stays closed for a week",
            "all schools remain shut until Monday",
            "trains stop one town before",
        ),
        "For now {result}.",
        ("We have never seen the water so high", "Everybody helped carry sandbags", "The worst is behind us"),
        ("The town lies in a narrow valley.", "The last high water was twelve years ago.", "Fishing is popular here."),
        (
            "A flood in {place} after {cause} drove {number} people from their homes, and {result}.",
            "{number} people in {place} had to leave their homes when {cause} made the river flood the town.",
        ),
    ),
    "fire": _Event(
        ("A warehouse in {place} burned down on {day}.", "Smoke rose over {place} on {day}: a warehouse was on fire."),
        (15, 120, 5),
        "{number} firefighters were at work until the morning.",
        ("a faulty cable", "a forgotten candle", "welding work on the roof"),
        "According to the police {cause} started it.",
        ("nobody was hurt", "one worker was slightly hurt", "a truck and its load were lost"),
        "As it turned out, {result}.",
        ("The flames were higher than the church", "We lost everything that we had stored", "They came within minutes"),
        (
            "The building was put up fifty years ago.",
            "The street is known for its small workshops.",
            "It was a warm night.",
        ),
        (
            "A warehouse in {place} burned down because of {cause}; {number} firefighters came, and {result}.",
            "{number} firefighters could not save a warehouse in {place} from a fire that {cause} had started.",
        ),
    ),
    "bridge": _Event(
        ("{place} opened its new bridge on {day}.", "Since {day} one can cross the river in {place} again."),
        (2, 30, 1),
        "It cost {number} million and took three years to build.",
        ("the old one had become too weak for trucks", "the ferry could not carry the traffic any more"),
        "The council had decided to build it because {cause}.",
        ("the way to the station is ten minutes shorter", "buses will run every quarter of an hour"),
        "Thanks to it {result}.",
        ("I have waited for this since I was a child", "Now both sides of the town grow together"),
        ("A brass band played.", "Children let balloons rise.", "The river is two hundred meters wide at this place."),
        (
            "{place} opened a new bridge for {number} million because {cause}.",
            "A new bridge in {place}, built for {number} million, means that {result}.",
        ),
    ),
    "strike": _Event(
        ("The bus drivers of {place} stopped work on {day}.", "No bus left the depot of {place} on {day}."),
        (40, 600, 20),
        "{number} drivers took part.",
        ("they had not had a raise in four years", "their shifts had become longer", "two of them had lost their jobs"),
        "They said that {cause}.",
        (
            "the company agreed to new talks",
            "the company offered three percent more",
            "the strike will go on for a week",
        ),
        "In the evening it became known that {result}.",
        ("We would rather drive than stand here", "I walked to work for an hour", "Both sides need to talk"),
        (
            "It was raining all day.",
            "Taxis were hard to find.",
            "The buses carry most of those who work in the center.",
        ),
        (
            "{number} bus drivers in {place} went on strike because {cause}, and {result}.",
            "Buses in {place} stood still because {number} drivers were on strike; {result}.",
        ),
    ),
    "library": _Event(
        ("The library of {place} is open again since {day}.", "On {day} {place} got its library back."),
        (10, 90, 5),
        "{number} thousand books are on its shelves.",
        ("water had damaged the ground floor", "the roof had to be replaced", "the old rooms had become too small"),
        "It had been closed because {cause}.",
        ("it opens on Sundays as well", "cards for children are free", "there is a room for making music"),
        "What is new is that {result}.",
        ("I have read every crime novel they have", "A town without a library is only half a town"),
        ("The building was once a school.", "There was cake for everybody.", "The line reached down to the market."),
        (
            "The library of {place} reopened with {number} thousand books after it was closed because {cause}.",
            "After a long break {place} has a library with {number} thousand books again, and {result}.",
        ),
    ),
    "factory": _Event(
        ("The furniture factory of {place} will close, its owner said on {day}.", "Bad news came to {place} on {day}."),
        (60, 900, 20),
        "{number} people work in the furniture factory that is to be closed.",
        ("orders have fallen by half", "wood has become too expensive", "production moves abroad"),
        "The owner explained that {cause}.",
        ("a fund will help the workers", "the union will go to court", "half of the workers may move to another plant"),
        "For the time after that {result}.",
        ("My father already worked here", "We made good chairs", "Nobody had told us anything"),
        (
            "The factory is as old as the railway.",
            "There are few other jobs around.",
            "The gates stayed shut that day.",
        ),
        (
            "The furniture factory of {place} with {number} workers will close because {cause}.",
            "{number} workers in {place} lose their jobs as the furniture factory closes, but {result}.",
        ),
    ),
    "match": _Event(
        ("{place} won the final of the regional cup on {day}.", "The cup goes to {place}, which was decided on {day}."),
        (2, 40, 1),
        "{number} hundred people watched the match.",
        ("a goal in the last minute", "a penalty shortly after the break", "two goals of the youngest player"),
        "What decided it was {cause}.",
        (
            "the team moves up to the next league",
            "there will be a parade on Sunday",
            "the coach stays for another year",
        ),
        "After this success {result}.",
        ("I will not sleep tonight", "The other side played better, but we scored", "This cup belongs to our fans"),
        ("The grass was wet.", "Before the break little had happened.", "The club was founded by railway workers."),
        (
            "{place} won the regional cup in front of {number} hundred people thanks to {cause}.",
            "Thanks to {cause} {place} took the regional cup, and {result}.",
        ),
    ),
    "find": _Event(
        (
            "Workers found old coins in {place} on {day}.",
            "A digger in {place} hit upon a clay pot full of coins on {day}.",
        ),
        (30, 800, 10),
        "There are {number} pieces of silver.",
        ("a pipe was being laid", "a cellar was being dug", "a tree was being planted"),
        "They came to light when {cause}.",
        ("the museum will show them in spring", "the building work rests for a month", "the finder gets a reward"),
        "It was decided that {result}.",
        (
            "At first I thought they were buttons",
            "Somebody must have hidden them in a war",
            "I have dug here for years",
        ),
        (
            "The coins are about six hundred years old.",
            "There was a market here once.",
            "The place is guarded at night.",
        ),
        (
            "{number} old silver coins were found in {place} when {cause}, and {result}.",
            "In {place} workers came upon {number} silver coins; {result}.",
        ),
    ),
}


def summary_records(draw: Random, train: int, valid: int) -> tuple[Records, Records]:
    """Reports as {document, summary}; an event of one kind in one place is on one side only."""
    return compose(_report, draw, train, valid)


def _report(draw: Random) -> tuple[Hashable, Record]:
    kind = draw.choice(list(_EVENTS))
    event = _EVENTS[kind]
    first, last, step = event.numbers
    facts = {
        "place": draw.choice(_PLACES),
        "day": draw.choice(_DAYS),
        "number": draw.randrange(first, last + 1, step),
        "cause": draw.choice(event.causes),
        "result": draw.choice(event.results),
    }
    news, cause = draw.choice(event.news), event.cause
    rest = [event.count, cause, event.result]
    draw.shuffle(rest)
    saying = f'"{draw.choice(event.quotes)}," said {draw.choice(_NAMES)}, {draw.choice(_ROLES)}.'
    asides = draw.sample(event.background, draw.randint(0, 2))
    sentences = [news, *rest]
    for more in [saying, *asides] if draw.random() < 0.8 else asides:
        sentences.insert(draw.randint(1, len(sentences)), more)
    if draw.random() < 0.5:  # the report opens with what does not matter, so that its first sentence is no summary
        unused = [aside for aside in event.background if aside not in asides]
        sentences.insert(0, draw.choice(unused))
    document, summary = " ".join(sentences).format(**facts), draw.choice(event.summaries).format(**facts)
    return (kind, facts["place"]), {"document": document, "summary": summary}
