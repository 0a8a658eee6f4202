"""The tasks as a pack computes them: losses and tallies row by row, so that they can be added up by slot.

Shape legend: r rows of all slots (slot by slot), t tokens of the longest, n numbers of a tally, c labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Protocol

import torch
from torch.nn.functional import cross_entropy, pad

from lorafront.trainables.causal_lm import IGNORE
from lorafront.trainables.packed_base import NotPackable, evaluating, probe
from lorafront.trainables.packed_loss import OutputLayer, TokenLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, torch.Tensor]


class PackedTask(Protocol):
    """What the engine asks of a task."""

    def prepared(self, batch: Batch) -> Batch:
        """With what can be looked up before the batch is on a device, where every look waits."""

    def targets(self, batch: Batch) -> torch.Tensor:
        """int64[r]: targets of each row."""

    def losses(self, batch: Batch, weights_r: torch.Tensor) -> torch.Tensor:
        """float32[r]: negative log-likelihood of each row's targets times the row's weight."""

    def tally(self, batch: Batch) -> torch.Tensor:
        """float64[r, n]: what `Task.tally` would say of each row alone."""


class PackedCausalLM:
    """Of `CausalLM`: the output layer sees only what is a target, a chunk at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Find out whether the logits are those of the output layer on the last hidden state, and nothing else."""
        self._model = model
        head = OutputLayer.of(model)
        self._head = head if head is not None and self._is_all(head) else None

    def _is_all(self, head: OutputLayer) -> bool:
        with evaluating(self._model):
            hidden = probe(self._model.base_model).last_hidden_state
            return torch.equal(head.logits(hidden), probe(self._model).logits)

    def prepared(self, batch: Batch) -> Batch:
        """With `where`, int64[n]: the tokens, all rows on end, that are followed by a target, and `targets`."""
        labels_rt = pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:]
        where = (labels_rt != IGNORE).flatten().nonzero()[:, 0]
        return {**batch, "where": where, "targets": labels_rt.flatten()[where]}

    def targets(self, batch: Batch) -> torch.Tensor:
        """See `CausalLM.targets`."""
        return (batch["labels"][:, 1:] != IGNORE).sum(1)

    def losses(self, batch: Batch, weights_r: torch.Tensor) -> torch.Tensor:
        """Of all tokens that follow another one, but the masked ones."""
        shape, where, targets = batch["labels"].shape, batch["where"], batch["targets"]
        rows = where // shape[1]
        inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
        weights = weights_r[rows]
        if self._head is not None:
            hidden_rth = self._model.base_model(**inputs).last_hidden_state
            hidden_nh = hidden_rth.reshape(-1, hidden_rth.shape[-1])[where]
            losses: torch.Tensor = TokenLoss.apply(hidden_nh, self._head, targets, weights)  # type: ignore[no-untyped-call]
        else:
            logits_rtv = self._model(**inputs).logits
            chosen = logits_rtv.reshape(-1, logits_rtv.shape[-1])[where].float()
            losses = cross_entropy(chosen, targets, reduction="none")
        return losses.new_zeros(shape.numel()).index_put((where,), losses * weights).view(shape).sum(1)

    def tally(self, batch: Batch) -> torch.Tensor:
        """[NLL, targets]."""
        targets_r = self.targets(batch)
        losses_r = self.losses(batch, torch.ones(len(targets_r), device=targets_r.device))
        return torch.stack([losses_r.double(), targets_r.double()], dim=1)


class PackedClassification:
    """Of `SequenceClassification`."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Args: model: with its head."""
        self._model = model

    def prepared(self, batch: Batch) -> Batch:
        """As it is."""
        return batch

    def targets(self, batch: Batch) -> torch.Tensor:
        """One for each row."""
        return torch.ones_like(batch["labels"])

    def losses(self, batch: Batch, weights_r: torch.Tensor) -> torch.Tensor:
        """Cross-entropy of each row's label."""
        return cross_entropy(self._logits(batch), batch["labels"], reduction="none") * weights_r

    def tally(self, batch: Batch) -> torch.Tensor:
        """[NLL, 1, confusion[truth, said] flattened]."""
        logits_rc, truth_r = self._logits(batch), batch["labels"]
        labels = logits_rc.shape[1]
        said = torch.nn.functional.one_hot(truth_r * labels + logits_rc.argmax(1), labels * labels)
        losses_r = cross_entropy(logits_rc, truth_r, reduction="none")
        return torch.cat([torch.stack([losses_r, torch.ones_like(losses_r)], dim=1), said], dim=1).double()

    def _logits(self, batch: Batch) -> torch.Tensor:
        logits_rc: torch.Tensor = self._model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
        ).logits
        return logits_rc.float()


PACKED_TASKS: Final[dict[str, Any]] = {"causal_lm": PackedCausalLM, "seq_cls": PackedClassification}


def packed_task(name: str, model: PreTrainedModel) -> PackedTask:
    """The packed form of a task.

    Raises:
        NotPackable: it has none.
    """
    if name not in PACKED_TASKS:
        raise NotPackable(f"the task {name} has no packed form")
    task: PackedTask = PACKED_TASKS[name](model)
    return task
