"""The frozen linears of a base as a pack uses them: products on the rows of all slots at once, grouped by input.

While a `PackedBase` is open, each linear of the model hands its input to the pack; `close` leaves the model as it was.
The rest of the model (attention, norms, activations) is transformers' own code and treats rows one by one.

Shape legend: k slots, b rows of a slot, t tokens of the longest row, m = k b t rows of a product, i inputs, o outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lorafront.spaces.errors import LorafrontError

PROBE_ROWS, PROBE_TOKENS = 3, 5  # of the pass that looks at the model; unequal, so that they can be told apart


class NotPackable(LorafrontError, ValueError):
    """The model does something that mixes the rows of a batch, or that the packed engine does not know."""


class BaseLinear:
    """One frozen linear module; `product` and `input_gradient` are what stock PEFT's base layer computes."""

    def __init__(self, name: str, module: torch.nn.Module, dtype: torch.dtype, *, keep: bool) -> None:
        """Look at the module.

        Args:
            name: in the model.
            module: Linear, Conv1D, or one of bitsandbytes'.
            dtype: that the base computes in.
            keep: whether a quantized weight stays in memory in `dtype` beside its quantized form.
        """
        self.name: Final = name
        self.module: Final = module
        self.kind: Final = type(module).__name__
        self._dtype = dtype
        self._keep = keep
        self._dense: torch.Tensor | None = None
        self._own = module.forward
        weight: Any = module.weight
        shape = weight.quant_state.shape if self.kind == "Linear4bit" else weight.shape
        self.outputs, self.inputs = reversed(shape) if self.kind == "Conv1D" else shape

    @property
    def quantized(self) -> bool:
        """Whether bitsandbytes keeps the weight."""
        return self.kind in {"Linear4bit", "Linear8bitLt"}

    def product(self, x: torch.Tensor, slots: int, *, training: bool) -> torch.Tensor:
        """[..., o] of [..., i], bias included, in the dtype that the module itself gives.

        8-bit products with outlier columns look at all rows of a call, so each slot gets a call of its own there.
        """
        on_cpu = x.device.type == "cpu"
        if self.kind == "Linear8bitLt" and not (training and on_cpu):
            whole = on_cpu and self._outlier_free(x)  # a GPU would have to wait for the answer
            return self._own(x) if whole else torch.cat([self._own(part) for part in x.chunk(slots)])
        if not self.quantized or not self._keep:
            result: torch.Tensor = self._own(x)
            return result
        bias: Any = self.module.bias
        y = linear(x.to(self._dtype), self._weight(), None if bias is None else bias.to(self._dtype))
        return y.to(x.dtype) if self.kind == "Linear4bit" else y

    def input_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """[m, i] of [m, o]."""
        return gradient @ self._weight()

    def _outlier_free(self, x: torch.Tensor) -> bool:
        """Whether an 8-bit product treats each row of this input for itself; bitsandbytes looks at it in float16."""
        module: Any = self.module
        threshold: float = module.state.threshold
        low, high = x.aminmax()
        return threshold <= 0 or float(torch.maximum(-low, high).half()) < threshold

    def _weight(self) -> torch.Tensor:
        """[o, i] in the base's dtype."""
        if not self.quantized:
            weight: Any = self.module.weight
            return weight.t() if self.kind == "Conv1D" else weight  # type: ignore[no-any-return]
        if self._dense is not None:
            return self._dense
        dense = self._dequantized()
        self._dense = dense if self._keep else None
        return dense

    def _dequantized(self) -> torch.Tensor:
        """As bitsandbytes does it for its own products."""
        weight: Any = self.module.weight
        if self.kind == "Linear4bit":
            from bitsandbytes.functional import dequantize_4bit

            dense: torch.Tensor = dequantize_4bit(weight.data.view(-1, 1), weight.quant_state)
            return dense.to(self._dtype)
        module: Any = self.module
        if weight.CB is not None:
            module.init_8bit_state()
        # In place: the factor is float32, the product is rounded once.
        codes: torch.Tensor = module.state.CB.to(self._dtype, copy=True)
        return codes.mul_(module.state.SCB.unsqueeze(1).mul(1.0 / 127.0))


