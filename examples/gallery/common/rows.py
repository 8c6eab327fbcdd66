"""What a row of the gallery is: a system, its sick networks with their cures, and what came of training them."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from lightning_gradwatch import Alert


@dataclass(frozen=True)
class Task:
    """One training run, freshly built after seeding.

    Attributes:
        module: Logs ``loss`` at every step.
        data: Batches.
        trainer: Further arguments of the Trainer.
        gradwatch: Arguments of GradWatch.
    """

    module: pl.LightningModule
    data: DataLoader[Any]
    trainer: dict[str, Any] = field(default_factory=dict)
    gradwatch: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Network:
    """A network by a name of a few words, and how to build and train it."""

    name: str
    build: Callable[[], Task]


@dataclass(frozen=True)
class Pair:
    """A sick network, what is right to say of it, and the networks that cure it.

    Attributes:
        sick: Trains measurably worse than the cured ones.
        kinds: Alert kinds of which one must be raised, separated by spaces.
        causes: Causes that are right, separated by spaces.
        cures: GradWatch stays silent on these.
    """

    sick: Network
    kinds: str
    causes: str
    cures: tuple[Network, ...]


@dataclass(frozen=True)
class Row:
    """One system of the gallery.

    Attributes:
        name: Name of its script.
        title: What people call it.
        steps: Optimizer steps of each training run.
        pairs: Its pathologies with their cures.
        profile: Draws these norms, from a trained module and a batch, instead of the gradients at layer outputs.
        axis: What the profile runs along.
        measure: What ``loss`` is.
    """

    name: str
    title: str
    steps: int
    pairs: tuple[Pair, ...]
    profile: Callable[[Any, Any], list[float]] | None = None
    axis: str = "layer, from the input to the loss"
    measure: str = "training loss"

    @property
    def networks(self) -> list[Network]:
        """All networks in order, each once: pairs may share a cure."""
        return list({network.name: network for pair in self.pairs for network in (pair.sick, *pair.cures)}.values())


@dataclass(frozen=True)
class Outcome:
    """What one training run came to."""

    name: str
    alerts: list[Alert]
    losses: list[float]
    profile: list[float]
    seconds: float

    @property
    def final_loss(self) -> float:
        """Median of the last tenth of the steps."""
        return statistics.median(self.losses[-max(1, len(self.losses) // 10) :])

    @property
    def first_alert(self) -> Alert | None:
        """The first alert; the first notice only if there is no alert."""
        return min(self.alerts, key=lambda alert: (alert.level != "alert", alert.step), default=None)

    @property
    def verdict(self) -> str:
        """The first alert in a few words."""
        first = self.first_alert
        return f"{first.level} {first.kind}, {first.cause}, at step {first.step}" if first else "silent"

    def objections(self, pair: Pair) -> list[str]:
        """What GradWatch should have said otherwise, the network being what the pair says it is."""
        loud = [alert for alert in self.alerts if alert.level == "alert"]
        if self.name != pair.sick.name:
            return [f"{self.name}: false {alert.kind} at step {alert.step}" for alert in loud]
        right = [alert for alert in loud if alert.kind in pair.kinds.split()]
        if not right:
            return [f"{self.name}: no {' or '.join(pair.kinds.split())}"]
        named = sorted({alert.cause for alert in right})
        return [] if {*named} & {*pair.causes.split()} else [f"{self.name}: {named} instead of {pair.causes}"]


def objections(pair: Pair, outcomes: dict[str, Outcome]) -> list[str]:
    """What GradWatch should have said otherwise of a pair."""
    return [text for network in (pair.sick, *pair.cures) for text in outcomes[network.name].objections(pair)]
