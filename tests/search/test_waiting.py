"""What is shown of a command that takes longer than a moment."""

from __future__ import annotations

import io
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lorafront.search.waiting import progress, spell, waiting


def test_a_terminal_sees_what_is_done_and_what_is_left() -> None:
    """The name of the work, then how far it is and the time left; nothing of it stays."""
    console = Console(file=io.StringIO(), width=80, force_terminal=True, color_system=None)
    with waiting("writing runs", console, clock=itertools.count(step=10).__next__) as step:
        step(2, 8)
        step(4, 8)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "writing runs" in shown
    assert "4 of 8, 20 s left" in shown
    assert shown.rstrip().endswith("\x1b[2K")  # the line is erased


def test_a_pipe_sees_nothing() -> None:
    """Only a terminal is drawn on."""
    console = Console(file=io.StringIO(), width=80, force_terminal=False)
    with waiting("writing runs", console) as step:
        step(1, 2)
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]


def test_standard_output_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """What is printed meanwhile goes to standard output where that is no terminal."""
    with waiting("writing runs", Console(file=io.StringIO(), force_terminal=True)):
        print("{}")
    assert capsys.readouterr().out == "{}\n"


def test_the_first_call_says_nothing_of_the_speed() -> None:
    """What was done earlier took no time of this command."""
    assert progress((5.0, 90), (5.0, 90), 100) == "90 of 100"
    assert progress((5.0, 90), (15.0, 95), 100) == "95 of 100, 10 s left"
    assert progress((5.0, 0), (15.0, 100), 100) == "100 of 100"


@given(st.floats(0, 1e7), st.integers(0, 1000), st.integers(0, 1000), st.integers(1, 1000))
def test_progress_never_passes_its_end(seconds: float, first: int, more: int, total: int) -> None:
    """Whatever is reported, no more than all is done."""
    said = progress((0.0, first), (seconds, first + more), total)
    assert int(said.split()[0].replace(",", "")) <= total


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (120, "2 min"), (7200, "2.0 h")])
def test_times_are_said_in_the_unit_that_suits_them(seconds: float, text: str) -> None:
    """Seconds, minutes or hours."""
    assert spell(seconds) == text
