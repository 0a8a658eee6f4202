"""The reference is what the code says."""

from __future__ import annotations

import inspect

import pytest
import reference_search_file
from pydantic import BaseModel
from reference_commands import bracketed
from reference_pages import PAGES, REFERENCE
from reference_python import docstring

from lorafront.search.cli import app
from lorafront.search.search_file import SearchFile
from lorafront.spaces import errors


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_current(name: str) -> None:
    """What is committed is what the code says now; `python docs/generate/reference_pages.py` writes it anew."""
    made = PAGES[name]()
    assert (REFERENCE / name).read_text(encoding="utf-8") == made, "run python docs/generate/reference_pages.py"


def test_no_page_is_left_over() -> None:
    """Every page of the reference is one that is written."""
    assert {path.name for path in REFERENCE.iterdir()} == set(PAGES)


def test_every_section_of_a_search_file_is_there() -> None:
    """Also one that is nested in another."""
    defs = SearchFile.model_json_schema()["$defs"]
    known = {model.__name__ for model in reference_search_file.SECTIONS.values()}
    assert {name for name, one in defs.items() if one.get("type") == "object" and "Range" not in name} <= known


def test_every_command_says_what_it_does() -> None:
    """And stands on the page with its options."""
    page = PAGES["commands.md"]()
    for info in app.registered_commands:
        assert inspect.getdoc(info.callback)
        assert f"## lorafront {info.name or info.callback.__name__}\n" in page
    assert "| `--format` | text, repeatable |" in page
    assert "| `--port` | integer from 1 to 65535 | `5000` |" in page
    assert "--engine" not in page


def test_every_exit_code_is_in_words() -> None:
    """Each error exits with a code that the table has."""
    kinds = [kind for kind in errors.LorafrontError.__subclasses__() if kind.__module__ == errors.__name__]
    assert {kind.exit_code for kind in kinds} <= set(errors.EXIT_CODES)


@pytest.mark.parametrize(
    ("words", "default", "rest"),
    [
        ("Folder of the searches [LORAFRONT_ROOT, else runs].", "LORAFRONT_ROOT, else runs", "Folder of the searches."),
        ("Write a picture (PNG).", "", "Write a picture (PNG)."),
        ("Rows of a batch [8]; a file says its own.", "", "Rows of a batch [8]; a file says its own."),
    ],
)
def test_brackets_at_the_end_are_the_default(words: str, default: str, rest: str) -> None:
    """As options without a value in the signature say it."""
    assert bracketed(words) == (default, rest)


def test_bounds_and_choices_are_in_words() -> None:
    """What pydantic checks stands on the page."""
    rows = {row[0]: row[1] for model in (SearchFile.model_fields["budget"].annotation, SearchFile)
            for row in reference_search_file.rows(model)}  # fmt: skip
    assert rows["`trials`"] == "integer from 1 to 100000"
    assert rows["`hours`"] == "number above 0"
    assert rows["`early_stopping`"] == "`off`, `rungs`, `model`"


def test_a_field_without_a_description_is_refused() -> None:
    """So that none comes without one."""

    class Bare(BaseModel):
        value: int = 1

    with pytest.raises(SystemExit, match=r"Bare\.value has no description"):
        list(reference_search_file.rows(Bare))


def test_sections_of_a_docstring_become_lists() -> None:
    """Lines that go on stay with their entry."""

    def documented() -> None:
        """Does a thing.

        Args:
            one: the first,
                and more of it.

        Raises:
            ValueError: at times.
        """

    assert docstring(documented).splitlines() == [
        "Does a thing.", "", "Args:", "", "- `one`: the first,", "  and more of it.", "", "Raises:", "",
        "- `ValueError`: at times.",
    ]  # fmt: skip
