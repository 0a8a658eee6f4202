"""Everything that can be known to be wrong before a trial starts: model, modules, data, machine, lengths.

`prepare` collects all problems, writes nothing, and returns what a search needs to build trials.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from lorafront.search.devices import cores, placement
from lorafront.search.known_limits import breaking, configurations
from lorafront.search.nodes import Node, lacks_bfloat16
from lorafront.search.packing import packing_notes
from lorafront.search.paths import RootPaths
from lorafront.search.paths import located as path_of
from lorafront.search.prepared import VRAM, Prepared
from lorafront.search.rungs import ladder, total_rows
from lorafront.search.search_file import SearchFile
from lorafront.search.seated import seated
from lorafront.search.start_points import Surroundings, starts
from lorafront.search.warm_start import WarmStart, warm_start
from lorafront.spaces import modules
from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.objectives import OBJECTIVES
from lorafront.spaces.parameters import values_of
from lorafront.spaces.start_points import StartPoint, overlap_on
from lorafront.trainables import models
from lorafront.trainables.config import DataConfig, ModelConfig
from lorafront.trainables.data import TokenData, prepare
from lorafront.trainables.hub import hub_answers, local_folder_or_file, weights_on_hub
from lorafront.trainables.known_measurements import KNOWN
from lorafront.trainables.model_facts import ModelFacts, model_facts
from lorafront.trainables.row_sets import read_sets
from lorafront.trainables.task import TASKS, Task, task_named
from lorafront.trainables.user_code import is_reference, load_reference

if TYPE_CHECKING:
    from lorafront.search.placement import Devices
    from lorafront.trainables.memory_trace import DeviceKind

T = TypeVar("T")


def check(
    search: SearchFile,
    root: RootPaths,
    near: Path,
    *,
    warm: bool = True,
    devices: Sequence[Devices] = (),
    nodes: Sequence[Node] = (),
    kind: DeviceKind | None = None,
) -> Prepared:
    """Check a search against its model, its data and this machine.

    Args:
        search: the validated file.
        root: where the search will stand.
        near: folder of the search file; local paths that are not under the current folder are looked for there.
        warm: read the searches that `warm_start` names.
        devices: to place trials on as if they were there; none is what there is.
        nodes: of the cluster that trials run on; none is this machine.
        kind: of device whose memory is predicted; None is that of the machines that trials run on.

    Raises:
        InvalidInput: all problems found, each with its key path.
    """
    checks = _Checks()
    located = locate_paths(search, near)
    code = located.code_folder
    task = checks.run(lambda: task_named(located.task, code), "task")
    config = checks.run(lambda: models.load_config(located.model))
    tokenizer = checks.run(lambda: models.load_tokenizer(located.model)) if config is not None else None
    facts = checks.run(lambda: model_facts(config, task)) if config is not None and task is not None else None
    on = torch.device("cuda" if any(node.gpus for node in nodes) and not devices else models.device())
    checks.problems += _machine(located, devices, nodes, on)
    checks.problems += _objectives(located, task)
    downloads = (checks.run(lambda: _downloads(located.model), "model") if config is not None else None) or []
    resolved: dict[str, modules.Resolved] = {}
    if config is not None and facts is not None:
        resolved = _modules(located, facts, checks)
        located = _settled(located, config, facts, resolved, checks)
        resolved = {name: resolved[name] for name in values_of(located.space.modules) if name in resolved}
        checks.problems += _against_model(located, facts)
    batch, rows_per_step = _batches(located)
    prepared = None
    held_out = located.data.model_copy(update={"evaluate_on": "held_out"})
    wanted = located.data if located.confirm is None else held_out
    raw = checks.run(lambda: read_sets(wanted, task, code)) if task is not None else None
    if tokenizer is not None and task is not None and raw is not None:

        def tokens(data: DataConfig) -> tuple[Path, TokenData]:
            least = located.training.eval_batch_size or batch
            folder = root.tokens.absolute()
            return prepare(raw, data, task, tokenizer, folder, train_batch=max(rows_per_step), eval_batch=least)

        prepared = checks.run(lambda: tokens(located.data))
        if prepared is not None and located.confirm is not None and located.confirms is None:
            checks.run(lambda: tokens(held_out))  # there will be some
        if facts is not None and len(tokenizer) > facts.vocabulary:
            message = f"the tokenizer has {len(tokenizer)} tokens, the model's embedding {facts.vocabulary}"
            checks.problems.append(Problem(("model",), message))
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
    ready = Prepared(located, facts, resolved, prepared[0], prepared[1], rungs, notes, tuple(downloads), on=on)
    seats = placement(ready.search, ready.facts, devices, nodes)
    ready = seated(ready, config, root, seats, kind or ("cuda" if on.type == "cuda" else "cpu"))
    ready = replace(ready, notes=(*ready.notes, *packing_notes(ready)))
    return _with_starts(ready, root if warm else None)


def _with_starts(ready: Prepared, root: RootPaths | None) -> Prepared:
    """Add what is tried first and what earlier searches teach, and say what the limits leave.

    Raises:
        InvalidInput: nothing of the space keeps the limits, a start point breaks one, or an earlier search differs.
    """
    search, space, defaults = ready.search, ready.search.space, ready.search.training.defaults()
    problems: list[Problem] = []
    notes: list[str] = []
    names = {*KNOWN, *([VRAM] if ready.bounded else [])}
    known = [limit for limit in search.limits if limit.name in names]
    if known:
        found = breaking(space, defaults, ready.canonical, ready.breaks)
        if found.broken == found.total and found.all_listed:
            message = f"no configuration of the space keeps the limits and fits; the first: {found.example}"
            raise InvalidInput([Problem(("constraints", known[0].name), message)])
        notes += [str(found)] if found.broken else []
    elif ready.bounded:  # to count them all would be to trace steps of every kind, for a minute
        some = configurations(space, defaults, ready.canonical)
        if all(ready.breaks(lora) for lora in some):
            message = f"no configuration of the space fits; the first: {ready.breaks(some[0])}"
            raise InvalidInput([Problem(("resources",), message)])
    overlap = overlap_on(list(ready.facts.linears), ready.resolved)
    around = Surroundings(space, defaults, overlap, ready.canonical, ready.breaks, ready.too_large)
    first = starts(search.start_points, around, search.budget.trials, search.baseline)
    problems += first.problems
    warm = WarmStart()
    try:
        if root is not None:
            warm = warm_start(
                search, root, data=ready.study_data(), canonical=ready.canonical, modules=ready.same_modules
            )
    except InvalidInput as error:
        problems += error.problems
    if problems:
        raise InvalidInput(problems)
    return replace(ready, notes=(*ready.notes, *notes, *first.notes, *warm.notes), starts=first, warm=warm)


class _Checks:
    """Runs checks one after the other and keeps what each finds."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[str] = []

    def run(self, work: Callable[[], T], key: str = "") -> T | None:
        """The result, or None where it found problems; `key` is theirs where they name none."""
        try:
            return work()
        except InvalidInput as error:
            self.problems += [Problem(p.path or ((key,) if key else ()), p.message) for p in error.problems]
            return None


