"""How well peak memory is predicted: real optimizer steps on a GPU against `MemoryModel(device="cuda")`.

    python benchmarks/memory_gpu.py                  # on a GPU
    python benchmarks/memory_gpu.py --device cpu     # the same code with tiny models; gives no number about a GPU

Each point is two optimizer steps of `PeftSession` on a base with random weights, built on the device from the
architecture's config: no file, no network. The session's own probe says what was allocated, reserved and held by the
process. A base gets its share of `--budget-minutes`, and takes its points in an order in which the first ones say most;
what was left out stands in the result, as does what ran out of memory. Predictions follow on the CPU, one or two core
minutes a base; `--measure-only` leaves them for `--from`, on any machine with the same packages.

Needs torch, transformers, peft, bitsandbytes, accelerate, safetensors, numpy, psutil, pydantic, annotated-types and
nvidia-ml-py, and `lorafront` without its other dependencies (`pip install --no-deps .`); no Ray, Optuna or MLflow.
Writes `benchmarks/results/memory_gpu.json`; exits 1 where there is no GPU and `--device cpu` was not said.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from itertools import groupby
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from memory_points import MODELS, OUT_OF_MEMORY, TINY, Point, compare, grid, table
from transformers import AutoConfig

from lorafront.spaces import modules
from lorafront.spaces.errors import NotTraced
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.data import TokenData, TokenRows
from lorafront.trainables.frozen_base import FrozenBase, base_key
from lorafront.trainables.memory_meter import Memory
from lorafront.trainables.memory_model import MemoryModel
from lorafront.trainables.memory_trace import DeviceKind, materialise, unloaded_model
from lorafront.trainables.model_facts import model_facts
from lorafront.trainables.models import compute_dtype
from lorafront.trainables.peft_session import PeftSession
from lorafront.trainables.shipped_architectures import SHIPPED
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PretrainedConfig

RESULTS = Path(__file__).resolve().parent / "results" / "memory_gpu.json"
TASK = task_named("causal_lm")
QUANTIZATIONS = ("bf16", "nf4", "nf4_double", "int8")
NOWHERE = Path("nowhere")  # the token file of trials that get their rows by hand
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
NO_GPU = (
    "There is no GPU here. With --device cpu the same code runs on tiny models, counts live tensors as a trial on a "
    "CPU does, and compares with the prediction for a CPU: that tries this script and says nothing about a GPU."
)


def config_of(model: str) -> PretrainedConfig:
    """By its name among the measured ones or all that are shipped."""
    kind, sizes = {**SHIPPED, **MODELS}[model]
    return AutoConfig.for_model(kind, **sizes)


class RandomBase(FrozenBase):
    """A base with random weights, built on the device and quantized there by bitsandbytes."""

    def __init__(self, model: str, quantization: str, device: torch.device) -> None:
        """Build it.

        Args:
            model: name in `MODELS`, or of a shipped architecture.
            quantization: how it is stored.
            device: where.
        """
        self.key = base_key(ModelConfig(name=model), TASK, quantization)
        self.task = TASK
        self.references = {NOWHERE: {}}  # nothing is evaluated
        self.probes = {}
        self.device = device
        self.dtype = compute_dtype(quantization, device)
        self.model = unloaded_model(config_of(model), TASK, quantization, (), self.dtype, None)
        materialise(self.model, self._placed, device)
        self.model.name_or_path = model
        self.new_modules = []
        self._biases = {}
        self._heads = {}

    @torch.no_grad()
    def _placed(self, parameter: Any, module: Any) -> torch.nn.Parameter:
        """As large as usual at the start of a training: norms are one, biases zero, weights small."""
        quantized: torch.nn.Parameter
        kind = type(parameter).__name__
        if kind == "Params4bit":
            weight = torch.empty(module.out_features, module.in_features, dtype=self.dtype, device=self.device)
            arguments = {n: getattr(parameter, n) for n in ("compress_statistics", "quant_type", "quant_storage")}
            packed = type(parameter)(weight.normal_(0, 0.02), requires_grad=False, **arguments)
            quantized = packed.to(self.device)  # which quantizes
        elif kind == "Int8Params":
            weight = torch.empty(module.out_features, module.in_features, dtype=torch.float16, device=self.device)
            rows = type(parameter)(weight.normal_(0, 0.02), requires_grad=False, has_fp16_weights=False)
            quantized = rows._quantize(self.device)  # noqa: SLF001  # `to` does so from a CPU only
        else:
            return self._plain(parameter, module)
        return quantized

    def _plain(self, parameter: Any, module: Any) -> torch.nn.Parameter:
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=self.device)
        if parameter.dim() > 1:
            values.normal_(0, 0.02)
        else:
            values.fill_(0 if parameter is getattr(module, "bias", None) else 1)
        return torch.nn.Parameter(values, requires_grad=False)

    def _seed(self, peft_model: PeftModel, seed: int) -> None:
        """PEFT's own values will do, and are drawn sooner."""


