"""The packed engine against stock PEFT: the same trials one after the other, in several processes at once, and packed.

    python benchmarks/packed.py                              # the tiny model on the CPU
    python benchmarks/packed.py --suite h100                 # on a GPU: real shapes, random weights, ten minutes
    python benchmarks/packed.py --model qwen2.5-0.5b --quantizations bf16 nf4 --tokens 256 512
    python benchmarks/packed.py --through-ray                # where the CPU time of a search goes

No Ray (but for the last). Every column trains the same mixture of trials (ranks 8 to 32, three module sets) for the
same seconds, in one invocation; processes share the machine's cores between them. Printed for each number of tokens of
a trial-step: milliseconds per trial-step over all that is at work, trials per hour (start of the process, set-up, steps
and an evaluation of 8 rows, for `--trials` trials of `--trial-steps` steps), peak memory over all processes (tensors on
a GPU; resident on a CPU), how many times the best of stock PEFT it is, and its share of the floor: `4 P T` operations
for P linear parameters and T tokens, at the speed of a large matrix product measured in the same invocation. Writes
`benchmarks/results/packed-DEVICE.json`.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TINY = str(HERE.parent / "examples" / "tiny-llama")
POLL = 0.1  # seconds
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")
# (model, quantization, tokens of a trial-step), with what issue 6 asks for, each against the best of stock PEFT.
SUITES = {
    "h100": [
        ("qwen2.5-0.5b", "bf16", [256, 512]),
        ("qwen2.5-0.5b", "nf4", [512]),
        ("qwen2.5-1.5b", "bf16", [512]),
        ("llama-3.1-8b", "nf4", [512, 2048]),
    ],
}
GOALS = {
    ("qwen2.5-0.5b", 256): 8.0, ("qwen2.5-0.5b", 512): 8.0, ("qwen2.5-1.5b", 512): 3.0,
    ("llama-3.1-8b", 512): 2.0, ("llama-3.1-8b", 2048): 1.4,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Processes at once, and slots in each; 0 is stock PEFT."""

    processes: int
    slots: int

    @property
    def label(self) -> str:
        """For people."""
        if not self.slots:
            return "PEFT, one by one" if self.processes == 1 else f"PEFT, {self.processes} processes"
        times = f"{self.processes} x " if self.processes > 1 else ""
        return f"packed, {times}K = {self.slots}"


def spawn(orders: list[dict[str, Any]]) -> tuple[list[list[dict[str, Any]]], float, str]:
    """Run one process for each order; (what each said, seconds until all were ready, what went wrong)."""
    began = time.time()
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    children = {}
    for order in orders:
        command = [sys.executable, str(HERE / "packed_arms.py"), json.dumps(order)]
        own, place = {**environment, "OMP_NUM_THREADS": str(order["threads"])}, Path(order["folder"])
        with (
            (place / f"said-{order['index']}").open("w", encoding="utf-8") as said,
            (place / f"log-{order['index']}").open("w", encoding="utf-8") as log,
        ):
            children[order["index"]] = subprocess.Popen(command, env=own, stdout=said, stderr=log)  # noqa: S603  # ourselves
    wrong = ""
    atexit.register(lambda: [child.kill() for child in children.values() if child.poll() is None])
    while running := [index for index, child in children.items() if child.poll() is None]:
        for index in set(children) - set(running):
            (place / f"gone-{index}").touch()  # whoever has died is waited for by nobody
        time.sleep(POLL)
    for index, child in children.items():
        lines = (place / f"log-{index}").read_text(encoding="utf-8").strip().splitlines()
        if child.returncode:
            wrong = lines[-1][:200] if lines else f"exit code {child.returncode}"
    texts = [(place / f"said-{index}").read_text(encoding="utf-8").splitlines() for index in children]
    answers = [[json.loads(line) for line in lines if line.startswith("{")] for lines in texts]
    ready = max((lines[0]["ready"] - began for lines in answers if lines), default=0.0)
    return answers, ready, wrong