def locate_paths(search: SearchFile, near: Path) -> SearchFile:
    """Make local paths absolute: from the current folder, else from the search file's own folder."""

    def absolute(name: str | None) -> str | None:
        return None if name is None else path_of(name, near)

    model = ModelConfig.model_validate({**search.model.model_dump(), "name": absolute(search.model.name)})
    data = search.data
    also = {name: found.model_copy(update={"path": absolute(found.path)}) for name, found in data.also_evaluate.items()}
    places = {key: absolute(getattr(data, key)) for key in ("path", "eval_path", "test_path")}
    update = {**places, "also_evaluate": also}
    own = [search.task, data.format, *search.functions.values(), *(found.format for found in also.values())]
    code = absolute(search.code) or (str(near.resolve()) if any(map(is_reference, own)) else None)
    return search.model_copy(update={"model": model, "data": data.model_copy(update=update), "code": code})


def _objectives(search: SearchFile, task: Task | None) -> list[Problem]:
    """Objectives that the task does not measure, and functions that cannot be called."""
    problems = []
    for index, entry in enumerate(search.objectives):
        if isinstance(entry, str):
            qualities = [name for name, objective in OBJECTIVES.items() if objective.quality]
            if task is not None and entry in qualities and entry not in task.quality:
                others = [name for name in TASKS if entry in task_named(name).quality]
                message = (
                    f"task {search.task} does not measure {entry}, but {', '.join(task.quality)}; "
                    f"{entry} is what {', '.join(others)} measures"
                )
                problems.append(Problem(("objectives", index), message))
            continue
        try:
            function = load_reference(entry.function, search.code_folder)
            inspect.signature(function).bind("model", "tokenizer")
        except InvalidInput as error:
            problems += [Problem(("objectives", index), problem.message) for problem in error.problems]
        except (TypeError, ValueError) as error:
            message = f"{entry.function} must be a function of (model, tokenizer) ({error})"
            problems.append(Problem(("objectives", index), message))
    return problems


