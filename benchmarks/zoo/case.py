"""What a case of the zoo is: a small training run and an honest label for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

from lightning_gradwatch.core.records import AlertKind, Cause

Label = Literal["sick", "healthy", "borderline"]

KINDS = frozenset(get_args(AlertKind))
CAUSES = frozenset(get_args(Cause)) - {"unknown"}


@dataclass(frozen=True)
class Task:
    """What one training run needs, freshly built; the runner seeds before building."""

    module: LightningModule
    data: DataLoader[Any]
    trainer: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """One network with its label.

    Attributes:
        name: Unique name.
        build: Makes the task afresh.
        steps: Optimizer steps to run (a GAN's two optimizers both count).
        label: Whether the run is sick, healthy, or debatable.
        required: Alert kinds of which at least one must be raised.
        acceptable: Further kinds that are not wrong.
        causes: Acceptable causes; empty when unknown or healthy.
        twin: Name of the healthy, remedied case that trains measurably better.
        held_out: Never used for tuning.
        onset: The step at which the trouble starts.
        note: Why the label is honest.
        remedy: What the twin does differently, as globs over the keys of remedies, such as ``init.*``; any of them is
            what it really used. Empty where the twin's change is one of code or data, which no copy can try.
    """

    name: str
    build: Callable[[], Task]
    steps: int
    label: Label
    required: frozenset[str] = frozenset()
    acceptable: frozenset[str] = frozenset()
    causes: frozenset[str] = frozenset()
    twin: str | None = None
    held_out: bool = False
    onset: int = 0
    note: str = ""
    remedy: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Reject misspelt kinds and causes, and labels that contradict themselves."""
        unknown = (self.required | self.acceptable) - KINDS | self.causes - CAUSES
        if unknown:
            raise ValueError(f"{self.name}: unknown {sorted(unknown)}")
        if (self.label == "sick") != bool(self.required):
            raise ValueError(f"{self.name}: required kinds belong to sick cases, and only to them")


def sick(
    name: str,
    build: Callable[[], Task],
    steps: int,
    required: str,
    causes: str,
    twin: str,
    note: str,
    *,
    also: str = "",
    held_out: bool = False,
    onset: int = 0,
    remedy: str = "",
) -> Case:
    """A case that must raise one of `required` (kinds, causes and remedies are separated by spaces)."""
    kinds, treated = (frozenset(required.split()), frozenset(also.split())), tuple(remedy.split())
    return Case(name, build, steps, "sick", *kinds, frozenset(causes.split()), twin, held_out, onset, note, treated)


def healthy(name: str, build: Callable[[], Task], steps: int, note: str, *, held_out: bool = False) -> Case:
    """A case that must stay silent."""
    return Case(name, build, steps, "healthy", held_out=held_out, note=note)


def borderline(
    name: str,
    build: Callable[[], Task],
    steps: int,
    also: str,
    causes: str,
    note: str,
    *,
    twin: str | None = None,
    held_out: bool = False,
) -> Case:
    """A debatable case: silence is right, and so is an alert of a kind in `also`."""
    acceptable, reasons = frozenset(also.split()), frozenset(causes.split())
    return Case(name, build, steps, "borderline", frozenset(), acceptable, reasons, twin, held_out, note=note)
