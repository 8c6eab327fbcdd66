"""What a rule of a user implements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from lightning_gradwatch.core.history import History
from lightning_gradwatch.core.records import Finding, Observation


@runtime_checkable
class Rule(Protocol):
    """A rule of your own: it raises alerts of a kind that GradWatch does not know.

    It is asked after every observation, once the built-in rules have been: at each sample and each point of the
    loggers, not at each step. Each optimizer has a copy of its own. A rule that raises is left out from then on, as one
    line says, and nothing else is.

    It may also have the attributes ``unit`` (what the value counts, such as ``"degrees"``), ``cause`` (why it usually
    happens, as a clause without a full stop) and ``remedies`` (a list of what to try, the cheapest first), and the
    methods ``state_dict()`` and ``load_state_dict(state)``, with primitives and tensors in dicts, lists and tuples:
    they go into checkpoints. A state that ``load_state_dict`` refuses, by raising, is dropped.

    Examples:
        ```python
        from lightning_gradwatch.core.alerts.hysteresis import Hysteresis

        class Overheated:
            kind, title, unit = "overheated", "The head is overheated", "of the limit"
            remedies = ("a smaller learning rate for the head",)

            def __init__(self):
                self.hysteresis = Hysteresis(self.kind, threshold=1.0, persistence=2)

            def update(self, observation, history):
                if history.sample is None:
                    return None
                heat = max(observation.last_norms) / 100
                return self.hysteresis.judge(observation.step, heat, ("head",))

            def state_dict(self):
                return self.hysteresis.state_dict()

            def load_state_dict(self, state):
                self.hysteresis.load_state_dict(state)
        ```

    Attributes:
        kind: Name of the kind, a Python identifier that no built-in kind and no other rule has.
        title: What is wrong, as a headline.
    """

    @property
    def kind(self) -> str:
        """Name of the kind."""
        ...

    @property
    def title(self) -> str:
        """What is wrong, as a headline."""
        ...

    def update(self, observation: Observation, history: History) -> Finding | Sequence[Finding] | None:
        """Judge an observation.

        Args:
            observation: What has just arrived from the device. Not to be changed.
            history: What all observations so far, this one included, have shown, and which alerts are open. Not to be
                changed.

        Returns:
            What opened, rose to an alert, or ended just now, as
            [`judge`][lightning_gradwatch.core.alerts.hysteresis.Hysteresis.judge] has it; None for nothing. What is
            said again of an alert that is open already is ignored.
        """
        ...