def measured(point: Point, base: RandomBase) -> Memory:
    """Two steps by the session's own probe."""
    config = config_of(point.model)
    trial = TrialConfig(
        task=TASK.name, model=ModelConfig(name=point.model), training=point.training, lora=point.lora,
        targets=modules.resolve(point.modules, list(model_facts(config, TASK).linears)).targets,
        rungs=(point.batch,), seed=0, tokens=NOWHERE,
    )  # fmt: skip
    tokens = torch.randint(config.vocab_size, (point.batch, point.length), generator=torch.Generator().manual_seed(0))
    shorter = point.length - 1 if point.padded else point.length
    rows = [(row[: shorter if number else point.length], 1) for number, row in enumerate(tokens.tolist())]
    base.probes.clear()  # on a CPU trials of the same shapes share one, and whether rows are padded is no shape
    session = PeftSession(base, trial, TokenData(TokenRows.build(rows), TokenRows.build(rows), pad_id=0))
    session.close()
    return session.memory


def measure(points: Iterable[Point], device: torch.device, deadline: float, clock: Callable[[], float]) -> list[Point]:
    """Those points that there was time for, of one base.

    Args:
        points: all with the same base.
        device: where.
        deadline: on the clock; no point starts after it.
        clock: seconds.
    """
    done: list[Point] = []
    base: RandomBase | None = None
    for point in points:
        start = clock()
        if start >= deadline:
            break
        try:
            base = base or RandomBase(point.model, point.quantization, device)
            memory = measured(point, base)
        except torch.OutOfMemoryError:
            done.append(replace(point, error=OUT_OF_MEMORY))
            base = None  # the adapter is still on it
        else:
            done.append(
                replace(
                    point,
                    allocated=memory.allocated,
                    reserved=memory.reserved,
                    process=memory.process,
                    seconds=round(clock() - start, 2),
                )
            )
        _tidy(device)
    del base
    _tidy(device)
    return done


