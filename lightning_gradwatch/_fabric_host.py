"""A Fabric, and the loop around it, as the host of a session."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_gradwatch import _places, scaling
from lightning_gradwatch.asking import ask
from lightning_gradwatch.core import engines
from lightning_gradwatch.core._check import refuse
from lightning_gradwatch.core._guard import is_the_users
from lightning_gradwatch.core.shards import is_spread
from lightning_gradwatch.given import Given
from lightning_gradwatch.host import RunInfo
from lightning_gradwatch.loop_host import LoopHost, require_optimizers
from lightning_gradwatch.paths import at

if TYPE_CHECKING:
    import lightning.fabric
    import lightning_fabric

    Fabric: TypeAlias = lightning.fabric.Fabric | lightning_fabric.Fabric

T = TypeVar("T")


class FabricHost(LoopHost):
    """A Fabric as the host of a session.

    Args:
        fabric: The Fabric.
        given: The model.
        model: The same, as Fabric has set it up: what checkpoints are made of.
        optimizers: Those that step, without Fabric's wrappers.
        loss_fn: How a copy of the model computes the loss of a batch; None if nothing is to be tried on copies.
    """

    def __init__(
        self,
        fabric: Fabric,
        given: Given,
        model: nn.Module | Mapping[str, nn.Module],
        optimizers: Sequence[Optimizer],
        loss_fn: Callable[..., Tensor] | None = None,
    ) -> None:
        super().__init__(given, optimizers, scaler=ask(fabric.strategy.precision, "scaler"), loss_fn=loss_fn)
        self._fabric = fabric
        self._models = {"model": model} if isinstance(model, nn.Module) else dict(model)
        self._summed: tuple[int, Tensor] | None = None

    def whole_loss(self, loss: Tensor) -> Tensor:
        """The sum of those of a step, with the loss scale: an accumulating loop divides each by their number."""
        scale = self.loss_scale()
        mean = loss if loss.numel() == 1 else loss.mean()
        whole = mean if scale is None else mean * scale
        if self._summed is not None and self._summed[0] == self.num_steps and not self._starts_afresh():
            whole = self._summed[1] + whole
        self._summed = (self.num_steps, whole)
        return whole

    def _starts_afresh(self) -> bool:
        """Whether the loop has dropped what it had accumulated; where ranks hold parts, nobody knows."""
        firsts = [optimizer.param_groups[0]["params"][0] for optimizer in self.optimizers()]
        return all(each.grad is None and not is_spread(each) and not engines.is_piece(each) for each in firsts)

    def ways_past_us(self) -> str:
        """How gradients may get past us in Fabric, and what to try then."""
        return (
            "Either the loss is differentiated, or the optimizer steps, past Fabric; or nothing requires a gradient in "
            "the optimizers that GradWatch was given. Try: `fabric.backward(loss)`, and `step()` of what "
            "`fabric.setup` returns."
        )

    def is_global_zero(self) -> bool:
        """Whether this is rank zero."""
        return bool(self._fabric.is_global_zero)

    def num_ranks(self) -> int:
        """Number of processes that train together."""
        return int(self._fabric.world_size)

    def broadcast(self, value: T) -> T:
        """What rank zero has; all ranks must call this together."""
        return self._fabric.broadcast(value)

    def save_checkpoint(self, path: str) -> None:
        """Save model, optimizers and step as Fabric does; all ranks must call this together."""
        optimizers = {f"optimizer_{place}": each for place, each in enumerate(self.optimizers())}
        named = {"optimizer": self.optimizers()[0]} if len(optimizers) == 1 else optimizers
        state: dict[str, Any] = {**self._models, **named, "step": self.num_steps}
        try:
            self._fabric.save(path, state)
        except Exception as failure:  # stores have errors of many kinds
            if self.num_ranks() > 1 and not is_the_users(failure):
                self._fabric.barrier()  # where the others wait
            raise

    def run_info(self) -> RunInfo:
        """Where the loggers keep the run."""
        place = _places.place_of(self._fabric.loggers)
        info = super().run_info()
        name = at(place).name if place else info.name
        return replace(info, name=name, log_dir=place, about={**info.about, "run": name})

    def checkpoint_dir(self) -> str:
        """Beside the logs."""
        return str(at(_places.place_of(self._fabric.loggers) or ".") / "checkpoints")

    def loggers(self) -> list[object]:
        """Fabric's loggers on rank zero."""
        return list(self._fabric.loggers) if self.is_global_zero() else []

    def tag_prefix(self, logger: object) -> str:
        """What a logger puts before the tags of its metrics."""
        return _places.tag_prefix(logger)

    def mixed_precision(self) -> torch.dtype | None:
        """The dtype under autocast; None for no mixed precision."""
        return scaling.mixed_precision(self._fabric.strategy.precision)


def unwrapped(optimizer: object) -> list[Optimizer]:
    """The torch optimizers within what Fabric has set up.

    Raises:
        ValueError: If one of them was not set up.
    """
    given = require_optimizers(optimizer)
    if not all(isinstance(ask(each, "_optimizer"), Optimizer) for each in given):
        rule, cure = (
            "what `fabric.setup` or `fabric.setup_optimizers` returned",
            "set it up, and pass what that returns",
        )
        raise refuse("optimizer", rule, [type(each).__name__ for each in given], cure)
    return [ask(each, "_optimizer") for each in given]
