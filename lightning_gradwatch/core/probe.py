"""What happens at the layers' outputs and inputs, taken by hooks that exist on sampled steps only."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Set
from itertools import chain
from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.hooks import RemovableHandle, unserializable_hook

from lightning_gradwatch.core import modes
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.account import Account
from lightning_gradwatch.core.hooks import ModuleHooks
from lightning_gradwatch.core.inputs import InputFacts
from lightning_gradwatch.core.modes import is_batched, is_traced, is_wrapped, without_dispatch_modes, without_functions
from lightning_gradwatch.core.modules import facts_of
from lightning_gradwatch.core.recurrent import readable
from lightning_gradwatch.core.run_order import RunOrder
from lightning_gradwatch.core.safe_norms import norm_of, norms_over_time
from lightning_gradwatch.core.shards import is_spread, local, num_gradient_shards, num_shards, refuse_partial_sums
from lightning_gradwatch.core.tensors import is_plain, tensors_in

MAX_CALLS = 512
MAX_OUTPUTS = 4
STACK_SHARE = 20
"""Which part of Python's stack hooks may take: torch calls a module that has one through one more function."""
STRONG = 1e-8
"""A gradient whose norm was at least this does not shrink below ``SMALLEST_NORM`` from one sample to the next."""
_CONVOLUTION = nn.modules.conv._ConvNd
_Seen = Literal["outputs", "sequences", "inputs"]
"""What the probe sees; each may fail alone."""


