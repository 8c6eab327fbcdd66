"""What may change a step: clipping its gradient, or keeping the optimizer from taking it."""

from __future__ import annotations

from torch import Tensor

from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.settings import OnNonfinite
from lightning_gradwatch.core.skipping import Skipper


def intervene(
    instruments: Instruments, skipper: Skipper, on_nonfinite: OnNonfinite, scale: Tensor | None, is_scaled: bool
) -> bool:
    """Clip the gradient whose norms are in the last row of the window, or skip its step.

    Args:
        instruments: Of the optimizer's parameters.
        skipper: Of the optimizer, which is about to step.
        on_nonfinite: What to do with a gradient that is not finite.
        scale: Factor that is still in the gradients, shape ``()``; None for none.
        is_scaled: Whether a loss scaler is at work, which skips such steps by itself.

    Returns:
        Whether the step must be reported at once: its gradient is not finite, and that is to be raised or traced, or
        has made the host leave out the step.
    """
    window = instruments.window
    norms = window.norms[-1]
    # policies go by the norms of the whole, of which this rank holds a part
    if instruments.shards.is_spread:
        absent = ("norms",) if window.is_blank else ()
        whole = instruments.shards.reduce({"norms": norms}, {"norms": "norm"}, absent)
        if not whole:  # this rank goes through the step again
            return False
        norms.copy_(whole["norms"])
    is_bad = None if instruments.spikes is None else instruments.spikes.judge(norms, window.facts[-1, 0])
    if len(instruments.clippers):
        instruments.clippers.clip_(norms, scale, out=window.extra[-1])
    if on_nonfinite == "skip" and not is_scaled:
        is_nonfinite = ~norms.isfinite().all()
        is_bad = is_nonfinite if is_bad is None else is_bad | is_nonfinite
    is_urgent = on_nonfinite in ("raise", "trace") and not is_scaled
    if is_bad is not None:
        is_urgent |= skipper.skip(is_bad, is_scaled) and on_nonfinite == "skip" and not is_scaled
        if instruments.updates is not None:
            instruments.updates.note_skip(is_bad)
    return is_urgent and not bool(norms.isfinite().all())
