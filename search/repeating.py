"""Something that is done again and again in a thread, while a block runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def repeating(name: str, seconds: float, look: Callable[[], object]) -> Iterator[None]:
    """Call `look` every so many seconds; when the block ends, wait until it has returned.

    Args:
        name: of the thread.
        seconds: between two calls, and before the first.
        look: an error of it ends the thread.
    """
    over = threading.Event()

    def follow() -> None:
        while not over.wait(seconds):
            look()

    thread = threading.Thread(target=follow, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
