"""Who decides and who drives: the search file, the study, Ray Tune, MLflow, the front, the command line.

From Python:

    from lorafront.search import Search, load
    print(Search("search.yaml").run().front)   # a pandas frame
    load("search").recommend("8GB").trial.lora

What is under that: `run_search`, `front_of`, `export_front` and the other names below.

The names below are loaded when they are asked for: importing this package imports neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTED = {
    "Results": "results",
    "RootPaths": "paths",
    "Search": "results",
    "SearchFile": "search_file",
    "StudyTable": "study_table",
    "export_front": "export",
    "front_of": "front",
    "load": "results",
    "parse_search": "search_file",
    "read_search_file": "search_file",
    "read_study": "study_table",
    "resume_search": "run",
    "run_search": "run",
}
__all__ = list(_EXPORTED)  # a list of names, only built


def __getattr__(name: str) -> Any:
    if name not in _EXPORTED:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_EXPORTED[name]}"), name)
