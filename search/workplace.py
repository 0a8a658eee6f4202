"""The place where a driver's trials run: what a worker is sent, which part of a device it gets, what trials teach."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from lorafront.search.devices import most_workers, workers
from lorafront.search.oom_kills import KernelKills
from lorafront.search.optuna_searcher import Workplace
from lorafront.search.packs import Need
from lorafront.search.ray_trainable import CONFIG, ENGINE, FOLDER, KNOWN, NUMBER, ORDERS, TOY_PACKS
from lorafront.search.retries import last_chance, ran_out, unpackable
from lorafront.search.study_table import StudyTable, read_study
from lorafront.search.to_measure import to_measure
from lorafront.search.trial_folders import TrialFolders
from lorafront.spaces.sizes import GIB
from lorafront.trainables.engines import PACKED, PROCESS
from lorafront.trainables.memory_meter import CPU, CUDA
from lorafront.trainables.outcome import OUT_OF_MEMORY
from lorafront.trainables.session import PREDICTED

if TYPE_CHECKING:
    from ray.tune import PlacementGroupFactory

    from lorafront.search.cluster import Watch
    from lorafront.search.paths import SearchPaths
    from lorafront.search.placement import Placement, Seat
    from lorafront.search.prepared import Prepared
    from lorafront.search.search_file import SearchFile
    from lorafront.search.study import StudyLedger
    from lorafront.search.watchdog import Watchdog
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.trial import Report

TOKENS_PER_PASS = 8192  # not measured on a GPU: estimates say that larger passes gain little (two CPU cores: 2,000)
QUARTER = 4  # of the budget may be in flight
ALONE = "an attempt in a pack lost its worker, ran out of memory or could not begin"


class Places:
    """Puts trials on devices by their predicted memory, and corrects the predictions by what they measured."""

    def __init__(self, prepared: Prepared, ledger: StudyLedger, table: StudyTable) -> None:
        """Learn from the trials that the study has."""
        self._prepared = prepared
        self._ledger = ledger
        self._taught: set[int] = set()
        for trial in table.trials:
            if trial.execution is not None:
                prepared.keep_execution(trial.lora, trial.execution)
            if trial.last is not None:
                self.learn(trial.number, trial.lora, trial.last, None)

    def seat(self, number: int, lora: LoraConfiguration) -> Seat:
        """What a trial gets: a whole device once it ran out of memory."""
        placement, alone = self._prepared.placement, ran_out(self._ledger, number)
        predicted = self._prepared.predicted(lora) if placement.types else None
        return placement.seat(lora.quantization, predicted and predicted.needed, alone=alone)

    def known(self, lora: LoraConfiguration, seat: Seat, process: str | None = None) -> dict[str, float | str]:
        """What its reports say beside what it measures.

        Args:
            lora: its configuration.
            seat: where it sits.
            process: why stock PEFT trains it; empty where it is in a pack, None is what the search says of it.
        """
        prepared = self._prepared
        reason = prepared.why_process(lora) if process is None else process
        known: dict[str, float | str] = {"engine": PROCESS if reason else PACKED}
        if reason and prepared.search.engine != PROCESS:
            known["engine_reason"] = reason
        if seat.cap is not None:
            known |= {"device_type": seat.devices.name, "memory_cap_gb": seat.cap / GIB}
        # In a pack nothing tells one trial's peak from another's, so what is reported is what it would need alone.
        predicted = prepared.expected_bytes(lora) if prepared.bounded or not reason else None
        if predicted is None:
            return known
        if reason:
            return {**known, "predicted_peak_vram_gb": predicted / GIB}
        return {**known, "peak_vram_gb": predicted / GIB, "peak_vram_source": PREDICTED}

    def learn(self, number: int, lora: LoraConfiguration, report: Report, seat: Seat | None) -> None:
        """From a trial's first report, and from each time that it ran out of memory.

        Args:
            number: of the trial.
            lora: its configuration.
            report: what it said; of a worker that died it says nothing.
            seat: where it sat; None is what the report says.
        """
        placement, measured = self._prepared.placement, report.measurements
        name = seat.devices.name if seat is not None else measured.get("device_type")
        devices = next((one for one in placement.types if one.name == name), None)
        found = self._prepared.predicted(lora) if devices is not None else None
        if found is None:
            return
        predicted, correction = found.peak, placement.correction(lora.quantization, devices)

        def size(name: str) -> int:
            return round((measured.get(name) or 0) * GIB)

        if report.outcome in OUT_OF_MEMORY:
            asked = size("memory_requested_gb")
            wanted = asked + size("memory_at_failure_gb") if asked else 0
            correction.learn_ran_out(predicted, wanted, size("memory_cap_gb"))
        elif number not in self._taught and measured.get("peak_vram_source") in {CUDA, CPU}:
            self._taught.add(number)
            allocated = size("peak_vram_gb")
            # Without a GPU what the process holds is not that of the peak.
            gpu = measured["peak_vram_source"] == CUDA
            reserved, process = (size("peak_reserved_gb"), size("process_memory_gb")) if gpu else (allocated, 0)
            correction.learn(predicted, allocated, reserved, process)


def workplace(
    prepared: Prepared, paths: SearchPaths, ledger: StudyLedger, watchdog: Watchdog, engine: str, watch: Watch
) -> Workplace:
    """Where the trials of one driver run, by an engine as for `run_search`, on the nodes that it watches."""
    table, orders = read_study(paths.study_db), str(paths.orders(ledger.epoch).path.absolute())
    places, kills, folders = Places(prepared, ledger, table), KernelKills(), TrialFolders(paths, ledger, table)
    at_once = workers(prepared.search, prepared.placement, watch.nodes)
    packing = engine in TOY_PACKS or (engine == PROCESS and prepared.search.engine != PROCESS)
    packs = pack_slots(prepared.search, prepared.placement, at_once) if packing else None

    def need(number: int, lora: LoraConfiguration) -> Need:
        """A trial that brought workers down, or ran out of memory by itself, takes nobody else with it."""
        alone = packs is None or ran_out(ledger, number) or last_chance(ledger, number)
        if alone or unpackable(ledger) or (engine not in TOY_PACKS and prepared.why_process(lora)):
            return Need(lora.quantization)
        bounded = bool(prepared.placement.types)  # else memory does not matter, and tracing takes seconds
        base, slot = (prepared.base_bytes(lora), prepared.slot_bytes(lora)) if bounded else (0, 0)
        if base is None or slot is None:
            return Need(lora.quantization)
        return Need(lora.quantization, alone=False, base=base, slot=slot, most=most_in_pass(prepared, lora))

    def dispatch(number: int, lora: LoraConfiguration, seat: Seat, need: Need) -> dict[str, Any]:
        folder = folders.begin(number)
        watchdog.watch(number, folder)
        execution = prepared.execution(lora)
        prepared.keep_execution(lora, execution)
        if prepared.search.training.execution == "auto":
            ledger.keep_execution(number, execution)
        kills.more()  # what was killed before says nothing about this trial
        reason = (prepared.why_process(lora) or ALONE) if need.alone else ""
        return {
            NUMBER: number,
            FOLDER: str(folder.absolute()),
            ORDERS: orders,
            CONFIG: prepared.trial(lora, seat.cap).model_dump(mode="json"),
            ENGINE: _engine(engine, need),
            KNOWN: places.known(lora, seat, engine if engine != PROCESS else reason),
        }

    def unmeasured() -> dict[int, dict[str, Any]]:
        found = to_measure(read_study(paths.study_db), prepared)
        return {number: config.model_dump(mode="json") for number, config in found.items()}

    return Workplace(
        dispatch,
        recover=lambda number: folders.of(number).read_reports(),
        set_aside=lambda number: folders.of(number).set_result_aside(),
        hung=watchdog.forget,
        killed=kills.more,
        seen=lambda number: watchdog.sign_of(number) is not None,
        displaced=lambda number: watch.has_lost(watchdog.sign_of(number)),
        move=folders.leave,
        seat=places.seat,
        need=need,
        resources=partial(_resources, prepared.search),
        learn=places.learn,
        to_measure=unmeasured if packs is not None else dict,
        placement=prepared.placement,
        slots=packs and packs[0],
        workers=packs[1] if packs else 1,
        most=partial(_room, prepared, watch),
        nodes=partial(watch.homes, cpus=prepared.search.resources.cpus_per_trial),
    )


def _room(prepared: Prepared, watch: Watch) -> int:
    """Workers that there is room for now, on the nodes that there are."""
    search, seats, gpus = prepared.search, prepared.placement, watch.new_gpus(prepared.search.resources.cpus_per_trial)
    if gpus is not None and any(one.are_gpus for one in seats.types):
        seats.resize(gpus, most_workers(search, watch.nodes, gpus=True))
    return workers(search, seats, watch.nodes)


def _resources(search: SearchFile, seat: Seat, nodes: frozenset[str] | None) -> PlacementGroupFactory:
    """What Ray gives to a worker that sits there, on one of those nodes."""
    from ray.tune import PlacementGroupFactory

    found: dict[str, float] = {"CPU": search.resources.cpus_per_trial}
    if seat.devices.are_gpus:
        found["GPU"] = seat.gpus
    if nodes is None:
        return PlacementGroupFactory([found])
    # Else Ray would put it on a node that comes at once, whatever is wrong with that.
    chosen = {"ray.io/node-id": f"in({','.join(sorted(nodes)) or 'none'})"}  # after a space none would match (2.60)
    return PlacementGroupFactory([found], bundle_label_selector=[chosen])


def pack_slots(search: SearchFile, placement: Placement, at_once: int) -> tuple[int, int]:
    """(packed trials in flight at most, workers that they are spread over).

    One worker on each GPU: there a base is held once. The slots are a quarter of the budget: what is asked at once is
    asked without knowing how the others end.

    Args:
        search: its resources and budget.
        placement: its devices.
        at_once: workers that there is room for.
    """
    gpus = sum(one.count for one in placement.types if one.are_gpus)
    workers = min(gpus, at_once) if gpus and placement.fixed is None else at_once
    slots = search.resources.slots
    return (max(workers, -(-search.budget.trials // QUARTER)) if slots == "auto" else slots), workers


def most_in_pass(prepared: Prepared, lora: LoraConfiguration) -> int:
    """Trials of its kind that one pass is worth: beyond so many tokens it takes as much longer as it has more."""
    if prepared.memory is None:
        longest, rows = int(prepared.tokens.train.lengths.max()), lora.batch_size
    else:
        shapes = prepared.memory.largest(lora)
        longest, rows = shapes.tokens + shapes.completion, shapes.rows
    return max(1, TOKENS_PER_PASS // (rows * longest))


def _engine(engine: str, need: Need) -> str:
    """The engine of one trial: that of the toys, or of what its driver packs."""
    if engine == PROCESS:
        return PROCESS if need.alone else PACKED
    return engine.removesuffix("-packed") if need.alone else engine
