"""The steps whose numbers are still on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch.optim import Optimizer

from lightning_gradwatch.core.assemble import Label
from lightning_gradwatch.core.attribution.graph import Operation
from lightning_gradwatch.core.instruments import Instruments
from lightning_gradwatch.core.records import Architecture, Coverage
from lightning_gradwatch.core.saved import Saved, State, count


@dataclass
class Pending:
    """One entry for each row of the window on the device, and what is known of the last one in particular.

    Attributes:
        step: The last step, on the x-axis of the loggers.
        steps: Every step.
        known: For each of them whether its loss is known, and how much of its batch was looked at.
        ran: Names of the layers that ran at the last sampled step, and that a gradient is asked for.
        spare: Names of those that trained layers fed and whose output nobody had kept, at the latest thorough sample.
        is_scaled: Whether a loss scaler was at work at the last step.
        operations: Of the last sample that sought causes.
    """

    step: int = 0
    steps: list[int] = field(default_factory=list)
    known: list[tuple[bool, Coverage]] = field(default_factory=list)
    ran: frozenset[str] = frozenset()
    spare: frozenset[str] = frozenset()
    is_scaled: bool = False
    operations: tuple[Operation, ...] = ()

    def add(self, step: int, known: tuple[bool, Coverage], is_scaled: bool) -> None:
        """A step has been put into the window."""
        self.step, self.is_scaled = step, is_scaled
        self.steps.append(step)
        self.known.append(known)

    def shorten(self, num_steps: int) -> None:
        """Forget what has come after so many steps."""
        self.steps, self.known = self.steps[:num_steps], self.known[:num_steps]

    def drop(self) -> None:
        """The window has been cleared."""
        self.steps, self.known = [], []

    def label(
        self, instruments: Instruments, architecture: Architecture | None, optimizer: Optimizer, publish: bool
    ) -> Label:
        """What the host has to know about these steps.

        Args:
            instruments: By which they were measured.
            architecture: What the network is made of; None if it is not known.
            optimizer: Whose steps they are.
            publish: Whether the loggers are to be written.
        """
        return Label(
            step=self.step,
            steps=tuple(self.steps),
            known=tuple(self.known),
            instruments=instruments,
            lr=_lr(optimizer),
            architecture=architecture,
            ran=self.ran,
            spare=self.spare,
            operations=self.operations,
            publish=publish,
            is_scaled=self.is_scaled,
            skips=self.is_scaled or instruments.skips,
        )

    def state_dict(self, is_whole: bool) -> State:
        """Primitives that ``load_state_dict`` takes back; without the rows where ranks hold parts of them."""
        steps = list(self.steps) if is_whole else []
        known = [[loss, int(coverage)] for loss, coverage in self.known] if is_whole else []
        return {"step": self.step, "steps": steps, "known": known}

    def load_state_dict(self, saved: Saved) -> None:
        """Go on where ``state_dict`` was taken; with no row if it is not known which they are."""
        self.step = saved.take("step", int, self.step, count)
        steps, known = saved.take("steps", list[int], []), saved.take("known", list[tuple[bool, Coverage]], [])
        if len(steps) == len(known):
            self.steps, self.known = steps, known


def _lr(optimizer: Optimizer) -> float | None:
    """The largest learning rate; None if none is a plain number."""
    rates = [group.get("lr") for group in optimizer.param_groups]
    return max((float(r) for r in rates if isinstance(r, (int, float))), default=None)
