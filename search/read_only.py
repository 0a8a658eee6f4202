"""Searches that only hold results from elsewhere: nothing of them can be run or taken out."""

from __future__ import annotations

from lorafront.search.search_file import SearchFile
from lorafront.spaces.errors import InvalidInput


def refuse_imported(search: SearchFile, doing: str) -> None:
    """Raise where the results were imported.

    Raises:
        InvalidInput: they were; says from where, and what works.
    """
    if search.imported is not None:
        raise InvalidInput(
            f"{search.name} was imported from {search.imported} and is read-only, so there is nothing to {doing}; "
            "pareto, recommend, report, list and status read it"
        )
