"""Measures a gradient on its way back from the loss: one norm for each edge between two operations."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from time import perf_counter
from typing import TypeGuard

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.alone import alone
from lightning_gradwatch.core.attribution.graph import Graph, Operation, Spot, read
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.modes import is_batched, is_traced, is_wrapped
from lightning_gradwatch.core.safe_norms import norm_of, root_of_squares

Gradients = tuple[Tensor | None, ...]


class Tracer:
    """Hooks on the nodes of one loss's graph, which go when the graph goes.

    Attributes:
        is_awake: Whether the next loss is to be traced.
        is_strong: Whether norms may be taken in float32, as the last ones tell; float64 takes several times as long.
        seconds: Time spent in the hooks so far.
    """

    def __init__(self) -> None:
        self.is_awake = False
        self.is_strong = False
        self.seconds = 0.0
        self._failure: Exception | None = None
        self._handles: list[RemovableHandle] = []
        self._operations: tuple[Operation, ...] = ()
        self._norms: list[Tensor | None] = []

    def trace(self, loss: Tensor) -> None:
        """Measure the backward pass that comes next.

        Args:
            loss: Attached to its graph.
        """
        if not self.is_awake or self._failure is not None or loss.grad_fn is None:
            return
        self.forget()
        try:
            graph = read(loss.grad_fn)
            if graph is not None:
                self._hang(graph)
        except Exception as failure:
            self._fail(failure)

    def take(self, names: Mapping[int, str], device: torch.device) -> tuple[tuple[Operation, ...], Tensor] | None:
        """What the last backward pass has shown, once.

        Args:
            names: Name of the layer of each parameter, by its ``id``.
            device: Where the norms are to be.

        Returns:
            The operations, with the names of their layers, and log10 of the norms, shape ``(norms,)``, float32, NaN
            where nothing came by; None if nothing was traced.

        Raises:
            Exception: What failed.
        """
        operations, norms = self._operations, self._norms
        self.forget()
        if self._failure is not None:
            raise self._failure
        if all(norm is None for norm in norms):
            return None
        dtype = torch.float32 if device.type == "mps" else torch.float64
        at_once, unknown = need_not_wait(device), torch.full((), math.nan, dtype=dtype, device=device)
        here = [unknown if norm is None else norm.to(device, dtype, non_blocking=at_once) for norm in norms]
        return tuple(operation.named(names) for operation in operations), torch.stack(here).log10().float()

    def forget(self) -> None:
        """Take the hooks off, and forget what they saw."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._norms, self._operations = [], [], ()

    def _hang(self, graph: Graph) -> None:
        norms: list[Tensor | None] = [None] * graph.num_norms
        self._norms, self._operations = norms, graph.operations
        self._handles = [spot.node.register_hook(functools.partial(self._see, norms, spot.of)) for spot in graph.spots]

    def _see(self, norms: list[Tensor | None], of: Spot, sent: Gradients, arrived: Gradients) -> None:
        """The hook on a node: autograd has just passed it."""
        if self._failure is not None or norms is not self._norms or is_traced():
            return
        start = perf_counter()
        try:
            self._measure(norms, of, sent, arrived)
        except Exception as failure:
            self._fail(failure)
        self.seconds += perf_counter() - start

    @alone
    def _measure(self, norms: list[Tensor | None], of: Spot, sent: Gradients, arrived: Gradients) -> None:
        if of.arrival >= 0:
            parts = [norm_of(gradient, self.is_strong) for gradient in arrived if _can_be_measured(gradient)]
            norms[of.arrival] = root_of_squares(parts) if parts else None
        for place, number in of.edges:
            gradient = sent[place]
            norms[number] = norm_of(gradient, self.is_strong) if _can_be_measured(gradient) else None

    def _fail(self, failure: Exception) -> None:
        if is_the_users(failure):
            raise failure
        self._failure = failure.with_traceback(None)  # which would keep the user's tensors


def _can_be_measured(gradient: Tensor | None) -> TypeGuard[Tensor]:
    """Whether it is a gradient of the loss in a form whose norm is known: not many at once, sparse, or nested."""
    if gradient is None or is_batched(gradient) or is_wrapped(gradient):
        return False
    return gradient.layout is torch.strided and not gradient.is_nested
