"""What an engine says of itself: which strategies it serves, how it cuts parameters, how its gradients are reached."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch.core.shards import Cut

P = ParamSpec("P")
T = TypeVar("T")

_PARAMETERS = operator.itemgetter("params")


class Access(Protocol):
    """How the gradients of one optimizer are reached.

    Attributes:
        optimizer: The optimizer.
    """

    optimizer: Optimizer

    @property
    def groups(self) -> Sequence[Sequence[Tensor]]:
        """The parameters as the model has registered them, in the groups of the optimizer."""

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """What is measured, with the hyperparameters of its group."""

    @property
    def state(self) -> Mapping[Any, Any]:
        """What the optimizer remembers of what is measured."""

    def cuts(self) -> Mapping[int, Cut]:
        """What stands for parameters that are not measured themselves, by their ids."""

    def gradients(self) -> AbstractContextManager[None]:
        """While they are read and changed: what is measured has its gradient in ``.grad``."""

    def drop_step(self) -> None:
        """Keep the optimizer from the step that it is about to take: weights and state stay as they are."""

    def close(self) -> None:
        """Leave nothing behind."""


class Direct:
    """Gradients are where torch puts them.

    Args:
        optimizer: The optimizer.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @property
    def groups(self) -> Sequence[Sequence[Tensor]]:
        """The optimizer's own."""
        return list(map(_PARAMETERS, self.optimizer.param_groups))

    @property
    def param_groups(self) -> Sequence[Mapping[str, Any]]:
        """The optimizer's own."""
        return self.optimizer.param_groups

    @property
    def state(self) -> Mapping[Any, Any]:
        """The optimizer's own."""
        return self.optimizer.state

    def cuts(self) -> Mapping[int, Cut]:
        """Parameters are measured themselves."""
        return {}

    def gradients(self) -> AbstractContextManager[None]:
        """They are there already."""
        return nullcontext()

    def drop_step(self) -> None:
        """Torch's optimizers leave alone what has no gradient."""
        for group in self.groups:
            for parameter in group:
                parameter.grad = None

    def close(self) -> None:
        """There is nothing."""


class _Reaches(Protocol):
    _access: Access


R = TypeVar("R", bound=_Reaches)


def reaching(work: Callable[Concatenate[R, P], T]) -> Callable[Concatenate[R, P], T]:
    """Do some work while the gradients of ``self._access`` are reached."""

    @functools.wraps(work)
    def reached(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if type(self._access) is Direct:  # whose gradients are there: ordinary steps are counted in calls
            return work(self, *args, **kwargs)
        with self._access.gradients():
            return work(self, *args, **kwargs)

    return reached


class Driver(Protocol):
    """A wrapper around the model that accumulates, scales and clips by itself, behind the back of the training loop."""

    def completes_a_step(self) -> bool:
        """Whether the next call of its ``step`` changes the weights, and is not only one more micro-batch."""

    def num_steps(self) -> int:
        """Steps it has taken."""

    def loss_scale(self) -> float | None:
        """Factor that is in the gradients; None for none."""

    def max_norm(self) -> float | None:
        """At what total norm it clips; None if it does not."""


def _anything(_: object) -> None:
    """Refuse nothing."""


def _uncut(_: nn.Module) -> Mapping[int, Cut]:
    return {}


@dataclass(frozen=True)
class Engine:
    """An engine: one file, and one entry in the list.

    Attributes:
        strategies: Class names of the trainers' strategies that start it.
        check: Refuses a strategy, before anything has been spent on it, that hides what must be known.
        check_optimizer: The same of an optimizer, once there is one.
        cuts: How the parameters of a model are cut, by their ids; refuses what hides it.
        is_piece: Whether a registered parameter is not the whole, or not what the optimizer changes.
        access: How the gradients of an optimizer are reached; None where it is not of this engine, or torch's own way.
        driver: The wrapper around the model that steps by itself; None for anything else.
        is_wrapper: Whether only the wrapper around the model knows how its parameters are cut.
    """

    strategies: Iterable[str]
    check: Callable[[object], None] = _anything
    check_optimizer: Callable[[object], None] = _anything
    cuts: Callable[[nn.Module], Mapping[int, Cut]] = _uncut
    is_piece: Callable[[Tensor], bool] = lambda _: False
    access: Callable[[Optimizer], Access | None] = lambda _: None
    driver: Callable[[object], Driver | None] = lambda _: None
    is_wrapper: Callable[[object], bool] = lambda _: False
