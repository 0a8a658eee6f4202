"""float32 copies of trained parameters that are stored in 16 bits: biases, and a classification head.

A bfloat16 number of 0.5 has neighbours at a distance of 0.002 and 0.004, so AdamW's steps of 1e-4 would be rounded
away; float16 gradients cannot be unscaled in place. LoRA's own matrices are float32 in PEFT and pass through.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch


class MasterWeights:
    """What the optimizer steps on, in the order of the model's trained parameters."""

    def __init__(self, trained: Sequence[torch.nn.Parameter]) -> None:
        """Copy what is not float32."""
        self.parameters = [p if p.dtype == torch.float32 else torch.nn.Parameter(p.detach().float()) for p in trained]
        self._pairs = [(p, m) for p, m in zip(trained, self.parameters, strict=True) if p is not m]

    def take_gradients(self) -> None:
        """Move the model's gradients to the copies."""
        for parameter, master in self._pairs:
            master.grad = None if parameter.grad is None else parameter.grad.float()
            parameter.grad = None

    @torch.no_grad()
    def give_values(self) -> None:
        """Round the copies into the model."""
        for parameter, master in self._pairs:
            parameter.copy_(master)

    @property
    def copies(self) -> list[torch.nn.Parameter]:
        """Those that are no parameters of the model themselves."""
        return [master for _, master in self._pairs]

    def state(self) -> dict[str, torch.Tensor]:
        """The copies, by place."""
        copies = {id(master) for master in self.copies}
        return {str(i): m.detach().cpu() for i, m in enumerate(self.parameters) if id(m) in copies}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor]) -> None:
        """The inverse of `state`."""
        for place, value in state.items():
            self.parameters[int(place)].copy_(value)
        self.give_values()
