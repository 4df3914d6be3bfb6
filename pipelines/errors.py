"""Errors that the person at the terminal can fix."""


class DataError(Exception):
    """An error in the data; its message says what is wrong, where, and what to do."""
