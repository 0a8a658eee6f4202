"""Everything that can be known to be wrong before a trial starts: model, modules, data, machine, lengths.

`prepare` collects all problems, writes nothing, and returns what a search needs to build trials.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from lorafront.search.paths import RootPaths
from lorafront.search.rungs import ladder, total_rows
from lorafront.search.search_file import SearchFile
from lorafront.spaces import modules
from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.lora import LoraConfiguration
from lorafront.spaces.parameters import values_of
from lorafront.trainables import models
from lorafront.trainables.config import ModelConfig, TrialConfig
from lorafront.trainables.data import TokenData, prepare, read, store
from lorafront.trainables.task import task_named

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """A search that passed every check.

    Attributes:
        search: the file, with local paths made absolute (workers may stand elsewhere).
        facts: of the base model.
        resolved: module set to the model's own modules.
        token_file: where the token rows are or will be.
        tokens: the token rows.
        rungs: training rows at which trials report.
        notes: what the user should know.
    """

    search: SearchFile
    facts: models.ModelFacts
    resolved: dict[str, modules.Resolved]
    token_file: Path
    tokens: TokenData
    rungs: tuple[int, ...]
    notes: tuple[str, ...]

    def trial(self, lora: LoraConfiguration) -> TrialConfig:
        """What a worker needs to train one configuration."""
        return TrialConfig(
            task=self.search.task,
            model=self.search.model,
            training=self.search.training,
            lora=lora,
            targets=self.resolved[lora.modules].targets,
            rungs=self.rungs,
            seed=self.search.seed,
            threads=self.search.resources.cpus_per_trial,
            tokens=self.token_file,
        )

    def store(self) -> None:
        """Write the token rows for the workers."""
        store(self.token_file, self.tokens)


def check(search: SearchFile, root: RootPaths, near: Path) -> Prepared:
    """Check a search against its model, its data and this machine.

    Args:
        search: the validated file.
        root: where the search will stand.
        near: folder of the search file; local paths that are not under the current folder are looked for there.

    Raises:
        InvalidInput: all problems found, each with its key path.
    """
    checks = _Checks()
    located = locate_paths(search, near)
    task = task_named(search.task)
    config = checks.run(lambda: models.load_config(located.model))
    tokenizer = checks.run(lambda: models.load_tokenizer(located.model)) if config is not None else None
    facts = checks.run(lambda: models.model_facts(config, task)) if config is not None else None
    checks.problems += _machine(located)
    resolved: dict[str, modules.Resolved] = {}
    if config is not None and facts is not None:
        located = _settled(located, config, facts, checks)
        resolved = _modules(located, facts, checks)
        checks.problems += _against_model(located, facts)
    batch, rows_per_step = _batches(located)
    prepared = None
    raw = checks.run(lambda: read(located.data))
    if tokenizer is not None and raw is not None:
        prepared = checks.run(
            lambda: prepare(
                raw,
                located.data,
                task,
                tokenizer,
                root.tokens.absolute(),
                train_batch=max(rows_per_step),
                eval_batch=located.training.eval_batch_size or batch,
            )
        )
        if facts is not None and len(tokenizer) > facts.vocabulary:
            checks.problems.append(
                Problem(
                    ("model",), f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {facts.vocabulary}"
                )
            )
    rungs = None
    if prepared is not None:
        token_rows = len(prepared[1].train)
        rungs = checks.run(
            lambda: ladder(
                total_rows(located.training, token_rows, rows_per_step), located.training.rungs, max(rows_per_step)
            )
        )
    checks.run(root.check_writable)
    if checks.problems or facts is None or prepared is None or rungs is None:
        raise InvalidInput(checks.problems)
    notes = (*prepared[1].notes, *checks.notes, *_notes(located, rungs, max(rows_per_step)))
    return Prepared(located, facts, resolved, prepared[0], prepared[1], rungs, notes)


class _Checks:
    """Runs checks one after the other and keeps what each finds."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def run(self, work: Callable[[], T]) -> T | None:
        """The result, or None where it found problems."""
        try:
            return work()
        except InvalidInput as error:
            self.problems += error.problems
            return None


def locate_paths(search: SearchFile, near: Path) -> SearchFile:
    """Make local paths absolute: from the current folder, else from the search file's own folder."""

    def absolute(name: str | None) -> str | None:
        if name is None:
            return None
        for place in (Path(name).expanduser(), near / name):
            if place.exists():
                return str(place.resolve())
        return name

    model = ModelConfig.model_validate({**search.model.model_dump(), "name": absolute(search.model.name)})
    data = search.data.model_copy(
        update={"path": absolute(search.data.path), "eval_path": absolute(search.data.eval_path)}
    )
    return search.model_copy(update={"model": model, "data": data})


