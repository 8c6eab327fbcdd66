"""What happens at the layers' outputs and inputs, taken by hooks that exist on sampled steps only."""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Set
from time import perf_counter
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle, unserializable_hook

from lightning_gradwatch.core import modes
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.batch import members_of
from lightning_gradwatch.core.devices import need_not_wait
from lightning_gradwatch.core.hooks import ModuleHooks
from lightning_gradwatch.core.inputs import InputFacts
from lightning_gradwatch.core.modes import (
    FakeTensor,
    is_batched,
    is_traced,
    is_wrapped,
    without_dispatch_modes,
    without_functions,
)
from lightning_gradwatch.core.modules import facts_of, parameters_of
from lightning_gradwatch.core.shards import local, num_shards

MAX_CALLS = 512
MAX_OUTPUTS = 4
MAX_NESTING = 6
MAX_PARTS = 512
"""Parts of what a layer is given or makes that are looked at."""
MIN_SEQUENCE = 8
STACK_SHARE = 20
"""Which part of Python's stack hooks may take: torch calls a module that has one through one more function."""
MAX_CONVERTED = 2**16
"""Elements that are converted to float64 for their norm; more would cost memory and time."""
STRONG = 1e-8
"""A gradient whose norm was at least this does not shrink to below ``SMALLEST_NORM`` from one sample to the next."""
SMALLEST_NORM = 1e-13
"""Norms of up to 1e8 elements are right to 1e-4 in float32 above this; below, squares underflow."""
_END = object()
_Seen = Literal["outputs", "sequences", "inputs"]
"""What the probe sees; each may fail alone."""


