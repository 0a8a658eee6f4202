"""A sign of life of a command that takes longer than a moment: on standard error, and only where that is a terminal.

Nothing of it stays when the command is done, and nothing goes to standard output.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Step = Callable[[int, int], None]  # how many are done, of how many
Clock = Callable[[], float]


@contextmanager
def waiting(what: str, console: Console | None = None, clock: Clock = time.monotonic) -> Iterator[Step]:
    """Show what a command does and for how long already, while the block runs.

    Args:
        what: it does, such as `writing MLflow runs`.
        console: to draw on; none is standard error.
        clock: seconds.

    Yields:
        A function to be told how many are done, of how many: shown with the time that is left. What was done at its
        first call says nothing of the speed.
    """
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = console or Console(stderr=True)
    # On one terminal lines of standard output go above what is drawn; elsewhere they must not be led to standard error.
    beside = sys.stdout.isatty()
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
        redirect_stdout=beside, redirect_stderr=beside,
    )  # fmt: skip
    task = bar.add_task(what, total=None)
    heard: list[tuple[float, int]] = []

    def step(done: int, total: int) -> None:
        heard[1:] = [(clock(), done)]
        bar.update(task, description=f"{what}: {progress(heard[0], heard[-1], total)}")

    with bar:
        yield step


def progress(first: tuple[float, int], now: tuple[float, int], total: int) -> str:
    """`12 of 40, 20 s left`, from (seconds, done) at the beginning and now."""
    done = min(now[1], total)
    fresh = done - first[1]
    left = f", {spell((now[0] - first[0]) / fresh * (total - done))} left" if fresh > 0 and done < total else ""
    return f"{done:,} of {total:,}{left}"


def spell(seconds: float) -> str:
    """A time that nobody needs to know to the second: `40 s`, `12 min`, `3.5 h`."""
    if seconds < 90:  # noqa: PLR2004  # below that, minutes say too little
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"  # noqa: PLR2004
