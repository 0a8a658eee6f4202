"""Configurations as files that PEFT and transformers load, one folder per trial and an index of all.

A folder holds `adapter_config.json` and `adapter_model.safetensors` (an ordinary PEFT adapter, with the head where one
is trained), `bitsandbytes_config.json` where the base is quantized, `model_arguments.json` where the base needs some
(names of labels), `training_arguments.json` in the names of transformers, and a README with its numbers.
Other formats (search/recipes.py, search/merged.py) are added to that folder. No absolute path and no credential leaves
with it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.confirm import confirmation_of
from lorafront.search.confirmation_report import how_sure
from lorafront.search.front import as_json, front_of, values
from lorafront.search.paths import RootPaths, SearchPaths
from lorafront.search.placement import MACHINE, WORKER
from lorafront.search.read_only import refuse_imported
from lorafront.search.recipes import INDEX, MERGED, RECIPES, ROWS, check_task, recipe_of, write_recipes, write_rows
from lorafront.search.search_file import SearchFile
from lorafront.search.study_table import StudyTable, TrialRecord, read_study
from lorafront.search.tables import front_csv, number
from lorafront.spaces.errors import InvalidInput, NoFront, StateUnreadable
from lorafront.trainables.checkpoint import ASIDE, read_manifest, write_json, write_text
from lorafront.trainables.fault_points import reached
from lorafront.trainables.session import PREDICTED

if TYPE_CHECKING:
    from lorafront.trainables.data import TokenData

_ARGUMENTS = [
    'arguments = json.loads((here / "model_arguments.json").read_text())',
    'arguments["id2label"] = {int(number): label for number, label in arguments["id2label"].items()}',
]
FACTS = "lorafront.json"
PATHS = ("path", "eval_path", "test_path")  # of data
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def export_front(
    paths: SearchPaths, out: Path, numbers: Sequence[int] = (), formats: Sequence[str] = (),
    step: Callable[[int, int], None] = lambda _done, _all: None,
) -> list[Path]:  # fmt: skip
    """Export every front member, or the trials of the given numbers.

    Args:
        paths: of the search.
        out: folder to write.
        numbers: of trials; none is the front.
        formats: beside PEFT's own, which is always written.
        step: hears before each folder how many are done, of how many.

    Raises:
        NoFront: there is none yet.
        InvalidInput: `out` holds other things, a trial has no adapter, or a format cannot say the task.
        StateUnreadable: an adapter's files are not what their manifest says.
    """
    table = read_study(paths.study_db)
    refuse_imported(table.search, "export")
    chosen = chosen_trials(table, numbers)
    if not chosen:
        raise NoFront(f"search {paths.name!r} has no feasible trial at full fidelity yet")
    if out.exists() and not out.is_dir():
        raise InvalidInput(f"{out} is a file; give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / INDEX).is_file():
        raise InvalidInput(f"{out} holds other files; give a new folder")
    check_task(table, formats)
    recipes = [name for name in formats if name in RECIPES]
    tokens = tokens_of(table, paths) if formats else None
    model = model_from_here(table)
    if recipes and tokens is not None:
        from lorafront.search.recipe_rows import rows_of

        write_rows(rows_of(table.search, tokens), recipes, out)
    folders: list[Path] = []
    confirmed = confirmation_of(table, RootPaths(paths.folder.parent))
    for trial in chosen:
        step(len(folders), len(chosen))
        sure = tuple(how_sure(confirmed, trial.number)) if confirmed else ()
        place = out / f"trial-{trial.number:05d}"
        folder = Exported(table, trial, checkpoint_of(paths, trial), place, model, sure)
        folder.write(recipes, tokens if MERGED in formats else None)
        folders.append(folder.final)
    reached("mid_export")
    objectives = table.search.objective_list
    index = [
        {**entry, "folder": folder.name} for entry, folder in zip(as_json(chosen, objectives), folders, strict=True)
    ]
    # An earlier export into the same folder stays whole until the index says otherwise.
    write_json(out / INDEX, {"search": paths.name, "model": model, "trials": index})
    write_text(out / "index.csv", front_csv(table, chosen))
    write_text(out / "README.md", _index_readme(table, chosen, model))
    for stale in set(out.glob("trial-*")) - set(folders):
        shutil.rmtree(stale)
    if not recipes:
        shutil.rmtree(out / ROWS, ignore_errors=True)
    return folders


def tokens_of(table: StudyTable, paths: SearchPaths) -> TokenData:
    """The rows of a search; made again where they were deleted.

    Raises:
        InvalidInput: they were deleted, and the data is not there any more or is not what it was.
    """
    from lorafront.trainables.data import load

    root = RootPaths(paths.folder.parent)
    file = root.tokens / str(table.data["tokens"])
    if not file.is_file():
        from lorafront.search.preflight import check

        prepared = check(table.search, root, Path(), warm=False)
        if prepared.token_file.name != file.name:
            raise InvalidInput(f"the rows of {table.search.data.path} are not those that {paths.name} was trained on")
        prepared.store()
    return load(file)


def chosen_trials(table: StudyTable, numbers: Sequence[int]) -> list[TrialRecord]:
    """Trials at full fidelity by their numbers; the front where none is given.

    Raises:
        InvalidInput: one of them is not.
    """
    if not numbers:
        return [trial for trial in front_of(table) if trial.lora.method == "lora"]  # whatever else, it has no adapter
    complete = {trial.number: trial for trial in table.complete}
    for wanted in numbers:
        if wanted not in complete:
            raise InvalidInput(f"trial {wanted} did not finish at full fidelity; those that did: {sorted(complete)}")
        if complete[wanted].lora.method == "full":
            raise InvalidInput(f"trial {wanted} is a full fine-tuning: it has no adapter to export")
    return [complete[wanted] for wanted in numbers]


def model_from_here(table: StudyTable) -> str:
    """The base as `from_here` has it."""
    return from_here(table.search.model.name)


def from_here(name: str) -> str:
    """The hub's name, or the place as seen from the current folder: no absolute path leaves with an export."""
    return os.path.join(".", os.path.relpath(name)) if Path(name).is_absolute() else name  # noqa: PTH118  # Path drops ./


