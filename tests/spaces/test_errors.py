"""Errors: the tree, their exit codes, and how a place in a file reads."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorafront.spaces import errors
from lorafront.spaces.errors import InvalidInput, LorafrontError, Problem, did_you_mean, dotted

KEYS = st.from_regex(r"[a-z_]{1,8}", fullmatch=True)
OURS = [cls for cls in LorafrontError.__subclasses__() if cls.__module__ == errors.__name__]


def test_tree_is_the_one_that_the_docstring_draws():
    """The module's docstring names every error with the builtin that it refines."""
    drawn = dict(re.findall(r"── (\w+) \((\w+)\)", errors.__doc__ or ""))
    assert {cls.__name__: cls.__bases__[1].__name__ for cls in OURS} == drawn


@pytest.mark.parametrize("error", OURS)
def test_exit_codes_differ_from_success_and_from_a_crash(error):
    """Every error on purpose exits with a code of its own kind, neither 0 nor 1."""
    assert 2 <= error.exit_code <= 6


@given(KEYS, st.lists(st.one_of(KEYS, st.integers(0, 999))))
def test_dotted_can_be_read_back(first, rest):
    """A dotted path keeps every key and every index in order."""
    parts = re.findall(r"\[(\d+)\]|([a-z_]+)", dotted([first, *rest]))
    assert [int(index) if index else key for index, key in parts] == [first, *rest]


def test_dotted_of_nothing_is_empty():
    """A problem with the whole input has no place, and no colon in front of its message."""
    assert dotted(()) == ""
    assert str(Problem((), "is wrong")) == "is wrong"
    assert str(Problem(("space", "rank", 0), "is wrong")) == "space.rank[0]: is wrong"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("rnak", " Did you mean 'rank'?"), ("rank", " Did you mean 'rank'?"), ("zzz", ""), ("", "")],
)
def test_did_you_mean_names_what_is_near(word, hint):
    """A hint names the nearest known word, and is empty where none is near."""
    assert did_you_mean(word, iter(["alpha", "rank"])) == hint


@given(st.text(max_size=8), st.lists(st.text(max_size=8)))
def test_did_you_mean_never_invents(word, known):
    """A hint only ever names a known word."""
    assert did_you_mean(word, known) in {"", *(f" Did you mean {name!r}?" for name in known)}


def test_invalid_input_says_all_problems():
    """The text of the error has one line for each problem."""
    error = InvalidInput([Problem(("a",), "one"), Problem(("b", 1), "two")])
    assert str(error) == "a: one\nb[1]: two"


def test_invalid_input_takes_one_sentence():
    """A sentence instead of a list is one problem with the whole input."""
    assert InvalidInput("cannot read it").problems == [Problem((), "cannot read it")]


def test_invalid_input_crosses_processes():
    """A worker's InvalidInput arrives with the problems that it left with."""
    error = pickle.loads(pickle.dumps(InvalidInput([Problem(("a",), "one")])))
    assert (error.problems, str(error)) == ([Problem(("a",), "one")], "a: one")
