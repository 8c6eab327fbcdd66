"""GradWatch for Lightning Fabric: one line after ``fabric.setup``, and none in the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch._fabric_host import FabricHost, unwrapped
from lightning_gradwatch.config import Arguments, configure
from lightning_gradwatch.core import engines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.given import Given
from lightning_gradwatch.hearing import hear
from lightning_gradwatch.run_state import RunState
from lightning_gradwatch.session import Session
from lightning_gradwatch.watched import Stage, WatchedRun

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from lightning_gradwatch._fabric_host import Fabric

Plain = Callable[..., Any]


class GradWatch(WatchedRun):
    """Watches the gradients of a loop with Fabric, as ``lightning_gradwatch.GradWatch`` does those of a Trainer.

    It hears of ``fabric.backward``, ``fabric.clip_gradients`` and the optimizers' ``step`` by itself. It is no
    callback: Fabric calls those of a step when the gradient has been clipped and used.

    Args:
        fabric: The Fabric, whose loggers get the numbers.
        model: What ``fabric.setup`` or ``fabric.setup_module`` returned; a dict of several by name.
        optimizer: What ``fabric.setup`` or ``fabric.setup_optimizers`` returned; a list of several.
        loss_fn: How a copy of the model, as it was before ``fabric.setup``, computes the loss of a batch, for
            ``prescribe=True``; see [`watch`][lightning_gradwatch.watch].
        **arguments: Those of [`GradWatch`][lightning_gradwatch.GradWatch], such as ``auto_clip=True``;
            ``log_every_n_steps`` is 50 if it is not given. Without a logger, ``record`` names a directory for files.

    Raises:
        ValueError: If an argument is out of its range, or cannot be served here: ``sample_at="backward"``,
            or ``prescribe`` without ``loss_fn``; if the optimizer was not set up; if the strategy is none of a single
            device, DDP, FSDP and ModelParallelStrategy. At the first forward pass if ``auto_clip`` does not fit the
            optimizers.

    Examples:
        >>> model, optimizer = fabric.setup(model, optimizer)
        >>> watch = GradWatch(fabric, model, optimizer)
        >>> state = {"model": model, "optimizer": optimizer, "watch": watch}  # for fabric.save and fabric.load
    """

    def __init__(
        self,
        fabric: Fabric,
        model: nn.Module | Mapping[str, nn.Module],
        optimizer: Optimizer | list[Optimizer],
        *,
        loss_fn: Callable[..., Tensor] | None = None,
        **arguments: Unpack[Arguments],
    ) -> None:
        config = configure(**arguments)
        config.check_in_a_loop(loss_fn)
        engines.check_strategy(fabric.strategy)
        if any(base.__name__ == "DeepSpeedStrategy" for base in type(fabric.strategy).__mro__):
            cure = 'train with Fabric(strategy="fsdp"), or with DeepSpeed in a Trainer'
            raise refuse("strategy", "a single device, DDP, FSDP or ModelParallelStrategy", "DeepSpeedStrategy", cure)
        optimizers, given = unwrapped(optimizer), Given(model)
        config.check_layers(given.model)
        host = FabricHost(fabric, given, model, optimizers, loss_fn)
        super().__init__(Session(config, host, given.model, RunState()), host, given)
        heard: dict[str, Plain] = {
            "backward": self._around_backward,
            "clip_gradients_norm": self._around_clipping,
            "clip_gradients_value": self._around_clipping,
            "optimizer_step": self._around_step,
        }
        self._undo = [hear(fabric.strategy, name, around) for name, around in heard.items()]

    def _around_backward(self, plain: Plain, loss: object, *args: object, **kwargs: object) -> object:
        # what another network has made is none of ours
        if self._stage is not Stage.OPEN or not (self._has_run or self._is_told):
            return plain(loss, *args, **kwargs)
        self._session.before_backward(loss)
        told = plain(loss, *args, **kwargs)
        self._session.after_backward()
        return told

    def _around_clipping(
        self, plain: Plain, module: object, optimizer: Optimizer, *args: object, **kwargs: object
    ) -> object:
        if self._is_ours(optimizer):
            self._open()
            self._session.before_clipping(optimizer, self._host.still_scaled(optimizer))
        return plain(module, optimizer, *args, **kwargs)

    def _around_step(self, plain: Plain, optimizer: Optimizer, **kwargs: Any) -> object:
        if not self._is_ours(optimizer):
            return plain(optimizer, **kwargs)
        closure = kwargs.get("closure")
        if closure is None:
            self._before_step(optimizer)
        else:  # the gradient of the step comes with it

            def watched() -> object:
                told = closure()
                self._before_step(optimizer)
                return told

            kwargs["closure"] = watched
        told = plain(optimizer, **kwargs)
        self._count_step(optimizer)
        self._host.num_steps += 1
        return told

    def _before_step(self, optimizer: Optimizer) -> None:
        self._open()
        self._say_if_blind()
        self._session.before_step(optimizer)

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return self._stage is not Stage.CLOSED and any(each is optimizer for each in self._host.optimizers())

    def _close(self) -> None:
        super()._close()
        for undo in self._undo:
            undo()
