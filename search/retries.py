"""Which trials are run again after their worker was lost or ran out of memory, and how often.

A trial is told only when nothing is left to try; until then it keeps its number, its folder and its place in the
budget. How often each was tried stands in the study, so that a new driver goes on counting.
"""

from __future__ import annotations

from lorafront.search.study import StudyLedger
from lorafront.trainables.outcome import OUT_OF_MEMORY, Outcome
from lorafront.trainables.trial import Report

WORKER_LOSSES = 2
# Attempts after the first one, of lost workers from each rung; what is not here is told at once.
ALLOWED = {Outcome.INFRA_LOST: WORKER_LOSSES, Outcome.TIMEOUT: WORKER_LOSSES, Outcome.CUDA_OOM: 1, Outcome.HOST_OOM: 1}

MOVES = 10  # from each rung: nodes come and go, but a trial may also be what takes each one down
NOT_PACKABLE, ERROR = "not_packable", "NotPackable: "  # how an end is counted, and the error that it has


def again(ledger: StudyLedger, number: int, report: Report, rows: int) -> str:
    """How `StudyLedger.count_end` counts the end of a trial that is run again after so many rows; empty where not.

    What an engine of packs turns out not to be able to train is run once more, by stock PEFT.
    """
    if report.outcome is Outcome.USER_ERROR and ERROR in report.error and NOT_PACKABLE not in ledger.ends(number):
        return NOT_PACKABLE
    outcome = report.outcome or Outcome.INFRA_LOST
    return kind(outcome, rows) if allowed(ledger, number, outcome, rows) else ""


def kind(outcome: Outcome, rows: int) -> str:
    """How an end is counted: out of memory once and for all, a lost worker from each rung anew.

    A trial that comes forward between two losses is not their reason, and a long one meets many.
    """
    return outcome.stored if outcome in OUT_OF_MEMORY else f"{outcome.stored}@{rows}"


def allowed(ledger: StudyLedger, number: int, outcome: Outcome, rows: int) -> bool:
    """True where a trial that ended so after so many rows may be run again; `StudyLedger.count_end` says that it is."""
    return outcome in ALLOWED and ledger.ends(number).get(kind(outcome, rows), 0) < ALLOWED[outcome]


def move_kind(ledger: StudyLedger, number: int) -> str:
    """How `StudyLedger.count_end` counts that a trial lost its node."""
    return f"moved@{ledger.newest_rung(number)}"


def may_move(ledger: StudyLedger, number: int) -> bool:
    """True where a trial that lost its node goes on as if nothing was; else it lost its worker, like others."""
    return ledger.ends(number).get(move_kind(ledger, number), 0) < MOVES


def ran_out(ledger: StudyLedger, number: int) -> bool:
    """True where an earlier attempt ran out of memory: the next one gets more room."""
    return any(outcome.stored in ledger.ends(number) for outcome in OUT_OF_MEMORY)


def unpackable(ledger: StudyLedger) -> bool:
    """True where a trial could not be packed although nothing spoke against it: its model is everybody's."""
    return any(NOT_PACKABLE in ledger.ends(number) for number in ledger.configurations)


def last_chance(ledger: StudyLedger, number: int) -> bool:
    """True where one more lost worker is not followed by another attempt."""
    ends = ledger.ends(number)
    if not ends:
        return False
    rows = ledger.newest_rung(number)
    return any(
        ends.get(kind(outcome, rows), 0) >= most for outcome, most in ALLOWED.items() if outcome not in OUT_OF_MEMORY
    )
