"""Sequence to sequence: an encoder reads the prompt, a decoder predicts the completion (T5, BART).

Shape legend: b rows of a batch, s tokens of its longest prompt, t tokens of its longest completion, v vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch

from lorafront.trainables.causal_lm import IGNORE, token_nll
from lorafront.trainables.collate import pad_rows
from lorafront.trainables.evaluate import language_metrics
from lorafront.trainables.task import Encoding

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from lorafront.trainables.data import TokenRows


class Seq2SeqLM:
    """Implements `lorafront.trainables.task.Task`. A row is the prompt's tokens, then the completion's."""

    name: Final = "seq_2_seq_lm"
    peft_type: Final = "SEQ_2_SEQ_LM"
    quality: Final = ("perplexity",)
    needs_prompt: Final = True
    new_head: Final = False

    def auto_class(self) -> Any:
        """AutoModelForSeq2SeqLM."""
        from transformers import AutoModelForSeq2SeqLM

        return AutoModelForSeq2SeqLM

    def model_arguments(self, _labels: tuple[str, ...]) -> dict[str, Any]:
        """None."""
        return {}

    def labels(self, _rows: Sequence[tuple[str, str]]) -> tuple[str, ...]:
        """None."""
        return ()

    def encode(
        self, rows: Sequence[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, encoding: Encoding
    ) -> list[tuple[list[int], int]]:
        """Prompt and completion are each cut at `max_length`; the completion ends with the end token."""
        if not rows:
            return []
        cut = {"truncation": True, "max_length": encoding.max_length, "add_special_tokens": not encoding.framed}
        prompts = tokenizer([prompt for prompt, _ in rows], **cut)["input_ids"]
        completions = tokenizer(text_target=[completion for _, completion in rows], **cut)["input_ids"]
        end = tokenizer.eos_token_id
        for ids in completions:
            if end is not None and not encoding.framed and ids[-1:] != [end] and len(ids) < encoding.max_length:
                ids.append(end)
        return [
            ([*prompt, *ids], len(prompt)) for prompt, ids in zip(prompts, completions, strict=True) if prompt and ids
        ]

    def collate(self, rows: TokenRows, indices: Sequence[int], pad_id: int) -> dict[str, torch.Tensor]:
        """int64[b, s] `input_ids`, `attention_mask`; int64[b, t] `labels`; all filled up on the right."""
        chosen = [rows.row(index) for index in indices]
        input_ids, attention_mask = pad_rows([ids[:start] for ids, start in chosen], pad_id)
        labels, _ = pad_rows([ids[start:] for ids, start in chosen], IGNORE)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}

    def targets(self, batch: dict[str, torch.Tensor]) -> int:
        """Tokens of the completions."""
        return int((batch["labels"] != IGNORE).sum())

    def nll(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Sum over the completions' tokens, in float32."""
        decoder_input_ids = _shifted(model, batch["labels"])
        logits_btv = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            decoder_input_ids=decoder_input_ids,
            use_cache=False,
        ).logits
        return token_nll(logits_btv, batch["labels"])

    def tally(self, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """float64[2]: NLL, targets."""
        return torch.tensor([float(self.nll(model, batch)), self.targets(batch)], dtype=torch.float64)

    def metrics(self, tally: torch.Tensor) -> dict[str, float]:
        """Loss and perplexity."""
        return language_metrics(tally)

    def references(self, _rows: TokenRows, _labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
        """None: the bare base is measured by the trials."""
        return {}


def _shifted(model: PreTrainedModel, labels_bt: torch.Tensor) -> torch.Tensor:
    """int64[b, t]: the decoder's input, by the model's own rule or with a start token before all but the last."""
    own = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if own is not None:
        return own(labels=labels_bt)  # type: ignore[no-any-return]  # a tensor
    start = labels_bt.new_full((len(labels_bt), 1), model.config.decoder_start_token_id)
    shifted = torch.cat([start, labels_bt[:, :-1]], dim=1)
    return shifted.masked_fill(shifted == IGNORE, model.config.pad_token_id)


SEQ_2_SEQ_LM = Seq2SeqLM()
