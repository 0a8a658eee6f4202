"""A search that passed every check: what it needs to build trials, and what is known of a trial before it runs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lorafront.search.peak_memory import PeakMemory, Predicted
from lorafront.search.placement import Placement
from lorafront.search.search_file import SearchFile
from lorafront.search.start_points import Starts
from lorafront.search.warm_start import WarmStart
from lorafront.spaces import modules
from lorafront.spaces.lora import LoraConfiguration, resolve
from lorafront.spaces.objectives import broken_limit
from lorafront.spaces.parameters import values_of
from lorafront.spaces.sizes import GIB
from lorafront.trainables import models
from lorafront.trainables.config import TrialConfig
from lorafront.trainables.data import TokenData, store
from lorafront.trainables.engines import PROCESS, why_not_packed
from lorafront.trainables.execution import Execution, executions
from lorafront.trainables.known_measurements import known_measurements
from lorafront.trainables.model_facts import ModelFacts
from lorafront.trainables.packed_bucket import bucket_rank
from lorafront.trainables.task import task_named

VRAM = "peak_vram_gb"


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
        downloads: what a run fetches from the hub, a line each.
        starts: what is tried first.
        warm: what earlier searches teach.
        placement: the devices, and who sits where; empty where trials need none.
        memory: predicts peak memory; None where nothing asks for it, or it cannot be predicted.
        bounded: what may run follows from predicted memory: a limit or the size of a device asks for it.
        on: what trials train on.
    """

    search: SearchFile
    facts: ModelFacts
    resolved: dict[str, modules.Resolved]
    token_file: Path
    tokens: TokenData
    rungs: tuple[int, ...]
    notes: tuple[str, ...]
    downloads: tuple[str, ...] = ()
    starts: Starts = field(default_factory=Starts)
    warm: WarmStart = field(default_factory=WarmStart)
    placement: Placement = field(default_factory=Placement)
    memory: PeakMemory | None = None
    bounded: bool = False
    on: torch.device = field(default_factory=models.device)
    _executions: dict[str, Execution] = field(default_factory=dict)  # by fingerprint: a trial keeps its own

    def trial(self, lora: LoraConfiguration, memory_cap: int | None = None) -> TrialConfig:
        """What a worker needs to train one configuration, in so many bytes of tensors at most."""
        executed, training = self.execution(lora).applied(lora, self.search.training)
        return TrialConfig(
            task=self.search.task,
            model=self.search.model,
            training=training,
            lora=executed,
            targets=() if lora.method == "full" else self.resolved[lora.modules].targets,
            rungs=self.rungs,
            seed=self.search.seed if lora.seed is None else lora.seed,
            threads=self.search.resources.cpus_per_trial,
            memory_cap=memory_cap,
            tokens=self.token_file,
            labels=self.tokens.labels,
            functions=self.search.functions,
            code=self.search.code_folder,
        )

    def canonical(self, lora: LoraConfiguration) -> LoraConfiguration:
        """The simplest configuration that trains the same on this model."""
        if lora.method == "full":
            return lora
        bias = self.facts.same_bias(lora.bias, self.resolved[lora.modules].names)
        return lora if bias == lora.bias else lora.model_copy(update={"bias": bias})

    def configuration(self, values: Mapping[str, Any]) -> LoraConfiguration:
        """From values of every parameter of the space, under the sampler's names."""
        return self.canonical(resolve(values, self.search.training.defaults()))

    def known_before(self, lora: LoraConfiguration) -> dict[str, float]:
        """What is known of a trial before it runs; what breaks a limit by it is not proposed."""
        task = task_named(self.search.task, self.search.code_folder)
        adapted = () if lora.method == "full" else self.resolved[lora.modules].names
        known = known_measurements(lora, self.facts, adapted, self.on, new_head=task.new_head)
        floors = {limit.name for limit in self.search.limits if task.new_head and limit.operator == ">="}
        expected = self.expected_bytes(lora) if self.bounded else None
        if expected is not None:  # else it is known when the trial has run
            known[VRAM] = expected / GIB
        return {name: value for name, value in known.items() if name not in floors}  # a lower bound cannot break those

    def predicted(self, lora: LoraConfiguration) -> Predicted | None:
        """Memory before it runs; None where that is not predicted."""
        if self.memory is None:
            return None
        return self.memory.predict(*self.execution(lora).applied(lora, self.search.training))

    def expected_bytes(self, lora: LoraConfiguration) -> int | None:
        """Bytes of tensors at the peak as predicted, corrected by what trials on this base measured."""
        predicted = self.predicted(lora)
        return None if predicted is None else self.placement.correction(lora.quantization).expected(predicted.peak)

    def base_bytes(self, lora: LoraConfiguration) -> int | None:
        """Bytes that the trials on its base hold once in a process; None where that is not predicted."""
        predicted = self.predicted(lora)
        return predicted and predicted.shared + self.placement.correction(lora.quantization).fragmentation

    def slot_bytes(self, lora: LoraConfiguration) -> int | None:
        """Bytes that it adds to them in a pack, with the margin of a placement; None where that is not predicted."""
        filled = lora.model_copy(update={"rank": bucket_rank(lora.rank, self.on)})
        predicted, correction = self.predicted(filled), self.placement.correction(lora.quantization)
        return predicted and correction.with_margin(predicted.needed - predicted.shared)

    def why_process(self, lora: LoraConfiguration) -> str:
        """Why it is trained by stock PEFT in a process, in words; empty where it trains in a pack."""
        return self.why_never_packed(lora) or self._why_not_packed(lora, predicted=self.predicted(lora) is not None)

    def why_never_packed(self, lora: LoraConfiguration) -> str:
        """As `why_process`, but for what only a prediction of its memory tells: a part of a second per kind of it."""
        if self.search.engine == PROCESS:
            return f"engine: {PROCESS}"
        timed = [objective.name for objective in self.search.objective_list if objective.alone]
        if timed:
            return f"objective {timed[0]} is measured alone on a device"
        return self._why_not_packed(lora, predicted=self.memory is not None)

    def _why_not_packed(self, lora: LoraConfiguration, *, predicted: bool) -> str:
        return why_not_packed(self.trial(lora), self.facts, predicted=predicted)

    def execution(self, lora: LoraConfiguration) -> Execution:
        """How a configuration is executed: as the file says, or the quickest way that is expected to fit.

        Where none fits it is the one that takes the least memory, and that is refused.
        """
        return self._executions.get(lora.fingerprint) or self._solved(lora)

    def keep_execution(self, lora: LoraConfiguration, execution: Execution) -> None:
        """That of a trial that begins, or that an earlier driver began: it stays, whatever is learnt."""
        self._executions[lora.fingerprint] = execution

    def _solved(self, lora: LoraConfiguration) -> Execution:
        training, least = self.search.training, Execution.given(lora, self.search.training)
        if training.execution == "given" or self.memory is None or not self.bounded:
            return least
        fewest: float = math.inf
        for way in executions(lora, training, self.memory.largest(lora).tokens):
            predicted = self.memory.predict(*way.applied(lora, training))
            if predicted is None:
                return Execution.given(lora, training)
            if not self._too_much(lora, predicted):
                return way
            if predicted.needed < fewest:
                least, fewest = way, predicted.needed
        return least

    def _too_much(self, lora: LoraConfiguration, predicted: Predicted) -> str:
        """Why it is more than a limit on the peak allows or any device has; empty where it is not."""
        expected = self.placement.correction(lora.quantization).expected(predicted.peak)
        broken = broken_limit(self.search.limits, {VRAM: expected / GIB})
        return broken or self.placement.too_large(lora.quantization, predicted.needed)

    def breaks(self, lora: LoraConfiguration) -> str:
        """Why a configuration is in vain: a limit that it is known to break, or memory; empty where it is not."""
        return broken_limit(self.search.limits, self.known_before(lora)) or self.too_large(lora)

    def too_large(self, lora: LoraConfiguration) -> str:
        """Why no device has the memory for it; empty where one has, or that is not predicted."""
        predicted = self.predicted(lora) if self.bounded else None
        return self.placement.too_large(lora.quantization, predicted.needed) if predicted else ""

    def same_modules(self, module_set: str) -> str:
        """The module set of this space that means the same on this model; itself where there is none."""
        if module_set in self.resolved:
            return module_set
        try:
            names = modules.resolve(module_set, list(self.facts.linears)).names
        except modules.ModuleProblem:
            return module_set
        return next((name for name, found in self.resolved.items() if set(found.names) == set(names)), module_set)

    def study_data(self) -> dict[str, Any]:
        """Which rows, rungs and code of the user's the trials see, as the study keeps it."""
        return {"tokens": self.token_file.name, "rungs": list(self.rungs), "code": self.search.code_digests()}

    def size(self) -> tuple[int, list[str]]:
        """(number of different discrete configurations, names of the continuous parameters)."""
        space = self.search.space
        size, continuous = space.size()
        biases = values_of(space.bias)
        different = [{self.facts.same_bias(bias, found.names) for bias in biases} for found in self.resolved.values()]
        return size // (len(different) * len(biases)) * sum(map(len, different)), continuous

    def references(self) -> Mapping[str, dict[str, float]]:
        """What doing nothing measures, as far as the data tells."""
        task = task_named(self.search.task, self.search.code_folder)
        return task.references(self.tokens.evaluation, self.tokens.labels)

    def store(self) -> None:
        """Write the token rows for the workers."""
        store(self.token_file, self.tokens)
