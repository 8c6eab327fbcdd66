"""What to watch and how often: the choices of one watcher."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from lightning_gradwatch.core.alerts.rule import Rule
from lightning_gradwatch.core.clip import ClipPolicy
from lightning_gradwatch.core.quantities.quantity import LayerQuantity
from lightning_gradwatch.core.schedule import Schedule

OnNonfinite: TypeAlias = Literal["keep", "trace", "skip", "raise"]
OnSpike: TypeAlias = Literal["keep", "skip"]


@dataclass(frozen=True)
class Settings:
    """What to watch and how often.

    Attributes:
        schedule: When samples are taken.
        histogram_every: Steps that lie between two histograms at least; they come with thorough samples, and farther
            apart as the run grows. 0 for never.
        include: Globs over the names of the layers to report; empty for all.
        exclude: Globs over the names of the layers not to report.
        vanishing_threshold: Score in (0, 1] at which ``vanishing`` opens.
        policies: What to clip by; empty for no clipping. A gradient is clipped by the first policy that is for it.
        on_nonfinite: What to do with a step whose gradient is not finite, where no loss scaler skips it anyway:
            ``"keep"`` it, ``"trace"`` (the same, but the report of that step tells of it, before it is taken),
            ``"skip"`` it (weights and the optimizer's state stay as they are) or ``"raise"``, which is left to the
            caller, as for ``"trace"``.
        on_spike: What to do with a step whose norm or loss stands out of the last 128: ``"keep"`` or ``"skip"`` it.
        quantities: What to measure of every layer besides, on thorough samples.
        rules: Rules of the user, which raise alerts of kinds of their own.
        are_complete: Whether gradients are looked at when the step is about to take them, so that the ranks of DDP have
            added theirs up, and not after each backward pass.
    """

    schedule: Schedule = field(default_factory=Schedule)
    histogram_every: int = 10
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    vanishing_threshold: float = 0.5
    policies: tuple[ClipPolicy, ...] = ()
    on_nonfinite: OnNonfinite = "keep"
    on_spike: Literal["keep", "skip"] = "keep"
    quantities: tuple[LayerQuantity, ...] = ()
    rules: tuple[Rule, ...] = ()
    are_complete: bool = True
