"""One process of `packed.py`: loads a base, then trains on it what the parent asks for, and says how long it took.

The processes of one column go through the same list of jobs together: each is ready, then all go, so that what is timed
is what they do to one another.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WARM_UP = 2  # steps that are not timed
CONFIGURATIONS = [  # of trials, in turn: (rank, modules, alpha, learning rate)
    (8, "attention", 16.0, 1e-4),
    (16, "all-linear", 16.0, 2e-4),
    (32, "attention", 64.0, 5e-5),
    (16, "query+value", 32.0, 3e-4),
]
POLL = 0.005  # seconds


@dataclass(frozen=True)
class Job:
    """What all processes of a column do at once.

    Attributes:
        tokens: of a trial-step.
        slots: trials in this process; 0 is one by stock PEFT.
        seconds: to train for.
    """

    tokens: int
    slots: int
    seconds: float


@dataclass(frozen=True)
class Order:
    """What a process is told.

    Attributes:
        model: folder, or name of a shipped architecture, which gets random weights.
        quantization: of its base.
        length: tokens of a row, at most.
        jobs: one after the other.
        threads: of this process.
        processes: how many there are.
        index: of this one.
        folder: where they meet.
        device: cuda or cpu.
        keep_dense: quantized weights are kept dequantized beside; None is the engine's choice.
    """

    model: str
    quantization: str
    length: int
    jobs: list[dict[str, Any]]
    threads: int
    processes: int
    index: int
    folder: str
    device: str
    keep_dense: bool | None = None


class Given:
    """In the place of a `BaseCache`: always the one base."""

    def __init__(self, base: Any) -> None:
        """Args: base: that one."""
        self.base = base

    def get(self, *_: Any) -> Any:
        """The base, whatever is asked for."""
        return self.base


def load_base(order: Order) -> Any:
    """The frozen base: of a folder, or with random weights of the real shapes."""
    from lorafront.trainables.config import ModelConfig
    from lorafront.trainables.frozen_base import FrozenBase
    from lorafront.trainables.task import task_named

    if Path(order.model).is_dir():
        return FrozenBase(ModelConfig(name=order.model), task_named("causal_lm"), order.quantization)
    import torch
    from memory_gpu import RandomBase

    return RandomBase(order.model, order.quantization, torch.device(order.device))


def vocabulary(base: Any) -> int:
    """Rows of the embedding."""
    return int(base.model.get_input_embeddings().weight.shape[0])


def token_file(order: Order, words: int) -> Path:
    """Rows of random tokens, all of one length; a file for each length and process."""
    import torch

    from lorafront.trainables.data import TokenData, TokenRows, store

    file = Path(order.folder) / f"rows-{order.length}-{order.index}.safetensors"
    if not file.exists():
        ids = torch.randint(words, (512, order.length), generator=torch.Generator().manual_seed(0)).tolist()
        rows = TokenRows.build([(row, 1) for row in ids])
        store(file, TokenData(rows, rows.part(0.0, 8), pad_id=0))
    return file


def trial(order: Order, job: Job, number: int, linears: list[str], rows: Path) -> Any:
    """The configuration of the trial of that number: they differ in rank, modules, alpha and learning rate."""
    from lorafront.spaces import modules
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.config import ModelConfig, TrainingConfig, TrialConfig

    rank, module_set, alpha, rate = CONFIGURATIONS[number % len(CONFIGURATIONS)]
    batch = max(1, job.tokens // order.length)
    lora = LoraConfiguration(
        rank=rank, alpha=alpha, modules=module_set, quantization=order.quantization, dropout=0.0, bias="none",
        learning_rate=rate, batch_size=batch, gradient_accumulation=1, weight_decay=0.0, warmup=0.03,
        scheduler="linear",
    )  # fmt: skip
    return TrialConfig(
        task="causal_lm", model=ModelConfig(name=order.model), training=TrainingConfig(rows=2000 * batch), lora=lora,
        targets=modules.resolve(module_set, linears).targets, rungs=(2000 * batch,), seed=number,
        threads=order.threads, tokens=rows,
    )  # fmt: skip


class Meeting:
    """The processes of a column wait for each other through files."""

    def __init__(self, order: Order) -> None:
        """Args: order: says how many there are and where they meet."""
        self._order = order
        self._folder = Path(order.folder)
        self._parent = os.getppid()

    def wait(self, place: str) -> None:
        """Until all have come to that place, or one of them has given up."""
        (self._folder / f"{place}-{self._order.index}").touch()
        others = [self._folder / f"{place}-{index}" for index in range(self._order.processes)]
        gone = [self._folder / f"gone-{index}" for index in range(self._order.processes)]
        while not all(one.exists() or left.exists() for one, left in zip(others, gone, strict=True)):
            if os.getppid() != self._parent:
                raise SystemExit("nobody is there to hear of it")
            time.sleep(POLL)


def peak_bytes(device: str) -> int:
    """Of tensors on a GPU since the last reset; without one, of the process since it began."""
    if device != "cuda":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    import torch

    return torch.cuda.max_memory_allocated()


def fresh_memory(device: str) -> None:
    """Forget what earlier jobs took."""
    gc.collect()
    if device == "cuda":
        import torch

        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def timed(train: Callable[[Callable[[], bool]], int], meeting: Meeting, place: str, seconds: float) -> dict[str, Any]:
    """Trial-steps and seconds: `train` takes steps until it is interrupted and says how many."""
    steps = iter(range(WARM_UP + 1))
    train(lambda: next(steps, WARM_UP) >= WARM_UP)
    meeting.wait(place)
    start = time.perf_counter()
    taken = train(lambda: time.perf_counter() - start >= seconds)
    return {"steps": taken, "seconds": time.perf_counter() - start}


def stock(order: Order, job: Job, base: Any, trials: list[Any], meeting: Meeting, place: str) -> dict[str, Any]:
    """Stock PEFT, a trial at a time."""
    from lorafront.trainables.data import load
    from lorafront.trainables.peft_session import PeftSession

    fresh_memory(order.device)
    found: dict[str, Any] = {"steps": 0, "seconds": 0.0, "setup": 0.0}
    each = trials[order.index % len(trials) :] + trials[: order.index % len(trials)]
    for number, config in enumerate(each):
        base.references[config.tokens] = {}  # all columns leave out the evaluation of the bare base
        start = time.perf_counter()
        session = PeftSession(base, config, load(config.tokens))
        found["setup"] += (time.perf_counter() - start) / len(each)

        def train(interrupted: Callable[[], bool], session: PeftSession = session) -> int:
            before = session.step
            session.train(session.config.rows, interrupted)
            return session.step - before

        part = timed(train, meeting, f"{place}-{number}", job.seconds / len(each))
        found["steps"] += part["steps"]
        found["seconds"] += part["seconds"]
        if number == len(each) - 1:
            found["evaluation"] = session.evaluate()["eval_seconds"]
        session.close()
    return found


def packed(order: Order, job: Job, base: Any, trials: list[Any], meeting: Meeting, place: str) -> dict[str, Any]:
    """The packed engine, all trials in one pass."""
    from lorafront.trainables.packed_engine import PackedEngine

    fresh_memory(order.device)
    base.references[trials[0].tokens] = {}
    start = time.perf_counter()
    engine = PackedEngine(trials[0], Given(base), keep_dense=order.keep_dense)  # type: ignore[arg-type]
    try:
        sessions = [engine.open(config) for config in trials]
        setup = (time.perf_counter() - start) / len(trials)

        def train(interrupted: Callable[[], bool]) -> int:
            before = sessions[0].step
            engine.train({session: session.config.rows for session in sessions}, interrupted)
            return (sessions[0].step - before) * len(sessions)

        found = timed(train, meeting, place, job.seconds)
        start = time.perf_counter()
        engine.evaluate(sessions)
        evaluation = (time.perf_counter() - start) / len(sessions)
        for session in sessions:
            session.close()
    finally:
        engine.close()
    return {**found, "setup": setup, "evaluation": evaluation}


PRODUCTS = 10  # of a GPU, which is told of all of them at once
LONG_ENOUGH = 0.5  # seconds: a CPU that only emulates 16 bits takes as long for one


def flops(order: Order) -> float:
    """Floating-point operations a second of a large matrix product in the dtype that the base computes in."""
    import torch

    from lorafront.trainables.models import compute_dtype

    device = torch.device(order.device)
    size = 8192 if order.device == "cuda" else 1024
    dtype = compute_dtype(order.quantization, device)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        start, products = time.perf_counter(), 0
        while products < PRODUCTS and time.perf_counter() - start < LONG_ENOUGH:
            a @ b  # its time is what matters
            products += 1
        if order.device == "cuda":
            torch.cuda.synchronize()
        best = max(best, products * 2 * size**3 / (time.perf_counter() - start))
    return best


def device_name(device: str) -> str:
    """For the result."""
    import torch

    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")


def main(order: Order) -> None:
    """Do what was ordered; each answer is a line of JSON on the standard output."""
    import torch

    torch.set_num_threads(order.threads)
    meeting = Meeting(order)
    base = load_base(order)
    linears = [name for name, module in base.model.named_modules() if hasattr(module, "in_features")]
    weights = sum(
        m.in_features * m.out_features for n, m in base.model.named_modules() if n in set(linears) - {"lm_head"}
    )
    print(
        json.dumps({"ready": time.time(), "linear_parameters": weights, "device": device_name(order.device)}),
        flush=True,
    )
    if not order.jobs:
        print(json.dumps({"flops": flops(order)}), flush=True)
        return
    for number, raw in enumerate(order.jobs):
        job = Job(**raw)
        own = Order(**{**vars(order), "length": min(order.length, job.tokens)})
        rows = token_file(own, vocabulary(base))
        first = order.index * max(1, job.slots)
        trials = [trial(own, job, first + n, linears, rows) for n in range(job.slots or len(CONFIGURATIONS))]
        try:
            work = packed if job.slots else stock
            found = work(own, job, base, trials, meeting, f"job-{number}")
            print(json.dumps({**found, "peak": peak_bytes(order.device)}), flush=True)
        except torch.OutOfMemoryError:
            print(json.dumps({"error": "out of memory"}), flush=True)
            if order.processes > 1 or not job.slots:
                return  # the others wait no longer, and an adapter may still be on the base


if __name__ == "__main__":
    main(Order(**json.loads(sys.argv[1])))
