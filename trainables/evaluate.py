"""Evaluation over a whole split: sums over all targets, divided once, never a mean of batch means."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lorafront.trainables import heartbeat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedModel

    from lorafront.trainables.data import TokenRows
    from lorafront.trainables.task import Task


@torch.no_grad()
def tally(
    model: PreTrainedModel, task: Task, rows: TokenRows, pad_id: int, batch_size: int, on: torch.device
) -> torch.Tensor:
    """float64[n]: the task's sums over all rows (`Task.tally`).

    The model computes in its own dtype, as whoever loads the adapter with stock PEFT will.
    """
    was_training = model.training
    model.eval()
    sums = []
    for chosen in longest_first(rows, batch_size):
        batch = task.collate(rows, chosen, pad_id)
        sums.append(task.tally(model, {name: tensor.to(on) for name, tensor in batch.items()}).cpu())
        heartbeat.beat()
    model.train(was_training)
    return torch.stack(sums).sum(0)


def longest_first(rows: TokenRows, batch_size: int) -> Iterator[list[int]]:
    """Row indices of the batches of an evaluation: rows of like length together, so that little is padded."""
    lengths = rows.lengths
    order = sorted(range(len(rows)), key=lambda i: -int(lengths[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def language_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Mean NLL per target in nats and perplexity, from [NLL, targets]."""
    nll = float(sums[0] / sums[1])
    return {"eval_loss": nll, "perplexity": perplexity(nll)}


def class_metrics(sums: torch.Tensor) -> dict[str, float]:
    """Mean NLL, accuracy, and F1 averaged over the labels, from [NLL, rows, confusion[truth, said] flattened].

    Labels that are neither there nor predicted do not count, as in scikit-learn.
    """
    confusion = sums[2:].view(math.isqrt(len(sums) - 2), -1)
    right = confusion.diagonal()
    seen = confusion.sum(0) + confusion.sum(1)
    f1 = (2 * right / seen)[seen > 0]
    return {
        "eval_loss": float(sums[0] / sums[1]),
        "accuracy": float(right.sum() / sums[1]),
        "f1": float(f1.mean()),
    }


def perplexity(nll: float) -> float:
    """exp(nll); infinite where that overflows or where nll is not a number."""
    try:
        return math.exp(nll) if not math.isnan(nll) else math.inf
    except OverflowError:
        return math.inf
