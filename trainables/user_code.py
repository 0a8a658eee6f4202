"""What a user adds without touching the package: an objective, a task, a row format, named as `module:name` in a file.

The module is imported from the folder of the search file, or from wherever Python finds it.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from lorafront.spaces.errors import InvalidInput, did_you_mean

_REFERENCE = re.compile(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$")


def is_reference(text: object) -> bool:
    """True for text of the form `module:name`."""
    return isinstance(text, str) and _REFERENCE.match(text) is not None


def load_reference(reference: str, folder: Path | None) -> Any:
    """The object that `module:name` means.

    Args:
        reference: such as `my_metrics:exact_match`.
        folder: where its module is looked for first.

    Raises:
        InvalidInput: there is no such module or name, or the module raises while it is imported.
    """
    module_name, name = reference.split(":")
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        where = f" in {folder}" if folder is not None else ""
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"{module_name} cannot be imported{where} ({reason})") from error
    if not hasattr(module, name):
        have = [public for public in vars(module) if not public.startswith("_")]
        raise InvalidInput(f"module {module_name} has no {name!r}.{did_you_mean(name, have)}")
    return getattr(module, name)
