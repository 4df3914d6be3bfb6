"""What the person at the terminal can mend."""


class DataError(Exception):
    """Something is wrong with the data: the message says what, where and what to do."""
