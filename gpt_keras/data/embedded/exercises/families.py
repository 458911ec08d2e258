"""Exercises made of a condition and of what to do with the values that meet it."""

from __future__ import annotations

_NUMBERS = {  # what follows the name `numbers_`, what it says in words, and the condition
    "even": ("even", "number % 2 == 0"),
    "odd": ("odd", "number % 2 == 1"),
    "positive": ("positive", "number > 0"),
    "negative": ("negative", "number < 0"),
    "small": ("smaller than 10", "number < 10"),
    "large": ("larger than 10", "number > 10"),
    "threefold": ("divisible by 3", "number % 3 == 0"),
    "round": ("divisible by 10", "number % 10 == 0"),
}
_NUMBER_EXERCISES = '''
def sum_of_{key}(numbers: list[int]) -> int:
    """Return the sum of those numbers that are {words}."""
    total = 0
    for number in numbers:
        if {condition}:
            total += number
    return total

def count_{key}(numbers: list[int]) -> int:
    """Return how many of the numbers are {words}."""
    return sum(1 for number in numbers if {condition})

def largest_{key}(numbers: list[int]) -> int | None:
    """Return the largest of those numbers that are {words}, or None if there are none."""
    largest = None
    for number in numbers:
        if {condition} and (largest is None or number > largest):
            largest = number
    return largest

def smallest_{key}(numbers: list[int]) -> int | None:
    """Return the smallest of those numbers that are {words}, or None if there are none."""
    return min([number for number in numbers if {condition}], default=None)

def only_{key}(numbers: list[int]) -> list[int]:
    """Return a list of those numbers that are {words}, in order."""
    return [number for number in numbers if {condition}]

def without_{key}(numbers: list[int]) -> list[int]:
    """Return the list without the numbers that are {words}."""
    kept = []
    for number in numbers:
        if not ({condition}):
            kept.append(number)
    return kept

def positions_of_{key}(numbers: list[int]) -> list[int]:
    """Return the indices of those numbers that are {words}."""
    return [index for index, number in enumerate(numbers) if {condition}]

def first_{key}(numbers: list[int]) -> int | None:
    """Return the first number that is {words}, or None if there is none."""
    for number in numbers:
        if {condition}:
            return number
    return None

def last_{key}(numbers: list[int]) -> int | None:
    """Return the last number that is {words}, or None if there is none."""
    found = None
    for number in numbers:
        if {condition}:
            found = number
    return found

def squares_of_{key}(numbers: list[int]) -> list[int]:
    """Return the squares of those numbers that are {words}."""
    squares = []
    for number in numbers:
        if {condition}:
            squares.append(number * number)
    return squares

def average_of_{key}(numbers: list[int]) -> float:
    """Return the average of those numbers that are {words}, and 0.0 if there are none."""
    chosen = [number for number in numbers if {condition}]
    return sum(chosen) / len(chosen) if chosen else 0.0

def all_{key}(numbers: list[int]) -> bool:
    """Return whether all the numbers are {words}."""
    for number in numbers:
        if not ({condition}):
            return False
    return True

def zero_instead_of_{key}(numbers: list[int]) -> list[int]:
    """Return the list with 0 in place of every number that is {words}."""
    return [0 if {condition} else number for number in numbers]

def leading_{key}(numbers: list[int]) -> int:
    """Return how many numbers at the beginning of the list are {words}, up to the first one that is not."""
    count = 0
    for number in numbers:
        if not ({condition}):
            break
        count += 1
    return count
'''
_CHARACTERS = {
    "vowels": ("vowels, in either case", 'character in "aeiouAEIOU"'),
    "digits": ("digits", "character.isdigit()"),
    "capitals": ("capital letters", "character.isupper()"),
    "spaces": ("spaces", 'character == " "'),
    "letters": ("letters", "character.isalpha()"),
    "small_letters": ("small letters", "character.islower()"),
}
_CHARACTER_EXERCISES = '''
def number_of_{key}(text: str) -> int:
    """Return how many characters of the text are {words}."""
    count = 0
    for character in text:
        if {condition}:
            count += 1
    return count

def remove_{key}(text: str) -> str:
    """Return the text without the characters that are {words}."""
    return "".join(character for character in text if not ({condition}))

def keep_{key}(text: str) -> str:
    """Return only those characters of the text that are {words}."""
    kept = ""
    for character in text:
        if {condition}:
            kept += character
    return kept

def hide_{key}(text: str) -> str:
    """Return the text with a star in place of every character that belongs to the {words}."""
    return "".join("*" if {condition} else character for character in text)

def place_of_{key}(text: str) -> int:
    """Return the index of the first character that belongs to the {words}, or -1 if there is none."""
    for index, character in enumerate(text):
        if {condition}:
            return index
    return -1

def double_{key}(text: str) -> str:
    """Return the text with those characters written twice that are {words}."""
    doubled = ""
    for character in text:
        doubled += character
        if {condition}:
            doubled += character
    return doubled
'''
_WORDS = {
    "short": ("have at most four letters", "len(word) <= 4"),
    "long": ("have more than five letters", "len(word) > 5"),
    "capitalized": ("begin with a capital letter", "word[0].isupper()"),
    "mirrored": ("begin and end with the same letter", "word[0] == word[-1]"),
}
_WORD_EXERCISES = '''
def {key}_words(words: list[str]) -> list[str]:
    """Return a list of those words that {words}."""
    return [word for word in words if {condition}]

def count_{key}_words(words: list[str]) -> int:
    """Return how many of the words {words}."""
    count = 0
    for word in words:
        if {condition}:
            count += 1
    return count

def sentence_of_{key}_words(sentence: str) -> str:
    """Return the sentence with only those of its words that {words}, one space apart."""
    return " ".join(word for word in sentence.split() if {condition})

def first_{key}_word(words: list[str]) -> str:
    """Return the first of the words that {words}, or "" if there is none."""
    for word in words:
        if {condition}:
            return word
    return ""

def shout_{key}_words(words: list[str]) -> list[str]:
    """Return the words, with those in capitals that {words}."""
    return [word.upper() if {condition} else word for word in words]
'''


def family_sources() -> list[str]:
    """Each exercise as the source of a module of its own."""
    sources = []
    for templates, fillings in (
        (_NUMBER_EXERCISES, _NUMBERS),
        (_CHARACTER_EXERCISES, _CHARACTERS),
        (_WORD_EXERCISES, _WORDS),
    ):
        for template in templates.strip().split("\n\n"):
            sources += [
                template.format(key=key, words=words, condition=condition)
                for key, (words, condition) in fillings.items()
            ]
    return sources
