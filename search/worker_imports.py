"""What a worker needs for its first trial; Ray imports this in the processes that it starts in advance.

Whoever started them waits for the file that says that one can take a trial (`RayCluster.ready`). What cannot be
imported is told by the first trial that needs it.
"""

import contextlib
import os
import threading
from pathlib import Path

from lorafront.search.environment import heavy_imports
from lorafront.search.ray_cluster import READY

SETTLED = 0.25  # seconds after the imports in which Ray hears that the process is idle

with contextlib.suppress(Exception), heavy_imports("peft"):
    from transformers import PreTrainedModel  # noqa: F401

    import lorafront.search.ray_trainable
    import lorafront.trainables.packed_engine
    import lorafront.trainables.peft_session  # noqa: F401

if READY in os.environ:
    threading.Timer(SETTLED, (Path(os.environ[READY]) / str(os.getpid())).touch).start()
