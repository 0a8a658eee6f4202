"""How a search ended by itself: the value is the sentence that the user reads, the lower-case name what is stored."""

from __future__ import annotations

from enum import Enum


class SearchEnd(Enum):
    """Why a search has no more to try, whatever is left of its budget."""

    SPACE_EXHAUSTED = "the space is exhausted: every configuration was tried, breaks a limit, or does not fit"

    @property
    def stored(self) -> str:
        """How it stands in the study."""
        return self.name.lower()

    @classmethod
    def of(cls, stored: str) -> SearchEnd:
        """The inverse of `stored`."""
        return cls[stored.upper()]