def _tidy(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def measure_all(
    points: list[Point], device: torch.device, seconds: float, clock: Callable[[], float]
) -> Iterator[list[Point]]:
    """Base by base, each with an equal share of the time that is left."""
    bases = [list(same) for _, same in groupby(points, key=lambda point: point.base)]
    end = clock() + seconds
    for number, same in enumerate(bases):
        now = clock()
        yield measure(same, device, now + (end - now) / (len(bases) - number), clock)


def predict(job: tuple[list[Point], DeviceKind, int]) -> list[Point]:
    """Fill in the prediction; a job of one process: (points of one base, device kind, major compute capability)."""
    points, device, capability = job
    model = MemoryModel(config_of(points[0].model), TASK, device=device, capability=capability)
    predicted = []
    for point in points:
        try:
            total = model.predict(point.lora, point.training, point.shapes).total
        except NotTraced as error:
            predicted.append(replace(point, error=point.error or str(error)))
        else:
            predicted.append(replace(point, predicted=total))
    return predicted


def device_facts(device: torch.device) -> dict[str, Any]:
    """Of the device, and of what decides on how its allocator deals."""
    if device.type != "cuda":
        return {"kind": "cpu", "note": "no GPU was at hand: tiny models on a CPU, and no number here is about a GPU"}
    properties = torch.cuda.get_device_properties(device)
    asked = getattr(torch.backends.cuda, "cublas_workspace_size", None)  # from torch 2.13 on
    return {
        "kind": "cuda",
        "name": properties.name,
        "capability": [properties.major, properties.minor],
        "bytes": properties.total_memory,
        "cublas_workspace_bytes": asked() if asked else None,
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF", os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "")),
    }


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Parsed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--models", nargs="+", choices=list(MODELS), help="default: the real ones; on a CPU the tiny ones"
    )
    parser.add_argument("--quantizations", nargs="+", choices=QUANTIZATIONS, default=list(QUANTIZATIONS))
    parser.add_argument("--lengths", nargs=2, type=int, help="tokens, default: 512 2048; on a CPU 16 48")
    parser.add_argument("--points", type=int, help="at most so many of each base")
    parser.add_argument(
        "--paged",
        action="store_true",
        help="the paged optimizer too: bitsandbytes does not free its managed memory, which counts into the process "
        "memory of every later point",
    )
    parser.add_argument("--budget-minutes", type=float, default=6.0, help="for measuring; predictions come after it")
    parser.add_argument("--measure-only", action="store_true", help="predict later, with --from")
    parser.add_argument("--from", dest="source", type=Path, help="predict what this result measured; needs no GPU")
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 2) // 2), help="processes that predict")
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Measure, predict, print, write; the exit code."""
    options = options_of(arguments)
    if options.source is None and options.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU, file=sys.stderr)
        return 1
    result = _read(options.source) if options.source else _measured(options)
    _write(options.out, result)  # what was measured is kept, whatever becomes of predictions
    if not options.measure_only:
        kind, (capability, _) = result["device"]["kind"], result["device"].get("capability", (0, 0))
        bases = [list(same) for _, same in groupby(result["points"], key=lambda point: point.base)]
        predicted = _each(predict, [(same, kind, capability) for same in bases], options.jobs)
        result["points"] = [point for same in predicted for point in same]
        result["summary"] = compare(result["points"])
        _write(options.out, result)
        print(table(result["summary"]))
    if result["left_out"]:
        print(f"no time for {len(result['left_out'])} points, which are listed in the file")
    print(f"wrote {options.out}")
    return 0


def _measured(options: argparse.Namespace) -> dict[str, Any]:
    device = torch.device(options.device)
    real = device.type == "cuda"
    names = options.models or [name for name in MODELS if (name not in TINY) == real]
    lengths = tuple(options.lengths or ((512, 2048) if real else (16, 48)))
    asked = [
        point
        for name in names
        for quantization in options.quantizations
        for point in grid(name, quantization, lengths, paged=options.paged)[: options.points]
    ]
    points: list[Point] = []
    for same in measure_all(asked, device, 60 * options.budget_minutes, time.monotonic):
        if same:
            print(f"{'/'.join(same[0].base)}: {len(same)} points", flush=True)
            points += same
    measured_names = {point.name for point in points}
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device_facts(device),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "summary": None,
        "points": points,
        "left_out": [point.name for point in asked if point.name not in measured_names],
    }


def _read(file: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return {**result, "points": [Point(**point) for point in result["points"]]}


def _write(file: Path, result: dict[str, Any]) -> None:
    plain = {**result, "points": [asdict(point) for point in result["points"]]}
    file.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")


def _each(work: Callable[[Any], list[Point]], jobs: list[Any], processes: int) -> list[list[Point]]:
    if processes == 1 or len(jobs) < 2:  # noqa: PLR2004  # one job needs no helper
        return [work(job) for job in jobs]
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn")
    ) as pool:  # a fork would share the GPU's context
        return list(pool.map(work, jobs))


if __name__ == "__main__":
    sys.exit(main())
