"""Causal language modelling: predict the next token of plain text, or of the completion after a prompt.

Shape legend: b rows of a batch, t tokens of its longest row, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch.nn.functional import cross_entropy, pad

from lorafront.trainables.collate import pad_rows
from lorafront.trainables.evaluate import language_metrics
from lorafront.trainables.task import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafront.trainables.data import TokenRows

IGNORE = -100  # transformers' label that the loss skips
_CHUNK = 100_000  # characters handed to the tokenizer at once: one call on a whole book needs gigabytes


class CausalLM:
    """Implements `lorafront.trainables.task.Task`."""

    name: Final = "causal_lm"
    peft_type: Final = "CAUSAL_LM"
    quality: Final = ("perplexity",)
    needs_prompt: Final = False
    new_head: Final = False

    def auto_class(self) -> Any:
        """AutoModelForCausalLM."""
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM

    def model_arguments(self, _labels: tuple[str, ...]) -> dict[str, Any]:
        """None."""
        return {}

    def labels(self, _rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(
        self, rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
    ) -> list[tuple[list[int], int]]:
        """Packed: texts joined, cut into blocks of `max_length`. Else one row each, cut on the right.

        A row starts with the tokenizer's own begin token if it adds one, and a text ends with the end token.
        """
        begin, end = ([], []) if encoding.framed else _frame(tokenizer)
        max_length = encoding.max_length
        if not rows:
            return []
        if encoding.packed:
            stream = [token for _, text in rows for token in (*begin, *_text_ids(tokenizer, text), *end)]
            encoded = [(stream[start : start + max_length], 0) for start in range(0, len(stream), max_length)]
        else:
            prompts = tokenizer([prompt for prompt, _ in rows], add_special_tokens=False)["input_ids"]
            completions = tokenizer([text for _, text in rows], add_special_tokens=False)["input_ids"]
            encoded = [
                ([*begin, *prompt, *completion, *end][:max_length], min(len(begin) + len(prompt), max_length))
                for prompt, completion in zip(prompts, completions, strict=True)
            ]
        # The first token of a row is never predicted, so a target must stand behind it.
        return [(ids, masked) for ids, masked in encoded if len(ids) > max(masked, 1)]

    def collate(self, rows: TokenRows, indices: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
        """See `Task.collate`; rows are filled up on the right."""
        chosen = [rows.row(index) for index in indices]
        input_ids, attention_mask = pad_rows([ids for ids, _ in chosen], pad_id)
        labels = input_ids.masked_fill(attention_mask == 0, IGNORE)
        for i, (_, masked) in enumerate(chosen):
            labels[i, :masked] = IGNORE
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        """Labels that are predicted: all but the first of a row, and but the masked ones."""
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def nll(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over targets, in float32. Labels are shifted rather than logits: shifting [b, t, v] would copy it."""
        logits_btv = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
        return token_nll(logits_btv, pad(batch["labels"], (0, 1), value=IGNORE)[:, 1:])

    def tally(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float64[2]: NLL, targets."""
        return torch.tensor([float(self.nll(model, batch)), self.targets(batch)], dtype=torch.float64)

    def metrics(self, tally: torch.Tensor) -> dict[str, float]:
        """Loss and perplexity."""
        return language_metrics(tally)

    def references(self, _rows: TokenRows, _labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """None: the bare base is measured by the trials."""
        return {}


def token_nll(logits_btv: torch.Tensor, labels_bt: torch.Tensor) -> torch.Tensor:
    """float32[]: NLL summed over the labels that are not `IGNORE`; `labels_bt` stand where they are predicted."""
    flat = logits_btv.reshape(-1, logits_btv.shape[-1]).float()
    return cross_entropy(flat, labels_bt.reshape(-1), ignore_index=IGNORE, reduction="sum")


def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Tokens before and after a text: begin only where the tokenizer itself adds it (GPT-2 has one and does not)."""
    own = tokenizer("")["input_ids"]
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None and tokenizer.bos_token_id in own[:1] else []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    return begin, end


def _text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Iterator[int]:
    for chunk in _chunks(text):
        yield from tokenizer(chunk, add_special_tokens=False, verbose=False)["input_ids"]


def _chunks(text: str) -> Iterator[str]:
    """Cut after line breaks, and a very long line after blanks, into pieces of about `_CHUNK` characters."""
    start = 0
    while start < len(text):
        end = start + _CHUNK
        if end < len(text):
            near = max(text.rfind("\n", start, end), text.rfind(" ", start, end) if "\n" not in text[start:end] else -1)
            end = near + 1 if near > start else end
        yield text[start:end]
        start = end


CAUSAL_LM = CausalLM()
