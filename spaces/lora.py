"""The LoRA search space, and one configuration out of it.

`LoraSpace` is the `space` of a search file. `LoraConfiguration` is one point with every value resolved (alpha absolute,
batch size filled in from `training`), so two points that train the same thing are equal and share a fingerprint.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from lorafront.spaces import presets
from lorafront.spaces.modules import in_order
from lorafront.spaces.parameters import NameParameter, NumberParameter, Range, Real, Suggests, Whole, ask, count
from lorafront.spaces.quantization import UNQUANTIZED, Quantization

Bias = Literal["none", "lora_only", "all"]
Scheduler = Literal["linear", "cosine", "constant"]
Method = Literal["lora", "full"]

Positive = Annotated[Real, Gt(0)]
Count = Annotated[Whole, Ge(1)]
Share = Annotated[Real, Ge(0), Lt(1)]
NotNegative = Annotated[Real, Ge(0)]
Seed = Annotated[Whole, Ge(0), Le(2**31 - 1)]


class AlphaRatio(BaseModel):
    """alpha as a multiple of the rank (LoRA scales its update by alpha / rank)."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    ratio: NumberParameter[Positive] = Field(description="alpha / rank")


class AlphaAbsolute(BaseModel):
    """alpha as a number of its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    absolute: NumberParameter[Positive] = Field(description="alpha")


def _alpha_form(raw: object) -> str:
    if isinstance(raw, AlphaRatio) or (isinstance(raw, dict) and "low" not in raw and "absolute" not in raw):
        return "ratio"
    return "absolute"


def _alpha_as_mapping(raw: object) -> object:
    """`alpha: 32`, `alpha: [16, 32]` and `alpha: {low: …}` are short for `{absolute: …}`."""
    if isinstance(raw, (int, float, list, Range)) or (isinstance(raw, dict) and "low" in raw):
        return {"absolute": raw}
    if isinstance(raw, dict) and {"ratio", "absolute"} <= set(raw):
        raise PydanticCustomError("rule", "give ratio or absolute, not both")
    return raw


Alpha = Annotated[
    Annotated[AlphaRatio, Tag("ratio_form")] | Annotated[AlphaAbsolute, Tag("absolute_form")],
    Discriminator(lambda raw: f"{_alpha_form(raw)}_form"),
    BeforeValidator(_alpha_as_mapping),
]
ALPHA_FORMS = frozenset({"ratio_form", "absolute_form"})


def _module_set(raw: object) -> object:
    """A list of names inside the list of choices is one set: `[q_proj, v_proj]` becomes `q_proj+v_proj`."""
    if isinstance(raw, (list, tuple)) and raw and all(isinstance(name, str) for name in raw):
        raw = "+".join(raw)
    parts = [part.strip() for part in raw.split("+")] if isinstance(raw, str) else []
    if not parts or not all(parts):
        raise PydanticCustomError(
            "rule",
            "must be a group such as attention or query+value, or names of linear modules (got {value})",
            {"value": repr(raw)},
        )
    return "+".join(in_order(parts))


ModuleSet = Annotated[str, BeforeValidator(_module_set)]


# What a configuration that trains every weight has in the fields that speak of adapters; it does not say them.
NO_ADAPTER: dict[str, Any] = {"rank": 1, "alpha": 1.0, "modules": "all-linear", "dropout": 0.0, "bias": "none"}


class LoraConfiguration(BaseModel):
    """One resolved point of the space: all that a trial trains, apart from model, data and length."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rank: Count = Field(description="LoRA rank r (Hu et al. 2021)")
    alpha: Positive = Field(description="LoRA alpha, absolute; the update is scaled by alpha / rank")
    modules: str = Field(description="module groups or names, joined with +")
    quantization: Quantization = Field(description="how the frozen base is stored")
    dropout: Share = Field(description="probability of the dropout before A")
    bias: Bias = Field(description="which biases are trained (PEFT's meaning)")
    learning_rate: Positive = Field(description="peak learning rate of AdamW")
    batch_size: Count = Field(description="rows per forward and backward pass")
    gradient_accumulation: Count = Field(description="passes per optimizer step")
    weight_decay: NotNegative = Field(description="decoupled weight decay of AdamW")
    warmup: Share = Field(description="share of the optimizer steps that warm up")
    scheduler: Scheduler = Field(description="shape of the learning rate after the warm-up")
    seed: Seed | None = Field(default=None, description="of a replicate; none is the seed of its search")
    method: Method = Field(default="lora", description="full: every weight trains; a baseline of `compare`")

    @model_validator(mode="before")
    @classmethod
    def _whole(cls, raw: Any) -> Any:
        """Full fine-tuning has no adapter, and weights that are not quantized: only such can train."""
        if not isinstance(raw, dict) or raw.get("method") != "full":
            return raw
        stored = raw.get("quantization")
        return {**raw, **NO_ADAPTER, "quantization": stored if stored in UNQUANTIZED else "bf16"}

    @model_serializer(mode="wrap")
    def _what_it_has(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only replicates say their seed and only full fine-tuning its method: others read as they always did."""
        said: dict[str, Any] = serialize(self)
        silent = {*([] if self.seed is not None else ["seed"]), *(NO_ADAPTER if self.method == "full" else ["method"])}
        return {name: value for name, value in said.items() if name not in silent}

    def with_seed(self, seed: int | None) -> LoraConfiguration:
        """The same as a replicate; None is the configuration itself."""
        return self.model_copy(update={"seed": seed})

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly when every resolved value is."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """Short name for people, such as `r16 a32 attention nf4`."""
        seed = "" if self.seed is None else f" seed {self.seed}"
        if self.method == "full":
            return f"full fine-tuning {self.quantization}{seed}"
        return f"r{self.rank} a{self.alpha:g} {self.modules} {self.quantization}{seed}"


HYPERPARAMETERS = tuple(name for name in LoraConfiguration.model_fields if name not in {"seed", "method"})


class LoraSpace(BaseModel):
    """What varies: each field is a fixed value, a list of choices, or a range. Defaults: `presets.DEFAULT_SPACE`.

    The fields from `batch_size` on belong to `training`; name them here to search over them instead.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    rank: NumberParameter[Count] = Field(default=presets.DEFAULT_SPACE["rank"])
    alpha: Alpha = Field(
        default=presets.DEFAULT_SPACE["alpha"],
        description="{ratio: …} times the rank, or a number of its own; the update is scaled by alpha / rank",
    )
    modules: NameParameter[ModuleSet] = Field(default=presets.DEFAULT_SPACE["modules"])
    quantization: NameParameter[Quantization] = Field(default=presets.DEFAULT_SPACE["quantization"])
    dropout: NumberParameter[Share] = Field(default=presets.DEFAULT_SPACE["dropout"])
    bias: NameParameter[Bias] = Field(default=presets.DEFAULT_SPACE["bias"])
    learning_rate: NumberParameter[Positive] = Field(default=presets.DEFAULT_SPACE["learning_rate"])
    batch_size: NumberParameter[Count] | None = None
    gradient_accumulation: NumberParameter[Count] | None = None
    weight_decay: NumberParameter[NotNegative] | None = None
    warmup: NumberParameter[Share] | None = None
    scheduler: NameParameter[Scheduler] | None = None
    seed: NumberParameter[Seed] | None = Field(default=None, description="of replicates; `confirm` sets it")
    method: NameParameter[Method] | None = Field(default=None, description="of baselines; `compare` sets it")

    def parameters(self) -> dict[str, Any]:
        """Every parameter that the file sets, under the name that the sampler sees."""
        named = {name: getattr(self, name) for name in type(self).model_fields if name != "alpha"}
        alpha = (
            {"alpha_ratio": self.alpha.ratio} if isinstance(self.alpha, AlphaRatio) else {"alpha": self.alpha.absolute}
        )
        return {name: value for name, value in {**named, **alpha}.items() if value is not None}

    def ask(self, trial: Suggests, defaults: Mapping[str, Any]) -> LoraConfiguration:
        """Draw one configuration; `defaults` fills what belongs to `training` and is not searched."""
        drawn = {name: ask(parameter, name, trial) for name, parameter in self.parameters().items()}
        return resolve(drawn, defaults)

    def size(self) -> tuple[int, list[str]]:
        """(number of discrete configurations, names of the continuous parameters)."""
        counts = {name: count(parameter) for name, parameter in self.parameters().items()}
        return math.prod(n for n in counts.values() if n), [name for name, n in counts.items() if n is None]


def resolve(drawn: Mapping[str, Any], defaults: Mapping[str, Any]) -> LoraConfiguration:
    """A configuration from drawn values: the alpha ratio becomes absolute, the rest comes from `defaults`."""
    values = {**defaults, **drawn}
    if "alpha_ratio" in values:
        values["alpha"] = values.pop("alpha_ratio") * values["rank"]
    return LoraConfiguration(**values)
