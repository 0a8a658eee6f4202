"""A trial's adapter as a model of MLflow's own flavor for transformers, so that MLflow's own loader gives it back.

The base is named, not copied, where its files say all: a folder, or a commit of a hub's repository. A quantized base,
and one with labels of the search's own, is stored with the adapter, because that loader takes neither a quantization
nor labels.
"""

from __future__ import annotations

from lorafront.search.environment import heavy_imports  # isort: skip  # before MLflow and transformers

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorafront.search.recipes import facts
from lorafront.search.study_table import StudyTable, TrialRecord

if TYPE_CHECKING:
    from mlflow.models import Model
    from peft import PeftModel
    from transformers import PreTrainedModel

PIPELINES = {  # of transformers, one of which MLflow's loader makes
    "AutoModelForCausalLM": "text-generation",
    "AutoModelForSequenceClassification": "text-classification",
}
FLAVOR = "transformers"


@dataclass(frozen=True)
class AdapterModel:
    """What is saved.

    Attributes:
        table: the study.
        trial: at full fidelity.
        checkpoint: its adapter and how its base is loaded.
    """

    table: StudyTable
    trial: TrialRecord
    checkpoint: Path

    @cached_property
    def _loaded_as(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.checkpoint / "base.json").read_text(encoding="utf-8"))
        return found

    @property
    def pipeline(self) -> str | None:
        """The pipeline that the loader makes of it; None where transformers has none."""
        return PIPELINES.get(self._loaded_as["auto_class"])

    @property
    def stored(self) -> bool:
        """Whether the base has to be stored with the adapter."""
        return bool(self._loaded_as["bitsandbytes"] or self._loaded_as["arguments"])

    @property
    def base(self) -> str:
        """What the loader takes for the base, in words."""
        model = self.table.search.model
        if self.stored:
            return f"{model.name} in {self.trial.lora.quantization}, stored with the adapter"
        return f"{model.name}{f' at {model.revision}' if model.revision else ''}, not copied"

    def save(self, path: Path, described: Model) -> None:
        """Write it; loads the base as the trial did.

        Args:
            path: folder to write.
            described: MLflow's description of the model, which is filled and written with it.
        """
        with heavy_imports("transformers"):
            import mlflow.transformers

        from lorafront.trainables.models import dtype_named, load_tokenizer

        base = self.table.search.model
        plain, apart = self._base(), path.with_name("base")
        if self.stored:  # without the adapter, whose parts MLflow would save with the base's
            plain.save_pretrained(str(apart))
        folder = str(apart) if self.stored else base.name if Path(base.name).is_dir() else None
        mlflow.transformers.save_model(
            {"model": self._with_adapter(plain), "tokenizer": load_tokenizer(base)},
            str(path),
            mlflow_model=described,
            task=self.pipeline,
            torch_dtype=dtype_named(str(self.trial.measurements["compute_dtype"])),
            base_model_path=folder,
            model_card=self._card(),
            pip_requirements=self._requirements(),
        )
        flavor = described.flavors[FLAVOR]
        flavor["source_model_name"] = base.name
        for name in [name for name in flavor if name.endswith("_revision")]:
            flavor[name] = base.revision or flavor[name]  # MLflow takes the newest commit, not that of the search
        if self.stored:  # as MLflow has it where it stores a base
            apart.rename(path / "model")
            flavor["model_binary"] = "model"
            del flavor["local_base_model_path"]
        described.save(str(path / "MLmodel"))

    def _base(self) -> PreTrainedModel:
        """As the trial had it."""
        from lorafront.trainables.frozen_base import FrozenBase
        from lorafront.trainables.task import task_named

        search = self.table.search
        labels = tuple(self._loaded_as["arguments"].get("id2label", {}).values())
        task = task_named(search.task, search.code_folder)
        plain = FrozenBase(search.model, task, self.trial.lora.quantization, labels).model
        if labels:
            plain.config.pad_token_id = self._loaded_as["pad_token_id"]  # what fills up a batch
        return plain

    def _with_adapter(self, plain: PreTrainedModel) -> PeftModel:
        from peft import PeftModel

        found: PeftModel = PeftModel.from_pretrained(plain, str(self.checkpoint / "adapter"))
        return found.eval()

    def _requirements(self) -> list[str]:
        """What loading it needs. MLflow's own list would have torchvision, which no language model needs."""
        packages = ["accelerate", "mlflow", "peft", "torch", "transformers"]
        packages += ["bitsandbytes"] if self._loaded_as["bitsandbytes"] else []
        return [f"{name}=={version(name).split('+')[0]}" for name in packages]

    def _card(self) -> Any:
        """The facts, in place of the base's own card, for which MLflow would ask the hub."""
        from huggingface_hub import ModelCard

        lines = "\n".join(f"- {line}" for line in facts(self.table, self.trial))
        return ModelCard(f"---\nlibrary_name: peft\n---\n{lines}\n")
