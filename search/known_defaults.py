"""What published studies and guides say about the settings that a search compares, each with its source. Plain data.

Where the trials of a search clearly say something else, the findings point it out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorafront.spaces.presets import PRESETS
from lorafront.spaces.quantization import UNQUANTIZED

SIXTEEN_BITS = tuple(name for name in UNQUANTIZED if name != "fp32")
WIDER = "wider"  # any larger value of the search
OTHER = "other"  # any other value of the search


@dataclass(frozen=True)
class Claim:
    """A contrast and what to expect of it.

    Attributes:
        parameter: as the sampler sees it.
        before, after: the settings; after may be WIDER or OTHER.
        expects: of the second setting: to be `better`, `not better` or `not worse`, each by more than is worth naming.
        says: the claim in words.
        source: who says it.
    """

    parameter: str
    before: tuple[Any, ...]
    after: tuple[Any, ...] | str
    expects: Literal["better", "not better", "not worse"]
    says: str
    source: str


RECOMMENDED = PRESETS[0]
RATE_SOURCE = "Dettmers et al. 2023 (QLoRA), appendix B.2, for models of 7 B and 13 B"
CLAIMS: tuple[Claim, ...] = (
    Claim(
        "modules", ("attention",), ("attention+mlp", "all-linear"), "better",
        "adapters on all linear layers do better than on attention alone",
        "Dettmers et al. 2023 (QLoRA), section 4; Schulman et al. 2025, LoRA Without Regret",
    ),
    Claim(
        "rank", (RECOMMENDED.point["rank"],), WIDER, "not better",
        "more rank than 16 brings little",
        f"Dettmers et al. 2023 (QLoRA), appendix A; {RECOMMENDED.source.rsplit('; ', 1)[-1]}",
    ),
    Claim(
        "quantization", SIXTEEN_BITS, ("nf4", "nf4_double"), "not worse",
        "NF4 loses nothing against 16 bits",
        "Dettmers et al. 2023 (QLoRA), section 4",
    ),
    Claim(
        "alpha_ratio", (RECOMMENDED.point["alpha"]["ratio"],), OTHER, "not better",
        "alpha twice the rank is best",
        "Raschka 2023, Practical Tips for Finetuning LLMs Using LoRA",
    ),
)  # fmt: skip
