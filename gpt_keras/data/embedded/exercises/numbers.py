"""Exercises with numbers."""

import math


def clamp(value: int, low: int, high: int) -> int:
    """Return the value, moved to the nearer bound if it is not between low and high."""
    if value < low:
        return low
    if value > high:
        return high
    return value


def fibonacci(count: int) -> int:
    """Return the Fibonacci number at the given position, where positions 0 and 1 hold 0 and 1."""
    current, following = 0, 1
    for _ in range(count):
        current, following = following, current + following
    return current


def fibonacci_until(limit: int) -> list[int]:
    """Return all Fibonacci numbers that are not above the limit, in order."""
    found = []
    current, following = 0, 1
    while current <= limit:
        found.append(current)
        current, following = following, current + following
    return found


def to_roman(positive: int) -> str:
    """Return a positive number in Roman numerals."""
    symbols = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X"}
    symbols |= {9: "IX", 5: "V", 4: "IV", 1: "I"}
    written = ""
    for value, symbol in symbols.items():
        while positive >= value:
            written += symbol
            positive -= value
    return written


def from_roman(roman: str) -> int:
    """Return the number that Roman numerals stand for."""
    values = {"I": 1, "V": 5, "X": 10, "L": 50, "C": 100, "D": 500, "M": 1000}
    total = 0
    for index, letter in enumerate(roman):
        value = values[letter]
        if index + 1 < len(roman) and values[roman[index + 1]] > value:
            total -= value
        else:
            total += value
    return total


def greatest_common_divisor(positive: int, other: int) -> int:
    """Return the greatest number that divides both positive numbers, by Euclid's method."""
    while other:
        positive, other = other, positive % other
    return positive


def least_common_multiple(positive: int, other: int) -> int:
    """Return the least positive number that both positive numbers divide."""
    return positive * other // math.gcd(positive, other)


def is_prime(number: int) -> bool:
    """Return whether the number is a prime."""
    if number < 2:
        return False
    divisor = 2
    while divisor * divisor <= number:
        if number % divisor == 0:
            return False
        divisor += 1
    return True


def primes_below(limit: int) -> list[int]:
    """Return the primes below the limit, by the sieve of Eratosthenes."""
    is_open = [True] * max(limit, 2)
    found = []
    for number in range(2, limit):
        if is_open[number]:
            found.append(number)
            for multiple in range(number * number, limit, number):
                is_open[multiple] = False
    return found


def prime_factors(positive: int) -> list[int]:
    """Return the prime factors of a positive number from small to large, each as often as it divides."""
    factors = []
    divisor = 2
    while positive > 1:
        while positive % divisor == 0:
            factors.append(divisor)
            positive //= divisor
        divisor += 1
    return factors


def divisors(positive: int) -> list[int]:
    """Return all divisors of a positive number, in rising order."""
    return [candidate for candidate in range(1, positive + 1) if positive % candidate == 0]


def is_perfect(positive: int) -> bool:
    """Return whether the number is the sum of its divisors other than itself."""
    total = sum(candidate for candidate in range(1, positive) if positive % candidate == 0)
    return total == positive


def digit_sum(number: int) -> int:
    """Return the sum of the decimal digits, whatever the sign."""
    number = abs(number)
    total = 0
    while number > 0:
        total += number % 10
        number //= 10
    return total


def digital_root(positive: int) -> int:
    """Sum up the digits again and again until a single digit is left, and return it."""
    while positive >= 10:
        positive = sum(int(digit) for digit in str(positive))
    return positive


def reverse_digits(number: int) -> int:
    """Return the number with its decimal digits in reverse order and its sign kept."""
    sign = -1 if number < 0 else 1
    return sign * int(str(abs(number))[::-1])


def count_digits(number: int) -> int:
    """Return how many decimal digits the number has, without its sign."""
    return len(str(abs(number)))


def is_palindromic_number(number: int) -> bool:
    """Return whether the digits of the number read the same in both directions."""
    digits = str(number)
    return digits == digits[::-1]


def factorial(count: int) -> int:
    """Return the product of all whole numbers from 1 to count; 1 for a count of 0."""
    product = 1
    for factor in range(2, count + 1):
        product *= factor
    return product


def binomial(size: int, chosen: int) -> int:
    """Return in how many ways as many as chosen things can be taken out of size things."""
    if chosen > size:
        return 0
    ways = 1
    for step in range(chosen):
        ways = ways * (size - step) // (step + 1)
    return ways


def pascal_row(count: int) -> list[int]:
    """Return row number count of Pascal's triangle; row 0 is [1]."""
    row = [1]
    for _ in range(count):
        row = [1, *(row[index - 1] + row[index] for index in range(1, len(row))), 1]
    return row


def collatz_steps(positive: int) -> int:
    """Return how many steps it takes to reach 1, where even numbers are halved and odd ones are tripled plus 1."""
    steps = 0
    while positive != 1:
        positive = positive // 2 if positive % 2 == 0 else 3 * positive + 1
        steps += 1
    return steps


