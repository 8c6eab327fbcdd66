"""Hearing of each ``self.clip_gradients(...)`` of a LightningModule before it clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from torch.optim import Optimizer

from lightning_gradwatch.asking import ask, own_attributes
from lightning_gradwatch.core._guard import attempt

if TYPE_CHECKING:
    from lightning_gradwatch._lightning import Trainer

T = TypeVar("T")


class _HeardClipping:
    """``clip_gradients`` of a precision plugin, of whose calls somebody hears first.

    A copy or a pickle of the plugin has the plain one.
    """

    def __init__(self, plugin: Any, trainer: Trainer, call: Callable[[Optimizer], None]) -> None:
        self._plain, self._own = plugin.clip_gradients, own_attributes(plugin).get("clip_gradients")
        self._hears: tuple[Trainer, Callable[[Optimizer], None]] | None = (trainer, call)

    def __call__(self, optimizer: object, *args: object, **kwargs: object) -> object:
        if self._hears is not None:
            trainer, call = self._hears
            wrapped = ask(optimizer, "optimizer")  # of Lightning's own wrapper
            for known in trainer.optimizers:
                if known is optimizer or known is wrapped:
                    call(known)
        return self._plain(optimizer, *args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        return _same, (self._plain,)

    def stop(self) -> None:
        """Hear of nothing from now on, where somebody else stands above."""
        self._hears = None

    def beneath(self) -> object:
        """What the plugin had as its own before, without others of ours that have stopped; None for nothing."""
        own = self._own
        return own.beneath() if isinstance(own, _HeardClipping) and own._hears is None else own


def _same(given: T) -> T:
    return given


def before_clipping_by_hand(trainer: Trainer, call: Callable[[Optimizer], None]) -> Callable[[], None]:
    """Hear of each ``self.clip_gradients(...)`` of a LightningModule in manual optimization before it clips.

    Args:
        trainer: The Trainer.
        call: Called with the optimizer whose gradients are about to be clipped.

    Returns:
        What undoes it. Where others have wrapped ours since, it stays below theirs, and hears of nothing any more.
    """
    plugin: Any = trainer.precision_plugin
    heard = _HeardClipping(plugin, trainer, call)
    attempt(lambda: setattr(plugin, "clip_gradients", heard))  # a plugin may refuse it

    def undo() -> None:
        heard.stop()
        if own_attributes(plugin).get("clip_gradients") is heard:
            del plugin.clip_gradients
            if (beneath := heard.beneath()) is not None:
                plugin.clip_gradients = beneath

    return undo