def _never_fails(figure: _Seen) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Hooks run inside the user's forward and backward pass: there a failure of ours must end a figure, not the run.

    Nothing is computed in a mode of the user's. Inside a graph of ``torch.compile`` they do nothing, so that the
    compiler folds them away; nor do they under ``torch.jit.trace``, in a pause, nor where somebody has kept one of them
    after :meth:`Probe.detach`.
    """

    def guard(hook: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(hook)
        def guarded(self: Probe, seen: str | _Call, *args: Any) -> Any:
            if torch.compiler.is_compiling() or figure in self._failures or not self._hooks.hung or is_traced():
                return None
            start = perf_counter()
            try:
                with without_functions():
                    if not modes.num_dispatch_modes():
                        return hook(self, seen, *args)
                    with without_dispatch_modes():
                        return hook(self, seen, *args)
            except Exception as failure:
                if is_the_users(failure):
                    raise
                self._note_failure(figure, seen if isinstance(seen, str) else seen.name, failure)
                return None
            finally:
                self.seconds += perf_counter() - start

        return guarded

    return guard


class _Call:
    """One call of a layer; itself the hook on its outputs, that notes their gradients until somebody has read them."""

    __slots__ = ("is_strong", "name", "norms", "page", "probe", "session")
    __torch_unserializable__ = True  # a tensor is saved without its hooks, and torch need not warn of this one

    def __init__(self, probe: Probe, name: str, session: int, is_strong: bool) -> None:
        self.probe = probe
        self.name = name
        self.is_strong = is_strong
        self.session = session
        self.page = -1
        self.norms: list[Tensor] = []

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is not None:  # autograd has None where a node passes nothing on
            self.probe._see_gradient(self, gradient)


class Probe:
    """Watches a model's layers between :meth:`attach` and :meth:`detach`.

    Tensor hooks instead of module backward hooks: these break ``ReLU(inplace=True)`` and graphs of ``torch.compile``.

    Args:
        layers: The modules whose order is to be known, by name.
        profiled: Names of those whose output gradients are measured.
        recurrent: Those among them that read whole sequences (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``), by name.
        fused: Those that are parts of an ``nn.TransformerEncoderLayer``. In eval mode torch runs it as one kernel,
            unless there is a hook in it; so there is none then.

    Attributes:
        order: Names of the layers in the order in which their first forward call ended.
        ran: Names of the layers that ran since :meth:`attach`.
        left_out: Names of layers whose outputs could not be looked at, each with the reason, the first one first.
        failure: Traceback of what ended the probe, when the last layer was left out; None while there is one.
        seconds: Time spent in the hooks so far.
        strong: Names of layers whose next norms are taken in float32, see :meth:`trust`.
        repeated: Names of layers that run more than once, whose norms never are.
    """

    def __init__(
        self,
        layers: Mapping[str, nn.Module],
        profiled: Collection[str],
        recurrent: Collection[str] = (),
        fused: Collection[str] = (),
    ) -> None:
        self.left_out: dict[str, str] = {}
        self.watch(layers, profiled, recurrent, fused)
        self.strong: set[str] = set()
        self.repeated: set[str] = set()
        self._hooks = ModuleHooks()
        self._tensor_handles: list[RemovableHandle] = []
        self._is_thorough = False
        self._page = self._session = 0
        self._hooked: Set[str] = frozenset()
        self.order: list[str] = []
        self._placed: set[str] = set()
        self._failures: dict[_Seen, Exception] = {}
        self.failure: str | None = None
        self._is_paused = False
        self.seconds = 0.0
        self._is_backward: bool | None = None
        self._forget()

    def watch(
        self,
        layers: Mapping[str, nn.Module],
        profiled: Collection[str],
        recurrent: Collection[str] = (),
        fused: Collection[str] = (),
    ) -> None:
        """Take other layers from the next :meth:`attach` on; the arguments are those of the class."""
        deepest = sys.getrecursionlimit() // STACK_SHARE
        self._layers = {
            name: m
            for name, m in layers.items()
            if not isinstance(m, torch.jit.ScriptModule) and name.count(".") < deepest
        }
        self._profiled = frozenset(profiled) & set(self._layers) - self.left_out.keys()
        self._recurrent = frozenset(recurrent) & self._profiled
        self._fused = frozenset(fused) & set(self._layers)
        self._looks = {name: (m, functools.partial(self._see_output, name)) for name, m in self._layers.items()}

    @property
    def is_attached(self) -> bool:
        """Whether the hooks are in place, or will be after a pause."""
        return bool(self._hooks.hung) or self._is_paused

    @property
    def can_see(self) -> bool:
        """Whether there is anything to watch."""
        return bool(self._profiled) and self.failure is None

    def attach(self, thorough: bool = False) -> None:
        """Put the hooks in place, unless they are; what was seen before has been forgotten.

        Args:
            thorough: Whether to look at the layers' inputs and count zeros in float16 output gradients, too.
        """
        if self._hooks.hung or self._is_paused or self.failure is not None:
            return
        self._is_thorough = thorough
        asleep = {name for name in self._fused if not facts_of(self._layers[name]).get("training")}
        self._hooked = (self._profiled if self.order else self._looks.keys()) - asleep
        self._hang()

    def _hang(self) -> None:
        looks = [look for name, look in self._looks.items() if name in self._hooked]
        for look, failure in self._hooks.hang(looks):
            self._leave_out(look.args[0], failure)
        sequences = [(self._layers[name], functools.partial(self._see_sequence, name)) for name in self._recurrent]
        self._hooks.hang(sequences, before=True)

    def detach(self) -> None:
        """Remove every hook and forget what was seen; safe to call at any time."""
        if self._hooks.hung or self._is_paused:
            self._is_paused = False
            self._hooks.take_down()
            self._forget()

    def pause(self) -> None:
        """Look away and leave no hook in the layers, as while a model is validated in the middle of a step.

        Some layers run in another way where there is a hook in them, and so to other numbers.
        """
        if self._hooks.hung:
            self._is_paused = True
            self._hooks.take_down()

    def resume(self) -> None:
        """Look again, and go on with what was seen before."""
        if self._is_paused:
            self._is_paused = False
            self._hang()

    def close(self) -> None:
        """Leave nothing on the model, when it is watched no more."""
        self.detach()
        self._hooks.close()

    def trust(self, norms: Mapping[str, float]) -> None:
        """Take the next norms in float32 where the latest ones were far from what its squares can hold.

        Args:
            norms: Those at the layers' outputs; what is not in there is taken in float64.
        """
        strong = {name for name, norm in norms.items() if STRONG <= norm <= 1 / STRONG}
        self.strong = (self.strong - norms.keys()) | (strong - self.repeated)

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
        """L2 norm of dLoss/d(output), summed in squares over calls and outputs, shape ``()``; None if unseen.

        Float64 where the device has it.
        """
        calls = self._calls.get(layer)
        if calls is None:
            return None
        return _root_of_squares(calls[0].norms if len(calls) == 1 else [norm for call in calls for norm in call.norms])

    def nonzero_fraction(self, layer: str) -> Tensor | None:
        """Share of elements of dLoss/d(output) that are not exactly zero, at the last call; None if unseen.

        In [0, 1], shape ``()``, float32; for float16 alone.
        """
        return self._nonzeros.get(layer)

    def inputs(self, layer: str) -> Tensor | None:
        """:func:`~lightning_gradwatch.core.inputs.describe` of the layer's input at its last call; None if unseen.

        Raises:
            Exception: What failed when inputs were looked at.
        """
        if "inputs" in self._failures:
            raise self._failures["inputs"]
        return self._inputs.get(layer)

    def sequences(self) -> dict[str, Tensor]:
        """Gradient norms over time steps, the earliest first, for layers with at least 8 of them.

        For recurrent layers the norm of dLoss/dx_t; for layers that were called repeatedly the norm at each output.

        Raises:
            Exception: What failed when sequences were looked at.
        """
        if "sequences" in self._failures:
            raise self._failures["sequences"]
        repeated = {
            name: torch.stack([_root_of_squares(call.norms) for call in reversed(calls)]).float()
            for name, calls in self._calls.items()
            if len(calls) >= MIN_SEQUENCE
        }
        return {**repeated, **{name: s for name, s in self._sequences.items() if len(s) >= MIN_SEQUENCE}}

    def _note_failure(self, figure: _Seen, layer: str, failure: Exception) -> None:
        """Leave a figure out from now on; of the outputs, those of this layer."""
        if figure == "outputs":
            self._leave_out(layer, failure)
        else:
            self._failures[figure] = failure.with_traceback(None)  # which would keep the user's tensors

    def _leave_out(self, layer: str, failure: Exception) -> None:
        """Look at the outputs of a layer no more; without the last one there is nothing to see at all."""
        if layer not in self._profiled:
            return
        self._profiled -= {layer}
        self._calls.pop(layer, None)  # a part of a norm is none
        self._nonzeros.pop(layer, None)
        self.left_out[layer] = traceback.format_exception_only(failure)[-1].strip()
        if not self._profiled:
            self.failure = "".join(traceback.format_exception(failure))

    def _forget(self) -> None:
        self._session += 1
        for handle in self._tensor_handles:
            handle.remove()
        self._tensor_handles = []
        self.ran: set[str] = set()
        self._previous = ""
        self._inputs = InputFacts()
        self._is_read = False
        self._forget_gradients()

    def _forget_gradients(self) -> None:
        self._page += 1
        self._calls: dict[str, list[_Call]] = {}
        self._nonzeros: dict[str, Tensor] = {}
        self._sequences: dict[str, Tensor] = {}

    def _turn_the_page(self) -> None:
        """Forget the gradients that have been read; forward passes tell nothing, several may precede a step."""
        self._is_read = False
        self._forget_gradients()

    @_never_fails("outputs")
    def _see_output(self, name: str, module: nn.Module, *seen: Any) -> None:
        *given, output = seen  # the arguments, positional and by keyword, stand before it
        self.ran.add(name)
        if name not in self._placed:
            self._place(name)
        self._previous = name
        if name not in self._profiled:
            return
        if self._is_thorough and "inputs" not in self._failures:
            self._see_input(name, module, given)
        call = _Call(self, name, self._session, name in self.strong)
        outputs = (output,) if is_plain(output) else [t for t in tensors_in(output) if t.requires_grad][:MAX_OUTPUTS]
        for tensor in outputs:
            if tensor.requires_grad:
                handle = tensor.register_hook(call)
                if tensor.is_leaf:  # a parameter that is returned would keep its hook; a graph takes it along
                    self._tensor_handles.append(handle)

    def _see_input(self, name: str, module: nn.Module, given: Any) -> None:
        """Describe the first tensor that the layer was called with."""
        try:
            first = next((t for t in tensors_in(given) if t.is_floating_point() and t.numel()), None)
            part = None if first is None else local(first.detach())
            if part is not None and part.numel():  # a rank may hold an empty shard
                self._inputs.add(name, part, channels_first=isinstance(module, _CONVOLUTION))
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._note_failure("inputs", name, failure)

    def _place(self, name: str) -> None:
        """Give a layer its place in the order: behind the one that ran before it, also if it first runs late."""
        self._placed.add(name)
        place = self.order.index(self._previous) + 1 if self._previous in self.order else 0
        self.order.insert(place, name)

    @_never_fails("outputs")
    def _see_gradient(self, call: _Call, gradient: Tensor) -> None:
        if call.session != self._session or call.name not in self._profiled or not self._is_of_the_loss:
            return
        if self._is_read:
            self._turn_the_page()
        if is_batched(gradient) or is_wrapped(gradient):  # many gradients at once are not that of the loss
            return
        if gradient.layout is not torch.strided or gradient.is_nested:
            raise TypeError("the gradient at its output is sparse or nested")
        part = gradient if type(gradient) is Tensor else local(gradient)
        norm = _norm(part, call.is_strong)
        if part is not gradient:
            norm = norm * num_shards(gradient) ** 0.5
        if call.page != self._page:
            calls = self._calls.setdefault(call.name, [])
            if len(calls) == MAX_CALLS:
                return
            call.page, call.norms = self._page, []
            calls.append(call)
            if len(calls) > 1:  # the first of many calls may have lost nearly all of its gradient
                self.repeated.add(call.name)
        call.norms.append(norm)
        if self._is_thorough and part.dtype is torch.float16:  # no other one loses a whole gradient to rounding
            self._nonzeros[call.name] = torch.count_nonzero(part) / max(part.numel(), 1)

    @_never_fails("sequences")
    def _see_sequence(self, name: str, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        """Look at the gradient of a sequence; a replacement only of data, and only where nobody can tell it."""
        given = args[0] if args else kwargs.get("input")
        if not torch.is_grad_enabled() or not isinstance(given, (Tensor, PackedSequence)):
            return None
        data = given.data if isinstance(given, PackedSequence) else given
        if not data.is_floating_point() or next(tensors_in(data), None) is not data:
            return None
        is_data = not data.requires_grad
        if is_data and not (_asks_for_nothing_else(module, data) and self._hooks.are_alone(module)):
            return None
        data = data.detach().requires_grad_() if is_data else data
        sizes = given.batch_sizes.tolist() if isinstance(given, PackedSequence) else None
        time = 1 if data.ndim == 3 and facts_of(module).get("batch_first") else 0
        see = unserializable_hook(functools.partial(self._see_time, name, time, sizes))
        self._tensor_handles.append(data.register_hook(see))
        if not is_data:
            return None
        given = given._replace(data=data) if isinstance(given, PackedSequence) else data
        return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "input": given})

    @_never_fails("sequences")
    def _see_time(self, name: str, time: int, sizes: list[int] | None, gradient: Tensor | None) -> None:
        if gradient is not None and self._is_of_the_loss:
            if self._is_read:
                self._turn_the_page()
            if not (is_batched(gradient) or is_wrapped(gradient)):
                self._sequences[name] = norms_over_time(gradient.detach(), time, sizes)


_CONVOLUTION = nn.modules.conv._ConvNd
_READS_INPUT = ("__call__", "_call_impl", "forward", "check_input", "check_forward_args", "get_expected_hidden_size")
"""Methods of recurrent layers that are given the input."""
_TRUSTED = ("torch.nn.modules.", "lightning_gradwatch.")
"""Modules whose code changes no input; a remedy that is tried has its own kind of recurrent layer."""
_saved_tensors_hooks = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", lambda _: None)  # from 2.8 on


def _asks_for_nothing_else(module: nn.Module, data: Tensor) -> bool:
    """Whether a recurrent layer is torch's code (or ours) from end to end, and would only add a gradient to plain data.

    Not where a gradient is of no use, or where others count what the graph saves (activation checkpointing) or follow
    the data through it (forward-mode derivatives).
    """
    kind, own = type(module), facts_of(module)
    return (
        all(getattr(kind, name).__module__.startswith(_TRUSTED) for name in _READS_INPUT)
        and not any(name in own for name in _READS_INPUT)
        and type(data) is Tensor
        and not data.is_inference()
        and any(p.requires_grad for p in parameters_of(module).values())
        and _saved_tensors_hooks(True) is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _wide(tensor: Tensor) -> torch.dtype:
    """A dtype in which the squares of the gradients of a starving layer do not underflow."""
    if tensor.is_complex():
        return torch.complex128
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def _norm(tensor: Tensor, is_strong: bool = False) -> Tensor:
    """L2 norm without a host sync, shape ``()``, float64 where the device has it and it may be needed."""
    if tensor.requires_grad:  # under create_graph=True
        tensor = tensor.detach()
    if is_strong and not tensor.is_complex():
        strong: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))
        return strong
    if tensor.numel() > MAX_CONVERTED and _wide(tensor) is torch.float64:
        return _large_norm(tensor)
    norm: Tensor = torch.linalg.vector_norm(tensor, dtype=_wide(tensor))
    return norm


def _large_norm(tensor: Tensor) -> Tensor:
    """L2 norm at the speed of the memory, where float64 would first make a copy of twice the size.

    Below what squares in float32 can hold, it is extrapolated from elements at even distances.
    """
    norm = torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).double()
    few = _some(tensor)
    estimate = torch.linalg.vector_norm(few, dtype=torch.float64) * (tensor.numel() / few.numel()) ** 0.5
    return torch.where(norm < SMALLEST_NORM, estimate, norm)


def _some(tensor: Tensor) -> Tensor:
    """At most 65,536 elements at even distances; a view."""
    for dim in range(tensor.ndim):
        step = math.ceil(tensor.numel() / MAX_CONVERTED)
        if step > 1:
            tensor = tensor[(slice(None),) * dim + (slice(None, None, step),)]
    return tensor


def _root_of_squares(norms: list[Tensor]) -> Tensor:
    """L2 norm of norms."""
    if len(norms) == 1:
        return norms[0]
    device = norms[0].device
    here = [norm if norm.device == device else norm.to(device, non_blocking=need_not_wait(device)) for norm in norms]
    root: Tensor = torch.linalg.vector_norm(torch.stack(here))
    return root


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
        return torch.stack([_norm(part) for part in gradient.split(sizes)]).float()
    rows = gradient.movedim(time, 0).flatten(1) if gradient.ndim > 1 else gradient[:, None]
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1, dtype=_wide(rows))
    return norms.float()


def is_plain(candidate: Any) -> bool:
    """Whether it is a strided tensor that holds numbers, and none of ``torch.func``'s own."""
    return (
        issubclass(type(candidate), Tensor)  # isinstance would ask the candidate itself for its class
        and candidate.layout is torch.strided
        and not candidate.is_nested
        and not candidate.is_meta
        and not isinstance(candidate, FakeTensor)
        and not is_wrapped(candidate)
    )


def tensors_in(container: object) -> Iterator[Tensor]:
    """The plain tensors in a tensor, tuple, list, dict, mapping or dataclass, depth first, each once.

    Nothing of the container's own runs: they are read where they are stored.
    """
    above: list[Iterator[Any]] = [iter((container,))]
    seen: set[int] = set()
    room = MAX_PARTS
    while above and room:
        part: Any = next(above[-1], _END)
        if part is _END:
            above.pop()
            continue
        room -= 1
        if issubclass(type(part), Tensor):
            if is_plain(part) and id(part) not in seen:
                seen.add(id(part))
                yield part
        elif len(above) <= MAX_NESTING and id(part) not in seen and _is_container(type(part)):
            seen.add(id(part))
            above.append(members_of(part) or iter(()))


def _is_container(kind: type) -> bool:
    return issubclass(kind, (tuple, list, Mapping)) or dataclasses.is_dataclass(kind)
