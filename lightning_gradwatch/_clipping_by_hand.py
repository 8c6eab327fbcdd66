"""Hearing of each ``self.clip_gradients(...)`` of a LightningModule before it clips."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch.optim import Optimizer

from lightning_gradwatch.asking import ask
from lightning_gradwatch.hearing import hear

if TYPE_CHECKING:
    from lightning_gradwatch._lightning import Trainer


def before_clipping_by_hand(trainer: Trainer, call: Callable[[Optimizer], None]) -> Callable[[], None]:
    """Hear of each ``self.clip_gradients(...)`` of a LightningModule in manual optimization before it clips.

    Args:
        trainer: The Trainer.
        call: Called with the optimizer whose gradients are about to be clipped.

    Returns:
        What undoes it. Where others have wrapped ours since, it stays below theirs, and hears of nothing any more.
    """

    def around(plain: Callable[..., object], optimizer: object, *args: object, **kwargs: object) -> object:
        wrapped = ask(optimizer, "optimizer")  # of Lightning's own wrapper
        for known in trainer.optimizers:
            if known is optimizer or known is wrapped:
                call(known)
        return plain(optimizer, *args, **kwargs)

    return hear(trainer.precision_plugin, "clip_gradients", around)
