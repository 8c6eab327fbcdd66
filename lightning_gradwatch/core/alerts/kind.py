"""What an alert kind declares: its names, its rule, its words."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.history.evidence import Evidence
from lightning_gradwatch.core.records import Cause, Finding, Observation
from lightning_gradwatch.core.saved import Saved, State


class Diagnosis(NamedTuple):
    """Why, by which measurement, and what helps against it, the cheapest first.

    ``attribution`` is that of an ``Alert``.
    """

    cause: Cause
    evidence: str
    remedies: tuple[str, ...]
    attribution: Mapping[str, Any] | None = None


class BuiltInRule(Protocol):
    """What the detector asks of the rule of a built-in kind."""

    @property
    def finding(self) -> Finding | None:
        """What is open; None if nothing is."""
        ...

    def update(self, observation: Observation, history: History) -> Finding | Sequence[Finding] | None:
        """Judge an observation that the history has taken in; what opened, rose to an alert, or ended just now."""
        ...

    def scores(self, history: History) -> dict[str, float]:
        """Run-level numbers by their short name, which goes into a tag."""
        ...

    def state_dict(self) -> State:
        """Primitives that ``load_state_dict`` takes back."""
        ...

    def load_state_dict(self, state: Saved) -> None:
        """Go on where ``state_dict`` was taken; what is not there starts afresh."""
        ...


@dataclass(frozen=True)
class Kind:
    """An alert kind: all that the package knows of it.

    Attributes:
        name: As in ``Alert.kind``.
        title: What is wrong, as a headline.
        label: The same in a word or two, where there is little room.
        unit: What ``Alert.value`` and the threshold count.
        rule: Makes its rule, one for each optimizer.
        describe: What is wrong, as a sentence that names the step. One that begins with the symptom and ``(step N): ``
            is shown without them where these are shown by themselves.
        diagnose: Why, from what was measured.
        saved_at: The keys that lead to the rule's state in that of the detector; None for its name.
    """

    name: str
    title: str
    label: str
    unit: str
    rule: Callable[[], BuiltInRule]
    describe: Callable[[Finding, Evidence], str]
    diagnose: Callable[[Finding, Evidence], Diagnosis]
    saved_at: tuple[str, ...] | None = None


def named(layers: Sequence[str]) -> str:
    """The first three layers, and how many more there are."""
    return ", ".join(layers[:3]) + (f" and {len(layers) - 3} more" if len(layers) > 3 else "")


def first_of(*diagnoses: Diagnosis | None) -> Diagnosis:
    """The first of several diagnoses that holds; the last one always does."""
    return next(diagnosis for diagnosis in diagnoses if diagnosis is not None)
