"""A table of trials that were all really trained: what a replayed search looks up instead of training.

One JSON file per table, one line per configuration, so that a diff is readable. `make_table.py` writes them.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lorafront.search.search_file import SearchFile, parse_search
from lorafront.spaces.errors import StateUnreadable
from lorafront.spaces.lora import LoraConfiguration, resolve
from lorafront.spaces.parameters import Range

FORMAT = 1
TABLES = Path(__file__).resolve().parent / "tables"
DIGITS = 7  # significant, of every number that is written

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True)
class TrialTable:
    """Every configuration of a discrete space, trained to every rung under every seed.

    Shapes are letters: C configurations, S seeds, R rungs.

    Attributes:
        search: the search file, without what a replay decides (budget, seed).
        rungs: training rows at which trials reported; the last one is full fidelity.
        seeds: of the trainings.
        configurations: in the order of the grid, the last parameter fastest.
        eval_loss: [C, S, R], nats per token; NaN from where a training diverged.
        peak_vram_gb: [C], GiB.
        trainable_params: [C].
        adapter_mb: [C].
        setup_seconds: [C], until the first optimizer step.
        train_seconds: [C, R], from the rung before to this one.
        eval_seconds: [C, R], of the evaluation at this one.
        provenance: where the numbers come from.
    """

    search: SearchFile
    rungs: tuple[int, ...]
    seeds: tuple[int, ...]
    configurations: tuple[LoraConfiguration, ...]
    eval_loss: Floats
    peak_vram_gb: Floats
    trainable_params: Floats
    adapter_mb: Floats
    setup_seconds: Floats
    train_seconds: Floats
    eval_seconds: Floats
    provenance: dict[str, Any]

    def __len__(self) -> int:
        return len(self.configurations)

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {lora.fingerprint: row for row, lora in enumerate(self.configurations)}

    def row_of(self, lora: LoraConfiguration) -> int:
        """Where a configuration stands.

        Raises:
            KeyError: it was not trained.
        """
        try:
            return self._rows[lora.fingerprint]
        except KeyError:
            raise KeyError(f"{lora.label} at learning rate {lora.learning_rate:g} is not in the table") from None

    def find(self, **values: Any) -> list[int]:
        """Rows whose configuration has these values; `alpha_ratio` is alpha / rank."""

        def matches(lora: LoraConfiguration) -> bool:
            facts = drawn(lora)
            return all(facts[name] == value for name, value in values.items())

        return [row for row, lora in enumerate(self.configurations) if matches(lora)]

    @cached_property
    def choices(self) -> dict[str, list[Any]]:
        """The values of each parameter that varies, under the names that a sampler sees."""
        parameters = self.search.space.parameters()
        return {name: value for name, value in parameters.items() if isinstance(value, list) and len(value) > 1}

    def params(self, row: int) -> dict[str, Any]:
        """What a sampler would have drawn to get this row."""
        facts = drawn(self.configurations[row])
        return {name: facts[name] for name in self.choices}

    @cached_property
    def full_seconds(self) -> Floats:
        """[C], worker seconds of a whole training, set-up and all evaluations included."""
        whole: Floats = self.setup_seconds + self.train_seconds.sum(axis=1) + self.eval_seconds.sum(axis=1)
        return whole

    def world(self, seed: int) -> TrialTable:
        """A table with one training seed: for each configuration the curve of one of the seeds here, drawn with `seed`.

        As many different tables as searches: on the same one a method that draws nothing would play the same search
        again and again. What the seeds of a configuration differ by is nearly all its own (the mean difference between
        two seeds is small against its scatter), so mixing them is much like training all with another seed.
        """
        drawn_seeds = np.random.default_rng(seed).integers(len(self.seeds), size=len(self))
        curves = self.eval_loss[np.arange(len(self)), drawn_seeds]
        return replace(self, seeds=(seed,), eval_loss=curves[:, None, :])

    def measured(self, row: int, rung: int) -> dict[str, Any]:
        """What a trial reports at a rung, under the first seed.

        Args:
            row: of the configuration.
            rung: index of the rung.
        """
        loss = float(self.eval_loss[row, 0, rung])
        return {
            "eval_loss": loss,
            "perplexity": math.exp(loss),
            "peak_vram_gb": float(self.peak_vram_gb[row]),
            "trainable_params": int(self.trainable_params[row]),
            "adapter_mb": float(self.adapter_mb[row]),
            "train_seconds": float(self.train_seconds[row, : rung + 1].sum()),
            "eval_seconds": float(self.eval_seconds[row, rung]),
            "setup_seconds": float(self.setup_seconds[row]),
        }


def drawn(lora: LoraConfiguration) -> dict[str, Any]:
    """A configuration's values, with alpha also as a multiple of the rank."""
    return {**lora.model_dump(), "alpha_ratio": lora.alpha / lora.rank}


