"""What the inputs of layers look like: seven numbers for each, from a bounded number of its elements, on the device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_ELEMENTS = 2**14
"""Elements per input."""
MAX_UNITS = 256
MAX_HELD = 2**16
"""Elements that wait to be described together: 256 kB."""
RAIL = 0.95
"""Beyond this magnitude a tanh unit counts as saturated; a sigmoid unit beyond it or below ``1 - RAIL``."""


class InputFacts:
    """Describes the latest input of each layer, those of one shape together, in as few kernels as one alone takes."""

    def __init__(self) -> None:
        self._facts: dict[str, Tensor] = {}
        self._held: dict[str, Tensor] = {}
        self._num_held = 0

    def add(self, layer: str, given: Tensor, channels_first: bool) -> None:
        """Take in an input.

        Args:
            layer: Name of the layer.
            given: As for ``describe``; a part of it is copied, so that it may be changed in place afterwards.
            channels_first: As for ``describe``.
        """
        rows = thin_rows(given, channels_first).to(torch.float32, copy=True)
        self._held[layer] = rows
        self._num_held += rows.numel()
        if self._num_held > MAX_HELD:
            self._describe()

    def get(self, layer: str) -> Tensor | None:
        """``describe`` of the layer's latest input; None without one."""
        if self._held:
            self._describe()
        return self._facts.get(layer)

    def _describe(self) -> None:
        alike: dict[tuple[torch.Size, torch.device], list[str]] = {}
        for name, rows in self._held.items():
            alike.setdefault((rows.shape, rows.device), []).append(name)
        for names in alike.values():
            facts = _describe_rows(torch.stack([self._held[name] for name in names]))
            self._facts.update(zip(names, facts.unbind(), strict=True))
        self._held, self._num_held = {}, 0


def describe(given: Tensor, channels_first: bool) -> Tensor:
    """What the input of a layer looks like, from at most about 16,000 elements.

    Args:
        given: Any floating-point tensor with a batch dimension first.
        channels_first: Whether units lie along dimension 1 (convolutions) instead of the last.

    Returns:
        Float32, shape ``(7,)``: smallest and largest element, standard deviation, share of exact zeros, share of units
        that are zero throughout, share of elements beyond 0.95 in magnitude, share of elements below 0.05.
    """
    return _describe_rows(thin_rows(given, channels_first).float()[None])[0]


def thin_rows(given: Tensor, channels_first: bool) -> Tensor:
    """A part of an input with one unit per column, shape ``(rows, units)``; the arguments are ``describe``'s."""
    if given.ndim != 2:
        units = 1 if channels_first and given.ndim > 2 else given.ndim - 1
        rows = given.movedim(units, -1) if given.ndim > 1 else given.reshape(-1, 1)
        given = rows.reshape(-1, rows.shape[-1])
    if given.shape[1] > MAX_UNITS:
        given = given[:, :: math.ceil(given.shape[1] / MAX_UNITS)]
    return given[:: math.ceil(given.numel() / MAX_ELEMENTS)] if given.numel() > MAX_ELEMENTS else given


def _describe_rows(inputs: Tensor) -> Tensor:
    """Describe inputs of one shape, ``(inputs, rows, units)``; shape ``(inputs, 7)``.

    On a CPU sums of signs take a fifth of the time of counts, and the norm a twentieth of that of ``std``; so that it
    does not cancel out, it is taken of the distances to one of the elements.
    """
    flat = inputs.flatten(1)
    magnitudes, work = flat.abs(), torch.empty_like(flat)
    torch.sub(flat, flat[:, :1], out=work)
    variance = torch.linalg.vector_norm(work, dim=1).square() / flat.shape[1] - work.mean(1).square()
    above = torch.sub(flat, 1 - RAIL, out=work).sign_().mean(1)
    beyond = torch.sub(magnitudes, RAIL, out=work).sign_().mean(1)
    alive = magnitudes.view_as(inputs).amax(1).sign_().mean(1)
    nonzero = magnitudes.sign_().mean(1)
    shares = [1 - nonzero, 1 - alive, (1 + beyond) / 2, (1 - above) / 2]
    return torch.stack([flat.amin(1), flat.amax(1), variance.clamp_(min=0).sqrt_(), *shares], dim=1)
