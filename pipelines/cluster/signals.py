"""SIGINT and SIGTERM end every command in the same way: one sentence, and 128 plus the signal's number."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from tadvae.base.terminal import print_text

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Turn a signal inside the block into a KeyboardInterrupt there, and into a SystemExit at its end.

    Whatever Ray makes of the KeyboardInterrupt meanwhile, the command ends as a stopped one. A second SIGINT
    ends the process at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os._exit(128 + number)

    before = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    except BaseException:
        if not received:
            raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        print_text(
            f"tadvae: stopped by {signal.Signals(received[0]).name}; give the same command again to go on, "
            "for an ensemble or a sweep with --resume.",
            sys.stderr,
        )
        raise SystemExit(128 + received[0])


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Put the handlers back that Ray replaces in the block: its own print the stack of its C++ code."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: not of Python
                signal.signal(number, handler)
