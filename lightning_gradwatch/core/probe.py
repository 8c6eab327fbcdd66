"""What happens at the layers' outputs and inputs, taken by hooks that exist on sampled steps only."""

from __future__ import annotations

import dataclasses
import functools
import math
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle

from lightning_gradwatch.core.shards import is_spread, local, num_shards

MAX_CALLS = 512
MAX_OUTPUTS = 4
MAX_NESTING = 6
MIN_SEQUENCE = 8
MAX_INPUT_ELEMENTS = 2**14
RAIL = 0.95
"""Beyond this magnitude a tanh unit counts as saturated; a sigmoid unit beyond it or below ``1 - RAIL``."""


def _never_fails(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Hooks run inside the user's forward and backward pass: there a failure of ours must end the probe, not the run.

    Inside a graph of ``torch.compile`` they do nothing, so that the compiler folds them away; in a pause they do
    nothing either.
    """

    @functools.wraps(hook)
    def guarded(self: Probe, *args: Any) -> Any:
        if torch.compiler.is_compiling() or self.failure is not None or self.is_paused:
            return None
        try:
            return hook(self, *args)
        except Exception:
            self.failure = traceback.format_exc()
            return None

    return guarded


class Probe:
    """Watches a model's layers between :meth:`attach` and :meth:`detach`.

    Tensor hooks instead of module backward hooks: these break ``ReLU(inplace=True)`` and graphs of ``torch.compile``.

    Args:
        layers: The modules whose order is to be known, by name.
        profiled: Names of those whose output gradients are measured.
        recurrent: Those among them that read whole sequences (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``), by name.

    Attributes:
        order: Names of the layers in the order in which their first forward call ended.
        ran: Names of the layers that ran since :meth:`attach`.
        failure: Traceback of what ended the probe; None while all is well.
        is_paused: Whether to look away, as while a model is validated in the middle of a step.
    """

    def __init__(
        self, layers: Mapping[str, nn.Module], profiled: Collection[str], recurrent: Collection[str] = ()
    ) -> None:
        self.watch(layers, profiled, recurrent)
        self._handles: list[RemovableHandle] = []
        self._tensor_handles: list[RemovableHandle] = []
        self._is_thorough = False
        self.order: list[str] = []
        self.failure: str | None = None
        self.is_paused = False
        self._is_backward: bool | None = None
        self._forget()

    def watch(
        self, layers: Mapping[str, nn.Module], profiled: Collection[str], recurrent: Collection[str] = ()
    ) -> None:
        """Take other layers from the next :meth:`attach` on; the arguments are those of the class."""
        self._layers = {name: m for name, m in layers.items() if not isinstance(m, torch.jit.ScriptModule)}
        self._profiled = frozenset(profiled) & set(self._layers)
        self._recurrent = frozenset(recurrent) & self._profiled

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def can_see(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self._profiled) and self.failure is None

    def attach(self, thorough: bool = False) -> None:
        """Put the hooks in place, unless they are, and start from nothing.

        Args:
            thorough: Whether to look at the layers' inputs and count zeros in their output gradients, too.
        """
        if self._handles or self.failure is not None:
            return
        self._forget()
        self._is_thorough = thorough
        for name, module in self._layers.items():
            if name in self._profiled or not self.order:
                see = functools.partial(self._see_output, name)
                self._handles.append(module.register_forward_hook(see, with_kwargs=True))
            if name in self._recurrent:
                look = functools.partial(self._see_sequence, name)
                self._handles.append(module.register_forward_pre_hook(look, with_kwargs=True))

    def detach(self) -> None:
        """Remove every hook and forget what was seen; safe to call at any time."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._forget()

    def mark_read(self) -> None:
        """Say that an optimizer is about to step: the next backward pass starts a new account of gradients."""
        self._is_read = True

    def begin_backward(self) -> None:
        """Say that the loss is about to be differentiated.

        From the first such word on, only gradients between it and :meth:`end_backward` count: those of a
        ``torch.autograd.grad`` inside the training step (a gradient penalty, an adversarial example) are none of the
        loss. Where nobody says a word, all count but those of ``create_graph=True``.
        """
        if self._is_backward is None:
            self._forget_gradients()
        self._is_backward = True

    def end_backward(self) -> None:
        """Say that the gradients of the loss are complete."""
        self._is_backward = False

    @property
    def _is_of_the_loss(self) -> bool:
        """Whether the gradients that come now are those of the loss."""
        return not torch.is_grad_enabled() if self._is_backward is None else self._is_backward

    def norm(self, layer: str) -> Tensor | None:
        """L2 norm of dLoss/d(output), summed in squares over calls and outputs, shape ``()``; None if unseen."""
        calls = self._calls.get(layer)
        return None if calls is None else _root_of_squares([norm for call in calls.values() for norm in call])

    def zero_fraction(self, layer: str) -> Tensor | None:
        """Share of exact zeros in dLoss/d(output) of the last call, in [0, 1], shape ``()``; None if unseen."""
        return self._zeros.get(layer)

    def inputs(self, layer: str) -> Tensor | None:
        """:func:`describe` of the layer's input at its last call; None if unseen."""
        return self._inputs.get(layer)

    def sequences(self) -> dict[str, Tensor]:
        """Gradient norms over time steps, the earliest first, for layers with at least 8 of them.

        For recurrent layers the norm of dLoss/dx_t; for layers that were called repeatedly the norm at each output.
        """
        repeated = {
            name: torch.stack([_root_of_squares(call) for call in reversed(calls.values())])
            for name, calls in self._calls.items()
            if len(calls) >= MIN_SEQUENCE
        }
        return {**repeated, **{name: s for name, s in self._sequences.items() if len(s) >= MIN_SEQUENCE}}

    def _forget(self) -> None:
        for handle in self._tensor_handles:  # a parameter that is returned as an output would keep its hook for ever
            handle.remove()
        self._tensor_handles = []
        self.ran: set[str] = set()
        self._previous = ""
        self._inputs: dict[str, Tensor] = {}
        self._is_read = False
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        self._calls: dict[str, dict[int, list[Tensor]]] = {}
        self._zeros: dict[str, Tensor] = {}
        self._sequences: dict[str, Tensor] = {}

    def _turn_the_page(self) -> None:
        """Forget the gradients that have been read; forward passes tell nothing, several may precede a step."""
        if self._is_read:
            self._is_read = False
            self._forget_gradients()

    @_never_fails
    def _see_output(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if name not in self.order:  # behind the layer that ran before it, also if it first runs late in training
            place = self.order.index(self._previous) + 1 if self._previous in self.order else 0
            self.order.insert(place, name)
        self._previous = name
        self.ran.add(name)
        if name not in self._profiled:
            return
        if self._is_thorough:
            floats = (local(t.detach()) for t in tensors_in((args, kwargs)) if t.is_floating_point())
            given = next((t for t in floats if t.numel()), None)
            if given is not None:
                self._inputs[name] = describe(given, channels_first=isinstance(module, _CONVOLUTION))
        see = functools.partial(self._see_gradient, name, [])
        for tensor in [t for t in tensors_in(output) if t.requires_grad][:MAX_OUTPUTS]:
            self._tensor_handles.append(tensor.register_hook(see))

    @_never_fails
    def _see_gradient(self, name: str, call: list[Tensor], gradient: Tensor) -> None:
        if not self._is_of_the_loss:
            return
        self._turn_the_page()
        norm = _norm(local(gradient)) * num_shards(gradient) ** 0.5 if is_spread(gradient) else _norm(gradient)
        calls = self._calls.setdefault(name, {})
        if id(call) not in calls:
            if len(calls) == MAX_CALLS:
                return
            call.clear()
            calls[id(call)] = call
        call.append(norm)
        if self._is_thorough:
            part = local(gradient)
            self._zeros[name] = 1 - torch.count_nonzero(part).float() / max(part.numel(), 1)

    @_never_fails
    def _see_sequence(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs.get("input")
        if not torch.is_grad_enabled() or not isinstance(given, (Tensor, PackedSequence)):
            return None
        data = given.data if isinstance(given, PackedSequence) else given
        if not data.is_floating_point() or next(tensors_in(data), None) is not data:
            return None
        if not data.requires_grad:
            if not any(p.requires_grad for p in module.parameters()):
                return None
            data = data.detach().requires_grad_()
        sizes = given.batch_sizes.tolist() if isinstance(given, PackedSequence) else None
        given = given._replace(data=data) if isinstance(given, PackedSequence) else data
        time = 1 if data.ndim == 3 and getattr(module, "batch_first", False) else 0
        see = functools.partial(self._see_time, name, time, sizes)
        self._tensor_handles.append(data.register_hook(see))
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})

    @_never_fails
    def _see_time(self, name: str, time: int, sizes: list[int] | None, gradient: Tensor) -> None:
        if self._is_of_the_loss:
            self._turn_the_page()
            self._sequences[name] = norms_over_time(gradient.detach(), time, sizes)


_CONVOLUTION = nn.modules.conv._ConvNd


def _wide(tensor: Tensor) -> torch.dtype:
    """A dtype in which the squares of the gradients of a starving layer do not underflow."""
    if tensor.is_complex():
        return torch.complex128
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _norm(tensor: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(tensor.detach(), dtype=_wide(tensor))
    return norm.float()


def _root_of_squares(norms: list[Tensor]) -> Tensor:
    """L2 norm of norms."""
    if len(norms) == 1:
        return norms[0]
    stacked = torch.stack([norm.to(norms[0].device, non_blocking=True) for norm in norms])
    return _norm(stacked)


def norms_over_time(gradient: Tensor, time: int, sizes: list[int] | None) -> Tensor:
    """Norm of a sequence's gradient at each time step.

    Args:
        gradient: Shape ``(time, ...)`` or ``(batch, time, ...)``; packed sequences ``(sum of sizes, ...)``.
        time: The dimension of time.
        sizes: Batch sizes of the time steps of a packed sequence; None otherwise.

    Returns:
        Shape ``(time steps,)``, float32, the first step first.
    """
    if sizes is not None:
        return torch.stack([_norm(part) for part in gradient.split(sizes)])
    rows = gradient.movedim(time, 0).flatten(1) if gradient.ndim > 1 else gradient[:, None]
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=_wide(rows))
    return norms.float()


def describe(given: Tensor, channels_first: bool) -> Tensor:
    """What the input of a layer looks like, from at most about 16,000 elements.

    Args:
        given: Any floating-point tensor with a batch dimension first.
        channels_first: Whether units lie along dimension 1 (convolutions) instead of the last.

    Returns:
        Float32, shape ``(7,)``: smallest and largest element, standard deviation, share of exact zeros, share of units
        that are zero throughout, share of elements beyond 0.95 in magnitude, share of elements below 0.05.
    """
    units = 1 if channels_first and given.ndim > 2 else given.ndim - 1
    rows = given.movedim(units, -1) if given.ndim > 1 else given.reshape(-1, 1)
    rows = rows.reshape(-1, rows.shape[-1])
    rows = rows[:, :: math.ceil(rows.shape[1] / 256)]
    rows = rows[:: math.ceil(rows.numel() / MAX_INPUT_ELEMENTS)].float()
    is_zero = rows == 0
    return torch.stack(
        [
            rows.amin(),
            rows.amax(),
            rows.std(correction=0),
            is_zero.float().mean(),
            is_zero.all(0).float().mean(),
            (rows.abs() > RAIL).float().mean(),
            (rows < 1 - RAIL).float().mean(),
        ]
    )


def tensors_in(container: object, nesting: int = MAX_NESTING) -> Iterator[Tensor]:
    """The plain tensors in a tensor, tuple, list, dict or dataclass, depth first; none of ``torch.func``'s own."""
    if isinstance(container, Tensor):
        if container.layout is torch.strided and not torch._C._functorch.is_functorch_wrapped_tensor(container):
            yield container
        return
    for part in _parts(container) if nesting else ():
        yield from tensors_in(part, nesting - 1)


def _parts(container: object) -> Collection[Any]:
    if isinstance(container, PackedSequence):
        return (container.data,)
    if isinstance(container, Mapping):
        return container.values()
    if dataclasses.is_dataclass(container) and not isinstance(container, type):
        return [getattr(container, field.name, None) for field in dataclasses.fields(container)]
    return container if isinstance(container, (tuple, list)) else ()
