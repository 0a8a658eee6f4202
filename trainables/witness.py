"""A record of what workers did, kept outside the system, so that a test can ask whether the system lost any of it.

Where `LORAFRONT_WITNESS` names a file, every worker appends JSON lines to it (`O_APPEND`, one write and one sync each,
so that processes may share it and a kill tears nothing but the last line): `start` with the rows from which it goes on,
`ckpt` once a checkpoint stands, `final` once a result stands. Nothing in lorafront reads it but the checker
(search/nothing_lost.py). Off without the variable.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "LORAFRONT_WITNESS"
START, CKPT, FINAL = "start", "ckpt", "final"


def note(event: str, folder: Path, rows: int, facts: Mapping[str, Any] | None = None) -> None:
    """Append one line about the trial in `folder`, where a record is kept.

    Args:
        event: `start`, `ckpt` or `final`.
        folder: the trial's, `…/trials/NNNNN/epoch-E`.
        rows: training rows so far.
        facts: what else is known; values that JSON can say.
    """
    file = os.environ.get(VARIABLE)
    if not file:
        return
    line = json.dumps({**(facts or {}), "event": event, "folder": str(folder), "rows": rows, "pid": os.getpid()})
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(handle, f"{line}\n".encode())
        os.fsync(handle)
    finally:
        os.close(handle)
