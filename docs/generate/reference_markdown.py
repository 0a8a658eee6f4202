"""Markdown that GitHub and MkDocs read alike."""

from __future__ import annotations

from collections.abc import Sequence

NOTE = "<!-- Written by docs/generate/reference_pages.py from the code. -->"


def page(title: str, *blocks: str) -> str:
    """A page of blocks, a blank line between two."""
    return "\n\n".join([NOTE, f"# {title}", *(block.strip("\n") for block in blocks if block)]) + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; text that would end a cell is escaped."""
    cells = [[cell.replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines)
