"""What of a search can be packed: said before it starts, refused where the file asks for packs and nothing can be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorafront.search.known_limits import configurations
from lorafront.spaces.errors import InvalidInput, Problem
from lorafront.trainables.engines import PACKED

if TYPE_CHECKING:
    from lorafront.search.prepared import Prepared


def packing_notes(prepared: Prepared) -> list[str]:
    """Which configurations are left to stock PEFT although the file says `engine: packed`, a line for each reason.

    Raises:
        InvalidInput: nothing of the space can be packed.
    """
    if prepared.search.engine != PACKED:
        return []
    space, defaults = prepared.search.space, prepared.search.training.defaults()
    found = configurations(space, defaults, prepared.canonical)
    # Nothing else decides whether one can be packed.
    kinds = {(lora.bias, lora.modules, lora.quantization): lora for lora in found}.values()
    reasons = {lora: reason for lora in kinds if (reason := prepared.why_never_packed(lora))}
    candidates = (lora for lora in kinds if lora not in reasons)
    if all(prepared.why_process(lora) for lora in candidates):
        reason = prepared.why_process(next(iter(kinds)))
        raise InvalidInput(
            [Problem(("engine",), f"no configuration of the space can be packed: {reason}; set it to auto")]
        )
    return [f"trained by stock PEFT, not in a pack: {reason}" for reason in dict.fromkeys(reasons.values())]
