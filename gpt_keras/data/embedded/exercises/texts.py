"""Exercises with texts."""


def count_vowels(text: str) -> int:
    """Return how many of the characters are vowels, in either case."""
    count = 0
    for character in text.lower():
        if character in "aeiou":
            count += 1
    return count


def reverse_words(sentence: str) -> str:
    """Return the words of the sentence in reverse order, one space apart."""
    return " ".join(reversed(sentence.split()))


def reverse_each_word(sentence: str) -> str:
    """Return the sentence with the letters of every word reversed and the words where they were."""
    return " ".join(word[::-1] for word in sentence.split(" "))


def is_palindrome(text: str) -> bool:
    """Return whether the letters of the text read the same in both directions, whatever their case."""
    letters = [character.lower() for character in text if character.isalpha()]
    return letters == letters[::-1]


def are_anagrams(word: str, other: str) -> bool:
    """Return whether the two words have the same letters in some order, whatever their case."""
    return sorted(word.lower()) == sorted(other.lower())


def is_pangram(text: str) -> bool:
    """Return whether every letter from a to z occurs in the text."""
    return all(letter in text.lower() for letter in "abcdefghijklmnopqrstuvwxyz")


def run_length_encode(text: str) -> str:
    """Replace every run of a character by the character and the length of the run, as in "a3b1" for "aaab"."""
    encoded = ""
    index = 0
    while index < len(text):
        end = index
        while end < len(text) and text[end] == text[index]:
            end += 1
        encoded += text[index] + str(end - index)
        index = end
    return encoded


def run_length_decode(runs: str) -> str:
    """Undo a run length encoding: every character is followed by one digit, which says how often it is repeated."""
    decoded = ""
    for index in range(0, len(runs), 2):
        decoded += runs[index] * int(runs[index + 1])
    return decoded


def caesar(text: str, shift: int) -> str:
    """Move every letter by shift places in the alphabet, from z on to a; other characters stay."""
    moved = ""
    for character in text:
        if character.isalpha() and character.isascii():
            first = ord("A") if character.isupper() else ord("a")
            character = chr((ord(character) - first + shift) % 26 + first)
        moved += character
    return moved


def camel_to_snake(camel: str) -> str:
    """Write a name such as maxValue as max_value."""
    snake = ""
    for index, character in enumerate(camel):
        if character.isupper() and index > 0:
            snake += "_"
        snake += character.lower()
    return snake


def snake_to_camel(snake: str) -> str:
    """Write a name such as max_value as maxValue."""
    first, *others = snake.split("_")
    return first + "".join(part.capitalize() for part in others)


def initials(sentence: str) -> str:
    """Return the first letters of all words as capitals, each with a full stop behind it."""
    return "".join(word[0].upper() + "." for word in sentence.split())


def longest_word(sentence: str) -> str:
    """Return the longest word of the sentence, and the first of them if there are several; "" if there is none."""
    longest = ""
    for word in sentence.split():
        if len(word) > len(longest):
            longest = word
    return longest


def word_lengths(sentence: str) -> list[int]:
    """Return the length of every word of the sentence."""
    return [len(word) for word in sentence.split()]


def word_counts(sentence: str) -> dict[str, int]:
    """Return how often every word occurs, whatever its case, in the order in which they come first."""
    counts: dict[str, int] = {}
    for word in sentence.lower().split():
        counts[word] = counts.get(word, 0) + 1
    return counts


def most_common_letter(text: str) -> str:
    """Return the letter that occurs most, in lower case; of several the first in the alphabet; "" without letters."""
    letters = sorted(character for character in text.lower() if character.isalpha())
    best = ""
    for letter in letters:
        if not best or letters.count(letter) > letters.count(best):
            best = letter
    return best


def first_unique_letter(word: str) -> str:
    """Return the first letter that occurs only once in the word, or "" if there is none."""
    for letter in word:
        if word.count(letter) == 1:
            return letter
    return ""


def without_repeated_letters(word: str) -> str:
    """Return the word with only the first of every letter."""
    kept = ""
    for letter in word:
        if letter not in kept:
            kept += letter
    return kept


def is_balanced(brackets: str) -> bool:
    """Return whether every bracket of the kinds (), [] and {} is closed by its own kind, in the right order."""
    opening = {")": "(", "]": "[", "}": "{"}
    waiting: list[str] = []
    for character in brackets:
        if character in "([{":
            waiting.append(character)
        elif not waiting or waiting.pop() != opening[character]:
            return False
    return not waiting


def nesting_depth(brackets: str) -> int:
    """Return how many brackets are open at once at most."""
    depth = deepest = 0
    for character in brackets:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        else:
            depth -= 1
    return deepest


