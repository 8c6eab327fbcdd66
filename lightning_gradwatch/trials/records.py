"""What a prescription says: frozen, importable without torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from lightning_gradwatch.trials.headroom.records import Headroom

Effect = Literal["helps", "no change", "worse"]


@dataclass(frozen=True)
class Trial:
    """One remedy, tried on a copy of the model.

    Attributes:
        key: Stable name of the remedy, such as ``"init.he"``; two remedies together are joined by ``" + "``.
        remedy: What was changed, in the field's words, such as ``"He initialisation"``.
        effect: Whether it helps, by loss and decades together.
        decades: Decades of gradient lost (or, negative, gained) from the loss end to the input end, by the detector's
            definition; along time where the diagnosis is one of time. NaN where the network has no such profile.
        loss_before: Loss of the remedied model before its first trial step.
        loss_after: Loss after the trial's steps; the same as ``loss_before`` if there were none. NaN or infinite if it
            diverged.
        parameters_percent: Change of the number of parameters, in percent.
        time_percent: Change of the time of a step, in percent; 0 where a step consists of the same as before.
        code: The line (or few) of code that applies it to the user's model.
    """

    key: str
    remedy: str
    effect: Effect
    decades: float
    loss_before: float
    loss_after: float
    parameters_percent: float = 0.0
    time_percent: float = 0.0
    code: str = ""

    def __str__(self) -> str:
        """What was changed, what came of it, and the code that does the same to the user's model."""
        figures = [f"loss {self.loss_before:.3g} -> {self.loss_after:.3g}"]
        if math.isfinite(self.decades):
            figures.append(f"{self.decades:.1f} orders of magnitude lost")
        return "\n".join(filter(None, (f"{self.remedy}: {self.effect} ({', '.join(figures)})", self.code)))


@dataclass(frozen=True)
class NotTried:
    """A remedy that could not be tried.

    Attributes:
        key: As in ``Trial``.
        remedy: As in ``Trial``.
        why: The reason, such as ``"no pair of layers with the same shape"``.
    """

    key: str
    remedy: str
    why: str


@dataclass(frozen=True)
class Prescription:
    """What was tried, and what came of it.

    Attributes:
        diagnosis: What is wrong, in a sentence or two; where nothing is, what was looked at to say so.
        untreated: The model as it is, after the same number of steps.
        trials: The remedies, best first.
        not_tried: Those that could not be tried.
        num_steps: Optimizer steps of each trial; 0 for a single backward pass.
        seconds: What all of it took.
        kind: Kind of the alert that was found or given; ``""`` where nothing is wrong.
        cause: Its cause, likewise.
        headroom: How far the learning rate of the untreated model is from the edge; None where no remedy that was
            tried changes the rate, or where it could not be measured.
    """

    diagnosis: str
    untreated: Trial
    trials: tuple[Trial, ...] = ()
    not_tried: tuple[NotTried, ...] = ()
    num_steps: int = 0
    seconds: float = field(default=0.0, compare=False)
    kind: str = ""
    cause: str = ""
    headroom: Headroom | None = None

    @property
    def is_needed(self) -> bool:
        """Whether something is wrong."""
        return bool(self.kind)

    @property
    def best(self) -> Trial | None:
        """The first remedy that helps; None if none does."""
        return next((trial for trial in self.trials if trial.effect == "helps"), None)

    def as_dict(self) -> dict[str, Any]:
        """Primitives, for JSON."""
        return {**asdict(self), "headroom": self.headroom and self.headroom.as_dict()}

    def __str__(self) -> str:
        from lightning_gradwatch.trials.table import as_text

        return as_text(self)

    def _repr_html_(self) -> str:
        """The same as a notebook shows it."""
        from lightning_gradwatch.trials.markup import as_html

        return as_html(self)

    def _repr_pretty_(self, printer: Any, _is_cycle: bool) -> None:
        """The lines of ``str``, as IPython shows them."""
        printer.text(str(self))
