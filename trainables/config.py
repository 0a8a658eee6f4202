"""What a trial needs to know, frozen and JSON-able: model, data, training, and one trial built from them.

`ModelConfig`, `DataConfig` and `TrainingConfig` are sections of a search file; every field has a unit and a default.
No torch here, so a file can be checked without importing it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from lorafront.spaces.errors import did_you_mean
from lorafront.spaces.lora import Count, LoraConfiguration, NotNegative, Scheduler, Share
from lorafront.spaces.parameters import NameParameter, Real, Whole
from lorafront.trainables.formats import FORMATS
from lorafront.trainables.user_code import is_reference

MAX_RUNGS = 16
Optimizer = Literal["adamw", "paged_adamw_8bit"]
Attention = Literal["auto", "sdpa", "eager", "flash_attention_2"]


class Section(BaseModel):
    """Frozen, and nothing unknown passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelConfig(Section):
    """The frozen base. In YAML `model: NAME` is short for `model: {name: NAME}`."""

    name: Annotated[str, Field(min_length=1)] = Field(description="folder, or name on the Hugging Face hub")
    revision: str | None = Field(default=None, description="commit, tag or branch on the hub; none is the newest")
    attention: Attention = Field(default="auto", description="attention implementation; auto is the model's own choice")


def _known_format(name: object) -> object:
    if not isinstance(name, str):
        raise PydanticCustomError("rule", "must be text (got {value})", {"value": repr(name)})
    if name not in FORMATS and not is_reference(name):
        raise PydanticCustomError(
            "rule",
            "must be one of {known}, or your own as module:name (got {value}).{hint}",
            {"known": ", ".join(FORMATS), "value": repr(name), "hint": did_you_mean(name, FORMATS)},
        )
    return name


def _second_set(raw: object) -> object:
    return {"path": raw} if isinstance(raw, str) else raw


Format = Annotated[str, BeforeValidator(_known_format)]
Text = Annotated[str, Field(min_length=1)]


class RowSource(Section):
    """Where rows are and what their columns are called."""

    path: Text = Field(description="hub name, file, or folder")
    columns: dict[Text, Text] = Field(
        default_factory=dict, description="the format's name of a column to the data's own, where they differ"
    )
    header: Annotated[list[Text], Field(min_length=1)] | None = Field(
        default=None, description="names of the columns of a CSV or TSV file that has no header line"
    )
    config_name: str | None = Field(default=None, description="configuration of a hub data set")
    revision: str | None = Field(default=None, description="commit, tag or branch of a hub data set")


class SecondSet(RowSource):
    """Rows that a trial is also evaluated on: what adapting to the others forgets."""

    format: Format | None = Field(default=None, description="how a row becomes tokens; none is that of the main data")
    rows: Count | None = Field(default=None, description="rows to evaluate on; none is 500 at most")


SetName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class DataConfig(RowSource):
    """What to adapt to."""

    eval_path: Text | None = Field(
        default=None, description="evaluation data, where it is a file or data set of its own"
    )
    test_path: Text | None = Field(
        default=None,
        description="held-out data that no search sees, for `confirm`; none is the data's own test split, else rows "
        "that the search leaves",
    )
    also_evaluate: dict[SetName, Annotated[SecondSet, BeforeValidator(_second_set)]] = Field(
        default_factory=dict, description="second evaluation sets; the loss on NAME is the objective eval_NAME_loss"
    )
    format: Format = Field(default="text", description="how a row becomes tokens (trainables/formats.py)")
    max_length: Annotated[Whole, Ge(2)] = Field(default=512, description="tokens per row at most")
    train_rows: Count | None = Field(default=None, description="rows to train on; none is all")
    eval_rows: Count | None = Field(default=None, description="rows to evaluate on; none is a tenth, 500 at most")
    split_seed: Annotated[Whole, Ge(0)] = Field(default=0, description="seed of the train/evaluation split")
    evaluate_on: Literal["evaluation", "held_out"] = Field(
        default="evaluation", description="held_out: the rows that the search never saw; what `confirm` sets"
    )


