"""Exercises with lists and dictionaries."""


def binary_search(ordered: list[int], wanted: int) -> int:
    """Return the index of the wanted number in an ordered list, or -1 if it is not there."""
    low, high = 0, len(ordered) - 1
    while low <= high:
        middle = (low + high) // 2
        if ordered[middle] == wanted:
            return middle
        if ordered[middle] < wanted:
            low = middle + 1
        else:
            high = middle - 1
    return -1


def insertion_sort(numbers: list[int]) -> list[int]:
    """Return the numbers in rising order: each is moved left until the number before it is not larger."""
    ordered = list(numbers)
    for index in range(1, len(ordered)):
        place = index
        while place > 0 and ordered[place - 1] > ordered[place]:
            ordered[place - 1], ordered[place] = ordered[place], ordered[place - 1]
            place -= 1
    return ordered


def selection_sort(numbers: list[int]) -> list[int]:
    """Return the numbers in rising order: again and again the smallest of the rest is taken."""
    rest, ordered = list(numbers), []
    while rest:
        smallest = min(rest)
        rest.remove(smallest)
        ordered.append(smallest)
    return ordered


def merge_ordered(ordered: list[int], other_ordered: list[int]) -> list[int]:
    """Merge two ordered lists into one."""
    merged = []
    left = right = 0
    while left < len(ordered) and right < len(other_ordered):
        if ordered[left] <= other_ordered[right]:
            merged.append(ordered[left])
            left += 1
        else:
            merged.append(other_ordered[right])
            right += 1
    return merged + ordered[left:] + other_ordered[right:]


def is_sorted(numbers: list[int]) -> bool:
    """Return whether no number is smaller than the one before it."""
    return all(numbers[index - 1] <= numbers[index] for index in range(1, len(numbers)))


def flatten(matrix: list[list[int]]) -> list[int]:
    """Return the numbers of all rows, one row behind the other."""
    return [value for row in matrix for value in row]


def transpose(matrix: list[list[int]]) -> list[list[int]]:
    """Return the matrix with its rows as columns."""
    return [list(column) for column in zip(*matrix, strict=True)]


def row_sums(matrix: list[list[int]]) -> list[int]:
    """Return the sum of every row."""
    return [sum(row) for row in matrix]


def column_sums(matrix: list[list[int]]) -> list[int]:
    """Return the sum of every column."""
    sums = [0] * len(matrix[0])
    for row in matrix:
        for index, value in enumerate(row):
            sums[index] += value
    return sums


def diagonal(square: list[list[int]]) -> list[int]:
    """Return the numbers of a square matrix from its upper left to its lower right corner."""
    return [square[index][index] for index in range(len(square))]


def rotate_clockwise(square: list[list[int]]) -> list[list[int]]:
    """Turn a matrix by a quarter to the right."""
    return [list(column) for column in zip(*square[::-1], strict=True)]


def multiply_matrices(square: list[list[int]], other_square: list[list[int]]) -> list[list[int]]:
    """Return the matrix product of two square matrices."""
    size = min(len(square), len(other_square))
    product = []
    for row in range(size):
        product.append([sum(square[row][k] * other_square[k][column] for k in range(size)) for column in range(size)])
    return product


def identity_matrix(count: int) -> list[list[int]]:
    """Return a square matrix of so many rows, with ones on its diagonal and zeros elsewhere."""
    return [[1 if row == column else 0 for column in range(count)] for row in range(count)]


