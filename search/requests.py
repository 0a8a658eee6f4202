"""How `stop` and `extend` reach a living driver: request files under `ROOT/NAME/control/`, which it takes in its loop.

A request is there whole or not at all. Whoever sends one waits until a driver took it or none lives any more.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge

from lorafront.search.ownership import is_driven
from lorafront.search.paths import SearchPaths
from lorafront.search.search_file import Budget
from lorafront.spaces.parameters import Whole
from lorafront.trainables.checkpoint import write_text
from lorafront.trainables.config import Section

LOOK_SECONDS = 0.2
_FILES = "request-*.json"


class Request(Section):
    """One thing asked of a driver. Asked twice it is done once, so a driver may die between doing and forgetting it.

    Attributes:
        kind: all trials are to leave, one trial is to end, or the budget grows.
        now: for `stop`, at the next optimizer step instead of the next rung.
        trial: for `cancel`, its number.
        budget: for `extend`, what it comes to.
    """

    kind: Literal["stop", "cancel", "extend"]
    now: bool = False
    trial: Annotated[Whole, Ge(0)] | None = None
    budget: Budget | None = None


def send(paths: SearchPaths, request: Request) -> bool:
    """Ask the living driver, and wait until it knows. False where there is none, and nothing was asked."""
    if not is_driven(paths):
        return False
    file = post(paths, request)
    while file.exists():
        if not is_driven(paths):
            try:
                file.unlink()
            except FileNotFoundError:  # taken in the driver's last moment
                return True
            return False
        time.sleep(LOOK_SECONDS)
    return True


def post(paths: SearchPaths, request: Request) -> Path:
    """Write the file of a request; whoever drives next reads it, `send` is for those who want to know."""
    # Names in the order of sending; a clock that jumps back mixes up requests that were sent around the jump.
    file = paths.control / f"request-{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.json"
    write_text(file, request.model_dump_json())
    return file


def take(paths: SearchPaths) -> Iterator[Request]:
    """What was asked since the last look, oldest first. A file that is no request is removed."""
    for file in sorted(paths.control.glob(_FILES)):
        try:
            request = Request.model_validate_json(file.read_text(encoding="utf-8"))
        except ValueError:
            request = None
        if request is not None:
            yield request
        file.unlink(missing_ok=True)  # last: its sender may rely on what it asked once the file is gone


def forget_stops(paths: SearchPaths) -> None:
    """Drop what was asked of a driver that died, and its orders to pause.

    An `extend` that it did not take still counts, and a trial that it was told to end still ends.
    """
    for folder in paths.control.glob("epoch-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in paths.control.glob(_FILES):
        if not _extends(file):
            file.unlink(missing_ok=True)


def _extends(file: Path) -> bool:
    try:
        return Request.model_validate_json(file.read_text(encoding="utf-8")).kind == "extend"
    except (OSError, ValueError):
        return False
