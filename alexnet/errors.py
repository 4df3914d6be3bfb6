"""What the person at the terminal can mend."""


class AlexNetError(Exception):
    """Something about the network or a checkpoint is wrong: the message says what, where and what to do."""
