"""Settings of libraries that must stand in the environment before they are imported. Import this module first.

A value that the user set is left as it is.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

DEFAULTS = {
    # Nothing is reported to anybody.
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Two OpenMP threads on contended cores can cost thirty times (measured on two cores); sleeping waiters do not.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Else glibc gives freed memory back and takes it again at every step: up to a fifth of the time of a step on CPUs.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    # Ray Tune: our own signal handling, no loggers of its own, no change of the working folder.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_SYNCER": "1",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_process_group_cleanup_enabled": "1",
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",  # Ray's own ends the process three seconds after a SIGTERM
    # MLflow: a server that is away must not hold anybody up: one retry, five seconds.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # two lines for each run that ends
    "GIT_PYTHON_REFRESH": "quiet",
}

for _name, _value in DEFAULTS.items():
    os.environ.setdefault(_name, _value)


@contextlib.contextmanager
def heavy_imports(library: str) -> Iterator[None]:
    """Without the garbage collector, which otherwise takes a quarter of the time that torch and transformers need.

    Modules stay, so no later collection has to look at them either; nor at whatever else is there by then, so this is
    for the first time alone: nothing where `library` is imported already.
    """
    if library in sys.modules:
        yield
        return
    gc.disable()
    try:
        if library in {"transformers", "peft"}:
            _without_what_nobody_uses()
        yield
    finally:
        gc.freeze()
        gc.enable()


def _without_what_nobody_uses() -> None:
    """Import two libraries without a fifth of what they bring along.

    scikit-learn is there for an option of assisted generation, which from then on says that it is missing. torch's
    compiler is for kernels of bitsandbytes on devices for which it has no others; they are not compiled.
    """
    import torch

    import lorafront.trainables  # noqa: F401  # bitsandbytes is quiet from then on

    compiler = torch.compile
    torch.compile = _uncompiled  # type: ignore[assignment]
    try:
        with contextlib.suppress(Exception):  # whoever needs it hears what is wrong with it
            import bitsandbytes  # noqa: F401
    finally:
        torch.compile = compiler
    if "sklearn" in sys.modules:
        return
    sys.modules["sklearn"] = None  # type: ignore[assignment]  # as Python's documentation has it: it is not found
    try:
        import transformers.generation

        transformers.generation.GenerationMixin  # noqa: B018  # transformers imports it when it is asked for
    finally:
        del sys.modules["sklearn"]


def _uncompiled(function: Any = None, **_: object) -> Any:
    """As a decorator with or without arguments."""
    return _uncompiled if function is None else function
