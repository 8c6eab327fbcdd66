"""How far the optimizer moves the weights, from a bounded sample of elements: no copy of the weights is held."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_gradwatch.core.devices import send
from lightning_gradwatch.core.engines import Access
from lightning_gradwatch.core.figures import per_layer
from lightning_gradwatch.core.groups import alike, distance, stack
from lightning_gradwatch.core.norms import dense, require_memory
from lightning_gradwatch.core.shards import Shards, is_spread, local

MAX_ELEMENTS = 256
"""Elements per parameter."""
MAX_TOGETHER = 2**16
"""Elements of all parameters: the more of these there are, the fewer elements are taken of each; 16 at least."""


class UpdateState(TypedDict, total=False):
    """What a checkpoint holds of an ``UpdateMeter``: its tensors, on the CPU."""

    sums: Tensor
    taken: Tensor
    before: Tensor | None
    has_gradient: Tensor | None


NUM_SUMS, NUM_MOMENT_SUMS = 4, 3
"""Numbers for each layer in ``UpdateMeter.sums`` and in what ``UpdateMeter.moments`` returns."""


def thin(tensor: Tensor, limit: int = MAX_ELEMENTS) -> Tensor:
    """At most ``limit`` elements at even distances, complex ones as pairs of reals; a view where that is possible."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided or tensor.is_complex():
        tensor = dense(tensor)
    step = distance(tensor.numel(), limit)
    if tensor.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(tensor):
        return tensor.as_strided((-(-tensor.numel() // step),), (step,))  # so channels-last needs no copy
    return tensor.reshape(-1)[::step]


class _Adam(NamedTuple):
    """What Adam keeps for one parameter; numbers may be tensors of one element."""

    first: Tensor
    second: Tensor
    beta1: float | Tensor
    beta2: float | Tensor
    eps: float | Tensor
    step: float | Tensor


_KEPT_BY_ADAM = {"step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "mu_product"}


def _adam_of(parameter: Tensor, group: Mapping[str, Any], state: object, num_steps: int) -> _Adam | None:
    """The moments of a parameter; None unless the optimizer keeps for it just what Adam and its kin do.

    Many others call a second moment ``exp_avg_sq`` that is one of something else, or decays in another way.
    """
    if not isinstance(state, Mapping) or not {"exp_avg", "exp_avg_sq"} <= state.keys() <= _KEPT_BY_ADAM:
        return None
    betas = group.get("betas") or (group.get("beta1"), group.get("beta2"))
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        return None
    numbers = (*betas, group.get("eps"), state.get("step", group.get("step", num_steps)))
    first, second = state["exp_avg"], state["exp_avg_sq"]
    if all(map(_is_number, numbers)) and _is_beside(first, parameter) and _is_beside(second, parameter):
        return _Adam(first, second, *numbers)
    return None


def _is_number(value: object) -> bool:
    return value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, (int, float))


def _is_beside(moment: object, parameter: Tensor) -> bool:
    """Whether a moment has a number for each element of the parameter, where that lies, and none is quantised."""
    return (
        isinstance(moment, Tensor)
        and (type(moment) is Tensor or is_spread(moment) == is_spread(parameter) is True)
        and (moment.shape, moment.device) == (parameter.shape, parameter.device)
        and moment.layout is torch.strided
        and moment.is_complex() == parameter.is_complex()
        and (moment.is_complex() or moment.is_floating_point())
    )


def _lies_beside(gradient: Tensor, parameter: Tensor) -> bool:
    """Whether a gradient has an element on this rank for each one of its parameter."""
    return not is_spread(gradient) or local(gradient).shape == local(parameter).shape


def _nothing(parameter: Tensor) -> Tensor:
    """Zeros of its shape, that take no memory."""
    return torch.zeros_like(parameter) if is_spread(parameter) else parameter.new_zeros(()).expand_as(parameter)


class UpdateMeter:
    """Compares a thinned-out copy of the weights before a step with the weights after it.

    Args:
        parameters: The watched parameters.
        layer_index: Layer of each parameter; ``num_layers`` for "not reported".
        num_layers: Number of layers.
        optimizer: Whose moments are read, if it has any.
        shards: How the parameters are spread over the ranks; what is summed here are this rank's parts.

    Attributes:
        sums: Per layer, shape ``(4, layers)``: squared change and squared weight, extrapolated to all elements; number
            of (thinned-out) elements with a gradient, and of those among them that the update left as they were.
        is_waiting: Whether weights are remembered that have not yet been compared.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        layer_index: Sequence[int],
        num_layers: int,
        optimizer: Optimizer | Access,
        shards: Shards | None = None,
    ) -> None:
        device = parameters[0].device
        kept = [i for i, p in enumerate(parameters) if p.device == device]
        is_plain = not any(is_spread(p) or p.is_complex() for p in parameters)
        bunches = alike([parameters[i] for i in kept]) if is_plain else []
        bunched = [place for places in bunches for place in places]
        kept = [kept[i] for i in (*bunched, *sorted(set(range(len(kept))) - set(bunched)))]
        ends = list(accumulate(len(places) for places in bunches))
        self._bunches = list(zip([0, *ends], ends, strict=False))
        self._parameters = [parameters[i] for i in kept]
        self._num_layers = num_layers
        self._optimizer = optimizer
        self._is_spread = any(is_spread(p) for p in self._parameters)
        self._limit = max(min(MAX_ELEMENTS, MAX_TOGETHER // len(kept)), 16)
        sizes = [p.numel() * (2 if p.is_complex() else 1) for p in (local(p) for p in self._parameters)]
        counts = [math.ceil(size / distance(size, self._limit)) for size in sizes]
        self._counts = torch.tensor(counts, device=device)
        self._num_elements = sum(counts)
        is_added = device.type != "cpu"
        self._places = self._per_element(torch.arange(len(counts), device=device)) if is_added else None
        self._layer = torch.tensor([layer_index[i] for i in kept], device=device, dtype=torch.int64)
        holds = torch.tensor([shards.shares[i] if shards else 1.0 for i in kept], dtype=torch.float32, device=device)
        factors = [size / max(count, 1) for size, count in zip(sizes, counts, strict=True)]
        extends = torch.tensor(factors, dtype=torch.float32, device=device)
        self._holds = holds
        self._weights = torch.stack([holds * extends, holds * extends, holds, holds])
        self._before: Tensor | None = None
        self._has_gradient: Tensor | None = None
        self.is_waiting = False
        self._is_taken = torch.ones((), dtype=torch.bool, device=device)
        self.sums = torch.zeros(4, num_layers, dtype=torch.float32, device=device)

    def remember(self, is_taken: Tensor) -> Tensor:
        """Call before a step: take the thinned-out weights, and where there is a gradient.

        Args:
            is_taken: Whether the optimizer will take the step, shape ``()``: a loss scaler skips those with inf.

        Returns:
            ``sums``, of the latest update seen.

        Raises:
            ValueError: If somebody has freed the memory of a weight.
        """
        require_memory([local(p) for p in self._parameters] if self._is_spread else self._parameters)
        self._is_taken = is_taken
        self._before = self._gather(self._parameters)
        self._has_gradient = self._gather(self._pushes()) != 0
        self.is_waiting = True
        return self.sums

    def note_skip(self, is_skipped: Tensor) -> None:
        """Say whether the step that is about to be taken will be skipped, shape ``()``, bool."""
        if self.is_waiting:
            self._is_taken = self._is_taken & ~is_skipped

    def _pushes(self) -> list[Tensor]:
        """Gradients where they lie element by element beside the weights, and otherwise nothing."""
        dense = [None if p.grad is None or p.grad.layout is not torch.strided else p.grad for p in self._parameters]
        gradients = zip(self._parameters, dense, strict=True)
        return [g if g is not None and (type(g) is Tensor or _lies_beside(g, p)) else _nothing(p) for p, g in gradients]

    def compare(self) -> None:
        """Call at the step after ``remember``: sets ``sums``, unless that step was not taken."""
        self.is_waiting = False
        if self._before is None or self._has_gradient is None:
            return
        change = self._gather(self._parameters) - self._before
        stuck = self._has_gradient & (change == 0)
        parts = torch.stack([change.square_(), self._before.square_(), self._has_gradient.float(), stuck.float()])
        self.sums = torch.where(self._is_taken, self._sum(parts, self._weights), self.sums)
        self._before = self._has_gradient = None

    @torch.no_grad()
    def moments(self, num_steps: int) -> Tensor:
        """What Adam and its kin know about the gradients; of other optimizers nothing is said.

        Args:
            num_steps: Steps so far, for the bias correction of optimizers that do not count their own.

        Returns:
            Per layer, shape ``(3, layers)``: the number of (thinned-out) elements with a second moment, 0 if the
            optimizer has no such moments; the number of those whose root mean square gradient lies below ``eps``; and
            the sum of squared first over second moment, which is 1 for a constant gradient and about
            ``(1 - beta1) / (1 + beta1)`` for pure noise.
        """
        found = self._adams(num_steps) if num_steps and self._optimizer.state else []
        if not any(found):
            return torch.zeros_like(self.sums[:3])
        none = [_nothing(p) for p in self._parameters]
        adams = [adam or _Adam(zeros, zeros, 0.0, 0.0, 0.0, 1.0) for adam, zeros in zip(found, none, strict=True)]
        steps = self._each([adam.step for adam in adams])  # without those that a loss scaler skipped
        first = self._gather([adam.first for adam in adams]) / (1 - self._each([a.beta1 for a in adams]) ** steps)
        second = self._gather([adam.second for adam in adams]) / (1 - self._each([a.beta2 for a in adams]) ** steps)
        alive = second > 0
        below = alive & (second.sqrt() < self._each([adam.eps for adam in adams]))
        signal = torch.where(alive, first.square() / second, 0)
        return self._sum(torch.stack([alive.float(), below.float(), signal]), self._holds)

    def _adams(self, num_steps: int) -> list[_Adam | None]:
        """What Adam keeps for each parameter."""
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        states = self._optimizer.state
        return [_adam_of(p, groups.get(id(p), {}), states.get(p), num_steps) for p in self._parameters]

    def _each(self, numbers: Sequence[float | Tensor]) -> Tensor:
        """Numbers of the parameters as numbers of their elements, without waiting for the device."""
        device = self.sums.device
        here = [float(n) if isinstance(n, Tensor) and n.is_cpu else n for n in numbers]
        if any(isinstance(n, Tensor) for n in here):  # the others are filled in on the device
            each = torch.stack([n.reshape(()).float() if isinstance(n, Tensor) else self._one(n) for n in here])
        else:
            each = send(torch.tensor(here, dtype=torch.float32), device)
        return self._per_element(each)

    def _per_element(self, each: Tensor) -> Tensor:
        return each.repeat_interleave(self._counts, output_size=self._num_elements)

    def _one(self, number: float) -> Tensor:
        return torch.full((), number, dtype=torch.float32, device=self.sums.device)

    def state_dict(self) -> UpdateState:
        """Tensors that ``load_state_dict`` takes back; of this rank's parts where parameters are spread."""
        before, pushed = (None if t is None else t.cpu().clone() for t in (self._before, self._has_gradient))
        sums, taken = self.sums.cpu().clone(), self._is_taken.cpu().clone()
        return {"sums": sums, "before": before, "has_gradient": pushed, "taken": taken}

    def load_state_dict(self, state: UpdateState) -> None:
        """Go on where ``state_dict`` was taken, unless the parameters have changed since."""
        sums, taken = state.get("sums"), state.get("taken")
        before, pushed = state.get("before"), state.get("has_gradient")
        if sums is None or taken is None or (sums.shape, taken.shape) != (self.sums.shape, self._is_taken.shape):
            return
        device, has_size = self.sums.device, (self._num_elements,)
        self.sums, self._is_taken = sums.to(device, torch.float32), taken.to(device, torch.bool)
        if before is not None and pushed is not None and before.shape == pushed.shape == has_size:
            self._before, self._has_gradient = before.to(device), pushed.to(device, torch.bool)
            self.is_waiting = True

    @torch.no_grad()
    def _gather(self, tensors: list[Tensor]) -> Tensor:
        parts = [local(t) for t in tensors] if self._is_spread else tensors
        pieces = []
        for start, end in self._bunches:
            rows = stack(parts, range(start, end))
            pieces.append(rows[:, :: distance(rows.shape[1], self._limit)].reshape(-1))
        done = self._bunches[-1][1] if self._bunches else 0
        return torch.cat([*pieces, *(thin(part, self._limit) for part in parts[done:])]).float()

    def _sum(self, values: Tensor, weights: Tensor) -> Tensor:
        """Sums over the elements of each parameter, weighted, and then over those of each layer."""
        if self._places is None:  # a CPU takes three times as long to add element by element
            reduce = torch.segment_reduce
            sums = torch.stack([reduce(row, "sum", lengths=self._counts, unsafe=True) for row in values.unbind()])
        else:
            sums = values.new_zeros(len(values), len(self._parameters)).index_add_(1, self._places, values)
        return per_layer(weights * sums, self._layer, self._num_layers)