def _settled(
    search: SearchFile, config: Any, facts: ModelFacts, resolved: dict[str, modules.Resolved], checks: _Checks
) -> SearchFile:
    """Pin a hub model to the commit that was checked, and fold choices that are one on this model."""
    commit = getattr(config, "_commit_hash", None)
    if commit:
        search = search.model_copy(update={"model": search.model.model_copy(update={"revision": commit})})
    first: dict[tuple[str, ...], str] = {}
    for name, found in resolved.items():
        kept = first.setdefault(found.names, name)
        if kept != name:
            checks.notes.append(f"modules {kept} and {name} are the same on this model: one choice, {kept}")
    space = search.space
    if len(first) < len(resolved):
        space = space.model_copy(update={"modules": list(first.values())})
    written = values_of(space.bias)
    reached = {facts.same_bias(bias, names) for bias in written for names in first}
    if first and reached != set(written):
        different = [bias for bias in ("none", "lora_only", "all") if bias in reached]
        reason = "" if facts.biased else "the model has no biases, so "
        choices = f"bias {', '.join(written)} comes to {', '.join(different)}"
        checks.notes.append(
            f"{reason}{choices} with these modules: {'one choice' if len(reached) == 1 else 'so few choices'}"
        )
        space = space.model_copy(update={"bias": different if len(different) > 1 else different[0]})
    folded = {name: first[found.names] for name, found in resolved.items()}
    points = [_settled_point(point, folded, values_of(space.bias)) for point in search.start_points.points]
    start_points = search.start_points.model_copy(update={"points": points})
    baseline = search.baseline and _settled_point(search.baseline, folded, values_of(space.bias))
    return search.model_copy(update={"space": space, "start_points": start_points, "baseline": baseline})


def _settled_point(point: StartPoint, folded: Mapping[str, str], biases: list[str]) -> StartPoint:
    """A start point in the choices that are left; a bias that is none of them comes to one that is."""
    changes: dict[str, Any] = {"modules": folded.get(point.modules, point.modules)} if point.modules else {}
    if point.bias is not None and point.bias not in biases:
        changes["bias"] = None
    return point.model_copy(update=changes)


def _downloads(model: ModelConfig) -> list[str]:
    """Weights that a run fetches; config, tokenizer and data are here once they are checked."""
    if local_folder_or_file(model.name) is not None or not hub_answers():
        return []
    files = weights_on_hub(model.name, model.revision)
    if not files:
        return [f"the weights of {model.name}, unless they are in the local cache; the hub does not say how large"]
    missing = [size for _, size, cached in files if not cached]
    if not missing:
        return [f"nothing, the weights of {model.name} are in the local cache"]
    size = f"{sum(missing) / 1e9:.1f} GB" if sum(missing) >= 1e9 else f"{sum(missing) / 1e6:.1f} MB"  # noqa: PLR2004
    return [f"{size} of weights of {model.name}, in {len(missing)} file{'s' if len(missing) > 1 else ''}"]


def _machine(search: SearchFile, devices: Sequence[Devices], nodes: Sequence[Node], on: torch.device) -> list[Problem]:
    """What the machine cannot do that trials run on, or the best of the nodes."""
    problems, whose = [], "any node" if nodes else "this machine"
    most = max((node.cores for node in nodes), default=0) if nodes else cores()
    if search.resources.cpus_per_trial > most:
        message = f"{search.resources.cpus_per_trial} is more than the {most} cores of {whose}"
        problems.append(Problem(("resources", "cpus_per_trial"), message))
    there = max((node.gpus for node in nodes), default=0) if nodes else torch.cuda.device_count()
    gpus = sum(one.count for one in devices) or there
    wanted = search.resources.gpus_per_trial
    if gpus and wanted != "auto" and wanted > gpus:
        problems.append(Problem(("resources", "gpus_per_trial"), f"{wanted:g} is more than the {gpus} GPUs of {whose}"))
    for index, quantization in enumerate(values_of(search.space.quantization)):
        reason = models.cannot_run(quantization, on) or lacks_bfloat16(nodes, quantization)
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


def _modules(search: SearchFile, facts: ModelFacts, checks: _Checks) -> dict[str, modules.Resolved]:
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


def _against_model(search: SearchFile, facts: ModelFacts) -> list[Problem]:
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
    if search.resources.gpus_per_trial != "auto" and not gpu:
        notes.append(
            "no GPU on this machine: trials run on CPU cores, and peak VRAM is the count of live tensor storages"
        )
    late = [objective.name for objective in search.objective_list if objective.name in search.functions]
    if late and search.early_stopping != "off":
        notes.append(f"early_stopping ends no trial: {', '.join(late)} is measured at the last rung only")
    if search.budget.gpu_hours is not None and not gpu:
        notes.append("no GPU on this machine: budget.gpu_hours counts the hours of workers, each as one")
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
