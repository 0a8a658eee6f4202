"""Evaluation over a whole split: total negative log-likelihood per target, never a mean of batch means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorafront.trainables.data import TokenData
    from lorafront.trainables.task import Task


@torch.no_grad()
def mean_nll(model: PreTrainedModel, task: Task, data: TokenData, batch_size: int, on: torch.device) -> float:
    """Mean negative log-likelihood per target token in nats.

    Rows go longest first, so that little is padded; the model computes in its own dtype, as whoever loads the adapter
    with stock PEFT will. Sums are float64.
    """
    rows = data.evaluation
    lengths = rows.lengths
    order = sorted(range(len(rows)), key=lambda i: -int(lengths[i]))
    was_training = model.training
    model.eval()
    total, targets = 0.0, 0
    for start in range(0, len(order), batch_size):
        batch = task.collate(rows, order[start : start + batch_size], data.pad_id)
        targets += task.targets(batch)
        total += float(task.nll(model, {name: tensor.to(on) for name, tensor in batch.items()}))
    model.train(was_training)
    return total / targets


def perplexity(nll: float) -> float:
    """exp(nll); infinite where that overflows or where nll is not a number."""
    try:
        return math.exp(nll) if not math.isnan(nll) else math.inf
    except OverflowError:
        return math.inf