class TrainingConfig(Section):
    """How long and how a trial trains. One of `epochs`, `steps`, `rows` is the length."""

    epochs: Annotated[Real, Gt(0)] | None = Field(default=None, description="passes over the training rows")
    steps: Count | None = Field(default=None, description="optimizer steps")
    rows: Count | None = Field(default=None, description="training rows seen, repeats counted")
    rungs: NameParameter[Count] = Field(
        default=4, description="how many points of comparison, each at twice the rows of the one before; or their rows"
    )
    batch_size: Count = Field(default=8, description="rows per forward and backward pass")
    gradient_accumulation: Count = Field(default=1, description="passes per optimizer step")
    eval_batch_size: Count | None = Field(default=None, description="rows per evaluation pass; none is batch_size")
    optimizer: Optimizer = Field(default="adamw", description="torch AdamW, or bitsandbytes' paged 8-bit AdamW")
    weight_decay: NotNegative = Field(default=0.0, description="decoupled weight decay")
    warmup: Share = Field(default=0.03, description="share of the steps over which the learning rate rises")
    scheduler: Scheduler = Field(default="linear", description="learning rate after the warm-up")
    max_grad_norm: Annotated[Real, Gt(0)] = Field(default=1.0, description="gradients are clipped to this L2 norm")
    gradient_checkpointing: Annotated[bool, Field(strict=True)] = Field(
        default=False, description="recompute activations in the backward pass: less memory, more time"
    )
    execution: Literal["given", "auto"] = Field(
        default="given",
        description="auto: checkpointing, passes per step and paging are the quickest that fit; the step's rows stay",
    )
    checkpoint_minutes: Annotated[Real, Gt(0)] = Field(
        default=5.0,
        description="minutes after which a checkpoint is written between rungs; a crash costs no more",
    )
    loader_workers: Annotated[Whole, Ge(0)] = Field(default=0, description="processes that prepare batches")

    @model_validator(mode="before")
    @classmethod
    def _one_epoch(cls, raw: Any) -> Any:
        if isinstance(raw, dict) and not any(raw.get(key) is not None for key in ("epochs", "steps", "rows")):
            return {**raw, "epochs": 1}
        return raw

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        given = [key for key in ("epochs", "steps", "rows") if getattr(self, key) is not None]
        if len(given) > 1:
            raise PydanticCustomError(
                "rule", "give one of epochs, steps, rows (got {keys})", {"keys": ", ".join(given)}
            )
        if isinstance(self.rungs, int) and self.rungs > MAX_RUNGS:
            raise PydanticCustomError(
                "rule",
                "at most {most} rungs (got {rungs}); their rows go into a list",
                {"most": MAX_RUNGS, "rungs": self.rungs},
            )
        if isinstance(self.rungs, list) and sorted(set(self.rungs)) != self.rungs:
            raise PydanticCustomError("rule", "rungs must rise (got {rungs})", {"rungs": self.rungs})
        return self

    def defaults(self) -> dict[str, Any]:
        """What a configuration takes from here unless the space searches it."""
        names = ("batch_size", "gradient_accumulation", "weight_decay", "warmup", "scheduler")
        return {name: getattr(self, name) for name in names}


class TrialConfig(Section):
    """All that one training session needs. Built by the driver, sent to a worker as JSON."""

    task: str
    model: ModelConfig
    training: TrainingConfig
    lora: LoraConfiguration
    targets: tuple[str, ...] = Field(description="PEFT target modules, resolved for this model")
    rungs: tuple[int, ...] = Field(
        description="training rows at which the trial reports; the last one is full fidelity"
    )
    seed: int
    threads: int = Field(default=1, description="CPU threads of the session")
    memory_cap: int | None = Field(default=None, description="bytes of tensors that it may hold; none is no limit")
    tokens: Path = Field(description="file of token rows, prepared once and shared by all trials (trainables/data.py)")
    labels: tuple[str, ...] = Field(default=(), description="names of the classes, in the order of their numbers")
    functions: dict[str, str] = Field(
        default_factory=dict, description="the user's own measurements: name to `module:function`"
    )
    code: Path | None = Field(default=None, description="folder of the user's own modules")

    @property
    def rows(self) -> int:
        """Training rows at full fidelity."""
        return self.rungs[-1]

    @property
    def rows_per_step(self) -> int:
        """Rows that one optimizer step consumes."""
        return self.lora.batch_size * self.lora.gradient_accumulation
