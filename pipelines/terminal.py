"""The frame of every command: options from a dataclass, one clear message per error, and exit codes.

0: done. 1: the work could not be done. 2: the command line was wrong. 130: stopped by Ctrl-C, SIGTERM or SIGHUP.
"""

import errno
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from typing import Any, NoReturn, TypeVar

import tyro
from tqdm import tqdm

from pipelines import DataError
from pipelines.commands import as_typed, program
from pipelines.untrusted import printable

Options = TypeVar("Options")
BAR = "{desc}{percentage:.0f} %|{bar}| {n_fmt}/{total_fmt}{unit}, {remaining} left{postfix}"
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
SAME_SECONDS = 1.0  # within it a second signal is part of the first stop: terminal and shell both send SIGHUP


def run_command(
    main: Callable[[Options], None],
    options: type[Options],
    description: str | None,
    *,
    default: Options | None = None,
    arguments: Sequence[str] | None = None,
    errors: tuple[type[Exception], ...] = (DataError,),
) -> None:
    """Parse the command line into ``options`` and call ``main`` with them. An error ends the process with its code.

    ``options`` is a dataclass; a ``ValueError`` from its ``__post_init__`` is a value out of range. ``errors`` are the
    types whose message is printed without a traceback.
    """
    # tqdm's own lock would start multiprocessing's resource tracker, where processes are not forked by default (from
    # Python 3.14 on), before ``WorkerPool`` can protect it from a closed terminal's SIGHUP.
    tqdm.set_lock(threading.RLock())
    try:
        try:
            with _stoppable():
                main(_chosen(options, description, default, arguments))
        except SystemExit:  # after --help, say
            _flush()
            raise
        _flush()
    except KeyboardInterrupt:
        fail("stopped", code=130)
    except errors as error:
        fail(str(error))
    except BrokenPipeError as error:
        if _reader_has_gone():
            _discard_output()
            raise SystemExit(1) from None
        fail(f"{error.strerror or error}: a process or a connection that this command works with has ended")
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        advice = ": free some space, then run the same command again" if full else ""
        where = f" {error.filename}" if error.filename else ""
        fail(f"{error.strerror or error}{where}{advice}")


def _flush() -> None:
    if sys.stdout:  # None if the command was started without standard output
        sys.stdout.flush()


def _reader_has_gone() -> bool:
    """Return true if standard output is a pipe whose reader, such as head, has closed it."""
    with suppress(OSError, ValueError, AttributeError):  # it is no file
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)  # errors are reported in any case
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def _discard_output() -> None:
    """Send what is left of standard output to nowhere, as Python's own flush at the end would fail loudly."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _stoppable() -> Iterator[None]:
    """Raise KeyboardInterrupt for SIGTERM and SIGHUP too. A second signal, if later than ``SAME_SECONDS``, exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    first: list[float] = []

    def stop(number: int, _: object) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > SAME_SECONDS:
            os._exit(130)

    before = {number: signal.getsignal(number) for number in STOPS}
    before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}  # nohup
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _chosen(
    options: type[Options], description: str | None, default: Options | None, arguments: Sequence[str] | None
) -> Options:
    try:
        start: dict[str, Any] = {} if default is None else {"default": default}
        turned = default is not None and _has_true(default)
        # A flag needs its counterpart, as in --no-resume, only where one is set already: it may be given again.
        pairs = () if turned else (tyro.conf.FlagCreatePairsOff,)
        # tyro joins lines that are not indented, those with a command too.
        described = re.sub(r"(?m)^(?=(?:python|torchrun|alexnet) )", "    ", as_typed(description or "")) or None
        return tyro.cli(options, prog=program(), description=described, args=arguments, config=pairs, **start)
    except ValueError as error:
        fail(f"{error}. Try --help.", code=2)


def _has_true(options: Any) -> bool:
    """Return true if a flag is set among the options or a group of them."""
    return options is True or (is_dataclass(options) and any(map(_has_true, vars(options).values())))


def fail(message: str, code: int = 1) -> NoReturn:
    """End the process with one message on standard error, in which terminal escape sequences are escaped."""
    try:
        _flush()
    except OSError:
        _discard_output()
    with suppress(OSError):  # the terminal may be gone
        print("error:", "\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    raise SystemExit(code)


def progress_bar(title: str, total: int, unit: str, *, done: int = 0, shown: bool = True) -> tqdm:
    """Return a bar with the time left, where standard error is a terminal. At its end it leaves no line behind."""
    hidden = None if shown else True  # None: unless it is a terminal
    how = {"bar_format": BAR, "dynamic_ncols": True, "smoothing": 0, "leave": False, "disable": hidden}
    return tqdm(desc=title, total=total, unit=f" {unit}", initial=done, **how)


def counting(batches: Iterable[Any], title: str, total: int, *, shown: bool = True) -> Iterator[Any]:
    """Yield the batches, and show on a bar how many of their images, ``total`` in all, have been worked through."""
    with progress_bar(title, total, "images", shown=shown) as bar:
        for batch in batches:
            yield batch
            bar.update(batch.valid)
            bar.set_postfix_str(f"{bar.n / max(bar.format_dict['elapsed'], 1e-9):.0f} images/s", refresh=False)


def in_range(field: str, value: float, low: float, high: float | None = None) -> None:
    """Raise ValueError, which ends the command with 2, if an option's value is below ``low`` or above ``high``."""
    if not value >= low or (high is not None and value > high):
        bounds = f"starts at {low}" if high is None else f"goes from {low} to {high}"
        raise ValueError(f"--{field.replace('_', '-')} is {value}, it {bounds}")


def require(right: bool, message: str) -> None:
    """Raise ValueError with ``message`` unless ``right``. In ``__post_init__`` of options it is exit code 2."""
    if not right:
        raise ValueError(message)
