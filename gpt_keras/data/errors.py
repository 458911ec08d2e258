"""The one exception for input that a person can put right."""


class InputError(ValueError):
    """Bad input: one line that says what is wrong, where, and what to do. Commands print it and exit with code 2."""