def hamming_distance(word: str, other: str) -> int:
    """Return in how many places two words differ; places that only the longer one has count too."""
    different = sum(left != right for left, right in zip(word, other, strict=False))
    return different + abs(len(word) - len(other))


def common_prefix(word: str, other: str) -> str:
    """Return the longest beginning that the two words have in common."""
    length = 0
    while length < min(len(word), len(other)) and word[length] == other[length]:
        length += 1
    return word[:length]


def edit_distance(word: str, other: str) -> int:
    """Return the least number of letters to insert, delete or replace to make one word the other."""
    row = list(range(len(other) + 1))
    for number, letter in enumerate(word, 1):
        previous, row = row, [number]
        for index, wanted in enumerate(other):
            row.append(min(previous[index] + (letter != wanted), previous[index + 1] + 1, row[index] + 1))
    return row[-1]


def is_subsequence(letters: str, text: str) -> bool:
    """Return whether the letters occur in the text in the same order, with anything in between."""
    found = 0
    for character in text:
        if found < len(letters) and character == letters[found]:
            found += 1
    return found == len(letters)


def shorten(text: str, size: int) -> str:
    """Return the text if it has at most size characters, and else its beginning with "..." behind it."""
    if len(text) <= size:
        return text
    return text[:size] + "..."


def pad_left(text: str, size: int) -> str:
    """Return the text with spaces in front of it, so that it has at least size characters."""
    return " " * max(0, size - len(text)) + text


def centered(word: str, size: int) -> str:
    """Put a word in the middle of a line of stars that is size wide; an odd star goes to the right."""
    missing = max(0, size - len(word))
    left = missing // 2
    return "*" * left + word + "*" * (missing - left)


def mask(text: str, count: int) -> str:
    """Replace all but the last count characters by stars."""
    hidden = max(0, len(text) - count)
    return "*" * hidden + text[hidden:]


def swap_case(text: str) -> str:
    """Return the text with capitals as small letters and small letters as capitals."""
    return "".join(character.lower() if character.isupper() else character.upper() for character in text)


def alternate_case(text: str) -> str:
    """Write the characters in turn as a capital and as a small letter."""
    return "".join(c.upper() if index % 2 == 0 else c.lower() for index, c in enumerate(text))


def title_words(sentence: str) -> str:
    """Capitalize the words of more than three letters, and the first one."""
    written = []
    for index, word in enumerate(sentence.split()):
        written.append(word.capitalize() if index == 0 or len(word) > 3 else word.lower())
    return " ".join(written)


def pig_latin(word: str) -> str:
    """Move the letters in front of the first vowel to the end of the word, and write "ay" behind it."""
    for index, letter in enumerate(word):
        if letter in "aeiou":
            return word[index:] + word[:index] + "ay"
    return word + "ay"


def slug(sentence: str) -> str:
    """Return the words of a sentence for an address: letters and digits in lower case, other runs as one hyphen."""
    written = ""
    for character in sentence.lower():
        if character.isalnum():
            written += character
        elif written and not written.endswith("-"):
            written += "-"
    return written.strip("-")


def numbers_in(text: str) -> list[int]:
    """Return the whole numbers that are written with digits in the text, from left to right."""
    found, digits = [], ""
    for character in text + " ":
        if character in "0123456789":
            digits += character
        elif digits:
            found.append(int(digits))
            digits = ""
    return found


def letter_positions(text: str) -> list[int]:
    """Return the place in the alphabet of every letter, where a is 1; other characters are left out."""
    return [ord(c) - ord("a") + 1 for c in text.lower() if "a" <= c <= "z"]


def is_luhn_valid(digits: str) -> bool:
    """Return whether a number passes the Luhn check: from the right, every second digit is doubled, the digits of the
    results are summed up, and the sum ends in 0."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit)
        if index % 2 == 1:
            value *= 2
            if value > 9:
                value -= 9
        total += value
    return total % 10 == 0


def count_overlapping(text: str, letters: str) -> int:
    """Return how often the letters occur in the text one behind another, where occurrences may overlap."""
    count = 0
    for start in range(len(text) - len(letters) + 1):
        if text[start : start + len(letters)] == letters:
            count += 1
    return count


def remove_double_spaces(sentence: str) -> str:
    """Replace every run of spaces by a single one."""
    while "  " in sentence:
        sentence = sentence.replace("  ", " ")
    return sentence


def is_valid_name(text: str) -> bool:
    """Return whether the text is a letter or an underscore, followed by letters, digits or underscores only."""
    if not text or text[0] in "0123456789":
        return False
    return all(character.isalnum() or character == "_" for character in text)


def join_with_and(words: list[str]) -> str:
    """Join words as in "a, b and c"."""
    if len(words) < 2:
        return "".join(words)
    return ", ".join(words[:-1]) + " and " + words[-1]
