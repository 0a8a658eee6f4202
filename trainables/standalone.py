"""Peak memory of configurations that trained in a pack, each measured alone: by stock PEFT, as `PeftSession` probes it.

Nothing else of this process may count in it: whoever calls has closed its engines and sessions.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from lorafront.trainables.engines import pack_key
from lorafront.trainables.frozen_base import BaseCache
from lorafront.trainables.peft_session import open_session
from lorafront.trainables.session import Measurements

if TYPE_CHECKING:
    from lorafront.trainables.config import TrialConfig

# What a device, a file or a library that is broken or too small raises.
FAILURES = (RuntimeError, MemoryError, OSError, ValueError)


def measure_alone(configs: Sequence[TrialConfig], bases: BaseCache) -> Iterator[tuple[int, Measurements]]:
    """Take two steps on the largest batch of each, on a base that is loaded once.

    Args:
        configs: of the trials; a cap on their memory is not kept, since each has the process for itself.
        bases: what the process holds; on a GPU they are dropped first, since nothing else may count.

    Yields:
        The index in `configs` and what `Memory.metrics` says, those of one base after each other; nothing is said of
        one that could not be measured (it ran out of memory).
    """
    order = sorted(range(len(configs)), key=lambda index: pack_key(configs[index]))
    if torch.cuda.is_available():
        bases.drop()  # and what an engine may have hung on one
    for index in order:
        yield index, _measured(configs[index].model_copy(update={"memory_cap": None}), bases)


def _measured(config: TrialConfig, bases: BaseCache) -> Measurements:
    gc.collect()  # what an earlier session left in circles
    try:
        session = open_session(config, bases, references=False)
        try:
            return session.memory.metrics()
        finally:
            session.close()
    except FAILURES as error:
        logging.getLogger(__name__).warning("peak memory was not measured: %s", error)
        bases.drop()  # whatever broke may have left the base in pieces
        return Measurements()
