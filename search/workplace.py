"""The place where a driver's trials run: what a worker is sent, which part of a device it gets, what trials teach."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.oom_kills import KernelKills
from lorafront.search.optuna_searcher import Workplace
from lorafront.search.placement import WHOLE, Seat
from lorafront.search.ray_trainable import CONFIG, ENGINE, FOLDER, KNOWN, NUMBER, ORDERS, RESOURCES
from lorafront.search.retries import OUT_OF_MEMORY, ran_out
from lorafront.search.study_table import StudyTable, read_study
from lorafront.spaces.sizes import GIB
from lorafront.trainables.outcome import Outcome

if TYPE_CHECKING:
    from lorafront.search.paths import SearchPaths
    from lorafront.search.prepared import Prepared
    from lorafront.search.study import StudyLedger
    from lorafront.search.watchdog import Watchdog
    from lorafront.spaces.lora import LoraConfiguration
    from lorafront.trainables.trial import Report


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
                self.learn(trial.number, trial.lora, trial.last, WHOLE)  # what ran out did so at its last attempt

    def seat(self, number: int, lora: LoraConfiguration) -> Seat:
        """What a trial gets: a whole device once it ran out of memory."""
        placement, alone = self._prepared.placement, ran_out(self._ledger, number)
        return placement.seat(lora.quantization, self._prepared.predicted_bytes(lora), alone=alone)

    def known(self, lora: LoraConfiguration, seat: Seat) -> dict[str, float | str]:
        """What its reports say beside what it measures."""
        predicted = self._prepared.expected_bytes(lora)
        known: dict[str, float | str] = {"device_type": seat.devices.name} if seat.share else {}
        return known if predicted is None else {**known, "predicted_peak_vram_gb": predicted / GIB}

    def learn(self, number: int, lora: LoraConfiguration, report: Report, share: int) -> None:
        """From a trial's first report, and from each time that it ran out of memory."""
        placement, measured = self._prepared.placement, report.measurements
        devices = next((one for one in placement.types if one.name == measured.get("device_type")), None)
        predicted = self._prepared.predicted_bytes(lora) if devices is not None else None
        if predicted is None:
            return
        correction = placement.correction(lora.quantization, devices)
        if report.outcome in OUT_OF_MEMORY:
            names = ("memory_at_failure_gb", "memory_requested_gb")  # on a CPU they are not of tensors alone
            wanted = sum(measured.get(name) or 0 for name in names) if report.outcome is Outcome.CUDA_OOM else 0
            correction.ran_out(predicted, int(wanted * GIB), whole=share >= WHOLE)
        elif number not in self._taught and measured.get("peak_vram_gb"):
            self._taught.add(number)
            on_gpu = measured.get("peak_vram_source") == "cuda_allocator"  # elsewhere it is not that of the peak
            process = int(measured["process_memory_gb"] * GIB) if on_gpu else None
            correction.measured(predicted, round(measured["peak_vram_gb"] * GIB), process)


def workplace(
    prepared: Prepared, paths: SearchPaths, ledger: StudyLedger, watchdog: Watchdog, engine: str
) -> Workplace:
    """Where the trials of one driver run."""
    table, epoch = read_study(paths.study_db), ledger.epoch
    # A trial goes on in the folder of the epoch that began it, so that its checkpoints are found.
    begun = {trial.number: trial.epoch for trial in table.running if trial.epoch}
    places, kills = Places(prepared, ledger, table), KernelKills()

    def dispatch(number: int, lora: LoraConfiguration, seat: Seat) -> dict[str, Any]:
        folder = paths.trial(number, epoch).path
        if number in begun and begun[number] != epoch:
            adopt(paths.trial(number, begun[number]).path, folder)
        watchdog.watch(number, folder)
        if prepared.search.training.execution == "auto":
            ledger.keep_execution(number, prepared.execution(lora))
        resources: dict[str, float] = {"cpu": prepared.search.resources.cpus_per_trial}
        if seat.devices.gpus:
            resources["gpu"] = seat.gpus
        return {
            NUMBER: number,
            FOLDER: str(folder.absolute()),
            ORDERS: str(paths.orders(epoch).path.absolute()),
            CONFIG: prepared.trial(lora, seat.cap).model_dump(mode="json"),
            ENGINE: engine,
            KNOWN: places.known(lora, seat),
            RESOURCES: resources,
        }

    return Workplace(
        dispatch,
        recover=lambda number: paths.trial(number, epoch).read_reports(),
        set_aside=lambda number: paths.trial(number, epoch).set_result_aside(),
        hung=watchdog.forget,
        killed=kills.more,
        seat=places.seat,
        learn=places.learn,
        placement=prepared.placement,
    )


def adopt(old: Path, new: Path) -> None:
    """Copy an earlier epoch's checkpoints: what an old worker still writes goes where nobody looks."""
    if old.is_dir() and not new.exists():
        shutil.copytree(old, new)
