"""Torch operations by shape alone, on ordinary tensors of the CPU whose storage has a size and no place.

An operation on them makes tensors of the shapes, strides and bytes that torch's own fake tensors say; that is asked
once per process for each combination of shapes, and remembered. So a training step goes through Python and autograd as
it does with weights, in no memory, and several times faster than with fake tensors. Whatever would look at content that
is not there raises: torch refuses such a storage to everything that reads or writes it.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from functools import cache
from typing import Any, Final, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

CPU: Final = torch.device("cpu")
LIFTS: Final = frozenset({"aten::lift_fresh"})  # `torch.tensor(...)`: its numbers are there
REFUSED: Final = frozenset({"aten::resize_"})  # would copy what is not there


class New(NamedTuple):
    """A tensor that an operation makes."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    meta: bool


class Given(NamedTuple):
    """One of the tensors that the operation was given, by its number among them."""

    number: int


class _Kind(NamedTuple):
    """What an operation's schema says.

    Attributes:
        view: it is carried out: its results share storage with what it is given, or it makes none.
        writes: places of the arguments that it writes to.
        names: keyword arguments that it writes to.
        returns: places of the arguments that it returns; None where it makes something, too.
        seeded: draws random numbers.
        lifts: hands on a tensor whose content is there.
    """

    view: bool
    writes: tuple[int, ...]
    names: tuple[str, ...]
    returns: tuple[int, ...] | None
    seeded: bool
    lifts: bool


VIEWS: Final = object()  # in place of a result: all of it shares storage with what was given
_results: dict[Any, Any] = {}  # by operation and shapes, for the whole process


