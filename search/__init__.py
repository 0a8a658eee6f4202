"""Who decides and who drives: the search file, the study, Ray Tune, MLflow, the front, the command line.

From Python:

    from pathlib import Path
    from lorafront.search import RootPaths, front_of, read_search_file, run_search
    study = run_search(read_search_file(Path("search.yaml")), root=RootPaths(Path("runs")))
    for trial in front_of(study): print(trial.number, trial.lora, trial.measurements)

The names below are loaded when they are asked for: importing this package imports neither Ray nor torch.
"""

from __future__ import annotations

import importlib
from typing import Any

_EXPORTED = {
    "RootPaths": "paths",
    "SearchFile": "search_file",
    "StudyTable": "study_table",
    "export_front": "export",
    "front_of": "front",
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
