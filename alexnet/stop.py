"""SIGTERM, SIGINT and SIGHUP as a request to stop, which the training loop checks after each step."""

import os
import signal
import sys
import time
from types import FrameType
from typing import Self

SAME_SECONDS = 1.0  # torchrun passes Ctrl-C on to ranks that already got it from the terminal


class Stop:
    """A request to stop: ``asked`` becomes true at the first signal in its context.

    A second signal ends the process at once. It leaves on the disk what a kill would leave: whole checkpoints.
    """

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    def __enter__(self) -> Self:
        stops = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:  # nohup: the closed terminal shall not stop the run
            stops.remove(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._handle) for number in stops}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
            _say("stopping after this step; once more to stop at once")
        elif time.monotonic() - self._since > SAME_SECONDS:
            _say("error: stopped")
            os._exit(128 + number)


def _say(message: str) -> None:
    os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"\n{message}\n".encode())  # print may be under way
