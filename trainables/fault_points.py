"""Named places between two writes, at which a test may end, stop or disturb this process.

Off unless the environment says otherwise; then `reached` is one look into an empty dictionary. To kill the process the
second time that it comes between a result's rename and its report, and only once in a whole search:

    FAULT_AT=after_result_rename:kill:2 FAULT_ONCE=/tmp/happened lorafront run search.yaml

`FAULT_AT` is `point[:action][:nth]`, several with commas between; without an action it is `kill`, without a number the
first visit. `FAULT_ONCE` names a file: whoever acts first makes it, and nobody acts after.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

POINTS = {
    "before_train": "a worker is about to train to its next rung",
    "mid_ckpt_write": "a checkpoint's files are written, its manifest is not",
    "after_ckpt_rename": "a checkpoint stands under its name, nobody has heard of it",
    "before_result_rename": "a result is written aside",
    "after_result_rename": "a result stands under its name, nobody has heard of it",
    "after_ask_before_start": "a trial has its configuration, no worker has it",
    "after_outcome_before_tell": "how a trial ended is stored, it still counts as running",
    "before_rung": "the driver heard of a rung, the study did not",
    "before_tell": "the driver heard of an end, the study did not",
    "after_tell_before_mlflow": "a trial is told, nobody else knows",
    "mid_mlflow": "a trial's run is made in MLflow, its numbers are not sent",
    "before_front_rename": "the study is complete, the front is not written",
    "mid_export": "an export has its first folder and no index",
}
ACTIONS = ("kill", "raise", "enospc", "oom", "hang", "slow")
SLOW_SECONDS = 0.3
HANG_SECONDS = 3600.0


class FaultInjected(RuntimeError):
    """What the actions `raise` and `oom` raise."""


@dataclass
class Fault:
    """What happens at one point.

    Attributes:
        point: see `POINTS`.
        action: see `ACTIONS`; `slow` sleeps `nth` moments each time, the others act once per process.
        nth: at which visit.
    """

    point: str
    action: str = "kill"
    nth: int = 1
    visits: int = 0

    def visit(self) -> None:
        """Count, and act where it is time."""
        self.visits += 1
        if self.action == "slow":
            time.sleep(SLOW_SECONDS * self.nth)
        elif self.visits == self.nth and _first():
            self._act()

    def _act(self) -> None:
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "hang":
            time.sleep(HANG_SECONDS)
        elif self.action == "enospc":
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} (injected at {self.point})")
        elif self.action == "oom":
            raise FaultInjected(f"CUDA out of memory (injected at {self.point})")
        else:
            raise FaultInjected(f"injected at {self.point}")


_armed: dict[str, Fault] = {}


def arm(text: str) -> None:
    """Replace what happens by what `text` says, in the form of `FAULT_AT`; an empty text means nothing.

    Raises:
        ValueError: no such point or action, or no such number.
    """
    faults = {}
    for entry in filter(None, text.split(",")):
        point, _, rest = entry.partition(":")
        action, _, nth = rest.partition(":")
        action = action or "kill"
        if point not in POINTS or action not in ACTIONS or (nth and not nth.isdigit()):
            raise ValueError(
                f"FAULT_AT must be point[:action][:nth] (got {entry!r}); points: {', '.join(POINTS)}; "
                f"actions: {', '.join(ACTIONS)}"
            )
        faults[point] = Fault(point, action, int(nth or 1))
    _armed.clear()
    _armed.update(faults)


def reached(point: str) -> None:
    """Called where the process has come to `point`."""
    if _armed:
        fault = _armed.get(point)
        if fault is not None:
            fault.visit()


def _first() -> bool:
    """True where nobody acted before, in whatever process."""
    marker = os.environ.get("FAULT_ONCE")
    if not marker:
        return True
    try:
        Path(marker).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


arm(os.environ.get("FAULT_AT", ""))