def settings(search: SearchFile) -> dict[str, Any]:
    """The sections of a search file that a training needs, so that `lorafront train` goes on from the folder alone."""
    kept = {"name", "model", "task", "data", "objectives", "training", "seed", "code"}
    found: dict[str, Any] = search.model_dump(mode="json", include=kept, exclude_none=True)
    found["model"]["name"] = from_here(search.model.name)
    sources = [found["data"], *found["data"].get("also_evaluate", {}).values()]
    for section, key in ((section, key) for section in sources for key in PATHS if key in section):
        section[key] = from_here(section[key])
    return {**found, **({"code": from_here(search.code)} if search.code else {})}


def checkpoint_of(paths: SearchPaths, trial: TrialRecord) -> Path:
    """Where a trial's adapter is.

    Raises:
        StateUnreadable: it has none.
    """
    if trial.last is None:
        raise StateUnreadable(f"trial {trial.number} has no result in {paths.study_db}")
    return paths.trial(trial.number, trial.epoch).checkpoint(trial.last.rows)


@dataclass(frozen=True)
class Exported:
    """The folder of one trial.

    Attributes:
        table: its study.
        trial: at full fidelity.
        checkpoint: its adapter and how its base is loaded.
        final: where the folder will stand.
        model: the base as seen from the current folder.
        sure: what replicates over seeds say of it, a line each.
    """

    table: StudyTable
    trial: TrialRecord
    checkpoint: Path
    final: Path
    model: str
    sure: tuple[str, ...] = ()

    def write(self, recipes: Sequence[str] = (), merge_on: TokenData | None = None) -> None:
        """Write it aside, then put it in the place of an older one; `merge_on`: rows to measure a merged model on."""
        aside, old = (self.final.with_name(f"{self.final.name}{ASIDE}{what}") for what in ("new", "old"))
        for left in (aside, old):
            shutil.rmtree(left, ignore_errors=True)
        self._fill(aside, recipes)
        if merge_on is not None:
            from lorafront.search.merged import write_merged

            write_merged(self.table, self.trial, self.checkpoint, merge_on, aside / MERGED)
        if self.final.exists():
            self.final.rename(old)
        aside.rename(self.final)
        shutil.rmtree(old, ignore_errors=True)

    def put_into(self, out: Path) -> None:
        """Write its files into a folder that is there."""
        self._fill(out, ())

    def _fill(self, out: Path, recipes: Sequence[str]) -> None:
        table, trial, adapter = self.table, self.trial, self.checkpoint / "adapter"
        read_manifest(self.checkpoint)  # raises where the adapter was cut or changed
        out.mkdir(parents=True, exist_ok=True)
        for name in ADAPTER_FILES:
            if not (adapter / name).is_file():
                raise StateUnreadable(f"{adapter / name} is missing")
        shutil.copyfile(adapter / ADAPTER_FILES[1], out / ADAPTER_FILES[1])
        config = json.loads((adapter / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        config["base_model_name_or_path"], config["target_modules"] = self.model, sorted(config["target_modules"])
        write_json(out / ADAPTER_FILES[0], config)
        base = json.loads((self.checkpoint / "base.json").read_text(encoding="utf-8"))
        for name, content in (
            ("bitsandbytes_config.json", base["bitsandbytes"]),
            ("model_arguments.json", base["arguments"]),
        ):
            if content:
                write_json(out / name, content)
        rows, dtype = (trial.last.rows if trial.last else 0), str(trial.measurements["compute_dtype"])
        arguments = training_arguments(table, trial, rows, dtype, on_cpu=on_cpu(trial.measurements))
        write_json(out / "training_arguments.json", arguments)
        write_json(out / FACTS, self._facts(rows, dtype))
        write_text(out / "README.md", _readme(self, base, Path(os.path.relpath(self.final))))
        if recipes:
            recipe = recipe_of(table, trial, config, base, arguments, self.final)
            write_recipes(replace(recipe, facts=(*recipe.facts, *self.sure)), recipes, out)

    def _facts(self, rows: int, dtype: str) -> dict[str, Any]:
        table, trial = self.table, self.trial
        return {
            "search": table.search.name, "trial": trial.number, "model": self.model, "dtype": dtype,
            "configuration": trial.lora.model_dump(mode="json"), "measurements": trial.measurements,
            "train_rows": rows, "seed": table.seed_of(trial), "settings": settings(table.search),
            **({"execution": trial.execution.model_dump()} if trial.execution else {}),
        }  # fmt: skip


def on_cpu(measured: dict[str, Any]) -> bool:
    """Whether it trained without a GPU: by who measured its peak, and where nobody has, by where it was placed."""
    if measured.get("peak_vram_source") == PREDICTED:
        return measured.get("device_type") in {None, WORKER, MACHINE}
    return measured.get("peak_vram_source") == "cpu_live_storages"


def training_arguments(table: StudyTable, trial: TrialRecord, rows: int, dtype: str, *, on_cpu: bool) -> dict[str, Any]:
    """The training in the names of `transformers.TrainingArguments`."""
    lora, training = trial.lora, table.search.training
    if trial.execution is not None:
        lora, training = trial.execution.applied(lora, training)
    steps = -(-rows // (lora.batch_size * lora.gradient_accumulation))
    return {
        "learning_rate": lora.learning_rate,
        "per_device_train_batch_size": lora.batch_size,
        "per_device_eval_batch_size": training.eval_batch_size or lora.batch_size,
        "gradient_accumulation_steps": lora.gradient_accumulation,
        "max_steps": steps,
        "weight_decay": lora.weight_decay,
        "warmup_steps": round(lora.warmup * steps),
        "lr_scheduler_type": "constant_with_warmup" if lora.scheduler == "constant" else lora.scheduler,
        "max_grad_norm": training.max_grad_norm,
        "optim": "adamw_torch" if training.optimizer == "adamw" else "paged_adamw_8bit",
        "gradient_checkpointing": training.gradient_checkpointing,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "seed": table.seed_of(trial),
        **({"use_cpu": True} if on_cpu else {}),  # transformers refuses bf16 on a CPU without it
    }


def _numbers(table: StudyTable, trial: TrialRecord) -> list[str]:
    objectives = table.search.objective_list
    pairs = zip(values(trial, objectives), objectives, strict=True)
    return [f"| {o.label} | {number(value, o)} {o.unit} |" for value, o in pairs]


def _readme(exported: Exported, base: dict[str, Any], folder: Path) -> str:
    table, trial, model = exported.table, exported.trial, exported.model
    lora, measured = trial.lora, trial.measurements
    references = [
        f"| {name}: {o.label} | {number(found[o.name], o)} |"
        for name, found in table.references.items()
        for o in table.search.objective_list
        if o.name in found and (lora.quantization in name.split() or not name.startswith("bare base"))
    ]
    lines = [
        f"# Trial {trial.number} of lorafront search {table.search.name}",
        "",
        f"LoRA rank {lora.rank}, alpha {lora.alpha:g}, {lora.modules}, dropout {lora.dropout:.3g}, bias {lora.bias},",
        f"learning rate {lora.learning_rate:.3g}, base {model} in {lora.quantization}, task {table.search.task},",
        f"{trial.last.rows if trial.last else 0} training rows, seed {table.seed_of(trial)}.",
        "",
        *(line for told in exported.sure for line in (told[0].upper() + told[1:] + ".", "")),
        "| measured | |",
        "|---|---|",
        *_numbers(table, trial),
        *references,
        f"| source of peak VRAM | {measured.get('peak_vram_source', '')} |",
        "",
        *_loading(model, base, str(measured["compute_dtype"]), folder),
    ]
    return "\n".join(lines) + "\n"


def _loading(model: str, base: dict[str, Any], dtype: str, folder: Path) -> list[str]:
    """Lines of Python that load the base as it was trained on, and the adapter."""
    quantized, arguments = base["bitsandbytes"], base["arguments"]
    load = 'BitsAndBytesConfig(**json.loads((here / "bitsandbytes_config.json").read_text()))'
    said = {"revision": base["revision"], "attn_implementation": base["attention"]}
    return [
        "```python",
        "import json, torch",
        "from pathlib import Path",
        "from peft import PeftModel",
        f"from transformers import {base['auto_class']}, AutoTokenizer" + (", BitsAndBytesConfig" if quantized else ""),
        "",
        "# Both as seen from the folder in which they were exported.",
        f'here, base_model = Path("{folder.as_posix()}"), "{model}"',
        *(_ARGUMENTS if arguments else []),
        f"base = {base['auto_class']}.from_pretrained(",
        "    base_model,",
        f"    dtype=torch.{dtype},",
        *([f"    quantization_config={load},"] if quantized else []),
        *(f"    {name}={value!r}," for name, value in said.items() if value),
        *(["    **arguments,"] if arguments else []),
        *(["    ignore_mismatched_sizes=True,  # the head comes with the adapter"] if arguments else []),
        ")",
        *([f"base.config.pad_token_id = {base['pad_token_id']}  # what fills up a batch"] if arguments else []),
        "model = PeftModel.from_pretrained(base, here).eval()",
        "tokenizer = AutoTokenizer.from_pretrained(base_model)",
        "```",
    ]


def _index_readme(table: StudyTable, chosen: Sequence[TrialRecord], model: str) -> str:
    objectives = table.search.objective_list
    head = " | ".join(["folder", "configuration", *(o.label for o in objectives)])
    rows = [
        " | ".join(
            [
                f"[trial-{trial.number:05d}](trial-{trial.number:05d}/README.md)",
                trial.lora.label,
                *(number(value, o) for value, o in zip(values(trial, objectives), objectives, strict=True)),
            ]
        )
        for trial in chosen
    ]
    rule = " | ".join(["---"] * (2 + len(objectives)))
    return "\n".join([f"# Front of {table.search.name} on {model}", "", f"| {head} |", f"| {rule} |"]
                     + [f"| {row} |" for row in rows]) + "\n"  # fmt: skip
