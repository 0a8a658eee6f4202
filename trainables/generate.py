"""What a base says to prompts, bare or with a trial's adapter on it.

Greedy, and one prompt at a time: it says the same each time, and no padding changes a digit. Nothing is sampled or
penalized, whatever the base's own generation settings are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from transformers import GenerationConfig

from lorafront.trainables.prompts import CLASSIFIES, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorafront.trainables.config import TrialConfig
    from lorafront.trainables.frozen_base import FrozenBase

KEPT = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")  # where texts begin


@dataclass(frozen=True)
class Said:
    """What one model says to one prompt.

    Attributes:
        text: of a classifier the label.
        ended: False where the tokens ran out before it came to an end.
        probability: of the label; None where text was generated.
    """

    text: str
    ended: bool = True
    probability: float | None = None


class Speaker:
    """A base that answers prompts; adapters are put on and taken off."""

    def __init__(
        self, base: FrozenBase, tokenizer: PreTrainedTokenizerBase, pad_id: int, labels: Sequence[str] = ()
    ) -> None:
        """Make it greedy.

        Args:
            base: in no trial's hands; its generation settings are replaced.
            tokenizer: of the base.
            pad_id: that the trials padded with.
            labels: of a classifier.
        """
        self.base = base
        self._tokenizer = tokenizer
        self._labels = labels
        base.model.config.pad_token_id = pad_id  # a classifier on a decoder looks for the end of a row by it
        own = getattr(base.model, "generation_config", None)
        self._ends = _ends(own, tokenizer)
        if own is not None:
            kept = {name: value for name in KEPT if (value := getattr(own, name, None)) is not None}
            base.model.generation_config = GenerationConfig(
                do_sample=False, num_beams=1, eos_token_id=self._ends or None, pad_token_id=pad_id, **kept
            )

    @contextmanager
    def adapted(self, config: TrialConfig, adapter: Path) -> Iterator[None]:
        """The adapter of a PEFT folder on the base while the block runs; what it trained of the base is undone."""
        model = self.base.attach(config)
        try:
            set_peft_model_state_dict(model, load_peft_weights(str(adapter), device=str(self.base.device)))
            yield
        finally:
            self.base.detach(model)

    @torch.no_grad()
    def say(self, prompt: Prompt, tokens: int) -> Said:
        """Answer it.

        Args:
            prompt: encoded.
            tokens: new ones at most.
        """
        model = self.base.model.eval()
        ids = torch.tensor([prompt.ids], dtype=torch.int64, device=self.base.device)
        mask = torch.ones_like(ids)
        if self.base.task.peft_type == CLASSIFIES:
            chances = model(input_ids=ids, attention_mask=mask).logits[0].float().softmax(0)
            best = int(chances.argmax())
            return Said(self._labels[best], probability=float(chances[best]))
        whole = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=tokens)[0].tolist()
        new = whole[1 if model.config.is_encoder_decoder else len(prompt.ids) :]
        text = self._tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return Said(str(text), ended=bool(new) and new[-1] in self._ends)


def _ends(own: GenerationConfig | None, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens that end a text: the base's own, and the one that stood behind every training row."""
    named = getattr(own, "eos_token_id", None)
    known = named if isinstance(named, list) else [named]
    return sorted({int(token) for token in (*known, tokenizer.eos_token_id) if token is not None})
