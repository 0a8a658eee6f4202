"""A trial's base with its adapter merged into it, as a model of its own in 16 or 32 bits, measured as the trial was.

An adapter of a quantized base was trained to correct the rounded weights. So two merges are made: into the weights as
they were rounded, and into the original ones (the usual, naive merge). Both are measured on the evaluation rows of the
search, the better one is kept, and its README says both.
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel

from lorafront.search.recipes import facts
from lorafront.search.study_table import StudyTable, TrialRecord
from lorafront.spaces.errors import InvalidInput
from lorafront.spaces.quantization import UNQUANTIZED
from lorafront.trainables.checkpoint import ASIDE, write_json, write_text
from lorafront.trainables.evaluate import tally
from lorafront.trainables.frozen_base import FrozenBase
from lorafront.trainables.models import device, dtype_named, load_tokenizer
from lorafront.trainables.task import task_named

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.trainables.data import TokenData

OF_DTYPE = {dtype: name for name, dtype in UNQUANTIZED.items()}
ROUNDED, ORIGINAL = "the rounded weights that it was trained on", "the original weights"


def write_merged(table: StudyTable, trial: TrialRecord, checkpoint: Path, tokens: TokenData, out: Path) -> None:
    """Write the merged model, its tokenizer, and a README with what it measures beside what the trial did.

    Args:
        table: the study.
        trial: at full fidelity.
        checkpoint: of the trial.
        tokens: the rows of the search.
        out: folder to write.

    Raises:
        InvalidInput: this adapter cannot be merged.
    """
    measured: dict[str, dict[str, float]] = {}
    kept, least = "", float("inf")
    aside = out.with_name(f"{out.name}{ASIDE}merge")
    for into, model in _merges(table, trial, checkpoint, tokens):
        model.save_pretrained(str(aside))
        del model
        measured[into] = _measured(table, trial, aside, tokens)
        if measured[into]["eval_loss"] < least:
            kept, least = into, measured[into]["eval_loss"]
            shutil.rmtree(out, ignore_errors=True)
            aside.rename(out)
        shutil.rmtree(aside, ignore_errors=True)
    if not kept:
        raise InvalidInput(f"trial {trial.number} merged gives no finite loss, so it is not written")
    load_tokenizer(table.search.model).save_pretrained(str(out))
    own = {name: trial.measurements[name] for name in measured[kept] if name in trial.measurements}
    said = {"merged_into": kept, "measured": measured, "trial_measured": own}
    write_json(out / "merged.json", {"search": table.search.name, "trial": trial.number, **said})
    write_text(out / "README.md", _readme(table, trial, kept, measured, own))


def _merges(
    table: StudyTable, trial: TrialRecord, checkpoint: Path, tokens: TokenData
) -> Iterator[tuple[str, PreTrainedModel]]:
    """(into what, merged model), one at a time."""
    search, kind = table.search, trial.lora.quantization
    task = task_named(search.task, search.code_folder)
    stored = OF_DTYPE[str(trial.measurements["compute_dtype"])]
    for into, quantization in ((ROUNDED, kind), (ORIGINAL, stored)) if kind != stored else ((ORIGINAL, kind),):
        base: Any = FrozenBase(search.model, task, quantization, tokens.labels).model
        if quantization != stored:
            base = base.dequantize()
        peft_model = PeftModel.from_pretrained(base, str(checkpoint / "adapter"))
        _refuse_tied(peft_model, trial)
        merged: PreTrainedModel = peft_model.merge_and_unload(safe_merge=True)
        merged.config.pad_token_id = tokens.pad_id
        del base, peft_model
        yield into, merged
        del merged
        gc.collect()


def _refuse_tied(model: PeftModel, trial: TrialRecord) -> None:
    """An adapter on an output layer that shares its weights with the embedding would change both."""
    plain = model.get_base_model()
    if not plain.config.tie_word_embeddings or plain.get_output_embeddings() is None:
        return
    if hasattr(plain.get_output_embeddings(), "lora_A"):
        raise InvalidInput(
            f"trial {trial.number} adapts the output layer, which shares its weights with the embedding, so it cannot "
            "be merged; take the format peft"
        )


def _measured(table: StudyTable, trial: TrialRecord, folder: Path, tokens: TokenData) -> dict[str, float]:
    """What the search's own evaluation says of a merged model, loaded as whoever uses it will."""
    search = table.search
    task = task_named(search.task, search.code_folder)
    dtype = dtype_named(str(trial.measurements["compute_dtype"]))
    model = task.auto_class().from_pretrained(str(folder), dtype=dtype, device_map={"": device()})
    size = search.training.eval_batch_size or trial.lora.batch_size
    return task.metrics(tally(model, task, tokens.evaluation, tokens.pad_id, size, model.device))


def _readme(
    table: StudyTable, trial: TrialRecord, kept: str, measured: dict[str, dict[str, float]], own: dict[str, Any]
) -> str:
    names = list(own)
    compared = {f"the trial: adapter on its base in {trial.lora.quantization}": own}
    for into, found in measured.items():
        compared[f"merged into {into}{' (this folder)' if into == kept else ''}"] = found
    rows = [f"| {what} | {' | '.join(f'{found[name]:.6g}' for name in names)} |" for what, found in compared.items()]
    lines = [
        f"# Trial {trial.number} of lorafront search {table.search.name}, merged",
        "",
        *(f"- {line}" for line in facts(table, trial)),
        "",
        "Measured on the evaluation rows of the search by its own evaluation:",
        "",
        f"| | {' | '.join(names)} |",
        f"|{'---|' * (len(names) + 1)}",
        *rows,
    ]
    return "\n".join(lines) + "\n"