def _settled(search: SearchFile, config: Any, facts: models.ModelFacts, checks: _Checks) -> SearchFile:
    """Pin a hub model to the commit that was checked, and fold choices that are one on this model."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        search = search.model_copy(update={"model": search.model.model_copy(update={"revision": commit})})
    biases = values_of(search.space.bias)
    if not facts.has_bias and biases != ["none"]:
        checks.notes.append(f"the model has no biases, so bias {', '.join(biases)} is one choice: none")
        search = search.model_copy(update={"space": search.space.model_copy(update={"bias": "none"})})
    elif set(biases) != {"none"}:
        for index, quantization in enumerate(values_of(search.space.quantization)):
            if models.compute_dtype(quantization, models.device()) == torch.float16:
                message = f"{quantization} computes in float16 here, in which biases cannot be trained; set bias: none"
                checks.problems.append(Problem(("space", "quantization", index), message))
    return search


def _machine(search: SearchFile) -> list[Problem]:
    on = models.device()
    problems = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if search.resources.cpus_per_trial > cores:
        message = f"{search.resources.cpus_per_trial} is more than the {cores} cores of this machine"
        problems.append(Problem(("resources", "cpus_per_trial"), message))
    gpus, wanted = torch.cuda.device_count(), search.resources.gpus_per_trial or 0
    if on.type == "cuda" and wanted > gpus:
        problems.append(
            Problem(("resources", "gpus_per_trial"), f"{wanted:g} is more than the {gpus} GPUs of this machine")
        )
    for index, quantization in enumerate(values_of(search.space.quantization)):
        reason = models.cannot_run(quantization, on)
        if reason:
            problems.append(
                Problem(("space", "quantization", index), f"this machine cannot run {quantization}: {reason}")
            )
    if search.model.attention == "flash_attention_2":
        from transformers.utils import is_flash_attn_2_available

        if not is_flash_attn_2_available():
            problems.append(
                Problem(
                    ("model", "attention"), "flash_attention_2 needs a CUDA GPU and the package flash-attn; use sdpa"
                )
            )
    return problems


def _modules(search: SearchFile, facts: models.ModelFacts, checks: _Checks) -> dict[str, modules.Resolved]:
    resolved = {}
    for index, module_set in enumerate(values_of(search.space.modules)):
        try:
            resolved[module_set] = modules.resolve(module_set, list(facts.linears))
        except modules.ModuleProblem as error:
            checks.problems.append(Problem(("space", "modules", index), str(error)))
    ranks = values_of(search.space.rank)
    for module_set, found in resolved.items():
        name = min(found.names, key=lambda name: min(facts.linears[name]))
        least = min(facts.linears[name])
        for index, rank in enumerate(ranks):
            if rank > least:
                checks.problems.append(
                    Problem(
                        ("space", "rank", index),
                        f"rank {rank} exceeds min(in, out) of {name}, which is {least} (modules {module_set})",
                    )
                )
    return resolved


def _against_model(search: SearchFile, facts: models.ModelFacts) -> list[Problem]:
    if facts.positions is not None and search.data.max_length > facts.positions:
        return [
            Problem(
                ("data", "max_length"),
                f"{search.data.max_length} is more than the {facts.positions} positions of the model",
            )
        ]
    return []


def _batches(search: SearchFile) -> tuple[int, list[int]]:
    """(largest batch, all sizes of an optimizer step in rows)."""
    space, training = search.space, search.training
    batches = values_of(space.batch_size) if space.batch_size is not None else [training.batch_size]
    accumulations = (
        values_of(space.gradient_accumulation)
        if space.gradient_accumulation is not None
        else [training.gradient_accumulation]
    )
    return max(batches), sorted({batch * times for batch in batches for times in accumulations})


def _notes(search: SearchFile, rungs: tuple[int, ...], rows_per_step: int) -> list[str]:
    notes = []
    gpu = models.device().type == "cuda"
    if search.resources.gpus_per_trial is not None and not gpu:
        notes.append(
            "no GPU on this machine: trials run on CPU cores, and peak VRAM is the count of live tensor storages"
        )
    if not gpu and "fp16" in values_of(search.space.quantization):
        notes.append("fp16 products are emulated on a CPU, several times slower than bf16")
    warmups = values_of(search.space.warmup) if search.space.warmup is not None else [search.training.warmup]
    warm = max(warmups) * rungs[-1]
    if len(rungs) > 1 and rungs[0] < 2 * warm:
        notes.append(
            f"the first rung ({rungs[0]} rows) is less than twice the warm-up ({warm:.0f} rows): it tells little"
        )
    if rungs[0] < rows_per_step:
        notes.append(f"the first rung ({rungs[0]} rows) is less than one optimizer step ({rows_per_step} rows)")
    return notes
