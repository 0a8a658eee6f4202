"""What a user adds without touching the package: an objective, a task, a row format, named as `module:name` in a file.

The module is imported from the folder of the search file, or from wherever Python finds it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
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
    try:
        module = _module(module_name, folder)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        where = f" in {folder}" if folder is not None else ""
        reason = f"{type(error).__name__}: {error}"
        raise InvalidInput(f"{module_name} cannot be imported{where} ({reason})") from error
    if not hasattr(module, name):
        have = [public for public in vars(module) if not public.startswith("_")]
        raise InvalidInput(f"module {module_name} has no {name!r}.{did_you_mean(name, have)}")
    return getattr(module, name)


def source_digest(reference: str, folder: Path | None) -> str:
    """Changes when the file of the module does."""
    file = getattr(_module(reference.split(":", maxsplit=1)[0], folder), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else ""


def _module(name: str, folder: Path | None) -> ModuleType:
    """A module from its file in the folder, under a name of its content, or one that is installed.

    By content: two folders may have a file of the same name, and a notebook may change one between two searches.
    """
    file = folder / Path(*name.split(".")).with_suffix(".py") if folder is not None else None
    if file is None or not file.is_file():
        return importlib.import_module(name)
    content = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    own = f"lorafront_user_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}_{content}"
    if own not in sys.modules:
        if str(folder) not in sys.path:
            sys.path.append(str(folder))  # for what it imports itself; last, so that it hides no installed package
        spec = importlib.util.spec_from_file_location(own, file)
        if spec is None or spec.loader is None:
            raise ImportError(f"{file} is no Python module")
        module = importlib.util.module_from_spec(spec)
        sys.modules[own] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[own]
            raise
    return sys.modules[own]
