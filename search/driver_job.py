"""What a job of a Ray cluster runs to drive a search that was submitted: `run` the first time, `resume` from then on.

It notes how that ended. Killed, it notes nothing, and the search comes back (search/submitted.py).
"""

from __future__ import annotations

import contextlib
import os
import sys

from lorafront.search import cli
from lorafront.search.submitted import Record, Submitted, shared_root


def main() -> None:
    """Drive the search that is named."""
    submitted = Submitted(shared_root(None), sys.argv[1])
    record = submitted.read()
    if record.stopped:  # in the meantime
        return
    sys.argv = ["lorafront", *_command(submitted, record)]
    code = 1
    try:
        cli.main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        raise
    finally:
        with submitted.alone():
            submitted.write(submitted.read().ended(code, begun=submitted.paths.has_study()))


def _command(submitted: Submitted, record: Record) -> list[str]:
    if record.base is not None:
        with contextlib.suppress(FileNotFoundError):  # a search that has begun can do without some of its files
            os.chdir(submitted.file.parent)
    if submitted.paths.has_study():
        return ["resume", submitted.paths.name, *record.options]
    return ["run", str(submitted.file), *record.options]


if __name__ == "__main__":
    main()
