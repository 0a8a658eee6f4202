"""Whether the rows of a batch stay apart inside a model, as they must where trials share a pass; no weights are needed.

What can be seen from the config and from one pass over the model on the meta device. A model that no such pass goes
through, since it looks at content, counts as one whose rows stay apart: the packed engine looks again at the real one.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from lorafront.trainables.packed_base import PROBE_ROWS, PROBE_TOKENS, evaluating, is_linear, within

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel

# How configs call the number of experts of a layer, in transformers.
EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def why_mixed(model: PreTrainedModel, heads: Sequence[str] = ()) -> str:
    """What in the model mixes the rows of a batch, in words; empty where nothing is known to.

    Args:
        model: on the meta device.
        heads: modules that each trial has of its own; their linears are left out.
    """
    if _experts(model):
        return "a mixture of experts sends tokens of all rows to an expert together"
    if model.config.is_encoder_decoder:
        return ""
    output = model.get_output_embeddings()
    linears = {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and module is not output and not within(name, tuple(heads))
    }
    calls: Counter[str] = Counter()
    mixed: list[str] = []

    def note(name: str, _module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        calls[name] += 1
        if args and args[0].shape[0] != PROBE_ROWS:
            mixed.append(name)

    hooks = [module.register_forward_pre_hook(partial(note, name)) for name, module in linears.items()]
    try:
        with evaluating(model):
            tokens = torch.zeros(PROBE_ROWS, PROBE_TOKENS, dtype=torch.long, device="meta")
            model.base_model(input_ids=tokens)
    except Exception:  # noqa: BLE001, S110  # models ask for what has no content in many ways; see above
        pass
    finally:
        for hook in hooks:
            hook.remove()
    if mixed:
        return f"its linear {mixed[0]} takes the tokens of all rows together"
    again = [name for name, times in calls.items() if times > 1]
    return f"it calls its linear {again[0]} several times in a pass" if again else ""


def _experts(model: PreTrainedModel) -> bool:
    config = model.config.get_text_config()
    several = any((getattr(config, name, None) or 0) > 1 for name in EXPERTS)
    return several or any("expert" in name.lower() for name, _ in model.named_parameters())
