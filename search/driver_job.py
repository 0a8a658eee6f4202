"""What a job of a Ray cluster runs to drive a search that was submitted: `run` the first time, `resume` from then on.

It notes how that ended. Killed, it notes nothing, and the search comes back (search/submitted.py).
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time

from lorafront.search import cli
from lorafront.search.ownership import is_driven
from lorafront.search.requests import Request, post
from lorafront.search.submitted import Record, Submitted, shared_root
from lorafront.spaces.errors import LorafrontError

LOOK_SECONDS = 2.0
AGAIN_SECONDS = 20.0


def main() -> None:
    """Drive the search that is named."""
    submitted = Submitted(shared_root(None), sys.argv[1])
    record = submitted.read()
    if record.stopped:  # in the meantime
        return
    sys.argv = ["lorafront", *_command(submitted, record)]
    threading.Thread(target=_heed, args=(submitted,), name="stop", daemon=True).start()
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        with submitted.alone():
            submitted.write(submitted.read().ended(code))


def _heed(submitted: Submitted) -> None:
    """Hand on a stop that came before the search could be asked: while its model was loaded and its data read."""
    while True:
        with contextlib.suppress(OSError, ValueError, LorafrontError):  # storage over a network; the next look may do
            if submitted.read().stopped and is_driven(submitted.paths) and submitted.paths.has_study():
                post(submitted.paths, Request(kind="stop"))
                time.sleep(AGAIN_SECONDS)  # and again, since a driver forgets what was asked of those before it
        time.sleep(LOOK_SECONDS)


def _command(submitted: Submitted, record: Record) -> list[str]:
    if record.base is not None:
        with contextlib.suppress(FileNotFoundError):  # a search that has begun can do without some of its files
            os.chdir(submitted.file.parent)
    if submitted.paths.has_study():
        return ["resume", submitted.paths.name, *record.options]
    return ["run", str(submitted.file), *record.options]


if __name__ == "__main__":
    main()
