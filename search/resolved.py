"""What `lorafront check` prints: the file with every default filled in, and what it means on this model and machine."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from ruamel.yaml import YAML

from lorafront.search.mlflow_tracker import Tracking, shown
from lorafront.search.prepared import Prepared
from lorafront.spaces.sizes import size_text
from lorafront.trainables.data import few


def resolved_text(prepared: Prepared, tracking: Tracking, notes: Sequence[str] = ()) -> str:
    """The resolved file as YAML, then the facts and the notes as comments, so that the whole is a file again."""
    search = prepared.search
    data: dict[str, Any] = search.model_dump(mode="json", exclude_none=True)
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None
    yaml.width = 76
    yaml.dump(data, stream)
    size, continuous = prepared.size()
    facts = prepared.facts
    lines = [
        f"space: {size:,} different discrete configurations"
        + (f", times continuous {', '.join(continuous)}" if continuous else "")
    ]
    lines += [f"modules {name}: {', '.join(found.targets)}" for name, found in prepared.resolved.items()]
    lines.append(f"model: {facts.parameters:,} parameters, {len(facts.linears)} linear modules")
    tokens = prepared.tokens
    lines.append(
        f"data: {len(tokens.train)} training rows ({int(tokens.train.offsets[-1]):,} tokens), {len(tokens.evaluation)} "
        f"evaluation rows ({int(tokens.evaluation.offsets[-1]):,} tokens)"
    )
    lines += [
        f"second set {name}: {len(rows)} rows ({int(rows.offsets[-1]):,} tokens)" for name, rows in tokens.also.items()
    ]
    if tokens.labels:
        lines.append(f"labels: {few(tokens.labels)}")
    for name, measured in prepared.references().items():
        lines.append(f"{name}: " + ", ".join(f"{metric} {value:.4f}" for metric, value in measured.items()))
    lines += [
        f"device: {one.count} x {one.name}, {size_text(one.bytes)} free"
        + ("" if prepared.memory else "; memory is not predicted for this task and model: a whole one for each trial")
        for one in prepared.placement.types
    ]
    lines.append("objectives: " + ", ".join(f"{o.name} ({o.direction})" for o in search.objective_list))
    lines.append(f"rungs: {', '.join(map(str, prepared.rungs))} training rows")
    for start in prepared.starts.points:
        lora = prepared.configuration(start.params)
        lines.append(f"start point {start.label}: {lora.label} lr {lora.learning_rate:.2g}")
    lines += [f"download: {what}" for what in prepared.downloads]
    lines.append(
        f"MLflow: {shown(tracking.uri)} ({tracking.source})" + (f"; {tracking.problem}" if tracking.problem else "")
    )
    lines += [f"note: {note}" for note in (*prepared.notes, *notes)]
    return stream.getvalue() + "\n" + "\n".join(f"# {line}" for line in lines)


def as_json(prepared: Prepared, tracking: Tracking, notes: Sequence[str] = ()) -> dict[str, Any]:
    """The same for programs; `search` is a search file with every default filled in."""
    search, (size, continuous), tokens = prepared.search, prepared.size(), prepared.tokens
    sets = {"training": tokens.train, "evaluation": tokens.evaluation, **tokens.also}
    starts = {start.label: prepared.configuration(start.params) for start in prepared.starts.points}
    return {
        "search": search.model_dump(mode="json", exclude_none=True),
        "space": {"configurations": size, "continuous": continuous},
        "modules": {name: found.targets for name, found in prepared.resolved.items()},
        "model": {"parameters": prepared.facts.parameters, "linear_modules": len(prepared.facts.linears)},
        "data": {name: {"rows": len(rows), "tokens": int(rows.offsets[-1])} for name, rows in sets.items()},
        "labels": tokens.labels,
        "references": prepared.references(),
        "devices": [{"name": o.name, "count": o.count, "free_bytes": o.bytes} for o in prepared.placement.types],
        "memory_predicted": prepared.memory is not None,
        "objectives": {objective.name: objective.direction for objective in search.objective_list},
        "rungs": prepared.rungs,
        "start_points": {label: lora.model_dump(mode="json") for label, lora in starts.items()},
        "downloads": prepared.downloads,
        "mlflow": {"uri": shown(tracking.uri), "source": tracking.source, "problem": tracking.problem},
        "notes": [*prepared.notes, *notes],
    }
