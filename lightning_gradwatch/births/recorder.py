"""Every operation of a step whose result is not finite: where it ran, and from which others its trouble comes."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gradwatch.births.lines import Line
from lightning_gradwatch.births.records import Stage
from lightning_gradwatch.births.words import explain

_UNWRITTEN = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "resize_")
"""Operations whose result holds whatever was in memory."""


class TooSlowError(RuntimeError):
    """The replay takes longer than it may."""


@dataclass(eq=False)
class Event:
    """An operation whose result is not finite, or something that was so from the beginning.

    Attributes:
        number: Of all operations, in the order in which they ran; -1 for what was there before, and the largest of all
            for buffers.
        stage: Part of the step.
        module: Path of the module.
        line: Line of the user's code.
        operation: Name in torch.
        what: What happened, in words.
        has_nan: Whether there is NaN in the result, not only infinity.
        num_bad: Elements that are not finite.
        num_elements: Elements.
        samples: Rows that are not finite, if there are as many rows as samples in the batch.
        parents: What made its inputs not finite.
        is_meant: Whether the infinity was written there by a constant, as masks do.
    """

    number: int
    stage: Stage
    module: str
    line: Line | None
    operation: str
    what: str
    has_nan: bool
    num_bad: int
    num_elements: int
    samples: tuple[int, ...] = ()
    parents: list[Event] = field(default_factory=list)
    is_meant: bool = False


@dataclass(frozen=True)
class Where:
    """Which part of a step is running."""

    stage: Stage
    module: str
    line: Line | None
    node: str = ""


class Recorder(TorchDispatchMode):
    """Looks at the result of every operation, and follows what is not finite from one to the next.

    Only what is not finite is kept, by the place of its storage in memory: no tensor lives longer than it would.

    Args:
        where: Says which part of the step is running.
        num_samples: Samples in the batch; 0 if that is not known.
        deadline: Value of ``perf_counter`` at which it gives up.
    """

    def __init__(self, where: Callable[[], Where], num_samples: int, deadline: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._where = where
        self._num_samples = num_samples
        self._deadline = deadline
        self._events: dict[int, Event] = {}
        self._number = 0

    def begin_with(self, name: str, stage: Stage, tensor: Tensor, is_last: bool = False) -> None:
        """Remember something that is there before the step: an input, a parameter, a buffer.

        Args:
            name: Its name.
            stage: Part of the step.
            tensor: What it holds.
            is_last: Whether it is blamed only where nothing else can be: the step itself may have spoilt a buffer.
        """
        if (ends := _ends(tensor)) is None or _are_finite(ends):
            return
        bad = ~tensor.detach().isfinite()
        has_nan = bool(tensor.detach().isnan().any())
        what = f"{'NaN' if has_nan else 'infinite values'} in {int(bad.sum())} of {tensor.numel()} elements"
        # masks hold minus infinity, and mean it
        is_meant = not has_nan and (stage == "weights" or ends[1] < math.inf)
        number, num_bad, rows = sys.maxsize if is_last else -1, int(bad.sum()), self._rows(bad)
        self._events[_place(tensor)] = Event(
            number, stage, name, None, "", what, has_nan, num_bad, tensor.numel(), rows, [], is_meant
        )

    def event_of(self, tensor: Tensor) -> Event | None:
        """What has made a tensor not finite; None if it is finite, or nobody knows."""
        ends = _ends(tensor)
        return None if ends is None or _are_finite(ends) else self._events.get(_place(tensor))

    def first_gradient(self, parameters: Iterable[Tensor]) -> Event | None:
        """Of the gradients that are not finite, that whose trouble began first; None if all are finite."""
        grads = (p.grad for p in parameters if p.grad is not None)
        found = [event for event in map(self.event_of, grads) if event is not None]
        return min(found, key=lambda event: origin(event).number, default=None)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.split("::")[-1]
        self._number += 1
        if perf_counter() > self._deadline:
            raise TooSlowError
        written = list(_written(func, args, kwargs))
        before = {id(t): (t.detach().clone(), self.event_of(t)) for t in written} if written else {}
        result = func(*args, **kwargs)
        where = self._where()
        if name in _UNWRITTEN:
            return result
        inputs = list(_tensors((args, kwargs)))
        places = {_place(tensor) for tensor in inputs}
        given = _flat((*args, *kwargs.values()))
        for out in _tensors(written or result):
            if not written and _place(out) in places:
                continue  # a view
            ends = _ends(out)
            if ends is not None and not _are_finite(ends):
                self._events[_place(out)] = self._event(name, where, given, before, out)
            elif not written or out.numel() * out.element_size() == out.untyped_storage().nbytes():
                self._events.pop(_place(out), None)
        return result

    def _event(
        self,
        name: str,
        where: Where,
        given: list[object],
        before: Mapping[int, tuple[Tensor, Event | None]],
        out: Tensor,
    ) -> Event:
        inputs: list[Tensor] = []
        parents: list[Event] = []
        for tensor in (part for part in given if isinstance(part, Tensor)):
            kept, event = before.get(id(tensor), (tensor, None))
            inputs.append(kept)
            ends = _ends(kept)
            if ends is not None and not _are_finite(ends):
                parents.append(event or self._events.get(_place(tensor)) or _unknown(kept, where))
        scalars = [part for part in given if isinstance(part, (int, float)) and not isinstance(part, bool)]
        bad = ~out.detach().isfinite()
        what = explain(name, inputs, scalars, out, bool(parents))
        return Event(
            self._number,
            where.stage,
            where.module,
            where.line,
            name,
            f"in the derivative of {where.node}, {what}" if where.node else what,
            bool(out.detach().isnan().any()),
            int(bad.sum()),
            out.numel(),
            self._rows(bad),
            parents,
            is_meant=not parents and any(not math.isfinite(scalar) for scalar in scalars),
        )

    def _rows(self, bad: Tensor) -> tuple[int, ...]:
        if not self._num_samples or bad.ndim == 0 or bad.shape[0] != self._num_samples:
            return ()
        rows = bad.flatten(1).any(1) if bad.ndim > 1 else bad
        return tuple(rows.nonzero().flatten().tolist()) if not bool(rows.all()) else ()


def origin(event: Event) -> Event:
    """The event in which the trouble of this one began.

    An infinity that a mask has written is no trouble; NaN that is made of it is.
    """
    seen: set[int] = set()
    while event.parents and id(event) not in seen:
        seen.add(id(event))
        # a buffer is blamed where nothing else can be
        known = [parent for parent in event.parents if parent.number < sys.maxsize] or event.parents
        parents = [parent for parent in known if parent.has_nan] if event.has_nan else known
        if not parents:  # NaN, out of infinities
            parents = [parent for parent in known if not origin(parent).is_meant]
            if not parents:
                return event
        event = min(parents, key=lambda parent: parent.number)
    return event


def _unknown(tensor: Tensor, where: Where) -> Event:
    """What came in here, and no operation of this step has made."""
    has_nan = bool(tensor.detach().isnan().any())
    bad = int((~tensor.detach().isfinite()).sum())
    what = (
        f"{'NaN' if has_nan else 'infinite values'} came in that no operation of this step has made: a constant of the "
        "code, or a part of the batch that cannot be looked at"
    )
    stage, module, line = where.stage, where.module, where.line
    return Event(-1, stage, module, line, "", what, has_nan, bad, tensor.numel(), is_meant=not has_nan)


def _tensors(parts: object) -> Iterator[Tensor]:
    if isinstance(parts, Tensor):
        yield parts
    elif isinstance(parts, (list, tuple)):
        for part in parts:
            yield from _tensors(part)
    elif isinstance(parts, dict):
        yield from _tensors(list(parts.values()))


def _flat(parts: Iterable[object]) -> list[object]:
    """Arguments, with the tensors of lists one by one."""
    return [each for part in parts for each in (part if isinstance(part, (list, tuple)) else [part])]


def _written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """The arguments that an operation writes to."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given = kwargs.get(argument.name) if argument.kwarg_only or place >= len(args) else args[place]
            yield from _tensors(given)


def _ends(tensor: Tensor) -> tuple[float, float] | None:
    """Least and greatest element, NaN if there is one; None where that cannot be said, or is of no interest."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or tensor.is_meta:
        return None
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.detach().resolve_conj())
    if not tensor.is_floating_point() or not tensor.numel():
        return None
    try:
        low, high = torch.aminmax(tensor.detach())
    except RuntimeError:  # of a kind of numbers that torch cannot compare
        return None
    return float(low), float(high)


def _are_finite(ends: tuple[float, float]) -> bool:
    return math.isfinite(ends[0]) and math.isfinite(ends[1])


def _place(tensor: Tensor) -> int:
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # it has none
        return id(tensor)
