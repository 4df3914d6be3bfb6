"""The error that is shown to the user in one line, without a traceback."""


class AlexNetError(Exception):
    """An error in the network, a run or a checkpoint that the user can mend: it says what, where and what to do."""