class Contentless(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """While it is on, operations make tensors without content.

    Only what follows from tensors of `know` and from numbers alone is computed.
    """

    def __init__(self) -> None:
        """Know nothing."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._fake = FakeTensorMode()
        self._known: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it costs as much as the operation

    def know(self, tensor: torch.Tensor) -> torch.Tensor:
        """Its content counts."""
        storage, key, known = tensor.untyped_storage(), _storage(tensor), self._known

        def gone(ref: weakref.ref[Any]) -> None:
            if known.get(key) is ref:
                del known[key]

        known[key] = weakref.ref(storage, gone)
        return tensor

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """See `run`."""
        return self.run(func, args, kwargs or {})

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Off for a while; it must be the mode that was turned on last."""
        self.__exit__(None, None, None)  # type: ignore[no-untyped-call]  # as above
        try:
            yield
        finally:
            self.__enter__()  # type: ignore[no-untyped-call]  # as above

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the operation returns, without content where its tensors have none."""
        kind = _kind(func)
        if kind.lifts or (not kind.view and not kind.seeded and self._known and self._all_known(args, kwargs)):
            result = func(*args, **kwargs)
            for tensor in tensors_of(result):
                self.know(tensor)
            return result
        if kind.view:
            return func(*args, **kwargs)
        if self._known:
            for value in [args[i] for i in kind.writes if i < len(args)] + [kwargs.get(name) for name in kind.names]:
                for tensor in tensors_of(value):
                    self._known.pop(_storage(tensor), None)
        if kind.returns is None:
            return self._made(func, args, kwargs)
        chosen = [args[i] for i in kind.returns]
        return None if not chosen else chosen[0] if len(chosen) == 1 else tuple(chosen)

    def _all_known(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """At least one tensor, and none without content."""
        found = False
        for value in (*args, *kwargs.values()) if kwargs else args:
            for tensor in tensors_of(value):
                if _storage(tensor) not in self._known:
                    return False
                found = True
        return found

    def _made(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key = (func, _key(args), _key(tuple(kwargs.items()))) if kwargs else (func, _key(args))
        try:
            result = _results[key]
        except KeyError:
            result = _results[key] = self._asked(func, args, kwargs)
        if type(result) is New:
            return _empty(result)
        if result is VIEWS:
            return func(*args, **kwargs)
        given = [tensor for value in (*args, *kwargs.values()) for tensor in tensors_of(value)]
        return _filled(result, given)

    def _asked(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Let fake tensors tell what the operation makes."""
        places: set[int] = set()
        numbers: dict[int, int] = {}  # by identity

        def fake(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                empty = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
                places.add(_storage(empty))
                made = FakeTensor(self._fake, empty, value.device)
                numbers[id(made)] = len(numbers)
                return made
            return type(value)(map(fake, value)) if type(value) in (list, tuple) else value

        faked = fake(args), {name: fake(value) for name, value in kwargs.items()}
        with self._fake:
            result = func(*faked[0], **faked[1])
        found = list(tensors_of(result))
        shared = [_storage(tensor) in places for tensor in found]
        if found and all(shared) and not any(id(tensor) in numbers for tensor in found):
            return VIEWS
        return _spec(result, numbers, places)


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    """Those in an operation's argument or result: it is one, or a list of such."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for one in value:
            yield from tensors_of(one)


def _storage(tensor: torch.Tensor) -> int:
    """The address of the storage itself; torch names no public one."""
    found: int = tensor.untyped_storage()._cdata  # noqa: SLF001
    return found


def _empty(new: New) -> torch.Tensor:
    if new.meta:
        return torch.empty_strided(new.size, new.stride, dtype=new.dtype, device="meta")
    storage = torch._C._construct_storage_from_data_pointer(0, CPU, new.nbytes)  # noqa: SLF001  # no public way
    tensor = torch.empty(0, dtype=new.dtype)
    tensor.set_(storage, 0, new.size, new.stride)
    torch._C._set_throw_on_mutable_data_ptr(tensor)  # noqa: SLF001  # as fake tensors do
    return tensor


def _spec(result: Any, numbers: dict[int, int], places: set[int]) -> Any:
    if isinstance(result, torch.Tensor):
        if id(result) in numbers:
            return Given(numbers[id(result)])
        if _storage(result) in places:
            raise NotImplementedError("an operation that makes views and tensors at once")
        meta = result.device.type == "meta"
        return New(tuple(result.shape), result.stride(), result.dtype, result.untyped_storage().nbytes(), meta)
    if type(result) in (list, tuple):
        return type(result)(_spec(one, numbers, places) for one in result)
    return result


def _filled(spec: Any, given: list[torch.Tensor]) -> Any:
    if type(spec) is New:
        return _empty(spec)
    if type(spec) is Given:
        return given[spec.number]
    if type(spec) in (list, tuple):
        return type(spec)([_filled(one, given) for one in spec])
    return spec


def _key(value: Any) -> Any:
    """All of an argument that decides what the operation makes; 1, 1.0 and True do not make the same."""
    if isinstance(value, torch.Tensor):
        return (value.shape, value.stride(), value.dtype, value.is_meta)
    kind = type(value)
    if kind is tuple or kind is list:
        return tuple([_key(one) for one in value])
    return (kind, value)


@cache
def _kind(func: Any) -> _Kind:
    schema = func._schema  # noqa: SLF001  # torch's only description of an operation
    if schema.name in REFUSED:
        raise NotImplementedError(schema.name)
    written = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    marks = [one.alias_info for one in schema.returns]
    view = (
        func.namespace == "profiler"
        or torch.Tag.inplace_view in func.tags
        or (not written and bool(marks) and all(mark is not None for mark in marks))
    )
    returns: tuple[int, ...] | None = None
    if written and not any(schema.arguments[i].kwarg_only for i in written):
        sets = {frozenset(schema.arguments[i].alias_info.before_set): i for i in written}
        found = [None if mark is None else sets.get(frozenset(mark.before_set)) for mark in marks]
        if all(i is not None for i in found):
            returns = tuple(i for i in found if i is not None)
    names = tuple(schema.arguments[i].name for i in written)
    seeded, lifts = torch.Tag.nondeterministic_seeded in func.tags, schema.name in LIFTS
    return _Kind(view, tuple(written), names, returns, seeded, lifts)
