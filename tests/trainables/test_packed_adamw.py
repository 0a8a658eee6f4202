"""One update for many trials is what torch's AdamW does for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lorafront.trainables.packed_adamw import OptimizerState, Rates, update


class Numbers:
    """What the optimizer needs of a bucket."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values = values
        self.trained = tuple(torch.zeros_like(values) for _ in range(3))

    def __len__(self) -> int:
        return len(self.values)


def state(slots: int, scale: float = 1.0) -> OptimizerState:
    return OptimizerState(
        torch.zeros(slots), torch.ones(slots, dtype=torch.bool), torch.full((slots,), scale), torch.zeros(slots)
    )


TRIAL = st.tuples(st.floats(1e-5, 1e-1), st.sampled_from([0.0, 0.01, 0.3]), st.sampled_from([0.1, 1.0, 100.0]))


@given(trials=st.lists(TRIAL, min_size=1, max_size=5), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_each_slot_steps_as_torch_does_alone(trials: list[tuple[float, float, float]], seed: int) -> None:
    """Rate, decay and clip differ inside the pack; values agree with torch.optim.AdamW and clip_grad_norm_."""
    torch.manual_seed(seed)
    start = torch.randn(len(trials), 40)
    buckets: list[Any] = [Numbers(start[:1].clone()), Numbers(start[1:].clone())]
    buckets = [bucket for bucket in buckets if len(bucket)]
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [torch.optim.AdamW([p], lr=t[0], weight_decay=t[1]) for p, t in zip(alone, trials, strict=True)]
    own = state(len(trials))
    for _ in range(4):
        gradients = torch.randn(len(trials), 40)
        place = 0
        for bucket in buckets:
            bucket.trained[0].copy_(gradients[place : place + len(bucket)])
            place += len(bucket)
        norms = update(buckets, own, Rates(*torch.tensor(trials).unbind(1)), scaled=False)
        for index, (parameter, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
            parameter.grad = gradients[index].clone()
            norm = torch.nn.utils.clip_grad_norm_([parameter], trials[index][2])
            assert float(norms[index]) == pytest.approx(float(norm), rel=1e-5)
            optimizer.step()
    torch.testing.assert_close(torch.cat([b.values for b in buckets]), torch.stack([p.data for p in alone]))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_gradient_ends_its_own_slot_alone(broken: float) -> None:
    """Its values and moments stay as they were from then on; its neighbour's go on."""
    bucket: Any = Numbers(torch.ones(2, 3))
    own, rates = state(2), Rates(torch.full((2,), 0.1), torch.full((2,), 0.1), torch.ones(2))
    bucket.trained[0].fill_(1)
    update([bucket], own, rates, scaled=False)
    before = [tensor[0].clone() for tensor in (bucket.values, *bucket.trained[1:])]
    neighbour = bucket.values[1].clone()
    for gradient in (broken, 1.0):
        bucket.trained[0].fill_(1)
        bucket.trained[0][0, 1] = gradient
        update([bucket], own, rates, scaled=False)
    assert all(map(torch.equal, before, (t[0] for t in (bucket.values, *bucket.trained[1:]))))
    assert bool((bucket.values[1] < neighbour).all())
    assert own.alive.tolist() == [False, True]


def test_an_overflow_in_float16_costs_one_step_and_halves_the_scale() -> None:
    """As torch.amp.GradScaler does; the slot goes on at the next step."""
    bucket: Any = Numbers(torch.ones(2, 3))
    own, rates = state(2, scale=1024.0), Rates(torch.full((2,), 0.1), torch.zeros(2), torch.ones(2))
    for overflow in (True, False):
        bucket.trained[0].fill_(1024)
        bucket.trained[0][0, 0] = torch.inf if overflow else 1024
        update([bucket], own, rates, scaled=True)
        assert bool((bucket.values[0] == 1).all()) is overflow
    assert own.scale.tolist() == [512.0, 1024.0]
    assert own.steps.tolist() == [1, 2]
    assert own.growing.tolist() == [1, 2]
