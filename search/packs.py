"""Which trials run in which worker, and which fit beside them. Pure.

A worker holds a pack: trials that train together, as many as its slots, its memory and a pass allow. A trial of the
process engine is a pack of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from lorafront.search.placement import Placement, Seat


@dataclass(frozen=True)
class Need:
    """What a trial takes of the worker that it runs in.

    Attributes:
        key: of its base.
        alone: it is no part of a pack, so its worker has no other trial.
        base: bytes of its base, which trials of one key share; 0 where memory does not matter.
        slot: bytes that it takes beside the base, with a margin; 0 where memory does not matter.
        most: trials of its kind that one pass is worth.
    """

    key: str
    alone: bool = True
    base: int = 0
    slot: int = 0
    most: int = 1


@dataclass
class Worker:
    """One that lives.

    Attributes:
        limit: trials that it may have at once.
        members: those that it has, by number.
    """

    limit: int
    members: dict[int, Need] = field(default_factory=dict)

    @property
    def keys(self) -> set[str]:
        """Of the bases that it holds."""
        return {need.key for need in self.members.values()}


class Packs:
    """The workers of one driver."""

    def __init__(self, placement: Placement, slots: int | None = None, workers: int = 1) -> None:
        """Nobody works yet.

        Args:
            placement: who sits where; asked here, told by `begin` and `end`.
            slots: trials in flight at most, over all workers; None packs nothing, so each worker has one at a time.
            workers: that the slots are spread over.
        """
        self.placement = placement
        self.slots = slots
        self.limit = 1 if slots is None else -(-slots // workers)  # of a worker that begins
        self.workers: dict[str, Worker] = {}
        self._most = workers

    @property
    def running(self) -> frozenset[int]:
        """Numbers of the trials in flight."""
        return frozenset(number for worker in self.workers.values() for number in worker.members)

    def members(self, who: str | None) -> dict[int, Need]:
        """The trials of a worker; none of one that is not there yet."""
        return self.workers[who].members if who in self.workers else {}

    def keys(self, who: str | None) -> set[str]:
        """The bases that a worker holds."""
        return self.workers[who].keys if who in self.workers else set()

    def has_slot(self, who: str | None) -> bool:
        """Whether a worker may have one more trial, whatever that needs; None is one that is not there yet."""
        if self.slots is not None and len(self.running) >= self.slots:
            return False
        if who is None:
            return self.slots is None or self.placement.has_any_room()
        return len(self.members(who)) < self.workers[who].limit

    def fits(self, who: str | None, need: Need, seat: Callable[[], Seat]) -> bool:
        """Whether a trial can begin there now.

        Args:
            who: the worker; None is one that is not there yet.
            need: of the trial.
            seat: the least that the trial needs where it is alone.
        """
        if not self.has_slot(who):
            return False
        if who is None:
            return self.placement.has_room(seat() if need.alone else self._least(need))
        members = self.members(who)
        if need.alone:
            others = sum(bool(other.members) for name, other in self.workers.items() if name != who)
            return not members and self.placement.goes_on(who, seat(), others)
        if any(member.alone for member in members.values()):
            return False
        same = [member.most for member in members.values() if member.key == need.key]
        return len(same) < min([need.most, *same]) and self.placement.holds(who, _bytes([*members.values(), need]))

    def could_have(self, who: str, need: Need, seat: Callable[[], Seat]) -> bool:
        """Whether a trial would fit into a worker that had no other."""
        if need.alone:
            return self.placement.contains(who, seat())
        return self.placement.holds(who, _bytes([need]))

    def seat_for(self, need: Need, seat: Callable[[], Seat]) -> Seat:
        """What a new worker gets that begins with a trial: of a pack, room for as many as its slots."""
        if need.alone:
            return self.placement.widened(seat())
        wide = self.placement.pack_seat(need.key, _bytes([need] * min(self.limit, need.most)))
        return self.placement.widened(wide if self.placement.has_room(wide) else self._least(need), self._most)

    def begin(self, who: str, seat: Seat) -> None:
        """A worker begins."""
        self.placement.take(who, seat)
        self.workers[who] = Worker(self.limit)

    def join(self, who: str, number: int, need: Need) -> float:
        """A trial joins a worker; returns which part of it the trial takes."""
        worker = self.workers[who]
        worker.members[number] = need
        return 1 / (1 if need.alone else worker.limit)

    def leave(self, who: str, number: int) -> None:
        """A trial has left its worker."""
        self.workers[who].members.pop(number, None)

    def shrink(self, who: str, limit: int) -> None:
        """A worker turned out to be too small for more than so many."""
        self.workers[who].limit = max(1, min(self.workers[who].limit, limit))

    def end(self, who: str) -> None:
        """A worker is gone, with what it had; nothing where it never began."""
        self.workers.pop(who, None)
        self.placement.leave(who)

    def _least(self, need: Need) -> Seat:
        return self.placement.pack_seat(need.key, _bytes([need]))


def _bytes(needs: Iterable[Need]) -> int:
    """Of these together: each base once, and the slots on them."""
    needs = list(needs)
    return sum({need.key: need.base for need in needs}.values()) + sum(need.slot for need in needs)
