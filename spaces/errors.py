"""Every error that lorafront raises on purpose. Each also inherits the builtin that it refines.

    LorafrontError
    ├── InvalidInput (ValueError)              a list of problems: path in the file, value found, what to do
    ├── SearchExists (FileExistsError)         the name is taken
    ├── SearchNotFound (FileNotFoundError)     no search of that name
    ├── SearchOwned (RuntimeError)             another driver is alive
    ├── StateUnreadable (RuntimeError)         a study or a checkpoint that cannot be read; nothing is started over
    ├── CheckpointInvalid (ValueError)         a checkpoint whose manifest does not verify
    ├── NoCluster (ConnectionError)            a Ray cluster that does not answer, or refuses
    ├── NotTraced (RuntimeError)               a model whose peak memory cannot be told before it trains
    ├── Incomplete (RuntimeError)              the search stopped before its budget was spent; `resume` goes on
    └── NoFront (LookupError)                  no feasible trial at full fidelity

`exit_code` is what the command line exits with; `EXIT_CODES` says in words what each means.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

EXIT_CODES = {
    0: "done",
    1: "an error that nobody expected, with its traceback",
    2: "bad input",
    3: "another process runs this search",
    4: "no feasible trial at full fidelity, or none that fits",
    5: "stopped or interrupted, `lorafront resume` goes on",
    6: "state that cannot be read",
    130: "ended at once by a second signal, `lorafront resume` goes on as well",
}


class LorafrontError(Exception):
    """Root of the tree."""

    exit_code: int = 1


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    Attributes:
        path: where, as keys in the file (`("space", "rank", 0)`); empty where the whole input is meant.
        message: the rule, the value found, what to do.
    """

    path: tuple[str | int, ...]
    message: str

    def __str__(self) -> str:
        where = dotted(self.path)
        return f"{where}: {self.message}" if where else self.message


class InvalidInput(LorafrontError, ValueError):
    """The input breaks rules; all that could be found at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | str) -> None:
        self.problems = [Problem((), problems)] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class NotTraced(LorafrontError, RuntimeError):
    """A model whose training step cannot be run on tensors without content."""

    exit_code = 2


class NoCluster(LorafrontError, ConnectionError):
    """A Ray cluster does not answer, or refuses what is asked."""

    exit_code = 2


class SearchExists(LorafrontError, FileExistsError):
    """A search of that name exists already."""

    exit_code = 2


class SearchNotFound(LorafrontError, FileNotFoundError):
    """No search of that name under the root."""

    exit_code = 2


class SearchOwned(LorafrontError, RuntimeError):
    """Another driver owns the search."""

    exit_code = 3


class StateUnreadable(LorafrontError, RuntimeError):
    """State on disk cannot be read."""

    exit_code = 6


class CheckpointInvalid(LorafrontError, ValueError):
    """A checkpoint folder is not what its manifest says."""

    exit_code = 6


class Incomplete(LorafrontError, RuntimeError):
    """The search stopped early and can be resumed."""

    exit_code = 5


class NoFront(LorafrontError, LookupError):
    """There is no feasible trial at full fidelity."""

    exit_code = 4


def dotted(path: Iterable[str | int]) -> str:
    """`("space", "rank", 0)` as `space.rank[0]`."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'rank'?`, or an empty string where nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else ""