_PER_CONFIGURATION = (
    "eval_loss",
    "peak_vram_gb",
    "trainable_params",
    "adapter_mb",
    "setup_seconds",
    "train_seconds",
    "eval_seconds",
)


def write_table(path: Path, table: TrialTable) -> None:
    """Write a table; the same table gives the same bytes."""
    everything = [lora.model_dump(mode="json") for lora in table.configurations]
    common = {k: v for k, v in everything[0].items() if all(values[k] == v for values in everything)}
    head = {
        "format": FORMAT,
        "provenance": table.provenance,
        "search": table.search.model_dump(mode="json", exclude_defaults=True),
        "rungs": table.rungs,
        "seeds": table.seeds,
        "common": common,
    }
    lines = [
        json.dumps(
            {k: v for k, v in values.items() if k not in common}
            | {name: _plain(getattr(table, name)[row]) for name in _PER_CONFIGURATION}
        )
        for row, values in enumerate(everything)
    ]
    opening = json.dumps(head, indent=1).removesuffix("\n}")
    path.write_text(f"{opening},\n" + ' "trials": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def read_table(path: Path) -> TrialTable:
    """Read a table.

    Raises:
        StateUnreadable: it is no table of this format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']}, not {FORMAT}")  # noqa: TRY301  # said as all else that is wrong
        names = set(LoraConfiguration.model_fields)
        return TrialTable(
            search=parse_search(raw["search"]),
            rungs=tuple(raw["rungs"]),
            seeds=tuple(raw["seeds"]),
            configurations=tuple(
                LoraConfiguration(**raw["common"], **{k: v for k, v in trial.items() if k in names})
                for trial in raw["trials"]
            ),
            provenance=raw["provenance"],
            **{
                name: np.array([trial[name] for trial in raw["trials"]], dtype=np.float64)
                for name in _PER_CONFIGURATION
            },
        )
    except (OSError, ValueError, KeyError) as error:
        raise StateUnreadable(f"{path} cannot be read as a table: {error}") from error


def _plain(values: Any) -> Any:
    """Numbers as JSON can say them: rounded, None where there is none."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [_plain(value) for value in values]
    value = float(values)
    if not math.isfinite(value):
        return None
    rounded = float(f"{value:.{DIGITS}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 10**DIGITS else rounded


def grid(search: SearchFile) -> list[LoraConfiguration]:
    """All configurations of a space, the last parameter fastest.

    Raises:
        ValueError: a parameter is a range.
    """
    parameters = search.space.parameters()
    ranges = [name for name, parameter in parameters.items() if isinstance(parameter, Range)]
    if ranges:
        raise ValueError(f"a table needs choices; {', '.join(ranges)} is a range")
    choices = [parameter if isinstance(parameter, list) else [parameter] for parameter in parameters.values()]
    defaults = search.training.defaults()
    return [resolve(dict(zip(parameters, values, strict=True)), defaults) for values in product(*choices)]