def _never_fails(figure: _Seen) -> Callable[[Callable[..., object]], Callable[..., object]]:
    """Hooks run inside the user's forward and backward pass: there a failure of ours must end a figure, not the run.

    Nothing is computed in a mode of the user's. Inside a graph of ``torch.compile`` they do nothing, so that the
    compiler folds them away; nor do they under ``torch.jit.trace``, in a pause, nor where somebody has kept one of them
    after ``Probe.detach``.
    """

    def guard(hook: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(hook)
        def guarded(self: Probe, seen: str | _Call, *args: object) -> object:
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
                self._leave_out(figure, seen if isinstance(seen, str) else seen.name, failure)
                return None
            finally:
                self.seconds += perf_counter() - start

        return guarded

    return guard


class _Call:
    """One call of a layer; itself the hook on its outputs, that notes their gradients until somebody has read them."""

    __slots__ = ("is_strong", "name", "norms", "num_shards", "page", "probe", "session")
    __torch_unserializable__ = True  # a tensor is saved without its hooks, and torch need not warn of this one

    def __init__(self, probe: Probe, name: str, session: int, is_strong: bool) -> None:
        self.probe = probe
        self.name = name
        self.is_strong = is_strong
        self.session = session
        self.page = -1
        self.norms: list[Tensor] = []
        self.num_shards = 1

    def __call__(self, gradient: Tensor | None) -> None:
        if gradient is not None:  # autograd has None where a node passes nothing on
            self.probe._see_gradient(self, gradient)


class Probe:
    """Watches a model's layers between ``attach`` and ``detach``.

    Tensor hooks instead of module backward hooks: these break ``ReLU(inplace=True)`` and graphs of ``torch.compile``.

    Args:
        layers: The modules whose order is to be known, by name.
        profiled: Names of those whose output gradients are measured.
        recurrent: Those among them that read whole sequences (``nn.RNN``, ``nn.LSTM``, ``nn.GRU``), by name.
        fused: Those that are parts of an ``nn.TransformerEncoderLayer``. In eval mode torch runs it as one kernel,
            unless there is a hook in it; so there is none then.

    Attributes:
        account: The gradients at the layers' outputs since the last step.
        order: In which order the layers ran, ever and since ``attach``.
        left_out: Names of layers whose outputs could not be looked at, each with the reason, the first one first.
        failure: Traceback of what ended the probe, when the last layer was left out; None while there is one.
        seconds: Time spent in the hooks so far.
        strong: Names of layers whose next norms are taken in float32, see ``trust``.
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
        self.account = Account()
        self._session = 0
        self._hooked: Set[str] = frozenset()
        self.order = RunOrder()
        self._failures: dict[_Seen, Exception] = {}
        self.failure: str | None = None
        self._is_paused = False
        self.seconds = 0.0
        self._forget()

    def watch(
        self,
        layers: Mapping[str, nn.Module],
        profiled: Collection[str],
        recurrent: Collection[str] = (),
        fused: Collection[str] = (),
    ) -> None:
        """Take other layers from the next ``attach`` on; the arguments are those of the class."""
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

    def attach(self, thorough: bool = False, causes: bool = False) -> None:
        """Put the hooks in place, unless they are; what was seen before has been forgotten.

        Args:
            thorough: Whether to follow the order of the layers and count zeros in float16 output gradients, too.
            causes: Whether to look at the layers' inputs, and at each operation that the gradient passes, too.
        """
        if self._hooks.hung or self._is_paused or self.failure is not None:
            return
        self._is_thorough, self.account.tracer.is_awake = thorough, causes
        asleep = {name for name in self._fused if not facts_of(self._layers[name]).get("training")}
        self._hooked = (self._profiled if self.order.names else self._looks.keys()) - asleep
        self._hang()

    def _hang(self) -> None:
        looks = [look for name, look in self._looks.items() if name in self._hooked]
        for look, failure in self._hooks.hang(looks):
            self._leave_out("outputs", look.args[0], failure)
        sequences = [(self._layers[name], functools.partial(self._see_sequence, name)) for name in self._recurrent]
        self._hooks.hang(sequences, before=True)

    def detach(self) -> None:
        """Remove every hook and forget what was seen; safe to call at any time."""
        if self._hooks.hung or self._is_paused:
            self._is_paused = self.account.tracer.is_awake = False
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

    def inputs(self, layer: str) -> Tensor | None:
        """``describe`` of the layer's input at its last call; None if unseen.

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
        return self.account.along_time()

    def _leave_out(self, figure: _Seen, layer: str, failure: Exception) -> None:
        """Look at a figure no more; of the outputs, at those of this layer, and without the last one at nothing."""
        if figure != "outputs":
            self._failures[figure] = failure.with_traceback(None)  # which would keep the user's tensors
        elif layer in self._profiled:
            self._profiled -= {layer}
            self.account.leave_out(layer)
            self.left_out[layer] = traceback.format_exception_only(failure)[-1].strip()
            if not self._profiled:
                self.failure = "".join(traceback.format_exception(failure))

    def _forget(self) -> None:
        self._session += 1
        for handle in self._tensor_handles:
            handle.remove()
        self._tensor_handles = []
        self.order.start()
        self._inputs = InputFacts()
        self.account.forget()
        self.account.tracer.forget()

    @_never_fails("outputs")
    def _see_output(self, name: str, module: nn.Module, *seen: object) -> None:
        *given, output = seen  # the arguments, positional and by keyword, stand before it
        # the order in which layers run
        order = self.order
        order.ran.add(name)
        if name not in order.placed:
            order.place(name)
        order.previous = name
        if name not in self._profiled:
            return
        # what goes in
        if self._is_thorough and "inputs" not in self._failures:
            self._see_input(name, module, given)
        # what comes out, and which layer it reaches
        call = _Call(self, name, self._session, name in self.strong)
        outputs = (output,) if is_plain(output) else [t for t in tensors_in(output) if t.requires_grad][:MAX_OUTPUTS]
        if order.enclosed:
            order.leave(name)
        if self._is_thorough and name not in order.reached:
            order.follow(name, outputs)
        # to be called with the gradient
        for tensor in outputs:
            if tensor.requires_grad:
                if getattr(tensor.grad_fn, "dtensor_spec", None) is not None:
                    call.num_shards = num_gradient_shards(tensor)
                handle = tensor.register_hook(call)
                if tensor.is_leaf:  # a parameter that is returned would keep its hook; a graph takes it along
                    self._tensor_handles.append(handle)

    def _see_input(self, name: str, module: nn.Module, given: list[object]) -> None:
        """Note who feeds the layer, and describe the first tensor that it was called with, if that is wanted."""
        try:
            candidates = chain(filter(is_plain, given[:1]), tensors_in(given))  # most are called with a tensor
            first = next((t for t in candidates if t.is_floating_point() and t.numel()), None)
            if first is not None and first.requires_grad:
                self.order.fed.add(name)
            part = local(first.detach()) if first is not None and self.account.tracer.is_awake else None
            if part is not None and part.numel():  # a rank may hold an empty shard
                self._inputs.add(name, part, channels_first=isinstance(module, _CONVOLUTION))
        except Exception as failure:
            if is_the_users(failure):
                raise
            self._leave_out("inputs", name, failure)

    @_never_fails("outputs")
    def _see_gradient(self, call: _Call, gradient: Tensor) -> None:
        account = self.account
        # what does not belong to the loss, or comes too late
        if call.session != self._session or call.name not in self._profiled or not account.is_of_the_loss:
            return
        self.order.reached.add(call.name)
        if self.order.followed:
            self.order.begin_backward()
        if account.is_read:  # forward passes tell nothing, several may precede a step
            account.forget()
        if is_batched(gradient) or is_wrapped(gradient):  # many gradients at once are not that of the loss
            return
        if gradient.layout is not torch.strided or gradient.is_nested:
            raise TypeError("the gradient at its output is sparse or nested")
        # its norm
        part, parts = gradient, call.num_shards
        if type(gradient) is not Tensor and is_spread(gradient):
            refuse_partial_sums(gradient.placements)
            part, parts = local(gradient), num_shards(gradient)
        norm = norm_of(part, call.is_strong)
        if parts > 1:  # the ranks' norms are averaged
            norm = norm * parts**0.5
        # into the account, call by call
        if call.page != account.page:
            calls = account.calls.setdefault(call.name, [])
            if len(calls) == MAX_CALLS:
                return
            call.page, call.norms = account.page, []
            calls.append(call)
            if len(calls) > 1:  # the first of many calls may have lost nearly all of its gradient
                self.repeated.add(call.name)
        call.norms.append(norm)
        if self._is_thorough and part.dtype is torch.float16:  # no other one loses a whole gradient to rounding
            account.nonzeros[call.name] = torch.count_nonzero(part) / max(part.numel(), 1)

    @_never_fails("sequences")
    def _see_sequence(
        self, name: str, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        """Look at the gradient of a sequence; a replacement only of data, and only where nobody can tell it."""
        given = args[0] if args else kwargs.get("input")
        data = readable(module, given, self._hooks.are_alone)
        if data is None:
            return None
        is_data = not data.requires_grad
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
        account = self.account
        if gradient is not None and account.is_of_the_loss:
            if account.is_read:
                account.forget()
            if not (is_batched(gradient) or is_wrapped(gradient)):
                account.sequences[name] = norms_over_time(gradient.detach(), time, sizes)