def chunked(numbers: list[int], size: int) -> list[list[int]]:
    """Cut a list into lists of the given size; the last one may be shorter."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def rotate_left(numbers: list[int], shift: int) -> list[int]:
    """Move every number shift places to the left; those that fall out come in again at the end."""
    if not numbers:
        return []
    shift %= len(numbers)
    return numbers[shift:] + numbers[:shift]


def without_repeats(numbers: list[int]) -> list[int]:
    """Return the list with only the first of equal numbers."""
    kept: list[int] = []
    for number in numbers:
        if number not in kept:
            kept.append(number)
    return kept


def without_neighboring_repeats(numbers: list[int]) -> list[int]:
    """Return the list without the numbers that equal the one right before them."""
    kept: list[int] = []
    for number in numbers:
        if not kept or kept[-1] != number:
            kept.append(number)
    return kept


def in_both(numbers: list[int], other_numbers: list[int]) -> list[int]:
    """Return the numbers of the first list that are in the second one as well, in order."""
    return [number for number in numbers if number in other_numbers]


def only_in_first(numbers: list[int], other_numbers: list[int]) -> list[int]:
    """Return the numbers of the first list that are not in the second one."""
    return [number for number in numbers if number not in other_numbers]


def interleave(words: list[str], other_words: list[str]) -> list[str]:
    """Take words from the two lists in turn until the shorter one ends."""
    mixed = []
    for left, right in zip(words, other_words, strict=False):
        mixed.append(left)
        mixed.append(right)
    return mixed


def running_total(numbers: list[int]) -> list[int]:
    """Return for every place the sum of the numbers up to it."""
    total, totals = 0, []
    for number in numbers:
        total += number
        totals.append(total)
    return totals


def running_maximum(numbers: list[int]) -> list[int]:
    """Return for every place the largest number up to it."""
    largest: list[int] = []
    for number in numbers:
        largest.append(number if not largest or number > largest[-1] else largest[-1])
    return largest


def differences(numbers: list[int]) -> list[int]:
    """Return by how much every number is larger than the one before it."""
    return [numbers[index] - numbers[index - 1] for index in range(1, len(numbers))]


def moving_average(numbers: list[int], size: int) -> list[float]:
    """Return the averages of every size numbers in a row."""
    return [sum(numbers[start : start + size]) / size for start in range(len(numbers) - size + 1)]


def second_largest(numbers: list[int]) -> int | None:
    """Return the second largest of the different numbers, or None if there are not two."""
    different = sorted(set(numbers))
    return different[-2] if len(different) > 1 else None


def spread(numbers: list[int]) -> int:
    """Return the distance between the smallest and the largest number; 0 for an empty list."""
    return max(numbers) - min(numbers) if numbers else 0


def middle_value(numbers: list[int]) -> float | None:
    """Return the median: the middle number in order, or the average of the two in the middle; None for no numbers."""
    if not numbers:
        return None
    ordered = sorted(numbers)
    half = len(ordered) // 2
    if len(ordered) % 2 == 1:
        return ordered[half]
    return (ordered[half - 1] + ordered[half]) / 2


def most_frequent(numbers: list[int]) -> int | None:
    """Return the number that occurs most, the first of them if there are several, or None for an empty list."""
    best, best_count = None, 0
    for number in numbers:
        count = numbers.count(number)
        if count > best_count:
            best, best_count = number, count
    return best


def index_of_largest(numbers: list[int]) -> int:
    """Return the index of the first of the largest numbers, or -1 for an empty list."""
    best = -1
    for index, number in enumerate(numbers):
        if best < 0 or number > numbers[best]:
            best = index
    return best


def pair_with_sum(numbers: list[int], wanted: int) -> list[int]:
    """Return the indices of the first two numbers whose sum is the wanted one, or an empty list."""
    for first in range(len(numbers)):
        for second in range(first + 1, len(numbers)):
            if numbers[first] + numbers[second] == wanted:
                return [first, second]
    return []


def largest_run_sum(numbers: list[int]) -> int:
    """Return the largest sum of numbers in a row; the run may be empty, with a sum of 0."""
    best = current = 0
    for number in numbers:
        current = max(0, current + number)
        best = max(best, current)
    return best


def longest_rise(numbers: list[int]) -> int:
    """Return the length of the longest run in which every number is larger than the one before it."""
    longest = length = 0
    for index, number in enumerate(numbers):
        length = length + 1 if index > 0 and number > numbers[index - 1] else 1
        longest = max(longest, length)
    return longest


def count_inversions(numbers: list[int]) -> int:
    """Return how many pairs of numbers stand in falling order."""
    count = 0
    for first in range(len(numbers)):
        for second in range(first + 1, len(numbers)):
            if numbers[first] > numbers[second]:
                count += 1
    return count


def merge_ranges(ranges: list[list[int]]) -> list[list[int]]:
    """Merge ranges, each given as [start, end], that overlap or touch, and return them in order."""
    merged: list[list[int]] = []
    for start, end in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], end)
        else:
            merged.append([start, end])
    return merged


def split_at(numbers: list[int], wanted: int) -> list[list[int]]:
    """Cut the list at every occurrence of the wanted number, which is left out."""
    parts: list[list[int]] = [[]]
    for number in numbers:
        if number == wanted:
            parts.append([])
        else:
            parts[-1].append(number)
    return parts


def zeros_last(numbers: list[int]) -> list[int]:
    """Move all zeros to the end and keep the order of the other numbers."""
    others = [number for number in numbers if number != 0]
    return others + [0] * (len(numbers) - len(others))


def every_second(words: list[str]) -> list[str]:
    """Return the first, the third, the fifth word and so on."""
    return words[::2]


def dot_product(numbers: list[int], other_numbers: list[int]) -> int:
    """Multiply the numbers at equal places and return the sum; places that only one list has do not count."""
    return sum(left * right for left, right in zip(numbers, other_numbers, strict=False))


def group_by_length(words: list[str]) -> dict[int, list[str]]:
    """Return the words by their length."""
    groups: dict[int, list[str]] = {}
    for word in words:
        groups.setdefault(len(word), []).append(word)
    return groups


def group_by_first_letter(words: list[str]) -> dict[str, int]:
    """Return how many words begin with each letter."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word[0]] = counts.get(word[0], 0) + 1
    return counts


def by_length(words: list[str]) -> list[str]:
    """Sort words from short to long, and those of one length by the alphabet."""
    return sorted(words, key=lambda word: (len(word), word))


def inverted(table: dict[str, int]) -> dict[int, str]:
    """Return the table with its values as keys; of equal values the last key counts."""
    return {value: key for key, value in table.items()}


def added_tables(table: dict[str, int], other_table: dict[str, int]) -> dict[str, int]:
    """Add two tables up: a key that both have gets the sum of its values."""
    total = dict(table)
    for key, value in other_table.items():
        total[key] = total.get(key, 0) + value
    return total


def keys_above(table: dict[str, int], level: int) -> list[str]:
    """Return the keys whose values are above the level, in the order of the alphabet."""
    return sorted(key for key, value in table.items() if value > level)


def best_key(table: dict[str, int]) -> str | None:
    """Return the key with the largest value, the first of them if there are several, or None for an empty table."""
    best = None
    for key, value in table.items():
        if best is None or value > table[best]:
            best = key
    return best


def compress_ranges(ordered: list[int]) -> list[list[int]]:
    """Write an ordered list as ranges [first, last] of numbers that follow one another without a gap."""
    found: list[list[int]] = []
    for number in ordered:
        if found and found[-1][1] + 1 == number:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found