@dataclass(eq=False)
class Group:
    """Linears of one parent module that are called with one and the same tensor, such as query, key and value."""

    linears: list[BaseLinear] = field(default_factory=list)
    _input: torch.Tensor | None = None
    _outputs: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """That of its first linear."""
        return self.linears[0].name

    def forget(self) -> None:
        """What was computed and not yet asked for."""
        self._input, self._outputs = None, {}

    def output(
        self, name: str, x: torch.Tensor, compute: Callable[[Group, torch.Tensor], tuple[torch.Tensor, ...]]
    ) -> torch.Tensor:
        """What one of its linears gives; the first that is asked computes all."""
        if self._input is not x or name not in self._outputs:
            self._outputs = dict(zip((one.name for one in self.linears), compute(self, x), strict=True))
            self._input = x
        found = self._outputs.pop(name)
        if not self._outputs:
            self._input = None
        return found


class PackedBase:
    """All linears of a base model below its head, by group."""

    def __init__(
        self, model: PreTrainedModel, dtype: torch.dtype, heads: tuple[str, ...] = (), *, keep: bool = False
    ) -> None:
        """Look at the model with one small pass.

        Args:
            model: frozen.
            dtype: that it computes in.
            heads: modules that are trained in full; their linears are left out.
            keep: see `BaseLinear`.

        Raises:
            NotPackable: a linear gets something else than the rows of a batch.
        """
        self.model: Final = model
        output = model.get_output_embeddings()
        self._head = output if isinstance(output, torch.nn.Module) else None
        linears = {
            name: BaseLinear(name, module, dtype, keep=keep)
            for name, module in model.named_modules()
            if is_linear(module) and module is not self._head and not within(name, heads)
        }
        self.order: Final = {name: place for place, (name, _) in enumerate(model.named_modules())}
        self.linears: Final = linears
        self.groups: list[Group] = []
        self.groups = self._look(linears)
        self.called: Final = {one.name: group for group in self.groups for one in group.linears}

    @property
    def fan_in_fan_out(self) -> bool:
        """Whether weights lie as [inputs, outputs], which PEFT has to be told."""
        return any(one.kind == "Conv1D" for one in self.linears.values())

    def open(self, compute: Callable[[Group, torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        """From now on the linears' outputs are those that `compute` gives for a group and its input."""
        for name, one in self.linears.items():
            if name in self.called:
                one.module.forward = partial(self._hand_over, name, compute)

    def close(self) -> None:
        """The linears are themselves again."""
        for one in self.linears.values():
            one.module.__dict__.pop("forward", None)
        for group in self.groups:
            group.forget()  # what a pass that broke off has left

    def _hand_over(self, name: str, compute: Any, x: torch.Tensor) -> torch.Tensor:
        return self.called[name].output(name, x, compute)

    @torch.no_grad()
    def _look(self, linears: dict[str, BaseLinear]) -> list[Group]:
        seen: list[tuple[str, torch.Tensor]] = []

        def note(name: str, x: torch.Tensor) -> torch.Tensor:
            if x.shape[0] != PROBE_ROWS:
                raise NotPackable(f"{name} is called with {tuple(x.shape)} for {PROBE_ROWS} rows; it mixes them")
            seen.append((name, x))
            return linears[name].product(x, PROBE_ROWS, training=False)

        try:
            for name, one in linears.items():
                one.module.forward = partial(note, name)
            probe(self.model)
        finally:
            self.close()
        groups: list[Group] = []
        before: tuple[str, torch.Tensor] | None = None
        for name, x in seen:
            together = before is not None and x is before[1] and _parent(name) == _parent(before[0])
            if not together:
                groups.append(Group())
            groups[-1].linears.append(linears[name])
            before = (name, x)
        if len(seen) != len({name for name, _ in seen}):
            raise NotPackable("the model calls one of its linears twice in a pass")
        return groups


def probe(model: PreTrainedModel) -> Any:
    """What the model says to a few rows."""
    tokens = torch.arange(PROBE_ROWS * PROBE_TOKENS, device=model.device).view(PROBE_ROWS, -1)
    tokens = tokens % max(2, model.config.get_text_config().vocab_size)
    return model(input_ids=tokens, attention_mask=torch.ones_like(tokens))


def is_linear(module: torch.nn.Module) -> bool:
    """Whether PEFT would put an adapter on it."""
    return isinstance(module, (torch.nn.Linear, Conv1D))


def within(name: str, heads: tuple[str, ...]) -> bool:
    """Whether a module is one of these or a part of one."""
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without gradients and in evaluation mode."""
    was = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was)
