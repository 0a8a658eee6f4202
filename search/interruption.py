"""Ctrl-C and SIGTERM: the first one asks the driver to leave, the second one ends the process at once.

While trials run the first signal is only noted, and the driver's loop acts on it; elsewhere it is a KeyboardInterrupt.
Either way the process is gone when the grace is over, whatever hangs. What was recorded stays, and `resume` goes on.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Self

import psutil

from lorafront.spaces.errors import Incomplete

GRACE_SECONDS = 28.0  # from the first signal to the end of the process; 30 are promised
SAVE_SECONDS = 15.0  # of them for trials to reach their next optimizer step and save
GOODBYE_SECONDS = 24.0  # of them for MLflow, counted from the signal
SECOND_SIGNAL = 130  # exit code; what a shell says of a process that SIGINT ended
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Leave = Callable[[int], None]


def end_with_children(code: int) -> None:
    """End this process at once, and before it all that it started: Ray's agents outlive it by a minute otherwise."""
    with suppress(psutil.Error):
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                child.kill()
    os._exit(code)


class Interruption:
    """Hears signals while a `with` block runs, in the main thread; in another one they are somebody else's."""

    def __init__(
        self, name: str, leave: Leave = end_with_children, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Hear nothing yet.

        Args:
            name: of the search, for the command that goes on with it.
            leave: ends the process with a code, without any clean-up.
            clock: seconds.
        """
        self.advice: Final = f"go on with: lorafront resume {name}"
        self.why = "interrupted"
        self._leave = leave
        self._clock = clock
        self._at: float | None = None
        self._noting = False
        self._heard = threading.Event()
        self._over = threading.Event()
        self._before: list[object] = []

    @property
    def heard(self) -> bool:
        """True from the first signal on."""
        return self._at is not None

    @property
    def too_late(self) -> bool:
        """True where trials had their time to save."""
        return self._at is not None and self._clock() > self._at + SAVE_SECONDS

    def patience(self, otherwise: float) -> float:
        """Seconds that a last piece of work may take: `otherwise`, or what is left of the grace."""
        return otherwise if self._at is None else max(0.0, self._at + GOODBYE_SECONDS - self._clock())

    def __enter__(self) -> Self:
        """Install the handlers, and the thread that ends the process after the grace."""
        if threading.current_thread() is threading.main_thread():
            self._before = [signal.getsignal(number) for number in SIGNALS]
            self.install()
            threading.Thread(target=self._watch, name="grace", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        """Give the signals back."""
        self._over.set()
        self._heard.set()
        for number, handler in zip(SIGNALS, self._before, strict=False):
            signal.signal(number, handler)  # type: ignore[arg-type]  # what getsignal gave

    def install(self) -> None:
        """Take the signals (again, where a library took them meanwhile)."""
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._hear)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While the block runs, the first signal is noted and interrupts nothing."""
        self._noting = True
        try:
            yield
        finally:
            self._noting = False

    def break_off(self, why: str) -> None:
        """As a first signal that is noted, from any thread: something without which nothing goes on is gone."""
        if not self.heard:
            self.why = why
            self._at = self._clock()
            self._heard.set()

    def _hear(self, _number: int, _frame: object) -> None:
        if self.heard:
            self._quit(SECOND_SIGNAL, "")
            return
        self._at = self._clock()
        self._heard.set()
        if not self._noting:
            raise KeyboardInterrupt

    def _watch(self) -> None:
        self._heard.wait()
        if not self._over.wait(GRACE_SECONDS):
            self._quit(Incomplete.exit_code, f"{self.why}; {self.advice}\n")

    def _quit(self, code: int, message: str) -> None:
        """Leave without flushing, joining or closing anything: some of it may be what hangs."""
        cursor = "\x1b[?25h" if os.isatty(2) else ""  # the live table hides it
        os.write(2, f"{cursor}{message}".encode())
        self._leave(code)