def run_column(
    column: Column, model: str, quantization: str, jobs: list[dict[str, Any]], options: Any
) -> list[dict[str, Any]]:
    """A row for each job: times of the whole column, or why there are none."""
    with tempfile.TemporaryDirectory(prefix="packed-") as folder:
        orders = [
            {
                "model": model, "quantization": quantization, "length": options.length, "jobs": jobs,
                "threads": max(1, options.cores // column.processes), "processes": column.processes, "index": index,
                "folder": folder, "device": options.device, "keep_dense": options.keep_dense,
            }
            for index in range(column.processes)
        ]  # fmt: skip
        said, ready, wrong = spawn(orders)
    rows = []
    for number, job in enumerate(jobs):
        answers = [lines[number + 1] for lines in said if len(lines) > number + 1]
        errors = [answer["error"] for answer in answers if "error" in answer]
        shown = {**job, "label": Column(column.processes, job["slots"]).label, "processes": column.processes}
        if errors or len(answers) < column.processes:
            rows.append({**shown, "error": errors[0] if errors else wrong or "an earlier job failed"})
            continue
        speed = sum(answer["steps"] / answer["seconds"] for answer in answers)  # trial-steps a second
        setup = sum(answer["setup"] for answer in answers) / len(answers)
        evaluation = sum(answer["evaluation"] for answer in answers) / len(answers)
        each = (setup + evaluation) / column.processes + options.trial_steps / speed
        rows.append({
            **shown, "ms": 1000 / speed, "start_seconds": ready, "setup_seconds": setup,
            "evaluation_seconds": evaluation, "peak_gib": sum(answer["peak"] for answer in answers) / 2**30,
            "trials_per_hour": 3600 * options.trials / (ready + options.trials * each),
        })  # fmt: skip
    return rows


def measure(model: str, quantization: str, tokens: list[int], options: Any) -> dict[str, Any]:
    """All columns of one base."""
    base = {"model": model, "quantization": quantization}
    with tempfile.TemporaryDirectory(prefix="packed-") as folder:
        order = {
            **base, "length": options.length, "jobs": [], "threads": options.cores, "processes": 1, "index": 0,
            "folder": folder, "device": options.device,
        }  # fmt: skip
        [[facts, speed]], _, _ = spawn([order])
    stock = [{"tokens": count, "slots": 0, "seconds": options.seconds} for count in tokens]
    most = {
        count: [slots for slots in options.slots if slots == 1 or slots * count <= options.most_tokens]
        for count in tokens
    }
    together = [{**job, "slots": slots} for job in stock for slots in most[job["tokens"]]]
    rows = []
    for processes in options.processes:
        rows += run_column(Column(processes, 0), model, quantization, stock, options)
    for processes in options.packed_processes:
        rows += run_column(Column(processes, 1), model, quantization, together, options)
    return {**base, **facts, **speed, "rows": [judged(row, rows, facts, speed["flops"]) for row in rows]}


def judged(row: dict[str, Any], rows: list[dict[str, Any]], facts: dict[str, Any], speed: float) -> dict[str, Any]:
    """With its ratio to the best of stock PEFT at the same tokens, and its share of the floor."""
    if "ms" not in row:
        return row
    peers = [one for one in rows if one["tokens"] == row["tokens"] and not one["slots"] and "ms" in one]
    floor = 1000 * 4 * facts["linear_parameters"] * row["tokens"] / speed
    found = {**row, "floor_share": floor / row["ms"]}
    if peers:
        found["ratio"] = min(one["ms"] for one in peers) / row["ms"]
        found["ratio_per_hour"] = row["trials_per_hour"] / max(one["trials_per_hour"] for one in peers)
    return found


def table(found: dict[str, Any]) -> str:
    """What a person reads."""
    name = Path(found["model"]).name
    size, speed = f"{found['linear_parameters'] / 1e6:.1f} M", f"{found['flops'] / 1e12:.3g} TFLOP/s"
    lines = [f"{name}, {found['quantization']}: {size} linear parameters, {speed} measured on {found['device']}"]
    head = f"{'':22}{'ms per':>11}{'trials':>9}{'peak':>8}{'ratio':>8}{'ratio':>9}{'of the':>8}"
    lines += [head, f"{'':22}{'trial-step':>11}{'per hour':>9}{'GiB':>8}{'':>8}{'per hour':>9}{'floor':>8}"]
    for tokens in dict.fromkeys(row["tokens"] for row in found["rows"]):
        goal = GOALS.get((name, tokens))
        lines.append(f"{tokens} tokens" + (f"; goal: {goal:g} times the best of PEFT" if goal else ""))
        for row in (row for row in found["rows"] if row["tokens"] == tokens):
            if "ms" not in row:
                lines.append(f"  {row['label']:20} {row['error']}")
                continue
            lines.append(
                f"  {row['label']:20}{row['ms']:11.2f}{row['trials_per_hour']:9.0f}{row['peak_gib']:8.2f}"
                f"{row.get('ratio', float('nan')):8.2f}{row.get('ratio_per_hour', float('nan')):9.2f}"
                f"{row['floor_share']:8.1%}"
            )
    return "\n".join(lines)


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    """Parsed; defaults follow the device."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=TINY, help="folder, or name of a shipped architecture (random weights)")
    parser.add_argument("--suite", choices=list(SUITES), help="in place of --model, --quantizations and --tokens")
    parser.add_argument("--quantizations", nargs="+", default=["bf16", "nf4"])
    parser.add_argument("--tokens", nargs="+", type=int, help="of a trial-step; default 128 to 4096, on a CPU to 512")
    parser.add_argument("--length", type=int, default=128, help="tokens of a row, at most")
    parser.add_argument("--processes", nargs="+", type=int, help="of stock PEFT; default 1 2 4 8, on a CPU 1 2")
    parser.add_argument("--packed-processes", nargs="+", type=int, help="default 1, on a CPU as many as cores too")
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 4, 8, 16, 32])
    parser.add_argument("--most-tokens", type=int, default=32768, help="of a pass; larger packs are left out")
    parser.add_argument("--seconds", type=float, default=3.0, help="of training that are timed, for each number")
    parser.add_argument("--trials", type=int, default=64, help="for trials per hour")
    parser.add_argument("--trial-steps", type=int, default=50, help="for trials per hour")
    parser.add_argument("--keep-dense", action=argparse.BooleanOptionalAction, help="default: the engine decides")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--through-ray", action="store_true", help="where the CPU time of a search at 16 slots goes")
    options = parser.parse_args(arguments)
    gpu = options.device == "cuda"
    options.cores = len(os.sched_getaffinity(0))
    options.tokens = options.tokens or ([128, 256, 512, 1024, 2048, 4096] if gpu else [128, 512])
    options.processes = options.processes or ([1, 2, 4, 8] if gpu else sorted({1, options.cores}))
    options.packed_processes = options.packed_processes or ([1] if gpu else sorted({1, options.cores}))
    return options


def _portable(value: Any) -> Any:
    """An argument as others can read it: files of this repository by their place in it."""
    return str(value).removeprefix(f"{HERE.parent}{os.sep}") if isinstance(value, (str, Path)) else value


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    options = options_of(arguments)
    if options.through_ray:
        from through_ray import report

        print(report())
        return
    asked = SUITES.get(options.suite) or [(options.model, name, options.tokens) for name in options.quantizations]
    result: dict[str, Any] = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "arguments": {key: _portable(value) for key, value in vars(options).items()},
        "versions": {name: version(name) for name in PACKAGES},
        "load_average": os.getloadavg(),
        "bases": [],
    }
    for model, quantization, tokens in asked:
        found = measure(model, quantization, tokens, options)
        print(table(found), flush=True)
        result["device"] = found["device"]
        result["bases"].append({**found, "model": Path(model).name})
        slug = re.sub(r"[^a-z0-9]+", "-", found["device"].lower()).strip("-")
        file = options.out or HERE / "results" / f"packed-{slug}.json"
        file.write_text(
            json.dumps(result, indent=1) + "\n", encoding="utf-8"
        )  # after each, for whoever runs out of time
    print(f"wrote {file}")


if __name__ == "__main__":
    main()
