"""Sequence classification: one label for a whole text, from a head that is trained along with the adapter.

Shape legend: b rows of a batch, t tokens of its longest row, c labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import cross_entropy

from lorafront.spaces.errors import InvalidInput
from lorafront.trainables.collate import pad_rows
from lorafront.trainables.evaluate import class_metrics
from lorafront.trainables.task import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafront.trainables.data import TokenRows

MOST_LABELS = 1000  # more are no classes but a column of numbers or names


class SequenceClassification:
    """Implements `lorafront.trainables.task.Task`. A row's target is the number of its label."""

    name: Final = "seq_cls"
    peft_type: Final = "SEQ_CLS"
    quality: Final = ("accuracy", "f1")
    needs_prompt: Final = True
    new_head: Final = True

    def auto_class(self) -> Any:
        """AutoModelForSequenceClassification."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_arguments(self, labels: tuple[str, ...]) -> dict[str, Any]:
        """Names of the labels; a head for another number of them is made anew."""
        return {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }

    def labels(self, rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """All labels, numbers by size and names by the alphabet."""
        found = {label for _, label in rows}
        if len(found) < 2:  # noqa: PLR2004  # nothing to tell apart
            raise InvalidInput(
                f"all {len(rows)} rows have the same label {', '.join(found)!r}; there is nothing to learn"
            )
        if len(found) > MOST_LABELS or len(found) > max(2, len(rows) // 2):
            raise InvalidInput(f"{len(found)} different labels in {len(rows)} rows: is that the column of the labels?")
        if all(label.removeprefix("-").isdecimal() for label in found):
            return tuple(sorted(found, key=int))
        return tuple(sorted(found))

    def encode(
        self, rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
    ) -> list[tuple[list[int], int]]:
        """Text with the tokenizer's own frame, cut at `max_length`; number of its label."""
        if not rows:
            return []
        numbers = {label: index for index, label in enumerate(encoding.labels)}
        cut = {"truncation": True, "max_length": encoding.max_length, "add_special_tokens": not encoding.framed}
        encoded = tokenizer([text for text, _ in rows], **cut)["input_ids"]
        return [(ids, numbers[label]) for ids, (_, label) in zip(encoded, rows, strict=True) if ids]

    def collate(self, rows: TokenRows, indices: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
        """int64[b, t] `input_ids`, `attention_mask`, filled up on the right; int64[b] `labels`."""
        chosen = [rows.row(index) for index in indices]
        input_ids, attention_mask = pad_rows([ids for ids, _ in chosen], pad_id)
        labels = torch.tensor([label for _, label in chosen], dtype=torch.int64)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        """Rows."""
        return len(batch["labels"])

    def nll(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Cross-entropy summed over rows, in float32."""
        return cross_entropy(_logits(model, batch), batch["labels"], reduction="sum")

    def tally(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float64[2 + c * c]: NLL, rows, confusion[truth, said] flattened."""
        logits_bc, truth = _logits(model, batch), batch["labels"]
        labels = logits_bc.shape[1]
        confusion = torch.bincount(truth * labels + logits_bc.argmax(1), minlength=labels * labels)
        nll = cross_entropy(logits_bc, truth, reduction="sum")
        return torch.cat([torch.stack([nll, nll.new_tensor(len(truth))]).double(), confusion.double()])

    def metrics(self, tally: torch.Tensor) -> dict[str, float]:
        """Loss, accuracy, macro F1."""
        return class_metrics(tally)

    def references(self, rows: TokenRows, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """Always saying the most frequent label of the rows."""
        counts = torch.bincount(torch.from_numpy(rows.targets.astype("int64")), minlength=len(labels))
        confusion = torch.zeros(len(labels), len(labels))
        confusion[:, counts.argmax()] = counts.float()
        sums = torch.cat([torch.tensor([0.0, len(rows)]), confusion.flatten()]).double()
        measured = class_metrics(sums)
        return {f"always label {labels[int(counts.argmax())]!r}": {name: measured[name] for name in self.quality}}


def _logits(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """float32[b, c]."""
    logits: torch.Tensor = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return logits.float()


SEQ_CLS = SequenceClassification()