def triangular(count: int) -> int:
    """Return the sum of the whole numbers from 1 to count."""
    return count * (count + 1) // 2


def is_square(number: int) -> bool:
    """Return whether the number is the square of a whole number."""
    if number < 0:
        return False
    root = math.isqrt(number)
    return root * root == number


def is_leap_year(year: int) -> bool:
    """Return whether the year of the Gregorian calendar has a 29th of February."""
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)


def days_of_month(year: int, month: int) -> int:
    """Return the number of days of a month, given as 1 to 12."""
    if month == 2:
        leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
        return 29 if leap else 28
    return 30 if month in (4, 6, 9, 11) else 31


def century_of(year: int) -> int:
    """Return the century that a year belongs to; the year 1900 is of the 19th, 1901 of the 20th."""
    return (year - 1) // 100 + 1


def count_ones(positive: int) -> int:
    """Return how many ones the number has when it is written in binary."""
    ones = 0
    while positive:
        ones += positive & 1
        positive >>= 1
    return ones


def to_base(positive: int, base: int) -> str:
    """Write a positive number in another base from 2 to 16, with letters a to f for digits above 9."""
    symbols = "0123456789abcdef"
    written = ""
    while positive > 0:
        written = symbols[positive % base] + written
        positive //= base
    return written or "0"


def from_binary(bits: str) -> int:
    """Return the number that a text of zeros and ones stands for."""
    value = 0
    for bit in bits:
        value = value * 2 + int(bit)
    return value


def gray_code(positive: int) -> int:
    """Return the Gray code of a number: the number and its half, combined by exclusive or."""
    return positive ^ (positive >> 1)


def is_power_of_two(number: int) -> bool:
    """Return whether the number is 1, 2, 4, 8 and so on."""
    return number > 0 and number & (number - 1) == 0


def integer_root(positive: int) -> int:
    """Return the largest whole number whose square is not above the number."""
    low, high = 0, positive + 1
    while high - low > 1:
        middle = (low + high) // 2
        if middle * middle <= positive:
            low = middle
        else:
            high = middle
    return low


def power_modulo(base: int, count: int, positive: int) -> int:
    """Return the remainder of base raised to the power count, divided by a positive number."""
    result = 1
    for _ in range(count):
        result = result * base % positive
    return result % positive


def format_seconds(seconds: int) -> str:
    """Write a number of seconds as hours:minutes:seconds, with two digits each."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{rest:02d}"


def minutes_between(start: str, end: str) -> int:
    """Return the minutes from one time to a later one of the same day, both written as HH:MM."""
    first_hour, first_minute = map(int, start.split(":"))
    last_hour, last_minute = map(int, end.split(":"))
    return (last_hour - first_hour) * 60 + last_minute - first_minute


def celsius_to_fahrenheit(degrees: int) -> float:
    """Convert degrees Celsius to degrees Fahrenheit."""
    return degrees * 9 / 5 + 32


def fahrenheit_to_celsius(degrees: int) -> float:
    """Convert degrees Fahrenheit to degrees Celsius, rounded to one place."""
    return round((degrees - 32) * 5 / 9, 1)


def body_mass_index(weight: float, height: float) -> float:
    """Return the weight in kilograms divided by the square of the height in meters, rounded to one place."""
    return round(weight / height**2, 1)


def sign_of(number: int) -> str:
    """Return the word "negative", "zero" or "positive", whichever the number is."""
    if number < 0:
        return "negative"
    if number == 0:
        return "zero"
    return "positive"


def fizz_buzz(number: int) -> str:
    """Return "Fizz" for multiples of 3, "Buzz" for multiples of 5, "FizzBuzz" for both, and else the number."""
    written = ""
    if number % 3 == 0:
        written += "Fizz"
    if number % 5 == 0:
        written += "Buzz"
    return written or str(number)


def is_triangle(size: int, base: int, height: int) -> bool:
    """Return whether a triangle can have sides of these three lengths."""
    shortest, middle, longest = sorted([size, base, height])
    return shortest > 0 and shortest + middle > longest


def grade_of(score: int) -> str:
    """Return the grade of a score: A from 90, B from 80, C from 70, D from 60, and else F."""
    for grade, least in (("A", 90), ("B", 80), ("C", 70), ("D", 60)):
        if score >= least:
            return grade
    return "F"


def ordinal(positive: int) -> str:
    """Write a number with its English ending, as in 1st, 2nd, 3rd, 4th, 11th."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    if 10 <= positive % 100 <= 20:
        return f"{positive}th"
    return str(positive) + endings.get(positive % 10, "th")


def change_for(amount: int) -> dict[int, int]:
    """Return how many coins of 50, 20, 10, 5, 2 and 1 make up an amount, the large coins first."""
    coins = {}
    for coin in (50, 20, 10, 5, 2, 1):
        if amount >= coin:
            coins[coin] = amount // coin
            amount %= coin
    return coins


def round_up(value: int, step: int) -> int:
    """Return the least multiple of step that is not below the value."""
    return -(-value // step) * step
