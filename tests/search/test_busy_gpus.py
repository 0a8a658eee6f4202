"""Four GPUs and three bases of which few fit together: nobody waits. A process of its own: it needs a Ray with four."""

from __future__ import annotations

import lorafront.search.environment  # isort: skip  # noqa: F401  # before Ray

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fault_support import python_path
from support import TINY_LLAMA

from lorafront.search.paths import RootPaths
from lorafront.search.placement import rehearsed
from lorafront.search.progress import Silent
from lorafront.search.run import run_search
from lorafront.search.search_file import parse_search
from lorafront.trainables import heartbeat

GPUS = 4
TRIALS = 32
FRESH = 1.5 * heartbeat.RENEW_SECONDS  # whoever gave a sign so lately works


class Watch(Silent):
    """Counts, again and again, the workers that give signs of life, up to the last proposal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.last_start = 0.0
        self.bases: dict[str, float] = {}  # when each was first proposed: predicting its memory takes a while
        self.samples: list[tuple[float, int]] = []
        threading.Thread(target=self.follow, daemon=True).start()

    def started(self, number: int, lora: Any) -> None:
        del number
        self.last_start = time.monotonic()
        self.bases.setdefault(lora.quantization, self.last_start)

    def follow(self) -> None:
        beats: dict[int, tuple[int, float]] = {}
        while True:
            now = time.monotonic()
            for path in self.folder.glob("trials/*/epoch-*"):
                sign = heartbeat.read(path)
                if sign is not None and sign.beat > beats.get(sign.pid, (0, 0.0))[0]:
                    beats[sign.pid] = (sign.beat, now)
            self.samples.append((now, sum(now - seen < FRESH for _, seen in beats.values())))
            time.sleep(0.1)

    def busy(self) -> float:
        """Part of the GPUs that worked, from when all did, on all bases, until the last proposal."""
        known = max(self.bases.values())
        begin = next(now for now, working in self.samples if working == GPUS and now > known)
        counted = [min(working, GPUS) for now, working in self.samples if begin <= now <= self.last_start]
        return sum(counted) / len(counted) / GPUS


def search(text: str, model: str, root: str) -> None:
    """Run one and print how busy its GPUs were."""
    import ray

    ray.init(num_cpus=GPUS, num_gpus=GPUS, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    file = parse_search(
        {
            "name": "busy", "model": model, "sampler": "random", "early_stopping": "off",
            "data": {"path": text, "max_length": 16, "train_rows": 64, "eval_rows": 8},
            "space": {"quantization": ["bf16", "nf4", "int8"], "rank": {"low": 1, "high": 4}, "modules": "attention",
                      "bias": "none"},
            "training": {"rows": 40, "rungs": [20, 40], "batch_size": 1},
            "resources": {"slots": 12}, "budget": {"trials": TRIALS},
        }
    )  # fmt: skip
    watch = Watch(RootPaths(Path(root)).search("busy").folder)
    table = run_search(file, RootPaths(Path(root)), watch, engine="slow-toy-packed", devices=rehearsed("4x72MB"))
    print(json.dumps({"complete": len(table.complete), "bases": sorted(watch.bases), "busy": watch.busy()}))
    ray.shutdown()


def wide_model(folder: Path) -> Path:
    """A model whose weights outweigh its activations; nobody loads them."""
    shutil.copytree(TINY_LLAMA, folder)
    file = folder / "config.json"
    wide = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
            "num_key_value_heads": 8}  # fmt: skip
    file.write_text(json.dumps({**json.loads(file.read_text()), **wide}))
    return folder


@pytest.mark.slow
def test_gpus_are_busy_while_there_is_anything_to_start(text_file: Path, tmp_path: Path) -> None:
    """At least nine tenths of the time, although a base in 16 bits leaves no room for another one."""
    model = wide_model(tmp_path / "wide")
    command = [sys.executable, __file__, str(text_file), str(model), str(tmp_path / "root")]
    paths = {**os.environ, "PYTHONPATH": python_path(Path(__file__).parents[1])}
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=200, env=paths).stdout
    found = json.loads(told.strip().splitlines()[-1])
    assert found["complete"] == TRIALS
    assert found["bases"] == ["bf16", "int8", "nf4"]
    assert found["busy"] >= 0.9


if __name__ == "__main__":
    search(*sys.argv[1:])
