"""AdamW for many trials at once: each has its own rate, decay, clip, step count, and its own end.

One update over the flat buffers of a pack; what differs between trials is a vector over slots. A trial whose gradient
is not finite is left out with `where` and masks, so that nothing of it reaches a product with anything else.

Shape legend: k slots of a pass, n numbers of a trial in its bucket.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lorafront.trainables.packed_bucket import Bucket

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # torch's defaults, as in stock PEFT trainers
CLIP_EPSILON = 1e-6  # of torch.nn.utils.clip_grad_norm_
GROWTH, BACKOFF, GROWTH_STEPS, FIRST_SCALE = 2.0, 0.5, 2000, 65536.0  # of torch.amp.GradScaler


@dataclass
class OptimizerState:
    """What the optimizer knows of each slot; on the device, so that nobody waits for it.

    Attributes:
        steps: float32[k], updates so far.
        alive: bool[k], False once a gradient was not finite.
        scale: float32[k], of the loss where the base computes in float16; else ones.
        growing: float32[k], updates since the scale changed.
    """

    steps: torch.Tensor
    alive: torch.Tensor
    scale: torch.Tensor
    growing: torch.Tensor


@dataclass(frozen=True)
class Rates:
    """What the trials ask for at this step.

    Attributes:
        learning: float32[k].
        decay: float32[k], decoupled weight decay.
        clip: float32[k], the largest L2 norm of a trial's gradient.
    """

    learning: torch.Tensor
    decay: torch.Tensor
    clip: torch.Tensor


def update(buckets: Sequence[Bucket], state: OptimizerState, rates: Rates, *, scaled: bool) -> torch.Tensor:
    """Clip each trial's gradient and take one step.

    Args:
        buckets: with gradients, in the order of the slots.
        state: changed in place.
        rates: of this step.
        scaled: losses were multiplied by `state.scale`; one that overflows is then skipped and its scale halved.

    Returns:
        float32[k], each trial's gradient norm before clipping.
    """
    scale_k = state.scale
    norm_k = torch.cat([torch.linalg.vector_norm(bucket.trained[0], dim=1) for bucket in buckets]) / scale_k
    finite_k = torch.isfinite(norm_k)
    go_k = finite_k & state.alive
    if scaled:
        _rescale(state, finite_k)
    else:
        state.alive = go_k
    state.steps = state.steps + go_k
    steps_k = state.steps.double()
    clipped_k = (rates.clip / (norm_k + CLIP_EPSILON)).clamp(max=1) / scale_k
    still_k, one_k = torch.zeros_like(norm_k), torch.ones_like(norm_k)
    vectors = torch.stack(
        [
            torch.where(go_k, clipped_k, still_k),
            torch.where(go_k, 1 - BETA_1, still_k),
            torch.where(go_k, BETA_2, one_k),
            torch.where(go_k, 1 - BETA_2, still_k),
            torch.where(go_k, 1 - rates.learning * rates.decay, one_k),
            torch.where(go_k, rates.learning / (1 - BETA_1**steps_k), still_k),
            torch.where(go_k, (1 - BETA_2**steps_k).sqrt(), one_k),
        ]
    ).float()[..., None]
    start = 0
    for bucket in buckets:
        own = slice(start, start + len(bucket))
        _step(bucket, vectors[:, own], ~go_k[own, None])
        start += len(bucket)
    return norm_k


def _rescale(state: OptimizerState, finite_k: torch.Tensor) -> None:
    """As torch.amp.GradScaler: half after an overflow, twice after so many steps without."""
    grown_k = torch.where(finite_k, state.growing + 1, 0)
    full_k = grown_k == GROWTH_STEPS
    factor_k = torch.where(finite_k, torch.where(full_k, GROWTH, 1.0), BACKOFF)
    state.scale = state.scale * factor_k
    state.growing = torch.where(full_k, 0, grown_k)


def _step(bucket: Bucket, vectors: torch.Tensor, left_out_k1: torch.Tensor) -> None:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2) in place; for those left out each line changes nothing."""
    clip, rise, keep, square, decay, rate, root = vectors
    gradient_kn, mean_kn, square_kn = bucket.trained
    gradient_kn.mul_(clip).masked_fill_(left_out_k1, 0)
    mean_kn.lerp_(gradient_kn, rise)
    scratch_kn = (gradient_kn * gradient_kn).mul_(square)  # the one buffer that a step needs beside its own
    square_kn.mul_(keep).add_(scratch_kn)
    torch.sqrt(square_kn, out=scratch_kn).div_(root).add_(EPSILON)
    torch.div(mean_kn, scratch_kn, out=scratch_kn).mul_(rate)
    bucket.values.mul_(decay).sub_(scratch_kn)
