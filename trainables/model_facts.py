"""What can be known of a model from its config file: linear modules, biases, positions, heads. Reads no weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import MODEL_FOR_MASKED_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.spaces.modules import is_head
from lorafront.trainables.mixed_rows import why_mixed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from lorafront.spaces.lora import Bias
    from lorafront.trainables.task import Task


@dataclass(frozen=True)
class ModelFacts:
    """What can be known of a model from its config file.

    Attributes:
        linears: name to (inputs, outputs) of every linear module, the head included.
        biases: name to number of elements of every bias that PEFT can train, those of the head included.
        positions: longest input that the model takes; None where it does not say.
        vocabulary: rows of the token embedding.
        parameters: number of parameters, tied ones once.
        dropout: the base drops something while it trains, whatever the adapter does.
        odd_head: kinds of modules beside plain linear ones that a new head of the task has parameters in.
        mixed: what mixes the rows of a batch, in words; empty where nothing is known to.
    """

    linears: dict[str, tuple[int, int]]
    biases: dict[str, int]
    positions: int | None
    vocabulary: int
    parameters: int
    dropout: bool = False
    odd_head: tuple[str, ...] = ()
    mixed: str = ""

    @cached_property
    def biased(self) -> frozenset[str]:
        """Names of the modules that have a bias, without the head: a new one is trained whatever `bias` says."""
        return frozenset(name.rsplit(".", 1)[0] for name in self.biases if not is_head(name))

    def same_bias(self, bias: Bias, adapted: Collection[str]) -> Bias:
        """The least `bias` that trains the same as the given one where the modules of these names are adapted."""
        if bias == "all" and self.biased <= set(adapted):
            bias = "lora_only"
        return "none" if bias == "lora_only" and not self.biased & set(adapted) else bias


def model_facts(config: PretrainedConfig, task: Task, labels: tuple[str, ...] = ("0", "1")) -> ModelFacts:
    """Build the model on the meta device (no weights, no memory) and read what a space needs.

    Raises:
        InvalidInput: the model is not of the kind that the task trains.
    """
    if task.peft_type == "CAUSAL_LM" and _sees_what_follows(config):
        message = f"{config.model_type} is an encoder: it sees the words that follow; task: seq_cls is what it is for"
        raise InvalidInput([Problem(("task",), message)])
    try:
        model = without_weights(config, task, labels)
    except ValueError as error:
        raise InvalidInput(
            [
                Problem(
                    ("task",),
                    f"a model of type {config.model_type} cannot be trained for {task.name} "
                    f"({str(error).strip().splitlines()[0][:120]})",
                )
            ]
        ) from error
    return ModelFacts(
        linears=dict(_linears(model)),
        # PEFT's own test: T5's `relative_attention_bias.weight` is none.
        biases={name: p.numel() for name, p in model.named_parameters() if f".{name}".endswith(".bias")},
        positions=_positions(config),
        vocabulary=model.get_input_embeddings().weight.shape[0],
        parameters=sum(p.numel() for p in model.parameters()),
        dropout=_drops(config),
        odd_head=_odd_head(model) if task.new_head else (),
        mixed=why_mixed(model, head_modules(model) if task.new_head else ()),
    )


def _drops(config: PretrainedConfig) -> bool:
    """By the config: attention's own dropout is no module."""
    shares = {**config.to_dict(), **config.get_text_config().to_dict()}
    return any("drop" in name and isinstance(share, float) and share > 0 for name, share in shares.items())


def _odd_head(model: PreTrainedModel) -> tuple[str, ...]:
    """Even where the weights have that part, and it is not new: the config does not tell."""
    parts = (part for name in head_modules(model) for part in model.get_submodule(name).modules())
    kinds = {type(part).__name__ for part in parts if next(part.parameters(recurse=False), None) is not None}
    return tuple(sorted(kinds - {"Linear"}))


def natural_task(config: PretrainedConfig) -> str:
    """The task that a model of this architecture is usually fine-tuned for."""
    if config.is_encoder_decoder:
        return "seq_2_seq_lm"
    return "seq_cls" if _sees_what_follows(config) else "causal_lm"


def _sees_what_follows(config: PretrainedConfig) -> bool:
    return type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder


def without_weights(
    config: PretrainedConfig,
    task: Task,
    labels: tuple[str, ...],
    dtype: torch.dtype | None = None,
    attention: str | None = None,
) -> PreTrainedModel:
    """The task's model on the meta device.

    Args:
        config: of the model.
        task: which head.
        labels: names of the classes.
        dtype: of its parameters; none is float32.
        attention: which implementation; none is transformers' choice.

    Raises:
        ValueError: the model is not of the kind that the task trains.
    """
    config = copy.deepcopy(config)
    for name, value in task.model_arguments(labels).items():
        setattr(config, name, value)
    with torch.device("meta"):
        model: PreTrainedModel = task.auto_class().from_config(
            config, **({"dtype": dtype} if dtype else {}), attn_implementation=attention
        )
    return model


def _positions(config: PretrainedConfig) -> int | None:
    """Longest input; RoBERTa and its kin count positions from behind the padding token."""
    text = config.get_text_config()
    if getattr(text, "relative_attention_num_buckets", None) is not None:
        return None  # T5's positions are relative; some of its configs carry a number that means nothing
    positions = getattr(text, "max_position_embeddings", None)
    counts_from_padding = {"roberta", "xlm-roberta", "camembert", "longformer", "xlm-roberta-xl", "data2vec-text"}
    if positions is not None and text.model_type in counts_from_padding:
        return int(positions) - int(text.pad_token_id or 0) - 1
    return positions


def head_modules(model: PreTrainedModel) -> list[str]:
    """Names of what stands on top of the body: the classifier, and a pooler between."""
    top = [n for n, m in model.named_children() if n != model.base_model_prefix and any(True for _ in m.parameters())]
    return top + [name for name, _ in model.named_modules() if name.endswith(".pooler")]


def _linears(model: torch.nn.Module) -> Iterator[tuple[str, tuple[int, int]]]:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            yield name, (module.in_features, module.out_features)
        elif isinstance(module, Conv1D):  # GPT-2's linear, stored transposed
            yield name, (module.weight.shape[0], module.weight.shape[1])
